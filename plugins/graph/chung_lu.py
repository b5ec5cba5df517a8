"""Chung-Lu graphs: pairs are joined in proportion to the product of their expected degrees."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_synth.plugins.graph.classical import local
from lightning_synth.plugins.graph.degrees import DegreeModel
from lightning_synth.plugins.graph.edges import Groups, per_row, weighted_pairs
from lightning_synth.requests import KeyedRNG


class ChungLu(DegreeModel):
    """Nodes i and j are joined independently with probability min(1, w_i w_j / sum of w).

    Chung & Lu 2002, doi:10.1007/PL00012580. Expected degrees are the w, less the self-loops that are left out
    (w_i^2 / sum of w) and what the minimum cuts off. The same law as ``networkx.expected_degree_graph`` without loops,
    sampled in time linear in the edges.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        mean_degree: Mean of the power law; None takes the degrees of a training graph.
        exponent: Of the power law, above 2; None takes the degrees of a training graph.

    Example:
        >>> model = ChungLu(num_nodes=1000, mean_degree=6.0, exponent=3.0)
        >>> 2700 < model.sample(1).items()[0].edge_index.shape[1] / 2 < 3200
        True
    """

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Draw every pair with its probability."""
        row, weight = self.degrees(source, num_nodes, rng.fork("nodes"))
        rows = torch.arange(len(num_nodes), device=rng.device)
        rate = 1 / per_row(row, len(rng), weight).clamp(min=1e-300)
        edges = weighted_pairs(rng.fork("pairs"), Groups(rows, row, weight), rows, rows, rate)
        return local(edges, num_nodes, row)


__all__ = ["ChungLu"]
