"""Scores of interaction sequences: popularity, transitions, lengths, repetition; tables of training pairs and triples.

No single number will do: a sampler of independent popular items wins popularity, one that walks real bigrams is always
"seen before". Rates of seen pairs are therefore two-sided: below real sequences there is no structure, above them the
training data are repeated. Pairs and triples are looked up in the training sequences of *other* users, so that a real
sequence, whose user the training data know, is held to the same standard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lightning_synth.metrics.distances import seeded
from lightning_synth.sequences.items import SequenceItems

NAN = float("nan")
#: Adjacent pairs whose co-occurrence is looked up in one computation.
_PAIRS = 4000
#: Numbers from here on stand for users without one.
_UNNAMED = 1 << 40


# ------------------------------------------------------------------------------------------------------- popularity


def popularity_scores(real: np.ndarray, synthetic: np.ndarray) -> dict[str, float]:
    """Compare how often each item occurs.

    Args:
        real: (items,) counts.
        synthetic: (items,) counts.

    Returns:
        ``popularity_js`` Jensen-Shannon divergence in bits, ``popularity_tv`` total variation; of the synthetic counts
        ``popularity_gini`` (0: all items alike), ``catalogue_coverage`` (share of the items that occur) and
        ``top1_share`` (of the most frequent percent of the items). NaN where a sample is empty.

    Example:
        >>> scores = popularity_scores(np.array([1, 1, 0, 0]), np.array([0, 0, 2, 2]))
        >>> scores["popularity_js"], scores["popularity_tv"], scores["popularity_gini"], scores["catalogue_coverage"]
        (1.0, 1.0, 0.5, 0.5)
    """
    p, q = _shares(real), _shares(synthetic)
    middle = (p + q) / 2
    top = max(1, len(q) // 100)
    return {
        "popularity_js": (_kl(p, middle) + _kl(q, middle)) / 2,
        "popularity_tv": float(np.abs(p - q).sum() / 2),
        "popularity_gini": gini(synthetic),
        "catalogue_coverage": float((synthetic > 0).mean()) if len(synthetic) else NAN,
        "top1_share": float(np.sort(q)[::-1][:top].sum()),
    }


def gini(counts: np.ndarray) -> float:
    """Gini coefficient: 0 where all counts are equal, (n - 1) / n where one has all.

    Args:
        counts: (n,), not negative.

    Returns:
        The coefficient, NaN if all counts are 0.

    Example:
        >>> gini(np.array([2, 2, 2])), gini(np.array([0, 0, 0, 4]))
        (0.0, 0.75)
    """
    values = np.sort(np.asarray(counts, dtype=np.float64))
    total, n = values.sum(), len(values)
    if total <= 0:
        return NAN
    return float(2 * (np.arange(1, n + 1) * values).sum() / (n * total) - (n + 1) / n)


def popularity_slope(train: np.ndarray, synthetic: np.ndarray) -> float:
    """Slope of log synthetic share over log training share: 1 keeps popularity, above 1 amplifies it, 0 flattens it.

    Items are grouped by powers of two of their training count and groups weigh as their training share, because shares
    of single rare items are mostly 0 in a small sample.

    Args:
        train: (items,) training counts.
        synthetic: (items,) counts.

    Returns:
        The slope, NaN with fewer than two groups.

    Example:
        >>> counts = np.array([1, 2, 4, 8, 64, 128])
        >>> round(popularity_slope(counts, 100 * counts), 2), round(popularity_slope(counts, 100 * counts**2), 1)
        (1.0, 2.0)
    """
    known = train > 0
    if not known.any() or synthetic[known].sum() == 0:
        return NAN
    group = np.floor(np.log2(train[known])).astype(np.int64)
    size, mass = np.bincount(group), np.bincount(group, train[known])
    there = size > 0
    # Half a count keeps the logarithm of an empty group finite.
    x = np.log(mass[there] / size[there])
    y = np.log((np.bincount(group, synthetic[known])[there] + 0.5) / size[there])
    weight = mass[there] / mass.sum()
    dx = x - (weight * x).sum()
    spread = (weight * dx**2).sum()
    return float((weight * dx * y).sum() / spread) if spread > 1e-12 else NAN


def _shares(counts: np.ndarray) -> np.ndarray:
    total = counts.sum()
    return counts / total if total else np.full(len(counts), NAN)


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(p > 0, p * np.log2(p / q), 0.0).sum()) if np.isfinite(p).all() else NAN


# ------------------------------------------------------------------------------------------------------ transitions


@dataclass(frozen=True)
class NgramTable:
    """Which n-grams of adjacent items some sequences hold, and how many users have each.

    Args:
        keys: int64, sorted numbers of the n-grams.
        holders: int64 (keys,), users who have it.
        ends: int64 (2, keys), the smallest and the largest number of these users.
        vocab_size: Largest item id.
        n: Items of an n-gram.
    """

    keys: np.ndarray
    holders: np.ndarray
    ends: np.ndarray
    vocab_size: int
    n: int

    @classmethod
    def of(cls, items: Any, vocab_size: int, n: int) -> NgramTable:
        """Collect the n-grams of training sequences.

        Args:
            items: Sequences.
            vocab_size: Largest item id.
            n: Items of an n-gram.
        """
        sequences = SequenceItems.from_items(items)
        row, key = _ngrams(sequences, vocab_size, n)
        user = users_of(sequences)
        user = np.where(user >= 0, user, _UNNAMED + np.arange(len(user)))[row]
        order = np.lexsort((user, key))
        key, user = key[order], user[order]
        new_key = np.diff(key, prepend=-1) != 0
        first = np.flatnonzero(new_key)
        last = np.append(first, len(key))[1:] - 1
        new_user = new_key | (np.diff(user, prepend=-1) != 0)
        holders = np.bincount(np.cumsum(new_key) - 1, new_user, minlength=len(first)).astype(np.int64)
        return cls(key[first], holders, np.stack([user[first], user[last]]), vocab_size, n)

    def others(self, sequences: SequenceItems) -> tuple[np.ndarray, np.ndarray]:
        """Count, for the n-grams of sequences, the users who have them.

        Args:
            sequences: Any.

        Returns:
            For each n-gram its sequence, and the number of users, the sequence's own one left out (from 2 on this may
            be one too many).
        """
        row, key = _ngrams(sequences, self.vocab_size, self.n)
        if not len(self.keys):
            return row, np.zeros(len(row), np.int64)
        place = np.searchsorted(self.keys, key).clip(max=len(self.keys) - 1)
        own = (self.ends[:, place] == users_of(sequences)[row]).any(0)
        return row, np.where(self.keys[place] == key, self.holders[place] - own, 0)


def bigram_rate(table: NgramTable, items: Any) -> float:
    """Share of adjacent pairs that a training sequence of another user holds, in this order and adjacent.

    Args:
        table: Bigrams of the training sequences.
        items: Sequences.

    Returns:
        The share, NaN without pairs.

    Example:
        >>> train = SequenceItems.from_lists([[1, 2, 3], [2, 3, 4]])
        >>> bigram_rate(NgramTable.of(train, vocab_size=4, n=2), SequenceItems.from_lists([[1, 2, 4]]))
        0.5
    """
    return _mean(table.others(SequenceItems.from_items(items))[1] > 0)


def unique_ngram_rate(table: NgramTable, items: Any) -> float:
    """Share of sequences with an n-gram that exactly one training user, another one, holds.

    Args:
        table: N-grams of the training sequences.
        items: Sequences.

    Returns:
        The share among the sequences long enough to hold one, NaN if there are none.

    Example:
        >>> train = SequenceItems.from_lists([[1, 2, 3], [2, 3, 4]])
        >>> unique_ngram_rate(NgramTable.of(train, 4, n=3), SequenceItems.from_lists([[1, 2, 3, 1], [3, 2, 1]]))
        0.5
    """
    sequences = SequenceItems.from_items(items)
    row, others = table.others(sequences)
    long_enough = sequences.lengths.numpy() >= table.n
    copied = np.bincount(row[others == 1], minlength=len(sequences)) > 0
    return _mean(copied[long_enough])


def cooccurrence_rate(index: Any, items: Any, seed: int = 0) -> float:
    """Share of adjacent pairs whose two items some other training user has both of, wherever they stand.

    Args:
        index: Of the training sequences, as `cooccurrence_index` returns.
        items: Sequences; at most 4,000 of their pairs are looked up, by a seeded draw.
        seed: Of the draw.

    Returns:
        The share, NaN without pairs.

    Example:
        >>> train = SequenceItems.from_lists([[1, 2, 3], [2, 4]])
        >>> cooccurrence_rate(cooccurrence_index(train, 4), SequenceItems.from_lists([[3, 1, 4]]))
        0.5
    """
    sequences = SequenceItems.from_items(items)
    row, first, second = _adjacent(sequences)
    if len(row) > _PAIRS:
        kept = np.sort(seeded(seed, "cooccurrence").permutation(len(row))[:_PAIRS])
        row, first, second = row[kept], first[kept], second[kept]
    if not len(row):
        return NAN
    by_item, place = index
    both = by_item[first].multiply(by_item[second]).tocoo()
    own = np.array([place.get(int(user), -1) for user in users_of(sequences)])[row]
    # The user's own training sequence does not count.
    others = both.row[both.col != own[both.row]]
    return _mean(np.bincount(others, minlength=len(row)) > 0)


def cooccurrence_index(items: Any, vocab_size: int) -> tuple[Any, dict[int, int]]:
    """Index which training sequence has which item.

    Args:
        items: Training sequences.
        vocab_size: Largest item id.

    Returns:
        Sparse (vocab_size + 1, sequences) of ones, and the column of each user.
    """
    from scipy.sparse import csr_array

    sequences = SequenceItems.from_items(items)
    row, ids = sequences.position_rows()[0].numpy(), sequences.flat()
    shape = (vocab_size + 1, len(sequences))
    by_item = csr_array((np.ones(len(ids), np.float32), (ids, row)), shape=shape)
    by_item.sum_duplicates()
    place = {int(user): i for i, user in enumerate(users_of(sequences)) if user >= 0}
    return by_item, place


def target_leak(
    items: Any, train: Any, test: Any, vocab_size: int, nearest: int = 3, seed: int = 0
) -> dict[str, float]:
    """Ask whether what a generator put before real users knows the items that they are tested on.

    The made-up items of each user (``item_is_synthetic``), those nearest to the real ones, are paired with three items:
    the user's own test item, that of another user, and the first real one. Of each kind of pairs the share that other
    training users have both of is returned. A generator that saw held-out items has ``own`` at or above ``first``; what
    a user has in common with the future anyway is seen in ``own`` of one that saw training items alone. (The published
    ASReP files of Amazon Beauty, which leak: .181 own, .031 shuffled, .159 first.)

    Args:
        items: Extended sequences with ``user_id`` and ``item_is_synthetic``.
        train: Training sequences.
        test: Test sequences; their last item is the target.
        vocab_size: Largest item id.
        nearest: Made-up items of a user that count.
        seed: Of the other users.

    Returns:
        ``own``, ``shuffled``, ``first``; NaN without such items.

    Example:
        >>> train = SequenceItems.from_items([{"item_id": torch.tensor([1, 2, 3]), "user_id": torch.tensor(0)}])
        >>> test = [{"item_id": torch.tensor([4, 5, 3]), "user_id": torch.tensor(7)}]
        >>> made = torch.tensor([True, False, False])
        >>> extended = [{"item_id": torch.tensor([1, 4, 5]), "user_id": torch.tensor(7), "item_is_synthetic": made}]
        >>> target_leak(extended, train, test, vocab_size=5)
        {'own': 1.0, 'shuffled': 1.0, 'first': 0.0}
    """
    held_out, known = SequenceItems.from_items(test), cooccurrence_index(train, vocab_size)
    target = held_out.columns["item_id"][held_out.stop - 1].numpy()
    place = {int(user): i for i, user in enumerate(users_of(held_out))}
    user, new, first = _made_before(SequenceItems.from_items(items), nearest)
    row = np.array([place.get(int(u), -1) for u in user], dtype=np.int64)
    user, new, first, row = user[row >= 0], new[row >= 0], first[row >= 0], row[row >= 0]
    another = target[seeded(seed, "leak").permutation(len(target))]
    pairs = {"own": target[row], "shuffled": another[row], "first": first}
    return {name: cooccurrence_rate(known, _pairs(user, new, other), seed) for name, other in pairs.items()}


def _made_before(sequences: SequenceItems, nearest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each made-up item just before the real ones: the user, the item, and the first real item."""
    row, index = (part.numpy() for part in sequences.position_rows())
    ids, made = sequences.flat(), sequences.columns.get("item_is_synthetic")
    if made is None:
        return (np.zeros(0, np.int64),) * 3
    made_up = made.numpy().astype(bool)[index]
    border = np.flatnonzero(made_up[:-1] & ~made_up[1:] & (row[:-1] == row[1:]))
    back = border - np.arange(nearest)[:, None]
    kept = (back >= 0) & (row[back] == row[border]) & made_up[back]
    return users_of(sequences)[row[back[kept]]], ids[back[kept]], np.broadcast_to(ids[border + 1], kept.shape)[kept]


