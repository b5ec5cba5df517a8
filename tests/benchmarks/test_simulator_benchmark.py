"""Cost of simulated vibration: samples of signal per CPU second on one core."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from lightning_synth.generator import Generator
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.bearing_simulator import BearingSimulator
from lightning_synth.plugins.timeseries.gear_simulator import GearSimulator
from lightning_synth.schema import describe

pytestmark = pytest.mark.slow


def rate_of(model: Generator, length: int, rows: int) -> float:
    """Million samples of faulty signal a CPU second; the quietest of several attempts counts."""
    x = torch.tensor(np.random.default_rng(0).normal(size=(12, 1, length)), dtype=torch.float32)
    items = StackedItems({"x": x, "y": torch.zeros(12, dtype=torch.int64), "rpm": torch.full((12,), 1797.0)})
    names = ["N", "IR", "OR", "B"] if isinstance(model, BearingSimulator) else ["N", "wear", "crack", "missing"]
    known: dict[str, Any] = {"class_names": names, "sampling_rate": 12000.0}
    model.fit_on(items, describe(items, "timeseries", **known))
    asked = {"label": [1 + i % 3 for i in range(rows)]}
    model.sample(8, condition={"label": 1})
    seconds = []
    for _ in range(5):
        start = time.process_time()
        model.sample(rows, condition=asked)
        seconds.append(time.process_time() - start)
    return rows * length / min(seconds) / 1e6


@pytest.mark.parametrize(("rows", "length"), [(400, 1024), (256, 4096), (32, 32768)])
def test_a_million_samples_a_second_and_core(rows: int, length: int) -> None:
    everything: dict[str, Any] = {
        "severity": (0.02, 0.09),
        "distributed": 0.3,
        "speed_fluctuation": (0.0, 0.1),
        "speed_profile": (0.9, 1.1),
    }
    models = {
        "bearing, default": BearingSimulator(bearing="cwru_de"),
        "bearing, all options": BearingSimulator(bearing="cwru_de", **everything),
        "gear": GearSimulator(teeth=24),
    }
    found = {name: rate_of(model, length, rows) for name, model in models.items()}
    print(f"\n{rows} windows of {length}: " + ", ".join(f"{name} {rate:.1f} M/s" for name, rate in found.items()))
    assert found["bearing, default"] >= 1 and found["gear"] >= 1
    # Double impacts and worn raceways cost two more convolutions and another noise.
    assert found["bearing, all options"] >= 0.5
