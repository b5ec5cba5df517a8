"""A fault window plus the fluctuation of a normal window."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.resampling import TrainingRows, WindowResampler
from lightning_synth.requests import KeyedRNG, SampleRequests


def centred(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Take each channel's mean over time away.

    Args:
        x: (rows, channels, length).
        mask: bool (rows, length), True = observed; None: all.

    Returns:
        (rows, channels, length); zero where not observed.
    """
    if mask is None:
        return x - x.mean(dim=-1, keepdim=True)
    weight = mask[:, None].to(x.dtype)
    return (x - (x * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1)) * weight


class NormalTransplant(WindowResampler):
    """The trivial form of p_fault = p_normal + difference: x = fault window + scale * (normal window - its mean).

    Every sample keeps the mean of a real fault window and borrows fluctuation, exactly as correlated across channels,
    from the many windows of normal operation. It is the classical arm that a few-shot generator such as FaultDiffusion
    (arXiv 2511.15174) has to beat. Without a normal class in the schema, windows of any class are transplanted.

    Args:
        scale: Interval from which the scale of the normal fluctuation is drawn.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> schema = tiny_series_schema(channels=2, length=24, num_classes=2) | {"normal_class": 0}
        >>> model = NormalTransplant().fit_on(tiny_series(8, channels=2, length=24, num_classes=2), schema)
        >>> model.sample(3, condition={"label": 1}).data["y"]
        tensor([1, 1, 1])
    """

    def __init__(self, *, scale: tuple[float, float] = (0.5, 1.0), **kwargs: Any) -> None:
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

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Add the scaled, centred fluctuation of a normal window to a window of the class.

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
        mask = batch["mask"] & donor["mask"] if "mask" in batch else None
        return batch | {"x": batch["x"] + scale * centred(donor["x"], mask)}
