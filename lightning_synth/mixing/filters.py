"""Filters that decide which synthetic items may be mixed in; each reports what it rejected, class by class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.mixing.dataset import Rows
from lightning_synth.schema import Items, features, item_hashes, labels, validate

#: Items whose features are held in memory at a time.
_CHUNK = 4096
Report = dict[str, dict[str, float]]


def _chunks(items: Items) -> Iterator[Items]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def class_labels(items: Items, schema: Mapping[str, Any]) -> np.ndarray | None:
    """Return int64 labels of many items without holding them all in memory.

    Args:
        items: Items; slices of them are read.
        schema: Of the items.
    """
    found = [labels(part, schema) for part in _chunks(items)]
    return (
        None if any(part is None for part in found) else _joined([part for part in found if part is not None], np.int64)
    )


def reject_report(keep: np.ndarray, classes: np.ndarray | None) -> Report:
    """Count rejections by class.

    Args:
        keep: bool (items,).
        classes: int64 (items,), or None.

    Returns:
        Class name, or ``all``, to ``total``, ``rejected`` and ``rate``.

    Example:
        >>> reject_report(np.array([True, False]), np.array([0, 0]))["0"]["rate"]
        0.5
    """
    groups = {"all": np.ones(len(keep), bool)}
    if classes is not None:
        groups |= {str(label): classes == label for label in np.unique(classes).tolist()}
    sizes = {name: (int(rows.sum()), int((rows & ~keep).sum())) for name, rows in groups.items()}
    return {
        name: {"total": total, "rejected": rejected, "rate": rejected / max(total, 1)}
        for name, (total, rejected) in sizes.items()
    }


class Filter(ABC):
    """Keeps or rejects synthetic items.

    Attributes:
        report: Rejections of the last call, by class (`reject_report`).
    """

    report: Report

    def filter(self, items: Items, real_items: Items, schema: Mapping[str, Any], seed: int = 0) -> np.ndarray:
        """Decide item by item.

        Args:
            items: Synthetic items.
            real_items: Real training items; never validation or test items.
            schema: Of the items.
            seed: Of classifiers and draws.

        Returns:
            bool (items,), True to keep.
        """
        keep = self.keep(items, real_items, schema, seed) if len(items) else np.zeros(0, bool)
        self.report = reject_report(keep, class_labels(items, schema) if len(items) else None)
        return keep

    @abstractmethod
    def keep(self, items: Items, real_items: Items, schema: Mapping[str, Any], seed: int) -> np.ndarray:
        """Return bool (items,) for at least one item."""


def apply_filters(
    filters: Sequence[Filter], items: Items, real_items: Items, schema: Mapping[str, Any], seed: int = 0
) -> tuple[np.ndarray, dict[str, Report]]:
    """Run filters one after the other; each sees what the ones before it kept.

    Args:
        filters: Filters in order.
        items: Synthetic items.
        real_items: Real training items.
        schema: Of the items.
        seed: Of the filters.

    Returns:
        Rows kept (int64), and the report of each filter by its name.
    """
    rows, reports = np.arange(len(items)), {}
    for number, one in enumerate(filters):
        rows = rows[one.filter(Rows(items, rows), real_items, schema, seed)]
        name = type(one).__name__
        reports[name if name not in reports else f"{name}_{number}"] = one.report
    return rows, reports


class ValidityFilter(Filter):
    """Rejects items that break the schema (shape, NaN, infinity, unknown types or labels) or a check of your own.

    Args:
        check: Item to bool, for rules of the field, e.g. "the speed is positive"; None for the schema alone.

    Example:
        >>> import torch
        >>> from lightning_synth.items import StackedItems
        >>> from lightning_synth.schema import describe
        >>> real = StackedItems({"x": torch.rand(4, 1, 8)})
        >>> broken = StackedItems({"x": torch.full((1, 1, 8), float("nan"))})
        >>> ValidityFilter().filter(StackedItems.cat([real, broken]), real, describe(real, "timeseries")).tolist()
        [True, True, True, True, False]
    """

    def __init__(self, check: Callable[[Any], bool] | None = None) -> None:
        self.check = check

    def keep(self, items: Items, real_items: Items, schema: Mapping[str, Any], seed: int) -> np.ndarray:
        """Validate a chunk at once, and item by item where a chunk fails."""
        keep = _joined([self._valid(part, schema) for part in _chunks(items)], bool)
        if self.check is not None:
            keep &= np.fromiter((bool(self.check(item)) for item in items), bool, len(items))
        return keep

    def _valid(self, part: Items, schema: Mapping[str, Any]) -> np.ndarray:
        try:
            validate(part, schema)
        except DataError:
            half = len(part) // 2
            if not half:
                return np.zeros(1, bool)
            return np.concatenate([self._valid(part[:half], schema), self._valid(part[half:], schema)])
        return np.ones(len(part), bool)


class _Space:
    """Features of real training items, standardised by their own mean and standard deviation."""

    def __init__(self, real_items: Items, schema: Mapping[str, Any]) -> None:
        raw = _joined([features(part, schema) for part in _chunks(real_items)], float)
        self.schema, self.mean, std = schema, raw.mean(0), raw.std(0)
        self.std = np.where(std > 1e-12, std, 1.0)
        self.points = (raw - self.mean) / self.std

    def project(self, items: Items) -> np.ndarray:
        """Standardise other items with the statistics of the real ones."""
        return np.asarray((features(items, self.schema) - self.mean) / self.std)

    def own_distances(self, rows: np.ndarray) -> np.ndarray:
        """Distance of each of some real items to the nearest other one of them."""
        points = self.points[rows]
        if len(points) < 2:
            return np.zeros(0)
        return np.asarray(_neighbours(points).kneighbors(points, n_neighbors=2)[0][:, 1])


def _neighbours(points: np.ndarray) -> Any:
    from sklearn.neighbors import NearestNeighbors

    # Trees lose to brute force above some 15 dimensions.
    return NearestNeighbors(n_neighbors=1, algorithm="brute" if points.shape[1] > 15 else "auto").fit(points)


def _checked_quantile(value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"quantile must lie between 0 and 1, got {value!r}")
    return value


class NoveltyFilter(Filter):
    """Rejects samples closer to a training item than training items are to each other, and exact copies.

    Distances are Euclidean between standardised features of the schema. A sample goes if its distance to the nearest
    training item is below the given quantile of the nearest-neighbour distances among the training items themselves.

    Args:
        quantile: Of the real distances; 0 rejects exact copies, and what is nearer than the closest pair of real items.

    Raises:
        ConfigError: If the quantile is not between 0 and 1.

    Example:
        >>> from lightning_synth.testing.tiny import tiny_series, tiny_series_schema
        >>> real, fresh = tiny_series(16), tiny_series(16, seed=1)
        >>> NoveltyFilter().filter(real, real, tiny_series_schema()).any()
        np.False_
    """

    def __init__(self, quantile: float = 0.05) -> None:
        self.quantile = _checked_quantile(quantile)

    def keep(self, items: Items, real_items: Items, schema: Mapping[str, Any], seed: int) -> np.ndarray:
        """Compare distances and hashes."""
        copies = np.isin(
            _joined([item_hashes(part, schema) for part in _chunks(items)], np.uint64), self._hashes(real_items, schema)
        )
        space = _Space(real_items, schema)
        own = space.own_distances(np.arange(len(space.points)))
        if not len(own):
            return ~copies
        search = _neighbours(space.points)
        nearest = _joined([search.kneighbors(space.project(part))[0][:, 0] for part in _chunks(items)], float)
        return np.asarray(~copies & (nearest >= np.quantile(own, self.quantile)))

    @staticmethod
    def _hashes(real_items: Items, schema: Mapping[str, Any]) -> np.ndarray:
        return _joined([item_hashes(part, schema) for part in _chunks(real_items)], np.uint64)


class ConfidenceFilter(Filter):
    """Rejects samples that a classifier of real items finds less convincing than the least convincing real ones.

    The classifier sees real training items only. Class c has a threshold of its own: the ``quantile`` of p(c | x) over
    its real items, each predicted by a classifier that was not trained on it. A global threshold would prune difficult
    classes away (Feng et al. 2024, arXiv 2406.07515, on verifiers of synthetic data).

    Args:
        quantile: Share of real items of a class that would be rejected by its threshold.
        classifier: An estimator with ``predict_proba``, cloned; None: a random forest of 100 trees.
        tail_guard: Keep an unconvincing sample if it lies near a real item of its class: at most their median
            nearest-neighbour distance away. Rare real shapes are then not pruned from the mix.
        folds: Of the cross-validation on real items.

    Raises:
        ConfigError: If the quantile is out of range, or items have no labels.

    Example:
        >>> from lightning_synth.testing.tiny import tiny_series, tiny_series_schema
        >>> one = ConfidenceFilter(quantile=0.0)
        >>> kept = one.filter(tiny_series(12, seed=1), tiny_series(30), tiny_series_schema())
        >>> len(kept), sorted(one.report)
        (12, ['0', '1', '2', 'all'])
    """

    def __init__(self, quantile: float = 0.1, classifier: Any = None, tail_guard: bool = True, folds: int = 5) -> None:
        if folds < 2:
            raise ConfigError(f"folds must be at least 2, got {folds}")
        self.quantile, self.classifier = _checked_quantile(quantile), classifier
        self.tail_guard, self.folds = tail_guard, folds

    def keep(self, items: Items, real_items: Items, schema: Mapping[str, Any], seed: int) -> np.ndarray:
        """Compare p(label | x) with the threshold of the label."""
        real, claimed = class_labels(real_items, schema), class_labels(items, schema)
        if real is None or claimed is None:
            raise ConfigError("ConfidenceFilter needs class labels in the real and in the synthetic items")
        space = _Space(real_items, schema)
        if len(np.unique(real)) < 2:
            return np.ones(len(items), bool)
        model, thresholds = self._fit(space.points, real, seed)
        nearby = {label: self._near(space, np.flatnonzero(real == label)) for label in np.unique(real).tolist()}
        keep, start = [], 0
        for part in _chunks(items):
            points, wanted = space.project(part), claimed[start : start + len(part)]
            keep.append(self._decide(model, thresholds, nearby, points, wanted))
            start += len(part)
        return _joined(keep, bool)

    def _fit(self, points: np.ndarray, real: np.ndarray, seed: int) -> tuple[Any, dict[int, float]]:
        """Train on all real items; find thresholds by cross-validation. A class of one item cannot have one."""
        from sklearn.base import clone
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.model_selection import StratifiedKFold

        model = (
            clone(self.classifier) if self.classifier is not None else RandomForestClassifier(100, random_state=seed)
        )
        found, counts = np.unique(real, return_counts=True)
        thresholds = dict.fromkeys(found.tolist(), 0.0)
        testable = np.isin(real, found[counts >= 2])
        own = np.zeros(len(real))
        if testable.any():
            folds = StratifiedKFold(
                max(2, min(self.folds, int(counts[counts >= 2].min()))), shuffle=True, random_state=seed
            )
            x, y, rows = points[testable], real[testable], np.flatnonzero(testable)
            for train, test in folds.split(x, y):
                # Classes of one item stay in every training fold.
                use = np.concatenate([rows[train], np.flatnonzero(~testable)])
                own[rows[test]] = _probability(clone(model).fit(points[use], real[use]), x[test], y[test])
            for label in np.unique(y).tolist():
                thresholds[label] = float(np.quantile(own[real == label], self.quantile))
        return model.fit(points, real), thresholds

    def _near(self, space: _Space, rows: np.ndarray) -> tuple[Any, float]:
        own = space.own_distances(rows)
        return _neighbours(space.points[rows]), float(np.median(own)) if len(own) else 0.0

    def _decide(
        self,
        model: Any,
        thresholds: Mapping[int, float],
        nearby: Mapping[int, tuple[Any, float]],
        points: np.ndarray,
        claimed: np.ndarray,
    ) -> np.ndarray:
        keep = _probability(model, points, claimed) >= np.array(
            [thresholds.get(label, np.inf) for label in claimed.tolist()]
        )
        if self.tail_guard:
            for label, (search, radius) in nearby.items():
                rows = np.flatnonzero(~keep & (claimed == label))
                if len(rows):
                    keep[rows] = search.kneighbors(points[rows])[0][:, 0] <= radius
        return np.asarray(keep)


def _probability(model: Any, points: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Probability of the wanted class for each row; 0 for a class that the model does not know."""
    columns = {label: column for column, label in enumerate(model.classes_.tolist())}
    table = np.hstack([model.predict_proba(points), np.zeros((len(points), 1))])
    return np.asarray(table[np.arange(len(points)), [columns.get(label, -1) for label in wanted.tolist()]])
