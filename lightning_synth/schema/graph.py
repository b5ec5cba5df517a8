"""Graphs as PyG ``Data``: many small ones, molecules, or a single large one with node masks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import DataError
from lightning_synth.schema.base import Domain, Items, Schema, class_summary, joint_rows, summarise

_TYPE_BINS = 32
_MASKS = ("train_mask", "val_mask", "test_mask")
#: Float attributes of a graph that are not conditions, whatever their size.
_OWN = frozenset(("x", "y", "edge_index", "edge_attr", "edge_weight", "pos", "is_synthetic", "weight"))


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() == 1


def _types(items: Items, key: str) -> int:
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
            "num_node_types": _types(items, "x"),
            "num_edge_types": _types(items, "edge_attr"),
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
            _attach(batch, "y", condition["label"])
        for name, value in condition.items():
            if name != "label" and batch.get(name) is None:
                _attach(batch, name, value)
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


def _attach(batch: Any, name: str, value: Tensor) -> None:
    """Add one row a graph so that it survives `to_data_list`: PyG splits only what it has slices of."""
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


class MoleculeDomain(GraphDomain):
    """Graphs with atom types ``x``, bond types ``edge_attr``, ``smiles``, float properties ``y``, a class ``label``."""

    name = "molecule"
    structure: ClassVar[tuple[str, ...]] = (
        "num_node_types",
        "num_edge_types",
        "atom_types",
        "properties",
        "num_classes",
    )

    def describe(self, items: Items, **known: Any) -> Schema:
        """Compute the law of sizes, the vocabulary and the statistics of each property."""
        if not len(items):
            raise DataError("0 training molecules: nothing to describe")
        sizes, counts = np.unique(_column(items, "num_nodes"), return_counts=True)
        names, labels = list(known.get("property_names") or []), self.labels(items)
        y = np.asarray(_column(items, "y"), np.float64).reshape(len(items), -1) if names else np.zeros((len(items), 0))
        for i, name in enumerate(names):
            if not np.isfinite(y[:, i]).any():
                raise DataError(f"property {name!r} has no finite value in the {len(items)} training molecules")
        atom_types = known.get("atom_types") or list(range(_types(items, "x")))
        bond_types = known.get("bond_types") or list(range(_types(items, "edge_attr")))
        schema: Schema = {
            "domain": self.name,
            "num_node_types": len(atom_types),
            "num_edge_types": len(bond_types),
            "num_node_features": 0,
            "num_edge_features": 0,
            "max_nodes": int(sizes.max()),
            "node_counts": {str(size): int(count) for size, count in zip(sizes, counts, strict=True)},
            "num_train": len(items),
            "atom_types": atom_types,
            "bond_types": bond_types,
            "conditions": {},
            "properties": {name: summarise(y[:, i][np.isfinite(y[:, i])]) for i, name in enumerate(names)},
            "condition_rows": self._joint(y, names, labels) if names else {},
            "has_text": "text" in items[0],
            **class_summary(labels, known),
        }
        return {**schema, **{key: value for key, value in known.items() if key not in ("num_classes", "class_names")}}

    def _joint(self, y: np.ndarray, names: Sequence[str], labels: np.ndarray | None) -> dict[str, list[Any]]:
        """Joint rows of the properties: those without gaps, or where there are none, gaps filled with the mean."""
        complete = np.isfinite(y).all(1)
        if complete.any():
            y, labels = y[complete], None if labels is None else labels[complete]
        y = np.where(np.isfinite(y), y, np.nanmean(np.where(np.isfinite(y), y, np.nan), 0))
        columns = {name: y[:, i] for i, name in enumerate(names)}
        return joint_rows(columns if labels is None else {"label": labels, **columns})

    def validate(self, items: Items, schema: Mapping[str, Any]) -> None:
        """Check items one by one; those of `MoleculeItems`, which are right by construction, are not built for it."""
        if not hasattr(items, "column"):
            super().validate(items, schema)

    def collate(self, items: Items, schema: Mapping[str, Any]) -> Any:
        """Build a PyG ``Batch``."""
        return items.batch() if len(items) and hasattr(items, "batch") else super().collate(items, schema)

    def _validate_one(self, i: int, item: Any, schema: Mapping[str, Any]) -> None:
        super()._validate_one(i, item, schema)
        names, y = list(schema.get("properties", {})), item.get("y")
        if names and (y is None or y.numel() != len(names)):
            raise DataError(f"molecule {i}: {0 if y is None else y.numel()} properties, expected {', '.join(names)}")
        if y is not None and bool(torch.isinf(y).any()):
            raise DataError(f"molecule {i}: infinite property; missing ones are NaN")

    def matches(self, batch: Any) -> bool:
        """A PyG ``Batch`` with SMILES."""
        return hasattr(batch, "to_data_list") and hasattr(batch, "ptr") and "smiles" in batch

    def complete(self, batch: Any, condition: Mapping[str, Tensor], schema: Mapping[str, Any]) -> Any:
        """Add the class and the requested properties where the generator did not compute them."""
        if "label" in condition and batch.get("label") is None:
            _attach(batch, "label", condition["label"])
        names = list(schema.get("properties", {}))
        if names and batch.get("y") is None and all(name in condition for name in names):
            _attach(batch, "y", torch.stack([condition[name] for name in names], 1))
        return batch

    def conditions(self, batch: Any, schema: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the class and the properties by name; missing properties are NaN."""
        names = list(schema.get("properties", {}))
        label = {"label": batch.label.reshape(-1)} if schema.get("num_classes") and "label" in batch else {}
        return label | ({name: batch.y[:, i] for i, name in enumerate(names)} if "y" in batch else {})

    def labels(self, items: Items) -> np.ndarray | None:
        """The integer class ``label``, where the task is a classification; ``y`` holds numbers."""
        if not len(items) or items[0].get("label") is None:
            return None
        return np.asarray(_column(items, "label"), np.int64).reshape(-1)


