"""Bearing simulator: the right lines in the envelope spectrum, the right power, on real healthy windows."""

import math

import numpy as np
import pytest
import torch

from lightning_synth.errors import ConfigError, SchemaError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.bearing_simulator import (
    BALL,
    INNER,
    OUTER,
    BearingSimulator,
    distributed_force,
    fault_type,
    impact_amplitudes,
    impact_times,
    load_zone,
    rough_force,
)
from lightning_synth.plugins.timeseries.fault_simulator import NORMAL
from lightning_synth.plugins.timeseries.vibration import impact_train
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.signal import BEARINGS, bearing_frequencies, squared_envelope_spectrum

CWRU = {"num_balls": 9, "ball_diameter": 0.3126, "pitch_diameter": 1.537, "contact_angle": 0.0}
RATE, NAMES = 12000.0, ["N", "IR", "OR", "B"]
# Impacts per revolution: BPFI, BPFO and twice BSF of the bearing above.
ORDERS = {1: 5.4152, 2: 3.5848, 3: 4.7135}


def healthy(n=12, length=1024, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(n, channels, length)), dtype=torch.float32)
    rpm = torch.tensor([1730.0, 1797.0]).repeat(n // 2)
    return StackedItems({"x": x, "y": torch.zeros(n, dtype=torch.int64), "rpm": rpm})


def schema_of(items, **known):
    entries = {"class_names": NAMES, "normal_class": 0, "sampling_rate": RATE, "bearing": CWRU}
    return describe(items, "timeseries", **{**entries, **known})


def simulator(length=1024, channels=1, **options):
    items = healthy(length=length, channels=channels)
    return BearingSimulator(**options).fit_on(items, schema_of(items))


@pytest.mark.parametrize("label", (1, 2, 3))
@pytest.mark.parametrize(("rpm", "roughness"), [(1730.0, (0.0, 0.0)), (1797.0, (0.0, 0.9))])
def test_envelope_spectrum_peaks_at_the_defect_frequency(label, rpm, roughness):
    model = simulator(length=24000, snr_db=(15.0, 15.0), slip=(0.01, 0.01), roughness=roughness)
    x = model.sample(24, condition={"label": label, "rpm": rpm}, seed=1).data["x"]
    frequency, spectrum = squared_envelope_spectrum(x, RATE)
    mean = spectrum.mean((0, 1))
    expected = ORDERS[label] * rpm / 60
    # Modulation sidebands and the rotation itself stay below half of the defect frequency away.
    near = (frequency > 0.6 * expected) & (frequency < 1.4 * expected)
    assert abs(frequency[near][mean[near].argmax()] / expected - 1) < 0.02
    others = [ORDERS[k] * rpm / 60 for k in ORDERS if k != label]
    lines = [mean[np.abs(frequency / f - 1) < 0.02].max() for f in (expected, *others)]
    # Sidebands at multiples of the cage speed reach some way.
    assert lines[0] > 2 * max(lines[1:])


def test_the_default_output_stays_what_published_tables_used():
    """Values at steps 100, 400, 700 and 1000, deviation and kurtosis of eight rows, as of the first release."""
    x = simulator().sample(8, condition={"label": [0, 1, 2, 3] * 2, "rpm": 1765.0}, seed=7).data["x"][:, 0]
    values = [
        [-0.7786, -0.2873, 0.7897, 0.2269],
        [-0.2618, 2.29, 0.9774, -0.9379],
        [-0.597, 2.9459, -0.8034, -0.3112],
        [3.6808, -2.9282, 3.0806, -0.585],
        [-0.4969, 0.2201, -0.8768, -0.0469],
        [0.8239, -0.2765, 0.9777, 0.8224],
        [1.719, -0.2693, -0.5616, -0.3312],
        [0.3493, 0.7662, -0.1203, 2.7544],
    ]
    torch.testing.assert_close(x[:, 100::300], torch.tensor(values), atol=1e-3, rtol=0)
    z = (x - x.mean(1, keepdim=True)).double()
    deviation = [1.0497, 1.3448, 1.4133, 1.6417, 1.0579, 1.0787, 0.9554, 2.799]
    kurtosis = [3.342, 9.028, 4.922, 10.31, 2.77, 3.825, 3.114, 14.842]
    assert z.square().mean(1).sqrt().tolist() == pytest.approx(deviation, abs=1e-3)
    assert (z.pow(4).mean(1) / z.square().mean(1) ** 2).tolist() == pytest.approx(kurtosis, abs=1e-2)


def test_the_requested_signal_to_noise_ratio_is_met():
    quiet, loud = (simulator(snr_db=(snr, snr), gain_db=0.0) for snr in (-60.0, 6.0))
    asked = {"condition": {"label": [1, 2, 3] * 10, "rpm": 1797.0}, "seed": 4}
    background, x = (model.sample(30, **asked).data["x"].double() for model in (quiet, loud))
    impacts = x - background
    ratio = 10 * torch.log10(impacts.square().mean(-1) / background.var(-1, unbiased=False))
    assert torch.allclose(ratio, torch.full_like(ratio, 6.0), atol=0.1)


def test_on_several_channels_the_best_one_has_the_ratio():
    quiet, loud = (simulator(channels=3, snr_db=(snr, snr), gain_db=0.0) for snr in (-60.0, 6.0))
    asked = {"condition": {"label": 1, "rpm": 1797.0}, "seed": 4}
    background, x = (model.sample(30, **asked).data["x"].double() for model in (quiet, loud))
    ratio = 10 * torch.log10((x - background).square().mean(-1) / background.var(-1, unbiased=False))
    assert torch.allclose(ratio.amax(1), torch.tensor(6.0, dtype=torch.float64), atol=0.1)
    assert ratio.min() > -0.1


def test_normal_rows_are_healthy_windows_of_the_nearest_speed():
    model = simulator(gain_db=0.0)
    data = model.sample(20, condition={"label": 0, "rpm": 1740.0}).data
    bank = model.windows["x"]
    source = torch.cdist(data["x"].flatten(1), bank.flatten(1)).argmin(1)
    assert torch.equal(data["x"], bank[source])
    assert (model.windows["rpm"][source] == 1730).all()
    assert data["y"].tolist() == [0] * 20


def test_impacts_do_not_depend_on_how_long_one_waits():
    """The mean rate is the defect rate, and the jitter accumulates as a random walk."""
    order, shaft = torch.full((3000,), 4.0), torch.full((3000,), 25.0)
    times = impact_times(order, shaft, torch.full((3000,), 0.02), 101, KeyedRNG(torch.arange(3000)))
    gaps = times.diff()
    assert (gaps > 0).all()
    assert abs(float(gaps.mean()) - 0.01) < 1e-5
    assert abs(float(gaps.std()) - 0.0002) < 1e-5
    waited = times[:, 100] - times[:, 0]
    assert abs(float(waited.std()) - 0.0002 * math.sqrt(100)) < 1e-4
    assert float(times[:, 0].min()) >= 0 and float(times[:, 0].max()) <= 0.01


def test_load_zone_is_that_of_stribeck():
    angle = torch.tensor([0.0, math.pi / 2, math.pi])
    assert torch.allclose(load_zone(angle, torch.tensor(0.5)), torch.tensor([1.0, 0.0, 0.0]), atol=1e-5)
    assert torch.allclose(load_zone(angle, torch.tensor(1.0)), torch.tensor([1.0, 0.5**1.5, 0.0]), atol=1e-5)


def test_inner_race_impacts_follow_the_shaft_and_ball_impacts_the_cage():
    rows, shaft, cage = 400, 30.0, 0.4
    times = torch.arange(0, 2, 0.001).expand(rows, -1)
    line = {}
    for kind in (INNER, OUTER, BALL):
        strength = impact_amplitudes(
            torch.full((rows,), kind), times, torch.full((rows,), shaft), cage, KeyedRNG(torch.arange(rows)), 0.0
        )
        assert strength.min() >= 0
        spectrum = torch.fft.rfft(strength - strength.mean(1, keepdim=True)).abs().mean(0) / times.shape[1]
        line[kind] = {"shaft": float(spectrum[round(2 * shaft)]), "cage": float(spectrum[round(2 * cage * shaft)])}
    assert line[INNER]["shaft"] > 0.1 > 50 * line[INNER]["cage"]
    assert line[BALL]["cage"] > 0.1 > 50 * line[BALL]["shaft"]
    assert 0.02 < line[OUTER]["shaft"] < line[INNER]["shaft"]


def test_rough_patches_keep_the_energy_and_turn_impacts_into_modulated_noise():
    rows, steps, rate = 200, 4800, 48000.0
    times = (torch.arange(20) * 0.005 + 0.001).expand(rows, -1)
    train = impact_train(times, torch.ones(rows, 20), steps, rate)
    keys, brief = KeyedRNG(torch.arange(rows)), torch.full((rows,), 5e-4)
    force = {share: rough_force(train, torch.full((rows,), share), brief, rate, keys) for share in (0.0, 0.5, 1.0)}
    assert torch.equal(force[0.0], train)
    for value in force.values():
        assert abs(float(value.square().sum() / train.square().sum()) - 1) < 0.03
    # Noise falls off between the impacts, 5 ms apart.
    power = force[1.0].square().mean(0)
    after, before = power[48 + 240 : 48 + 264].mean(), power[48 + 240 - 24 : 48 + 240 - 2].mean()
    assert after > 50 * before


def test_rows_depend_on_their_own_seed_only():
    model = simulator()
    requests = model.make_requests(9, seed=3, condition={"label": [0, 1, 2, 3, 1, 2, 3, 1, 2], "rpm": 1750.0})
    together = model.sample(requests).data["x"]
    alone = torch.cat([model.sample(requests[i : i + 1]).data["x"] for i in range(9)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert len(torch.unique(together, dim=0)) == 9


def test_rows_do_not_depend_on_the_chunk(monkeypatch):
    import lightning_synth.plugins.timeseries.fault_simulator as module

    model = simulator()
    whole = model.sample(10, condition={"label": 1}, seed=2).data["x"]
    monkeypatch.setattr(module, "_CHUNK", 3)
    assert torch.allclose(whole, model.sample(10, condition={"label": 1}, seed=2).data["x"], atol=1e-5)


def test_the_speed_can_be_asked_for_or_fixed():
    data = simulator().sample(4, condition={"label": 1, "rpm": 1765.0}).data
    assert torch.allclose(data["rpm"], torch.tensor(1765.0))
    items = StackedItems({name: value for name, value in healthy().tensors.items() if name != "rpm"})
    fixed = BearingSimulator(rpm=1797.0).fit_on(items, schema_of(items))
    assert torch.isfinite(fixed.sample(3, condition={"label": 2}).data["x"]).all()
    with pytest.raises(ConfigError, match="rpm"), pytest.warns(UserWarning, match="outside the training range"):
        simulator().sample(2, condition={"label": 1, "rpm": 10000.0})


@pytest.mark.parametrize("missing", ("sampling_rate", "bearing", "rpm", "normal", "parts"))
def test_missing_physics_is_named(missing):
    items = healthy()
    if missing == "rpm":
        items = StackedItems({name: value for name, value in items.tensors.items() if name != "rpm"})
    known = {missing: None} if missing in ("sampling_rate", "bearing") else {}
    if missing == "normal":
        known = {"class_names": ["IR", "OR", "B", "inner"]}
    if missing == "parts":
        known = {"class_names": ["N", "IR", "squeak", "B"]}
    wanted = {"normal": "healthy", "parts": "'squeak'"}.get(missing, missing)
    with pytest.raises(SchemaError, match=wanted):
        BearingSimulator().fit_on(items, schema_of(items, **known))


def test_windows_shorter_than_the_time_between_impacts_are_finite():
    x = simulator(length=8).sample(50, condition={"label": 2, "rpm": 1797.0}).data["x"]
    assert torch.isfinite(x).all()


def test_arguments_stand_in_for_the_schema():
    items = healthy()
    plain = describe(items, "timeseries", num_classes=3)
    model = BearingSimulator(sampling_rate=RATE, bearing=CWRU, parts=["normal", "inner", "ball"]).fit_on(items, plain)
    assert model.sample(3, condition={"label": [0, 1, 2]}).data["y"].tolist() == [0, 1, 2]


def test_a_training_set_without_healthy_windows_is_refused():
    items = healthy()
    items.tensors["y"] = torch.ones(12, dtype=torch.int64)
    model = BearingSimulator().fit_on(items, schema_of(items))
    with pytest.raises(SchemaError, match="healthy"):
        model.sample(2, condition={"label": 1})


@pytest.mark.parametrize("fault", ("localised", "wide", "distributed"))
@pytest.mark.parametrize("preset", sorted(BEARINGS))
def test_every_preset_and_fault_has_its_line_in_the_envelope_spectrum(preset, fault):
    options = {
        "localised": {},
        "wide": {"severity": (0.03, 0.1)},
        "distributed": {"distributed": 1.0, "modulation": (0.8, 1.0)},
    }[fault]
    items = healthy(length=24000)
    model = BearingSimulator(bearing=preset, snr_db=(15.0, 15.0), slip=(0.01, 0.01), **options)
    model.fit_on(items, schema_of(items, bearing=None))
    tones = bearing_frequencies(BEARINGS[preset], 1797.0)
    for label, expected in ((1, tones["BPFI"]), (2, tones["BPFO"]), (3, 2 * tones["BSF"])):
        x = model.sample(24, condition={"label": label, "rpm": 1797.0}, seed=1).data["x"]
        frequency, spectrum = squared_envelope_spectrum(x, RATE)
        near = (frequency > 0.6 * expected) & (frequency < 1.4 * expected)
        mean = spectrum.mean((0, 1))
        assert abs(frequency[near][mean[near].argmax()] / expected - 1) < 0.02
        assert mean[near].max() > 5 * np.median(mean[near])


def test_the_geometry_by_name_is_that_of_the_data():
    named, given = simulator(bearing="cwru_de"), simulator(bearing=CWRU)
    asked = {"condition": {"label": [1, 2, 3]}, "seed": 3}
    assert torch.equal(named.sample(3, **asked).data["x"], given.sample(3, **asked).data["x"])
    for bad in ("6205", {"num_balls": 9}):
        with pytest.raises(ConfigError, match="cwru_de|ball_diameter"):
            simulator(bearing=bad)


@pytest.mark.parametrize("label", (1, 2, 3))
def test_kurtosis_rises_with_severity(label):
    found = []
    for severity in (0.01, 0.02, 0.045, 0.09):
        model = simulator(length=4096, severity=(severity, severity), snr_db=(-3.0, -3.0), roughness=(0.0, 0.0))
        z = model.sample(100, condition={"label": label, "rpm": 1797.0}, seed=5).data["x"].double()
        z = z - z.mean(-1, keepdim=True)
        found.append(float((z.pow(4).mean(-1) / z.square().mean(-1) ** 2).mean()))
    assert found == sorted(found) and found[-1] > found[0] + 1, found


def test_amplitude_is_proportional_to_the_width():
    asked = {"condition": {"label": 2, "rpm": 1797.0}, "seed": 4}
    rows = [simulator(severity=(w, w), snr_db=(0.0, 0.0), gain_db=0.0).sample(20, **asked) for w in (0.0225, 0.09)]
    background = simulator(snr_db=(-80.0, -80.0), gain_db=0.0).sample(20, **asked).data["x"]
    power = [(r.data["x"] - background).square().mean() / background.var() for r in rows]
    assert float(power[0]) == pytest.approx(0.25, rel=0.05) and float(power[1]) == pytest.approx(4.0, rel=0.05)


def test_a_wide_spall_is_left_later_than_it_is_entered():
    """Exit after width / (pi D f_cage) on the outer race, that is, after width * n / (pi D) of a period."""
    model = simulator(length=2400, severity=(0.09, 0.09))
    rng, kind = KeyedRNG(torch.arange(1)), torch.tensor([OUTER])
    times, strength = torch.tensor([[0.05]]), torch.ones(1, 1)
    frequency = torch.tensor([ORDERS[2] * 30.0])
    force = model._double_impacts(kind, frequency, times, strength, None, rng)[0]
    fine = 4 * RATE
    cage = 0.3983 * 30
    transit = 0.09 * CWRU["ball_diameter"] / (math.pi * CWRU["pitch_diameter"] * cage)
    assert abs(int(force.argmax()) / fine - 0.05 - transit) < 2 / fine
    assert abs(int(force.argmin()) / fine - 0.05) < 2 / fine
    assert float(force.sum()) == pytest.approx(0.5, abs=0.01)


def test_distributed_faults_are_noise_modulated_at_the_defect_frequency():
    rows, rate = 400, 1000
    angle = (10 * torch.arange(2000) / rate).expand(rows, -1)
    force = distributed_force(angle, torch.full((rows,), 0.8), KeyedRNG(torch.arange(rows)))
    assert abs(float(force.var()) - (1 + 0.8**2 / 2)) < 0.02
    assert float(force.mean(0).abs().max()) < 0.3
    power = torch.fft.rfft(force.square()).abs().mean(0)
    # (1 + q sin)^2 has the line q^2 / 4 at twice the frequency, and 2 q at it.
    assert int(power[5:].argmax()) + 5 == 20 and power[40] > 1.2 * power[45:60].mean()
    share = simulator(distributed=0.5).sample(300, condition={"label": 2}, seed=1).data["x"]
    only = simulator().sample(300, condition={"label": 2}, seed=1).data["x"]
    same = (share - only).abs().amax((1, 2)) < 1e-6
    assert 0.4 < float(same.float().mean()) < 0.6


def test_a_run_up_shifts_the_line_from_the_start_to_the_end():
    model = simulator(length=24000, snr_db=(20.0, 20.0), roughness=(0.0, 0.0), speed_profile=(0.8, 1.2))
    x = model.sample(24, condition={"label": 2, "rpm": 1797.0}, seed=1).data["x"]
    for part, relative in ((x[..., :4800], 0.84), (x[..., -4800:], 1.16)):
        frequency, spectrum = squared_envelope_spectrum(part, RATE, padding=4)
        expected = relative * ORDERS[2] * 1797 / 60
        near = (frequency > 0.7 * expected) & (frequency < 1.3 * expected)
        assert abs(frequency[near][spectrum.mean((0, 1))[near].argmax()] / expected - 1) < 0.03


def test_fluctuation_of_the_speed_is_drawn_per_row_and_leaves_the_mean():
    still, slow = simulator(), simulator(speed_fluctuation=(0.1, 0.2))
    asked = {"condition": {"label": 2, "rpm": 1797.0}, "seed": 2}
    assert (still.sample(9, **asked).data["x"] - slow.sample(9, **asked).data["x"]).abs().amax((1, 2)).min() > 0.01
    clock = slow.clock(KeyedRNG(torch.arange(2000)))
    assert 0.8 <= float(clock.speed.min()) < 0.83 and 1.17 < float(clock.speed.max()) <= 1.2
    assert abs(float(clock.speed.mean()) - 1) < 0.01


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("N", "normal", "Healthy", "n_0", "baseline"), NORMAL),
        (("IR", "IR_007", "inner race", "ir014"), INNER),
        (("OR", "OR@6", "OR_021", "outer_race", "ORat12"), OUTER),
        (("B", "B_014", "ball", "rolling element"), BALL),
    ],
)
def test_class_names_are_read(names, kind):
    assert [fault_type(name) for name in names] == [kind] * len(names)


@pytest.mark.parametrize(
    "bad",
    [
        {"snr_db": (3.0, 1.0)},
        {"damping": (0.0, 0.1)},
        {"resonance": (0.5, 1.5)},
        {"max_modes": 0},
        {"roughness": (0, 2)},
        {"severity": (0.0, 0.1)},
        {"distributed": 1.5},
        {"modulation": (0.5, 1.5)},
        {"speed_profile": (1.0, 0.0)},
        {"speed_fluctuation": (0.0, 1.0)},
        {"fluctuation_rate": (0.0, 1.0)},
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        BearingSimulator(**bad)
