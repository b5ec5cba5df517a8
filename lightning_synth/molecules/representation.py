"""Molecules as graphs of typed atoms and Kekule bonds, without loss, and back through RDKit without repair.

An aromatic bond class cannot say which nitrogen of a ring carries the hydrogen, and atoms without a charge cannot say
what a nitro group is: with either of them a third of the drug-like molecules of ZINC250k do not survive the way there
and back. An atom type that holds the formal charge (and the hydrogens where the usual valence does not give them), with
single, double and triple bonds, loses nothing but stereochemistry, isotopes and atom maps.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rdkit import Chem

Fragments = Literal["keep", "largest", "raise"]
BOND_TYPES = ("SINGLE", "DOUBLE", "TRIPLE")
_ORDER = {name: order for order, name in enumerate(BOND_TYPES, start=1)}
_ATOM_TYPE = re.compile(r"(\*|[A-Z][a-z]?)([+-]\d+)?(?:H(\d+))?")
#: Isotopes, atom maps and hydrogen atoms in a SMILES string, and bonds that are neither single, double nor triple.
_MARKS, _OTHER_BONDS = re.compile(r"\[\d|:\d+\]|\[H\]"), re.compile(r"->|<-|\$|~")
#: Total bond order at which probing stops: metals and the wildcard atom have no limit of their own.
_MOST_BONDS = 8
#: Bonds at one atom beyond which a graph is not shown to RDKit.
_CROWDED = 30


@dataclass(frozen=True)
class MoleculeProblem:
    """One reason why a graph is no molecule.

    Args:
        kind: RDKit's class of the problem (``AtomValenceException``, ``KekulizeException``, ...), ``RepeatedBond`` or
            ``Empty``.
        atoms: Indices of the atoms at fault.
        message: In words.

    Example:
        >>> MoleculeProblem("AtomValenceException", (0,), "carbon with five bonds").atoms
        (0,)
    """

    kind: str
    atoms: tuple[int, ...]
    message: str


class InvalidMoleculeError(DataError):
    """A graph that RDKit does not accept as a molecule; ``problems`` says why."""

    def __init__(self, problems: Sequence[MoleculeProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.kind} at atoms {list(p.atoms)}: {p.message}" for p in self.problems))


class MoleculeGraph(NamedTuple):
    """A molecule taken apart: canonical SMILES, the type of every atom, and bonds as int64 (bonds, 3).

    A row of ``bonds`` is (atom, atom, order), first atom smaller, in the order of atoms in the SMILES.
    """

    smiles: str
    atoms: tuple[str, ...]
    bonds: np.ndarray


class Repaired(NamedTuple):
    """A repaired graph and what it took: bond orders lowered, atoms dropped with smaller fragments."""

    data: Any
    bonds_lowered: int
    atoms_dropped: int

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return self.bonds_lowered + self.atoms_dropped > 0


# ------------------------------------------------------------------------------------------------------ atom types


def parse_atom_type(atom_type: str) -> tuple[str, int, int | None]:
    """Read an atom type: element symbol, formal charge, hydrogens.

    Args:
        atom_type: Such as ``C``, ``O-1``, ``N+1H1``. ``H<k>`` is there only where the number of hydrogens is not what
            the usual valence leaves; the atom then has exactly k, and RDKit makes electrons left over radicals, as it
            does for an atom in brackets.

    Returns:
        Symbol, charge, and the number of hydrogens or None where the usual valence says it.

    Raises:
        ConfigError: If it is no atom type.

    Example:
        >>> parse_atom_type("N+1"), parse_atom_type("CH2")
        (('N', 1, None), ('C', 0, 2))
    """
    match = _ATOM_TYPE.fullmatch(atom_type)
    if match is None:
        raise ConfigError(f"{atom_type!r} is no atom type; expected an element such as C, with O-1 or N+1H1 as needed")
    symbol, charge, hydrogens = match.groups()
    return symbol, int(charge or 0), None if hydrogens is None else int(hydrogens)


def _atom_type(symbol: str, charge: int, hydrogens: int, bond_order: int) -> str:
    explicit = "" if hydrogens == _usual_hydrogens(symbol, charge, bond_order) else f"H{hydrogens}"
    return f"{symbol}{charge:+d}{explicit}" if charge else f"{symbol}{explicit}"


@functools.cache
def _usual_hydrogens(symbol: str, charge: int, bond_order: int) -> int:
    """Hydrogens that RDKit adds by itself to an atom with bonds of that total order."""
    from rdkit import Chem

    mol = Chem.RWMol()
    centre = Chem.Atom(symbol)
    centre.SetFormalCharge(charge)
    mol.AddAtom(centre)
    for neighbour in range(1, bond_order + 1):
        mol.AddAtom(Chem.Atom("*"))
        mol.AddBond(0, neighbour, Chem.BondType.SINGLE)
    mol.UpdatePropertyCache(strict=False)
    return int(mol.GetAtomWithIdx(0).GetTotalNumHs())


@functools.cache
def _prototype(atom_type: str) -> Chem.Atom:
    from rdkit import Chem

    symbol, charge, hydrogens = parse_atom_type(atom_type)
    atom = Chem.Atom(symbol)
    atom.SetFormalCharge(charge)
    if hydrogens is not None:
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(hydrogens)
    return atom


@functools.cache
def max_valence(atom_type: str) -> int:
    """Return the largest total order of bonds to other heavy atoms that RDKit accepts.

    Args:
        atom_type: As `parse_atom_type`; hydrogens that the type names are taken off.

    Returns:
        At most 8, also for metals and ``*``, to which RDKit sets no limit.

    Raises:
        ConfigError: If RDKit does not know the element, or accepts no such atom at all.

    Example:
        >>> [max_valence(name) for name in ("C", "N", "N+1", "O-1", "S", "CH2")]
        [4, 3, 4, 1, 6, 2]
    """
    from rdkit import Chem, rdBase

    symbol, charge, hydrogens = parse_atom_type(atom_type)
    accepted = []
    with rdBase.BlockLogs():
        for order in range(_MOST_BONDS + 1):
            mol = Chem.RWMol()
            mol.AddAtom(_prototype(f"{symbol}{charge:+d}H{order + (hydrogens or 0)}"))
            if Chem.SanitizeMol(mol, catchErrors=True) == Chem.SanitizeFlags.SANITIZE_NONE:
                accepted.append(order)
    if not accepted:
        raise ConfigError(f"RDKit accepts no atom of type {atom_type!r}")
    return max(accepted)


def valence_table(schema: Mapping[str, Any] | Sequence[str]) -> Tensor:
    """Tabulate `max_valence` of every atom type; below it a graph of Kekule bonds is always a valid molecule.

    Args:
        schema: With ``atom_types``, or the atom types.

    Returns:
        int64 (types,).

    Example:
        >>> valence_table(["C", "N+1"])
        tensor([4, 4])
    """
    return torch.tensor([max_valence(name) for name in _vocabulary(schema)[0]])


# --------------------------------------------------------------------------------------------------------- reading


def canonical_smiles(molecule: str | Chem.Mol) -> str:
    """Write the canonical SMILES without stereochemistry, isotopes and atom maps.

    Args:
        molecule: SMILES, or an RDKit molecule (not changed).

    Raises:
        DataError: If the SMILES cannot be read.

    Example:
        >>> canonical_smiles("OC[C@@H](N)C"), canonical_smiles("[2H]C")
        ('CC(N)CO', 'C')
    """
    return _plain(molecule)[0]


def _plain(molecule: str | Chem.Mol) -> tuple[str, Chem.Mol]:
    """Canonical SMILES, and the molecule it was written from."""
    from rdkit import Chem

    if not isinstance(molecule, (str, Chem.Mol)):
        raise DataError(f"{molecule!r} is neither SMILES nor an RDKit molecule")
    mol = _parse(molecule) if isinstance(molecule, str) else Chem.Mol(molecule)
    Chem.RemoveStereochemistry(mol)
    smiles = Chem.MolToSmiles(mol)
    if _MARKS.search(smiles):
        for atom in mol.GetAtoms():
            atom.SetIsotope(0)
            atom.SetAtomMapNum(0)
        # Hydrogens stay atoms while they are isotopes or tell the side of a double bond.
        mol = Chem.RemoveHs(mol)
        smiles = Chem.MolToSmiles(mol)
    return smiles, mol


def _parse(smiles: str) -> Chem.Mol:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise DataError(f"RDKit cannot read the SMILES {smiles!r}")
    if not mol.GetNumAtoms():
        raise DataError(f"the SMILES {smiles!r} has no atoms")
    return mol


def read_molecule(molecule: str | Chem.Mol, fragments: Fragments = "keep") -> MoleculeGraph:
    """Take a molecule apart into atom types and Kekule bonds.

    Equal molecules give equal graphs: atoms are in the order of the canonical SMILES, which also fixes which of several
    Kekule forms is taken.

    Args:
        molecule: SMILES, or an RDKit molecule (not changed).
        fragments: Of a molecule in several parts, such as a salt: ``keep`` all, keep the ``largest`` (by heavy atoms,
            then weight, then SMILES), or ``raise``.

    Raises:
        DataError: If the SMILES cannot be read, a bond is neither single, double nor triple, or there are several
            fragments with ``raise``.

    Example:
        >>> read_molecule("c1cc[nH]c1").atoms, read_molecule("C[N+](C)(C)C.[Cl-]", "largest").smiles
        (('C', 'C', 'C', 'N', 'C'), 'C[N+](C)(C)C')
    """
    from rdkit import Chem

    smiles, mol = _plain(molecule)
    if "." in smiles and fragments != "keep":
        if fragments == "raise":
            raise DataError(f"{smiles!r} has several fragments; use fragments='largest' or 'keep'")
        smiles = _largest(smiles)
    if _OTHER_BONDS.search(smiles):
        raise DataError(f"{smiles!r} has a dative, zero-order or quadruple bond; only single, double, triple are held")
    if molecule != smiles:
        mol = _parse(smiles)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    order = Chem.GetAdjacencyMatrix(mol, useBO=True).astype(np.int64)
    first, second = np.nonzero(np.triu(order))
    atoms = tuple(
        _atom_type(atom.GetSymbol(), atom.GetFormalCharge(), atom.GetTotalNumHs(), int(order[i].sum()))
        if atom.GetNoImplicit()
        else atom.GetSymbol()
        for i, atom in enumerate(mol.GetAtoms())
    )
    return MoleculeGraph(smiles, atoms, np.stack([first, second, order[first, second]], axis=1))


def _largest(smiles: str) -> str:
    from rdkit.Chem import rdMolDescriptors

    parts = [_parse(part) for part in set(smiles.split("."))]
    return canonical_smiles(
        max(
            parts, key=lambda mol: (mol.GetNumHeavyAtoms(), rdMolDescriptors.CalcExactMolWt(mol), canonical_smiles(mol))
        )
    )


def fit_vocabulary(molecules: Iterable[str | Chem.Mol | MoleculeGraph]) -> list[str]:
    """List the atom types of training molecules, most frequent first.

    Args:
        molecules: SMILES, RDKit molecules, or graphs of `read_molecule`.

    Example:
        >>> fit_vocabulary(["CCO", "C[N+](=O)[O-]"])
        ['C', 'O', 'N+1', 'O-1']
    """
    counts: Counter[str] = Counter()
    for molecule in molecules:
        counts.update((molecule if isinstance(molecule, MoleculeGraph) else read_molecule(molecule)).atoms)
    return sorted(counts, key=lambda name: (-counts[name], name))


def encode(
    molecule: str | Chem.Mol | MoleculeGraph,
    schema: Mapping[str, Any] | Sequence[str],
    *,
    fragments: Fragments = "keep",
    y: Sequence[float] | None = None,
    text: str | None = None,
) -> Any:
    """Make the item of a molecule.

    Args:
        molecule: SMILES, RDKit molecule, or a graph of `read_molecule`.
        schema: With ``atom_types`` and ``bond_types``, or the atom types (with all three bond types).
        fragments: As `read_molecule`.
        y: Properties, NaN for missing ones.
        text: Description.

    Returns:
        PyG ``Data``: ``x`` int64 (atoms,), ``edge_index`` int64 (2, 2 x bonds) in both directions, ``edge_attr`` int64
        (2 x bonds,), ``smiles`` canonical and stereo-free, ``num_nodes``, ``y`` float32 (1, properties) and ``text``
        where given.

    Raises:
        DataError: As `read_molecule`; or an atom or bond type is not in the vocabulary.

    Example:
        >>> item = encode("CC(=O)O", ["C", "O"], y=[0.1])
        >>> item.x.tolist(), item.edge_attr.tolist()
        ([0, 0, 1, 1], [0, 1, 0, 0, 1, 0])
    """
    from torch_geometric.data import Data

    graph = molecule if isinstance(molecule, MoleculeGraph) else read_molecule(molecule, fragments)
    atoms, bonds = _vocabulary(schema)
    data = Data(**_tensors(graph, _index(tuple(atoms)), _bond_index(tuple(bonds))), num_nodes=len(graph.atoms))
    data.smiles = graph.smiles
    if y is not None:
        data.y = torch.tensor([list(y)], dtype=torch.float32)
    if text is not None:
        data.text = text
    return data


def _vocabulary(schema: Mapping[str, Any] | Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    if isinstance(schema, Mapping):
        return schema["atom_types"], schema.get("bond_types", BOND_TYPES)
    return schema, BOND_TYPES


@functools.lru_cache(maxsize=64)
def _index(names: tuple[str, ...]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


@functools.lru_cache(maxsize=64)
def _bond_index(names: tuple[str, ...]) -> np.ndarray:
    """Index of the bond type of every order; -1 where the vocabulary lacks it."""
    index = np.full(len(BOND_TYPES) + 1, -1)
    for i, name in enumerate(names):
        index[_ORDER[name]] = i
    return index


def _tensors(graph: MoleculeGraph, index: Mapping[str, int], bond_index: np.ndarray) -> dict[str, Tensor]:
    unknown = sorted({name for name in graph.atoms if name not in index})
    if unknown:
        known = ", ".join(list(index)[:20])
        raise DataError(f"atom type {unknown[0]!r} of {graph.smiles!r} is not in the vocabulary of training: {known}")
    first, second, order = graph.bonds.T
    kind = bond_index[order]
    if (kind < 0).any():
        name = BOND_TYPES[order[kind.argmin()] - 1]
        raise DataError(f"bond type {name} of {graph.smiles!r} is not in the vocabulary of training")
    edges = np.concatenate([np.stack([first, second]), np.stack([second, first])], axis=1)
    return {
        "x": torch.tensor([index[name] for name in graph.atoms]),
        "edge_index": torch.from_numpy(edges),
        "edge_attr": torch.from_numpy(np.concatenate([kind, kind])),
    }


# -------------------------------------------------------------------------------------------------------- building


def decode(data: Any, schema: Mapping[str, Any] | Sequence[str]) -> Chem.Mol:
    """Build the molecule of a graph exactly as it is: nothing is repaired.

    Args:
        data: Item as `encode` makes it; ``smiles`` is not looked at.
        schema: As `encode`.

    Returns:
        A sanitised molecule; it may have several fragments.

    Raises:
        InvalidMoleculeError: If RDKit does not accept it.

    Example:
        >>> from rdkit import Chem
        >>> Chem.MolToSmiles(decode(encode("Cc1ncc[nH]1", ["C", "N"]), ["C", "N"]))
        'Cc1ncc[nH]1'
        >>> five = encode("CC(C)(C)C", ["C"])
        >>> five.edge_attr[:] = 1
        >>> try:
        ...     decode(five, ["C"])
        ... except InvalidMoleculeError as error:
        ...     print(error.problems[0].kind, error.problems[0].atoms)
        AtomValenceException (1,)
    """
    from rdkit import Chem, rdBase

    mol = _build(data, schema)
    with rdBase.BlockLogs():
        if Chem.SanitizeMol(mol, catchErrors=True) == Chem.SanitizeFlags.SANITIZE_NONE:
            return mol.GetMol()
        # Sanitising stops half-way, so the problems are looked for in a fresh copy.
        raise InvalidMoleculeError([_named(problem) for problem in Chem.DetectChemistryProblems(_build(data, schema))])


def _build(data: Any, schema: Mapping[str, Any] | Sequence[str]) -> Chem.RWMol:
    from rdkit import Chem

    atoms, bonds = _vocabulary(schema)
    kinds = [getattr(Chem.BondType, name) for name in bonds]
    # RDKit counts bonds in 8 bits; a graph that overflows them (of an untrained network) is met before it gets there.
    crowded = np.flatnonzero(np.bincount(data.edge_index[0].numpy(), minlength=len(data.x)) > _CROWDED).tolist()
    if crowded:
        message = f"more than {_CROWDED} bonds at an atom"
        raise InvalidMoleculeError([MoleculeProblem("AtomValenceException", tuple(crowded), message)])
    mol = Chem.RWMol()
    for kind in data.x.tolist():
        mol.AddAtom(_prototype(atoms[kind]))
    if not mol.GetNumAtoms():
        raise InvalidMoleculeError([MoleculeProblem("Empty", (), "a graph without atoms")])
    bonded: set[tuple[int, int]] = set()
    for first, second, kind in zip(*data.edge_index.tolist(), data.edge_attr.tolist(), strict=True):
        if first < second:
            if (first, second) in bonded:
                raise InvalidMoleculeError(
                    [MoleculeProblem("RepeatedBond", (first, second), "the bond is there twice")]
                )
            bonded.add((first, second))
            mol.AddBond(first, second, kinds[kind])
    return mol


def _named(problem: Any) -> MoleculeProblem:
    if hasattr(problem, "GetAtomIndices"):
        atoms = tuple(problem.GetAtomIndices())
    else:
        atoms = (problem.GetAtomIdx(),) if hasattr(problem, "GetAtomIdx") else ()
    return MoleculeProblem(problem.GetType(), atoms, problem.Message())


def molecules(items: Iterable[Any], schema: Mapping[str, Any] | Sequence[str]) -> Iterator[Chem.Mol | None]:
    """Build molecules one by one.

    Args:
        items: As `decode`.
        schema: As `encode`.

    Yields:
        A molecule, or None for a graph that RDKit does not accept.
    """
    for item in items:
        try:
            yield decode(item, schema)
        except InvalidMoleculeError:
            yield None


def to_smiles(items: Iterable[Any], schema: Mapping[str, Any] | Sequence[str]) -> list[str | None]:
    """Write the canonical SMILES of graphs; what they carry as ``smiles`` is not looked at.

    Args:
        items: As `decode`.
        schema: As `encode`.

    Returns:
        One SMILES a graph, with dots between fragments; None where RDKit does not accept the graph.

    Example:
        >>> to_smiles([encode("OCC", ["C", "O"])], ["C", "O"])
        ['CCO']
    """
    from rdkit import Chem

    return [None if mol is None else Chem.MolToSmiles(mol) for mol in molecules(items, schema)]


def repair(data: Any, schema: Mapping[str, Any] | Sequence[str]) -> Repaired:
    """Make a valid, connected molecule of any graph; a step of its own, whose result is never the raw validity.

    First, while an atom exceeds `max_valence`, its highest bond is lowered by one order, towards the neighbour that
    exceeds most (a single bond goes). Then the largest fragment is kept, the first of equal ones.

    Args:
        data: As `decode`.
        schema: As `encode`.

    Returns:
        The graph (with its new ``smiles``), and how much was changed.

    Example:
        >>> wrong = encode("CC(C)(C)C", ["C"])
        >>> wrong.edge_attr[:] = 1
        >>> fixed = repair(wrong, ["C"])
        >>> fixed.data.smiles, fixed.bonds_lowered
        ('CC(C)(C)C', 4)
    """
    atoms, bonds = _vocabulary(schema)
    x, size = data.x.numpy(), len(data.x)
    order_of = np.array([_ORDER[name] for name in bonds])
    order = np.zeros((size, size), dtype=np.int64)
    order[tuple(data.edge_index.numpy())] = order_of[data.edge_attr.numpy()]
    order = np.triu(order, 1)
    order += order.T
    lowered = _lower_bonds(order, valence_table(atoms).numpy()[x])
    kept = _largest_part(order)
    result = encode(_graph_of(order[np.ix_(kept, kept)], [atoms[kind] for kind in x[kept]]), schema)
    for name in ("y", "text"):
        if name in data:
            result[name] = data[name]
    result.smiles = to_smiles([result], schema)[0]
    return Repaired(result, lowered, size - len(kept))


def _lower_bonds(order: np.ndarray, limit: np.ndarray) -> int:
    """Lower bonds in place until no atom exceeds its limit; return how many orders went."""
    lowered = 0
    while ((excess := order.sum(1) - limit) > 0).any():
        atom = int(excess.argmax())
        highest = np.flatnonzero(order[atom] == order[atom].max())
        other = highest[excess[highest].argmax()]
        order[atom, other] -= 1
        order[other, atom] -= 1
        lowered += 1
    return lowered


def _largest_part(order: np.ndarray) -> np.ndarray:
    from scipy.sparse.csgraph import connected_components

    _, part = connected_components(order, directed=False)
    return np.flatnonzero(part == np.bincount(part).argmax())


def _graph_of(order: np.ndarray, atoms: Sequence[str]) -> MoleculeGraph:
    first, second = np.nonzero(np.triu(order))
    return MoleculeGraph("", tuple(atoms), np.stack([first, second, order[first, second]], axis=1))
