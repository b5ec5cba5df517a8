"""Known answers, floors and invariances of the metrics of windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lightning_synth.metrics.context_fid as cf
import lightning_synth.metrics.judges as judges
import lightning_synth.metrics.timeseries as ts
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.items import StackedItems
from lightning_synth.metrics import series_utility
from lightning_synth.testing import tiny_series, tiny_series_schema


def gaussian(n: int, rho: float, seed: int = 0, length: int = 50) -> np.ndarray:
    """Two channels with correlation rho, independent over time."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n, length))
    return np.stack([a, rho * a + np.sqrt(1 - rho**2) * b], 1)


def walks(n: int, seed: int = 0, channels: int = 3, length: int = 24) -> np.ndarray:
    """Autoregressive series with noise on top: rough on the smallest scale."""
    rng = np.random.default_rng(seed)
    slow = np.cumsum(rng.normal(size=(n, channels, length)), -1) * 0.5 + rng.normal(size=(n, channels, 1))
    return slow + 0.3 * rng.normal(size=slow.shape)


def smoothed(x: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[..., 1:-1] = (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / 3
    return out


# ---------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.0), (0.5, -0.5), (0.3, 0.3)])
def test_correlational_score_of_gaussians(first: float, second: float) -> None:
    found = ts.correlational_score(gaussian(400, first), gaussian(400, second, seed=1))
    assert found["correlation_difference"] == pytest.approx(abs(first - second), abs=0.02)
    assert found["correlational_score"] == pytest.approx(abs(first - second) / 10, abs=0.002)


def test_correlations_do_not_depend_on_scale_and_offset() -> None:
    x, y = gaussian(50, 0.7), gaussian(60, 0.1, seed=1)
    scale, offset = np.array([[10.0], [0.1]]), np.array([[5.0], [-3.0]])
    a, b = ts.correlational_score(x, y), ts.correlational_score(scale * x + offset, scale * y + offset)
    assert a == pytest.approx(b)


def test_one_channel_has_no_correlational_score() -> None:
    assert ts.correlational_score(np.ones((3, 1, 4)), np.ones((3, 1, 4))) == {}


def test_marginal_difference_extremes() -> None:
    x = np.random.default_rng(0).uniform(size=(500, 2, 5))
    assert ts.marginal_difference(x, x) == 0
    # No common bin: |p - q| sums to 2 over the bins. Values outside the real range count.
    assert ts.marginal_difference(np.zeros((500, 2, 5)), x + 9, bins=10) == pytest.approx(0.2)
    assert ts.marginal_difference(x, x + 5, bins=10) > 0.15


def test_autocorrelation_difference_of_ar1() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(size=(500, 1, 40))
    ar = white.copy()
    for t in range(1, 40):
        ar[..., t] = 0.8 * ar[..., t - 1] + 0.6 * white[..., t]
    expected = np.sqrt(np.mean(0.8 ** (2 * np.arange(1, 6))))
    assert ts.autocorrelation_difference(ar, rng.normal(size=ar.shape), 5) == pytest.approx(expected, abs=0.03)


def test_moment_differences_of_known_laws() -> None:
    rng = np.random.default_rng(0)
    found = ts.moment_differences(rng.normal(size=(400, 1, 200)), rng.uniform(size=(400, 1, 200)))
    assert found["kurtosis_difference"] == pytest.approx(3 - 1.8, rel=0.05) and found["skewness_difference"] < 0.05
    found = ts.moment_differences(rng.normal(size=(400, 1, 200)), rng.exponential(size=(400, 1, 200)))
    assert found["skewness_difference"] == pytest.approx(2, rel=0.05)


def test_psd_distance_of_sinusoids() -> None:
    t = np.arange(256) / 256
    wave = {f: np.sin(2 * np.pi * f * t + np.linspace(0, 6, 20)[:, None])[:, None] for f in (10, 60)}
    assert ts.psd_distance(wave[10], wave[60])["psd_distance"] == pytest.approx(1, abs=1e-6)
    assert ts.psd_distance(wave[10], wave[10][::-1])["psd_distance"] == pytest.approx(0, abs=1e-6)
    both = ts.psd_distance(wave[10], (wave[10] + wave[60]) / 2)
    assert both["psd_distance"] == pytest.approx(0.5, abs=1e-6)
    assert ts.psd_distance(wave[10], 0.1 * wave[10])["psd_db"] == pytest.approx(20, abs=1e-6)


def test_statistics_do_not_depend_on_the_order_of_windows() -> None:
    x, y = walks(40), walks(50, seed=1)
    order = np.random.default_rng(0).permutation(50)
    for function in (ts.correlational_score, ts.moment_differences, ts.psd_distance):
        assert function(x, y) == pytest.approx(function(x, y[order]))
    for function in (ts.marginal_difference, ts.autocorrelation_difference):
        assert function(x, y) == pytest.approx(function(x, y[order]))


def test_statistics_are_near_zero_for_one_law_and_order_shifts() -> None:
    x, y, other = walks(400), walks(400, seed=1), smoothed(walks(400, seed=2))
    assert ts.correlational_score(x, y)["correlation_difference"] < 0.08
    assert ts.psd_distance(x, y)["psd_distance"] < 0.05
    assert ts.autocorrelation_difference(x, other) > ts.autocorrelation_difference(x, y)


# -------------------------------------------------------------------------------------------------------- judges


def test_forest_sees_smoothing_that_the_recurrent_judge_hardly_sees() -> None:
    x, y = walks(200), smoothed(walks(200, seed=1))
    forest = judges.discriminative_score(x, y, "forest")["discriminative_forest"]
    gru = judges.discriminative_score(x, y, "gru", repeats=2, iterations=60)["discriminative_gru"]
    assert forest > 0.45 and gru < forest - 0.2


@pytest.mark.parametrize("judge", ["gru", "cnn", "forest"])
def test_discriminative_score_of_one_law_and_of_two(judge: str) -> None:
    x, y = walks(120), walks(120, seed=1)
    options = {"repeats": 2, "iterations": 60}
    same = judges.discriminative_score(x, y, judge, **options)  # type: ignore[arg-type]
    other = judges.discriminative_score(x, y + 8, judge, **options)  # type: ignore[arg-type]
    assert abs(same[f"discriminative_{judge}"]) < 0.13
    assert other[f"discriminative_{judge}"] > 0.45 and other[f"discriminative_{judge}_sd"] < 0.05


def test_copies_score_below_zero() -> None:
    x = walks(150)
    assert judges.discriminative_score(x, x, "forest")["discriminative_forest"] < -0.2


def test_judges_are_pure_functions() -> None:
    x, y = walks(40), walks(40, seed=1) + 0.3
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    runs = [judges.discriminative_score(x, y, "cnn", repeats=2, iterations=5, seed=s) for s in (1, 1)]
    scores = [judges.predictive_score(x, y, iterations=5, seed=s) for s in (1, 1, 2)]
    assert runs[0] == runs[1] and scores[0] == scores[1] != scores[2]
    assert torch.equal(state, torch.get_rng_state()) and (np.random.get_state()[1] == numpy_state).all()


def test_judges_with_too_few_windows_or_an_unknown_name() -> None:
    assert np.isnan(judges.discriminative_score(walks(3), walks(3))["discriminative_gru"])
    assert np.isnan(judges.predictive_score(walks(3), walks(0)))
    with pytest.raises(ConfigError, match="gru, cnn, forest, texture"):
        judges.discriminative_score(walks(3), walks(3), "svm")  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1, 2, 300])
