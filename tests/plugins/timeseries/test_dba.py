"""Warped averages: the alignment against a plain double loop, and what an average of shifted features looks like."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.dba import DBA, Alignments, barycentre
from lightning_synth.schema import describe


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_dtw(a, b, band):
    """Distance and path of one pair (channels, length), as in any textbook."""
    n = a.shape[1]
    total = np.full((n + 1, n + 1), np.inf)
    total[0, 0] = 0
    for i in range(n):
        for j in range(n):
            if abs(i - j) <= band:
                best = min(total[i, j], total[i, j + 1], total[i + 1, j])
                total[i + 1, j + 1] = best + float(((a[:, i] - b[:, j]) ** 2).sum())
    path, (i, j) = [], (n, n)
    while i and j:
        path.append((i - 1, j - 1))
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda cell: total[cell])
    return total[n, n], path


@pytest.mark.parametrize("band", (None, 0, 1, 3, 11))
@pytest.mark.parametrize("channels", (1, 3))
def test_alignments_are_those_of_the_double_loop(band, channels):
    a, b = noise(7, channels, 12), noise(7, channels, 12, seed=1)
    last = torch.tensor([11, 11, 8, 5, 1, 0, 11])
    found = Alignments(a, b, last, band)
    low, high = found.matches()
    for pair, end in enumerate(last.tolist()):
        one, other = a[pair, :, : end + 1].double().numpy(), b[pair, :, : end + 1].double().numpy()
        distance, path = plain_dtw(one, other, 12 if band is None else band)
        assert abs(float(found.distance[pair]) - distance) < 1e-4 * (1 + distance)
        for i in range(12):
            matched = [j for k, j in path if k == i]
            if matched:
                assert (int(low[pair, i]), int(high[pair, i])) == (min(matched), max(matched))
            else:
                assert low[pair, i] > high[pair, i]


def test_one_step_of_the_average_is_the_weighted_mean_of_what_was_matched():
    windows, weights = noise(1, 3, 2, 10), torch.tensor([[0.5, 0.3, 0.2]])
    expected, mass = np.zeros((2, 10)), np.zeros(10)
    for k, weight in enumerate(weights[0].tolist()):
        for i, j in plain_dtw(windows[0, 0].double().numpy(), windows[0, k].double().numpy(), 4)[1]:
            expected[:, i] += weight * windows[0, k, :, j].double().numpy()
            mass[i] += weight
    mean = barycentre(windows, weights, torch.tensor([9]), band=4, num_iterations=1)[0]
    assert np.allclose(mean, expected / mass, atol=1e-5)


def test_the_average_of_shifted_pulses_is_a_pulse():
    time = torch.arange(60.0)
    pulses = torch.stack([torch.exp(-0.5 * ((time - c) / 1.5) ** 2) for c in (30, 24, 27, 33, 36, 39)])[None, :, None]
    weights = torch.tensor([[0.5, 0.15, 0.15, 0.2 / 3, 0.2 / 3, 0.2 / 3]])
    mean = barycentre(pulses, weights, torch.tensor([59]), band=15, num_iterations=10)[0, 0]
    assert mean.max() > 0.97
    assert (weights[0] @ pulses[0, :, 0]).max() < 0.65
    # One pulse, as wide as the others.
    assert abs(float((mean > 0.5).sum()) - float((pulses[0, 0, 0] > 0.5).sum())) <= 1


def test_averaging_lowers_the_weighted_distance():
    windows, weights, last = noise(5, 4, 2, 30).cumsum(-1), torch.full((5, 4), 0.25), torch.full((5,), 29)

    def cost(mean):
        pairs = windows.flatten(0, 1)
        average = mean[:, None].expand_as(windows).flatten(0, 1)
        return Alignments(average, pairs, band=6).distance.reshape(5, 4).mean(1)

    costs = [cost(barycentre(windows, weights, last, 6, n)) for n in (0, 1, 3, 10)]
    for before, after in pairwise(costs):
        assert (after <= before + 1e-4).all()
    assert (costs[-1] < 0.9 * costs[0]).all()


def fitted(x, y=None, mask=None, extra=(), **options):
    fields = {"x": torch.as_tensor(x, dtype=torch.float32), **dict(extra)}
    fields |= {} if y is None else {"y": torch.as_tensor(y)}
    fields |= {} if mask is None else {"mask": mask}
    items = StackedItems(fields)
    return DBA(**options).fit_on(items, describe(items, "timeseries"))


@pytest.mark.parametrize("weights", ("selected", "dirichlet"))
def test_weights_are_those_of_the_paper(weights):
    model = fitted(noise(8, 1, 12), weights=weights)
    valid = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [False] * 5])
    requests = model.make_requests(3)
    from lightning_synth.requests import KeyedRNG

    share = model._weights(valid, KeyedRNG(requests.seed))
    assert torch.allclose(share.sum(1), torch.ones(3)) and (share[:, 1:][~valid] == 0).all()
    assert share[2].tolist() == [1, 0, 0, 0, 0, 0]
    if weights == "selected":
        expected = torch.tensor([0.2 / 3, 0.2 / 3, 0.2 / 3, 0.15, 0.15, 0.5])
        assert torch.allclose(share[0].sort().values, expected)
        assert torch.allclose(share[1, :3], torch.tensor([0.5, 0.15, 0.15]) / 0.8)


def test_neighbours_are_the_nearest_under_warping():
    time = torch.arange(40.0)
    # Shifted copies of the reference are nearer under warping than a flat line, which is nearer point by point.
    shapes = [torch.sin(time * 0.8), torch.sin((time - 3) * 0.8), torch.zeros(40), 0.1 + torch.zeros(40)]
    model = fitted(torch.stack(shapes)[:, None], k_neighbors=1, band=0.2)
    order = model.windows["x"][:, 0]
    reference, shifted = ((order - shape).abs().amax(1).argmin()[None] for shape in shapes[:2])
    assert model._neighbours(reference)[0][0].tolist() == shifted.tolist()
    assert model.candidates[0][reference][0, 0] != shifted


def test_classes_are_not_averaged_and_conditions_are():
    level = torch.tensor([0.0, 0.2, 0.4, 50.0, 50.2, 50.4])
    model = fitted(level[:, None, None].expand(6, 1, 20), [0, 0, 0, 1, 1, 1], extra={"rpm": 100 + level})
    data = model.sample(30, condition={"label": 1}, seed=1).data
    assert (data["x"] >= 50).all() and (data["y"] == 1).all()
    assert torch.allclose(data["rpm"], 100 + data["x"][:, 0, 0], atol=1e-3)


def test_ragged_neighbours_are_stretched_to_the_reference():
    length = torch.tensor([10, 20, 15, 18])
    mask = torch.arange(20) < length[:, None]
    ramp = torch.arange(20) / (length[:, None] - 1.0)
    data = fitted(torch.where(mask, ramp, 9.0)[:, None], mask=mask, num_iterations=3).sample(40, seed=1).data
    last = data["mask"].sum(1) - 1
    assert set((last + 1).tolist()) <= set(length.tolist()) and (data["x"][:, 0][~data["mask"]] == 0).all()
    ends = data["x"][:, 0].gather(1, last[:, None])[:, 0]
    assert torch.allclose(ends, torch.ones(40), atol=0.08) and data["x"].max() < 1.01


def test_a_class_of_one_is_copied_with_a_warning():
    x = noise(5, 2, 12)
    model = fitted(x, [0, 0, 0, 0, 1])
    with pytest.warns(UserWarning, match="single window of class 1"):
        copies = model.sample(4, condition={"label": 1}).data["x"]
    assert torch.equal(copies, x[4:].expand(4, 2, 12))


def test_rows_depend_on_their_own_seed_only_also_in_parts(monkeypatch):
    model = fitted(noise(9, 2, 16), [0, 1, 2] * 3, num_iterations=3)
    requests = model.make_requests(7, seed=9)
    together = model.sample(requests).data["x"]
    monkeypatch.setattr("lightning_synth.plugins.timeseries.dba._CELLS", 1)
    assert torch.allclose(together, model.sample(requests).data["x"], atol=1e-5)


@pytest.mark.parametrize("bad", [{"weights": "equal"}, {"k_neighbors": 0}, {"num_iterations": 0}, {"band": 0.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        DBA(**bad)
