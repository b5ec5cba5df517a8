"""Cost of diffusion sampling and training, as ratios and a table of one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_synth.plugins.timeseries.diffusion_ts import DiffusionTS
from lightning_synth.plugins.timeseries.fault_diffusion import FaultDiffusion
from lightning_synth.testing import tiny_series, tiny_series_schema

pytestmark = pytest.mark.slow


def cpu_seconds(job: Callable[[], Any]) -> float:
    """CPU time, so that other processes on the machine do not count."""
    start = time.process_time()
    job()
    return time.process_time() - start


def fitted(cls: type[DiffusionTS], channels: int, length: int, **hparams: Any) -> DiffusionTS:
    model = cls(schema=tiny_series_schema(channels=channels, length=length), **hparams)
    model.is_fitted = True
    return model


def test_50_ddim_steps_are_8_times_faster_than_500_ddpm_steps() -> None:
    # The ratio does not depend on the size of the network; a small one keeps the 500 evaluations short.
    model = fitted(FaultDiffusion, 6, 24, d_model=16, heads=2, encoder_layers=1, decoder_layers=1, mlp_ratio=2)
    model.sample(8, num_steps=2)
    ddim = cpu_seconds(lambda: model.sample(256, num_steps=50))
    ddpm = cpu_seconds(lambda: model.sample(256, sampler="ddpm"))
    print(f"\n256 windows of 6x24: DDIM 50 {ddim:.1f} s, DDPM 500 {ddpm:.1f} s, {ddpm / ddim:.1f}x")
    assert ddpm >= 8 * ddim


def measure(length: int, batch: int = 16) -> tuple[int, int, int, float, float, float]:
    """Length, patch, parameters, MiB kept for the backward pass, CPU seconds of a training step and an evaluation."""
    model = fitted(DiffusionTS, 1, length)
    data = tiny_series(batch, 1, length).tensors
    model.train()

    def step() -> None:
        model.zero_grad()
        model.compute_losses(data)["loss"].backward()

    saved: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.compute_losses(data)
    step()
    train = cpu_seconds(lambda: [step() for _ in range(3)]) / 3
    sample = cpu_seconds(lambda: model.sample(batch, num_steps=5)) / 5
    parameters = sum(p.numel() for p in model.parameters())
    return length, model.backbone.patch, parameters, sum(saved) / 2**20, train, sample


def test_time_and_parameters_per_window_length() -> None:
    """A window 85 times longer costs far less than 85 times as much: attention and time mixing act on patches."""
    rows = [measure(length) for length in (24, 64, 256, 1024, 2048)]
    print("\nlength patch parameters activations_MiB train_ms/step sample_ms/evaluation   (batch of 16, one channel)")
    for length, patch, parameters, memory, train, sample in rows:
        print(f"{length:6d} {patch:5d} {parameters:10d} {memory:15.1f} {1e3 * train:13.1f} {1e3 * sample:20.1f}")
    first, last = rows[0], rows[-1]
    assert last[2] < 2 * first[2] and last[3] < 6 * first[3] and last[4] < 10 * first[4]
