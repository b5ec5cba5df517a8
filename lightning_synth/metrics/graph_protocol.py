"""The protocol of graph generation papers as one table: every score with an interval, beside what it cannot beat.

Papers compare 40 graphs with 40 test graphs. There, a sampler of the true law has an average ratio of 1.6 (planar), 2.1
(trees) or 1.8 (block models), not 1: the biased estimator adds the noise of 40 graphs, while the denominator has 128.
The columns ``perfect`` and ``train`` show that floor at the count at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.metrics.context_fid import frechet_distance
from lightning_synth.metrics.distances import Array, nearest, seeded
from lightning_synth.metrics.graph_judges import (
    NEIGHBOURS,
    feature_scores,
    gin_kernels,
    polygraph_discrepancy,
    standardised_gin,
)
from lightning_synth.metrics.graph_statistics import (
    NAMES,
    Estimator,
    Kernel,
    average_ratio,
    graph_descriptors,
    graph_mmds,
    kernel_matrices,
    structure_features,
)
from lightning_synth.metrics.graph_validity import Rule, graph_memorisation, valid_unique_novel

if TYPE_CHECKING:
    import pandas as pd

#: Samples of the true law: ``perfect(n, seed=seed)`` returns n graphs; or graphs, as many as there are.
Sampler = Callable[..., Sequence[Any]] | Sequence[Any]
Ints = npt.NDArray[np.int64]
_HIGHER = frozenset({"valid", "unique", "novel", "vun", "gin_precision", "gin_recall", "gin_coverage"})
_NEITHER = frozenset({"gin_density", "memorisation_ratio"})
_SHARES = frozenset({"gin_precision", "gin_recall", "gin_coverage"})


@dataclass(frozen=True)
class _Setting:
    """What every sample of one report is compared with, and how."""

    train: Sequence[Any]
    test: Sequence[Any]
    rule: Rule | None
    kernel: Kernel
    estimator: Estimator
    schema: Mapping[str, Any] | None
    base: Mapping[str, float]
    seed: int


class _Sample:
    """Some graphs and all that their scores, and the spread of these, are made of."""

    def __init__(self, setting: _Setting, items: Sequence[Any], pgd_repeats: int = 1) -> None:
        self.setting, self.size = setting, len(items)
        self.described = graph_descriptors(items)
        reference = graph_descriptors(setting.test)
        self.grams = {f"mmd_{name}": kernel_matrices(name, reference, self.described, setting.kernel) for name in NAMES}
        self.gin = standardised_gin(setting.test, items, setting.schema)
        self.gin_grams = gin_kernels(*self.gin)
        options: dict[str, Any] = {"repeats": pgd_repeats, "seed": setting.seed, "schema": setting.schema}
        self.discrepancy = polygraph_discrepancy(setting.test, items, **options)
        self.vun = valid_unique_novel(setting.train, items, setting.rule)

    def scores(self) -> dict[str, float]:
        """Every score."""
        mmds = {name: gram.mmd2(self.setting.estimator) for name, gram in self.grams.items()}
        return {
            **mmds,
            **self._ratio(mmds),
            **feature_scores(*self.gin, self.gin_grams),
            "pgd": self.discrepancy.value,
            **self.vun.scores(),
            **graph_memorisation(self.setting.train, self.setting.test, self.described),
        }

    def _ratio(self, mmds: Mapping[str, float]) -> dict[str, float]:
        return {"ratio": average_ratio(mmds, self.setting.base)} if self.setting.estimator == "biased" else {}

    def resampled(self, draw: Ints) -> dict[str, Array]:
        """Distances of resampled graphs (draws,), given indices (draws, graphs)."""
        weights = _weights(draw)
        mmds = {name: gram.resampled(weights) for name, gram in self.grams.items()}
        each = [self._ratio(dict(zip(mmds, row, strict=True))) for row in zip(*mmds.values(), strict=True)]
        ratio = {name: np.array([row[name] for row in each]) for name in each[0]}
        gin = {
            "gin_mmd": np.max([gram.resampled(weights) for gram in self.gin_grams], 0),
            "gin_fid": np.array([frechet_distance(self.gin[0], self.gin[1][rows]) for rows in draw]),
        }
        return {**mmds, **ratio, **gin, **_resampled_prdc(*self.gin, weights), **self._resampled_memory(draw)}

    def _resampled_memory(self, draw: Ints) -> dict[str, Array]:
        fingerprints = (structure_features(items) for items in (self.described, self.setting.test, self.setting.train))
        own, other, train = fingerprints
        distance, usual = (nearest(query, train)[0].ravel() for query in (own, other))
        return {"memorisation_ratio": np.median(distance[draw], axis=1) / max(float(np.median(usual)), 1e-300)}


def graph_report(
    train: Sequence[Any],
    test: Sequence[Any],
    generated: Sequence[Any],
    *,
    kind: Rule | None = None,
    kernel: Kernel = "tv",
    estimator: Estimator = "biased",
    perfect: Sampler | None = None,
    floor_repeats: int = 5,
    resamples: int = 200,
    pgd_repeats: int = 5,
    level: float = 0.95,
    seed: int = 0,
    schema: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Score generated graphs as the papers do, with intervals, beside a perfect sampler and the training set.

    Rows: `mmd_degree` ... `mmd_wavelet`, `ratio` (their average over that of the training set, `average_ratio`),
    `gin_mmd` ... `gin_coverage` (`gin_scores`), `pgd` (`polygraph_discrepancy`), `valid`, `unique`, `novel`, `vun`
    (`valid_unique_novel`), `memorisation_ratio` and `below_first_percentile` (`graph_memorisation`).

    Intervals say how much the score would move with another sample of the same generator, the test graphs being fixed.
    For shares they are Wilson's; for distances those of a bootstrap over generated graphs, centred on the score because
    resampling alone raises a biased distance; for `pgd`, quantiles over its random halves.

    Args:
        train: Training graphs.
        test: Test graphs, compared with.
        generated: Generated graphs.
        kind: Rule of validity: ``"planar"``, ``"tree"``, ``"lobster"``, ``"sbm"``, ``"connected"``, or a function of
            one graph; None leaves `valid` and `vun` out.
        kernel: ``"tv"`` or ``"emd"``; see `graph_mmds`.
        estimator: ``"biased"`` or ``"unbiased"``; `ratio` is there for the biased one.
        perfect: What samples the true law: a function called as ``perfect(n, seed=seed)``, or graphs of which as many
            samples of the generated count are made as fit; None leaves the columns empty.
        floor_repeats: Samples for each floor.
        resamples: Of the bootstrap.
        pgd_repeats: Random halves for `pgd`.
        level: Of the intervals.
        seed: Of everything drawn.
        schema: Of the graphs, where they have types; see `random_gin`.

    Returns:
        Columns `value`, `low`, `high`, `perfect` and `perfect_sd` (mean and deviation over samples of the true law, as
        many graphs each as were generated), `train` and `train_sd` (samples of the training set, drawn without
        replacement, so that there are at most as many graphs), `better` ("higher", "lower", ""). ``attrs`` holds the
        counts, the seed, `train_vs_test` (the MMDs below the ratio) and `undecided` comparisons of isomorphism.

    Raises:
        DataError: If a sample is empty, or `perfect` holds fewer graphs than were generated.
        ConfigError: If a setting is impossible.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> parts = [tiny_graphs(12, seed=seed) for seed in range(3)]
        >>> table = graph_report(*parts, kind="connected", perfect=lambda n, seed: tiny_graphs(n, seed=seed + 9))
        >>> float(table.loc["valid", "value"]), table.attrs["num_generated"]
        (1.0, 12)
    """
    import pandas as pd

    if not 0 < level < 1 or min(floor_repeats, resamples, pgd_repeats) < 1:
        raise ConfigError(
            f"level={level} must be between 0 and 1; floor_repeats={floor_repeats}, resamples={resamples} and "
            f"pgd_repeats={pgd_repeats} at least 1"
        )
    if not (len(train) and len(test) and len(generated)):
        raise DataError(f"{len(train)} training, {len(test)} test, {len(generated)} generated graphs: all need some")
    base = graph_mmds(test, train, kernel=kernel)
    setting = _Setting(train, test, kind, kernel, estimator, schema, base, seed)
    sample, count = _Sample(setting, generated, pgd_repeats), len(generated)
    value = sample.scores()
    ends = _intervals(sample, value, resamples, level)
    columns = {"value": value, "low": {n: e[0] for n, e in ends.items()}, "high": {n: e[1] for n, e in ends.items()}}
    table = pd.DataFrame(columns, index=pd.Index(list(value), name="metric"))
    floors = {
        "perfect": _perfect_samples(perfect, count, floor_repeats, seed),
        "train": _train_samples(train, count, floor_repeats, seed),
    }
    for name, parts in floors.items():
        rows = pd.DataFrame([_Sample(setting, part).scores() for part in parts], columns=list(value), dtype=float)
        table[name], table[f"{name}_sd"] = rows.mean(), rows.std()
    table["better"] = ["higher" if n in _HIGHER else "" if n in _NEITHER else "lower" for n in table.index]
    table.attrs = {
        "num_train": len(train),
        "num_test": len(test),
        "num_generated": count,
        "num_train_floor": min(count, len(train)),
        "kernel": kernel,
        "estimator": estimator,
        "seed": seed,
        "train_vs_test": base,
        "undecided": sample.vun.undecided,
    }
    return table


