"""Molecules from files and lists: columns, splits, classes, shots, properties."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from rdkit import Chem

from lightning_synth.datamodules import MixedDataModule, MoleculeDataModule
from lightning_synth.datamodules.splits import scaffold_split
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.molecules import murcko_scaffolds, to_smiles
from lightning_synth.pool import SyntheticPool
from lightning_synth.registry import get_generator
from lightning_synth.schema import labels
from lightning_synth.testing import check_datamodule

CHAINS = ["C" * n for n in range(2, 12)]
MIXED = [*CHAINS, *(f"{text}O" for text in CHAINS)]


def module(source=MIXED, split="random", **options):
    return MoleculeDataModule(source, split, **options)


def parts(data):
    return [[item.smiles for item in part] for part in (data.train_items(), data.val_items(), data.test_items())]


@pytest.fixture
def table(tmp_path):
    """Twenty molecules: a measured number with gaps, a class, a word, a description."""
    frame = pd.DataFrame(
        {
            "smiles": MIXED,
            "kelvin": [str(300 + i) if i % 5 else "" for i in range(20)],
            "toxic": [str(i // 15) for i in range(20)],
            "kind": ["alkane"] * 10 + ["alcohol"] * 10,
            "words": [f"molecule {i}" for i in range(20)],
        }
    )
    path = tmp_path / "set.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("options", [{}, {"properties": ["logP", "rings"]}, {"split": "scaffold"}])
def test_conformance(options):
    check_datamodule(module(batch_size=4, **options))


def test_conformance_of_a_classification(table):
    options = {"targets": ["toxic"], "task": "classification", "batch_size": 4, "properties": ["MW"]}
    check_datamodule(MoleculeDataModule.from_csv(table, split="random", **options))


def test_targets_text_and_properties(table):
    data = MoleculeDataModule.from_csv(
        table, targets=["kelvin"], split="random", text="words", properties=["heavy_atoms"], seed=3
    )
    assert list(data.schema["properties"]) == ["kelvin", "heavy_atoms"] and data.schema["targets"] == ["kelvin"]
    source = {text: i for i, text in enumerate(MIXED)}
    for item in [*data.train_items(), *data.test_items()]:
        i = source[item.smiles]
        assert item.text == f"molecule {i}" and item.y.shape == (1, 2)
        assert float(item.y[0, 1]) == item.num_nodes
        assert item.y[0, 0].isnan() if i % 5 == 0 else float(item.y[0, 0]) == 300 + i
    rows = data.schema["condition_rows"]["kelvin"]
    assert np.isfinite(rows).all() and np.isfinite(data.schema["properties"]["kelvin"]["mean"])
    batch = next(iter(data.train_dataloader()))
    assert batch.y.shape[1] == 2 and len(batch.text) == batch.num_graphs


@pytest.mark.parametrize(("target", "names"), [("toxic", ["0", "1"]), ("kind", ["alcohol", "alkane"])])
def test_classes(table, target, names):
    data = MoleculeDataModule.from_csv(table, targets=[target], task="classification", split="random")
    assert data.schema["class_names"] == names and data.schema["num_classes"] == 2
    frame = pd.read_csv(table, dtype=str)
    expected = dict(zip(frame["smiles"], frame[target], strict=True))
    assert all(names[int(item.label)] == expected[item.smiles] for item in data.train_items())
    assert "y" not in data.train_items()[0]
    assert data.schema["class_counts"] == np.bincount(labels(data.train_items(), data.schema)).tolist()


def test_shots_and_imbalance(table):
    options = {"targets": ["kind"], "task": "classification", "split": "random"}
    few = MoleculeDataModule.from_csv(table, shots=2, draw=1, **options)
    assert few.schema["class_counts"] == [2, 2]
    rare = MoleculeDataModule.from_csv(table, imbalance={"alcohol": 1}, **options)
    assert rare.schema["class_counts"] == [1, 8]
    without = MoleculeDataModule.from_csv(table, targets=["kelvin"], split="random", shots=5)
    assert len(without.train_items()) == 5
    one, other = (parts(MoleculeDataModule.from_csv(table, shots=2, draw=draw, **options)) for draw in (1, 2))
    assert one[0] != other[0] and one[1:] == other[1:]


def test_classes_are_generated_mixed_and_pooled(table, tmp_path):
    data = MoleculeDataModule.from_csv(table, targets=["kind"], task="classification", split="random", batch_size=4)
    model = get_generator("fragment_mutation")().fit_on(data.train_items(), data.schema)
    pool = SyntheticPool.generate(model, 8, {"label": "balanced"}, progress=False)
    assert pool.labels.tolist() == [0, 1] * 4
    pool.save(tmp_path / "pool")
    assert [int(item.label) for item in SyntheticPool.open(tmp_path / "pool")] == [0, 1] * 4
    mixed = MixedDataModule(data, pool, batch_size=4, match="label")
    batch = next(iter(mixed.train_dataloader()))
    assert batch.label.shape == batch.is_synthetic.shape and bool(batch.is_synthetic.any())


def test_sources(tmp_path):
    (tmp_path / "a.smi").write_text("\n".join(f"{text} name" for text in CHAINS))
    writer = Chem.SDWriter(str(tmp_path / "a.sdf"))
    for i, text in enumerate(CHAINS):
        mol = Chem.MolFromSmiles(text)
        mol.SetProp("energy", str(-i))
        writer.write(mol)
    writer.close()
    pd.DataFrame({"smiles": CHAINS}).to_parquet(tmp_path / "a.parquet")
    everything = (list(range(10)), [], [])
    for source in ("a.smi", "a.sdf", "a.parquet"):
        assert parts(module(tmp_path / source, everything))[0] == CHAINS
    assert parts(module([Chem.MolFromSmiles(text) for text in CHAINS], everything))[0] == CHAINS
    assert parts(module(pd.DataFrame({"smiles": CHAINS}), everything))[0] == CHAINS
    energy = module(tmp_path / "a.sdf", everything, targets=["energy"]).train_items()
    assert [float(item.y) for item in energy] == [-i for i in range(10)]


def test_without_a_source_it_is_the_set_that_comes_with_rdkit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = MoleculeDataModule(max_atoms=12, shots=200)
        assert len(data.train_items()) == 200 and len(data.test_items()) > 40
    items = data.train_items()
    assert to_smiles(items, data.schema) == items.smiles


def test_scaffolds_stay_together():
    counts = {"c1ccccc1": 6, "C1CC1": 3, "C1CCC1": 2, "C1CCCCC1": 1}
    rings = [f"{'C' * n}{ring}" for ring, count in counts.items() for n in range(1, count + 1)]
    for split in ("scaffold", "random_scaffold"):
        found = parts(module(rings, split, fractions=(0.6, 0.2, 0.2)))
        scaffolds = [set(murcko_scaffolds(part)) for part in found]
        assert sum(map(len, scaffolds)) == len(counts) and sum(map(len, found)) == len(rings)
    part = scaffold_split(["a"] * 5 + ["b"] * 3 + ["c"] * 2, (0.5, 0.3, 0.2))
    assert part.tolist() == [0] * 5 + [1] * 3 + [2] * 2


def test_equal_molecules_are_on_one_side_of_a_drawn_split():
    twice = [*CHAINS, *CHAINS, "C[C@H](F)Cl", "C[C@@H](F)Cl"]
    for seed in range(3):
        train, val, test = map(set, parts(module(twice, seed=seed, fractions=(0.6, 0.2, 0.2))))
        assert not (train & val or train & test or val & test)


def test_given_splits(tmp_path):
    lists = ([0, 1, 2], [3], [4, 5])
    expected = [[MIXED[i] for i in part] for part in lists]
    assert parts(module(split=lists)) == expected
    assert parts(module(split=dict(zip(("train", "val", "test"), lists, strict=True)))) == expected
    (tmp_path / "rows.json").write_text(json.dumps({"valid_idxs": ["000000", "000007"]}))
    train, _, test = parts(module(split=tmp_path / "rows.json"))
    assert test == [MIXED[0], MIXED[7]] and len(train) == 18
    (tmp_path / "parts.json").write_text(json.dumps({"train": [0, 1], "test": [2]}))
    assert parts(module(split=str(tmp_path / "parts.json"))) == [MIXED[:2], [], [MIXED[2]]]


def test_a_vocabulary_may_be_given():
    data = module(CHAINS, atom_types=["N", "C"])
    assert data.schema["num_node_types"] == 2 and int(data.train_items()[0].x.max()) == 1


def test_the_representation_is_printed(caplog):
    with caplog.at_level("INFO"):
        module([*CHAINS, *CHAINS]).setup()
    assert "20 of 20 rows read (100.0%), 1 atom types" in caplog.text and "come back exactly" in caplog.text


def test_presets_name_the_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"'qm9' needs the file .*qm9_smiles_133885.csv"):
        MoleculeDataModule.preset("qm9", tmp_path)
    (tmp_path / "zinc250k.smi").write_text("CC\n")
    with pytest.raises(DataError, match=r"zinc250k_valid_idx.json"):
        MoleculeDataModule.preset("zinc250k", tmp_path)
    with pytest.raises(ConfigError, match="no molecule set 'zinc'; known: zinc250k"):
        MoleculeDataModule.preset("zinc", tmp_path)


def test_settings_are_checked(table):
    for options, match in (
        ({"task": "ranking"}, "task must be one of"),
        ({"task": "classification"}, "needs one target"),
        ({"imbalance": {"1": 2}}, "needs task='classification'"),
    ):
        with pytest.raises(ConfigError, match=match):
            module(**options)
    with pytest.raises(ConfigError, match="names class 7; classes: 0, 1"):
        MoleculeDataModule.from_csv(table, targets=["toxic"], task="classification", imbalance={7: 1}).setup()


def test_a_molecule_is_stored_with_its_fields(table):
    data = MoleculeDataModule.from_csv(table, targets=["kind"], task="classification", properties=["MW"], text="words")
    model = get_generator("molecule_bootstrap")().fit_on(data.train_items(), data.schema)
    item = model.sample(1).items()[0]
    assert isinstance(item.text, str) and item.label.shape == (1,) and item.y.shape == (1, 1)
    assert torch.isfinite(item.y).all()


def test_untidy_tables_are_read(tmp_path):
    path, everything = tmp_path / "a.csv", ([0, 1, 2], [], [])
    path.write_text("smiles,y\nCCO,1,\nCCC,2,\nCCN,3,\n")
    with pytest.warns(match="Length of header"):
        assert parts(module(path, everything, targets=["y"]))[0] == ["CCO", "CCC", "CCN"]
    path.write_text("smiles,kind\nCCO, a\nCCC,b \nCCN,a\n")
    data = module(path, everything, targets="kind", task="classification")
    assert data.schema["class_names"] == ["a", "b"] and data.schema["class_counts"] == [2, 1]
    gaps = pd.DataFrame({"smiles": ["CCO", "CCC", "CCN"], "y": pd.array([1, None, 3], dtype="Int64")})
    y = [float(item.y) for item in module(gaps, everything, targets="y").train_items()]
    assert y == pytest.approx([1, np.nan, 3], nan_ok=True)
    with pytest.warns(UserWarning, match="1 of 3 molecules cannot be used, rows 1"):
        assert parts(module(["CCO", None, "CCN"], everything))[0] == ["CCO", "CCN"]


def test_files_named_by_strings_and_text_of_sdf(tmp_path):
    (tmp_path / "a.smi").write_text("CCO\nCCC\n")
    (tmp_path / "b.smi").write_text("CC\n")
    data = MoleculeDataModule([str(tmp_path / "a.smi"), str(tmp_path / "b.smi")], "file", fractions=(1, 0, 0))
    assert parts(data) == [["CCO", "CCC"], [], ["CC"]]
    mol = Chem.MolFromSmiles("CCO")
    mol.SetProp("about", "an alcohol")
    with Chem.SDWriter(str(tmp_path / "a.sdf")) as writer:
        writer.write(mol)
    assert module(tmp_path / "a.sdf", ([0], [], []), text="about").train_items()[0].text == "an alcohol"
    with pytest.raises(ConfigError, match="has the property 'nothing'"):
        module(tmp_path / "a.sdf", ([0], [], []), text="nothing").setup()


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.parquet").write_text("hello")
    (tmp_path / "a.csv").write_bytes("smiles,n\nCC,é\n".encode("latin1"))
    (tmp_path / "a.json").write_text("{bad")
    for source, split in (("a.parquet", "random"), ("a.csv", "random"), (CHAINS, tmp_path / "a.json")):
        with pytest.raises(DataError, match=r"cannot be read as a table|no JSON file"):
            MoleculeDataModule(tmp_path / source if isinstance(source, str) else source, split).setup()
    for options in ({"targets": ["logP"], "properties": ["logP"]}, {"max_atoms": 0}):
        with pytest.raises(ConfigError, match=r"name 'logP' twice|max_atoms must be at least 1"):
            MoleculeDataModule(CHAINS, **options)


def test_a_split_may_be_given_by_masks():
    masks = [np.arange(10) < 8, np.arange(10) == 8, np.arange(10) == 9]
    assert parts(module(CHAINS, masks)) == parts(module(CHAINS, (range(8), [8], [9])))
    with pytest.raises(ConfigError, match="a mask has shape"):
        module(CHAINS, [mask[:5] for mask in masks]).setup()


def test_a_class_without_training_molecules_is_named():
    table = pd.DataFrame({"smiles": CHAINS, "kind": ["a"] * 8 + ["b"] * 2})
    with pytest.warns(UserWarning, match="no training molecules of class b"):
        module(table, (range(8), [8], [9]), targets="kind", task="classification").setup()


def test_generated_molecules_mix_with_described_ones(tmp_path):
    table = pd.DataFrame({"smiles": CHAINS, "about": ["a chain"] * 10})
    data = module(table, (range(10), [], []), text="about", batch_size=4)
    options = {"d_model": 16, "depth": 1, "heads": 2}
    model = get_generator("molecule_sequence")(schema=data.schema, **options)
    model.is_fitted = True
    pool = SyntheticPool.generate(model, 4, {"text": ["a", "b", "c", "d"]}, progress=False)
    pool.save(tmp_path / "pool")
    assert [item.text for item in SyntheticPool.open(tmp_path / "pool")] == ["a", "b", "c", "d"]
    assert [item.text for item in SyntheticPool.generate(model, 2, progress=False)] == ["", ""]
    batch = next(iter(MixedDataModule(data, pool, batch_size=4).train_dataloader()))
    assert sorted(set(batch.text)) == sorted({"a chain"} | {t for t in batch.text if t in "abcd"})
    assert model.sample(0).data.smiles == []


def test_single_atoms_can_be_pooled(tmp_path):
    data = module(["C", "O", "N"], (range(3), [], []))
    model = get_generator("molecule_bootstrap")().fit_on(data.train_items(), data.schema)
    SyntheticPool.generate(model, 3, progress=False).save(tmp_path / "pool")
    assert [item.edge_index.shape for item in SyntheticPool.open(tmp_path / "pool")] == [(2, 0)] * 3
