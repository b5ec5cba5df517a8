"""Real molecules: nothing is lost on the way there and back, and the metrics find the floors of the literature."""

import json

import numpy as np
import pandas as pd
import pytest

import lightning_synth as ls
from lightning_synth.datamodules import MoleculeDataModule
from lightning_synth.metrics.molecule import (
    MoleculeSet,
    fcd,
    filter_share,
    fragment_similarity,
    internal_diversity,
    molecule_report,
    scaffold_similarity,
    similarity_to_nearest,
    text_report,
)
from lightning_synth.molecules import encode, fit_vocabulary, to_smiles
from lightning_synth.molecules.table import MoleculeItems, read_table

BONDS = ["SINGLE", "DOUBLE", "TRIPLE"]
# File, column of the SMILES, molecules that RDKit cannot read, and those with dative bonds (cobalamins).
SETS = {
    "zinc250k.smi": (None, 0, 0),
    "qm9_smiles_133885.csv": ("smiles", 0, 0),
    "moses_test.csv": ("SMILES", 0, 0),
    "esol.csv": ("smiles", 0, 0),
    "bbbp.csv": ("smiles", 11, 0),
    "lipophilicity.csv": ("smiles", 0, 0),
    "clintox.csv": ("smiles", 4, 2),
}


@pytest.fixture
def folder(data_root):
    return data_root / "molecules"


def smiles_of(folder, name):
    path, column = folder / name, SETS[name][0]
    return path.read_text().split() if column is None else pd.read_csv(path)[column].tolist()


def check_round_trip(smiles, failures):
    table = read_table(smiles)
    assert len(table.failures) == failures and len(table) + failures == len(smiles)
    types = table.vocabulary(np.arange(len(table)))
    items = MoleculeItems(table, np.arange(len(table)), types, BONDS)
    back = to_smiles(items, {"atom_types": types, "bond_types": BONDS})
    assert sum(one != other for one, other in zip(back, items.smiles, strict=True)) == 0


@pytest.mark.parametrize("name", SETS)
def test_the_way_there_and_back(folder, name):
    smiles = smiles_of(folder, name)
    large = len(smiles) > 5000
    check_round_trip(smiles[:: len(smiles) // 1000] if large else smiles, 0 if large else sum(SETS[name][1:]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zinc250k.smi", "qm9_smiles_133885.csv", "moses_test.csv"])
def test_the_way_there_and_back_of_all(folder, name):
    check_round_trip(smiles_of(folder, name), 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "low", "high"), [("qm9", 0.07, 0.1), ("zinc250k", 0.24, 0.33)])
def test_floor_of_the_frechet_chemnet_distance(folder, name, low, high):
    """10,000 real training molecules against 10,000 of the GDSS test split: .084 and .284 without stereochemistry."""
    pytest.importorskip("fcd_torch")
    file = {"qm9": "qm9_smiles_133885.csv", "zinc250k": "zinc250k.smi"}[name]
    smiles = np.array(smiles_of(folder, file))
    rows = json.loads((folder / f"{name}_valid_idx.json").read_text())
    test = np.array([int(i) for i in (rows["valid_idxs"] if isinstance(rows, dict) else rows)])
    train = np.setdiff1d(np.arange(len(smiles)), test)
    draw = np.random.default_rng(0)
    sides = [MoleculeSet.of(smiles[draw.permutation(index)[:10_000]].tolist()) for index in (test, train)]
    assert low < fcd(*sides) < high


def test_moses_by_its_own_metrics(folder):
    """Its test molecules have an internal diversity of .856 and pass its filters (Polykovskiy et al. 2020)."""
    smiles = smiles_of(folder, "moses_test.csv")
    one, other = (MoleculeSet(smiles[start::120]) for start in (0, 60))
    assert internal_diversity(one) == pytest.approx(0.856, abs=0.004) and filter_share(one, 200) == 1.0
    assert fragment_similarity(one, other) > 0.99 and similarity_to_nearest(one, other) == pytest.approx(0.4, abs=0.05)


@pytest.mark.slow
def test_floor_of_the_scaffold_similarity(folder):
    """25,000 test molecules of MOSES against 25,000 others: .905, and .895 for another draw."""
    smiles = np.array(smiles_of(folder, "moses_test.csv"))[np.random.default_rng(0).permutation(176_074)]
    sides = [MoleculeSet(part.tolist()) for part in (smiles[:25_000], smiles[25_000:50_000])]
    assert scaffold_similarity(*sides) == pytest.approx(0.9, abs=0.015)


def test_presets(folder):
    for name, classes in (("esol", 0), ("clintox", 2)):
        data = MoleculeDataModule.preset(name, folder)
        data.setup()
        assert data.schema["num_classes"] == classes and data.schema["several_fragments"] is False
        assert len(data.train_items()) > 8 * len(data.test_items()) * 0.9


def test_the_scaffold_split_is_that_of_moleculenet(folder):
    """BBBP is sorted by class: with ties broken the other way all its test molecules would be of one class."""
    data = MoleculeDataModule.preset("bbbp", folder, split="scaffold")
    shares = [np.mean([int(item.label) for item in items]) for items in (data.train_items(), data.test_items())]
    assert shares == pytest.approx([0.822, 0.525], abs=0.01)


def test_descriptions(folder):
    data = MoleculeDataModule.preset("chebi20", folder, max_atoms=60, text="description")
    test, train = data.test_items()[:200], data.train_items()[:1500]
    assert all(item.text for item in test[:20])
    captions = [item.text for item in test], [item.text for item in train]
    table = text_report(test.smiles, test.smiles, captions[0], (captions[1], train.smiles))
    assert (table.loc["generated"] == 1).all() and 0.3 < table.loc["retrieval", "morgan"] < 0.8


def test_the_trivial_arms_on_drug_like_molecules(folder):
    data = MoleculeDataModule.preset("bbbp", folder, max_atoms=40, properties=["MW"])
    for name in ("brics_recombine", "fragment_mutation"):
        model = ls.get_generator(name)().fit_on(data.train_items(), data.schema)
        samples = model.sample(200, condition={"label": "balanced"}, seed=0).items()
        names = ["validity", "property_distance"]
        table = molecule_report(data.train_items(), data.test_items(), samples, schema=data.schema, metrics=names)
        assert table.loc["valid", "value"] == 1 and table.loc["novel", "value"] > 0.6


def test_a_schema_of_one_file_reads_another(folder):
    smiles = smiles_of(folder, "zinc250k.smi")[:500]
    types = fit_vocabulary(smiles)
    assert to_smiles([encode(text, types) for text in smiles[:50]], types) == read_table(smiles[:50]).smiles
