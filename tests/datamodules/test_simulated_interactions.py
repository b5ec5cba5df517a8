"""The simulated log follows its own law, and that law ranks best."""

import numpy as np
import pytest
import torch

from lightning_synth.datamodules import InteractionDataModule
from lightning_synth.datamodules.simulated_interactions import SimulatedInteractions
from lightning_synth.errors import ConfigError


def transitions(log):
    row = np.repeat(np.arange(len(log.sizes)), log.sizes)
    pair = np.flatnonzero(row[1:] == row[:-1])
    return log.item[pair], log.item[pair + 1]


def test_transitions_follow_the_law():
    simulated = SimulatedInteractions(2000, 20, min_length=20, mean_length=20, repeats=True, rule=0.7)
    first, second = transitions(simulated.log())
    for item in (1, 7, 20):
        law = simulated.probabilities([torch.tensor([item])])[0]
        seen = np.bincount(second[first == item], minlength=21)
        count = seen.sum()
        z = (seen - count * law) / np.sqrt(np.maximum(count * law * (1 - law), 1))
        assert count > 500 and np.abs(z).max() < 4.5


def test_without_repeats_the_law_is_renormalised():
    simulated = SimulatedInteractions(3000, 12, min_length=3, mean_length=3, seed=5)
    items = simulated.sequences()
    assert all(len(set(item["item_id"].tolist())) == len(item["item_id"]) for item in items)
    ids = np.array([item["item_id"].tolist() for item in items])
    start, counts = max(
        ((tuple(p), int(c)) for p, c in zip(*np.unique(ids[:, :2], axis=0, return_counts=True), strict=True)),
        key=lambda x: x[1],
    )
    law = simulated.probabilities([torch.tensor(start)])[0]
    seen = np.bincount(ids[(ids[:, :2] == start).all(1), 2], minlength=13)
    z = (seen - counts * law) / np.sqrt(np.maximum(counts * law * (1 - law), 1))
    assert law[list(start)].tolist() == [0, 0] and counts > 50 and np.abs(z).max() < 4


def test_popularity_is_long_tailed_and_no_order_of_ids():
    simulated = SimulatedInteractions()
    counts = np.bincount(simulated.log().item, minlength=1683)[1:]
    top = np.sort(counts)[::-1]
    assert top[:168].sum() > 0.3 * counts.sum()
    assert abs(np.corrcoef(np.arange(1682), counts)[0, 1]) < 0.1


def test_the_law_ranks_better_than_popularity():
    simulated = SimulatedInteractions(300, 200, min_length=10, mean_length=20, seed=1)
    data = InteractionDataModule(simulated)
    test = data.test_items()
    target = torch.stack([item["item_id"][-1] for item in test]).numpy()
    law = simulated.probabilities([item["item_id"][:-1] for item in test])
    popular = np.tile(np.array(data.schema["item_counts"], float), (len(test), 1))
    for row, item in enumerate(test):
        popular[row, item["item_id"][:-1].numpy()] = -1
    rows = np.arange(len(test))
    hits = [((scores > scores[rows, target][:, None]).sum(1) < 10).mean() for scores in (law, popular)]
    assert hits[0] > 0.6 and hits[1] < 0.4
    # Among those who follow the rule, the four successors lead.
    assert law[rows, target].mean() > 0.1


def test_ties_are_as_asked():
    report = InteractionDataModule(SimulatedInteractions(400, 100, tied=0.3)).report
    assert report["ties"]["adjacent_pairs"] == pytest.approx(0.3, abs=0.02)


def test_the_same_seed_simulates_the_same():
    one, two, other = (SimulatedInteractions(50, 60, seed=s).log() for s in (1, 1, 2))
    assert (one.item == two.item).all() and (one.time == two.time).all()
    assert len(other.item) != len(one.item) or (other.item != one.item).any()


def test_successors_are_four_others():
    found = SimulatedInteractions(10, 6).successors[1:]
    assert all(len(set(row)) == 4 and i not in row and min(row) >= 1 for i, row in enumerate(found.tolist(), 1))


@pytest.mark.parametrize("options", ({"num_items": 4}, {"num_users": 0}, {"rule": 1.5}, {"mean_length": 2}))
def test_impossible_numbers_are_refused(options):
    with pytest.raises(ConfigError):
        SimulatedInteractions(**options)


def test_what_does_not_fit_in_memory_asks_for_repeats():
    with pytest.raises(ConfigError, match="repeats=True"):
        SimulatedInteractions(1_000_000, 100_000)
