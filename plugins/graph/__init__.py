"""Generators of graphs: many small ones, or one large one."""

from __future__ import annotations

from lightning_synth.registry import GeneratorSpec, lazy_classes

if __name__ != "lightning_synth.plugins.graph":
    raise ImportError("import lightning_synth.plugins.graph, not plugins.graph")

_HERE = "lightning_synth.plugins.graph"

GENERATORS: tuple[GeneratorSpec, ...] = (
    GeneratorSpec(
        name="defog",
        target=f"{_HERE}.defog:DeFoG",
        domain="graph",
        summary="Discrete flow matching with a graph transformer, few steps, constraints; or discrete diffusion",
        reference="arXiv:2410.04263",
        conditions=("label", "*"),
        requires=("torch_geometric",),
        extra="graph",
        tiny={
            "num_layers": 1,
            "d_node": 16,
            "d_edge": 8,
            "d_graph": 8,
            "heads": 2,
            "rrwp_steps": 4,
            "num_steps": 5,
            "condition_dropout": 0.0,
        },
    ),
)

__getattr__ = lazy_classes(GENERATORS)
