"""One large graph with node labels and masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_synth.errors import DataError
from lightning_synth.schema.base import Items, Schema, class_summary
from lightning_synth.schema.graph import GraphDomain

_MASKS = ("train_mask", "val_mask", "test_mask")


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
