"""Many molecules at once: the same graphs as one by one, cached, in several processes."""

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import QED
from torch_geometric.data import Batch

from lightning_synth.errors import ConfigError
from lightning_synth.molecules import cache, encode, fit_vocabulary, properties, table
from lightning_synth.molecules.cache import cached, map_chunks
from lightning_synth.molecules.table import MoleculeItems, read_table

SMILES = ["CCO", "c1cc[nH]c1", "C(C", "C[N+](=O)[O-]", "CCO", "CC#N.Cl"]


def test_rows_are_those_of_the_source():
    found = read_table(SMILES)
    assert len(found) == 5 and found.row.tolist() == [0, 1, 3, 4, 5]
    assert [row for row, _ in found.failures] == [2] and "cannot read" in found.failures[0][1]


def test_items_are_those_of_encode():
    found = read_table(SMILES)
    types = found.vocabulary(np.arange(len(found)))
    assert types == fit_vocabulary([text for text in SMILES if text != "C(C"])
    y = torch.arange(5.0)[:, None]
    items = MoleculeItems(found, np.arange(5), types, ["SINGLE", "DOUBLE", "TRIPLE"], {"y": y, "text": list("abcde")})
    for item, smiles, number in zip(items, [SMILES[i] for i in found.row], range(5), strict=True):
        one = encode(smiles, types)
        assert item.smiles == one.smiles and float(item.y) == number and item.text == "abcde"[number]
        assert all(torch.equal(item[name], one[name]) for name in ("x", "edge_index", "edge_attr"))
    assert [item.smiles for item in items[1:3]] == items.smiles[1:3] and items[-1].smiles == items.smiles[-1]
    assert items[np.array([4, 0])].smiles == [items.smiles[4], items.smiles[0]]
    assert len(items[[]]) == 0, "a batch of synthetic items alone asks for no real ones"


def test_unknown_types_are_found():
    found = read_table(["CCO", "CBr", "CC", "BrBr"])
    assert found.unknown(["C", "O"]) == {1: "Br", 3: "Br"}


def test_the_cache_is_read_and_a_broken_one_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_SYNTH_CACHE", str(tmp_path))
    calls = []

    def compute():
        calls.append(1)
        return {"value": np.arange(3)}

    monkeypatch.setattr(cache, "_MANY", 1)
    for _ in range(2):
        assert cached("test", ["C"], "a", compute=compute)["value"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    cached("test", ["C"], "b", compute=compute)
    assert len(calls) == 2
    for path in (tmp_path / "molecules").iterdir():
        path.write_bytes(b"not a file of numpy")
    cached("test", ["C"], "a", compute=compute)
    assert len(calls) == 3


def test_a_large_table_is_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_SYNTH_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_MANY", 4)
    first = read_table(SMILES)
    monkeypatch.setattr(table, "read_molecule", None)
    second = read_table(SMILES)
    assert second.smiles == first.smiles and second.failures == first.failures
    assert (second.bonds == first.bonds).all() and (second.atom_ptr == first.atom_ptr).all()
    values = properties.compute_properties(first.smiles, ["MW", "rings"])
    assert (properties.compute_properties(first.smiles, ["MW", "rings"]) == values).all()


def test_a_small_table_is_read_once(monkeypatch):
    first = read_table(SMILES)
    monkeypatch.setattr(table, "read_molecule", None)
    assert read_table(SMILES).smiles == first.smiles and len(cache._MEMORY) <= cache._KEPT


def test_processes_change_nothing(monkeypatch):
    monkeypatch.setattr(cache, "_PARALLEL", 1000)
    values = list(range(3000))
    assert map_chunks(sum, values, processes=2) == map_chunks(sum, values)


def test_properties_are_those_of_rdkit():
    smiles = ["CCO", "CC(=O)Oc1ccccc1C(=O)O", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", "C[N+](C)(C)C"]
    values = properties.compute_properties(smiles, ["qed", "heavy_atoms", "charge"])
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    assert values[:, 0].tolist() == [QED.qed(mol) for mol in mols]
    assert values[:, 1].tolist() == [3, 13, 14, 5] and values[3, 2] == 1
    assert 1 <= properties.compute_properties(["CCO"], ["SA"])[0, 0] < 3
    with pytest.raises(ConfigError, match="unknown property 'logp'"):
        properties.compute_properties(smiles, ["logp"])


def test_scaffolds():
    assert properties.murcko_scaffolds(["CCc1ccccc1", "CCO", "C1CC1CC1CC1"]) == ["c1ccccc1", "", "C1CC1CC1CC1"]


def test_a_batch_is_that_of_its_graphs():
    found = read_table([*SMILES, "C", "CC"])
    columns = {"y": torch.rand(len(found), 2), "text": [f"t{i}" for i in range(len(found))]}
    types = found.vocabulary(np.arange(len(found)))
    items = MoleculeItems(found, np.array([4, 0, 5, 1, 6]), types, ["SINGLE", "DOUBLE", "TRIPLE"], columns)
    fast, slow = items.batch(), Batch.from_data_list(list(items))
    for name in ("x", "edge_index", "edge_attr", "y", "ptr", "batch"):
        assert torch.equal(fast[name], slow[name]), name
    assert fast.smiles == slow.smiles and fast.text == slow.text and fast.num_graphs == 5
    for one, other in zip(fast.to_data_list(), items, strict=True):
        assert one.smiles == other.smiles and one.text == other.text and torch.equal(one.edge_index, other.edge_index)
        assert torch.equal(one.y, other.y) and one.num_nodes == other.num_nodes
