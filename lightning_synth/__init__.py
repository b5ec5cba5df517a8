"""Graph and time-series synthesis for PyTorch Lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "AdversarialGenerator": "adversarial",
    "CollapseMonitor": "callbacks",
    "DiffusionGenerator": "diffusion",
    "Evaluation": "evaluation",
    "FitFreeGenerator": "generator",
    "Generator": "generator",
    "GeneratorEMA": "callbacks",
    "GeneratorSpec": "registry",
    "KeyedRNG": "requests",
    "PoolAudit": "callbacks",
    "PoolWriter": "callbacks",
    "SampleLogger": "callbacks",
    "SampleRequests": "requests",
    "Samples": "requests",
    "Study": "study",
    "StudyResult": "study_result",
    "SyntheticPool": "pool",
    "evaluate": "evaluation",
    "get_generator": "registry",
    "get_spec": "registry",
    "list_generators": "registry",
    "load_generator": "checkpoint",
    "register": "registry",
}
_MODULES = ("callbacks", "datamodules", "downstream", "errors", "metrics", "plugins", "testing")
__all__ = [
    "AdversarialGenerator",
    "CollapseMonitor",
    "DiffusionGenerator",
    "Evaluation",
    "FitFreeGenerator",
    "Generator",
    "GeneratorEMA",
    "GeneratorSpec",
    "KeyedRNG",
    "PoolAudit",
    "PoolWriter",
    "SampleLogger",
    "SampleRequests",
    "Samples",
    "Study",
    "StudyResult",
    "SyntheticPool",
    "__version__",
    "callbacks",
    "datamodules",
    "downstream",
    "errors",
    "evaluate",
    "get_generator",
    "get_spec",
    "list_generators",
    "load_generator",
    "metrics",
    "plugins",
    "register",
    "testing",
]

if TYPE_CHECKING:
    from lightning_synth import callbacks, datamodules, downstream, errors, metrics, plugins, testing
    from lightning_synth.adversarial import AdversarialGenerator
    from lightning_synth.callbacks import CollapseMonitor, GeneratorEMA, PoolAudit, PoolWriter, SampleLogger
    from lightning_synth.checkpoint import load_generator
    from lightning_synth.diffusion import DiffusionGenerator
    from lightning_synth.evaluation import Evaluation, evaluate
    from lightning_synth.generator import FitFreeGenerator, Generator
    from lightning_synth.pool import SyntheticPool
    from lightning_synth.registry import GeneratorSpec, get_generator, get_spec, list_generators, register
    from lightning_synth.requests import KeyedRNG, SampleRequests, Samples
    from lightning_synth.study import Study
    from lightning_synth.study_result import StudyResult


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562), so that `import lightning_synth` stays light."""
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"lightning_synth.{_EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"lightning_synth.{name}")
    else:
        raise AttributeError(f"module 'lightning_synth' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
