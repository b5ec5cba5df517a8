"""WDCNN: any window, weights, masks, seeds, checkpoints."""

from __future__ import annotations

import pytest
import torch
from lightning import Trainer

from lightning_synth.downstream import WDCNN
from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.testing import tiny_datamodule, tiny_series, tiny_series_schema


def test_learns_tiny_series(trainer_kwargs: dict) -> None:
    data = tiny_datamodule("timeseries", n=48)
    model = WDCNN(schema=data.schema, lr=3e-3)
    Trainer(max_steps=120, **trainer_kwargs).fit(model, datamodule=data)
    test = data.test_items()
    truth = torch.stack([item["y"] for item in test]).numpy()
    assert (model.predict(test) == truth).mean() > 0.9


@pytest.mark.parametrize(("channels", "length"), [(1, 8), (6, 24), (3, 100), (1, 1024), (2, 2048)])
def test_any_window_fits(channels: int, length: int) -> None:
    schema = tiny_series_schema(channels=channels, length=length)
    items = tiny_series(4, channels=channels, length=length)
    model = WDCNN(schema=schema)
    model.training_step(items.tensors).backward()
    assert model.predict_proba(items).shape == (4, 3)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_first_kernel_of_the_paper() -> None:
    first = next(m for m in WDCNN(schema=tiny_series_schema(channels=1, length=2048)).modules() if hasattr(m, "stride"))
    assert first.kernel_size[0] in (64, 65) and first.stride == (16,)


def test_loss_is_a_weighted_mean() -> None:
    model, batch = WDCNN(schema=tiny_series_schema()).eval(), dict(tiny_series(6).tensors)
    parts = [model.training_step({key: value[i : i + 1] for key, value in batch.items()}) for i in range(6)]
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 1.5])
    expected = (torch.stack(parts) * weight).sum() / weight.sum()
    assert torch.allclose(model.training_step({**batch, "weight": weight}), expected, atol=1e-6)
    assert torch.allclose(model.training_step(batch), torch.stack(parts).mean(), atol=1e-6)


def test_masked_steps_do_not_matter() -> None:
    model, batch = WDCNN(schema=tiny_series_schema()).eval(), dict(tiny_series(4).tensors)
    mask = torch.arange(24).expand(4, 24) < 15
    spoiled = torch.where(mask[:, None], batch["x"], 1e3)
    a, b = (model({"x": x, "mask": mask}) for x in (batch["x"], spoiled))
    assert torch.allclose(a, b)


def test_scale_of_the_data_does_not_matter() -> None:
    items, schema = tiny_series(8), tiny_series_schema(n=8)
    scaled = {**schema, "mean": [100 * m for m in schema["mean"]], "std": [100 * s for s in schema["std"]]}
    a, b = WDCNN(schema=schema).eval(), WDCNN(schema=scaled).eval()
    assert torch.allclose(a(items.tensors), b({"x": 100 * items.tensors["x"]}), atol=1e-4)


def test_initial_weights_follow_the_seed_alone() -> None:
    state = torch.get_rng_state()
    a, b, c = (WDCNN(schema=tiny_series_schema(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


def test_prediction_is_chunked_without_effect_and_keeps_the_mode() -> None:
    model, items = WDCNN(schema=tiny_series_schema()), tiny_series(600)
    model.train()
    whole = model.predict_proba(items)
    assert model.training
    assert abs(whole[590:] - model.predict_proba(items[590:])).max() < 1e-6
    assert model.predict(items[:0]).shape == (0,)


def test_checkpoint_reloads_alone_and_weights_only(trainer_kwargs: dict, tmp_path) -> None:
    data, model = tiny_datamodule("timeseries"), WDCNN()
    trainer = Trainer(max_steps=2, **trainer_kwargs)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = WDCNN.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    items = data.test_items()
    assert (again.predict_proba(items) == model.predict_proba(items)).all()


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="0 classes"):
        WDCNN(schema=tiny_series_schema(num_classes=0))
    with pytest.raises(NotFittedError, match="schema"):
        WDCNN().predict(tiny_series(2))
