"""Whitened windows: exact round trips, unit variance, and Gaussians with the spectrum of the data."""

from __future__ import annotations

import pytest
import scipy.fft
import torch

from lightning_synth.plugins.timeseries.whitening import Levels, NormalScores, WindowWhitener, dct, idct
from lightning_synth.requests import KeyedRNG


def schema_of(x: torch.Tensor) -> dict[str, object]:
    mean, std = x.mean((0, 2)), x.std((0, 2)).clamp(min=1e-6)
    return {"mean": mean.tolist(), "std": std.tolist(), "length": x.shape[2]}


def walks(rows: int = 400, channels: int = 3, length: int = 24) -> torch.Tensor:
    """Random walks whose level, volatility and channel correlation vary from window to window."""
    rng = KeyedRNG(3)
    step = rng.normal((rows, channels, length)) * (0.2 + rng.uniform((rows, 1, 1)))
    step[:, 1] = step[:, 0] + 0.05 * step[:, 1]
    return 100 + 20 * rng.normal((rows, channels, 1)) + step.cumsum(-1)


def fitted(x: torch.Tensor, mask: torch.Tensor | None = None) -> WindowWhitener:
    view = WindowWhitener(schema_of(x))
    view.fit(x, mask)
    return view


@pytest.mark.parametrize("length", [1, 2, 7, 24, 96])
def test_cosine_transform_is_scipys_and_invertible(length: int) -> None:
    x = KeyedRNG(0).normal((4, 2, length))
    assert torch.allclose(dct(x), torch.from_numpy(scipy.fft.dct(x.numpy(), norm="ortho")), atol=1e-5)
    assert torch.allclose(idct(dct(x)), x, atol=1e-5)


@pytest.mark.parametrize("shape", [(400, 3, 24), (40, 1, 7), (6, 2, 300)])
def test_round_trip(shape: tuple[int, int, int]) -> None:
    x = walks(*shape) if shape[1] > 1 else walks(shape[0], 2, shape[2])[:, :1]
    view = fitted(x)
    back = view.inverse(view(x))
    assert float((back - x).abs().max()) < 0.02 * float(x.std())


def test_everything_has_unit_variance_and_no_correlation() -> None:
    x = walks()
    z = fitted(x)(x)
    shape = dct(z[..., :24])[..., 1:]
    assert torch.allclose(shape.square().mean(0).sqrt(), torch.ones(3, 23), atol=0.15)
    tail = z[..., 24:].flatten(1)
    covariance = tail.T @ tail / len(x)
    off = covariance - covariance.diagonal().diag()
    assert float(off.abs().max()) < 0.05 and float(covariance.diagonal().max()) < 1.1


def test_noise_in_this_view_has_the_spectrum_and_correlation_of_the_data() -> None:
    noise = KeyedRNG(8).normal((2000, 3, 28))
    noise[:, 1] = noise[:, 0] + 0.1 * noise[:, 1]
    x = noise.unfold(-1, 5, 1).mean(-1) + 3 * KeyedRNG(9).normal((2000, 3, 1))
    view = fitted(x)
    y = view.inverse(KeyedRNG(1).normal((2000, 3, 26)))
    step_x, step_y = x.diff(dim=-1), y.diff(dim=-1)
    assert float(step_y.std() / step_x.std()) == pytest.approx(1, abs=0.25)
    assert float(y.mean(-1).std() / x.mean(-1).std()) == pytest.approx(1, abs=0.1)
    pair = [torch.corrcoef(s[:, :2].transpose(0, 1).flatten(1))[0, 1] for s in (step_x, step_y)]
    assert float(pair[0]) > 0.95 and float(pair[1]) > 0.9


def test_flat_channels_and_masks_stay_finite_and_come_back() -> None:
    x = walks(60)
    x[:, 2] = 5.0
    x[:30, 0] = 1.0
    view = fitted(x)
    assert bool(torch.isfinite(view(x)).all())
    assert float((view.inverse(view(x)) - x).abs().max()) < 0.05
    mask = torch.arange(24) < KeyedRNG(2).integers(20, (60, 1)) + 4
    ragged = torch.where(mask[:, None], x, 0.0)
    view = fitted(ragged, mask)
    back = view.inverse(view(ragged, mask), mask)
    assert float(((back - ragged) * mask[:, None]).abs().max()) < 0.1 * float(x.std())


def test_quantised_channels_keep_their_levels_and_others_are_left_alone() -> None:
    x = walks(200)
    x[:, 1] = (x[:, 1] / 10).round() * 10
    levels = Levels(3)
    levels.fit(x)
    assert levels.count.tolist()[0] == 0 == levels.count.tolist()[2] and levels.count[1] > 2
    noisy = x + 0.5 * KeyedRNG(4).normal(x.shape)
    out = levels(noisy)
    assert torch.equal(out[:, 1], x[:, 1]) and torch.equal(out[:, 0], noisy[:, 0])
    far = torch.full((1, 3, 2), 1e9)
    assert float(levels(far)[0, 1, 0]) == float(x[:, 1].max())


def test_normal_scores_of_a_skewed_column_and_of_an_atom() -> None:
    rng = KeyedRNG(5)
    x = torch.stack([rng.normal((5000,)).exp(), torch.where(rng.uniform((5000,)) < 0.4, 0.0, rng.uniform((5000,)))], 1)
    scores = NormalScores(2)
    scores.fit(x)
    z = scores(x)
    quantiles = torch.quantile(z[:, 0], torch.tensor([0.025, 0.5, 0.975]))
    assert torch.allclose(quantiles, torch.tensor([-1.96, 0.0, 1.96]), atol=0.1)
    # 40 % of a normal distribution lies below -.253: all of it means the atom.
    assert float(scores.inverse(torch.tensor([[0.0, -0.5]]))[0, 1]) == pytest.approx(0, abs=1e-6)
    assert float(scores.inverse(torch.tensor([[0.0, -0.1]]))[0, 1]) > 0
    assert float((scores.inverse(z) - x).abs().max()) < 0.5


def test_padding_does_not_make_a_channel_look_quantised() -> None:
    x = walks()
    mask = torch.arange(24) < (8 + torch.arange(len(x)) % 8)[:, None]
    levels = Levels(3)
    levels.fit(x * mask[:, None], mask)
    assert not bool(levels.count.any())
    levels.fit(x.round() * mask[:, None], mask)
    assert levels.count.tolist() == [len((x.round()[:, i])[mask].unique()) for i in range(3)]
