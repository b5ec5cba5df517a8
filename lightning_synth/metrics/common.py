"""Metrics for every domain, on features or embeddings: functions, `torchmetrics` classes, and what `evaluate` runs.

Usage in a LightningModule: `metric.update(real_batch, real=True)`, `metric.update(samples, real=False)`, then
`self.log_dict(metric.compute())`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_synth.errors import DataError
from lightning_synth.metrics.distances import Array, FeatureSpace, as_features
from lightning_synth.metrics.diversity import alpha_precision, dcscore, diversity_ratios, prdc, vendi
from lightning_synth.metrics.fidelity import (
    classifier_two_sample,
    dd_plot_r2,
    depth,
    gaussian_hellinger,
    hellinger,
    mmd,
    pairwise_correlation_difference,
)
from lightning_synth.metrics.privacy import (
    dcr_share,
    exact_copies,
    membership_inference,
    near_duplicates,
    nndr_tails,
    payload_hashes,
)
from lightning_synth.metrics.spec import MetricSpec, Schema


def features_of(values: Any, schema: Schema | None = None) -> Array:
    """Return features of whatever a metric's `update` was given.

    Args:
        values: Features (n, d) as tensor or array; or items, a batch, `Samples` or a pool, which need a schema.
        schema: What an item is.

    Returns:
        float64 (n, d).

    Raises:
        DataError: If items are given without a schema.

    Example:
        >>> features_of(torch.zeros(5, 3)).shape
        (5, 3)
    """
    if isinstance(values, (Tensor, np.ndarray)):
        return as_features(values)
    from lightning_synth import schema as schemas

    return np.asarray(schemas.features(_items_of(values, schema), schema or {}), dtype=np.float64)


def _items_of(values: Any, schema: Schema | None) -> Sequence[Any]:
    """Items of a pool, `Samples`, a batch or a sequence of items."""
    if schema is None:
        raise DataError(
            f"{type(values).__name__} given to a metric without schema: pass features or Metric(schema=...)"
        )
    from lightning_synth import schema as schemas

    if isinstance(values, dict) or hasattr(values, "edge_index"):
        return schemas.uncollate(values, schema)
    if hasattr(values, "items") and callable(values.items):
        found: Sequence[Any] = values.items()
        return found
    return list(values)


class TwoSampleMetric(Metric):
    """Base of metrics that compare a real and a synthetic sample of features.

    Args:
        schema: What an item is; needed to `update` with items or batches. Their features are then standardised by the
            real ones (`FeatureSpace`); arrays are taken as they are.
        seed: Seed of everything random in it.
        **kwargs: Of `torchmetrics.Metric`.

    Shapes:
        update: features (n, d), or a batch, or items. compute: name to scalar float64 tensor.
    """

    is_differentiable: bool | None = False
    full_state_update: bool | None = False
    real: list[Tensor]
    synthetic: list[Tensor]

    def __init__(self, *, schema: Schema | None = None, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schema, self.seed = schema, seed
        self.add_state("real", default=[], dist_reduce_fx="cat")
        self.add_state("synthetic", default=[], dist_reduce_fx="cat")

    def _rows(self, values: Any) -> Tensor:
        return torch.as_tensor(features_of(values, self.schema))

    def update(self, values: Any, real: bool) -> None:
        """Add real or synthetic rows.

        Args:
            values: Features (n, d), or a batch or items (with a schema).
            real: Which sample they belong to.
        """
        (self.real if real else self.synthetic).append(self._rows(values))

    def _sample(self, name: str) -> Array:
        state = getattr(self, name)
        if isinstance(state, list) and not state:
            raise DataError(f"{type(self).__name__}: no {name} rows yet; call update(values, real={name == 'real'})")
        return np.asarray((torch.cat(state) if isinstance(state, list) else state).cpu().numpy())

    def _spaces(self, *names: str) -> list[Array]:
        samples = [self._sample(name) for name in names]
        if self.schema is None or samples[0].ndim == 1:
            return samples
        space = FeatureSpace(np.concatenate([s for name, s in zip(names, samples, strict=True) if name != "synthetic"]))
        return [space(s) for s in samples]

    def compute(self) -> dict[str, Tensor]:
        """Compute the metric on everything seen since the last reset.

        Returns:
            Name to scalar tensor.

        Raises:
            DataError: If one of the samples is empty.
        """
        values = self._evaluate(*self._spaces("real", "synthetic"))
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    @abstractmethod
    def _evaluate(self, *samples: Array) -> dict[str, float]:
        """Numbers of the samples."""


class HellingerDistance(TwoSampleMetric):
    """Hellinger distance of laws: mean and worst over features, and of the fitted Gaussians; see `hellinger`.

    Example:
        >>> metric = HellingerDistance()
        >>> metric.update(torch.zeros(50, 1), real=True)
        >>> metric.update(torch.ones(50, 1), real=False)
        >>> metric.compute()["hellinger"]
        tensor(1., dtype=torch.float64)
    """

    higher_is_better: bool | None = False

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return _hellinger(*samples)


class PairwiseCorrelationDifference(TwoSampleMetric):
    """Frobenius norm of the difference of correlations; see `pairwise_correlation_difference`.

    Example:
        >>> metric = PairwiseCorrelationDifference()
        >>> metric.update(torch.eye(3), real=True), metric.update(torch.eye(3), real=False)
        (None, None)
        >>> metric.compute()["pcd"]
        tensor(0., dtype=torch.float64)
    """

    higher_is_better: bool | None = False

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return {"pcd": pairwise_correlation_difference(*samples)}


class DDPlot(TwoSampleMetric):
    """R2 of the depth-depth plot against the identity, for three depths; see `dd_plot_r2`.

    Example:
        >>> metric = DDPlot()
        >>> metric.update(torch.eye(3), real=True), metric.update(torch.eye(3), real=False)
        (None, None)
        >>> metric.compute()["dd_plot_r2"]
        tensor(1., dtype=torch.float64)
    """

    higher_is_better: bool | None = True

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return _dd_plot(samples[0], samples[1], self.seed)


class ClassifierTwoSample(TwoSampleMetric):
    """AUC of the better of two classifiers that tell synthetic from real; see `classifier_two_sample`.

    Example:
        >>> metric = ClassifierTwoSample(seed=1)
        >>> metric.update(torch.zeros(20, 2), real=True), metric.update(torch.ones(20, 2), real=False)
        (None, None)
        >>> metric.compute()["c2st_auc"]
        tensor(1., dtype=torch.float64)
    """

    higher_is_better: bool | None = False

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return classifier_two_sample(*samples, seed=self.seed)


class MaximumMeanDiscrepancy(TwoSampleMetric):
    """Unbiased squared MMD with a Gaussian kernel, and its permutation p-value; see `mmd`.

    Example:
        >>> metric = MaximumMeanDiscrepancy()
        >>> metric.update(torch.zeros(20, 2), real=True), metric.update(torch.ones(20, 2), real=False)
        (None, None)
        >>> metric.compute()["mmd_p"] < 0.01
        tensor(True)
    """

    higher_is_better: bool | None = False

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return mmd(*samples, seed=self.seed)


class Diversity(TwoSampleMetric):
    """DCScore and Vendi score, synthetic and relative to real at equal size; see `diversity_ratios`.

    Example:
        >>> metric = Diversity()
        >>> metric.update(torch.eye(10), real=True), metric.update(torch.ones(10, 10), real=False)
        (None, None)
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items() if "vendi" in name}
        {'vendi_ratio': 0.1, 'vendi': 1.0}
    """

    higher_is_better: bool | None = None

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        size = min(map(len, samples))
        return diversity_ratios(samples[0][:size], samples[1][:size])


class PRDC(TwoSampleMetric):
    """Precision, recall, density, coverage; see `prdc`.

    Example:
        >>> metric = PRDC()
        >>> metric.update(torch.eye(10), real=True), metric.update(torch.eye(10), real=False)
        (None, None)
        >>> metric.compute()["coverage"]
        tensor(1., dtype=torch.float64)
    """

    higher_is_better: bool | None = True

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return prdc(samples[0], samples[1])


class AlphaPrecision(TwoSampleMetric):
    """alpha-precision, beta-recall, authenticity, correctly indexed; see `alpha_precision`.

    Example:
        >>> metric = AlphaPrecision()
        >>> metric.update(torch.eye(10), real=True), metric.update(torch.eye(10), real=False)
        (None, None)
        >>> metric.compute()["authenticity"]
        tensor(0., dtype=torch.float64)
    """

    higher_is_better: bool | None = True

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return alpha_precision(*samples)


class MembershipMetric(TwoSampleMetric):
    """Base of privacy metrics: real training rows, real holdout rows, synthetic rows."""

    higher_is_better: bool | None = False
    holdout: list[Tensor]

    def __init__(self, *, schema: Schema | None = None, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(schema=schema, seed=seed, **kwargs)
        self.add_state("holdout", default=[], dist_reduce_fx="cat")

    def update(self, values: Any, real: bool, holdout: bool = False) -> None:
        """Add rows.

        Args:
            values: Features (n, d), or a batch or items (with a schema).
            real: Real or synthetic.
            holdout: Real rows that the generator did not see.
        """
        if real and holdout:
            self.holdout.append(self._rows(values))
        else:
            super().update(values, real)

    def compute(self) -> dict[str, Tensor]:
        """Compute the metric on everything seen since the last reset.

        Returns:
            Name to scalar tensor.

        Raises:
            DataError: If one of the three samples is empty.
        """
        values = self._evaluate(*self._spaces("real", "holdout", "synthetic"))
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


class ExactCopies(TwoSampleMetric):
    """Share of synthetic items that copy a training item exactly; see `exact_copies`.

    Example:
        >>> metric = ExactCopies()
        >>> metric.update(torch.eye(10), real=True), metric.update(torch.eye(20)[8:12, :10], real=False)
        (None, None)
        >>> metric.compute()["exact_copy_rate"]
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better: bool | None = False

    def _rows(self, values: Any) -> Tensor:
        if isinstance(values, (Tensor, np.ndarray)):
            return torch.as_tensor(as_features(values))
        items = _items_of(values, self.schema)
        return torch.as_tensor(payload_hashes(items, self.schema or {}).view(np.int64))

    def _spaces(self, *names: str) -> list[Array]:
        # Standardising could round: bits are compared as they came.
        return [self._sample(name) for name in names]

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return exact_copies(*samples)


