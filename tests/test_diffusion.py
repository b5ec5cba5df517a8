"""Noise schedule, samplers, guidance and weight averaging of `lightning_synth.diffusion`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_synth.averaging import WeightAverage
from lightning_synth.diffusion import DiffusionGenerator, NoiseSchedule, input_gradient
from lightning_synth.errors import ConfigError
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.testing import tiny_series_schema


class Analytic(DiffusionGenerator):
    """The exact denoiser of data N(mean, std^2), the same for all values; labels shift the mean."""

    domain = "timeseries"
    conditions = ("label",)
    mean, std = 1.5, 0.5

    def __init__(self, *, point: bool = False, **kwargs: Any) -> None:
        super().__init__(point=point, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        self.weight = nn.Parameter(torch.ones(()))
        super().build(schema)

    def row_shape(self) -> tuple[int, ...]:
        return 2, 24

    def encode(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return batch["x"], {}

    def decode(self, x0: Tensor, requests: SampleRequests) -> Any:
        return {"x": x0}

    def denoise(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        signal = self.schedule.signal[t][:, None, None]
        on = condition["keep"] if "keep" in condition else torch.ones_like(t, dtype=torch.bool)
        mean = self.mean + (condition["label"] * on)[:, None, None]
        variance = 0.0 if self.hparams["point"] else self.std**2
        gain = signal.sqrt() * variance / (signal * variance + 1 - signal)
        x0 = mean + gain * (x_t - signal.sqrt() * mean)
        noise = self.schedule.noise_of(x0, x_t, t)
        return self.weight * self.schedule.target_of(x0, noise, t, self.hparams["target"])


def analytic(**hparams: Any) -> Analytic:
    model = Analytic(schema=tiny_series_schema(), **hparams)
    model.is_fitted = True
    return model


def test_cosine_schedule_has_the_known_values() -> None:
    schedule = NoiseSchedule(500)
    level = [math.cos((k / 500 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in (0, 1, 100, 250, 499)]
    for k, value in zip((1, 100, 250, 499), level[1:], strict=True):
        assert float(schedule.signal[k - 1]) == pytest.approx(value / level[0], rel=1e-4)
    assert float(schedule.betas[-1]) == pytest.approx(0.999)


def test_linear_schedule_has_the_known_values() -> None:
    schedule = NoiseSchedule(1000, "linear")
    assert float(schedule.betas[0]) == pytest.approx(1e-4) and float(schedule.betas[-1]) == pytest.approx(0.02)
    assert float(schedule.signal[-1]) == pytest.approx(4.04e-5, rel=0.01)


@pytest.mark.parametrize("target", ["x0", "noise", "v"])
def test_targets_lead_back_to_the_clean_data(target: str) -> None:
    schedule, rng = NoiseSchedule(100), KeyedRNG(0)
    x0, noise, t = rng.normal((8, 2, 5)), rng.normal((8, 2, 5)), rng.integers(95, (8,))
    x_t = schedule.add_noise(x0, t, noise)
    wanted = schedule.target_of(x0, noise, t, target)
    assert torch.allclose(schedule.x0_of(wanted, x_t, t, target), x0, atol=2e-3)
    assert torch.allclose(schedule.noise_of(x0, x_t, t), noise, atol=1e-3)


def test_loss_weight_is_that_of_diffusion_ts() -> None:
    schedule = NoiseSchedule(500)
    beta, signal = float(schedule.betas[200]), float(schedule.signal[200])
    expected = math.sqrt(1 - beta) * math.sqrt(1 - signal) / beta / 100
    assert float(schedule.weight(torch.tensor([200]))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("num_steps", "start"), [(50, None), (500, None), (1, None), (7, 93), (1000, 20)])
def test_jumps_descend_to_clean_data(num_steps: int, start: int | None) -> None:
    jumps = NoiseSchedule(500).jumps(num_steps, start)
    assert jumps[0][0] == (499 if start is None else start) and jumps[-1][1] == -1
    assert all(a > b for a, b in jumps) and [b for _, b in jumps[:-1]] == [a for a, _ in jumps[1:]]
    assert len(jumps) == min(num_steps, jumps[0][0] + 1)


@pytest.mark.parametrize("target", ["x0", "noise", "v"])
def test_ddim_with_a_perfect_denoiser_returns_the_data(target: str) -> None:
    samples = analytic(point=True, target=target).sample(4, condition={"label": 0}, num_steps=20)
    assert torch.allclose(samples.data["x"], torch.tensor(1.5), atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"num_steps": 100}, {"num_steps": 100, "eta": 1.0}, {"sampler": "ddpm"}],
    ids=["ddim", "ddim_eta1", "ddpm"],
)
def test_gaussian_data_gets_its_mean_and_variance(options: dict[str, Any]) -> None:
    x = analytic(diffusion_steps=200).sample(200, condition={"label": 0}, **options).data["x"]
    assert float(x.mean()) == pytest.approx(1.5, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, rel=0.04)


def test_guidance_extrapolates_from_the_unconditional_prediction() -> None:
    means = [
        float(analytic(point=True).sample(4, condition={"label": 1}, guidance_scale=w, num_steps=10).data["x"].mean())
        for w in (0.0, 1.0, 3.0)
    ]
    assert means == pytest.approx([1.5, 2.5, 4.5], abs=1e-2)


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"sampler": "ddpm"}, {"guidance_scale": 2.0}])
def test_rows_depend_on_their_own_seed_only(options: dict[str, Any]) -> None:
    model = analytic(diffusion_steps=20)
    requests = model.make_requests(9, seed=3)
    together = model.sample(requests, **options).data["x"]
    alone = model.sample(requests[torch.tensor([7, 2])], **options).data["x"]
    assert torch.allclose(together[[7, 2]], alone, atol=1e-5)
    assert len(together.flatten(1).unique(dim=0)) == 9


def test_init_starts_from_given_rows_by_index() -> None:
    model = analytic()
    init = {"x": torch.stack([torch.full((2, 24), -3.0), torch.full((2, 24), 3.0)])}
    near = model.sample(4, condition={"label": 0}, init=init, strength=0.02).data["x"].mean((1, 2))
    assert near[:2].tolist() == pytest.approx([-3, 3], abs=0.3) and near[2:].tolist() == pytest.approx([-3, 3], abs=0.3)
    far = model.sample(50, condition={"label": 0}, init=init, strength=1.0).data["x"]
    assert float(far.mean()) == pytest.approx(1.5, abs=0.05)
    with pytest.raises(ConfigError, match="strength"):
        model.sample(1, init=init, strength=0.0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradient_guidance_works_inside_inference_mode(context: Any) -> None:
    model = analytic()
    with context():
        plain = model.sample(20, condition={"label": 0}).data["x"].mean()
        guided = (
            model.sample(20, condition={"label": 0}, guide=lambda x: x.sum((1, 2)), guide_scale=0.5).data["x"].mean()
        )
        gradient = input_gradient(lambda x: x.square().sum(1), torch.ones(2, 3) * 2)
    assert torch.equal(gradient, torch.full((2, 3), 4.0))
    assert float(guided) > float(plain) + 0.05


def test_weight_average_warms_up_and_comes_back() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    average = WeightAverage({"a.b": parameter}, decay=0.9)
    with torch.no_grad():
        parameter.fill_(1.0)
    average.update({"a.b": parameter})
    with average.applied({"a.b": parameter}):
        assert torch.allclose(parameter, torch.tensor(0.9))  # warm-up: decay min(.9, 1/10)
    assert torch.equal(parameter, torch.ones(2))
    for _ in range(200):
        average.update({"a.b": parameter})
    average.commit({"a.b": parameter})
    assert torch.allclose(parameter, torch.ones(2), atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "score"},
        {"sampler": "euler"},
        {"num_steps": 0},
        {"eta": 2.0},
        {"noise_schedule": "sqrt"},
        {"diffusion_steps": 1},
        {"condition_dropout": 2.0},
        {"ema_decay": 1.0},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        analytic(**wrong)
