"""The fragments that BRICS cuts a molecule into: those of RDKit, found in less time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdkit import Chem


def brics_fragments(mol: Chem.Mol) -> tuple[str, ...]:
    """Cut a molecule at all bonds of BRICS at once (Degen et al. 2008, doi:10.1002/cmdc.200800178).

    What RDKit's ``FragmentOnBRICSBonds`` gives; but every environment is searched for once, not once for every other
    environment that a bond may lead to.

    Args:
        mol: The molecule.

    Returns:
        Canonical SMILES of the fragments; the dummy ``[4*]`` stands at an atom in environment 4.

    Example:
        >>> from rdkit import Chem
        >>> brics_fragments(Chem.MolFromSmiles("CCCOCC"))
        ('[3*]O[3*]', '[4*]CC', '[4*]CCC')
    """
    from rdkit import Chem

    chain_bonds, environments = _patterns()
    inside = [0] * mol.GetNumAtoms()
    for bit, pattern in environments:
        for (atom,) in mol.GetSubstructMatches(pattern):
            inside[atom] |= bit
    cuts = {}
    for double, pattern in enumerate(chain_bonds):
        for first, second in mol.GetSubstructMatches(pattern):
            numbers = _rule(inside[first], inside[second], bool(double))
            if numbers is not None:
                bond = mol.GetBondBetweenAtoms(first, second)
                # The first label is that of the dummy which takes the place of the first atom.
                cuts[bond.GetIdx()] = numbers if bond.GetBeginAtomIdx() == second else numbers[::-1]
    parts = Chem.FragmentOnBonds(mol, list(cuts), dummyLabels=list(cuts.values())) if cuts else mol
    return tuple(Chem.MolToSmiles(parts).split("."))


@functools.cache
def _rules() -> list[tuple[int, int, tuple[int, int], bool]]:
    """What is cut: bits of the environments of both ends, their numbers, and whether the bond is double.

    The last rule comes first: RDKit goes from the special ones to the general ones.
    """
    from rdkit.Chem import BRICS

    bits = {name: 1 << i for i, name in enumerate(BRICS.environs)}
    return [
        (bits[f"L{one}"], bits[f"L{other}"], (int(one.rstrip("ab")), int(other.rstrip("ab"))), kind == "=")
        for group in reversed(BRICS.reactionDefs)
        for one, other, kind in reversed(group)
    ]


@functools.cache
def _patterns() -> tuple[list[Chem.Mol], list[tuple[int, Chem.Mol]]]:
    """Single and double bonds in no ring; the atoms of every environment, with its bits."""
    from rdkit import Chem
    from rdkit.Chem import BRICS

    used = {bit for one, other, *_ in _rules() for bit in (one, other)}
    bits: dict[str, int] = {}
    for i, smarts in enumerate(BRICS.environs.values()):
        # Some are there twice, under two names.
        bits[smarts] = bits.get(smarts, 0) | (1 << i if 1 << i in used else 0)
    environments = [(bit, Chem.MolFromSmarts(f"[$({smarts})]")) for smarts, bit in bits.items() if bit]
    return [Chem.MolFromSmarts(f"*{kind};!@*") for kind in "-="], environments


@functools.lru_cache(maxsize=1 << 16)
def _rule(first: int, second: int, double: bool) -> tuple[int, int] | None:
    """Numbers of the environments of two atoms by the first rule that cuts the bond between them."""
    for one, other, numbers, kind in _rules():
        if kind == double and first & one and second & other:
            return numbers
        if kind == double and second & one and first & other:
            return numbers[::-1]
    return None
