"""What every sampled graph must satisfy: planar, a tree, of bounded degree, ...; composable with ``&``.

Two kinds of samplers use them. One that adds an edge at a time asks a `Tracker` before every edge; one that proposes
many edges at once (discrete diffusion and flow) calls `project` after each of its later steps and `complete` after the
last. The projector is that of ConStruct (Madeira et al. 2024, arXiv 2406.17341, section 3.3).

All constraints but `Connected` are closed under the removal of edges, which is what makes greedy insertion sound: an
edge that is refused once need never be asked for again.

Example: a constraint of one's own says what it refuses, and works with all others.

    >>> import torch
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

from lightning_synth.constraints.base import Constraint, Tracker
from lightning_synth.constraints.bipartite import Bipartite
from lightning_synth.constraints.connectivity import Acyclic, Connected, Tree
from lightning_synth.constraints.degree import MaxDegree
from lightning_synth.constraints.planar import Planar
from lightning_synth.constraints.projection import complete, project, satisfied

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
