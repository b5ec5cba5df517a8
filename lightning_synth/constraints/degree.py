"""A largest degree."""

from __future__ import annotations

import numpy as np

from lightning_synth.constraints.base import Bools, Tracker, Vectorised
from lightning_synth.errors import ConfigError


class MaxDegree(Vectorised):
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
