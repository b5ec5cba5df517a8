"""Real molecules: exact round trips through tokens; a short fit to QM9 is valid, varied and follows conditions."""

import csv

import pytest
import torch
from scipy.stats import spearmanr

from lightning_synth.datamodules import ItemsDataModule
from lightning_synth.graphs import DenseGraphs
from lightning_synth.molecules import BOND_TYPES, encode, fit_vocabulary, read_molecule, to_smiles, valence_table
from lightning_synth.plugins.molecule.molecule_sequence import MoleculeSequence
from lightning_synth.plugins.molecule.molecule_sequence_tokens import MoleculeTokens
from lightning_synth.schema import collate, describe
from lightning_synth.testing.case import quiet_trainer


def read(path, every, start=0):
    if path.suffix == ".csv":
        with path.open() as file:
            smiles = [row["smiles"] for row in csv.DictReader(file)]
    else:
        smiles = path.read_text().split()
    return [read_molecule(text) for text in smiles[start::every]]


@pytest.mark.parametrize(("name", "every"), [("zinc250k.smi", 125), ("qm9_smiles_133885.csv", 60), ("clintox.csv", 1)])
def test_round_trip_through_tokens_is_exact(data_root, name, every):
    path = data_root / "molecules" / name
    if not path.exists():
        pytest.skip(f"{name} is not there")
    graphs = [graph for graph in _readable(path, every) if len(graph.atoms) <= 60]
    types = fit_vocabulary(graphs)
    schema = {"domain": "molecule", "max_nodes": 60, "atom_types": types, "bond_types": list(BOND_TYPES)}
    codec, draw = MoleculeTokens(schema, valence_table(schema)), torch.Generator().manual_seed(0)
    for start in range(0, len(graphs), 500):
        part = graphs[start : start + 500]
        dense = DenseGraphs.from_batch(collate([encode(graph, types) for graph in part], schema))
        tokens = codec.encode(dense, torch.rand(dense.mask.shape, generator=draw))
        assert to_smiles(codec.decode(tokens).to_data_list(), schema) == [graph.smiles for graph in part]


def _readable(path, every):
    from lightning_synth.errors import DataError

    if path.name != "clintox.csv":
        return read(path, every)
    with path.open() as file:
        rows = [row["smiles"] for row in csv.DictReader(file)]
    graphs = []
    for text in rows:
        try:
            graphs.append(read_molecule(text))
        except DataError:
            continue
    return graphs


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_fit_to_qm9(data_root):
    path = data_root / "molecules" / "qm9_smiles_133885.csv"
    if not path.exists():
        pytest.skip("QM9 is not there")
    from rdkit import Chem
    from rdkit.Chem import Descriptors

    graphs = read(path, 10, start=1000)
    weights = [Descriptors.MolWt(Chem.MolFromSmiles(graph.smiles)) for graph in graphs]
    types = fit_vocabulary(graphs)
    items = [encode(graph, types, y=[weight]) for graph, weight in zip(graphs, weights, strict=True)]
    known = {"atom_types": types, "bond_types": list(BOND_TYPES), "property_names": ["weight"]}
    schema = describe(items, "molecule", **known)
    data = ItemsDataModule(items, items[:1], items[1:2], schema=schema, domain="molecule", batch_size=64)
    model = MoleculeSequence(d_model=96)
    quiet_trainer(max_steps=300).fit(model, datamodule=data)
    written = [item.smiles for item in model.sample(1000, condition={}, seed=0).items()]
    molecules = [Chem.MolFromSmiles(text) for text in written]
    assert all(mol is not None for mol in molecules)
    assert len(set(written)) > 950
    assert len(set(written) & {graph.smiles for graph in graphs}) > 20
    asked = torch.linspace(105.0, 140.0, 200)
    samples = model.sample(200, condition={"weight": asked}, seed=1)
    got = [Descriptors.MolWt(Chem.MolFromSmiles(item.smiles)) for item in samples.items()]
    assert spearmanr(asked, got).statistic > 0.6
