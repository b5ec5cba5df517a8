"""Sequential rules count what they say they count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_synth.downstream import SequentialRules, get_downstream
from lightning_synth.errors import ConfigError, DataError, NotFittedError
from lightning_synth.sequences.items import SequenceItems

SCHEMA = {"domain": "sequence", "vocab_size": 5, "max_length": 8, "item_counts": [0, 2, 2, 2, 1, 1]}


def fitted(sequences: list[list[int]], weight: np.ndarray | None = None, **settings: float) -> SequentialRules:
    return SequentialRules(SCHEMA, **settings).fit(SequenceItems.from_lists(sequences), weight=weight)


def test_rules_weigh_one_over_the_distance_and_half_of_it_back() -> None:
    rules = fitted([[1, 2, 3]]).rules.toarray()
    assert rules[1, 2] == 1
    assert rules[1, 3] == 0.5
    assert rules[3, 1] == 0.25
    assert rules[2, 1] == 0.5


def test_pairs_do_not_cross_users_or_the_window() -> None:
    rules = fitted([[1, 2], [3, 4, 5]], window=1, back=0.0).rules.toarray()
    assert set(zip(*rules.nonzero(), strict=True)) == {(1, 2), (3, 4), (4, 5)}


def test_weights_of_users_and_of_positions_count() -> None:
    assert fitted([[1, 2], [1, 2]], np.array([1.0, 0.5]), back=0.0).rules[1, 2] == 1.5
    item = {"item_id": torch.tensor([1, 2, 3]), "target_weight": torch.tensor([0.0, 0.0, 2.0])}
    rules = SequentialRules(SCHEMA, back=0.0).fit([item]).rules.toarray()
    assert rules[1, 2] == 0
    assert rules[2, 3] == 2


def test_recent_items_fire_more() -> None:
    model = fitted([[1, 4], [2, 5]], back=0.0, decay=0.5)
    scores = model.item_scores(SequenceItems.from_lists([[1, 2], [2, 1]]))
    assert scores[0, 5] == pytest.approx(1, abs=1e-5)
    assert scores[0, 4] == pytest.approx(0.5, abs=1e-5)
    assert scores[1, 4] > scores[1, 5]


def test_popularity_breaks_ties() -> None:
    model = fitted([[1, 2], [3, 2], [4, 5]], back=0.0)
    assert model.ranks([{"item_id": torch.tensor([5, 2])}]).tolist() == [1.0]


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="decay"):
        SequentialRules(SCHEMA, decay=0.0)
    with pytest.raises(ConfigError, match="graph"):
        SequentialRules({"domain": "graph"})
    with pytest.raises(DataError, match="0"):
        SequentialRules(SCHEMA).fit([])
    with pytest.raises(NotFittedError, match="fit"):
        SequentialRules(SCHEMA).ranks([{"item_id": torch.tensor([1, 2])}])
    assert get_downstream("sequential_rules") is SequentialRules
