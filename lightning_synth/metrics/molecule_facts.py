"""What the molecule metrics look at: fingerprints, properties, scaffolds, fragments; computed once for each SMILES.

`evaluate` compares many overlapping samples of the same items, so what was computed of a molecule is kept.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lightning_synth.errors import MissingExtraError
from lightning_synth.metrics.distances import Array, seeded
from lightning_synth.molecules.fragments import brics_fragments
from lightning_synth.molecules.properties import property_function, scaffold_of
from lightning_synth.molecules.representation import canonical_smiles, molecules, repair

if TYPE_CHECKING:
    from rdkit import Chem

#: Properties whose distributions are compared.
COMPARED = ("logP", "qed", "SA", "MW", "TPSA")
#: Properties of GuacaMol's score: continuous ones, then counts.
CONTINUOUS = ("bertz", "logP", "MW", "TPSA")
COUNTED = ("HBA", "HBD", "rotatable_bonds", "aliphatic_rings", "aromatic_rings")
_SEVERAL = {"compared": COMPARED, "guacamol": (*CONTINUOUS, *COUNTED)}
_BITS, _WL_BINS, _WL_ROUNDS, _FEW_BINS = 1024, 2048, 3, 128
#: Molecules whose facts are kept, and chunk of ChemNet.
_KEPT, _BATCH = 60_000, 256
_LARGEST_RING = 7
_MEDICINAL = frozenset((1, 6, 7, 8, 9, 16, 17, 35))


class MoleculeSet:
    """Valid molecules of a sample, and how many were tried.

    Args:
        smiles: Canonical, stereo-free SMILES of the valid ones.
        attempts: Graphs or strings that were tried.

    Example:
        >>> sample = MoleculeSet.of(["OCC", "c1ccccc1", "C(("])
        >>> sample.smiles, sample.attempts, sample.column("fragments")
        (['CCO', 'c1ccccc1'], 3, [('CCO',), ('c1ccccc1',)])
    """

    def __init__(self, smiles: Sequence[str], attempts: int | None = None) -> None:
        self.smiles = list(smiles)
        self.attempts = len(self.smiles) if attempts is None else attempts
        self._mols: dict[str, Chem.Mol] = {}

    @classmethod
    def of(cls, values: Any, schema: Mapping[str, Any] | None = None) -> MoleculeSet:
        """Read a sample.

        Args:
            values: Graphs (decoded as they are, whatever they carry as ``smiles``), SMILES, or a set.
            schema: Of the graphs.
        """
        if isinstance(values, MoleculeSet):
            return values
        mols: dict[str, Chem.Mol] = {}
        found = smiles_of(values, schema, mols)
        sample = cls([text for text in found if text], len(found))
        sample._mols = mols
        return sample

    def __len__(self) -> int:
        """Return the number of valid molecules."""
        return len(self.smiles)

    def draw(self, count: int, *names: int | str) -> MoleculeSet:
        """Return some of the valid molecules, without replacement.

        Args:
            count: How many, at most.
            *names: Seed.
        """
        if count >= len(self):
            return self
        return MoleculeSet([self.smiles[i] for i in np.sort(seeded(0, *names).permutation(len(self))[:count])])

    def column(self, fact: str) -> list[Any]:
        """One value a molecule.

        Args:
            fact: ``descriptors``, ``morgan``, ``counts``, ``scaffold``, ``fragments``, ``passes``, one of
                `lightning_synth.molecules.properties.PROPERTIES`; or ``compared`` and ``guacamol``: several of them.
        """
        if fact in _SEVERAL:
            # One property after the other is faster than one molecule after the other: RDKit's patterns stay in cache.
            return list(zip(*(self.column(name) for name in _SEVERAL[fact]), strict=True))
        known = _known(fact)
        function = _FACTS.get(fact) or property_function(fact)
        values = [known.get(text) for text in self.smiles]
        for i, text in enumerate(self.smiles):
            if values[i] is None:
                values[i] = known[text] if text in known else known.setdefault(text, function(self._mol(text)))
        return values

    def table(self, fact: str) -> Array:
        """The same for numbers, (molecules, values)."""
        rows = self.column(fact)
        return np.array(rows, dtype=np.float64).reshape(len(rows), -1) if rows else np.zeros((0, 0))

    def bits(self) -> npt.NDArray[Any]:
        """Morgan fingerprints of radius 2, float32 0 or 1, (molecules, 1024)."""
        packed = np.array(self.column("morgan"), dtype=np.uint8).reshape(len(self), _BITS // 8)
        return np.unpackbits(packed, axis=1).astype(np.float32)

    def wl_counts(self) -> Array:
        """Hashed Weisfeiler-Leman counts of three rounds, rows of length 1, (molecules, 2048)."""
        out = np.zeros((len(self), _WL_BINS))
        for row, (index, count) in zip(out, self.column("counts"), strict=True):
            row[index] = count
        return np.asarray(out / np.maximum(np.sqrt(np.square(out).sum(1, keepdims=True)), 1e-12))

    def chemnet(self) -> Array:
        """Activations of ChemNet, (molecules, 512); needs the package ``fcd_torch``."""
        known = _known("chemnet")
        missing = [text for text in dict.fromkeys(self.smiles) if text not in known]
        known.update(zip(missing, _activations(missing), strict=True))
        return np.array([known[text] for text in self.smiles], np.float64).reshape(len(self), 512)

    def _mol(self, smiles: str) -> Chem.Mol:
        from rdkit import Chem

        if smiles not in self._mols:
            self._mols[smiles] = Chem.MolFromSmiles(smiles)
        return self._mols[smiles]


def smiles_of(
    values: Any, schema: Mapping[str, Any] | None = None, mols: dict[str, Chem.Mol] | None = None
) -> list[str | None]:
    """Read a sample one by one.

    Args:
        values: Graphs, `Samples`, a pool, a PyG ``Batch``, or SMILES.
        schema: Of the graphs.
        mols: Filled with the molecules that were built on the way, by SMILES.

    Returns:
        Canonical, stereo-free SMILES, None for what is no molecule.
    """
    if hasattr(values, "to_data_list"):
        values = values.to_data_list()
    values = values.items() if callable(getattr(values, "items", None)) else values
    return [
        _canonical(value) if isinstance(value, str) or value is None else _decoded(value, schema, mols)
        for value in values
    ]


def repaired_smiles(
    values: Any, schema: Mapping[str, Any] | None = None, raw: Sequence[str | None] | None = None
) -> list[str | None]:
    """Read a sample after `lightning_synth.molecules.repair`; SMILES strings cannot be repaired.

    Args:
        values: As `smiles_of`.
        schema: Of the graphs.
        raw: What `smiles_of` said; None reads the sample.
    """
    raw = smiles_of(values, schema) if raw is None else raw
    items = values.to_data_list() if hasattr(values, "to_data_list") else values
    items = items.items() if callable(getattr(items, "items", None)) else items
    return [
        repair(item, schema).data.smiles if (text is None or "." in text) and hasattr(item, "x") and schema else text
        for item, text in zip(items, raw, strict=True)
    ]


def _canonical(smiles: str | None) -> str | None:
    from lightning_synth.errors import DataError

    known = _known("canonical")
    if smiles not in known:
        try:
            known[smiles] = canonical_smiles(smiles) if smiles else None
        except DataError:
            known[smiles] = None
    text: str | None = known[smiles]
    return text


def _decoded(item: Any, schema: Mapping[str, Any] | None, mols: dict[str, Chem.Mol] | None) -> str | None:
    from rdkit import Chem

    if schema is None:
        raise TypeError("graphs need the schema that says what their types are")
    vocabulary = (tuple(schema["atom_types"]), tuple(schema["bond_types"]))
    known = _known("decoded")
    key = (vocabulary, *(item[name].numpy().tobytes() for name in ("x", "edge_index", "edge_attr")))
    if key not in known:
        mol = next(molecules([item], schema))
        known[key] = None if mol is None else Chem.MolToSmiles(mol)
        if mol is not None and mols is not None:
            mols[known[key]] = mol
    text: str | None = known[key]
    return text


_CACHE: dict[str, dict[Any, Any]] = {}


def _known(fact: str) -> dict[Any, Any]:
    known = _CACHE.setdefault(fact, {})
    if len(known) > _KEPT:
        known.clear()
    return known


# ----------------------------------------------------------------------------------------------------------- facts


@functools.cache
def _generator(bits: int, radius: int) -> Any:
    from rdkit.Chem import rdFingerprintGenerator

    return rdFingerprintGenerator.GetMorganGenerator(radius, fpSize=bits)


def _morgan(mol: Chem.Mol) -> npt.NDArray[np.uint8]:
    return np.packbits(_generator(_BITS, 2).GetFingerprintAsNumPy(mol))


def _wl(mol: Chem.Mol) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    counts = _generator(_WL_BINS, _WL_ROUNDS).GetCountFingerprint(mol).GetNonzeroElements()
    return np.array(list(counts), np.int64), np.array(list(counts.values()), np.int64)


def _scaffold(mol: Chem.Mol) -> str:
    """The scaffold of a molecule with two rings or more."""
    return scaffold_of(mol) if mol.GetRingInfo().NumRings() > 1 else ""


@functools.cache
def _pains() -> Any:
    from rdkit.Chem import FilterCatalog

    parameters = FilterCatalog.FilterCatalogParams
    return FilterCatalog.FilterCatalog(parameters(parameters.FilterCatalogs.PAINS))


def _passes(mol: Chem.Mol) -> bool:
    """The rules of MOSES, without its medicinal-chemistry patterns, which RDKit does not have."""
    atoms = {(atom.GetAtomicNum(), atom.GetFormalCharge()) for atom in mol.GetAtoms()}
    if any(number not in _MEDICINAL or charge for number, charge in atoms):
        return False
    if any(len(ring) > _LARGEST_RING for ring in mol.GetRingInfo().AtomRings()):
        return False
    return not _pains().HasMatch(mol)


_DESCRIPTORS = (
    *("CalcChi0n", "CalcChi1n", "CalcChi2n", "CalcChi3n", "CalcChi0v", "CalcChi1v", "CalcChi2v", "CalcChi3v"),
    *("CalcKappa1", "CalcKappa2", "CalcKappa3", "CalcHallKierAlpha", "CalcLabuteASA", "CalcTPSA"),
    *("CalcFractionCSP3", "CalcNumHBA", "CalcNumHBD", "CalcNumHeteroatoms", "CalcNumRotatableBonds", "CalcNumRings"),
    *("CalcNumAromaticRings", "CalcNumAliphaticRings", "CalcNumHeterocycles", "CalcNumAmideBonds"),
    *("CalcNumSpiroAtoms", "CalcNumBridgeheadAtoms", "CalcNumHeavyAtoms"),
)


def _descriptors(mol: Chem.Mol) -> tuple[float, ...]:
    from rdkit.Chem import rdMolDescriptors

    return tuple(float(getattr(rdMolDescriptors, name)(mol)) for name in _DESCRIPTORS)


_FACTS: dict[str, Callable[[Any], Any]] = {
    "descriptors": _descriptors,
    "morgan": _morgan,
    "counts": _wl,
    "scaffold": _scaffold,
    "fragments": brics_fragments,
    "passes": _passes,
}


# --------------------------------------------------------------------------------------------------------- ChemNet


def has_chemnet() -> bool:
    """Whether the package ``fcd_torch`` is there."""
    return importlib.util.find_spec("fcd_torch") is not None


@functools.cache
def _chemnet() -> Any:
    if not has_chemnet():
        raise MissingExtraError("the Frechet ChemNet distance needs the package fcd_torch: pip install fcd_torch")
    from fcd_torch import FCD  # type: ignore[import-untyped]

    return FCD(device="cpu", n_jobs=1, batch_size=_BATCH, canonize=False)


def _activations(smiles: Sequence[str]) -> npt.NDArray[np.float32]:
    if not smiles:
        return np.zeros((0, 512), np.float32)
    with warnings.catch_warnings():
        # The package calls functions that numpy and torch have announced the end of.
        warnings.simplefilter("ignore")
        found: npt.NDArray[np.float32] = np.asarray(_chemnet().get_predictions(list(smiles)), np.float32)
    return found
