"""The representation loses nothing but stereochemistry, repairs nothing by itself, and names what is wrong."""

import pytest
import torch
from rdkit import Chem

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.molecules import (
    InvalidMoleculeError,
    canonical_smiles,
    decode,
    encode,
    fit_vocabulary,
    max_valence,
    parse_atom_type,
    read_molecule,
    repair,
    to_smiles,
    valence_table,
)

# What the usual representations lose: [nH], charges, nitro groups, radicals, metals, hypervalence, salts, isotopes.
ODD = {
    "pyrrole": "c1cc[nH]c1",
    "imidazole": "Cc1ncc[nH]1",
    "indole": "c1ccc2[nH]ccc2c1",
    "tetrazole anion": "c1nn[n-]n1",
    "nitro": "C[N+](=O)[O-]",
    "carboxylate": "CC(=O)[O-]",
    "ammonium": "C[NH3+]",
    "quaternary": "C[N+](C)(C)C",
    "pyridinium": "C[n+]1ccccc1",
    "azide": "CN=[N+]=[N-]",
    "isonitrile": "C[N+]#[C-]",
    "sulphone": "CS(=O)(=O)C",
    "sulphoxide": "CS(C)=O",
    "phosphate": "CP(=O)(O)O",
    "phosphine": "CPC",
    "sulphonium": "C[S+](C)C",
    "carbon monoxide": "[C-]#[O+]",
    "radical": "C[CH2]",
    "nitroxide": "CN(C)[O]",
    "methylene": "[CH2]",
    "salt": "C[NH3+].[Cl-]",
    "sodium": "[Na]",
    "cisplatin": "N[Pt](N)(Cl)Cl",
    "borane": "CB(O)O",
    "selenium": "C[SeH]",
    "hydrogen": "[H][H]",
    "proton": "[H+]",
    "polymer": "*CC*",
    "thiophene": "c1ccsc1",
    "caffeine": "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "ferrocenyl anion": "c1cc[cH-]c1",
    "water": "O",
}


@pytest.mark.parametrize("smiles", ODD.values(), ids=ODD)
def test_the_way_there_and_back_is_exact(smiles):
    graph = read_molecule(smiles)
    item = encode(graph, fit_vocabulary([graph]))
    assert item.smiles == canonical_smiles(smiles)
    assert to_smiles([item], fit_vocabulary([graph])) == [item.smiles]


def test_equal_molecules_have_equal_graphs():
    one, other = (read_molecule(text) for text in ("c1ccccc1C(=O)O", "OC(=O)C1=CC=CC=C1"))
    assert one.smiles == other.smiles and one.atoms == other.atoms and (one.bonds == other.bonds).all()


def test_only_stereo_isotopes_and_maps_are_dropped():
    assert canonical_smiles("C[C@H](F)/C=C/Cl") == canonical_smiles("CC(F)C=CCl")
    assert canonical_smiles("[13CH3][2H]") == "C" and canonical_smiles("[CH3:1][OH:2]") == "CO"
    assert canonical_smiles("[H]/[NH+]=C(\\N)C") == canonical_smiles("[NH2+]=C(N)C")


def test_an_item_is_what_the_schema_says():
    item = encode("CC#N", ["N", "C"], y=[1.0, float("nan")], text="poison")
    assert item.x.tolist() == [1, 1, 0] and item.edge_index.tolist() == [[0, 1, 1, 2], [1, 2, 0, 1]]
    assert item.edge_attr.tolist() == [0, 2, 0, 2] and item.num_nodes == 3 and item.text == "poison"
    assert item.y.shape == (1, 2) and item.y.dtype == torch.float32 and item.y[0, 1].isnan()


def test_bond_types_are_those_of_the_vocabulary():
    schema = {"atom_types": ["C"], "bond_types": ["DOUBLE", "SINGLE"]}
    assert encode("CC=C", schema).edge_attr.tolist() == [0, 1, 0, 1]  # canonical: C=CC
    assert to_smiles([encode("CC=C", schema)], schema) == ["C=CC"]
    with pytest.raises(DataError, match="bond type TRIPLE of 'C#C'"):
        encode("C#C", schema)


