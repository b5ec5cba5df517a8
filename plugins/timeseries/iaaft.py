"""Surrogates with the spectrum and the values of a real window, and nothing else of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.plugins.resampling import Augmenter, equally_long
from lightning_synth.requests import KeyedRNG


def iaaft(x: Tensor, rng: KeyedRNG, num_iterations: int = 100) -> Tensor:
    """Iterative amplitude-adjusted Fourier transform surrogates, all windows and channels at once.

    Two projections alternate (Schreiber & Schmitz 1996, steps 1 and 2): onto the series with the Fourier amplitudes of
    ``x``, then onto those with the values of ``x`` (by rank). With several channels the phases of all channels are
    turned by one common angle per frequency (Schreiber & Schmitz 2000), so the cross-spectra survive as well.

    Args:
        x: float (rows, channels, length), no missing values.
        rng: One seed a row.
        num_iterations: How often the projections alternate; fixed, so a row does not depend on its neighbours.

    Returns:
        float (rows, channels, length); each channel is a permutation of the values of its source.

    Example:
        >>> x = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(0))
        >>> surrogate = iaaft(x, KeyedRNG(torch.tensor([1, 2])))
        >>> bool((surrogate.sort(-1).values == x.sort(-1).values).all())
        True
    """
    length = x.shape[-1]
    values = x.sort(dim=-1).values
    # Double precision: the ranks of nearly equal values must not hang on the rounding of the transform.
    spectrum = torch.fft.rfft(x.double())
    amplitude, phase = spectrum.abs(), spectrum.angle()
    turn = 2 * torch.pi * rng.uniform((1, amplitude.shape[-1])).double()
    current = torch.zeros_like(amplitude)
    surrogate = x
    for iteration in range(num_iterations + 1):
        if iteration:
            current = torch.fft.rfft(surrogate.double()).angle()
            # The common angle nearest to the present phases, given the phase differences of the source.
            turn = torch.polar(amplitude, current - phase).sum(1, keepdim=True).angle()
        target = phase + turn
        # The mean, and the Nyquist bin of an even length, are real: they keep their sign.
        target[..., 0] = phase[..., 0]
        if length % 2 == 0:
            target[..., -1] = phase[..., -1]
        ranks = torch.fft.irfft(torch.polar(amplitude, target), n=length).argsort(dim=-1, stable=True).argsort(dim=-1)
        surrogate = values.gather(-1, ranks)
    return surrogate


class IAAFT(Augmenter):
    """Phase-randomised copies: the null generator whose linear statistics are right and whose structure is gone.

    Each sample keeps, per channel, the sorted values of one training window of its class exactly and its power spectrum
    closely (long windows: 1 %); with several channels also the cross-spectra. A metric or a classifier that cannot
    tell it from real data looks at second-order statistics only (Schreiber & Schmitz 1996,
    doi:10.1103/PhysRevLett.77.635; multivariate: 2000, doi:10.1016/S0167-2789(00)00043-9).

    Args:
        num_iterations: How often the two projections alternate.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> model = IAAFT().fit_on(tiny_series(8, channels=2, length=24), tiny_series_schema(channels=2, length=24))
        >>> model.sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(self, *, num_iterations: int = 100, **kwargs: Any) -> None:
        super().__init__(num_iterations=num_iterations, **kwargs)

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Scramble the phases of every window.

        Args:
            batch: With ``x`` (rows, channels, length).
            rng: One seed a row.

        Returns:
            Batch dict with the same fields.
        """
        x, noise = batch["x"].clone(), rng.fork("phase")
        for rows, length in equally_long(batch):
            x[rows, :, :length] = iaaft(x[rows, :, :length], noise[rows], self.hparams.num_iterations)
        return batch | {"x": x}
