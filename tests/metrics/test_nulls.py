"""The real-vs-real null: arithmetic, calibration, equal sizes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_synth import metrics
from lightning_synth.errors import DataError
from lightning_synth.items import StackedItems
from lightning_synth.metrics.common import METRICS as COMMON
from lightning_synth.metrics.nulls import Calibrated, split_rows, summarise, take, threeway_rows
from lightning_synth.metrics.privacy import METRICS as PRIVACY
from lightning_synth.metrics.spec import MetricSpec
from lightning_synth.testing import tiny_items


def test_z_and_p():
    result = Calibrated(value=0.7, null_mean=0.5, null_sd=0.1, null_count=10, n_real=50, n_synthetic=40, seed=0)
    assert result.z == pytest.approx(2.0)
    assert result.p == pytest.approx(2 * stats.t.sf(2 / np.sqrt(1.1), 9))
    # A rate that is 0 in every draw has no spread: one item of 40 is then the unit.
    assert Calibrated(0.05, 0.0, 0.0, 10, 50, 40, 0).z == pytest.approx(2.0)
    assert np.isnan(Calibrated(0.5, 0.5, float("nan"), 1, 5, 5, 0).z)


def test_split_uses_disjoint_halves_of_equal_size():
    seen = []

    def compute(train, reference, other, schema, seed):
        seen.append((reference.ravel(), other.ravel(), seed))
        return {"a": float(other.mean())}

    spec = MetricSpec("a", compute, inputs="features")
    test, synthetic = np.arange(20.0)[:, None], 100 + np.arange(33.0)[:, None]
    counts = {"null": 3, "synthetic": 3}
    rows, size = split_rows(spec, None, test, {"synthetic": synthetic}, {}, repeats=counts, seed=1)
    assert size == 10 and len(rows["null"]) == len(rows["synthetic"]) == 3
    for (ref_null, other, seed_null), (ref, drawn, seed) in zip(seen[::2], seen[1::2], strict=True):
        assert (ref_null == ref).all() and seed_null == seed
        assert sorted([*ref_null, *other]) == list(range(20))
        assert len(set(drawn)) == 10 and min(drawn) >= 100
    again = split_rows(spec, None, test, {"synthetic": synthetic}, {}, repeats=counts, seed=1)[0]
    assert again == rows != split_rows(spec, None, test, {"synthetic": synthetic}, {}, repeats=counts, seed=2)[0]


def test_threeway_parts_are_disjoint_and_no_larger():
    seen = []

    def compute(train, holdout, synthetic, schema, seed):
        seen.append([*train.ravel(), *holdout.ravel(), *synthetic.ravel()])
        return {"a": float(len(train) * 10_000 + len(holdout) * 100 + len(synthetic))}

    spec = MetricSpec("a", compute, inputs="features", null="threeway")
    train, test = np.arange(12.0)[:, None], 50 + np.arange(30.0)[:, None]
    rows, _ = threeway_rows(spec, train, test, {"synthetic": -np.ones((9, 1))}, {}, repeats={"null": 4})
    assert rows["synthetic"] == [{"a": 123009.0}]
    assert all(row == {"a": 12 * 10_000 + 14 * 100 + 9} for row in rows["null"])
    assert all(len(set(values)) == len(values) and min(values) >= 0 for values in seen[1:])


@pytest.mark.parametrize("seed", range(3))
def test_every_metric_is_within_its_null_for_independent_data(seed):
    """|z| below the limit for nearly all rows; one row in twenty may be off at the 5 % level."""
    rng = np.random.default_rng(seed)
    train, test, synthetic = rng.normal(size=(3, 300, 5)) @ rng.normal(size=(5, 5))
    p, z = [], {}
    for spec in (*COMMON, *PRIVACY):
        run = split_rows if spec.null == "split" else threeway_rows
        counts = {"null": 10, "synthetic": 10}
        rows, size = run(spec, train, test, {"synthetic": synthetic}, {}, repeats=counts, seed=seed)
        for name, result in summarise(rows, "synthetic", (size, size), seed).items():
            p.append(result.p)
            z[name] = result.z
    assert np.mean(np.array(p) < 0.05) <= 0.1, z
    assert min(p) > 0.05 / len(p), z


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_z_is_calibrated_over_200_draws():
    """|z| <= 2 in at least 95 % of real-vs-real draws, for every fast metric."""
    inside: dict[str, list[bool]] = {}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        train, test, synthetic = rng.normal(size=(3, 100, 4))
        for spec in (s for s in (*COMMON, *PRIVACY) if s.cost == "fast"):
            run = split_rows if spec.null == "split" else threeway_rows
            rows, size = run(spec, train, test, {"s": synthetic}, {}, repeats={"null": 20, "s": 4}, seed=seed)
            for name, result in summarise(rows, "s", (size, size), seed).items():
                inside.setdefault(name, []).append(abs(result.z) <= 2)
    shares = {name: float(np.mean(values)) for name, values in inside.items()}
    # The 1 % quantile of 100 ratios is nearly a minimum: its law is skewed and its null recycles the same close pairs.
    assert shares.pop("nndr_q01") >= 0.87
    assert min(shares.values()) >= 0.92, shares
    assert np.mean(list(shares.values())) >= 0.95, shares


def test_against_real_takes_numbers_and_dicts():
    rng = np.random.default_rng(0)
    real, shifted = rng.normal(size=(200, 3)), rng.normal(size=(100, 3)) + 1
    alone = metrics.against_real(metrics.pairwise_correlation_difference, real, rng.normal(size=(100, 3)))["value"]
    assert abs(alone.z) < 3 and (alone.n_real, alone.null_count) == (100, 20)
    many = metrics.against_real(metrics.prdc, real, shifted)
    assert many["coverage"].z < -3 and many["coverage"].p < 0.01


def test_too_few_items_is_an_error_that_counts_them():
    with pytest.raises(
        DataError, match=r"at least 8 real and 4 synthetic items, got \{'real test': 6, 'synthetic': 50\}"
    ):
        metrics.against_real(metrics.prdc, np.zeros((6, 1)), np.zeros((50, 1)))
    spec = MetricSpec("a", lambda *_: {}, inputs="features", null="threeway")
    with pytest.raises(DataError, match="at least 12 real items, got 5"):
        threeway_rows(spec, np.zeros((2, 1)), np.zeros((3, 1)), {"s": np.zeros((9, 1))}, {}, repeats={"null": 1})


def test_take_keeps_the_kind():
    items = tiny_items("timeseries", n=5)
    assert isinstance(take(items, np.array([3, 1])), StackedItems)
    assert take(list("abc"), np.array([2])) == ["c"]