def test_judges_take_any_length(length: int) -> None:
    x = np.random.default_rng(0).normal(size=(8, 1, length))
    for judge in ("gru", "cnn", "forest"):
        found = judges.discriminative_score(x, x + 1, judge, repeats=2, iterations=2)  # type: ignore[arg-type]
        assert np.isfinite(found[f"discriminative_{judge}"])


@pytest.mark.parametrize("channels", [1, 3])
def test_predictive_score_is_lowest_after_training_on_the_same_law(channels: int) -> None:
    t = np.arange(30) / 3
    phase = np.random.default_rng(0).uniform(0, 6, size=(2, 150, channels, 1))
    phase[:, :, :] = phase[:, :, :1]
    good, noise = np.sin(t + phase[0]), np.random.default_rng(1).uniform(-1, 1, size=(150, channels, 30))
    test = np.sin(t + phase[1])
    on_real, on_noise = (judges.predictive_score(test, x, iterations=100) for x in (good, noise))
    assert on_real < 0.08 < 0.2 < on_noise


# --------------------------------------------------------------------------------------------------- context-FID


def test_frechet_distance_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20000, 4))
    shift, scale = np.array([1.0, 0.0, -2.0, 0.5]), np.array([1.0, 2.0, 0.5, 1.0])
    expected = np.square(shift).sum() + np.square(scale - 1).sum()
    assert cf.frechet_distance(x, scale * y + shift) == pytest.approx(expected, rel=0.02)
    assert cf.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert cf.frechet_distance(x, y) < 0.01


