"""Which graphs are the same up to the order of their nodes: Weisfeiler-Lehman buckets, then an exact search.

The search individualises a node and refines colours, as the canonical labelling programs do, so that trees, planar
graphs and random graphs are settled in a step or a few; what bounds it is a number of steps, not a time, so that the
answer does not depend on the machine. Integer node types ``x`` and edge types ``edge_attr`` count; floats do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array

from lightning_synth.metrics.graph_batch import GraphCache, graph_batch

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
#: Rounds of refinement of the hash: structure within this many hops goes into it.
_ROUNDS = 16
#: Refinements that one pair of graphs may take.
LIMIT = 2000


def _mix(values: Hashes) -> Hashes:
    """Scramble 64 bits (the finaliser of splitmix64), so that sums of scrambled colours hardly ever collide."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


@dataclass(frozen=True)
class _Coloured:
    """Graphs as blocks of one matrix of edge colours, with colours of the nodes."""

    edges: csr_array
    nodes: Hashes
    sizes: Ints

    def refined(self, colours: Hashes) -> Hashes:
        """Colour every node by its own colour and those of its neighbours, scrambled with the colours of the edges."""
        edges, seen = self.edges, _mix(colours[self.edges.indices] ^ self.edges.data)
        neighbours = csr_array((seen, edges.indices, edges.indptr), shape=edges.shape)
        return _mix(colours + neighbours @ np.ones(len(colours), np.uint64))

    def totals(self, values: Hashes) -> Hashes:
        """Sum over the nodes of each graph."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        member = (np.ones(len(values), np.uint64), np.arange(len(values)), starts)
        return np.asarray(csr_array(member, shape=(len(self.sizes), len(values))) @ values)


def _coloured(items: Sequence[Any]) -> _Coloured:
    """Edges and nodes of graphs with their colours."""
    batch = graph_batch(items)
    nodes = [_codes(item, "x", int(n)) for item, n in zip(items, batch.sizes, strict=True)]
    edges = batch.adjacency
    if any(_typed(item, "edge_attr") for item in items):
        ends = [np.asarray(item.edge_index).reshape(2, -1) for item in items]
        colours = [_codes(item, "edge_attr", e.shape[1]) for item, e in zip(items, ends, strict=True)]
        row, col = np.concatenate([e + start for e, start in zip(ends, batch.starts, strict=False)], 1)
        edges = coo_array((np.concatenate(colours), (row, col)), shape=edges.shape).tocsr()
    return _Coloured(csr_array(edges, dtype=np.uint64), np.concatenate(nodes), batch.sizes)


def _typed(item: Any, name: str) -> bool:
    field = getattr(item, name, None)
    return field is not None and np.asarray(field).dtype.kind in "iub"


def _codes(item: Any, name: str, rows: int) -> Hashes:
    """One colour for each row of an integer field; equal colours where the graph has none."""
    colours = np.ones(rows, np.uint64)
    if _typed(item, name):
        for column in np.asarray(getattr(item, name)).reshape(rows, -1).T.astype(np.int64):
            colours = _mix(colours + column.view(np.uint64))
    return colours


def _hash(items: Sequence[Any]) -> list[int]:
    graphs = _coloured(items)
    colours = graphs.nodes
    for _ in range(_ROUNDS):
        colours = graphs.refined(colours)
    return [int(value) for value in _mix(graphs.totals(_mix(colours)) + graphs.sizes.astype(np.uint64))]


_HASHES = GraphCache(_hash, size=100_000, fields=("x", "edge_attr"))


def wl_hashes(items: Sequence[Any]) -> Hashes:
    """Hash graphs so that isomorphic ones are equal (Weisfeiler and Lehman 1968, 16 rounds).

    Args:
        items: Graphs; integer node and edge types go into the hash.

    Returns:
        uint64 (graphs,). Graphs that differ may be equal too, as regular graphs of one degree are.

    Example:
        >>> from types import SimpleNamespace
        >>> path = SimpleNamespace(edge_index=np.array([[0, 1], [1, 2]]), num_nodes=3)
        >>> same = SimpleNamespace(edge_index=np.array([[2, 0], [0, 1]]), num_nodes=3)
        >>> first, second = wl_hashes([path, same])
        >>> bool(first == second)
        True
    """
    return np.array(_HASHES(items), dtype=np.uint64)


def is_isomorphic(first: Any, second: Any, limit: int = LIMIT) -> bool | None:
    """Say whether two graphs are the same up to the order of their nodes.

    Args:
        first: A graph.
        second: Another one.
        limit: Refinements that the search may take.

    Returns:
        True or False, both exact; None if the limit did not suffice (strongly regular graphs of hundreds of nodes).

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> a, b = tiny_graphs(2)
        >>> is_isomorphic(a, a), is_isomorphic(a, b)
        (True, False)
    """
    both = _coloured([first, second])
    n = int(both.sizes[0])
    if n != both.sizes[1]:
        return False
    # Depth first over pairs of nodes that are given a colour of their own.
    branches: list[Iterator[Hashes]] = [iter([both.nodes])]
    for _ in range(limit):
        colours = next(branches[-1], None)
        while colours is None:
            branches.pop()
            if not branches:
                return False
            colours = next(branches[-1], None)
        colours = _stable(both, colours)
        here, there = np.argsort(colours[:n], kind="stable"), n + np.argsort(colours[n:], kind="stable")
        values = colours[here]
        if not np.array_equal(values, colours[there]):
            continue
        _, start, count = np.unique(values, return_index=True, return_counts=True)
        if len(count) == n:
            if _equal(both, here, there):
                return True
            continue
        # The smallest class of nodes that look alike: its first node here can only go with one of those there.
        smallest = np.where(count > 1, count, n + 1).argmin()
        alike = slice(start[smallest], start[smallest] + count[smallest])
        branches.append(_individualised(colours, int(here[alike][0]), there[alike], len(branches)))
    return None


def _individualised(colours: Hashes, node: int, partners: Ints, depth: int) -> Iterator[Hashes]:
    """Colours in which the node, and one of its possible partners, stand out."""
    for partner in partners:
        marked = colours.copy()
        marked[[node, partner]] = _mix(marked[[node]] + np.uint64(depth))
        yield marked


def _stable(graphs: _Coloured, colours: Hashes) -> Hashes:
    """Refine colours until their number grows no more."""
    count = len(np.unique(colours))
    while True:
        refined = graphs.refined(colours)
        found = len(np.unique(refined))
        if found == count:
            return colours
        colours, count = refined, found


def _equal(both: _Coloured, here: Ints, there: Ints) -> bool:
    """Whether the nodes in these orders have the same colours and edges."""
    difference = both.edges[here][:, here] != both.edges[there][:, there]
    return bool(difference.nnz == 0 and np.array_equal(both.nodes[here], both.nodes[there]))


@dataclass(frozen=True)
class IsomorphismClasses:
    """Which graphs of a list are the same.

    Args:
        labels: int64 (graphs,), the position of the first graph of the same class.
        undecided: How many graphs could not be told from an earlier one within the limit; they count as equal to it.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> a, b = tiny_graphs(2)
        >>> isomorphism_classes([a, b, a]).labels.tolist()
        [0, 1, 0]
    """

    labels: Ints
    undecided: int = 0


def isomorphism_classes(items: Sequence[Any], limit: int = LIMIT) -> IsomorphismClasses:
    """Sort graphs into classes of isomorphic ones.

    Args:
        items: Graphs.
        limit: Refinements that one comparison may take; see `is_isomorphic`.

    Returns:
        The classes.
    """
    buckets: dict[int, list[int]] = defaultdict(list)
    copies: dict[bytes, int] = {}
    labels = np.arange(len(items))
    undecided = 0
    for i, key in enumerate(wl_hashes(items).tolist()):
        content = _HASHES.key(items[i])
        if content in copies:  # the same nodes in the same order need no search
            labels[i] = copies[content]
            continue
        for representative in buckets[key]:
            same = is_isomorphic(items[representative], items[i], limit)
            if same is not False:
                labels[i] = representative
                undecided += same is None
                break
        else:
            buckets[key].append(i)
        copies[content] = int(labels[i])
    return IsomorphismClasses(labels, undecided)


__all__ = ["LIMIT", "IsomorphismClasses", "is_isomorphic", "isomorphism_classes", "wl_hashes"]
