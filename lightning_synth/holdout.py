"""A part of the training split that a generator does not train on, to notice when it starts to learn by heart.

The validation split of the DataModule stays unseen, as it must: what is held out here comes from the training split.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Held-out items come in this many runs of neighbours: windows that overlap with trained ones are only at their ends.
_RUNS = 4


def row_keys(x: Tensor) -> Tensor:
    """Return a key of each row's content, int64 (rows,); equal rows have equal keys.

    Args:
        x: float32 (rows, ...).

    Example:
        >>> a = torch.randn(3, 2, 4)
        >>> bool((row_keys(a[[0, 1, 0]])[[0, 2]] == row_keys(a)[0]).all()), len(row_keys(a).unique())
        (True, 3)
    """
    bits = x.float().contiguous().flatten(1).view(torch.int32).long()
    place = torch.arange(1, bits.shape[1] + 1, device=x.device)
    # Odd multipliers are invertible modulo 2^64, so a change of one value always changes the key.
    return (bits * (place * 0x1E3779B97F4A7C15 + (place % 2 == 0).long())).sum(1)


def held_out_rows(count: int, share: float) -> list[int]:
    """Choose which of ``count`` items to hold out: runs of neighbours, evenly spread.

    Example:
        >>> held_out_rows(40, 0.2)
        [4, 5, 14, 15, 24, 25, 34, 35]
    """
    size = int(count * share / _RUNS)
    starts = [int((i + 0.5) * count / _RUNS) - size // 2 for i in range(_RUNS)]
    return [row for start in starts for row in range(start, start + size)]


class BestWeights(nn.Module):
    """The parameters at the smallest held-out loss so far, in buffers, so that a resumed training knows them.

    Args:
        parameters: Name to parameter; the same names are passed to the other methods.
    """

    loss: Tensor
    waited: Tensor

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("loss", torch.tensor(torch.finfo(torch.float32).max))
        self.register_buffer("waited", torch.zeros((), dtype=torch.int64))
        for name, value in parameters.items():
            self.register_buffer(name.replace(".", "/"), value.detach().clone())

    @torch.no_grad()
    def offer(self, loss: Tensor, parameters: Mapping[str, Tensor]) -> int:
        """Remember the parameters if their loss is the smallest so far.

        Args:
            loss: Scalar.
            parameters: As in the constructor.

        Returns:
            Number of offers since the best one.
        """
        better = bool(loss < self.loss)
        self.waited.copy_(torch.zeros_like(self.waited) if better else self.waited + 1)
        if better:
            self.loss.copy_(loss)
            for name, value in parameters.items():
                self.get_buffer(name.replace(".", "/")).copy_(value)
        return int(self.waited)

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Write the best parameters into ``parameters``, if there are any."""
        if float(self.loss) < torch.finfo(torch.float32).max:
            for name, value in parameters.items():
                value.copy_(self.get_buffer(name.replace(".", "/")))


def without(batch: Mapping[str, Tensor], keys: Tensor) -> dict[str, Tensor]:
    """Drop the rows of a series batch whose key is among ``keys``; at least one row stays.

    Args:
        batch: With ``x`` (rows, ...).
        keys: int64, of held-out rows.
    """
    if not len(keys):
        return dict(batch)
    stays = ~torch.isin(row_keys(batch["x"]), keys)
    stays[0] |= ~stays.any()
    return {name: value[stays] for name, value in batch.items()}
