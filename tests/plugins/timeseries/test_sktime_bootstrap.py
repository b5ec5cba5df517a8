"""sktime's bootstraps as a generator: the same numbers as sktime, per row and for all channels."""

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_synth.errors import ConfigError, MissingExtraError
from lightning_synth.plugins.timeseries import sktime_bootstrap
from lightning_synth.plugins.timeseries.sktime_bootstrap import SktimeBootstrap
from lightning_synth.requests import KeyedRNG
from lightning_synth.testing import tiny_series_schema

bootstraps = pytest.importorskip("sktime.transformations.bootstrap")


def season(n=3, length=48, noise=0.2):
    time = np.arange(length)
    rng = np.random.default_rng(0)
    level = np.array([5.0, -3.0])[:, None]
    return level + np.sin(2 * np.pi * time / 12) + 0.02 * time + noise * rng.normal(size=(n, 2, length))


def augment(x, mask=None, **options):
    schema = tiny_series_schema(length=x.shape[-1])
    batch = {"x": torch.as_tensor(x, dtype=torch.float32)} | ({} if mask is None else {"mask": mask})
    return SktimeBootstrap(schema=schema, **options).augment(batch, KeyedRNG(torch.arange(len(x))))["x"]


def seeds(n):
    return KeyedRNG(torch.arange(n)).fork("blocks").integers(1 << 31).tolist()


def test_moving_blocks_are_those_of_sktime_in_all_channels():
    x = season()
    out = augment(x, block_length=8)
    for row, seed in enumerate(seeds(3)):
        transformer = bootstraps.MovingBlockBootstrapTransformer(
            n_series=1, block_length=8, sampling_replacement=True, return_actual=False, random_state=seed
        )
        for channel in range(2):
            expected = transformer.fit_transform(pd.Series(x[row, channel])).to_numpy()[:, 0]
            assert np.allclose(out[row, channel], expected, atol=1e-5)


def test_stl_is_that_of_sktime_and_keeps_the_season():
    pytest.importorskip("statsmodels")
    x = season()
    out = augment(x, kind="stl", period=12)
    lift = x[0, 0].std() - x[0, 0].min()
    transformer = bootstraps.STLBootstrapTransformer(
        n_series=1, sp=12, sampling_replacement=True, return_actual=False, random_state=seeds(3)[0]
    )
    expected = transformer.fit_transform(pd.Series(x[0, 0] + lift)).to_numpy()[:, 0] - lift
    assert np.allclose(out[0, 0], expected, atol=1e-4)
    assert torch.isfinite(out).all() and (out - torch.as_tensor(x)).abs().amax((1, 2)).min() > 0.1
    correlation = [np.corrcoef(out[i, c], x[i, c])[0, 1] for i in range(3) for c in range(2)]
    assert min(correlation) > 0.8
    assert min(correlation) > max(abs(np.corrcoef(augment(x)[i, 0], x[i, 0])[0, 1]) for i in range(3)) - 0.2


def test_stl_leaves_constant_and_short_windows_alone():
    pytest.importorskip("statsmodels")
    x = season(2, 36)
    x[0, 1] = 3.0
    mask = torch.arange(36) < torch.tensor([36, 30])[:, None]
    out = augment(x * mask[:, None].numpy(), mask, kind="stl", period=12)
    assert (out[0, 1] == 3).all() and (out[0, 0] != torch.as_tensor(x[0, 0]).float()).any()
    assert torch.allclose(out[1, :, :30], torch.as_tensor(x[1, :, :30]).float()) and (out[1, :, 30:] == 0).all()


def test_padding_is_not_drawn_from():
    mask = torch.arange(12) < torch.tensor([12, 5, 4, 2, 0])[:, None]
    x = torch.where(mask, 1.0, 99.0)[:, None].expand(5, 2, 12)
    out = augment(x, mask)
    assert torch.equal(out, mask[:, None].expand_as(out).float())


def test_statsmodels_is_asked_for(monkeypatch):
    monkeypatch.setattr(sktime_bootstrap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"statsmodels: pip install 'lightning-synth\[timeseries\]'"):
        SktimeBootstrap(kind="stl", period=12)


@pytest.mark.parametrize("bad", [{"kind": "me"}, {"block_length": 1}, {"kind": "stl"}, {"kind": "stl", "period": 1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        SktimeBootstrap(**bad)
