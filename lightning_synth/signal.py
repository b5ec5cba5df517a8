"""Signal analysis of many windows at once: spectra, autocorrelation, envelope spectra, bearing frequencies.

Everything is float64 numpy, vectorised over windows and channels; a window is (channels, length).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_synth.errors import ConfigError

Array = npt.NDArray[np.float64]
Band = tuple[float, float]

#: Kinematic tones of a bearing, in the order of `bearing_frequencies`.
TONES = ("FTF", "BPFO", "BPFI", "BSF")
#: Geometry of bearings by name: 6205-2RS and 6203-2RS of the Case Western Reserve rig (inch), NICE of MFPT (inch).
BEARINGS: dict[str, dict[str, float]] = {
    "cwru_de": {"num_balls": 9, "ball_diameter": 0.3126, "pitch_diameter": 1.537, "contact_angle": 0.0},
    "cwru_fe": {"num_balls": 8, "ball_diameter": 0.2656, "pitch_diameter": 1.122, "contact_angle": 0.0},
    "mfpt": {"num_balls": 8, "ball_diameter": 0.235, "pitch_diameter": 1.245, "contact_angle": 0.0},
}
# Windows analysed at once, so that padded spectra of long windows fit into memory.
_CHUNK_ELEMENTS = 1 << 22


def as_windows(x: Any) -> Array:
    """Return windows as float64 (n, channels, length).

    Args:
        x: Array or tensor of shape (length,), (n, length) or (n, channels, length).

    Raises:
        ValueError: If there are more than three axes.

    Example:
        >>> as_windows(np.zeros((5, 24))).shape
        (5, 1, 24)
    """
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().numpy()
    array = np.asarray(x, dtype=np.float64)
    if array.ndim > 3:
        raise ValueError(f"windows must be (n, channels, length), got shape {array.shape}")
    while array.ndim < 3:
        array = array[None] if array.ndim == 1 else array[:, None]
    return array


def chunks(n: int, elements_per_row: int) -> list[slice]:
    """Cut n rows into slices of bounded memory.

    Args:
        n: Rows.
        elements_per_row: Numbers held per row.

    Example:
        >>> chunks(3, 1 << 21)
        [slice(0, 2, None), slice(2, 4, None)]
    """
    rows = max(1, _CHUNK_ELEMENTS // max(1, elements_per_row))
    return [slice(start, start + rows) for start in range(0, n, rows)]


def hann(length: int) -> Array:
    """Return the periodic Hann window (length,).

    Args:
        length: Samples.

    Example:
        >>> hann(4).round(6).tolist()
        [0.0, 0.5, 1.0, 0.5]
    """
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length))


def psd(x: Any, fs: float = 1.0, segment: int | None = None) -> tuple[Array, Array]:
    """Power spectral density of every window (Welch: Hann segments that overlap by half, each centred).

    Args:
        x: Windows (n, channels, length).
        fs: Sampling rate, Hz.
        segment: Samples per segment; None: the whole window.

    Returns:
        Frequencies (F,) in Hz and densities (n, channels, F) in units^2/Hz; they integrate to the variance.

    Example:
        >>> t = np.arange(1000) / 1000
        >>> f, p = psd(np.sin(2 * np.pi * 50 * t), fs=1000)
        >>> float(f[p[0, 0].argmax()]), round(float(p[0, 0].sum() * f[1]), 3)
        (50.0, 0.5)
    """
    windows = as_windows(x)
    length = windows.shape[-1]
    size = min(segment or length, length)
    starts = np.arange(0, length - size + 1, max(1, size // 2))
    taper = hann(size)
    total = np.zeros((*windows.shape[:2], size // 2 + 1))
    for start in starts:
        part = windows[..., start : start + size]
        total += np.abs(np.fft.rfft((part - part.mean(-1, keepdims=True)) * taper)) ** 2
    total *= 2 / (len(starts) * fs * max(np.square(taper).sum(), 1e-300))
    total[..., 0] /= 2
    if size % 2 == 0:
        total[..., -1] /= 2
    return np.asarray(np.fft.rfftfreq(size, 1 / fs), dtype=np.float64), total


def acf(x: Any, max_lag: int | None = None, *, mask: Any = None) -> Array:
    """Autocorrelation of each channel over all windows, with one mean and variance per channel.

    Pooling is what makes it unbiased for short windows: the mean of a single window of 24 samples takes part of the
    slow variation away.

    Args:
        x: Windows (n, channels, length).
        max_lag: Largest lag, below length; None: length - 1.
        mask: bool (n, length), True = observed; None: all.

    Returns:
        (channels, max_lag + 1); lag 0 is 1. A constant channel has 0 elsewhere.

    Example:
        >>> acf(np.tile([1.0, -1.0], (3, 4)), 2).round(2).tolist()
        [[1.0, -1.0, 1.0]]
    """
    windows = as_windows(x)
    n, channels, length = windows.shape
    lags = length if max_lag is None else min(max_lag, length - 1) + 1
    seen = np.ones((n, 1, length)) if mask is None else np.asarray(mask, dtype=np.float64)[:, None]
    count = max(seen.sum(), 1.0)
    mean = (windows * seen).sum((0, 2), keepdims=True) / count
    z = (windows - mean) * seen
    variance = np.square(z).sum((0, 2)) / count
    out = np.zeros((channels, lags))
    # Rounding leaves a constant channel a variance of about (eps * mean)^2.
    varies = variance > 1e-20 * (1 + np.square(mean[0, :, 0]))
    for lag in range(lags):
        pairs = max((seen[..., lag:] * seen[..., : length - lag]).sum(), 1.0)
        product = (z[..., lag:] * z[..., : length - lag]).sum((0, 2)) / pairs
        out[:, lag] = np.divide(product, variance, out=np.zeros(channels), where=varies)
    out[:, 0] = 1.0
    return out


def analytic(x: Any, fs: float = 1.0, band: Band | None = None) -> npt.NDArray[np.complex128]:
    """Analytic signal of each window, band-passed in the frequency domain.

    Args:
        x: Windows (n, channels, length).
        fs: Sampling rate, Hz.
        band: Lowest and highest frequency kept, Hz; None: all but the mean.

    Returns:
        complex128 (n, channels, length); its magnitude is the envelope.

    Example:
        >>> t = np.arange(100) / 100
        >>> bool(np.allclose(np.abs(analytic(3 * np.cos(2 * np.pi * 10 * t), 100)), 3))
        True
    """
    windows = as_windows(x)
    length = windows.shape[-1]
    frequency = np.fft.fftfreq(length, 1 / fs)
    low, high = band if band is not None else (0.0, math.inf)
    gain = np.where((frequency > 0) & (frequency >= low) & (frequency <= high), 2.0, 0.0)
    return np.asarray(np.fft.ifft(np.fft.fft(windows - windows.mean(-1, keepdims=True)) * gain))


def squared_envelope_spectrum(x: Any, fs: float, band: Band | None = None, padding: int = 1) -> tuple[Array, Array]:
    """Spectrum of the squared envelope: impacts at a regular rate give lines at the rate and its multiples.

    Args:
        x: Windows (n, channels, length).
        fs: Sampling rate, Hz.
        band: Band around the resonance that the impacts excite, Hz; None: the whole spectrum.
        padding: The spectrum is computed on this many times as many frequencies.

    Returns:
        Frequencies (F,) in Hz and amplitudes (n, channels, F): a cosine of amplitude a in the squared envelope has a
        peak of height a. The mean is taken away.

    Example:
        >>> t = np.arange(12000) / 12000
        >>> x = (1 + 0.5 * np.cos(2 * np.pi * 100 * t)) * np.cos(2 * np.pi * 3000 * t)
        >>> f, a = squared_envelope_spectrum(x, 12000)
        >>> float(f[a[0, 0].argmax()]), round(float(a[0, 0].max()), 3)
        (100.0, 1.0)
    """
    windows = as_windows(x)
    length = windows.shape[-1]
    size, taper = padding * length, hann(length)
    spectrum = np.empty((*windows.shape[:2], size // 2 + 1))
    for rows in chunks(len(windows), windows.shape[1] * size * 4):
        envelope = np.abs(analytic(windows[rows], fs, band)) ** 2
        envelope -= envelope.mean(-1, keepdims=True)
        spectrum[rows] = np.abs(np.fft.rfft(envelope * taper, n=size))
    return np.asarray(np.fft.rfftfreq(size, 1 / fs), dtype=np.float64), np.asarray(spectrum * (2 / taper.sum()))


def kurtosis_bands(x: Any, fs: float, levels: int = 3) -> tuple[list[Band], Array]:
    """Kurtosis of the envelope in dyadic bands (the kurtogram of Antoni 2007, with ideal filters).

    Args:
        x: Windows (n, channels, length).
        fs: Sampling rate, Hz.
        levels: The narrowest bands are fs / 2 / 2^levels wide.

    Returns:
        The bands (Hz) and their spectral kurtosis (n, channels, bands): <|e|^4> / <|e|^2>^2 - 2, which is 0 for
        stationary Gaussian noise.

    Example:
        >>> bands, kurtosis = kurtosis_bands(np.random.default_rng(0).normal(size=(20, 4096)), 2.0, levels=1)
        >>> bands, bool(np.abs(kurtosis).max() < 0.5)
        ([(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)], True)
    """
    windows = as_windows(x)
    bands = [
        (i * fs / 2 / parts, (i + 1) * fs / 2 / parts)
        for parts in (2**level for level in range(levels + 1))
        for i in range(parts)
    ]
    out = np.empty((*windows.shape[:2], len(bands)))
    for rows in chunks(len(windows), windows.shape[1] * windows.shape[2] * 6):
        for b, band in enumerate(bands):
            power = np.abs(analytic(windows[rows], fs, band)) ** 2
            second = power.mean(-1)
            fourth = np.square(power).mean(-1)
            out[rows, :, b] = np.divide(fourth, second**2, out=np.full_like(second, 2.0), where=second > 1e-30) - 2
    return bands, out


def bearing_geometry(bearing: str | Mapping[str, float]) -> dict[str, float]:
    """Return the geometry of a bearing.

    Args:
        bearing: Name of one of `BEARINGS`, or ``num_balls``, ``ball_diameter`` and ``pitch_diameter`` (one unit),
            optional ``contact_angle`` (degrees).

    Raises:
        ConfigError: If the name is unknown or an entry is missing.

    Example:
        >>> bearing_geometry("mfpt")["num_balls"]
        8
    """
    if isinstance(bearing, str):
        if bearing not in BEARINGS:
            raise ConfigError(f"bearing {bearing!r} is unknown; known: {', '.join(BEARINGS)}, or give its geometry")
        return dict(BEARINGS[bearing])
    missing = [name for name in ("num_balls", "ball_diameter", "pitch_diameter") if not bearing.get(name)]
    if missing:
        raise ConfigError(f"the geometry of the bearing lacks {', '.join(missing)}")
    return dict(bearing)


def bearing_frequencies(bearing: Mapping[str, float], rpm: Any = 60.0) -> dict[str, Array]:
    """Kinematic frequencies of a rolling bearing whose inner race turns with the shaft.

    A defect of a ball meets both races in one turn, so its impacts come at twice the ball spin frequency BSF.

    Args:
        bearing: ``num_balls``, ``ball_diameter`` and ``pitch_diameter`` (one unit), ``contact_angle`` (degrees).
        rpm: Shaft speed in revolutions per minute, a number or (n,); 60 gives multiples of the shaft frequency.

    Returns:
        FTF (cage), BPFO, BPFI (ball pass, outer and inner race), BSF (ball spin) in Hz, each of the shape of ``rpm``.

    Example:
        >>> cwru = {"num_balls": 9, "ball_diameter": 0.3126, "pitch_diameter": 1.537, "contact_angle": 0.0}
        >>> {name: round(float(f), 4) for name, f in bearing_frequencies(cwru).items()}
        {'FTF': 0.3983, 'BPFO': 3.5848, 'BPFI': 5.4152, 'BSF': 2.3567}
    """
    shaft = np.asarray(rpm, dtype=np.float64) / 60
    diameters = bearing["ball_diameter"] / bearing["pitch_diameter"]
    ratio = diameters * math.cos(math.radians(bearing.get("contact_angle") or 0.0))
    balls = bearing["num_balls"]
    return {
        "FTF": shaft * (1 - ratio) / 2,
        "BPFO": balls * shaft * (1 - ratio) / 2,
        "BPFI": balls * shaft * (1 + ratio) / 2,
        "BSF": shaft * (1 - ratio**2) / (2 * diameters),
    }


def peak_ratios(
    frequency: Array,
    spectrum: Array,
    targets: Any,
    slip: float = 0.02,
    resolution: float = 0.0,
    floor: Band | None = None,
) -> Array:
    """Height of the strongest line near each target frequency, over the median of the spectrum.

    Args:
        frequency: (F,), equally spaced from 0, Hz.
        spectrum: (n, channels, F).
        targets: Frequencies looked for, Hz (n, K).
        slip: Relative half-width of the search (rolling elements slide: 1-2 %).
        resolution: Least half-width of the search, Hz; half the inverse window duration is sensible.
        floor: Frequencies whose median is the reference, Hz; None: up to four times the largest target.

    Returns:
        (n, channels, K); 1 where the line is no higher than the background, 0 beyond the spectrum.

    Example:
        >>> f, s = np.arange(100.0), np.ones((1, 1, 100))
        >>> s[..., 51] = 7.0
        >>> peak_ratios(f, s, np.array([[50.0, 20.0]])).tolist()
        [[[7.0, 1.0]]]
    """
    goal = np.asarray(targets, dtype=np.float64)
    step = float(frequency[1] - frequency[0])
    low, high = floor if floor is not None else (2 * max(resolution, step), 4 * float(goal.max(initial=step)))
    inside = (frequency >= low) & (frequency <= high)
    background = np.median(spectrum[..., inside if inside.any() else slice(None)], axis=-1)
    half = np.maximum(slip * goal, max(resolution, 0.5 * step))
    first, last = np.ceil((goal - half) / step).astype(np.int64), np.floor((goal + half) / step).astype(np.int64)
    reach = np.arange(int((last - first).max(initial=0)) + 1)
    bins = first[..., None] + reach
    valid = (bins <= last[..., None]) & (bins >= 0) & (bins < len(frequency))
    index = np.where(valid, bins, 0).reshape(len(goal), 1, -1)
    found = np.take_along_axis(spectrum, np.broadcast_to(index, (*spectrum.shape[:2], index.shape[-1])), -1)
    found = np.where(valid[:, None], found.reshape(*spectrum.shape[:2], *bins.shape[1:]), 0.0).max(-1)
    return np.asarray(found / np.maximum(background, 1e-300)[..., None])


def harmonics(base: Any, orders: Sequence[float]) -> Array:
    """Multiply frequencies by orders: (n,) and (K,) give (n, K).

    Args:
        base: Frequencies (n,), Hz.
        orders: Multiples.

    Example:
        >>> harmonics([10.0], (1, 2)).tolist()
        [[10.0, 20.0]]
    """
    return np.asarray(np.asarray(base, dtype=np.float64)[:, None] * np.asarray(orders, dtype=np.float64))
