"""Writing a pool while a Trainer predicts: any number of devices, constant memory, resumable."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_synth.errors import ConfigError, PoolError
from lightning_synth.pool import manifest as manifests
from lightning_synth.pool.files import DirectoryLock, make_writable, to_json, write_json
from lightning_synth.pool.shards import (
    SHARD_ROWS,
    ShardWriter,
    describe_shards,
    read_columns,
    remove_leftovers,
    shard_paths,
    shard_provenance,
    to_table,
)
from lightning_synth.requests import Samples

_NONE: list[int] = []


class PoolWriter(BasePredictionWriter):
    """Writes what `Trainer.predict` samples to a pool directory.

    Every process writes Parquet shards of its own, each under a temporary name until it is complete; at the end rank 0
    writes the manifest. Memory holds one batch and one row group. A run that was interrupted continues when it is
    started again: rows in complete shards are neither sampled nor written twice, on any number of devices.

    Args:
        path: Directory of the pool.
        shard_size: Rows per shard.
        max_seconds: A shard is completed at the latest after this time: what a killed job loses at most.
        licence: Terms under which the pool may be used, kept in the manifest.

    Raises:
        ConfigError: If a value is out of range.

    Example:
        >>> import tempfile, lightning
        >>> from lightning_synth import SyntheticPool, get_generator
        >>> from lightning_synth.datamodules import RequestDataModule
        >>> from lightning_synth.testing import tiny_datamodule
        >>> dm = tiny_datamodule("timeseries")
        >>> gen = get_generator("bootstrap")().fit_on(dm.train_items(), dm.schema)
        >>> folder = tempfile.mkdtemp()
        >>> quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
        >>> trainer = lightning.Trainer(callbacks=[PoolWriter(folder)], **quiet)
        >>> trainer.predict(gen, datamodule=RequestDataModule(n=11, batch_size=4), return_predictions=False)
        >>> len(SyntheticPool.open(folder))
        11
    """

    def __init__(
        self, path: str | Path, shard_size: int = SHARD_ROWS, max_seconds: float = 600.0, licence: str | None = None
    ) -> None:
        super().__init__("batch")
        if shard_size < 1 or not max_seconds > 0:
            raise ConfigError(f"shard_size {shard_size} and max_seconds {max_seconds:g} must be positive")
        self.path, self.shard_size, self.max_seconds, self.licence = Path(path), shard_size, max_seconds, licence
        self._lock: DirectoryLock | None = None
        self._writer: ShardWriter | None = None
        self._manifest: dict[str, Any] = {}
        self._pending: Samples | None = None
        self._done = np.zeros(0, np.int64)
        self._active = False

    # ------------------------------------------------------------------ start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock the directory, or say why it cannot be written, before any sampling.

        Raises:
            PoolError: On every rank, if the directory is read-only or another job writes to it.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        problem = self._take_directory() if trainer.is_global_zero else None
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise PoolError(problem)
        try:
            self._done = np.sort(read_columns(shard_paths(self.path), ["index"])["index"])
        except PoolError:
            self._release()
            raise
        self._active, self._writer, self._pending = True, None, None
        skip = getattr(_datamodule(trainer), "skip", None)
        if callable(skip):
            skip(self._done)

    def _take_directory(self) -> str | None:
        try:
            make_writable(self.path)
            self._lock = DirectoryLock(self.path)
            self._lock.acquire()
            remove_leftovers(self.path)
        except PoolError as error:
            self._lock = None
            return str(error)
        return None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the generator, whose weights are loaded by now, and compare with an unfinished run."""
        self._describe(trainer, pl_module)
        self._writer = ShardWriter(
            self.path,
            trainer.global_rank,
            manifests.provenance(self._manifest),
            shard_rows=self.shard_size,
            max_seconds=self.max_seconds,
        )

    def _describe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        generator: Any = pl_module
        config = getattr(_datamodule(trainer), "config", None)
        self._manifest = manifests.new_manifest(
            getattr(generator, "schema", None) or {},
            generator=manifests.describe_generator(generator, getattr(trainer, "ckpt_path", None) or None),
            training_fingerprint=getattr(generator, "training_fingerprint", None),
            config=config if isinstance(config, Mapping) else None,
            licence=self.licence,
            generation=int(getattr(generator, "generation", 1)),
        )
        for path in shard_paths(self.path)[:1]:
            _refuse_other_run(shard_provenance(path), self._manifest, self.path)

    # ------------------------------------------------------------------ rows

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the batch before, and hold this one until callbacks that come later (an audit) have seen it."""
        if not isinstance(prediction, Samples):
            raise ConfigError(f"PoolWriter writes Samples, but predict_step returned {type(prediction).__name__}")
        self._write_pending()
        self._pending = prediction
        _forget_indices(trainer, batch_idx, dataloader_idx)
        # Lightning looks at the signal only while training; a pre-empted job would sample on until it is killed.
        if trainer.received_sigterm:
            raise SIGTERMException

    def _write_pending(self) -> None:
        samples, self._pending = self._pending, None
        if samples is None or not len(samples):
            return
        assert self._writer is not None
        table = to_table(samples, self._manifest["generation"])
        if len(self._done):
            new = ~np.isin(table["index"].to_numpy(), self._done)
            table = table if new.all() else table.filter(new)
        self._writer.write(table)

    def _finish_rows(self) -> None:
        self._write_pending()
        if self._writer is not None:
            self._writer.close()

    # ------------------------------------------------------------------ end

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete this rank's last shard."""
        self._finish_rows()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait for all ranks, then write the manifest on rank 0.

        Not in `on_predict_end`, which Lightning does not call on a rank without rows.
        """
        if stage != "predict" or not self._active:
            return
        self._active = False
        trainer.strategy.barrier("pool shards")
        problem = None
        try:
            if trainer.is_global_zero:
                self._finish(trainer, pl_module)
        except PoolError as error:
            problem = str(error)
        finally:
            self._release()
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise PoolError(problem)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._manifest:
            self._describe(trainer, pl_module)
        paths = shard_paths(self.path)
        index = np.sort(read_columns(paths, ["index"])["index"])
        if (twice := np.flatnonzero(index[1:] == index[:-1])).size:
            raise PoolError(f"index {index[twice[0]]} occurs twice in the shards of {self.path}")
        written = describe_shards(paths)
        requested = self._manifest["config"].get("n", len(index))
        written["counts"] = {"requested": max(requested, len(index)), **written["counts"]}
        complete = len(index) >= requested
        if not complete:
            warnings.warn(f"{self.path} holds {len(index)} of {requested} rows; run again to continue", stacklevel=2)
        write_json(self.path / manifests.MANIFEST, {**self._manifest, **written, "complete": complete})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the rows that are complete, and give the directory back."""
        if not self._active:
            return
        self._active = False
        try:
            if not isinstance(exception, PoolError):
                self._finish_rows()
        except PoolError as error:
            warnings.warn(str(error), stacklevel=2)
        finally:
            if self._writer is not None:
                self._writer.abort()
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _forget_indices(trainer: Trainer, batch_idx: int, dataloader_idx: int) -> None:
    """Drop the row numbers that Lightning collects for prediction writers, so that memory stays constant."""
    loaders = getattr(getattr(trainer.predict_loop, "_combined_loader", None), "flattened", [])
    sampler = getattr(loaders[dataloader_idx], "batch_sampler", None) if dataloader_idx < len(loaders) else None
    seen = getattr(sampler, "seen_batch_indices", None)
    if isinstance(seen, list) and batch_idx < len(seen):
        seen[batch_idx] = _NONE


def _datamodule(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def _refuse_other_run(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    """Rows of two generators or two requests do not belong in one pool."""
    before, now = old.get("generator") or {}, new["generator"]
    for key in ("class", "state_sha256"):
        if before.get(key) != now[key]:
            raise PoolError(
                f"{folder} holds rows of another generator ({before.get('name')}: {key} differs); choose another "
                "directory or delete this one"
            )
    earlier, config = _comparable(old.get("config") or {}), _comparable(new["config"])
    for key in sorted(earlier.keys() & config.keys()):
        if earlier[key] != config[key]:
            raise PoolError(
                f"{folder} holds rows of another request: {key} was {earlier[key]}, now {config[key]}; choose another "
                "directory or delete this one"
            )


def _comparable(config: Mapping[str, Any]) -> dict[str, str]:
    """What must not change between runs into one directory; more rows may be asked for."""
    return {key: to_json(value, sort_keys=True) for key, value in config.items() if key != "n"}