class NearDuplicates(MembershipMetric):
    """Share of synthetic rows much closer to a training row than real rows are; see `near_duplicates`."""

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return near_duplicates(*samples)


class NearestNeighbourRatio(MembershipMetric):
    """Lower tails of the nearest-neighbour distance ratio to train and holdout; see `nndr_tails`."""

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return nndr_tails(*samples, seed=self.seed)


class DCRShare(MembershipMetric):
    """Share of synthetic rows closer to train than to holdout; see `dcr_share`."""

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return {"dcr_share": dcr_share(*samples, seed=self.seed)}


class MembershipInference(MembershipMetric):
    """AUC and true positive rate of the strongest membership attack; see `membership_inference`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> train, holdout = rng.normal(size=(100, 4)), rng.normal(size=(100, 4))
        >>> metric = MembershipInference()
        >>> metric.update(train, real=True)
        >>> metric.update(holdout, real=True, holdout=True)
        >>> metric.update(train, real=False)
        >>> metric.compute()["mia_auc"]
        tensor(1., dtype=torch.float64)
    """

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return membership_inference(*samples, seed=self.seed)


def _hellinger(real: Array, synthetic: Array) -> dict[str, float]:
    each = hellinger(real, synthetic)
    joint = gaussian_hellinger(real, synthetic)
    return {"hellinger": float(each.mean()), "hellinger_max": float(each.max()), "hellinger_gaussian": joint}


