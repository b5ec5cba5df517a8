"""The trivial arms: always valid, of the requested class, and each changes what it says and nothing else."""

import pytest
import torch
from rdkit import Chem

from lightning_synth.errors import ConfigError
from lightning_synth.molecules import encode, fit_vocabulary, to_smiles
from lightning_synth.plugins.molecule.brics_recombine import BricsRecombine
from lightning_synth.plugins.molecule.fragment_mutation import FragmentMutation
from lightning_synth.plugins.molecule.molecule_bootstrap import MoleculeBootstrap
from lightning_synth.plugins.molecule.smiles_enumeration import SmilesEnumeration
from lightning_synth.registry import get_generator
from lightning_synth.schema import describe

# Esters, amides and ethers in the first class; charged, sulphonated and hypervalent molecules in the second.
FIRST = ["CCOC(=O)c1ccccc1", "CC(C)OC(=O)CN", "O=C(OC1CC1)c1ccncc1", "CNC(=O)CCc1ccccc1", "COCCOc1cc[nH]c1"]
SECOND = ["CS(=O)(=O)NCc1ccccc1", "C[N+](C)(C)CCOC(=O)C", "O=[N+]([O-])c1ccc(OCC)cc1", "CCOP(=O)(O)OCC", "[O-]C(=O)CCN"]
SMILES = [*FIRST, *SECOND]
TYPES = fit_vocabulary(SMILES)
BONDS = ["SINGLE", "DOUBLE", "TRIPLE"]
ARMS = [BricsRecombine, FragmentMutation, MoleculeBootstrap, SmilesEnumeration]


@pytest.fixture(scope="module")
def items():
    out = []
    for i, text in enumerate(SMILES):
        item = encode(text, TYPES)
        item.y, item.label = torch.tensor([[float(item.num_nodes), float(i)]]), torch.tensor([i // 5])
        out.append(item)
    return out


@pytest.fixture(scope="module")
def schema(items):
    names = ["heavy_atoms", "measured"]
    known = {"atom_types": TYPES, "bond_types": BONDS, "property_names": names, "targets": ["measured"]}
    return describe(items, "molecule", **known)


@pytest.mark.parametrize("cls", ARMS)
def test_samples_are_valid_connected_and_of_the_class(cls, items, schema):
    model = cls().fit_on(items, schema)
    samples = model.sample(60, condition={"label": "balanced"}, seed=1).items()
    assert to_smiles(samples, schema) == [item.smiles for item in samples]
    assert not any("." in item.smiles for item in samples)
    assert [int(item.label) for item in samples] == [0, 1] * 30
    sources = [set(range(5)), set(range(5, 10))]
    assert all(float(item.y[0, 1]) in sources[int(item.label)] for item in samples)
    assert all(float(item.y[0, 0]) == item.num_nodes for item in samples)


def test_bootstrap_retrieves_the_nearest_property(items, schema):
    model = MoleculeBootstrap().fit_on(items, schema)
    asked = {"heavy_atoms": float(items[7].num_nodes), "measured": 7.0, "label": 1}
    assert {item.smiles for item in model.sample(5, condition=asked).items()} == {items[7].smiles}


def test_enumeration_permutes_atoms_and_nothing_else(items, schema):
    samples = SmilesEnumeration().fit_on(items, schema).sample(40, seed=2).items()
    known = {item.smiles: item for item in items}
    assert all(sorted(s.x.tolist()) == sorted(known[s.smiles].x.tolist()) for s in samples)
    assert sum(s.x.tolist() != known[s.smiles].x.tolist() for s in samples) > 20


def test_recombination_joins_sides_of_two_molecules(items, schema):
    samples = BricsRecombine().fit_on(items, schema).sample(100, condition={"label": 0}, seed=3).items()
    new = {item.smiles for item in samples} - set(SMILES)
    assert "CC(C)OC(=O)c1ccccc1" in new and len(new) > 5
    # Every part between BRICS bonds is a part of a training molecule.
    parts = set()
    for text in FIRST:
        parts |= set(Chem.MolToSmiles(Chem.FragmentOnBRICSBonds(Chem.MolFromSmiles(text))).split("."))
    for text in new:
        assert set(Chem.MolToSmiles(Chem.FragmentOnBRICSBonds(Chem.MolFromSmiles(text))).split(".")) <= parts


def test_molecules_without_a_bond_to_cut_are_copied():
    smiles = ["CCC", "c1ccccc1"]
    items = [encode(text, ["C"]) for text in smiles]
    schema = describe(items, "molecule", atom_types=["C"], bond_types=BONDS)
    assert {item.smiles for item in BricsRecombine().fit_on(items, schema).sample(10).items()} == set(smiles)


def test_mutation_of_one_atom_adds_removes_or_replaces(items, schema):
    samples = FragmentMutation(mutations=1).fit_on(items, schema).sample(300, seed=4).items()
    sizes = dict(zip(SMILES, (item.num_nodes for item in items), strict=True))
    change = {item.num_nodes - sizes[SMILES[int(item.y[0, 1])]] for item in samples}
    assert change == {-1, 0, 1}
    assert sum(item.smiles in SMILES for item in samples) < 30
    charged = {text for text in TYPES if "+" in text or "-" in text}
    made = [TYPES[int(kind)] for item in samples for kind in item.x]
    real = [TYPES[int(kind)] for item in items for kind in item.x]
    assert sum(t in charged for t in made) / len(made) <= 1.2 * sum(t in charged for t in real) / len(real)


def test_no_mutation_copies(items, schema):
    samples = FragmentMutation(mutations=0).fit_on(items, schema).sample(20).items()
    assert {item.smiles for item in samples} <= {item.smiles for item in items}
    with pytest.raises(ConfigError, match="mutations must not be negative"):
        FragmentMutation(mutations=-1)


def test_many_mutations_stay_valid(items, schema):
    samples = FragmentMutation(mutations=12).fit_on(items, schema).sample(100, seed=5).items()
    assert all(item.smiles and "." not in item.smiles for item in samples)


def test_missing_properties_do_not_stop_sampling(items, schema):
    gaps = [item.clone() for item in items]
    for item in gaps[::2]:
        item.y[0, 1] = float("nan")
    model = get_generator("molecule_bootstrap")().fit_on(gaps, {**schema})
    assert len(model.sample(6, condition={"measured": 3.0}).items()) == 6