def test_atom_types():
    assert parse_atom_type("Cl") == ("Cl", 0, None) and parse_atom_type("Fe+2") == ("Fe", 2, None)
    assert parse_atom_type("N+1H1") == ("N", 1, 1) and parse_atom_type("*") == ("*", 0, None)
    assert read_molecule("C[CH2]").atoms == ("CH2", "C") and read_molecule("C[NH3+]").atoms == ("C", "N+1")
    with pytest.raises(ConfigError, match="'carbon' is no atom type"):
        parse_atom_type("carbon")


def test_the_vocabulary_is_sorted_by_frequency():
    assert fit_vocabulary(["CCO", "CN", "N"]) == ["C", "N", "O"]


def test_the_valence_table_is_what_rdkit_accepts():
    expected = {"C": 4, "N": 3, "N+1": 4, "O": 2, "O-1": 1, "O+1": 3, "F": 1, "S": 6, "P": 5, "B": 3, "N-1": 2, "*": 8}
    assert {name: max_valence(name) for name in expected} == expected
    assert max_valence("CH2") == 2 and max_valence("Na+1") >= 0
    assert valence_table({"atom_types": ["C", "O"]}).tolist() == [4, 2]
    for name in expected:
        symbol, charge, _ = parse_atom_type(name)
        for order, accepted in ((expected[name], True), (expected[name] + 1, name == "*")):
            mol = Chem.RWMol()
            centre = Chem.Atom(symbol)
            centre.SetFormalCharge(charge)
            mol.AddAtom(centre)
            for i in range(order):
                mol.AddAtom(Chem.Atom("C"))
                mol.AddBond(0, i + 1, Chem.BondType.SINGLE)
            assert (not Chem.DetectChemistryProblems(mol)) == accepted, (name, order)


def five_bonds():
    item = encode("CC(C)(C)C", ["C"])
    item.edge_attr[:] = 1
    return item


def test_invalid_graphs_are_named_and_not_repaired():
    with pytest.raises(InvalidMoleculeError, match="AtomValenceException at atoms \\[1\\]") as caught:
        decode(five_bonds(), ["C"])
    assert [(p.kind, p.atoms) for p in caught.value.problems] == [("AtomValenceException", (1,))]
    assert to_smiles([five_bonds(), encode("C", ["C"])], ["C"]) == [None, "C"]


def test_repeated_bonds_and_empty_graphs_are_problems():
    twice, empty = encode("CC", ["C"]), encode("C", ["C"])
    twice.edge_index, twice.edge_attr = twice.edge_index.repeat(1, 2), twice.edge_attr.repeat(2)
    empty.x = empty.x[:0]
    for item, kind in ((twice, "RepeatedBond"), (empty, "Empty")):
        with pytest.raises(InvalidMoleculeError) as caught:
            decode(item, ["C"])
        assert caught.value.problems[0].kind == kind


def test_repair_is_a_counted_step():
    fixed = repair(five_bonds(), ["C"])
    assert fixed.data.smiles == "CC(C)(C)C" and fixed.bonds_lowered == 4 and fixed.atoms_dropped == 0
    parts = repair(encode("CCC.CC.O", ["C", "O"], y=[2.0], text="mix"), ["C", "O"])
    assert parts.data.smiles == "CCC" and parts.atoms_dropped == 3 and parts.data.text == "mix"
    assert parts.changed and not repair(encode("CCO", ["C", "O"]), ["C", "O"]).changed


def test_fragments():
    assert read_molecule("C[NH3+].[Cl-]").smiles == "C[NH3+].[Cl-]"
    assert read_molecule("CCN.Cl.CCCO", "largest").smiles == "CCCO"
    assert read_molecule("CCN.CCO", "largest").smiles == read_molecule("CCO.CCN", "largest").smiles
    with pytest.raises(DataError, match="several fragments"):
        read_molecule("C.C", "raise")


@pytest.mark.parametrize(
    ("smiles", "match"),
    [
        ("C(C", "cannot read"),
        ("", "has no atoms"),
        ("[NH3]->[Pt]", "dative"),
        ("C$C", "quadruple"),
        (None, "None is neither SMILES nor"),
    ],
)
def test_what_cannot_be_held_is_refused(smiles, match):
    with pytest.raises(DataError, match=match):
        read_molecule(smiles)


def test_an_unknown_atom_type_is_named():
    with pytest.raises(DataError, match="atom type 'Br' of 'CBr' is not in the vocabulary of training: C, O"):
        encode("CBr", ["C", "O"])
