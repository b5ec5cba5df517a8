"""Connected parts: of one graph that grows, and of many finished graphs at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_synth.constraints.base import Bools, Tracker


class UnionFind:
    """Which nodes are connected, how many nodes and edges each part has, and the side of each node in a 2-colouring."""

    def __init__(self, num_nodes: int) -> None:
        self._parent, self._side = list(range(num_nodes)), [0] * num_nodes
        self.nodes, self.edges = [1] * num_nodes, [0] * num_nodes

    def find(self, u: int) -> tuple[int, int]:
        """Return the root of a node, and on which of its two sides the node is."""
        side = 0
        while self._parent[u] != u:
            side ^= self._side[u]
            u = self._parent[u]
        return u, side

    def add(self, u: int, v: int) -> None:
        """Add an edge."""
        (root, side), (other, other_side) = self.find(u), self.find(v)
        if root != other:
            # The smaller part hangs under the larger: depth stays logarithmic.
            if self.nodes[root] < self.nodes[other]:
                root, other = other, root
            self._parent[other], self._side[other] = root, 1 ^ side ^ other_side
            self.nodes[root] += self.nodes[other]
            self.edges[root] += self.edges[other]
        self.edges[root] += 1


class UnionTracker(Tracker):
    """For constraints that only ask which nodes are connected, and on which side."""

    def __init__(self, num_nodes: int) -> None:
        self.union = UnionFind(num_nodes)

    def add(self, u: int, v: int) -> None:
        """Add an edge that is allowed."""
        self.union.add(u, v)


def part_labels(adjacency: Bools) -> npt.NDArray[np.int64]:
    """Number of the connected part of every node of every graph, (graphs, n); parts of all graphs have own numbers."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graphs, n = adjacency.shape[:2]
    owner, row, col = adjacency.nonzero()
    union = coo_array((np.ones(len(row), dtype=bool), (owner * n + row, owner * n + col)), shape=(graphs * n,) * 2)
    labels = connected_components(union, directed=False)[1]
    return np.asarray(labels, dtype=np.int64).reshape(graphs, n)


def count_parts(adjacency: Bools) -> npt.NDArray[np.int64]:
    """Number of connected parts of every graph, (graphs,)."""
    labels = np.sort(part_labels(adjacency), axis=1)
    return np.asarray(1 + (labels[:, 1:] != labels[:, :-1]).sum(1))


def spanning(first: Bools, then: Bools, score: npt.NDArray[np.float64]) -> Bools:
    """Spanning forest that takes the edges ``first`` before those of ``then``, and these by score (Kruskal 1956).

    All graphs at once, as one graph of many parts. Arguments and result: (graphs, n, n).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    graphs, n = first.shape[:2]
    owner, row, col = np.triu(first | then, 1).nonzero()
    order = np.lexsort((-score[owner, row, col], ~first[owner, row, col]))
    owner, row, col = owner[order], row[order], col[order]
    rank = np.arange(1.0, len(order) + 1)
    tree = minimum_spanning_tree(coo_array((rank, (owner * n + row, owner * n + col)), shape=(graphs * n,) * 2).tocsr())
    chosen = tree.data.astype(np.int64) - 1
    forest = np.zeros_like(first)
    forest[owner[chosen], row[chosen], col[chosen]] = True
    return forest | forest.transpose(0, 2, 1)
