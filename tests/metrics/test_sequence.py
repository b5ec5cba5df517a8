"""Metrics of sequences: known answers, real halves within noise, faults found."""

import math

import numpy as np
import pytest
import torch

import lightning_synth as ls
from lightning_synth.datamodules import InteractionDataModule
from lightning_synth.datamodules.simulated_interactions import SimulatedInteractions
from lightning_synth.metrics.sequence import (
    METRICS,
    NgramTable,
    PopularityShift,
    SequenceLengths,
    SequenceTransitions,
    bigram_rate,
    cooccurrence_index,
    cooccurrence_rate,
    gini,
    length_scores,
    popularity_scores,
    popularity_slope,
    repeat_rate,
    target_leak,
    unique_ngram_rate,
)
from lightning_synth.sequences import SequenceItems, to_text

SCHEMA = {"domain": "sequence", "vocab_size": 6, "max_length": 10}


def items(lists, users=None):
    rows = [{"item_id": torch.tensor(ids)} for ids in lists]
    if users is not None:
        rows = [row | {"user_id": torch.tensor(user)} for row, user in zip(rows, users, strict=True)]
    return SequenceItems.from_items(rows)


# -------------------------------------------------------------------------------------------------------- known answers


def test_divergences_of_known_shares():
    scores = popularity_scores(np.array([3, 1]), np.array([1, 3]))
    assert scores["popularity_tv"] == pytest.approx(0.5)
    # 1 - H(1/4): the mean of the two is uniform.
    assert scores["popularity_js"] == pytest.approx(1 - (-0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)))
    assert popularity_scores(np.array([2, 2]), np.array([5, 5]))["popularity_js"] == 0


def test_gini_coverage_and_top_share():
    counts = np.r_[np.full(199, 1), 801]
    scores = popularity_scores(np.ones(200), counts)
    assert scores["top1_share"] == pytest.approx(802 / 1000)
    assert scores["catalogue_coverage"] == 1
    assert gini(np.array([1, 3])) == pytest.approx(0.25)
    assert math.isnan(gini(np.zeros(3)))


@pytest.mark.parametrize("power", (0.0, 0.5, 1.0, 2.0))
def test_slope_is_the_power_of_amplification(power):
    train = np.repeat(2.0 ** np.arange(10), 50).astype(np.int64)
    assert popularity_slope(train, (1e6 * train**power).astype(np.int64)) == pytest.approx(power, abs=0.01)


def test_slope_does_not_depend_on_the_size_of_the_sample():
    rng = np.random.default_rng(0)
    train = (2000 / np.arange(1, 2001) ** 0.8).astype(np.int64) + 1
    slopes = [popularity_slope(train, rng.multinomial(n, train / train.sum())) for n in (500, 50_000)]
    assert slopes[0] == pytest.approx(1, abs=0.12) and slopes[1] == pytest.approx(1, abs=0.02)


def test_pairs_of_others_count_and_ones_own_do_not():
    train = items([[1, 2, 3], [3, 2, 1], [2, 3]], users=[0, 1, 2])
    table, index = NgramTable.of(train, 6, 2), cooccurrence_index(train, 6)
    assert bigram_rate(table, items([[1, 2, 3, 4]])) == pytest.approx(2 / 3)
    # (1, 2) is user 0's alone, (2, 3) also user 2's.
    assert bigram_rate(table, items([[1, 2, 3]], users=[0])) == 0.5
    assert bigram_rate(table, items([[1, 2, 3]], users=[1])) == 1.0
    # 1 and 2 are both with user 1, whose pair stands the other way round.
    assert cooccurrence_rate(index, items([[1, 2, 3]], users=[0])) == 1.0
    only = items([[1, 2]], users=[0])
    assert cooccurrence_rate(cooccurrence_index(only, 6), items([[1, 2]], users=[0])) == 0.0
    assert cooccurrence_rate(cooccurrence_index(only, 6), items([[1, 2], [2, 1], [3, 4]])) == pytest.approx(2 / 3)


def test_an_ngram_does_not_run_over_the_end_of_a_sequence():
    train = items([[1, 2], [3, 4]])
    assert bigram_rate(NgramTable.of(train, 6, 2), items([[2, 3]])) == 0


def test_unique_trigrams_are_those_of_one_other_user():
    table = NgramTable.of(items([[1, 2, 3, 4], [1, 2, 3], [4, 5, 6]], users=[0, 1, 2]), 6, 3)
    assert unique_ngram_rate(table, items([[2, 3, 4], [1, 2, 3], [6, 5, 4], [1, 2]])) == pytest.approx(1 / 3)
    assert unique_ngram_rate(table, items([[1, 2, 3]], users=[0])) == 1.0, "of the two, one is another user"
    assert unique_ngram_rate(table, items([[4, 5, 6]], users=[2])) == 0.0


def test_a_leak_of_the_target_is_seen():
    """Three items before every user: predecessors of the test item, or of the first training item."""
    simulated = SimulatedInteractions(800, 1000, min_length=4, mean_length=8, rule=0.9, seed=4)
    data = InteractionDataModule(simulated)
    before = {int(s): i for i, row in reversed(list(enumerate(simulated.successors))) if i for s in row}
    pairs = list(zip(data.train_items(), data.test_items(), strict=True))
    found = {}
    for name, goals in (
        ("leak", [test["item_id"][-1] for _, test in pairs]),
        ("clean", [t["item_id"][0] for t, _ in pairs]),
    ):
        extended = []
        for goal, (train, _) in zip(goals, pairs, strict=True):
            new = torch.full((3,), before.get(int(goal), 1))
            made = torch.arange(3 + len(train["item_id"])) < 3
            ids = torch.cat([new, train["item_id"]])
            extended.append({"item_id": ids, "user_id": train["user_id"], "item_is_synthetic": made})
        found[name] = target_leak(extended, data.train_items(), data.test_items(), 1000)
    assert found["leak"]["own"] > found["leak"]["shuffled"] + 0.2
    assert found["leak"]["own"] > found["leak"]["first"] and found["clean"]["first"] > found["clean"]["own"] + 0.1
    none = target_leak(data.train_items(), data.train_items(), data.test_items(), 1000)
    assert all(math.isnan(value) for value in none.values())


