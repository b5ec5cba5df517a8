"""What only the WGAN-GP can get wrong: the penalty, learning two modes, and being caught when it collapses."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from lightning_synth.callbacks.collapse import CollapseMonitor
from lightning_synth.datamodules.base import ItemsDataModule
from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.wgan_ts import WGANTS, gradient_penalty
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_series, tiny_series_schema
from lightning_synth.testing.case import quiet_trainer

TINY: dict[str, Any] = {"width": 8, "latent_dim": 4}


def two_modes(n: int = 128) -> StackedItems:
    """Windows around +3 and around -1, with other noise; the label is not told."""
    rng, up = KeyedRNG(0), (torch.arange(n) % 2).bool()[:, None, None]
    noise = rng.normal((n, 1, 8))
    return StackedItems({"x": torch.where(up, 3 + 0.5 * noise, -1 + 0.2 * noise)})


def fit(model: WGANTS, items: StackedItems, steps: int, *callbacks: Any) -> L.Trainer:
    trainer = quiet_trainer(*callbacks, max_steps=steps)
    trainer.fit(model, datamodule=ItemsDataModule(items, batch_size=64))
    return trainer


@pytest.mark.parametrize("slope", [[0.0, 0.0], [0.6, 0.8], [3.0, 4.0]])
def test_penalty_of_a_linear_critic_is_known(slope: list[float]) -> None:
    weight = torch.tensor(slope, requires_grad=True)
    real, fake = KeyedRNG(1).normal((5, 2)), KeyedRNG(2).normal((5, 2))
    penalty = gradient_penalty(lambda x: x @ weight + 7, real, fake, KeyedRNG(3))
    length = sum(v**2 for v in slope) ** 0.5
    assert float(penalty.detach()) == pytest.approx((length - 1) ** 2, abs=1e-5)
    penalty.backward()
    expected = torch.tensor(slope) * (2 * (length - 1) / length if length else 0.0)
    assert weight.grad is not None and torch.allclose(weight.grad, expected, atol=1e-4)


def test_penalty_looks_between_real_and_generated_rows() -> None:
    seen: list[torch.Tensor] = []

    def critic(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return x.square().sum((1, 2))

    real, fake = torch.zeros(100, 2, 3), torch.full((100, 2, 3), 2.0)
    gradient_penalty(critic, real, fake, KeyedRNG(0))
    (x,) = seen
    assert torch.equal(x, x[:, :1, :1].expand_as(x)), "one share a row"
    assert x.min() >= 0 and x.max() <= 2 and 0.8 < float(x.mean()) < 1.2 and x[:, 0, 0].unique().numel() == 100


@pytest.mark.parametrize(("channels", "length"), [(1, 1), (1, 8), (3, 24), (2, 50), (20, 1024)])
def test_shapes(channels: int, length: int) -> None:
    model = WGANTS(schema=tiny_series_schema(channels, length), **TINY)
    batch = tiny_series(4, channels, length).tensors
    d_loss, g_loss = model.discriminator_loss(batch, KeyedRNG(0)), model.generator_loss(batch, KeyedRNG(0))
    assert d_loss.shape == g_loss.shape == () and bool(torch.isfinite(d_loss + g_loss))
    condition = torch.zeros(2, 3)
    out = model.generate(condition, torch.zeros(2, 4), torch.zeros(2, model.G.noise_shape()))
    assert out.shape == (2, channels, length)


def test_it_learns_both_modes() -> None:
    items, model = two_modes(), WGANTS(lr=2e-3, d_steps=3, **TINY)
    fit(model, items, 150, CollapseMonitor(every_n_epochs=1000))
    real, fake = items.tensors["x"], model.sample(512).data["x"]
    assert float(fake.mean()) == pytest.approx(float(real.mean()), abs=0.5)
    assert float(fake.std()) == pytest.approx(float(real.std()), rel=0.25)
    assert 0.25 < float((fake.mean((1, 2)) > 1).float().mean()) < 0.75


def test_collapse_raises_the_alarm() -> None:
    """A critic that knows one window only leaves the generator a single mode to win by."""

    class OneWindow(WGANTS):
        def discriminator_loss(self, batch: Any, rng: KeyedRNG) -> torch.Tensor:
            return super().discriminator_loss({"x": batch["x"].mean(0, keepdim=True).expand_as(batch["x"])}, rng)

    model, items = OneWindow(lr=5e-3, d_steps=3, **TINY), two_modes()
    with pytest.warns(UserWarning, match="samples of OneWindow cover little of the training data.*coverage"):
        fit(model, items, 60)
    fake = model.sample(256).data["x"]
    assert float(fake.mean((1, 2)).std()) < 0.25 * float(items.tensors["x"].mean((1, 2)).std())


def test_conditions_reach_samples_and_critic() -> None:
    items = tiny_series(32, 2, 24, conditions=("rpm",))
    model = WGANTS(schema=describe(items, "timeseries"), **TINY)
    model.is_fitted = True
    one, label, rpm = (
        model.sample(2, condition={"label": y, "rpm": r}).data["x"] for y, r in ((0, 1100.0), (1, 1100.0), (0, 1400.0))
    )
    assert not torch.allclose(one, label) and not torch.allclose(one, rpm)
    z, condition = model.codec.encode(items.tensors), model.codec.conditions(items.tensors)
    for changed in (condition.roll(1, 0), condition * torch.tensor([1.0, 1, 1, 2])):
        assert not torch.allclose(model.D(z, condition), model.D(z, changed))


def test_ragged_windows_look_like_real_ones_to_the_critic() -> None:
    x, mask = torch.randn(8, 2, 24), torch.arange(24) < torch.arange(8, 24, 2)[:, None]
    items = StackedItems({"x": torch.where(mask[:, None], x, 0.0), "mask": mask})
    model = WGANTS(schema=describe(items, "timeseries"), **TINY)
    padded = {**items.tensors, "x": torch.where(mask[:, None], x, 99.0)}
    losses = [model.discriminator_loss(batch, KeyedRNG(1)).detach() for batch in (items.tensors, padded)]
    assert torch.equal(*losses)
    fake = model.generate(torch.zeros(4, 0), 9 * torch.randn(4, 4), torch.randn(4, model.G.noise_shape())).detach()
    assert fake.shape == (4, 3, 24) and float(fake[:, -1].abs().max()) <= 1
    model.is_fitted = True
    out = model.sample(5).data
    assert bool(out["mask"].any(1).all()) and float((out["x"] * ~out["mask"][:, None]).abs().max()) == 0


@pytest.mark.parametrize("settings", [{"latent_dim": 0}, {"width": 0}, {"penalty": -1.0}, {"betas": [0.5, 1.0]}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        WGANTS(**settings)
