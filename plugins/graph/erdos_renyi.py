"""Erdos-Renyi graphs: every pair of nodes is joined with one probability."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.plugins.graph.classical import ClassicalGenerator, check_share
from lightning_synth.plugins.graph.edges import pair_of, successes
from lightning_synth.requests import KeyedRNG


class ErdosRenyi(ClassicalGenerator):
    """G(n, p): each of the n (n - 1) / 2 pairs is an edge with probability p, independently (Gilbert 1959).

    Gilbert 1959, doi:10.1214/aoms/1177706098; Erdos & Renyi 1959, doi:10.5486/PMD.1959.6.3-4.12. Sampled by skipping
    from edge to edge, so that a sparse graph costs what its edges cost. Fitted, p is the density of a training graph.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        p: Probability of an edge; None takes the density of a training graph.

    Example:
        >>> graph = ErdosRenyi(num_nodes=1000, p=0.01).sample(1).items()[0]
        >>> 4500 < graph.edge_index.shape[1] / 2 < 5500
        True
    """

    sufficient = ("num_nodes", "p")

    def __init__(self, *, num_nodes: int | None = None, p: float | None = None, **kwargs: Any) -> None:
        check_share("p", p)
        super().__init__(num_nodes=num_nodes, p=p, **kwargs)

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Draw every pair with probability p."""
        given = self.hparams.p
        p = self.density(source, num_nodes) if given is None else torch.full_like(source, given, dtype=torch.float64)
        rows = torch.arange(len(num_nodes), device=rng.device)
        row, pair = successes(rng, rows, num_nodes * (num_nodes - 1) // 2, p)
        return torch.stack(pair_of(pair)), row


__all__ = ["ErdosRenyi"]
