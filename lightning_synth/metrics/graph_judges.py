"""Judges of graphs: random GIN features with the usual distances on them, and classifiers that tell samples apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import cdist

from lightning_synth.errors import DataError
from lightning_synth.metrics.context_fid import frechet_distance
from lightning_synth.metrics.distances import Array, seeded
from lightning_synth.metrics.diversity import prdc
from lightning_synth.metrics.graph_batch import GraphBatch, GraphCache, graph_batch
from lightning_synth.metrics.graph_statistics import Grams, graph_descriptors

NAN = float("nan")
_WIDTH, _LAYERS, _SEED = 35, 2, 42
#: Kernel widths, in units of the root mean squared distance between the two samples.
_WIDTHS = (0.01, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
#: Of precision, recall, density and coverage.
NEIGHBOURS = 5
_FOLDS = 4


# ---------------------------------------------------------------------------------------------------- random GIN


def random_gin(items: Sequence[Any], schema: Mapping[str, Any] | None = None) -> Array:
    """Embed graphs with an untrained graph isomorphism network (Thompson et al. 2022).

    Two layers of width 35 with orthogonal weights, sums over neighbours and over nodes. A node starts as its degree in
    both directions, followed, where the schema has types, by its type and by how many of its edges are of each type.
    For graphs without types the result is that of polygraph-benchmark's `RandomGIN` of seed 42.

    Args:
        items: Graphs.
        schema: Of the graphs, for ``num_node_types`` and ``num_edge_types``; None ignores types.

    Returns:
        float64 (graphs, 70); a graph costs one pass in a process, however often it is asked for.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> random_gin(tiny_graphs(3)).shape
        (3, 70)
    """
    kinds = [int((schema or {}).get(name) or 0) for name in ("num_node_types", "num_edge_types")]
    rows = _gin_cache(*kinds)(items)
    return np.stack(rows) if rows else np.zeros((0, _LAYERS * _WIDTH))


@cache
def _gin_cache(node_types: int, edge_types: int) -> GraphCache[Array]:
    def compute(items: Sequence[Any]) -> list[Array]:
        batch = graph_batch(items)
        return list(_embed(batch, _node_inputs(items, batch, node_types, edge_types)))

    return GraphCache(compute, fields=("x", "edge_attr"))


def _node_inputs(items: Sequence[Any], batch: GraphBatch, node_types: int, edge_types: int) -> Array:
    """Degree in both directions, one-hot node type, edges of each type (nodes, 1 + types)."""
    columns = [2 * np.asarray(batch.adjacency.sum(1))[:, None]]
    if node_types > 1:
        kind = [_field(item, "x", int(n)) for item, n in zip(items, batch.sizes, strict=True)]
        columns.append(np.eye(node_types)[np.concatenate(kind)])
    if edge_types > 1:
        rows = [np.asarray(item.edge_index)[0] for item in items]
        kind = [_field(item, "edge_attr", len(row)) for item, row in zip(items, rows, strict=True)]
        ends = np.concatenate([row + start for row, start in zip(rows, batch.starts, strict=False)])
        count = np.bincount(ends * edge_types + np.concatenate(kind), minlength=len(batch.owner) * edge_types)
        columns.append(count.reshape(-1, edge_types))
    return np.concatenate(columns, 1)


def _field(item: Any, name: str, rows: int) -> npt.NDArray[np.int64]:
    """Types of nodes or edges; an item that has none counts as all of type 0."""
    value = getattr(item, name, None)
    return np.zeros(rows, np.int64) if value is None else np.asarray(value).reshape(-1).astype(np.int64)


def _embed(batch: GraphBatch, h: Array) -> Array:
    draw = torch.Generator().manual_seed(_SEED)
    # Batch normalisation that has seen nothing divides by sqrt(1 + 1e-5).
    norm = 1 / math.sqrt(1 + 1e-5)
    pooled = []
    for _ in range(_LAYERS):
        h = h + batch.adjacency @ h
        for _ in range(2):
            weight, bias = _linear(h.shape[1], draw)
            h = np.maximum((h @ weight.T + bias) * norm, 0)
        h = h * norm
        pooled.append(batch.total(h))
    return np.concatenate(pooled, 1)


def _linear(width: int, draw: torch.Generator) -> tuple[Array, Array]:
    """Orthogonal weight (35, width) and uniform bias (35,)."""
    weight = torch.nn.init.orthogonal_(torch.empty(_WIDTH, width), generator=draw)
    bias = torch.empty(_WIDTH).uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width), generator=draw)
    return weight.double().numpy(), bias.double().numpy()


def gin_scores(
    reference: Sequence[Any], generated: Sequence[Any], schema: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Distances between two samples of graphs in the space of `random_gin`, standardised by the reference.

    Args:
        reference: n graphs.
        generated: m graphs.
        schema: Of the graphs; see `random_gin`.

    Returns:
        `gin_mmd`: squared MMD with a Gaussian kernel, the largest over ten widths; `gin_fid`: Frechet distance;
        `gin_precision`, `gin_recall`, `gin_density`, `gin_coverage` of 5 neighbours (NaN with at most 5 graphs).

    Raises:
        DataError: If a sample is empty.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> round(gin_scores(tiny_graphs(12), tiny_graphs(12))["gin_mmd"], 9)
        0.0
    """
    r, g = standardised_gin(reference, generated, schema)
    return feature_scores(r, g, gin_kernels(r, g))


