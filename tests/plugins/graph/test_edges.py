"""Kernels of the classical generators against known laws."""

import numpy as np
import pytest
import torch

from lightning_synth.plugins.graph.edges import (
    Groups,
    pair_of,
    poisson,
    power_law,
    repeats,
    segments,
    shuffled,
    successes,
    weighted_pairs,
)
from lightning_synth.requests import KeyedRNG


def test_pairs_are_numbered_in_order():
    low, high = pair_of(torch.arange(5000))
    expected = [(i, j) for j in range(101) for i in range(j)][:5000]
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == expected
    # The numbers at which the square root of a float64 rounds the wrong way.
    for n in (10**6, 2**31 - 1):
        last = torch.tensor([n * (n - 1) // 2 - 1, n * (n - 1) // 2])
        assert torch.stack(pair_of(last)).tolist() == [[n - 2, 0], [n - 1, n]]


@pytest.mark.parametrize("p", (0.0, 1e-3, 0.3, 0.97, 1.0))
def test_successes_are_bernoulli_trials(p):
    rows, trials = 4000, 50
    row = torch.arange(rows)
    cell, trial = successes(KeyedRNG(row), row, torch.full((rows,), trials), torch.full((rows,), p))
    assert len(torch.unique(cell * trials + trial)) == len(cell)
    each = torch.bincount(trial, minlength=trials) / rows
    assert ((each - p).abs() <= 5 * (p * (1 - p) / rows) ** 0.5).all()
    # The number in a row is binomial: not only its mean, but its variance.
    count = torch.bincount(cell, minlength=rows).double()
    assert count.var() == pytest.approx(trials * p * (1 - p), rel=0.12, abs=1e-9)


def test_successes_of_cells_of_different_sizes():
    row = torch.arange(2000).repeat_interleave(3)
    trials, p = torch.tensor([4, 0, 1000]).repeat(2000), torch.tensor([0.5, 0.5, 0.01]).repeat(2000)
    cell, _ = successes(KeyedRNG(torch.arange(2000)), row, trials, p)
    mean = torch.bincount(cell, minlength=6000).reshape(2000, 3).double().mean(0)
    assert mean[1] == 0 and mean[[0, 2]].tolist() == pytest.approx([2, 10], rel=0.03)


@pytest.mark.parametrize("mean", (0.0, 0.3, 40.0, 3.5e6))
def test_poisson_numbers(mean):
    x = poisson(KeyedRNG(torch.arange(2000)), torch.full((2000,), mean, dtype=torch.float64)).double()
    assert float(x.mean()) == pytest.approx(mean, abs=5 * (mean / 2000) ** 0.5)
    assert float(x.var()) == pytest.approx(mean, rel=0.2)


def test_shuffles_are_uniform():
    order = shuffled(KeyedRNG(torch.arange(12000)), torch.full((12000,), 3)).reshape(-1, 3) % 3
    code = order[:, 0] * 9 + order[:, 1] * 3 + order[:, 2]
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 6 and ((counts - 2000).abs() < 5 * 2000**0.5).all()


def test_repeats_yield():
    key = torch.tensor([4, 4, 7, 4, 7, 1])
    assert repeats(key).tolist() == [False, True, False, True, True, False]
    yields = torch.tensor([True, True, True, False, False, True])
    assert repeats(key, yields).tolist() == [True, True, True, False, False, False]


def test_power_law_degrees():
    degree = power_law(100_000, mean_degree=6.0, exponent=2.5)
    assert float(degree.mean()) == pytest.approx(6, rel=1e-6)
    # Hill estimate of the exponent from the upper tenth, without the few largest, which the quantiles blunt.
    tail = degree[:10_000]
    assert 1 + 1 / float((tail / tail[-1]).log().mean()) == pytest.approx(2.5, abs=0.02)


def pair_shares(rows, weight, group, cells, rate):
    """How often each pair of nodes is joined in `rows` equal graphs."""
    n, blocks = len(weight), int(group.max()) + 1
    shift = torch.arange(rows).repeat_interleave(n) * blocks
    groups = Groups(torch.arange(rows).repeat_interleave(blocks), group.repeat(rows) + shift, weight.repeat(rows))
    first, second = (part.repeat(rows) + torch.arange(rows).repeat_interleave(len(part)) * blocks for part in cells)
    ends = weighted_pairs(KeyedRNG(torch.arange(rows)), groups, first, second, rate.repeat(rows))
    assert (ends[0] // n == ends[1] // n).all()
    low, high = ends.amin(0), ends.amax(0)
    key = torch.unique(low * n * rows + high)
    out = torch.zeros(n, n, dtype=torch.float64)
    return out.index_put_((key // (n * rows) % n, key % n), torch.ones(len(key)).double(), accumulate=True) / rows


def assert_joined(shares, expected, rows):
    upper = torch.triu(torch.ones_like(shares), 1).bool()
    p = expected.clamp(max=1)[upper]
    z = (shares[upper] - p).abs() / (p * (1 - p) / rows).sqrt().clamp(min=1e-12)
    assert (z < 4.5).all(), z.max()


def test_chung_lu_pairs_have_exactly_their_probability():
    weight = torch.tensor([9.0, 7, 5, 3.5, 2, 2, 1, 1, 0.3, 0], dtype=torch.float64)
    rows, rate = 20_000, 1 / weight.sum()
    # Light pairs, heavy ones and certain ones: w_i w_j / sum from 0 to 2.
    cell = torch.zeros(1, dtype=torch.int64)
    shares = pair_shares(rows, weight, torch.zeros(10, dtype=torch.int64), (cell, cell), rate[None])
    assert_joined(shares, weight[:, None] * weight * rate, rows)


def test_pairs_between_groups_have_exactly_their_probability():
    weight = torch.tensor([4.0, 3, 2, 1, 1, 5, 2, 1, 1], dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1])
    first, second, rate = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([0.02, 0.06, 0.3]).double()
    rows = 20_000
    shares = pair_shares(rows, weight, group, (first, second), rate)
    table = torch.tensor([[0.02, 0.06], [0.06, 0.3]]).double()
    assert_joined(shares, weight[:, None] * weight * table[group[:, None], group], rows)


def test_segments_of_nothing():
    assert segments(torch.zeros(3, dtype=torch.int64))[0].shape == (0,)
    assert np.array_equal(segments(torch.tensor([0, 2]))[0], [1, 1])
