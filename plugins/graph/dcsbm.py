"""The degree-corrected stochastic block model: blocks decide who is joined, and degrees how often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.plugins.graph.blocks import BlockModel
from lightning_synth.plugins.graph.classical import local
from lightning_synth.plugins.graph.edges import Groups, per_row, weighted_pairs
from lightning_synth.requests import KeyedRNG


class DCSBM(BlockModel):
    """Nodes i of block a and j of block b are joined with probability min(1, w_i w_j m_ab / (k_a k_b)).

    Karrer & Newman 2011, doi:10.1103/PhysRevE.83.016107, with a Bernoulli draw instead of a Poisson number of edges:
    w are the degrees of a training graph, k_a their sum over block a, m_ab the edges between blocks a and b, counted
    twice within a block. Expected degrees are those of the training graph, up to loops and the minimum. With
    ``num_nodes`` given, nodes are drawn from the training graph with replacement, each with its block and its degree.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        num_blocks: Blocks of a training graph; None chooses the number.
        max_blocks: Largest number tried.

    Example:
        >>> from lightning_synth.testing import tiny_graphs, tiny_schema
        >>> model = DCSBM(num_nodes=500, max_blocks=3).fit_on(tiny_graphs(16), tiny_schema("graph"))
        >>> model.sample(1).items()[0].num_nodes
        500
    """

    degree_corrected = True

    def learn(self, items: Sequence[Any], edges: Sequence[Tensor]) -> dict[str, Tensor]:
        """Keep blocks and degrees, and the sum of degrees of every block."""
        tables = super().learn(items, edges)
        sizes = torch.tensor([int(item.num_nodes) for item in items])
        degree = torch.cat(
            [torch.bincount(part.reshape(-1), minlength=n) for part, n in zip(edges, sizes.tolist(), strict=True)]
        )
        first = tables["blocks"].cumsum(0) - tables["blocks"]
        block = tables["block"] + first.repeat_interleave(sizes)
        return {**tables, "degree": degree, "mass": per_row(block, int(tables["blocks"].sum()), degree)}

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Draw every pair with its probability."""
        row, node = self.resized_nodes(source, num_nodes, rng.fork("nodes"))
        blocks = self.tables["blocks"]
        cell_row, entry, first, second = self.cells(source)
        # From blocks numbered through the batch to blocks numbered through the tables.
        begin = blocks[source].cumsum(0) - blocks[source]
        shift = ((blocks.cumsum(0) - blocks)[source] - begin)[cell_row]
        mass = self.tables["mass"].double().clamp(min=1)
        ends = torch.where(first == second, 2.0, 1.0) * self.tables["between"][entry]
        rate = ends / (mass[first + shift] * mass[second + shift]) * self.thinning(source, num_nodes)[cell_row]
        group_row = torch.arange(len(source), device=rng.device).repeat_interleave(blocks[source])
        groups = Groups(group_row, self.tables["block"][node] + begin[row], self.tables["degree"][node].double())
        return local(weighted_pairs(rng.fork("pairs"), groups, first, second, rate), num_nodes, row)


__all__ = ["DCSBM"]
