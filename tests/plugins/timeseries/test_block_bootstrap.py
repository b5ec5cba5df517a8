"""Block bootstrap: what blocks keep (marginals, short lags, cross-channel relations) and what they destroy."""

import numpy as np
import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.block_bootstrap import BlockBootstrap, block_starts
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe


def ar1(n, length, phi=0.8, seed=0):
    rng = np.random.default_rng(seed)
    x = np.zeros((n, length))
    noise = rng.normal(size=(n, length)) * np.sqrt(1 - phi**2)
    x[:, 0] = rng.normal(size=n)
    for t in range(1, length):
        x[:, t] = phi * x[:, t - 1] + noise[:, t]
    return x


def fitted(x, y=None, mask=None, **options):
    fields = {"x": torch.as_tensor(x, dtype=torch.float32)}
    fields |= {} if y is None else {"y": torch.as_tensor(y)}
    fields |= {} if mask is None else {"mask": mask}
    items = StackedItems(fields)
    return BlockBootstrap(**options).fit_on(items, describe(items, "timeseries"))


def acf(x, lag):
    return float((x[:, lag:] * x[:, :-lag]).mean() / (x**2).mean())


@pytest.mark.parametrize("kind", ("moving", "stationary"))
def test_marginal_and_short_lags_survive_long_lags_die(kind):
    x = ar1(50, 400)
    sampled = fitted(x[:, None], kind=kind, block_length=30).sample(200, seed=1).data["x"][:, 0].numpy()
    levels = np.linspace(0.05, 0.95, 10)
    assert np.abs(np.quantile(sampled, levels) - np.quantile(x, levels)).max() < 0.08
    # A pair of steps at distance 1 lies in one block with probability about 1 - 1/30.
    assert abs(acf(sampled, 1) - 0.8 * (1 - 1 / 30)) < 0.03
    one_step = fitted(x[:, None], kind=kind, block_length=1).sample(200, seed=1).data["x"][:, 0].numpy()
    assert abs(acf(one_step, 1)) < 0.03


@pytest.mark.parametrize("kind", ("moving", "stationary"))
@pytest.mark.parametrize("across", (True, False))
def test_blocks_are_runs_of_real_windows_the_same_for_all_channels(kind, across):
    # Each value tells its window and its step; the second channel is the first plus a constant.
    code = 1000 * np.arange(6)[:, None] + np.arange(40)
    x = fitted(np.stack([code, code + 0.5], 1), kind=kind, across=across, block_length=8).sample(30, seed=3).data["x"]
    assert torch.equal(x[:, 1], x[:, 0] + 0.5)
    window, step = (x[:, 0] // 1000).long(), (x[:, 0] % 1000).long()
    follows = (window[:, 1:] == window[:, :-1]) & ((step[:, 1:] - step[:, :-1]) % 40 == 1)
    breaks = (~follows).float().mean()
    assert 0.5 / 8 < breaks < 1.5 / 8
    assert (window.max(1).values == window.min(1).values).all() != across
    if kind == "moving":
        assert follows.view(30, -1)[:, [0, 1, 2, 3, 4, 5, 6, 8, 9]].all()
        # No block wraps around the end of a window.
        wraps = (step[:, 1:] == 0) & (step[:, :-1] == 39) & (window[:, 1:] == window[:, :-1])
        assert not (wraps & (torch.arange(39) % 8 != 7)).any()


def test_the_class_is_kept():
    x = np.array([0.0, 0.0, 5.0, 5.0])[:, None, None] * np.ones((4, 1, 20))
    data = fitted(x, [0, 0, 1, 1]).sample(10, condition={"label": 1}).data
    assert (data["x"] == 5).all() and data["y"].tolist() == [1] * 10


def test_padding_is_not_drawn_from():
    mask = torch.arange(10)[None] < torch.tensor([4, 10, 7])[:, None]
    x = torch.where(mask, 1.0, 99.0)[:, None]
    for kind in ("moving", "stationary"):
        data = fitted(x, mask=mask, kind=kind, block_length=5).sample(50, seed=1).data
        assert (data["x"][:, 0][data["mask"]] == 1).all()
        assert set(data["mask"].sum(1).tolist()) == {4, 10, 7}


def test_stationary_block_lengths_are_geometric():
    starts = block_starts(2000, 10.0, KeyedRNG(torch.arange(50)))
    assert abs(float(starts.float().mean()) - 0.1) < 0.01
    gaps = torch.cat([row.nonzero()[:, 0].diff() for row in starts]).float()
    assert abs(float(gaps.std()) - 9.5) < 1


def test_rows_depend_on_their_own_seed_only():
    model = fitted(ar1(8, 30)[:, None])
    requests = model.make_requests(7, seed=9)
    together = model.sample(requests).data["x"]
    assert torch.equal(together, torch.cat([model.sample(requests[i : i + 1]).data["x"] for i in range(7)]))


@pytest.mark.parametrize("bad", [{"kind": "circular"}, {"block_length": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        BlockBootstrap(**bad)
