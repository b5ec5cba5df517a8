"""Two sides, with edges only between them."""

from __future__ import annotations

import numpy as np

from lightning_synth.constraints.base import Bools, Tracker, Vectorised
from lightning_synth.constraints.components import UnionTracker, count_parts


class Bipartite(Vectorised):
    """Two sides, with edges only between them."""

    joins_freely = True

    def all_hold(self, adjacency: Bools, mask: Bools) -> Bools:
        """Test many graphs at once."""
        # A part with an odd cycle has a double cover in one piece rather than two.
        size = adjacency.shape[1]
        cover = np.zeros((len(adjacency), 2 * size, 2 * size), dtype=bool)
        cover[:, :size, size:] = cover[:, size:, :size] = adjacency
        return np.asarray(count_parts(cover) == 2 * count_parts(adjacency))

    def tracker(self, num_nodes: int) -> Tracker:
        """Return the state of one growing graph."""
        return _BipartiteTracker(num_nodes)


class _BipartiteTracker(UnionTracker):
    def allows(self, u: int, v: int) -> bool:
        (root, side), (other, other_side) = self.union.find(u), self.union.find(v)
        return root != other or side != other_side
