"""An invertible view of windows in which everything has unit variance: level, scale, and every frequency of the shape.

A generative model that starts from white noise spends its capacity on what has large variance. In most series that is
the level, while a judge (or a diagnosis) looks at the texture, whose variance is smaller by orders of magnitude. Here a
window is split into its level and log-scale, per channel, and its shape; the shape is rotated to principal channels and
divided, frequency by frequency, by its standard deviation over the training windows. White noise in this view is a
Gaussian process with the spectra and the channel correlations of the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.nn import Standardizer

# Windows that vary less than this, in units of the channel's standard deviation, count as constant.
_FLAT = 1e-3
# Directions that vary less than this, relative to the largest, are not amplified further.
_FLOOR = 1e-4
# A class of this many windows is described half by itself and half by all windows.
_LEAN = 5
_MOST_LEVELS = 2048


def dct(x: Tensor) -> Tensor:
    """Orthonormal discrete cosine transform (type 2) of the last dimension, by a Fourier transform of twice the length.

    Example:
        >>> bool(torch.allclose(idct(dct(torch.arange(5.0))), torch.arange(5.0), atol=1e-5))
        True
    """
    length = x.shape[-1]
    spectrum = torch.fft.rfft(torch.cat([x, x.flip(-1)], dim=-1))[..., :length]
    out: Tensor = (spectrum * _turn(length, -1, x)).real * _norm(length, x) / 2
    return out


def idct(c: Tensor) -> Tensor:
    """Inverse of `dct`."""
    length = c.shape[-1]
    spectrum = (2 * c / _norm(length, c)) * _turn(length, 1, c)
    out: Tensor = torch.fft.irfft(F.pad(spectrum, (0, 1)), n=2 * length)[..., :length]
    return out


def _turn(length: int, sign: int, like: Tensor) -> Tensor:
    angle = sign * math.pi * torch.arange(length, device=like.device) / (2 * length)
    return torch.polar(torch.ones_like(angle), angle)


def _norm(length: int, like: Tensor) -> Tensor:
    norm = torch.full((length,), math.sqrt(2 / length), device=like.device)
    norm[0] = math.sqrt(1 / length)
    return norm


class Levels(nn.Module):
    """Values that a channel takes, where it takes few: counts, switches, coarsely quantised sensors.

    A channel counts as quantised if it has at most 2048 distinct values and at least a fifth of the neighbours in the
    sorted windows are equal; real measurements without quantisation have no ties.

    Args:
        channels: Number of channels.
    """

    values: Tensor
    count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.full((channels, _MOST_LEVELS), torch.finfo(torch.float32).max))
        self.register_buffer("count", torch.zeros(channels, dtype=torch.int64))

    @torch.no_grad()
    def fit(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Find the quantised channels of training windows.

        Args:
            x: (rows, channels, length), raw units.
            mask: bool (rows, length), True where observed: what stands elsewhere has no ties. None: everywhere.
        """
        seen = torch.ones_like(x[:, 0], dtype=torch.bool) if mask is None else mask
        # Steps that were not observed come last, and differ by infinity minus infinity, which is no tie.
        ties = (torch.where(seen[:, None], x, torch.inf).sort(dim=-1).values.diff(dim=-1) == 0).double().sum((0, 2))
        neighbours = (seen.sum(1) - 1).clamp(min=0).sum().clamp(min=1)
        for channel in (ties >= 0.2 * neighbours).nonzero()[:, 0].tolist():
            found = x[:, channel][seen].unique()
            if len(found) <= _MOST_LEVELS:
                self.values[channel, : len(found)] = found.to(self.values)
                self.count[channel] = len(found)

    def forward(self, x: Tensor) -> Tensor:
        """Move the quantised channels of (rows, channels, length) to their nearest level."""
        if not bool(self.count.any()):
            return x
        flat = x.transpose(0, 1).flatten(1).contiguous()
        above = torch.searchsorted(self.values, flat).clamp(max=_MOST_LEVELS - 1)
        above = torch.minimum(above, (self.count - 1).clamp(min=0)[:, None])
        low, high = self.values.gather(1, (above - 1).clamp(min=0)), self.values.gather(1, above)
        nearest = torch.where((flat - low).abs() < (high - flat).abs(), low, high)
        flat = torch.where((self.count > 0)[:, None], nearest, flat)
        out: Tensor = flat.unflatten(1, (len(x), -1)).transpose(0, 1).contiguous()
        return out


