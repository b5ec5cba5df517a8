"""Random forests on Morgan fingerprints: the baseline that learned molecule models rarely beat on few labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from lightning_synth.downstream.base import class_scores, regression_scores
from lightning_synth.downstream.molecule_gin import check_properties, properties
from lightning_synth.downstream.random_forest import RandomForest
from lightning_synth.errors import ConfigError, DataError, NotFittedError
from lightning_synth.schema import labels


class FingerprintForest(RandomForest):
    """Random forest on counts of circular substructures (Rogers & Hahn 2010, doi:10.1021/ci100050t).

    Synthetic graphs that are no molecules have no fingerprint and are left out of training.

    Args:
        schema: Of the molecules, with classes.
        radius: Bonds from the centre of a substructure to its rim.
        size: Columns that substructures are hashed to.
        n_estimators: Trees.
        class_weight: None, or ``"balanced"``.
        min_samples_leaf: Fewest molecules in a leaf.

    Raises:
        ConfigError: If the items are no molecules, or have no classes.

    Example:
        >>> import torch
        >>> from lightning_synth.testing import tiny_molecules, tiny_schema
        >>> items = tiny_molecules(8)
        >>> for i, item in enumerate(items):
        ...     item.label = torch.tensor([i % 2])
        >>> forest = FingerprintForest({**tiny_schema("molecule"), "num_classes": 2}, n_estimators=5).fit(items)
        >>> forest.predict(items).shape
        (8,)
    """

    metric: ClassVar[str] = "roc_auc"
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        schema: dict[str, Any],
        radius: int = 2,
        size: int = 2048,
        n_estimators: int = 300,
        class_weight: str | None = None,
        min_samples_leaf: int = 1,
    ) -> None:
        if schema.get("domain") != "molecule" or not schema.get("num_classes"):
            raise ConfigError(
                f"fingerprint_forest classifies labelled molecules, got {schema.get('domain')} data with "
                f"{schema.get('num_classes', 0)} classes; use MoleculeDataModule(task='classification')"
            )
        super().__init__(schema, "auto", n_estimators, class_weight, min_samples_leaf)
        self.radius, self.size = radius, size

    def features(self, items: Sequence[Any]) -> np.ndarray:
        """Return fingerprints, float64 (items, size); zeros for a graph that is no molecule."""
        return fingerprints(items, self.schema, self.radius, self.size)

    def fit(self, items: Sequence[Any], weight: np.ndarray | None = None, seed: int = 0) -> FingerprintForest:
        """Train on the molecules among the items.

        Args:
            items: Labelled items.
            weight: (items,), or None for equal weights.
            seed: Of the forest.

        Returns:
            Itself.

        Raises:
            DataError: If there are no molecules, or they have no labels.
        """
        rows = molecules_among(items, self.schema)
        super().fit([items[i] for i in rows], None if weight is None else weight[rows], seed)
        return self

    def score(self, items: Sequence[Any]) -> dict[str, float]:
        """Score predictions.

        Args:
            items: Labelled molecules.

        Returns:
            ``roc_auc``, ``macro_f1``, ``balanced_accuracy`` and ``accuracy``.
        """
        truth = labels(items, self.schema)
        assert truth is not None
        return class_scores(truth, self.predict_proba(items))


class FingerprintForestRegressor:
    """Random forests, one for each property, on counts of circular substructures (Rogers & Hahn 2010).

    Args:
        schema: Of the molecules, with properties.
        radius: Bonds from the centre of a substructure to its rim.
        size: Columns that substructures are hashed to.
        n_estimators: Trees of each.
        min_samples_leaf: Fewest molecules in a leaf.

    Raises:
        ConfigError: If the items are no molecules, or have no properties.

    Example:
        >>> from lightning_synth.testing import tiny_molecules, tiny_schema
        >>> items = tiny_molecules(8)
        >>> FingerprintForestRegressor(tiny_schema("molecule"), n_estimators=5).fit(items).predict(items).shape
        (8, 2)
    """

    metric: ClassVar[str] = "rmse"
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self,
        schema: dict[str, Any],
        radius: int = 2,
        size: int = 2048,
        n_estimators: int = 300,
        min_samples_leaf: int = 1,
    ) -> None:
        check_properties("fingerprint_forest_regressor", schema)
        self.schema, self.radius, self.size = schema, radius, size
        self.n_estimators, self.min_samples_leaf = n_estimators, min_samples_leaf
        self.forests: list[Any] = []

    def fit(self, items: Sequence[Any], weight: np.ndarray | None = None, seed: int = 0) -> FingerprintForestRegressor:
        """Train on the molecules among the items, each property on those that have it.

        Args:
            items: Items with properties, NaN for missing ones.
            weight: (items,), or None for equal weights.
            seed: Of the forests.

        Returns:
            Itself.

        Raises:
            DataError: If there are no molecules, or none has some property.
        """
        from sklearn.ensemble import RandomForestRegressor

        rows = molecules_among(items, self.schema)
        kept = [items[i] for i in rows]
        x, y = fingerprints(kept, self.schema, self.radius, self.size), properties(kept)
        share = np.ones(len(kept)) if weight is None else np.asarray(weight)[rows]
        self.forests = []
        for name, column in zip(self.schema["properties"], y.T, strict=True):
            known = np.isfinite(column)
            if not known.any():
                raise DataError(f"none of the {len(kept)} training molecules has a value of {name}")
            forest = RandomForestRegressor(
                self.n_estimators,
                min_samples_leaf=self.min_samples_leaf,
                max_features=1 / 3,
                random_state=seed & 0xFFFFFFFF,
            )
            self.forests.append(forest.fit(x[known], column[known], sample_weight=share[known]))
        return self

    def predict(self, items: Sequence[Any]) -> np.ndarray:
        """Return properties in their own units, float64 (items, properties).

        Args:
            items: Items of the schema.

        Raises:
            NotFittedError: If `fit` was not called before.
        """
        if not self.forests:
            raise NotFittedError("fingerprint_forest_regressor: call fit(items) before predict")
        if not len(items):
            return np.zeros((0, len(self.forests)))
        x = fingerprints(items, self.schema, self.radius, self.size)
        return np.stack([forest.predict(x) for forest in self.forests], 1)

    def score(self, items: Sequence[Any]) -> dict[str, float]:
        """Score predictions.

        Args:
            items: Molecules with properties.

        Returns:
            ``rmse`` and ``mae`` in the units of the properties.
        """
        return regression_scores(properties(items), self.predict(items), list(self.schema["properties"]))


def molecules_among(items: Sequence[Any], schema: dict[str, Any]) -> np.ndarray:
    """Return the rows of the items that are molecules, int64.

    Args:
        items: Items of the schema.
        schema: Of the items.

    Raises:
        DataError: If there are none.
    """
    from lightning_synth.molecules.representation import molecules

    rows = np.flatnonzero([mol is not None for mol in molecules(items, schema)])
    if not len(rows):
        raise DataError(f"none of the {len(items)} training graphs is a molecule: nothing to train on")
    return rows


def fingerprints(items: Sequence[Any], schema: dict[str, Any], radius: int, size: int) -> np.ndarray:
    """Count circular substructures, float64 (items, size); zeros for a graph that is no molecule.

    Args:
        items: Items of the schema.
        schema: Of the items.
        radius: Bonds from the centre to the rim.
        size: Columns that substructures are hashed to.
    """
    from rdkit.Chem import rdFingerprintGenerator

    from lightning_synth.molecules.representation import molecules

    maker = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=size)
    out = np.zeros((len(items), size))
    for row, mol in zip(out, molecules(items, schema), strict=True):
        if mol is not None:
            row[:] = maker.GetCountFingerprintAsNumPy(mol)
    return out
