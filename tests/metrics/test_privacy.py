"""Privacy metrics: what they must catch, what averages miss, and that independent data is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_synth import metrics
from lightning_synth.errors import DataError
from lightning_synth.items import StackedItems
from lightning_synth.metrics.privacy import METRICS, auc, tpr_at_fpr
from lightning_synth.testing import tiny_items, tiny_schema

N, D = 500, 4


@pytest.fixture(scope="module")
def samples():
    """Train, holdout, and what five generators made of train."""
    rng = np.random.default_rng(0)
    train, holdout, independent = rng.normal(size=(3, N, D))
    leak = independent.copy()
    leak[:25] = train[:25]
    return {
        "train": train,
        "holdout": holdout,
        "independent": independent,
        "leak": leak,
        "kde_narrow": train + 0.1 * rng.normal(size=train.shape),
        "kde_wide": train + 0.4 * rng.normal(size=train.shape),
        "copy": train.copy(),
    }


def test_averages_certify_the_leak_and_tails_see_it(samples):
    train, holdout, leak = samples["train"], samples["holdout"], samples["leak"]
    membership = metrics.membership_inference(train, holdout, leak)
    assert metrics.dcr_share(train, holdout, leak) < 0.56
    assert membership["mia_auc"] < 0.56
    tails = metrics.nndr_tails(train, holdout, leak)
    assert tails["nndr_q01"] == 0 and tails["nndr_q01_holdout"] > 0.25
    assert tails["nndr_below_05"] == pytest.approx(0.05, abs=0.002)
    assert metrics.exact_copies(train, leak)["exact_copy_rate"] == 0.05
    assert metrics.exact_copies(train, leak)["copied_train_rate"] == 0.05
    assert metrics.near_duplicates(train, holdout, leak)["near_duplicate_rate"] == 0.05
    assert membership["mia_tpr_at_1fpr"] >= 0.03


def test_known_values_of_the_demonstration(samples):
    """Shares and areas that a second implementation measured, within the sampling error of 500 rows."""
    train, holdout = samples["train"], samples["holdout"]
    share = {name: metrics.dcr_share(train, holdout, samples[name]) for name in samples}
    assert share["independent"] == pytest.approx(0.5, abs=0.045)
    assert share["kde_narrow"] == pytest.approx(0.975, rel=0.02)
    assert share["kde_wide"] == pytest.approx(0.603, abs=0.045)
    assert share["copy"] == 1
    domias = {n: metrics.membership_inference(train, holdout, samples[n])["mia_auc_domias"] for n in samples}
    assert domias["independent"] < 0.56 < domias["kde_narrow"]
    assert metrics.membership_inference(train, holdout, samples["copy"])["mia_auc"] == 1


def test_independent_data_is_left_alone():
    """No attack finds members where there are none, over many draws."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(30):
        train, holdout, synthetic = rng.normal(size=(3, 200, D))
        share = metrics.dcr_share(train, holdout, synthetic)
        found.append({**metrics.membership_inference(train, holdout, synthetic), "dcr": share})
    for attack in ("distance", "calibrated", "domias"):
        values = [f[f"mia_auc_{attack}"] for f in found]
        assert abs(np.mean(values) - 0.5) < 3 * np.std(values) / np.sqrt(len(values)) + 0.005, attack
    assert np.mean([f["dcr"] for f in found]) == pytest.approx(0.5, abs=0.02)
    assert max(f["mia_auc"] for f in found) < 0.62


def test_membership_auc_of_a_known_attack():
    """Scores N(mu, 1) against N(0, 1): the area is Phi(mu / sqrt 2), the rate at 1 % is Phi(mu - 2.326)."""
    rng = np.random.default_rng(0)
    members, others = rng.normal(1.0, size=500_000), rng.normal(size=500_000)
    assert auc(members, others) == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), rel=0.02)
    assert tpr_at_fpr(members, others) == pytest.approx(stats.norm.cdf(1 - stats.norm.ppf(0.99)), rel=0.02)


def test_auc_equals_scikit_learn_with_ties():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 40), rng.integers(0, 4, 30)
    assert auc(a, b) == pytest.approx(roc_auc_score(np.repeat([1, 0], [40, 30]), np.concatenate([a, b])))


def test_tpr_never_exceeds_the_allowed_false_positives():
    rng = np.random.default_rng(0)
    for n in (3, 50, 100, 199, 1000):
        members, others = rng.normal(size=n), rng.normal(size=n)
        rate = tpr_at_fpr(others, others)
        assert rate <= 0.01
        assert 0 <= tpr_at_fpr(members, others) <= 1
    assert tpr_at_fpr(np.ones(10), np.ones(10)) == 0


