"""What every domain must be able to say and do about its items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import DataError

Schema = dict[str, Any]
Items = Sequence[Any]
PROVENANCE = ("is_synthetic", "weight")


class Domain(ABC):
    """Items of one kind: how they are described, checked, batched, stored, hashed and turned into features."""

    name: ClassVar[str]
    #: Schema entries in which two sources must agree before they may be mixed.
    structure: ClassVar[tuple[str, ...]]
    #: Fields that an item may lack or have on its own: `collate` fills them in.
    optional: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def describe(self, items: Items, **known: Any) -> Schema:
        """Compute the schema of training items; ``known`` entries win over computed ones."""

    @abstractmethod
    def validate(self, items: Items, schema: Mapping[str, Any]) -> None:
        """Raise `DataError` naming the index and field of the first unusable item."""

    @abstractmethod
    def collate(self, items: Items, schema: Mapping[str, Any]) -> Any:
        """Batch items."""

    @abstractmethod
    def uncollate(self, batch: Any) -> Items:
        """Split a batch into items."""

    @abstractmethod
    def num_rows(self, batch: Any) -> int:
        """Count the items of a batch."""

    @abstractmethod
    def matches(self, batch: Any) -> bool:
        """Whether a batch looks like this domain's (for data modules without a schema)."""

    @abstractmethod
    def complete(self, batch: Any, condition: Mapping[str, Tensor], schema: Mapping[str, Any]) -> Any:
        """Add label and conditions to a sampled batch where the generator did not."""

    @abstractmethod
    def finite(self, batch: Any) -> Tensor:
        """Return bool (rows,): rows without NaN or infinity."""

    @abstractmethod
    def features(self, items: Items, schema: Mapping[str, Any]) -> np.ndarray:
        """Return plain float64 features (items, d) for metrics and simple classifiers."""

    @abstractmethod
    def labels(self, items: Items) -> np.ndarray | None:
        """Return int64 class labels (items,), or None."""

    def conditions(self, batch: Any, schema: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what generators may be conditioned on: name to tensor (rows,), the label first."""
        label = {"label": batch["y"].reshape(-1)} if schema.get("num_classes") and "y" in batch else {}
        return label | {name: batch[name].reshape(-1) for name in schema.get("conditions") or {} if name in batch}

    def fields(self, item: Any) -> dict[str, Any]:
        """Return the storable fields of an item: tensors, numbers or strings."""
        return {key: value for key, value in dict(item).items() if key not in PROVENANCE}

    def build(self, fields: dict[str, Any]) -> Any:
        """Make an item of its fields."""
        return fields

    def mark(self, batch: Any, is_synthetic: Tensor, weight: Tensor) -> Any:
        """Attach the provenance of each row to a batch."""
        batch["is_synthetic"], batch["weight"] = is_synthetic, weight
        return batch


def class_summary(labels: np.ndarray | None, known: Mapping[str, Any]) -> Schema:
    """Count classes: ``num_classes``, ``class_counts``, ``class_names``."""
    if labels is None:
        return {"num_classes": 0, "class_counts": [], "class_names": []}
    if len(labels) and labels.min() < 0:
        raise DataError(f"item {int(labels.argmin())}: label y is {labels.min()}; classes are numbered from 0")
    names = known.get("class_names")
    found = int(labels.max()) + 1 if len(labels) else 0
    num_classes = max(found, int(known.get("num_classes", 0)), len(names or ()))
    counts = np.bincount(labels, minlength=num_classes).tolist()
    return {
        "num_classes": num_classes,
        "class_counts": counts,
        "class_names": [str(name) for name in names] if names else [str(i) for i in range(num_classes)],
    }


def summarise(values: np.ndarray) -> dict[str, float]:
    """Summarise a continuous condition: mean, std (1 if constant), min, max."""
    std = float(values.std())
    return {
        "mean": float(values.mean()),
        "std": std if std > 1e-12 else 1.0,
        "min": float(values.min()),
        "max": float(values.max()),
    }


def joint_rows(columns: Mapping[str, np.ndarray], limit: int = 256) -> dict[str, list[Any]]:
    """Keep at most ``limit`` evenly spaced joint rows of the training conditions."""
    rows = len(next(iter(columns.values())))
    # Sorted by label first, so that an even stride keeps the class proportions.
    order = np.lexsort([columns[name] for name in reversed(list(columns))]) if rows else np.zeros(0, int)
    keep = order[np.linspace(0, rows - 1, min(rows, limit)).round().astype(int)] if rows else order
    return {name: values[keep].tolist() for name, values in columns.items()}


def stack_column(items: Iterable[Any], key: str) -> Tensor:
    """Stack one field of all items."""
    return torch.stack([torch.as_tensor(item[key]) for item in items])