def _dd_plot(real: Array, synthetic: Array, seed: int) -> dict[str, float]:
    return {
        "dd_plot_r2": dd_plot_r2(real, synthetic, "mahalanobis"),
        "dd_plot_r2_spatial": dd_plot_r2(real, synthetic, "spatial"),
        "dd_plot_r2_projection": dd_plot_r2(real, synthetic, "projection", seed=seed),
    }


def _two_sample(function: Any) -> Any:
    """Adapt a function of (real, synthetic, seed) to `MetricSpec.compute`: the reference is the test set."""

    def compute(_train: Any, test: Any, synthetic: Any, _schema: Schema, seed: int) -> dict[str, float]:
        result: dict[str, float] = function(test, synthetic, seed)
        return result

    return compute


def _spec(name: str, function: Any, better: bool | None, **options: Any) -> MetricSpec:
    return MetricSpec(name, _two_sample(function), better, inputs="features", **options)


def _ratios(real: Array, synthetic: Array, _seed: int) -> dict[str, float]:
    ratios = diversity_ratios(real, synthetic)
    return {name: ratios[name] for name in ("dcscore_ratio", "vendi_ratio")}


METRICS: tuple[MetricSpec, ...] = (
    _spec("hellinger", lambda r, s, _: _hellinger(r, s), False),
    _spec("pcd", lambda r, s, _: {"pcd": pairwise_correlation_difference(r, s)}, False),
    _spec("dd_plot", lambda r, s, seed: _dd_plot(r, s, seed), True),
    _spec("c2st", lambda r, s, seed: classifier_two_sample(r, s, seed=seed), False, cost="slow"),
    _spec("mmd", lambda r, s, seed: {"mmd2": mmd(r, s, permutations=0, seed=seed)["mmd2"]}, False),
    _spec("diversity", _ratios, None),
    _spec("prdc", lambda r, s, _: prdc(r, s), True, directions={"density": None}),
    _spec("alpha_precision", lambda r, s, _: alpha_precision(r, s), True, directions={"authenticity": None}),
)

__all__ = [
    "METRICS",
    "PRDC",
    "AlphaPrecision",
    "ClassifierTwoSample",
    "DCRShare",
    "DDPlot",
    "Diversity",
    "ExactCopies",
    "HellingerDistance",
    "MaximumMeanDiscrepancy",
    "MembershipInference",
    "MembershipMetric",
    "NearDuplicates",
    "NearestNeighbourRatio",
    "PairwiseCorrelationDifference",
    "TwoSampleMetric",
    "alpha_precision",
    "classifier_two_sample",
    "dcscore",
    "dd_plot_r2",
    "depth",
    "diversity_ratios",
    "features_of",
    "gaussian_hellinger",
    "hellinger",
    "mmd",
    "pairwise_correlation_difference",
    "prdc",
    "vendi",
]
