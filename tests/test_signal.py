"""Signals with known spectra, and invariances of the features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_synth import features, signal
from lightning_synth.errors import ConfigError

CWRU = {"num_balls": 9, "ball_diameter": 0.3126, "pitch_diameter": 1.537, "contact_angle": 0.0}
FS, RPM = 12000.0, 1772.0


def impacts(order: float, n: int = 8, length: int = 2048, slip: float = 0.01, noise: float = 0.3) -> np.ndarray:
    """A resonance at 3 kHz struck at a multiple of the shaft speed, with slip and noise."""
    rng = np.random.default_rng(0)
    t = np.arange(length) / FS
    out = np.zeros((n, 1, length))
    for row in out[:, 0]:
        gaps = (1 + slip * rng.normal(size=400)) / (order * RPM / 60)
        for start in np.cumsum(gaps)[: np.searchsorted(np.cumsum(gaps), t[-1])]:
            late = np.maximum(t - start, 0)
            row += (t >= start) * np.exp(-800 * late) * np.sin(2 * np.pi * 3000 * late)
    return out + noise * out.std() * rng.normal(size=out.shape)


def ar1(phi: float, n: int = 400, length: int = 48) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = np.zeros((n, 1, length))
    x[..., 0] = rng.normal(size=(n, 1)) / np.sqrt(1 - phi**2)
    for t in range(1, length):
        x[..., t] = phi * x[..., t - 1] + rng.normal(size=(n, 1))
    return x


@pytest.mark.parametrize(
    ("bearing", "expected"),
    [
        (CWRU, {"BPFI": 5.4152, "BPFO": 3.5848, "FTF": 0.3983, "BSF": 4.7135 / 2}),
        (
            {"num_balls": 8, "ball_diameter": 0.2656, "pitch_diameter": 1.122, "contact_angle": 0.0},
            {"BPFI": 4.947, "BPFO": 3.053, "FTF": 0.3816, "BSF": 3.987 / 2},
        ),
    ],
)
def test_bearing_frequencies(bearing: dict, expected: dict) -> None:
    found = signal.bearing_frequencies(bearing, 60.0)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=5e-4), name


def test_bearing_frequencies_scale_with_speed_and_contact_angle() -> None:
    slow, fast = (signal.bearing_frequencies(CWRU, np.array([rpm]))["BPFO"] for rpm in (600, 1200))
    assert np.allclose(2 * slow, fast)
    steep = signal.bearing_frequencies({**CWRU, "contact_angle": 90.0}, 60.0)
    assert steep["BPFI"] == pytest.approx(4.5) and steep["BPFO"] == pytest.approx(4.5)


def test_psd_finds_line_and_power() -> None:
    t = np.arange(4096) / 1000
    x = 3 * np.sin(2 * np.pi * 125 * t)
    frequency, power = signal.psd(x, 1000, 512)
    assert frequency[power[0, 0].argmax()] == 125
    assert power[0, 0].sum() * frequency[1] == pytest.approx(4.5, rel=1e-3)


def test_psd_of_white_noise_is_flat() -> None:
    x = np.random.default_rng(0).normal(size=(200, 1, 256))
    power = signal.psd(x, 1.0)[1].mean(0)[0, 2:-2]
    assert power.mean() == pytest.approx(2.0, rel=0.05) and power.std() < 0.3


def test_acf_of_ar1() -> None:
    assert np.allclose(signal.acf(ar1(0.8), 5)[0], 0.8 ** np.arange(6), atol=0.03)


def test_acf_ignores_masked_steps() -> None:
    x = ar1(0.8)
    mask = np.arange(48) < 30
    spoiled = np.where(mask, x, 1e3)
    assert np.allclose(signal.acf(spoiled, 3, mask=np.tile(mask, (len(x), 1))), signal.acf(x[..., :30], 3))


def test_acf_of_constant_channel_is_zero() -> None:
    assert signal.acf(np.full((3, 1, 8), 7.0), 2).tolist() == [[1.0, 0.0, 0.0]]


def test_squared_envelope_spectrum_amplitudes() -> None:
    t = np.arange(12000) / FS
    x = (1 + 0.5 * np.cos(2 * np.pi * 100 * t)) * np.cos(2 * np.pi * 3000 * t)
    frequency, amplitude = signal.squared_envelope_spectrum(x, FS)
    # (1 + m cos)^2 = 1 + m^2 / 2 + 2 m cos + m^2 / 2 cos(2 .)
    assert amplitude[0, 0, np.searchsorted(frequency, 100)] == pytest.approx(1.0, rel=1e-3)
    assert amplitude[0, 0, np.searchsorted(frequency, 200)] == pytest.approx(0.125, rel=1e-2)


def test_envelope_band_selects_the_resonance() -> None:
    t = np.arange(12000) / FS
    slow = (1 + np.cos(2 * np.pi * 50 * t)) * np.cos(2 * np.pi * 1000 * t)
    fast = (1 + np.cos(2 * np.pi * 130 * t)) * np.cos(2 * np.pi * 4000 * t)
    for band, line in (((500.0, 1500.0), 50), ((3500.0, 4500.0), 130)):
        frequency, amplitude = signal.squared_envelope_spectrum(slow + fast, FS, band)
        assert frequency[amplitude[0, 0].argmax()] == line


def test_kurtogram_finds_the_band_of_impacts() -> None:
    bands, kurtosis = signal.kurtosis_bands(impacts(3.5848), FS)
    low, high = bands[int(kurtosis.mean(0)[0].argmax())]
    assert low <= 3000 <= high and kurtosis.max() > 1


@pytest.mark.parametrize(("order", "line"), [(3.5848, "BPFO"), (5.4152, "BPFI"), (4.7135, "2BSF")])
def test_defect_lines_name_the_defect(order: float, line: str) -> None:
    found = features.defect_lines(impacts(order), FS, CWRU, RPM)[:, 0]
    best = found.argmax(1)
    assert (best == features.LINES.index(line)).mean() >= 7 / 8
    # The line stands out by more than a factor of three.
    assert np.median(found.max(1) - np.sort(found, 1)[:, 1]) > np.log(3)


def test_peak_ratios_allow_two_percent_slip() -> None:
    frequency, spectrum = np.arange(0, 1000, 0.5), np.ones((1, 1, 2000))
    spectrum[..., 203] = 9.0  # 101.5 Hz
    assert signal.peak_ratios(frequency, spectrum, np.array([[100.0]]), slip=0.02)[0, 0, 0] == 9
    assert signal.peak_ratios(frequency, spectrum, np.array([[100.0]]), slip=0.01)[0, 0, 0] == 1


def test_peak_ratios_beyond_nyquist_are_zero() -> None:
    assert signal.peak_ratios(np.arange(10.0), np.ones((1, 1, 10)), np.array([[50.0]])).item() == 0


def test_window_statistics_by_hand() -> None:
    x = np.array([[[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]])
    expected = [3, np.sqrt(8 / 3), 2, 2, 2, 0, 0, 0]
    assert np.allclose(features.window_statistics(x), [expected])


def test_window_statistics_respect_the_mask() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3, 20))
    mask = np.tile(np.arange(20) < 12, (5, 1))
    spoiled = np.where(mask[:, None], x, np.nan)
    assert np.allclose(features.window_statistics(spoiled, mask), features.window_statistics(x[..., :12]))


@pytest.mark.parametrize(
    "function",
    [
        features.window_statistics,
        features.texture_features,
        lambda x: features.vibration_features(x, FS),
        lambda x: features.vibration_features(x, FS, RPM, CWRU),
    ],
)
def test_features_of_a_window_do_not_depend_on_the_others(function) -> None:
    x = np.random.default_rng(0).normal(size=(9, 2, 512))
    assert np.allclose(function(x)[4:5], function(x[4:5]))
    assert np.isfinite(function(np.zeros((2, 2, 512)))).all()


def test_texture_is_free_of_scale_and_offset() -> None:
    x = np.random.default_rng(0).normal(size=(4, 2, 64))
    assert np.allclose(features.texture_features(x), features.texture_features(3 * x + 7))


def test_defect_contrast_is_free_of_scale() -> None:
    x = impacts(3.5848, n=3)
    assert np.allclose(*(features.envelope_features(a * x, FS, RPM, CWRU) for a in (1, 100)), atol=1e-3)


def test_auto_features_follow_the_schema() -> None:
    schema = {"channels": 1, "length": 512, "sampling_rate": FS, "bearing": CWRU, "conditions": {"rpm": {"mean": RPM}}}
    items = {"x": torch.randn(6, 1, 512, generator=torch.Generator().manual_seed(0)), "rpm": torch.full((6,), RPM)}
    from lightning_synth.items import StackedItems

    assert features.series_features(StackedItems(items), schema).shape == (6, 44)
    slow = {**schema, "sampling_rate": None, "domain": "timeseries", "mean": [0.0], "std": [1.0]}
    assert features.series_features(StackedItems(items), slow).shape == (6, 4 + 6 + 512)
    two = StackedItems({"x": items["x"].repeat(1, 2, 1)})
    assert features.series_features(two, {**slow, "channels": 2}).shape == (6, 2 * 4)
    with pytest.raises(ConfigError, match="sampling rate"):
        features.series_features(StackedItems(items), {**schema, "sampling_rate": None}, "vibration")


def test_signal_functions_are_chunked_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(7, 2, 256))
    whole = signal.squared_envelope_spectrum(x, FS)[1], signal.kurtosis_bands(x, FS)[1]
    monkeypatch.setattr(signal, "_CHUNK_ELEMENTS", 3000)
    parts = signal.squared_envelope_spectrum(x, FS)[1], signal.kurtosis_bands(x, FS)[1]
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize(
    ("key", "line"),
    [("IR_007_DE", "BPFI"), ("IR_021_DE", "BPFI"), ("ORat6_007_DE", "BPFO"), ("ORat3_021_DE", "BPFO")],
)
def test_real_bearings_show_their_defect_line(data_root, key: str, line: str) -> None:
    x = np.load(data_root / "fault" / "cwru_12k_DE_load0.npz")[key]
    windows = x[: len(x) // 1024 * 1024].reshape(-1, 1, 1024)
    found = features.defect_lines(windows, FS, CWRU, 1797.0)[:, 0].argmax(1)
    assert (found == features.LINES.index(line)).mean() > 0.95
