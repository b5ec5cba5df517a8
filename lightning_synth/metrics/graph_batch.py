"""Reading graphs for metrics: many at once as one sparse matrix, and what was computed for each remembered.

Graphs are PyG ``Data`` (or anything with ``edge_index`` and ``num_nodes``), read as simple undirected graphs:
direction, repeated edges and loops are dropped.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array

from lightning_synth.errors import DataError
from lightning_synth.metrics.distances import Array

Ints = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class GraphBatch:
    """Graphs as the diagonal blocks of one adjacency matrix.

    Args:
        adjacency: (nodes, nodes) zeros and ones, symmetric, without diagonal.
        sizes: (graphs,) nodes of each graph.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> batch = graph_batch(tiny_graphs(3))
        >>> batch.adjacency.shape[0] == int(batch.sizes.sum())
        True
    """

    adjacency: csr_array
    sizes: Ints

    @property
    def owner(self) -> Ints:
        """(nodes,) which graph a node belongs to.

        Returns:
            Indices of graphs.
        """
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def starts(self) -> Ints:
        """(graphs + 1,) first node of each graph, and the number of all nodes.

        Returns:
            Offsets.
        """
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def total(self, values: npt.NDArray[Any]) -> Array:
        """Sum of the values of a graph's nodes.

        Args:
            values: (nodes,) or (nodes, d).

        Returns:
            (graphs,) or (graphs, d).
        """
        nodes = len(self.owner)
        member = csr_array((np.ones(nodes), np.arange(nodes), self.starts), shape=(len(self.sizes), nodes))
        return np.asarray(member @ values)

    def histogram(self, bins: Ints, count: int) -> Array:
        """Nodes of each graph in each bin.

        Args:
            bins: (nodes,) bin of every node.
            count: How many bins there are.

        Returns:
            (graphs, count).
        """
        cells = np.bincount(self.owner * count + bins, minlength=len(self.sizes) * count)
        return cells.reshape(len(self.sizes), count).astype(np.float64)


def graph_batch(items: Sequence[Any]) -> GraphBatch:
    """Read graphs into one block-diagonal adjacency matrix.

    Args:
        items: PyG ``Data``, or anything with ``edge_index`` (2, edges) and ``num_nodes``.

    Returns:
        The batch.

    Raises:
        DataError: If an item is no graph, or an edge names a node that its graph does not have.

    Example:
        >>> from types import SimpleNamespace
        >>> loop_and_edge = SimpleNamespace(edge_index=np.array([[0, 0], [0, 1]]), num_nodes=2)
        >>> graph_batch([loop_and_edge]).adjacency.toarray().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    _require_graphs(items)
    edges = [np.asarray(item.edge_index).reshape(2, -1) for item in items]
    n = np.array([int(item.num_nodes) for item in items], dtype=np.int64)
    counts = [e.shape[1] for e in edges]
    owner = np.repeat(np.arange(len(n)), counts)
    ends = np.concatenate([np.zeros((2, 0), np.int64), *edges], axis=1)
    outside = ((ends < 0) | (ends >= n[owner])).any(0)
    if outside.any():
        bad = int(owner[outside.argmax()])
        raise DataError(f"graph {bad}: edge_index names a node outside its {n[bad]} nodes")
    ends = (ends + (np.cumsum(n) - n)[owner])[:, ends[0] != ends[1]]
    row, col = np.concatenate([ends, ends[::-1]], axis=1)
    total = int(n.sum())
    adjacency = coo_array((np.ones(len(row)), (row, col)), shape=(total, total)).tocsr()
    adjacency.data[:] = 1.0
    return GraphBatch(csr_array(adjacency), n)


def _require_graphs(items: Sequence[Any]) -> None:
    for i, item in enumerate(items):
        if not hasattr(item, "edge_index"):
            raise DataError(f"item {i} is a {type(item).__name__} without edge_index; graph metrics need PyG Data")


class GraphCache(Generic[T]):
    """Remembers what was computed for a graph: `evaluate` deals the same graphs into many draws.

    Args:
        compute: From graphs to one result for each.
        size: How many results are kept.
        fields: Names of the fields of a graph that the result depends on, besides its nodes and edges.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> sizes = GraphCache(lambda graphs: [g.num_nodes for g in graphs])
        >>> sizes(tiny_graphs(2)) == sizes(tiny_graphs(2)), len(sizes.known)
        (True, 2)
    """

    def __init__(
        self, compute: Callable[[Sequence[Any]], Sequence[T]], size: int = 16384, fields: Sequence[str] = ()
    ) -> None:
        self.compute, self.size, self.fields = compute, size, tuple(fields)
        self.known: OrderedDict[bytes, T] = OrderedDict()

    def __call__(self, items: Sequence[Any]) -> list[T]:
        """Return the results of these graphs, computing those of new ones together.

        Args:
            items: Graphs.

        Returns:
            One result a graph.
        """
        _require_graphs(items)
        keys = [self.key(item) for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self.known}
        results = {key: self.known[key] for key in keys if key in self.known}
        results.update(zip(new, self._computed(list(new.values()), items), strict=True))
        for key in results:
            self.known[key] = results[key]
            self.known.move_to_end(key)
        while len(self.known) > self.size:
            self.known.popitem(last=False)
        return [results[key] for key in keys]

    def _computed(self, new: Sequence[Any], items: Sequence[Any]) -> Sequence[T]:
        try:
            return self.compute(new) if new else ()
        except DataError:
            graph_batch(items)  # names a bad graph by its place among all of them, not among the new ones
            raise

    def key(self, item: Any) -> bytes:
        """Return what identifies a graph.

        Args:
            item: A graph.

        Returns:
            A digest of its nodes, edges and fields, equal for equal content.
        """
        digest = hashlib.blake2b(np.asarray(item.edge_index).tobytes(), digest_size=16)
        digest.update(int(item.num_nodes).to_bytes(8, "little"))
        for name in self.fields:
            value = getattr(item, name, None)
            digest.update(b"-" if value is None else str(value.dtype).encode() + np.asarray(value).tobytes())
        return digest.digest()


__all__ = ["GraphBatch", "GraphCache", "graph_batch"]
