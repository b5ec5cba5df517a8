"""RequestDataModule: every row once, the same row whatever the batch, the device count, or what is already done."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch

from lightning_synth import PoolWriter, SampleRequests, get_generator
from lightning_synth.datamodules import RequestDataModule
from lightning_synth.datamodules.requests import RequestDataset, _EveryRank
from lightning_synth.errors import ConfigError
from lightning_synth.testing import tiny_datamodule, tiny_schema, tiny_series


def rows(batches):
    return SampleRequests.cat(list(batches))


@pytest.mark.parametrize("batch_size", (1, 8, 101, 500))
def test_batches_hold_the_rows_of_one_request(batch_size):
    got = rows(RequestDataModule(n=101, seed=7, batch_size=batch_size).predict_dataloader())
    made = SampleRequests.make(101, seed=7)
    assert torch.equal(got.index, made.index) and torch.equal(got.seed, made.seed)


@pytest.mark.parametrize("condition", (None, "balanced", {"label": 1}, {"label": "balanced", "rpm": 3.0}))
def test_blocks_join_without_a_seam(condition, monkeypatch):
    from lightning_synth.datamodules import requests

    monkeypatch.setattr(requests, "_BLOCK", 16)
    items = tiny_series(12, conditions=("rpm",))
    from lightning_synth.schema import describe

    schema = describe(items, "timeseries")
    given = {"rpm": torch.arange(100.0)} if condition is None else condition
    with (
        pytest.warns(UserWarning, match="training range") if isinstance(given, dict) and "rpm" in given else _nothing()
    ):
        made = SampleRequests.make(100, seed=2, condition=given, schema=schema)
        dataset = RequestDataset(100, seed=2, condition=given, schema=schema)
        got = rows([dataset.__getitems__(list(range(s, min(s + 7, 100)))) for s in range(0, 100, 7)])
    for name in ("label", "rpm"):
        assert torch.equal(got.condition[name], made.condition[name])
    assert torch.equal(got.seed, made.seed)
    strided = dataset.__getitems__(list(range(1, 100, 3)))
    assert torch.equal(strided.seed, made.seed[1::3])


class _nothing:
    def __enter__(self): ...
    def __exit__(self, *_): ...


def test_a_request_of_any_size_takes_no_memory():
    dataset = RequestDataset(10**12, seed=1)
    assert len(dataset) == 10**12 and int(dataset[10**12 - 1].index) == 10**12 - 1
    assert len(dataset._blocks) == 1


@pytest.mark.parametrize(("n", "world"), [(101, 2), (101, 8), (3, 4), (0, 2)])
def test_ranks_share_the_rows_without_repeats(n, world):
    dataset = RequestDataset(n)
    shares = [list(_EveryRank(dataset, world, rank)) for rank in range(world)]
    assert sorted(row for share in shares for row in share) == list(range(n))
    assert [len(_EveryRank(dataset, world, rank)) for rank in range(world)] == [len(share) for share in shares]


def test_resume_leaves_complete_rows_out(trainer_kwargs, tmp_path):
    dm = tiny_datamodule("timeseries")
    generator = get_generator("bootstrap")().fit_on(dm.train_items(), dm.schema)
    trainer = L.Trainer(callbacks=[PoolWriter(tmp_path / "pool")], **trainer_kwargs)
    trainer.predict(generator, datamodule=RequestDataModule(n=10, seed=7, batch_size=4), return_predictions=False)
    rest = RequestDataModule(n=15, seed=7, resume_from=tmp_path / "pool")
    rest.setup("predict")
    assert rows(rest.predict_dataloader()).index.tolist() == [10, 11, 12, 13, 14]
    rest.setup("predict")
    rest.skip(np.array([12]))
    assert rows(rest.predict_dataloader()).index.tolist() == [10, 11, 13, 14]
    assert rows(rest.predict_dataloader()).seed[0] == SampleRequests.make(15, seed=7).seed[10]


def test_one_datamodule_serves_several_pools(trainer_kwargs, tmp_path):
    dm = tiny_datamodule("timeseries")
    generator = get_generator("bootstrap")().fit_on(dm.train_items(), dm.schema)
    requests = RequestDataModule(n=5, batch_size=2)
    for name in "ab":
        trainer = L.Trainer(callbacks=[PoolWriter(tmp_path / name)], **trainer_kwargs)
        trainer.predict(generator, datamodule=requests, return_predictions=False)
        assert list((tmp_path / name).glob("part-*.parquet"))


def test_conditions_come_from_the_generator(trainer_kwargs):
    dm = tiny_datamodule("timeseries")
    generator = get_generator("bootstrap")().fit_on(dm.train_items(), dm.schema)
    requests = RequestDataModule(n=6, condition={"label": "balanced"}, batch_size=4)
    batches = L.Trainer(**trainer_kwargs).predict(generator, datamodule=requests)
    assert torch.cat([samples.data["y"] for samples in batches]).tolist() == [0, 1, 2, 0, 1, 2]
    unknown = RequestDataModule(n=6, condition={"colour": 1})
    with pytest.raises(ConfigError, match="'colour' is not available"):
        L.Trainer(**trainer_kwargs).predict(generator, datamodule=unknown)
    assert tiny_schema("timeseries")["num_classes"] == 3


def test_workers_make_the_same_requests():
    plain, forked = (
        rows(RequestDataModule(n=50, seed=3, batch_size=8, num_workers=w).predict_dataloader()) for w in (0, 2)
    )
    assert torch.equal(plain.seed, forked.seed)


def test_bad_numbers():
    for wrong in ({"n": -1}, {"n": 1, "batch_size": 0}):
        with pytest.raises(ConfigError):
            RequestDataModule(**wrong)
    with pytest.raises(ConfigError, match="has 3 values, but 5 rows"):
        RequestDataset(5, condition={"rpm": [1.0, 2.0, 3.0]})
