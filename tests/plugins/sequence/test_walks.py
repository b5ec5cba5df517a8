"""The untrained generators of sequences: each has the law that its name promises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.sequence.markov import Markov
from lightning_synth.plugins.sequence.neighbour_splice import NeighbourSplice
from lightning_synth.plugins.sequence.popularity import Popularity
from lightning_synth.plugins.sequence.sequential_rules import SequentialRuleSampler
from lightning_synth.plugins.sequence.walks import any_repeats, draw, left_padded
from lightning_synth.schema import describe
from lightning_synth.sequences.items import SequenceItems


def sequences(*rows: list[int]) -> SequenceItems:
    return SequenceItems.from_lists(rows)


def fitted(cls: type, items: SequenceItems, **hparams: object):
    return cls(**hparams).fit_on(items, describe(items, "sequence"))


def ids_of(samples) -> list[list[int]]:
    return [item["item_id"].tolist() for item in samples.items()]


def bigrams(rows: list[list[int]]) -> set[tuple[int, int]]:
    return {pair for ids in rows for pair in pairwise(ids)}


def test_draw_follows_the_weights_and_never_takes_a_zero() -> None:
    u = (torch.arange(10000) + 0.5) / 10000
    counts = torch.bincount(draw(torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]), u), minlength=5)
    assert counts.tolist() == [0, 2500, 0, 7500, 0]
    assert int(draw(torch.tensor([1.0, 0.0]), torch.tensor(1 - 2**-24))) == 0


def test_left_padding_keeps_the_order_and_its_columns() -> None:
    ids = torch.tensor([[5, 0, 6, 0], [0, 0, 0, 7]])
    batch = left_padded(ids, ids > 0, target_weight=torch.tensor([[1.0, 9, 2, 9], [9, 9, 9, 3]]))
    assert batch["item_id"].tolist() == [[5, 6], [0, 7]]
    assert batch["target_weight"].tolist() == [[1, 2], [0, 3]]


def test_popularity_has_the_counts_and_lengths_of_training() -> None:
    items = sequences(*[[1, 1, 1, 2]] * 3, [3, 1])
    rows = ids_of(fitted(Popularity, items).sample(4000))
    share = np.bincount(np.concatenate(rows), minlength=4)[1:] / sum(map(len, rows))
    assert share == pytest.approx([10 / 14, 3 / 14, 1 / 14], abs=0.02)
    lengths = np.bincount([len(ids) for ids in rows])
    assert lengths[[2, 4]] / 4000 == pytest.approx([0.25, 0.75], abs=0.03)


def test_markov_walks_through_bigrams_of_training_only() -> None:
    ring = [[(s + i) % 7 + 1 for i in range(5)] for s in range(7)]
    rows = ids_of(fitted(Markov, sequences(*ring)).sample(300))
    assert bigrams(rows) == bigrams(ring)
    assert {ids[0] for ids in rows} == set(range(1, 8))


def test_markov_has_the_transition_rates_of_training() -> None:
    items = sequences(*[[1, 2]] * 30, *[[1, 3]] * 10)
    rows = ids_of(fitted(Markov, items).sample(4000))
    assert np.mean([ids[1] == 2 for ids in rows]) == pytest.approx(0.75, abs=0.03)


def test_markov_falls_back_to_popularity_where_nothing_followed() -> None:
    # Nothing follows 9, and yet users who start there go on.
    items = sequences([9], [9], [9], [1, 2, 3, 4])
    model = fitted(Markov, items)
    rows = [ids for ids in ids_of(model.sample(400)) if ids[0] == 9 and len(ids) > 1]
    assert rows
    assert {ids[1] for ids in rows} <= {1, 2, 3, 4}


def test_repeats_are_made_only_where_training_has_them() -> None:
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(1, 13), (40, 1)), axis=1)[:, :5]
    distinct, again = sequences(*rows.tolist()), sequences([1, 2, 1, 2, 1], [2, 1, 2, 1, 2])
    assert not any_repeats(distinct)
    assert any_repeats(again)
    for cls in (Markov, SequentialRuleSampler):
        rows = ids_of(fitted(cls, distinct).sample(200))
        assert np.mean([len(set(ids)) == len(ids) for ids in rows]) > 0.99
        assert all(len(set(ids)) <= 2 for ids in ids_of(fitted(cls, again).sample(50)))


def test_rules_reach_items_within_the_window() -> None:
    items = sequences(*[[1, 2, 3]] * 20)
    near = fitted(SequentialRuleSampler, items, window=1, back=0.0, history=1)
    assert bigrams(ids_of(near.sample(200))) == {(1, 2), (2, 3)}
    # 1 to 2 at distance 1, 1 to 3 at distance 2: twice as often the former.
    far = fitted(SequentialRuleSampler, items, window=2, back=0.0)
    second = [ids[1] for ids in ids_of(far.sample(3000)) if len(ids) > 1]
    assert np.mean(np.array(second) == 2) == pytest.approx(2 / 3, abs=0.03)


def test_the_score_of_a_step_is_that_of_the_recommender() -> None:
    from lightning_synth.downstream.sequential_rules import SequentialRules

    draw_ = np.random.default_rng(0)
    items = sequences(*[(1 + draw_.permutation(8)[:5]).tolist() for _ in range(40)])
    model = fitted(SequentialRuleSampler, items)
    past = torch.tensor([[3, 6]]).expand(20000, -1)
    u = torch.rand(20000, 8, 3, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(model._next(past, u), minlength=9) / 20000
    rules = SequentialRules(model.schema).fit(items)
    wanted = rules.item_scores(sequences([3, 6]))[0]
    wanted[[0, 3, 6]] = 0
    assert torch.allclose(share.double(), wanted / wanted.sum(), atol=0.012)


def test_a_splice_is_a_neighbours_past_and_the_users_own_present() -> None:
    items = sequences([1, 2, 3, 4], [8, 7, 3, 6])
    rows = fitted(NeighbourSplice, items).sample(400).items()
    seen = {tuple(item["item_id"].tolist()): item for item in rows}
    assert (1, 2, 3, 6) in seen
    assert (8, 7, 3, 4) in seen
    crossed = seen[(1, 2, 3, 6)]
    assert crossed["item_is_synthetic"].tolist() == [True, True, False, False]
    assert crossed["target_weight"].tolist() == [0, 0, 1, 1]
    for ids, item in seen.items():
        assert len(set(ids)) == len(ids)
        assert not item["item_is_synthetic"][-1]


def test_the_neighbour_who_shares_most_is_taken() -> None:
    items = sequences([1, 2, 3, 4], [9, 8, 3, 5], [6, 2, 3, 4])
    rows = ids_of(fitted(NeighbourSplice, items, candidates=64).sample(600))
    cut_at_three = [ids for ids in rows if ids[-2:] == [3, 4]]
    assert not any(ids[:2] == [9, 8] for ids in cut_at_three)


def test_bad_settings_are_named() -> None:
    for cls, wrong in ((SequentialRuleSampler, {"decay": 1.5}), (NeighbourSplice, {"candidates": 0})):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            cls(**wrong)
