"""Molecules: PyG ``Data`` with atom and bond types, SMILES and properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import DataError
from lightning_synth.schema.base import Items, Schema, class_summary, joint_rows, summarise
from lightning_synth.schema.graph import GraphDomain, attach_rows, count_types


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
        atom_types = known.get("atom_types") or list(range(count_types(items, "x")))
        bond_types = known.get("bond_types") or list(range(count_types(items, "edge_attr")))
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
        if len(items) and hasattr(items, "batch"):
            return items.batch()
        batch = super().collate(items, schema)
        if not len(items):
            batch.smiles = []
        return batch

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
        """Add what was asked for and the generator did not compute: class, properties, text (empty for none)."""
        if "label" in condition and batch.get("label") is None:
            attach_rows(batch, "label", condition["label"])
        names = list(schema.get("properties", {}))
        if names and batch.get("y") is None and all(name in condition for name in names):
            attach_rows(batch, "y", torch.stack([condition[name] for name in names], 1))
        if schema.get("has_text") and batch.get("text") is None:
            texts = condition.get("text")
            attach_rows(batch, "text", [""] * self.num_rows(batch) if texts is None else texts.tolist())
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
