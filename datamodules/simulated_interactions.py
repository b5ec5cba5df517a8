"""Interactions whose next item follows known rules, so that the best possible recommender is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.sequences.items import SequenceItems
from lightning_synth.sequences.readers import Log

#: Shares of an item's successors, the likeliest first.
_SHARES = np.array([0.4, 0.3, 0.2, 0.1])
_TRIES = 20
_MAX_SEEN = 1 << 31


class SimulatedInteractions:
    """A log like MovieLens 100K: few busy users, Zipf popularity, many ties in time, and a known law of the next item.

    The next item is one of four successors of the current one with probability ``rule``, else any item by its
    popularity; items that the user has had are left out (the law is then renormalised), unless ``repeats``.

    Args:
        num_users: Users.
        num_items: Items of the catalogue, ids 1..num_items.
        min_length: Interactions of the least active users.
        mean_length: Mean number of interactions; those above ``min_length`` are log-normal.
        rule: Probability that the next item is a successor of the current one.
        repeats: Whether a user may have an item twice; needed for logs that do not fit as (users, items) in memory.
        tied: Share of adjacent interactions at the same time.
        seed: Of everything.

    Raises:
        ConfigError: If a number is impossible.

    Example:
        >>> simulated = SimulatedInteractions(num_users=5, num_items=50, min_length=4, mean_length=8)
        >>> sequences = simulated.sequences()
        >>> law = simulated.probabilities([sequences[0]["item_id"]])
        >>> law.shape, float(law.sum().round(6)), float(law[0, sequences[0]["item_id"]].sum())
        ((1, 51), 1.0, 0.0)
    """

    def __init__(
        self,
        num_users: int = 943,
        num_items: int = 1682,
        *,
        min_length: int = 20,
        mean_length: float = 106.0,
        rule: float = 0.6,
        repeats: bool = False,
        tied: float = 0.5,
        seed: int = 0,
    ) -> None:
        if num_users < 1 or num_items <= len(_SHARES):
            raise ConfigError(f"need at least 1 user and {len(_SHARES) + 1} items, got {num_users} and {num_items}")
        if min_length < 1 or mean_length < min_length or not (0 <= rule <= 1 and 0 <= tied <= 1):
            raise ConfigError(
                "min_length must be at least 1, mean_length at least that, rule and tied in [0, 1]; got "
                f"{min_length}, {mean_length}, {rule}, {tied}"
            )
        if not repeats and num_users * num_items > _MAX_SEEN:
            raise ConfigError(f"{num_users} users of {num_items} items need repeats=True: who had what does not fit")
        self.num_users, self.num_items, self.rule, self.repeats = num_users, num_items, rule, repeats
        self.min_length, self.mean_length, self.tied, self.seed = min_length, mean_length, tied, seed
        rng = np.random.default_rng((seed, 0))
        # Popular items have any id: an order by id is then no order by popularity.
        popularity = rng.permutation(1.0 / np.arange(1, num_items + 1) ** 0.8)
        self.popularity = np.r_[0.0, popularity / popularity.sum()]
        self.successors = self._make_successors(rng)

    def _make_successors(self, rng: np.random.Generator) -> np.ndarray:
        """Distinct successors of each item, popular ones more often; int64 (num_items + 1, 4)."""
        keys = rng.choice(self.num_items, size=(self.num_items + 1, 4 * len(_SHARES)), p=self.popularity[1:]) + 1
        found = np.zeros((self.num_items + 1, len(_SHARES)), np.int64)
        own, count = np.arange(self.num_items + 1), np.zeros(self.num_items + 1, np.int64)
        # Of each row's draws, take the first ones that are new; what is still missing counts on from the item itself.
        for candidate in (*keys.T, *((own + step) % self.num_items + 1 for step in range(len(_SHARES) + 1))):
            new = (candidate != own) & (found != candidate[:, None]).all(1) & (count < len(_SHARES))
            found[new, count[new]] = candidate[new]
            count[new] += 1
        return found

    def probabilities(self, histories: Sequence[Tensor]) -> np.ndarray:
        """Return the law of each user's next item: to rank by it is the best that any recommender can do.

        Args:
            histories: int64 (length,) each, at least one item.

        Returns:
            float64 (users, num_items + 1); column 0 (padding) is 0.
        """
        sequences = SequenceItems.from_lists([list(map(int, ids)) for ids in histories])
        current = sequences.columns["item_id"][sequences.stop - 1].numpy()
        law = self._law(current)
        if not self.repeats:
            law[sequences.position_rows()[0].numpy(), sequences.flat()] = 0.0
            law /= law.sum(1, keepdims=True)
        return law

    def _law(self, current: np.ndarray) -> np.ndarray:
        law = np.tile((1 - self.rule) * self.popularity, (len(current), 1))
        np.add.at(law, (np.arange(len(current))[:, None], self.successors[current]), self.rule * _SHARES)
        return law

    def log(self) -> Log:
        """Simulate all interactions, user after user in the order of time.

        Returns:
            The log, with times in seconds.
        """
        rng = np.random.default_rng((self.seed, 1))
        lengths = self._lengths(rng)
        longest_first = np.argsort(-lengths, kind="stable")
        active = np.searchsorted(-lengths[longest_first], -np.arange(lengths.max()), side="left")
        start = np.cumsum(lengths) - lengths
        item = np.zeros(int(lengths.sum()), np.int64)
        seen = None if self.repeats else np.zeros((self.num_users, self.num_items + 1), bool)
        cumulative = np.cumsum(self.popularity)
        current = np.zeros(self.num_users, np.int64)
        for step, count in enumerate(active.tolist()):
            users = longest_first[:count]
            current[users] = self._next(rng, cumulative, current[users], seen, users, step)
            if seen is not None:
                seen[users, current[users]] = True
            item[start[users] + step] = current[users]
        time = self._times(rng, lengths)
        return Log(np.arange(1, self.num_users + 1), item, time, True, lengths, self.num_items)

    def sequences(self) -> SequenceItems:
        """Simulate, as items ``{"item_id", "timestamp", "user_id"}``."""
        log = self.log()
        assert log.sizes is not None and log.time is not None
        stop = torch.from_numpy(np.cumsum(log.sizes))
        columns = {"item_id": torch.from_numpy(log.item), "timestamp": torch.from_numpy(log.time)}
        start = stop - torch.from_numpy(log.sizes)
        return SequenceItems(columns, start, stop, {"user_id": torch.arange(self.num_users)})

    def _lengths(self, rng: np.random.Generator) -> np.ndarray:
        extra = self.mean_length - self.min_length
        lengths = np.full(self.num_users, self.min_length)
        if extra > 0:
            sigma = 1.1
            more = rng.lognormal(np.log(extra) - sigma**2 / 2, sigma, self.num_users)
            lengths = lengths + more.astype(np.int64)
        # Without repeats the catalogue must not run out.
        return lengths if self.repeats else np.minimum(lengths, self.num_items // 2)

    def _next(
        self,
        rng: np.random.Generator,
        cumulative: np.ndarray,
        current: np.ndarray,
        seen: np.ndarray | None,
        users: np.ndarray,
        step: int,
    ) -> np.ndarray:
        """Draw the next item of some users; what they have seen is drawn again, which renormalises the law."""
        chosen = np.zeros(len(users), np.int64)
        todo = np.arange(len(users))
        for _ in range(_TRIES):
            chosen[todo] = self._draw(rng, cumulative, current[todo], step)
            if seen is None:
                return chosen
            todo = todo[seen[users[todo], chosen[todo]]]
            if not len(todo):
                return chosen
        # A few users who have had almost all that is likely: their law, written out.
        assert seen is not None
        law = self._law(current[todo])
        law[seen[users[todo]]] = 0.0
        law = np.cumsum(law, axis=1)
        chosen[todo] = (law < rng.random(len(todo))[:, None] * law[:, -1:]).sum(1)
        return chosen

    def _draw(self, rng: np.random.Generator, cumulative: np.ndarray, current: np.ndarray, step: int) -> np.ndarray:
        uniform = rng.random((2, len(current)))
        any_item: np.ndarray = np.searchsorted(cumulative, uniform[1] * cumulative[-1], side="right").clip(
            1, self.num_items
        )
        if step == 0:
            return any_item
        which = np.searchsorted(np.cumsum(_SHARES)[:-1], uniform[1], side="right")
        return np.where(uniform[0] < self.rule, self.successors[current, which], any_item)

    def _times(self, rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
        """Seconds: users begin at any time of 200 days, and go on after a minute or at once."""
        total, start = int(lengths.sum()), np.cumsum(lengths) - lengths
        gap = np.where(rng.random(total) < self.tied, 0, 1 + rng.exponential(60.0, total).astype(np.int64))
        gap[start] = rng.integers(0, 200 * 86_400, self.num_users)
        walk = np.cumsum(gap)
        return np.asarray(walk - np.repeat(walk[start] - gap[start], lengths))
