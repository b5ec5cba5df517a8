"""Watts-Strogatz graphs: a ring of neighbours, some of whose edges lead elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import ragged_words
from lightning_synth.plugins.graph.classical import ClassicalGenerator, check_share, triangles
from lightning_synth.plugins.graph.edges import below, per_row, repeats, segments, unit
from lightning_synth.requests import KeyedRNG

#: Rounds after which an edge that finds no free place goes back to the ring (in complete graphs there is none).
_ROUNDS = 32


class WattsStrogatz(ClassicalGenerator):
    """A ring where each node is joined to its k nearest nodes, each edge then moved with probability p.

    Watts & Strogatz 1998, doi:10.1038/30918. As in ``networkx.watts_strogatz_graph``, a moved edge keeps one end and
    gets a random other one, without loops and double edges, so that there are exactly n k / 2 edges.

    Fitted, k is the mean degree of a training graph, and p follows from its transitivity
    C = 3 (k - 2) / (4 (k - 1)) (1 - p)^3; for k = 2, where C is 0, from the variance of its degrees, k p (2 - p) / 2
    (Barrat & Weigt 2000, doi:10.1007/s100510050067). A row rounds k / 2 up or down at random.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        k: Neighbours on the ring, an even number; None estimates it.
        p: Probability that an edge moves; None estimates it.

    Example:
        >>> graph = WattsStrogatz(num_nodes=20, k=4, p=0.1).sample(1).items()[0]
        >>> graph.edge_index.shape[1] // 2
        40
    """

    sufficient = ("num_nodes", "k", "p")

    def __init__(
        self, *, num_nodes: int | None = None, k: int | None = None, p: float | None = None, **kwargs: Any
    ) -> None:
        check_share("p", p)
        if k is not None and (k < 2 or k % 2):
            raise ConfigError(f"k must be even and at least 2, got {k}")
        if k is not None and num_nodes is not None and num_nodes <= k:
            raise ConfigError(f"num_nodes must be greater than k = {k}, got {num_nodes}")
        super().__init__(num_nodes=num_nodes, k=k, p=p, **kwargs)

    def learn(self, items: Sequence[Any], edges: Sequence[Tensor]) -> dict[str, Tensor]:
        """Estimate p of every training graph."""
        smallest = min(int(item.num_nodes) for item in items)
        if self.hparams.k is not None and self.hparams.num_nodes is None and smallest <= self.hparams.k:
            raise ConfigError(f"k = {self.hparams.k} needs larger graphs: a training graph has {smallest} nodes")
        moved = [_moved_share(part, int(item.num_nodes)) for item, part in zip(items, edges, strict=True)]
        return {"p": torch.tensor(moved, dtype=torch.float64)}

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Draw which edges move, and where to."""
        if self.hparams.k is not None:
            reach = torch.full_like(num_nodes, self.hparams.k // 2)
        else:
            half = self.density(source, num_nodes) * (num_nodes - 1) / 2
            reach = (half + rng.fork("k").uniform(()).double()).floor().long().minimum((num_nodes - 1) // 2)
        given = self.hparams.p
        p = torch.full_like(source, given, dtype=torch.float64) if given is not None else self.tables["p"][source]
        row, rank = segments(num_nodes * reach)
        n, node = num_nodes[row], rank // reach[row]
        ring = (node + rank % reach[row] + 1) % n
        moved = unit(ragged_words(rng.fork("moved"), num_nodes * reach)) < p[row]
        return torch.stack([node, _moved_targets(num_nodes, row, node, ring, moved, rng.fork("targets"))]), row


def _moved_targets(num_nodes: Tensor, row: Tensor, node: Tensor, ring: Tensor, moved: Tensor, rng: KeyedRNG) -> Tensor:
    """Draw the other ends of the moved edges, again where a pair is already joined."""
    first, total = (num_nodes.cumsum(0) - num_nodes)[row], int(num_nodes.sum())
    target, rounds = ring, 0
    redraw = moved
    while bool(redraw.any()):
        if rounds < _ROUNDS:
            other = below(ragged_words(rng, per_row(row[redraw], len(rng))), num_nodes[row[redraw]] - 1)
            target = target.masked_scatter(redraw, other + (other >= node[redraw]).long())
        else:
            target, moved = torch.where(redraw, ring, target), moved & ~redraw
        rounds += 1
        pair = (first + torch.minimum(node, target)) * total + torch.maximum(node, target)
        # Of two equal edges the one that has not moved stays.
        redraw = repeats(pair, yields=moved)
    return target


def _moved_share(edges: Tensor, num_nodes: int) -> float:
    """Estimate p from the transitivity, or for single rings from the variance of the degrees."""
    count, degree = triangles(edges, num_nodes)
    k = 2 * max(round(edges.shape[1] / num_nodes), 1)
    ordered = 3 * (k - 2) / (4 * (k - 1))
    if not ordered:
        spread = float(degree.double().var(unbiased=False))
        return 1 - math.sqrt(max(1 - 2 * spread / k, 0.0))
    wedges = float((degree * (degree - 1)).sum())
    return 1 - math.pow(min(2 * float(count.sum()) / max(wedges, 1.0) / ordered, 1.0), 1 / 3)


__all__ = ["WattsStrogatz"]