def feature_scores(reference: Array, generated: Array, kernels: Sequence[Grams]) -> dict[str, float]:
    """The scores of `gin_scores`, given what they are made of.

    Args:
        reference: (n, d) standardised features.
        generated: (m, d) alike.
        kernels: `gin_kernels` of both.

    Returns:
        As `gin_scores`.
    """
    shares = {f"gin_{name}": value for name, value in prdc(reference, generated, NEIGHBOURS).items()}
    mmd2, fid = max(kernel.mmd2() for kernel in kernels), frechet_distance(reference, generated)
    return {"gin_mmd": mmd2, "gin_fid": fid, **shares}


def standardised_gin(
    reference: Sequence[Any], generated: Sequence[Any], schema: Mapping[str, Any] | None = None
) -> tuple[Array, Array]:
    """`random_gin` of both samples with mean 0 and deviation 1 over the reference.

    Args:
        reference: n graphs.
        generated: m graphs.
        schema: See `random_gin`.

    Returns:
        (n, 70) and (m, 70).

    Raises:
        DataError: If a sample is empty.
    """
    if not (len(reference) and len(generated)):
        raise DataError(f"{len(reference)} reference and {len(generated)} generated graphs: both samples need some")
    r, g = random_gin(reference, schema), random_gin(generated, schema)
    spread = r.std(0)
    spread = np.where(spread > 1e-9 * np.maximum(1, np.abs(r.mean(0))), spread, 1.0)
    return (r - r.mean(0)) / spread, (g - r.mean(0)) / spread


def gin_kernels(reference: Array, generated: Array) -> list[Grams]:
    """Gaussian kernels of standardised features at the ten widths.

    Args:
        reference: (n, d).
        generated: (m, d).

    Returns:
        Kernel values for each width.
    """
    pairs = ((reference, reference), (generated, generated), (reference, generated))
    squared = [cdist(a, b, "sqeuclidean") for a, b in pairs]
    unit = max(float(squared[2].mean()), 1e-300)
    return [Grams(*(np.exp(d / (-2 * width**2 * unit)) for d in squared)) for width in _WIDTHS]


# ------------------------------------------------------------------------------------------ PolyGraph discrepancy


@dataclass(frozen=True)
class Discrepancy:
    """How well classifiers tell generated graphs from reference graphs.

    Args:
        value: Lower bound on the Jensen-Shannon distance, 0 (alike) to 1 (always told apart), of the best descriptor,
            mean over repeats.
        descriptor: The descriptor that was best most often.
        scores: The bound of each descriptor, mean over repeats.
        draws: (repeats,) the value of each repeat.
        size: Graphs of each sample that one repeat used; half of them train.

    Example:
        >>> Discrepancy(0.2, "orbit", {"orbit": 0.2}, np.array([0.1, 0.3]), 40).size
        40
    """

    value: float
    descriptor: str
    scores: Mapping[str, float]
    draws: Array
    size: int


