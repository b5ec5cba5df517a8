"""What only Diffusion-TS can get wrong: decomposition, patches, ragged windows, conditions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.diffusion_ts import (
    Backbone,
    DiffusionTS,
    ValueRange,
    dominant_season,
    trend_basis,
)
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_series, tiny_series_schema

TINY: dict[str, Any] = {"d_model": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 2}


def train(model: DiffusionTS, batch: dict[str, torch.Tensor], steps: int, lr: float = 3e-3) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    history = []
    model.train()
    for _ in range(steps):
        loss = model.compute_losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    return history


def evaluate(model: DiffusionTS, batch: dict[str, torch.Tensor]) -> float:
    model.eval()
    with torch.no_grad():
        return sum(float(model.losses(batch, KeyedRNG(1000 + i))["loss"]) for i in range(20)) / 20


def test_trend_basis_is_cubic() -> None:
    basis = trend_basis(24)
    tau = torch.arange(1, 25) / 25
    assert torch.allclose(basis, torch.stack([tau, tau**2, tau**3]))


@pytest.mark.parametrize("length", [24, 25, 64])
def test_dominant_season_reproduces_a_sinusoid(length: int) -> None:
    time = torch.arange(length) / length
    wave = (2 * torch.cos(2 * math.pi * 3 * time + 0.7))[None, :, None]
    assert torch.allclose(dominant_season(wave + 10), wave, atol=1e-4)
    noise = 0.01 * KeyedRNG(0).normal((1, length, 1))
    assert float((dominant_season(wave + noise) - wave).abs().max()) < 0.05


def test_dominant_season_of_three_steps_or_less_is_zero_or_finite() -> None:
    assert dominant_season(torch.ones(1, 2, 1)).abs().max() == 0
    assert bool(torch.isfinite(dominant_season(torch.ones(1, 3, 1))).all())


@pytest.mark.parametrize(("length", "patch"), [(24, 1), (50, 1), (100, 2), (2048, 32), (2049, 33)])
def test_parts_add_up_at_any_length(length: int, patch: int) -> None:
    torch.manual_seed(0)
    net = Backbone(3, length, 16, 2, 1, 2, 2, patch)
    x, embedding = torch.randn(2, 3, length), torch.randn(2, 16)
    trend, season, residual = net.parts(x, embedding)
    assert trend.shape == season.shape == residual.shape == (2, 3, length)
    assert torch.allclose(net(x, embedding), trend + season + residual)
    assert float(residual.detach().mean(2).abs().max()) < 1e-5
    assert net.tokens <= 64 and sum(p.numel() for p in net.parameters()) < 200_000


@pytest.mark.parametrize("length", [24, 2048])
def test_short_and_long_windows_run(length: int) -> None:
    model = DiffusionTS(schema=tiny_series_schema(channels=1, length=length), **TINY)
    batch = tiny_series(4, 1, length).tensors
    losses = train(model, batch, 2)
    assert all(math.isfinite(v) for v in losses)
    assert model.sample(3, num_steps=3).data["x"].shape == (3, 1, length)


def test_overfits_one_batch() -> None:
    batch = tiny_series(8, 2, 24).tensors
    model = DiffusionTS(
        schema=describe(StackedItems(batch), "timeseries"), **{**TINY, "d_model": 32}, condition_dropout=0.0
    )
    before = evaluate(model, batch)
    train(model, batch, 200, lr=5e-3)
    assert evaluate(model, batch) < 0.4 * before


def test_every_parameter_gets_a_gradient() -> None:
    items = tiny_series(8, 2, 24, conditions=("rpm",))
    model = DiffusionTS(schema=describe(items, "timeseries"), **TINY)
    model.train()
    model.compute_losses(items.tensors)["loss"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not bool((p.grad != 0).any())] == []


def test_label_and_rpm_change_the_sample() -> None:
    items = tiny_series(32, 2, 24, conditions=("rpm",))
    model = DiffusionTS(schema=describe(items, "timeseries"), **TINY)
    train(model, items.tensors, 5)
    one = model.sample(2, condition={"label": 0, "rpm": 1100.0}, num_steps=5).data
    assert not torch.allclose(one["x"], model.sample(2, condition={"label": 1, "rpm": 1100.0}, num_steps=5).data["x"])
    assert not torch.allclose(one["x"], model.sample(2, condition={"label": 0, "rpm": 1400.0}, num_steps=5).data["x"])
    assert one["y"].tolist() == [0, 0]


def test_ragged_windows_come_with_masks_and_ignore_padding() -> None:
    x, mask = torch.randn(8, 2, 24), torch.arange(24) < torch.arange(8, 24, 2)[:, None]
    items = StackedItems({"x": torch.where(mask[:, None], x, 0.0), "mask": mask})
    model = DiffusionTS(schema=describe(items, "timeseries"), **TINY)
    train(model, items.tensors, 3)
    out = model.sample(5, num_steps=4).data
    assert out["mask"].dtype == torch.bool and bool(out["mask"].any(1).all())
    model.eval()
    padded = {**items.tensors, "x": torch.where(mask[:, None], x, 99.0)}
    assert torch.equal(model.losses(items.tensors, KeyedRNG(1))["loss"], model.losses(padded, KeyedRNG(1))["loss"])


def test_real_windows_are_never_clamped() -> None:
    z = torch.randn(16, 3, 24) * 4
    limits = ValueRange(3)
    assert torch.equal(limits(z), z)
    limits.observe(z)
    assert torch.equal(limits(z), z) and float(limits(z * 100).abs().max()) < 4 * float(z.abs().max())


def test_averaged_weights_are_sampled_and_survive_a_checkpoint() -> None:
    items = tiny_series(8)
    model = DiffusionTS(schema=describe(items, "timeseries"), **TINY)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model.compute_losses(items.tensors)["loss"].backward()
        optimizer.step()
        model.on_train_batch_end(None, items.tensors, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sample = model.sample(3, num_steps=3).data["x"]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    clone = DiffusionTS(schema=model.schema, **TINY)
    clone.load_state_dict(model.state_dict())
    clone.is_fitted = True
    assert torch.equal(clone.sample(3, num_steps=3).data["x"], sample)
    clone.hparams["ema_decay"] = 0.0
    assert not torch.equal(clone.sample(3, num_steps=3).data["x"], sample)
