"""Synthesis of nodes and edges in one large graph: class balancing and edge editing."""

from __future__ import annotations

from lightning_synth.registry import GeneratorSpec, lazy_classes

if __name__ != "lightning_synth.plugins.node":
    raise ImportError("import lightning_synth.plugins.node, not plugins.node")

_HERE = "lightning_synth.plugins.node"

GENERATORS: tuple[GeneratorSpec, ...] = ()

__getattr__ = lazy_classes(GENERATORS)
