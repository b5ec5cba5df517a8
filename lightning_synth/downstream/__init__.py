"""Small reference models that a study trains; a name of one's own is a dotted path ``package.module.Class``."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from lightning_synth.errors import ConfigError

_MODELS = {
    "fingerprint_forest": "FingerprintForest",
    "fingerprint_forest_regressor": "FingerprintForestRegressor",
    "gat": "GAT",
    "gcn": "GCN",
    "gin": "GIN",
    "graphsage": "GraphSAGE",
    "gru4rec": "GRU4Rec",
    "molecule_gin": "MoleculeGIN",
    "molecule_gin_regressor": "MoleculeGINRegressor",
    "random_forest": "RandomForest",
    "sasrec": "SASRec",
    "sequential_rules": "SequentialRules",
    "wdcnn": "WDCNN",
}
#: Modules that are not called like the model.
_MODULES = {
    "gat": "node_classifier",
    "gcn": "node_classifier",
    "graphsage": "node_classifier",
    "fingerprint_forest_regressor": "fingerprint_forest",
    "molecule_gin_regressor": "molecule_gin",
}
__all__ = [
    "FingerprintForest",
    "FingerprintForestRegressor",
    "GAT",
    "GCN",
    "GIN",
    "GRU4Rec",
    "GraphSAGE",
    "MoleculeGIN",
    "MoleculeGINRegressor",
    "RandomForest",
    "SASRec",
    "SequentialRules",
    "WDCNN",
    "get_downstream",
]

if TYPE_CHECKING:
    from lightning_synth.downstream.fingerprint_forest import FingerprintForest, FingerprintForestRegressor
    from lightning_synth.downstream.gin import GIN
    from lightning_synth.downstream.gru4rec import GRU4Rec
    from lightning_synth.downstream.molecule_gin import MoleculeGIN, MoleculeGINRegressor
    from lightning_synth.downstream.node_classifier import GAT, GCN, GraphSAGE
    from lightning_synth.downstream.random_forest import RandomForest
    from lightning_synth.downstream.sasrec import SASRec
    from lightning_synth.downstream.sequential_rules import SequentialRules
    from lightning_synth.downstream.wdcnn import WDCNN


def get_downstream(name: str) -> Any:
    """Return a downstream model class.

    Args:
        name: ``random_forest wdcnn gin gcn gat graphsage molecule_gin molecule_gin_regressor fingerprint_forest
            fingerprint_forest_regressor sasrec gru4rec sequential_rules``, or the dotted path of a class with the same
            interface: made with ``schema=``, trained as a LightningModule or by ``fit(items, weight=, seed=)``, and
            with ``predict(items)``, or with ``score(items)`` and the name of its ``metric``.

    Raises:
        ConfigError: If there is no such model.

    Example:
        >>> get_downstream("random_forest").__name__
        'RandomForest'
    """
    if name in _MODELS:
        return getattr(importlib.import_module(f"lightning_synth.downstream.{_MODULES.get(name, name)}"), _MODELS[name])
    module, _, attribute = name.rpartition(".")
    if module:
        return getattr(importlib.import_module(module), attribute)
    near = difflib.get_close_matches(name, _MODELS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(_MODELS))}, or a dotted path"
    raise ConfigError(f"no downstream model {name!r}{hint}")


def __getattr__(name: str) -> Any:
    """Import a model class on first use (PEP 562)."""
    for model, cls in _MODELS.items():
        if cls == name:
            return getattr(importlib.import_module(f"lightning_synth.downstream.{_MODULES.get(model, model)}"), cls)
    raise AttributeError(f"module 'lightning_synth.downstream' has no attribute {name!r}")
