"""Connected, without cycles, or both."""

from __future__ import annotations

import numpy as np

from lightning_synth.constraints.base import All, Bools, Tracker, Vectorised
from lightning_synth.constraints.components import UnionTracker, count_parts


class Connected(Vectorised):
    """One connected part. Not closed under the removal of edges: `complete` sees to it."""

    connects, joins_freely = True, True

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Test many graphs at once."""
        return np.asarray(count_parts(adjacency) - (~mask).sum(1) <= 1)

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph."""
        return _Free()


class _Free(Tracker):
    def allows(self, u: int, v: int) -> bool:
        return True

    def add(self, u: int, v: int) -> None:
        pass


class Acyclic(Vectorised):
    """No cycles."""

    joins_freely = True

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Test many graphs at once."""
        return np.asarray(count_parts(adjacency) == adjacency.shape[1] - adjacency.sum((1, 2)) // 2)

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph."""
        return _AcyclicTracker(num_nodes)


class _AcyclicTracker(UnionTracker):
    def allows(self, u: int, v: int) -> bool:
        return self.union.find(u)[0] != self.union.find(v)[0]


class Tree(All):
    """Connected and without cycles."""

    def __init__(self) -> None:
        super().__init__((Acyclic(), Connected()))

    def __repr__(self) -> str:
        """Return the constructor call."""
        return "Tree()"
