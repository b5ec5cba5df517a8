"""Training items that are drawn anew in every epoch, each draw a pure function of (seed, epoch, item)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from lightning_synth.sequences.items import Index, SequenceItems


class EndlessItems(Sequence[dict[str, Tensor]]):
    """Sequences numbered on from one epoch to the next: item ``epoch * len + i`` is the draw of item i in that epoch.

    Loading processes and mixtures thus need no more than an index. Every item carries its number as ``draw``, the key
    of whatever is drawn for it later (`lightning_synth.sequences.operators`).

    Args:
        items: Training sequences.
        size: Items of an epoch; None: as many as there are sequences.

    Example:
        >>> items = EndlessItems(SequenceItems.from_lists([[1, 2], [3, 4, 5]]))
        >>> len(items), items[2 * 2 + 1]["item_id"].tolist(), int(items[5]["draw"])
        (2, [3, 4, 5], 5)
    """

    endless = True

    def __init__(self, items: SequenceItems, size: int | None = None) -> None:
        self.items = items
        self.size = len(items) if size is None else size

    def __len__(self) -> int:
        """Return the items of one epoch."""
        return self.size

    def take(self, draw: Tensor) -> SequenceItems:
        """Return some draws.

        Args:
            draw: int64 (n,), epoch * len + item.
        """
        return self.items[draw % self.size]

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | Tensor | np.ndarray) -> SequenceItems: ...

    def __getitem__(self, index: Index) -> dict[str, Tensor] | SequenceItems:
        """Return one draw for an integer, `SequenceItems` for several."""
        if isinstance(index, (int, np.integer)):
            return self.__getitems__([int(index)])[0]
        if isinstance(index, slice):
            index = torch.arange(self.size)[index]
        return self.__getitems__(index)

    def __getitems__(self, index: Sequence[int] | Tensor | np.ndarray) -> SequenceItems:
        """Fetch many draws at once (the batched protocol of torch's DataLoader)."""
        draw = torch.as_tensor(index, dtype=torch.int64)
        found = self.take(draw)
        found.rows["draw"] = draw
        return found

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Iterate over the draws of the first epoch."""
        return (self[i] for i in range(self.size))
