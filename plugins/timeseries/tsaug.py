"""The ten augmenters of tsaug as one class-preserving, length-preserving pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.resampling import Augmenter, lengths_in
from lightning_synth.requests import KeyedRNG

#: Arguments of each augmenter, in the order of application; ``share`` is a length relative to the window's.
DEFAULT_PIPELINE: dict[str, dict[str, Any]] = {
    "TimeWarp": {"n_speed_change": 3, "max_speed_ratio": 1.5},
    "Crop": {"share": 0.9},
    "Resize": {"share": 0.75},
    "Reverse": {},
    "Pool": {"size": 2},
    "Convolve": {"window": "hamming", "size": 3},
    "Quantize": {"n_levels": 40},
    "Dropout": {"p": 0.03, "fill": "ffill"},
    "Drift": {"max_drift": [0.0, 0.2], "n_drift_points": 3},
    # Always on, so that no sample is an exact copy.
    "AddNoise": {"scale": [0.005, 0.03], "prob": 1.0},
}
_MIN_LENGTH = 4


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the deprecation warnings of a package that is frozen since 2020."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class TSAug(Augmenter):
    """Classical augmentation: a training window of the class through a random choice of tsaug's augmenters.

    Each augmenter acts with its own probability. Labels and conditions stay, and so does the length: Crop and Resize
    are resampled back. Reverse flips slopes: where the direction of time matters, leave it out
    (``pipeline={k: v for k, v in DEFAULT_PIPELINE.items() if k != "Reverse"}``). https://tsaug.readthedocs.io.

    Args:
        pipeline: Name of an augmenter to its arguments, in the order of application; None: `DEFAULT_PIPELINE`, all ten.
            ``share`` is the size of Crop and Resize relative to the window, ``prob`` replaces the common probability.
        prob: Probability with which an augmenter acts on a row.

    Shapes:
        x: (rows, channels, length), units of the data.

    Raises:
        ConfigError: If an augmenter is unknown or refuses its arguments.

    Example:
        >>> sorted(DEFAULT_PIPELINE)[:3]
        ['AddNoise', 'Convolve', 'Crop']
    """

    def __init__(
        self, *, pipeline: Mapping[str, Mapping[str, Any]] | None = None, prob: float = 0.2, **kwargs: Any
    ) -> None:
        if not 0 <= prob <= 1:
            raise ConfigError(f"prob must lie in [0, 1], got {prob}")
        unknown = [name for name in pipeline or () if name not in DEFAULT_PIPELINE]
        if unknown:
            raise ConfigError(f"tsaug has no augmenter {unknown[0]!r}; known: {', '.join(sorted(DEFAULT_PIPELINE))}")
        plain = None if pipeline is None else {name: dict(options) for name, options in pipeline.items()}
        super().__init__(pipeline=plain, prob=prob, **kwargs)

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Augment every window, with seeds of its row (on the CPU, one window at a time).

        Args:
            batch: With ``x`` (rows, channels, length).
            rng: One seed a row.

        Returns:
            Batch dict with the same fields.
        """
        steps = self.hparams.pipeline if self.hparams.pipeline is not None else DEFAULT_PIPELINE
        chance = torch.tensor([float(options.get("prob", self.hparams.prob)) for options in steps.values()])
        acts = (rng.fork("choice").uniform((len(steps),)).cpu() < chance).numpy()
        # tsaug takes a seed per call, so rows go one by one; numpy wants seeds below 2**32.
        seeds = rng.fork("augmenters").integers(1 << 31, (len(steps),)).cpu().numpy()
        x = batch["x"].double().cpu().numpy().copy()
        lengths = lengths_in(batch).tolist()
        chains = {size: _chain(steps, size) for size in sorted(set(lengths)) if size >= _MIN_LENGTH}
        with _quiet():
            for row, size in enumerate(lengths):
                for step, augmenter in enumerate(chains.get(size, ())):
                    if acts[row, step]:
                        x[row, :, :size] = _apply(augmenter, int(seeds[row, step]), x[row, :, :size])
        return batch | {"x": torch.from_numpy(x).to(batch["x"])}


def _chain(steps: Mapping[str, Mapping[str, Any]], length: int) -> list[list[Any]]:
    """Build the augmenters for windows of one length; each is a list to be applied in turn."""
    with _quiet():
        import tsaug

        chain = []
        for name, options in steps.items():
            # YAML and JSON have lists where tsaug means an interval: (low, high).
            given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
            given.pop("prob", None)
            share = given.pop("share", None)
            if share is not None:
                given["size"] = min(max(2, round(share * length)), length if name == "Crop" else 10 * length)
            if name == "TimeWarp":
                given["n_speed_change"] = min(given.get("n_speed_change", 3), length - 2)
            if name == "Crop":
                given["resize"] = length
            try:
                augmenters = [getattr(tsaug, name)(**given)]
            except (TypeError, ValueError) as error:
                raise ConfigError(f"tsaug.{name} refuses {dict(options)}: {error}") from error
            # A second Resize restores the length.
            chain.append([*augmenters, tsaug.Resize(length)] if name == "Resize" else augmenters)
    return chain


def _apply(augmenters: list[Any], seed: int, x: np.ndarray) -> np.ndarray:
    """Augment one window (channels, length) under one seed."""
    window = x.T[None]
    for augmenter in augmenters:
        augmenter.seed = seed
        window = augmenter.augment(window)
    result: np.ndarray = window[0].T
    return result
