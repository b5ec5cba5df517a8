"""Random access to the rows of an Arrow IPC file, on disk or in memory, at flat resident memory.

Rows on disk are read at their offset (pread), not through the pages of a map: mapped pages count as resident memory,
and the kernel maps up to 2 MiB around every access. The page cache still holds the file once for all workers and ranks.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from lightning_synth.errors import PoolError

Fields = Mapping[str, Mapping[str, Any]]
#: Of payload columns whose field has the name of a provenance column.
ITEM_PREFIX = "item."
_OFFSET = np.dtype(np.int32)
_POSITIONAL = hasattr(os, "preadv")


class _Bytes:
    """An IPC file in memory."""

    def __init__(self, buffer: pa.Buffer) -> None:
        self.buffer = buffer
        self._view = np.frombuffer(buffer, np.uint8)

    def read_into(self, target: np.ndarray, offset: int) -> None:
        """Copy bytes from an offset on."""
        flat = target.reshape(-1).view(np.uint8)
        flat[:] = self._view[offset : offset + flat.size]

    def open(self, columns: list[int] | None = None) -> pa.ipc.RecordBatchFileReader:
        """Open all of it, or some columns."""
        options = pa.ipc.IpcReadOptions(included_fields=columns)
        return pa.ipc.open_file(pa.BufferReader(self.buffer), options=options)


class _File:
    """An IPC file on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Closed with the object; positional reads share no state, so forked workers may use it as well.
        self._file = io.FileIO(path, "r")
        self._descriptor = self._file.fileno()

    def read_into(self, target: np.ndarray, offset: int) -> None:
        """Read bytes from an offset on.

        Raises:
            PoolError: If the file is shorter than it was.
        """
        if not target.nbytes:
            return
        if _POSITIONAL:
            done = os.preadv(self._descriptor, [target.data], offset)
        else:  # pragma: no cover - Windows
            self._file.seek(offset)
            done = self._file.readinto(target.data)
        if done != target.nbytes:
            raise PoolError(f"{self.path} was truncated while it was in use: delete it and open the pool again")

    def open(self, columns: list[int] | None = None) -> pa.ipc.RecordBatchFileReader:
        """Open all of it, or some columns; the rest is not read."""
        options = pa.ipc.IpcReadOptions(included_fields=columns)
        # Not by name: another process may have replaced the map, and removed this one, since it was opened.
        return pa.ipc.open_file(pa.PythonFile(_Stream(self._file), mode="r"), options=options)


