"""Graphs as PyG ``Data``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import DataError
from lightning_synth.schema.base import Domain, Items, Schema, class_summary, joint_rows, summarise

_TYPE_BINS = 32
#: Float attributes of a graph that are not conditions, whatever their size.
_OWN = frozenset(("x", "y", "edge_index", "edge_attr", "edge_weight", "pos", "is_synthetic", "weight"))


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() == 1


def count_types(items: Items, key: str) -> int:
    """Number of integer types in a field; 0 if absent or floating."""
    values = [item[key] for item in items if item.get(key) is not None]
    if not values or values[0].is_floating_point():
        return 0
    return 1 + max((int(value.max()) for value in values if value.numel()), default=0)


def _width(items: Items, key: str) -> int:
    """Number of float features in a field; 0 if absent or integer."""
    value = next((item[key] for item in items if item.get(key) is not None), None)
    return int(value.shape[-1]) if value is not None and value.is_floating_point() else 0


class GraphDomain(Domain):
    """PyG ``Data`` with ``edge_index`` in both directions; optional ``x``, ``edge_attr``, label ``y``."""

    name = "graph"
    structure: ClassVar[tuple[str, ...]] = (
        "num_node_types",
        "num_edge_types",
        "num_node_features",
        "num_edge_features",
        "num_classes",
    )

    def describe(self, items: Items, **known: Any) -> Schema:
        """Compute type counts, feature widths and the law of sizes."""
        if not len(items):
            raise DataError("0 training graphs: nothing to describe")
        sizes, counts = np.unique([item.num_nodes for item in items], return_counts=True)
        schema: Schema = {
            "domain": self.name,
            "num_node_types": count_types(items, "x"),
            "num_edge_types": count_types(items, "edge_attr"),
            "num_node_features": _width(items, "x"),
            "num_edge_features": _width(items, "edge_attr"),
            "max_nodes": int(sizes.max()),
            "node_counts": {str(size): int(count) for size, count in zip(sizes, counts, strict=True)},
            "num_train": len(items),
            **class_summary(self.labels(items), known),
        }
        return {
            **schema,
            **self._describe_conditions(items),
            **{key: value for key, value in known.items() if key not in ("num_classes", "class_names")},
        }

    def _describe_conditions(self, items: Items) -> Schema:
        """Graph-level numbers, such as a density: every float attribute of one element."""
        first = items[0]
        names = [key for key in first.keys() if key not in _OWN and _is_number(first[key])]
        columns = {name: np.array([float(item[name]) for item in items]) for name in names}
        labels = self.labels(items)
        rows = columns if labels is None else {"label": labels, **columns}
        return {
            "conditions": {name: summarise(values) for name, values in columns.items()},
            "condition_rows": joint_rows(rows) if names else {},
        }

    def validate(self, items: Items, schema: Mapping[str, Any]) -> None:
        """Check edge indices, types and finiteness; that every edge is there in both directions, once."""
        for i, item in enumerate(items):
            self._validate_one(i, item, schema)
        if len(items):
            self._validate_simple(items)

    def _validate_simple(self, items: Items) -> None:
        """Refuse edges in one direction only; warn of self-loops and repeated edges, all graphs at once."""
        sizes = torch.tensor([int(item.num_nodes) for item in items])
        start, total = sizes.cumsum(0) - sizes, int(sizes.sum())
        row, col = torch.cat([item.edge_index.cpu() + first for item, first in zip(items, start, strict=True)], 1)
        key = row * total + col
        lone = (~torch.isin(col * total + row, key)).nonzero()[:1, 0]
        if len(lone):
            i = int(torch.searchsorted(start, row[lone], right=True)) - 1
            u, v = int(row[lone] - start[i]), int(col[lone] - start[i])
            raise DataError(
                f"graph {i}: edge {u}->{v} has no edge {v}->{u}; store both directions "
                "(torch_geometric.utils.to_undirected), or read the graphs with GraphDataModule"
            )
        loops, repeated = int((row == col).sum()), len(key) - len(key.unique())
        if loops or repeated:
            warnings.warn(
                f"{loops} self-loops and {repeated} repeated edges: generators make simple graphs; "
                "GraphDataModule drops them",
                stacklevel=3,
            )

    def _validate_one(self, i: int, item: Any, schema: Mapping[str, Any]) -> None:
        edges, nodes = item.edge_index, item.num_nodes
        if not nodes:
            raise DataError(f"graph {i} has 0 nodes")
        if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
            raise DataError(f"graph {i}: edge_index must be int64 (2, edges), got {edges.dtype} {tuple(edges.shape)}")
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
            wrong = int(edges.min()) if int(edges.min()) < 0 else int(edges.max())
            raise DataError(f"graph {i}: edge_index names node {wrong}, but there are {nodes} nodes")
        if item.get("edge_attr") is not None and len(item.edge_attr) != edges.shape[1]:
            raise DataError(f"graph {i}: {len(item.edge_attr)} rows of edge_attr for {edges.shape[1]} edges")
        for key, kinds in (("x", schema["num_node_types"]), ("edge_attr", schema["num_edge_types"])):
            value = item.get(key)
            if value is None or not value.numel():
                continue
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise DataError(f"graph {i}: {key} has non-finite values")
            if kinds and not value.is_floating_point() and not 0 <= int(value.min()) <= int(value.max()) < kinds:
                raise DataError(f"graph {i}: {key} holds type {int(value.max())}, outside 0..{kinds - 1}")

    def collate(self, items: Items, schema: Mapping[str, Any]) -> Any:
        """Build a PyG ``Batch``."""
        from torch_geometric.data import Batch

        if not len(items):
            return _empty_batch(schema)
        return Batch.from_data_list(list(items))

    def uncollate(self, batch: Any) -> list[Any]:
        """Split a PyG ``Batch``."""
        return list(batch.to_data_list()) if self.num_rows(batch) else []

    def num_rows(self, batch: Any) -> int:
        """Count graphs."""
        return int(batch.num_graphs)

    def matches(self, batch: Any) -> bool:
        """A PyG ``Batch`` without SMILES."""
        return hasattr(batch, "to_data_list") and hasattr(batch, "ptr") and "smiles" not in batch

    def complete(self, batch: Any, condition: Mapping[str, Tensor], schema: Mapping[str, Any]) -> Any:
        """Add the graph label and the continuous conditions."""
        if "label" in condition and batch.get("y") is None:
            attach_rows(batch, "y", condition["label"])
        for name, value in condition.items():
            if name != "label" and batch.get(name) is None:
                attach_rows(batch, name, value)
        return batch

    def finite(self, batch: Any) -> Tensor:
        """Graphs whose float features are finite."""
        ok = torch.ones(self.num_rows(batch), dtype=torch.bool, device=batch.edge_index.device)
        x = batch.get("x")
        if x is not None and x.is_floating_point():
            bad = ~torch.isfinite(x).reshape(len(x), -1).all(1)
            ok[batch.batch[bad]] = False
        return ok

    def features(self, items: Items, schema: Mapping[str, Any]) -> np.ndarray:
        """Sizes, degree statistics, triangles, and shares of node and edge types."""
        return np.stack([self._features_of(item, schema) for item in items]) if len(items) else np.zeros((0, 8))

    def _features_of(self, item: Any, schema: Mapping[str, Any]) -> np.ndarray:
        from scipy.sparse import coo_array

        nodes, (row, col) = int(item.num_nodes), item.edge_index.numpy()
        adjacency = coo_array((np.ones(len(row)), (row, col)), shape=(nodes, nodes)).tocsr()
        degree = np.asarray(adjacency.sum(1)).ravel()
        triangles = float((adjacency @ adjacency).multiply(adjacency).sum()) / 6
        wedges = max(float((degree * (degree - 1)).sum()) / 2, 1.0)
        basic = [
            nodes,
            len(row) / 2,
            len(row) / max(nodes * (nodes - 1), 1),
            degree.mean(),
            degree.std(),
            degree.max(initial=0),
        ]
        parts = [np.array([*basic, triangles, 3 * triangles / wedges], dtype=float)]
        for key, kinds, width in (
            ("x", schema.get("num_node_types", 0), schema.get("num_node_features", 0)),
            ("edge_attr", schema.get("num_edge_types", 0), schema.get("num_edge_features", 0)),
        ):
            value = item.get(key)
            if kinds:
                bins = min(kinds, _TYPE_BINS)
                share = (
                    np.zeros(bins) if value is None else np.bincount(value.reshape(-1).numpy() % bins, minlength=bins)
                )
                parts.append(share / max(share.sum(), 1))
            elif width:
                parts.append(np.zeros(width) if value is None or not len(value) else value.double().mean(0).numpy())
        return np.concatenate(parts)

    def labels(self, items: Items) -> np.ndarray | None:
        """The integer graph label ``y``."""
        if not len(items):
            return None
        y = items[0].get("y")
        if y is None or y.is_floating_point() or y.numel() != 1:
            return None
        return np.array([int(item.y) for item in items], dtype=np.int64)

    def fields(self, item: Any) -> dict[str, Any]:
        """Tensors and strings of the graph, and its node count."""
        stored = {
            key: value for key, value in item.to_dict().items() if key not in ("is_synthetic", "weight", "batch", "ptr")
        }
        return {**stored, "num_nodes": int(item.num_nodes)}

    def build(self, fields: dict[str, Any]) -> Any:
        """Make a ``Data``."""
        from torch_geometric.data import Data

        return Data(**{**fields, "num_nodes": int(fields["num_nodes"])})

    def mark(self, batch: Any, is_synthetic: Tensor, weight: Tensor) -> Any:
        """Attach the provenance as graph-level attributes."""
        batch.is_synthetic, batch.weight = is_synthetic, weight
        return batch


def attach_rows(batch: Any, name: str, value: Tensor | list[str]) -> None:
    """Add one row or string a graph so that it survives `to_data_list`: PyG splits only what it has slices of."""
    batch[name] = value
    if getattr(batch, "_slice_dict", None):
        batch._slice_dict[name] = torch.arange(len(value) + 1)
        batch._inc_dict[name] = torch.zeros(len(value), dtype=torch.int64)


def _empty(schema: Mapping[str, Any]) -> Any:
    from torch_geometric.data import Data

    data = Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=0)
    if schema.get("num_node_types"):
        data.x = torch.zeros(0, dtype=torch.int64)
    elif schema.get("num_node_features"):
        data.x = torch.zeros(0, schema["num_node_features"])
    return data


def _empty_batch(schema: Mapping[str, Any]) -> Any:
    """A PyG ``Batch`` of no graphs."""
    from torch_geometric.data import Batch

    batch = Batch(**_empty(schema).to_dict())
    batch.batch, batch.ptr, batch._num_graphs = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 0
    return batch
