"""Gear simulator: mesh lines with their sidebands, one tooth fault a revolution, on real healthy windows."""

import math

import numpy as np
import pytest
import torch

from lightning_synth.errors import ConfigError, SchemaError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.fault_simulator import NORMAL
from lightning_synth.plugins.timeseries.gear_simulator import (
    CRACK,
    MISSING,
    WEAR,
    GearSimulator,
    gear_fault,
    tooth_pulse,
)
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe

RATE, TEETH, NAMES = 8000.0, 24, ["healthy", "wear", "crack", "missing"]
# 20 revolutions a second, so that all lines fall on whole Hz.
RPM, SHAFT = 1200.0, 20.0


def healthy(n=12, length=1024, seed=0):
    x = torch.tensor(np.random.default_rng(seed).normal(size=(n, 1, length)), dtype=torch.float32)
    return StackedItems({"x": x, "y": torch.zeros(n, dtype=torch.int64), "rpm": torch.full((n,), RPM)})


def simulator(length=8000, **options):
    items = healthy(length=length)
    schema = describe(items, "timeseries", class_names=NAMES, normal_class=0, sampling_rate=RATE)
    return GearSimulator(**{"teeth": TEETH, "snr_db": (30.0, 30.0), **options}).fit_on(items, schema)


def spectrum(x):
    """Mean power of each whole Hz: the windows last one second."""
    return torch.fft.rfft(x[:, 0].double()).abs().square().mean(0)


def sample(label, n=40, seed=1, **options):
    return simulator(**options).sample(n, condition={"label": label, "rpm": RPM}, seed=seed).data["x"]


@pytest.mark.parametrize("label", (1, 2, 3))
def test_lines_at_the_mesh_frequency_and_its_harmonics(label):
    power = spectrum(sample(label))
    background = float(power.median())
    for harmonic in (1, 2, 3):
        line = round(harmonic * TEETH * SHAFT)
        near = power[line - 9 : line + 10]
        assert int(near.argmax()) == 9 and float(near.max()) > 100 * background


def test_worn_gears_have_sidebands_at_multiples_of_the_shaft_speed():
    power, without = (spectrum(sample(1, depth=(d, d), lag=(0.0, 0.0))) for d in (0.8, 0.0))
    mesh = round(TEETH * SHAFT)
    for k in (1, 2, 3):
        for line in (mesh - 20 * k, mesh + 20 * k):
            assert float(power[line]) > 30 * max(float(power[line - 7]), float(without[line]))
    # (1 + d cos) has sidebands of d / 2: a sixth of the carrier's power at a depth of .8.
    assert float(power[mesh + 20] / power[mesh]) == pytest.approx(0.16, rel=0.05)
    assert float(power[mesh + 100]) < 0.01 * float(power[mesh + 20])


def test_phase_modulation_alone_gives_sidebands_too():
    power = spectrum(sample(1, depth=(0.0, 0.0), lag=(0.4, 0.4), harmonics=1, sidebands=1))
    mesh = round(TEETH * SHAFT)
    # Bessel functions: J1(.4)^2 / J0(.4)^2.
    assert float(power[mesh + 20] / power[mesh]) == pytest.approx((0.19603 / 0.96040) ** 2, rel=0.05)


def by_revolution(x):
    """Signals (rows, revolutions, steps), 400 steps a revolution."""
    return x[:, 0].reshape(len(x), 20, 400).double()


def test_a_cracked_tooth_weakens_the_mesh_once_a_revolution():
    options = {"harmonics": 1, "lag": (0.0, 0.0), "snr_db": (60.0, 60.0), "gain_db": 0.0}
    whole, cracked = (sample(2, depth=(d, d), **options) for d in (0.0, 1.0))
    scale = (whole * cracked).mean(-1, keepdim=True) / whole.square().mean(-1, keepdim=True)
    lost = by_revolution(cracked / scale - whole)
    energy = lost.square().mean(1)
    for row, start in zip(energy, lost.square().mean(1).argmax(1), strict=True):
        rolled = row.roll(200 - int(start))
        # One tooth is 400 / 24 = 17 steps wide.
        assert float(rolled[180:221].sum()) > 0.9 * float(rolled.sum())
    assert torch.allclose(lost[:, 2], lost[:, 15], atol=0.15 * float(lost.abs().max()))


