"""How well recommenders rank the next item: HR, NDCG and MRR over the whole catalogue, by bucket, and paired intervals.

All functions take one rank a user. Ranks start at 1; an item tied with others has the mean of their places, so that a
recommender that scores everything alike gains nothing (Krichene & Rendle 2020, doi:10.1145/3394486.3403226, on why the
whole catalogue has to be ranked).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError

#: Name of a bucket of users, and the shortest and longest training sequence in it.
LENGTH_BUCKETS: tuple[tuple[str, int, float], ...] = (
    ("length<=3", 0, 3),
    ("length4-7", 4, 7),
    ("length8-19", 8, 19),
    ("length>=20", 20, np.inf),
)
#: Name of a bucket of items, and the share of the catalogue, most popular first, at which it ends.
POPULARITY_BUCKETS: tuple[tuple[str, float], ...] = (("head", 0.2), ("mid", 0.5), ("tail", 1.0))


def target_ranks(scores: Tensor, target: Tensor) -> Tensor:
    """Return the rank of each row's target.

    Args:
        scores: float (users, items); items that must not be recommended have -inf.
        target: int64 (users,), columns of ``scores``.

    Returns:
        float64 (users,): 1 is best; ties share the mean of their places. A target scored -inf or NaN comes last.

    Example:
        >>> target_ranks(torch.tensor([[0.1, 0.9, 0.5], [1.0, 1.0, 0.0]]), torch.tensor([2, 0])).tolist()
        [2.0, 1.5]
    """
    own = scores.gather(1, target[:, None])
    better, equal = (scores > own).sum(1), (scores == own).sum(1)
    ranks = better.double() + (equal.double() + 1) / 2
    return torch.where(own[:, 0].isneginf() | own[:, 0].isnan(), float(scores.shape[1]), ranks)


def user_values(ranks: np.ndarray, metric: str = "ndcg@10") -> np.ndarray:
    """Return the value of a metric for each user; its mean is the score.

    Args:
        ranks: float (...,), from 1.
        metric: ``hr@k``, ``ndcg@k`` or ``mrr@k``.

    Returns:
        float64 of the shape of ``ranks``.

    Raises:
        ConfigError: If the metric is none of those.

    Example:
        >>> user_values(np.array([1.0, 3.0, 11.0]), "ndcg@10").tolist()
        [1.0, 0.5, 0.0]
    """
    name, _, k = metric.partition("@")
    if name not in ("hr", "ndcg", "mrr") or not k.isdigit() or int(k) < 1:
        raise ConfigError(f"unknown ranking metric {metric!r}; known: hr@k, ndcg@k, mrr@k, for example ndcg@10")
    ranks = np.asarray(ranks, dtype=np.float64)
    gain = {"hr": np.ones_like(ranks), "ndcg": 1 / np.log2(ranks + 1), "mrr": 1 / ranks}[name]
    return np.where(ranks <= int(k), gain, 0.0)


def ranking_scores(ranks: np.ndarray, ks: Sequence[int] = (5, 10, 20)) -> dict[str, float]:
    """Average HR, NDCG and MRR at several cut-offs over users.

    Args:
        ranks: float (users,), from 1.
        ks: Cut-offs.

    Returns:
        ``{"hr@5": ..., "ndcg@5": ..., "mrr@5": ..., "hr@10": ...}``; NaN for no users.

    Example:
        >>> ranking_scores(np.array([1.0, 3.0]), ks=(5,))["ndcg@5"]
        0.75
    """
    names = [f"{name}@{k}" for k in ks for name in ("hr", "ndcg", "mrr")]
    return {name: float(user_values(ranks, name).mean()) if len(ranks) else float("nan") for name in names}


def length_buckets(train_lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Group users by the length of their training sequence.

    Args:
        train_lengths: int (users,).

    Returns:
        Name to bool (users,).

    Example:
        >>> {name: int(chosen.sum()) for name, chosen in length_buckets(np.array([2, 3, 25])).items()}
        {'length<=3': 2, 'length4-7': 0, 'length8-19': 0, 'length>=20': 1}
    """
    lengths = np.asarray(train_lengths)
    return {name: (lengths >= low) & (lengths <= high) for name, low, high in LENGTH_BUCKETS}


def popularity_buckets(target: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Group users by how popular the item is that they want: head 20 %, next 30 %, last 50 % of the catalogue.

    Args:
        target: int (users,), item ids from 1.
        counts: (vocab_size + 1,), how often each item occurs in training; entry 0 is padding.

    Returns:
        Name to bool (users,).

    Example:
        >>> groups = popularity_buckets(np.array([1, 5]), np.array([0, 9, 5, 4, 2, 1]))
        >>> groups["head"].tolist(), groups["tail"].tolist()
        ([True, False], [False, True])
    """
    order = np.argsort(-np.asarray(counts)[1:], kind="stable")
    place = np.empty(len(order))
    place[order] = (np.arange(len(order)) + 1) / len(order)
    of_target, groups, low = place[np.asarray(target) - 1], {}, 0.0
    for name, high in POPULARITY_BUCKETS:
        groups[name] = (of_target > low) & (of_target <= high)
        low = high
    return groups


def paired_bootstrap(
    ranks_a: np.ndarray,
    ranks_b: np.ndarray,
    metric: str = "ndcg@10",
    groups: Mapping[str, np.ndarray] | None = None,
    repeats: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Compare two recommenders on the same users: mean difference and its interval, users drawn with replacement.

    Efron 1979, doi:10.1214/aos/1176344552. Several trainings of each recommender are averaged within a user first, so
    the interval is over users at the given seeds.

    Args:
        ranks_a: float (users,) or (seeds, users), from 1.
        ranks_b: The same users, in the same order; the number of seeds may differ.
        metric: ``hr@k``, ``ndcg@k`` or ``mrr@k``.
        groups: Name to bool (users,), e.g. of `length_buckets`; ``"all"`` is always there.
        repeats: Bootstrap draws.
        confidence: Of the interval.
        seed: Of the draws.

    Returns:
        Group to ``a``, ``b`` (means), ``difference`` (a - b), ``low``, ``high`` and ``users``.

    Raises:
        ConfigError: If the users differ in number.

    Example:
        >>> better, worse = np.array([1.0, 2.0, 1.0, 3.0] * 50), np.array([2.0, 3.0, 2.0, 4.0] * 50)
        >>> result = paired_bootstrap(better, worse)["all"]
        >>> result["low"] > 0
        True
    """
    a, b = (np.atleast_2d(user_values(ranks, metric)).mean(0) for ranks in (ranks_a, ranks_b))
    if a.shape != b.shape:
        raise ConfigError(f"the recommenders were scored on {len(a)} and {len(b)} users; a paired comparison needs one")
    chosen = {"all": np.ones(len(a), dtype=bool), **(groups or {})}
    return {name: _interval(a[rows], b[rows], repeats, confidence, seed) for name, rows in chosen.items()}


def _interval(a: np.ndarray, b: np.ndarray, repeats: int, confidence: float, seed: int) -> dict[str, float]:
    if not len(a):
        return {name: float("nan") for name in ("a", "b", "difference", "low", "high")} | {"users": 0.0}
    difference, rng = a - b, np.random.default_rng(seed)
    draws = np.array([difference[rng.integers(len(difference), size=len(difference))].mean() for _ in range(repeats)])
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": float(difference.mean()),
        "low": float(low),
        "high": float(high),
        "users": float(len(a)),
    }
