"""Graphs that can be drawn without crossings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_synth.constraints.base import Bools, Constraint, Edges, Tracker
from lightning_synth.constraints.components import UnionFind, count_parts
from lightning_synth.constraints.drawing import Drawing

_TESTS_PER_DRAWING = 12


class Planar(Constraint):
    """Can be drawn in the plane without crossings."""

    joins_freely = True

    def holds(self, adjacency: Bools) -> bool:
        """Test one graph."""
        from lightning_synth.metrics.planarity import is_planar

        return is_planar(len(adjacency), np.stack(np.triu(adjacency, 1).nonzero()))

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Test many graphs at once."""
        edges = adjacency.sum((1, 2)) // 2
        cycles = edges - adjacency.shape[1] + count_parts(adjacency)
        ok = np.asarray(edges <= np.maximum(3 * mask.sum(1) - 6, 2))
        for i in (ok & (cycles > 3)).nonzero()[0]:
            ok[i] = self.holds(adjacency[i])
        return ok

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph."""
        return _PlanarTracker(num_nodes)


class _PlanarTracker(Tracker):
    """Keeps a plane drawing, in which most edges find their place without a test of planarity.

    A drawing costs as much as several tests: a lost one is made again only after so many of them.
    """

    def __init__(self, num_nodes: int) -> None:
        self.union = UnionFind(num_nodes)
        self.near: list[list[int]] = [[] for _ in range(num_nodes)]
        self.drawing: Drawing | None = Drawing()
        self.tests = 0

    def allows(self, u: int, v: int) -> bool:
        root, other = self.union.find(u)[0], self.union.find(v)[0]
        nodes, edges = self.union.nodes[root], self.union.edges[root] + 1
        if root != other or _surely_planar(nodes, edges):
            return True
        if edges > 3 * nodes - 6:
            return False
        if self.drawing is None and self.tests >= _TESTS_PER_DRAWING:
            self.drawing, self.tests = Drawing(_edges(self.near)), 0
        if self.drawing is not None and self.drawing.place(u, v) is not None:
            return True
        self.tests += 1
        return self._stays_planar(u, v)

    def _stays_planar(self, u: int, v: int) -> bool:
        from lightning_synth.metrics.planarity import is_planar_list

        self.near[u].append(v)
        self.near[v].append(u)
        planar = is_planar_list(self.near)
        self.near[u].pop()
        self.near[v].pop()
        return planar

    def add(self, u: int, v: int) -> None:
        if self.drawing is not None:
            joins = self.union.find(u)[0] != self.union.find(v)[0]
            place = self.drawing.anywhere(u, v) if joins else self.drawing.place(u, v)
            if place is None:
                self.drawing = None
            else:
                self.drawing.add(u, v, place)
        self._note(u, v)

    def add_all(self, edges: Edges) -> None:
        for u, v in edges:
            self._note(u, v)
        self.drawing = None

    def _note(self, u: int, v: int) -> None:
        self.union.add(u, v)
        self.near[u].append(v)
        self.near[v].append(u)


def _surely_planar(nodes: int, edges: int) -> bool:
    """Whether a connected graph is too small or too close to a tree to contain K5 or K3,3 (Kuratowski 1930)."""
    return nodes <= 4 or edges <= 8 or edges - nodes < 3


def _edges(near: Sequence[Sequence[int]]) -> Edges:
    """Edges of a graph, given the neighbours of every node."""
    return [(u, v) for u, others in enumerate(near) for v in others if u < v]
