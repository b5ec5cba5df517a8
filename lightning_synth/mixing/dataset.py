"""What a `MixedLoader` reads: real items and synthetic ones in the form of the real ones, and their joint batch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from lightning_synth.errors import DataError, LightningSynthError, SchemaMismatchError
from lightning_synth.items import StackedItems
from lightning_synth.mixing.sampler import MixedBlock
from lightning_synth.schema import PROVENANCE, Items, get_domain, like_source

#: Pools up to this size are held in memory in the form of the real items; larger ones are read batch by batch.
MEMORY_LIMIT = 256 << 20


#: One tensor of real rows followed by synthetic ones, or the two apart.
Column = Tensor | tuple[Tensor, Tensor]


class Fetched(NamedTuple):
    """Items of one batch: the first ``num_real`` are real."""

    items: Items
    num_real: int
    weight: float


def _bytes(item: Any) -> int:
    values = item.values() if isinstance(item, Mapping) else dict(item).values()
    return sum(value.nbytes if isinstance(value, (Tensor, np.ndarray)) else 64 for value in values)


def fetch(items: Any, rows: np.ndarray) -> Items:
    """Read some rows of a data set, at once where it can.

    Args:
        items: A map-style data set.
        rows: int64 indices.
    """
    if isinstance(items, StackedItems):
        return items[rows]
    if getattr(items, "__getitems__", None):
        found: Items = items.__getitems__(rows.tolist())
        return found
    return [items[i] for i in rows.tolist()]


class Rows(Sequence[Any]):
    """Some rows of a sequence, read when asked for.

    Args:
        items: Any items.
        rows: int64 indices.

    Example:
        >>> list(Rows("abcd", np.array([3, 0])))
        ['d', 'a']
    """

    def __init__(self, items: Any, rows: np.ndarray) -> None:
        self.items, self.rows = items, rows

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Return one item for an integer, several for a slice."""
        return fetch(self.items, self.rows[index]) if isinstance(index, slice) else self.items[int(self.rows[index])]

    def __getitems__(self, index: Sequence[int]) -> Items:
        """Read several items."""
        return fetch(self.items, self.rows[np.asarray(index, dtype=np.int64)])


class PoolItems(Sequence[Any]):
    """The synthetic items of one or several pools as one sequence.

    Args:
        pools: Name to pool (``len``, ``[i]``).

    Example:
        >>> both = PoolItems({"a": [{"x": torch.zeros(1)}], "b": [{"x": torch.ones(1)}]})
        >>> len(both), both.source(np.array([0, 1])).tolist()
        (2, [0, 1])
    """

    def __init__(self, pools: Mapping[str, Any]) -> None:
        self.names = tuple(pools)
        self._pools = list(pools.values())
        self._starts = np.cumsum([0, *(len(pool) for pool in self._pools)])
        self._held = [self._hold(pool) for pool in self._pools]

    @staticmethod
    def _hold(pool: Any) -> Any:
        if isinstance(pool, (list, StackedItems)) or not len(pool):
            return pool
        if _bytes(pool[0]) * len(pool) > MEMORY_LIMIT:
            return pool
        return fetch(pool, np.arange(len(pool)))

    def __len__(self) -> int:
        """Count the items of all pools."""
        return int(self._starts[-1])

    def source(self, rows: np.ndarray) -> np.ndarray:
        """Return which pool each row comes from (position in ``names``)."""
        return np.searchsorted(self._starts, rows, side="right") - 1

    def take(self, rows: np.ndarray) -> Items:
        """Return some rows: in memory if all pools are held there, else read when asked for.

        Args:
            rows: int64 indices.
        """
        held = all(isinstance(pool, (list, StackedItems)) for pool in self._held)
        return self.__getitems__(rows) if held and len(rows) else Rows(self, rows)

    def __getitem__(self, index: Any) -> Any:
        """Return one item for an integer, several for a slice."""
        if isinstance(index, slice):
            return self.__getitems__(np.arange(len(self))[index])
        if not 0 <= index < len(self):
            raise IndexError(f"synthetic item {index} of {len(self)}")
        part = int(self.source(np.array([index]))[0])
        return self._held[part][int(index - self._starts[part])]

    def __getitems__(self, index: Any) -> Items:
        """Read several items."""
        rows = np.asarray(index, dtype=np.int64)
        part = self.source(rows)
        chunks = [fetch(self._held[p], rows[part == p] - self._starts[p]) for p in np.unique(part).tolist()]
        if len(chunks) == 1:
            return chunks[0]
        order = np.argsort(np.argsort(part, kind="stable"), kind="stable")
        stacked = [chunk for chunk in chunks if isinstance(chunk, StackedItems)]
        if chunks and len(stacked) == len(chunks):
            return StackedItems.cat(stacked)[order]
        joined = [item for chunk in chunks for item in chunk]
        return [joined[i] for i in order]


