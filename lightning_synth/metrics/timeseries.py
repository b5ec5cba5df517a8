"""Metrics of time-series windows: what `evaluate` runs, and `torchmetrics` classes of the main ones.

The functions are in `series_statistics` (train nothing), `judges` (discriminative and predictive scores),
`context_fid` and `series_utility` (labels, memorisation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.features import defect_lines
from lightning_synth.items import StackedItems
from lightning_synth.metrics.common import MembershipMetric, TwoSampleMetric
from lightning_synth.metrics.context_fid import context_fid, frechet_distance, train_encoder
from lightning_synth.metrics.judges import Judge, discriminative_score, predictive_score
from lightning_synth.metrics.series_statistics import (
    autocorrelation_difference,
    correlational_score,
    envelope_line_differences,
    marginal_difference,
    moment_differences,
    psd_distance,
)
from lightning_synth.metrics.series_utility import class_adherence, memorisation, train_on_synthetic
from lightning_synth.metrics.spec import MetricSpec, Schema
from lightning_synth.signal import Array, as_windows

# Small enough that `evaluate`, with its dozen calls of each metric, stays within minutes on one core.
_JUDGE_REPEATS, _JUDGE_STEPS, _FORECAST_STEPS = 2, 200, 300


def windows_of(values: Any, schema: Schema | None = None) -> Array:
    """Return windows of whatever a metric was given.

    Args:
        values: Array or tensor (n, channels, length); a batch with ``x``; `Samples`, a pool or items.
        schema: Of the items: steps that a mask hides are then set to the mean of training, and an empty sample has the
            right shape.

    Returns:
        float64 (n, channels, length), raw units.

    Raises:
        DataError: If a value is not finite.

    Example:
        >>> windows_of({"x": torch.zeros(2, 3, 24)}).shape
        (2, 3, 24)
    """
    if isinstance(values, (Tensor, np.ndarray)):
        x, mask = as_windows(values), None
    else:
        fields = _fields(values)
        if not fields:
            return np.zeros((0, schema["channels"], schema["length"])) if schema else np.zeros((0, 1, 1))
        x, mask = as_windows(fields["x"]), fields.get("mask")
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all((1, 2)))[0])
        raise DataError(f"window {row} holds NaN or infinite values; metrics need finite windows")
    if mask is not None:
        fill = np.asarray(schema["mean"])[:, None] if schema else 0.0
        x = np.where(np.asarray(mask)[:, None], x, fill)
    return x


def _fields(values: Any) -> Mapping[str, Tensor]:
    """Stacked fields of a batch, items, `Samples` or a pool."""
    if isinstance(values, dict):
        return values
    if isinstance(values, StackedItems):
        return values.tensors
    items = values.items() if callable(getattr(values, "items", None)) else values
    return StackedItems.from_items(items).tensors


# ---------------------------------------------------------------------------------------------- torchmetrics classes


class SeriesMetric(TwoSampleMetric):
    """Base of metrics that compare real and synthetic windows.

    Args:
        schema: Of the windows; needed for items with a mask.
        seed: Of everything random in it.
        **kwargs: Of `torchmetrics.Metric`.

    Shapes:
        update: (n, channels, length), a batch with ``x``, or items. compute: name to scalar float64 tensor.
    """

    higher_is_better: bool | None = False

    def _rows(self, values: Any) -> Tensor:
        return torch.as_tensor(windows_of(values, self.schema))

    def _spaces(self, *names: str) -> list[Array]:
        return [self._sample(name) for name in names]


class CorrelationalScore(SeriesMetric):
    """Differences of the correlations between channels; see `correlational_score`.

    Example:
        >>> metric = CorrelationalScore()
        >>> metric.update(torch.eye(2)[None], real=True), metric.update(torch.ones(1, 2, 2).cumsum(2), real=False)
        (None, None)
        >>> metric.compute()["correlation_difference"]
        tensor(2., dtype=torch.float64)
    """

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return correlational_score(*samples)


class MarginalDifference(SeriesMetric):
    """Mean absolute difference of histograms per step and channel; see `marginal_difference`."""

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return {"mdd": marginal_difference(samples[0], samples[1])}


class AutocorrelationDifference(SeriesMetric):
    """Difference of autocorrelations; see `autocorrelation_difference`."""

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return {"acf_difference": autocorrelation_difference(samples[0], samples[1])}


class PSDDistance(SeriesMetric):
    """Differences of the mean power spectra; see `psd_distance`.

    Example:
        >>> metric, wave = PSDDistance(), torch.sin(torch.arange(64) * 0.5)[None, None]
        >>> metric.update(wave, real=True), metric.update(10 * wave, real=False)
        (None, None)
        >>> metric.compute()["psd_db"].round(decimals=3)
        tensor(20., dtype=torch.float64)
    """

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return psd_distance(samples[0], samples[1], float((self.schema or {}).get("sampling_rate") or 1.0))


class DiscriminativeScore(SeriesMetric):
    """Held-out accuracy of a judge less one half, with its sign; see `discriminative_score`.

    Args:
        judge: ``"gru"``, ``"cnn"`` or ``"forest"``.
        repeats: Parts of the cross-validation, each with a judge of its own.
        iterations: Optimiser steps of the networks.
        schema: Of the windows.
        seed: Of judges and parts.
        **kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> metric = DiscriminativeScore("forest")
        >>> metric.update(torch.zeros(20, 1, 24), real=True), metric.update(torch.ones(20, 1, 24), real=False)
        (None, None)
        >>> metric.compute()["discriminative_forest"]
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better: bool | None = None

    def __init__(
        self,
        judge: Judge = "gru",
        repeats: int = 3,
        iterations: int = 300,
        *,
        schema: Schema | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(schema=schema, seed=seed, **kwargs)
        self.judge: Judge = judge
        self.repeats, self.iterations = repeats, iterations

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        options = {"repeats": self.repeats, "iterations": self.iterations, "seed": self.seed}
        return discriminative_score(samples[0], samples[1], self.judge, **options)


class PredictiveScore(SeriesMetric):
    """Error on real windows of a forecaster trained on synthetic ones; see `predictive_score`.

    Args:
        iterations: Optimiser steps.
        schema: Of the windows.
        seed: Of weights and batches.
        **kwargs: Of `torchmetrics.Metric`.
    """

    def __init__(self, iterations: int = 500, *, schema: Schema | None = None, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(schema=schema, seed=seed, **kwargs)
        self.iterations = iterations

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return {"predictive_score": predictive_score(*samples, iterations=self.iterations, seed=self.seed)}


class ContextFID(SeriesMetric):
    """Frechet distance of embeddings; the encoder is trained on the real windows given; see `context_fid`.

    Args:
        dim: Size of the embedding.
        iterations: Optimiser steps of the encoder.
        schema: Of the windows.
        seed: Of the encoder.
        **kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> metric, x = ContextFID(dim=4, iterations=2), torch.arange(96.0).reshape(4, 1, 24).sin()
        >>> metric.update(x, real=True), metric.update(x, real=False)
        (None, None)
        >>> metric.compute()["context_fid"]
        tensor(0., dtype=torch.float64)
    """

    def __init__(
        self, dim: int = 32, iterations: int = 200, *, schema: Schema | None = None, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(schema=schema, seed=seed, **kwargs)
        self.dim, self.iterations = dim, iterations

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        real, synthetic = samples
        options = {"dim": self.dim, "iterations": self.iterations, "seed": self.seed}
        return {"context_fid": context_fid(real, real, synthetic, **options)}


class EnvelopeLines(SeriesMetric):
    """Differences of the squared-envelope lines of bearing defects; see `envelope_line_differences`.

    Args:
        schema: Of the windows, with ``sampling_rate``, ``bearing`` and the condition ``rpm``.
        seed: Unused.
        **kwargs: Of `torchmetrics.Metric`.

    Raises:
        ConfigError: If the schema lacks one of them.
    """

    def __init__(self, *, schema: Schema, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(schema=schema, seed=seed, **kwargs)
        if not has_bearing(schema):
            raise ConfigError("EnvelopeLines needs sampling_rate, bearing and the condition rpm in the schema")

    def _rows(self, values: Any) -> Tensor:
        fields = {"x": torch.as_tensor(values)} if isinstance(values, (Tensor, np.ndarray)) else _fields(values)
        lines, classes = _lines(fields, self.schema or {})
        return torch.as_tensor(np.concatenate([lines, classes[:, None]], 1))

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        (a, b) = samples
        return envelope_line_differences(a[:, :-1], b[:, :-1], a[:, -1], b[:, -1])


class Memorisation(MembershipMetric):
    """Nearest-neighbour distances of synthetic items to train against those of holdout items; see `memorisation`.

    `update` takes ``real=True`` for training items, ``real=True, holdout=True`` for others.
    """

    higher_is_better: bool | None = None

    def _evaluate(self, *samples: Array) -> dict[str, float]:
        return memorisation(*samples)


# -------------------------------------------------------------------------------------------------- for `evaluate`


def has_bearing(schema: Mapping[str, Any]) -> bool:
    """Say whether a schema has all that bearing diagnosis needs.

    Args:
        schema: Of windows.

    Example:
        >>> has_bearing({"sampling_rate": 12000.0})
        False
    """
    return bool(schema.get("sampling_rate") and schema.get("bearing") and "rpm" in schema.get("conditions", {}))


def _lines(fields: Mapping[str, Tensor], schema: Mapping[str, Any]) -> tuple[Array, Array]:
    """Defect lines (n, 3) of the channel that shows them best, and classes (n,)."""
    x = as_windows(fields["x"])
    rpm = fields["rpm"].numpy() if "rpm" in fields else schema["conditions"]["rpm"]["mean"]
    found = defect_lines(x, schema["sampling_rate"], schema["bearing"], rpm).max(1)
    return found, fields["y"].double().numpy() if "y" in fields else np.zeros(len(x))


def _envelope(_train: Any, test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    if not has_bearing(schema):
        return {}
    (a, first), (b, second) = (_lines(_fields(items), schema) for items in (test, synthetic))
    return envelope_line_differences(a, b, first, second)


def _windows(
    function: Callable[[Array, Array, Schema, int], Mapping[str, float]],
) -> Callable[[Any, Any, Any, Schema, int], Mapping[str, float]]:
    """Adapt a function of real and synthetic windows; the reference is the test set."""

    def compute(_train: Any, test: Any, synthetic: Any, schema: Schema, seed: int) -> Mapping[str, float]:
        return function(windows_of(test, schema), windows_of(synthetic, schema), schema, seed)

    return compute


def _statistics(r: Array, s: Array, schema: Schema, _seed: int) -> dict[str, float]:
    return {
        **correlational_score(r, s),
        "mdd": marginal_difference(r, s),
        "acf_difference": autocorrelation_difference(r, s),
        **moment_differences(r, s),
        **psd_distance(r, s, float(schema.get("sampling_rate") or 1.0)),
    }


def _judge(judge: Judge, repeats: int) -> Callable[[Array, Array, Schema, int], Mapping[str, float]]:
    def function(r: Array, s: Array, _schema: Schema, seed: int) -> Mapping[str, float]:
        found = discriminative_score(r, s, judge, repeats=repeats, iterations=_JUDGE_STEPS, seed=seed)
        # The spread over judges is part of the spread over draws, which `evaluate` shows.
        return {name: value for name, value in found.items() if not name.endswith("_sd")}

    return function


def _predictive(r: Array, s: Array, _schema: Schema, seed: int) -> dict[str, float]:
    return {"predictive_score": predictive_score(r, s, iterations=_FORECAST_STEPS, seed=seed)}


def _context(train: Any, test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    # One encoder for the whole evaluation: its seed must not follow the draws.
    return {"context_fid": context_fid(*(windows_of(items, schema) for items in (train, test, synthetic)))}


def _adherence(train: Any, _test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    return class_adherence(train, synthetic, schema)


def _memorisation(train: Any, holdout: Any, synthetic: Any, _schema: Schema, _seed: int) -> dict[str, float]:
    return memorisation(train, holdout, synthetic)


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("series_statistics", _windows(_statistics), False),
    MetricSpec("envelope_lines", _envelope, False),
    MetricSpec("discriminative_forest", _windows(_judge("forest", 3)), None, cost="slow"),
    MetricSpec("discriminative_gru", _windows(_judge("gru", _JUDGE_REPEATS)), None, cost="slow"),
    MetricSpec("discriminative_cnn", _windows(_judge("cnn", _JUDGE_REPEATS)), None, cost="slow"),
    MetricSpec("predictive_score", _windows(_predictive), False, cost="slow"),
    MetricSpec("context_fid", _context, False, cost="slow"),
    MetricSpec("class_adherence", _adherence, True, cost="slow"),
    MetricSpec("tstr", train_on_synthetic, True, cost="slow", directions={"trtr": None}),
    MetricSpec(
        "memorisation",
        _memorisation,
        None,
        inputs="features",
        null="threeway",
        directions={"below_first_percentile": False},
    ),
)

__all__ = [
    "METRICS",
    "AutocorrelationDifference",
    "ContextFID",
    "CorrelationalScore",
    "DiscriminativeScore",
    "EnvelopeLines",
    "MarginalDifference",
    "Memorisation",
    "PSDDistance",
    "PredictiveScore",
    "SeriesMetric",
    "autocorrelation_difference",
    "class_adherence",
    "context_fid",
    "correlational_score",
    "discriminative_score",
    "envelope_line_differences",
    "frechet_distance",
    "has_bearing",
    "marginal_difference",
    "memorisation",
    "moment_differences",
    "predictive_score",
    "psd_distance",
    "train_encoder",
    "train_on_synthetic",
    "windows_of",
]
