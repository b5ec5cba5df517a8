"""What one item is, per domain: described by a plain dict, checked, batched, stored and hashed.

A schema is computed from training items only and travels inside checkpoints and pools; ``schema["domain"]`` says which
row of the table of domains holds. Items are raw: normalisation is the business of generators and models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lightning_synth.errors import SchemaError
from lightning_synth.schema.base import PROVENANCE, Domain, Items, Schema
from lightning_synth.schema.graph import GraphDomain
from lightning_synth.schema.hashing import overlap
from lightning_synth.schema.molecule import MoleculeDomain
from lightning_synth.schema.node import NodeDomain
from lightning_synth.schema.sequence import SequenceDomain
from lightning_synth.schema.timeseries import TimeSeriesDomain

__all__ = [
    "PROVENANCE",
    "Domain",
    "Items",
    "Schema",
    "canonical",
    "collate",
    "describe",
    "detach",
    "features",
    "fingerprint",
    "from_arrow",
    "get_domain",
    "infer_domain",
    "infer_schema",
    "item_hashes",
    "labels",
    "like_source",
    "move",
    "num_rows",
    "overlap",
    "schema_diff",
    "to_arrow",
    "uncollate",
    "validate",
]

_DOMAINS: dict[str, Domain] = {
    # The order matters for `infer_domain`: a molecule batch is also a graph batch.
    domain.name: domain
    for domain in (SequenceDomain(), MoleculeDomain(), GraphDomain(), NodeDomain(), TimeSeriesDomain())
}


def get_domain(schema: str | Mapping[str, Any]) -> Domain:
    """Return the domain object of a schema or a domain name.

    Args:
        schema: A schema, or one of ``timeseries graph node molecule sequence``.

    Raises:
        SchemaError: If the domain is unknown.
    """
    name = schema if isinstance(schema, str) else schema.get("domain")
    if name not in _DOMAINS:
        raise SchemaError(f"unknown domain {name!r}; known: {', '.join(sorted(_DOMAINS))}")
    return _DOMAINS[name]


def describe(items: Items, domain: str, **known: Any) -> Schema:
    """Compute the schema of training items.

    Args:
        items: Training items only.
        domain: Their domain.
        **known: Entries that cannot be computed (``sampling_rate=12000``, ``class_names=[...]``).

    Returns:
        A plain dict that JSON can hold.

    Example:
        >>> items = [{"x": torch.zeros(2, 24), "y": torch.tensor(1)}]
        >>> schema = describe(items, "timeseries")
        >>> schema["channels"], schema["length"], schema["class_counts"]
        (2, 24, [0, 1])
    """
    return get_domain(domain).describe(items, **known)


def validate(items: Items, schema: Mapping[str, Any]) -> None:
    """Check items against a schema.

    Args:
        items: Items.
        schema: What they should be.

    Raises:
        DataError: Naming the index and field of the first unusable item.
    """
    get_domain(schema).validate(items, schema)


def collate(items: Items, schema: Mapping[str, Any]) -> Any:
    """Batch items as the DataModules of the domain do.

    Args:
        items: Items.
        schema: Of the items.

    Returns:
        A dict of tensors, or a PyG ``Batch``.
    """
    return get_domain(schema).collate(items, schema)


def uncollate(batch: Any, schema: Mapping[str, Any]) -> Items:
    """Split a batch into items.

    Args:
        batch: As `collate` returns.
        schema: Of the items.
    """
    return get_domain(schema).uncollate(batch)


def num_rows(batch: Any, schema: Mapping[str, Any]) -> int:
    """Count the items of a batch (graphs, not nodes).

    Args:
        batch: As `collate` returns.
        schema: Of the items.
    """
    return get_domain(schema).num_rows(batch)


def features(items: Items, schema: Mapping[str, Any]) -> np.ndarray:
    """Return plain features for metrics and simple classifiers.

    Args:
        items: Items.
        schema: Of the items.

    Returns:
        float64 (items, d).
    """
    return get_domain(schema).features(items, schema)


def labels(items: Items, schema: Mapping[str, Any]) -> np.ndarray | None:
    """Return int64 class labels (items,), or None where items carry none.

    Args:
        items: Items.
        schema: Of the items.
    """
    return get_domain(schema).labels(items)


def to_arrow(items: Items, schema: Mapping[str, Any]) -> pa.Table:
    """Store items as an Arrow table, one row each.

    Args:
        items: Items.
        schema: Of the items.
    """
    from lightning_synth.schema.arrow import to_table

    return to_table(items, get_domain(schema))


def from_arrow(table: pa.Table, schema: Mapping[str, Any]) -> Items:
    """Read items back from a table of `to_arrow`.

    Args:
        table: The table; columns that are no fields are ignored.
        schema: Of the items.
    """
    from lightning_synth.schema.arrow import from_table

    return from_table(table, get_domain(schema))


def item_hashes(items: Items, schema: Mapping[str, Any]) -> np.ndarray:
    """Hash the content of each item (uint64).

    Args:
        items: Items.
        schema: Of the items.
    """
    from lightning_synth.schema import hashing

    return hashing.item_hashes(items, get_domain(schema))


def fingerprint(items: Items, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Summarise which items a training set holds; see `overlap`.

    Args:
        items: Items.
        schema: Of the items.
    """
    from lightning_synth.schema import hashing

    return hashing.fingerprint(items, get_domain(schema))


