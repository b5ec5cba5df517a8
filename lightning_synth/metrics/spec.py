"""What one metric is to `evaluate`: a name, a function of three samples, and which direction is better.

Every domain's metric module (`lightning_synth.metrics.<domain>`) exposes `METRICS`, a tuple of `MetricSpec`;
`evaluate` collects the common ones, the privacy ones and those of the domain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Schema = dict[str, Any]
Compute = Callable[[Any, Any, Any, Schema, int], Mapping[str, float]]


@dataclass(frozen=True)
class MetricSpec:
    """One metric, and how `evaluate` may call it.

    Args:
        name: Name of the metric; keys of the result are row names of the report, so they should start with it
            or be equally telling.
        compute: `compute(real_train, real_test, synthetic, schema, seed) -> {row: value}`. The three samples are
            sequences of items, or float64 arrays (n, d) of standardised features with `inputs="features"`.
            It must be a pure function of its arguments (no draw from a global generator), must not assume equal
            sizes, and may be called with real items in the place of `synthetic`: that is how the null is made.
            In "split" metrics `real_train` is the same object in all calls of one evaluation, so whatever is fitted
            on it (an encoder, a classifier) may be cached by its identity.
            A row that cannot be computed (too few items) is NaN, not an exception.
        higher_is_better: Direction of all rows; None where neither is (a signed score, a descriptive number).
        cost: "slow" metrics (those that train a network or trees) are repeated less often for the null.
        inputs: "items"; "features": float64 arrays (n, d) (`lightning_synth.schema.features`, standardised, at most 64
            dimensions); or "hashes": uint64 arrays (n,), equal for items of equal content whatever their labels are.
        null: Which real-vs-real null belongs to it. "split" for two-sample metrics: halves of the real test set play
            reference and synthetic, at the sizes at which the value is computed. "threeway" for membership metrics:
            all real items are dealt into train, holdout and synthetic, so that nothing was learnt from anything.
        directions: `higher_is_better` of single rows that differ from the others.

    Example:
        >>> import numpy as np
        >>> def mean_gap(real_train, real_test, synthetic, schema, seed):
        ...     return {"mean_gap": float(np.abs(real_test.mean(0) - synthetic.mean(0)).max())}
        >>> spec = MetricSpec("mean_gap", mean_gap, higher_is_better=False, inputs="features")
        >>> spec.compute(None, np.zeros((4, 2)), np.ones((4, 2)), {}, 0)
        {'mean_gap': 1.0}
        >>> spec.better("mean_gap")
        False
    """

    name: str
    compute: Compute
    higher_is_better: bool | None = None
    cost: Literal["fast", "slow"] = "fast"
    inputs: Literal["items", "features", "hashes"] = "items"
    null: Literal["split", "threeway"] = "split"
    directions: Mapping[str, bool | None] = field(default_factory=dict)

    def better(self, row: str) -> bool | None:
        """Direction of one row: True if higher is better, False if lower is, None if neither.

        Args:
            row: A key of what `compute` returns.

        Returns:
            The direction.

        Example:
            >>> MetricSpec("a", lambda *_: {}, higher_is_better=True, directions={"a_gap": False}).better("a_gap")
            False
        """
        return self.directions.get(row, self.higher_is_better)


__all__ = ["Compute", "MetricSpec", "Schema"]
