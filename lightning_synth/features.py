"""Features of windows for simple classifiers and metrics: statistics, texture, and vibration diagnostics.

All functions map windows (n, channels, length) to float64 (n, features), channel after channel, without a loop over
windows, and none of them reads anything but the window (and its shaft speed): nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from lightning_synth.errors import ConfigError
from lightning_synth.signal import (
    Array,
    as_windows,
    bearing_frequencies,
    harmonics,
    peak_ratios,
    psd,
    squared_envelope_spectrum,
)

Kind = Literal["auto", "statistics", "texture", "vibration", "values", "all"]
STATISTICS = ("mean", "std", "slope", "roughness")
TEXTURE = ("step", "bend", "lag1", "turns", "high_share", "entropy")
#: Columns of `defect_lines`.
LINES = ("BPFO", "BPFI", "2BSF")
#: A window shorter than this holds too few shaft turns for a spectrum to be of use.
MIN_VIBRATION_LENGTH = 256
#: Windows of more values than this are summarised only: few-shot forests drown in them.
MAX_VALUES = 512
_TINY = 1e-12


def _observed(x: Any, mask: Any) -> tuple[Array, Array]:
    """Windows, and 1/0 weights (n, 1, length) of their observed steps; unobserved values become 0."""
    windows = as_windows(x)
    if mask is None:
        return windows, np.ones((len(windows), 1, windows.shape[-1]))
    weight = np.asarray(mask, dtype=np.float64)[:, None]
    return np.where(weight > 0, windows, 0.0), weight


def _mean(values: Array, weight: Array) -> Array:
    return np.asarray((values * weight).sum(-1) / np.maximum(weight.sum(-1), 1.0))


def window_statistics(x: Any, mask: Any = None) -> Array:
    """Mean, standard deviation, least-squares slope per step and mean absolute step of each channel.

    Args:
        x: Windows (n, channels, length).
        mask: bool (n, length), True = observed; None: all.

    Returns:
        (n, 4 * channels), in the order of `STATISTICS` for the first channel, then for the next.

    Example:
        >>> window_statistics([[0.0, 2.0, 4.0, 6.0]]).round(3).tolist()
        [[3.0, 2.236, 2.0, 2.0]]
    """
    windows, weight = _observed(x, mask)
    mean = _mean(windows, weight)
    centred = windows - mean[..., None]
    time = np.arange(windows.shape[-1], dtype=np.float64)
    time = time - _mean(np.broadcast_to(time, weight.shape), weight)[..., None]
    slope = (centred * time * weight).sum(-1) / np.maximum((np.square(time) * weight).sum(-1), _TINY)
    std = np.sqrt(_mean(np.square(centred), weight))
    rough = _mean(np.abs(np.diff(windows)), weight[..., 1:] * weight[..., :-1])
    return _flat([mean, std, slope, rough])


def texture_features(x: Any) -> Array:
    """Scale-free roughness and spectrum of each channel: what smoothing and added noise change first.

    A recurrent judge on raw values does not see a 3-point moving average at all; a forest on these features does.

    Args:
        x: Windows (n, channels, length).

    Returns:
        (n, 6 * channels), in the order of `TEXTURE`: log ratios of the standard deviation of first and of second
        differences to that of the window, lag-1 autocorrelation of the first differences, share of turning points,
        share of power in the upper half of the spectrum (log), spectral entropy over its maximum.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> white, smooth = texture_features(rng.normal(size=2000)), texture_features(np.arange(2000.0))
        >>> bool(abs(white[0, 0] - np.log(2) / 2) < 0.05), bool(smooth[0, 0] < -5), round(float(white[0, 2]), 1)
        (True, True, -0.5)
    """
    windows = as_windows(x)
    # Windows of one or two steps have no differences; a zero stands for them.
    step = np.diff(windows) if windows.shape[-1] > 1 else np.zeros_like(windows)
    bend = np.diff(step) if step.shape[-1] > 1 else np.zeros_like(step)
    product = step[..., 1:] * step[..., :-1] if step.shape[-1] > 1 else np.zeros_like(step)
    spread = windows.std(-1) + _TINY
    power = psd(windows)[1][..., 1:] + 1e-300
    share = power / power.sum(-1, keepdims=True)
    entropy = -(share * np.log(share + _TINY)).sum(-1) / np.log(max(share.shape[-1], 2))
    return _flat(
        [
            np.log(step.std(-1) / spread + 1e-6),
            np.log(bend.std(-1) / spread + 1e-6),
            product.mean(-1) / (np.square(step).mean(-1) + _TINY**2),
            (product < 0).mean(-1),
            np.log(share[..., share.shape[-1] // 2 :].sum(-1) + 1e-6),
            entropy,
        ]
    )


def shape_features(x: Any) -> Array:
    """Vibration indicators in the time domain.

    Args:
        x: Windows (n, channels, length).

    Returns:
        (n, 8 * channels): log RMS, log peak, skewness, kurtosis (3 for a Gaussian), crest factor, impulse factor
        (peak / mean absolute value), and the log ratios of first and second differences to the RMS (mobility).

    Example:
        >>> shape_features(np.sin(np.linspace(0, 20 * np.pi, 2000, endpoint=False))).round(2)[0, 2:5].tolist()
        [0.0, 1.5, 1.41]
    """
    windows = as_windows(x)
    centred = windows - windows.mean(-1, keepdims=True)
    rms = np.sqrt(np.square(centred).mean(-1)) + _TINY
    size = np.abs(centred)
    peak = size.max(-1)
    unit = centred / rms[..., None]
    step = np.diff(centred)
    return _flat(
        [
            np.log(rms),
            np.log(peak + _TINY),
            (unit**3).mean(-1),
            (unit**4).mean(-1),
            peak / rms,
            peak / (size.mean(-1) + _TINY),
            np.log(step.std(-1) / rms + 1e-6),
            np.log(np.diff(step).std(-1) / rms + 1e-6),
        ]
    )


def band_energies(x: Any, fs: float = 1.0, bands: int = 16) -> Array:
    """Power in equal bands up to the Nyquist frequency, absolute and as shares.

    Args:
        x: Windows (n, channels, length).
        fs: Sampling rate, Hz.
        bands: How many.

    Returns:
        (n, 2 * bands * channels): log power, then log share of the total.

    Example:
        >>> t = np.arange(1024) / 1024
        >>> energy = band_energies(np.sin(2 * np.pi * 200 * t), 1024, bands=4)
        >>> int(energy[0, :4].argmax()), round(float(np.exp(energy[0, 5])), 2)
        (1, 1.0)
    """
    frequency, power = psd(x, fs, 16 * bands)
    edges = np.linspace(0, len(frequency) - 1, bands + 1).round().astype(int)
    # The mean of the window is no vibration: the lowest band starts at the first line above 0.
    sums = [power[..., a + 1 : b + 1].sum(-1) for a, b in pairwise(edges)]
    energy = np.stack(sums, -1) * frequency[1]
    share = energy / (energy.sum(-1, keepdims=True) + _TINY)
    return np.concatenate([np.log(energy + _TINY), np.log(share + 1e-6)], -1).reshape(len(energy), -1)


def defect_lines(
    x: Any, fs: float, bearing: Mapping[str, float], rpm: Any, orders: int = 2, slip: float = 0.02
) -> Array:
    """Height of the lines that bearing defects leave in the squared envelope spectrum, over its median (log).

    The defect frequencies are BPFO (outer race), BPFI (inner race) and twice BSF (a ball meets both races). Slip blurs
    higher multiples more, so few of them are averaged.

    Args:
        x: Windows (n, channels, length).
        fs: Sampling rate, Hz.
        bearing: Geometry, see `lightning_synth.signal.bearing_frequencies`.
        rpm: Shaft speed, a number or (n,).
        orders: Multiples of each frequency, averaged.
        slip: Relative half-width of the search.

    Returns:
        (n, channels, 3), in the order of `LINES`.

    Example:
        >>> t = np.arange(12000) / 12000
        >>> cwru = {"num_balls": 9, "ball_diameter": 0.3126, "pitch_diameter": 1.537, "contact_angle": 0.0}
        >>> x = (1 + np.cos(2 * np.pi * 5.4152 * 30 * t)) * np.cos(2 * np.pi * 3000 * t)
        >>> LINES[int(defect_lines(x, 12000, cwru, 1800)[0, 0].argmax())]
        'BPFI'
    """
    windows = as_windows(x)
    n, channels, length = windows.shape
    tones = bearing_frequencies(bearing, np.broadcast_to(np.asarray(rpm, dtype=np.float64), (n,)))
    multiples = range(1, orders + 1)
    bases = (tones["BPFO"], tones["BPFI"], 2 * tones["BSF"])
    targets = np.concatenate([harmonics(base, multiples) for base in bases], 1)
    frequency, spectrum = squared_envelope_spectrum(windows, fs, None, _padding(length))
    ratio = peak_ratios(frequency, spectrum, targets, slip, 0.5 * fs / length)
    return np.asarray(np.log(ratio + 1e-6).reshape(n, channels, len(LINES), orders).mean(-1))


def _padding(length: int) -> int:
    """Zero padding that makes the height of a line independent of where it falls between two bins."""
    return max(1, min(8, 8192 // length))


def envelope_features(x: Any, fs: float, rpm: Any = None, bearing: Mapping[str, float] | None = None) -> Array:
    """Which defect line stands out in the squared envelope spectrum, and how far.

    A window with impacts has high lines everywhere below them; what tells the defect is which family is the highest, so
    each is compared with the mean of the three.

    Args:
        x: Windows (n, channels, length).
        fs: Sampling rate, Hz.
        rpm: Shaft speed, a number or (n,); None: unknown.
        bearing: Geometry; None: unknown.

    Returns:
        (n, 4 * channels): per channel `defect_lines` less their mean, and that mean. Without speed or geometry:
        (n, 2 * channels), the log ratio of the highest line to the median, and the log of its frequency.

    Example:
        >>> t = np.arange(6000) / 12000
        >>> x = (1 + np.cos(2 * np.pi * 100 * t)) * np.cos(2 * np.pi * 3000 * t)
        >>> round(float(np.exp(envelope_features(x, 12000)[0, 1])))
        100
    """
    windows = as_windows(x)
    if rpm is not None and bearing is not None:
        lines = defect_lines(windows, fs, bearing, rpm)
        level = lines.mean(-1, keepdims=True)
        return np.concatenate([lines - level, level], -1).reshape(len(windows), -1)
    length = windows.shape[-1]
    frequency, spectrum = squared_envelope_spectrum(windows, fs, None, _padding(length))
    # Below two cycles a window there is only the trend of the envelope.
    above = frequency > 2 * fs / length
    found = spectrum[..., above]
    ratio = found.max(-1) / (np.median(found, -1) + 1e-300)
    return _flat([np.log(ratio + 1e-6), np.log(frequency[above][found.argmax(-1)])])


def vibration_features(
    x: Any, fs: float, rpm: Any = None, bearing: Mapping[str, float] | None = None, bands: int = 16
) -> Array:
    """Time-domain indicators, band energies and envelope-spectrum lines of vibration windows.

    Args:
        x: Windows (n, channels, length).
        fs: Sampling rate, Hz.
        rpm: Shaft speed (n,) or a number; None: unknown.
        bearing: Geometry; with the speed it says where defects leave lines in the envelope spectrum.
        bands: Number of frequency bands.

    Returns:
        (n, features): 8 + 2 * bands + 4 (without speed or geometry: 2) per channel.

    Example:
        >>> vibration_features(np.random.default_rng(0).normal(size=(3, 1024)), 12000.0).shape
        (3, 42)
    """
    windows = as_windows(x)
    parts = [shape_features(windows), band_energies(windows, fs, bands), envelope_features(windows, fs, rpm, bearing)]
    return np.concatenate(parts, 1)


def is_vibration(schema: Mapping[str, Any]) -> bool:
    """Say whether windows are long enough, and of known rate, to be read as vibration.

    Args:
        schema: Of windows.

    Example:
        >>> is_vibration({"sampling_rate": 12000.0, "length": 1024}), is_vibration({"length": 1024})
        (True, False)
    """
    return bool(schema.get("sampling_rate")) and schema["length"] >= MIN_VIBRATION_LENGTH


def series_features(items: Any, schema: Mapping[str, Any], kind: Kind = "auto") -> Array:
    """Features of time-series items for a simple classifier.

    Args:
        items: Items of the domain ``timeseries``.
        schema: Of the items; its ``sampling_rate``, ``bearing`` and ``conditions`` say what can be computed.
        kind: ``"statistics"``, ``"texture"``, ``"vibration"``, ``"values"`` (standardised, flattened), ``"all"``
            (statistics, texture and values), or ``"auto"``: vibration features if there is a sampling rate and at least
            256 samples; else all for windows of at most 512 values, whose shape a forest can learn; else statistics.

    Returns:
        (n, features).

    Raises:
        ConfigError: If the kind is unknown, or vibration features are asked for without a sampling rate.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> series_features(tiny_series(4), tiny_series_schema(), "statistics").shape
        (4, 8)
    """
    from lightning_synth.items import StackedItems
    from lightning_synth.schema import features

    rate = schema.get("sampling_rate")
    if kind == "auto":
        short = schema["channels"] * schema["length"] <= MAX_VALUES
        kind = "vibration" if is_vibration(schema) else "all" if short else "statistics"
    if kind == "all":
        parts: tuple[Kind, ...] = ("statistics", "texture", "values")
        return np.concatenate([series_features(items, schema, part) for part in parts], 1)
    if kind == "values":
        return np.asarray(features(items, schema), dtype=np.float64)
    fields = StackedItems.from_items(items).tensors
    x = fields["x"].numpy() if fields else np.zeros((0, schema["channels"], schema["length"]))
    mask = fields["mask"].numpy() if "mask" in fields else None
    if kind == "statistics":
        return window_statistics(x, mask)
    if mask is not None:
        x = np.where(mask[:, None], x, 0.0)
    if kind == "texture":
        return texture_features(x)
    if kind != "vibration":
        raise ConfigError(f"features={kind!r} is unknown: use auto, statistics, texture, vibration, values or all")
    if not rate:
        raise ConfigError("features='vibration' needs the sampling rate: set sampling_rate= in the DataModule")
    return vibration_features(x, rate, _speed(fields, schema), schema.get("bearing"))


def _speed(fields: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """Shaft speed of each window, or the mean of training, or None."""
    if "rpm" in fields:
        return fields["rpm"].double().numpy()
    known = schema.get("conditions", {}).get("rpm")
    return known["mean"] if known else None


def _flat(parts: Sequence[Array]) -> Array:
    """Stack (n, channels) arrays to (n, channels * parts), channel after channel."""
    stacked = np.stack(parts, -1)
    return stacked.reshape(len(stacked), -1)
