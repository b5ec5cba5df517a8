"""Raw batches to network inputs and back."""

from __future__ import annotations

import pytest
import torch

from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.windows import ResidualNoise, WindowCodec
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_series


def ragged() -> StackedItems:
    mask = torch.arange(12) < torch.arange(4, 12)[:, None]
    return StackedItems({"x": 5 + 3 * torch.randn(8, 2, 12) * mask[:, None], "mask": mask})


def test_windows_come_back_as_they_were() -> None:
    items = tiny_series(16, 3, 20)
    codec = WindowCodec(describe(items, "timeseries"))
    z = codec.encode(items.tensors)
    assert torch.allclose(z.mean((0, 2)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(z.std((0, 2), unbiased=False), torch.ones(3), atol=1e-4)
    assert torch.allclose(codec.decode(z)["x"], items.tensors["x"], atol=1e-4)
    assert codec.soft_mask(z) is z and codec.observed(items.tensors).shape == (1, 3, 20)


def test_ragged_windows_carry_their_mask() -> None:
    items = ragged()
    codec, mask = WindowCodec(describe(items, "timeseries")), items.tensors["mask"]
    z = codec.encode(items.tensors)
    assert z.shape == (8, 3, 12) and torch.equal(z[:, 2] > 0, mask)
    assert float((z[:, :2] * ~mask[:, None]).abs().max()) == 0
    back = codec.decode(z)
    assert torch.equal(back["mask"], mask)
    assert torch.allclose(back["x"], items.tensors["x"] * mask[:, None], atol=1e-4)
    assert torch.equal(codec.observed(items.tensors)[:, 1] > 0, mask) and bool(
        codec.observed(items.tensors)[:, 2].all()
    )


def test_a_window_is_never_empty_and_a_soft_mask_hides_what_it_masks() -> None:
    codec = WindowCodec(describe(ragged(), "timeseries"))
    assert codec.decode(-torch.ones(2, 3, 12))["mask"].sum(1).tolist() == [1, 1]
    soft = codec.soft_mask(torch.cat([torch.ones(1, 2, 12), torch.linspace(-50, 50, 12).reshape(1, 1, 12)], dim=1))
    assert float(soft[0, 0, 0]) == pytest.approx(0, abs=1e-6) and float(soft[0, 0, -1]) == pytest.approx(1)


def test_conditions_of_batches_and_requests_agree() -> None:
    items = tiny_series(9, conditions=("rpm",))
    codec, batch = WindowCodec(describe(items, "timeseries")), items.tensors
    vector = codec.conditions(batch)
    assert torch.equal(vector[:, :3], torch.eye(3)[batch["y"]])
    assert float(vector[:, 3].mean()) == pytest.approx(0, abs=1e-5)
    requested = codec.conditions({"index": torch.arange(9), "label": batch["y"], "rpm": batch["rpm"]})
    assert torch.equal(requested, vector)
    assert torch.equal(codec.conditions({"index": torch.arange(2)}), torch.zeros(2, 4))


def test_noise_grows_with_the_residuals_of_its_rows() -> None:
    """Scale follows the input: loud rows get loud noise."""
    noise = ResidualNoise(1, 16, inputs=1)
    h = (torch.arange(256) % 2).float()[:, None]
    residual = KeyedRNG(0).normal((256, 1, 16)) * (0.1 + 0.9 * h[:, :, None])
    optimizer = torch.optim.Adam(noise.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        noise.loss(residual, torch.ones(1, 1, 16), h).backward()
        optimizer.step()
    drawn = noise(h, KeyedRNG(torch.arange(256))).detach()
    assert float(drawn[::2].std()) == pytest.approx(0.1, rel=0.2)
    assert float(drawn[1::2].std()) == pytest.approx(1.0, rel=0.2)
