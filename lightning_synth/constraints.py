"""What every sampled graph must satisfy: planar, a tree, of bounded degree, ...; composable with ``&``.

Two kinds of samplers use them. One that adds an edge at a time asks a `Tracker` before every edge; one that proposes
many edges at once (discrete diffusion and flow) calls `project` after each step and `complete` after the last, as the
projector of ConStruct does (Madeira et al. 2024, arXiv 2406.17341, section 3.3).

All constraints but `Connected` are closed under the removal of edges, which is what makes greedy insertion sound: an
edge that is refused once need never be asked for again.

Example: a constraint of one's own says what it refuses, and works with all others.

    >>> class NoTriangle(Constraint):
    ...     def allows(self, adjacency, u, v):
    ...         return not (adjacency[u] & adjacency[v]).any()
    >>> everything = ~torch.eye(6, dtype=torch.bool)[None]
    >>> nothing, score, mask = torch.zeros_like(everything), torch.zeros(1, 6, 6), torch.ones(1, 6, dtype=torch.bool)
    >>> graph = project(NoTriangle() & MaxDegree(2), nothing, everything, score, mask)
    >>> (NoTriangle() & MaxDegree(2)).holds(graph[0].numpy()), int(graph.sum()) // 2
    (True, 5)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError

Bools = npt.NDArray[np.bool_]
Edges = Sequence[tuple[int, int]]
_TESTS_PER_DRAWING = 4


class Tracker(ABC):
    """One growing graph: says which edges may still be added. It starts without edges."""

    @abstractmethod
    def allows(self, u: int, v: int) -> bool:
        """Whether this edge may be added now.

        Args:
            u: Node.
            v: Another node, not yet joined to ``u``.
        """

    @abstractmethod
    def add(self, u: int, v: int) -> None:
        """Add an edge that is allowed."""

    def add_all(self, edges: Edges) -> None:
        """Add edges that are allowed together.

        Args:
            edges: Pairs of nodes.
        """
        for u, v in edges:
            self.add(u, v)


class Constraint:
    """A property that sampled graphs must have.

    To write one, override `allows` (may this edge be added to this graph?) or `holds` (does this graph have the
    property?), whichever is simpler; the other one follows. The property must survive the removal of edges. A faster
    one overrides `tracker` as well.
    """

    #: A finished graph must be connected.
    connects: bool = False
    #: An edge between two parts of the graph that are not connected yet is always allowed.
    joins_freely: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.holds is Constraint.holds and cls.allows is Constraint.allows:
            raise TypeError(f"{cls.__name__} must override `allows` or `holds`")

    @property
    def parts(self) -> tuple[Constraint, ...]:
        """The constraints that this one is made of."""
        return (self,)

    def holds(self, adjacency: Bools) -> bool:
        """Whether a finished graph has the property.

        Args:
            adjacency: bool (n, n), symmetric, without self-loops.
        """
        grown = np.zeros_like(adjacency)
        for u, v in _edges(adjacency):
            if not self.allows(grown, u, v):
                return False
            grown[u, v] = grown[v, u] = True
        return True

    def allows(self, adjacency: Bools, u: int, v: int) -> bool:
        """Whether an edge may be added to a graph that has the property so far.

        Args:
            adjacency: bool (n, n); not to be changed.
            u: Node.
            v: Another node, not joined to ``u``.
        """
        grown = adjacency.copy()
        grown[u, v] = grown[v, u] = True
        return self.holds(grown)

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph, without edges.

        Args:
            num_nodes: Of the finished graph.
        """
        return _AdjacencyTracker(self, num_nodes)

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Whether each of many graphs has the property.

        Args:
            adjacency: bool (graphs, n, n).
            mask: bool (graphs, n), True for nodes.

        Returns:
            bool (graphs,).
        """
        return np.array([self.holds(a[np.ix_(m, m)]) for a, m in zip(adjacency, mask, strict=True)], dtype=bool)

    def __and__(self, other: Constraint) -> Constraint:
        """Both constraints at once."""
        return _All((*self.parts, *other.parts))

    def __repr__(self) -> str:
        """Return the constructor call."""
        return f"{type(self).__name__}({', '.join(map(str, vars(self).values()))})"


class _AdjacencyTracker(Tracker):
    """For constraints that look at the adjacency matrix."""

    def __init__(self, constraint: Constraint, num_nodes: int) -> None:
        self.constraint, self.adjacency = constraint, np.zeros((num_nodes, num_nodes), dtype=bool)

    def allows(self, u: int, v: int) -> bool:
        return self.constraint.allows(self.adjacency, u, v)

    def add(self, u: int, v: int) -> None:
        self.adjacency[u, v] = self.adjacency[v, u] = True


class _All(Constraint):
    """Several constraints at once."""

    def __init__(self, parts: Sequence[Constraint]) -> None:
        # The quick ones are asked first.
        self._parts = tuple(sorted(parts, key=lambda part: not isinstance(part, _Vectorised)))
        # Of the whole, not of the class: what its parts say.
        self.connects = any(part.connects for part in self._parts)
        self.joins_freely = all(part.joins_freely for part in self._parts)

    @property
    def parts(self) -> tuple[Constraint, ...]:
        return self._parts

    def holds(self, adjacency: Bools) -> bool:
        return all(part.holds(adjacency) for part in self._parts)

    def tracker(self, num_nodes: int) -> Tracker:
        return _AllTracker([part.tracker(num_nodes) for part in self._parts])

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        ok = np.ones(len(adjacency), dtype=bool)
        for part in self._parts:
            ok[ok] = part.all_hold(adjacency[ok], mask[ok])
        return ok

    def __repr__(self) -> str:
        return " & ".join(map(repr, self._parts))


class _AllTracker(Tracker):
    """The trackers of several constraints."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def allows(self, u: int, v: int) -> bool:
        return all(tracker.allows(u, v) for tracker in self.trackers)

    def add(self, u: int, v: int) -> None:
        for tracker in self.trackers:
            tracker.add(u, v)

    def add_all(self, edges: Edges) -> None:
        for tracker in self.trackers:
            tracker.add_all(edges)


