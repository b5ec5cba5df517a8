"""Phase perturbation: spectra stay exactly, phases move as far as asked."""

import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.timeseries.phase_perturbation import PhasePerturbation
from lightning_synth.requests import KeyedRNG
from lightning_synth.testing import tiny_series_schema


def augment(x, mask=None, **options):
    batch = {"x": x} | ({} if mask is None else {"mask": mask})
    return PhasePerturbation(schema=tiny_series_schema(), **options).augment(batch, KeyedRNG(torch.arange(len(x))))["x"]


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("length", (24, 25, 1, 2))
def test_amplitudes_and_cross_spectra_are_kept(length):
    x = 7 + noise(8, 3, length)
    out = augment(x, strength=1.0)
    before, after = torch.fft.rfft(x), torch.fft.rfft(out)
    assert torch.allclose(after.abs(), before.abs(), atol=1e-4)
    cross = [s[:, :, None] * s[:, None].conj() for s in (before, after)]
    assert torch.allclose(*cross, atol=2e-3)
    if length > 2:
        assert (out - x).abs().amax((1, 2)).min() > 0.3


def test_phases_move_uniformly_up_to_the_strength():
    x = noise(500, 1, 32)
    turned = torch.fft.rfft(augment(x, strength=0.5)) * torch.fft.rfft(x).conj()
    angle = turned.angle()[:, 0, 1:-1] / torch.pi
    assert angle.abs().max() <= 0.5 + 1e-3
    quantiles = torch.quantile(angle, torch.tensor([0.1, 0.5, 0.9]))
    assert torch.allclose(quantiles, torch.tensor([-0.4, 0.0, 0.4]), atol=0.02)
    assert torch.allclose(augment(x, strength=0.0), x, atol=1e-5)


def test_full_strength_makes_an_impulse_gaussian():
    x = torch.zeros(200, 1, 256)
    x[..., 100] = 16.0
    out = augment(x, strength=1.0)
    kurtosis = (out**4).mean() / (out**2).mean() ** 2
    assert (x**4).mean() / (x**2).mean() ** 2 > 200 and abs(float(kurtosis) - 3) < 0.3


def test_padding_is_no_part_of_the_spectrum():
    mask = torch.arange(24) < torch.tensor([24, 10, 0])[:, None]
    x = (5 + noise(3, 2, 24)) * mask[:, None]
    out = augment(x, mask, strength=1.0)
    assert (out[~mask[:, None].expand_as(out)] == 0).all()
    assert torch.allclose(torch.fft.rfft(out[1, :, :10]).abs(), torch.fft.rfft(x[1, :, :10]).abs(), atol=1e-3)


def test_impossible_strength_is_refused():
    with pytest.raises(ConfigError, match="strength"):
        PhasePerturbation(strength=1.5)
