"""Windows put together from blocks of real windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.resampling import WindowResampler, lengths_of
from lightning_synth.requests import KeyedRNG, SampleRequests

KINDS = ("moving", "stationary")


def block_starts(length: int, block_length: float, rng: KeyedRNG, kind: str = "stationary") -> Tensor:
    """Mark where new blocks begin in every row.

    Args:
        length: Time steps of a window.
        block_length: Length of a block ("moving"), or its mean ("stationary": geometric lengths).
        rng: One seed a row.
        kind: ``moving`` (Kuensch 1989) or ``stationary`` (Politis & Romano 1994).

    Returns:
        bool (rows, length); the first step always begins a block.

    Example:
        >>> block_starts(6, 3, KeyedRNG(torch.tensor([0])), "moving").long()
        tensor([[1, 0, 0, 1, 0, 0]])
    """
    if kind == "moving":
        new = (torch.arange(length, device=rng.device) % round(block_length) == 0).expand(len(rng), length).clone()
    else:
        new = rng.bernoulli(1.0 / block_length, (length,))
    new[:, 0] = True
    return new


class BlockBootstrap(WindowResampler):
    """Moving-block or stationary bootstrap within a class, the same blocks for all channels.

    Blocks of consecutive time steps are drawn from the training windows of the class and put end to end: marginals,
    cross-channel relations and correlations shorter than a block survive, everything longer is destroyed (Kuensch 1989,
    doi:10.1214/aos/1176347265; stationary: Politis & Romano 1994, doi:10.1080/01621459.1994.10476870).

    Args:
        block_length: Time steps of a block (mean length for "stationary"); None: square root of the window length.
        kind: ``"stationary"`` (geometric lengths, blocks wrap around) or ``"moving"`` (fixed length, no wrapping).
        across: ``True``: every block from another window of the class; ``False``: all blocks from one window.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> model = BlockBootstrap(block_length=6)
        >>> _ = model.fit_on(tiny_series(8, channels=2, length=24), tiny_series_schema(channels=2, length=24))
        >>> model.sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(
        self, *, block_length: float | None = None, kind: str = "stationary", across: bool = True, **kwargs: Any
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"kind {kind!r} is not one of {KINDS}")
        if block_length is not None and block_length < 1:
            raise ConfigError(f"block_length must be at least 1, got {block_length}")
        super().__init__(block_length=block_length, kind=kind, across=across, **kwargs)

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Put blocks of training windows together.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict with ``x`` (rows, channels, length).
        """
        x = self.windows["x"]
        length = x.shape[-1]
        block_length = min(self.hparams.block_length or max(2.0, length**0.5), length)
        first = self.rows.pick(requests, rng.fork("source"))
        batch = self.take(first)
        valid = lengths_of(self.windows["mask"]) if "mask" in self.windows else torch.full((len(x),), length)
        new = block_starts(length, block_length, rng.fork("blocks"), self.hparams.kind)
        time = torch.arange(length, device=new.device)
        begin = torch.where(new, time, 0).cummax(dim=1).values  # (rows, length): where the block of each step began
        if self.hparams.across:
            # The first block comes from the window that gives the row its conditions.
            window = self.rows.pick(requests, rng.fork("windows"), length)
            window[:, 0] = first
            window = window.gather(1, begin)
        else:
            window = first[:, None].expand(-1, length)
        valid = valid.to(new.device)[window].clamp(min=1)
        room = valid if self.hparams.kind == "stationary" else (valid - round(block_length) + 1).clamp(min=1)
        start = rng.fork("starts").integers(room.gather(1, begin), (length,)).gather(1, begin)
        # "moving" never wraps, except in a ragged window that is shorter than the block.
        source = (start + time - begin) % valid
        batch["x"] = x.to(new.device)[window, :, source].transpose(1, 2).contiguous()
        if "mask" in batch:
            batch["x"] = batch["x"] * batch["mask"][:, None]
        return batch
