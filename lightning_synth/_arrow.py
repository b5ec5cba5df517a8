"""Random access to Arrow record batches, in memory or mapped from a file, at flat resident memory."""

from __future__ import annotations

import bisect
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

Fields = Mapping[str, Mapping[str, Any]]
Reader = Callable[[int], np.ndarray]

# Mapped pages count as resident memory until they are given back; this many bytes may stay.
_BUDGET = 16 << 20
# The kernel maps up to 16 pages around a fault, so a random access costs one such block.
_BLOCK_BITS = 16


class MappedFile:
    """A read-only file in memory whose pages are given back to the system after every 16 MiB touched.

    Args:
        path: The file; it must not be empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.buffer: pa.Buffer = pa.py_buffer(self._map)
        self._touched, self._block = 0, -1
        self._advice: int | None = getattr(mmap, "MADV_DONTNEED", None)

    def touch(self, block: int, size: int) -> None:
        """Account for reading ``size`` bytes in 64 KiB block number ``block``; drop the pages when the budget is spent."""
        if block == self._block and size < 1 << _BLOCK_BITS:
            return
        self._block = block
        self._touched += max(size, 1 << _BLOCK_BITS)
        if self._touched >= _BUDGET:
            self.drop()

    def drop(self) -> None:
        """Give all mapped pages back; the next access reads them again (from the page cache, if it still has them)."""
        self._touched = 0
        if self._advice is not None:
            self._map.madvise(self._advice)


def store_bools_as_bytes(batch: pa.RecordBatch, fields: Fields) -> pa.RecordBatch:
    """Widen the bit-packed booleans of the payload, so that every field is addressable."""
    for i, name in enumerate(batch.schema.names):
        if fields.get(name, {}).get("dtype") == "bool":
            batch = batch.set_column(i, name, _as_bytes(batch.column(i)))
    return batch


def _as_bytes(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.FixedSizeListArray):
        return pa.FixedSizeListArray.from_arrays(column.flatten().cast(pa.uint8()), column.type.list_size)
    if isinstance(column, pa.ListArray):
        offsets = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), column.flatten().cast(pa.uint8()))
    return column.cast(pa.uint8())


def _flat(values: pa.Array, dtype: np.dtype[Any]) -> np.ndarray:
    """View the numbers of a primitive array without a copy."""
    buffer = values.buffers()[1]
    if buffer is None or not len(values):
        return np.zeros(0, dtype)
    return np.frombuffer(buffer, dtype)[values.offset : values.offset + len(values)]


def _reader(column: pa.Array, spec: Mapping[str, Any]) -> Reader:
    """Return a function from a row to its array, as a view of the column's memory."""
    dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
    if isinstance(column, pa.ListArray):
        offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
        values = _flat(column.values, dtype)
        return lambda row: values[offsets[row] : offsets[row + 1]].reshape(shape)
    if isinstance(column, pa.FixedSizeListArray):
        size = column.type.list_size
        first = column.offset * size
        rows = _flat(column.values, dtype)[first : first + len(column) * size].reshape(len(column), *shape)
        return rows.__getitem__
    scalars = _flat(column, dtype)
    return lambda row: scalars[row]


class _Batch:
    """Readers of one record batch, one per field."""

    def __init__(self, batch: pa.RecordBatch, fields: Fields) -> None:
        self.readers: dict[str, Reader] = {}
        self.strings: dict[str, pa.Array] = {}
        for name, spec in fields.items():
            column = batch.column(batch.schema.get_field_index(name))
            if spec["dtype"] == "string":
                self.strings[name] = column
            else:
                self.readers[name] = _reader(column, spec)