def _perfect_samples(perfect: Sampler | None, count: int, repeats: int, seed: int) -> list[Sequence[Any]]:
    if perfect is None:
        return []
    items = perfect(count * repeats, seed=seed) if callable(perfect) else perfect
    if len(items) < count:
        raise DataError(f"perfect holds {len(items)} graphs; its floor needs as many as were generated, {count}")
    return [items[start : start + count] for start in range(0, min(len(items), count * repeats) - count + 1, count)]


def _train_samples(train: Sequence[Any], count: int, repeats: int, seed: int) -> list[Sequence[Any]]:
    """Parts of the training set; the whole of it, once, where more graphs were generated."""
    if count >= len(train):
        return [train]
    draws = [seeded(seed, "train floor", r).permutation(len(train))[:count] for r in range(repeats)]
    return [[train[int(i)] for i in rows] for rows in draws]


# ----------------------------------------------------------------------------------------------------- intervals


def _intervals(
    sample: _Sample, value: Mapping[str, float], resamples: int, level: float
) -> dict[str, tuple[float, float]]:
    """Lower and upper end of every row."""
    outer = [(1 - level) / 2, (1 + level) / 2]
    draw = seeded(sample.setting.seed, "bootstrap").integers(sample.size, size=(resamples, sample.size))
    ends = {}
    for name, values in sample.resampled(draw).items():
        low, high = value[name] + np.quantile(values - values.mean(), outer)
        lowest = -np.inf if name.startswith("mmd_") and sample.setting.estimator == "unbiased" else 0.0
        ends[name] = max(float(low), lowest), min(float(high), 1.0 if name in _SHARES else np.inf)
    low, high = np.quantile(sample.discrepancy.draws, outer)
    ends["pgd"] = float(low), float(high)
    shares = [*sample.vun.masks(), "below_first_percentile"]
    return ends | {name: wilson_interval(value[name], sample.size, level) for name in shares}