def _cast(value: Any, like: Any) -> Any:
    """Give a value the container and dtype of the real one beside it."""
    if isinstance(like, Tensor):
        value = torch.as_tensor(value).to(like.dtype)
        return value.reshape(like.shape) if value.shape != like.shape and value.numel() == like.numel() == 1 else value
    if isinstance(like, (np.ndarray, np.generic)):
        array = np.asarray(value).astype(like.dtype)
        return array if isinstance(like, np.ndarray) else array[()]
    return type(like)(value) if isinstance(like, (bool, int, float)) else value


class Converter:
    """Turns canonical synthetic items into what the real data set yields: same container, fields, order and dtypes.

    Args:
        real_item: Any item of the real data set.
        schema: Of the real items, with ``layout`` for tuples.
    """

    def __init__(self, real_item: Any, schema: Mapping[str, Any]) -> None:
        self.real_item, self.layout = real_item, schema
        self.optional = get_domain(schema).optional

    def check(self, item: Any) -> None:
        """Refuse synthetic items that lack a field of the real ones.

        Raises:
            SchemaMismatchError: Naming the fields.
        """
        names = self.layout.get("layout") or _names(self.real_item)
        lacking = [name for name in names if name not in item and name not in self.optional]
        if lacking:
            raise SchemaMismatchError(
                f"real items have {sorted(names)}; synthetic ones lack {sorted(lacking)}: leave these out of the real "
                "items, or take a generator that makes them or is conditioned on them"
            )

    def __call__(self, item: Any) -> Any:
        """Convert one item."""
        real = self.real_item
        if isinstance(real, Mapping):
            own = {name: item[name] for name in self.optional if name in item}
            kept = (name for name in real if name not in PROVENANCE and (name in item or name not in self.optional))
            return own | {name: _cast(item[name], real[name]) for name in kept}
        if isinstance(real, (tuple, list)):
            values = [_cast(value, like) for value, like in zip(like_source(item, self.layout), real, strict=True)]
            return type(real)(*values) if hasattr(real, "_fields") else type(real)(values)
        if isinstance(real, (Tensor, np.ndarray)):
            return _cast(like_source(item, self.layout), real)
        return self._graph(item)

    def _graph(self, item: Any) -> Any:
        # In the node domain, provenance belongs to nodes and is part of the augmented graph.
        marks = PROVENANCE if self.layout["domain"] == "node" else ()
        own = [name for name in (*marks, *self.optional) if name in item]
        names = _names(self.real_item)
        graph = type(self.real_item)(num_nodes=int(item.num_nodes))
        for name in names:
            value, like = item[name], self.real_item[name]
            graph[name] = value.to(like.dtype) if isinstance(value, Tensor) and isinstance(like, Tensor) else value
        for name in own:
            graph[name] = item[name]
        return graph

    def stacked(self, items: StackedItems) -> StackedItems:
        """Convert many items at once, for real items that are stacked too."""
        real = self.real_item
        return StackedItems({name: items.tensors[name].to(value.dtype) for name, value in real.items()})


def _names(item: Any) -> list[str]:
    """Fields of a dict or of a PyG ``Data``."""
    keys = item.keys() if callable(getattr(item, "keys", None)) else item.keys
    return [name for name in keys if name != "num_nodes" and name not in PROVENANCE]


class MixedDataset:
    """Fetches the items of a `MixedBlock`: real ones first, then synthetic ones.

    Args:
        real: The real map-style data set.
        synthetic: Canonical synthetic items that may be used.
        schema: Of the real items.

    Raises:
        SchemaMismatchError: If synthetic items lack a field of the real ones.
    """

    def __init__(self, real: Any, synthetic: Items, schema: Mapping[str, Any]) -> None:
        self.real, self.num_real = real, len(real)
        self.convert = Converter(real[0], schema)
        if len(synthetic):
            self.convert.check(synthetic[0])
        self.synthetic, self._converted = self._hold(synthetic)
        self._fields = self._stack()
        both = isinstance(real, list) and self._converted
        self._listed: list[Any] | None = [*real, *self.synthetic] if both else None

    def _hold(self, synthetic: Items) -> tuple[Items, bool]:
        """Convert once what fits in memory."""
        if isinstance(self.real, StackedItems) and isinstance(synthetic, StackedItems):
            return self.convert.stacked(synthetic) if len(synthetic) else synthetic, True
        if isinstance(synthetic, (list, StackedItems)):
            return [self.convert(item) for item in synthetic], True
        return synthetic, False

    def _stack(self) -> dict[str, Column] | None:
        """Join the columns of real and synthetic items if both are stacked in memory."""
        if not isinstance(self.real, StackedItems) or not isinstance(self.synthetic, StackedItems):
            return None
        real = {name: value for name, value in self.real.tensors.items() if name not in PROVENANCE}
        synthetic = self.synthetic.tensors if len(self.synthetic) else {name: value[:0] for name, value in real.items()}
        small = sum(value.nbytes + synthetic[name].nbytes for name, value in real.items()) <= MEMORY_LIMIT
        pairs = {name: (value, synthetic[name]) for name, value in real.items()}
        return {name: torch.cat(pair) if small else pair for name, pair in pairs.items()}

    def __len__(self) -> int:
        """Count real and synthetic items."""
        return self.num_real + len(self.synthetic)

    def __getitem__(self, block: MixedBlock) -> Fetched:
        """Fetch one batch."""
        if self._fields is not None:
            index, size = torch.from_numpy(block.rows), block.num_real
            stacked = StackedItems({name: _gather(column, index, size) for name, column in self._fields.items()})
            return Fetched(stacked, size, block.weight)
        if self._listed is not None:
            return Fetched([self._listed[i] for i in block.rows.tolist()], block.num_real, block.weight)
        real, rows = block.rows[: block.num_real], block.rows[block.num_real :] - self.num_real
        if getattr(self.real, "endless", False):
            # Its items are drawn anew in every epoch, and numbered on from one epoch to the next.
            real = real + block.epoch * self.num_real
        items = [*self._read("real", self.real, real), *self._read_synthetic(rows)]
        return Fetched(items, block.num_real, block.weight)

    def _read_synthetic(self, rows: np.ndarray) -> Items:
        found = self._read("synthetic", self.synthetic, rows)
        return found if self._converted else [self.convert(item) for item in found]

    def _read(self, kind: str, items: Any, rows: np.ndarray) -> Items:
        try:
            return fetch(items, rows)
        except LightningSynthError:
            raise
        except Exception as error:
            raise DataError(
                f"{kind} item {_culprit(items, rows)} could not be read: {type(error).__name__}: {error}"
            ) from error


