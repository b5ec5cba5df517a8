"""The bootstraps of sktime as a generator."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, MissingExtraError
from lightning_synth.plugins.resampling import Augmenter, lengths_in
from lightning_synth.requests import KeyedRNG

KINDS = ("moving_block", "stl")
_MIN_LENGTH = 4


class SktimeBootstrap(Augmenter):
    """A bootstrap of a single window by sktime: its blocks, or the blocks of its residual, in another order.

    ``"moving_block"`` is ``sktime.transformations.bootstrap.MovingBlockBootstrapTransformer`` (Kuensch 1989,
    doi:10.1214/aos/1176347265). ``"stl"`` is ``STLBootstrapTransformer`` (Bergmeir et al. 2016,
    doi:10.1016/j.ijforecast.2015.07.002): Box-Cox transform, trend and season by STL, blocks of the residual, and back;
    it needs statsmodels too. Both act on one window, unlike `BlockBootstrap`, which takes blocks from all windows of a
    class; that one is vectorised, this one goes window by window on the CPU. All channels have the same blocks.

    For the Box-Cox transform a window is lifted until its least value is one standard deviation; a value that the way
    back cannot give is that of the window itself. Windows shorter than three periods (two are all season and leave no
    residual) and constant ones stay as they are.

    Args:
        kind: ``"moving_block"`` or ``"stl"``.
        block_length: Steps of a block; None: the square root of the window ("moving_block"), two periods ("stl").
        period: Steps of one season, for "stl" only.

    Shapes:
        x: (rows, channels, length), units of the data.

    Raises:
        ConfigError: If settings are impossible.
        MissingExtraError: If "stl" is asked for without statsmodels.

    Example:
        >>> SktimeBootstrap(block_length=6).hparams.kind
        'moving_block'
    """

    def __init__(
        self,
        *,
        kind: str = "moving_block",
        block_length: int | None = None,
        period: int | None = None,
        **kwargs: Any,
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"kind {kind!r} is not one of {KINDS}")
        if block_length is not None and block_length < 2:
            raise ConfigError(f"block_length must be at least 2, got {block_length}")
        if kind == "stl":
            if period is None or period < 2:
                raise ConfigError(f"kind 'stl' needs the period of the season, at least 2 steps, got {period}")
            if importlib.util.find_spec("statsmodels") is None:
                raise MissingExtraError("kind 'stl' needs statsmodels: pip install 'lightning-synth[timeseries]'")
        super().__init__(kind=kind, block_length=block_length, period=period, **kwargs)

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Bootstrap every window, with the seed of its row.

        Args:
            batch: With ``x`` (rows, channels, length).
            rng: One seed a row.

        Returns:
            Batch dict with the same fields.
        """
        # numpy wants seeds below 2**32.
        seeds = rng.fork("blocks").integers(1 << 31).cpu().tolist()
        x = batch["x"].double().cpu().numpy().copy()
        bootstrap = self._moving_block if self.hparams.kind == "moving_block" else self._stl
        for row, size in enumerate(lengths_in(batch).tolist()):
            if size >= _MIN_LENGTH:
                x[row, :, :size] = bootstrap(x[row, :, :size], seeds[row])
        out = torch.from_numpy(x).to(batch["x"])
        return batch | {"x": out * batch["mask"][:, None] if "mask" in batch else out}

    def _moving_block(self, window: np.ndarray, seed: int) -> np.ndarray:
        """Bootstrap the steps themselves, so that all channels follow."""
        from sktime.transformations.bootstrap import MovingBlockBootstrapTransformer

        size = window.shape[1]
        block = self.hparams.block_length or max(2, round(size**0.5))
        steps = _bootstrap(MovingBlockBootstrapTransformer, np.arange(size), seed, block_length=min(block, size - 1))
        return window[:, steps.astype(np.int64)]

    def _stl(self, window: np.ndarray, seed: int) -> np.ndarray:
        from sktime.transformations.bootstrap import STLBootstrapTransformer

        period, size = self.hparams.period, window.shape[1]
        if size < 3 * period:
            return window
        block = min(self.hparams.block_length or 2 * period, size - period)
        out = window.copy()
        for channel, values in enumerate(window):
            spread = values.std()
            if spread <= 1e-9 * (1 + np.abs(values).max()):
                continue
            lift = spread - values.min()
            with np.errstate(all="ignore"):
                new = _bootstrap(STLBootstrapTransformer, values + lift, seed, block_length=block, sp=period) - lift
            out[channel] = np.where(np.isfinite(new), new, values)
        return out


def _bootstrap(kind: Any, values: np.ndarray, seed: int, **options: Any) -> np.ndarray:
    """One bootstrapped copy of a series; one seed gives the same blocks for any values."""
    import pandas as pd

    transformer = kind(n_series=1, sampling_replacement=True, return_actual=False, random_state=seed, **options)
    return np.asarray(transformer.fit_transform(pd.Series(values, dtype=float)))[:, 0]