def wilson_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share; it does not shrink to a point at 0 and 1, as a bootstrap does.

    Args:
        share: Observed.
        count: Of how many.
        level: Of the interval.

    Returns:
        Lower and upper end.

    Example:
        >>> [round(end, 3) for end in wilson_interval(1.0, 40)]
        [0.912, 1.0]
    """
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _weights(draw: Ints) -> Array:
    """How often each graph is in each draw, from indices (draws, graphs)."""
    count = draw.shape[1]
    cells = np.bincount((draw + count * np.arange(len(draw))[:, None]).ravel(), minlength=draw.size)
    return cells.reshape(draw.shape).astype(np.float64)


def _resampled_prdc(r: Array, g: Array, weights: Array) -> dict[str, Array]:
    """Resampled precision, recall, density and coverage; the balls are those of the full samples.

    Recomputed balls would shrink to points around graphs that were drawn more than five times.
    """
    if min(len(r), len(g)) <= NEIGHBOURS:
        return {}
    radius = [nearest(a, a, NEIGHBOURS, exclude_self=True)[0][:, -1] for a in (r, g)]
    apart = cdist(r, g)
    in_real, in_fake = apart < radius[0][:, None], apart < radius[1]
    share, present = weights / weights.sum(1, keepdims=True), (weights > 0).astype(float)
    return {
        "gin_precision": share @ in_real.any(0),
        "gin_recall": (present @ in_fake.T > 0).mean(1),
        "gin_density": share @ in_real.sum(0) / NEIGHBOURS,
        "gin_coverage": (present @ in_real.T > 0).mean(1),
    }


__all__ = ["Sampler", "graph_report", "wilson_interval"]
