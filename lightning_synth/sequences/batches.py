"""Left-padded batches of sequences, and what operators do to their rows and positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def choose_rows(acts: Tensor, changed: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Batch:
    """Take the changed rows where an operator acts, the old ones elsewhere; new fields are kept.

    Args:
        acts: bool (batch,).
        changed: Batch after the operator.
        batch: Batch before it.
    """
    old = {name: batch.get(name, _absent(name, value, batch)) for name, value in changed.items()}
    return {
        name: torch.where(acts.reshape(-1, *([1] * (value.ndim - 1))), value, old[name])
        for name, value in changed.items()
    }


def compact(batch: Batch, kept: Tensor, length: int | None = None) -> Batch:
    """Keep some positions and close the gaps, left-padded again.

    Args:
        batch: With fields (batch, width).
        kept: bool (batch, width).
        length: Columns of the result, the latest positions; None: as many as there are.

    Returns:
        A new batch, ``padding_mask`` included.

    Example:
        >>> batch = {"item_id": torch.tensor([[1, 2, 3]]), "padding_mask": torch.ones(1, 3, dtype=torch.bool)}
        >>> compact(batch, torch.tensor([[True, False, True]]))["item_id"].tolist()
        [[0, 1, 3]]
    """
    width = kept.shape[1]
    length = width if length is None else length
    # Column of each kept position: as far from the right end as there are kept ones from it on.
    to = length - kept.flip(1).cumsum(1).flip(1)
    # What is dropped, and what does not fit, goes to a column that is cut off.
    to = torch.where(kept & (to >= 0), to, length)
    fields = {
        name: value.new_zeros(len(value), length + 1).scatter_(1, to, value)[:, :length]
        for name, value in columns(batch | {"padding_mask": kept}).items()
    }
    return batch | fields


def columns(batch: Mapping[str, Tensor]) -> Batch:
    """Return the fields with one value a position.

    Args:
        batch: With ``padding_mask`` (batch, length).
    """
    shape = batch["padding_mask"].shape
    return {name: value for name, value in batch.items() if value.ndim == 2 and value.shape == shape}


def completed(batch: Mapping[str, Tensor]) -> Batch:
    """Return a batch with all fields that operators change: ``target_weight`` and ``item_is_synthetic``, too.

    Args:
        batch: With ``padding_mask`` (batch, length).
    """
    whole = dict(batch)
    mask = whole["padding_mask"]
    whole.setdefault("target_weight", not_first(mask).float())
    whole.setdefault("item_is_synthetic", torch.zeros_like(mask))
    return whole


def _absent(name: str, like: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """What a field that an operator adds is for rows on which it did not act."""
    source = batch.get(name.split("_", 1)[1]) if name.startswith("view") else None
    return torch.zeros_like(like) if source is None else source


def not_first(mask: Tensor) -> Tensor:
    """Return the real positions but the first one of each row.

    Args:
        mask: bool (batch, length), True = real.
    """
    return mask & (mask.cumsum(1) > 1)


def made_up(batch: Batch, where: Tensor, item_id: Tensor) -> Batch:
    """Write other items; they are synthetic, and context only.

    Args:
        batch: With all fields (`completed`).
        where: bool (batch, length).
        item_id: int64 (batch, length), read where ``where`` is True.
    """
    return batch | {
        "item_id": torch.where(where, item_id, batch["item_id"]),
        "target_weight": batch["target_weight"].masked_fill(where, 0.0),
        "item_is_synthetic": batch["item_is_synthetic"] | where,
    }