def test_frechet_distance_does_not_depend_on_rotation() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 3)), 2 * rng.normal(size=(80, 3)) + 1
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert cf.frechet_distance(x, y) == pytest.approx(cf.frechet_distance(x @ turn, y @ turn))


def test_frechet_distance_with_fewer_rows_than_dimensions_is_finite() -> None:
    rng = np.random.default_rng(0)
    assert np.isfinite(cf.frechet_distance(rng.normal(size=(5, 20)), rng.normal(size=(6, 20))))


def test_context_fid_orders_distortions() -> None:
    train, real, same = walks(100), walks(100, seed=1), walks(100, seed=2)
    options = {"dim": 8, "iterations": 25}
    floor = cf.context_fid(train, real, same, **options)
    reversed_noise = np.random.default_rng(0).normal(size=same.shape) * same.std() + same.mean()
    assert floor < 0.3 * cf.context_fid(train, real, 1.5 * same + 1, **options)
    assert floor < 0.3 * cf.context_fid(train, real, reversed_noise, **options)


def test_encoder_is_trained_once_per_training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    train = cf.train_encoder
    monkeypatch.setattr(cf, "_CACHE", type(cf._CACHE)())
    monkeypatch.setattr(cf, "train_encoder", lambda *a, **k: calls.append(1) or train(*a, **k))
    x = walks(20)
    for windows in (x, x.copy(), x + 1, x):
        cf.cached_encoder(windows, dim=4, iterations=1)
    assert len(calls) == 2