class _Stream(io.RawIOBase):
    """A file read from the start, with a position of its own."""

    def __init__(self, file: io.FileIO) -> None:
        self._base, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._base.fileno()).st_size}
        self._position = start[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if _POSITIONAL:
            done = os.preadv(self._base.fileno(), [buffer], self._position)
        else:  # pragma: no cover - Windows
            self._base.seek(self._position)
            done = self._base.readinto(buffer) or 0
        self._position += done
        return done


class _Column(NamedTuple):
    """Where a column of one record batch lies: its values, and its offsets if rows differ in size."""

    values: int
    offsets: int | None


def _layout(column: pa.Array, base: int) -> _Column:
    if column.null_count:
        raise PoolError(f"a payload column of type {column.type} has missing values")
    buffers = column.buffers()
    values = buffers[-1].address - base if buffers[-1] is not None else 0
    ragged = pa.types.is_list(column.type) or pa.types.is_string(column.type)
    return _Column(values, buffers[1].address - base if ragged else None)


def store_bools_as_bytes(batch: pa.RecordBatch, fields: Fields) -> pa.RecordBatch:
    """Widen the bit-packed booleans of the payload, so that every value has an address."""
    for i, name in enumerate(batch.schema.names):
        if fields.get(name, {}).get("dtype") == "bool":
            batch = batch.set_column(i, name, batch.column(i).cast(_type_of(batch.column(i).type, pa.uint8())))
    return batch


def _type_of(kind: pa.DataType, value: pa.DataType) -> pa.DataType:
    """The same list type around other values."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(value, kind.list_size)
    return pa.list_(value) if pa.types.is_list(kind) else value


class ArrowRows:
    """Rows of an Arrow IPC file, addressable one by one or many at a time.

    Args:
        source: The file.
        fields: Payload column to its ``dtype`` and ``shape`` (-1 where rows differ).
    """

    def __init__(self, source: _Bytes | _File, fields: Fields) -> None:
        self._source, self.fields = source, dict(fields)
        self._names = {name: name.removeprefix(ITEM_PREFIX) for name in fields}
        self._dtypes = {n: np.dtype(np.uint8 if s["dtype"] == "string" else s["dtype"]) for n, s in fields.items()}
        self._shapes = {name: tuple(spec["shape"]) for name, spec in fields.items()}
        self._sizes = {name: int(np.prod(shape)) for name, shape in self._shapes.items()}
        self._starts, self._columns = [0], list[dict[str, _Column]]()
        with _addressable(source) as (reader, base, release):
            self.schema: pa.Schema = reader.schema
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                self._columns.append({name: _layout(batch.column(name), base) for name in fields})
                self._starts.append(self._starts[-1] + batch.num_rows)
                release()

    @classmethod
    def from_table(cls, table: pa.Table, fields: Fields) -> ArrowRows:
        """Serve a table that lives in memory."""
        batches = [store_bools_as_bytes(batch, fields) for batch in table.combine_chunks().to_batches()]
        sink = pa.BufferOutputStream()
        schema = batches[0].schema if batches else table.schema
        with pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return cls(_Bytes(sink.getvalue()), fields)

    @classmethod
    def from_file(cls, path: Path, fields: Fields) -> ArrowRows:
        """Serve an Arrow IPC file, whose booleans are stored as bytes.

        Raises:
            OSError: If it cannot be read.
            pyarrow.ArrowInvalid: If it is no complete Arrow file.
        """
        return cls(_File(path), fields)

    @property
    def num_rows(self) -> int:
        """Count the rows."""
        return self._starts[-1]

    def stackable(self) -> bool:
        """Whether every field is a number array of one shape."""
        return all(spec["dtype"] != "string" and -1 not in spec["shape"] for spec in self.fields.values())

    def row(self, row: int) -> dict[str, Any]:
        """Read one row: field to tensor or string."""
        number = bisect.bisect_right(self._starts, row) - 1
        local = row - self._starts[number]
        fields: dict[str, Any] = {}
        for name, column in self._columns[number].items():
            values = self._values(name, column, local)
            if self.fields[name]["dtype"] == "string":
                fields[self._names[name]] = values.tobytes().decode()
            else:
                fields[self._names[name]] = torch.from_numpy(values.reshape(self._shapes[name]))
        return fields

    def _values(self, name: str, column: _Column, row: int) -> np.ndarray:
        dtype, start, size = self._dtypes[name], row * self._sizes[name], self._sizes[name]
        if column.offsets is not None:
            bounds = np.empty(2, _OFFSET)
            self._source.read_into(bounds, column.offsets + row * _OFFSET.itemsize)
            start, size = int(bounds[0]), int(bounds[1] - bounds[0])
        values = np.empty(size, dtype)
        self._source.read_into(values, column.values + start * dtype.itemsize)
        return values

    def stack(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Read many rows of fields with equal shapes, neighbours at once.

        Args:
            rows: Row numbers, in any order.

        Returns:
            Field to tensor (rows, ...).
        """
        ascending = len(rows) < 2 or bool((np.diff(rows) > 0).all())
        order = None if ascending else np.argsort(rows, kind="stable")
        runs = self._runs(rows if order is None else rows[order])
        places = [_place(part, order) for _, _, part in runs]
        stacked = {}
        for name, dtype in self._dtypes.items():
            target = np.empty((len(rows), *self._shapes[name]), dtype)
            stride = self._sizes[name] * dtype.itemsize
            for (number, local, part), place in zip(runs, places, strict=True):
                column = self._columns[number][name]
                start = local * stride if column.offsets is None else self._first(column, local, dtype)
                if isinstance(place, slice):
                    self._source.read_into(target[place], column.values + start)
                else:
                    values = np.empty((part.stop - part.start, *self._shapes[name]), dtype)
                    self._source.read_into(values, column.values + start)
                    target[place] = values
            stacked[self._names[name]] = torch.from_numpy(target)
        return stacked

    def _first(self, column: _Column, row: int, dtype: np.dtype[Any]) -> int:
        """Bytes before the values of a row, where rows have offsets."""
        bound = np.empty(1, _OFFSET)
        self._source.read_into(bound, (column.offsets or 0) + row * _OFFSET.itemsize)
        return int(bound[0]) * dtype.itemsize

    def _runs(self, rows: np.ndarray) -> list[tuple[int, int, slice]]:
        """Split ascending rows into (batch, first row in the batch, positions) of neighbours within one batch."""
        if not len(rows):
            return []
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(batches) != 0)) + 1
        first, last = [0, *breaks.tolist()], [*breaks.tolist(), len(rows)]
        return [
            (number := int(batches[a]), int(rows[a]) - self._starts[number], slice(a, b))
            for a, b in zip(first, last, strict=True)
        ]

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
                shape = len(content) if isinstance(value, str) else tuple(value.shape)
                digest.update(f"{name}:{shape}".encode() + content)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read whole columns into memory.

        Args:
            columns: Which ones; None for all.
        """
        names = self.schema.names if columns is None else list(columns)
        table = self._source.open([self.schema.get_field_index(name) for name in names]).read_all().select(names)
        for i, field in enumerate(table.schema):
            if self.fields.get(field.name, {}).get("dtype") == "bool":
                table = table.set_column(i, field.name, table.column(i).cast(_type_of(field.type, pa.bool_())))
        return table

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the file's name, or the rows themselves where they live in memory."""
        if isinstance(self._source, _File):
            return ArrowRows.from_file, (self._source.path, self.fields)
        return ArrowRows.from_table, (self.table(), self.fields)


def _place(part: slice, order: np.ndarray | None) -> slice | np.ndarray:
    """Where a run of ascending rows belongs in a batch; a single row always has a place of its own."""
    if order is None:
        return part
    if part.stop - part.start == 1:
        return slice(order[part.start], order[part.start] + 1)
    return np.asarray(order[part])


@contextlib.contextmanager
def _addressable(source: _Bytes | _File) -> Iterator[tuple[Any, int, Callable[[], None]]]:
    """Yield a reader whose buffers have addresses in the file, the address of its start, and how to give pages back."""
    if isinstance(source, _Bytes):
        yield source.open(), source.buffer.address, lambda: None
        return
    with open(source.path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    buffer = pa.py_buffer(pages)

    def release() -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)

    yield pa.ipc.open_file(pa.BufferReader(buffer)), buffer.address, release
