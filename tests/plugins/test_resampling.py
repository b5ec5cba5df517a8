"""Weighted choice of training rows, reading windows at other times, and the two ways to augment a batch."""

import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.baselines import Interpolate, Jitter
from lightning_synth.plugins.resampling import TrainingRows, equally_long, lengths_in, read_at
from lightning_synth.plugins.timeseries.smote import SMOTE
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.testing import tiny_series, tiny_series_schema

LABELS = torch.tensor([0, 1, 0, 1, 2, 1])
WEIGHT = torch.tensor([1.0, 0.0, 3.0, 2.0, 0.0, 2.0])


def shares(picked, items=6):
    return torch.bincount(picked.reshape(-1), minlength=items) / picked.numel()


@pytest.mark.parametrize("count", (None, 3))
def test_items_are_picked_in_proportion_to_their_weight_within_the_class(count):
    rows = TrainingRows(LABELS, weight=WEIGHT)
    for label, expected in ((0, [0.25, 0, 0.75, 0, 0, 0]), (1, [0, 0, 0, 0.5, 0, 0.5]), (2, [0.0, 0, 0, 0, 1, 0])):
        requests = SampleRequests(*[torch.arange(4000)] * 2, {"label": torch.full((4000,), label)})
        picked = rows.pick(requests, KeyedRNG(requests.seed), count)
        assert picked.shape == ((4000,) if count is None else (4000, 3))
        share = shares(picked)
        # A weight of nothing is never picked, unless the whole class weighs nothing.
        assert torch.equal(share > 0, torch.tensor(expected) > 0)
        assert torch.allclose(share, torch.tensor(expected), atol=0.03)


def test_weights_without_labels_and_with_a_subset():
    requests = SampleRequests.make(4000)
    unlabelled = TrainingRows(None, index=torch.arange(6), weight=WEIGHT).pick(requests, KeyedRNG(requests.seed))
    assert torch.allclose(shares(unlabelled), WEIGHT / WEIGHT.sum(), atol=0.03)
    of_class = TrainingRows(LABELS, weight=WEIGHT).of_class(0).pick(requests, KeyedRNG(requests.seed))
    assert torch.allclose(shares(of_class), torch.tensor([0.25, 0, 0.75, 0, 0, 0]), atol=0.03)


def test_weights_hold_among_the_nearest_conditions():
    rpm = torch.tensor([0.0, 0.0, 0.0, 9.0, 9.0, 0.0])
    rows = TrainingRows(LABELS, {"rpm": rpm}, weight=WEIGHT)
    condition = {"label": torch.ones(2000, dtype=torch.int64), "rpm": torch.zeros(2000)}
    requests = SampleRequests(*[torch.arange(2000)] * 2, condition)
    # Items 1 and 5 have the label and the speed; item 1 weighs nothing.
    assert set(rows.pick(requests, KeyedRNG(requests.seed)).tolist()) == {5}
    requests.condition["label"] = torch.full((2000,), 2)
    assert set(rows.pick(requests, KeyedRNG(requests.seed)).tolist()) == {4}


def test_a_class_without_items_is_refused_with_weights_too():
    requests = SampleRequests(torch.arange(1), torch.arange(1), {"label": torch.tensor([5])})
    with pytest.raises(ConfigError, match="class 5"):
        TrainingRows(LABELS, weight=WEIGHT).pick(requests, KeyedRNG(requests.seed))


def test_windows_are_read_between_their_steps_and_not_beyond_them():
    x = torch.stack([torch.arange(5.0), 10 * torch.arange(5.0)])[None].repeat(2, 1, 1)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    batch = {"x": x * mask[:, None], "mask": mask, "y": torch.tensor([3, 4])}
    time = torch.tensor([-1.0, 0.5, 1.0, 2.5, 4.5]).expand(2, 5)
    out = read_at(batch, time)
    assert out["x"][0].tolist() == [[0, 0.5, 1, 2.5, 4], [0, 5, 10, 25, 40]]
    # Step 2 is missing, so nothing between 1 and 3 is known; the window ends at step 3.
    assert out["mask"][1].tolist() == [True, True, True, False, False]
    assert out["x"][1, 0].tolist() == [0, 0.5, 1, 0, 0]
    assert out["y"] is batch["y"]


def test_lengths_and_groups():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
    batch = {"x": torch.zeros(4, 1, 3), "mask": mask}
    assert lengths_in(batch).tolist() == [2, 0, 2, 3]
    assert [(rows.tolist(), size) for rows, size in equally_long(batch)] == [([0, 2], 2), ([3], 3)]
    assert lengths_in({"x": torch.zeros(2, 1, 3)}).tolist() == [3, 3]


def test_a_local_augmenter_changes_the_given_row_and_a_resampler_replaces_it():
    items, schema = tiny_series(30), tiny_series_schema(n=30)
    batch = {"x": torch.full((6, 2, 24), 50.0), "y": torch.arange(6) % 3}
    rng = KeyedRNG(torch.arange(6))
    near = Jitter(sigma=0.01, schema=schema).augment(batch, rng)["x"]
    assert 0 < (near - 50).abs().max() < 1
    replaced = SMOTE().fit_on(items, schema).augment(batch, rng)
    assert replaced["x"].max() < 20 and torch.equal(replaced["y"], batch["y"])
    between = Interpolate(low=0.5).fit_on(items, schema).augment(batch, rng)["x"]
    assert torch.allclose(between.mean((1, 2)), torch.full((6,), 50 + 7.5) / 2, atol=2)
    assert (batch["x"] == 50).all()


def test_sampling_is_augmenting_a_training_window():
    model = Jitter(sigma=0.1).fit_on(tiny_series(), tiny_series_schema())
    requests = model.make_requests(5, seed=3)
    rng = KeyedRNG(requests.seed)
    source = model.take(model.rows.pick(requests, rng.fork("source")))
    assert torch.equal(model.sample(requests).data["x"], model.augment(source, rng)["x"])
