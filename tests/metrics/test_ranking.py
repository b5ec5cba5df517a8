"""Ranks, cut-offs, buckets and paired intervals have known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.metrics.ranking import (
    length_buckets,
    paired_bootstrap,
    popularity_buckets,
    ranking_scores,
    target_ranks,
    user_values,
)


def test_ties_share_the_mean_of_their_places() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 2.0, 2.0, 1.0]])
    assert target_ranks(scores, torch.tensor([0, 1])).tolist() == [2.5, 2.5]


def test_a_target_that_must_not_be_recommended_comes_last() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf], [torch.nan, 1.0, 2.0]])
    assert target_ranks(scores, torch.tensor([0, 0])).tolist() == [3.0, 3.0]


def test_scores_of_known_ranks() -> None:
    result = ranking_scores(np.array([1.0, 2.0, 10.0, 11.0]), ks=(10,))
    assert result["hr@10"] == 0.75
    assert result["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(11)) / 4)
    assert result["mrr@10"] == pytest.approx((1 + 0.5 + 0.1) / 4)
    assert np.isnan(ranking_scores(np.zeros(0))["ndcg@10"])


def test_unknown_metrics_are_named() -> None:
    for name in ("ndcg", "precision@10", "hr@0"):
        with pytest.raises(ConfigError, match=name):
            user_values(np.ones(1), name)


def test_buckets_part_the_users() -> None:
    groups = length_buckets(np.arange(40))
    assert sum(rows.astype(int) for rows in groups.values()).tolist() == [1] * 40
    counts = np.concatenate([[0], np.arange(10, 0, -1)])
    groups = popularity_buckets(np.arange(1, 11), counts)
    assert [int(rows.sum()) for rows in groups.values()] == [2, 3, 5]
    assert groups["head"][:2].all()


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        # The same user hits with one recommender as often as with the other: the true difference is 0.
        ranks = np.where(rng.random((2, 300)) < 0.3, 1.0, 50.0)
        result = paired_bootstrap(ranks[0], ranks[1], "hr@10", repeats=300, seed=trial)["all"]
        covered += result["low"] <= 0 <= result["high"]
    assert 180 <= covered <= 199


def test_pairing_removes_what_users_have_in_common() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(1, 200, 1000).astype(float)
    better = np.maximum(1.0, base - (rng.random(1000) < 0.3))
    result = paired_bootstrap(better, base, "mrr@200", groups={"first": np.arange(1000) < 500})
    assert result["all"]["low"] > 0
    assert result["first"]["users"] == 500
    unpaired = user_values(base, "mrr@200").std() / np.sqrt(1000)
    assert result["all"]["high"] - result["all"]["low"] < 2 * unpaired


def test_seeds_are_averaged_within_a_user() -> None:
    two = np.array([[1.0, 1.0], [50.0, 50.0]])
    result = paired_bootstrap(two, np.array([50.0, 50.0]), "hr@10")["all"]
    assert (result["a"], result["difference"]) == (0.5, 0.5)
    with pytest.raises(ConfigError, match="paired"):
        paired_bootstrap(np.ones(3), np.ones(4))
