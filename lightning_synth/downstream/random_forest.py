"""A random forest on features of the items: hard to beat on honest splits, and quick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_synth.schema import features, labels


class RandomForest:
    """Random forest on window features (Breiman 2001).

    Args:
        schema: Of the items.
        n_estimators: Trees.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("timeseries")
        >>> forest = RandomForest(data.schema, n_estimators=5).fit(data.train_items())
        >>> forest.predict(data.train_items()).shape == (len(data.train_items()),)
        True
    """

    def __init__(self, schema: dict[str, Any], n_estimators: int = 300) -> None:
        self.schema, self.n_estimators = schema, n_estimators

    def fit(self, items: Sequence[Any], weight: np.ndarray | None = None, seed: int = 0) -> RandomForest:
        """Train.

        Args:
            items: Labelled items.
            weight: (items,), or None for equal weights.
            seed: Of the forest.
        """
        from sklearn.ensemble import RandomForestClassifier

        self.forest = RandomForestClassifier(self.n_estimators, random_state=seed)
        self.forest.fit(features(items, self.schema), labels(items, self.schema), sample_weight=weight)
        return self

    def predict_proba(self, items: Sequence[Any]) -> np.ndarray:
        """Return class probabilities, float64 (items, classes)."""
        out = np.zeros((len(items), self.schema["num_classes"]))
        out[:, self.forest.classes_] = self.forest.predict_proba(features(items, self.schema))
        return out

    def predict(self, items: Sequence[Any]) -> np.ndarray:
        """Return int64 classes (items,)."""
        classes: np.ndarray = self.predict_proba(items).argmax(1)
        return classes
