"""T-SMOTE: samples are fractional delays of a window, weighted by how well a classifier recognises them."""

import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.t_smote import TSMOTE, delay
from lightning_synth.schema import describe


def fitted(x, y=None, mask=None, **options):
    fields = {"x": torch.as_tensor(x, dtype=torch.float32)}
    fields |= {} if y is None else {"y": torch.as_tensor(y)}
    fields |= {} if mask is None else {"mask": mask}
    items = StackedItems(fields)
    return TSMOTE(**options).fit_on(items, describe(items, "timeseries"))


def steps_at(places, length=40):
    """Windows that rise from 0 to 1 at the given places, with a little noise."""
    time = torch.arange(length)
    x = (time >= torch.tensor(places)[:, None]).float()[:, None]
    return x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def test_a_delay_mirrors_the_past_and_interpolates():
    x = torch.arange(6.0)[None, None].repeat(2, 1, 1)
    assert delay({"x": x}, torch.tensor([0.0, 2.0]))["x"][:, 0].tolist() == [[0, 1, 2, 3, 4, 5], [2, 1, 0, 1, 2, 3]]
    halfway = (delay({"x": x}, torch.full((2,), 1.0))["x"] + delay({"x": x}, torch.full((2,), 2.0))["x"]) / 2
    assert torch.allclose(delay({"x": x}, torch.full((2,), 1.5))["x"], halfway)


def test_samples_lie_between_adjacent_delays_of_one_window():
    x = torch.randn(4, 2, 20, generator=torch.Generator().manual_seed(1))
    samples = fitted(x, max_lead=3).sample(60, seed=2).data["x"]
    delayed = torch.stack([delay({"x": x}, torch.full((4,), float(lead)))["x"] for lead in range(4)])
    start, along = delayed[:-1].flatten(0, 1).flatten(1), (delayed[1:] - delayed[:-1]).flatten(0, 1).flatten(1)
    share = ((samples.flatten(1)[:, None] - start) * along).sum(-1) / along.square().sum(-1)
    nearest = start + share.clamp(0, 1)[..., None] * along
    distance = (samples.flatten(1)[:, None] - nearest).norm(dim=-1)
    assert distance.amin(1).max() < 1e-4
    # Without classes every window and every delay is used.
    assert distance.argmin(1).unique().numel() == 12


def test_delays_that_leave_the_class_are_not_used():
    # A late rise delayed by ten steps is what the other class looks like.
    x = torch.cat([steps_at([15] * 12), steps_at([25] * 12)])
    model = fitted(x, [0] * 12 + [1] * 12, max_lead=10)
    early, late = (model.leads[model.windows["y"] == label] for label in (0, 1))
    assert (late > 0).all()
    assert (early[:, :4] > 0).all() and (early[:, 6:] == 0).all() and (early.diff() <= 0).all()


def test_a_mislabelled_window_is_drawn_less_than_the_others():
    x = torch.cat([steps_at([10] * 20), steps_at([10], 40) + 0.0, steps_at([30] * 20)])
    model = fitted(x, [0] * 20 + [1] * 21, max_lead=2)
    weight = model.leads.sum(1)
    assert weight[model.windows["y"] == 1].min() == 0
    samples = model.sample(200, condition={"label": 1}, seed=1).data["x"]
    assert samples[:, 0, 20].max() < 0.5


def test_ragged_windows_keep_their_lengths():
    mask = torch.arange(20) < torch.tensor([5, 20, 12, 1])[:, None]
    data = fitted(torch.where(mask, 1.0, 99.0)[:, None], mask=mask, max_lead=8).sample(50, seed=1).data
    assert set(data["mask"].sum(1).tolist()) <= {5, 20, 12, 1}
    assert (data["x"][:, 0][data["mask"]] == 1).all() and (data["x"][:, 0][~data["mask"]] == 0).all()


def test_no_delay_is_refused():
    with pytest.raises(ConfigError, match="max_lead"):
        TSMOTE(max_lead=0)
