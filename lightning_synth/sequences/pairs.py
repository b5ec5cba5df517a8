"""Training pairs (context, target) drawn by an explicit law, instead of by a reader's silent habit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.requests import KeyedRNG, mix_seed
from lightning_synth.sequences.draws import EndlessItems
from lightning_synth.sequences.items import SequenceItems

#: Powers of sequence lengths above this leave the range of float64.
_LARGEST = 40.0


class PairSampler:
    """Draws (user, target, context) triples: the law behind every way to cut a sequence into training pairs.

    A user with n + 1 interactions has n possible targets; target t has t items before it. A pair is drawn as
    P(user) ~ n^alpha, P(t | user) ~ t^beta, P(l | t) ~ l^gamma for a context of the l latest items, 1 <= l <= t
    (GenPAS, Lee et al. 2025, arXiv 2509.13648; the sign of gamma is ours: infinity is the full prefix).

    The usual recipes are corners of it: only the last target (0, inf, inf); every prefix, as RecBole and SASRec's loss
    at every position (1, 0, inf); every contiguous sub-sequence (2, 1, 0), exact within a user and up to the factor
    n / (n + 1) between users; equal weight of all users as RepPad's repetitions give (0, 0, inf).

    Args:
        alpha: Exponent of the number of targets of a user.
        beta: Exponent of the position of the target; ``inf`` takes the last one.
        gamma: Exponent of the length of the context; ``inf`` takes all of it.
        size: Pairs of an epoch; None: as many as there are users.

    Raises:
        ConfigError: If an exponent is NaN, or too large to be told from infinity.

    Example:
        >>> pairs = PairSampler.last_target().bind([{"item_id": torch.tensor([5, 6, 7])}])
        >>> pairs[0]["item_id"].tolist(), pairs[0]["target_weight"].tolist()
        ([5, 6, 7], [0.0, 0.0, 1.0])
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 0.0, gamma: float = math.inf, *, size: int | None = None
    ) -> None:
        for name, value, infinite in (("alpha", alpha, False), ("beta", beta, True), ("gamma", gamma, True)):
            if not (abs(value) <= _LARGEST or (infinite and value == math.inf)):
                also = " or inf" if infinite else ""
                raise ConfigError(f"{name} must lie in -{_LARGEST:g}..{_LARGEST:g}{also}, got {value}")
        if size is not None and size < 1:
            raise ConfigError(f"size must be at least 1, got {size}")
        self.alpha, self.beta, self.gamma, self.size = float(alpha), float(beta), float(gamma), size

    def __repr__(self) -> str:
        """Show the exponents."""
        return f"PairSampler(alpha={self.alpha:g}, beta={self.beta:g}, gamma={self.gamma:g})"

    @classmethod
    def last_target(cls) -> PairSampler:
        """Predict each user's last item from all before."""
        return cls(0.0, math.inf, math.inf)

    @classmethod
    def multi_target(cls) -> PairSampler:
        """Predict every item from all before it; all pairs are equally likely."""
        return cls(1.0, 0.0, math.inf)

    @classmethod
    def sliding_window(cls) -> PairSampler:
        """Predict the last item of every contiguous sub-sequence."""
        return cls(2.0, 1.0, 0.0)

    @classmethod
    def equal_users(cls) -> PairSampler:
        """Predict every item from all before it; all users count alike, as if short ones were repeated (RepPad)."""
        return cls(0.0, 0.0, math.inf)

    def bind(self, items: Iterable[Mapping[str, Any]], *, seed: int = 0, weight: Any = None) -> PairItems:
        """Make a map-style data set of pairs.

        Args:
            items: Training sequences; those of one item have no pair and are never drawn.
            seed: Pair ``epoch * size + i`` is a pure function of it and of its number.
            weight: Of each sequence, (n,), multiplied into P(user): the reliability of synthetic users.

        Returns:
            Pairs, for a `DataLoader` with `lightning_synth.datamodules.EndlessSampler`.

        Raises:
            DataError: If no sequence has two items, or weights are not usable.
        """
        return PairItems(SequenceItems.from_items(items), self, seed, weight)


class PairItems(EndlessItems):
    """The pairs of a `PairSampler`: sequences whose last item alone is a target.

    Args:
        items: Training sequences.
        sampler: The law.
        seed: Of the draws.
        weight: Of each sequence, (n,), or None.
    """

    def __init__(self, items: SequenceItems, sampler: PairSampler, seed: int = 0, weight: Any = None) -> None:
        super().__init__(items, sampler.size)
        self.sampler, self.seed = sampler, seed
        targets = (items.lengths - 1).double()
        if not bool((targets >= 1).any()):
            raise DataError("no training sequence has two items: there is no pair of context and target")
        law = torch.where(targets >= 1, targets.clamp(min=1) ** sampler.alpha, 0.0)
        law = law * _checked_weight(weight, len(items))
        if not bool((law > 0).any()):
            raise DataError("the weights of all sequences with two items are 0: there is no pair to draw")
        self._users, self._last = law.cumsum(0), int(law.nonzero()[-1])
        longest = int(targets.max())
        self._target, self._context = (_powers(longest, exponent) for exponent in (sampler.beta, sampler.gamma))

    def take(self, draw: Tensor) -> SequenceItems:
        """Draw pairs.

        Args:
            draw: int64 (n,), the numbers of the pairs.
        """
        user_draw, target_draw, context_draw = _uniforms(mix_seed(self.seed, 0) + draw)
        user = torch.searchsorted(self._users, user_draw * self._users[-1], right=True).clamp(max=self._last)
        start, count = self.items.start[user], self.items.lengths[user] - 1
        before = _power_draw(self._target, count, target_draw)
        length = _power_draw(self._context, before, context_draw)
        pairs = self.items[user].cut(start=start + before - length, stop=start + before + 1)
        pairs.last_only = True
        return pairs


def _checked_weight(weight: Any, count: int) -> Tensor:
    if weight is None:
        return torch.ones(count, dtype=torch.float64)
    values = torch.as_tensor(np.asarray(weight), dtype=torch.float64)
    if values.shape != (count,) or not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise DataError(f"weight must be {count} finite numbers that are not negative, got shape {tuple(values.shape)}")
    return values


def _powers(most: int, exponent: float) -> Tensor | None:
    """Cumulative sums of 1^e, 2^e, ... for draws from any 1..n; None where the largest is always taken."""
    return None if exponent == math.inf else (torch.arange(1, most + 1, dtype=torch.float64) ** exponent).cumsum(0)


def _power_draw(cumulative: Tensor | None, most: Tensor, uniform: Tensor) -> Tensor:
    """Draw k of 1..most with P(k) ~ k^e, for every row."""
    if cumulative is None:
        return most
    found = torch.searchsorted(cumulative, uniform * cumulative[most - 1], right=True) + 1
    return torch.minimum(found, most)


def _uniforms(seeds: Tensor) -> Tensor:
    """Three float64 uniforms of 62 bits a row: float32 could not tell a million users apart. (3, rows)."""
    words = KeyedRNG(seeds).integers(1 << 31, (6,)).double()
    return (words[:, :3] * 2.0**31 + words[:, 3:]).T.contiguous() * 2.0**-62
