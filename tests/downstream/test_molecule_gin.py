"""The GIN of molecules: classes from ``label``, numbers from ``y`` with gaps, its own scores."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from lightning_synth.datamodules import ItemsDataModule, MixedDataModule
from lightning_synth.downstream import MoleculeGIN, MoleculeGINRegressor, get_downstream
from lightning_synth.downstream.base import class_scores, regression_scores
from lightning_synth.errors import ConfigError, DataError, NotFittedError
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_molecules, tiny_schema
from lightning_synth.testing.case import quiet, quiet_trainer

KNOWN = {key: tiny_schema("molecule")[key] for key in ("atom_types", "bond_types")}


def labelled(n=24):
    """Molecules with an oxygen against those without."""
    items = [item.clone() for item in tiny_molecules(n)]
    for item in items:
        item.label = torch.tensor([int("O" in item.smiles)])
    return items, describe(items, "molecule", property_names=["atoms", "hetero_atoms"], **KNOWN)


def test_it_learns_classes_and_scores_itself():
    items, schema = labelled()
    model = MoleculeGIN(lr=5e-3, hidden=16, num_layers=2)
    with quiet():
        data = ItemsDataModule(items, items, schema=schema, domain="molecule", batch_size=12)
        quiet_trainer(max_epochs=40).fit(model, data)
    found = model.score(items)
    assert found["roc_auc"] > 0.95 and found["balanced_accuracy"] > 0.9
    assert MoleculeGIN.metric in found and MoleculeGIN.higher_is_better


def test_it_learns_numbers_around_gaps():
    items = [item.clone() for item in tiny_molecules(24)]
    schema = describe(items, "molecule", property_names=["atoms", "hetero_atoms"], **KNOWN)
    gaps = [item.clone() for item in items]
    for i, item in enumerate(gaps):
        item.y = item.y.clone()
        # Of the two copies of a molecule each lacks another number.
        item.y[0, (i + i // 12) % 2] = torch.nan
    model = MoleculeGINRegressor(lr=1e-2, hidden=16, num_layers=2)
    with quiet():
        data = ItemsDataModule(gaps, gaps, schema=schema, domain="molecule", batch_size=12)
        quiet_trainer(max_epochs=50).fit(model, data)
    found = model.score(items)
    spread = np.mean([schema["properties"][name]["std"] for name in schema["properties"]])
    assert found["rmse"] < 0.6 * spread and {"rmse/atoms", "mae"} <= found.keys()


def test_missing_targets_and_weights_do_not_count():
    items = [item.clone() for item in tiny_molecules(4)]
    for item in items:
        item.y = item.y.clone()
    items[1].y[:] = torch.nan
    model = MoleculeGINRegressor(tiny_schema("molecule"), hidden=8).eval()
    alone = model.training_step(Batch.from_data_list([items[0], items[2], items[3]]))
    assert torch.allclose(model.training_step(Batch.from_data_list(items)), alone, atol=1e-6)
    batch = Batch.from_data_list(items)
    batch.weight = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert torch.allclose(model.training_step(batch), model.training_step(Batch.from_data_list(items[:1])), atol=1e-6)


def test_classes_of_mixed_batches_are_weighted():
    items, schema = labelled(16)
    data = ItemsDataModule(items[:8], schema=schema, domain="molecule", batch_size=8)
    mixed = MixedDataModule(data, pool=items[8:], ratio=0.5, weight=0.0, batch_size=8)
    batch = next(iter(mixed.train_dataloader()))
    model = MoleculeGIN(schema)
    losses = torch.nn.functional.cross_entropy(model(batch), batch.label.reshape(-1), reduction="none")
    assert torch.allclose(model.training_step(batch), losses[~batch.is_synthetic].mean(), atol=1e-6)


def test_scores_have_known_values():
    truth, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
    assert class_scores(truth, np.stack([1 - p, p], 1))["roc_auc"] == 0.75
    y = np.array([[0.0, 1.0], [2.0, np.nan]])
    assert regression_scores(y, np.zeros((2, 2)), ["a", "b"])["rmse"] == pytest.approx((2**0.5 + 1) / 2)
    with pytest.raises(DataError, match="two classes"):
        class_scores(np.array([1, 1]), np.full((2, 2), 0.5))
    with pytest.raises(DataError, match="value of b"):
        regression_scores(np.array([[1.0, np.nan]]), np.zeros((1, 2)), ["a", "b"])


def test_other_data_are_refused():
    with pytest.raises(ConfigError, match="0 classes"):
        MoleculeGIN(tiny_schema("molecule"))
    with pytest.raises(ConfigError, match="targets="):
        MoleculeGINRegressor({**tiny_schema("molecule"), "properties": {}})
    with pytest.raises(NotFittedError):
        MoleculeGIN().score([])
    assert get_downstream("molecule_gin_regressor") is MoleculeGINRegressor
