"""Interaction sequences: dicts with ``item_id`` (length,), where 0 is padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import DataError
from lightning_synth.schema.base import Domain, Items, Schema, class_summary
from lightning_synth.sequences.items import SequenceItems

_FEATURE_BINS = 128


class SequenceDomain(Domain):
    """Items ``{"item_id": int64 (length,), ...}``; batches are left-padded to ``schema["max_length"]``.

    Optional fields: ``user_id`` scalar; per position ``timestamp``, ``target_weight`` (how much predicting the item at
    this position counts, 0 for context only; absent: 1 everywhere but at the first position, which has no context) and
    ``item_is_synthetic`` (made up by a generator that extends a real user); ``draw``, the number of an item that is
    drawn anew in every epoch. Sequences may be longer than ``max_length``: a batch holds their latest items.
    """

    name = "sequence"
    structure = ("vocab_size", "max_length")
    optional = ("user_id", "timestamp", "target_weight", "item_is_synthetic", "draw")

    def describe(self, items: Items, **known: Any) -> Schema:
        """Compute vocabulary size, popularity and the law of lengths (cut to ``max_length``)."""
        if not len(items):
            raise DataError("0 training sequences: nothing to describe")
        sequences = SequenceItems.from_items(items)
        ids, lengths = sequences.flat(), sequences.lengths.numpy()
        vocab_size = int(known.get("vocab_size", ids.max(initial=0)))
        max_length = int(known.get("max_length", lengths.max()))
        sizes, counts = np.unique(lengths.clip(max=max_length), return_counts=True)
        schema: Schema = {
            "domain": self.name,
            "vocab_size": vocab_size,
            "max_length": max_length,
            "num_train": len(items),
            "length_counts": {str(size): int(count) for size, count in zip(sizes, counts, strict=True)},
            # Position = item id; 0 is padding.
            "item_counts": np.bincount(ids[ids >= 0], minlength=vocab_size + 1).tolist(),
            **class_summary(None, known),
        }
        return {**schema, **known}

    def validate(self, items: Items, schema: Mapping[str, Any]) -> None:
        """Check ids, lengths and the fields beside them."""
        if not isinstance(items, SequenceItems):
            for i, item in enumerate(items):
                _check_form(item, i)
        if not len(items):
            return
        sequences = SequenceItems.from_items(items)
        row, index = sequences.position_rows()
        if len(empty := (sequences.lengths < 1).nonzero()):
            raise DataError(f"sequence {int(empty[0])} is empty")
        ids = sequences.columns["item_id"][index]
        if len(bad := ((ids < 1) | (ids > schema["vocab_size"])).nonzero()):
            raise DataError(
                f"sequence {int(row[bad[0]])}: item ids must lie in 1..{schema['vocab_size']} (0 is padding), "
                f"got {int(ids[bad[0]])}"
            )
        for name in ("timestamp", "target_weight"):
            values = sequences.columns.get(name)
            if values is not None and len(bad := (~torch.isfinite(values[index])).nonzero()):
                raise DataError(f"sequence {int(row[bad[0]])}: {name} is not finite")
        weight = sequences.columns.get("target_weight")
        if weight is not None and len(bad := (weight[index] < 0).nonzero()):
            raise DataError(f"sequence {int(row[bad[0]])}: target_weight is negative")

    def collate(self, items: Items, schema: Mapping[str, Any]) -> dict[str, Tensor]:
        """Left-pad to ``max_length`` with 0; longer sequences keep their latest items."""
        return SequenceItems.from_items(items).padded(int(schema["max_length"]))

    def uncollate(self, batch: Any) -> list[dict[str, Tensor]]:
        """Cut the padding off."""
        mask = batch["padding_mask"]
        lengths = mask.sum(1).tolist()
        items: list[dict[str, Tensor]] = [{} for _ in lengths]
        for key in (key for key in batch if key != "padding_mask"):
            values = batch[key][mask].split(lengths) if batch[key].ndim == 2 else batch[key]
            for item, value in zip(items, values, strict=True):
                item[key] = value
        return items

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
        """Share of hashed items, and the length, of the latest ``max_length`` items."""
        bins, most = min(_FEATURE_BINS, int(schema["vocab_size"])), int(schema["max_length"])
        sequences = SequenceItems.from_items(items).latest(most)
        row, lengths = sequences.position_rows()[0].numpy(), sequences.lengths.numpy()
        cells = np.bincount(row * bins + (sequences.flat() - 1) % bins, minlength=len(items) * bins)
        shares = cells.reshape(len(items), bins) / np.maximum(lengths, 1)[:, None]
        return np.concatenate([shares, lengths[:, None] / most], axis=1)

    def labels(self, items: Items) -> None:
        """Sequences have no class label."""
        return None


def _check_form(item: Mapping[str, Any], i: int) -> None:
    """Check shapes and types of one dict."""
    ids = torch.as_tensor(item["item_id"])
    if ids.ndim != 1 or ids.is_floating_point():
        raise DataError(
            f"sequence {i}: item_id must be integers of shape (length,), got {ids.dtype} {tuple(ids.shape)}"
        )
    for name, value in item.items():
        shape = tuple(torch.as_tensor(value).shape)
        if shape not in ((), (len(ids),)):
            raise DataError(f"sequence {i}: {name} has shape {shape}, but there are {len(ids)} items")
