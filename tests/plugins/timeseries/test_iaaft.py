"""IAAFT surrogates: the values exactly, the spectrum closely, the rest gone."""

import numpy as np
import torch

from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.iaaft import IAAFT, iaaft
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_series, tiny_series_schema


def coloured(n, channels, length, seed=0):
    """Skewed coloured noise; the channels are delayed and mixed copies of each other."""
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(n, length))
    smooth = np.stack([np.convolve(row, np.exp(-np.arange(30) / 6), "same") for row in white])
    x = np.stack([np.roll(smooth, 3 * c, 1) + 0.3 * rng.normal(size=(n, length)) for c in range(channels)], 1)
    return torch.tensor(np.exp(0.4 * x / x.std()), dtype=torch.float32)


def keys(n):
    return KeyedRNG(torch.arange(n) + 100)


def power(x):
    x = x.double()
    return torch.fft.rfft(x - x.mean(-1, keepdim=True)).abs().square()


def test_sorted_values_are_kept_exactly():
    x = coloured(5, 3, 200)
    assert torch.equal(iaaft(x, keys(5)).sort(-1).values, x.sort(-1).values)


def test_power_spectrum_is_kept_to_one_percent():
    x = coloured(6, 1, 1024)
    surrogate = iaaft(x, keys(6), 200)
    error = (power(surrogate).sqrt() - power(x).sqrt()).square().sum((1, 2)) / power(x).sum((1, 2))
    assert error.sqrt().max() < 0.01


def test_surrogates_are_new():
    x = coloured(4, 1, 512)
    surrogate = iaaft(x, keys(4))
    z = [(v - v.mean(-1, keepdim=True)) / v.std(-1, keepdim=True) for v in (x, surrogate)]
    assert (z[0] * z[1]).mean(-1).abs().max() < 0.35


def test_cross_channel_relation_is_kept():
    x = coloured(6, 2, 1024)
    surrogate = iaaft(x, keys(6), 200)
    independent = torch.stack([iaaft(x[:, c : c + 1], KeyedRNG(torch.arange(6) + 50 * c))[:, 0] for c in range(2)], 1)

    def lagged(v):
        z = (v - v.mean(-1, keepdim=True)) / v.std(-1, keepdim=True)
        return (z[:, 0, :-3] * z[:, 1, 3:]).mean(-1)

    assert (lagged(surrogate) - lagged(x)).abs().max() < 0.05
    assert (lagged(independent) - lagged(x)).abs().min() > 0.3


def test_time_asymmetry_is_destroyed():
    # A sawtooth rises slowly and falls at once; its surrogate does both alike.
    t = torch.arange(1000)
    x = ((t % 50) / 50 + 0.02 * torch.randn(4, 1, 1000, generator=torch.Generator().manual_seed(0))).float()

    def asymmetry(v):
        step = v.diff()
        return (step**3).mean(-1) / (step**2).mean(-1) ** 1.5

    assert asymmetry(x).abs().min() > 3
    assert asymmetry(iaaft(x, keys(4))).abs().max() < 1.0


def test_constant_and_odd_windows():
    x = torch.cat([torch.full((2, 1, 25), 3.0), torch.zeros(2, 1, 25)], 1)
    assert torch.equal(iaaft(x, keys(2), 5), x)


def test_padding_is_left_alone():
    mask = torch.arange(12)[None] < torch.tensor([5, 12, 8, 8])[:, None]
    x = torch.where(mask, torch.rand(4, 12, generator=torch.Generator().manual_seed(0)) + 1, 0.0)[:, None]
    items = StackedItems({"x": x, "mask": mask})
    data = IAAFT().fit_on(items, describe(items, "timeseries")).sample(30, seed=1).data
    assert (data["x"][:, 0][~data["mask"]] == 0).all()
    assert (data["x"][:, 0][data["mask"]] >= 1).all()


def test_rows_depend_on_their_own_seed_only():
    model = IAAFT().fit_on(tiny_series(length=64), tiny_series_schema(length=64))
    requests = model.make_requests(7, seed=9)
    together = model.sample(requests).data["x"]
    assert torch.equal(together, torch.cat([model.sample(requests[i : i + 1]).data["x"] for i in range(7)]))


def test_the_class_is_kept():
    x = torch.rand(6, 1, 30, generator=torch.Generator().manual_seed(0)) + torch.arange(6)[:, None, None] // 3 * 10
    items = StackedItems({"x": x, "y": torch.arange(6) // 3})
    data = IAAFT(num_iterations=5).fit_on(items, describe(items, "timeseries")).sample(8, condition={"label": 1}).data
    assert (data["x"] >= 10).all() and data["y"].tolist() == [1] * 8
