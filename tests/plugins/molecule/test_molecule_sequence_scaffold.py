"""Scaffolds in molecules: always contained, grown only where they may, whatever the weights."""

import pytest
import torch
from rdkit import Chem

from lightning_synth.errors import ConfigError
from lightning_synth.molecules import BOND_TYPES, encode, fit_vocabulary
from lightning_synth.molecules.conditioning import parse_scaffold
from lightning_synth.plugins.molecule.molecule_sequence import MoleculeSequence
from lightning_synth.schema import describe

TRAINING = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "C[N+](=O)[O-]",
    "CC(C)(C)c1ccc2occ(CC(=O)Nc3ccccc3F)c2c1",
    "C1CC2CC1C2",
    "CS(=O)C",
]


@pytest.fixture(scope="module")
def model():
    types = fit_vocabulary(TRAINING)
    items = [encode(text, types) for text in TRAINING]
    schema = describe(items, "molecule", atom_types=types, bond_types=list(BOND_TYPES))
    model = MoleculeSequence(schema=schema, d_model=16, depth=1, heads=2)
    model.is_fitted = True
    return model


def grown(model, scaffold, n=60, seed=0):
    samples = model.sample(n, condition={"scaffold": scaffold}, seed=seed)
    return [Chem.MolFromSmiles(item.smiles) for item in samples.items()]


@pytest.mark.parametrize(
    "scaffold", ["c1ccccc1", "c1ccc2[nH]ccc2c1", "O=C1CCCN1", "C=CC=C", "C1CC2CC1C2", "C[N+](=O)[O-]", "CS(=O)C"]
)
def test_random_weights_contain_the_scaffold(model, scaffold):
    molecules = grown(model, scaffold)
    pattern = Chem.MolFromSmiles(scaffold)
    assert all(mol.HasSubstructMatch(pattern) for mol in molecules)
    assert len({Chem.MolToSmiles(mol) for mol in molecules}) > 30


def test_draws_are_counted(model):
    scaffolds = ["c1ccccc1", ""] * 20
    samples = model.sample(40, condition={"scaffold": scaffolds}, seed=1)
    draws = samples.score["draws"]
    assert (draws[1::2] == 1).all() and (draws[::2] >= 1).all()
    assert "draws" not in model.sample(4).score


@pytest.mark.parametrize(
    ("scaffold", "where"),
    [
        ("[*]c1ccccc1", "[c;!$([cH])]1[cH][cH][cH][cH][cH]1"),
        ("[*:1]N1CCN([*])CC1", "[N;X3,X4]1(-*)[CH2][CH2][N;X3,X4](-*)[CH2][CH2]1"),
        ("O=C1NC([*])CN1", "O=C1[NH]C[CH2][NH]1"),
    ],
)
def test_growth_only_at_attachment_points(model, scaffold, where):
    molecules = grown(model, scaffold)
    exact = Chem.MolFromSmarts(where)
    assert all(mol.HasSubstructMatch(exact) for mol in molecules)
    bare = len(parse_scaffold(scaffold, ["C", "N", "O"], 30).atoms)
    assert all(mol.GetNumAtoms() >= bare + scaffold.count("*") for mol in molecules)


def test_the_last_atoms_are_kept_for_attachment_points(model):
    size = model.codec.max_atoms - 2
    molecules = grown(model, "[*]" + "C" * size + "[*]", n=20)
    assert all(mol.GetNumAtoms() == size + 2 for mol in molecules)


def test_each_row_has_a_scaffold_of_its_own_or_none(model):
    asked = ["c1ccccc1", "", "C1CC2CC1C2", None]
    molecules = [
        Chem.MolFromSmiles(item.smiles) for item in model.sample(4, condition={"scaffold": asked}, seed=1).items()
    ]
    for text, mol in zip(asked, molecules, strict=True):
        assert not text or mol.HasSubstructMatch(Chem.MolFromSmiles(text))
    free = model.sample(4, seed=1).items()
    assert [free[i].smiles for i in (1, 3)] == [Chem.MolToSmiles(molecules[i]) for i in (1, 3)]


def test_rows_do_not_depend_on_the_batch(model):
    requests = model.make_requests(8, {"scaffold": ["c1ccccc1", "C=CC=C"] * 4}, seed=3)
    together = [item.smiles for item in model.sample(requests).items()]
    assert [model.sample(requests[i : i + 1]).items()[0].smiles for i in range(8)] == together
    assert [item.smiles for item in model.sample(requests[torch.tensor([5, 2])]).items()] == [together[5], together[2]]


@pytest.mark.parametrize(
    ("scaffold", "message"),
    [
        ("c1ccccc", "not a SMILES"),
        ("FC(F)(F)F", "no attachment room"),
        ("C" * 30, "no attachment room"),
        ("[*]CC" + "C" * 20 + "C([*])CC[*]", "no attachment room"),
        ("CC.CC", "fragments"),
        ("CBr", "'Br'"),
        ("[*]=C", "one single bond"),
        ("C(C)(C)(C)(C)C", "not a SMILES"),
        ("[*]C(C)(C)C[*].C", "fragments"),
    ],
)
def test_impossible_scaffolds_are_refused(model, scaffold, message):
    with pytest.raises(ConfigError, match=message):
        model.sample(1, condition={"scaffold": scaffold})
