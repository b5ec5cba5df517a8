"""Erdos-Renyi graphs as a plugin of lightning-synth; this module only describes the generator."""

from lightning_synth.registry import GeneratorSpec

ERDOS_RENYI = GeneratorSpec(
    name="erdos_renyi_example",
    target="lightning_synth_erdos_renyi.generator:ErdosRenyi",
    domain="graph",
    summary="Random graphs with the size law and edge density of each class.",
    reference="Erdos and Renyi 1959, Publ. Math. Debrecen 6, 290-297",
    conditions=("label",),
    requires=("torch_geometric",),
)
