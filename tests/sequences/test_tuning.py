"""Pairs are tuned on validation items and nothing else."""

import math

import pytest

from lightning_synth.datamodules import InteractionDataModule
from lightning_synth.datamodules.simulated_interactions import SimulatedInteractions
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.sequences import PairSampler, tune_pairs


def small():
    return InteractionDataModule(
        SimulatedInteractions(80, 30, min_length=4, mean_length=8), batch_size=16, max_length=8, sampler={"alpha": 0.0}
    )


def test_one_exponent_after_the_other():
    def score(data):
        s = data.sampler
        return -abs(s.alpha - 0.5) - abs(s.beta - 2) - (s.gamma == math.inf)

    found = tune_pairs(small(), score, progress=False)
    assert (found.best.alpha, found.best.beta, found.best.gamma) == (0.5, 2.0, 0.0)
    assert len(found.table) == 11 and found.table["score"].max() == 0
    worst = tune_pairs(small(), score, higher_is_better=False, progress=False)
    assert worst.best.alpha == 2.0 and worst.best.beta == 0.0 and worst.best.gamma == math.inf


def test_the_data_stay_as_they_are_and_are_read_once():
    data, seen = small(), []
    tune_pairs(data, lambda d: seen.append(d.train_items()) or 0.0, settings=[(0, 0, 0), (2, 1, 0)], progress=False)
    assert data.sampler.alpha == 0.0 and data.sampler.gamma == math.inf
    assert all(items is data.train_items() for items in seen) and len(seen) == 2


def test_a_network_is_trained_on_pairs_and_scored_on_validation_items():
    data = small()
    data.test_items = lambda: pytest.fail("test items were looked at")
    options = {"dim": 8, "num_layers": 1, "heads": 1}
    found = tune_pairs(
        data,
        "sasrec",
        settings=[(1, 0, math.inf), (0, math.inf, math.inf)],
        max_steps=3,
        model_options=options,
        progress=False,
    )
    assert isinstance(found.best, PairSampler) and found.table["score"].between(0, 1).all()
    again = tune_pairs(data, "sasrec", settings=[(1, 0, math.inf)], max_steps=3, model_options=options, progress=False)
    assert again.table["score"][0] == found.table["score"][0]


def test_what_pairs_cannot_change_is_refused():
    with pytest.raises(ConfigError, match="not trained on batches"):
        tune_pairs(small(), "sequential_rules")
    with pytest.raises(DataError, match="no validation items"):
        tune_pairs(InteractionDataModule([[1, 2], [2, 1]]), "sasrec")
