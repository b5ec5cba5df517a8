"""Pairs are drawn by their law; the usual recipes are special cases of it."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.sequences import PairSampler, SequenceItems

#: Items tell users and positions apart: user u has 10u+1, 10u+2, ...
SIZES = (1, 2, 4, 7)
ITEMS = SequenceItems.from_lists([[10 * u + t + 1 for t in range(n)] for u, n in enumerate(SIZES)])
DRAWS = 40_000


def counted(sampler, **options):
    pairs = sampler.bind(ITEMS, **options)
    drawn = pairs.__getitems__(torch.arange(DRAWS))
    ids, start, stop = drawn.columns["item_id"], drawn.start, drawn.stop
    return Counter(tuple(ids[a:b].tolist()) for a, b in zip(start, stop, strict=True))


def agrees(found, law):
    """Counts against probabilities, cell by cell, within 4.5 standard deviations; nothing else occurs."""
    total = sum(law.values())
    assert set(found) <= {key for key, p in law.items() if p > 0}
    for key, p in law.items():
        expected = DRAWS * p / total
        assert abs(found[key] - expected) < 4.5 * math.sqrt(max(expected, 1)), (key, found[key], expected)


def law_of(alpha, beta, gamma):
    """All pairs written out, with the probability of each by the definition."""
    law = {}
    for u, n in enumerate(SIZES):
        targets = n - 1
        if not targets:
            continue
        t_weight = {t: float(t == targets) if beta == math.inf else t**beta for t in range(1, targets + 1)}
        for t, p_t in t_weight.items():
            l_weight = {k: float(k == t) if gamma == math.inf else k**gamma for k in range(1, t + 1)}
            for k, p_l in l_weight.items():
                window = tuple(10 * u + i + 1 for i in range(t - k, t + 1))
                law[window] = targets**alpha * p_t / sum(t_weight.values()) * p_l / sum(l_weight.values())
    return law


@pytest.mark.parametrize("exponents", ((1, 0, math.inf), (0, math.inf, math.inf), (0.5, 2, 1), (1.5, -1, 0), (2, 1, 0)))
def test_counts_follow_the_law(exponents):
    agrees(counted(PairSampler(*exponents)), law_of(*exponents))


def test_last_target_is_the_whole_sequence_of_every_user():
    found = counted(PairSampler.last_target())
    assert set(found) == {tuple(item["item_id"].tolist()) for item in ITEMS if len(item["item_id"]) > 1}


def test_multi_target_is_every_prefix_alike():
    prefixes = [tuple(ids[:t]) for ids in (i["item_id"].tolist() for i in ITEMS) for t in range(2, len(ids) + 1)]
    agrees(counted(PairSampler.multi_target()), dict.fromkeys(prefixes, 1.0))


def test_sliding_window_is_every_part_of_a_sequence_alike():
    found = counted(PairSampler.sliding_window())
    for user, size in enumerate(SIZES[1:], start=1):
        own = {window: count for window, count in found.items() if window[0] // 10 == user}
        parts = [
            tuple(10 * user + i + 1 for i in range(a, b)) for a, b in combinations(range(size + 1), 2) if b - a >= 2
        ]
        assert set(own) == set(parts) and len(parts) == size * (size - 1) // 2
        expected = sum(own.values()) / len(parts)
        assert max(abs(count - expected) for count in own.values()) < 4.5 * math.sqrt(expected)


def test_equal_users_weigh_alike_as_repeated_padding_makes_them():
    users = Counter()
    for window, count in counted(PairSampler.equal_users()).items():
        users[window[0] // 10] += count
    assert set(users) == {1, 2, 3}
    assert max(abs(count - DRAWS / 3) for count in users.values()) < 4.5 * math.sqrt(DRAWS / 3)


def test_weights_of_sequences_multiply():
    found = counted(PairSampler.last_target(), weight=[9.0, 0.0, 1.0, 3.0])
    assert found[(21, 22, 23, 24)] + found[tuple(range(31, 38))] == DRAWS
    assert found[(21, 22, 23, 24)] == pytest.approx(DRAWS / 4, abs=4.5 * math.sqrt(DRAWS / 4))


def test_only_the_last_position_is_a_target():
    pairs = PairSampler(size=50).bind(ITEMS)
    batch = pairs.__getitems__(range(50)).padded(10)
    assert batch["target_weight"][:, :-1].eq(0).all() and batch["target_weight"][:, -1].eq(1).all()
    assert pairs[3]["target_weight"].tolist()[-1] == 1


def test_a_synthetic_target_keeps_its_own_weight():
    items = [{"item_id": torch.tensor([1, 2, 3]), "target_weight": torch.tensor([0.0, 0.25, 0.25])}]
    batch = PairSampler.last_target().bind(items).__getitems__([0]).padded(4)
    assert batch["target_weight"].tolist() == [[0, 0, 0, 0.25]]


def test_a_draw_is_a_function_of_seed_and_number():
    pairs = PairSampler(2, 1, 0).bind(ITEMS, seed=3)
    alone = [pairs[i]["item_id"].tolist() for i in (7, 900, 5)]
    together = [item["item_id"].tolist() for item in pairs.__getitems__([7, 900, 5])]
    assert alone == together
    again, other = (PairSampler(2, 1, 0).bind(ITEMS, seed=s) for s in (3, 4))
    some = range(200)
    lists = [[item["item_id"].tolist() for item in p.__getitems__(some)] for p in (pairs, again, other)]
    assert lists[0] == lists[1] != lists[2]


def test_many_users_can_all_be_drawn():
    """One in a million: 24 bits of a float32 would favour some users over others."""
    count = 1 << 20
    columns = {"item_id": torch.arange(2 * count)}
    stop = 2 * torch.arange(1, count + 1)
    pairs = PairSampler.last_target().bind(SequenceItems(columns, stop - 2, stop))
    user = pairs.take(torch.arange(1 << 18)).start // 2
    odd = float((user % 2).double().mean())
    assert odd == pytest.approx(0.5, abs=4.5 * 0.5 / 512)
    assert np.unique(user.numpy()).size > 0.85 * (1 << 18)


@pytest.mark.parametrize("options", ({"alpha": math.inf}, {"beta": math.nan}, {"gamma": 1000.0}, {"size": 0}))
def test_impossible_exponents_are_refused(options):
    with pytest.raises(ConfigError):
        PairSampler(**options)


def test_no_pairs_is_an_error():
    with pytest.raises(DataError, match="no training sequence has two items"):
        PairSampler().bind(SequenceItems.from_lists([[1], [2]]))
    with pytest.raises(DataError, match="weights of all sequences"):
        PairSampler().bind(SequenceItems.from_lists([[1, 2], [2]]), weight=[0, 1])
    with pytest.raises(DataError, match="weight must be 2 finite numbers"):
        PairSampler().bind(SequenceItems.from_lists([[1, 2], [2]]), weight=[1, math.nan])