def test_repeats_and_lengths():
    assert repeat_rate(items([[1, 2, 3], [4, 4]])) == pytest.approx(0.2)
    assert length_scores(items([[1] * 9]), items([[1] * 5]), max_length=5) == {"length_ks": 0.0, "length_w1": 0.0}


def test_too_little_is_nan_and_no_error():
    table = NgramTable.of(items([[1]]), 6, 2)
    assert math.isnan(bigram_rate(table, items([[1]])))
    assert math.isnan(unique_ngram_rate(table, items([[1]])))
    assert math.isnan(cooccurrence_rate(cooccurrence_index(items([[1]]), 6), items([[1]])))
    for spec in METRICS:
        assert spec.compute(items([[1]]), items([[1]]), items([[1]]), SCHEMA, 0)


# ------------------------------------------------------------------------------------------------------------- evaluate


@pytest.fixture(scope="module")
def data():
    return InteractionDataModule(SimulatedInteractions(500, 120, min_length=5, mean_length=12, seed=4), max_length=20)


def table(synthetic, data):
    return ls.evaluate(synthetic, data, metrics=["sequence"], floors=False).table


def fresh(data, seed, num=400):
    """New users of the same law, with no user of the data."""
    simulated = SimulatedInteractions(num, 120, min_length=5, mean_length=12, seed=4)
    simulated.seed = seed
    sequences = simulated.sequences()
    sequences.rows = {}
    # As training sequences: without the two last items.
    return sequences.cut(stop=sequences.stop - 2)


def test_new_users_of_the_same_law_are_within_noise(data):
    found = table(fresh(data, 99), data)
    assert (found["verdict"] == "within noise").sum() >= len(found) - 2
    assert found["z"].abs().max() < 5


def test_independent_popular_items_lack_pairs_but_have_popularity(data):
    counts = np.array(data.schema["item_counts"], float)
    rng = np.random.default_rng(0)
    rows = [rng.choice(121, n, replace=False, p=counts / counts.sum()) for n in data.train_items().lengths.tolist()]
    found = table(items([row.tolist() for row in rows]), data)
    assert found.loc["bigram_rate", "verdict"] == "below real" and found.loc["bigram_rate", "z"] < -5
    assert abs(found.loc["popularity_js", "z"]) < 4


def test_hubs_are_popularity_amplified(data):
    """As a greedy decoder makes them: every other item is one of the five most popular ones."""
    top = np.argsort(data.schema["item_counts"])[::-1][:5]
    rng = np.random.default_rng(0)
    rows = [
        [int(i) if t % 2 else int(rng.choice(top)) for t, i in enumerate(item["item_id"].tolist())]
        for item in fresh(data, 9)
    ]
    found = table(items(rows), data)
    assert found.loc["popularity_slope", "value"] > 1.3 and found.loc["popularity_slope", "verdict"] == "above real"
    assert found.loc["popularity_gini", "verdict"] == "above real"
    assert found.loc["popularity_js", "verdict"] == "worse than real"
    assert found.loc["repeat_rate", "verdict"] == "above real"


def test_spliced_copies_are_memorised(data):
    """Halves of two training users behind each other: triples of single users, under no user's name."""
    train = [item["item_id"].tolist() for item in data.train_items()]
    rows = [a[: len(a) // 2] + b[len(b) // 2 :] for a, b in zip(train, train[1:] + train[:1], strict=True)]
    found = table(items(rows), data)
    assert found.loc["unique_trigram_rate", "verdict"] == "worse than real"
    assert found.loc["bigram_rate", "verdict"] == "above real"


def test_held_out_items_at_the_end_of_test_sequences_do_not_count(data):
    """The training sequences themselves have the lengths of the reference, though test sequences are longer by two."""
    found = table(data.train_items(), data)
    assert found.loc["length_ks", "verdict"] == found.loc["length_w1", "verdict"] == "within noise"


# --------------------------------------------------------------------------------------------------------- torchmetrics


def test_torchmetrics_take_batches_and_items(data):
    real, synthetic = data.train_items()[:50], fresh(data, 5)[:40]
    for cls, name in (
        (PopularityShift, "popularity_js"),
        (SequenceTransitions, "bigram_rate"),
        (SequenceLengths, "length_ks"),
    ):
        whole, parts = cls(schema=data.schema), cls(schema=data.schema)
        whole.update(list(real), real=True)
        whole.update(list(synthetic), real=False)
        for part in (real[:20], real[20:]):
            parts.update(part.padded(60), real=True)
        parts.update(synthetic.padded(60), real=False)
        one, two = whole.compute(), parts.compute()
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) or bool(one[k].isnan()) for k in one)
        assert 0 <= float(one[name]) <= 1


def test_real_names_of_users_survive_a_file(data, tmp_path):
    """A pool written as text and read again scores the same."""
    synthetic = fresh(data, 7)
    again = InteractionDataModule(to_text(synthetic, tmp_path / "s.txt"), max_length=None).test_items()
    again.rows = {}
    one, two = table(synthetic, data), table(again, data)
    assert one["value"].equals(two["value"])