def _pairs(user: np.ndarray, first: np.ndarray, second: np.ndarray) -> SequenceItems:
    """Sequences of two items each."""
    stop = 2 * torch.arange(1, len(user) + 1)
    flat = torch.from_numpy(np.stack([first, second], axis=1).reshape(-1))
    return SequenceItems({"item_id": flat}, stop - 2, stop, {"user_id": torch.from_numpy(user)})


def _adjacent(sequences: SequenceItems) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sequence, first and second item of every adjacent pair."""
    row, ids = sequences.position_rows()[0].numpy(), sequences.flat()
    pair = np.flatnonzero(row[1:] == row[:-1])
    return row[pair], ids[pair], ids[pair + 1]


def _ngrams(sequences: SequenceItems, vocab_size: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequence and number of every n-gram; numbers of long ones over large catalogues may wrap, and rarely meet."""
    row, ids = sequences.position_rows()[0].numpy(), sequences.flat()
    count = len(row) - n + 1
    if count <= 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    key = np.zeros(count, np.int64)
    for step in range(n):
        key = key * (vocab_size + 1) + ids[step : step + count]
    inside = row[:count] == row[n - 1 :]
    return row[:count][inside], key[inside]


def users_of(sequences: SequenceItems) -> np.ndarray:
    """Return the user of each sequence, int64 (rows,), -1 where it has none."""
    user = sequences.rows.get("user_id")
    return np.full(len(sequences), -1, np.int64) if user is None else user.numpy().astype(np.int64)


