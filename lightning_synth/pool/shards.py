"""Parquet shards of a pool: rows with provenance, written to a temporary name and moved when complete."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_synth.errors import PoolError
from lightning_synth.pool.arrow import ITEM_PREFIX
from lightning_synth.pool.files import naming_file, sha256_file, sync_and_move
from lightning_synth.pool.manifest import METADATA_KEY
from lightning_synth.requests import Strings
from lightning_synth.schema import get_domain, to_arrow
from lightning_synth.schema.arrow import FIELDS_KEY, read_fields

if TYPE_CHECKING:
    from lightning_synth.requests import Samples

#: Rows per Parquet row group: the unit of reading, and what a writer holds in memory.
ROW_GROUP = 1024
SHARD_ROWS = 16384
#: Scores of 0 or 1 that an audit gives; the manifest counts them.
FLAGS = ("invalid", "copy")
_RESERVED = ("index", "seed", "accepted", "is_synthetic", "generation")
_ADVICE = "earlier shards are intact: free space and run again to continue"


def to_table(samples: Samples, generation: int = 1) -> pa.Table:
    """Turn samples into pool rows: payload, then provenance.

    Args:
        samples: Sampled items.
        generation: Lineage depth of the rows, 1 for a generator trained on real data.

    Returns:
        Payload columns, ``index seed condition.* score.* accepted is_synthetic generation``.
    """
    samples = samples.to("cpu")
    rows = len(samples)
    table = _without_collisions(with_lists(to_arrow(samples.items(), samples.schema), samples.schema))
    columns = {"index": samples.index, "seed": samples.seed}
    columns.update({f"condition.{name}": value for name, value in samples.condition.items()})
    columns.update({f"score.{name}": value.float() for name, value in samples.score.items()})
    columns["accepted"] = samples.accepted.bool()
    arrays = {
        name: pa.array(value.tolist() if isinstance(value, Strings) else value.detach().numpy())
        for name, value in columns.items()
    }
    arrays["is_synthetic"] = pa.array(np.ones(rows, dtype=bool))
    arrays["generation"] = pa.array(np.full(rows, generation, dtype=np.int16))
    payload = {name: table[name] for name in table.schema.names}
    return pa.table({**payload, **arrays}).replace_schema_metadata(table.schema.metadata)


def empty_table() -> pa.Table:
    """The provenance columns of a pool without rows."""
    types = {"index": pa.int64(), "seed": pa.int64(), "accepted": pa.bool_(), "is_synthetic": pa.bool_()}
    return pa.schema([*types.items(), ("generation", pa.int16())]).empty_table()


def _without_collisions(table: pa.Table) -> pa.Table:
    """Prefix fields that have the name of a provenance column, e.g. the node mask ``is_synthetic``."""
    names = {name: ITEM_PREFIX + name if _is_reserved(name) else name for name in table.schema.names}
    fields = {names[name]: spec for name, spec in read_fields(table.schema).items()}
    return table.rename_columns(list(names.values())).replace_schema_metadata({FIELDS_KEY: json.dumps(fields)})


def _is_reserved(name: str) -> bool:
    return name in _RESERVED or name.startswith(("condition.", "score.", ITEM_PREFIX))


def with_lists(table: pa.Table, schema: Mapping[str, Any]) -> pa.Table:
    """Store array fields as lists of any length where items of the domain may differ in size.

    The shapes seen in one batch say nothing about the next: a batch of one graph looks like a batch of equal graphs.
    """
    if get_domain(schema).name == "timeseries":
        return table
    for i, name in enumerate(table.schema.names):
        column = table[name].combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks == 1 else column
        if isinstance(column, pa.FixedSizeListArray):
            offsets = np.arange(len(column) + 1, dtype=np.int32) * column.type.list_size
            table = table.set_column(i, name, pa.ListArray.from_arrays(pa.array(offsets), column.flatten()))
    return table


def merge_fields(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Combine the field shapes of two batches: -1 where they differ.

    Raises:
        PoolError: If they differ in fields, dtype or rank, or in more than one dimension.
    """
    if not left or not right:
        return dict(left or right)
    if left.keys() != right.keys():
        raise PoolError(f"items have fields {sorted(right)}, earlier ones have {sorted(left)}")
    merged: dict[str, Any] = {}
    for name, old in left.items():
        new = right[name]
        if old["dtype"] != new["dtype"] or len(old["shape"]) != len(new["shape"]):
            raise PoolError(
                f"field {name!r} is {new['dtype']} {new['shape']}, earlier items have {old['dtype']} {old['shape']}"
            )
        shape = [a if a == b else -1 for a, b in zip(old["shape"], new["shape"], strict=True)]
        if shape.count(-1) > 1:
            raise PoolError(f"field {name!r} varies in more than one dimension: {old['shape']} and {new['shape']}")
        merged[name] = {"dtype": old["dtype"], "shape": shape}
    return merged


