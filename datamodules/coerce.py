"""A user's arrays made usable: cast, checked, padded, resampled, with errors that name the series and the channel."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, DataError

log = logging.getLogger(__name__)

IMPUTE = (None, "linear", "mean")
#: Squares of larger values leave float32; standardising still works, a loss on raw values does not.
_HUGE = 1e15


@dataclass
class Series:
    """Series of one split.

    Args:
        x: float32 (series, channels, length), 0 where nothing was observed.
        mask: bool (series, length), True = observed; None if all lengths are equal.
    """

    x: np.ndarray
    mask: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of series."""
        return len(self.x)

    def __getitem__(self, index: Any) -> Series:
        """Select series."""
        return Series(self.x[index], None if self.mask is None else self.mask[index])


def coerce_series(x: Any, name: str = "x", *, impute: str | None = None, train: bool = True) -> Series:
    """Turn arrays, tensors or lists of them into float32 (series, channels, length).

    Casts float64, integers and booleans (logged); copies read-only, non-contiguous or memory-mapped input; detaches
    tensors; moves tensors from another device (warns); adds missing axes (warns); pads unequal lengths at the end with
    a mask.

    Args:
        x: (series, channels, length), (series, length), (length,), or a sequence of (channels, length_i) or
            (length_i,).
        name: For messages.
        impute: None (a NaN is an error), ``linear`` (along time, ends held) or ``mean`` (of the channel over the
            observed values of the same series, so that no other series leaks in).
        train: Whether to warn of constant channels and single series.

    Returns:
        The series.

    Raises:
        DataError: Empty, non-numeric, too short, NaN (with index and channel), or infinite input.

    Example:
        >>> coerce_series([[[1.0, 2.0, 3.0]], [[1.0, 2.0]]]).mask.tolist()
        [[True, True, True], [True, True, False]]
    """
    if impute not in IMPUTE:
        raise ConfigError(f"impute must be one of {IMPUTE}, got {impute!r}")
    ragged = _ragged_parts(x, name)
    if ragged is not None:
        series = _pad([_checked(part[None], f"{name}[{i}]", impute, i)[0] for i, part in enumerate(ragged)], name)
    else:
        series = Series(_checked(_three_axes(_numeric(x, name), name), name, impute))
    if train:
        _warn_odd(series, name)
    return series


def _numeric(x: Any, name: str) -> np.ndarray:
    """Return a numeric array; the object behind it is not touched."""
    if isinstance(x, Tensor):
        if x.device.type != "cpu":
            warnings.warn(
                f"{name} is on {x.device}; it is copied to the CPU, batches are moved by the Trainer", stacklevel=5
            )
        x = x.detach().cpu()
        x = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).numpy()
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} has dtype {array.dtype}; numbers are needed (float, int or bool)")
    if array.dtype != np.float32:
        log.info("%s: cast from %s to float32", name, array.dtype)
    return array


def _ragged_parts(x: Any, name: str) -> list[np.ndarray] | None:
    """Return the series as (channels, length_i) if their lengths differ, else None."""
    is_object = isinstance(x, np.ndarray) and x.dtype == object
    if not is_object and not isinstance(x, (list, tuple)):
        return None
    if is_object and (x.ndim != 1 or any(isinstance(part, (str, bytes)) for part in x)):
        raise DataError(
            f"{name} has dtype object {x.shape}; a numeric array, or a list of arrays of unequal length, is needed"
        )
    if not all(isinstance(part, (list, tuple, np.ndarray, Tensor)) for part in x):
        return None
    parts = [_numeric(part, f"{name}[{i}]") for i, part in enumerate(x)]
    if len({part.shape for part in parts}) <= 1:
        return None
    if {part.ndim for part in parts} == {1}:
        warnings.warn(f"{name}: series of one axis are taken as (1, length)", stacklevel=4)
        parts = [part[None] for part in parts]
    for i, part in enumerate(parts):
        if part.ndim != 2 or part.shape[0] != parts[0].shape[0]:
            raise DataError(f"{name}[{i}] has shape {part.shape}; every series must be ({parts[0].shape[0]}, length)")
    return parts


