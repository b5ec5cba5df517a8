"""Which items train, validate and test: published, stratified, by scaffold, or given row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lightning_synth.errors import ConfigError

PARTS = ("train", "val", "test")
TRAIN, VAL, TEST, UNUSED = 0, 1, 2, -1
PUBLISHED_SPLITS = ("spectre", "digress", "bergmeister", "gdss")


def published_split(name: str, count: int) -> np.ndarray:
    """Return a split of the literature, which depends on the order of the graphs in their published file.

    Args:
        name: ``spectre``: torch.randperm, seed 1234, 64/16/20 % (Martinkus et al. 2022; also what Bergmeister et al.
            2024 and DeFoG use for planar and SBM graphs). ``digress``: seed 0 (Vignac et al. 2023), drawn over 200
            graphs whatever the file holds, as their code does: 68/15/17 of 100 community graphs. ``bergmeister``: 64,
            16, 20 % one after the other, as in their tree set. ``gdss``: the first 20 % are test graphs, the others
            train (Jo et al. 2022).
        count: Number of graphs.

    Returns:
        int64 (graphs,): 0 training, 1 validation, 2 test.

    Raises:
        ConfigError: If the name is unknown.

    Example:
        >>> np.bincount(published_split("spectre", 200)).tolist()
        [128, 32, 40]
    """
    test = round(0.2 * count)
    if name == "gdss":
        return np.where(np.arange(count) < test, TEST, TRAIN)
    total = max(count, 200) if name == "digress" else count
    if name == "bergmeister":
        order = np.arange(count)
    elif name in ("spectre", "digress"):
        seed = 1234 if name == "spectre" else 0
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).numpy()
    else:
        raise ConfigError(f"no published split {name!r}; known: {', '.join(PUBLISHED_SPLITS)}")
    test = round(0.2 * total)
    train = round(0.8 * (total - test))
    part = np.empty(total, np.int64)
    part[order] = np.repeat([TRAIN, VAL, TEST], [train, total - test - train, test])
    return part[:count]


def stratified_split(
    labels: np.ndarray, fractions: Sequence[float], seed: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """Split within each class; a group is never on two sides.

    Args:
        labels: int64 (graphs,).
        fractions: Of training, validation and test; they add up to 1.
        seed: Of the draw.
        groups: int64 (graphs,), e.g. one number for each set of identical graphs; None: every graph is its own.

    Returns:
        int64 (graphs,): 0 training, 1 validation, 2 test.

    Example:
        >>> stratified_split(np.array([0, 0, 0, 0, 1, 1]), (0.5, 0.0, 0.5)).reshape(2, 3).sum()
        np.int64(6)
    """
    _check_fractions(fractions)
    groups = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    first, size = np.unique(groups, return_index=True, return_counts=True)[1:]
    part = np.empty(len(size), np.int64)
    for label in np.unique(labels[first]):
        index = np.random.default_rng((seed, int(label))).permutation(np.flatnonzero(labels[first] == label))
        total = size[index].sum()
        val, test = (round(share * total) for share in fractions[1:])
        bounds = np.array([total - val - test, total - test])
        # A group goes where its first graph falls.
        part[index] = np.searchsorted(bounds, size[index].cumsum() - size[index], side="right")
    return part[groups]


def scaffold_split(
    scaffolds: Sequence[str], fractions: Sequence[float] = (0.8, 0.1, 0.1), order: np.random.Generator | None = None
) -> np.ndarray:
    """Split whole scaffolds, the most frequent ones first, as MoleculeNet does (Wu et al. 2018, arXiv 1703.00564).

    Of equally frequent ones that which occurs latest in the file comes first, as in the published code: where a file
    is sorted by label, such as BBBP, it decides what is tested.

    Args:
        scaffolds: Scaffold of every molecule; those without rings (empty) count as one.
        fractions: Of training, validation and test.
        order: Take scaffolds in random order instead; test scaffolds are then not only the rare ones.

    Returns:
        int64 (molecules,): 0 training, 1 validation, 2 test.

    Example:
        >>> scaffold_split(["a", "b", "a", "c", "a"], (0.6, 0.2, 0.2)).tolist()
        [0, 2, 0, 1, 0]
    """
    _check_fractions(fractions)
    _, first, group = np.unique(np.asarray(scaffolds, dtype=str), return_index=True, return_inverse=True)
    size = np.bincount(group)
    turn = np.lexsort([-first, -size]) if order is None else order.permutation(len(size))
    limits, total = np.cumsum(fractions)[:2] * len(scaffolds), np.zeros(3)
    part = np.full(len(size), TEST)
    for number in turn:
        if not total[TRAIN] or total[TRAIN] + size[number] <= limits[0]:
            part[number] = TRAIN
        elif total[TRAIN] + total[VAL] + size[number] <= limits[1]:
            part[number] = VAL
        total[part[number]] += size[number]
    return part[group]


def split_by_rows(split: Any, count: int, item: str = "item") -> np.ndarray:
    """Read a split that is given as rows.

    Args:
        split: Row numbers, or a bool mask over all rows, for training, (validation,) test: in order, or by name.
        count: Number of items.
        item: What a row is, for messages.

    Returns:
        int64 (count,): 0 training, 1 validation, 2 test, -1 none.

    Raises:
        ConfigError: If a row does not exist or is named twice, or a mask has another length.

    Example:
        >>> split_by_rows([[0, 3], [1]], 5).tolist()
        [0, 2, -1, 0, -1]
    """
    lists = [split.get(name, ()) for name in PARTS] if isinstance(split, Mapping) else list(split)
    if not 2 <= len(lists) <= 3:
        raise ConfigError(f"split must be three lists of rows (train, val, test), got {len(lists)}")
    lists = lists if len(lists) == 3 else [lists[0], (), lists[1]]
    part = np.full(count, UNUSED)
    for code, (name, rows) in enumerate(zip(PARTS, lists, strict=True)):
        index = _row_numbers(rows, count, item)
        if len(index) and not 0 <= index.min() <= index.max() < count:
            wrong = index.min() if index.min() < 0 else index.max()
            raise ConfigError(f"split: {name} names {item} {wrong}, but there are {count} {item}s")
        twice = index[part[index] != UNUSED]
        if len(twice):
            raise ConfigError(f"split: {item} {twice[0]} is in {PARTS[part[twice[0]]]} and in {name}")
        part[index] = code
    return part


def _row_numbers(rows: Any, count: int, item: str) -> np.ndarray:
    given = np.asarray(rows).reshape(-1)
    if given.dtype != bool:
        return given.astype(np.int64)
    if len(given) != count:
        raise ConfigError(f"split: a mask has shape {given.shape}, but there are {count} {item}s")
    return np.flatnonzero(given)


def _check_fractions(fractions: Sequence[float]) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or not np.isclose(sum(fractions), 1) or fractions[0] <= 0:
        raise ConfigError(f"fractions must be (train, val, test), add up to 1 and train > 0, got {fractions}")
