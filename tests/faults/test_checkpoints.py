"""Checkpoints: reload alone, and damage is noticed, never run, never silent."""

import os
import pickle
import time

import pytest
import torch
from lightning import Trainer

from lightning_synth.checkpoint import KEY, load_generator, state_hash
from lightning_synth.errors import CheckpointError
from lightning_synth.plugins.baselines import Bootstrap
from lightning_synth.testing import tiny_datamodule


@pytest.fixture
def saved(tmp_path, trainer_kwargs):
    generator = Bootstrap()
    trainer = Trainer(max_epochs=1, **trainer_kwargs)
    trainer.fit(generator, tiny_datamodule("timeseries"))
    path = tmp_path / "good.ckpt"
    trainer.save_checkpoint(path)
    return generator, path


def _rewrite(path, out, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, out)
    return out


def test_reloads_alone_with_equal_samples(saved):
    generator, path = saved
    again = load_generator(path)
    assert torch.equal(again.sample(9, seed=3).data["x"], generator.sample(9, seed=3).data["x"])
    assert again.training_fingerprint == generator.training_fingerprint and not again.training


@pytest.mark.parametrize("domain", ["graph", "node", "molecule", "sequence"])
def test_the_bank_survives_in_every_domain(domain, tmp_path, trainer_kwargs):
    generator = Bootstrap()
    trainer = Trainer(max_epochs=1, **trainer_kwargs)
    trainer.fit(generator, tiny_datamodule(domain))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = load_generator(tmp_path / "a.ckpt")
    assert state_hash(again.state_dict()) == state_hash(generator.state_dict())
    assert len(again.sample(3)) == 3


def test_missing_empty_and_truncated_files(saved, tmp_path):
    _, path = saved
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_generator(tmp_path / "absent.ckpt")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty \(0 bytes\); use .*good\.ckpt"):
        load_generator(tmp_path / "empty.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_generator(tmp_path / "cut.ckpt")


def test_fallback_takes_the_newest_sound_checkpoint(saved, tmp_path):
    generator, path = saved
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:100])
    os.utime(path, (time.time() - 5, time.time() - 5))
    with pytest.warns(UserWarning, match="falling back to"):
        again = load_generator(tmp_path / "cut.ckpt", fallback=True)
    assert torch.equal(again.sample(3).data["x"], generator.sample(3).data["x"])


def test_one_flipped_bit_is_noticed(saved, tmp_path):
    def flip(checkpoint):
        payload = checkpoint["state_dict"]["bank._extra_state"]["payload"]
        payload[len(payload) // 2] ^= 1

    with pytest.raises(CheckpointError, match="do not match their hash"):
        load_generator(_rewrite(saved[1], tmp_path / "flip.ckpt", flip))


def test_every_flipped_bit_in_the_file_is_noticed(saved, tmp_path):
    data = bytearray(saved[1].read_bytes())
    marker = data.find(b"ARROW") if b"ARROW" in data else len(data) // 2
    for position in range(marker, marker + 2000, 97):
        damaged = bytearray(data)
        damaged[position] ^= 4
        (tmp_path / "bit.ckpt").write_bytes(damaged)
        try:
            load_generator(tmp_path / "bit.ckpt")
        except CheckpointError:
            continue
        # Padding between zip members carries nothing: the content must then be intact.
        assert state_hash(torch.load(tmp_path / "bit.ckpt", weights_only=True)["state_dict"]) == state_hash(
            torch.load(saved[1], weights_only=True)["state_dict"]
        )


def test_non_finite_weights_are_refused(tmp_path, trainer_kwargs):
    from lightning_synth.plugins.timeseries.diffusion_ts import DiffusionTS
    from lightning_synth.registry import get_spec

    generator = DiffusionTS(**get_spec("diffusion_ts").tiny)
    trainer = Trainer(max_steps=1, **trainer_kwargs)
    trainer.fit(generator, tiny_datamodule("timeseries"))
    with torch.no_grad():
        next(generator.parameters()).fill_(float("nan"))
    trainer.save_checkpoint(tmp_path / "nan.ckpt")
    with pytest.raises(CheckpointError, match="non-finite"):
        load_generator(tmp_path / "nan.ckpt")


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_hostile_pickle_is_not_run(tmp_path):
    target = tmp_path / "boom"
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"state_dict": _Bomb(target)}))
    with pytest.raises(CheckpointError):
        load_generator(tmp_path / "bad.ckpt")
    torch.save({"state_dict": _Bomb(target)}, tmp_path / "bad2.ckpt")
    target.unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        load_generator(tmp_path / "bad2.ckpt")
    assert not target.exists()


def test_other_classes_and_formats_are_refused(saved, tmp_path):
    path = saved[1]
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of a lightning_synth generator"):
        load_generator(tmp_path / "other.ckpt")
    future = _rewrite(path, tmp_path / "future.ckpt", lambda c: c[KEY].update(format=99))
    with pytest.raises(CheckpointError, match="upgrade"):
        load_generator(future)
    foreign = _rewrite(path, tmp_path / "foreign.ckpt", lambda c: c[KEY].update({"class": "os:system"}))
    with pytest.raises(CheckpointError, match="not a Generator|not registered"):
        load_generator(foreign)
    unknown = _rewrite(path, tmp_path / "unknown.ckpt", lambda c: c[KEY].update({"class": "absent_pkg:Model"}))
    with pytest.raises(CheckpointError, match="import absent_pkg first"):
        load_generator(unknown)


def test_a_missing_hyper_parameter_takes_its_default_with_a_warning(saved, tmp_path):
    old = _rewrite(saved[1], tmp_path / "old.ckpt", lambda c: c["hyper_parameters"].pop("lr"))
    with pytest.warns(UserWarning, match="predates lr"):
        assert load_generator(old).hparams.lr == Bootstrap().hparams.lr
