"""What downstream models share: how they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Downstream(Protocol):
    """A classifier that a study can train: a LightningModule, or anything with ``fit``."""

    def predict(self, items: Sequence[Any]) -> np.ndarray:
        """Return int64 classes (items,)."""

    def predict_proba(self, items: Sequence[Any]) -> np.ndarray:
        """Return float64 probabilities (items, classes)."""


def scores(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, float]:
    """Score class predictions.

    Args:
        truth: int64 (items,).
        predicted: int64 (items,).
        num_classes: Classes of the task; those absent from ``truth`` do not count.

    Returns:
        ``macro_f1``, ``balanced_accuracy`` and ``accuracy``.

    Example:
        >>> scores(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)["accuracy"]
        0.6666666666666666
    """
    confusion = np.zeros((num_classes, num_classes))
    np.add.at(confusion, (truth, predicted), 1)
    hit, actual, called = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    present = actual > 0
    f1 = 2 * hit / np.maximum(actual + called, 1)
    return {
        "macro_f1": float(f1[present].mean()),
        "balanced_accuracy": float((hit[present] / actual[present]).mean()),
        "accuracy": float(hit.sum() / max(actual.sum(), 1)),
    }
