"""Interaction sequences: dicts with ``item_id`` (length,), where 0 is padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import DataError
from lightning_synth.schema.base import PROVENANCE, Domain, Items, Schema, class_summary, stack_column

_FEATURE_BINS = 128


class SequenceDomain(Domain):
    """Items ``{"item_id": int64 (length,), ...}`` with optional ``user_id``, ``timestamp``; batches are left-padded."""

    name = "sequence"
    structure = ("vocab_size", "max_length")

    def describe(self, items: Items, **known: Any) -> Schema:
        """Compute vocabulary size and the law of lengths."""
        if not len(items):
            raise DataError("0 training sequences: nothing to describe")
        lengths = np.array([len(item["item_id"]) for item in items])
        sizes, counts = np.unique(lengths, return_counts=True)
        schema: Schema = {
            "domain": self.name,
            "vocab_size": max(int(item["item_id"].max()) for item in items if len(item["item_id"])),
            "max_length": int(lengths.max()),
            "num_train": len(items),
            "length_counts": {str(size): int(count) for size, count in zip(sizes, counts, strict=True)},
            **class_summary(None, known),
        }
        return {**schema, **known}

    def validate(self, items: Items, schema: Mapping[str, Any]) -> None:
        """Check ids and lengths."""
        for i, item in enumerate(items):
            ids = item["item_id"]
            if ids.ndim != 1 or ids.is_floating_point():
                raise DataError(
                    f"sequence {i}: item_id must be integers of shape (length,), got {ids.dtype} {tuple(ids.shape)}"
                )
            if not len(ids):
                raise DataError(f"sequence {i} is empty")
            if len(ids) > schema["max_length"]:
                raise DataError(f"sequence {i} has {len(ids)} items, more than max_length {schema['max_length']}")
            if int(ids.min()) < 1 or int(ids.max()) > schema["vocab_size"]:
                raise DataError(f"sequence {i}: item ids must lie in 1..{schema['vocab_size']} (0 is padding)")

    def collate(self, items: Items, schema: Mapping[str, Any]) -> dict[str, Tensor]:
        """Left-pad to ``max_length`` with 0."""
        length = int(schema["max_length"])
        batch: dict[str, Tensor] = {}
        for key in items[0] if len(items) else ("item_id",):
            if key in PROVENANCE or (len(items) and torch.as_tensor(items[0][key]).ndim == 0):
                batch[key] = stack_column(items, key)
                continue
            padded = torch.zeros(len(items), length, dtype=torch.int64)
            for row, item in zip(padded, items, strict=True):
                values = item[key][-length:]
                if len(values):
                    row[-len(values) :] = values
            batch[key] = padded
        batch["padding_mask"] = batch["item_id"] != 0
        return batch

    def uncollate(self, batch: Any) -> list[dict[str, Tensor]]:
        """Cut the padding off."""
        mask = batch["padding_mask"]
        keys = [key for key in batch if key != "padding_mask"]
        return [
            {key: batch[key][i][mask[i]] if batch[key].ndim == 2 else batch[key][i] for key in keys}
            for i in range(len(mask))
        ]

    def num_rows(self, batch: Any) -> int:
        """Count sequences."""
        return len(batch["item_id"])

    def matches(self, batch: Any) -> bool:
        """A dict with ``item_id``."""
        return isinstance(batch, dict) and "item_id" in batch

    def complete(self, batch: Any, condition: Mapping[str, Tensor], schema: Mapping[str, Any]) -> dict[str, Tensor]:
        """Add the padding mask."""
        done = dict(batch)
        done.setdefault("padding_mask", done["item_id"] != 0)
        return done

    def finite(self, batch: Any) -> Tensor:
        """Rows with at least one item."""
        return torch.as_tensor(batch["padding_mask"].any(1))

    def features(self, items: Items, schema: Mapping[str, Any]) -> np.ndarray:
        """Share of hashed items, and the length."""
        bins = min(_FEATURE_BINS, int(schema["vocab_size"]))
        out = np.zeros((len(items), bins + 1))
        for row, item in zip(out, items, strict=True):
            ids = item["item_id"].numpy()
            row[:-1] = np.bincount((ids - 1) % bins, minlength=bins) / max(len(ids), 1)
            row[-1] = len(ids) / schema["max_length"]
        return out

    def labels(self, items: Items) -> None:
        """Sequences have no class label."""
        return None
