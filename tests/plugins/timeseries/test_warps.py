"""Warps: smooth curves, times that run forward and keep the ends, and what stays untouched."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.warps import MagnitudeWarp, Scaling, TimeWarp, WindowWarp, spline_basis
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_series_schema

WARPS = (Scaling, MagnitudeWarp, TimeWarp, WindowWarp)
RAMP = torch.arange(24.0).expand(40, 2, 24)


def plain_schema(**changes):
    return tiny_series_schema() | {"mean": [0.0, 0.0], "std": [1.0, 1.0]} | changes


def rng(rows=40):
    return KeyedRNG(torch.arange(rows))


@pytest.mark.parametrize("knots", (2, 3, 4, 7))
def test_the_spline_is_the_natural_one_of_scipy(knots):
    values = np.random.default_rng(0).normal(size=knots)
    time = np.linspace(0, 1, 50)
    expected = CubicSpline(np.linspace(0, 1, knots), values, bc_type="natural")(time) if knots > 2 else None
    expected = np.interp(time, [0, 1], values) if expected is None else expected
    curve = torch.from_numpy(values)[None] @ spline_basis(torch.from_numpy(time), knots)
    assert np.allclose(curve[0], expected, atol=1e-10)


def test_one_knot_is_a_constant():
    assert torch.equal(torch.tensor([[2.0]]) @ spline_basis(torch.linspace(0, 1, 4), 1), torch.full((1, 4), 2.0))


def test_scaling_is_one_factor_a_channel_about_the_mean():
    schema = plain_schema(mean=[5.0, 10.0])
    x = torch.stack([5 + RAMP[0, 0], 10 + RAMP[0, 0]]).expand(4000, 2, 24)
    out = Scaling(sigma=0.2, schema=schema).augment({"x": x}, rng(4000))["x"]
    factor = (out - torch.tensor([[5.0], [10.0]]))[..., 1:] / RAMP[0, 0, 1:]
    assert torch.allclose(factor, factor[..., :1], atol=1e-4)
    assert abs(float(factor.mean()) - 1) < 0.01 and abs(float(factor[..., 0].std()) - 0.2) < 0.01
    assert abs(float(torch.corrcoef(factor[..., 0].T)[0, 1])) < 0.05


def test_magnitudes_follow_a_smooth_curve_through_normal_knots():
    x = torch.ones(4000, 2, 24)
    curve = MagnitudeWarp(sigma=0.2, schema=plain_schema()).augment({"x": x}, rng(4000))["x"]
    assert torch.allclose(curve[..., [0, -1]].std(0), torch.tensor(0.2), atol=0.01)
    assert curve.diff(n=2).abs().max() < 0.1 * (curve.max() - curve.min())


@pytest.mark.parametrize("warp", [TimeWarp(sigma=0.5), WindowWarp(share=0.3)])
def test_time_runs_forward_between_fixed_ends_in_all_channels_alike(warp):
    # On a ramp the value is the time that was read.
    time = warp.augment({"x": RAMP.contiguous()}, rng())["x"]
    assert torch.equal(time[:, 0], time[:, 1])
    assert time[..., 0].abs().max() < 1e-5 and (time[..., -1] - 23).abs().max() < 1e-4
    assert (time.diff() > 0).all() and (time - RAMP).abs().amax((1, 2)).min() > 0.01


def test_a_stretched_part_is_played_slowly_and_the_rest_evenly():
    # 23 intervals, 6.9 of them played over 13.8: speed (23 + 6.9) / 23 outside of the part, half of it inside.
    time = WindowWarp(share=0.3, factors=(2.0,), schema=plain_schema()).augment({"x": RAMP.contiguous()}, rng())["x"]
    speed = time[:, 0].diff()
    assert torch.allclose(speed.amax(1).median(), torch.tensor(1.3), atol=1e-3)
    assert torch.allclose(speed.amin(1), torch.full((40,), 0.65), atol=1e-3)
    # Where the part begins is uniform over the window.
    assert speed.argmin(1).unique().numel() > 8


@pytest.mark.parametrize("warp", WARPS)
def test_padding_stays_and_the_window_is_warped_within_its_own_length(warp):
    mask = torch.arange(24) < torch.tensor([24, 9, 1, 0])[:, None]
    x = torch.where(mask[:, None], 1 + RAMP[:4], 0.0)
    out = warp(schema=plain_schema(ragged=True)).augment({"x": x, "mask": mask, "y": torch.arange(4)}, rng(4))
    assert torch.equal(out["mask"], mask) and torch.equal(out["y"], torch.arange(4))
    assert (out["x"][~mask[:, None].expand_as(x)] == 0).all() and torch.isfinite(out["x"]).all()
    alone = warp(schema=plain_schema(length=9)).augment({"x": x[1:2, :, :9]}, rng(4)[1:2])["x"]
    assert torch.allclose(out["x"][1:2, :, :9], alone, atol=1e-5)


@pytest.mark.parametrize(
    "warp", [Scaling(sigma=0.0), MagnitudeWarp(sigma=0.0), TimeWarp(sigma=0.0), WindowWarp(factors=[1.0])]
)
def test_no_strength_is_no_change(warp):
    model = type(warp)(**{**warp.hparams, "schema": plain_schema()})
    x = torch.randn(40, 2, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.augment({"x": x}, rng())["x"], x, atol=1e-4)


@pytest.mark.parametrize("warp", WARPS)
def test_constant_channels_stay_finite(warp):
    items = StackedItems({"x": torch.full((6, 2, 24), 3.0)})
    x = warp().fit_on(items, describe(items, "timeseries")).sample(5).data["x"]
    assert torch.allclose(x, torch.full_like(x, 3.0), atol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Scaling(sigma=-1),
        lambda: MagnitudeWarp(num_knots=0),
        lambda: TimeWarp(num_knots=0),
        lambda: WindowWarp(share=1.0),
        lambda: WindowWarp(factors=()),
        lambda: WindowWarp(factors=(0.0,)),
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        bad()
