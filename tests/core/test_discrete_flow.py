"""Discrete flow and diffusion: closed forms against the papers' formulas, and exact laws with a perfect network."""

import itertools
from itertools import pairwise

import pytest
import torch

from lightning_synth.discrete_flow import DISTORTIONS, PosteriorSampler, RateSampler, cosine_level, distort, draw, noise
from lightning_synth.errors import ConfigError
from lightning_synth.requests import KeyedRNG

PRIORS = {
    "marginal": torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64),
    "uniform": torch.full((3,), 1 / 3, dtype=torch.float64),
    "absorbing": torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
}
DATA = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def rates_of_one_draw(z, z1, t, prior, eta, omega):
    """R*(z -> j | z_1), detailed balance and target guidance, as DeFoG writes them for one drawn z_1."""
    k = len(prior)
    clean = torch.eye(k, dtype=torch.float64)[z1]
    now, slope = t * clean + (1 - t) * prior, clean - prior
    rates = torch.zeros(k, dtype=torch.float64)
    for j in range(k):
        if j == z or now[z] == 0:
            continue
        support = (now > 0).sum()
        rates[j] += max(slope[j] - slope[z], 0) / (support * now[z]) * (now[j] > 0)
        rates[j] += eta * now[j]
        rates[j] += omega * (j == z1) / (support * now[z])
    return rates


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize(("eta", "omega"), [(0.0, 0.0), (5.0, 0.0), (0.0, 0.5), (2.0, 0.1)])
def test_rates_are_the_average_over_the_prediction(name, eta, omega):
    prior, p = PRIORS[name], torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    for z, t in itertools.product(range(3), (0.1, 0.5, 0.9)):
        ours = RateSampler(eta=eta, omega=omega).rates(p[None], torch.tensor([z]), t, prior)[0]
        expected = sum(p[z1] * rates_of_one_draw(z, z1, t, prior, eta, omega) for z1 in range(3))
        assert torch.allclose(ours, expected, atol=1e-9), (z, t)


def test_a_binary_edge_has_the_simple_rate():
    p, t = torch.tensor([[0.7, 0.3]]), 0.4
    for prior in (torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])):
        rates = RateSampler().rates(p.expand(2, 2), torch.tensor([0, 1]), t, prior)
        assert torch.allclose(rates, torch.tensor([[0, 0.3 / 0.6], [0.7 / 0.6, 0]]), atol=1e-6)


def final_law(sampler, prior, posterior):
    """The law at the end if the network were perfect, followed exactly."""
    law, k = prior.clone(), len(prior)
    for t, t_next in pairwise(sampler.times()):
        p = torch.stack([posterior(z, t) for z in range(k)])
        step = p if t_next >= 1 else sampler.step(p, torch.arange(k), t, t_next, prior)
        assert torch.allclose(step.sum(1), torch.ones(k, dtype=step.dtype)) and bool((step >= 0).all())
        law = law @ step
    return law


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (RateSampler(num_steps=400), 0.01),
        (RateSampler(num_steps=400, eta=3.0, distortion="identity"), 0.01),
        (PosteriorSampler(num_steps=50), 1e-6),
        (PosteriorSampler(num_steps=2), 1e-6),
    ],
)
def test_a_perfect_network_gives_the_data_law(name, sampler, tolerance):
    prior = PRIORS[name]

    def posterior(z, t):
        likelihood = t * torch.eye(3, dtype=torch.float64)[z] + (1 - t) * prior[z]
        joint = DATA * likelihood
        return joint / joint.sum() if joint.sum() > 0 else DATA

    assert torch.allclose(final_law(sampler, prior, posterior), DATA, atol=tolerance)


def test_long_steps_stay_probabilities():
    p, z = torch.rand(50, 4).softmax(-1), torch.arange(50) % 4
    law = RateSampler(num_steps=2, eta=500.0, omega=2.0).step(p, z, 0.9, 0.99, torch.full((4,), 0.25))
    assert bool((law >= 0).all()) and torch.allclose(law.sum(-1), torch.ones(50), atol=1e-5)


def test_noise_keeps_a_share_t_of_the_data():
    rng = KeyedRNG(0)
    clean, t = torch.full((20_000,), 2), torch.full((20_000,), 0.4)
    z = noise(clean, t, PRIORS["marginal"].float(), rng.uniform((20_000,)), rng.uniform((20_000,)))
    shares = torch.bincount(z, minlength=3) / 20_000
    assert torch.allclose(shares, torch.tensor([0.36, 0.18, 0.46]), atol=0.015)


def test_draw_never_takes_what_has_no_probability():
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert draw(torch.tensor([[0.0, 1.0, 0.0]]).expand(3, 3), u).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_distortions_keep_order_and_ends(kind):
    t = distort(torch.linspace(0, 1, 50), kind)
    assert float(t[0]) == pytest.approx(0) and float(t[-1]) == pytest.approx(1)
    assert bool((t.diff() > 0).all())


def test_times_run_from_noise_to_data():
    for sampler in (RateSampler(7), PosteriorSampler(7)):
        times = sampler.times()
        assert len(times) == 8 and times[0] == 0 and times[-1] == 1 and times == sorted(times)
    assert PosteriorSampler(10).times()[-2] == pytest.approx(cosine_level(0.1))


@pytest.mark.parametrize(
    "wrong",
    [{"num_steps": 0}, {"eta": -1.0}, {"eta": float("nan")}, {"omega": -0.1}, {"distortion": "square"}],
    ids=str,
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        RateSampler(**wrong)
