"""BTER: dense little communities of nodes of like degree, joined by a Chung-Lu graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.graphs import ragged_words
from lightning_synth.plugins.graph.classical import ClassicalGenerator, local, triangles
from lightning_synth.plugins.graph.edges import Groups, pair_of, per_row, segments, unit, weighted_pairs
from lightning_synth.requests import KeyedRNG


class BTER(ClassicalGenerator):
    """Block two-level Erdos-Renyi: the degrees of a training graph, and its clustering at each degree.

    Kolda, Pinar, Plantenga & Seshadhri 2014, arXiv 1302.6636. Nodes of degree 2 and more are sorted by degree and cut
    into affinity blocks, each of d + 1 nodes where d is the smallest degree in it. First, pairs within a block are
    joined with the cube root of the clustering at that degree; then the degree that each node still lacks is made up
    by a Chung-Lu graph of all nodes. With ``num_nodes`` given, nodes are drawn from the training graph with
    replacement.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.

    Example:
        >>> from lightning_synth.testing import tiny_graphs, tiny_schema
        >>> model = BTER().fit_on(tiny_graphs(16), tiny_schema("graph"))
        >>> len(model.sample(4).items())
        4
    """

    def learn(self, items: Sequence[Any], edges: Sequence[Tensor]) -> dict[str, Tensor]:
        """Keep the degree of every node, and the mean clustering of the nodes of that degree."""
        degrees, clusterings = [], []
        for item, part in zip(items, edges, strict=True):
            count, degree = triangles(part, int(item.num_nodes))
            closed = 2 * count / (degree * (degree - 1)).clamp(min=1)
            nodes = torch.bincount(degree)
            mean = torch.bincount(degree, weights=closed.double()) / nodes.clamp(min=1)
            degrees.append(degree)
            clusterings.append(mean[degree])
        return {"degree": torch.cat(degrees), "clustering": torch.cat(clusterings)}

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Draw both levels."""
        row, node = self.resized_nodes(source, num_nodes, rng.fork("nodes"))
        degree, clustering = self.tables["degree"][node], self.tables["clustering"][node]
        wanted = degree.double()
        # Sorted by graph and degree; nodes of degree 0 and 1 belong to no block.
        order = ((row << 32) + degree).argsort(stable=True)
        order = order[degree[order] > 1]
        block = affinity_blocks(row[order], degree[order])
        size = torch.bincount(block)
        # A block has the clustering of its smallest degree.
        p = clustering[order][size.cumsum(0) - size].pow(1 / 3)
        within = self._within(rng.fork("within"), row, order, size, p)
        wanted[order] = (wanted[order] - (p * (size - 1))[block]).clamp(min=0)
        rows = torch.arange(len(num_nodes), device=rng.device)
        rate = 1 / per_row(row, len(rng), wanted).clamp(min=1e-300)
        between = weighted_pairs(rng.fork("between"), Groups(rows, row, wanted), rows, rows, rate)
        return local(torch.cat([within, between], 1), num_nodes, row)

    @staticmethod
    def _within(rng: KeyedRNG, row: Tensor, order: Tensor, size: Tensor, p: Tensor) -> Tensor:
        """Join pairs within the blocks; there are about as many of them as edges."""
        block, pair = segments(size * (size - 1) // 2)
        low, high = pair_of(pair)
        start = (size.cumsum(0) - size)[block]
        ends = order[torch.stack([start + low, start + high])]
        u = unit(ragged_words(rng, per_row(row[ends[0]], len(rng))))
        return ends[:, u < p[block]]


def affinity_blocks(row: Tensor, degree: Tensor) -> Tensor:
    """Cut sorted nodes into blocks: one of degree d begins a block of d + 1 nodes, as long as the graph goes on.

    Where a block begins depends on all blocks before it: jumps from beginning to beginning are followed by doubling.

    Args:
        row: int64 (nodes,), the graph of each node, ascending.
        degree: int64 (nodes,), ascending within each graph.

    Returns:
        int64 (nodes,), the block of each node, numbered through the batch.

    Example:
        >>> affinity_blocks(torch.tensor([0, 0, 0, 0, 0, 1, 1]), torch.tensor([2, 2, 3, 3, 4, 2, 2])).tolist()
        [0, 0, 0, 1, 1, 2, 2]
    """
    nodes = len(row)
    place = torch.arange(nodes + 1, device=row.device)
    end = torch.searchsorted(row, row, right=True)
    jump = torch.cat([(place[:-1] + degree + 1).minimum(end), place[-1:]])
    begins = torch.ones(nodes + 1, dtype=torch.bool, device=row.device)
    begins[1:-1] = row[1:] != row[:-1]
    known = 0
    while known < int(begins.sum()):
        known = int(begins.sum())
        begins[jump[begins]] = True
        jump = jump[jump]
    return begins[:-1].cumsum(0) - 1


__all__ = ["BTER", "affinity_blocks"]