def infer_domain(batch: Any) -> str:
    """Say which domain a batch of a foreign data module belongs to.

    Args:
        batch: Its first training batch.

    Raises:
        SchemaError: Saying what the batch looked like and what was expected.
    """
    for name, domain in _DOMAINS.items():
        if domain.matches(batch):
            return name
    if isinstance(batch, dict):
        seen = f"a dict with keys {sorted(batch)}"
    elif isinstance(batch, (tuple, list)):
        parts = [tuple(p.shape) if isinstance(p, torch.Tensor) else type(p).__name__ for p in batch]
        seen = f"a {type(batch).__name__} of {parts}"
    else:
        seen = type(batch).__name__
    raise SchemaError(
        f"could not infer the schema from the first training batch ({seen}): expected a 3-D float tensor x "
        "(batch, channels, length), a dict with 'x' or 'item_id', or a PyG Batch; "
        "or give the DataModule a .schema (lightning_synth.schema.describe)"
    )


def layout_of(batch: Any) -> list[str] | None:
    """Name the positions of a tuple batch: ``["x", "y"]``; None for other batches."""
    if isinstance(batch, torch.Tensor):
        return ["x"]
    return (
        ["x", "y", *(f"field_{i}" for i in range(2, len(batch)))][: len(batch)]
        if isinstance(batch, (tuple, list))
        else None
    )


def canonical(batch: Any, schema: Mapping[str, Any]) -> Any:
    """Turn a foreign tuple batch or item into the dict of its domain; other batches pass through.

    Args:
        batch: A batch or an item of the source.
        schema: With ``layout`` naming the positions of a tuple.
    """
    layout = schema.get("layout")
    if not layout:
        return batch
    if isinstance(batch, torch.Tensor):
        return {layout[0]: batch}
    return dict(zip(layout, batch, strict=True)) if isinstance(batch, (tuple, list)) else batch


def like_source(item: Any, schema: Mapping[str, Any]) -> Any:
    """Turn a canonical dict back into the tuple that the source yields.

    Args:
        item: A canonical item or batch.
        schema: With ``layout``, or without for sources that yield dicts.
    """
    layout = schema.get("layout")
    if not layout or not isinstance(item, dict):
        return item
    return item[layout[0]] if len(layout) == 1 else tuple(item[name] for name in layout)


def infer_schema(batch: Any) -> Schema:
    """Describe a foreign batch; statistics come from this batch alone.

    Args:
        batch: A training batch of a data module without ``.schema``.

    Returns:
        A schema, with ``layout`` for tuple batches.

    Raises:
        SchemaError: If the batch fits no domain.

    Example:
        >>> infer_schema((torch.zeros(8, 3, 24), torch.arange(8) % 2))["layout"]
        ['x', 'y']
    """
    domain, layout = infer_domain(batch), layout_of(batch)
    items = uncollate(canonical(batch, {"layout": layout}), domain_schema(domain))
    return describe(items, domain, **({"layout": layout} if layout else {}))


def domain_schema(domain: str) -> Schema:
    """Return the smallest schema that selects a domain."""
    return {"domain": domain}


def schema_diff(expected: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """Say in which structural entries two schemas differ; empty if they are compatible.

    Args:
        expected: Of the real data.
        got: Of the synthetic data.

    Example:
        >>> schema_diff({"domain": "timeseries", "channels": 2}, {"domain": "timeseries", "channels": 3})
        'channels: expected 2, got 3'
    """
    if expected.get("domain") != got.get("domain"):
        return f"domain: expected {expected.get('domain')}, got {got.get('domain')}"
    lines = []
    for key in get_domain(expected).structure:
        want, have = expected.get(key), got.get(key)
        if isinstance(want, Mapping) or isinstance(have, Mapping):
            want, have = sorted(want or ()), sorted(have or ())
        if want != have:
            lines.append(f"{key}: expected {want}, got {have}")
    return "; ".join(lines)


def detach(batch: Any) -> Any:
    """Cut a batch off the computation that made it: a view of a parameter requires grad even under ``no_grad``.

    Args:
        batch: A dict of tensors, a list of graphs, or a PyG object.
    """
    if isinstance(batch, dict):
        return {key: value.detach() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    if isinstance(batch, Sequence):
        return [detach(part) for part in batch]
    return batch.apply(lambda value: value.detach())


def move(batch: Any, device: torch.device | str) -> Any:
    """Move a batch to a device.

    Args:
        batch: A dict of tensors, a list of graphs, or a PyG object.
        device: Where to.
    """
    if isinstance(batch, dict):
        return {key: value.to(device) for key, value in batch.items()}
    if isinstance(batch, Sequence):
        return [move(part, device) for part in batch]
    return batch.to(device)
