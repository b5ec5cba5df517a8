"""Generators of graphs: many small ones, or one large one."""

from __future__ import annotations

from lightning_synth.registry import GeneratorSpec, lazy_classes

if __name__ != "lightning_synth.plugins.graph":
    raise ImportError("import lightning_synth.plugins.graph, not plugins.graph")

_HERE = "lightning_synth.plugins.graph"

GENERATORS: tuple[GeneratorSpec, ...] = ()

__getattr__ = lazy_classes(GENERATORS)
