"""Bad and odd molecules: rows 40-43, 100 and 101 of the fault table, and what else a file of molecules can hold."""

import warnings

import pandas as pd
import pytest
import torch

from lightning_synth.datamodules import MoleculeDataModule
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.metrics.molecule import molecule_validity, property_distances
from lightning_synth.metrics.molecule_facts import MoleculeSet
from lightning_synth.mixing.filters import ValidityFilter
from lightning_synth.molecules import encode, to_smiles
from lightning_synth.registry import get_generator
from lightning_synth.schema import describe, validate

GOOD = ["CC", "CCC", "CCCC", "CCO", "CCN", "CO"]
ALL = (list(range(6)), [], [])


def load(source, split=ALL, **options):
    data = MoleculeDataModule(source, split, **options)
    data.setup("fit")
    return data


def warned(match, source, split=ALL, **options):
    """Load a DataModule that warns exactly once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load(source, split, **options)
    texts = [str(w.message) for w in caught if w.category is UserWarning]
    assert len(texts) == 1 and match in texts[0], texts
    return data


def frame(tmp_path, **columns):
    path = tmp_path / "set.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_40_invalid_smiles_are_listed_by_row():
    bad = [*GOOD, "C(C", "", "Cx"]
    data = warned("3 of 9 molecules cannot be used, rows 6, 7, 8", bad)
    assert data.train_items().smiles == GOOD
    with pytest.raises(DataError, match=r"rows 6, 7, 8 \(counted from 0\); the first: RDKit cannot read"):
        load(bad, invalid="raise")
    with pytest.raises(DataError, match="7 of 8 molecules cannot be used"):
        load(["C", *["no molecule"] * 7], ([0], [], []))


def test_41_duplicates_across_splits():
    split = ([0, 1, 2, 3], [4], [5, 6])
    twice = ["CC", "CCC", "CC[C@H](C)CCC", "CC=C", "C=CC", "CC", "CC[C@@H](C)CCC"]
    data = warned("3 molecules of training or validation are also in a later split", twice, split)
    assert len(data.train_items()) == 4
    data = warned("3 molecules occur again (3 across splits): dropped", twice, split, duplicates="drop")
    assert data.train_items().smiles == ["CCC"] and data.val_items().smiles == ["C=CC"] and len(data.test_items()) == 2


def test_42_charged_and_radical_species_survive():
    odd = ["C[NH3+]", "CC(=O)[O-]", "C[CH2]", "c1cc[nH]c1", "C[N+](=O)[O-]", "C[N](C)[O]"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(odd)
    assert to_smiles(data.train_items(), data.schema) == data.train_items().smiles
    with pytest.raises(DataError, match="cannot read the SMILES 'c1cccn1'"):
        load([*GOOD[:5], "c1cccn1"], invalid="raise")


def test_42_fragments_are_a_stated_policy():
    salts = ["C[NH3+].[Cl-]", *GOOD[1:]]
    assert load(salts).train_items().smiles[0] == "C[NH3+]"
    kept = load(salts, fragments="keep")
    assert "." in kept.train_items().smiles[0] and kept.schema["several_fragments"]
    with pytest.raises(DataError, match="several fragments"):
        load(salts, fragments="raise", invalid="raise")


def test_43_permuted_atoms_change_no_metric():
    schema = ["C", "O", "N"]
    items = [encode(text, schema) for text in ("CC(=O)OCCN", "c1ccccc1O", "CCN")]
    turned = []
    for item in items:
        order = torch.randperm(item.num_nodes, generator=torch.Generator().manual_seed(1))
        other = item.clone()
        other.x, other.edge_index = item.x[order], order.argsort()[item.edge_index]
        turned.append(other)
    full = {"atom_types": schema, "bond_types": ["SINGLE", "DOUBLE", "TRIPLE"]}
    assert molecule_validity(turned, ["CCN"], full) == molecule_validity(items, ["CCN"], full)
    same = property_distances(MoleculeSet.of(items, full), MoleculeSet.of(turned, full))
    assert all(value == pytest.approx(0, abs=1e-9) for value in same.values())


@pytest.mark.filterwarnings("ignore:.*larger than the")
def test_100_conditions_outside_training_warn():
    data = load(GOOD, properties=["heavy_atoms"])
    model = get_generator("fragment_mutation")().fit_on(data.train_items(), data.schema)
    with pytest.warns(UserWarning, match="'heavy_atoms' goes outside the training range"):
        model.sample(2, condition={"heavy_atoms": 50.0})
    with pytest.raises(ConfigError, match="'heavy_atoms' has non-finite values"):
        model.sample(2, condition={"heavy_atoms": float("nan")})


def test_empty_files(tmp_path):
    for name in ("a.csv", "a.smi", "a.sdf"):
        (tmp_path / name).write_text("")
        with pytest.raises(DataError, match="empty"):
            load(tmp_path / name)
    (tmp_path / "b.csv").write_text("smiles\n")
    with pytest.raises(DataError, match="0 rows"):
        load(tmp_path / "b.csv")
    with pytest.raises(DataError, match="the list of molecules is empty"):
        load([])
    with pytest.raises(DataError, match=r"no file .*c\.csv"):
        load(tmp_path / "c.csv")
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(ConfigError, match="none of csv, tsv"):
        load(tmp_path / "d.json")


def test_unknown_elements_under_a_fitted_vocabulary():
    split = ([0, 1, 2], [3], [4, 5])
    data = warned("3 molecules have atom types that training lacks (N, O; the first is row 3, 'CCO')", GOOD, split)
    assert len(data.val_items()) == len(data.test_items()) == 0
    with pytest.raises(DataError, match="atom types that training lacks"):
        load(GOOD, split, unknown="raise")
    with pytest.raises(DataError, match=r"atom types that training lacks \(N, O"):
        load(GOOD, atom_types=["C"])


def test_oversize_molecules():
    large = ["C" * 9, *GOOD[1:]]
    data = warned(
        "1 molecules have more than max_atoms=4 heavy atoms (1 train, 0 val, 0 test): left out", large, max_atoms=4
    )
    assert data.schema["max_nodes"] == 4
    with pytest.raises(DataError, match="the largest is row 0 with 9"):
        load(large, max_atoms=4, oversize="error")


def test_targets_that_are_no_numbers(tmp_path):
    path = frame(tmp_path, smiles=GOOD, a=["1", "", "n/a", "2", "x", "3"])
    with pytest.raises(DataError, match="row 4: 'a' is 'x', which is no number"):
        load(path, targets=["a"])
    path = frame(tmp_path, smiles=GOOD, a=["1", "inf", "3", "4", "5", "6"])
    with pytest.raises(DataError, match="row 1: 'a' is infinite"):
        load(path, targets=["a"])
    path = frame(tmp_path, smiles=GOOD, a=[""] * 6)
    with pytest.raises(DataError, match="property 'a' has no finite value"):
        load(path, targets=["a"])
    with pytest.raises(ConfigError, match="no column 'b'; columns: smiles, a"):
        load(path, targets=["b"])


def test_classes_that_are_missing_or_alone(tmp_path):
    path = frame(tmp_path, smiles=GOOD, a=["0", "1", "", "1", "0", "1"])
    data = warned("1 molecules have no 'a': left out", path, targets=["a"], task="classification")
    assert len(data.train_items()) == 5
    path = frame(tmp_path, smiles=GOOD, a=["1"] * 6)
    with pytest.raises(DataError, match="'a' has 1 classes"):
        load(path, targets=["a"], task="classification")


@pytest.mark.parametrize(
    ("split", "match"),
    [
        (([0, 1], [2], [6]), "test names row 6, but there are 6 rows"),
        (([0, 1], [1], [2]), "row 1 is in train and in val"),
        (([0, 1],), "three lists"),
        ((0.8, 0.1, 0.1), "fractions go to fractions="),
        ("butina", "no split 'butina'"),
        (([], [], [1]), "0 training molecules"),
    ],
)
def test_impossible_splits(split, match):
    with pytest.raises((ConfigError, DataError), match=match):
        load(GOOD, split)


def test_items_of_other_lists_are_checked():
    items = [encode(text, ["C", "O"], y=[1.0]) for text in ("CC", "CCO")]
    known = {"atom_types": ["C", "O"], "bond_types": ["SINGLE"], "property_names": ["a"]}
    schema = describe(items, "molecule", **known)
    items[1].y = torch.tensor([[float("inf")]])
    with pytest.raises(DataError, match="molecule 1: infinite property"):
        validate(items, schema)
    items[1].y = torch.zeros(1, 2)
    with pytest.raises(DataError, match="molecule 1: 2 properties, expected a"):
        validate(items, schema)


def test_101_invalid_samples_are_counted_and_can_be_left_out():
    schema = {"domain": "molecule", "atom_types": ["C"], "bond_types": ["SINGLE", "DOUBLE"], "properties": {}}
    items = [encode(text, ["C"]) for text in ("CC", "CC(C)(C)C", "CCC")]
    items[1].edge_attr[:] = 1
    for item, text in zip(items, to_smiles(items, schema), strict=True):
        item.smiles = text or ""
    assert molecule_validity(items, (), schema)["valid"] == pytest.approx(2 / 3)
    known = describe(items, "molecule", atom_types=["C"], bond_types=["SINGLE", "DOUBLE"])
    kept = ValidityFilter(lambda item: bool(item.smiles)).filter(items, items, known)
    assert kept.tolist() == [True, False, True]
