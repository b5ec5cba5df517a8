"""A random forest on features of the items: hard to beat on honest splits, and quick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_synth.errors import ConfigError, DataError, NotFittedError
from lightning_synth.features import Kind, series_features
from lightning_synth.schema import features as plain_features
from lightning_synth.schema import labels


class RandomForest:
    """Random forest on features of the items (Breiman 2001).

    Time series get features made for them (`lightning_synth.features`); items of other domains their plain ones
    (`lightning_synth.schema.features`).

    Args:
        schema: Of the items.
        features: For time series: ``"statistics"``, ``"texture"``, ``"vibration"``, ``"values"``, ``"all"``
            (statistics, texture and values), or ``"auto"`` (vibration where there is a sampling rate and at least 256
            samples; else all for windows of at most 512 values; else statistics). Other domains have ``"auto"`` only.
        n_estimators: Trees.
        class_weight: None, or ``"balanced"``: classes count equally however many items they have. It multiplies the
            weights of the items.
        min_samples_leaf: Fewest items in a leaf.

    Raises:
        ConfigError: If the items have no class label, or the features are impossible for them.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("timeseries")
        >>> forest = RandomForest(data.schema, n_estimators=5).fit(data.train_items())
        >>> forest.predict(data.train_items()).shape == (len(data.train_items()),)
        True
    """

    def __init__(
        self,
        schema: dict[str, Any],
        features: Kind = "auto",
        n_estimators: int = 300,
        class_weight: str | None = None,
        min_samples_leaf: int = 1,
    ) -> None:
        if not schema.get("num_classes"):
            raise ConfigError(f"random_forest predicts classes, but the {schema.get('domain')} data have no label")
        if schema["domain"] == "node":
            raise ConfigError("random_forest predicts a class for each item; in domain 'node' the labels are of nodes")
        if schema["domain"] != "timeseries" and features != "auto":
            raise ConfigError(f"features={features!r} are for time series; the data are of domain {schema['domain']!r}")
        self.schema, self.kind, self.n_estimators = schema, features, n_estimators
        self.class_weight, self.min_samples_leaf = class_weight, min_samples_leaf
        self.forest: Any = None

    def features(self, items: Sequence[Any]) -> np.ndarray:
        """Return what the forest sees, float64 (items, d).

        Args:
            items: Items of the schema.
        """
        if self.schema["domain"] == "timeseries":
            return series_features(items, self.schema, self.kind)
        return np.asarray(plain_features(items, self.schema), dtype=np.float64)

    def fit(self, items: Sequence[Any], weight: np.ndarray | None = None, seed: int = 0) -> RandomForest:
        """Train.

        Args:
            items: Labelled items.
            weight: (items,), or None for equal weights.
            seed: Of the forest.

        Returns:
            Itself.

        Raises:
            DataError: If there are no items, or they have no labels.
        """
        from sklearn.ensemble import RandomForestClassifier

        y = labels(items, self.schema) if len(items) else None
        if y is None:
            raise DataError(f"random_forest needs labelled items to train on, got {len(items)} without label")
        self.forest = RandomForestClassifier(
            self.n_estimators,
            class_weight=self.class_weight,
            min_samples_leaf=self.min_samples_leaf,
            random_state=seed & 0xFFFFFFFF,
        ).fit(self.features(items), y, sample_weight=weight)
        return self

    def predict_proba(self, items: Sequence[Any]) -> np.ndarray:
        """Return class probabilities, float64 (items, classes).

        Args:
            items: Items of the schema.

        Raises:
            NotFittedError: If `fit` was not called before.
        """
        if self.forest is None:
            raise NotFittedError("random_forest: call fit(items) before predict")
        out = np.zeros((len(items), self.schema["num_classes"]))
        if len(items):
            out[:, self.forest.classes_] = self.forest.predict_proba(self.features(items))
        return out

    def predict(self, items: Sequence[Any]) -> np.ndarray:
        """Return int64 classes (items,).

        Args:
            items: Items of the schema.
        """
        classes: np.ndarray = self.predict_proba(items).argmax(1).astype(np.int64)
        return classes
