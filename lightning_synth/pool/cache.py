"""The Arrow memory map of a pool: built once from its Parquet shards, beside them or in a temporary directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lightning_synth.errors import PoolError
from lightning_synth.pool.arrow import ArrowRows, store_bools_as_bytes
from lightning_synth.pool.files import sync_and_move
from lightning_synth.pool.shards import empty_table, open_shard, read_columns

_VERSION = 1
# Bytes per record batch: what building the map holds in memory at a time.
_BATCH_BYTES = 4 << 20
_ENVIRONMENT = "LIGHTNING_SYNTH_CACHE"


def map_rows(folder: Path, manifest: Mapping[str, Any]) -> tuple[ArrowRows, np.ndarray | None, np.ndarray]:
    """Map the rows of a pool, building the map if it is missing or belongs to other shards.

    Args:
        folder: Directory of the pool.
        manifest: Its manifest; the hashes of the shards name the map.

    Returns:
        The rows in shard order; their order by ``index`` (None: as they are); ``accepted`` of each row in shard order.

    Raises:
        PoolError: If a shard is damaged, an index occurs twice, or there is no room for the map.
    """
    if not manifest["shards"]:
        return ArrowRows.from_table(empty_table(), {}), None, np.zeros(0, bool)
    key = _key(manifest)
    for home in _homes(folder):
        target = home / f"{key}.arrow"
        with contextlib.suppress(OSError, ValueError, pa.ArrowException):
            return _load(target, manifest["fields"])
    for home in _homes(folder):
        target = home / f"{key}.arrow"
        try:
            home.mkdir(parents=True, exist_ok=True)
            _remove_others(home, key)
            _build(folder, manifest, target)
        except OSError as error:
            failure = error
            continue
        return _load(target, manifest["fields"])
    raise PoolError(f"cannot build the memory map of {folder}: {failure}; set ${_ENVIRONMENT} to a directory with room")


def _key(manifest: Mapping[str, Any]) -> str:
    content = [_VERSION, pa.__version__, manifest["fields"], [shard["sha256"] for shard in manifest["shards"]]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _homes(folder: Path) -> Iterator[Path]:
    """Beside the shards; for read-only pools the user's cache directory, then the temporary one."""
    yield folder / ".cache"
    if _ENVIRONMENT in os.environ:
        yield Path(os.environ[_ENVIRONMENT])
    yield Path(tempfile.gettempdir()) / f"lightning_synth-{getattr(os, 'getuid', int)()}"


def _remove_others(home: Path, key: str) -> None:
    """Delete maps of earlier shards, where the directory belongs to one pool alone."""
    if home.name == ".cache":
        for path in home.iterdir():
            if not path.name.startswith((key, ".")):
                path.unlink(missing_ok=True)


def _side(target: Path, name: str) -> Path:
    return target.with_suffix(f".{name}.npy")


def _load(target: Path, fields: Mapping[str, Any]) -> tuple[ArrowRows, np.ndarray | None, np.ndarray]:
    rows = ArrowRows.from_file(target, fields)
    order = np.load(_side(target, "order"), mmap_mode="r" if rows.num_rows else None, allow_pickle=False)
    accepted = np.load(_side(target, "accepted"), mmap_mode="r" if rows.num_rows else None, allow_pickle=False)
    return rows, order if len(order) > 1 else None, accepted


def _build(folder: Path, manifest: Mapping[str, Any], target: Path) -> None:
    paths = [folder / shard["file"] for shard in manifest["shards"]]
    columns = read_columns(paths, ["index", "accepted"])
    order = np.argsort(columns["index"], kind="stable")
    ordered = columns["index"][order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        raise PoolError(f"index {ordered[twice[0]]} occurs twice in the shards of {folder}")
    in_place = bool((order[1:] > order[:-1]).all())
    kind = np.uint32 if len(order) < 1 << 32 else np.int64
    _save(_side(target, "order"), np.zeros(1, kind) if in_place else order.astype(kind))
    _save(_side(target, "accepted"), columns["accepted"])
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        _convert(paths, manifest["fields"], temporary)
        sync_and_move(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
        pa.default_memory_pool().release_unused()


def _save(path: Path, values: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.save(file, values, allow_pickle=False)
    sync_and_move(temporary, path)


def _convert(paths: list[Path], fields: Mapping[str, Any], target: Path) -> None:
    """Copy all shards into one Arrow IPC file of record batches of about 4 MiB."""
    writer: pa.ipc.RecordBatchFileWriter | None = None
    held: list[pa.RecordBatch] = []
    with pa.OSFile(str(target), "wb") as sink:
        for path in paths:
            with open_shard(path) as file:
                for batch in file.iter_batches(batch_size=_rows_per_batch(file)):
                    batch = store_bools_as_bytes(batch.replace_schema_metadata(None), fields)
                    held.append(batch)
                    if writer is None:
                        writer = pa.ipc.new_file(sink, batch.schema)
                    if sum(part.nbytes for part in held) >= _BATCH_BYTES:
                        _write(writer, held)
        if writer is not None:
            _write(writer, held)
            writer.close()


def _write(writer: pa.ipc.RecordBatchFileWriter, held: list[pa.RecordBatch]) -> None:
    if held:
        for batch in pa.Table.from_batches(held).combine_chunks().to_batches():
            writer.write_batch(batch)
        held.clear()


def _rows_per_batch(file: Any) -> int:
    meta = file.metadata
    nbytes = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    return int(max(1, min(1 << 16, _BATCH_BYTES * max(meta.num_rows, 1) // max(nbytes, 1))))
