"""Generators of interaction sequences: what users did, in order."""

from __future__ import annotations

from lightning_synth.registry import GeneratorSpec, lazy_classes

if __name__ != "lightning_synth.plugins.sequence":
    raise ImportError("import lightning_synth.plugins.sequence, not plugins.sequence")

_HERE = "lightning_synth.plugins.sequence"

GENERATORS: tuple[GeneratorSpec, ...] = (
    GeneratorSpec(
        name="popularity",
        target=f"{_HERE}.popularity:Popularity",
        domain="sequence",
        summary="Independent items with the popularity and the lengths of training",
        reference="arXiv:1706.07506",
        extra="sequence",
        floor=True,
    ),
    GeneratorSpec(
        name="markov",
        target=f"{_HERE}.markov:Markov",
        domain="sequence",
        summary="First-order Markov chain over items",
        reference="doi:10.1145/1772690.1772773",
        extra="sequence",
        floor=True,
        baseline=True,
    ),
    GeneratorSpec(
        name="sequential_rules",
        target=f"{_HERE}.sequential_rules:SequentialRuleSampler",
        domain="sequence",
        summary="Next items drawn by sequential rules: pairs within a window, weighted by distance",
        reference="arXiv:1803.09587",
        extra="sequence",
    ),
    GeneratorSpec(
        name="neighbour_splice",
        target=f"{_HERE}.neighbour_splice:NeighbourSplice",
        domain="sequence",
        summary="A user's past replaced by that of a similar user with whom they share an item",
        reference="doi:10.1145/3109859.3109872",
        extra="sequence",
        baseline=True,
    ),
    GeneratorSpec(
        name="prior_transformer",
        target=f"{_HERE}.prior_transformer:PriorTransformer",
        domain="sequence",
        summary="Earlier items for short users from a transformer over reversed sequences, sampled, without leakage",
        reference="arXiv:2105.00522",
        extra="sequence",
        tiny={"dim": 16, "lr": 1e-2},
    ),
    GeneratorSpec(
        name="sequence_transformer",
        target=f"{_HERE}.sequence_transformer:SequenceTransformer",
        domain="sequence",
        summary="Whole users, length first, then item by item, from a causal transformer",
        reference="arXiv:1808.09781",
        extra="sequence",
        tiny={"dim": 16, "lr": 1e-2},
    ),
    GeneratorSpec(
        name="embedding_diffusion",
        target=f"{_HERE}.embedding_diffusion:EmbeddingDiffusion",
        domain="sequence",
        summary="Earlier items for short users by diffusion over fixed item vectors, ten steps",
        reference="arXiv:2309.15758",
        extra="sequence",
        tiny={
            "item_dim": 8,
            "dim": 16,
            "num_layers": 1,
            "slots": 4,
            "num_steps": 3,
            "condition_dropout": 0.2,
            "lr": 1e-2,
        },
    ),
)

__getattr__ = lazy_classes(GENERATORS)
