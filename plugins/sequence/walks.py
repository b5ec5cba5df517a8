"""What the generators of interaction sequences share: training sequences at hand, lengths, draws, and left padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.downstream.sequential_rules import rule_matrix
from lightning_synth.plugins.resampling import Resampler
from lightning_synth.requests import KeyedRNG
from lightning_synth.sequences.items import SequenceItems

#: Tries to find an item that the user has not had yet, in data without repeats.
_TRIES = 8


def draw_lengths(schema: Mapping[str, Any], rng: KeyedRNG) -> Tensor:
    """Draw lengths from the law of the training sequences, int64 (rows,).

    Args:
        schema: With ``length_counts``.
        rng: One seed a row.
    """
    sizes = torch.tensor([int(size) for size in schema["length_counts"]], device=rng.device)
    counts = torch.tensor(list(schema["length_counts"].values()), device=rng.device, dtype=torch.float64)
    return sizes[draw(counts, rng.uniform(()))]


def draw(weight: Tensor, u: Tensor) -> Tensor:
    """Turn uniform numbers into indices of a discrete law.

    Args:
        weight: float64 (outcomes,), not negative, not all zero.
        u: In [0, 1), any shape.

    Returns:
        int64 of the shape of ``u``.

    Example:
        >>> draw(torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64), torch.tensor([0.0, 0.2, 0.3, 0.99])).tolist()
        [1, 1, 2, 2]
    """
    ends = weight.double().cumsum(0)
    last = int(weight.nonzero().max())
    return torch.searchsorted(ends, u.double() * ends[-1], right=True).clamp(max=last)


def left_padded(ids: Tensor, mask: Tensor, **columns: Tensor) -> dict[str, Tensor]:
    """Move the real tokens of each row to the right, in order, and cut columns that only hold padding.

    Args:
        ids: int64 (rows, length).
        mask: bool (rows, length), True = real.
        **columns: Further (rows, length) values, 0 where there is padding.

    Returns:
        ``item_id``, ``padding_mask`` and the columns.

    Example:
        >>> left_padded(torch.tensor([[4, 9, 5]]), torch.tensor([[True, False, True]]))["item_id"]
        tensor([[4, 5]])
    """
    order = mask.to(torch.int8).argsort(dim=1, stable=True)[:, -max(1, int(mask.sum(1).max())) :]
    kept = mask.gather(1, order)
    moved = {name: value.gather(1, order).masked_fill(~kept, 0) for name, value in columns.items()}
    return {"item_id": torch.where(kept, ids.gather(1, order), 0), "padding_mask": kept, **moved}


def any_repeats(sequences: SequenceItems) -> bool:
    """Whether a user has an item twice.

    Args:
        sequences: Of training.

    Example:
        >>> any_repeats(SequenceItems.from_lists([[1, 2], [2, 1, 2]]))
        True
    """
    ids = torch.from_numpy(sequences.flat())
    pairs = sequences.position_rows()[0] * (int(ids.max()) + 1) + ids
    return len(pairs.unique()) < len(pairs)


class SequenceResampler(Resampler):
    """Base of the generators that need no training: they hold the training sequences, cut to ``max_length``."""

    domain = "sequence"
    conditions = ()

    @property
    def sequences(self) -> SequenceItems:
        """The training sequences."""
        limit = int(self.fitted_schema["max_length"])
        return self.derived("sequences", lambda: SequenceItems.from_items(self.bank.items).latest(limit))

    @property
    def size(self) -> int:
        """Number of item ids, padding included."""
        return int(self.fitted_schema["vocab_size"]) + 1

    @property
    def counts(self) -> Tensor:
        """How often each item occurs, float64 (vocab_size + 1,)."""
        return self.derived("counts", lambda: _tally(torch.from_numpy(self.sequences.flat()), self.size))

    @property
    def repeats(self) -> bool:
        """Whether training users come back to items they had before."""
        return self.derived("repeats", lambda: any_repeats(self.sequences))


class RuleWalk(SequenceResampler):
    """Base of the generators in which each next item follows rules fired by the items before it.

    The next item has probability proportional to the sum over the last ``history`` items of decay**(steps back) times
    the rule from that item; drawn as a mixture, one fired rule at a time, so that no row of scores is ever formed.
    """

    #: Settings of the rules, as `rule_matrix` and the walk take them.
    window: int
    back: float
    decay: float
    history: int

    def _rules(self) -> tuple[Tensor, Tensor, Tensor]:
        """Start of each item's rules, the items they lead to, and their running weight."""
        flat, user = self.sequences.flat(), self.sequences.position_rows()[0].numpy()
        matrix = rule_matrix(flat, user, np.ones(len(flat)), self.size, self.window, self.back)
        ends = np.concatenate([[0.0], np.cumsum(matrix.data)])
        start, item = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)
        return torch.from_numpy(start), torch.from_numpy(item), torch.from_numpy(ends)

    def _first_items(self) -> Tensor:
        return _tally(self.sequences.columns["item_id"][self.sequences.start], self.size)

    def walk(self, lengths: Tensor, rng: KeyedRNG) -> dict[str, Tensor]:
        """Sample whole sequences.

        Args:
            lengths: int64 (rows,).
            rng: One seed a row.

        Returns:
            Batch dict.
        """
        ids = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.int64, device=rng.device)
        ids[:, 0] = draw(self.derived("first", self._first_items).to(rng.device), rng.fork("first").uniform(()))
        rng = rng.fork("next")
        for t in range(1, ids.shape[1]):
            ids[:, t] = self._next(ids[:, :t], rng.uniform((_TRIES, 3), step=t))
        steps = torch.arange(ids.shape[1], device=rng.device)
        return left_padded(ids, steps < lengths[:, None])

    def _next(self, past: Tensor, u: Tensor) -> Tensor:
        """Draw a few candidates and keep the first one that is new to the user (the last one if none is)."""
        start, item, ends = (part.to(past.device) for part in self.derived("rules", self._rules))
        recent = past[:, -self.history :].flip(1)
        low, high = ends[start[recent]], ends[start[recent + 1]]
        fired = (high - low) * self.decay ** torch.arange(recent.shape[1], device=past.device)
        total = fired.cumsum(1)
        which = torch.searchsorted(total, u[..., 0].double() * total[:, -1:], right=True).clamp(max=recent.shape[1] - 1)
        low, high = low.gather(1, which), high.gather(1, which)
        place = torch.searchsorted(ends, low + u[..., 1].double() * (high - low), right=True) - 1
        follows = item[place.clamp(max=len(item) - 1)] if len(item) else torch.zeros_like(place)
        # An item that nothing follows in training gives way to popularity.
        candidate = torch.where(total[:, -1:] > 0, follows, draw(self.counts.to(past.device), u[..., 2]))
        new = (candidate[:, :, None] != past[:, None, :]).all(2)
        if self.repeats:
            new[:, 0] = True
        new[:, -1] = True
        return candidate.gather(1, new.int().argmax(1, keepdim=True))[:, 0]


def _tally(ids: Tensor, size: int) -> Tensor:
    return torch.bincount(ids, minlength=size).double()
