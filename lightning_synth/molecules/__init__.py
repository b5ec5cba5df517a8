"""Molecules as typed graphs: a lossless representation, properties, drawings. RDKit is imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "BOND_TYPES": "representation",
    "InvalidMoleculeError": "representation",
    "MoleculeGraph": "representation",
    "MoleculeProblem": "representation",
    "Repaired": "representation",
    "canonical_smiles": "representation",
    "decode": "representation",
    "encode": "representation",
    "fit_vocabulary": "representation",
    "compute_properties": "properties",
    "max_valence": "representation",
    "molecule_grid": "draw",
    "murcko_scaffolds": "properties",
    "parse_atom_type": "representation",
    "read_molecule": "representation",
    "repair": "representation",
    "to_smiles": "representation",
    "valence_table": "representation",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'lightning_synth.molecules' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lightning_synth.molecules.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
