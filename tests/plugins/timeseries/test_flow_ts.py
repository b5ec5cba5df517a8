"""What only flow_ts can get wrong: a Gaussian start, imputation, held-out windows, refinement, odd shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_synth.checkpoint import load_generator
from lightning_synth.datamodules.base import ItemsDataModule
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.flow import preconditioning, shifted_times
from lightning_synth.holdout import BestWeights, held_out_rows, row_keys, without
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.flow_ts import FlowTS, TwoAxisTransformer, random_observations, rotate
from lightning_synth.requests import KeyedRNG
from lightning_synth.testing.case import quiet_trainer

TINY: dict[str, Any] = {"d_model": 16, "heads": 2, "depth": 2, "num_steps": 6, "lr": 5e-3}


def waves(rows: int = 256, length: int = 24) -> StackedItems:
    """Class 0: a sine; class 1: a ramp; the second channel is the first one plus a little noise."""
    rng = KeyedRNG(7)
    time = torch.arange(length) / length
    y = torch.arange(rows) % 2
    phase, size = 6.28 * rng.uniform((rows, 1)), 1 + rng.uniform((rows, 1))
    first = torch.where(y[:, None] == 0, torch.sin(12.57 * time + phase), 3 * time - 1.5) * size
    x = torch.stack([first, first + 0.1 * rng.normal((rows, length))], dim=1)
    return StackedItems({"x": 50 + 10 * x, "y": y})


def module_of(items: StackedItems) -> ItemsDataModule:
    return ItemsDataModule(items, batch_size=64, domain="timeseries")


@pytest.fixture(scope="module")
def fitted() -> FlowTS:
    model = FlowTS(**TINY)
    quiet_trainer(max_steps=700).fit(model, datamodule=module_of(waves()))
    return model


# The flow -----------------------------------------------------------------------------------------------------------


def test_preconditioning_is_the_best_linear_prediction() -> None:
    rng = KeyedRNG(0)
    x1, x0 = rng.normal((200_000,)), rng.normal((200_000,))
    for t in (0.1, 0.5, 0.9):
        at = torch.tensor(t)
        x_t, v = t * x1 + (1 - t) * x0, x1 - x0
        c_in, c_skip, c_out = preconditioning(at)
        assert float((c_in * x_t).std()) == pytest.approx(1, abs=0.01)
        assert float((v * x_t).mean() / x_t.square().mean()) == pytest.approx(float(c_skip), abs=0.02)
        assert float((v - c_skip * x_t).std()) == pytest.approx(float(c_out), abs=0.02)


def test_shifted_times_start_and_end_where_they_should() -> None:
    for shift in (0.5, 1.0, 3.0):
        times = shifted_times(7, shift, start=0.25)
        assert times[0] == 0.25 and times[-1] == 1.0 and times == sorted(times)
    finer_near_data = shifted_times(10, 0.5)
    assert finer_near_data[-1] - finer_near_data[-2] < finer_near_data[1] - finer_near_data[0]


def test_an_untrained_model_samples_the_gaussian_with_the_spectrum_of_the_data() -> None:
    items, model = waves(400), FlowTS(**{**TINY, "lr": 1e-12})
    # One step at a learning rate of nothing: the scales of the windows are known, the network says zero.
    quiet_trainer(max_steps=1).fit(model, datamodule=module_of(items))
    x, real = model.sample(400).data["x"], items.tensors["x"]
    ratio = x.diff(dim=-1).std((0, 2)) / real.diff(dim=-1).std((0, 2))
    assert float((ratio - 1).abs().max()) < 0.3


def test_rotary_embedding_depends_on_the_distance_alone() -> None:
    rng = KeyedRNG(1)
    query, key = rng.normal((1, 1, 1, 8)).expand(1, 1, 10, 8), rng.normal((1, 1, 1, 8)).expand(1, 1, 10, 8)
    angle = torch.arange(10)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    product = rotate(query, angle) @ rotate(key, angle).transpose(-1, -2)
    assert torch.allclose(product[0, 0, 2, 5], product[0, 0, 6, 9], atol=1e-5)
    assert torch.equal(rotate(query, torch.zeros(10, 4)), query)


@pytest.mark.parametrize(("length", "patch"), [(24, 1), (25, 4), (300, 8)])
def test_transformer_takes_any_length_and_starts_at_zero(length: int, patch: int) -> None:
    torch.manual_seed(0)
    net = TwoAxisTransformer(3, length, 2, 2, 16, 1, 2, 2, patch)
    x = torch.randn(2, 3, length + 2)
    assert torch.equal(net(x, torch.randn(2, 16)), torch.zeros_like(x))
    torch.nn.init.normal_(net.to_time.weight)
    torch.nn.init.normal_(net.to_channel.weight)
    given = torch.zeros(2, 3, 2, length + 2)
    embedding = torch.randn(2, 16)
    assert torch.allclose(net(x, embedding, given), net(x, embedding), atol=1e-5)
    given[..., -1] = 1
    assert not torch.allclose(net(x, embedding, given), net(x, embedding), atol=1e-3)


# Learning -----------------------------------------------------------------------------------------------------------


def test_classes_are_learned(fitted: FlowTS) -> None:
    x = fitted.sample(64, condition={"label": [0, 1] * 32}).data["x"]
    rise, truth = (v[:, 0, -4:].mean(-1) - v[:, 0, :4].mean(-1) for v in (x, waves().tensors["x"]))
    # Ramps rise by 20 to 50, sines by less either way.
    assert float(rise[1::2].median()) == pytest.approx(float(truth[1::2].median()), rel=0.25)
    assert float(rise[1::2].median()) > 2 * float(rise[::2].abs().median())
    # The two channels go together.
    apart = (x[:, 0] - x[:, 1]).std()
    assert float(apart) < 0.25 * float(x[:, 0].std())


def test_imputation_beats_interpolation_and_keeps_what_is_observed(fitted: FlowTS) -> None:
    x = waves(512).tensors["x"][400:464]
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, 0, ::8] = True  # three points of one channel
    broken = torch.where(mask, x, torch.nan)
    filled = fitted.impute(broken, mask, n=5, seed=1)
    assert filled.shape == (64, 5, 2, 24) and bool(torch.isfinite(filled).all())
    assert torch.equal(filled[:, 0][mask], x[mask])
    error = (filled.median(1).values - x).abs().mean()
    level = x[:, :1, ::8].mean(-1, keepdim=True)
    assert float(error) < 0.8 * float((level - x).abs().mean())


def test_forecast_keeps_the_past(fitted: FlowTS) -> None:
    x = waves(64).tensors["x"]
    out = fitted.forecast(x[..., :16], n=3, condition={"label": waves(64).tensors["y"].tolist()})
    assert out.shape == (64, 3, 2, 24) and torch.equal(out[:, 0, :, :16], x[..., :16])
    ramps, truth = out[1::2].median(1).values[:, 0, 16:], x[1::2, 0, 16:]
    held = x[1::2, 0, 15:16]
    assert float((ramps - truth).abs().mean()) < 0.8 * float((held - truth).abs().mean())


def test_given_windows_are_refined(fitted: FlowTS) -> None:
    items = waves(32)
    near, far = (
        fitted.sample(32, condition={"label": items.tensors["y"].tolist()}, init=items, strength=s).data["x"]
        for s in (0.1, 0.9)
    )
    distance = [float((x - items.tensors["x"]).square().mean()) for x in (near, far)]
    assert distance[0] < 0.3 * distance[1]
    with pytest.raises(ConfigError, match="strength"):
        fitted.sample(2, init=items, strength=0.0)


def test_wrong_imputation_input_is_named(fitted: FlowTS) -> None:
    with pytest.raises(DataError, match=r"\(rows, 2, 24\)"):
        fitted.impute(torch.zeros(3, 1, 24), torch.ones(3, 1, 24))
    with pytest.raises(DataError, match="not finite"):
        fitted.impute(torch.full((1, 2, 24), torch.nan), torch.ones(1, 2, 24))
    with pytest.raises(ConfigError, match="observed=0"):
        FlowTS(schema=fitted.schema, observed=0.0, **TINY).impute(torch.zeros(1, 2, 24), torch.ones(1, 2, 24))


def test_conditions_of_imputed_windows_are_one_for_all_or_one_each(fitted: FlowTS) -> None:
    x, mask = waves(4).tensors["x"], torch.ones(4, 1, 24, dtype=torch.bool)
    mask[..., 6:] = False
    alike = [fitted.impute(x, mask, n=2, condition={"label": label}) for label in (1, torch.tensor(1), [1] * 4)]
    assert torch.equal(alike[0], alike[1]) and torch.equal(alike[0], alike[2])
    with pytest.raises(ConfigError, match="3 values for 4 windows"):
        fitted.impute(x, mask, n=2, condition={"label": [0, 1, 0]})
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        fitted.impute(x, mask, n=0)
    for wrong in (torch.zeros(2, 2, 25), torch.zeros(2, 6)):
        with pytest.raises(DataError, match="forecast needs x"):
            fitted.forecast(wrong)


def test_windows_to_start_from_may_be_an_array(fitted: FlowTS) -> None:
    x = waves(4).tensors["x"]
    strided = x.double().transpose(1, 2).contiguous().transpose(1, 2)
    given = [fitted.sample(4, init=init, strength=0.2).data["x"] for init in ({"x": x}, x.numpy(), strided)]
    assert torch.equal(given[0], given[1]) and torch.equal(given[0], given[2])
    with pytest.raises(DataError, match=r"shape \(2, 8\); the model makes \(2, 24\)"):
        fitted.sample(4, init=x[..., :8])
    with pytest.raises(DataError, match="not finite"):
        fitted.sample(4, init=torch.where(x > 55, torch.nan, x).numpy())
    with pytest.raises(ConfigError, match="num_steps must be at least 1"):
        fitted.sample(4, num_steps=0)


def test_observations_are_points_or_a_beginning() -> None:
    mask = random_observations(torch.Size((400, 2, 24)), KeyedRNG(3))
    beginning = (mask == mask.cummin(dim=-1).values).all(-1).all(-1)
    assert 0.2 < float(beginning.double().mean()) < 0.45
    assert 0.3 < float(mask.double().mean()) < 0.7 and bool(mask[beginning][..., 0].double().mean() > 0.9)


# Held-out windows ----------------------------------------------------------------------------------------------------


def test_held_out_windows_are_not_trained_on() -> None:
    items, seen = waves(256), []

    class Spy(FlowTS):
        def path_loss(self, x1: Tensor, condition: Any, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
            if self.training:
                seen.append(row_keys(batch["x"]))
            return super().path_loss(x1, condition, batch, rng)

    model = Spy(holdout=0.25, **TINY)
    quiet_trainer(max_epochs=2).fit(model, datamodule=module_of(items))
    held = row_keys(items.tensors["x"][held_out_rows(256, 0.25)])
    assert len(held) == 64 and not bool(torch.isin(torch.cat(seen), held).any())
    assert len(torch.cat(seen).unique()) == 192


def test_the_best_averaged_weights_are_kept_and_patience_stops(tmp_path: Path) -> None:
    # At this learning rate the loss only gets worse after a while.
    model = FlowTS(holdout=0.2, patience=2, **{**TINY, "lr": 0.5, "ema_decay": 0.5})
    trainer = quiet_trainer(max_steps=200)
    trainer.fit(model, datamodule=module_of(waves(256)))
    assert trainer.global_step < 200
    kept = {name: value.clone() for name, value in model.average.named_buffers()}
    assert all(torch.equal(value, model.best.get_buffer(name.replace(".", "/"))) for name, value in kept.items())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = load_generator(tmp_path / "model.ckpt")
    assert torch.equal(again.sample(3, seed=2).data["x"], model.sample(3, seed=2).data["x"])


def test_few_windows_are_all_trained_on() -> None:
    model = FlowTS(**TINY)
    quiet_trainer(max_steps=2).fit(model, datamodule=module_of(waves(60)))
    assert not model._held


def test_best_weights_remember_the_smallest_loss() -> None:
    weights = {"a.b": torch.zeros(2)}
    best = BestWeights(weights)
    best.restore(weights)
    assert torch.equal(weights["a.b"], torch.zeros(2))
    waits = [best.offer(torch.tensor(loss), {"a.b": torch.full((2,), loss)}) for loss in (3.0, 1.0, 2.0, 2.5)]
    assert waits == [0, 0, 1, 2]
    best.restore(weights)
    assert torch.equal(weights["a.b"], torch.ones(2))


def test_without_drops_the_named_rows_but_never_all() -> None:
    x = KeyedRNG(1).normal((4, 2, 3))
    batch = {"x": x, "y": torch.arange(4)}
    assert without(batch, row_keys(x[[1, 3]]))["y"].tolist() == [0, 2]
    assert without(batch, row_keys(x))["y"].tolist() == [0]


# Other shapes --------------------------------------------------------------------------------------------------------


def test_ragged_windows_keep_their_masks() -> None:
    items = waves(64)
    length = 12 + torch.arange(64) % 13
    mask = torch.arange(24) < length[:, None]
    ragged = StackedItems({"x": items.tensors["x"] * mask[:, None], "y": items.tensors["y"], "mask": mask})
    model = FlowTS(**TINY)
    quiet_trainer(max_steps=150).fit(model, datamodule=module_of(ragged))
    batch = model.sample(32).data
    seen = batch["mask"].sum(1).float()
    # All training windows end early, none has holes: so do the sampled ones.
    assert torch.equal(batch["mask"], torch.arange(24) < seen[:, None])
    assert batch["mask"].dtype == torch.bool and 14 < float(seen.mean()) < 22
    assert float((batch["x"] * ~batch["mask"][:, None]).abs().max()) == 0
    real = ragged.tensors["x"].transpose(0, 1).flatten(1)
    sampled = batch["x"].transpose(0, 1)[:, batch["mask"]]
    assert not any(bool(torch.isin(s, r).any()) for s, r in zip(sampled, real, strict=True))
    # What is imputed has a value at every step, also where such windows usually end.
    future = model.forecast(ragged.tensors["x"][:32, :, :6], seed=1)[:, 0, :, 12:]
    assert float(future.diff(dim=-1).abs().amin(-1).mean()) > 0.05


@pytest.mark.parametrize(("channels", "length"), [(1, 1), (1, 3), (2, 1024)])
def test_extreme_shapes(channels: int, length: int) -> None:
    x = KeyedRNG(2).normal((32, channels, length))
    model = FlowTS(**TINY)
    quiet_trainer(max_steps=2).fit(model, datamodule=module_of(StackedItems({"x": x})))
    out = model.sample(3).data["x"]
    assert out.shape == (3, channels, length) and bool(torch.isfinite(out).all())
    assert model.transformer.tokens <= 64


def test_wrong_settings_are_refused() -> None:
    wrongs: list[dict[str, Any]] = [
        {"solver": "rk4"},
        {"num_steps": 0},
        {"d_model": 30},
        {"heads": 0},
        {"depth": 0},
        {"observed": 1.0},
        {"holdout": 0.9},
        {"patch_size": 0},
        {"spectrum_weight": -1.0},
        {"condition_dropout": -0.1},
        {"condition_dropout": 1.5},
        {"ema_decay": 2.0},
        {"guidance_interval": [0.1]},
        {"time_scale": -1.0},
    ]
    for wrong in wrongs:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            FlowTS(**wrong)
