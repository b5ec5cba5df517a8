"""Validity, uniqueness and novelty of graphs (V.U.N.), and whether they memorise the training set.

Read validity beside that of real graphs: the rule for block models rejects about a tenth of the graphs that its own
model makes, so a generator that scores 100 % there has left the real distribution, not reached it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import eigh
from scipy.sparse.csgraph import connected_components
from scipy.special import gammaln
from scipy.stats import chi2

from lightning_synth.errors import ConfigError
from lightning_synth.metrics.distances import Array
from lightning_synth.metrics.graph_batch import GraphBatch, GraphCache, graph_batch
from lightning_synth.metrics.graph_isomorphism import LIMIT, isomorphism_classes
from lightning_synth.metrics.graph_statistics import Descriptors, structure_features
from lightning_synth.metrics.planarity import is_planar
from lightning_synth.metrics.series_utility import memorisation

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
#: Name of a rule, or a function that says of one graph whether it is valid.
Rule = str | Callable[[Any], bool]
NAN = float("nan")


# --------------------------------------------------------------------------------------------------------- rules


def _connected(batch: GraphBatch) -> Mask:
    """Graphs of one component; a graph without nodes is not connected."""
    parts = connected_components(batch.adjacency, directed=False)[1]
    # Components do not cross graphs: counting the first node of each counts the components of its graph.
    first = np.unique(parts, return_index=True)[1]
    return np.asarray(np.bincount(batch.owner[first], minlength=len(batch.sizes)) == 1)


def _tree(batch: GraphBatch) -> Mask:
    """Connected graphs with one edge less than nodes."""
    return np.asarray(_connected(batch) & (batch.total(batch.adjacency.sum(1)) == 2 * (batch.sizes - 1)))


def _lobster(batch: GraphBatch) -> Mask:
    """Trees that become a path when their leaves are taken off twice."""
    alive = np.ones(len(batch.owner), bool)
    degree = np.asarray(batch.adjacency.sum(1))
    for _ in range(2):
        alive &= degree > 1
        degree = np.where(alive, batch.adjacency @ alive.astype(float), 0)
    return np.asarray(_tree(batch) & (batch.total(degree > 2) == 0))


def _planar_each(items: Sequence[Any]) -> list[bool]:
    return [is_planar(int(item.num_nodes), np.asarray(item.edge_index)) for item in items]


def _sbm_each(items: Sequence[Any]) -> list[bool]:
    return [is_block_model(graph_batch([item]).adjacency.toarray()) for item in items]


_PLANAR, _SBM = GraphCache(_planar_each, size=100_000), GraphCache(_sbm_each, size=100_000)

_RULES: dict[str, Callable[[Sequence[Any]], Any]] = {
    "connected": lambda items: _connected(graph_batch(items)),
    "planar": lambda items: _connected(graph_batch(items)) & np.array(_PLANAR(items), bool),
    "tree": lambda items: _tree(graph_batch(items)),
    "lobster": lambda items: _lobster(graph_batch(items)),
    "sbm": lambda items: np.array(_SBM(items), bool),
}
RULES = tuple(_RULES)


def valid_graphs(items: Sequence[Any], rule: Rule) -> Mask:
    """Say which graphs are valid.

    Args:
        items: Graphs.
        rule: ``"connected"``; ``"planar"`` (and connected); ``"tree"``; ``"lobster"``; ``"sbm"``
            (`is_block_model` with the parameters of SPECTRE); or a function from one graph to whether it is valid.

    Returns:
        bool (graphs,).

    Raises:
        ConfigError: If the rule is unknown.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> valid_graphs(tiny_graphs(2), "connected").tolist(), valid_graphs(tiny_graphs(2), lambda g: g.num_nodes > 99)
        ([True, True], array([False, False]))
    """
    if callable(rule):
        return np.array([bool(rule(item)) for item in items], dtype=bool)
    if rule not in _RULES:
        raise ConfigError(f"validity {rule!r} is not one of {', '.join(RULES)}, nor a function of one graph")
    return np.asarray(_RULES[rule](items)) if len(items) else np.zeros(0, bool)


# -------------------------------------------------------------------------------------------------- block models


def is_block_model(
    adjacency: npt.ArrayLike,
    *,
    p_intra: float = 0.3,
    p_inter: float = 0.005,
    blocks: tuple[int, int] = (2, 5),
    block_size: tuple[int, int] = (20, 40),
) -> bool:
    """Say whether a graph looks like one of a stochastic block model, by the rule of SPECTRE (Martinkus et al. 2022).

    Valid is a graph with a fitting number of blocks, all of fitting size, whose edge densities are near the model's:
    the mean over pairs of blocks of P[chi2_1 > (q - p)^2 / (q (1 - q))] is above 0.9, q being the density found. That
    is a cut on closeness, no test (its statistic does not grow with the blocks), and a pair of blocks without any edge,
    which the model makes with probability 0.995^400 = 13 % for two blocks of 20, all but fails it.

    SPECTRE finds the blocks with graph-tool; here `find_blocks` does. On 400 graphs drawn from the model the answer was
    that for the true blocks in 99 %, with 91 % valid; 90 % of SPECTRE's training and 90 % of its test graphs are, and
    60 % of the samples published with DiGress, as their paper says.

    Args:
        adjacency: (n, n) zeros and ones, symmetric.
        p_intra: Density within blocks.
        p_inter: Density between blocks.
        blocks: Fewest and most blocks.
        block_size: Smallest and largest block.

    Returns:
        Whether it does.

    Example:
        >>> is_block_model(np.zeros((50, 50)))
        False
    """
    a = np.asarray(adjacency, dtype=np.float64)
    if not blocks[0] * block_size[0] <= len(a) <= blocks[1] * block_size[1]:
        return False
    labels = find_blocks(a)
    size, edges = np.bincount(labels), _block_edges(a, labels)
    if not (blocks[0] <= len(size) <= blocks[1] and block_size[0] <= size.min() <= size.max() <= block_size[1]):
        return False
    density = edges / (np.outer(size, size) - np.diag(size))
    expected = np.where(np.eye(len(size), dtype=bool), p_intra, p_inter)
    closeness = np.square(density - expected) / (density * (1 - density) + 1e-6)
    return bool(chi2.sf(closeness, 1).mean() > 0.9)


def find_blocks(adjacency: npt.ArrayLike, most: int = 7) -> Ints:
    """Find the blocks of a graph, and how many there are, by minimum description length.

    Spectral clustering proposes 1 to `most` blocks; each proposal is refined by moving nodes to the block that makes
    their edges likeliest; the shortest description (Peixoto 2017, microcanonical, uniform priors) wins.

    Args:
        adjacency: (n, n) zeros and ones, symmetric, without diagonal.
        most: Blocks tried.

    Returns:
        int64 (n,) block of each node, 0 to the number of blocks less one.

    Example:
        >>> two = np.kron(np.eye(2), np.ones((20, 20)) - np.eye(20))
        >>> np.bincount(find_blocks(two)).tolist()
        [20, 20]
    """
    a = np.asarray(adjacency, dtype=np.float64)
    n = len(a)
    most = min(most, n)
    scale = 1 / np.sqrt(np.maximum(a.sum(1), 1))
    vectors = eigh(scale[:, None] * a * scale, subset_by_index=[n - most, n - 1])[1][:, ::-1]
    proposals = [np.zeros(n, np.int64)]
    proposals += [fcluster(linkage(vectors[:, :k], "ward"), k, "maxclust") - 1 for k in range(2, most + 1)]
    refined = [_refined(a, labels) for labels in proposals]
    return min(refined, key=lambda labels: _description_length(a, labels))


def _block_edges(a: Array, labels: Ints) -> Array:
    """Edges between blocks; twice their number within one."""
    member = np.eye(labels.max() + 1)[labels]
    return np.asarray(member.T @ a @ member)


def _refined(a: Array, labels: Ints, rounds: int = 30) -> Ints:
    """Move all nodes to their likeliest block at once until none moves; blocks left empty vanish."""
    for _ in range(rounds):
        labels = np.unique(labels, return_inverse=True)[1]
        member = np.eye(labels.max() + 1)[labels]
        size = member.sum(0)
        # Half an edge more keeps the logarithms finite.
        density = (_block_edges(a, labels) + 0.5) / (np.outer(size, size) - np.diag(size) + 1)
        density = np.clip(density, 1e-4, 1 - 1e-4)
        likelihood = (a @ member) @ np.log(density / (1 - density)) + (size - member) @ np.log1p(-density)
        moved = likelihood.argmax(1)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.int64)


def _description_length(a: Array, labels: Ints) -> float:
    """Nats that describe the graph through its blocks: its edges given their counts, the counts, and the partition."""
    size = np.bincount(labels).astype(float)
    n, k, edges = len(a), len(size), _block_edges(a, labels)
    pairs = np.outer(size, size) - np.diag(size)
    upper = np.triu_indices(k, 1)
    within = _log_choose(np.diag(pairs) / 2, np.diag(edges) / 2).sum() + _log_choose(pairs[upper], edges[upper]).sum()
    counts = k * (k + 1) / 2
    counting = _log_choose(counts + a.sum() / 2 - 1, a.sum() / 2)
    partition = _log_choose(n - 1.0, k - 1.0) + gammaln(n + 1) - gammaln(size + 1).sum() + np.log(n)
    return float(within + counting + partition)


def _log_choose(n: Any, k: Any) -> Any:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


# --------------------------------------------------------------------------------------------- V.U.N. and memory


@dataclass(frozen=True)
class ValidUniqueNovel:
    """What is known of each generated graph.

    Args:
        unique: bool (graphs,), not isomorphic to an earlier generated one.
        novel: bool (graphs,), not isomorphic to a training graph.
        valid: bool (graphs,), by the rule; None without one.
        undecided: Comparisons that hit their limit; those graphs count as copies.

    Example:
        >>> found = ValidUniqueNovel(np.array([True, True]), np.array([True, False]), np.array([True, True]))
        >>> found.scores()
        {'valid': 1.0, 'unique': 1.0, 'novel': 0.5, 'vun': 0.5}
    """

    unique: Mask
    novel: Mask
    valid: Mask | None = None
    undecided: int = 0

    def masks(self) -> Mapping[str, Mask]:
        """The shares' masks by name.

        Returns:
            `valid` and `vun` (with a rule only), `unique`, `novel`.
        """
        if self.valid is None:
            return {"unique": self.unique, "novel": self.novel}
        both = {"valid": self.valid, "unique": self.unique, "novel": self.novel}
        return {**both, "vun": self.valid & self.unique & self.novel}

    def scores(self) -> dict[str, float]:
        """Shares of all generated graphs.

        Returns:
            Name to share; NaN without graphs.
        """
        return {name: float(mask.mean()) if len(mask) else NAN for name, mask in self.masks().items()}


def valid_unique_novel(
    train: Sequence[Any], generated: Sequence[Any], rule: Rule | None = None, *, limit: int = LIMIT
) -> ValidUniqueNovel:
    """Find which generated graphs are valid, which repeat an earlier one, and which repeat a training graph.

    Args:
        train: Training graphs.
        generated: Generated graphs.
        rule: See `valid_graphs`; None leaves validity out.
        limit: Steps that telling two graphs apart may take; see `is_isomorphic`.

    Returns:
        The three answers for each graph; `scores()` has the shares.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> a, b = tiny_graphs(2)
        >>> valid_unique_novel([a], [a, b, b], "connected").scores()["vun"].__round__(3)
        0.333
    """
    valid = None if rule is None else valid_graphs(generated, rule)
    classes = isomorphism_classes([*train, *generated], limit)
    labels = classes.labels[len(train) :]
    unique = np.zeros(len(labels), bool)
    unique[np.unique(labels, return_index=True)[1]] = True
    return ValidUniqueNovel(unique, labels >= len(train), valid, classes.undecided)


def graph_memorisation(
    train: Sequence[Any] | Descriptors, holdout: Sequence[Any] | Descriptors, generated: Sequence[Any] | Descriptors
) -> dict[str, float]:
    """Are generated graphs nearer to training graphs than real graphs are that no generator saw?

    Novelty sees exact copies only; this sees a copy with an edge moved. Distances are those of `structure_features`.

    Args:
        train: Training graphs, or their descriptors.
        holdout: Real graphs not trained on.
        generated: Generated graphs.

    Returns:
        `memorisation_ratio`: median distance of a generated graph to its nearest training graph over that of a holdout
        graph, 1 without memorisation, 0 for copies. `below_first_percentile`: share of generated graphs nearer than
        99 % of the holdout graphs.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> train, holdout = tiny_graphs(20), tiny_graphs(20, seed=1)
        >>> graph_memorisation(train, holdout, train)["memorisation_ratio"]
        0.0
    """
    return memorisation(*(structure_features(items) for items in (train, holdout, generated)))


__all__ = [
    "RULES",
    "Rule",
    "ValidUniqueNovel",
    "find_blocks",
    "graph_memorisation",
    "is_block_model",
    "valid_graphs",
    "valid_unique_novel",
]
