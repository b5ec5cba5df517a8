"""The base of all DataModules here: three sequences of items, one schema, and loaders with an owned order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.schema import Items, Schema, collate, describe
from lightning_synth.sources import check_items


@dataclass
class Splits:
    """What a DataModule loads: items of three splits and what the schema cannot find out by itself.

    Args:
        train: Training items, raw.
        val: Validation items, raw; may be empty.
        test: Test items, raw; may be empty.
        known: Schema entries such as ``class_names`` or ``sampling_rate``.

    Example:
        >>> len(Splits(train=[1, 2]).test)
        0
    """

    train: Items
    val: Items = field(default_factory=list)
    test: Items = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)


class EpochSampler(DistributedSampler[Any]):
    """Shuffles as a pure function of (seed, epoch), whatever the process count.

    A `DistributedSampler` subclass, because Lightning replaces any other sampler under DDP (and its seed with it) and
    calls ``set_epoch`` on this one. With more than one process the common order is padded and dealt out as torch does.

    Args:
        items: What to draw from.
        seed: Together with the epoch it fixes the order.

    Example:
        >>> sampler = EpochSampler(range(5), seed=0)
        >>> sampler.set_epoch(1)
        >>> first = list(sampler)
        >>> first == list(sampler), sorted(first)
        (True, [0, 1, 2, 3, 4])
    """

    def __init__(self, items: Sequence[Any], seed: int = 0) -> None:
        ready = dist.is_available() and dist.is_initialized()
        replicas, rank = (dist.get_world_size(), dist.get_rank()) if ready else (1, 0)
        super().__init__(items, num_replicas=replicas, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self._size = len(items)

    def __iter__(self) -> Iterator[int]:
        """Yield this process's share of the epoch's order."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self._size)
        return iter(np.resize(order, self.total_size)[self.rank :: self.num_replicas].tolist())


class ItemsDataModule(LightningDataModule):
    """A DataModule over items in memory; every DataModule of this library derives from it.

    Subclasses override `load` and nothing else. Constructor arguments are kept as plain attributes, not as
    ``self.hparams``: a DataModule nested in another one under LightningCLI would get the outer one's hyper-parameters.

    Args:
        train_items: Training items of one domain, raw (physical units).
        val_items: Validation items, or None.
        test_items: Test items, or None.
        schema: What one item is; None computes it from the training items alone.
        domain: Of the items: ``timeseries graph node molecule sequence``.
        batch_size: Items in a batch of one process.
        num_workers: Worker processes of each loader.
        seed: Together with the epoch it fixes the order of the training loader.

    Example:
        >>> import torch
        >>> items = [{"x": torch.zeros(2, 24), "y": torch.tensor(i % 2)} for i in range(6)]
        >>> data = ItemsDataModule(items, test_items=items[:2], batch_size=4)
        >>> [batch["x"].shape[0] for batch in data.train_dataloader()], data.schema["class_counts"]
        ([4, 2], [3, 3])
    """

    def __init__(
        self,
        train_items: Items | None = None,
        val_items: Items | None = None,
        test_items: Items | None = None,
        *,
        schema: Schema | None = None,
        domain: str = "timeseries",
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ConfigError(f"num_workers must not be negative, got {num_workers}")
        self.domain, self.batch_size, self.num_workers, self.seed = domain, batch_size, num_workers, seed
        self._given = (train_items, val_items, test_items)
        self._schema = schema
        self._splits: Splits | None = None

    def load(self) -> Splits:
        """Read the data and split it; called once, on first use.

        Returns:
            The three splits; ``known`` goes to the schema.
        """
        train, val, test = ([] if items is None else items for items in self._given)
        return Splits(train, val, test)

    def _ready(self) -> Splits:
        """Load, describe (training items only) and check every split once."""
        if self._splits is None:
            splits = self.load()
            if not len(splits.train):
                raise DataError(f"{type(self).__name__}: 0 training items")
            schema = self._schema or describe(splits.train, self.domain, **splits.known)
            for name, items in (("training", splits.train), ("validation", splits.val), ("test", splits.test)):
                check_items(items, schema, name)
            self._splits, self._schema = splits, schema
        return self._splits

    @property
    def schema(self) -> Schema:
        """What one item is, as a plain dict; statistics come from the training items alone."""
        self._ready()
        assert self._schema is not None
        return self._schema

    def train_items(self) -> Items:
        """Return the training items."""
        return self._ready().train

    def val_items(self) -> Items:
        """Return the validation items; they may be none."""
        return self._ready().val

    def test_items(self) -> Items:
        """Return the test items; they may be none."""
        return self._ready().test

    def setup(self, stage: str | None = None) -> None:
        """Load the data before the Trainer starts, so that bad input fails early.

        Args:
            stage: Of the Trainer; all splits are loaded for any stage.
        """
        self._ready()

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled loader; its order is a pure function of (seed, epoch)."""
        items = self.train_items()
        if self.batch_size > len(items):
            warnings.warn(
                f"batch_size {self.batch_size} is larger than the {len(items)} training items: "
                "one smaller batch an epoch",
                stacklevel=2,
            )
        return self._loader(items, EpochSampler(items, self.seed))

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the validation loader in item order, or an empty list (Lightning then skips validation)."""
        return self._loader(self.val_items()) if len(self.val_items()) else []

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the test loader in item order, or an empty list."""
        return self._loader(self.test_items()) if len(self.test_items()) else []

    def _loader(self, items: Items, sampler: EpochSampler | None = None) -> DataLoader[Any]:
        return DataLoader(
            items,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=partial(collate, schema=self.schema),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )
