"""Distances between two samples of windows that train nothing: correlations, marginals, spectra, envelope lines.

Windows are arrays or tensors (n, channels, length), real and synthetic in the same units.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_synth.features import LINES
from lightning_synth.signal import Array, acf, as_windows, psd

NAN = float("nan")


def correlational_score(real: Any, synthetic: Any) -> dict[str, float]:
    """Differences of the correlations between channels (Liao et al. 2020; as in Diffusion-TS).

    Args:
        real: (n, channels, length).
        synthetic: (m, channels, length).

    Returns:
        `correlational_score`: sum over pairs of channels of the absolute difference, over 10, which grows with the
        square of the number of channels; `correlation_difference`: the mean over pairs. Empty for one channel.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 1, 50))
        >>> same, opposite = np.concatenate([x, x], 1), np.concatenate([x, -x], 1)
        >>> {name: round(value, 6) for name, value in correlational_score(same, opposite).items()}
        {'correlational_score': 0.2, 'correlation_difference': 2.0}
    """
    first, second = _correlations(as_windows(real)), _correlations(as_windows(synthetic))
    if len(first) < 2:
        return {}
    gap = np.abs(first - second)[np.triu_indices(len(first), 1)]
    return {"correlational_score": float(gap.sum() / 10), "correlation_difference": float(gap.mean())}


def _correlations(x: Array) -> Array:
    """Correlation of the channels over all windows and steps; 0 for a constant one."""
    values = x.transpose(1, 0, 2).reshape(x.shape[1], -1)
    centred = values - values.mean(1, keepdims=True)
    scale = np.sqrt(np.square(centred).mean(1))
    unit = np.divide(centred, scale[:, None], out=np.zeros_like(centred), where=scale[:, None] > 1e-12)
    return np.asarray(unit @ unit.T / values.shape[1])


def marginal_difference(real: Any, synthetic: Any, bins: int | None = None) -> float:
    """Mean absolute difference of histograms, one for each step and channel (MDD of TSGBench).

    Unlike there, values outside the range of the real ones are counted, in the outermost bins.

    Args:
        real: (n, channels, length).
        synthetic: (m, channels, length).
        bins: Of equal width over the real range; None: the square root of the smaller sample, at most 50.

    Returns:
        Mean over steps, channels and bins of |p - q|, between 0 and 2 / bins.

    Example:
        >>> marginal_difference(np.zeros((10, 1, 3)), np.ones((10, 1, 3)), bins=2)
        1.0
    """
    r, s = as_windows(real), as_windows(synthetic)
    count = bins or int(np.clip(np.sqrt(min(len(r), len(s))), 5, 50))
    low, high = r.min(0), r.max(0)
    # A constant real value is a bin of its own.
    width = np.where(high > low, high - low, 1e-6 * (1 + np.abs(low))) / count
    shares = [_histograms(x, low, width, count) for x in (r, s)]
    return float(np.abs(shares[0] - shares[1]).mean())


def _histograms(x: Array, low: Array, width: Array, bins: int) -> Array:
    place = np.clip(np.floor((x - low) / width), 0, bins - 1).astype(np.int64).reshape(len(x), -1)
    cells = place.shape[1]
    flat = (place + bins * np.arange(cells)).ravel()
    return np.bincount(flat, minlength=bins * cells).reshape(cells, bins) / max(len(x), 1)


def autocorrelation_difference(real: Any, synthetic: Any, max_lag: int = 64) -> float:
    """Root mean square difference of the autocorrelations of the channels, mean over channels.

    Args:
        real: (n, channels, length).
        synthetic: (m, channels, length).
        max_lag: Lags 1 to this, at most length - 1.

    Returns:
        Between 0 and 2. (ACD of TSGBench is this times the root of the number of lags.)

    Example:
        >>> autocorrelation_difference(np.tile([1.0, -1.0], (4, 8)), np.ones((4, 16)) * [[1], [-1], [1], [-1]], 1)
        2.0
    """
    lags = min(max_lag, as_windows(real).shape[-1] - 1)
    gap = acf(real, lags)[:, 1:] - acf(synthetic, lags)[:, 1:]
    return float(np.sqrt(np.square(gap).mean(1)).mean()) if lags else 0.0


def moment_differences(real: Any, synthetic: Any) -> dict[str, float]:
    """Absolute differences of skewness and kurtosis, mean over channels (SD and KD of TSGBench).

    Args:
        real: (n, channels, length).
        synthetic: (m, channels, length).

    Returns:
        `skewness_difference` and `kurtosis_difference`.

    Example:
        >>> gaps = moment_differences(np.array([[[-1.0, 1.0]]]), np.array([[[0.0, 0.0, 0.0, 4.0]]]))
        >>> round(gaps["kurtosis_difference"], 6)
        1.333333
    """
    first, second = _moments(as_windows(real)), _moments(as_windows(synthetic))
    skewness, kurtosis = np.abs(first - second).mean(1)
    return {"skewness_difference": float(skewness), "kurtosis_difference": float(kurtosis)}


def _moments(x: Array) -> Array:
    """Skewness and kurtosis of each channel, (2, channels)."""
    centred = x - x.mean((0, 2), keepdims=True)
    scale = np.sqrt(np.square(centred).mean((0, 2), keepdims=True))
    unit = np.divide(centred, scale, out=np.zeros_like(centred), where=scale > 1e-12)
    return np.stack([(unit**3).mean((0, 2)), (unit**4).mean((0, 2))])


def psd_distance(real: Any, synthetic: Any, fs: float = 1.0) -> dict[str, float]:
    """Differences of the mean power spectra, mean over channels.

    Args:
        real: (n, channels, length).
        synthetic: (m, channels, length).
        fs: Sampling rate, Hz.

    Returns:
        `psd_distance`: total variation of the spectra normed to 1, between 0 (same shape) and 1 (no common frequency);
        `psd_db`: root mean square of the difference of levels in dB, over the lines that hold 99.9 % of the real power.

    Example:
        >>> wave = np.sin(2 * np.pi * 4 * np.arange(64) / 64)
        >>> {name: round(value, 6) for name, value in psd_distance(wave, 10 * wave).items()}
        {'psd_distance': 0.0, 'psd_db': 20.0}
    """
    length = as_windows(real).shape[-1]
    segment = length if length <= 512 else 256
    spectra = [psd(x, fs, segment)[1].mean(0)[:, 1:] for x in (real, synthetic)]
    shares = [s / np.maximum(s.sum(1, keepdims=True), 1e-300) for s in spectra]
    variation = 0.5 * np.abs(shares[0] - shares[1]).sum(1)
    order = np.argsort(-shares[0], 1)
    ahead = np.cumsum(np.take_along_axis(shares[0], order, 1), 1) - np.take_along_axis(shares[0], order, 1)
    used = np.zeros(shares[0].shape, bool)
    np.put_along_axis(used, order, ahead < 0.999, 1)
    floor = 1e-12 * np.maximum(spectra[0].max(1, keepdims=True), 1e-300)
    level = [10 * np.log10(s + floor) for s in spectra]
    squared = np.square(level[0] - level[1])
    return {
        "psd_distance": float(variation.mean()),
        "psd_db": float(np.sqrt((squared * used).sum(1) / used.sum(1)).mean()),
    }


def envelope_line_differences(
    real: Any, synthetic: Any, real_labels: Any = None, synthetic_labels: Any = None
) -> dict[str, float]:
    """Differences of the lines of bearing defects (`lightning_synth.features.defect_lines`), class by class.

    Args:
        real: (n, 3), of one channel.
        synthetic: (m, 3).
        real_labels: (n,) classes, or None for one class.
        synthetic_labels: (m,) alike.

    Returns:
        `ses_bpfo`, `ses_bpfi`, `ses_2bsf`: absolute difference of the class means, averaged over the classes that both
        samples have; `ses_difference`: their mean. NaN without a common class.

    Example:
        >>> envelope_line_differences(np.zeros((2, 3)), np.array([[1.0, 2.0, 3.0]]))["ses_difference"]
        2.0
    """
    a = np.zeros(len(real)) if real_labels is None else np.asarray(real_labels)
    b = np.zeros(len(synthetic)) if synthetic_labels is None else np.asarray(synthetic_labels)
    common = np.intersect1d(a, b)
    names = [f"ses_{line.lower()}" for line in LINES]
    if not len(common):
        return dict.fromkeys([*names, "ses_difference"], NAN)
    gaps = [np.abs(np.asarray(real)[a == c].mean(0) - np.asarray(synthetic)[b == c].mean(0)) for c in common]
    mean = np.mean(gaps, axis=0)
    return {
        **{name: float(value) for name, value in zip(names, mean, strict=True)},
        "ses_difference": float(mean.mean()),
    }
