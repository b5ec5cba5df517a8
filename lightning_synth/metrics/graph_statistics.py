"""Distances between two samples of graphs that train nothing: degrees, clustering, orbits, spectrum, wavelets.

One pass over the graphs computes their five descriptors; the kernels of the literature and both estimators of the
squared maximum mean discrepancy (MMD) share it. Two kernels give numbers that must not be compared: `gaussian_tv` is
that of SPECTRE, DiGress and their successors (planar, tree, SBM, proteins, ego), `gaussian_emd` that of GraphRNN, GRAN
and GDSS (community-small, ego-small, ENZYMES, grid). Both report the biased estimator, whose value for a perfect
sampler falls with the number of graphs: at 40 graphs it is most of what papers print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist, pdist, squareform

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.metrics.distances import Array
from lightning_synth.metrics.graph_batch import GraphBatch, GraphCache, graph_batch
from lightning_synth.metrics.orbits import NUM_ORBITS, orbit_counts

Kernel = Literal["tv", "emd"]
Estimator = Literal["biased", "unbiased"]
Ints = npt.NDArray[np.int64]

NAMES = ("degree", "clustering", "orbit", "spectral", "wavelet")
_SIGMA = {"degree": 1.0, "clustering": 0.1, "orbit": 30.0, "spectral": 1.0, "wavelet": 1.0}
_CLUSTERING_BINS, _SPECTRAL_BINS, _WAVELET_BINS, _WAVELETS = 100, 200, 100, 12
_SPECTRAL_EDGES = np.linspace(-1e-5, 2, _SPECTRAL_BINS + 1)
#: Degrees that fingerprints tell apart; larger ones count as the last.
_FINGERPRINT_DEGREES = 128
#: Doubles of a stack of matrices whose eigenvalues are taken at once.
_STACK = 1 << 23


# --------------------------------------------------------------------------------------------------- descriptors


@dataclass(frozen=True)
class Descriptors:
    """The five descriptors of a sample of graphs, before they are normed.

    Args:
        degree: (graphs, largest degree + 1) nodes of each degree.
        clustering: (graphs, 100) nodes by local clustering coefficient, between 0 and 1.
        orbit: (graphs, 15) `orbit_counts`, mean over nodes.
        spectral: (graphs, 200) eigenvalues of the normalised Laplacian, between 0 and 2.
        wavelet: (graphs, 1200) nodes by energy of 12 spectral graph wavelets centred at them, 100 bins each.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> found = graph_descriptors(tiny_graphs(4))
        >>> found.spectral.shape, len(found.take([0, 2]))
        ((4, 200), 2)
    """

    degree: Array
    clustering: Array
    orbit: Array
    spectral: Array
    wavelet: Array

    def __len__(self) -> int:
        """Number of graphs."""
        return len(self.orbit)

    def take(self, index: Any) -> Descriptors:
        """Those of some of the graphs.

        Args:
            index: Positions, slice or mask.

        Returns:
            Their descriptors.
        """
        return Descriptors(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def graph_descriptors(items: Sequence[Any] | Descriptors) -> Descriptors:
    """Describe graphs; each is described once in a process, however often it is asked for.

    Args:
        items: Graphs; descriptors are returned as they are.

    Returns:
        Their descriptors.

    Raises:
        DataError: If an item is no graph.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> items = tiny_graphs(2)
        >>> int(graph_descriptors(items).degree[0].sum()) == items[0].num_nodes
        True
    """
    if isinstance(items, Descriptors):
        return items
    rows = _DESCRIBED(items)
    columns = list(zip(*rows, strict=True)) or [[] for _ in NAMES]
    widths = (0, _CLUSTERING_BINS, NUM_ORBITS, _SPECTRAL_BINS, _WAVELETS * _WAVELET_BINS)
    return Descriptors(*(_stacked(column, width) for column, width in zip(columns, widths, strict=True)))


def _stacked(rows: Sequence[npt.NDArray[Any]], width: int) -> Array:
    """Rows on top of one another, padded to the longest."""
    out = np.zeros((len(rows), max([width, *map(len, rows)])))
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out


def _describe(items: Sequence[Any]) -> list[tuple[npt.NDArray[Any], ...]]:
    """The five descriptors of each graph; counts in single precision, which holds them exactly."""
    batch = graph_batch(items)
    orbits = orbit_counts(batch.adjacency)
    degree, triangles = orbits[:, 0], orbits[:, 3]
    by_degree = batch.histogram(degree, int(degree.max(initial=0)) + 1)
    pairs = degree * (degree - 1)
    coefficient = np.divide(2 * triangles, pairs, out=np.zeros(len(pairs)), where=pairs > 0)
    place = _bin(coefficient, np.linspace(0, 1, _CLUSTERING_BINS + 1))
    by_clustering = batch.histogram(place, _CLUSTERING_BINS)
    mean_orbits = batch.total(orbits.astype(np.float64)) / np.maximum(batch.sizes, 1)[:, None]
    spectral, wavelet = _spectra(batch)
    counts = [a.astype(np.float32) for a in (by_degree, by_clustering, spectral, wavelet)]
    return [(counts[0][g], counts[1][g], mean_orbits[g], *(a[g] for a in counts[2:])) for g in range(len(batch.sizes))]


_DESCRIBED = GraphCache(_describe)


def _bin(values: Array, edges: Array) -> Ints:
    """Bin of every value, the last one closed, as `numpy.histogram` has it."""
    place = np.searchsorted(edges, values, side="right") - 1
    place[values == edges[-1]] = len(edges) - 2
    return np.asarray(place, dtype=np.int64)


def _spectra(batch: GraphBatch) -> tuple[Array, Array]:
    """Histograms of eigenvalues (graphs, 200) and of wavelet energies (graphs, 1200); equal sizes go together."""
    degree = np.asarray(batch.adjacency.sum(1))
    scale = np.divide(1.0, np.sqrt(degree), out=np.zeros(len(degree)), where=degree > 0)
    spectral = np.zeros((len(batch.sizes), _SPECTRAL_BINS))
    wavelet = np.zeros((len(batch.sizes), _WAVELETS * _WAVELET_BINS))
    for n in np.unique(batch.sizes[batch.sizes > 0]):
        graphs = np.flatnonzero(batch.sizes == n)
        for part in np.array_split(graphs, -(-len(graphs) * n * n // _STACK)):
            values, vectors = np.linalg.eigh(_laplacians(batch, scale, part, int(n)))
            # Rounding can take the 2 of bipartite graphs beyond the last bin.
            spectral[part], wavelet[part] = _spectral_histograms(np.clip(values, 0, 2), vectors)
    return spectral, wavelet


def _laplacians(batch: GraphBatch, scale: Array, graphs: Ints, n: int) -> Array:
    """Normalised Laplacians I - D^-1/2 A D^-1/2 (graphs, n, n) of graphs of one size; 0 at nodes without edges."""
    nodes = (batch.starts[graphs][:, None] + np.arange(n)).ravel()
    block = batch.adjacency[nodes].tocoo()
    row, col = block.coords
    out = np.zeros((len(graphs), n, n))
    # Blocks do not touch, so the column's place within its own graph is its offset from that graph's first node.
    out[row // n, row % n, col - batch.starts[graphs][row // n]] = -scale[nodes][row] * scale[col]
    out[:, np.arange(n), np.arange(n)] = (scale[nodes] > 0).reshape(-1, n)
    return out


def _spectral_histograms(values: Array, vectors: Array) -> tuple[Array, Array]:
    """Histograms of graphs of one size from their eigenvalues (graphs, n) and eigenvectors (graphs, n, n)."""
    graphs, n = values.shape
    offset = np.arange(graphs)[:, None] * _SPECTRAL_BINS
    cells = np.bincount((_bin(values, _SPECTRAL_EDGES) + offset).ravel(), minlength=graphs * _SPECTRAL_BINS)
    spectral = cells.reshape(graphs, _SPECTRAL_BINS).astype(np.float64)
    # The wavelet U g(L) U' at a node has energy sum_k U_ik^2 g(l_k)^2: no matrix of wavelets is needed.
    response = _wavelet_filters(values)  # (graphs, filters, n)
    energy = np.square(response) @ np.square(vectors).transpose(0, 2, 1)
    place = _bin(energy.ravel(), np.linspace(0, _wavelet_bound(), _WAVELET_BINS + 1))
    filters = np.arange(graphs * _WAVELETS).repeat(n)
    inside = place < _WAVELET_BINS
    cells = np.bincount((filters * _WAVELET_BINS + place)[inside], minlength=graphs * _WAVELETS * _WAVELET_BINS)
    return spectral, cells.reshape(graphs, _WAVELETS * _WAVELET_BINS).astype(np.float64)


def _wavelet_filters(x: Array) -> Array:
    """Responses (..., 12, n) of the low-pass and the 11 band-pass filters at eigenvalues (..., n).

    The spline wavelets of Hammond et al. (2011) for spectra on [0, 2], as in PyGSP's `Abspline`.
    """
    lowest = 2 / 20
    scales = np.geomspace(2 / lowest, 1 / 2, _WAVELETS - 1)
    low = _wavelet_peak() * np.exp(-((x / (0.6 * lowest)) ** 4))
    return np.concatenate([low[..., None, :], _band_pass(scales[:, None] * x[..., None, :])], -2)


def _band_pass(x: Array) -> Array:
    """x^2 up to 1, 4/x^2 from 2 on, and between them the cubic with the same values and slopes at both ends."""
    return np.where(x <= 1, x**2, np.where(x >= 2, 4 / np.maximum(x, 1.0) ** 2, ((x - 6) * x + 11) * x - 5))


@cache
def _wavelet_peak() -> float:
    # The cubic of `_band_pass` is largest where 3x^2 - 12x + 11 = 0.
    return float(_band_pass(np.array(2 - 1 / np.sqrt(3))))


@cache
def _wavelet_bound() -> float:
    """Upper end of the histograms: the largest response on a grid, as the reference has it."""
    return float(_wavelet_filters(np.arange(0, 2, 0.01)).max())


# ------------------------------------------------------------------------------------------------ kernels and MMD


def gaussian_tv(x: Array, y: Array, sigma: float = 1.0) -> Array:
    """exp(-d^2 / (2 sigma^2)) with d = half the sum of |x - y|: total variation, for rows that sum to 1.

    It is not positive definite, so that its MMD may be 0 for different laws; it is what papers report.

    Args:
        x: (n, d).
        y: (m, d); `x` itself is faster than a copy of it.
        sigma: Width.

    Returns:
        (n, m).

    Example:
        >>> gaussian_tv(np.eye(2), np.eye(2)).round(4).tolist()
        [[1.0, 0.6065], [0.6065, 1.0]]
    """
    return np.asarray(np.exp(np.square(_cityblock(x, y) / 2) / (-2 * sigma**2)))


def gaussian_emd(x: Array, y: Array, sigma: float = 1.0, distance_scaling: float = 1.0) -> Array:
    """exp(-d^2 / (2 sigma^2)) with the earth mover's distance of histograms.

    Moving one unit by one bin costs 1 / distance_scaling; in one dimension the cheapest way is sum |cumsum(x - y)|.

    Args:
        x: (n, d), rows that sum to 1.
        y: (m, d) alike.
        sigma: Width.
        distance_scaling: Bins per unit of distance.

    Returns:
        (n, m).

    Example:
        >>> gaussian_emd(np.eye(3)[:1], np.eye(3)[1:]).round(4).tolist()
        [[0.6065, 0.1353]]
    """
    a = np.cumsum(x, 1)
    b = a if y is x else np.cumsum(y, 1)
    return np.asarray(np.exp(np.square(_cityblock(a, b) / distance_scaling) / (-2 * sigma**2)))


def _cityblock(x: Array, y: Array) -> Array:
    """Sums of absolute differences (n, m); columns equal everywhere, most of a wavelet histogram, cost nothing."""
    first = x[:1] if len(x) else y[:1]
    used = (x != first).any(0) | (y != first).any(0)
    if y is x:
        return squareform(pdist(x[:, used], "cityblock")) if used.any() else np.zeros((len(x), len(x)))
    return cdist(x[:, used], y[:, used], "cityblock") if used.any() else np.zeros((len(x), len(y)))


def _gaussian(x: Array, y: Array, sigma: float) -> Array:
    return np.asarray(np.exp(cdist(x, y, "sqeuclidean") / (-2 * sigma**2)))


@dataclass(frozen=True)
class Grams:
    """Kernel values within and between two samples, from which both estimators and any resampling follow.

    Args:
        reference: (n, n) among reference graphs.
        generated: (m, m) among generated graphs.
        between: (n, m).

    Example:
        >>> Grams(np.eye(2), np.ones((2, 2)), np.zeros((2, 2))).mmd2("unbiased")
        1.0
    """

    reference: Array
    generated: Array
    between: Array

    def mmd2(self, estimator: Estimator = "biased") -> float:
        """Squared MMD.

        Args:
            estimator: ``"biased"``: all pairs, a graph with itself included, and the absolute value, as papers have
                it. ``"unbiased"``: 0 on average for one law, so it can be negative; NaN with fewer than two graphs.

        Returns:
            The estimate.

        Raises:
            ConfigError: If the estimator is unknown.
        """
        cross = 2 * self.between.mean()
        if estimator == "biased":
            return float(abs(self.reference.mean() + self.generated.mean() - cross))
        if estimator != "unbiased":
            raise ConfigError(f"estimator {estimator!r} is not one of biased, unbiased")
        return float(_off_diagonal_mean(self.reference) + _off_diagonal_mean(self.generated) - cross)

    def resampled(self, weights: Array) -> Array:
        """Biased squared MMD of resampled generated graphs.

        Args:
            weights: (draws, m) how often each graph was drawn.

        Returns:
            (draws,).
        """
        w = weights / weights.sum(1, keepdims=True)
        within = ((w @ self.generated) * w).sum(1)
        return np.asarray(np.abs(self.reference.mean() + within - 2 * w @ self.between.mean(0)))


def _off_diagonal_mean(gram: Array) -> float:
    n = len(gram)
    return float((gram.sum() - np.trace(gram)) / (n * (n - 1))) if n > 1 else float("nan")


def kernel_matrices(name: str, reference: Descriptors, generated: Descriptors, kernel: Kernel = "tv") -> Grams:
    """Kernel values of one descriptor.

    Args:
        name: One of `NAMES`.
        reference: Of n graphs.
        generated: Of m graphs.
        kernel: ``"tv"`` or ``"emd"``; see the module. With "emd", orbits get a plain Gaussian kernel, as published.

    Returns:
        The three matrices.

    Raises:
        ConfigError: If the kernel is unknown.
        DataError: If a sample is empty.
    """
    if kernel not in ("tv", "emd"):
        raise ConfigError(f"kernel {kernel!r} is not one of tv, emd")
    if not (len(reference) and len(generated)):
        raise DataError(f"MMD of {len(reference)} reference and {len(generated)} generated graphs: both need some")
    x, y = getattr(reference, name), getattr(generated, name)
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (x, y))
    if name != "orbit":  # all others are histograms
        x, y = (a / (a.sum(1, keepdims=True) + 1e-6) for a in (x, y))
    function = _kernel_function(name, kernel)
    return Grams(function(x, x), function(y, y), function(x, y))


def _kernel_function(name: str, kernel: Kernel) -> Callable[[Array, Array], Array]:
    if kernel == "tv":
        return partial(gaussian_tv, sigma=_SIGMA[name])
    if name == "orbit":
        return partial(_gaussian, sigma=_SIGMA[name])
    scaling = float(_CLUSTERING_BINS) if name == "clustering" else 1.0
    return partial(gaussian_emd, sigma=_SIGMA[name], distance_scaling=scaling)


def graph_mmds(
    reference: Sequence[Any] | Descriptors,
    generated: Sequence[Any] | Descriptors,
    *,
    kernel: Kernel = "tv",
    estimator: Estimator = "biased",
) -> dict[str, float]:
    """Squared MMDs of degrees, clustering coefficients, 4-node orbits, spectra and wavelets.

    Kernel widths are the published ones: 1 for degree, spectrum and wavelets, 0.1 for clustering, 30 for orbits.

    Args:
        reference: n graphs, or their descriptors.
        generated: m graphs, or their descriptors.
        kernel: ``"tv"`` (SPECTRE, DiGress, DeFoG) or ``"emd"`` (GraphRNN, GRAN, GDSS).
        estimator: ``"biased"`` (published) or ``"unbiased"``.

    Returns:
        `mmd_degree`, `mmd_clustering`, `mmd_orbit`, `mmd_spectral`, `mmd_wavelet`.

    Raises:
        DataError: If a sample is empty or an item is no graph.
        ConfigError: If kernel or estimator are unknown.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> graph_mmds(tiny_graphs(6), tiny_graphs(6))["mmd_degree"]
        0.0
    """
    r, g = graph_descriptors(reference), graph_descriptors(generated)
    return {f"mmd_{name}": kernel_matrices(name, r, g, kernel).mmd2(estimator) for name in NAMES}


def average_ratio(generated: Mapping[str, float], train: Mapping[str, float]) -> float:
    """Mean over the descriptors of the MMD of generated graphs over that of training graphs.

    As in DeFoG: the training values are rounded to four decimals first, and those that become 0 are left out.

    Args:
        generated: `graph_mmds` of test and generated graphs.
        train: `graph_mmds` of test and training graphs.

    Returns:
        The ratio: about 1 for the training set by construction, but not for a perfect sampler, which scores 1.6 at 40
        planar graphs. NaN where nothing is left.

    Example:
        >>> round(average_ratio({"mmd_degree": 0.0004, "mmd_orbit": 1.0}, {"mmd_degree": 0.0002, "mmd_orbit": 0.0}), 6)
        2.0
    """
    pairs = [(value, round(train[name], 4)) for name, value in generated.items()]
    ratios = [value / base for value, base in pairs if base > 0]
    return float(np.mean(ratios)) if ratios else float("nan")


def structure_features(items: Sequence[Any] | Descriptors) -> Array:
    """Fingerprints whose Euclidean distance tells how alike two graphs are: 0 for equal ones, up to 2.

    Square roots of the normed histograms of degrees, clustering, eigenvalues and wavelets, so that the squared distance
    is the sum of four squared Hellinger distances.

    Args:
        items: Graphs or descriptors.

    Returns:
        (graphs, d).

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> bool(np.allclose(np.square(structure_features(tiny_graphs(2))).sum(1), 2))
        True
    """
    found = graph_descriptors(items)
    parts = [np.sqrt(a / np.maximum(a.sum(1, keepdims=True), 1) / 2) for a in _histograms(found)]
    return np.concatenate(parts, 1)


def _histograms(found: Descriptors) -> list[Array]:
    # A fixed width for degrees: fingerprints of two samples must be comparable.
    degree = np.zeros((len(found), _FINGERPRINT_DEGREES))
    kept = min(_FINGERPRINT_DEGREES, found.degree.shape[1])
    degree[:, :kept] = found.degree[:, :kept]
    degree[:, -1] += found.degree[:, kept:].sum(1)
    return [degree, found.clustering, found.spectral, found.wavelet]


__all__ = [
    "NAMES",
    "Descriptors",
    "Estimator",
    "Grams",
    "Kernel",
    "average_ratio",
    "gaussian_emd",
    "gaussian_tv",
    "graph_descriptors",
    "graph_mmds",
    "kernel_matrices",
    "structure_features",
]
