"""Small reference models that a study trains; a name of one's own is a dotted path ``package.module.Class``."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from lightning_synth.errors import ConfigError

_MODELS = {"gin": "GIN", "random_forest": "RandomForest", "wdcnn": "WDCNN"}
__all__ = ["GIN", "WDCNN", "RandomForest", "get_downstream"]

if TYPE_CHECKING:
    from lightning_synth.downstream.gin import GIN
    from lightning_synth.downstream.random_forest import RandomForest
    from lightning_synth.downstream.wdcnn import WDCNN


def get_downstream(name: str) -> Any:
    """Return a downstream model class.

    Args:
        name: ``random_forest``, ``wdcnn``, ``gin``, or the dotted path of a class with the same interface: made with
            ``schema=``, trained as a LightningModule or by ``fit(items, weight=, seed=)``, and with ``predict(items)``.

    Raises:
        ConfigError: If there is no such model.

    Example:
        >>> get_downstream("random_forest").__name__
        'RandomForest'
    """
    if name in _MODELS:
        return getattr(importlib.import_module(f"lightning_synth.downstream.{name}"), _MODELS[name])
    module, _, attribute = name.rpartition(".")
    if module:
        return getattr(importlib.import_module(module), attribute)
    near = difflib.get_close_matches(name, _MODELS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(_MODELS))}, or a dotted path"
    raise ConfigError(f"no downstream model {name!r}{hint}")


def __getattr__(name: str) -> Any:
    """Import a model class on first use (PEP 562)."""
    for module, cls in _MODELS.items():
        if cls == name:
            return getattr(importlib.import_module(f"lightning_synth.downstream.{module}"), cls)
    raise AttributeError(f"module 'lightning_synth.downstream' has no attribute {name!r}")
