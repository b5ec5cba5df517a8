"""Generators of molecules: graphs of typed atoms and bonds."""

from __future__ import annotations

from lightning_synth.registry import GeneratorSpec, lazy_classes

if __name__ != "lightning_synth.plugins.molecule":
    raise ImportError("import lightning_synth.plugins.molecule, not plugins.molecule")

_HERE = "lightning_synth.plugins.molecule"

GENERATORS: tuple[GeneratorSpec, ...] = ()

__getattr__ = lazy_classes(GENERATORS)
