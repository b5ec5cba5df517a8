"""Normal transplant: the mean of the fault windows, moved as normal operation moves."""

import numpy as np
import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.normal_transplant import NormalTransplant
from lightning_synth.schema import describe


def fitted(x, y, normal_class=0, mask=None, **options):
    fields = {"x": torch.as_tensor(x, dtype=torch.float32), "y": torch.as_tensor(y)}
    items = StackedItems(fields | ({} if mask is None else {"mask": mask}))
    return NormalTransplant(**options).fit_on(items, describe(items, "timeseries", normal_class=normal_class))


def plant(seed=0):
    """Forty normal windows around 50 with correlated channels, and one constant fault window."""
    rng = np.random.default_rng(seed)
    drift = rng.normal(size=(40, 1, 1)) * 2 + rng.normal(size=(40, 1, 24))
    normal = 50 + np.concatenate([drift, -drift], 1)
    fault = np.stack([np.full(24, 7.0), np.linspace(0, 23, 24)])[None]
    return np.concatenate([normal, fault]), np.r_[np.zeros(40, int), 1]


def test_the_fault_window_is_kept_on_average_and_varies_as_normal():
    x, y = plant()
    sampled = fitted(x, y, scale=(1.0, 1.0)).sample(2000, condition={"label": 1}, seed=1).data["x"].double()
    assert torch.allclose(sampled.mean(0), torch.from_numpy(x[-1]), atol=0.6)
    assert torch.allclose(sampled.mean((0, 2)), torch.from_numpy(x[-1].mean(-1)), atol=0.1)
    normal = torch.from_numpy(x[:40])
    assert torch.allclose(sampled.std(0).mean(-1), normal.std(0).mean(-1), rtol=0.05)
    # What the normal channels do together, the transplanted ones do together.
    deviation = sampled - torch.from_numpy(x[-1])
    assert torch.allclose(deviation[:, 0], -deviation[:, 1], atol=0.05)


def test_scale_scales():
    x, y = plant()
    spread = [
        fitted(x, y, scale=(s, s)).sample(300, condition={"label": 1}, seed=1).data["x"].std(0).mean()
        for s in (0.5, 1.0)
    ]
    assert torch.allclose(2 * spread[0], spread[1], rtol=1e-3)
    none = fitted(x, y, scale=(0.0, 0.0)).sample(3, condition={"label": 1}).data["x"]
    assert torch.equal(none, torch.tensor(x[-1:], dtype=torch.float32).expand(3, 2, 24))


def test_the_class_is_kept():
    x, y = plant()
    data = fitted(x, y).sample(20, condition={"label": "balanced"}).data
    assert data["y"].tolist() == [0, 1] * 10
    assert (data["x"][data["y"] == 0].mean((1, 2)) > 30).all() and (data["x"][data["y"] == 1].mean((1, 2)) < 30).all()


def test_without_a_normal_class_any_window_is_transplanted_with_a_warning():
    x, y = plant()
    model = fitted(x, y, normal_class=None)
    with pytest.warns(UserWarning, match="no normal class"):
        assert len(model.sample(4)) == 4


def test_padding_is_left_alone():
    mask = torch.arange(24)[None] < torch.where(torch.arange(41) % 2 == 0, 24, 10)[:, None]
    x, y = plant()
    x = np.where(mask[:, None], x, 0)
    data = fitted(x, y, mask=mask).sample(60, seed=2).data
    assert (data["x"].transpose(1, 2)[~data["mask"]] == 0).all()


def test_rows_depend_on_their_own_seed_only():
    model = fitted(*plant())
    requests = model.make_requests(7, seed=9)
    together = model.sample(requests).data["x"]
    assert torch.equal(together, torch.cat([model.sample(requests[i : i + 1]).data["x"] for i in range(7)]))


@pytest.mark.parametrize("scale", [(1.0,), (1.0, 0.5), (-1.0, 1.0)])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(ConfigError, match="scale"):
        NormalTransplant(scale=scale)
