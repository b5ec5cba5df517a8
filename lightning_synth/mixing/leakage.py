"""What must never happen: synthetic items in an evaluation split, or evaluation items in a training set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import LeakageError, SyntheticInEvaluationError
from lightning_synth.items import StackedItems
from lightning_synth.schema import overlap

_NAMES = {"val": "validation", "test": "test", "predict": "prediction"}


def refuse_synthetic(loaders: Any, split: str) -> None:
    """Refuse loaders of an evaluation split that hold synthetic items.

    Args:
        loaders: What a loader hook returned: one loader, or a collection of them.
        split: ``val``, ``test`` or ``predict``.

    Raises:
        SyntheticInEvaluationError: If a data set is a pool, or an item says ``is_synthetic``.
    """
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        for loader in loaders:
            refuse_synthetic(loader, split)
        return
    refuse_synthetic_items(getattr(loaders, "dataset", None), split)


def refuse_synthetic_items(items: Any, split: str) -> None:
    """Refuse items of an evaluation split that are synthetic.

    Args:
        items: Items, or a data set.
        split: ``val``, ``test`` or ``predict``.

    Raises:
        SyntheticInEvaluationError: If it is a pool, or an item says ``is_synthetic``.
    """
    found = _synthetic_in(items)
    if found is not None:
        raise SyntheticInEvaluationError(
            f"the {_NAMES.get(split, split)} data holds synthetic items ({found}): scores on them say nothing about "
            "real data; evaluate on real items only"
        )


def _synthetic_in(dataset: Any) -> str | None:
    """Say where a data set holds synthetic items; looks into concatenations and subsets."""
    from lightning_synth.pool import SyntheticPool

    if dataset is None or isinstance(dataset, (str, bytes)):
        return None
    if isinstance(dataset, SyntheticPool):
        return repr(dataset)
    if isinstance(dataset, StackedItems):
        flags = dataset.tensors.get("is_synthetic")
        return None if flags is None or not bool(flags.any()) else f"{int(flags.sum())} items with is_synthetic"
    inner = getattr(dataset, "datasets", None) or ([dataset.dataset] if hasattr(dataset, "dataset") else [])
    if inner:
        return next((found for found in map(_synthetic_in, inner) if found is not None), None)
    # Lists are walked through; items of other data sets may be costly to make, so the first one speaks for all.
    rows = dataset if isinstance(dataset, (list, tuple)) else [dataset[0]] if _sized(dataset) else []
    return next((f"item {i} has is_synthetic" for i, item in enumerate(rows) if _marked(item)), None)


def _sized(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset) > 0


def _marked(item: Any) -> bool:
    flag = item.get("is_synthetic") if isinstance(item, Mapping) else getattr(item, "is_synthetic", None)
    # A method or property of an unrelated class is no flag.
    return isinstance(flag, (bool, np.bool_, Tensor, np.ndarray)) and bool(torch.as_tensor(flag).any())


def check_splits(train: np.ndarray, held_out: np.ndarray, split: str, domain: str) -> None:
    """Refuse training items that are also evaluation items.

    Equal windows of measured values are no coincidence, so they are an error. Small graphs, molecules and sequences may
    well be equal, so they are counted in a warning. In the node domain the splits share their graph by design.

    Args:
        train: uint64 hashes of the training items.
        held_out: uint64 hashes of the evaluation items.
        split: ``val`` or ``test``.
        domain: Of the items.

    Raises:
        LeakageError: If windows occur in both.
    """
    both = np.flatnonzero(np.isin(held_out, train))
    if not len(both) or domain == "node":
        return
    message = (
        f"{len(both)} of {len(held_out)} {_NAMES[split]} items are also training items (the first is item {both[0]})"
    )
    if domain == "timeseries":
        raise LeakageError(f"{message}; remove them from one of the two")
    warnings.warn(message, stacklevel=3)


def check_fingerprints(
    fingerprints: Mapping[str, Mapping[str, Any]], train: np.ndarray, held_out: np.ndarray, split: str
) -> None:
    """Refuse pools whose generator was trained on evaluation items.

    Args:
        fingerprints: Pool name to the fingerprint of its generator's training items.
        train: uint64 hashes of the training items: what is in there too is not held against the generator.
        held_out: uint64 hashes of the evaluation items.
        split: ``val`` or ``test``.

    Raises:
        LeakageError: Naming the pool and the number of items.
    """
    fresh = ~np.isin(held_out, train)
    for name, known in fingerprints.items():
        seen: Sequence[int] = np.flatnonzero(overlap(known, held_out) & fresh).tolist()
        if seen:
            raise LeakageError(
                f"pool {name!r}: {len(seen)} of {len(held_out)} {_NAMES[split]} items were in the training data of its "
                f"generator (the first is item {seen[0]}); train the generator on this DataModule's training split"
            )
