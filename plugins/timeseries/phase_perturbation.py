"""Windows with exactly the spectra of real ones and perturbed phases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.resampling import Augmenter, equally_long
from lightning_synth.requests import KeyedRNG


def turn_phases(x: Tensor, angle: Tensor) -> Tensor:
    """Turn the phase of every Fourier component, the same in all channels.

    Args:
        x: float (rows, channels, length).
        angle: float (rows, length // 2 + 1), radians; the mean and the Nyquist component, which are real, are left.

    Returns:
        float (rows, channels, length) with the amplitude spectra and the cross-spectra of ``x``.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0, -1.0, 0.0]]])
        >>> turn_phases(x, torch.full((1, 3), torch.pi / 2)).round().abs()
        tensor([[[0., 1., 0., 1.]]])
    """
    length = x.shape[-1]
    angle = angle.clone()
    angle[:, 0] = 0
    if length % 2 == 0:
        angle[:, -1] = 0
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    turned: Tensor = torch.fft.irfft(torch.fft.rfft(x) * turn, n=length)
    return turned


class PhasePerturbation(Augmenter):
    """A real window whose Fourier phases are moved at random: its power spectrum stays, exactly.

    One angle per frequency, uniform in +-strength * pi and common to all channels, so that the cross-spectra stay as
    well (Prichard & Theiler 1994, doi:10.1103/PhysRevLett.73.951). ``strength=1`` gives the phase-randomised surrogates
    of Theiler et al. 1992, doi:10.1016/0167-2789(92)90102-S: a linear Gaussian process with the spectrum of the window.
    The values themselves change (`IAAFT` keeps them). A window whose ends differ is a saw-tooth to the Fourier
    transform: its step may move into the window.

    Args:
        strength: Largest change of a phase as a share of pi, in [0, 1].

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> PhasePerturbation().fit_on(tiny_series(8), tiny_series_schema()).sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(self, *, strength: float = 0.25, **kwargs: Any) -> None:
        if not 0 <= strength <= 1:
            raise ConfigError(f"strength must lie in [0, 1], got {strength}")
        super().__init__(strength=strength, **kwargs)

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Perturb the phases of every window.

        Args:
            batch: With ``x`` (rows, channels, length).
            rng: One seed a row.

        Returns:
            Batch dict with the same fields.
        """
        x = batch["x"].clone()
        angle = self.hparams.strength * torch.pi * (2 * rng.fork("phase").uniform((x.shape[-1] // 2 + 1,)) - 1)
        for rows, length in equally_long(batch):
            x[rows, :, :length] = turn_phases(x[rows, :, :length], angle[rows, : length // 2 + 1])
        # Steps that are missing within a window were filled for the transform.
        return batch | {"x": x * batch["mask"][:, None] if "mask" in batch else x}
