"""What a constraint is, the state of a graph that grows under it, and several constraints at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_synth.errors import ConfigError

Bools = npt.NDArray[np.bool_]
Edges = Sequence[tuple[int, int]]


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
        for u, v in edges_of(adjacency):
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
        return All((*self.parts, *other.parts))

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


class All(Constraint):
    """Several constraints at once."""

    def __init__(self, parts: Sequence[Constraint]) -> None:
        # The quick ones are asked first.
        self._parts = tuple(sorted(parts, key=lambda part: not isinstance(part, Vectorised)))
        # Of the whole, not of the class: what its parts say.
        self.connects = any(part.connects for part in self._parts)
        self.joins_freely = all(part.joins_freely for part in self._parts)

    @property
    def parts(self) -> tuple[Constraint, ...]:
        """The constraints that this one is made of."""
        return self._parts

    def holds(self, adjacency: Bools) -> bool:
        """Test one graph."""
        return all(part.holds(adjacency) for part in self._parts)

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph."""
        return _AllTracker([part.tracker(num_nodes) for part in self._parts])

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Test many graphs at once."""
        ok = np.ones(len(adjacency), dtype=bool)
        for part in self._parts:
            ok[ok] = part.all_hold(adjacency[ok], mask[ok])
        return ok

    def __repr__(self) -> str:
        """Return the parts."""
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


def check_constraint(constraint: Any, num_nodes: int) -> None:
    """Refuse what is no constraint, or one that cannot be met edge by edge from a graph without edges.

    Args:
        constraint: As given to ``sample``; None is none.
        num_nodes: Of a graph to try it on.

    Raises:
        ConfigError: If it is no `Constraint`, or refuses the graph without edges.
    """
    if constraint is None:
        return
    if not isinstance(constraint, Constraint):
        name = constraint.__name__ + "()" if isinstance(constraint, type) else "Planar() & MaxDegree(4)"
        raise ConfigError(f"constraint must be a Constraint, such as {name}, got {constraint!r:.60}")
    for part in constraint.parts:
        if not part.connects and not part.holds(np.zeros((num_nodes, num_nodes), dtype=bool)):
            raise ConfigError(
                f"{part!r} refuses a graph without edges: a constraint must survive the removal of edges, since graphs "
                "grow edge by edge"
            )


class Vectorised(Constraint):
    """A constraint that tests many graphs at once."""

    def holds(self, adjacency: Bools) -> bool:
        """Test one graph."""
        return bool(self.all_hold(adjacency[None], np.ones((1, len(adjacency)), dtype=bool))[0])


def edges_of(adjacency: Bools) -> list[tuple[int, int]]:
    """Pairs of joined nodes, the smaller number first."""
    return list(zip(*(index.tolist() for index in np.triu(adjacency, 1).nonzero()), strict=True))
