"""Items of equal shape, stored stacked: a sequence of dicts that is cheap to slice and to batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import DataError

Index = int | slice | Sequence[int] | Tensor | np.ndarray


class StackedItems(Sequence[dict[str, Tensor]]):
    """A sequence of dict items whose fields are rows of stacked tensors.

    Args:
        tensors: Field name to a tensor of shape (items, ...).

    Raises:
        ValueError: If the fields do not have the same number of rows.

    Example:
        >>> items = StackedItems({"x": torch.zeros(5, 2, 24), "y": torch.arange(5)})
        >>> items[3]["y"], len(items[1:4])
        (tensor(3), 3)
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors: dict[str, Tensor] = dict(tensors)
        rows = {name: len(value) for name, value in self.tensors.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"fields must have the same number of rows, got {rows}")
        self._len = next(iter(rows.values()), 0)

    def __len__(self) -> int:
        """Return the number of items."""
        return self._len

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | Tensor | np.ndarray) -> StackedItems: ...

    def __getitem__(self, index: Index) -> dict[str, Tensor] | StackedItems:
        """Return one item for an integer, a `StackedItems` for a slice, an index array or a bool mask."""
        if isinstance(index, (int, np.integer)):
            if not -self._len <= index < self._len:
                raise IndexError(f"item {index} of {self._len}")
            return {name: value[int(index)] for name, value in self.tensors.items()}
        if not isinstance(index, (slice, Tensor)):
            index = torch.as_tensor(np.asarray(index))
            index = index.long() if index.numel() == 0 else index
        return StackedItems({name: value[index] for name, value in self.tensors.items()})

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Iterate over the items."""
        return (self[i] for i in range(self._len))

    def __getitems__(self, indices: list[int]) -> StackedItems:
        """Fetch many items at once (the batched protocol of torch's DataLoader)."""
        return self[indices]

    @classmethod
    def from_items(cls, items: Iterable[Mapping[str, Any]]) -> StackedItems:
        """Stack a sequence of dict items with the same fields and shapes.

        Args:
            items: Dicts of tensors or numbers.

        Returns:
            The same items, stacked.
        """
        if isinstance(items, StackedItems):
            return items
        rows = list(items)
        if not rows:
            return cls({})
        texts = [name for name, value in rows[0].items() if isinstance(value, (str, bytes))]
        if texts:
            raise DataError(f"item 0: field {texts[0]!r} is text; items hold numbers and tensors")
        return cls({name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]})

    @classmethod
    def cat(cls, parts: Sequence[StackedItems]) -> StackedItems:
        """Concatenate; only the fields that all parts share are kept.

        Args:
            parts: At least one `StackedItems`.
        """
        parts = [part for part in parts if len(part)] or list(parts[:1])
        shared = [name for name in parts[0].tensors if all(name in part.tensors for part in parts)]
        return cls({name: torch.cat([part.tensors[name] for part in parts]) for name in shared})


def evenly_spaced(rows: Sequence[int], most: int) -> list[int]:
    """Choose at most ``most`` of the rows, evenly spaced, the first and the last among them.

    Example:
        >>> evenly_spaced(range(100), 4)
        [0, 33, 66, 99]
    """
    if len(rows) <= most:
        return list(rows)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]
