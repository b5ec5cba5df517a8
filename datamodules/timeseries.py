"""DataModules for labelled series: a user's own arrays, and the UCR/UEA archive."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_synth.datamodules.base import ItemsDataModule, Splits
from lightning_synth.datamodules.coerce import (
    Series,
    coerce_conditions,
    coerce_labels,
    coerce_series,
    fit_length,
    regular_time,
)
from lightning_synth.datamodules.readers import find_archive
from lightning_synth.datamodules.windows import cut_windows, draw_shots, time_blocks
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.items import StackedItems


def to_items(
    series: Series, labels: np.ndarray | None = None, conditions: Mapping[str, np.ndarray] | None = None
) -> StackedItems:
    """Stack series, labels and conditions as items.

    Args:
        series: Of one split.
        labels: int64 (series,), or None.
        conditions: Name to float32 (series,).

    Returns:
        Items with ``x`` and, where given, ``y``, ``mask`` and the conditions.

    Example:
        >>> to_items(Series(np.zeros((3, 2, 8), np.float32)), np.arange(3))[2]["y"]
        tensor(2)
    """
    tensors = {"x": torch.from_numpy(series.x)}
    if labels is not None:
        tensors["y"] = torch.from_numpy(np.asarray(labels, np.int64))
    if series.mask is not None:
        tensors["mask"] = torch.from_numpy(np.ascontiguousarray(series.mask))
    for name, value in (conditions or {}).items():
        tensors[name] = torch.from_numpy(np.asarray(value, np.float32))
    return StackedItems(tensors)


class ArrayDataModule(ItemsDataModule):
    """A user's own arrays of series.

    Values stay raw; statistics of the schema come from the training series alone. The validation split is ``x_val`` if
    given; else ``val_fraction`` of the training series, drawn within each class (of whole ``groups`` where given); with
    ``window`` the last part of each training recording, one window away from the rest. With ``shots``, training series
    that are not chosen serve as validation.

    Args:
        x_train: (series, channels, length) array or tensor, or a list of (channels, length_i). See `coerce_series` for
            what else is accepted.
        y_train: Labels, numbers or strings; mapped to 0..K-1 in sorted order, kept as ``schema["class_names"]``. None
            for series without labels.
        x_test: As ``x_train``; None for no test split.
        y_test: As ``y_train``, of classes that training has.
        batch_size: Items in a batch.
        x_val: As ``x_train``.
        y_val: As ``y_train``.
        val_fraction: Share of the training series (or groups, or time with ``window``) held out if ``x_val`` is None.
        groups: One id a training series (recording, patient): a group is never on both sides of the validation split.
        conditions: Continuous conditions of the training series: name to one number each.
        conditions_val: Of the validation series.
        conditions_test: Of the test series.
        window: Cut every series into windows of this many steps; None uses series as they are.
        stride: Steps between windows; None: they touch.
        shots: Training series (windows) a class; None for all.
        draw: Which shots; those of a smaller number are among those of a larger one.
        length: Steps of an item for series of unequal length; None: the longest training series.
        impute: What to do with NaN: None (error), ``linear`` or ``mean``.
        timestamps: (length,) or (series, length) times of the training series, checked and, if uneven, resampled.
        timestamps_test: Of the test series.
        irregular: ``resample`` (with a warning) or ``error`` for uneven time steps.
        sampling_rate: Hz; None takes it from ``timestamps``.
        class_names: Names of the classes in order; None: the labels themselves.
        normal_class: Name or label of the healthy class, if there is one.
        channel_names: Names of the channels.
        num_workers: Worker processes of each loader.
        seed: Order of training batches, and the validation draw.

    Example:
        >>> x, y = np.random.default_rng(0).normal(size=(8, 2, 24)), np.array(["ok", "bad"] * 4)
        >>> data = ArrayDataModule(x, y, x[:2], y[:2], batch_size=4)
        >>> data.schema["class_names"], data.train_items()[0]["y"]
        (['bad', 'ok'], tensor(1))
    """

    def __init__(
        self,
        x_train: Any,
        y_train: Any = None,
        x_test: Any = None,
        y_test: Any = None,
        batch_size: int = 64,
        *,
        x_val: Any = None,
        y_val: Any = None,
        val_fraction: float = 0.0,
        groups: Any = None,
        conditions: Mapping[str, Any] | None = None,
        conditions_val: Mapping[str, Any] | None = None,
        conditions_test: Mapping[str, Any] | None = None,
        window: int | None = None,
        stride: int | None = None,
        shots: int | None = None,
        draw: int = 0,
        length: int | None = None,
        impute: str | None = None,
        timestamps: Any = None,
        timestamps_test: Any = None,
        irregular: str = "resample",
        sampling_rate: float | None = None,
        class_names: list[str] | None = None,
        normal_class: str | int | None = None,
        channel_names: list[str] | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"val_fraction must be in [0, 1), got {val_fraction}")
        self.x_train, self.y_train, self.x_test, self.y_test = x_train, y_train, x_test, y_test
        self.x_val, self.y_val, self.val_fraction, self.groups = x_val, y_val, val_fraction, groups
        self.conditions, self.conditions_val, self.conditions_test = conditions, conditions_val, conditions_test
        self.window, self.stride, self.shots, self.draw, self.length = window, stride, shots, draw, length
        self.impute, self.irregular, self.sampling_rate = impute, irregular, sampling_rate
        self.timestamps, self.timestamps_test = timestamps, timestamps_test
        self.class_names, self.normal_class, self.channel_names = class_names, normal_class, channel_names

    def load(self) -> Splits:
        """Check, cast and split the arrays."""
        train, known = self._train()
        length, ragged = int(train.tensors["x"].shape[2]), "mask" in train.tensors
        splits = Splits(*self._held_out(train), known=known)
        if self.x_val is not None:
            part = ("val", self.x_val, self.y_val, self.conditions_val, None)
            splits.val = self._evaluation(*part, length, ragged)
        if self.x_test is not None:
            part = ("test", self.x_test, self.y_test, self.conditions_test, self.timestamps_test)
            splits.test = self._evaluation(*part, length, ragged)
        return splits

    def _train(self) -> tuple[StackedItems, dict[str, Any]]:
        """Return all training series (before any are held out) and what the schema needs to know."""
        series = coerce_series(self.x_train, "x_train", impute=self.impute)
        rate = self.sampling_rate
        if self.timestamps is not None:
            series, step = self._timed(series, self.timestamps, "timestamps")
            rate = 1 / step if rate is None else rate
        if self.length is not None:
            if series.mask is None and series.x.shape[2] != self.length:
                raise ConfigError(
                    f"length={self.length} is for series of unequal length, but all of x_train have "
                    f"{series.x.shape[2]} steps: leave it out, or cut them with window="
                )
            series = fit_length(series, self.length, series.mask is not None, "x_train")
        labels: np.ndarray | None = None
        classes: list[Any] = []
        if self.y_train is not None:
            labels, classes = coerce_labels(self.y_train, len(series), "y_train", self._known_classes())
            if self.window is None:
                _warn_rare(labels, classes)
        names = [str(value) for value in self.class_names or classes]
        if len(names) != len(classes) or len(set(names)) != len(names):
            raise ConfigError(f"class_names must be {len(classes)} different names, of {classes}; got {names}")
        if self.channel_names is not None and len(self.channel_names) != series.x.shape[1]:
            raise ConfigError(f"{len(self.channel_names)} channel_names for {series.x.shape[1]} channels")
        self._classes = classes
        known: dict[str, Any] = {"sampling_rate": rate, "channel_names": self.channel_names}
        if classes:
            known["class_names"] = names
            known["normal_class"] = None if self.normal_class is None else _position(self.normal_class, classes, names)
        return to_items(series, labels, coerce_conditions(self.conditions, len(series), "conditions")), known

    def _known_classes(self) -> list[Any] | None:
        """Classes whose order a subclass knows from a file; None sorts the labels found."""
        return None

    def _timed(self, series: Series, timestamps: Any, name: str) -> tuple[Series, float]:
        if series.mask is not None:
            raise ConfigError(f"{name} cannot be combined with series of unequal length")
        x, step = regular_time(series.x, timestamps, name, self.irregular)
        return Series(x), step

    def _evaluation(
        self, part: str, x: Any, y: Any, conditions: Mapping[str, Any] | None, time: Any, length: int, ragged: bool
    ) -> StackedItems:
        series = coerce_series(x, f"x_{part}", impute=self.impute, train=False)
        if time is not None:
            series, _ = self._timed(series, time, f"timestamps_{part}")
        if (y is None) != (self.y_train is None):
            have, lack = (f"y_{part}", "y_train") if self.y_train is None else ("y_train", f"y_{part}")
            raise DataError(f"{have} is given, but {lack} is missing: label both or neither")
        labels = None if y is None else coerce_labels(y, len(series), f"y_{part}", self._classes)[0]
        values = coerce_conditions(conditions, len(series), f"conditions_{part}")
        if set(values) != set(self.conditions or {}):
            raise DataError(f"conditions_{part} has {sorted(values)}, but training has {sorted(self.conditions or {})}")
        if self.window is not None:
            return _cut_items(to_items(series, labels, values), self.window, self.stride)
        return to_items(fit_length(series, length, ragged, f"x_{part}"), labels, values)

    def _held_out(self, train: StackedItems) -> tuple[StackedItems, StackedItems]:
        """Take validation items and shots off the training series."""
        if self.window is not None:
            train, val = self._by_time(train, self.window)
        elif self.val_fraction and self.x_val is None:
            train, val = self._by_series(train)
        else:
            train, val = train, train[:0]
        return (train, val) if self.shots is None else self._few(train, val, self.shots)

    def _few(self, train: StackedItems, val: StackedItems, shots: int) -> tuple[StackedItems, StackedItems]:
        """Keep the shots; the rest may validate."""
        labels = _labels(train)
        short = np.flatnonzero(np.bincount(labels) < shots)
        if len(short):
            warnings.warn(f"class {short.tolist()} has fewer than {shots} training items; all are used", stacklevel=2)
        chosen = draw_shots(labels, shots, self.draw)
        rest = np.setdiff1d(np.arange(len(labels)), chosen)
        # Overlapping windows of one recording would put the same seconds on both sides; whole series may serve.
        apart = self.window is None and self.groups is None and not len(val)
        return train[chosen], train[rest] if apart else val

    def _by_series(self, train: StackedItems) -> tuple[StackedItems, StackedItems]:
        """Hold out whole series, or whole groups of them, within each class."""
        rng = np.random.default_rng(self.seed)
        count = len(train)
        if self.groups is not None:
            ids = np.unique(np.asarray(self.groups), return_inverse=True)[1].reshape(-1)
            if ids.shape != (count,):
                raise DataError(f"groups has {ids.shape[0]} entries, but there are {count} training series")
            held = np.isin(ids, rng.permutation(ids.max() + 1)[: max(round(self.val_fraction * (ids.max() + 1)), 1)])
        else:
            labels = _labels(train)
            held = np.zeros(count, bool)
            for label in np.unique(labels):
                index = rng.permutation(np.flatnonzero(labels == label))
                held[index[: round(self.val_fraction * len(index))]] = True
        if held.all():
            raise ConfigError(f"val_fraction {self.val_fraction} leaves no training series")
        return train[~held], train[held]

    def _by_time(self, train: StackedItems, window: int) -> tuple[StackedItems, StackedItems]:
        """Cut windows; hold out the end of every recording, one window away."""
        if "mask" in train.tensors:
            raise ConfigError("window cannot be combined with series of unequal length")
        share = self.val_fraction if self.x_val is None else 0.0
        if share == 0:
            whole = _cut_items(train, window, self.stride)
            return whole, whole[:0]
        head, tail = time_blocks(train.tensors["x"].shape[2], (1 - share, share), window)
        return _cut_items(train, window, self.stride, head), _cut_items(train, window, self.stride, tail)


def _labels(items: StackedItems) -> np.ndarray:
    """Return the labels; one class for all if there are none."""
    return items.tensors["y"].numpy() if "y" in items.tensors else np.zeros(len(items), np.int64)


def _cut_items(
    items: StackedItems, window: int, stride: int | None, block: tuple[int, int] | None = None
) -> StackedItems:
    """Cut the series of items into windows; labels and conditions are repeated."""
    x = items.tensors["x"].numpy()
    count, channels, length = x.shape
    begin, end = (0, length) if block is None else block
    # All series at once: the (series, channels) axes are folded for the cut.
    cut = cut_windows(x.reshape(count * channels, length)[:, begin:end], window, stride)
    windows = cut.reshape(len(cut), count, channels, window).swapaxes(0, 1).reshape(-1, channels, window)
    rest = {name: value.repeat_interleave(len(cut)) for name, value in items.tensors.items() if name != "x"}
    return StackedItems({"x": torch.from_numpy(np.ascontiguousarray(windows)), **rest})


def _warn_rare(labels: np.ndarray, classes: list[Any]) -> None:
    single = [classes[i] for i in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 1)]
    if single:
        warnings.warn(
            f"class {single} has 1 training series: it cannot be split, and generators cannot learn how it varies",
            stacklevel=4,
        )


def _position(value: str | int, classes: list[Any], names: list[str]) -> int:
    candidates: tuple[list[Any], ...] = (classes, names, [str(c) for c in classes])
    for known in candidates:
        if value in known:
            return known.index(value)
    raise ConfigError(f"normal_class {value!r} is not a class; classes: {names}")


class UEADataModule(ArrayDataModule):
    """A set of the UCR/UEA archive with its official split.

    Sets inside sktime (BasicMotions, ItalyPowerDemand, GunPoint, ArrowHead, JapaneseVowels, ACSF1, OSULeaf, PLAID) need
    no download. Series of unequal length are padded at the end, with a ``mask``; the length is that of the longest
    *training* series, and the few longer test series lose their end (warned), so that nothing of the test split shapes
    the model. Training series that are not among the shots serve as validation; the test split is never touched.

    Args:
        name: Of a set inside sktime, or the path of a ``.ts`` file or an ``.npz`` with ``X_train y_train X_test
            y_test``.
        batch_size: Items in a batch.
        shots: Training series a class; None for all.
        draw: Which shots.
        val_fraction: Share of the training series held out, if ``shots`` is None.
        length: Steps of an item for series of unequal length; None: the longest training series.
        impute: What to do with missing values: None (error), ``linear`` or ``mean``.
        normal_class: Name of the healthy class, if there is one.
        num_workers: Worker processes of each loader.
        seed: Order of training batches, and the validation draw.

    Source:
        Bagnall et al., The UEA multivariate time series classification archive, 2018 (arXiv 1811.00075).

    Example:
        >>> data = UEADataModule("BasicMotions", shots=5)
        >>> data.schema["channels"], data.schema["length"], data.schema["class_counts"], len(data.val_items())
        (6, 100, [5, 5, 5, 5], 20)
    """

    def __init__(
        self,
        name: str | Path = "BasicMotions",
        batch_size: int = 64,
        *,
        shots: int | None = None,
        draw: int = 0,
        val_fraction: float = 0.0,
        length: int | None = None,
        impute: str | None = None,
        normal_class: str | int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            None,
            batch_size=batch_size,
            val_fraction=val_fraction,
            shots=shots,
            draw=draw,
            length=length,
            impute=impute,
            normal_class=normal_class,
            num_workers=num_workers,
            seed=seed,
        )
        self.name = self.source = str(name)

    def load(self) -> Splits:
        """Read the official split."""
        train, test = find_archive(self.source)
        self._header = train.class_names
        self.x_train, self.y_train = train.x, train.y
        if test is None:
            warnings.warn(f"{self.source} has no test part", stacklevel=2)
        else:
            self.x_test, self.y_test = test.x, test.y
        splits = super().load()
        self.x_train = self.y_train = self.x_test = self.y_test = None
        return splits

    def _known_classes(self) -> list[Any] | None:
        return self._header
