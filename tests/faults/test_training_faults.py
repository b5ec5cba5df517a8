"""Full disks, crashes while saving, read-only folders, exploding gradients (rows 72, 81, 82, 86, 87)."""

import os
import signal

import pytest
import torch
from lightning import Trainer

from lightning_synth.callbacks import ResilientCheckpoint
from lightning_synth.checkpoint import load_generator
from lightning_synth.errors import CheckpointError
from lightning_synth.plugins.timeseries.diffusion_ts import DiffusionTS
from lightning_synth.registry import get_spec
from lightning_synth.testing import tiny_datamodule

TINY = dict(get_spec("diffusion_ts").tiny)


def _fit(callback, trainer_kwargs, steps=6):
    trainer_kwargs = {**trainer_kwargs, "enable_checkpointing": True}
    trainer = Trainer(max_steps=steps, max_epochs=-1, callbacks=[callback], **trainer_kwargs)
    trainer.fit(DiffusionTS(**TINY), tiny_datamodule("timeseries"))
    return trainer


def _full_disk(monkeypatch, fails):
    """Let the checkpoint writes numbered in ``fails`` (from 1) hit a full disk."""
    count, save = [0], Trainer.save_checkpoint

    def full(self, path, *args, **kwargs):
        count[0] += 1
        if count[0] in fails:
            raise OSError(28, "No space left on device")
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", full)


def test_a_full_disk_warns_and_training_goes_on(tmp_path, trainer_kwargs, monkeypatch):
    _full_disk(monkeypatch, fails={2})
    callback = ResilientCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    with pytest.warns(UserWarning, match="No space left.*training goes on"):
        trainer = _fit(callback, trainer_kwargs)
    assert trainer.global_step == 6 and (tmp_path / "step=6.ckpt").exists()
    assert load_generator(tmp_path / "step=6.ckpt").is_fitted


def test_a_disk_that_stays_full_is_an_error_at_the_end(tmp_path, trainer_kwargs, monkeypatch):
    _full_disk(monkeypatch, fails=set(range(2, 99)))
    callback = ResilientCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match=r"last good checkpoint: .*step=2\.ckpt"):
        _fit(callback, trainer_kwargs)
    assert load_generator(tmp_path / "step=2.ckpt").is_fitted


def test_a_folder_that_cannot_be_written_to_is_an_error_before_training(tmp_path, trainer_kwargs):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        _fit(ResilientCheckpoint(dirpath=tmp_path / "file" / "sub"), trainer_kwargs)


def test_killed_while_writing_the_previous_checkpoint_is_intact(tmp_path, trainer_kwargs):
    generator = DiffusionTS(**TINY)
    trainer = Trainer(max_steps=2, max_epochs=-1, **trainer_kwargs)
    trainer.fit(generator, tiny_datamodule("timeseries"))
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        from fsspec.implementations.local import LocalFileOpener

        def half(self, data):
            self.f.write(bytes(data)[: len(data) // 2])
            self.f.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        LocalFileOpener.write = half
        trainer.save_checkpoint(path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == before and load_generator(path).is_fitted


def test_an_exploding_gradient_is_announced(trainer_kwargs, monkeypatch):
    class Explodes(DiffusionTS):
        def losses(self, batch, rng):
            losses = super().losses(batch, rng)
            return {**losses, "loss": losses["loss"] * (1e8 if self.steps_taken >= 100 else 1.0)}

    monkeypatch.setattr("lightning_synth.generator._GRADIENT_EVERY", 1)
    trainer = Trainer(max_steps=102, max_epochs=-1, **trainer_kwargs)
    with pytest.warns(UserWarning, match=r"jumped to .* at step 100.*gradient_clip_val"):
        trainer.fit(Explodes(**TINY), tiny_datamodule("timeseries"))


def test_sigterm_leaves_a_checkpoint(tmp_path, trainer_kwargs):
    from lightning import Callback

    class Terminate(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    kwargs = {**trainer_kwargs, "enable_checkpointing": True}
    callbacks = [Terminate(), ResilientCheckpoint(dirpath=tmp_path, every_n_train_steps=1000)]
    trainer = Trainer(max_steps=50, max_epochs=-1, callbacks=callbacks, **kwargs)
    previous = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            trainer.fit(DiffusionTS(**TINY), tiny_datamodule("timeseries"))
    finally:
        signal.signal(signal.SIGTERM, previous)
    saved = list(tmp_path.glob("*.ckpt"))
    assert saved and torch.load(saved[0], weights_only=True)["global_step"] == 3