def test_encoder_is_seeded_and_frozen() -> None:
    state = torch.get_rng_state()
    a, b, c = (cf.train_encoder(walks(20), dim=4, iterations=2, seed=s).encode(walks(3)) for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and torch.equal(state, torch.get_rng_state())
    assert not any(p.requires_grad for p in cf.train_encoder(walks(20), dim=4, iterations=1).parameters())


@pytest.mark.parametrize("length", [2, 5, 24, 700])
def test_encoder_takes_any_length(length: int) -> None:
    x = np.random.default_rng(0).normal(size=(6, 2, length))
    assert cf.train_encoder(x, dim=3, iterations=3).encode(x).shape == (6, 3)


# ------------------------------------------------------------------------------------------ labels, memorisation


def test_class_adherence_of_right_wrong_and_missing_labels() -> None:
    schema, train, good = tiny_series_schema(), tiny_series(48), tiny_series(30, seed=1)
    wrong = StackedItems({**good.tensors, "y": (good.tensors["y"] + 1) % 3})
    assert ts.class_adherence(train, good, schema)["class_adherence"] > 0.9
    assert ts.class_adherence(train, wrong, schema)["class_adherence"] < 0.1
    bare = tiny_series(30, num_classes=0)
    assert ts.class_adherence(bare, bare, tiny_series_schema(num_classes=0)) == {}


def test_class_adherence_does_not_depend_on_class_counts() -> None:
    schema, train = tiny_series_schema(), tiny_series(48)
    good = tiny_series(60, seed=1)
    y = good.tensors["y"]
    mixed = StackedItems({**good.tensors, "y": torch.where(y == 2, 0, y)})
    few = mixed[torch.cat([(y == 0).nonzero()[:, 0], (y == 1).nonzero()[:, 0], (y == 2).nonzero()[:20, 0]])]
    assert ts.class_adherence(train, few, schema)["class_adherence_min"] == pytest.approx(0.5, abs=0.05)


def test_tstr_of_good_and_of_shuffled_labels() -> None:
    schema, train, test, good = tiny_series_schema(), *(tiny_series(48, seed=s) for s in range(3))
    found = ts.train_on_synthetic(train, test, good, schema)
    assert found["tstr"] > 0.9 and abs(found["tstr_gap"]) < 0.1
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    shuffled = StackedItems({**good.tensors, "y": good.tensors["y"][order]})
    assert ts.train_on_synthetic(train, test, shuffled, schema)["tstr_gap"] < -0.3
    one_class = good[good.tensors["y"] == 0]
    assert np.isnan(ts.train_on_synthetic(train, test, one_class, schema)["tstr"])


def test_memorisation_flags_copies_and_near_copies() -> None:
    rng = np.random.default_rng(0)
    train, holdout, fresh = rng.normal(size=(3, 300, 6))
    honest = ts.memorisation(train, holdout, fresh)
    assert honest["memorisation_ratio"] == pytest.approx(1, abs=0.1) and honest["below_first_percentile"] < 0.04
    copies = ts.memorisation(train, holdout, train + 0.01 * rng.normal(size=train.shape))
    assert copies["memorisation_ratio"] < 0.05 and copies["below_first_percentile"] == 1
    some = ts.memorisation(train, holdout, np.concatenate([fresh[:270], train[:30]]))
    assert some["below_first_percentile"] > 0.1


def test_classifier_is_trained_once_per_training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_utility, "_CACHE", type(series_utility._CACHE)())
    schema = tiny_series_schema()
    first = series_utility.classifier_of(tiny_series(24), schema)
    assert series_utility.classifier_of(tiny_series(24), schema) is first
    assert series_utility.classifier_of(tiny_series(24, seed=1), schema) is not first


# ------------------------------------------------------------------------------------------------ envelope lines

BEARING = {"num_balls": 9, "ball_diameter": 0.3126, "pitch_diameter": 1.537, "contact_angle": 0.0}
VIBRATION = {
    "domain": "timeseries",
    "channels": 1,
    "length": 2048,
    "mean": [0.0],
    "std": [1.0],
    "num_classes": 2,
    "sampling_rate": 12000.0,
    "bearing": BEARING,
    "conditions": {"rpm": {"mean": 1800.0, "std": 1.0, "min": 1800.0, "max": 1800.0}},
}