# ---------------------------------------------------------------------------------------------------------- lengths


def length_scores(real: Any, synthetic: Any, max_length: int) -> dict[str, float]:
    """Compare the laws of lengths.

    Args:
        real: Sequences.
        synthetic: Sequences.
        max_length: Longer ones count as this long: a generator makes no longer ones.

    Returns:
        ``length_ks`` Kolmogorov-Smirnov distance, ``length_w1`` Wasserstein-1 distance in items.

    Example:
        >>> one, two = SequenceItems.from_lists([[1], [1, 2]]), SequenceItems.from_lists([[1, 2], [1, 2, 3]])
        >>> length_scores(one, two, max_length=10)
        {'length_ks': 0.5, 'length_w1': 1.0}
    """
    a, b = (
        np.bincount(SequenceItems.from_items(items).lengths.numpy().clip(max=max_length), minlength=max_length + 1)
        for items in (real, synthetic)
    )
    if not a.sum() or not b.sum():
        return {"length_ks": NAN, "length_w1": NAN}
    gap = np.abs(np.cumsum(a / a.sum()) - np.cumsum(b / b.sum()))
    return {"length_ks": float(gap.max()), "length_w1": float(gap.sum())}


def repeat_rate(items: Any) -> float:
    """Share of positions whose item the sequence had before.

    Args:
        items: Sequences.

    Example:
        >>> repeat_rate(SequenceItems.from_lists([[1, 2, 1, 1]]))
        0.5
    """
    sequences = SequenceItems.from_items(items)
    row, ids = sequences.position_rows()[0].numpy(), sequences.flat()
    if not len(ids):
        return NAN
    distinct = len(np.unique(row * (int(ids.max()) + 1) + ids))
    return 1.0 - distinct / len(ids)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else NAN
