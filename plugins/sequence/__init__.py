"""Generators of interaction sequences: what users did, in order."""

from __future__ import annotations

from lightning_synth.registry import GeneratorSpec, lazy_classes

if __name__ != "lightning_synth.plugins.sequence":
    raise ImportError("import lightning_synth.plugins.sequence, not plugins.sequence")

_HERE = "lightning_synth.plugins.sequence"

GENERATORS: tuple[GeneratorSpec, ...] = ()

__getattr__ = lazy_classes(GENERATORS)
