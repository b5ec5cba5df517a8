"""Physics of vibration: responses by formula, impacts between grid points, and time against the turning of a shaft."""

import math

import torch

from lightning_synth.plugins.timeseries.vibration import Clock, convolve, impact_train, impulse_response, support


def test_the_response_to_impacts_is_the_damped_oscillation_of_the_formula():
    rate, steps = 48000.0, 2400
    times, sizes = torch.tensor([[0.0121, 0.005]]), torch.tensor([[1.0, 2.0]])
    frequency, damping = torch.tensor([[1500.0, 2500.0]]), torch.tensor([[0.05, 0.02]])
    gain = torch.tensor([[1.0, 0.5]])
    response = impulse_response(frequency, damping, gain, steps, rate)
    signal = convolve(impact_train(times, sizes, steps, rate), response)
    expected = torch.zeros(steps)
    for when, size in zip(times[0], sizes[0], strict=True):
        since = (torch.arange(steps) / rate - when).clamp(min=0)
        for f, z, g in zip(frequency[0], damping[0], gain[0], strict=True):
            omega = 2 * math.pi * f
            expected += size * g * torch.exp(-z * omega * since) * torch.sin(omega * (1 - z**2).sqrt() * since)
    assert (signal[0] - expected).abs().max() < 0.03
    assert signal[0, :240].abs().max() < 1e-5


def test_a_cut_response_changes_nothing():
    rate, frequency, damping = 48000.0, torch.tensor([[900.0]]), torch.tensor([[0.02]])
    force = torch.zeros(1, 20000)
    force[0, [10, 7000]] = 1.0
    short = support(2 * math.pi * 900 * 0.02, rate, 20000)
    assert short < 7000
    whole, cut = (
        convolve(force, impulse_response(frequency, damping, torch.ones(1, 1), n, rate)) for n in (20000, short)
    )
    assert torch.allclose(whole, cut, atol=1e-5)


def clock(profile=None, deviation=0.0, frequency=2.0, before=0.02, duration=1.02):
    rows = torch.ones(1)
    return Clock(profile, deviation * rows, frequency * rows, 0.3 * rows, before, duration)


def test_constant_speed_leaves_time_alone():
    t = torch.linspace(0, 1.02, 500)
    assert torch.allclose(clock().nominal(t)[0], t, atol=1e-5)
    assert torch.allclose(clock().real(t[None])[0], t, atol=1e-5)


def test_a_run_up_covers_the_area_under_the_speed():
    ramp = clock((0.5, 1.5))
    t = torch.linspace(0, 1, 300)
    expected = 0.02 * 0.5 + 0.5 * t + t**2 / 2
    assert torch.allclose(ramp.nominal(0.02 + t)[0], expected, atol=1e-4)
    assert torch.allclose(ramp.real(expected[None])[0], 0.02 + t, atol=1e-3)


def test_oscillating_speed_is_integrated_and_inverted():
    wave = clock(deviation=0.3)
    t = torch.linspace(0, 1.02, 400)
    expected = t - 0.3 * (torch.cos(4 * math.pi * t + 0.3) - math.cos(0.3)) / (4 * math.pi)
    assert torch.allclose(wave.nominal(t)[0], expected, atol=1e-4)
    assert torch.allclose(wave.real(wave.nominal(t))[0], t, atol=1e-4)
    # Beyond the end the last speed goes on.
    assert float(wave.real(torch.tensor([[2.0]]))) > 1.02