def modulated(orders: tuple[float, float], n: int = 20, seed: int = 0) -> StackedItems:
    """Noise modulated at a multiple of the shaft speed, one multiple per class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    t = np.arange(2048) / 12000
    depth = 1 + np.cos(2 * np.pi * np.array(orders)[y][:, None] * 30 * t)
    x = torch.as_tensor(depth * rng.normal(size=depth.shape), dtype=torch.float32)[:, None]
    return StackedItems({"x": x, "y": torch.as_tensor(y), "rpm": torch.full((n,), 1800.0)})


def test_envelope_lines_see_the_wrong_defect_class_by_class() -> None:
    metric = ts.EnvelopeLines(schema=VIBRATION)
    outer, inner = 3.5848, 5.4152
    metric.update(modulated((outer, inner)), real=True)
    metric.update(modulated((outer, inner), seed=1), real=False)
    same = metric.compute()
    metric.reset()
    metric.update(modulated((outer, inner)), real=True)
    metric.update(modulated((inner, outer), seed=1), real=False)
    swapped = metric.compute()
    assert same["ses_difference"] < 0.4 < 1 < swapped["ses_bpfo"]
    assert swapped["ses_bpfi"] > 1 > swapped["ses_2bsf"]


def test_envelope_lines_need_a_bearing() -> None:
    with pytest.raises(ConfigError, match="bearing"):
        ts.EnvelopeLines(schema={**VIBRATION, "bearing": None})
    spec = next(spec for spec in ts.METRICS if spec.name == "envelope_lines")
    assert spec.compute(None, tiny_series(4), tiny_series(4), tiny_series_schema(), 0) == {}


# ----------------------------------------------------------------------------------------- classes and the table


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (ts.CorrelationalScore(), "correlational_score"),
        (ts.MarginalDifference(), "mdd"),
        (ts.AutocorrelationDifference(), "acf_difference"),
        (ts.PSDDistance(), "psd_distance"),
        (ts.DiscriminativeScore("cnn", repeats=2, iterations=2), "discriminative_cnn"),
        (ts.PredictiveScore(iterations=2), "predictive_score"),
        (ts.ContextFID(dim=4, iterations=2), "context_fid"),
    ],
)
def test_metric_classes_do_not_depend_on_the_batches(metric: ts.SeriesMetric, name: str) -> None:
    real, synthetic = tiny_series(24), tiny_series(20, seed=1)
    metric.update(real, real=True)
    metric.update(synthetic.tensors, real=False)
    whole = metric.compute()
    metric.reset()
    for start in range(0, 24, 7):
        metric.update(real[start : start + 7].tensors["x"], real=True)
        metric.update(list(synthetic[start : start + 7]) or synthetic[:0].tensors["x"], real=False)
    assert torch.allclose(whole[name], metric.compute()[name])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_compute_before_update_says_what_is_missing() -> None:
    with pytest.raises(DataError, match="no real rows"):
        ts.CorrelationalScore().compute()


def test_not_finite_windows_are_named() -> None:
    x = torch.zeros(3, 1, 24)
    x[1, 0, 5] = torch.nan
    with pytest.raises(DataError, match="window 1"):
        ts.CorrelationalScore().update(x, real=True)


def test_masked_steps_do_not_matter() -> None:
    items, schema = tiny_series(6), tiny_series_schema()
    mask = torch.arange(24).expand(6, 24) < 20
    a, b = (
        ts.windows_of({"x": torch.where(mask[:, None], items.tensors["x"], v), "mask": mask}, schema)
        for v in (0.0, 9.0)
    )
    assert np.array_equal(a, b)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_metric_of_the_table_computes(num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ts, "_JUDGE_STEPS", 2)
    monkeypatch.setattr(ts, "_FORECAST_STEPS", 2)
    monkeypatch.setattr(ts, "context_fid", lambda *a: cf.context_fid(*a, dim=4, iterations=2))
    schema = tiny_series_schema(num_classes=num_classes)
    parts = [tiny_series(18, num_classes=num_classes, seed=s) for s in range(3)]
    state = torch.get_rng_state()
    for spec in ts.METRICS:
        inputs = [np.asarray(p.tensors["x"].flatten(1)) for p in parts] if spec.inputs == "features" else parts
        found = spec.compute(*inputs, schema, 0)
        assert found == spec.compute(*inputs, schema, 0), spec.name
        assert all(np.isfinite(value) for value in found.values()), (spec.name, found)
        if not found:
            assert spec.name == "envelope_lines" or (num_classes == 0 and spec.name in ("class_adherence", "tstr"))
    assert torch.equal(state, torch.get_rng_state())
