"""A fault window plus the fluctuation of a normal window."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.resampling import TrainingRows, WindowResampler
from lightning_synth.requests import KeyedRNG, SampleRequests


def channel_means(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of each channel over windows and time.

    Args:
        x: (windows, channels, length).
        mask: bool (windows, length), True = observed; None: all.

    Returns:
        (channels, 1).

    Example:
        >>> import torch
        >>> channel_means(torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]]))
        tensor([[4.]])
    """
    if mask is None:
        return x.mean(dim=(0, 2))[:, None]
    weight = mask[:, None].to(x.dtype)
    return ((x * weight).sum((0, 2)) / weight.sum((0, 2)).clamp(min=1))[:, None]


class NormalTransplant(WindowResampler):
    """The trivial form of p_fault = p_normal + difference: x = fault window + scale * (normal window - normal mean).

    A fault window is moved as normal operation moves: on average it stays where it is, and it borrows the slow drift
    and the fluctuation, exactly as correlated across channels, of the many windows of normal operation. It is the
    classical arm that a few-shot generator such as FaultDiffusion (arXiv 2511.15174) has to beat. Without a normal
    class in the schema, windows of any class are transplanted.

    Args:
        scale: Interval from which the scale of the normal deviation is drawn.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> schema = tiny_series_schema(channels=2, length=24, num_classes=2) | {"normal_class": 0}
        >>> model = NormalTransplant().fit_on(tiny_series(8, channels=2, length=24, num_classes=2), schema)
        >>> model.sample(3, condition={"label": 1}).data["y"]
        tensor([1, 1, 1])
    """

    def __init__(self, *, scale: Sequence[float] = (0.5, 1.0), **kwargs: Any) -> None:
        if len(scale) != 2 or not 0 <= scale[0] <= scale[1]:
            raise ConfigError(f"scale must be an interval (low, high) of positive numbers, got {scale}")
        super().__init__(scale=list(scale), **kwargs)

    @property
    def donors(self) -> TrainingRows:
        """The windows of normal operation."""
        return self.derived("donors", self._find_donors)

    def _find_donors(self) -> TrainingRows:
        normal = self.rows.of_class(self.fitted_schema.get("normal_class"))
        if normal is None:
            warnings.warn("the training data have no normal class: windows of any class are transplanted", stacklevel=3)
            return self.rows.without_labels()
        return normal

    def _normal_mean(self) -> Tensor:
        index = self.donors.index
        return channel_means(self.windows["x"][index], self.windows["mask"][index] if "mask" in self.windows else None)

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Add the scaled deviation of a normal window from the normal mean to a window of the class.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict with ``x`` (rows, channels, length).
        """
        batch = self.take(self.rows.pick(requests, rng.fork("source")))
        donor = self.take(self.donors.pick(requests, rng.fork("donor")))
        low, high = self.hparams.scale
        scale = low + (high - low) * rng.fork("scale").uniform((1, 1))
        difference = donor["x"] - self.derived("normal_mean", self._normal_mean).to(rng.device)
        if "mask" in batch:
            difference = difference * (batch["mask"] & donor["mask"])[:, None]
        return batch | {"x": batch["x"] + scale * difference}
