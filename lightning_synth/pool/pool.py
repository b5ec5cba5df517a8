"""What was sampled, with provenance for every row: in memory, or on disk as Parquet shards and a JSON manifest."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset

from lightning_synth.conditions import Condition
from lightning_synth.errors import PoolError, SchemaMismatchError
from lightning_synth.items import StackedItems
from lightning_synth.pool import manifest as manifests
from lightning_synth.pool.arrow import ArrowRows
from lightning_synth.pool.cache import map_rows
from lightning_synth.pool.files import DirectoryLock, make_writable, to_json, write_json
from lightning_synth.pool.shards import (
    SHARD_ROWS,
    ShardWriter,
    describe_shards,
    merge_fields,
    remove_leftovers,
    shard_paths,
    to_table,
)
from lightning_synth.schema import Items, Schema, get_domain, schema_diff
from lightning_synth.schema.arrow import FIELDS_KEY, read_fields

if TYPE_CHECKING:
    import pandas as pd

    from lightning_synth.generator import Generator
    from lightning_synth.requests import Samples

Where = Mapping[str, Any] | Callable[["pd.DataFrame"], Any] | Sequence[Any] | np.ndarray | None
_NO_LABELS = ("node", "sequence")
# Rows read at a time where a pool is walked through.
_CHUNK = 256


class SyntheticPool(Dataset[Any], Sequence[Any]):
    """Synthetic items with their provenance: a sequence, and a map-style dataset for torch.

    Rows are ordered by their ``index``, whatever number of devices wrote them. Opened from disk, items are read from an
    Arrow memory map built once from the shards; resident memory stays flat however many rows are read, and DataLoader
    workers and ranks share the pages.

    Made by `generate`, `from_samples` or `open`; not by its constructor.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth import get_generator
        >>> dm = tiny_datamodule("timeseries")
        >>> gen = get_generator("bootstrap")().fit_on(dm.train_items(), dm.schema)
        >>> pool = SyntheticPool.generate(gen, n=6, condition={"label": "balanced"}, seed=0, progress=False)
        >>> len(pool), pool[0]["x"].shape == dm.train_items()[0]["x"].shape, pool.labels.tolist()
        (6, True, [0, 1, 2, 0, 1, 2])
    """

    def __init__(
        self, rows: ArrowRows, manifest: dict[str, Any], order: np.ndarray | None = None, path: Path | None = None
    ) -> None:
        self._rows, self._order, self.path = rows, order, path
        #: Provenance of the whole pool, as in the file.
        self.manifest = manifest
        self._domain = get_domain(manifest["schema"])
        self._stackable = rows.stackable() and self._domain.name == "timeseries"

    # ------------------------------------------------------------------ making one

    @classmethod
    def generate(
        cls,
        gen: Generator,
        n: int,
        condition: Condition = None,
        seed: int = 0,
        batch_size: int = 256,
        progress: bool = True,
        *,
        licence: str | None = None,
        **sampler_options: Any,
    ) -> SyntheticPool:
        """Sample a pool in this process, in memory.

        For several devices, or pools larger than memory: `PoolWriter` and `RequestDataModule`.

        Args:
            gen: A fitted generator.
            n: Number of items; exactly as many rows come out.
            condition: As `Generator.sample`.
            seed: Of the request; the same rows for any batch size.
            batch_size: Items sampled at a time.
            progress: Show a progress bar.
            licence: Terms under which the pool may be used, kept in the manifest.
            **sampler_options: Of the generator.

        Returns:
            The pool; rows that the generator marked as unusable have ``accepted`` False and are left out of its items.
        """
        from tqdm.auto import tqdm

        requests = gen.make_requests(n, condition, seed)
        samples = []
        with tqdm(total=n, desc=f"sampling {type(gen).__name__}", unit="item", disable=not progress) as bar:
            for start in range(0, max(n, 1), batch_size):
                samples.append(gen.sample(requests[start : start + batch_size], **sampler_options).to("cpu"))
                bar.update(len(samples[-1]))
        config = {"n": n, "seed": seed, "condition": condition, "sampler_options": sampler_options}
        return cls.from_samples(samples, generator=gen, config=config, licence=licence)

    @classmethod
    def from_samples(
        cls,
        samples: Samples | Sequence[Samples],
        *,
        generator: Generator | None = None,
        config: Mapping[str, Any] | None = None,
        licence: str | None = None,
        only_accepted: bool = True,
    ) -> SyntheticPool:
        """Make a pool in memory of sampled batches.

        Args:
            samples: Of one generator.
            generator: Described in the manifest.
            config: How they were requested.
            licence: Terms of use.
            only_accepted: Leave rows with ``accepted`` False out of the items.

        Raises:
            SchemaMismatchError: If the batches do not share one schema.
            PoolError: If an index occurs twice.
        """
        parts = list(samples) if isinstance(samples, Sequence) else [samples]
        if not parts:
            raise PoolError("no samples given; an empty pool needs at least one Samples with its schema")
        for part in parts[1:]:
            if difference := schema_diff(parts[0].schema, part.schema):
                raise SchemaMismatchError(f"samples of different schemas: {difference}")
        generation = int(getattr(generator, "generation", 1))
        table, fields = _concatenate([to_table(part, generation) for part in parts])
        manifest = manifests.new_manifest(
            parts[0].schema,
            generator=manifests.describe_generator(generator) if generator is not None else None,
            training_fingerprint=getattr(generator, "training_fingerprint", None),
            config=config,
            licence=licence,
            generation=generation,
        )
        accepted = table["accepted"].to_numpy(zero_copy_only=False).astype(bool)
        manifest["counts"] = {"requested": table.num_rows, "written": table.num_rows, "accepted": int(accepted.sum())}
        manifest["fields"], manifest["complete"] = fields, True
        order = np.argsort(table["index"].to_numpy(), kind="stable")
        _refuse_repeats(table["index"].to_numpy()[order])
        return cls(ArrowRows.from_table(table, fields), manifest, _visible(order, accepted, only_accepted))

    @classmethod
    def open(cls, path: str | Path, only_accepted: bool = True, *, verify: bool = True) -> SyntheticPool:
        """Open a pool on disk.

        Args:
            path: Its directory.
            only_accepted: Leave rows with ``accepted`` False out.
            verify: Compare the sha256 of every shard with the manifest.

        Returns:
            The pool; items are read through a memory map, kept in ``.cache`` beside the shards.

        Raises:
            PoolError: If the manifest is missing, damaged or of another major version, or a shard is missing, truncated
                or altered (the message names the file).
        """
        folder = Path(path)
        manifest = manifests.read_manifest(folder)
        if verify:
            manifests.verify_shards(folder, manifest)
        if not manifest.get("complete", True):
            counts = manifest["counts"]
            warnings.warn(
                f"{folder} holds {counts.get('written')} of {counts.get('requested')} requested rows: the run that "
                "wrote it was limited; run it again to continue",
                stacklevel=2,
            )
        rows, order, accepted = map_rows(folder, manifest)
        return cls(rows, manifest, _visible(order, accepted, only_accepted), folder)

    # ------------------------------------------------------------------ a sequence of items

    def __len__(self) -> int:
        """Return the number of items."""
        return self._rows.num_rows if self._order is None else len(self._order)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> SyntheticPool: ...

    def __getitem__(self, index: Any) -> Any:
        """Return one item, or for a slice, index array or bool mask a pool of those rows."""
        if not isinstance(index, (int, np.integer)):
            return self._subset(_positions(index, len(self)))
        position = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= position < len(self):
            raise IndexError(f"item {index} of a pool of {len(self)}")
        row = position if self._order is None else int(self._order[position])
        return self._domain.build(self._rows.row(row))

    def __getitems__(self, indices: Sequence[int]) -> Items:
        """Read many items at once (the batched protocol of torch's DataLoader).

        Args:
            indices: Positions in the pool.

        Returns:
            `StackedItems` for windows, else a list of items.
        """
        rows = np.asarray(indices, dtype=np.int64)
        rows = rows if self._order is None else self._order[rows].astype(np.int64)
        if self._stackable:
            return StackedItems(self._rows.stack(rows))
        return [self._domain.build(self._rows.row(row)) for row in rows.tolist()]

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the items, reading ahead a little."""
        for start in range(0, len(self), _CHUNK):
            yield from self.__getitems__(range(start, min(start + _CHUNK, len(self))))

    def _subset(self, positions: np.ndarray) -> SyntheticPool:
        order = positions if self._order is None else self._order[positions]
        return SyntheticPool(self._rows, self.manifest, np.asarray(order), self.path)

    def items(self, where: Where = None) -> SyntheticPool:
        """Return the items, or those that meet a condition; nothing is read yet.

        Args:
            where: Column to a value or a collection of values (``{"label": 3}`` or ``{"condition.label": [1, 2]}``), a
                function of the provenance table to a bool mask, or a mask or positions themselves.

        Returns:
            A pool of those rows, which is a sequence of items.

        Raises:
            PoolError: If a column is unknown.

        Example:
            >>> from lightning_synth import get_generator
            >>> from lightning_synth.testing import tiny_items, tiny_schema
            >>> gen = get_generator("bootstrap")().fit_on(tiny_items("timeseries"), tiny_schema("timeseries"))
            >>> pool = SyntheticPool.generate(gen, 9, {"label": "balanced"}, progress=False)
            >>> len(pool.items(where={"label": 1})), len(pool.items(lambda rows: rows["index"] < 2))
            (3, 2)
        """
        if where is None:
            return self
        if isinstance(where, Mapping):
            return self._subset(np.flatnonzero(self._meets(where)))
        mask = where(self.to_pandas(payload=False)) if callable(where) else where
        return self._subset(_positions(mask, len(self)))

    def _meets(self, where: Mapping[str, Any]) -> np.ndarray:
        mask = np.ones(len(self), dtype=bool)
        for name, wanted in where.items():
            spellings = (name, f"condition.{name}", f"score.{name}")
            column = next((c for c in spellings if c in self._rows.schema.names), None)
            if column is None and name != "label":
                raise PoolError(f"the pool has no column {name!r}; it has {', '.join(self._provenance_columns())}")
            values = self._column(column) if column else self.labels
            if values is None:
                raise PoolError("the items of this pool carry no labels")
            mask &= np.isin(values, np.atleast_1d(np.asarray(wanted)))
        return mask

    # ------------------------------------------------------------------ what is known of the rows

    @property
    def schema(self) -> Schema:
        """Description of the items."""
        return cast(Schema, self.manifest["schema"])

    @property
    def labels(self) -> np.ndarray | None:
        """Class labels of the items, int64 (items,), or None."""
        if self._domain.name in _NO_LABELS:
            return None
        name = "label" if self._domain.name == "molecule" else "y"
        spec = self._rows.fields.get(name)
        if spec and np.dtype(spec["dtype"]).kind in "iu" and np.prod(spec["shape"]) == 1:
            return self._column(name).astype(np.int64)
        if "condition.label" in self._rows.schema.names:
            return self._column("condition.label").astype(np.int64)
        return None

    @property
    def content_hash(self) -> str:
        """sha256 over items, indices, seeds and conditions; the same however they are sharded or compressed."""
        digest = hashlib.sha256()
        for name in self._provenance_columns():
            if name in ("index", "seed") or name.startswith("condition."):
                column = self._column(name)
                column = column.astype(str) if column.dtype == object else np.ascontiguousarray(column)
                digest.update(f"{name}:".encode() + column.tobytes())
        for start in range(0, len(self), _CHUNK):
            positions = np.arange(start, min(start + _CHUNK, len(self)))
            rows = positions if self._order is None else self._order[positions].astype(np.int64)
            self._rows.update_hash(digest, rows)
        return digest.hexdigest()

    def to_pandas(self, payload: bool = True) -> pd.DataFrame:
        """Return the rows as a pandas table.

        Args:
            payload: Include the items' fields (flattened arrays), not only their provenance.

        Returns:
            One row per item; ``.attrs["lightning_synth"]`` keeps the manifest, which pandas writes to Parquet again.
        """
        frame: pd.DataFrame = self._table(None if payload else self._provenance_columns()).to_pandas()
        frame.attrs[manifests.METADATA_KEY] = {k: v for k, v in self.manifest.items() if k not in ("shards", "fields")}
        return frame

    def _table(self, names: Sequence[str] | None = None) -> pa.Table:
        table = self._rows.table(names)
        return table if self._order is None else table.take(pa.array(self._order))

    def _provenance_columns(self) -> list[str]:
        return [name for name in self._rows.schema.names if name not in self._rows.fields]

    def _column(self, name: str) -> np.ndarray:
        column = self._table([name])[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        flat = column.flatten() if isinstance(column, (pa.ListArray, pa.FixedSizeListArray)) else column
        return np.asarray(flat.to_numpy(zero_copy_only=False))

    def __repr__(self) -> str:
        """Say what the pool holds and where it comes from."""
        generator = (self.manifest.get("generator") or {}).get("name", "unknown generator")
        place = f", path={str(self.path)!r}" if self.path else ""
        return f"SyntheticPool({len(self)} {self._domain.name} items of {generator}{place})"

    # ------------------------------------------------------------------ to disk

    def save(self, path: str | Path, *, overwrite: bool = False, shard_size: int = SHARD_ROWS) -> Path:
        """Write the pool: Parquet shards, then the manifest.

        Args:
            path: Directory; made if need be.
            overwrite: Replace a pool that is there.
            shard_size: Rows per shard.

        Returns:
            The directory.

        Raises:
            PoolError: If the directory holds a pool, is being written by another job or cannot be written, or the disk
                is full.
        """
        folder = Path(path)
        make_writable(folder)
        with DirectoryLock(folder):
            old = shard_paths(folder)
            if not overwrite and (old or (folder / manifests.MANIFEST).exists()):
                raise PoolError(f"{folder} already holds a pool; choose another directory, or set overwrite=True")
            remove_leftovers(folder)
            manifest = {key: value for key, value in self.manifest.items() if key != "shards"}
            writer = ShardWriter(folder, 0, manifests.provenance(manifest), shard_rows=shard_size)
            writer.write(self._table().replace_schema_metadata({FIELDS_KEY: to_json(self._rows.fields)}))
            writer.close()
            written = describe_shards(writer.completed)
            manifest["counts"] = {**self.manifest["counts"], **written["counts"]}
            manifest.update(fields=written["fields"], shards=written["shards"])
            write_json(folder / manifests.MANIFEST, manifest)
            for shard in old:
                shard.unlink(missing_ok=True)
        return folder


def _concatenate(tables: list[pa.Table]) -> tuple[pa.Table, dict[str, Any]]:
    fields: dict[str, Any] = {}
    filled = [table for table in tables if table.num_rows] or tables[:1]
    for table in filled:
        fields = merge_fields(fields, read_fields(table.schema))
    names = filled[0].schema.names
    plain = [table.select(names).replace_schema_metadata(None) for table in filled]
    try:
        return pa.concat_tables(plain), fields
    except pa.ArrowInvalid as error:
        raise PoolError(f"the batches do not fit together: {error}") from error


def _refuse_repeats(index: np.ndarray) -> None:
    twice = np.flatnonzero(index[1:] == index[:-1])
    if len(twice):
        raise PoolError(f"index {index[twice[0]]} occurs twice: the samples overlap")


def _visible(order: np.ndarray | None, accepted: np.ndarray, only_accepted: bool) -> np.ndarray | None:
    """Rows to show, in order; None for all rows as they are."""
    if only_accepted and not accepted.all():
        return np.flatnonzero(accepted) if order is None else order[accepted[order]]
    if order is not None and len(order) > 1 and (order[1:] > order[:-1]).all():
        return None
    return order


def _positions(index: Any, size: int) -> np.ndarray:
    """Turn a slice, a mask or positions into non-negative positions."""
    if isinstance(index, slice):
        return np.arange(size)[index]
    array = np.asarray(index)
    if array.dtype == bool:
        if array.shape != (size,):
            raise PoolError(f"the mask has {array.shape} entries, the pool has {size} items")
        return np.flatnonzero(array)
    array = array.astype(np.int64)
    if len(array) and not -size <= array.min() <= array.max() < size:
        raise IndexError(f"positions {array.min()}..{array.max()} of a pool of {size}")
    return np.where(array < 0, array + size, array)
