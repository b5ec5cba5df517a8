"""PoolWriter: the same pool on any number of devices, at any batch size, and after any interruption."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_synth import Generator, PoolWriter, SyntheticPool
from lightning_synth.datamodules import RequestDataModule
from lightning_synth.errors import ConfigError, PoolError
from lightning_synth.testing import tiny_schema

SCRIPT = Path(__file__).with_name("pool_ddp_script.py")


class Toy(Generator):
    domain = "timeseries"
    conditions = ("label",)
    fail_at = None

    def build(self, schema):
        self.net = torch.nn.Linear(4, schema["channels"] * schema["length"])

    def losses(self, batch, rng):
        return {"loss": self.net.weight.square().sum()}

    def sample_batch(self, requests, rng):
        self.sampled = [*getattr(self, "sampled", []), *requests.index.tolist()]
        if self.fail_at is not None and self.fail_at in requests.index:
            raise RuntimeError("the sampler broke")
        return {"x": self.net(rng.normal((4,))).reshape(len(requests), self.schema["channels"], -1)}


@pytest.fixture
def toy():
    generator = Toy(schema=tiny_schema("timeseries"))
    generator.is_fitted = True
    return generator


@pytest.fixture
def predict(trainer_kwargs):
    def run(generator, folder, *callbacks, n=101, batch_size=8, seed=7, writer=None, condition=None, **trainer):
        writer = writer or PoolWriter(folder)
        requests = RequestDataModule(n=n, seed=seed, batch_size=batch_size, condition=condition)
        trainer = L.Trainer(callbacks=[writer, *callbacks], **{**trainer_kwargs, **trainer})
        trainer.predict(generator, datamodule=requests, return_predictions=False)
        return SyntheticPool.open(folder)

    return run


@pytest.fixture(scope="module")
def script(run_script):
    return partial(run_script, SCRIPT)


def windows(pool):
    return pool.__getitems__(range(len(pool))).tensors["x"]


@pytest.fixture(scope="module")
def one(script, tmp_path_factory):
    """101 rows written by one process at batch size 8."""
    folder = tmp_path_factory.mktemp("one")
    done = script(folder, 1, 8, "auto", 101)
    assert done.returncode == 0, done.stderr[-3000:]
    return SyntheticPool.open(folder)


@pytest.mark.ddp
@pytest.mark.parametrize("strategy", ("ddp_fork", "ddp"))
def test_the_pool_is_the_same_on_two_processes(one, script, tmp_path, strategy):
    done = script(tmp_path / "two", 2, 16, strategy, 101)
    assert done.returncode == 0, done.stderr[-3000:]
    two = SyntheticPool.open(tmp_path / "two")
    assert {path.name[:10] for path in (tmp_path / "two").glob("*.parquet")} == {"part-00000", "part-00001"}
    for pool in (one, two):
        assert pool.manifest["counts"] == {"requested": 101, "written": 101, "accepted": 101}
        assert pool.to_pandas(payload=False)["index"].tolist() == list(range(101))
        assert len({window.numpy().tobytes() for window in windows(pool)}) == 101
    # Channel 0 is the noise itself: bit-equal. The network may differ in the last bits.
    assert torch.equal(windows(one)[:, 0], windows(two)[:, 0])
    assert torch.allclose(windows(one), windows(two), atol=1e-4)
    assert np.array_equal(one.labels, two.labels)


@pytest.mark.ddp
def test_a_killed_run_continues_on_another_number_of_processes(one, script, tmp_path):
    killed = script(tmp_path / "pool", 2, 4, "ddp_fork", 101, 5)
    assert killed.returncode != 0
    complete = len(list((tmp_path / "pool").glob("part-*.parquet")))
    assert complete, "nothing was completed before the kill"
    with pytest.raises(PoolError, match="has not finished"):
        SyntheticPool.open(tmp_path / "pool")
    assert script(tmp_path / "pool", 1, 16, "auto", 101).returncode == 0
    resumed = SyntheticPool.open(tmp_path / "pool")
    assert len(list((tmp_path / "pool").glob("part-*.parquet"))) > complete
    assert resumed.to_pandas(payload=False)["index"].tolist() == list(range(101))
    assert torch.allclose(windows(resumed), windows(one), atol=1e-4)
    assert not list((tmp_path / "pool").glob(".*.tmp")) and not (tmp_path / "pool" / ".lock").exists()


@pytest.mark.ddp
def test_fewer_rows_than_processes(script, tmp_path):
    done = script(tmp_path, 2, 8, "ddp_fork", 1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(SyntheticPool.open(tmp_path)) == 1


def test_no_rows(toy, predict, tmp_path):
    pool = predict(toy, tmp_path / "pool", n=0)
    assert len(pool) == 0 and pool.schema == toy.schema and pool.manifest["complete"]


def test_same_rows_as_in_one_process_without_a_trainer(toy, predict, tmp_path):
    written = predict(toy, tmp_path / "pool", condition={"label": "balanced"})
    sampled = SyntheticPool.generate(toy, 101, {"label": "balanced"}, seed=7, progress=False)
    assert torch.allclose(windows(written), windows(sampled), atol=1e-4)
    assert np.array_equal(written.labels, sampled.labels)
    assert written.manifest["config"] == {"n": 101, "seed": 7, "condition": {"label": "balanced"}}


def test_an_error_keeps_the_rows_before_it_and_resuming_adds_the_others(toy, predict, tmp_path):
    toy.fail_at = 57
    with pytest.raises(RuntimeError, match="the sampler broke"):
        predict(toy, tmp_path / "pool")
    toy.fail_at, toy.sampled = None, []
    pool = predict(toy, tmp_path / "pool")
    assert toy.sampled == list(range(56, 101)), "56 rows were complete"
    assert pool.to_pandas(payload=False)["index"].tolist() == list(range(101))
    assert torch.allclose(windows(pool), windows(predict(toy, tmp_path / "whole")), atol=1e-4)


def test_a_complete_pool_is_not_sampled_again_and_can_be_extended(toy, predict, tmp_path):
    first = predict(toy, tmp_path / "pool", n=20)
    toy.sampled = []
    assert predict(toy, tmp_path / "pool", n=20).content_hash == first.content_hash and toy.sampled == []
    longer = predict(toy, tmp_path / "pool", n=30)
    assert toy.sampled == list(range(20, 30)) and len(longer) == 30
    assert longer[:20].content_hash == first.content_hash


def test_a_loader_of_ones_own_is_not_written_twice(toy, trainer_kwargs, tmp_path):
    loader = RequestDataModule(n=12, seed=7, batch_size=5).predict_dataloader()
    for _ in range(2):
        L.Trainer(callbacks=[PoolWriter(tmp_path / "pool")], **trainer_kwargs).predict(
            toy, loader, return_predictions=False
        )
    assert len(SyntheticPool.open(tmp_path / "pool")) == 12


def test_other_requests_or_weights_do_not_join_a_pool(toy, predict, tmp_path):
    predict(toy, tmp_path / "pool", n=10)
    with pytest.raises(PoolError, match="another request: seed was 7, now 8"):
        predict(toy, tmp_path / "pool", n=20, seed=8)
    with torch.no_grad():
        toy.net.bias.add_(1)
    with pytest.raises(PoolError, match="another generator"):
        predict(toy, tmp_path / "pool", n=20)
    assert len(SyntheticPool.open(tmp_path / "pool")) == 10
    assert not (tmp_path / "pool" / ".lock").exists()


def test_a_limited_run_says_so(toy, predict, tmp_path):
    with pytest.warns(UserWarning, match="holds 16 of 101"):
        predict(toy, tmp_path / "pool", limit_predict_batches=2)
    assert len(predict(toy, tmp_path / "pool")) == 101


def test_sigterm_keeps_what_is_done(toy, predict, tmp_path):
    class Preempt(L.Callback):
        def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if batch_idx == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SIGTERMException):
        predict(toy, tmp_path / "pool", Preempt())
    toy.sampled = []
    assert len(predict(toy, tmp_path / "pool")) == 101
    assert toy.sampled[0] == 32


def test_shards_and_memory_are_bounded(toy, predict, tmp_path):
    pool = predict(toy, tmp_path / "pool", writer=PoolWriter(tmp_path / "pool", shard_size=10))
    assert [shard["rows"] for shard in pool.manifest["shards"]] == [10] * 10 + [1]
    timed = predict(toy, tmp_path / "timed", writer=PoolWriter(tmp_path / "timed", max_seconds=1e-9))
    assert len(timed.manifest["shards"]) == 13, "a shard for every batch"
    for wrong in ({"shard_size": 0}, {"max_seconds": 0}):
        with pytest.raises(ConfigError):
            PoolWriter(tmp_path, **wrong)


def test_row_numbers_do_not_pile_up(toy, predict, tmp_path):
    kept = []

    class Look(L.Callback):
        def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            seen = trainer.predict_loop._combined_loader.flattened[0].batch_sampler.seen_batch_indices
            kept.append(sum(map(len, seen)))

    assert len(predict(toy, tmp_path / "pool", Look())) == 101
    assert len(kept) == 13 and max(kept) <= 8, "at most what is prefetched"


def test_only_samples_are_written(trainer_kwargs, tmp_path):
    class Plain(L.LightningModule):
        hparams = {}

        def predict_step(self, batch):
            return batch

    loader = torch.utils.data.DataLoader(torch.zeros(4, 1))
    trainer = L.Trainer(callbacks=[PoolWriter(tmp_path / "pool")], **trainer_kwargs)
    with pytest.raises(ConfigError, match="predict_step returned Tensor"):
        trainer.predict(Plain(), loader, return_predictions=False)


def test_the_checkpoint_is_named_in_the_manifest(toy, trainer_kwargs, tmp_path):
    trainer = L.Trainer(callbacks=[PoolWriter(tmp_path / "pool")], **trainer_kwargs)
    trainer.strategy.connect(toy)
    trainer.save_checkpoint(tmp_path / "toy.ckpt")
    fresh = Toy()
    requests = RequestDataModule(n=5, seed=7, condition={"label": 2})
    trainer = L.Trainer(callbacks=[PoolWriter(tmp_path / "pool")], **trainer_kwargs)
    trainer.predict(fresh, datamodule=requests, return_predictions=False, ckpt_path=tmp_path / "toy.ckpt")
    pool = SyntheticPool.open(tmp_path / "pool")
    checkpoint = pool.manifest["generator"]["checkpoint"]
    assert checkpoint["file"] == "toy.ckpt" and len(checkpoint["sha256"]) == 64
    assert pool.labels.tolist() == [2] * 5
