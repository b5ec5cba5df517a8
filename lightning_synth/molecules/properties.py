"""Properties that RDKit computes of a molecule, by name; exact, so that no oracle stands between asked and obtained."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.molecules.cache import cached, from_bytes, map_chunks, to_bytes

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
    "heavy_atoms": ("rdkit.Chem.Lipinski", "HeavyAtomCount"),
    "fsp3": ("rdkit.Chem.rdMolDescriptors", "CalcFractionCSP3"),
    "charge": ("rdkit.Chem.rdmolops", "GetFormalCharge"),
}
PROPERTIES = (*_RDKIT, "rotatable_bonds", "bertz", "qed", "SA")
#: Nearest atoms by which BertzCT tells atoms apart.
_BERTZ_CUTOFF = 100
_ROTATABLE = "_strictRotatableBonds"


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
    if name in _OWN:
        return _OWN[name]
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
        ROTB=_rotatable_bonds(mol),
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


def _bertz(mol: Chem.Mol) -> float:
    """RDKit's BertzCT (Bertz 1981, doi:10.1021/ja00402a001), without a Python object for every atom and bond."""
    from rdkit import Chem
    from rdkit.ML.InfoTheory.rdInfoTheory import InfoEntropy

    if mol.GetNumAtoms() < 2:
        return 0.0
    distance = Chem.GetDistanceMatrix(mol, useBO=True, useAtomWts=False, force=True, prefix="Balaban")
    # Atoms are alike if they are as far from all others, to four decimals.
    profile = np.rint(1e4 * np.sort(distance, axis=1)[:, :_BERTZ_CUTOFF])
    seen: dict[bytes, int] = {}
    kind = [seen.setdefault(row.tobytes(), len(seen)) for row in profile]
    order = Chem.GetAdjacencyMatrix(mol, useBO=True)
    # A dative bond is there in one direction only.
    order = np.maximum(order, order.T)
    bonds: list[list[tuple[int, float]]] = [[] for _ in kind]
    first, second = np.nonzero(order)
    for atom, other, bond in zip(first.tolist(), second.tolist(), order[first, second].tolist(), strict=True):
        bonds[atom].append((other, bond))
    connections: dict[Any, float] = {}
    for atom, around in enumerate(bonds):
        for i, (one, bond) in enumerate(around):
            if bond > 1 and one > atom:
                pair = (min(kind[atom], kind[one]), max(kind[atom], kind[one]))
                connections[pair] = connections.get(pair, 0) + bond * (bond - 1) / 2
            for two, next_bond in around[i + 1 :]:
                angle = (min(kind[one], kind[two]), kind[atom], max(kind[one], kind[two]))
                connections[angle] = connections.get(angle, 0) + bond * next_bond
    counts = list(connections.values()) or [1]
    elements = list(Counter(mol.GetAtomWithIdx(i).GetAtomicNum() for i in range(len(kind))).values())
    spread = InfoEntropy(np.array(counts, float)) + math.log(sum(counts)) / math.log(2)
    return float(mol.GetNumAtoms() * InfoEntropy(np.array(elements, float)) + sum(counts) * spread)


def _rotatable_bonds(mol: Chem.Mol) -> int:
    """RDKit's count, kept with the molecule (as RDKit keeps logP), since QED counts them as well."""
    from rdkit.Chem import rdMolDescriptors

    if not mol.HasProp(_ROTATABLE):
        strict = rdMolDescriptors.NumRotatableBondsOptions.Strict
        mol.SetIntProp(_ROTATABLE, rdMolDescriptors.CalcNumRotatableBonds(mol, strict), computed=True)
    return int(mol.GetIntProp(_ROTATABLE))


_OWN: dict[str, Callable[[Chem.Mol], float]] = {"rotatable_bonds": _rotatable_bonds, "bertz": _bertz, "qed": _qed}


def _stereocentres(mol: Chem.Mol, includeUnassigned: bool = True) -> range:
    """As many entries as ``Chem.FindMolChiralCenters``, which looks at every atom twice, in Python."""
    from rdkit.Chem import rdMolDescriptors, rdmolops

    rdmolops.AssignStereochemistry(mol, cleanIt=True, force=True, flagPossibleStereoCenters=includeUnassigned)
    return range(rdMolDescriptors.CalcNumAtomStereoCenters(mol))


def _contributed_scorer() -> Any:
    from rdkit import RDConfig

    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("sascorer", path)
    if spec is None or spec.loader is None or not path.exists():
        raise ConfigError(f"the property SA needs RDKit's contributed {path}, which this installation lacks")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # All that the scorer takes from there; more than half of its time is spent on it.
    module.Chem = SimpleNamespace(FindMolChiralCenters=_stereocentres)  # type: ignore[attr-defined]
    return module


def compute_properties(smiles: Sequence[str], names: Sequence[str], processes: int = 1) -> np.ndarray:
    """Compute properties of many molecules.

    Args:
        smiles: Readable SMILES; an empty one is a sample that is no molecule.
        names: Of `PROPERTIES`.
        processes: Worker processes from 20,000 molecules on; from 5,000 on results are cached.

    Returns:
        float64 (molecules, names); NaN for what is no molecule.

    Raises:
        ConfigError: If a property is unknown.
        DataError: If a SMILES cannot be read.

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
    function = property_function(name)
    return np.array([float(function(_readable(text))) if text else np.nan for text in smiles])


def _readable(text: str) -> Chem.Mol:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(text)
    if mol is None:
        raise DataError(f"RDKit cannot read the SMILES {text!r}")
    return mol


def murcko_scaffolds(smiles: Sequence[str], processes: int = 1) -> list[str]:
    """Return the Bemis-Murcko scaffold of each molecule: its rings and what links them.

    Args:
        smiles: Readable SMILES.
        processes: Worker processes from 20,000 molecules on.

    Returns:
        Canonical SMILES; empty for molecules without rings.

    Raises:
        DataError: If a SMILES cannot be read.

    Example:
        >>> murcko_scaffolds(["CCc1ccccc1", "CCO"])
        ['c1ccccc1', '']
    """

    def compute() -> dict[str, np.ndarray]:
        parts = map_chunks(_scaffold_chunk, smiles, processes, "computing scaffolds")
        return {"value": to_bytes([text for part in parts for text in part])}

    return from_bytes(cached("scaffold", smiles, compute=compute)["value"])


def _scaffold_chunk(smiles: Sequence[str]) -> list[str]:
    return [scaffold_of(_readable(text)) for text in smiles]


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
