"""What `Trainer.predict` needs to sample a pool: numbered, seeded, conditioned rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_synth.conditions import Condition
from lightning_synth.errors import ConfigError
from lightning_synth.pool.shards import read_columns, shard_paths
from lightning_synth.requests import SampleRequests

# Requests are made in blocks: a run of any size holds a few of them.
_BLOCK = 4096
_WORDS = ("empirical", "balanced")


class RequestDataset(Dataset[SampleRequests]):
    """Requests of a pool, made when they are read; row i is the same however rows are batched or spread over devices.

    Args:
        n: Rows of the whole pool.
        seed: Of the whole request.
        condition: As `SampleRequests.make`.
        schema: Of the generator; None if only given values are used.
        names: Conditions that the generator understands; None for all.
        partial: As `SampleRequests.make`.
        strings: As `SampleRequests.make`.
        skip: int64, indices that exist already.

    Example:
        >>> RequestDataset(5, seed=1, skip=np.array([1]))[1].index
        tensor([2])
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int = 0,
        condition: Condition = None,
        schema: Mapping[str, Any] | None = None,
        names: Sequence[str] | None = None,
        partial: bool = False,
        strings: Sequence[str] = (),
        skip: np.ndarray | None = None,
    ) -> None:
        self.n, self.seed, self.condition, self.schema, self.names = n, seed, condition, schema, names
        self.partial, self.strings = partial, strings
        self._left: np.ndarray | None = None
        if skip is not None and len(skip):
            self._left = np.setdiff1d(np.arange(n, dtype=np.int64), skip)
        self._blocks: dict[int, SampleRequests] = {}
        if isinstance(condition, Mapping):
            self._check_lengths(condition)

    def _check_lengths(self, condition: Mapping[str, Any]) -> None:
        for name, value in condition.items():
            if not isinstance(value, str) and value is not None and np.ndim(value) and len(value) != self.n:
                raise ConfigError(f"condition {name!r} has {len(value)} values, but {self.n} rows were asked for")

    def __len__(self) -> int:
        """Return the number of rows still to be sampled."""
        return self.n if self._left is None else len(self._left)

    def __getitem__(self, position: int) -> SampleRequests:
        """Return one row, as requests of length 1."""
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> SampleRequests:
        """Return the rows of a batch.

        Args:
            positions: Among the rows still to be sampled.
        """
        rows = np.asarray(positions, dtype=np.int64)
        index = rows if self._left is None else self._left[rows]
        # Rows of a batch come in ascending order, so the parts do as well.
        parts = [
            self._block(int(block))[torch.from_numpy(index[index // _BLOCK == block] % _BLOCK)]
            for block in dict.fromkeys((index // _BLOCK).tolist())
        ]
        return parts[0] if len(parts) == 1 else SampleRequests.cat(parts)

    def _block(self, number: int) -> SampleRequests:
        if number not in self._blocks:
            while len(self._blocks) >= 4:
                del self._blocks[next(iter(self._blocks))]
            start, stop = number * _BLOCK, min((number + 1) * _BLOCK, self.n)
            self._blocks[number] = SampleRequests.make(
                stop - start,
                seed=self.seed,
                condition=_rows_of(self.condition, slice(start, stop)),
                schema=self.schema,
                names=self.names,
                partial=self.partial,
                strings=self.strings,
                start=start,
            )
        return self._blocks[number]


def _rows_of(condition: Condition, rows: slice) -> Condition:
    """Cut conditions that are given row by row."""
    if not isinstance(condition, Mapping):
        return condition
    return {k: v if isinstance(v, str) or v is None or not np.ndim(v) else v[rows] for k, v in condition.items()}


class _EveryRank(DistributedSampler[Any]):
    """Rows rank, rank + world, ...: none repeated, none missing, and none at all where there are fewer rows than ranks.

    Lightning's own sampler for prediction refuses a rank without rows, which a resumed run can have.
    """

    def __init__(self, dataset: RequestDataset, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        self._rows = range(rank, len(dataset), num_replicas)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)


class RequestDataModule(LightningDataModule):
    """Feeds `Trainer.predict` with sampling requests, so that any strategy generates the same pool.

    Args:
        n: Rows of the pool.
        seed: Of the request; each row gets a seed of its own from it.
        condition: As `Generator.sample`; resolved with the schema of the generator.
        batch_size: Rows sampled at a time on each device.
        resume_from: Directory of a pool; rows in its complete shards are left out. `PoolWriter` does this for its own
            directory by itself.
        num_workers: Of the DataLoader; requests are cheap to make, so 0 is right.

    Raises:
        ConfigError: If a number is out of range.

    Example:
        >>> len(RequestDataModule(n=101, seed=7, batch_size=8).predict_dataloader())
        13
    """

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        n: int,
        seed: int = 0,
        condition: str | dict[str, Any] | None = None,
        batch_size: int = 256,
        resume_from: str | Path | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if n < 0 or batch_size < 1:
            raise ConfigError(f"n must be at least 0 and batch_size at least 1, got {n} and {batch_size}")
        # Attributes, not hparams: under LightningCLI a nested module's hparams are the outer one's.
        self.n, self.seed, self.condition, self.batch_size = n, seed, condition, batch_size
        self.resume_from = Path(resume_from) if resume_from is not None else None
        self.num_workers = num_workers
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._done = np.zeros(0, np.int64)

    @property
    def config(self) -> dict[str, Any]:
        """What was asked for, as the manifest of a pool keeps it."""
        return {"n": self.n, "seed": self.seed, "condition": self.condition}

    def setup(self, stage: str) -> None:
        """Find the rows that exist already."""
        self._done = np.zeros(0, np.int64)
        if self.resume_from is not None:
            self.skip(read_columns(shard_paths(self.resume_from), ["index"])["index"])

    def skip(self, index: np.ndarray) -> None:
        """Leave rows out that exist already.

        Args:
            index: int64, their indices.
        """
        self._done = np.union1d(self._done, index).astype(np.int64)

    def predict_dataloader(self) -> DataLoader[SampleRequests]:
        """Return batches of `SampleRequests` of this rank."""
        # Only now: a generator given through ckpt_path has its schema after the checkpoint is loaded.
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        dataset = RequestDataset(
            self.n,
            seed=self.seed,
            condition=self.condition,
            schema=getattr(module, "schema", None),
            names=getattr(module, "conditions", None),
            partial=getattr(module, "partial_conditions", False),
            strings=getattr(module, "string_conditions", ()),
            skip=self._done,
        )
        sampler = None
        if self.trainer is not None and self.trainer.world_size > 1:
            sampler = _EveryRank(dataset, self.trainer.world_size, self.trainer.global_rank)
        return DataLoader(
            dataset, batch_size=self.batch_size, sampler=sampler, num_workers=self.num_workers, collate_fn=_as_is
        )


def _as_is(requests: Any) -> Any:
    """The dataset returns whole batches."""
    return requests
