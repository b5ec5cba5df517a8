"""Cost of flow_ts: against Diffusion-TS, and over the length of the windows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch

from lightning_synth.plugins.timeseries.diffusion_ts import DiffusionTS
from lightning_synth.plugins.timeseries.flow_ts import FlowTS
from lightning_synth.testing import tiny_series, tiny_series_schema

pytestmark = pytest.mark.benchmark


def cpu_seconds(job: Callable[[], Any]) -> float:
    """CPU time, so that other processes on the machine do not count; the quietest of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        job()
        times.append(time.process_time() - start)
    return min(times)


def ready(cls: type, channels: int, length: int, **hparams: Any) -> Any:
    model = cls(schema=tiny_series_schema(channels=channels, length=length), **hparams)
    model.is_fitted = True
    return model


@pytest.mark.slow
def test_a_window_costs_a_tenth_of_diffusion_ts_at_default_settings() -> None:
    flow, diffusion = ready(FlowTS, 6, 24), ready(DiffusionTS, 6, 24)
    seconds = [cpu_seconds(lambda: flow.sample(128)), cpu_seconds(lambda: diffusion.sample(128, num_steps=10)) * 50]
    print(f"\n128 windows of 6x24: flow_ts {seconds[0]:.2f} s, Diffusion-TS at 500 steps {seconds[1]:.1f} s")
    assert seconds[1] > 10 * seconds[0]


def test_cost_per_window_grows_no_faster_than_length_to_the_1_3() -> None:
    def cost(length: int) -> tuple[float, float]:
        model, data = ready(FlowTS, 1, length), tiny_series(32, 1, length).tensors
        model.train()

        def step() -> None:
            model.zero_grad()
            model.compute_losses(data)["loss"].backward()

        step()
        train = cpu_seconds(lambda: [step() for _ in range(3)])
        return train, cpu_seconds(lambda: model.sample(32))

    # From 64 steps on there are 64 time tokens, each of several steps.
    short, long = cost(64), cost(1024)
    growth = [math.log(b / a) / math.log(1024 / 64) for a, b in zip(short, long, strict=True)]
    print(f"\ncost of a window grows like length^{growth[0]:.2f} in training and length^{growth[1]:.2f} in sampling")
    assert max(growth) <= 1.3


def test_windows_of_1024_train_and_sample_within_4_gib() -> None:
    model, data = ready(FlowTS, 2, 1024), tiny_series(64, 2, 1024).tensors
    model.train()
    model.compute_losses(data)["loss"].backward()
    model.sample(256)
    peak = psutil.Process().memory_info().rss / 2**30
    print(f"\nresident memory after a training batch of 64 and 256 samples of 2x1024: {peak:.2f} GiB")
    assert peak < 4 and bool(torch.isfinite(next(model.parameters()).grad).all())
