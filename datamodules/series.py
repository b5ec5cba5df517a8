"""DataModule for one long series (or a few): cut into windows, split in time with a gap between the splits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_synth.datamodules.base import ItemsDataModule, Splits
from lightning_synth.datamodules.coerce import coerce_series, regular_time, warn_values
from lightning_synth.datamodules.recordings import Recording, Source, read_recordings
from lightning_synth.datamodules.windows import time_blocks
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.items import StackedItems
from lightning_synth.requests import Samples

_SPLITS = ("time", "group", "literature")
_SCALES = (None, "standard", "minmax")
_MISSING = ("error", "linear", "mean", "drop", "mask")
_PARTS = ("train", "val", "test")
#: Recordings of each split.
Parts = dict[str, list[Recording]]


class SeriesDataModule(ItemsDataModule):
    """Windows of long multivariate series from a user's file.

    How it splits:

    * ``time`` (the honest default): every series is cut into training, validation and test stretches, in this order,
      with a gap of one window between neighbours, so that no two splits share or touch a row.
    * ``group``: whole series (groups, subjects) are held out.
    * ``literature``: all windows are training windows and all are test windows, as in the published tables of
      windows of 24. It leaks by design, rewards copies, and is there to be compared with those rows only (warned);
      `MixedDataModule` refuses it.

    Items hold raw values, unless ``scale`` is given: generators standardise by themselves with ``schema["mean"]`` and
    ``schema["std"]``, which, like the scale, come from the training part alone. Windows of a single stretch are views
    of the series, so a stride of 1 costs no memory.

    Missing values (``missing``): ``error``; ``linear`` (along time within a split, ends held); ``mean`` (of the channel
    in the training part); ``drop`` leaves out windows with a missing value; ``mask`` keeps them. A mask of this library
    is per step, not per channel: a step at which any channel is missing counts as not observed, all its values are 0,
    and ``mask`` (length,) is False there; windows without an observed step are left out.

    Args:
        source: A ``.csv``, ``.tsv`` or ``.parquet`` file or a data frame (pandas or polars), one row a step; an
            ``.npz`` file or an array of shape (steps,), (steps, channels) or (series, channels, steps).
        length: Steps of a window.
        columns: Channels by name or, for arrays without names, by number; None for all numeric columns.
        batch_size: Items in a batch.
        stride: Steps between the starts of neighbouring windows, in every split.
        split: ``time``, ``group`` or ``literature``.
        val_fraction: Share of the steps (or series) for validation; 0 for none. Not with ``split="literature"``.
        test_fraction: Share for test; 0 for none.
        scale: ``standard`` (mean 0, deviation 1), ``minmax`` (to [0, 1]) or None, per channel, fitted on the training
            part; see `inverse_transform`.
        missing: ``error``, ``linear``, ``mean``, ``drop`` or ``mask``.
        time_column: Of a table; ``auto`` takes the first with dates or a usual name (date, time, timestamp...); None:
            rows are evenly spaced.
        irregular: Uneven time steps: ``error``, ``resample`` (linear, warned) or ``ignore`` (rows count as evenly
            spaced: trading days).
        group: Column whose equal values make one series each; windows never cross series.
        key: Array of an npz; None: ``X``, or the only one there is.
        read_options: For `pandas.read_csv` or `pandas.read_parquet`, such as ``{"sep": ";", "decimal": ","}``.
        sampling_rate: Hz; None takes it from the time column.
        num_workers: Worker processes of each loader.
        seed: Order of training batches, and which series are held out with ``split="group"``.

    Raises:
        DataError: Bad cells (row and column), unsorted or doubled times, too few rows (how many are needed).
        ConfigError: Impossible settings.

    Example:
        >>> t = np.arange(200.0)
        >>> data = SeriesDataModule(np.stack([t, np.sin(t)], axis=1), length=10)
        >>> [len(items) for items in (data.train_items(), data.val_items(), data.test_items())]
        [131, 1, 21]
        >>> data.train_items()[3]["x"][0].tolist()[:2], data.schema["channel_names"]
        ([3.0, 4.0], ['0', '1'])
    """

    def __init__(
        self,
        source: Source,
        length: int = 24,
        columns: Sequence[str | int] | None = None,
        batch_size: int = 64,
        *,
        stride: int = 1,
        split: Literal["time", "group", "literature"] = "time",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        scale: Literal["standard", "minmax"] | None = None,
        missing: Literal["error", "linear", "mean", "drop", "mask"] = "error",
        time_column: str | None = "auto",
        irregular: Literal["error", "resample", "ignore"] = "error",
        group: str | None = None,
        key: str | None = None,
        read_options: Mapping[str, Any] | None = None,
        sampling_rate: float | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        for name, value, known in (
            ("split", split, _SPLITS),
            ("scale", scale, _SCALES),
            ("missing", missing, _MISSING),
        ):
            if value not in known:
                raise ConfigError(f"{name} must be one of {known}, got {value!r}")
        if length < 2 or stride < 1:
            raise ConfigError(f"length must be at least 2 and stride at least 1, got length={length}, stride={stride}")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"val_fraction and test_fraction must not be negative and leave a training part, got {val_fraction} "
                f"and {test_fraction}"
            )
        self.source, self.length, self.columns, self.stride, self.split = source, length, columns, stride, split
        self.val_fraction, self.test_fraction, self.scale, self.missing = val_fraction, test_fraction, scale, missing
        self.time_column, self.irregular, self.group, self.key = time_column, irregular, group, key
        self.read_options, self.sampling_rate = read_options, sampling_rate

    def load(self) -> Splits:
        """Read, split, scale and fill the series, and cut windows."""
        recordings = read_recordings(
            self.source,
            self.columns,
            time_column=self.time_column,
            group=self.group,
            key=self.key,
            read_options=self.read_options,
        )
        parts = self._divided(recordings if self.time_column is None else [self._even(r) for r in recordings])
        if self.missing == "error":
            for recording in recordings:
                _refuse_missing(recording)
        train = np.concatenate([r.values for r in parts["train"]], axis=1)
        _check_seen(train, parts["train"][0], "training")
        channels = recordings[0].channels
        warn_values(np.nanmin(train, 1), np.nanmax(train, 1), "training part", channels)
        offset, scale = self._fitted(train)
        fill = (np.nanmean(train, axis=1) - offset) / scale
        items = {
            name: self._windows([self._filled(r, name, offset, scale, fill) for r in part])
            for name, part in parts.items()
            if part
        }
        if not len(items["train"]):
            raise DataError(
                f"no training window of {self.length} steps is without a missing value; missing='linear', 'mean' or "
                "'mask' keep such windows"
            )
        known: dict[str, Any] = {"channel_names": channels, "sampling_rate": self._rate(parts["train"][0])}
        if self.scale is not None:
            known["scaling"] = {"kind": self.scale, "offset": offset.tolist(), "scale": scale.tolist()}
        none = items["train"][:0]
        return Splits(items["train"], items.get("val", none), items.get("test", none), known)

    def inverse_transform(self, x: Any) -> Tensor:
        """Bring windows, real or sampled, back to the units of the file.

        Args:
            x: (..., channels, length), or `Samples`, or a batch.

        Returns:
            float32 (..., channels, length); unchanged without ``scale``.

        Raises:
            DataError: If the channels are not those of the file.

        Example:
            >>> data = SeriesDataModule(np.arange(80.0).reshape(40, 2), length=4, scale="minmax")
            >>> data.inverse_transform(data.train_items()[1]["x"]).round().tolist()
            [[2.0, 4.0, 6.0, 8.0], [3.0, 5.0, 7.0, 9.0]]
        """
        batch = x.data if isinstance(x, Samples) else x
        windows: Tensor = torch.as_tensor(batch["x"] if isinstance(batch, Mapping) else batch, dtype=torch.float32)
        if windows.ndim < 2 or windows.shape[-2] != self.schema["channels"]:
            raise DataError(f"windows must be (..., {self.schema['channels']}, length), got {tuple(windows.shape)}")
        scaling = self.schema.get("scaling")
        if scaling is None:
            return windows
        offset, scale = (torch.tensor(scaling[name], device=windows.device)[:, None] for name in ("offset", "scale"))
        return windows * scale + offset

    def _even(self, recording: Recording) -> Recording:
        """Check the times of one recording, and resample it if they are uneven and that was asked for."""
        if recording.time is None or len(recording) < 2:
            return recording
        name = f"{recording.name}, time column"
        try:
            x, step = regular_time(recording.values[None], recording.time, name, self.irregular)
        except DataError as error:
            raise DataError(
                f"{error} (irregular='resample' or 'ignore' accept uneven steps, time_column=None any rows)"
            ) from error
        return Recording(x[0], recording.channels, recording.name, np.arange(len(recording)) * step)

    def _rate(self, recording: Recording) -> float | None:
        if self.sampling_rate is not None or recording.time is None:
            return self.sampling_rate
        return float(1 / (recording.time[1] - recording.time[0]))

    def _divided(self, recordings: list[Recording]) -> Parts:
        """Share the recordings out to the splits; those too short are left out."""
        usable, error = [], None
        for recording in recordings:
            try:
                usable.append((recording, self._blocks(recording)))
            except DataError as failure:
                error = DataError(f"{recording.name}: {failure}")
        if error is not None and not usable:
            raise error
        if error is not None:
            count = len(recordings) - len(usable)
            warnings.warn(f"{count} of {len(recordings)} series are left out; the last one: {error}", stacklevel=3)
        if self.split == "literature":
            warnings.warn(
                "split='literature' tests on the training windows: its scores reward copies and are there to be "
                "compared with published rows only; split='time' is the honest one",
                stacklevel=3,
            )
            whole = [recording for recording, _ in usable]
            return {"train": whole, "val": [], "test": whole}
        if self.split == "group":
            return self._by_group([recording for recording, _ in usable])
        return {
            part: [r.part(*blocks[i]) for r, blocks in usable if blocks[i][0] < blocks[i][1]]
            for i, part in enumerate(_PARTS)
        }

    def _blocks(self, recording: Recording) -> list[tuple[int, int]]:
        """Return the training, validation and test stretch of one recording."""
        if self.split == "time":
            shares = (1 - self.val_fraction - self.test_fraction, self.val_fraction, self.test_fraction)
            return time_blocks(len(recording), shares, self.length)
        if len(recording) < self.length:
            raise DataError(f"a window needs {self.length} rows, but there are {len(recording)}")
        return [(0, len(recording))]

    def _by_group(self, recordings: list[Recording]) -> Parts:
        """Hold out whole recordings."""
        shares = (self.val_fraction, self.test_fraction)
        val, test = (max(round(share * len(recordings)), 1) if share else 0 for share in shares)
        if val + test >= len(recordings):
            raise DataError(
                f"split='group' holds out {val} + {test} series, which needs {val + test + 1}, but there are "
                f"{len(recordings)}: name a group= column, or use split='time'"
            )
        order = np.random.default_rng(self.seed).permutation(len(recordings))
        index = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
        return {part: [recordings[i] for i in np.sort(index[part])] for part in _PARTS}

    def _fitted(self, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return offset and scale of each channel (channels,), from the observed training values."""
        if self.scale is None:
            return np.zeros(len(train)), np.ones(len(train))
        if self.scale == "minmax":
            offset, scale = np.nanmin(train, 1), np.nanmax(train, 1) - np.nanmin(train, 1)
        else:
            offset, scale = np.nanmean(train, 1), np.nanstd(train, 1)
        return offset, np.where(scale > 1e-12 * (1 + np.abs(offset)), scale, 1.0)

    def _filled(
        self, recording: Recording, part: str, offset: np.ndarray, scale: np.ndarray, fill: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 (channels, steps) without gaps, and bool (steps,) where all channels were observed."""
        values = (recording.values - offset[:, None]) / scale[:, None]
        seen = ~np.isnan(values).any(axis=0)
        if self.missing == "linear":
            _check_seen(values, recording, part)
            # One series at a time, so that nothing of one split shapes another.
            return coerce_series(values[None], recording.name, impute="linear", train=False).x[0], seen
        if self.missing == "mean":
            values = np.where(np.isnan(values), fill[:, None], values)
        return np.where(seen | (self.missing == "mean"), values, 0.0).astype(np.float32), seen

    def _windows(self, series: list[tuple[np.ndarray, np.ndarray]]) -> StackedItems:
        """Cut the series of one split."""
        x = _joined([torch.from_numpy(v).unfold(1, self.length, self.stride).transpose(0, 1) for v, _ in series])
        if self.missing not in ("drop", "mask"):
            return StackedItems({"x": x})
        seen = _joined([torch.from_numpy(values).unfold(0, self.length, self.stride) for _, values in series])
        if self.missing == "drop":
            complete = seen.all(1)
            return StackedItems({"x": x if bool(complete.all()) else x[complete]})
        some = seen.any(1)
        return StackedItems({"x": x[some], "mask": seen[some]})


def _joined(views: list[Tensor]) -> Tensor:
    """Concatenate the windows of several series; those of a single one stay a view of it."""
    return views[0] if len(views) == 1 else torch.cat(views)


def _refuse_missing(recording: Recording) -> None:
    missing = np.isnan(recording.values)
    if missing.any():
        step, channel = (int(v) for v in np.argwhere(missing.T)[0])
        rows = int(missing.any(0).sum())
        raise DataError(
            f"{recording.name}: row {step}, column {recording.channels[channel]!r} is missing ({rows} of "
            f"{len(recording)} rows affected); missing='linear' or 'mean' fills gaps, 'drop' leaves out windows with "
            "one, 'mask' hides such steps"
        )


def _check_seen(values: np.ndarray, recording: Recording, part: str) -> None:
    """Refuse channels without any value."""
    empty = np.flatnonzero(np.isnan(values).all(axis=1))
    if len(empty):
        raise DataError(
            f"{recording.name}: column {recording.channels[empty[0]]!r} has no value in the {part} part; leave it out "
            "with columns=, or use missing='mean' if training has values"
        )
