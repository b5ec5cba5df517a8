"""Known answers, nulls, sensitivity and faults of the common metrics (fidelity and diversity)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lightning_synth import metrics
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.metrics.common import METRICS
from lightning_synth.metrics.distances import FeatureSpace, as_features, nearest, seeded
from lightning_synth.testing import tiny_items, tiny_schema


def normal(seed, n, d=1, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, scale, size=(n, d))


# ---- known answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_hellinger_of_shifted_gaussians(shift):
    real, synthetic = normal(0, 100_000), normal(1, 100_000, shift=shift)
    exact = np.sqrt(1 - np.exp(-(shift**2) / 8))
    assert metrics.hellinger(real, synthetic)[0] == pytest.approx(exact, rel=0.02)
    assert metrics.gaussian_hellinger(real, synthetic) == pytest.approx(exact, rel=0.02)


def test_hellinger_of_equal_laws_is_far_from_zero():
    values = [metrics.hellinger(normal(2 * i, 100), normal(2 * i + 1, 100), bins=50)[0] for i in range(60)]
    assert np.mean(values) == pytest.approx(0.394, rel=0.05)
    assert np.mean(values) > np.sqrt(49 * (2 / 100) / 8)


def test_gaussian_hellinger_closed_form_in_three_dimensions():
    a, b = np.diag([1.0, 2.0, 0.5]), np.diag([2.0, 1.0, 0.5])
    gap = np.array([0.5, 0.0, 0.3])
    mid = (a + b) / 2
    overlap = np.linalg.det(a) ** 0.25 * np.linalg.det(b) ** 0.25 / np.sqrt(np.linalg.det(mid))
    exact = np.sqrt(1 - overlap * np.exp(-gap @ np.linalg.inv(mid) @ gap / 8))
    rng = np.random.default_rng(0)
    real = rng.multivariate_normal(np.zeros(3), a, size=40_000)
    synthetic = rng.multivariate_normal(gap, b, size=40_000)
    assert metrics.gaussian_hellinger(real, synthetic) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("n", [100, 1000])
def test_pcd_of_equal_laws(n):
    d = 10
    values = [metrics.pairwise_correlation_difference(normal(2 * i, n, d), normal(2 * i + 1, n, d)) for i in range(400)]
    assert np.sqrt(np.mean(np.square(values))) == pytest.approx(np.sqrt(2 * d * (d - 1) / (n - 1)), rel=0.02)


def test_pcd_of_a_known_correlation():
    rng = np.random.default_rng(0)
    correlated = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=50_000)
    value = metrics.pairwise_correlation_difference(rng.normal(size=(50_000, 2)), correlated)
    assert value == pytest.approx(np.sqrt(2) * 0.6, rel=0.02)


def population_dd_r2(scale):
    """R2 against the identity of N(0, I) and N(0, scale^2 I) in four dimensions, by integration over |z|^2."""

    def mean(f):
        real = integrate.quad(lambda q: f(q) * stats.chi2.pdf(q, 4), 0, np.inf)[0]
        synthetic = integrate.quad(lambda q: f(scale**2 * q) * stats.chi2.pdf(q, 4), 0, np.inf)[0]
        return (real + synthetic) / 2

    def of_real(q):
        return 1 / (1 + q)

    def of_synthetic(q):
        return 1 / (1 + q / scale**2)

    centre = mean(of_synthetic)
    return 1 - mean(lambda q: (of_real(q) - of_synthetic(q)) ** 2) / mean(lambda q: (of_synthetic(q) - centre) ** 2)


@pytest.mark.parametrize("scale", [2.0, 0.5, 3.0])
def test_dd_plot_sees_scale(scale):
    # The sampling error of R2 is 1 % of the spread of 1 - R2, so the tolerance is on 1 - R2.
    values = [metrics.dd_plot_r2(normal(2 * i, 20_000, 4), normal(2 * i + 1, 20_000, 4, scale)) for i in range(3)]
    assert 1 - np.mean(values) == pytest.approx(1 - population_dd_r2(scale), rel=0.02)


@pytest.mark.parametrize("kind", ["mahalanobis", "spatial", "projection"])
def test_dd_plot_null_and_shift(kind):
    real = normal(0, 1000, 4)
    null = metrics.dd_plot_r2(real, normal(1, 1000, 4), kind)
    assert null > 0.93
    assert metrics.dd_plot_r2(real, normal(1, 1000, 4, shift=0.5), kind) < 0.6
    assert metrics.dd_plot_r2(real, normal(1, 1000, 4, scale=2), kind) < 0
    assert metrics.dd_plot_r2(real, real, kind) == 1


def test_depth_values():
    assert metrics.depth([[0.0], [1.0]], [[-1.0], [0.0], [1.0]], "projection").tolist() == [1.0, 0.5]
    # Unit vectors from -1 and 1 to 0 cancel; from outside they all agree.
    assert metrics.depth([[0.0], [9.0]], [[-1.0], [1.0]], "spatial") == pytest.approx([1.0, 0.0], abs=1e-6)
    with pytest.raises(ConfigError, match="simplicial"):
        metrics.depth([[0.0]], [[1.0]], "simplicial")


@pytest.mark.parametrize(("shift", "exact"), [(0.5, 0.638), (1.0, 0.760), (2.0, 0.921)])
def test_c2st_of_shifted_gaussians(shift, exact):
    result = metrics.classifier_two_sample(normal(0, 10_000), normal(1, 10_000, shift=shift))
    assert stats.norm.cdf(shift / np.sqrt(2)) == pytest.approx(exact, abs=0.001)
    assert result["c2st_auc"] == pytest.approx(exact, rel=0.02)
    assert result["c2st_auc_linear"] == pytest.approx(exact, rel=0.02)


def test_c2st_needs_trees_for_rounded_data():
    result = metrics.classifier_two_sample(normal(0, 2000, 4).round(1), normal(1, 2000, 4))
    assert result["c2st_auc_linear"] < 0.56
    assert result["c2st_auc"] == result["c2st_auc_trees"] > 0.95


def test_c2st_trees_grow_on_a_few_dozen_rows():
    # Equal means, different spread: the linear classifier is blind.
    result = metrics.classifier_two_sample(normal(0, 30), normal(1, 30, scale=6))
    assert result["c2st_auc_trees"] > 0.75 > result["c2st_auc_linear"]


def test_c2st_groups_keep_entities_in_one_fold():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 30, 8))
    real, synthetic = (np.repeat(c, 20, 0) + 0.05 * rng.normal(size=(600, 8)) for c in centres)
    entity = np.repeat(np.arange(30), 20)
    leaky = metrics.classifier_two_sample(real, synthetic)["c2st_auc_trees"]
    grouped = metrics.classifier_two_sample(real, synthetic, real_groups=entity, synthetic_groups=entity)
    assert leaky > 0.95
    assert grouped["c2st_auc_trees"] < 0.75


def gaussian_mmd2(shift, sigma=1.0):
    return 2 * sigma / np.sqrt(sigma**2 + 2) * (1 - np.exp(-(shift**2) / (2 * (sigma**2 + 2))))


def test_mmd_of_shifted_gaussians():
    def run(seed):
        samples = normal(2 * seed, 500), normal(2 * seed + 1, 500, shift=2)
        return metrics.mmd(*samples, bandwidth=1.0, permutations=0)["mmd2"]

    assert np.mean([run(i) for i in range(60)]) == pytest.approx(gaussian_mmd2(2.0), rel=0.02)


def test_mmd_equals_the_double_sum():
    a, b = normal(0, 7, 3), normal(1, 5, 3)

    def kernel(x, y):
        return np.exp(-np.square(x[:, None] - y[None]).sum(-1) / (2 * 1.5**2))

    aa, bb, ab = kernel(a, a), kernel(b, b), kernel(a, b)
    expected = (aa.sum() - 7) / 42 + (bb.sum() - 5) / 20 - 2 * ab.mean()
    assert metrics.mmd(a, b, bandwidth=1.5)["mmd2"] == pytest.approx(expected, rel=1e-12)


def test_mmd_p_values_are_uniform_under_the_null():
    p = [metrics.mmd(normal(2 * i, 30), normal(2 * i + 1, 30), permutations=99, seed=i)["mmd_p"] for i in range(100)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_dcscore_and_vendi():
    clusters = np.repeat(np.eye(10), 10, axis=0)
    assert metrics.dcscore(np.eye(100)) == pytest.approx(99.55, abs=0.01)
    assert metrics.dcscore(clusters) == pytest.approx(9.996, abs=0.001)
    assert metrics.dcscore(np.ones((100, 3))) == pytest.approx(1)
    # At the temperature of the published code the number means nothing.
    assert metrics.dcscore(np.eye(100), tau=1.0) == pytest.approx(2.672, abs=0.001)
    assert metrics.dcscore(7 * clusters, chunk=3) == pytest.approx(metrics.dcscore(clusters))
    for value, rows in ((1, np.ones((100, 3))), (100, np.eye(100)), (10, clusters)):
        assert metrics.vendi(rows) == pytest.approx(value, rel=1e-9)


def test_vendi_is_the_spectral_entropy_on_both_sides():
    for shape in ((30, 4), (4, 30)):
        x = np.random.default_rng(0).normal(size=shape)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        spectrum = np.linalg.eigvalsh(x @ x.T / len(x))
        spectrum = spectrum[spectrum > 1e-12]
        assert metrics.vendi(x) == pytest.approx(np.exp(-(spectrum * np.log(spectrum)).sum()))


def naive_prdc(real, synthetic, k=5):
    def radius(x):
        return np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), 1)[:, k]

    d = np.linalg.norm(real[:, None] - synthetic[None], axis=-1)
    inside = d < radius(real)[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (d < radius(synthetic)[None]).any(1).mean(),
        "density": inside.sum(0).mean() / k,
        "coverage": inside.any(1).mean(),
    }


def test_prdc_equals_the_definition():
    real, synthetic = normal(0, 90, 3), normal(1, 70, 3, scale=0.7)
    assert metrics.prdc(real, synthetic) == pytest.approx(naive_prdc(real, synthetic))


@pytest.mark.parametrize(("d", "precision"), [(2, 0.995), (16, 0.88), (64, 0.74)])
def test_prdc_null(d, precision):
    runs = [metrics.prdc(normal(2 * i, 500, d), normal(2 * i + 1, 500, d)) for i in range(8)]
    mean = {name: np.mean([run[name] for run in runs]) for name in runs[0]}
    assert mean["coverage"] == pytest.approx(1 - 2.0**-5, rel=0.02)
    assert mean["density"] == pytest.approx(1.0, rel=0.05)
    assert mean["precision"] == pytest.approx(precision, rel=0.03)
    assert mean["recall"] == pytest.approx(precision, rel=0.03)


def test_prdc_of_collapse_and_shrinkage():
    real = normal(0, 500, 4)
    collapsed = metrics.prdc(real, 0.01 * normal(1, 500, 4))
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.02 and collapsed["coverage"] < 0.1
    shrunk = metrics.prdc(normal(0, 500, 16), 0.5 * normal(1, 500, 16))
    assert shrunk["precision"] > 0.99 and shrunk["recall"] < 0.3 and shrunk["density"] > 1.5


@pytest.mark.parametrize("d", [1, 2])
def test_authenticity_of_a_poisson_process(d):
    # s at distance D from its nearest real row r; r has its own neighbour nearer than D iff one falls into the ball
    # around r outside the (empty) ball around s. With c the overlap of two unit balls one radius apart:
    overlap = {1: 1 / 2, 2: 2 / 3 - np.sqrt(3) / (2 * np.pi)}[d]
    exact = (1 - overlap) / (2 - overlap)
    rng = np.random.default_rng(0)
    runs = [metrics.alpha_precision(*rng.uniform(size=(2, 4000, d)))["authenticity"] for _ in range(5)]
    assert np.mean(runs) == pytest.approx(exact, rel=0.02)


def test_authenticity_is_indexed_by_the_nearest_real_row():
    def published(real, synthetic):
        """The released code: looks the real-real distance up by the index of a synthetic row."""
        real_to_real = nearest(real, real, exclude_self=True)[0][:, 0]
        distance, closest = (a[:, 0] for a in nearest(real, synthetic))
        return (real_to_real[closest] < distance).mean()

    def naive(real, synthetic):
        d = np.linalg.norm(synthetic[:, None] - real[None], axis=-1)
        own = np.linalg.norm(real[:, None] - real[None], axis=-1) + np.diag(np.full(len(real), np.inf))
        return np.mean([row.min() > own[row.argmin()].min() for row in d])

    real = normal(0, 500, 6)
    null, shrunk = normal(1, 500, 6), 0.5 * normal(1, 500, 6)
    for synthetic in (null, shrunk):
        ours = metrics.alpha_precision(real, synthetic)["authenticity"]
        assert ours == naive(real, synthetic)
    right = [
        np.mean([metrics.alpha_precision(normal(9 + i, 500, 6), s)["authenticity"] for i in range(6)])
        for s in (null, shrunk)
    ]
    wrong = [np.mean([published(normal(9 + i, 500, 6), s) for i in range(6)]) for s in (null, shrunk)]
    # Shrinking towards the centre is less authentic; the published index says the opposite.
    assert right[1] < right[0] - 0.1
    assert wrong[0] == pytest.approx(0.5, abs=0.03)
    assert wrong[1] > wrong[0] + 0.03


def test_alpha_precision_null_and_copies():
    runs = [metrics.alpha_precision(normal(2 * i, 500, 4), normal(2 * i + 1, 500, 4)) for i in range(8)]
    assert np.mean([run["alpha_precision"] for run in runs]) == pytest.approx(0.97, rel=0.02)
    # At equal sizes half of the real rows have a synthetic row nearer than their nearest real one.
    assert np.mean([run["beta_recall"] for run in runs]) == pytest.approx(0.48, abs=0.03)
    real = normal(0, 200, 4)
    copies = metrics.alpha_precision(real, real)
    assert copies["authenticity"] == 0
    assert copies["alpha_precision"] == pytest.approx(1, abs=0.01) == copies["beta_recall"]
    # More synthetic than real rows crashed the released code.
    assert 0 < metrics.alpha_precision(real, normal(1, 900, 4))["authenticity"] < 1


# ---- sensitivity -----------------------------------------------------------------------------------------------

CORRUPTIONS = {
    "shift": lambda real, fresh, level, rng: fresh + 1.5 * level,
    "shrink": lambda real, fresh, level, rng: fresh * (1 - 0.9 * level),
    "noise": lambda real, fresh, level, rng: fresh + 2 * level * rng.normal(size=fresh.shape),
    "mode_drop": lambda real, fresh, level, rng: np.where(rng.random((len(fresh), 1)) < level, fresh[:1], fresh),
}
# What each metric must see; the sign is the direction in which it moves.
SENSITIVE = {
    "shift": {"hellinger": 1, "hellinger_gaussian": 1, "dd_plot_r2": -1, "c2st_auc": 1, "mmd2": 1, "coverage": -1},
    "shrink": {"hellinger": 1, "hellinger_gaussian": 1, "recall": -1, "density": 1},
    "noise": {"hellinger": 1, "dd_plot_r2_spatial": -1, "precision": -1, "mmd2": 1, "authenticity": 1},
    "mode_drop": {"dcscore_ratio": -1, "vendi_ratio": -1, "coverage": -1, "pcd": 1},
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_metrics_move_monotonically(corruption):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    real, fresh = (rng.normal(size=(400, 6)) @ mixing for _ in range(2))
    space = FeatureSpace(real)
    specs = [spec for spec in METRICS if spec.cost == "fast" or "c2st_auc" in SENSITIVE[corruption]]
    levels = np.linspace(0, 1, 6)
    rows = []
    for level in levels:
        damaged = space(CORRUPTIONS[corruption](real, fresh, level, np.random.default_rng(1)))
        rows.append({k: v for spec in specs for k, v in spec.compute(None, space(real), damaged, {}, 0).items()})
    for name, sign in SENSITIVE[corruption].items():
        correlation = stats.spearmanr(levels, [row[name] for row in rows]).statistic
        assert sign * correlation >= 0.94, (name, [row[name] for row in rows])


# ---- classes, determinism, faults ------------------------------------------------------------------------------

CLASSES = [
    metrics.AlphaPrecision,
    metrics.ClassifierTwoSample,
    metrics.DDPlot,
    metrics.Diversity,
    metrics.HellingerDistance,
    metrics.MaximumMeanDiscrepancy,
    metrics.PRDC,
    metrics.PairwiseCorrelationDifference,
]


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("cls", CLASSES)
def test_classes_accumulate_batches_and_leave_the_global_generator_alone(cls):
    real, synthetic = normal(0, 60, 3), normal(1, 60, 3)
    whole, parts = cls(seed=3), cls(seed=3)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    whole.update(real, real=True)
    whole.update(torch.as_tensor(synthetic), real=False)
    for chunk in np.array_split(real, 4):
        parts.update(chunk, real=True)
    for chunk in np.array_split(synthetic, 3):
        parts.update(chunk, real=False)
    result = whole.compute()
    assert result == parts.compute()
    assert all(isinstance(value, torch.Tensor) and value.ndim == 0 for value in result.values())
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    assert (cls.is_differentiable, cls.full_state_update) == (False, False)
    whole.reset()
    with pytest.raises(DataError, match="no real rows yet"):
        whole.compute()


@pytest.mark.parametrize("domain", ["timeseries", "graph", "molecule", "sequence"])
def test_classes_take_items_and_batches_of_every_domain(domain):
    from lightning_synth.schema import collate

    items, schema = tiny_items(domain, n=12), tiny_schema(domain, n=12)
    metric = metrics.HellingerDistance(schema=schema)
    metric.update(items, real=True)
    metric.update(collate(items, schema), real=False)
    assert metric.compute()["hellinger"] < 1e-6
    with pytest.raises(DataError, match="without schema"):
        metrics.HellingerDistance().update(items, real=True)


def test_bad_features_are_named():
    bad = normal(0, 5, 3)
    bad[2, 1] = np.nan
    with pytest.raises(DataError, match="synthetic sample: row 2, feature 1 is nan"):
        metrics.hellinger(normal(1, 5, 3), bad)
    with pytest.raises(DataError, match="3 features, synthetic sample has 2"):
        metrics.prdc(normal(1, 5, 3), normal(1, 5, 2))


def test_too_few_rows_give_nan_not_an_exception():
    few = normal(0, 3, 2)
    for value in (
        metrics.prdc(few, few),
        metrics.classifier_two_sample(few, few),
        metrics.alpha_precision(few[:1], few),
    ):
        assert all(np.isnan(v) for v in value.values())


def test_constant_features_are_harmless():
    real, synthetic = (
        np.concatenate([normal(0, 50, 2), np.ones((50, 1))], 1),
        np.concatenate([normal(1, 50, 2), np.ones((50, 1))], 1),
    )
    for spec in METRICS:
        for name, value in spec.compute(None, real, synthetic, {}, 0).items():
            assert np.isfinite(value), name


# ---- distances and the feature space ---------------------------------------------------------------------------


def test_nearest_is_exact_in_chunks_far_from_the_origin():
    x = normal(0, 3000, 5) + 1e6
    distance, index = nearest(x, x, 2)
    assert (distance[:, 0] == 0).all() and (index[:, 0] == np.arange(3000)).all()
    away, other = nearest(x, x, exclude_self=True)
    assert (other[:, 0] != np.arange(3000)).all()
    brute = np.linalg.norm(x[7] - np.delete(x, 7, 0), axis=1).min()
    assert away[7, 0] == pytest.approx(brute, rel=1e-9)


def test_nearest_with_too_few_rows():
    distance, index = nearest([[0.0]], [[0.0]], 3, exclude_self=True)
    assert np.isinf(distance).all() and (index == -1).all()


def test_feature_space_keeps_noise_outside_the_principal_plane_visible():
    rng = np.random.default_rng(0)
    low = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 200))
    real, synthetic = low + 0.01 * rng.normal(size=low.shape), low + 0.05 * rng.normal(size=low.shape)
    space = FeatureSpace(real, max_dim=16)
    a, b = space(real), space(synthetic)
    assert a.shape == (400, 16)
    assert b[:, -1].mean() > a[:, -1].mean() + 3


def test_feature_space_shows_broken_constants():
    real = np.concatenate([normal(0, 50, 3), np.zeros((50, 2))], 1)
    space = FeatureSpace(real)
    assert (space(real)[:, -1] == 0).all()
    assert (space(real + 1)[:, -1] > 1).all()


def test_seeded_streams():
    assert seeded(1, "a", 0).random() != seeded(1, "a", 1).random() != seeded(2, "a", 1).random()
    assert seeded(-1, "a").random() == seeded(-1, "a").random()
    assert as_features(torch.ones(2, 3, 4)).shape == (2, 12)


def test_lazy_names_exist():
    for name in metrics.__all__:
        assert getattr(metrics, name) is not None
    with pytest.raises(AttributeError):
        _ = metrics.no_such_metric
