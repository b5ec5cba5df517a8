"""Sequential rules: which items follow which, at what distance. No training, hard to beat on sparse data."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from lightning_synth.downstream.recommender import Ranker
from lightning_synth.errors import ConfigError, DataError, NotFittedError
from lightning_synth.schema import Items
from lightning_synth.sequences.items import SequenceItems


class SequentialRules(Ranker):
    """Rules of the form "who had a, later wants b", weighted by distance (Ludewig & Jannach 2018).

    The weight of the rule from a to b is the sum of 1/distance over all times b followed a within ``window`` items,
    plus ``back`` times that of b to a (arXiv 1803.09587, section 3.1, with a symmetric part for data whose order within
    a day is arbitrary). An item's score adds up the rules of the last ``history`` items, each discounted by ``decay``
    per step into the past. Popularity breaks ties.

    Args:
        schema: Of the sequences.
        window: Largest distance of a rule.
        back: Weight of the reversed rules.
        decay: Discount per step into the past, in (0, 1].
        history: Items of the user that fire rules.

    Raises:
        ConfigError: If the data are no sequences or a setting is out of range.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("sequence", n=64)
        >>> rules = SequentialRules(data.schema).fit(data.train_items())
        >>> rules.score(data.test_items())["hr@10"] > 0.5
        True
    """

    def __init__(
        self, schema: dict[str, Any], window: int = 10, back: float = 0.5, decay: float = 0.7, history: int = 10
    ) -> None:
        if schema.get("domain") != "sequence":
            raise ConfigError(f"sequential_rules recommends from sequences, got {schema.get('domain')} data")
        if window < 1 or history < 1 or back < 0 or not 0 < decay <= 1:
            raise ConfigError(
                "sequential_rules needs window >= 1, history >= 1, back >= 0 and decay in (0, 1], "
                f"got {window}, {history}, {back}, {decay}"
            )
        self.schema, self.window, self.back, self.decay, self.history = schema, window, back, decay, history
        self.rules: Any = None
        self._size = int(schema["vocab_size"]) + 1

    def fit(self, items: Items, weight: np.ndarray | None = None, seed: int = 0) -> SequentialRules:
        """Count the rules.

        Args:
            items: Training sequences; ``target_weight`` says how much each position counts as the end of a rule.
            weight: (items,), or None for equal weights.
            seed: Not used.

        Returns:
            Itself.

        Raises:
            DataError: If there are no items.
        """
        if not len(items):
            raise DataError("sequential_rules needs training sequences, got 0")
        sequences, size = SequenceItems.from_items(items), self._size
        user, index = (part.numpy() for part in sequences.position_rows())
        ids = sequences.flat()
        target = np.ones(len(ids)) if weight is None else np.asarray(weight, dtype=np.float64)[user]
        self._popularity = np.bincount(ids, weights=target, minlength=size)
        if "target_weight" in sequences.columns:
            target = target * sequences.columns["target_weight"].numpy()[index]
        self.rules = rule_matrix(ids, user, target, size, self.window, self.back)
        return self

    def item_scores(self, contexts: SequenceItems) -> Tensor:
        """Score the catalogue after each history.

        Args:
            contexts: Of at least one item each; the latest ``history`` items count.

        Returns:
            float64 (users, vocab_size + 1).

        Raises:
            NotFittedError: If `fit` was not called before.
        """
        if self.rules is None:
            raise NotFittedError("sequential_rules: call fit(items) before scoring")
        recent = contexts.latest(self.history)
        user, index = (part.numpy() for part in recent.position_rows())
        steps_back = recent.stop.numpy()[user] - 1 - index
        shape = (len(recent), self.rules.shape[0])
        fired = sp.csr_matrix((self.decay**steps_back, (user, recent.flat())), shape=shape)
        ties = 1e-6 * self._popularity / max(float(self._popularity.max()), 1e-12)
        return torch.from_numpy((fired @ self.rules).toarray() + ties)


def rule_matrix(ids: np.ndarray, user: np.ndarray, target: np.ndarray, size: int, window: int, back: float) -> Any:
    """Sum 1/distance over all pairs of one user within a window.

    Args:
        ids: int64 (tokens,), the sequences of all users one after another.
        user: int64 (tokens,), whose they are.
        target: float (tokens,), weight of each as the later item of a pair.
        size: Rows and columns.
        window: Largest distance.
        back: Weight of the transposed matrix that is added.

    Returns:
        Sparse (size, size); entry (a, b) is the weight of b after a.

    Example:
        >>> rule_matrix(np.array([1, 2, 3]), np.zeros(3, int), np.ones(3), 4, window=2, back=0.0).toarray()[1]
        array([0. , 0. , 1. , 0.5])
    """
    total = sp.csr_matrix((size, size))
    for distance in range(1, window + 1):
        same = user[distance:] == user[:-distance]
        weight = target[distance:][same] / distance
        total = total + sp.csr_matrix((weight, (ids[:-distance][same], ids[distance:][same])), shape=(size, size))
    total.eliminate_zeros()
    return (total + back * total.T).tocsr()
