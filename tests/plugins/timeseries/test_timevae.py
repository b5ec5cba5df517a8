"""What only TimeVAE can get wrong: the parts of the decoder, the KL term, periods, and the noise left unexplained."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.timevae import TimeVAE, dominant_periods, kl_to_standard_normal
from lightning_synth.plugins.timeseries.windows import ResidualNoise
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_series, tiny_series_schema

TINY: dict[str, Any] = {"widths": [8, 16, 16]}


def train(model: TimeVAE, batch: dict[str, torch.Tensor], steps: int) -> list[float]:
    optimizer, history = model.configure_optimizers(), []
    model.train()
    for _ in range(steps):
        losses = model.compute_losses(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(float(losses["reconstruction"].detach()))
    return history


def test_kl_of_a_standard_normal_is_zero_and_of_a_shifted_one_half_its_square() -> None:
    zero = torch.zeros(3, 4)
    assert torch.equal(kl_to_standard_normal(zero, zero), torch.zeros(3))
    assert torch.allclose(kl_to_standard_normal(zero + 3, zero), torch.full((3,), 4 * 9 / 2))
    variance = torch.tensor([[0.5, 2.0]])
    p, q = torch.distributions.Normal(0.0, variance.sqrt()), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(p, q).sum(1)
    assert torch.allclose(kl_to_standard_normal(torch.zeros(1, 2), variance.log()), expected)


@pytest.mark.parametrize(("channels", "length"), [(1, 8), (3, 24), (2, 25), (1, 100), (20, 1024)])
def test_parts_add_up_and_are_what_they_say(channels: int, length: int) -> None:
    model = TimeVAE(schema=tiny_series_schema(channels, length, 0), num_seasons=2, **TINY)
    h = torch.randn(4, 8)
    parts = {name: part.detach() for name, part in model.decoder.parts(h).items()}
    assert set(parts) == {"level", "trend", "season", "residual"}
    assert all(part.shape == (4, channels, length) for part in parts.values())
    assert torch.allclose(model.decoder(h), sum(parts.values()), atol=1e-5)
    assert torch.equal(parts["level"], parts["level"][:, :, :1].expand(-1, -1, length))
    third = parts["trend"].double().diff(n=3, dim=2)
    assert float(third.abs().max()) < 1e-5 < float(parts["trend"].abs().max())
    # Bins 1 and 2 of the window, the periods before any data is seen, and no other.
    power = torch.fft.rfft(parts["season"].double()).abs()
    assert float(power[:, :, 3:].max()) < 1e-3 * float(power[:, :, 1:3].max())


def test_a_season_repeats_after_its_period() -> None:
    model = TimeVAE(schema=tiny_series_schema(2, 36, 0), periods=[12, 6], **TINY)
    season = model.decoder.parts(torch.randn(3, 8))["season"]
    assert torch.allclose(season[:, :, 12:], season[:, :, :-12], atol=1e-5) and season.std() > 0


def test_parts_can_be_left_out() -> None:
    schema = tiny_series_schema(2, 24, 0)
    bare = TimeVAE(schema=schema, trend_degree=0, num_seasons=0, residual=False, **TINY)
    assert list(bare.decoder.parts(torch.zeros(1, 8))) == ["level"]
    assert list(TimeVAE(schema=tiny_series_schema(1, 1, 0), **TINY).decoder.parts(torch.zeros(1, 8))) == [
        "level",
        "trend",
        "residual",
    ]


def test_periods_are_found_below_a_trend() -> None:
    time = torch.arange(96.0)
    wave = torch.sin(2 * math.pi * time / 8) + 0.5 * torch.cos(2 * math.pi * time / 24 + 1) + 0.2 * time
    assert dominant_periods(wave.expand(2, 1, 96), 2) == [8.0, 24.0]


def test_periods_come_from_the_training_windows() -> None:
    from lightning_synth.datamodules.base import ItemsDataModule
    from lightning_synth.testing.case import quiet, quiet_trainer

    phase = 6.28 * KeyedRNG(0).uniform((16, 1, 1))
    items = StackedItems({"x": torch.sin(2 * math.pi * torch.arange(40) / 5 + phase)})
    model = TimeVAE(num_seasons=1, **TINY)
    with quiet():
        quiet_trainer(max_steps=1).fit(model, datamodule=ItemsDataModule(items, batch_size=8))
    assert model.decoder.frequency.tolist() == pytest.approx([1 / 5])


def test_overfits_one_batch() -> None:
    batch = tiny_series(8, 2, 24).tensors
    model = TimeVAE(schema=describe(StackedItems(batch), "timeseries"), widths=[16, 32, 32], beta=0.01, lr=5e-3)
    history = train(model, batch, 250)
    assert history[-1] < 0.05 * history[0]


def test_noise_has_the_power_and_correlation_of_the_residuals() -> None:
    white = KeyedRNG(1).normal((4000, 1, 32))
    residual = torch.cat([white, 0.5 * white], dim=1) + torch.tensor([0.0, 0.1])[:, None] * white.roll(1, 2)
    noise = ResidualNoise(2, 32, inputs=1)
    noise.observe(residual)
    h = torch.zeros(4000, 1)
    drawn = (noise(h, KeyedRNG(torch.arange(4000))) * (-noise.log_scale(h)).exp()).detach()
    assert torch.allclose(drawn.std((0, 2)), residual.std((0, 2)), rtol=0.02)
    for lag in (0, 1):
        expected = (residual[:, 0] * residual[:, 1].roll(lag, 1)).mean()
        assert float((drawn[:, 0] * drawn[:, 1].roll(lag, 1)).mean()) == pytest.approx(float(expected), abs=0.02)


def test_samples_have_the_power_that_the_decoder_misses() -> None:
    """White windows cannot be encoded: without noise the samples would be nearly constant."""
    x = 3 * KeyedRNG(0).normal((128, 1, 24)) + 7
    model = TimeVAE(schema=describe(StackedItems({"x": x}), "timeseries"), latent_dim=2, **TINY)
    train(model, {"x": x}, 150)
    means, full = (model.sample(512, noise_scale=s).data["x"] for s in (0.0, None))
    assert means.std(2).mean() < 1.5
    assert float(full.std(2).mean()) == pytest.approx(3.0, rel=0.2) and float(full.mean()) == pytest.approx(7, abs=0.5)


def test_noise_does_not_reach_the_decoder() -> None:
    batch, model = tiny_series(8).tensors, TimeVAE(schema=tiny_series_schema(), **TINY)
    model.train()
    model.compute_losses(batch)["noise"].backward()
    assert all(p.grad is None for part in (model.encoder, model.decoder) for p in part.parameters())
    assert all(p.grad is not None for p in model.noise.parameters())


def test_label_and_rpm_change_the_sample() -> None:
    items = tiny_series(32, 2, 24, conditions=("rpm",))
    model = TimeVAE(schema=describe(items, "timeseries"), **TINY)
    train(model, items.tensors, 5)
    one, label, rpm = (
        model.sample(2, condition={"label": y, "rpm": r}).data["x"] for y, r in ((0, 1100.0), (1, 1100.0), (0, 1400.0))
    )
    assert not torch.allclose(one, label) and not torch.allclose(one, rpm)


def test_ragged_windows_come_with_masks_and_ignore_padding() -> None:
    x, mask = torch.randn(8, 2, 24), torch.arange(24) < torch.arange(8, 24, 2)[:, None]
    items = StackedItems({"x": torch.where(mask[:, None], x, 0.0), "mask": mask})
    model = TimeVAE(schema=describe(items, "timeseries"), **TINY)
    train(model, items.tensors, 3)
    out = model.sample(5).data
    assert out["mask"].dtype == torch.bool and bool(out["mask"].any(1).all())
    assert float((out["x"] * ~out["mask"][:, None]).abs().max()) == 0
    model.eval()
    padded = {**items.tensors, "x": torch.where(mask[:, None], x, 99.0)}
    assert torch.equal(model.losses(items.tensors, KeyedRNG(1))["loss"], model.losses(padded, KeyedRNG(1))["loss"])


def test_constant_and_equal_channels_stay_finite() -> None:
    x = torch.randn(8, 3, 16)
    x[:, 1], x[:, 2] = 5.0, x[:, 0]
    model = TimeVAE(schema=describe(StackedItems({"x": x}), "timeseries"), **TINY)
    assert all(math.isfinite(v) for v in train(model, {"x": x}, 20))
    assert bool(torch.isfinite(model.sample(4).data["x"]).all())


@pytest.mark.parametrize(
    "settings",
    [{"latent_dim": 0}, {"widths": []}, {"periods": [0]}, {"reconstruction_weight": 0.0}, {"noise_scale": -1.0}],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        TimeVAE(**settings)
