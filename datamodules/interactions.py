"""User-item interactions: sequences of items in time, split without leakage, with every choice reported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_synth.datamodules.base import EpochSampler, ItemsDataModule, Splits
from lightning_synth.datamodules.simulated_interactions import SimulatedInteractions
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.schema import Schema, collate
from lightning_synth.sequences.augmentation import Augmentation
from lightning_synth.sequences.draws import EndlessItems
from lightning_synth.sequences.items import SequenceItems
from lightning_synth.sequences.pairs import PairSampler
from lightning_synth.sequences.readers import Log, read_log

_SPLITS, _TIES, _DUPLICATES = ("leave_one_out", "time"), ("file", "item", "shuffle"), ("error", "merge")
#: Ids are kept where the largest is at most this many times the number of distinct items.
_SPARSE = 2


class InteractionDataModule(ItemsDataModule):
    """Interaction sequences, one item a user: ``item_id`` int64 (length,), ``user_id``, and ``timestamp`` if known.

    Two splits:

    * ``leave_one_out``: a user's last interaction is the test target, the one before the validation target, and the
      training sequence is all before both. Users with fewer than three interactions only train.
    * ``time``: two instants cut the log for all users alike. Training sequences end before the first one. A user who is
      active between the two has a validation item that ends with the last interaction of that period; likewise for
      test, after the second instant. What users did before is their context.

    Validation and test items end with the item to predict; what comes before is its context. Items hold whole
    sequences; a batch holds their latest ``max_length`` items. The catalogue (`item_ids`) is that of the whole log, as
    in full ranking; everything else in the schema comes from the training sequences.

    Ids: names and numbers of tables, RecBole and Parquet files are numbered 1..vocab_size in sorted order. Integers of
    text lines and lists are ids already and are kept, unless they are sparse or a filter took some of them away.

    Args:
        source: ``.txt`` (``user item item ...`` a line, or ``user item`` pairs), ``.inter`` (RecBole), ``.csv``,
            ``.tsv`` (these also packed, as ``.txt.gz``), ``.parquet`` (interactions, or RePlay's list columns), a
            pandas or polars frame, a list of sequences, or `SimulatedInteractions`. None simulates 943 users whose next
            item follows known rules.
        batch_size: Sequences in a batch.
        split: ``leave_one_out`` or ``time``.
        max_length: Items in a row of a batch, the latest ones; None: the longest training sequence.
        k_core: Repeat until nothing changes: drop items, then users, with fewer interactions than this in the whole
            log; one number, or (of users, of items). 0 for none.
        ties: Order of a user's interactions at equal times: as in the ``file``, by ``item`` id, or ``shuffle``.
        duplicates: A user on two lines is an ``error``, or its lines ``merge`` in the order of the file.
        columns: Of a table: ``{"user": ..., "item": ..., "time": ...}`` by name or number; None finds usual names.
        read_options: For `pandas.read_csv`, such as ``{"sep": "::", "engine": "python"}``.
        vocab_size: Largest allowed item id; None takes it from the log.
        val_fraction: Of the interactions, in the validation period of ``split="time"``.
        test_fraction: Of the interactions, in its test period.
        sampler: How training batches are cut out of the training sequences: a `PairSampler`, or its arguments; None:
            whole sequences, every position a target.
        augment: Operators that act on training batches, in this order: names of
            `lightning_synth.sequences.operators.OPERATORS`, ``{name: arguments}``, or operators. They learn from the
            training sequences alone.
        augment_prob: Probability with which an operator acts on a row; one number, or one for each.
        num_workers: Worker processes of each loader.
        seed: Order of training batches, and of ties with ``ties="shuffle"``.

    Raises:
        DataError: Bad ids, missing values, users given twice, nothing left to train on.
        ConfigError: Impossible settings.

    Example:
        >>> data = InteractionDataModule([[1, 2, 3, 4], [2, 3, 1, 4, 2]], batch_size=2, max_length=4)
        >>> [item["item_id"].tolist() for item in data.train_items()]
        [[1, 2], [2, 3, 1]]
        >>> data.test_items()[0]["item_id"].tolist(), data.schema["item_counts"]
        ([1, 2, 3, 4], [0, 2, 2, 1, 0])
    """

    def __init__(
        self,
        source: str | Path | Sequence[Any] | Any | None = None,
        batch_size: int = 64,
        *,
        split: Literal["leave_one_out", "time"] = "leave_one_out",
        max_length: int | None = 50,
        k_core: int | tuple[int, int] = 0,
        ties: Literal["file", "item", "shuffle"] = "file",
        duplicates: Literal["error", "merge"] = "error",
        columns: Mapping[str, str | int] | None = None,
        read_options: Mapping[str, Any] | None = None,
        vocab_size: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        sampler: PairSampler | Mapping[str, Any] | None = None,
        augment: Any = (),
        augment_prob: float | Sequence[float] = 0.5,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(domain="sequence", batch_size=batch_size, num_workers=num_workers, seed=seed)
        for name, value, known in (
            ("split", split, _SPLITS),
            ("ties", ties, _TIES),
            ("duplicates", duplicates, _DUPLICATES),
        ):
            if value not in known:
                raise ConfigError(f"{name} must be one of {known}, got {value!r}")
        if max_length is not None and max_length < 2:
            raise ConfigError(f"max_length must be at least 2 (a context and a target), got {max_length}")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"val_fraction and test_fraction must not be negative and leave a training part, got {val_fraction} "
                f"and {test_fraction}"
            )
        self.source, self.split, self.max_length, self.ties = source, split, max_length, ties
        cores = (k_core, k_core) if isinstance(k_core, Integral) else k_core
        if not isinstance(cores, Sequence) or len(cores) != 2 or not all(isinstance(k, Integral) for k in cores):
            raise ConfigError(f"k_core must be one whole number, or (of users, of items), got {k_core!r}")
        self.k_core = (int(cores[0]), int(cores[1]))
        self.duplicates, self.columns, self.read_options = duplicates, columns, read_options
        self.vocab_size, self.val_fraction, self.test_fraction = vocab_size, val_fraction, test_fraction
        self.sampler = PairSampler(**sampler) if isinstance(sampler, Mapping) else sampler
        self.augment = Augmentation(augment, augment_prob, seed) if augment else None
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self._report: dict[str, Any] = {}
        self._fitted = False

    # -------------------------------------------------------------------------------------------------- loading

    def load(self) -> Splits:
        """Read, filter, order and split the log."""
        log = self._read()
        user, user_ids, item, item_ids = self._encoded(log)
        time, report = log.time, {"interactions_read": len(item), "users_read": len(user_ids)}
        del log
        if max(self.k_core) > 1:
            user, item, time = _taken(k_core_rows(user, item, *self.k_core), user, item, time)
            if not len(user):
                raise DataError(f"k_core={self.k_core} leaves no interaction of {report['interactions_read']}")
            user, user_ids = _compressed(user, user_ids)
            item, item_ids = _compressed(item - 1, item_ids)
            item += 1
        if len(order := self._order(user, item, time)):
            user, item, time = _taken(order, user, item, time)
        sizes = np.bincount(user, minlength=len(user_ids))
        long_enough = sizes >= 2
        if dropped := int((~long_enough).sum()):
            warnings.warn(f"{dropped} of {len(sizes)} users have no or one interaction and are left out", stacklevel=4)
        if not long_enough.any():
            raise DataError("no user has two interactions: there is nothing to predict from a context")
        self._check(item, item_ids, sizes[long_enough])
        items, start, stop = _flat(item, time, sizes, long_enough)
        train, val, test = self._divided(items, start, stop)
        self._maps = (user_ids, item_ids)
        self._report = report | _report(train, val, test, items, len(item_ids)) | {"users_left_out": dropped}
        known: dict[str, Any] = {"vocab_size": len(item_ids)}
        known["max_length"] = int(train.lengths.max()) if self.max_length is None else self.max_length
        return Splits(train, val, test, known)

    def _read(self) -> Log:
        source = SimulatedInteractions() if self.source is None else self.source
        return read_log(source, self.columns, self.read_options)

    def _encoded(self, log: Log) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Number users from 0 and items from 1; return both numberings."""
        user, user_ids = _numbered(log.user)
        if log.sizes is not None:
            if len(user_ids) < len(user) and self.duplicates == "error":
                twice = user_ids[np.flatnonzero(np.bincount(user) > 1)]
                raise DataError(
                    f"user {twice[0]} is on more than one line ({len(twice)} such users); duplicates='merge' joins "
                    "their lines in the order of the file"
                )
            user = np.repeat(user, log.sizes)
        if log.encoded:
            known = self.vocab_size or log.vocab_size
            _check_ids(log.item, known)
            largest = int(known or log.item.max(initial=0))
            if known or largest <= _SPARSE * len(np.unique(log.item)):
                return user, user_ids, log.item.astype(np.int64), np.arange(1, largest + 1)
        item, item_ids = _numbered(log.item)
        if self.vocab_size is not None and len(item_ids) > self.vocab_size:
            raise DataError(f"the log has {len(item_ids)} items, more than vocab_size={self.vocab_size}")
        return user, user_ids, item + 1, item_ids

    def _order(self, user: np.ndarray, item: np.ndarray, time: np.ndarray | None) -> np.ndarray:
        """Order by user, time and the tie policy; empty where the log is in order already."""
        if time is None:
            in_order = bool((user[1:] >= user[:-1]).all())
            return np.zeros(0, np.int64) if in_order else np.argsort(user, kind="stable")
        if self.ties == "file":
            # Two stable passes: by time, then by user.
            order = np.argsort(time, kind="stable")
            return order[np.argsort(user[order], kind="stable")]
        key = item if self.ties == "item" else np.random.default_rng((self.seed, 7)).permutation(len(item))
        return np.lexsort((key, time, user))

    def _check(self, item: np.ndarray, item_ids: np.ndarray, sizes: np.ndarray) -> None:
        if len(item_ids) < 2:
            raise DataError("the log has one item only: there is nothing to rank")
        if len(sizes) > 1 and (sizes == sizes[0]).all() and len(item) == sizes.sum():
            rows = item.reshape(len(sizes), -1)
            if (rows == rows[0]).all():
                warnings.warn("all users have the same sequence: models can only learn it by heart", stacklevel=5)

    def _divided(
        self, items: SequenceItems, start: torch.Tensor, stop: torch.Tensor
    ) -> tuple[SequenceItems, SequenceItems, SequenceItems]:
        """Cut training, validation and test sequences out of the same arrays."""
        if self.split == "leave_one_out":
            held_out = stop - start >= 3
            train = items.cut(stop=torch.where(held_out, stop - 2, stop))
            return train, items.cut(stop=stop - 1)[held_out], items[held_out]
        if "timestamp" not in items.columns:
            raise ConfigError("split='time' needs times, but the log has none; name the column with columns={'time': }")
        row, index = items.position_rows()
        time = items.columns["timestamp"][index]
        ends = np.quantile(time.numpy(), [1 - self.val_fraction - self.test_fraction, 1 - self.test_fraction])
        first, second = (start + torch.bincount(row[time < float(end)], minlength=len(start)) for end in ends)
        train = items.cut(stop=first)[first - start >= 1]
        val = items.cut(stop=second)[(second > first) & (second - start >= 2)]
        test = items[(stop > second) & (stop - start >= 2)]
        if not len(train):
            raise DataError("split='time' leaves no training interaction; lower val_fraction and test_fraction")
        return train, val, test

    # ------------------------------------------------------------------------------------------------- training loader

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training loader: whole sequences, or the pairs of the sampler, augmented.

        What a row holds is a pure function of (seed, epoch, number of the row): the same at any batch size, in any
        loading process, and in a `MixedDataModule`, where operators act on real rows only.
        """
        if self.sampler is None and self.augment is None:
            return super().train_dataloader()
        sequences = SequenceItems.from_items(self.train_items())
        items = EndlessItems(sequences) if self.sampler is None else self.sampler.bind(sequences, seed=self.seed)
        if self.augment is not None and not self._fitted:
            self.augment.fit(sequences, self.schema)
            self._fitted = True
        loader = self._loader(items, EndlessSampler(items, self.seed))
        loader.collate_fn = partial(_collate_drawn, schema=self.schema, augment=self.augment)
        return loader

    # -------------------------------------------------------------------------------------------------- ids, report

    @property
    def report(self) -> dict[str, Any]:
        """What loading found: counts, what was left out, ties in time, cold items, training lengths."""
        self._ready()
        return dict(self._report)

    @property
    def item_ids(self) -> np.ndarray:
        """Original ids of the items: that of item ``i`` stands at position ``i - 1``."""
        self._ready()
        assert self._maps is not None
        return self._maps[1]

    @property
    def user_ids(self) -> np.ndarray:
        """Original ids of the users: that of ``user_id`` ``u`` stands at position ``u``."""
        self._ready()
        assert self._maps is not None
        return self._maps[0]

    def encode_items(self, originals: Any) -> torch.Tensor:
        """Turn original item ids into the numbers of this data set.

        Args:
            originals: As in the source.

        Returns:
            int64 of the same shape, 1..vocab_size.

        Raises:
            DataError: If one is unknown.
        """
        # Not to the width of the known names: a longer name would be cut to one of them.
        values = np.asarray(originals).astype(str if self.item_ids.dtype.kind == "U" else self.item_ids.dtype)
        order = np.argsort(self.item_ids, kind="stable")
        place = np.searchsorted(self.item_ids, values, sorter=order).clip(max=len(order) - 1)
        found = order[place]
        if len(bad := np.flatnonzero((self.item_ids[found] != values).reshape(-1))):
            raise DataError(f"item {values.reshape(-1)[bad[0]].item()!r} is not in the catalogue")
        return torch.from_numpy(found + 1)

    def decode_items(self, item_id: Any) -> np.ndarray:
        """Turn item numbers back into original ids.

        Args:
            item_id: 1..vocab_size, of any shape.

        Returns:
            Originals of the same shape.

        Raises:
            DataError: If one is padding, or out of range.

        Example:
            >>> data = InteractionDataModule([["b", "a", "c"], ["a", "b", "c"]])
            >>> data.decode_items(data.test_items()[0]["item_id"]).tolist()
            ['b', 'a', 'c']
        """
        number = np.asarray(item_id)
        if len(bad := number[(number < 1) | (number > len(self.item_ids))]):
            raise DataError(f"{int(bad[0])} is no item: they are 1..{len(self.item_ids)}, and 0 is padding")
        return np.asarray(self.item_ids[number - 1])


class EndlessSampler(EpochSampler):
    """The shuffled order of an epoch over `EndlessItems`.

    Example:
        >>> sampler = EndlessSampler(EndlessItems(SequenceItems.from_lists([[1, 2], [3, 4]])), seed=0)
        >>> sampler.set_epoch(3)
        >>> sorted(sampler)
        [6, 7]
    """

    def __iter__(self) -> Iterator[int]:
        """Yield this process's share of the epoch."""
        return (self.epoch * self._size + i for i in super().__iter__())


def _collate_drawn(items: Any, schema: Schema, augment: Augmentation | None) -> dict[str, torch.Tensor]:
    """Batch items that carry the number of their draw, and augment them by it."""
    batch: dict[str, torch.Tensor] = collate(items, schema)
    draw = batch.pop("draw")
    return batch if augment is None else augment(batch, draw)


def k_core_rows(user: np.ndarray, item: np.ndarray, of_users: int, of_items: int) -> np.ndarray:
    """Find the interactions of the k-core: users and items that have enough of them among themselves.

    Args:
        user: int64 (interactions,).
        item: int64 (interactions,).
        of_users: Interactions that a user needs.
        of_items: Interactions that an item needs.

    Returns:
        int64 rows that are left.

    Example:
        >>> k_core_rows(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1]), 2, 2).tolist()
        [0, 1, 2, 3]
    """
    rows = np.arange(len(user))
    while len(rows):
        kept = rows[np.bincount(item[rows])[item[rows]] >= of_items]
        kept = kept[np.bincount(user[kept])[user[kept]] >= of_users] if len(kept) else kept
        if len(kept) == len(rows):
            break
        rows = kept
    return rows


def _taken(
    rows: np.ndarray, user: np.ndarray, item: np.ndarray, time: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    return user[rows], item[rows], None if time is None else time[rows]


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number values from 0 in sorted order; sorted integers without gaps cost nothing."""
    import pandas as pd

    codes, originals = pd.factorize(values, sort=True)
    return codes.astype(np.int64), np.asarray(originals)


def _compressed(codes: np.ndarray, originals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumber what is left of a numbering."""
    present = np.bincount(codes, minlength=len(originals)) > 0
    return (np.cumsum(present) - 1)[codes], originals[present]


def _check_ids(item: np.ndarray, vocab_size: int | None) -> None:
    """Refuse ids that a model could not look up."""
    if len(bad := np.flatnonzero(item < 1)):
        raise DataError(
            f"interaction {int(bad[0])} has item id {int(item[bad[0]])} ({len(bad)} such); ids start at 1, because 0 "
            "is padding: add 1 to all ids, or pass them as strings to have them numbered"
        )
    if vocab_size is not None and len(bad := np.flatnonzero(item > vocab_size)):
        raise DataError(
            f"interaction {int(bad[0])} has item id {int(item[bad[0]])}, more than vocab_size={vocab_size} "
            f"({len(bad)} such)"
        )


def _flat(
    item: np.ndarray, time: np.ndarray | None, sizes: np.ndarray, kept: np.ndarray
) -> tuple[SequenceItems, torch.Tensor, torch.Tensor]:
    """Whole sequences of the users that are kept, their starts and stops."""
    ends = np.cumsum(sizes)
    start, stop = torch.from_numpy((ends - sizes)[kept]), torch.from_numpy(ends[kept])
    columns = {"item_id": torch.from_numpy(item)}
    if time is not None:
        columns["timestamp"] = torch.from_numpy(time)
    rows = {"user_id": torch.from_numpy(np.flatnonzero(kept))}
    return SequenceItems(columns, start, stop, rows), start, stop


def _report(
    train: SequenceItems, val: SequenceItems, test: SequenceItems, whole: SequenceItems, vocab_size: int
) -> dict[str, Any]:
    """Counts of the splits, and what a reader of scores must know: cold targets and ties."""
    seen = np.bincount(train.flat(), minlength=vocab_size + 1) > 0
    lengths = train.lengths.numpy()
    buckets = {"<=3": lengths <= 3, "4-7": (lengths > 3) & (lengths <= 7), "8-19": (lengths > 7) & (lengths <= 19)}
    target = test.columns["item_id"][test.stop - 1].numpy()
    return {
        "users": len(train),
        "items": vocab_size,
        "interactions": {name: int(part.lengths.sum()) for name, part in (("train", train), ("test", test))},
        "validation_users": len(val),
        "test_users": len(test),
        "cold_test_targets": float((~seen[target]).mean()) if len(target) else 0.0,
        "train_length": {
            **{name: float(rows.mean()) for name, rows in buckets.items()},
            ">=20": float((lengths > 19).mean()),
        },
        "ties": _ties(whole, test),
    }


def _ties(whole: SequenceItems, test: SequenceItems) -> dict[str, float] | None:
    """How much of the order is no order: shares of adjacent pairs, of users and of held-out pairs with equal times."""
    if "timestamp" not in whole.columns:
        return None
    row, index = whole.position_rows()
    inner = torch.ones(len(index), dtype=torch.bool)
    inner[:1] = False
    inner[1:] = row[1:] == row[:-1]
    time, item = whole.columns["timestamp"], whole.columns["item_id"]
    pair = index[inner]
    tied = time[pair] == time[pair - 1]
    last = test.stop - 1
    return {
        "adjacent_pairs": _share(tied),
        "users": float(torch.bincount(row[inner][tied], minlength=len(whole)).gt(0).double().mean()),
        "validation_and_test": _share(time[last] == time[last - 1]),
        "tied_pairs_in_item_order": _share((item[pair] >= item[pair - 1])[tied]),
    }


def _share(values: torch.Tensor) -> float:
    return float(values.double().mean()) if len(values) else 0.0