class ShardWriter:
    """Writes tables to ``part-<rank>-<number>.parquet``; holds at most one row group in memory.

    Args:
        folder: Directory of the pool.
        rank: Process number; each writes shards of its own.
        provenance: JSON kept in every shard's key-value metadata.
        shard_rows: Rows after which a shard is completed.
        row_group: Rows per row group.
        max_seconds: A shard is completed at the latest after this time, which bounds what a killed job loses.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        provenance: str,
        *,
        shard_rows: int = SHARD_ROWS,
        row_group: int = ROW_GROUP,
        max_seconds: float = float("inf"),
    ) -> None:
        self.folder, self.rank, self.max_seconds = folder, rank, max_seconds
        self.shard_rows, self.row_group = shard_rows, min(row_group, shard_rows)
        self.fields: dict[str, Any] = {}
        self._metadata = {METADATA_KEY.encode(): provenance.encode()}
        self._buffer: list[pa.Table] = []
        self._buffered = self._written = 0
        self._writer: pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None
        self._number = _next_number(folder, rank)
        self._opened = time.monotonic()
        #: Shards this writer has completed.
        self.completed: list[Path] = []

    @property
    def target(self) -> Path:
        """Final name of the current shard."""
        return self.folder / f"part-{self.rank:05d}-{self._number:05d}.parquet"

    @property
    def _temporary(self) -> Path:
        return self.folder / f".{self.target.name}.{os.getpid()}.tmp"

    def write(self, table: pa.Table) -> None:
        """Add rows.

        Raises:
            PoolError: If the disk is full or the rows do not fit the earlier ones; complete shards stay.
        """
        if not table.num_rows:
            return
        self.fields = merge_fields(self.fields, read_fields(table.schema))
        if not self._buffer and self._writer is None:
            self._opened = time.monotonic()
        self._buffer.append(self._conform(table))
        self._buffered += table.num_rows
        while self._buffered >= self.row_group:
            self._flush(self.row_group)
        if time.monotonic() - self._opened > self.max_seconds:
            self.close()

    def _conform(self, table: pa.Table) -> pa.Table:
        table = table.replace_schema_metadata(None)
        if self._schema is None:
            self._schema = table.schema
        try:
            return table.select(self._schema.names).cast(self._schema)
        except (KeyError, pa.ArrowInvalid, ValueError) as error:
            raise PoolError(f"rows do not fit the earlier ones of {self.target}: {error}") from error

    def _flush(self, rows: int) -> None:
        """Write one row group of at most ``rows`` rows."""
        merged = pa.concat_tables(self._buffer)
        group, rest = merged.slice(0, rows), merged.slice(rows)
        self._buffer, self._buffered = [rest] if rest.num_rows else [], rest.num_rows
        try:
            with naming_file(self.target, _ADVICE):
                if self._writer is None:
                    self._writer = pq.ParquetWriter(
                        self._temporary,
                        group.schema.with_metadata(self._metadata),
                        compression="zstd",
                        write_page_checksum=True,
                    )
                self._writer.write_table(group.combine_chunks(), row_group_size=self.row_group)
        except PoolError:
            self.abort()
            raise
        self._written += group.num_rows
        if self._written >= self.shard_rows:
            self._complete()

    def _complete(self) -> None:
        assert self._writer is not None
        writer, self._writer = self._writer, None
        try:
            with naming_file(self.target, _ADVICE):
                writer.add_key_value_metadata({FIELDS_KEY: json.dumps(self.fields).encode()})
                writer.close()
                sync_and_move(self._temporary, self.target)
        except PoolError:
            self.abort()
            raise
        self.completed.append(self.target)
        self._written, self._number = 0, self._number + 1
        self._opened = time.monotonic()

    def close(self) -> None:
        """Write what is held and complete the current shard.

        Raises:
            PoolError: If the disk is full; complete shards stay.
        """
        while self._buffered:
            self._flush(self.row_group)
        if self._writer is not None:
            self._complete()

    def abort(self) -> None:
        """Drop the incomplete shard."""
        if self._writer is not None:
            # Closing writes a footer, which fails again on a full disk.
            with contextlib.suppress(Exception):
                self._writer.close()
            self._writer = None
        self._buffer, self._buffered, self._written = [], 0, 0
        with contextlib.suppress(OSError):
            self._temporary.unlink()


def shard_paths(folder: Path) -> list[Path]:
    """List the complete shards of a directory."""
    return sorted(folder.glob("part-*.parquet"))


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of dead writers; only the holder of the lock may."""
    for path in folder.glob(".part-*.tmp"):
        path.unlink(missing_ok=True)


def _next_number(folder: Path, rank: int) -> int:
    taken = [int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"part-{rank:05d}-*.parquet")]
    return 1 + max(taken, default=-1)


@contextlib.contextmanager
def open_shard(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a shard.

    Raises:
        PoolError: Naming the file, if it is damaged.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise PoolError(f"shard {path} is damaged or truncated: {error}") from error


def shard_provenance(path: Path) -> dict[str, Any]:
    """Return the provenance in a shard's metadata."""
    with open_shard(path) as file:
        content: dict[str, Any] = json.loads((file.metadata.metadata or {}).get(METADATA_KEY.encode(), b"{}"))
        return content


def read_columns(paths: Sequence[Path], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Read some plain columns of all shards, in shard order.

    Raises:
        PoolError: Naming a shard that is damaged.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    for path in paths:
        with open_shard(path) as file:
            table = file.read(columns=list(columns))
        for name in columns:
            parts[name].append(table[name].to_numpy())
    return {name: np.concatenate(values) if values else np.zeros(0, np.int64) for name, values in parts.items()}


def describe_shards(paths: Sequence[Path]) -> dict[str, Any]:
    """Count and hash shards.

    Args:
        paths: Complete shards of one pool.

    Returns:
        ``counts`` (``written``, ``accepted``, and of each audit flag), merged ``fields``, and ``shards``.
    """
    shards: list[dict[str, Any]] = []
    fields: dict[str, Any] = {}
    counts = {"written": 0, "accepted": 0}
    for path in paths:
        with open_shard(path) as file:
            names, meta = file.schema_arrow.names, file.metadata.metadata or {}
            wanted = ["accepted", *(f"score.{flag}" for flag in FLAGS if f"score.{flag}" in names)]
            table = file.read(columns=wanted)
        fields = merge_fields(fields, json.loads(meta.get(FIELDS_KEY, b"{}")))
        counts["written"] += table.num_rows
        counts["accepted"] += int(table["accepted"].to_numpy().sum())
        for flag in FLAGS:
            if f"score.{flag}" in table.schema.names:
                counts[flag] = counts.get(flag, 0) + int(table[f"score.{flag}"].to_numpy().sum())
        shards.append(
            {"file": path.name, "rows": table.num_rows, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        )
    return {"counts": counts, "fields": fields, "shards": shards}