def _three_axes(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim in (1, 2):
        shape = (1, 1, *array.shape) if array.ndim == 1 else (array.shape[0], 1, array.shape[1])
        warnings.warn(
            f"{name} has {array.ndim} axes {array.shape}: taken as (series, channels, length) = {shape}", stacklevel=4
        )
        return array.reshape(shape)
    if array.ndim != 3:
        raise DataError(f"{name} has {array.ndim} axes {array.shape}; (series, channels, length) is needed")
    return array


def _checked(array: np.ndarray, name: str, impute: str | None, index: int | None = None) -> np.ndarray:
    """Check (series, channels, length), impute if asked, and return an own float32 copy."""
    count, channels, length = array.shape
    if count == 0 or channels == 0:
        raise DataError(f"{name} is empty: shape {array.shape}")
    if length < 2:
        raise DataError(f"{name} has length {length}; a series needs at least 2 steps")
    missing = np.isnan(array) if array.dtype.kind == "f" else None
    if missing is not None and missing.any():
        if impute is None:
            _fail(
                missing,
                name,
                "NaN",
                "impute='linear' or 'mean' fills gaps; pass series of unequal length as a list",
                index,
            )
        array = _imputed(array, missing, impute == "linear", name, index)
    bad = np.isinf(array)
    if bad.any():
        _fail(bad, name, "infinite", "remove or clip them", index)
    with np.errstate(over="ignore"):
        cast = np.array(array, dtype=np.float32, order="C")
    if not np.isfinite(cast).all():
        _fail(~np.isfinite(cast), name, "larger than float32 can hold", "rescale the channel", index)
    return cast


def _fail(bad: np.ndarray, name: str, what: str, hint: str, index: int | None) -> None:
    series, channel, step = (int(v) for v in np.argwhere(bad)[0])
    where = series if index is None else index
    raise DataError(
        f"{name}: value at series {where}, channel {channel}, step {step} is {what} "
        f"({int(bad.any((1, 2)).sum())} of {len(bad)} series affected); {hint}"
    )


def _imputed(array: np.ndarray, missing: np.ndarray, linear: bool, name: str, index: int | None) -> np.ndarray:
    """Fill NaN within each series and channel."""
    empty = np.asarray(missing.all(axis=2))
    if empty.any():
        _fail(
            missing & empty[:, :, None], name, "NaN, as is its whole channel", "there is nothing to impute from", index
        )
    log.info("%s: imputed %d values", name, int(missing.sum()))
    if not linear:
        return np.where(missing, np.nanmean(array, axis=2, keepdims=True), array)
    step = np.broadcast_to(np.arange(array.shape[2]), array.shape)
    # Nearest observed step on either side; where there is none, the other side is held.
    left = np.maximum.accumulate(np.where(missing, -1, step), axis=2)
    right = np.minimum.accumulate(np.where(missing, array.shape[2], step)[..., ::-1], axis=2)[..., ::-1]
    left, right = np.where(left < 0, right, left), np.where(right == array.shape[2], left, right)
    a, b = np.take_along_axis(array, left, 2), np.take_along_axis(array, right, 2)
    return np.asarray(a + (b - a) * ((step - left) / np.maximum(right - left, 1)))


def _pad(parts: Sequence[np.ndarray], name: str) -> Series:
    length = max(part.shape[1] for part in parts)
    log.info("%s: lengths %d to %d, padded", name, min(part.shape[1] for part in parts), length)
    x = np.zeros((len(parts), parts[0].shape[0], length), np.float32)
    lengths = np.array([part.shape[1] for part in parts])
    for i, part in enumerate(parts):
        x[i, :, : part.shape[1]] = part
    return Series(x, np.arange(length) < lengths[:, None])


def _warn_odd(series: Series, name: str) -> None:
    count, channels, length = series.x.shape
    if count == 1:
        warnings.warn(f"{name} holds 1 series: cut it into windows, or expect generators to refuse it", stacklevel=4)
    if channels > length:
        warnings.warn(
            f"{name} has {channels} channels of length {length}: is it (series, length, channels)? "
            "Then transpose axes 1 and 2",
            stacklevel=4,
        )
    seen = series.x if series.mask is None else np.where(series.mask[:, None], series.x, series.x[:, :, :1])
    warn_values(seen.min((0, 2)), seen.max((0, 2)), name)


def warn_values(low: np.ndarray, high: np.ndarray, name: str, channel_names: Sequence[str] | None = None) -> None:
    """Warn of constant channels and of huge values.

    Args:
        low: Least value of each channel.
        high: Largest value of each channel.
        name: For messages.
        channel_names: For messages; None: the channels' numbers.
    """
    names: Sequence[Any] = range(len(low)) if channel_names is None else channel_names
    constant = [names[i] for i in np.flatnonzero(low == high).tolist()]
    if constant:
        warnings.warn(f"{name}: channel {constant} is constant; it is kept, and its scale set to 1", stacklevel=5)
    large = [names[i] for i in np.flatnonzero(np.maximum(np.abs(low), np.abs(high)) > _HUGE).tolist()]
    if large:
        warnings.warn(
            f"{name}: channel {large} has magnitudes above {_HUGE:g}; its mean and scale follow the extremes, "
            "check for corrupt values or rescale it",
            stacklevel=5,
        )


def fit_length(series: Series, length: int, ragged: bool, name: str) -> Series:
    """Pad or cut a split to the length of the schema.

    Args:
        series: Of a split.
        length: Of the schema, from the training series (or asked for).
        ragged: Whether items carry a mask.
        name: For messages.

    Returns:
        Series of that length; longer ones lose their end (warned).

    Raises:
        DataError: If lengths differ, but the training series are all of one length.
    """
    have = series.x.shape[2]
    if have != length and not ragged:
        raise DataError(f"{name} has length {have}, but training series have {length}")
    mask = np.ones((len(series), have), bool) if series.mask is None else series.mask
    if mask[:, length:].any():
        warnings.warn(
            f"{name}: {int(mask[:, length:].any(1).sum())} series are longer than {length}, "
            f"the longest training series, and lose their end; length={have} keeps it",
            stacklevel=4,
        )
    if have < length:
        pad = ((0, 0), (0, length - have))
        return Series(np.pad(series.x, ((0, 0), *pad)), np.pad(mask, pad))
    return Series(series.x[:, :, :length], mask[:, :length] if ragged else None)


def coerce_labels(y: Any, count: int, name: str, classes: Sequence[Any] | None = None) -> tuple[np.ndarray, list[Any]]:
    """Map labels to 0..K-1.

    Args:
        y: Numbers or strings, one a series.
        count: Series there are.
        name: For messages.
        classes: Known classes in order (of the training split); None sorts those found.

    Returns:
        int64 (count,) and the classes.

    Raises:
        DataError: Missing (NaN, None, empty, -1) or, with ``classes``, unknown labels.

    Example:
        >>> coerce_labels(["b", "a", "b"], 3, "y")
        (array([1, 0, 1]), ['a', 'b'])
    """
    array = np.asarray(y.detach().cpu().numpy() if isinstance(y, Tensor) else y)
    if array.shape != (count,):
        raise DataError(f"{name} has shape {array.shape}, but there are {count} series: one label each is needed")
    if array.dtype.kind not in "iubfUSO":
        raise DataError(f"{name} has dtype {array.dtype}; labels are numbers or strings")
    missing = _missing_labels(array)
    if missing.any():
        first = int(np.flatnonzero(missing)[0])
        raise DataError(
            f"{name}: label of series {first} is missing ({array[first]!r}; {int(missing.sum())} in all); "
            "drop these series, or, if -1 is a class, pass labels as strings"
        )
    if array.dtype.kind == "f" and (array == array.astype(np.int64)).all():
        array = array.astype(np.int64)
    found = np.unique(array.astype(str) if array.dtype.kind == "O" else array)
    keep = list(found.tolist()) if classes is None else list(classes)
    lookup = {str(value): i for i, value in enumerate(keep)}
    unknown = [value for value in found.tolist() if str(value) not in lookup]
    if unknown:
        raise DataError(f"{name} has class {unknown[0]!r}, which no training series has; training classes: {keep}")
    return np.array([lookup[str(value)] for value in array.tolist()], np.int64), keep


def _missing_labels(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return np.asarray(np.isnan(array) | (array == -1))
    if array.dtype.kind in "iu":
        return np.asarray(array == -1)
    if array.dtype.kind == "b":
        return np.zeros(array.shape, bool)
    return np.array(
        [v is None or v == "" or (isinstance(v, (int, float)) and (v != v or v == -1)) for v in array.tolist()], bool
    )


def coerce_conditions(conditions: Mapping[str, Any] | None, count: int, name: str) -> dict[str, np.ndarray]:
    """Check continuous conditions.

    Args:
        conditions: Name to one number a series.
        count: Series there are.
        name: For messages.

    Returns:
        Name to float32 (count,).

    Raises:
        DataError: Wrong lengths, non-finite values or a reserved name.
    """
    out = {}
    for key, value in ({} if conditions is None else conditions).items():
        if key in ("x", "y", "label", "mask", "is_synthetic", "weight", "keep", "given"):
            raise DataError(f"{name}: {key!r} is reserved and cannot name a condition")
        array = _numeric(value, f"{name}[{key!r}]").astype(np.float32)
        if array.shape != (count,):
            raise DataError(f"{name}[{key!r}] has shape {array.shape}, but there are {count} series")
        if not np.isfinite(array).all():
            raise DataError(f"{name}[{key!r}] is not finite at series {int(np.flatnonzero(~np.isfinite(array))[0])}")
        out[key] = array
    return out


def regular_time(x: np.ndarray, timestamps: Any, name: str, irregular: str = "resample") -> tuple[np.ndarray, float]:
    """Check timestamps; resample series whose steps are uneven.

    Args:
        x: (series, channels, length).
        timestamps: (length,) for all or (series, length): numbers in seconds, or datetime64.
        name: For messages.
        irregular: What to do where a step differs from the median by over 1 %: ``resample`` (linear, same length,
            between the first and last time; warns), ``error`` or ``ignore`` (steps count as even: trading days).

    Returns:
        The series, and its step in seconds (where steps differ, their median).

    Raises:
        DataError: Duplicate, decreasing or missing timestamps; uneven ones with ``irregular="error"``.
    """
    if irregular not in ("resample", "error", "ignore"):
        raise ConfigError(f"irregular must be 'resample', 'error' or 'ignore', got {irregular!r}")
    time = np.asarray(timestamps)
    if time.dtype.kind == "M":
        time = np.where(np.isnat(time), np.nan, (time - time.reshape(-1)[0]) / np.timedelta64(1, "ns") * 1e-9)
    time = np.broadcast_to(_numeric(time, name).astype(np.float64), (len(x), x.shape[2])) if _fits(time, x) else time
    if time.shape != (len(x), x.shape[2]):
        raise DataError(f"{name} has shape {time.shape}; ({x.shape[2]},) or {(len(x), x.shape[2])} is needed")
    step = np.diff(time, axis=1)
    for bad, what in (
        (~np.isfinite(step), "missing"),
        (step == 0, "a duplicate"),
        (step < 0, "earlier than the one before"),
    ):
        if bad.any():
            series, at = (int(v) for v in np.argwhere(bad)[0])
            raise DataError(
                f"{name}: timestamp {at + 1} of series {series} is {what} "
                f"({float(time[series, at + 1])}); sort and clean the recording first"
            )
    median = np.median(step, axis=1, keepdims=True)
    uneven = (np.abs(step - median) > 0.01 * median).any(1)
    if not uneven.any() or irregular == "ignore":
        return x, float(np.median(median))
    if irregular == "error":
        raise DataError(
            f"{name}: steps of series {int(np.flatnonzero(uneven)[0])} are uneven ({int(uneven.sum())} series)"
        )
    warnings.warn(f"{name}: {int(uneven.sum())} series have uneven time steps and are resampled linearly", stacklevel=4)
    return _resampled(x, time), float(np.median((time[:, -1] - time[:, 0]) / (x.shape[2] - 1)))


def _fits(time: np.ndarray, x: np.ndarray) -> bool:
    return time.shape in ((x.shape[2],), (len(x), x.shape[2]))


def _resampled(x: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Interpolate every series on an even grid between its first and last time."""
    grid = np.linspace(time[:, 0], time[:, -1], x.shape[2], axis=1)
    # searchsorted of torch takes one sorted row a series; it wants arrays that it could write to.
    right = torch.searchsorted(torch.from_numpy(np.array(time)), torch.from_numpy(np.array(grid, order="C"))).numpy()
    right = right.clip(1, x.shape[2] - 1)
    before, after = np.take_along_axis(time, right - 1, 1), np.take_along_axis(time, right, 1)
    share = ((grid - before) / (after - before))[:, None]
    a, b = np.take_along_axis(x, right[:, None] - 1, 2), np.take_along_axis(x, right[:, None], 2)
    return np.asarray(a + (b - a) * share, dtype=np.float32)