class ArrowRows:
    """Rows of record batches, addressable one by one or many at a time.

    Args:
        schema: Of the batches.
        sizes: Number of rows of each batch.
        load: Batch number to batch.
        fields: Payload field to its ``dtype`` and ``shape`` (-1 where rows differ).
        mapped: The file below the batches, or None if they live in memory.
    """

    def __init__(
        self,
        schema: pa.Schema,
        sizes: Sequence[int],
        load: Callable[[int], pa.RecordBatch],
        fields: Fields,
        mapped: MappedFile | None = None,
    ) -> None:
        self.schema, self.fields, self.mapped, self._load = schema, dict(fields), mapped, load
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._batches: list[_Batch | None] = [None] * len(sizes)
        self._dtypes = {name: np.dtype(spec["dtype"]) for name, spec in fields.items() if spec["dtype"] != "string"}
        nbytes = mapped.buffer.size if mapped is not None else 0
        self._row_bytes = nbytes // max(self.num_rows, 1)

    @classmethod
    def from_table(cls, table: pa.Table, fields: Fields) -> ArrowRows:
        """Serve a table that lives in memory."""
        batches = [store_bools_as_bytes(batch, fields) for batch in table.combine_chunks().to_batches()]
        schema = batches[0].schema if batches else table.schema
        return cls(schema, [len(batch) for batch in batches], batches.__getitem__, fields)

    @classmethod
    def from_file(cls, path: Path, fields: Fields) -> ArrowRows:
        """Serve a mapped Arrow IPC file.

        Raises:
            pyarrow.ArrowInvalid: If the file is no complete Arrow file.
        """
        mapped = MappedFile(path)
        reader = pa.ipc.open_file(pa.BufferReader(mapped.buffer))
        sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        mapped.drop()
        return cls(reader.schema, sizes, reader.get_batch, fields, mapped)

    @property
    def num_rows(self) -> int:
        """Count the rows."""
        return int(self._starts[-1])

    def _locate(self, row: int) -> tuple[_Batch, int]:
        number = bisect.bisect_right(self._starts, row) - 1
        batch = self._batches[number]
        if batch is None:
            batch = self._batches[number] = _Batch(self._load(number), self.fields)
        if self.mapped is not None:
            self.mapped.touch(row * self._row_bytes >> _BLOCK_BITS, self._row_bytes)
        return batch, row - self._starts[number]

    def row(self, row: int) -> dict[str, Any]:
        """Read one row: field to tensor (a copy) or string."""
        batch, local = self._locate(row)
        fields: dict[str, Any] = {name: torch.from_numpy(np.array(read(local))) for name, read in batch.readers.items()}
        for name, column in batch.strings.items():
            fields[name] = column[local].as_py()
        return fields

    def stack(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Read many rows of fields with equal shapes: field to tensor (rows, ...)."""
        out = {name: np.empty((len(rows), *self.fields[name]["shape"]), dtype) for name, dtype in self._dtypes.items()}
        for position, row in enumerate(rows.tolist()):
            batch, local = self._locate(row)
            for name, target in out.items():
                target[position] = batch.readers[name](local)
        return {name: torch.from_numpy(target) for name, target in out.items()}

    def stackable(self) -> bool:
        """Whether every field is a number array of one shape."""
        return all(spec["dtype"] != "string" and -1 not in spec["shape"] for spec in self.fields.values())

    def update_hash(self, digest: Any, rows: np.ndarray) -> None:
        """Feed the content of some rows to a hash: a function of the values alone.

        Args:
            digest: Of hashlib.
            rows: Row numbers.
        """
        if self.stackable():
            for name, values in sorted(self.stack(rows).items()):
                digest.update(f"{name}:{values.dtype}:{tuple(values.shape[1:])}".encode() + values.numpy().tobytes())
            return
        for row in rows.tolist():
            for name, value in sorted(self.row(row).items()):
                content = value.encode() if isinstance(value, str) else value.numpy().tobytes()
                digest.update(f"{name}:{getattr(value, 'shape', len(content))}".encode() + content)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Copy whole columns to memory.

        Args:
            columns: Which ones; None for all.
        """
        names = self.schema.names if columns is None else list(columns)
        schema = pa.schema([self.schema.field(name) for name in names])
        parts = []
        for number in range(len(self._starts) - 1):
            batch = self._load(number).select(names)
            if self.mapped is not None:
                # A round trip through IPC copies the bytes out of the map.
                batch = pa.ipc.read_record_batch(batch.serialize(), schema)
                self.mapped.drop()
            parts.append(batch)
        return self._with_bools(pa.Table.from_batches(parts, schema=schema))

    def _with_bools(self, table: pa.Table) -> pa.Table:
        for i, field in enumerate(table.schema):
            if self.fields.get(field.name, {}).get("dtype") == "bool":
                table = table.set_column(i, field.name, table.column(i).cast(_bool_type(field.type)))
        return table

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the file's name for mapped rows, the rows themselves otherwise."""
        if self.mapped is not None:
            return ArrowRows.from_file, (self.mapped.path, self.fields)
        return ArrowRows.from_table, (self.table(), self.fields)


def _bool_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(pa.bool_(), kind.list_size)
    return pa.list_(pa.bool_()) if pa.types.is_list(kind) else pa.bool_()
