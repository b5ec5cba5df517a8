"""Callbacks for any Lightning Trainer: averaging, sample figures, pools, audits. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "CollapseMonitor": "collapse",
    "FLAG": "flag",
    "GeneratorEMA": "ema",
    "PoolAudit": "pool_audit",
    "PoolWriter": "pool_writer",
    "ResilientCheckpoint": "resilient_checkpoint",
    "SampleLogger": "sample_logger",
}
__all__ = ["FLAG", "CollapseMonitor", "GeneratorEMA", "PoolAudit", "PoolWriter", "ResilientCheckpoint", "SampleLogger"]

if TYPE_CHECKING:
    from lightning_synth.callbacks.collapse import CollapseMonitor
    from lightning_synth.callbacks.ema import GeneratorEMA
    from lightning_synth.callbacks.flag import FLAG
    from lightning_synth.callbacks.pool_audit import PoolAudit
    from lightning_synth.callbacks.pool_writer import PoolWriter
    from lightning_synth.callbacks.resilient_checkpoint import ResilientCheckpoint
    from lightning_synth.callbacks.sample_logger import SampleLogger


def __getattr__(name: str) -> Any:
    """Import a callback on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lightning_synth.callbacks' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lightning_synth.callbacks.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
