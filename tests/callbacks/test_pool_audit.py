"""PoolAudit: copies and invalid items are marked and counted, wherever it stands in the list of callbacks."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from lightning_synth import Generator, PoolAudit, PoolWriter, SyntheticPool, get_generator
from lightning_synth.datamodules import RequestDataModule
from lightning_synth.errors import ConfigError, InvalidSamplesError
from lightning_synth.testing import tiny_datamodule, tiny_series


class Leaky(Generator):
    """Every fourth row is a training window, every tenth has a label that does not exist."""

    domain = "timeseries"

    def losses(self, batch, rng):
        return {"loss": torch.zeros((), requires_grad=True)}

    def sample_batch(self, requests, rng):
        x = rng.normal((self.schema["channels"], self.schema["length"]))
        train = tiny_series().tensors["x"]
        x = torch.where((requests.index % 4 == 0)[:, None, None], train[requests.index % len(train)], x)
        return {"x": x, "y": torch.where(requests.index % 10 == 9, 99, requests.index % 3)}


@pytest.fixture
def leaky():
    generator = Leaky(schema=tiny_datamodule("timeseries").schema)
    generator.is_fitted = True
    return generator


def audited(generator, audit, folder, trainer_kwargs, first=False):
    callbacks = [audit, PoolWriter(folder)] if first else [PoolWriter(folder), audit]
    trainer = L.Trainer(callbacks=callbacks, **trainer_kwargs)
    requests = RequestDataModule(n=40, batch_size=7)
    trainer.predict(generator, datamodule=requests, return_predictions=False)
    return SyntheticPool.open(folder, only_accepted=False)


@pytest.mark.parametrize("first", (True, False))
def test_leaked_and_invalid_rows_are_marked_and_counted(leaky, trainer_kwargs, tmp_path, first):
    audit = PoolAudit(train=tiny_series())
    pool = audited(leaky, audit, tmp_path / "pool", trainer_kwargs, first)
    rows = pool.to_pandas(payload=False)
    assert rows.loc[rows["score.copy"] == 1, "index"].tolist() == list(range(0, 40, 4))
    assert rows.loc[rows["score.invalid"] == 1, "index"].tolist() == [9, 19, 29, 39]
    assert rows.loc[rows["accepted"], "index"].tolist() == [i for i in range(40) if i % 4 and i % 10 != 9]
    assert pool.manifest["counts"] == {"requested": 40, "written": 40, "accepted": 26, "invalid": 4, "copy": 10}
    assert audit.counts == {"rows": 40, "invalid": 4, "copy": 10, "accepted": 26}
    assert len(SyntheticPool.open(tmp_path / "pool")) == 26


def test_a_training_window_under_another_label_is_still_a_copy(leaky, trainer_kwargs, tmp_path):
    """The fingerprint hashes whole items; given the items themselves, the label does not hide a copy."""
    leaky.training_fingerprint = get_generator("bootstrap")().fit_on(tiny_series(), leaky.schema).training_fingerprint
    by_print, by_items = PoolAudit(), PoolAudit(train=tiny_datamodule("timeseries"))
    audited(leaky, by_print, tmp_path / "print", trainer_kwargs)
    audited(leaky, by_items, tmp_path / "items", trainer_kwargs)
    labels = tiny_series().tensors["y"]
    same_label = sum(int(labels[i % len(labels)]) == i % 3 for i in range(0, 40, 4))
    assert by_print.counts["copy"] == same_label < 10
    train = {item["x"].numpy().tobytes() for item in tiny_datamodule("timeseries").train_items()}
    copies = sum(tiny_series()[i % 16]["x"].numpy().tobytes() in train for i in range(0, 40, 4))
    assert by_items.counts["copy"] == copies


@pytest.mark.parametrize("domain", ("timeseries", "graph", "molecule", "sequence"))
def test_the_memoriser_is_caught_in_every_domain(domain):
    dm = tiny_datamodule(domain)
    generator = get_generator("bootstrap")().fit_on(dm.train_items(), dm.schema)
    for audit in (PoolAudit(), PoolAudit(train=dm), PoolAudit(train=dm.train_items())):
        samples = audit.mark(generator.sample(5), generator.training_fingerprint)
        assert not samples.accepted.any() and samples.score["copy"].all() and not samples.score["invalid"].any()
    counted = PoolAudit(reject_copies=False).mark(generator.sample(5), generator.training_fingerprint)
    assert counted.accepted.all() and counted.score["copy"].all()
    assert PoolAudit(train=dm).mark(generator.sample(0)).accepted.shape == (0,)


def test_graphs_that_are_no_molecule_are_invalid(trainer_kwargs, tmp_path):
    """They have no SMILES: a flow repairs nothing."""
    model = get_generator("molecule_flow")(schema=tiny_datamodule("molecule").schema, num_layers=1, d_node=16, heads=2)
    model.is_fitted = True
    # Triple bonds almost everywhere: too many for an atom with two neighbours.
    torch.nn.init.zeros_(model.network.edge_out.weight)
    model.network.edge_out.bias.data = torch.tensor([-9.0, *[0.0] * (model.edge_types - 2), 1.0])
    audit = PoolAudit(max_invalid=1.0)
    rows = audited(model, audit, tmp_path / "pool", trainer_kwargs).to_pandas()
    empty = (rows["smiles"] == "").to_numpy()
    assert 0 < empty.sum() and (rows["score.invalid"].to_numpy() == empty).all()
    assert (rows["accepted"].to_numpy() == ~empty).all() and audit.counts["invalid"] == empty.sum()
    with pytest.raises(InvalidSamplesError, match="is none: its smiles is empty"):
        audited(model, PoolAudit(max_invalid=0.0), tmp_path / "other", trainer_kwargs)


def test_mostly_invalid_rows_end_the_run_with_the_rate(leaky, trainer_kwargs, tmp_path):
    with pytest.raises(InvalidSamplesError, match=r"4 of 40 samples \(10%\) are invalid, first: .*label y is 99"):
        audited(leaky, PoolAudit(max_invalid=0.05), tmp_path / "pool", trainer_kwargs)
    with pytest.raises(ConfigError):
        PoolAudit(max_invalid=2)


def test_without_training_data_nothing_is_said_about_copies(leaky):
    samples = PoolAudit().mark(leaky.sample(8))
    assert "copy" not in samples.score and samples.accepted.all()
