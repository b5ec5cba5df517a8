"""Sequences of unequal length in flat arrays: cheap to hold, to cut, and to batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import DataError

Index = int | slice | Sequence[int] | Tensor | np.ndarray
#: Fields that an item may lack, and what they then are; `target_weight` has a law of its own.
DEFAULTS: dict[str, Any] = {"user_id": -1, "timestamp": 0, "item_is_synthetic": False, "draw": -1}


class SequenceItems(Sequence[dict[str, Tensor]]):
    """Items ``{"item_id": (length,), ...}`` as windows of flat arrays.

    A window is a start and a stop; windows may overlap. Training, validation and test sequences of a data set are
    therefore three views of one array, and a million users cost a few tensors instead of a million dicts.

    Args:
        columns: Name to a tensor (interactions,), one value a position; ``item_id`` among them.
        start: int64 (n,), where each sequence begins.
        stop: int64 (n,), where it ends.
        rows: Name to a tensor (n,), one value a sequence, such as ``user_id``.
        last_only: Only the last position of an item counts as a target: ``target_weight`` is 0 elsewhere.

    Example:
        >>> flat = {"item_id": torch.tensor([1, 2, 3, 4, 5])}
        >>> items = SequenceItems(flat, torch.tensor([0, 3]), torch.tensor([3, 5]))
        >>> items[1]["item_id"], len(items[:1]), items.lengths.tolist()
        (tensor([4, 5]), 1, [3, 2])
        >>> items.padded(4)["item_id"].tolist()
        [[0, 1, 2, 3], [0, 0, 4, 5]]
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        start: Tensor,
        stop: Tensor,
        rows: Mapping[str, Tensor] | None = None,
        last_only: bool = False,
    ) -> None:
        self.columns, self.start, self.stop = dict(columns), start, stop
        self.rows = dict(rows or {})
        self.last_only = last_only

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.start)

    @property
    def lengths(self) -> Tensor:
        """Length of each sequence, int64 (n,)."""
        return self.stop - self.start

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | Tensor | np.ndarray) -> SequenceItems: ...

    def __getitem__(self, index: Index) -> dict[str, Tensor] | SequenceItems:
        """Return one item for an integer, `SequenceItems` for a slice, an index array or a bool mask."""
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"sequence {index} of {len(self)}")
            return self._item(int(index))
        if not isinstance(index, (slice, Tensor)):
            index = torch.as_tensor(np.asarray(index))
            index = index.long() if index.numel() == 0 else index
        rows = {name: value[index] for name, value in self.rows.items()}
        return SequenceItems(self.columns, self.start[index], self.stop[index], rows, self.last_only)

    def _item(self, index: int) -> dict[str, Tensor]:
        window = slice(int(self.start[index]), int(self.stop[index]))
        item = {name: value[window] for name, value in self.columns.items()}
        if self.last_only:
            own = item.get("target_weight", torch.ones(len(item["item_id"])))
            item["target_weight"] = torch.cat([torch.zeros(len(own) - 1), own[-1:].float()])
        return item | {name: value[index] for name, value in self.rows.items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Iterate over the items."""
        return (self._item(i) for i in range(len(self)))

    def __getitems__(self, indices: Sequence[int]) -> SequenceItems:
        """Fetch many items at once (the batched protocol of torch's DataLoader)."""
        return self[indices]

    def cut(self, start: Tensor | None = None, stop: Tensor | None = None) -> SequenceItems:
        """Return the same sequences with other ends.

        Args:
            start: int64 (n,), new starts in the flat arrays.
            stop: int64 (n,), new stops.
        """
        start, stop = self.start if start is None else start, self.stop if stop is None else stop
        return SequenceItems(self.columns, start, stop, self.rows, self.last_only)

    def latest(self, length: int) -> SequenceItems:
        """Return the last ``length`` positions of each sequence.

        Args:
            length: Positions kept.
        """
        return self.cut(start=torch.maximum(self.start, self.stop - length))

    def position_rows(self) -> tuple[Tensor, Tensor]:
        """Return, for every position of every sequence in turn, its sequence and its index in the flat arrays.

        Returns:
            int64 (positions,) twice.

        Example:
            >>> items = SequenceItems.from_items([{"item_id": torch.tensor([7, 8])}, {"item_id": torch.tensor([9])}])
            >>> items.position_rows()
            (tensor([0, 0, 1]), tensor([0, 1, 2]))
        """
        lengths = self.lengths
        row = torch.repeat_interleave(torch.arange(len(self)), lengths)
        before = lengths.cumsum(0) - lengths
        return row, torch.arange(len(row)) + (self.start - before)[row]

    def flat(self) -> np.ndarray:
        """Return the ids of all sequences one after the other, int64 (positions,)."""
        return np.asarray(self.columns["item_id"][self.position_rows()[1]].numpy())

    def padded(self, length: int) -> dict[str, Tensor]:
        """Batch the sequences, left-padded with 0; longer ones keep their latest items.

        Args:
            length: Columns of the batch.

        Returns:
            ``item_id`` int64 (n, length), ``padding_mask`` bool, ``target_weight`` float32, and the other fields.
        """
        index = self.stop[:, None] - length + torch.arange(length)
        mask = index >= self.start[:, None]
        index = torch.where(mask, index, 0)
        batch = {
            name: values[index].masked_fill(~mask, 0) if len(values) else mask.to(values.dtype)
            for name, values in self.columns.items()
        }
        batch |= self.rows
        batch["padding_mask"] = mask
        weight = batch["target_weight"].float() if "target_weight" in batch else default_target_weight(mask)
        batch["target_weight"] = weight * (torch.arange(length) == length - 1) if self.last_only else weight
        return batch

    @classmethod
    def from_items(cls, items: Iterable[Mapping[str, Any]]) -> SequenceItems:
        """Flatten dict items; of the optional fields, an item may lack some that others have.

        Args:
            items: Dicts with ``item_id`` (length,) and further fields.

        Returns:
            The same items.

        Raises:
            DataError: If items differ in fields that have no default.
        """
        if isinstance(items, SequenceItems):
            return items
        listed = list(items)
        lengths = torch.tensor([len(item["item_id"]) for item in listed], dtype=torch.int64)
        stop = lengths.cumsum(0)
        columns: dict[str, Tensor] = {}
        rows: dict[str, Tensor] = {}
        for name in dict.fromkeys(key for item in listed for key in item):
            values = [_value(item, name, i) for i, item in enumerate(listed)]
            if any(value.ndim for value in values):
                columns[name] = torch.cat([value.expand(n) for value, n in zip(values, lengths.tolist(), strict=True)])
            else:
                rows[name] = torch.stack(values)
        columns.setdefault("item_id", torch.zeros(0, dtype=torch.int64))
        return cls(columns, stop - lengths, stop, rows)

    @classmethod
    def from_lists(cls, sequences: Iterable[Sequence[int]]) -> SequenceItems:
        """Flatten plain lists of ids.

        Args:
            sequences: One list a user.
        """
        return cls.from_items([{"item_id": torch.as_tensor(ids, dtype=torch.int64)} for ids in sequences])


def default_target_weight(mask: Tensor) -> Tensor:
    """Weight every real position but the first, which has no context.

    Args:
        mask: bool (batch, length), True = real token.

    Returns:
        float32 (batch, length).

    Example:
        >>> default_target_weight(torch.tensor([[False, True, True, True]]))
        tensor([[0., 0., 1., 1.]])
    """
    return (mask & (mask.cumsum(1) > 1)).float()


def _value(item: Mapping[str, Any], name: str, i: int) -> Tensor:
    """One field of one item, or its default."""
    if name in item:
        return torch.as_tensor(item[name])
    if name == "target_weight":
        return (torch.arange(len(item["item_id"])) > 0).float()
    if name not in DEFAULTS:
        raise DataError(f"sequence {i} has no field {name!r}, which others have; it has {sorted(item)}")
    return torch.tensor(DEFAULTS[name])