def test_a_cracked_tooth_lags():
    pulse = torch.linspace(-1, 1, 41) / 2 / TEETH
    assert float(tooth_pulse(torch.zeros(1), TEETH)) == 1 and float(tooth_pulse(pulse, TEETH)[[0, -1]].max()) < 1e-6
    model = simulator()
    rows, turn = torch.full((2,), CRACK), torch.linspace(0, 3, 1000).expand(2, -1)
    a, b = model._modulation(rows, turn, KeyedRNG(torch.arange(2)))
    assert float(a.max()) == 0 and float(b.max()) == 0 and -1 <= float(a.min()) < -0.3
    assert ((a != 0) == (b != 0)).all()


def test_a_missing_tooth_rings_once_a_revolution():
    x = by_revolution(sample(3, depth=(0.0, 0.0), burst=(50.0, 50.0), damping=(0.1, 0.1), resonance=(0.5, 0.8)))
    energy = x.square().mean(1)
    for row in energy:
        rolled = row.roll(20 - int(row.argmax()))
        assert float(rolled[:120].sum()) > 0.8 * float(rolled.sum())
    z = x.flatten(1)
    assert float((z.pow(4).mean(1) / z.square().mean(1) ** 2).min()) > 6


def test_mesh_beyond_nyquist_is_left_out():
    power = spectrum(sample(1, harmonics=20))
    limit = 0.95 * RATE / 2
    assert float(power[round(limit) :].max()) < 30 * float(power[round(limit) :].median())
    x = sample(3, teeth=400)
    assert torch.isfinite(x).all() and float(x.std()) > 5


def test_normal_rows_are_healthy_windows():
    model = simulator(gain_db=0.0)
    x = model.sample(10, condition={"label": 0}).data["x"]
    assert torch.cdist(x.flatten(1), model.windows["x"].flatten(1)).amin(1).max() < 1e-3


def test_the_requested_signal_to_noise_ratio_is_met():
    asked = {"condition": {"label": [1, 2, 3] * 5, "rpm": RPM}, "seed": 4}
    quiet, loud = (simulator(snr_db=(s, s), gain_db=0.0).sample(15, **asked).data["x"].double() for s in (-90.0, 6.0))
    ratio = 10 * torch.log10((loud - quiet).square().mean(-1) / quiet.var(-1, unbiased=False))
    assert torch.allclose(ratio, torch.full_like(ratio, 6.0), atol=0.1)


def test_rows_depend_on_their_own_seed_only():
    model = simulator(length=1024, speed_fluctuation=(0.0, 0.2))
    requests = model.make_requests(9, seed=3, condition={"label": [0, 1, 2, 3, 1, 2, 3, 3, 2], "rpm": RPM})
    together = model.sample(requests).data["x"]
    alone = torch.cat([model.sample(requests[i : i + 1]).data["x"] for i in range(9)])
    assert torch.allclose(together, alone, atol=1e-3)
    assert len(torch.unique(together, dim=0)) == 9


def test_a_run_up_sweeps_the_mesh_frequency():
    x = sample(1, speed_profile=(0.8, 1.2), depth=(0.0, 0.0), lag=(0.0, 0.0), harmonics=1)
    for part, relative in ((x[..., :800], 0.82), (x[..., -800:], 1.18)):
        line = torch.fft.rfft(part[:, 0], 8000).abs().mean(0).argmax()
        assert abs(float(line) / (relative * TEETH * SHAFT) - 1) < 0.03


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("N", "Health", "normal"), NORMAL),
        (("wear", "Surface", "eccentric"), WEAR),
        (("root", "cracked tooth"), CRACK),
        (("Miss", "chipped", "broken_tooth"), MISSING),
    ],
)
def test_class_names_are_read(names, kind):
    assert [gear_fault(name) for name in names] == [kind] * len(names)
    with pytest.raises(SchemaError, match="'squeak'"):
        gear_fault("squeak")


def test_teeth_are_needed():
    with pytest.raises(SchemaError, match="pass teeth="):
        simulator(teeth=None)


@pytest.mark.parametrize(
    "bad",
    [{"teeth": 1}, {"harmonics": 0}, {"sidebands": 0}, {"depth": (0, 2)}, {"lag": (0, 9)}, {"burst": (-1, 2)}],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        GearSimulator(**bad)


def test_tooth_pulses_have_the_area_of_half_a_tooth():
    turn = torch.arange(10000) / 10000
    assert float(tooth_pulse(turn, TEETH).mean()) == pytest.approx(0.5 / TEETH, rel=1e-3)
    assert math.isclose(float(tooth_pulse(torch.tensor(3.0), TEETH)), 1.0)
