"""The fingerprint forests: what they see, what they leave out, and their scores."""

import numpy as np
import pytest
import torch

from lightning_synth.downstream import FingerprintForest, FingerprintForestRegressor, get_downstream
from lightning_synth.downstream.fingerprint_forest import fingerprints
from lightning_synth.errors import ConfigError, DataError, NotFittedError
from lightning_synth.molecules.representation import encode, fit_vocabulary
from lightning_synth.schema import describe

SMILES = ["CCO", "CCCO", "CCN", "CCCN", "OCCO", "NCCN", "CC(O)C", "CC(N)C", "CCCCO", "CCCCN"]
TYPES = fit_vocabulary(SMILES)


def molecules():
    items = [encode(smiles, TYPES, y=[smiles.count("C"), smiles.count("O")]) for smiles in SMILES]
    for item in items:
        item.label = torch.tensor([int("O" in item.smiles)])
    known = {
        "atom_types": TYPES,
        "bond_types": ["SINGLE", "DOUBLE", "TRIPLE"],
        "property_names": ["carbons", "oxygens"],
    }
    return items, describe(items, "molecule", **known)


def impossible():
    item = encode("CC(C)(C)C", TYPES, y=[5.0, 0.0])
    item.edge_attr[:] = 1
    item.label = torch.tensor([1])
    return item


def test_fingerprints_count_atoms_once_each():
    items, schema = molecules()
    found = fingerprints([*items, impossible()], schema, radius=0, size=64)
    assert found.sum(1)[:-1].tolist() == [item.num_nodes for item in items] and found[-1].sum() == 0


def test_classes():
    items, schema = molecules()
    forest = FingerprintForest(schema, n_estimators=30).fit(items)
    assert forest.score(items)["roc_auc"] == 1.0
    assert forest.predict_proba([impossible()]).sum() == pytest.approx(1)


def test_graphs_that_are_no_molecules_are_left_out():
    items, schema = molecules()
    plain = FingerprintForest(schema, n_estimators=10).fit(items, np.ones(len(items)))
    more = FingerprintForest(schema, n_estimators=10).fit([*items, impossible()], np.ones(len(items) + 1))
    assert np.array_equal(plain.predict_proba(items), more.predict_proba(items))
    with pytest.raises(DataError, match="none of the 1 training graphs is a molecule"):
        FingerprintForest(schema).fit([impossible()])


def test_numbers_with_gaps_and_weights():
    items, schema = molecules()
    items[0].y[0, 1] = torch.nan
    forest = FingerprintForestRegressor(schema, n_estimators=50).fit(items)
    assert forest.predict(items).shape == (10, 2) and forest.score(items)["rmse/oxygens"] < 0.3
    # With all weight on one molecule every tree predicts its value.
    weight = np.zeros(10)
    weight[4] = 1.0
    one = FingerprintForestRegressor(schema, n_estimators=5).fit(items[1:], weight[1:])
    assert np.allclose(one.predict(items), items[4].y.numpy())
    for item in items:
        item.y[0, 0] = torch.nan
    with pytest.raises(DataError, match="carbons"):
        FingerprintForestRegressor(schema).fit(items)


def test_seed_decides():
    items, schema = molecules()
    one, same, other = (
        FingerprintForestRegressor(schema, n_estimators=3).fit(items, seed=s).predict(items) for s in (0, 0, 1)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_other_data_are_refused():
    items, schema = molecules()
    with pytest.raises(ConfigError, match="task='classification'"):
        FingerprintForest({**schema, "num_classes": 0})
    with pytest.raises(ConfigError, match="0 properties"):
        FingerprintForestRegressor({**schema, "properties": {}})
    with pytest.raises(NotFittedError):
        FingerprintForestRegressor(schema).predict(items)
    assert get_downstream("fingerprint_forest").__name__ == "FingerprintForest"