class _Vectorised(Constraint):
    """A constraint that tests many graphs at once."""

    def holds(self, adjacency: Bools) -> bool:
        return bool(self.all_hold(adjacency[None], np.ones((1, len(adjacency)), dtype=bool))[0])


class _UnionFind:
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


class Connected(_Vectorised):
    """One connected part. Not closed under the removal of edges: `complete` sees to it."""

    connects, joins_freely = True, True

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Test many graphs at once."""
        return np.asarray(_count_parts(adjacency) - (~mask).sum(1) <= 1)

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph."""
        return _Free()


class _Free(Tracker):
    def allows(self, u: int, v: int) -> bool:
        return True

    def add(self, u: int, v: int) -> None:
        pass


class Acyclic(_Vectorised):
    """No cycles."""

    joins_freely = True

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Test many graphs at once."""
        return np.asarray(_count_parts(adjacency) == adjacency.shape[1] - adjacency.sum((1, 2)) // 2)

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph."""
        return _AcyclicTracker(num_nodes)


class _AcyclicTracker(Tracker):
    def __init__(self, num_nodes: int) -> None:
        self.union = _UnionFind(num_nodes)

    def allows(self, u: int, v: int) -> bool:
        return self.union.find(u)[0] != self.union.find(v)[0]

    def add(self, u: int, v: int) -> None:
        self.union.add(u, v)


class Tree(_All):
    """Connected and without cycles."""

    def __init__(self) -> None:
        super().__init__((Acyclic(), Connected()))

    def __repr__(self) -> str:
        """Return the constructor call."""
        return "Tree()"


class Bipartite(_Vectorised):
    """Two sides, with edges only between them."""

    joins_freely = True

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Test many graphs at once."""
        # A part with an odd cycle has a double cover in one piece rather than two.
        size = adjacency.shape[1]
        cover = np.zeros((len(adjacency), 2 * size, 2 * size), dtype=bool)
        cover[:, :size, size:] = cover[:, size:, :size] = adjacency
        return np.asarray(_count_parts(cover) == 2 * _count_parts(adjacency))

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph."""
        return _BipartiteTracker(num_nodes)


class _BipartiteTracker(_AcyclicTracker):
    def allows(self, u: int, v: int) -> bool:
        (root, side), (other, other_side) = self.union.find(u), self.union.find(v)
        return root != other or side != other_side


class MaxDegree(_Vectorised):
    """At most so many edges at every node.

    Args:
        degree: How many.
    """

    def __init__(self, degree: int) -> None:
        if degree < 0:
            raise ConfigError(f"a largest degree must not be negative, got {degree}")
        self.degree = degree

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Test many graphs at once."""
        return np.asarray(adjacency.sum(2).max(1, initial=0) <= self.degree)

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph."""
        return _DegreeTracker(self.degree, num_nodes)


