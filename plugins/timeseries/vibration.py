"""Physics that simulated machines share: impacts, resonances, and a shaft whose speed varies."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A decay counts as over after this many time constants: exp(-16) is below the resolution of float32.
_NEGLIGIBLE = 16.0
# Step of the grid on which the speed is integrated (seconds); it varies at 10 Hz or slower.
_SPEED_STEP = 2e-3


def impact_train(times: Tensor, amplitudes: Tensor, steps: int, rate: float) -> Tensor:
    """Put impacts on a grid; one between two grid points is shared by them, which keeps its time.

    Args:
        times: Seconds from the start of the grid (rows, impacts).
        amplitudes: (rows, impacts).
        steps: Grid points.
        rate: Grid points per second.

    Returns:
        (rows, steps).

    Example:
        >>> impact_train(torch.tensor([[0.25]]), torch.tensor([[2.0]]), 4, 10.0)
        tensor([[0., 0., 1., 1.]])
    """
    place = times * rate
    left = place.floor()
    share = amplitudes * (place - left)
    inside = (left >= 0) & (left < steps - 1)
    left = torch.where(inside, left, 0).long()
    grid = torch.zeros((len(times), steps), device=times.device)
    grid.scatter_add_(1, left, torch.where(inside, amplitudes - share, 0))
    return grid.scatter_add_(1, left + 1, torch.where(inside, share, 0))


def support(slowest: float, rate: float, steps: int) -> int:
    """Return after how many points exp(-slowest * t) is negligible, at most ``steps``.

    Args:
        slowest: Decay rate, 1/s.
        rate: Points per second.
        steps: Upper bound.

    Example:
        >>> support(100.0, 1000.0, 500)
        160
    """
    return min(steps, math.ceil(_NEGLIGIBLE / slowest * rate))


def impulse_response(frequency: Tensor, damping: Tensor, gain: Tensor, steps: int, rate: float) -> Tensor:
    """Response of a resonant structure: sum over its modes of g exp(-z w t) sin(w sqrt(1 - z^2) t), w = 2 pi f.

    Args:
        frequency: Natural frequencies, Hz (rows, modes).
        damping: Damping ratios z (rows, modes).
        gain: Weight g of each mode (rows, modes).
        steps: Points in time.
        rate: Points per second.

    Returns:
        (rows, steps).
    """
    t = torch.arange(steps, device=frequency.device) / rate
    omega = 2 * math.pi * frequency[..., None]
    decay, damped = damping[..., None] * omega, omega * (1 - damping[..., None] ** 2).sqrt()
    return (gain[..., None] * torch.exp(-decay * t) * torch.sin(damped * t)).sum(1)


def convolve(signal: Tensor, response: Tensor) -> Tensor:
    """Causal convolution of each row with its own response, cut to the length of the signal.

    Args:
        signal: (rows, steps).
        response: (rows, support), at most as long.

    Returns:
        (rows, steps).
    """
    # The least length with small factors that leaves room for the tail.
    least = signal.shape[-1] + response.shape[-1] - 1
    size = min(odd * 2 ** math.ceil(math.log2(least / odd)) for odd in (1, 3, 5, 9, 15))
    out: Tensor = torch.fft.irfft(torch.fft.rfft(signal, size) * torch.fft.rfft(response, size), size)
    return out[:, : signal.shape[-1]]


class Clock:
    """Time against the turning of a shaft whose speed varies: theta(t) = f * integral of the relative speed.

    Nominal time is the time at which a shaft of constant speed f would have turned as far, theta / f. Whatever comes by
    angle (impacts, teeth, load zones) is simulated in nominal time, and then put where it happens.

    Args:
        profile: Speed relative to the nominal one, at evenly spaced moments from the start to the end of the window,
            linear in between and held before; None: constant.
        deviation: Relative amplitude of a slow oscillation of the speed (rows,).
        frequency: Of that oscillation, Hz (rows,).
        phase: Of that oscillation, radians (rows,).
        before: Seconds simulated before the window.
        duration: Seconds simulated altogether.

    Example:
        >>> none = torch.zeros(1)
        >>> clock = Clock([1.0, 3.0], none, none, none, before=0.0, duration=1.0)
        >>> bool((clock.nominal(torch.tensor([0.5, 1.0])) - torch.tensor([[0.75, 2.0]])).abs().max() < 1e-4)
        True
    """

    def __init__(
        self,
        profile: Sequence[float] | None,
        deviation: Tensor,
        frequency: Tensor,
        phase: Tensor,
        before: float,
        duration: float,
    ) -> None:
        points = math.ceil(duration / _SPEED_STEP) + 2
        self.time = torch.linspace(0, duration, points, device=deviation.device)
        knots = torch.tensor([1.0] if profile is None else list(profile), device=deviation.device)
        place = ((self.time - before) / (duration - before)).clamp(0, 1) * (len(knots) - 1)
        left = place.floor().long().clamp(max=max(len(knots) - 2, 0))
        right = (left + 1).clamp(max=len(knots) - 1)
        planned = knots[left] + (knots[right] - knots[left]) * (place - left)
        swing = deviation[:, None] * torch.sin(2 * math.pi * frequency[:, None] * self.time + phase[:, None])
        #: Relative speed (rows, points) at ``time`` (points,).
        self.speed = planned * (1 + swing)
        means = (self.speed[:, 1:] + self.speed[:, :-1]) / 2 * (duration / (points - 1))
        self._turned = torch.cat([torch.zeros_like(means[:, :1]), means.cumsum(1)], dim=1)

    def __getitem__(self, rows: Tensor) -> Clock:
        """Select rows."""
        part = copy.copy(self)
        part.speed, part._turned = self.speed[rows], self._turned[rows]
        return part

    def nominal(self, time: Tensor) -> Tensor:
        """Return nominal times (rows, points) of moments (points,), seconds."""
        step = float(self.time[1])
        left = (time / step).floor().long().clamp(0, len(self.time) - 2)
        share = time / step - left
        return self._turned[:, left] * (1 - share) + self._turned[:, left + 1] * share

    def real(self, nominal: Tensor) -> Tensor:
        """Return the moments (rows, impacts) at which the shaft has turned as far, seconds."""
        right = torch.searchsorted(self._turned, nominal.contiguous()).clamp(1, len(self.time) - 1)
        low, high = self._turned.gather(1, right - 1), self._turned.gather(1, right)
        return float(self.time[1]) * (right - 1 + (nominal - low) / (high - low))
