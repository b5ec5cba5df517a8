"""Smooth random changes of a window: its amplitude, its speed, the speed of a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.resampling import Augmenter, lengths_in, read_at
from lightning_synth.requests import KeyedRNG


def spline_basis(time: Tensor, knots: int) -> Tensor:
    """Return the natural cubic splines that are 1 at one of equally spaced knots and 0 at the others.

    Args:
        time: float (..., length) in [0, 1]; the first knot is at 0, the last at 1.
        knots: At least 1; one knot gives a constant, two a straight line.

    Returns:
        float (..., knots, length); ``values @ spline_basis(time, knots)`` is the curve through ``values`` (..., knots).

    Example:
        >>> torch.tensor([[1.0, 3.0]]) @ spline_basis(torch.tensor([0.0, 0.5, 1.0]), 2)
        tensor([[1., 2., 3.]])
    """
    if knots == 1:
        return torch.ones_like(time)[..., None, :]
    unit = torch.eye(knots, dtype=torch.float64)
    # Second derivatives at the knots, zero at both ends: M[i-1] + 4 M[i] + M[i+1] = 6 (y[i-1] - 2 y[i] + y[i+1]).
    system, right = unit.clone(), torch.zeros_like(unit)
    for i in range(1, knots - 1):
        system[i, i - 1 : i + 2] = torch.tensor([1.0, 4.0, 1.0])
        right[i, i - 1 : i + 2] = torch.tensor([6.0, -12.0, 6.0])
    curvature = torch.linalg.solve(system, right).to(time)
    place = time * (knots - 1)
    knot = place.floor().long().clamp(max=knots - 2)
    after = (place - knot)[..., None]
    before, unit = 1 - after, unit.to(time)
    basis = before * unit[knot] + after * unit[knot + 1]
    basis = basis + (before**3 - before) / 6 * curvature[knot] + (after**3 - after) / 6 * curvature[knot + 1]
    columns: Tensor = basis.transpose(-1, -2)
    return columns


def relative_time(batch: dict[str, Tensor]) -> Tensor:
    """Return where each step lies in its window, from 0 to 1.

    Args:
        batch: With ``x`` (rows, channels, length).

    Returns:
        float (length,), or (rows, length) for ragged windows, whose padding is at 1.
    """
    steps = torch.arange(batch["x"].shape[-1], dtype=torch.float32, device=batch["x"].device)
    if "mask" not in batch:
        return steps / max(len(steps) - 1, 1)
    return (steps / (lengths_in(batch)[:, None] - 1).clamp(min=1)).clamp(max=1)


class _Warp(Augmenter):
    """What the warps share: a strength, and multiplication about the training mean."""

    def __init__(self, *, sigma: float, **kwargs: Any) -> None:
        if sigma < 0:
            raise ConfigError(f"sigma must not be negative, got {sigma}")
        super().__init__(sigma=sigma, **kwargs)

    def _grown(self, batch: dict[str, Tensor], growth: Tensor) -> dict[str, Tensor]:
        """Add to each channel ``growth`` (rows, channels, length or 1) times its deviation from the training mean."""
        mean = torch.tensor(self.fitted_schema["mean"], device=growth.device)[:, None]
        x = torch.addcmul(batch["x"], batch["x"] - mean, growth)
        return batch | {"x": x * batch["mask"][:, None] if "mask" in batch else x}


class Scaling(_Warp):
    """A window whose channels are multiplied by one random factor each, normal about 1.

    The factor acts on the deviation from the training mean of the channel, as it would on standardised data: a
    temperature in kelvin or in degrees is changed alike. Um et al. 2017, doi:10.1145/3136755.3136817.

    Args:
        sigma: Standard deviation of the factor.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> Scaling().fit_on(tiny_series(8), tiny_series_schema()).sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(self, *, sigma: float = 0.1, **kwargs: Any) -> None:
        super().__init__(sigma=sigma, **kwargs)

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Scale every channel of every window.

        Args:
            batch: With ``x`` (rows, channels, length).
            rng: One seed a row.

        Returns:
            Batch dict with the same fields.
        """
        return self._grown(batch, self.hparams.sigma * rng.fork("factor").normal((batch["x"].shape[1], 1)))


class MagnitudeWarp(_Warp):
    """A window whose amplitude rises and falls along a smooth random curve, another one for each channel.

    The curve is a natural cubic spline through knots that are normal about 1. It acts on the deviation from the
    training mean, as in `Scaling`. Um et al. 2017, doi:10.1145/3136755.3136817.

    Args:
        sigma: Standard deviation of the knots.
        num_knots: Knots, equally spaced from the first to the last step of a window.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> MagnitudeWarp().fit_on(tiny_series(8), tiny_series_schema()).sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(self, *, sigma: float = 0.2, num_knots: int = 4, **kwargs: Any) -> None:
        _check_knots(num_knots)
        super().__init__(sigma=sigma, num_knots=num_knots, **kwargs)

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Multiply every window by its curves.

        Args:
            batch: With ``x`` (rows, channels, length).
            rng: One seed a row.

        Returns:
            Batch dict with the same fields.
        """
        basis = spline_basis(relative_time(batch), self.hparams.num_knots)
        knots = rng.fork("knots").normal((batch["x"].shape[1], self.hparams.num_knots))
        return self._grown(batch, self.hparams.sigma * knots @ basis)


class TimeWarp(_Warp):
    """A window that is played at a smoothly changing speed; its first and last step stay where they are.

    The logarithm of the speed is a natural cubic spline through normal knots, so that time never runs backwards (Um et
    al. 2017, doi:10.1145/3136755.3136817, take the speed itself). All channels together.

    Args:
        sigma: Standard deviation of the logarithm of the speed at the knots.
        num_knots: Knots, equally spaced from the first to the last step of a window.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> TimeWarp().fit_on(tiny_series(8), tiny_series_schema()).sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(self, *, sigma: float = 0.2, num_knots: int = 4, **kwargs: Any) -> None:
        _check_knots(num_knots)
        super().__init__(sigma=sigma, num_knots=num_knots, **kwargs)

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Read every window along its warped time.

        Args:
            batch: With ``x`` (rows, channels, length).
            rng: One seed a row.

        Returns:
            Batch dict with the same fields.
        """
        basis = spline_basis(relative_time(batch), self.hparams.num_knots)
        knots = rng.fork("knots").normal((1, self.hparams.num_knots))
        speed = (self.hparams.sigma * knots @ basis).exp()[:, 0]
        passed = torch.cat([torch.zeros_like(speed[:, :1]), (speed[:, 1:] + speed[:, :-1]).cumsum(1)], dim=1)
        last = (lengths_in(batch) - 1).clamp(min=0)[:, None]
        return read_at(batch, passed / passed.gather(1, last).clamp(min=1e-12) * last)


class WindowWarp(Augmenter):
    """A window of which a random part is stretched or squeezed in time, brought back to its length.

    All channels together. Le Guennec et al. 2016, https://shs.hal.science/halshs-01357973 (a tenth of the window, twice
    or half as long); Iwana & Uchida 2021, doi:10.1371/journal.pone.0254841.

    Args:
        share: Size of the part relative to the window.
        factors: By which its duration is multiplied, one of them drawn for each row.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> WindowWarp().fit_on(tiny_series(8), tiny_series_schema()).sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(self, *, share: float = 0.1, factors: Sequence[float] = (0.5, 2.0), **kwargs: Any) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"share must lie between 0 and 1, got {share}")
        if not factors or min(factors) <= 0:
            raise ConfigError(f"factors must be positive and at least one, got {factors}")
        super().__init__(share=share, factors=list(factors), **kwargs)

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Warp a part of every window.

        Args:
            batch: With ``x`` (rows, channels, length).
            rng: One seed a row.

        Returns:
            Batch dict with the same fields.
        """
        factors = torch.tensor(self.hparams.factors, device=rng.device)
        factor = factors[rng.fork("factor").integers(len(factors), (1,))]
        last = (lengths_in(batch) - 1).clamp(min=0)[:, None]
        part = self.hparams.share * last
        start = rng.fork("start").uniform((1,)) * (last - part)
        # Time on the stretched axis, of which the part covers [start, start + factor * part].
        time = relative_time(batch) * (last + part * (factor - 1))
        inside = start + (time - start) / factor
        source = torch.where(time < start + factor * part, inside, time - part * (factor - 1))
        return read_at(batch, torch.where(time < start, time, source))


def _check_knots(num_knots: int) -> None:
    if num_knots < 1:
        raise ConfigError(f"num_knots must be at least 1, got {num_knots}")