def test_nndr_of_uniform_points_on_a_line():
    # For a query in a Poisson process on the line d1/d2 is uniform: both distances come from one Poisson process.
    rng = np.random.default_rng(0)
    ratio = metrics.neighbour_distance_ratio(rng.uniform(0.1, 0.9, 5000), rng.uniform(size=20_000))
    assert np.mean(ratio) == pytest.approx(0.5, rel=0.02)
    assert stats.kstest(ratio, "uniform").pvalue > 0.01


def test_sizes_of_train_and_holdout_do_not_matter(samples):
    few = samples["holdout"][:100]
    assert metrics.dcr_share(samples["train"], few, samples["independent"]) == pytest.approx(0.5, abs=0.1)
    rate = metrics.nndr_tails(samples["train"], few, samples["independent"])
    assert abs(rate["nndr_q05_gap"]) < 0.1


def test_leaks_grow_monotonically():
    """Share of copies 0 to 100 %: every tail metric moves with it."""
    rng = np.random.default_rng(1)
    train, holdout, independent = rng.normal(size=(3, 300, D))
    rows, shares = [], [0.0, 0.05, 0.2, 0.5, 1.0]
    for share in shares:
        synthetic = independent.copy()
        synthetic[: int(300 * share)] = train[: int(300 * share)]
        found = [spec.compute(train, holdout, synthetic, {}, 0) for spec in METRICS]
        rows.append({name: value for part in found for name, value in part.items()})
    for name in ("exact_copy_rate", "near_duplicate_rate", "nndr_below_05", "dcr_share", "mia_auc", "mia_tpr_at_1fpr"):
        assert stats.spearmanr(shares, [row[name] for row in rows]).statistic >= 0.95, name


def test_copies_are_found_bit_by_bit():
    train = np.random.default_rng(0).normal(size=(20, 3))
    almost = np.nextafter(train, np.inf)
    assert metrics.exact_copies(train, almost)["exact_copy_rate"] == 0
    assert metrics.near_duplicates(train, train + 1, almost)["near_duplicate_rate"] == 1


@pytest.mark.parametrize("domain", ["timeseries", "graph", "molecule", "sequence"])
def test_a_copy_under_another_label_is_a_copy(domain):
    schema = tiny_schema(domain, n=6)
    items = [dict(i) if isinstance(i, dict) else i.clone() for i in tiny_items(domain, n=6)]
    before = metrics.payload_hashes(items, schema)
    for item in items:
        if isinstance(item, dict):
            item["y"] = torch.tensor(99)
            item.pop("timestamp", None)
        else:
            item.y = torch.tensor([99])
    assert (metrics.payload_hashes(items, schema) == before).all()
    assert len(set(before.tolist())) > 1


def test_stacked_and_listed_items_hash_alike():
    items = tiny_items("timeseries", n=5)
    schema = tiny_schema("timeseries")
    assert isinstance(items, StackedItems)
    assert (metrics.payload_hashes(list(items), schema) == metrics.payload_hashes(items, schema)).all()


def test_classes(samples):
    metric = metrics.NearestNeighbourRatio()
    for chunk in np.array_split(samples["train"], 3):
        metric.update(chunk, real=True)
    metric.update(samples["holdout"], real=True, holdout=True)
    metric.update(samples["leak"], real=False)
    assert metric.compute()["nndr_q01"] == 0
    for cls in (metrics.DCRShare, metrics.NearDuplicates, metrics.MembershipInference):
        empty = cls()
        empty.update(samples["train"], real=True)
        with pytest.raises(DataError, match="no holdout rows yet"):
            empty.compute()


def test_exact_copies_class_takes_items():
    items, schema = tiny_items("timeseries", n=8), tiny_schema("timeseries")
    metric = metrics.ExactCopies(schema=schema)
    metric.update(items, real=True)
    metric.update(items[[0, 1, 1]], real=False)
    result = metric.compute()
    assert result["exact_copy_rate"] == 1 and result["copied_train_rate"] == 2 / 8


def test_too_few_rows_are_nan():
    result = metrics.membership_inference(np.zeros((5, 2)), np.zeros((2, 2)), np.zeros((5, 2)))
    assert np.isnan(result["mia_auc"])
    assert np.isnan(metrics.exact_copies(np.zeros((0, 2)), np.zeros((3, 2)))["exact_copy_rate"])
