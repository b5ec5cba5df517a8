"""The stochastic block model: nodes belong to blocks, and blocks decide who is joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import ragged_words
from lightning_synth.plugins.graph.blocks import BlockModel, cells_of, pairs_between
from lightning_synth.plugins.graph.classical import check_share
from lightning_synth.plugins.graph.edges import pair_of, successes, unit
from lightning_synth.requests import KeyedRNG


class SBM(BlockModel):
    """Every node belongs to a block at random; two nodes are joined with a probability that their blocks decide.

    Holland, Laskey & Leinhardt 1983, doi:10.1016/0378-8733(83)90021-7. Fitted, each training graph has block shares and
    probabilities of its own, and a sample draws its blocks anew: their sizes vary. `sbm_refit` keeps them. With
    ``num_nodes`` given, probabilities shrink so that mean degrees stay.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        shares: Probability of each block; None estimates them.
        probabilities: Of an edge between nodes of two blocks, a symmetric list of lists; None estimates them.
        num_blocks: Blocks of a training graph; None chooses the number.
        max_blocks: Largest number tried.

    Example:
        >>> model = SBM(num_nodes=60, shares=[0.5, 0.5], probabilities=[[1.0, 0.0], [0.0, 1.0]])
        >>> degree = torch.bincount(model.sample(1).items()[0].edge_index[0])
        >>> len(degree.unique()) <= 2
        True
    """

    sufficient = ("num_nodes", "shares", "probabilities")

    def __init__(
        self,
        *,
        num_nodes: int | None = None,
        shares: Sequence[float] | None = None,
        probabilities: Sequence[Sequence[float]] | None = None,
        num_blocks: int | None = None,
        max_blocks: int = 16,
        **kwargs: Any,
    ) -> None:
        _check(shares, probabilities)
        given = {
            "shares": None if shares is None else list(shares),
            "probabilities": None if probabilities is None else [list(line) for line in probabilities],
        }
        super().__init__(num_nodes=num_nodes, num_blocks=num_blocks, max_blocks=max_blocks, **given, **kwargs)

    def learn(self, items: Sequence[Any], edges: Sequence[Tensor]) -> dict[str, Tensor]:
        """Estimate blocks, unless they are given."""
        return super().learn(items, edges) if self.hparams.shares is None else {}

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Draw blocks, then edges between them."""
        if self.hparams.shares is not None:
            return self._draw_given(num_nodes, rng)
        row, node = self.training_nodes(source, num_nodes, rng.fork("nodes"))
        cell_row, entry, first, second = self.cells(source)
        p = self.tables["between"][entry].double() / self.tables["pairs"][entry].clamp(min=1)
        if self.hparams.num_nodes:
            p = p * self.thinning(source, num_nodes)[cell_row]
        block = self.tables["block"][node] + _first_block(self.tables["blocks"][source])[row]
        return join_blocks(rng.fork("pairs"), num_nodes, block, (cell_row, first, second), p.clamp(max=1))

    def _draw_given(self, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        bounds = torch.tensor(self.hparams.shares, dtype=torch.float64, device=rng.device).cumsum(0)
        u = unit(ragged_words(rng.fork("nodes"), num_nodes)) * bounds[-1]
        blocks = torch.full_like(num_nodes, len(bounds))
        start = _first_block(blocks)
        block = torch.searchsorted(bounds, u, right=True) + start.repeat_interleave(num_nodes)
        row, _, first, second = cells_of(blocks)
        p = torch.tensor(self.hparams.probabilities, dtype=torch.float64, device=rng.device)[first, second]
        return join_blocks(rng.fork("pairs"), num_nodes, block, (row, start[row] + first, start[row] + second), p)


def _first_block(blocks: Tensor) -> Tensor:
    """Number of the first block of every row, where blocks are numbered through the batch."""
    return blocks.cumsum(0) - blocks


def join_blocks(
    rng: KeyedRNG, num_nodes: Tensor, block: Tensor, cells: tuple[Tensor, Tensor, Tensor], p: Tensor
) -> tuple[Tensor, Tensor]:
    """Join the pairs of nodes of two blocks, or of one, with one probability.

    Args:
        rng: One seed a row.
        num_nodes: int64 (rows,).
        block: int64 (nodes,), the block of each node, numbered through the batch.
        cells: Row and two blocks of each pair of blocks, each int64 (cells,); rows ascending.
        p: float64 (cells,).

    Returns:
        Edges within their graph (2, edges), and the row of each.
    """
    row, first, second = cells
    size = torch.bincount(block, minlength=int(second.max()) + 1)
    cell, pair = successes(rng, row, pairs_between(size, first, second), p)
    low, high = pair_of(pair)
    other = size[second[cell]].clamp(min=1)
    within = first[cell] == second[cell]
    start, node = size.cumsum(0) - size, block.argsort(stable=True)
    one = start[first[cell]] + torch.where(within, low, pair // other)
    two = start[second[cell]] + torch.where(within, high, pair % other)
    owner = row[cell]
    return node[torch.stack([one, two])] - (num_nodes.cumsum(0) - num_nodes)[owner], owner


def _check(shares: Sequence[float] | None, probabilities: Sequence[Sequence[float]] | None) -> None:
    if (shares is None) != (probabilities is None):
        raise ConfigError("an SBM needs both shares and probabilities; give neither to estimate them")
    if shares is None or probabilities is None:
        return
    if not len(shares) or min(shares) < 0 or not sum(shares) > 0:
        raise ConfigError(f"shares must not be negative, and not all 0, got {list(shares)}")
    if len(probabilities) != len(shares) or any(len(line) != len(shares) for line in probabilities):
        raise ConfigError(f"probabilities must be a {len(shares)} x {len(shares)} table, as there are shares")
    for i, line in enumerate(probabilities):
        for j, value in enumerate(line):
            check_share(f"probabilities[{i}][{j}]", value)
            if value != probabilities[j][i]:
                raise ConfigError(f"probabilities must be symmetric, but [{i}][{j}] = {value} != {probabilities[j][i]}")


__all__ = ["SBM", "join_blocks"]