def polygraph_discrepancy(
    reference: Sequence[Any],
    generated: Sequence[Any],
    *,
    classifiers: Sequence[Any] | Any | None = None,
    repeats: int = 1,
    seed: int = 0,
    schema: Mapping[str, Any] | None = None,
) -> Discrepancy:
    """PolyGraph discrepancy (Krimmel et al. 2025): what the best of several descriptors tells a classifier.

    Equally many reference and generated graphs are halved. On one half a classifier is fitted for each descriptor, and
    the descriptor is chosen by 4-fold cross-validation; on the other half, which nothing was chosen on, the log
    likelihood of the classifier bounds the Jensen-Shannon distance of the two laws from below, in base 2:
    sqrt((E log2 p(reference) + E log2 (1 - p(generated)) + 2) / 2), at least 0.

    The published numbers use TabPFN, whose weights may not be used commercially, and orbits of five nodes besides. Here
    the descriptors are degrees, clustering, 4-node orbits, spectrum, wavelets and `random_gin`, and the classifier is
    `KernelLogistic` at two strengths, of which cross-validation takes one. A bound by another classifier is another
    number: compare values of one setting only.

    Args:
        reference: Graphs.
        generated: Graphs; of the larger sample, as many as the smaller one has are drawn.
        classifiers: One or several scikit-learn classifiers with ``predict_proba`` (``TabPFNClassifier()`` for
            example); None for the above.
        repeats: Random halves (and draws).
        seed: Of draws and halves.
        schema: Of the graphs; see `random_gin`.

    Returns:
        The discrepancy; NaN with fewer than 8 graphs in a sample.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> items = tiny_graphs(60, num_classes=2)
        >>> polygraph_discrepancy(items[::2], items[1::2]).value > 0.3
        True
    """
    size = min(len(reference), len(generated))
    if size < 2 * _FOLDS:
        return Discrepancy(NAN, "", {}, np.full(repeats, NAN), size)
    tables = _descriptor_tables(reference, generated, schema)
    judges = _DEFAULT_JUDGES if classifiers is None else classifiers
    judges = list(judges) if isinstance(judges, (list, tuple)) else [judges]
    found = []
    for repeat in range(repeats):
        draw = seeded(seed, "pgd", repeat)
        rows = [draw.permutation(len(part))[:size] for part in (reference, generated)]
        found.append({name: _bound(r[rows[0]], g[rows[1]], judges) for name, (r, g) in tables.items()})
    best = [max(each, key=lambda name: each[name][0]) for each in found]
    draws = np.array([each[name][1] for each, name in zip(found, best, strict=True)])
    scores = {name: float(np.mean([each[name][1] for each in found])) for name in tables}
    return Discrepancy(float(draws.mean()), max(set(best), key=best.count), scores, draws, size)


def _descriptor_tables(
    reference: Sequence[Any], generated: Sequence[Any], schema: Mapping[str, Any] | None
) -> dict[str, tuple[Array, Array]]:
    """Name of the descriptor to its values for both samples, histograms normed, constant columns left out."""
    r, g = graph_descriptors(reference), graph_descriptors(generated)
    width = max(r.degree.shape[1], g.degree.shape[1])
    tables = {"degree": tuple(np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (r.degree, g.degree))}
    tables |= {name: (getattr(r, name), getattr(g, name)) for name in ("clustering", "spectral", "wavelet")}
    normed = {name: [a / np.maximum(a.sum(1, keepdims=True), 1) for a in pair] for name, pair in tables.items()}
    normed |= {"orbit": [r.orbit, g.orbit], "gin": [random_gin(items, schema) for items in (reference, generated)]}
    result = {}
    for name, (a, b) in normed.items():
        varies = np.ptp(np.concatenate([a, b]), axis=0) > 0
        result[name] = (a[:, varies], b[:, varies])
    return result


