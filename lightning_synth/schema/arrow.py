"""Items to Arrow tables and back: one column a field, no pickle, zero copies where shapes are equal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lightning_synth.errors import DataError
from lightning_synth.items import StackedItems
from lightning_synth.schema.base import Domain

FIELDS_KEY = b"lightning_synth.fields"
Fields = dict[str, dict[str, Any]]


def field_spec(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Describe one field: ``{"dtype": "float32", "shape": [2, 24]}``, with -1 where items differ."""
    first = values[0]
    if isinstance(first, str):
        return {"dtype": "string", "shape": []}
    arrays = (
        [np.asarray(value) for value in values[:1]] if len(values) == 1 else [np.asarray(value) for value in values]
    )
    dtype, ndim = arrays[0].dtype, arrays[0].ndim
    if dtype.kind not in "fiub":
        raise DataError(f"field {name!r} holds {dtype}, which a pool cannot store")
    shapes = {array.shape for array in arrays}
    if len({len(shape) for shape in shapes}) > 1:
        raise DataError(f"field {name!r} has items of different rank: {sorted(shapes, key=len)[:2]}")
    # A length of 0 in all items, such as of the edges of single atoms, is stored as one that varies.
    shape = [arrays[0].shape[i] if len({s[i] for s in shapes}) == 1 and arrays[0].shape[i] else -1 for i in range(ndim)]
    if shape.count(-1) > 1:
        raise DataError(f"field {name!r} varies in more than one dimension, e.g. {sorted(shapes)[:2]}")
    return {"dtype": str(dtype), "shape": shape}


def _column(values: Sequence[Any], spec: Mapping[str, Any]) -> pa.Array:
    if spec["dtype"] == "string":
        return pa.array(list(values), type=pa.string())
    arrays = [np.ascontiguousarray(value).reshape(-1) for value in values]
    flat = np.concatenate(arrays) if arrays else np.zeros(0, spec["dtype"])
    return _wrap(flat, spec, np.cumsum([0, *(len(array) for array in arrays)]))


def _wrap(flat: np.ndarray, spec: Mapping[str, Any], offsets: np.ndarray) -> pa.Array:
    values = pa.array(flat.astype(spec["dtype"], copy=False))
    if not spec["shape"]:
        return values
    if -1 in spec["shape"]:
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
    return pa.FixedSizeListArray.from_arrays(values, int(np.prod(spec["shape"])))


def to_table(items: Sequence[Any], domain: Domain) -> pa.Table:
    """Store items as a table.

    Args:
        items: Items of one domain with the same fields.
        domain: Their domain.

    Returns:
        One row per item; the shapes of the fields are kept in the table's metadata.

    Raises:
        DataError: If a field cannot be stored, or items differ in their fields.
    """
    fields: Fields = {}
    columns: dict[str, pa.Array] = {}
    if isinstance(items, StackedItems):
        for name, tensor in items.tensors.items():
            array = tensor.detach().cpu().numpy()
            fields[name] = {"dtype": str(array.dtype), "shape": list(array.shape[1:])}
            columns[name] = _wrap(np.ascontiguousarray(array).reshape(-1), fields[name], np.zeros(0))
    elif len(items):
        rows = [domain.fields(item) for item in items]
        for i, row in enumerate(rows):
            if row.keys() != rows[0].keys():
                raise DataError(f"item {i} has fields {sorted(row)}, item 0 has {sorted(rows[0])}")
        for name in rows[0]:
            values = [row[name] for row in rows]
            fields[name] = field_spec(name, values)
            columns[name] = _column(values, fields[name])
    table = pa.table(columns)
    return table.replace_schema_metadata({FIELDS_KEY: json.dumps(fields)})


def read_fields(schema: pa.Schema) -> Fields:
    """Return the field shapes that a table's metadata hold."""
    spec: Fields = json.loads((schema.metadata or {}).get(FIELDS_KEY, b"{}"))
    return spec


def _values(column: pa.Array) -> np.ndarray:
    """Flat numpy values of a (list) array, honouring slices."""
    flat = column.flatten() if isinstance(column, (pa.FixedSizeListArray, pa.ListArray)) else column
    return np.asarray(flat.to_numpy(zero_copy_only=False))


def _read_column(column: pa.Array, spec: Mapping[str, Any]) -> Any:
    if spec["dtype"] == "string":
        return column.to_pylist()
    flat = _values(column)
    if -1 not in spec["shape"]:
        return torch.from_numpy(np.array(flat).reshape(len(column), *spec["shape"]))
    tensor = torch.from_numpy(np.array(flat, dtype=spec["dtype"]))
    sizes = column.value_lengths().to_pylist()
    return [part.reshape(spec["shape"]) for part in tensor.split(sizes)]


def from_table(table: pa.Table, domain: Domain) -> Sequence[Any]:
    """Read items back from a table written by `to_table` (other columns are ignored).

    Args:
        table: With the fields' metadata.
        domain: The items' domain.

    Returns:
        `StackedItems` if the domain's items are plain dicts of equal shapes, else a list of items.
    """
    fields = read_fields(table.schema)
    columns = {name: _read_column(_one_chunk(table[name]), spec) for name, spec in fields.items()}
    stackable = type(domain).build is Domain.build and all(
        isinstance(value, torch.Tensor) for value in columns.values()
    )
    if stackable:
        return StackedItems(columns)
    return [domain.build({name: value[i] for name, value in columns.items()}) for i in range(table.num_rows)]


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    merged = column.combine_chunks()
    return merged if isinstance(merged, pa.Array) else pa.concat_arrays(merged.chunks)