class _DegreeTracker(Tracker):
    def __init__(self, degree: int, num_nodes: int) -> None:
        self.left = [degree] * num_nodes

    def allows(self, u: int, v: int) -> bool:
        return self.left[u] > 0 and self.left[v] > 0

    def add(self, u: int, v: int) -> None:
        self.left[u] -= 1
        self.left[v] -= 1


class Planar(Constraint):
    """Can be drawn in the plane without crossings."""

    joins_freely = True

    def holds(self, adjacency: Bools) -> bool:
        """Test one graph."""
        return _is_planar(len(adjacency), _edges(adjacency))

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Test many graphs at once."""
        edges = adjacency.sum((1, 2)) // 2
        cycles = edges - adjacency.shape[1] + _count_parts(adjacency)
        ok = np.asarray(edges <= np.maximum(3 * mask.sum(1) - 6, 2))
        for i in (ok & (cycles > 3)).nonzero()[0]:
            ok[i] = self.holds(adjacency[i])
        return ok

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph."""
        return _PlanarTracker(num_nodes)


class _PlanarTracker(Tracker):
    """Keeps a plane drawing, in which most edges find their place without a test of planarity.

    ``around[u]`` lists the neighbours of u clockwise. The face that an edge (a, b) bounds continues with (b, c), where
    c follows a around b; a new edge from b to another node of that face goes between a and c. A drawing costs as much
    as several tests: a lost one is made again only after so many of them.
    """

    def __init__(self, num_nodes: int) -> None:
        self.union = _UnionFind(num_nodes)
        self.edges: list[tuple[int, int]] = []
        self.around: dict[int, list[int]] | None = {}
        self.tests = 0

    def allows(self, u: int, v: int) -> bool:
        root, other = self.union.find(u)[0], self.union.find(v)[0]
        nodes, edges = self.union.nodes[root], self.union.edges[root] + 1
        if root != other or _surely_planar(nodes, edges):
            return True
        if edges > 3 * nodes - 6:
            return False
        if self.around is None and self.tests >= _TESTS_PER_DRAWING:
            self.around, self.tests = _drawing(self.edges), 0
        if self._place(u, v) is not None:
            return True
        self.tests += 1
        return _is_planar(len(self.union.nodes), [*self.edges, (u, v)])

    def add(self, u: int, v: int) -> None:
        place = self._place(u, v)
        self.union.add(u, v)
        self.edges.append((u, v))
        if place is None or self.around is None:
            self.around = None
            return
        for node, other, after in ((u, v, place[0]), (v, u, place[1])):
            ring = self.around.setdefault(node, [])
            ring.insert(ring.index(after) + 1 if ring else 0, other)

    def add_all(self, edges: Edges) -> None:
        for u, v in edges:
            self.union.add(u, v)
        self.edges += edges
        self.around = None

    def _place(self, u: int, v: int) -> tuple[int, int] | None:
        """Neighbours of u and v after which an edge between them crosses no other (-1: there are none), if known."""
        if self.around is None:
            return None
        if self.union.find(u)[0] != self.union.find(v)[0]:
            first, second = (next(iter(self.around.get(node, ())), -1) for node in (u, v))
            return first, second
        if (place := self._on_face(u, v)) is not None:
            return place
        for leaf, node in ((u, v), (v, u)):
            if len(self.around[leaf]) == 1 and self._moved(leaf, node):
                return self._on_face(u, v)
        return None

    def _moved(self, leaf: int, node: int) -> bool:
        """Move a node with a single edge to a face that another node bounds, if its neighbour bounds one."""
        assert self.around is not None
        (neighbour,) = self.around[leaf]
        place = self._on_face(neighbour, node)
        if place is None:
            return False
        ring = self.around[neighbour]
        ring.remove(leaf)
        ring.insert(ring.index(place[0]) + 1, leaf)
        return True

    def _on_face(self, u: int, v: int) -> tuple[int, int] | None:
        """A place on a face that both nodes bound."""
        assert self.around is not None
        for start in self.around[u]:
            before, node = start, u
            while True:
                ring = self.around[node]
                before, node = node, ring[(ring.index(before) + 1) % len(ring)]
                if node == v:
                    return start, before
                if node == u and before == start:
                    break
        return None


