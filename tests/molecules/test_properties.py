"""Properties and fragments that are computed here in less time than by RDKit: its values, to the last bit."""

from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import QED, GraphDescriptors, rdMolDescriptors
from rdkit.Contrib.SA_Score import sascorer

from lightning_synth.errors import DataError
from lightning_synth.molecules.fragments import brics_fragments
from lightning_synth.molecules.properties import compute_properties, murcko_scaffolds, property_function

#: Atoms alone, ions, dative bonds, several parts, stereo centres, double bonds with a side, bonds with several rules.
SPECIAL = [
    *("C", "[Na+].[Cl-]", "CC.O", "C[C@H](F)Cl", "C/C=C/C", "CN(C)C[C-]12C3=C4C5=C1[Fe++]23456789[C-]%10C6=C7C8=C9%10"),
    *("COC1(CO)OCC(O)C(O)C1O", "CC(=O)OC1(C)C(=O)OC(=O)C1(C)OC(C)=O", "CCCCSCC", "CC1CCC(C)(C)C(C)C1"),
]


@pytest.fixture(scope="module")
def smiles():
    """Every eighth molecule of RDKit's own NCI set."""
    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()
    with rdBase.BlockLogs():
        return [text for text in (line.split()[0] for line in lines[::8]) if Chem.MolFromSmiles(text)] + SPECIAL


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("bertz", GraphDescriptors.BertzCT),
        ("qed", QED.qed),
        ("SA", sascorer.calculateScore),
        ("rotatable_bonds", rdMolDescriptors.CalcNumRotatableBonds),
    ],
)
def test_properties_are_those_of_rdkit(smiles, name, function):
    ours = property_function(name)
    with rdBase.BlockLogs():
        different = [s for s in smiles if ours(Chem.MolFromSmiles(s)) != function(Chem.MolFromSmiles(s))]
    assert different == []


def test_fragments_are_those_of_rdkit(smiles):
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(text) for text in smiles]
    theirs = [tuple(Chem.MolToSmiles(Chem.FragmentOnBRICSBonds(mol)).split(".")) for mol in mols]
    assert [brics_fragments(mol) for mol in mols] == theirs
    assert sum(len(parts) > 2 for parts in theirs) > 100


def test_what_is_kept_with_a_molecule_does_not_outlive_a_change():
    mol = Chem.RWMol(Chem.MolFromSmiles("CCCC"))
    assert property_function("rotatable_bonds")(mol) == 1
    mol.AddBond(3, mol.AddAtom(Chem.Atom("C")), Chem.BondType.SINGLE)
    Chem.SanitizeMol(mol)
    assert property_function("rotatable_bonds")(mol) == 2


def test_what_is_no_molecule_has_no_properties():
    assert np.isnan(compute_properties(["CCO", ""], ["logP", "rings"])).tolist() == [[False, False], [True, True]]
    for function in (lambda smiles: compute_properties(smiles, ["logP"]), murcko_scaffolds):
        with pytest.raises(DataError, match="cannot read the SMILES 'C1CC'"):
            function(["CCO", "C1CC"])
