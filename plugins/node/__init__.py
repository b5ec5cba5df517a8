"""Synthesis of nodes and edges in one large graph: class balancing and edge editing."""

from __future__ import annotations

from lightning_synth.registry import GeneratorSpec, lazy_classes

if __name__ != "lightning_synth.plugins.node":
    raise ImportError("import lightning_synth.plugins.node, not plugins.node")

_HERE = "lightning_synth.plugins.node"

GENERATORS: tuple[GeneratorSpec, ...] = (
    GeneratorSpec(
        name="node_oversample",
        target=f"{_HERE}.node_oversample:NodeOversample",
        domain="node",
        summary="Copies of rare nodes with their edges: the usual baseline",
        reference="doi:10.1613/jair.953",
        requires=("torch_geometric",),
        extra="graph",
        floor=True,
        baseline=True,
    ),
    GeneratorSpec(
        name="graph_ens",
        target=f"{_HERE}.graph_ens:GraphENS",
        domain="node",
        summary="Rare nodes mixed with any others, features by saliency, neighbours from both",
        reference="Park, Song & Yang, ICLR 2022, openreview MXEl7i-iru",
        requires=("torch_geometric",),
        extra="graph",
        tiny={"hidden": 8},
    ),
    GeneratorSpec(
        name="graph_sha",
        target=f"{_HERE}.graph_sha:GraphSHA",
        domain="node",
        summary="Rare nodes on the border of their class, mixed with those they are taken for",
        reference="arXiv:2306.09612",
        requires=("torch_geometric",),
        extra="graph",
        tiny={"hidden": 8, "target": 8},
    ),
    GeneratorSpec(
        name="graph_smote",
        target=f"{_HERE}.graph_smote:GraphSMOTE",
        domain="node",
        summary="Rare nodes between near ones of their class, with edges that a decoder believes in",
        reference="arXiv:2103.08826",
        requires=("torch_geometric",),
        extra="graph",
        tiny={"hidden": 8},
    ),
    GeneratorSpec(
        name="node_mixup",
        target=f"{_HERE}.node_mixup:NodeMixup",
        domain="node",
        summary="Rare nodes mixed with others of their class, labelled or surely predicted",
        reference="arXiv:2312.13032",
        requires=("torch_geometric",),
        extra="graph",
        tiny={"hidden": 8},
    ),
    GeneratorSpec(
        name="gaug",
        target=f"{_HERE}.gaug:GAug",
        domain="node",
        summary="Likely edges added, unlikely ones dropped, by a variational graph autoencoder",
        reference="arXiv:2006.06830",
        requires=("torch_geometric",),
        extra="graph",
        tiny={"hidden": 8, "latent": 4},
    ),
)

__getattr__ = lazy_classes(GENERATORS)
