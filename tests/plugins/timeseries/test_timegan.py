"""What only TimeGAN can get wrong: which networks each phase and each loss trains."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from lightning_synth.callbacks.collapse import CollapseMonitor
from lightning_synth.datamodules.base import ItemsDataModule
from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.timegan import TimeGAN, moment_loss, supervised_loss
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_datamodule, tiny_series, tiny_series_schema
from lightning_synth.testing.case import quiet, quiet_trainer

TINY: dict[str, Any] = {"hidden_dim": 8, "num_layers": 1, "noise_dim": 2, "static_dim": 2}
NETWORKS = ("embedder", "recovery", "supervisor", "G", "D")


class Moved(L.Callback):
    """Which networks changed in each batch."""

    def __init__(self) -> None:
        self.phases: list[int] = []
        self.moved: list[set[str]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        self.phases.append(module.phase)
        self.before = {name: p.detach().clone() for name, p in module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        changed = [name for name, p in module.named_parameters() if not torch.equal(p, self.before[name])]
        self.moved.append({name.split(".")[0] for name in changed})


def fit(model: TimeGAN, *callbacks: Any, datamodule: Any = None, **limits: Any) -> None:
    with quiet():
        quiet_trainer(*callbacks, **limits).fit(
            model, datamodule=datamodule or tiny_datamodule("timeseries", n=16, batch_size=4)
        )


def touched(model: TimeGAN, loss: torch.Tensor) -> set[str]:
    model.zero_grad()
    loss.backward()
    reached = [name for name, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())]
    return {name.split(".")[0] for name in reached}


@pytest.mark.parametrize(
    ("settings", "limits"),
    [({}, {"max_steps": 12}), ({}, {"max_epochs": 3}), ({"update": "joint"}, {"max_steps": 12})],
)
def test_each_phase_trains_its_networks_and_no_other(settings: dict[str, Any], limits: dict[str, int]) -> None:
    moved = Moved()
    fit(TimeGAN(phases=[1 / 3, 1 / 3], **TINY, **settings), moved, **limits)
    assert moved.phases == [1] * 4 + [2] * 4 + [3] * 4
    assert moved.moved == [{"embedder", "recovery"}] * 4 + [{"supervisor"}] * 4 + [set(NETWORKS)] * 4


def test_losses_of_the_third_phase_reach_the_right_networks() -> None:
    model, batch, rng = TimeGAN(schema=tiny_series_schema(), **TINY).eval(), tiny_series(8).tensors, KeyedRNG(0)
    assert touched(model, model._discriminator_loss(batch, rng, 0)) == {"D"}
    assert touched(model, model._generator_loss(batch, rng)) == {"embedder", "recovery", "supervisor", "G"}
    x, condition = model._steps(batch), model.codec.conditions(batch)
    latent = model.embedder(x, condition).detach()
    assert touched(model, model._reconstruction(x, model.embedder(x, condition), condition)) == {"embedder", "recovery"}
    # The generator is judged through the recovery, but must not bend it; D is frozen by the frame.
    assert touched(model, model._joint_loss(x, latent, condition, rng)) == {"supervisor", "G", "D"}


def test_supervised_loss_compares_with_the_next_step() -> None:
    latent = KeyedRNG(0).normal((4, 10, 3))
    assert float(supervised_loss(latent, latent.roll(-1, 1))) == 0
    assert float(supervised_loss(latent, latent)) > 1
    assert float(supervised_loss(latent[:, :1], latent[:, :1])) == 0


def test_moment_loss_sees_shift_and_spread_of_every_step() -> None:
    x = KeyedRNG(0).normal((50, 6, 2))
    assert float(moment_loss(x, x[torch.arange(49, -1, -1)])) == pytest.approx(0, abs=1e-6)
    shift = torch.tensor([1.0, 0, 0, 0, 0, 0])[:, None]
    assert float(moment_loss(x, x + shift)) == pytest.approx(1 / 6, abs=1e-6)
    spread = float(x.std(0, unbiased=False).mean())
    assert float(moment_loss(x, x - 3 * (x - x.mean(0)))) == pytest.approx(spread, abs=1e-5)


def test_a_discriminator_that_is_too_good_rests() -> None:
    class Sure(torch.nn.Linear):
        """Knows the latents of real windows by heart."""

        def forward(self, latent: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(latent) * 0 + (20.0 if self.calls == 1 else -20.0) * self.bias.exp()

    model = TimeGAN(schema=tiny_series_schema(), **TINY).eval()
    model.D = Sure(8, 1)
    torch.nn.init.zeros_(model.D.bias)
    loss = model._discriminator_loss(tiny_series(8).tensors, KeyedRNG(0), 0)
    loss.backward()
    assert 0 < float(loss.detach()) < 0.15
    assert model.D.bias.grad is not None and float(model.D.bias.grad.abs().sum()) == 0


def test_collapse_is_not_looked_for_before_the_third_phase() -> None:
    early, late = CollapseMonitor(every_n_epochs=1), CollapseMonitor(every_n_epochs=1)
    fit(TimeGAN(phases=[0.5, 0.2], **TINY), early, max_epochs=3)
    fit(TimeGAN(phases=[0.0, 0.0], **TINY), late, max_epochs=3)
    assert len(early.scores) == 1 and len(late.scores) == 3


def test_it_learns_level_and_spread() -> None:
    x = 5 + 2 * KeyedRNG(0).normal((64, 1, 1)) + 0.3 * KeyedRNG(1).normal((64, 1, 8))
    items = StackedItems({"x": x})
    model = TimeGAN(hidden_dim=8, num_layers=1, noise_dim=2, static_dim=2, lr=1e-2)
    fit(model, datamodule=ItemsDataModule(items, batch_size=32), max_steps=160)
    fake = model.sample(256).data["x"]
    assert float(fake.mean()) == pytest.approx(5, abs=0.7)
    assert float(fake.std()) == pytest.approx(float(x.std()), rel=0.35)


def test_label_and_rpm_change_the_sample() -> None:
    model = TimeGAN(schema=describe(tiny_series(32, 2, 24, conditions=("rpm",)), "timeseries"), **TINY)
    model.is_fitted = True
    one, label, rpm = (
        model.sample(2, condition={"label": y, "rpm": r}).data["x"] for y, r in ((0, 1100.0), (1, 1100.0), (0, 1400.0))
    )
    assert not torch.equal(one, label) and not torch.equal(one, rpm)


@pytest.mark.parametrize(("channels", "length"), [(1, 1), (20, 8), (2, 300)])
def test_shapes(channels: int, length: int) -> None:
    model = TimeGAN(schema=tiny_series_schema(channels, length), **TINY).eval()
    batch = tiny_series(4, channels, length).tensors
    losses = model.losses(batch, KeyedRNG(0))
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    model.is_fitted = True
    assert model.sample(3).data["x"].shape == (3, channels, length)


def test_ragged_windows_come_with_masks_and_ignore_padding() -> None:
    x, mask = torch.randn(8, 2, 24), torch.arange(24) < torch.arange(8, 24, 2)[:, None]
    items = StackedItems({"x": torch.where(mask[:, None], x, 0.0), "mask": mask})
    model = TimeGAN(schema=describe(items, "timeseries"), **TINY).eval()
    padded = {**items.tensors, "x": torch.where(mask[:, None], x, 99.0)}
    one, other = (model.losses(batch, KeyedRNG(1)) for batch in (items.tensors, padded))
    assert all(torch.equal(one[name], other[name]) for name in one)
    model.is_fitted = True
    out = model.sample(5).data
    assert bool(out["mask"].any(1).all()) and float((out["x"] * ~out["mask"][:, None]).abs().max()) == 0


def test_a_fit_without_a_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_steps or max_epochs"):
        fit(TimeGAN(**TINY), max_epochs=-1)


@pytest.mark.parametrize("settings", [{"hidden_dim": 0}, {"phases": [0.5, 0.5]}, {"static_dim": -1}, {"gamma": -1.0}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        TimeGAN(**settings)
