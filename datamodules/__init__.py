"""DataModules: splits without leakage, and a schema that says what one item is. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "lightning_synth.datamodules":
    raise ImportError("import lightning_synth.datamodules, not datamodules: the folder is part of that package")

_EXPORTS = {
    "ArrayDataModule": "timeseries",
    "AugmentedDataModule": "augmented",
    "BearingDataModule": "bearings",
    "EndlessSampler": "interactions",
    "EpochSampler": "base",
    "GraphDataModule": "graphs",
    "InteractionDataModule": "interactions",
    "ItemsDataModule": "base",
    "LargeGraphDataModule": "large_graph",
    "MixedDataModule": "mixed",
    "MoleculeDataModule": "molecules",
    "NodeDataModule": "nodes",
    "RequestDataModule": "requests",
    "SeriesDataModule": "series",
    "Splits": "base",
    "TEPDataModule": "tep",
    "UEADataModule": "timeseries",
    "make_imbalanced": "nodes",
}
__all__ = [
    "ArrayDataModule",
    "AugmentedDataModule",
    "BearingDataModule",
    "EndlessSampler",
    "EpochSampler",
    "GraphDataModule",
    "InteractionDataModule",
    "ItemsDataModule",
    "LargeGraphDataModule",
    "MixedDataModule",
    "MoleculeDataModule",
    "NodeDataModule",
    "RequestDataModule",
    "SeriesDataModule",
    "Splits",
    "TEPDataModule",
    "UEADataModule",
    "make_imbalanced",
]

if TYPE_CHECKING:
    from lightning_synth.datamodules.augmented import AugmentedDataModule
    from lightning_synth.datamodules.base import EpochSampler, ItemsDataModule, Splits
    from lightning_synth.datamodules.bearings import BearingDataModule
    from lightning_synth.datamodules.graphs import GraphDataModule
    from lightning_synth.datamodules.interactions import EndlessSampler, InteractionDataModule
    from lightning_synth.datamodules.large_graph import LargeGraphDataModule
    from lightning_synth.datamodules.mixed import MixedDataModule
    from lightning_synth.datamodules.molecules import MoleculeDataModule
    from lightning_synth.datamodules.nodes import NodeDataModule, make_imbalanced
    from lightning_synth.datamodules.requests import RequestDataModule
    from lightning_synth.datamodules.series import SeriesDataModule
    from lightning_synth.datamodules.tep import TEPDataModule
    from lightning_synth.datamodules.timeseries import ArrayDataModule, UEADataModule


def __getattr__(name: str) -> Any:
    """Import a DataModule on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lightning_synth.datamodules' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lightning_synth.datamodules.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