def _surely_planar(nodes: int, edges: int) -> bool:
    """Whether a connected graph is too small or too close to a tree to contain K5 or K3,3 (Kuratowski 1930)."""
    return nodes <= 4 or edges <= 8 or edges - nodes < 3


def _is_planar(num_nodes: int, edges: Edges) -> bool:
    from lightning_synth.metrics.planarity import is_planar

    return is_planar(num_nodes, np.array(edges, dtype=np.int64).reshape(-1, 2).T)


def _drawing(edges: Edges) -> dict[int, list[int]]:
    """Neighbours of each node of a planar graph in clockwise order."""
    from networkx import Graph, check_planarity

    drawing: dict[int, list[int]] = check_planarity(Graph(list(edges)))[1].get_data()
    return drawing


def _edges(adjacency: Bools) -> list[tuple[int, int]]:
    return list(zip(*(index.tolist() for index in np.triu(adjacency, 1).nonzero()), strict=True))


def _labels(adjacency: Bools) -> npt.NDArray[np.int64]:
    """Number of the connected part of every node of every graph, (graphs, n); parts of all graphs have own numbers."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graphs, n = adjacency.shape[:2]
    owner, row, col = adjacency.nonzero()
    union = coo_array((np.ones(len(row), dtype=bool), (owner * n + row, owner * n + col)), shape=(graphs * n,) * 2)
    labels = connected_components(union, directed=False)[1]
    return np.asarray(labels, dtype=np.int64).reshape(graphs, n)


def _count_parts(adjacency: Bools) -> npt.NDArray[np.int64]:
    """Number of connected parts of every graph, (graphs,)."""
    labels = np.sort(_labels(adjacency), axis=1)
    return np.asarray(1 + (labels[:, 1:] != labels[:, :-1]).sum(1))


def _spanning(first: Bools, then: Bools, score: npt.NDArray[np.float64]) -> Bools:
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


def project(constraint: Constraint, kept: Tensor, proposed: Tensor, score: Tensor, mask: Tensor) -> Tensor:
    """Insert as many proposed edges as are allowed, greedily, those with the highest score first.

    Args:
        constraint: What must hold; `Connected` is left to `complete`.
        kept: bool (graphs, n, n), symmetric: edges of graphs that satisfy the constraint, or are what removals left
            of such graphs.
        proposed: bool (graphs, n, n), symmetric: edges to add.
        score: float (graphs, n, n), symmetric; higher is inserted first.
        mask: bool (graphs, n), True for nodes.

    Returns:
        bool (graphs, n, n), symmetric; each graph depends on its own arguments alone.

    Example:
        >>> triangle = ~torch.eye(3, dtype=torch.bool)[None]
        >>> score = torch.tensor([[[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]])
        >>> mask = torch.ones(1, 3, dtype=torch.bool)
        >>> project(Acyclic(), torch.zeros_like(triangle), triangle, score, mask)[0].int().tolist()
        [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    """
    nodes = mask.cpu().numpy()
    pairs = _pairs(nodes)
    old = kept.cpu().numpy() & pairs
    new = proposed.cpu().numpy() & pairs & ~old
    value = score.double().cpu().numpy()
    wanted = _All([part for part in constraint.parts if not part.connects])
    result = old | new
    # Most proposals of a trained model are fine as they are.
    changed = np.flatnonzero(new.any((1, 2)))
    wrong = changed[~wanted.all_hold(result[changed], nodes[changed])]
    if all(isinstance(part, Acyclic) for part in wanted.parts):
        result[wrong] = _spanning(old[wrong], new[wrong], value[wrong])
    else:
        for i in wrong:
            result[i] = _inserted(wanted, old[i], new[i], value[i])
    return torch.from_numpy(result).to(kept.device)


def complete(constraint: Constraint, adjacency: Tensor, score: Tensor, mask: Tensor) -> Tensor:
    """Add the highest-scoring edges that the constraint needs: those that connect the graph, where it must be.

    Where other constraints leave no edge between two parts (all nodes have their largest degree already), each part
    gives up its lowest-scoring edge that does not hold it together, and the joining starts again.

    Args:
        constraint: What must hold.
        adjacency: bool (graphs, n, n), symmetric: what `project` returned.
        score: float (graphs, n, n), symmetric, of all pairs of nodes.
        mask: bool (graphs, n), True for nodes.

    Returns:
        bool (graphs, n, n), symmetric; every graph satisfies the constraint.

    Raises:
        ConfigError: If a graph cannot: for example `Connected() & MaxDegree(1)` of three nodes.

    Example:
        >>> edges = torch.zeros(1, 3, 3, dtype=torch.bool)
        >>> complete(Connected(), edges, torch.eye(3)[None], torch.tensor([[True, True, False]])).sum().item() // 2
        1
    """
    if not constraint.connects:
        return adjacency
    nodes, value, result = mask.cpu().numpy(), score.double().cpu().numpy(), adjacency.cpu().numpy().copy()
    apart = np.flatnonzero(~Connected().all_hold(result, nodes))
    if constraint.joins_freely:
        between = _pairs(nodes[apart]) & ~result[apart]
        result[apart] |= _spanning(result[apart], between, value[apart])
    else:
        for i in apart:
            result[i] = _joined(constraint, result[i], value[i], nodes[i], f"graph {i}")
    return torch.from_numpy(result).to(adjacency.device)


def satisfied(constraint: Constraint, adjacency: Tensor, mask: Tensor) -> Tensor:
    """Test finished graphs.

    Args:
        constraint: What must hold.
        adjacency: bool (graphs, n, n), symmetric.
        mask: bool (graphs, n), True for nodes.

    Returns:
        bool (graphs,).

    Example:
        >>> path = torch.tensor([[[0, 1, 0], [1, 0, 1], [0, 1, 0]]], dtype=torch.bool)
        >>> satisfied(Tree() & MaxDegree(1), path, torch.ones(1, 3, dtype=torch.bool))
        tensor([False])
    """
    nodes = mask.cpu().numpy()
    held = constraint.all_hold(adjacency.cpu().numpy() & _pairs(nodes), nodes)
    return torch.from_numpy(held).to(adjacency.device)


def _pairs(nodes: Bools) -> Bools:
    """Pairs of two different nodes, (graphs, n, n)."""
    return nodes[:, :, None] & nodes[:, None, :] & ~np.eye(nodes.shape[1], dtype=bool)


def _by_score(edges: Bools, score: npt.NDArray[np.float64]) -> Edges:
    """Edges of one graph, those with the highest score first."""
    pairs = np.stack(np.triu(edges, 1).nonzero(), axis=1)
    order = (-score[pairs[:, 0], pairs[:, 1]]).argsort(kind="stable")
    return [(int(u), int(v)) for u, v in pairs[order]]


def _inserted(constraint: Constraint, old: Bools, new: Bools, score: npt.NDArray[np.float64]) -> Bools:
    """One graph with the new edges that are allowed."""
    tracker, result = constraint.tracker(len(old)), old.copy()
    tracker.add_all(_edges(old))
    for u, v in _by_score(new, score):
        if tracker.allows(u, v):
            tracker.add(u, v)
            result[u, v] = result[v, u] = True
    return result


def _joined(constraint: Constraint, adjacency: Bools, score: npt.NDArray[np.float64], nodes: Bools, name: str) -> Bools:
    """One graph, connected by allowed edges; gives edges up where none is left."""
    pairs = _pairs(nodes[None])[0]
    while True:
        label = _labels(adjacency[None])[0]
        adjacency = _inserted(constraint & Acyclic(), adjacency, pairs & (label[:, None] != label), score)
        if Connected().all_hold(adjacency[None], nodes[None])[0]:
            return adjacency
        loose = _loose(adjacency, score)
        if not loose:
            parts = _count_parts(adjacency[None])[0] - (~nodes).sum()
            raise ConfigError(f"{constraint!r} cannot be met: {name} of {nodes.sum()} nodes stays in {parts} parts")
        for u, v in loose:
            adjacency[u, v] = adjacency[v, u] = False


def _loose(adjacency: Bools, score: npt.NDArray[np.float64]) -> Edges:
    """Of every part the lowest-scoring edge that is on a cycle, if it has one."""
    from networkx import Graph, bridges

    edges = _by_score(adjacency, score)
    holding = {frozenset(edge) for edge in bridges(Graph(edges))} if edges else set()
    label = _labels(adjacency[None])[0]
    return list({label[u]: (u, v) for u, v in edges if frozenset((u, v)) not in holding}.values())


__all__ = [
    "Acyclic",
    "Bipartite",
    "Connected",
    "Constraint",
    "MaxDegree",
    "Planar",
    "Tracker",
    "Tree",
    "complete",
    "project",
    "satisfied",
]
