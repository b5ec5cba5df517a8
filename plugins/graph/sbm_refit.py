"""The baseline that every graph table has: the blocks of a training graph, with its edges drawn again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_synth.plugins.graph.blocks import BlockModel
from lightning_synth.plugins.graph.sbm import join_blocks
from lightning_synth.requests import KeyedRNG


class SBMRefit(BlockModel):
    """The blocks of a training graph as they are, node by node; only the edges between them are drawn again.

    The same estimates as `sbm` (Holland, Laskey & Leinhardt 1983, doi:10.1016/0378-8733(83)90021-7), which would draw
    new blocks, of other sizes, and takes given parameters: here all that a training graph says about blocks stays.

    Args:
        num_blocks: Blocks of a training graph; None chooses the number.
        max_blocks: Largest number tried.

    Example:
        >>> from lightning_synth.testing import tiny_graphs, tiny_schema
        >>> model = SBMRefit(max_blocks=3).fit_on(tiny_graphs(16), tiny_schema("graph"))
        >>> len(model.sample(4).items())
        4
    """

    resizable = False

    def __init__(self, *, num_blocks: int | None = None, max_blocks: int = 16, **kwargs: Any) -> None:
        super().__init__(num_blocks=num_blocks, max_blocks=max_blocks, **kwargs)

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Draw the edges between the blocks of training graphs."""
        _, node = self.training_nodes(source, num_nodes)
        row, entry, first, second = self.cells(source)
        p = self.tables["between"][entry].double() / self.tables["pairs"][entry].clamp(min=1)
        blocks = self.tables["blocks"][source]
        block = self.tables["block"][node] + (blocks.cumsum(0) - blocks).repeat_interleave(num_nodes)
        return join_blocks(rng.fork("pairs"), num_nodes, block, (row, first, second), p)


__all__ = ["SBMRefit"]
