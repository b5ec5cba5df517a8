"""Content hashes of items: which data a generator saw, without keeping the data."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_synth.items import StackedItems
from lightning_synth.schema.base import Domain

#: Hashes kept in a fingerprint; larger training sets keep the smallest ones (a bottom-k sketch).
MAX_HASHES = 1 << 16
# What a training batch adds to an item is none of its content.
_IGNORED = ("is_synthetic", "weight", "target_weight", "train_mask", "val_mask", "test_mask")


def _digest(parts: Sequence[bytes]) -> int:
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part)
    return int.from_bytes(state.digest(), "little")


def item_hashes(items: Sequence[Any], domain: Domain) -> np.ndarray:
    """Hash the content of each item.

    Args:
        items: Items of one domain.
        domain: Their domain.

    Returns:
        uint64 (items,); equal items have equal hashes whatever container or batch they came from.
    """
    if isinstance(items, StackedItems):
        names = sorted(name for name in items.tensors if name not in _IGNORED)
        columns = [np.ascontiguousarray(items.tensors[name].detach().cpu().numpy()) for name in names]
        header = [
            f"{name}:{column.dtype}:{column.shape[1:]}".encode() for name, column in zip(names, columns, strict=True)
        ]
        rows = (
            [part for h, c in zip(header, columns, strict=True) for part in (h, c[i].tobytes())]
            for i in range(len(items))
        )
        return np.fromiter((_digest(row) for row in rows), dtype=np.uint64, count=len(items))
    return np.fromiter((_digest(_parts(domain.fields(item))) for item in items), dtype=np.uint64, count=len(items))


def _parts(fields: Mapping[str, Any]) -> list[bytes]:
    parts: list[bytes] = []
    for name in sorted(key for key in fields if key not in _IGNORED):
        value = fields[name]
        if isinstance(value, str):
            parts += [f"{name}:str".encode(), value.encode()]
            continue
        array = np.ascontiguousarray(value)
        shape = array.shape if array.ndim else ()
        parts += [f"{name}:{array.dtype}:{np.asarray(value).shape if array.ndim else shape}".encode(), array.tobytes()]
    return parts


def fingerprint(items: Sequence[Any], domain: Domain) -> dict[str, Any]:
    """Summarise which items a data set holds.

    Args:
        items: Training items.
        domain: Their domain.

    Returns:
        ``{"digest": hex, "num_items": int, "hashes": base64 of sorted little-endian uint64}``.
    """
    hashes = np.sort(item_hashes(items, domain))
    kept = hashes[:MAX_HASHES].astype("<u8")
    return {
        "digest": hashlib.sha256(hashes.astype("<u8").tobytes()).hexdigest(),
        "num_items": len(hashes),
        "hashes": base64.b64encode(kept.tobytes()).decode(),
    }


def overlap(print_: Mapping[str, Any], hashes: np.ndarray) -> np.ndarray:
    """Find which items appear in a fingerprint.

    Args:
        print_: A result of `fingerprint`.
        hashes: uint64 (items,) of `item_hashes`.

    Returns:
        bool (items,); for training sets above `MAX_HASHES` only items whose hash falls in the kept sketch are found.
    """
    kept = np.frombuffer(base64.b64decode(print_["hashes"]), dtype="<u8")
    found: np.ndarray = np.isin(hashes, kept)
    return found
