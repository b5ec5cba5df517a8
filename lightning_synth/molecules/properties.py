"""Properties that RDKit computes of a molecule, by name; exact, so that no oracle stands between asked and obtained."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_synth.errors import ConfigError
from lightning_synth.molecules.table import cached, from_bytes, map_chunks, to_bytes

if TYPE_CHECKING:
    from rdkit import Chem

#: Name to module and function of RDKit; ``SA`` is the synthetic accessibility of its contributed `sascorer`.
_RDKIT = {
    "logP": ("rdkit.Chem.Crippen", "MolLogP"),
    "MW": ("rdkit.Chem.Descriptors", "MolWt"),
    "TPSA": ("rdkit.Chem.rdMolDescriptors", "CalcTPSA"),
    "rings": ("rdkit.Chem.rdMolDescriptors", "CalcNumRings"),
    "aromatic_rings": ("rdkit.Chem.rdMolDescriptors", "CalcNumAromaticRings"),
    "aliphatic_rings": ("rdkit.Chem.rdMolDescriptors", "CalcNumAliphaticRings"),
    "HBA": ("rdkit.Chem.Lipinski", "NumHAcceptors"),
    "HBD": ("rdkit.Chem.Lipinski", "NumHDonors"),
    "rotatable_bonds": ("rdkit.Chem.rdMolDescriptors", "CalcNumRotatableBonds"),
    "heavy_atoms": ("rdkit.Chem.Lipinski", "HeavyAtomCount"),
    "fsp3": ("rdkit.Chem.rdMolDescriptors", "CalcFractionCSP3"),
    "charge": ("rdkit.Chem.rdmolops", "GetFormalCharge"),
    "bertz": ("rdkit.Chem.GraphDescriptors", "BertzCT"),
}
PROPERTIES = (*_RDKIT, "qed", "SA")


@functools.cache
def property_function(name: str) -> Callable[[Chem.Mol], float]:
    """Return the function of an RDKit molecule that computes a property.

    Args:
        name: One of `PROPERTIES`: ``logP`` (Crippen), ``qed``, ``MW`` (g/mol), ``TPSA`` (square angstrom), ``rings``,
            ``aromatic_rings``, ``aliphatic_rings``, ``HBA``, ``HBD``, ``rotatable_bonds``, ``heavy_atoms``, ``fsp3``,
            ``charge``, ``bertz``, ``SA`` (1 easy to 10 hard; Ertl & Schuffenhauer 2009, doi:10.1186/1758-2946-1-8).

    Raises:
        ConfigError: If the name is unknown, or RDKit came without its contributed scorer.

    Example:
        >>> from rdkit import Chem
        >>> round(property_function("MW")(Chem.MolFromSmiles("CCO")), 2)
        46.07
    """
    if name == "SA":
        function: Callable[[Chem.Mol], float] = _contributed_scorer().calculateScore
        return function
    if name == "qed":
        return _qed
    if name not in _RDKIT:
        raise ConfigError(f"unknown property {name!r}; known: {', '.join(PROPERTIES)}")
    module, attribute = _RDKIT[name]
    function = getattr(importlib.import_module(module), attribute)
    return function


def _qed(mol: Chem.Mol) -> float:
    """RDKit's QED; its structural alerts are searched for in one call, and logP is not computed a second time."""
    from rdkit.Chem import QED, rdMolDescriptors
    from rdkit.Chem import rdmolops as ops

    logp = property_function("logP")
    aromatic = ops.DeleteSubstructs(mol, QED.AliphaticRings)
    properties = QED.QEDproperties(  # type: ignore[no-untyped-call]
        MW=rdMolDescriptors._CalcMolWt(mol),
        ALOGP=logp(mol),
        HBA=sum(len(mol.GetSubstructMatches(pattern)) for pattern in QED.Acceptors),
        HBD=rdMolDescriptors.CalcNumHBD(mol),
        PSA=rdMolDescriptors.CalcTPSA(mol),
        ROTB=rdMolDescriptors.CalcNumRotatableBonds(mol, rdMolDescriptors.NumRotatableBondsOptions.Strict),
        AROM=len(ops.GetSSSR(aromatic)),
        ALERTS=len(_alerts().GetMatches(mol)),
    )
    return float(QED.qed(mol, qedProperties=properties))  # type: ignore[no-untyped-call]


@functools.cache
def _alerts() -> Any:
    from rdkit.Chem import QED, FilterCatalog

    catalog = FilterCatalog.FilterCatalog()
    for i, pattern in enumerate(QED.StructuralAlerts):
        catalog.AddEntry(FilterCatalog.FilterCatalogEntry(str(i), FilterCatalog.SmartsMatcher(str(i), pattern)))
    return catalog


def _contributed_scorer() -> Any:
    from rdkit import RDConfig

    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("sascorer", path)
    if spec is None or spec.loader is None or not path.exists():
        raise ConfigError(f"the property SA needs RDKit's contributed {path}, which this installation lacks")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compute_properties(smiles: Sequence[str], names: Sequence[str], processes: int = 1) -> np.ndarray:
    """Compute properties of many molecules.

    Args:
        smiles: Readable SMILES.
        names: Of `PROPERTIES`.
        processes: Worker processes from 20,000 molecules on; from 5,000 on results are cached.

    Returns:
        float64 (molecules, names).

    Example:
        >>> compute_properties(["CCO", "c1ccccc1"], ["heavy_atoms", "rings"]).tolist()
        [[3.0, 0.0], [6.0, 1.0]]
    """
    for name in names:
        property_function(name)

    def compute(name: str) -> dict[str, np.ndarray]:
        parts = map_chunks(partial(_property_chunk, name=name), smiles, processes, f"computing {name}")
        return {"value": np.concatenate([np.zeros(0), *parts])}

    columns = [cached("property", smiles, name, compute=partial(compute, name))["value"] for name in names]
    return np.stack(columns, 1) if columns else np.zeros((len(smiles), 0))


def _property_chunk(smiles: Sequence[str], name: str) -> np.ndarray:
    from rdkit import Chem, rdBase

    function = property_function(name)
    with rdBase.BlockLogs():
        return np.array([float(function(Chem.MolFromSmiles(text))) for text in smiles])


def murcko_scaffolds(smiles: Sequence[str], processes: int = 1) -> list[str]:
    """Return the Bemis-Murcko scaffold of each molecule: its rings and what links them.

    Args:
        smiles: Readable SMILES.
        processes: Worker processes from 20,000 molecules on.

    Returns:
        Canonical SMILES; empty for molecules without rings.

    Example:
        >>> murcko_scaffolds(["CCc1ccccc1", "CCO"])
        ['c1ccccc1', '']
    """

    def compute() -> dict[str, np.ndarray]:
        parts = map_chunks(_scaffold_chunk, smiles, processes, "computing scaffolds")
        return {"value": to_bytes([text for part in parts for text in part])}

    return from_bytes(cached("scaffold", smiles, compute=compute)["value"])


def _scaffold_chunk(smiles: Sequence[str]) -> list[str]:
    from rdkit import Chem

    return [scaffold_of(Chem.MolFromSmiles(text)) for text in smiles]


def scaffold_of(mol: Chem.Mol) -> str:
    """Return the canonical SMILES of the Bemis-Murcko scaffold of one molecule; empty without rings.

    Args:
        mol: The molecule.
    """
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    if not mol.GetRingInfo().NumRings():
        return ""
    return str(Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(mol)))  # type: ignore[no-untyped-call]
