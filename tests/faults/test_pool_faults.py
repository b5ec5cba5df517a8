"""What happens to pools: interrupted writes, damaged files, two writers, full and read-only disks."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import lightning as L
import pyarrow.parquet as pq
import pytest
import torch

from lightning_synth import Generator, PoolWriter, SyntheticPool
from lightning_synth.datamodules import RequestDataModule
from lightning_synth.errors import PoolError
from lightning_synth.pool import files as _files
from lightning_synth.pool.files import DirectoryLock
from lightning_synth.testing import tiny_schema


class Toy(Generator):
    domain = "timeseries"

    def build(self, schema):
        self.net = torch.nn.Linear(4, schema["channels"] * schema["length"])

    def losses(self, batch, rng):
        return {"loss": self.net.weight.square().sum()}

    def sample_batch(self, requests, rng):
        return {"x": self.net(rng.normal((4,))).reshape(len(requests), self.schema["channels"], -1)}


@pytest.fixture
def toy():
    generator = Toy(schema=tiny_schema("timeseries"))
    generator.is_fitted = True
    return generator


@pytest.fixture
def pool(toy):
    return SyntheticPool.generate(toy, 30, progress=False)


@pytest.fixture
def folder(pool, tmp_path):
    return pool.save(tmp_path / "pool", shard_size=10)


def predict(generator, folder, trainer_kwargs, n=30):
    trainer = L.Trainer(callbacks=[PoolWriter(folder, shard_size=10)], **trainer_kwargs)
    trainer.predict(generator, datamodule=RequestDataModule(n=n, batch_size=5), return_predictions=False)


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


# ---------------------------------------------------------------------- damaged files


def test_a_truncated_shard_is_named(folder):
    shard = folder / "part-00000-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(PoolError, match=r"part-00000-00001\.parquet is truncated"):
        SyntheticPool.open(folder)
    with pytest.raises(PoolError, match=r"part-00000-00001\.parquet"):
        SyntheticPool.open(folder, verify=False)


@pytest.mark.parametrize("position", (200, -100))
def test_one_flipped_bit_is_named(folder, position):
    SyntheticPool.open(folder)
    flip(folder / "part-00000-00002.parquet", position)
    with pytest.raises(PoolError, match=r"part-00000-00002\.parquet is corrupt: its sha256"):
        SyntheticPool.open(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "part-00000-00000.parquet").unlink()
    with pytest.raises(PoolError, match=r"part-00000-00000\.parquet is missing"):
        SyntheticPool.open(folder)


def test_manifests_that_cannot_be_trusted(folder):
    path = folder / "_manifest.json"
    good = json.loads(path.read_text())

    def refused(content, match):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(PoolError, match=match):
            SyntheticPool.open(folder)

    refused({**good, "format_version": "2.0"}, r"format version 2\.0, .* reads 1\.x")
    refused({**good, "format": "other"}, "manifest of 'other'")
    refused({key: value for key, value in good.items() if key != "schema"}, "has no schema")
    refused(json.dumps(good)[:-20], "damaged")
    refused("", "damaged")
    refused("[]", "damaged")
    path.write_text(json.dumps({**good, "format_version": "1.7", "news": 1}))
    assert len(SyntheticPool.open(folder)) == 30, "a newer minor version only adds"
    path.unlink()
    with pytest.raises(PoolError, match="3 complete shards"):
        SyntheticPool.open(folder)
    with pytest.raises(PoolError, match="it is no pool"):
        SyntheticPool.open(folder / "nothing")


def test_a_repeated_index_is_refused(folder):
    manifest = json.loads((folder / "_manifest.json").read_text())
    shutil.copy(folder / "part-00000-00000.parquet", folder / "part-00000-00003.parquet")
    copy = {**manifest["shards"][0], "file": "part-00000-00003.parquet"}
    (folder / "_manifest.json").write_text(json.dumps({**manifest, "shards": [*manifest["shards"], copy]}))
    with pytest.raises(PoolError, match="index 0 occurs twice"):
        SyntheticPool.open(folder)


def test_a_damaged_memory_map_is_built_again(folder):
    first = SyntheticPool.open(folder).content_hash
    cached = next((folder / ".cache").glob("*.arrow"))
    cached.write_bytes(cached.read_bytes()[:-50])
    assert SyntheticPool.open(folder).content_hash == first


def test_the_memory_map_follows_the_shards(pool, folder, toy):
    old = SyntheticPool.open(folder)
    SyntheticPool.generate(toy, 12, seed=9, progress=False).save(folder, overwrite=True)
    assert len(SyntheticPool.open(folder)) == 12
    assert len(list((folder / ".cache").glob("*.arrow"))) == 1
    # The pool that is still open reads the rows it was opened with.
    assert old.content_hash == pool.content_hash and torch.equal(old[29]["x"], pool[29]["x"])


# ---------------------------------------------------------------------- disks


def test_a_read_only_pool_can_be_read(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_SYNTH_CACHE", str(tmp_path / "elsewhere"))
    (folder / ".cache").write_text("not a directory: nothing can be written into it")
    assert len(SyntheticPool.open(folder)) == 30
    assert list((tmp_path / "elsewhere").glob("*.arrow"))


def test_a_read_only_directory_is_refused_before_sampling(toy, trainer_kwargs, tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "sample_batch", lambda *_: pytest.fail("sampled before the directory was checked"))
    (tmp_path / "file").write_text("")
    with pytest.raises(PoolError, match=r"cannot write to .*file"):
        predict(toy, tmp_path / "file" / "pool", trainer_kwargs)
    # Permissions do not bind root; the error of the system does.
    real = _files.os.open

    def read_only(path, *args, **kwargs):
        if ".lock" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(_files.os, "open", read_only)
    with pytest.raises(PoolError, match="Read-only file system"):
        predict(toy, tmp_path / "pool", trainer_kwargs)


def test_a_full_disk_names_the_file_and_keeps_the_shards_before(toy, trainer_kwargs, tmp_path):
    folder = tmp_path / "pool"
    predict(toy, folder, trainer_kwargs, n=20)
    size = max(path.stat().st_size for path in folder.glob("*.parquet"))
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, kept[1]))
    try:
        with pytest.raises(PoolError, match=r"cannot write .*part-00000-00002\.parquet.*earlier shards are intact"):
            predict(toy, folder, trainer_kwargs, n=40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert len(SyntheticPool.open(folder)) == 20
    assert sorted(path.name for path in folder.iterdir() if path.suffix in (".tmp", ".lock")) == []
    predict(toy, folder, trainer_kwargs, n=40)
    assert len(SyntheticPool.open(folder)) == 40


# ---------------------------------------------------------------------- interrupted and concurrent writers


@pytest.mark.parametrize("step", range(1, 9))
def test_a_write_interrupted_anywhere_leaves_a_pool_or_none(toy, trainer_kwargs, tmp_path, monkeypatch, step):
    """The process dies at the k-th file operation that matters: afterwards every file with a final name is complete."""
    folder, calls = tmp_path / "pool", []

    def dying(name, real):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == step:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "replace", dying("replace", os.replace))
        patch.setattr(pq.ParquetWriter, "close", dying("close", pq.ParquetWriter.close))
        # An interrupt ends a Trainer with exit status 1.
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            predict(toy, folder, trainer_kwargs)
            raise KeyboardInterrupt
    signal.signal(signal.SIGINT, handler)  # Lightning ignores further Ctrl-C after the first
    for shard in folder.glob("part-*.parquet"):
        assert pq.read_table(shard).num_rows == 10
    predict(toy, folder, trainer_kwargs)
    pool = SyntheticPool.open(folder)
    assert pool.to_pandas(payload=False)["index"].tolist() == list(range(30))
    assert not list(folder.glob(".*.tmp"))


def test_two_writers_do_not_share_a_directory(toy, trainer_kwargs, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    with DirectoryLock(folder):
        with pytest.raises(PoolError, match=f"being written by process {os.getpid()}"):
            predict(toy, folder, trainer_kwargs)
        with pytest.raises(PoolError, match="being written"):
            SyntheticPool.generate(toy, 1, progress=False).save(folder)
    predict(toy, folder, trainer_kwargs)
    assert len(SyntheticPool.open(folder)) == 30 and not (folder / ".lock").exists()


HOLD = """
import sys, time
from pathlib import Path
from lightning_synth.pool.files import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PoolError, match=f"process {holder.pid}"):
            DirectoryLock(tmp_path).acquire()
    finally:
        holder.kill()
        holder.wait()
    assert (tmp_path / ".lock").exists()
    with DirectoryLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("locks", (True, False))
