"""Generators of molecules: graphs of typed atoms and bonds."""

from __future__ import annotations

from lightning_synth.registry import GeneratorSpec, lazy_classes

if __name__ != "lightning_synth.plugins.molecule":
    raise ImportError("import lightning_synth.plugins.molecule, not plugins.molecule")

_HERE = "lightning_synth.plugins.molecule"

GENERATORS: tuple[GeneratorSpec, ...] = (
    GeneratorSpec(
        name="molecule_flow",
        target=f"{_HERE}.molecule_flow:MoleculeFlow",
        domain="molecule",
        summary="Discrete flow matching on atoms and Kekule bonds; properties, scaffolds, text, editing; no repair",
        reference="arXiv:2410.04263",
        conditions=("label", "*"),
        requires=("torch_geometric", "rdkit"),
        extra="molecule",
        tiny={
            "num_layers": 1,
            "d_node": 16,
            "d_edge": 8,
            "d_graph": 8,
            "heads": 2,
            "rrwp_steps": 4,
            "num_steps": 5,
        },
    ),
    GeneratorSpec(
        name="brics_recombine",
        target=f"{_HERE}.brics_recombine:BricsRecombine",
        domain="molecule",
        summary="Sides of two training molecules joined at bonds that BRICS would cut",
        reference="doi:10.1002/cmdc.200800178",
        conditions=("label", "*"),
        requires=("torch_geometric", "rdkit"),
        extra="molecule",
        baseline=True,
    ),
    GeneratorSpec(
        name="fragment_mutation",
        target=f"{_HERE}.fragment_mutation:FragmentMutation",
        domain="molecule",
        summary="Training molecules after a few random edits that keep them valid",
        reference="doi:10.1039/C8SC05372C",
        conditions=("label", "*"),
        requires=("torch_geometric", "rdkit"),
        extra="molecule",
        floor=True,
        baseline=True,
    ),
    GeneratorSpec(
        name="molecule_bootstrap",
        target=f"{_HERE}.molecule_bootstrap:MoleculeBootstrap",
        domain="molecule",
        summary="Copies of training molecules, nearest to the requested properties",
        reference="doi:10.1214/aos/1176344552",
        conditions=("label", "*"),
        requires=("torch_geometric", "rdkit"),
        extra="molecule",
    ),
    GeneratorSpec(
        name="smiles_enumeration",
        target=f"{_HERE}.smiles_enumeration:SmilesEnumeration",
        domain="molecule",
        summary="Training molecules with their atoms in random order",
        reference="arXiv:1703.07076",
        conditions=("label", "*"),
        requires=("torch_geometric", "rdkit"),
        extra="molecule",
        baseline=True,
    ),
    GeneratorSpec(
        name="molecule_sequence",
        target=f"{_HERE}.molecule_sequence:MoleculeSequence",
        domain="molecule",
        summary="Spanning trees as sequences, masked so that all are valid, and a causal transformer; scaffolds, text",
        reference="arXiv:2407.09357",
        conditions=("label", "*"),
        requires=("torch_geometric", "rdkit"),
        extra="molecule",
        tiny={"d_model": 16, "heads": 2, "depth": 1, "lr": 1e-2},
    ),
)

__getattr__ = lazy_classes(GENERATORS)
