"""Policies, the order of the mixture, and the loader's position."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_synth.errors import ConfigError, EmptyPoolError
from lightning_synth.mixing import Anneal, BalanceClasses, FixedRatio, MixedLoader, MixtureSampler
from lightning_synth.mixing.policies import split_evenly

SIZES = [(8, 1), (8, 2), (8, 3), (3, 2), (2, 2)]


def blocks(epoch=0, world_size=1, **options):
    """The batches of one epoch in the order of steps and ranks."""
    ranks = []
    for rank in range(world_size):
        sampler = MixtureSampler(**{"num_replicas": world_size, "rank": rank, **options})
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
    assert len({len(rank) for rank in ranks}) == 1, "all ranks need the same number of steps"
    return [block for step in zip(*ranks, strict=True) for block in step]


def synthetic_of(found, num_real):
    return [int(i) - num_real for block in found for i in block.rows[block.num_real :]]


def real_of(found):
    return [int(i) for block in found for i in block.rows[: block.num_real]]


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(("batch_size", "world_size"), SIZES)
@pytest.mark.parametrize("items", [4, 7, 24, 25, 97])
def test_batches_cover_all_items_with_equal_steps(items, batch_size, world_size):
    sizes = split_evenly(items, batch_size, world_size)
    assert sizes.sum() == items
    assert len(sizes) % world_size == 0
    assert sizes.min() >= 1
    # One item a batch more only where a batch cannot be split.
    assert sizes.max() <= batch_size + (batch_size == 1)


def test_known_split_with_less_than_one_item_a_rank_left():
    assert split_evenly(13, 4, 3).tolist() == [3, 2, 2, 2, 2, 2]


def test_fewer_items_than_processes_is_an_error():
    with pytest.raises(ConfigError, match="2 training items cannot be shared by 3 processes"):
        split_evenly(2, 8, 3)


# ---------------------------------------------------------------- ratios


@pytest.mark.parametrize("policy", [0.0, 0.25, 0.5, 0.7, Anneal(0.5, 0.0, 4), Anneal(0.1, 0.6, 3, "cosine")])
@pytest.mark.parametrize("mode", ["append", "replace"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ratio_is_exact_in_every_batch_and_real_items_once_an_epoch(policy, mode, world_size):
    for num_real, epoch in itertools.product((9, 41, 97), range(4)):
        options = {"num_real": num_real, "num_synthetic": 20, "batch_size": 8, "ratio": policy, "mode": mode}
        found = blocks(epoch, world_size, **options)
        share = policy if isinstance(policy, float) else policy.ratio(epoch)
        for block in found:
            assert len(block.rows) - block.num_real == round(share * len(block.rows))
            assert 1 <= len(block.rows) <= 8
        if mode == "append":
            assert sorted(real_of(found)) == list(range(num_real))
        else:
            assert sum(len(block.rows) for block in found) == num_real


def test_full_batches_hold_the_rounded_share():
    found = blocks(num_real=24, num_synthetic=9, batch_size=8, ratio=0.25)
    assert [(block.num_real, len(block.rows)) for block in found] == [(6, 8)] * 4


def test_replace_mode_sees_all_real_items_over_epochs():
    options = {"num_real": 20, "num_synthetic": 50, "batch_size": 4, "ratio": 0.5, "mode": "replace"}
    epochs = [real_of(blocks(epoch, **options)) for epoch in range(4)]
    assert [len(set(real)) for real in epochs] == [10] * 4
    assert sorted(epochs[0] + epochs[1]) == sorted(epochs[2] + epochs[3]) == list(range(20))


def test_synthetic_only():
    found = blocks(num_real=10, num_synthetic=30, batch_size=4, ratio=1.0, mode="replace")
    assert real_of(found) == []
    assert len(synthetic_of(found, 10)) == 10
    assert found[0].weight == 1.0


@pytest.mark.parametrize("start", [0.5, 0.0])
def test_anneal_keeps_the_number_of_steps(start):
    policy = Anneal(start, 0.5 - start, epochs=5)
    options = {"num_real": 50, "num_synthetic": 30, "batch_size": 8, "ratio": policy}
    assert {len(blocks(epoch, **options)) for epoch in range(7)} == {13}


def test_cosine_is_half_way_in_the_middle_and_flat_at_the_ends():
    policy = Anneal(0.6, 0.2, epochs=11, shape="cosine")
    assert policy.ratio(0) == pytest.approx(0.6)
    assert policy.ratio(5) == pytest.approx(0.4)
    assert policy.ratio(10) == policy.ratio(99) == pytest.approx(0.2)
    assert policy.ratio(0) - policy.ratio(1) < (policy.ratio(4) - policy.ratio(5)) / 4


# ---------------------------------------------------------------- classes

LABELS = np.repeat([0, 1, 2], [40, 12, 5])
POOL = np.tile([2, 1, 0], 10)


@pytest.mark.parametrize(("target", "expected"), [("max", 40), ("median", 12), (20, 20), (60, 60)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_classes_are_filled_exactly(target, expected, world_size):
    options = {"ratio": BalanceClasses(target), "real_labels": LABELS, "synthetic_labels": POOL}
    for epoch in range(2):
        found = blocks(epoch, world_size, num_real=57, num_synthetic=30, batch_size=8, **options)
        seen = np.concatenate([LABELS, POOL])[np.concatenate([block.rows for block in found])]
        assert np.bincount(seen).tolist() == [max(expected, count) for count in (40, 12, 5)]
        assert sorted(real_of(found)) == list(range(57))


def test_fill_is_spread_evenly_over_batches_and_classes():
    options = {"ratio": BalanceClasses("max"), "real_labels": LABELS, "synthetic_labels": POOL}
    found = blocks(num_real=57, num_synthetic=30, batch_size=12, **options)
    counts = [len(block.rows) - block.num_real for block in found]
    assert max(counts[:-1]) - min(counts[:-1]) <= 1
    rare = [int((POOL[block.rows[block.num_real :] - 57] == 2).sum()) for block in found]
    assert max(rare[:-1]) - min(rare[:-1]) <= 1


def test_a_class_that_the_pool_lacks_is_an_error():
    with pytest.raises(EmptyPoolError, match=r"no items of class \[2\]"):
        MixtureSampler(57, 3, 8, ratio=BalanceClasses("max"), real_labels=LABELS, synthetic_labels=np.array([0, 1, 1]))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_match_gives_each_synthetic_item_the_label_of_a_real_one(ratio):
    options = {"match": "label", "real_labels": LABELS, "synthetic_labels": POOL, "ratio": ratio}
    for epoch in range(2):
        for block in blocks(epoch, num_real=57, num_synthetic=30, batch_size=8, **options):
            real, synthetic = LABELS[block.rows[: block.num_real]], POOL[block.rows[block.num_real :] - 57]
            assert synthetic.tolist() == np.resize(real, len(synthetic)).tolist()


def test_matched_cycles_use_every_item_of_a_class_before_any_twice():
    options = {"match": "label", "real_labels": LABELS, "synthetic_labels": POOL}
    used = []
    for epoch in range(3):
        used += synthetic_of(blocks(epoch, num_real=57, num_synthetic=30, batch_size=8, **options), 57)
    ones = [i for i in used if POOL[i] == 1]
    assert len(ones) == 36
    assert set(np.bincount(ones, minlength=30)[POOL == 1].tolist()) == {3, 4}


# ---------------------------------------------------------------- order


def test_order_is_a_function_of_seed_and_epoch():
    options = {"num_real": 30, "num_synthetic": 11, "batch_size": 8, "ratio": 0.25}
    rows = {
        (seed, epoch): np.concatenate([block.rows for block in blocks(epoch, seed=seed, **options)]).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in rows.values()}) == 4
    again = MixtureSampler(**options)
    # Epochs may be asked for in any order.
    for epoch in (1, 0, 1):
        again.set_epoch(epoch)
        assert np.concatenate([block.rows for block in again]).tolist() == rows[0, epoch]


def test_synthetic_cycles_are_reshuffled_and_go_on_across_epochs():
    options = {"num_real": 40, "num_synthetic": 7, "batch_size": 8, "ratio": 0.5}
    stream = [i for epoch in range(3) for i in synthetic_of(blocks(epoch, **options), 40)]
    cycles = [stream[i : i + 7] for i in range(0, 7 * (len(stream) // 7), 7)]
    assert len(stream) == 120
    assert all(sorted(cycle) == list(range(7)) for cycle in cycles)
    assert len({tuple(cycle) for cycle in cycles}) > len(cycles) - 2


def test_number_of_processes_changes_only_who_gets_a_full_batch():
    options = {"num_real": 64, "num_synthetic": 11, "batch_size": 8, "ratio": 0.5}
    one, two = blocks(1, 1, **options), blocks(1, 2, **options)
    assert [block.rows.tolist() for block in one] == [block.rows.tolist() for block in two]


def test_global_random_state_is_left_alone():
    torch.manual_seed(0), np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    sampler = MixtureSampler(30, 11, 8, ratio=0.25)
    for _ in MixedLoader(_Rows(), sampler, list):
        pass
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


# ---------------------------------------------------------------- weights


def test_weight_caps_the_synthetic_total_at_the_real_one():
    [block, *_] = blocks(num_real=30, num_synthetic=90, batch_size=8, ratio=0.75)
    assert block.weight == pytest.approx(30 / 90)
    assert blocks(num_real=30, num_synthetic=90, batch_size=8, ratio=0.25)[0].weight == 1.0
    assert blocks(num_real=30, num_synthetic=90, batch_size=8, weight=0.3)[0].weight == 0.3


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": -0.1}, "between 0 and 1"),
        ({"ratio": 1.5}, "between 0 and 1"),
        ({"ratio": float("nan")}, "between 0 and 1"),
        ({"ratio": 1.0}, "leaves no real item"),
        ({"ratio": 0.95}, "leaves no real item"),
        ({"mode": "mix"}, "mode must be"),
        ({"match": "rpm"}, "match must be"),
        ({"match": "label"}, "needs labels"),
        ({"weight": "full"}, "weight must be"),
        ({"weight": -1.0}, "weight must be"),
        ({"ratio": BalanceClasses()}, "needs labels"),
        ({"ratio": BalanceClasses(), "mode": "replace"}, "use mode='append'"),
        ({"num_real": 0}, "needs real items"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        MixtureSampler(**{"num_real": 30, "num_synthetic": 10, "batch_size": 8, **options})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Anneal(0.5, 1.5, 3),
        lambda: Anneal(0.5, 0.0, 0),
        lambda: Anneal(0.5, 0.0, 3, "square"),
        lambda: BalanceClasses("mean"),
        lambda: BalanceClasses(0),
        lambda: FixedRatio(2),
    ],
)
def test_impossible_policies_are_named(make):
    with pytest.raises(ConfigError):
        make()


def test_empty_pool_is_an_error_unless_nothing_is_asked_of_it():
    with pytest.raises(EmptyPoolError):
        MixtureSampler(30, 0, 8, ratio=0.5)
    assert len(list(MixtureSampler(30, 0, 8, ratio=0.0))) == 4


def test_small_pools_and_vanishing_ratios_warn():
    with pytest.warns(UserWarning, match="a batch takes 4 synthetic items, the pool has 3"):
        MixtureSampler(30, 3, 8)
    with pytest.warns(UserWarning, match="is no synthetic item"):
        MixtureSampler(30, 3, 8, ratio=0.01)


# ---------------------------------------------------------------- loader


class _Rows:
    def __getitem__(self, block):
        return block.rows.tolist()

    def __len__(self):
        return 41


def loader(num_workers=0):
    return MixedLoader(_Rows(), MixtureSampler(30, 11, 8, ratio=0.25), _same, num_workers)


def _same(rows):
    return rows


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_continues_where_it_stopped(num_workers):
    first = loader(num_workers)
    first.sampler.set_epoch(3)
    full, states = [], [first.state_dict()]
    for batch in first:
        full.append(batch)
        states.append(first.state_dict())
    assert states == [{"epoch": 3, "batches": i} for i in range(len(full) + 1)]
    for done in (1, 3):
        again = loader(num_workers)
        again.load_state_dict(states[done])
        assert again.state_dict() == states[done]
        assert list(again) == full[done:]
        # The position is used once; the next pass is a whole epoch.
        assert list(again) == full


def test_loader_starts_anew_in_another_epoch():
    resumed = loader()
    resumed.load_state_dict({"epoch": 3, "batches": 2})
    resumed.sampler.set_epoch(4)
    assert len(list(resumed)) == len(resumed)


def test_loader_needs_its_sampler():
    with pytest.raises(ConfigError, match="needs a MixtureSampler"):
        MixedLoader(_Rows(), torch.utils.data.SequentialSampler(_Rows()), _same)


def test_sampler_serves_a_plain_loader():
    plain = DataLoader(_Rows(), sampler=MixtureSampler(30, 11, 8, ratio=0.25), batch_size=None)
    assert [len(rows) for rows in plain] == [8] * 5
