"""Reading long series from a user's table or array; faults are named by row and column."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from torch import Tensor

from lightning_synth.datamodules.readers import open_npz
from lightning_synth.errors import ConfigError, DataError

Source: TypeAlias = str | Path | pd.DataFrame | np.ndarray | Tensor

_TIME_NAMES = ("date", "time", "datetime", "timestamp", "ds")
#: Columns in which this share of the cells is numeric are meant to be numbers.
_MEANT_NUMERIC = 0.5


@dataclass
class Recording:
    """One long series.

    Args:
        values: float64 (channels, steps); NaN where a value is missing.
        channels: Names of the channels.
        name: For messages: where it came from.
        time: (steps,) seconds or datetime64; None: evenly spaced.
    """

    values: np.ndarray
    channels: list[str]
    name: str
    time: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of steps."""
        return int(self.values.shape[1])

    def part(self, begin: int, end: int) -> Recording:
        """Return a stretch of it."""
        time = None if self.time is None else self.time[begin:end]
        return Recording(self.values[:, begin:end], self.channels, self.name, time)


def read_recordings(
    source: Source,
    columns: Sequence[str | int] | None = None,
    *,
    time_column: str | None = "auto",
    group: str | None = None,
    key: str | None = None,
    read_options: Mapping[str, Any] | None = None,
) -> list[Recording]:
    """Read one long series, or one for each group or subject.

    Args:
        source: A ``.csv``, ``.tsv`` or ``.parquet`` file or a data frame (pandas or polars), one row a step; an
            ``.npz`` file or an array of shape (steps,), (steps, channels) or (series, channels, steps).
        columns: Channels by name or, for arrays without names, by number; None for all numeric columns.
        time_column: Of the table; ``auto`` takes the first with dates or a usual name; None: rows are evenly spaced.
        group: Column whose equal values make one series each.
        key: Array of the npz; None: ``X``, or the only one with numbers and up to three axes.
        read_options: For `pandas.read_csv` or `pandas.read_parquet`, such as ``{"sep": ";", "decimal": ","}``.

    Returns:
        Recordings in the order of the file.

    Raises:
        DataError: A missing file, no numeric column, text or infinity in a channel (with row and column), unreadable
            timestamps.
        ConfigError: A column, key or file type that does not exist.

    Example:
        >>> frame = pd.DataFrame({"unit": ["a", "a", "b"], "load": [1.0, 2.0, 3.0]})
        >>> [(r.name, r.values.tolist()) for r in read_recordings(frame, group="unit")]
        [("data frame, unit 'a'", [[1.0, 2.0]]), ("data frame, unit 'b'", [[3.0]])]
    """
    columns = [columns] if isinstance(columns, str) else columns
    if isinstance(source, pd.Series):
        source = source.to_frame()
    elif hasattr(source, "to_pandas"):  # polars
        source = source.to_pandas()
    if isinstance(source, pd.DataFrame):
        return _from_frame(source, "data frame", columns, time_column, group)
    if isinstance(source, (np.ndarray, Tensor)):
        if isinstance(source, Tensor) and source.device.type != "cpu":
            warnings.warn(f"the array is on {source.device}; it is copied to the CPU", stacklevel=2)
        array = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
        return _from_array(array, None, "array", columns, time_column, group)
    if not isinstance(source, (str, Path)):
        raise DataError(
            f"a {type(source).__name__} is no source of series: give a file, a data frame or an array (steps, channels)"
        )
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{path} does not exist (looked for {path.resolve()})")
    if path.suffix == ".npz":
        array, names = _read_npz(path, key)
        return _from_array(array, names, str(path), columns, time_column, group)
    return _from_frame(_read_table(path, dict(read_options or {})), str(path), columns, time_column, group)


