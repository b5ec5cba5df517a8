"""The erased configuration model: half-edges are paired at random."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_synth.graphs import ragged_words
from lightning_synth.plugins.graph.classical import local
from lightning_synth.plugins.graph.degrees import DegreeModel
from lightning_synth.plugins.graph.edges import per_row, shuffled, unit
from lightning_synth.requests import KeyedRNG


class ConfigurationModel(DegreeModel):
    """A uniform random pairing of half-edges, of which loops and repeated edges are erased.

    Bollobas 1980, doi:10.1016/S0195-6698(80)80030-8; Britton, Deijfen & Martin-Lof 2006, doi:10.1007/s10955-006-9168-x
    (erased). Before erasing every node has exactly its degree; `dk_rewiring` keeps degrees exactly. A last half-edge
    without partner is left out. Degrees of a power law are rounded up or down at random.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        mean_degree: Mean of the power law; None takes the degrees of a training graph.
        exponent: Of the power law, above 2; None takes the degrees of a training graph.

    Example:
        >>> model = ConfigurationModel(num_nodes=500, mean_degree=4.0, exponent=3.0)
        >>> 850 < model.sample(1).items()[0].edge_index.shape[1] // 2 <= 1010
        True
    """

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Pair half-edges."""
        row, degree = self.degrees(source, num_nodes, rng.fork("nodes"))
        if self.hparams.exponent is not None:
            degree = degree + unit(ragged_words(rng.fork("rounding"), num_nodes))
        return local(paired(rng.fork("pairs"), row, degree.long()), num_nodes, row)


def paired(rng: KeyedRNG, row: Tensor, degree: Tensor) -> Tensor:
    """Pair the half-edges of every row at random.

    Args:
        rng: One seed a row.
        row: int64 (nodes,), the row of each node, ascending.
        degree: int64 (nodes,).

    Returns:
        int64 (2, pairs), numbers of nodes; loops and repeats included.

    Example:
        >>> ends = paired(KeyedRNG(torch.tensor([0])), torch.tensor([0, 0, 0]), torch.tensor([1, 3, 2]))
        >>> torch.bincount(ends.reshape(-1))
        tensor([1, 3, 2])
    """
    half = torch.arange(len(degree), device=degree.device).repeat_interleave(degree)
    count = per_row(row, len(rng), degree)
    order = shuffled(rng, count)
    # The last half-edge of an odd row has no partner.
    keep = torch.ones(len(half), dtype=torch.bool, device=degree.device)
    keep[count.cumsum(0)[count % 2 == 1] - 1] = False
    return half.index_select(0, order[keep]).reshape(-1, 2).T


__all__ = ["ConfigurationModel", "paired"]
