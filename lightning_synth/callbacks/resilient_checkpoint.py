"""Checkpoints that a full disk does not turn into a lost training run."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_synth.errors import CheckpointError


class ResilientCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that goes on training when a checkpoint cannot be written.

    A failed write leaves the previous checkpoint as it was, is warned about, and is tried again at the next interval.
    If the last one of a run failed too, `CheckpointError` says so when training ends. A folder that cannot be written
    to is an error before the first step. It also saves on an exception, on SIGTERM and on Ctrl-C.

    Args:
        **kwargs: As `lightning.pytorch.callbacks.ModelCheckpoint`.

    Example:
        >>> ResilientCheckpoint(dirpath="runs/a", every_n_train_steps=100).save_on_exception
        True
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"save_on_exception": True, **kwargs})
        self._failure: OSError | None = None
        self._last_written = "none"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the folder can be written to."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.dirpath is not None and trainer.is_global_zero:
            _require_writable(Path(self.dirpath))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        try:
            super()._save_checkpoint(trainer, filepath)
            self._failure, self._last_written = None, filepath
        except OSError as error:
            self._failure = error
            warnings.warn(
                f"checkpoint {filepath} could not be written ({error}); training goes on, the next interval retries",
                stacklevel=2,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise if the newest weights are on no disk."""
        super().on_train_end(trainer, pl_module)
        if self._failure is not None:
            raise CheckpointError(
                f"the last checkpoint could not be written ({self._failure}); free space and save the trainer's model; "
                f"last good checkpoint: {self._last_written}"
            ) from self._failure


def _require_writable(folder: Path) -> None:
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"checkpoints cannot be written to {folder} ({error}); give another dirpath") from error
