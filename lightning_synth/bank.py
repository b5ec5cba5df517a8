"""Training items kept inside a generator and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from lightning_synth.errors import NotFittedError
from lightning_synth.schema import collate, from_arrow, item_hashes, labels, to_arrow


class ItemBank(nn.Module):
    """Items of any domain as module state: saved as Arrow bytes in a tensor, loadable with ``weights_only=True``.

    Example:
        >>> bank = ItemBank()
        >>> bank.fill([{"x": torch.zeros(1, 4)}, {"x": torch.ones(1, 4)}], {"domain": "timeseries"})
        >>> len(bank)
        2
    """

    def __init__(self) -> None:
        super().__init__()
        self._payload: Tensor | None = None
        self._schema: dict[str, Any] = {}
        self._items: Sequence[Any] = ()
        self._batch: Any = None

    def fill(self, items: Sequence[Any], schema: Mapping[str, Any]) -> None:
        """Replace the content.

        Args:
            items: Items; they are put in an order that depends on their content alone.
            schema: Of the items.
        """
        order = np.argsort(item_hashes(items, schema), kind="stable")
        table = to_arrow(items, schema).take(pa.array(order))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        self._set(torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8), dict(schema))

    def _set(self, payload: Tensor, schema: dict[str, Any]) -> None:
        self._payload, self._schema, self._batch = payload, schema, None
        table = pa.ipc.open_stream(pa.py_buffer(payload.numpy().tobytes())).read_all()
        self._items = from_arrow(table, schema)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._items)

    @property
    def items(self) -> Sequence[Any]:
        """The items."""
        if self._payload is None:
            raise NotFittedError("the bank is empty: fit the generator first")
        return self._items

    @property
    def batch(self) -> Any:
        """All items collated."""
        if self._batch is None:
            self._batch = collate(self.items, self._schema)
        return self._batch

    @property
    def labels(self) -> Tensor | None:
        """Class labels, int64 (items,), or None."""
        values = labels(self.items, self._schema)
        return None if values is None else torch.from_numpy(values)

    def get_extra_state(self) -> dict[str, Any]:
        """Return plain state for a checkpoint."""
        return {"payload": self._payload, "schema": self._schema}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the content."""
        if state["payload"] is not None:
            self._set(state["payload"].cpu(), dict(state["schema"]))
