"""Real against real: what every metric scores when nothing is synthetic.

A metric without its null is unreadable: two samples of one law have a Hellinger distance of .39 (n = 100), a
beta-recall of .5, a precision of .75 (d = 64). Two designs, by what the metric compares:

- split: repeat r deals the real test items into halves A and B. The null is metric(A, B), the value metric(A, S_r) with
  a draw S_r of synthetic items as large as B. All columns share A and the sizes, so all biases of size cancel.
- threeway: for metrics of membership (train, holdout, synthetic). The value uses all items once; for the null, train
  and test items are pooled and dealt into three disjoint parts at most that large: a generator that learnt nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_synth.errors import DataError
from lightning_synth.metrics.distances import Array, ArrayLike, as_pair, seeded
from lightning_synth.metrics.spec import MetricSpec, Schema

MIN_SPLIT = 4


@dataclass(frozen=True)
class Calibrated:
    """A value beside its real-vs-real null.

    Args:
        value: The metric on real and synthetic items, mean over repeats.
        null_mean: Mean over real-vs-real draws.
        null_sd: Standard deviation over them.
        null_count: How many there were.
        n_real: Real items in one computation of the value (the reference).
        n_synthetic: Synthetic items in it.
        seed: Seed of the draws.

    Example:
        >>> Calibrated(0.5, 0.3, 0.1, 10, 50, 50, 0).z
        2.0
    """

    value: float
    null_mean: float
    null_sd: float
    null_count: int
    n_real: int
    n_synthetic: int
    seed: int

    @property
    def z(self) -> float:
        """(value - null mean) / null sd; an sd of 0 (rates that are 0 in every draw) counts as the resolution 1/n.

        Returns:
            The z-score, NaN if the null has fewer than two draws.
        """
        if self.null_count < 2:
            return float("nan")
        resolution = 1.0 / max(1, min(self.n_real, self.n_synthetic))
        sd = self.null_sd if self.null_sd > 1e-12 * max(1.0, abs(self.null_mean)) else resolution
        return (self.value - self.null_mean) / sd

    @property
    def p(self) -> float:
        """Two-sided p-value of z, given how few draws the null has: Student's t of a new draw against them.

        Returns:
            Between 0 and 1; NaN where z is.

        Example:
            >>> round(Calibrated(0.5, 0.3, 0.1, 10, 50, 50, 0).p, 3)
            0.089
        """
        from scipy.stats import t

        n = self.null_count
        return float(2 * t.sf(abs(self.z) / np.sqrt(1 + 1 / n), n - 1)) if n > 1 else float("nan")


def take(items: Any, index: npt.NDArray[np.int64]) -> Any:
    """Select items of an array, a `StackedItems` or any other sequence.

    Args:
        items: (n, ...) array or sequence.
        index: Positions.

    Returns:
        The same kind of thing; a list for plain sequences.

    Example:
        >>> take(["a", "b", "c"], np.array([2, 0]))
        ['c', 'a']
    """
    from lightning_synth.items import StackedItems

    if isinstance(items, (np.ndarray, StackedItems)):
        return items[index]
    return [items[int(i)] for i in index]


def split_rows(
    spec: MetricSpec,
    train: Any,
    test: Any,
    columns: Mapping[str, Any],
    schema: Schema,
    *,
    repeats: Mapping[str, int],
    seed: int = 0,
    max_items: int = 1000,
) -> tuple[dict[str, list[dict[str, float]]], int]:
    """Compute a two-sample metric for real halves and for every column, all at the same sizes.

    Args:
        spec: The metric.
        train: Real training items (passed on as they are).
        test: Real items, dealt into halves.
        columns: Name to synthetic items.
        schema: What an item is.
        repeats: Name of a column, and "null", to how many draws.
        seed: Seed of the draws.
        max_items: Largest half.

    Returns:
        Name of the column, and "null", to the results of its draws; and the size of a half.

    Raises:
        DataError: If there are fewer than 8 real items or 4 synthetic ones.
    """
    size = min([len(test) // 2, max_items, *map(len, columns.values())])
    if size < MIN_SPLIT:
        short = {"real test": len(test), **{name: len(items) for name, items in columns.items()}}
        need = f"at least {2 * MIN_SPLIT} real and {MIN_SPLIT} synthetic items"
        raise DataError(f"a real-vs-real null needs {need}, got {short}")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("null", *columns)}
    for r in range(max(repeats.values())):
        order = seeded(seed, "split", r).permutation(len(test))
        reference, other = take(test, order[:size]), order[size : 2 * size]
        draw = int(seeded(seed, "metric", spec.name, r).integers(2**31))
        for name, items in (("null", test), *columns.items()):
            if r < repeats[name]:
                index = other if name == "null" else seeded(seed, "draw", r).permutation(len(items))[:size]
                rows[name].append(dict(spec.compute(train, reference, take(items, index), schema, draw)))
    return rows, size


def threeway_rows(
    spec: MetricSpec,
    train: Any,
    test: Any,
    columns: Mapping[str, Any],
    schema: Schema,
    *,
    repeats: Mapping[str, int],
    seed: int = 0,
    max_items: int = 1000,
) -> tuple[dict[str, list[dict[str, float]]], int]:
    """Compute a membership metric for every column on all items, and for real items dealt three ways.

    Args:
        spec: The metric.
        train: Real items that the generators saw.
        test: Real items that they did not see.
        columns: Name to synthetic items.
        schema: What an item is.
        repeats: "null" to how many draws (columns are computed once).
        seed: Seed of the draws.
        max_items: Items of each kind are capped at twice this, by a seeded draw.

    Returns:
        Name of the column, and "null", to the results of its draws; and the number of training items used.

    Raises:
        DataError: If there are fewer than 12 real items.
    """
    # Copies are looked up by hash in all of the training data; distances are taken on a draw.
    cap = len(train) + len(test) + max(map(len, columns.values())) if spec.inputs == "hashes" else 2 * max_items
    if len(train) + len(test) < 3 * MIN_SPLIT:
        raise DataError(f"a membership null needs at least {3 * MIN_SPLIT} real items, got {len(train) + len(test)}")
    train, test = (_at_most(items, cap, seed, name) for items, name in ((train, "train"), (test, "test")))
    capped = {name: _at_most(items, cap, seed, "synthetic") for name, items in columns.items()}
    draw = int(seeded(seed, "metric", spec.name).integers(2**31))
    rows = {name: [dict(spec.compute(train, test, items, schema, draw))] for name, items in capped.items()}
    third = (len(train) + len(test)) // 3
    sizes: list[int] = [min(third, n) for n in (len(train), len(test), min(map(len, capped.values())))]
    rows["null"] = []
    for r in range(repeats["null"]):
        order = seeded(seed, "threeway", r).permutation(len(train) + len(test))
        ends = np.cumsum(sizes)
        parts = [_pooled(train, test, order[end - n : end]) for n, end in zip(sizes, ends, strict=True)]
        rows["null"].append(
            dict(spec.compute(parts[0], parts[1], parts[2], schema, int(seeded(draw, r).integers(2**31))))
        )
    return rows, len(train)


def _at_most(items: Any, cap: int, seed: int, name: str) -> Any:
    return items if len(items) <= cap else take(items, np.sort(seeded(seed, "cap", name).permutation(len(items))[:cap]))


def _pooled(first: Any, second: Any, index: npt.NDArray[np.int64]) -> Any:
    """Take items of two collections as if they were one."""
    if isinstance(first, np.ndarray):
        return np.concatenate([first, second])[index]
    return [first[int(i)] if i < len(first) else second[int(i) - len(first)] for i in index]


def summarise(
    rows: Mapping[str, Sequence[Mapping[str, float]]], column: str, sizes: tuple[int, int], seed: int
) -> dict[str, Calibrated]:
    """Put the mean over draws of a column beside the null, metric by metric.

    Args:
        rows: Of `split_rows` or `threeway_rows`.
        column: Which column.
        sizes: Numbers of real and synthetic items of one computation.
        seed: Seed of the draws, for the record.

    Returns:
        Name of the row to its value and null.

    Example:
        >>> rows = {"null": [{"a": 0.0}, {"a": 2.0}], "s": [{"a": 3.0}]}
        >>> summarise(rows, "s", (5, 5), 0)["a"].null_mean
        1.0
    """
    names = list(rows[column][0])
    result = {}
    for name in names:
        null = np.array([row.get(name, np.nan) for row in rows["null"]], dtype=np.float64)
        null = null[np.isfinite(null)]
        value = float(np.mean([row[name] for row in rows[column]]))
        mean = float(null.mean()) if len(null) else float("nan")
        sd = float(null.std(ddof=1)) if len(null) > 1 else float("nan")
        result[name] = Calibrated(value, mean, sd, len(null), *sizes, seed)
    return result


def against_real(
    metric: Callable[[Array, Array], float | Mapping[str, float]],
    real: ArrayLike,
    synthetic: ArrayLike,
    *,
    repeats: int = 20,
    seed: int = 0,
    max_items: int = 1000,
) -> dict[str, Calibrated]:
    """Calibrate any two-sample metric on features by halves of the real sample.

    Args:
        metric: Function of real (n, d) and synthetic (n, d) features; a number, or names to numbers.
        real: (N, d) real rows that the generator did not see, N >= 8.
        synthetic: (M, d), M >= 4.
        repeats: Draws.
        seed: Seed of the draws.
        max_items: Largest half.

    Returns:
        Name (or "value") to value, null mean, null sd, z.

    Raises:
        DataError: If there are too few rows.

    Example:
        >>> from lightning_synth.metrics.fidelity import pairwise_correlation_difference
        >>> rng = np.random.default_rng(0)
        >>> result = against_real(pairwise_correlation_difference, rng.normal(size=(400, 5)), rng.normal(size=(200, 5)))
        >>> abs(result["value"].z) < 2.5
        True
    """
    r, s = as_pair(real, synthetic)

    def compute(_train: Any, reference: Any, other: Any, _schema: Schema, _seed: int) -> Mapping[str, float]:
        result = metric(reference, other)
        return result if isinstance(result, Mapping) else {"value": float(result)}

    spec = MetricSpec("value", compute, inputs="features")
    counts = {"null": repeats, "synthetic": repeats}
    rows, size = split_rows(spec, None, r, {"synthetic": s}, {}, repeats=counts, seed=seed, max_items=max_items)
    return summarise(rows, "synthetic", (size, size), seed)