class KernelLogistic:
    """Logistic regression on features of a Gaussian kernel (Nystroem), for standardised columns.

    A linear judge misses a generator that narrows the distribution without moving it; this one does not.

    Args:
        strength: Inverse of the penalty on the weights, scikit-learn's ``C``.
        landmarks: Rows, taken evenly, whose kernel values are the features.

    Example:
        >>> x = np.linspace(-2, 2, 40)[:, None]
        >>> judge = KernelLogistic().fit(x, (np.abs(x[:, 0]) < 1).astype(int))
        >>> (judge.predict_proba(np.array([[0.0], [2.0]]))[:, 1] > 0.5).tolist()
        [True, False]
    """

    def __init__(self, strength: float = 100.0, landmarks: int = 100) -> None:
        self.strength, self.landmarks = strength, landmarks

    def fit(self, x: Array, y: npt.NDArray[np.int64]) -> KernelLogistic:
        """Fit.

        Args:
            x: (n, d).
            y: (n,) 0 or 1.

        Returns:
            Itself.
        """
        from sklearn.linear_model import LogisticRegression

        self._points = x[np.linspace(0, len(x) - 1, min(self.landmarks, len(x))).astype(int)]
        values, vectors = np.linalg.eigh(self._kernel(self._points))
        self._whiten = vectors / np.sqrt(np.maximum(values, 1e-10))
        self._model = LogisticRegression(C=self.strength, solver="newton-cholesky").fit(self._features(x), y)
        return self

    def _kernel(self, x: Array) -> Array:
        return np.asarray(np.exp(-cdist(x, self._points, "sqeuclidean") / x.shape[1]))

    def _features(self, x: Array) -> Array:
        return np.asarray(self._kernel(x) @ self._whiten)

    def predict_proba(self, x: Array) -> Array:
        """Probabilities of both classes.

        Args:
            x: (m, d).

        Returns:
            (m, 2).
        """
        return np.asarray(self._model.predict_proba(self._features(x)))


def _bound(reference: Array, generated: Array, judges: Sequence[Any]) -> tuple[float, float]:
    """Cross-validated bound on the training half, which chooses, and the bound on the other half, which counts."""
    from sklearn.model_selection import StratifiedKFold

    half = len(reference) // 2
    x = np.concatenate([reference[:half], generated[:half]])
    spread = x.std(0)
    kept = spread > 1e-12
    if not kept.any():
        return 0.0, 0.0
    centre, spread = x.mean(0)[kept], spread[kept]
    x, test_reference, test_generated = (
        (a[:, kept] - centre) / spread for a in (x, reference[half:], generated[half:])
    )
    y = np.repeat([1, 0], half)
    folds = list(StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(x, y))
    scores = []
    for judge in judges:
        parts = [(_fitted(judge, x[a], y[a]), x[b], y[b]) for a, b in folds]
        scores.append(np.mean([_jensen_shannon(m, v[t == 1], v[t == 0]) for m, v, t in parts]))
    best = int(np.argmax(scores))
    return float(scores[best]), _jensen_shannon(_fitted(judges[best], x, y), test_reference, test_generated)


def _fitted(judge: Any, x: Array, y: npt.NDArray[np.int64]) -> Any:
    from sklearn.base import clone

    return clone(judge, safe=False).fit(x, y)


def _jensen_shannon(judge: Any, reference: Array, generated: Array) -> float:
    real, fake = (judge.predict_proba(a)[:, 1] for a in (reference, generated))
    bits = np.log2(real + 1e-10).mean() + np.log2(1 - fake + 1e-10).mean() + 2
    return float(np.sqrt(np.clip(bits / 2, 0, 1)))


_DEFAULT_JUDGES = (KernelLogistic(10.0), KernelLogistic(100.0))

__all__ = [
    "NEIGHBOURS",
    "Discrepancy",
    "KernelLogistic",
    "feature_scores",
    "gin_kernels",
    "gin_scores",
    "polygraph_discrepancy",
    "random_gin",
    "standardised_gin",
]
