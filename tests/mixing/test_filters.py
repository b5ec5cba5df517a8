"""Filters: known answers, per-class reports, and that only training items are consulted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.mixing.filters import ConfidenceFilter, NoveltyFilter, ValidityFilter, apply_filters, reject_report
from lightning_synth.schema import describe
from lightning_synth.testing.tiny import tiny_items, tiny_schema, tiny_series, tiny_series_schema


def points(x, y=None):
    """Windows of two samples: points in the plane."""
    x = torch.as_tensor(np.asarray(x), dtype=torch.float32)[:, None]
    return StackedItems({"x": x} if y is None else {"x": x, "y": torch.as_tensor(np.asarray(y))})


def clouds(n, seed=0, spread=0.3):
    """Three classes around three corners."""
    draw, y = np.random.default_rng(seed), np.arange(n) % 3
    return np.array([[0, 0], [4, 0], [0, 4]])[y] + spread * draw.standard_normal((n, 2)), y


# ---------------------------------------------------------------- validity


def test_validity_finds_each_broken_item():
    items = tiny_series(40)
    x, y = items.tensors["x"].clone(), items.tensors["y"].clone()
    x[3, 0, 5], x[17, 1, 0], y[30] = float("nan"), float("inf"), 7
    broken = StackedItems({"x": x, "y": y})
    one = ValidityFilter()
    assert np.flatnonzero(~one.filter(broken, items, tiny_series_schema())).tolist() == [3, 17, 30]
    assert one.report["all"] == {"total": 40, "rejected": 3, "rate": 3 / 40}
    assert one.report["7"]["rate"] == 1.0


def test_validity_takes_a_rule_of_the_user():
    items = points([[0, 1], [2, 3]])
    keep = ValidityFilter(check=lambda item: float(item["x"].max()) < 2).filter(
        items, items, describe(items, "timeseries")
    )
    assert keep.tolist() == [True, False]


def test_validity_of_graphs():
    graphs = tiny_items("graph", 4)
    graphs[2].edge_index[0, 0] = 99
    assert ValidityFilter().filter(graphs, graphs, tiny_schema("graph")).tolist() == [True, True, False, True]


# ---------------------------------------------------------------- novelty


def test_novelty_known_answer():
    # Distances of neighbours are 1 on the line; samples at .2, .5, .99 and 3 away from it.
    real = points([[float(i), 0.0] for i in range(10)] + [[0.0, 20.0], [9.0, -20.0]])
    schema = describe(real, "timeseries")
    raw = np.array([[4.0, 0.0], [4.2, 0.0], [4.5, 0.0], [30.0, 0.0]])
    one = NoveltyFilter(quantile=0.5)
    keep = one.filter(points(raw), real, schema)
    # In standardised units: the median neighbour distance is 1 / std of the first coordinate.
    assert keep.tolist() == [False, False, False, True]
    assert NoveltyFilter(quantile=0.0).filter(points(raw), real, schema).tolist() == [False, False, False, True]


@pytest.mark.parametrize("domain", ["timeseries", "graph", "molecule", "sequence"])
def test_novelty_rejects_every_copy_in_every_domain(domain):
    real = tiny_items(domain, 8)
    one = NoveltyFilter(0.0)
    assert not one.filter(real, real, tiny_schema(domain)).any()
    assert one.report["all"]["rate"] == 1.0


def test_novelty_keeps_fresh_draws_at_the_quantile():
    real, fresh = points(clouds(600)[0]), points(clouds(600, seed=1)[0])
    kept = NoveltyFilter(0.1).filter(fresh, real, describe(real, "timeseries"))
    # Fresh draws of the same law are as far from the training items as these from each other.
    assert 0.85 < kept.mean() < 0.95


def test_novelty_with_one_real_item_still_finds_copies():
    real = points([[1.0, 2.0]])
    assert NoveltyFilter().filter(points([[1, 2], [1, 3]]), real, describe(real, "timeseries")).tolist() == [
        False,
        True,
    ]


# ---------------------------------------------------------------- confidence


def test_confidence_rejects_wrong_labels_class_by_class():
    x, y = clouds(90)
    real = points(x, y)
    x_new, y_new = clouds(60, seed=1)
    wrong = np.arange(60) % 10 == 0
    claimed = np.where(wrong, (y_new + 1) % 3, y_new)
    one = ConfidenceFilter(quantile=0.02, folds=2)
    keep = one.filter(points(x_new, claimed), real, describe(real, "timeseries"), seed=0)
    assert not keep[wrong].any()
    assert keep[~wrong].mean() > 0.9
    assert set(one.report) == {"0", "1", "2", "all"}
    assert sum(one.report[label]["rejected"] for label in "012") == one.report["all"]["rejected"]


def test_thresholds_are_per_class():
    # Classes 0 and 1 overlap, class 2 stands apart: a global threshold would wipe out the two.
    draw = np.random.default_rng(0)
    y = np.arange(240) % 3
    x = np.array([[0, 0], [0.5, 0], [8, 8]])[y] + draw.standard_normal((240, 2))
    real = points(x[:120], y[:120])
    one = ConfidenceFilter(0.25, KNeighborsClassifier(9), tail_guard=False)
    one.filter(points(x[120:], y[120:]), real, describe(real, "timeseries"))
    rates = [one.report[label]["rate"] for label in "012"]
    assert max(rates) < 0.5


def test_tail_guard_keeps_samples_beside_rare_real_ones():
    x, y = clouds(60)
    # Two real items of class 0 live among class 1.
    x = np.concatenate([x, [[4.0, 0.0], [4.05, 0.0]]])
    real = points(x, np.append(y, [0, 0]))
    sample, schema = points([[4.02, 0.0]], [0]), describe(real, "timeseries")
    model = KNeighborsClassifier(11)
    assert not ConfidenceFilter(0.3, model, tail_guard=False).filter(sample, real, schema)[0]
    assert ConfidenceFilter(0.3, model).filter(sample, real, schema)[0]


def test_few_shots_and_unknown_classes():
    real = points([[0, 0], [0.1, 0], [4, 4]], [0, 0, 1])
    sample = points([[0, 0.1], [4, 4.1], [9, 9]], [0, 1, 2])
    keep = ConfidenceFilter().filter(sample, real, describe(real, "timeseries", num_classes=3))
    # The single item of class 1 allows no threshold; class 2 has no real item to vouch for it.
    assert keep[1] and not keep[2]


def test_same_seed_same_mask_and_own_classifier():
    from sklearn.linear_model import LogisticRegression

    real, new, schema = tiny_series(30), tiny_series(30, seed=1), tiny_series_schema()
    a, b = (ConfidenceFilter(folds=2).filter(new, real, schema, seed=3) for _ in range(2))
    assert (a == b).all()
    model = LogisticRegression(max_iter=200)
    ConfidenceFilter(classifier=model).filter(new, real, schema)
    assert not hasattr(model, "coef_"), "the given estimator must stay unfitted"


def test_confidence_needs_labels():
    real = tiny_series(8, num_classes=0)
    with pytest.raises(ConfigError, match="needs class labels"):
        ConfidenceFilter().filter(real, real, tiny_series_schema(num_classes=0))


@pytest.mark.parametrize(
    "make", [lambda: NoveltyFilter(1.1), lambda: ConfidenceFilter(-0.1), lambda: ConfidenceFilter(folds=1)]
)
def test_impossible_options(make):
    with pytest.raises(ConfigError):
        make()


# ---------------------------------------------------------------- chains


def test_filters_follow_each_other_and_large_pools_are_read_in_chunks(monkeypatch):
    from lightning_synth.mixing import filters

    monkeypatch.setattr(filters, "_CHUNK", 7)
    real = tiny_series(30)
    broken = StackedItems({"x": torch.full((2, 2, 24), float("nan")), "y": torch.tensor([0, 1])})
    pool = StackedItems.cat([tiny_series(20, seed=1), broken, real[:5]])
    rows, reports = apply_filters([ValidityFilter(), NoveltyFilter(0.0)], pool, real, tiny_series_schema())
    assert set(rows.tolist()) < set(range(20)) and len(rows) > 15
    assert reports["ValidityFilter"]["all"]["rejected"] == 2
    assert reports["NoveltyFilter"]["all"]["total"] == 25
    assert reports["NoveltyFilter"]["all"]["rejected"] == 25 - len(rows)


def test_nothing_in_nothing_out():
    real = tiny_series(8)
    assert apply_filters([NoveltyFilter()], real[:0], real, tiny_series_schema())[0].tolist() == []
    assert reject_report(np.zeros(0, bool), None) == {"all": {"total": 0, "rejected": 0, "rate": 0.0}}