def test_a_lock_file_left_behind(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(_files, "_flock", lambda file: None)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host = __import__("socket").gethostname()
    (tmp_path / ".lock").write_text(json.dumps({"pid": child.pid, "host": host}))
    with DirectoryLock(tmp_path):
        pass
    (tmp_path / ".lock").write_text("not json")
    with DirectoryLock(tmp_path):
        pass
    if not locks:
        (tmp_path / ".lock").write_text(json.dumps({"pid": child.pid, "host": "another-machine"}))
        with pytest.raises(PoolError, match="another-machine"):
            DirectoryLock(tmp_path).acquire()


def test_locks_change_hands_without_overlap(tmp_path):
    """Eight processes take the lock in turn; none finds another one inside."""
    code = """
import sys, time
from pathlib import Path
from lightning_synth.pool.files import DirectoryLock
from lightning_synth.errors import PoolError
folder, inside = Path(sys.argv[1]), Path(sys.argv[1]) / "inside"
for _ in range(5):
    while True:
        lock = DirectoryLock(folder)
        try:
            lock.acquire()
            break
        except PoolError:
            time.sleep(0.001)
    inside.touch(exist_ok=False)
    time.sleep(0.002)
    inside.unlink()
    lock.release()
"""
    workers = [subprocess.Popen([sys.executable, "-c", code, tmp_path]) for _ in range(3)]
    deadline = time.monotonic() + 60
    assert [worker.wait(max(1.0, deadline - time.monotonic())) for worker in workers] == [0, 0, 0]
