"""Interaction sequences: flat storage, readers, training pairs, operators, adapters; imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "OPERATORS": "operators",
    "Augmentation": "augmentation",
    "Crop": "operators",
    "Delete": "operators",
    "Insert": "operators",
    "Mask": "operators",
    "Operator": "operators",
    "PairSampler": "pairs",
    "Reorder": "operators",
    "RepPad": "operators",
    "ReplayTransform": "adapters",
    "SequenceItems": "items",
    "SlidingWindow": "operators",
    "SubsetSplit": "operators",
    "Substitute": "operators",
    "TwoViews": "augmentation",
    "similar_items": "similarity",
    "to_frame": "adapters",
    "to_pairs_text": "adapters",
    "to_recbole": "adapters",
    "to_rectools": "adapters",
    "to_replay_parquet": "adapters",
    "to_text": "adapters",
    "tune_pairs": "tuning",
}
__all__ = [
    "OPERATORS",
    "Augmentation",
    "Crop",
    "Delete",
    "Insert",
    "Mask",
    "Operator",
    "PairSampler",
    "Reorder",
    "RepPad",
    "ReplayTransform",
    "SequenceItems",
    "SlidingWindow",
    "SubsetSplit",
    "Substitute",
    "TwoViews",
    "similar_items",
    "to_frame",
    "to_pairs_text",
    "to_recbole",
    "to_rectools",
    "to_replay_parquet",
    "to_text",
    "tune_pairs",
]

if TYPE_CHECKING:
    from lightning_synth.sequences.adapters import (
        ReplayTransform,
        to_frame,
        to_pairs_text,
        to_recbole,
        to_rectools,
        to_replay_parquet,
        to_text,
    )
    from lightning_synth.sequences.augmentation import Augmentation, TwoViews
    from lightning_synth.sequences.items import SequenceItems
    from lightning_synth.sequences.operators import (
        OPERATORS,
        Crop,
        Delete,
        Insert,
        Mask,
        Operator,
        Reorder,
        RepPad,
        SlidingWindow,
        SubsetSplit,
        Substitute,
    )
    from lightning_synth.sequences.pairs import PairSampler
    from lightning_synth.sequences.similarity import similar_items
    from lightning_synth.sequences.tuning import tune_pairs


def __getattr__(name: str) -> Any:
    """Import a name on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lightning_synth.sequences' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lightning_synth.sequences.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
