"""Cutting and splitting: exact counts, gaps, nested shots."""

from itertools import pairwise

import numpy as np
import pytest

from lightning_synth.datamodules.windows import apart, cut_windows, draw_shots, time_blocks, window_starts
from lightning_synth.errors import ConfigError, DataError


@pytest.mark.parametrize(("samples", "window", "stride"), [(100, 10, None), (100, 10, 3), (10, 10, None), (109, 10, 7)])
def test_windows_equal_a_plain_loop(samples, window, stride):
    series = np.arange(2 * samples).reshape(2, samples)
    starts = window_starts(samples, window, stride)
    expected = [series[:, s : s + window] for s in range(0, samples - window + 1, stride or window)]
    np.testing.assert_array_equal(cut_windows(series, window, stride), np.stack(expected))
    assert len(starts) == len(expected)


def test_windows_are_a_copy():
    series = np.zeros((1, 8))
    cut_windows(series, 4)[:] = 1
    assert series.sum() == 0


def test_too_short_says_what_is_needed():
    with pytest.raises(DataError, match="needs 24 samples, but the series has 10"):
        cut_windows(np.zeros((1, 10)), 24)
    assert len(window_starts(10, 24)) == 0


@pytest.mark.parametrize("bad", [(0, None), (4, 0)])
def test_impossible_windows(bad):
    with pytest.raises(ConfigError):
        window_starts(10, *bad)


@pytest.mark.parametrize("samples", [50, 997, 60_985, 30_289])
@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.2), (0.9, 0.1), (0.8, 0.0, 0.2), (1.0, 0.0)])
def test_blocks_keep_the_gap_and_lose_nothing_else(samples, shares):
    window = 10
    blocks = time_blocks(samples, shares, window)
    used = [(a, b) for a, b in blocks if b > a]
    assert used[0][0] == 0 and used[-1][1] == samples
    assert all(later[0] - earlier[1] == window for earlier, later in pairwise(used))
    assert all(b - a >= window for a, b in used)
    assert len(used) == sum(share > 0 for share in shares)


def test_blocks_too_short_say_what_is_needed():
    with pytest.raises(DataError, match="needed 50"):
        time_blocks(49, (0.7, 0.1, 0.2), 10)


@pytest.mark.parametrize("stride", [3, 10])
def test_apart_leaves_a_window_of_silence(stride):
    starts, chosen = window_starts(300, 10, stride), np.array([60, 150])
    far = starts[apart(starts, chosen, 10)]
    used = {s for c in chosen for s in range(c, c + 10)}
    silent = {s for c in chosen for s in range(c - 10, c + 20)} - used
    touched = {s for start in far for s in range(start, start + 10)}
    assert not touched & used and not touched & silent and len(far) > 0


def test_shots_are_nested_and_independent_of_other_classes():
    labels = np.repeat([0, 1, 2], 20)
    five, ten = draw_shots(labels, 5, draw=3), draw_shots(labels, 10, draw=3)
    assert set(five) <= set(ten)
    assert np.bincount(labels[five]).tolist() == [5, 5, 5]
    without = draw_shots(labels[:40], 5, draw=3)
    assert set(without) == {i for i in five if i < 40}
    assert not np.array_equal(five, draw_shots(labels, 5, draw=4))


def test_shots_leave_the_global_generator_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    draw_shots(np.zeros(9, int), 2, draw=0)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_zero_shots_are_refused():
    with pytest.raises(ConfigError, match="shots"):
        draw_shots(np.zeros(3, int), 0, draw=0)