def _gather(column: Column, index: Tensor, num_real: int) -> Tensor:
    """Rows of a column; those of a pair are copied straight to their place in the batch."""
    if isinstance(column, Tensor):
        return column.index_select(0, index)
    real, synthetic = column
    batch = real.new_empty((len(index), *real.shape[1:]))
    torch.index_select(real, 0, index[:num_real], out=batch[:num_real])
    torch.index_select(synthetic, 0, index[num_real:] - len(real), out=batch[num_real:])
    return batch


def _culprit(items: Any, rows: np.ndarray) -> int | str:
    """The first row that cannot be read alone."""
    for i in rows.tolist():
        try:
            items[i]
        except Exception:
            return int(i)
    return f"among {rows.tolist()}"


class MixedCollate:
    """Makes the batch that the real loader would have made, and adds provenance where the batch has room for it.

    Args:
        collate: The real loader's ``collate_fn``.
        schema: Of the real items.
        cap: In the node domain: cap the weight of the synthetic training nodes at that of the real ones.
    """

    def __init__(self, collate: Callable[[Any], Any], schema: Mapping[str, Any], cap: bool = True) -> None:
        self.collate, self.schema, self.cap = collate, dict(schema), cap
        self.domain = get_domain(schema)

    def __call__(self, fetched: Fetched) -> Any:
        """Collate one batch."""
        items, num_real, weight = fetched
        size = len(items)
        if self.collate is default_collate and isinstance(items, StackedItems):
            batch: Any = dict(items.tensors)
        else:
            batch = self.collate(items)
        if isinstance(batch, (tuple, list, Tensor)):
            return batch
        if self.domain.name == "node":
            return self._mark_nodes(copy.copy(batch), num_real, weight)
        return self.domain.mark(batch, *provenance_of(size, num_real, weight))

    def _mark_nodes(self, graph: Any, num_real: int, weight: float) -> Any:
        """Mark the nodes of an augmented graph; those of the real graph come first unless the graph says otherwise."""
        is_synthetic = graph.get("is_synthetic")
        if num_real:
            is_synthetic = torch.zeros(graph.num_nodes, dtype=torch.bool)
        elif is_synthetic is None or len(is_synthetic) != graph.num_nodes:
            is_synthetic = torch.arange(graph.num_nodes) >= int(self.schema["num_nodes"])
        counts = [int((graph.train_mask & which).sum()) for which in (~is_synthetic, is_synthetic)]
        value = min(1.0, counts[0] / max(counts[1], 1)) if self.cap else weight
        return self.domain.mark(graph, is_synthetic, torch.where(is_synthetic, value, 1.0).float())


def provenance_of(size: int, num_real: int, weight: float) -> tuple[Tensor, Tensor]:
    """Return ``is_synthetic`` bool (size,) and ``weight`` float32 (size,).

    Args:
        size: Items in the batch.
        num_real: How many of them, at the front, are real.
        weight: Of each synthetic item.

    Example:
        >>> provenance_of(3, 2, 0.5)
        (tensor([False, False,  True]), tensor([1.0000, 1.0000, 0.5000]))
    """
    is_synthetic, weights = _provenance(size, num_real, weight)
    return is_synthetic.clone(), weights.clone()


@functools.lru_cache(maxsize=64)
def _provenance(size: int, num_real: int, weight: float) -> tuple[Tensor, Tensor]:
    """The few compositions of an epoch, made once."""
    is_synthetic = torch.arange(size) >= num_real
    return is_synthetic, torch.where(is_synthetic, weight, 1.0).float()