def _read_table(path: Path, options: dict[str, Any]) -> pd.DataFrame:
    if path.suffix == ".parquet":
        try:
            return pd.read_parquet(path, **options)
        except (OSError, ValueError) as error:  # pyarrow's errors are among these
            raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    if path.suffix not in (".csv", ".tsv"):
        raise ConfigError(f"{path}: files of type {path.suffix!r} are not read; use .csv, .tsv, .parquet or .npz")
    options = {"sep": "\t" if path.suffix == ".tsv" else ",", **options}
    try:
        frame = pd.read_csv(path, **options)
        if "header" not in options and pd.to_numeric(pd.Series(frame.columns), errors="coerce").notna().all():
            # The first line holds values, not names.
            frame = pd.read_csv(path, header=None, **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    first = frame.columns[0] if "index_col" not in options else None
    if str(first).startswith("Unnamed:") and np.array_equal(frame[first], np.arange(len(frame))):
        warnings.warn(f"{path}: the first column has no name and numbers the rows: left out", stacklevel=5)
        frame = frame.drop(columns=first)
    if frame.shape[1] == 1 and any(mark in str(frame.columns[0]) for mark in ";\t|"):
        raise DataError(f"{path} seems to have another separator: pass read_options={{'sep': ';'}} or the like")
    return frame


def _read_npz(path: Path, key: str | None) -> tuple[np.ndarray, list[str] | None]:
    """Return the array, and the channel names under ``columns`` if there are as many."""
    data = open_npz(path)
    usable = [name for name, value in data.items() if value.dtype.kind in "fiub" and 1 <= value.ndim <= 3]
    name = key if key is not None else "X" if "X" in usable else usable[0] if len(usable) == 1 else None
    if name not in data:
        raise ConfigError(f"{path}: say which array to read with key=; there are {sorted(data)}")
    names = data.get("columns")
    return data[name], None if names is None else [str(value) for value in names.reshape(-1)]


def _from_array(
    array: np.ndarray,
    names: list[str] | None,
    source: str,
    columns: Sequence[str | int] | None,
    time_column: str | None,
    group: str | None,
) -> list[Recording]:
    if array.dtype.kind not in "fiub":
        raise DataError(f"{source} has dtype {array.dtype}; numbers are needed (float, int or bool)")
    if array.ndim == 1:
        warnings.warn(f"{source} has one axis: taken as one channel of {len(array)} steps", stacklevel=4)
        array = array[:, None]
    if array.ndim not in (2, 3):
        raise DataError(f"{source} has {array.ndim} axes {array.shape}; (steps, channels) or (series, channels, steps)")
    channels, steps = array.T.shape if array.ndim == 2 else array.shape[1:]
    if channels > steps:
        order = "(steps, channels)" if array.ndim == 2 else "(series, channels, steps)"
        warnings.warn(f"{source} has {channels} channels of {steps} steps: is its order {order}?", stacklevel=4)
    known = names if names is not None and len(names) == channels else [str(i) for i in range(channels)]
    if array.ndim == 2:
        return _from_frame(pd.DataFrame(array, columns=known), source, columns, time_column, group)
    frames = (pd.DataFrame(part.T, columns=known) for part in array)
    return [_from_frame(f, f"{source}, series {i}", columns, None, None)[0] for i, f in enumerate(frames)]


def _from_frame(
    frame: pd.DataFrame, source: str, columns: Sequence[str | int] | None, time_column: str | None, group: str | None
) -> list[Recording]:
    frame = frame.rename(columns=str)
    if not len(frame):
        raise DataError(f"{source} has no rows")
    if not frame.columns.is_unique:
        raise DataError(f"{source} has two columns {frame.columns[frame.columns.duplicated()][0]!r}")
    clock = _find_time(frame) if time_column == "auto" else time_column
    for name in (clock, group, *map(str, columns or ())):
        if name is not None and name not in frame:
            raise ConfigError(f"{source} has no column {name!r}; there are {list(frame.columns)}")
    chosen = [str(name) for name in columns] if columns else None
    data = _numbers(frame.drop(columns=[c for c in (clock, group) if c and c not in (chosen or ())]), chosen, source)
    time = None if clock is None else _times(frame[clock], source)
    values, channels = np.stack(list(data.values())), list(data)
    if group is None:
        return [Recording(values, channels, source, time)]
    if frame[group].isna().any():
        row = int(np.flatnonzero(frame[group].isna())[0])
        raise DataError(f"{source}: row {row}, column {group!r} is missing: every row needs its group")
    codes, groups = pd.factorize(frame[group])
    rows = [np.flatnonzero(codes == i) for i in range(len(groups))]
    return [
        Recording(values[:, r], channels, f"{source}, {group} {name!r}", None if time is None else time[r])
        for name, r in zip(groups.tolist(), rows, strict=True)
    ]


def _find_time(frame: pd.DataFrame) -> str | None:
    """Return the first column of dates, else of a usual name, else of text that reads as dates."""
    dates = [name for name in frame.columns if pd.api.types.is_datetime64_any_dtype(frame[name])]
    usual = [name for name in frame.columns if name.lower() in _TIME_NAMES]
    with warnings.catch_warnings():
        # Text that is no date makes pandas warn of slow parsing.
        warnings.simplefilter("ignore", UserWarning)
        read = [
            name
            for name in frame.columns
            if _is_text(frame[name]) and _parsed(frame[name].dropna().head()).notna().all()
        ]
    return next(iter((*dates, *usual, *read)), None)


def _as_numbers(column: pd.Series) -> pd.Series:
    """Read text as numbers; what is none, dates included, becomes NaN."""
    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        return pd.Series(np.nan, index=column.index)
    return pd.to_numeric(column.astype(object), errors="coerce")


def _is_text(column: pd.Series) -> bool:
    """Whether a column holds something, but no number."""
    return bool(not pd.api.types.is_numeric_dtype(column) and column.notna().any() and _as_numbers(column).isna().all())


def _parsed(column: pd.Series) -> pd.Series:
    """Read dates as UTC without a zone; what is no date becomes NaT."""
    return pd.to_datetime(column, errors="coerce", utc=True).dt.tz_localize(None)


def _times(column: pd.Series, source: str) -> np.ndarray:
    """Return seconds (numeric columns) or datetime64, (steps,)."""
    if pd.api.types.is_numeric_dtype(column):
        return np.asarray(column.to_numpy(np.float64, na_value=np.nan))
    times = _parsed(column)
    if times.isna().any():
        row = int(np.flatnonzero(times.isna())[0])
        raise DataError(
            f"{source}: row {row}, column {column.name!r} is no date: {column.iloc[row]!r}; name another time_column=, "
            "or pass time_column=None if rows are evenly spaced"
        )
    return np.asarray(times)


def _numbers(frame: pd.DataFrame, columns: list[str] | None, source: str) -> dict[str, np.ndarray]:
    """Return the channels as float64 (steps,), NaN where missing."""
    data, text = {}, []
    for name in frame.columns if columns is None else columns:
        column = frame[name]
        if not pd.api.types.is_numeric_dtype(column):
            numbers = _as_numbers(column)
            bad = (numbers.isna() & column.notna()).to_numpy()
            if columns is None and bad.sum() >= _MEANT_NUMERIC * max(column.notna().sum(), 1):
                text.append(name)
                continue
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                raise DataError(
                    f"{source}: row {row}, column {name!r} is no number: {column.iloc[row]!r} ({int(bad.sum())} such "
                    "cells); correct it, leave the column out with columns=, or see na_values, decimal and thousands "
                    "of read_options"
                )
            column = numbers
        data[name] = _finite(column.to_numpy(np.float64, na_value=np.nan), name, source)
    if text:
        warnings.warn(f"{source}: columns {text} hold text and are left out", stacklevel=5)
    if not data:
        raise DataError(f"{source} has no numeric column; columns: {list(frame.columns)}")
    return data


def _finite(values: np.ndarray, name: str, source: str) -> np.ndarray:
    """Refuse infinity, also that of float32, with the row; NaN passes."""
    bad = np.abs(values) > np.finfo(np.float32).max
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{source}: row {row}, column {name!r} is {values[row]} ({int(bad.sum())} such cells): infinite, or more "
            "than float32 can hold; remove, clip or rescale"
        )
    return values
