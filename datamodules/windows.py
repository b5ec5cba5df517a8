"""Cutting recordings into windows, and splitting windows so that no two splits share or touch a stretch of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_synth.errors import ConfigError, DataError


def window_starts(samples: int, window: int, stride: int | None = None, start: int = 0) -> np.ndarray:
    """Return where windows begin in a stretch of a recording.

    Args:
        samples: End of the stretch (exclusive), in samples.
        window: Samples in a window.
        stride: Samples between neighbours; None for windows that touch but do not overlap.
        start: Beginning of the stretch.

    Returns:
        int64 (windows,), empty if the stretch is shorter than a window.

    Raises:
        ConfigError: If ``window`` or ``stride`` is below 1.

    Example:
        >>> window_starts(10, window=4, stride=3)
        array([0, 3, 6])
    """
    step = window if stride is None else stride
    if window < 1 or step < 1:
        raise ConfigError(f"window and stride must be at least 1, got window={window}, stride={step}")
    return np.arange(start, samples - window + 1, step)


def cut_windows(
    series: np.ndarray, window: int, stride: int | None = None, *, starts: np.ndarray | None = None
) -> np.ndarray:
    """Cut a recording into windows.

    Args:
        series: (channels, samples).
        window: Samples in a window.
        stride: As `window_starts`.
        starts: Where windows begin; given, ``stride`` is not used.

    Returns:
        (windows, channels, window): a copy.

    Raises:
        DataError: If the recording is shorter than a window.

    Example:
        >>> cut_windows(np.arange(6)[None], window=3).tolist()
        [[[0, 1, 2]], [[3, 4, 5]]]
    """
    samples = series.shape[-1]
    if samples < window:
        raise DataError(f"a window needs {window} samples, but the series has {samples}")
    where = window_starts(samples, window, stride) if starts is None else starts
    return np.ascontiguousarray(
        np.lib.stride_tricks.sliding_window_view(series, window, axis=1)[:, where].transpose(1, 0, 2)
    )


def apart(starts: np.ndarray, chosen: np.ndarray, window: int, gap: int | None = None) -> np.ndarray:
    """Say which windows of one recording keep a gap from every chosen window.

    Args:
        starts: (windows,) where the candidates begin.
        chosen: (chosen,) where the chosen windows of the same recording begin.
        window: Samples in a window.
        gap: Samples that must lie between two windows of different splits; None for one window.

    Returns:
        bool (windows,).

    Example:
        >>> apart(np.array([0, 4, 8, 12]), np.array([4]), window=4)
        array([False, False, False,  True])
    """
    if not len(chosen):
        return np.ones(len(starts), bool)
    distance = np.abs(np.asarray(starts)[:, None] - np.asarray(chosen)[None]).min(1)
    return np.asarray(distance >= window + (window if gap is None else gap))


def time_blocks(samples: int, shares: Sequence[float], window: int, gap: int | None = None) -> list[tuple[int, int]]:
    """Split a recording into consecutive blocks with a gap between neighbours; the first block gets what is left.

    Later blocks are rounded down to whole windows, but hold at least one; a share of 0 is an empty block without a gap.

    Args:
        samples: In the recording.
        shares: Of the blocks; the first is taken as 1 minus the others.
        window: Samples in a window.
        gap: Samples between blocks; None for one window.

    Returns:
        (start, end) of each block in samples.

    Raises:
        DataError: If the recording is too short for a window in every block.

    Example:
        >>> time_blocks(100, (0.7, 0.1, 0.2), window=10)
        [(0, 60), (70, 80), (90, 100)]
    """
    space = window if gap is None else gap
    later = [share for share in shares[1:] if share > 0]
    usable = samples - space * len(later)
    lengths = [max(int(share * usable / window), 1) * window if share > 0 else 0 for share in shares[1:]]
    first = usable - sum(lengths)
    if first < window:
        raise DataError(
            f"{samples} samples are too short for {1 + len(later)} blocks of at least one window ({window}) "
            f"with gaps of {space}: needed {window + sum(lengths) + space * len(later)}"
        )
    blocks, end = [(0, first)], first
    for length in lengths:
        begin = end + space if length else end
        end = begin + length
        blocks.append((begin, end))
    return blocks


def draw_shots(labels: np.ndarray, shots: int, draw: int, exempt: Sequence[int] = ()) -> np.ndarray:
    """Choose K items of every class.

    The choice in one class depends on neither the other classes nor K: the shots of K=5 are among those of K=10.

    Args:
        labels: int64 (items,).
        shots: K; a class with fewer items is taken whole.
        draw: Seed of the choice.
        exempt: Classes that are taken whole.

    Returns:
        Sorted int64 indices of the chosen items.

    Raises:
        ConfigError: If ``shots`` is below 1.

    Example:
        >>> len(draw_shots(np.array([0, 0, 0, 1, 1, 1]), shots=2, draw=0, exempt=(0,)))
        5
    """
    if shots < 1:
        raise ConfigError(f"shots must be at least 1, got {shots}")
    chosen = []
    for label in np.unique(labels):
        index = np.flatnonzero(labels == label)
        if label not in exempt:
            index = np.random.default_rng((draw, int(label))).permutation(index)[:shots]
        chosen.append(index)
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def left_out(
    labels: np.ndarray, class_names: Sequence[str], imbalance: Mapping[Any, float] | None, draw: int = 0
) -> np.ndarray:
    """Choose which training items to leave out so that some classes become rare.

    Args:
        labels: int64 (items,), of the training items.
        class_names: Of all classes.
        imbalance: Class name to how many of its items are kept, or which share; None leaves nothing out.
        draw: Which choice.

    Returns:
        int64 indices of what is left out.

    Raises:
        ConfigError: If a class is unknown, or has fewer items than should be kept.

    Example:
        >>> sorted(left_out(np.array([0, 0, 1, 1]), ["a", "b"], {"b": 1}))[0] in (2, 3)
        True
    """
    out = [np.zeros(0, dtype=np.int64)]
    for name, keep in (imbalance or {}).items():
        if str(name) not in class_names:
            raise ConfigError(f"imbalance names class {name!r}; classes: {', '.join(class_names) or 'none'}")
        label = class_names.index(str(name))
        index = np.flatnonzero(labels == label)
        count = round(keep * len(index)) if isinstance(keep, float) and keep <= 1 else int(keep)
        if not 1 <= count <= len(index):
            raise ConfigError(f"imbalance keeps {count} of the {len(index)} training items of class {name!r}")
        out.append(np.random.default_rng((draw, label)).permutation(index)[count:])
    return np.concatenate(out)