class NormalScores(nn.Module):
    """Map every column to a standard normal through its quantiles, and back (piecewise linear).

    A value that many rows share (the log-scale of a channel that often stands still) goes to the middle of its scores,
    and all of them lead back to it.

    Args:
        columns: Number of columns.
        knots: Quantiles kept of each.

    Example:
        >>> scores = NormalScores(1)
        >>> x = torch.rand(1000, 1) ** 4
        >>> scores.fit(x)
        >>> bool((scores.inverse(scores(x)) - x).abs().max() < 1e-2), round(float(scores(x).std()), 1)
        (True, 1.0)
    """

    quantiles: Tensor
    scores: Tensor

    def __init__(self, columns: int, knots: int = 256) -> None:
        super().__init__()
        p = (torch.arange(knots, dtype=torch.float64) + 0.5) / knots
        self.register_buffer("scores", torch.special.ndtri(p).float(), persistent=False)
        self.register_buffer("quantiles", self.scores.expand(columns, knots).clone())

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Learn the quantiles of (rows, columns)."""
        p = (torch.arange(len(self.scores), dtype=torch.float64) + 0.5) / len(self.scores)
        self.quantiles.copy_(torch.quantile(x.double(), p, dim=0, interpolation="linear").T)

    def forward(self, x: Tensor) -> Tensor:
        """Return normal scores, (rows, columns)."""
        v, q = x.T.contiguous().to(self.quantiles), self.quantiles
        low, high = torch.searchsorted(q, v), torch.searchsorted(q, v, right=True)
        last = len(self.scores) - 1
        shared = 0.5 * (self.scores[low.clamp(max=last)] + self.scores[(high - 1).clamp(min=0)])
        return torch.where(high > low, shared, _interpolate(q, self.scores.expand_as(q), v, low)).T

    def inverse(self, z: Tensor) -> Tensor:
        """Return values, (rows, columns)."""
        v = z.T.contiguous()
        return _interpolate(self.scores.expand_as(self.quantiles).contiguous(), self.quantiles, v).T


def _interpolate(x: Tensor, y: Tensor, at: Tensor, place: Tensor | None = None) -> Tensor:
    """Piecewise linear through (x, y), each (columns, knots), at (columns, rows); end pieces are continued."""
    place = torch.searchsorted(x, at) if place is None else place
    right = place.clamp(1, x.shape[1] - 1)
    x0, x1, y0, y1 = x.gather(1, right - 1), x.gather(1, right), y.gather(1, right - 1), y.gather(1, right)
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0).clamp(min=1e-9)


class WindowWhitener(nn.Module):
    """Windows (rows, channels, length) to tensors (rows, channels, length + 2) of about unit variance, and back.

    The last two columns are level and log-scale, as normal scores decorrelated over all channels; the others are the
    shape as a signal in time whose spectrum is white. Of labelled windows every class has its own mean and spectrum
    (leaning on those of all windows where it has few), so that white noise already differs between classes.

    Args:
        schema: Of the windows.

    Example:
        >>> x = torch.randn(64, 2, 24).cumsum(-1)
        >>> view = WindowWhitener({"mean": [0.0, 0.0], "std": [3.0, 3.0], "length": 24})
        >>> view.fit(x)
        >>> bool(torch.allclose(view.inverse(view(x)), x, atol=1e-2)), 0.9 < float(view(x)[..., :24].std()) < 1.1
        (True, True)
    """

    rotation: Tensor
    template: Tensor
    spectrum: Tensor
    shift: Tensor
    stretch: Tensor
    whiten: Tensor
    colour: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self.scaler = Standardizer(schema)
        channels, length = len(schema["mean"]), int(schema["length"])
        self.channels, self.length, self.classes = channels, length, int(schema.get("num_classes") or 0)
        self.levels = Levels(channels)
        self.scores = NormalScores(2 * channels)
        kinds = self.classes + 1  # the last one stands for windows without a label
        self.register_buffer("rotation", torch.eye(channels))
        self.register_buffer("template", torch.zeros(kinds, channels, length))
        self.register_buffer("spectrum", torch.ones(kinds, channels, length))
        self.register_buffer("shift", torch.zeros(kinds, 2 * channels))
        self.register_buffer("stretch", torch.ones(kinds, 2 * channels))
        self.register_buffer("whiten", torch.eye(2 * channels))
        self.register_buffer("colour", torch.eye(2 * channels))
        self.register_buffer("low", torch.full((2 * channels,), -10.0))
        self.register_buffer("high", torch.full((2 * channels,), 10.0))

    # Fitting -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, x: Tensor, mask: Tensor | None = None, label: Tensor | None = None) -> None:
        """Learn scales and rotations.

        Args:
            x: Training windows (rows, channels, length), raw units.
            mask: bool (rows, length), True where observed; None: everywhere.
            label: int64 (rows,), or None.
        """
        self.levels.fit(x, mask)
        stats, shape = self.split(x, mask)
        self.rotation.copy_(torch.linalg.eigh(torch.einsum("ncl,ndl->cd", shape, shape).double())[1].flip(1))
        self._fit_shapes(dct(self.rotation.T @ shape).double(), label)
        self._fit_stats(stats, label)

    def _groups(self, label: Tensor | None) -> list[tuple[int, Tensor]]:
        """Classes that have windows, with these."""
        if label is None:
            return []
        return [(k, (label == k).nonzero()[:, 0]) for k in range(self.classes) if bool((label == k).any())]

    def _fit_shapes(self, coefficients: Tensor, label: Tensor | None) -> None:
        mean, power = coefficients.mean(0), _power(coefficients)
        for buffer, value in ((self.template, mean), (self.spectrum, _floored(power))):
            buffer.copy_(value.expand_as(buffer))
        for k, rows in self._groups(label):
            own = coefficients[rows]
            share = len(rows) / (len(rows) + _LEAN)
            self.template[k] = share * own.mean(0) + (1 - share) * mean
            self.spectrum[k] = _floored(share * _power(own) + (1 - share) * power)

    def _fit_stats(self, stats: Tensor, label: Tensor | None) -> None:
        self.scores.fit(stats)
        score, (n, size) = self.scores(stats).double(), stats.shape
        for k, rows in self._groups(label):
            share = len(rows) / (len(rows) + _LEAN)
            self.shift[k] = share * score[rows].mean(0)
            variance = share * score[rows].var(0, correction=0) + (1 - share)
            self.stretch[k] = variance.clamp(min=_FLOOR**2).sqrt()
        kind = self._kind(n, label)
        score = (score - self.shift[kind]) / self.stretch[kind]
        covariance = score.T @ score / n
        # A covariance of as many numbers as windows is mostly noise: lean on its diagonal.
        share = min(1.0, 0.5 * max(0.0, 1 - n / (10 * size)) + 1e-6)
        covariance = (1 - share) * covariance + share * covariance.diagonal().diag()
        variance, axes = torch.linalg.eigh(covariance)
        scale = variance.clamp(min=max(_FLOOR**2 * float(variance.amax()), 1e-12)).sqrt()
        self.whiten.copy_((axes / scale).T)
        self.colour.copy_(axes * scale)
        reach = 0.1 * (stats.amax(0) - stats.amin(0))
        self.low.copy_(stats.amin(0) - reach)
        self.high.copy_(stats.amax(0) + reach)

    # There and back ------------------------------------------------------------------------------------------------

    def _kind(self, rows: int, label: Tensor | None) -> Tensor:
        if label is None or not self.classes:
            return torch.full((rows,), self.classes, device=self.shift.device)
        return label.long().to(self.shift.device)

    def split(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return level and log-scale (rows, 2 channels), and the shape (rows, channels, length)."""
        z = self.scaler(x.float())
        seen = torch.ones_like(z[:, :1]) if mask is None else mask[:, None].to(z)
        count = seen.sum(-1).clamp(min=1)
        level = (z * seen).sum(-1) / count
        centred = (z - level[..., None]) * seen
        scale = (centred.square().sum(-1) / count + _FLAT**2).sqrt()
        return torch.cat([level, scale.log()], dim=1), centred / scale[..., None]

    def forward(self, x: Tensor, mask: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Whiten.

        Args:
            x: (rows, channels, length), raw units.
            mask: bool (rows, length), True where observed.
            label: int64 (rows,), or None.

        Returns:
            (rows, channels, length + 2).
        """
        stats, shape = self.split(x, mask)
        kind = self._kind(len(x), label)
        white = idct((dct(self.rotation.T @ shape) - self.template[kind]) / self.spectrum[kind])
        tail = ((self.scores(stats) - self.shift[kind]) / self.stretch[kind]) @ self.whiten.T
        return torch.cat([white, tail.unflatten(1, (2, -1)).transpose(1, 2)], dim=2)

    def inverse(self, z: Tensor, mask: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Return to raw units.

        Args:
            z: (rows, channels, length + 2).
            mask: bool (rows, length), True where observed.
            label: int64 (rows,), or None.
        """
        kind = self._kind(len(z), label)
        tail = z[..., self.length :].transpose(1, 2).flatten(1) @ self.colour.T
        stats = self.scores.inverse(tail * self.stretch[kind] + self.shift[kind])
        stats = torch.minimum(torch.maximum(stats, self.low), self.high)
        level, scale = stats.chunk(2, dim=1)
        shape = self.rotation @ idct(dct(z[..., : self.length]) * self.spectrum[kind] + self.template[kind])
        # Level and scale mean what they say: the shape is centred, and of unit variance unless the window is flat.
        seen = torch.ones_like(shape[:, :1]) if mask is None else mask[:, None].to(shape)
        count = seen.sum(-1, keepdim=True).clamp(min=1)
        shape = (shape - (shape * seen).sum(-1, keepdim=True) / count) * seen
        power = shape.square().sum(-1, keepdim=True) / count
        shape = shape * power.clamp(min=0.25).rsqrt()
        x: Tensor = self.scaler.inverse(level[..., None] + scale.exp()[..., None] * shape)
        out: Tensor = self.levels(x)
        return out


def _power(coefficients: Tensor) -> Tensor:
    """Variance of each frequency over rows; of few windows, a line is known less well than its neighbourhood."""
    rows, _, length = coefficients.shape
    power = (coefficients - coefficients.mean(0)).square().sum(0) / max(1, rows - 1)
    nearby = F.avg_pool1d(F.pad(power[None], (2, 2), mode="replicate"), 5, 1)[0] if length > 4 else power
    return (rows * power + 8 * nearby) / (rows + 8)


def _floored(power: Tensor) -> Tensor:
    """Root of the power, never below a small share of the largest; 1 for the mean, which is zero in every shape."""
    largest = float(power[:, 1:].amax()) if power.shape[1] > 1 else 0.0
    root = power.clamp(min=_FLOOR**2 * largest).sqrt() if largest > 0 else torch.ones_like(power)
    root[:, 0] = 1.0
    return root