def _column(items: Items, name: str) -> np.ndarray:
    """One number, or row of numbers, a molecule."""
    if hasattr(items, "column"):
        return np.asarray(items.column(name))
    return np.array([np.asarray(getattr(item, name)).reshape(-1) for item in items])


class NodeDomain(GraphDomain):
    """One large ``Data`` with ``train_mask``, ``val_mask``, ``test_mask``; the batch is the graph itself."""

    name = "node"
    optional = ("edge_is_synthetic",)
    structure: ClassVar[tuple[str, ...]] = ("num_features", "num_classes")

    def describe(self, items: Items, **known: Any) -> Schema:
        """Compute sizes and the training nodes' classes."""
        data = items[0]
        train = data.train_mask
        labels = data.y[train].numpy()
        schema: Schema = {
            "domain": self.name,
            "num_nodes": int(data.num_nodes),
            "num_edges": int(data.edge_index.shape[1]),
            "num_features": 0 if data.get("x") is None else int(data.x.shape[1]),
            "num_train": int(train.sum()),
            **class_summary(labels, {"num_classes": int(data.y.max()) + 1, **known}),
        }
        return {**schema, **{key: value for key, value in known.items() if key not in ("num_classes", "class_names")}}

    def _validate_simple(self, items: Items) -> None:
        """A citation graph may be directed."""

    def _validate_one(self, i: int, item: Any, schema: Mapping[str, Any]) -> None:
        types = {"num_node_types": 0, "num_edge_types": 0, **schema}
        super()._validate_one(i, item, types)
        if schema["num_features"] and item.x.shape[1] != schema["num_features"]:
            raise DataError(f"graph {i}: {item.x.shape[1]} node features, expected {schema['num_features']}")
        nodes, masks = int(item.num_nodes), [name for name in _MASKS if item.get(name) is not None]
        for name in ("x", "y", *masks):
            if item.get(name) is not None and len(item[name]) != nodes:
                raise DataError(f"graph {i}: {name} has {len(item[name])} entries for {nodes} nodes")
        for name in masks:
            if item[name].dtype != torch.bool:
                raise DataError(f"graph {i}: {name} must be bool, got {item[name].dtype}")
        self._validate_labels(i, item, masks, schema["num_classes"])

    def _validate_labels(self, i: int, item: Any, masks: list[str], num_classes: int) -> None:
        """Every node of a mask has a label of a known class, and is in no other mask."""
        used = torch.zeros(int(item.num_nodes), dtype=torch.int64)
        for name in masks:
            used += item[name].cpu()
        if bool((used > 1).any()):
            node = int((used > 1).nonzero()[0])
            raise DataError(f"graph {i}: node {node} is in {[name for name in masks if bool(item[name][node])]}")
        made, held_out = item.get("is_synthetic"), [item[name].cpu() for name in masks if name != "train_mask"]
        for mask in held_out if made is not None and len(made) == len(used) else ():
            if bool((made.cpu() & mask).any()):
                node = int((made.cpu() & mask).nonzero()[0])
                raise DataError(f"graph {i}: node {node} is synthetic, but in a validation or test mask")
        if item.get("y") is not None and bool(used.any()):
            y = item.y.cpu()[used > 0]
            if not 0 <= int(y.min()) <= int(y.max()) < num_classes:
                wrong = int(y.min()) if int(y.min()) < 0 else int(y.max())
                raise DataError(f"graph {i}: a node has label {wrong}, outside 0..{num_classes - 1}")

    def collate(self, items: Items, schema: Mapping[str, Any]) -> Any:
        """Return the single graph, or a list where several were sampled."""
        return items[0] if len(items) == 1 else list(items)

    def uncollate(self, batch: Any) -> list[Any]:
        """Return the graphs of a batch."""
        return list(batch) if isinstance(batch, (list, tuple)) else [batch]

    def num_rows(self, batch: Any) -> int:
        """Count graphs (usually 1)."""
        return len(batch) if isinstance(batch, (list, tuple)) else 1

    def matches(self, batch: Any) -> bool:
        """A ``Data`` with a training mask."""
        return "train_mask" in batch if hasattr(batch, "edge_index") else False

    def complete(self, batch: Any, condition: Mapping[str, Tensor], schema: Mapping[str, Any]) -> Any:
        """Nothing to add: node labels are part of the graph."""
        return batch

    def finite(self, batch: Any) -> Tensor:
        """Graphs whose node features are finite."""
        graphs = self.uncollate(batch)
        return torch.tensor([g.get("x") is None or bool(torch.isfinite(g.x).all()) for g in graphs], dtype=torch.bool)

    def labels(self, items: Items) -> None:
        """Classes belong to nodes, not to the graph."""
        return None

    def fields(self, item: Any) -> dict[str, Any]:
        """Keep ``is_synthetic`` and ``weight``: here they belong to nodes."""
        return {**item.to_dict(), "num_nodes": int(item.num_nodes)}
