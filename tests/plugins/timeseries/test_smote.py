"""SMOTE: points on segments between neighbours, as imbalanced-learn makes them."""

import numpy as np
import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.smote import ADASYN, SMOTE, BorderlineSMOTE, class_neighbours, foreign_share
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_series, tiny_series_schema


def fitted(x, y, kind=SMOTE, **options):
    items = StackedItems({"x": torch.as_tensor(x, dtype=torch.float32), "y": torch.as_tensor(y)})
    return kind(**options).fit_on(items, describe(items, "timeseries"))


def distance_to_segments(points, ends):
    """Least distance of every point to any segment between two of ``ends`` (all float64, flattened)."""
    a, b = ends[:, None], ends[None]
    direction = b - a
    square = np.maximum((direction**2).sum(-1), 1e-12)
    share = np.clip(((points[:, None, None] - a) * direction).sum(-1) / square, 0, 1)
    return np.sqrt((((a + share[..., None] * direction) - points[:, None, None]) ** 2).sum(-1)).min((1, 2))


def test_neighbours_are_those_of_sklearn_within_each_class():
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 8)), np.arange(60) % 3
    table, valid = class_neighbours(torch.from_numpy(x), torch.from_numpy(y), 5)
    assert (valid == 5).all()
    for label in range(3):
        member = np.flatnonzero(y == label)
        expected = NearestNeighbors(n_neighbors=6).fit(x[member]).kneighbors(x[member], return_distance=False)[:, 1:]
        assert np.array_equal(table[member].numpy(), member[expected])


@pytest.mark.parametrize("ours", (True, False))
def test_samples_lie_on_segments_as_those_of_imbalanced_learn(ours):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 2, 6)), np.repeat([0, 1], 6)
    if ours:
        data = fitted(x, y, standardize=False).sample(40, condition={"label": 1}, seed=2).data
        assert data["y"].tolist() == [1] * 40
        points = data["x"].flatten(1).double().numpy()
    else:
        over = pytest.importorskip("imblearn.over_sampling")
        flat = np.concatenate([x.reshape(12, -1), rng.normal(size=(34, 12))])
        points, labels = over.SMOTE(random_state=0).fit_resample(flat, np.r_[y, np.zeros(34, int)])
        points = points[labels == 1][6:]
    ends = x[6:].reshape(6, -1)
    assert distance_to_segments(points, ends).max() < 1e-4
    assert distance_to_segments(points, ends[:3]).max() > 0.1


def test_only_near_neighbours_are_used():
    level = torch.tensor([0.0, 1.0, 100.0, 101.0])
    x = fitted(level[:, None, None].expand(4, 1, 3), [0] * 4, k_neighbors=1).sample(200, seed=1).data["x"]
    assert (((x >= 0) & (x <= 1)) | ((x >= 100) & (x <= 101))).all()


def test_steps_are_uniform():
    level = torch.tensor([0.0, 1.0])
    x = fitted(level[:, None, None].expand(2, 1, 3), [0, 0]).sample(2000, seed=1).data["x"][:, 0, 0]
    quantiles = torch.quantile(x, torch.tensor([0.1, 0.5, 0.9]))
    assert torch.allclose(quantiles, torch.tensor([0.1, 0.5, 0.9]), atol=0.04)


def test_a_class_of_one_is_copied_with_a_warning():
    x = np.random.default_rng(0).normal(size=(4, 1, 5))
    model = fitted(x, [0, 0, 0, 1])
    with pytest.warns(UserWarning, match="single window of class 1"):
        copies = model.sample(5, condition={"label": 1}).data["x"]
    assert torch.allclose(copies, torch.tensor(x[3:], dtype=torch.float32).expand(5, 1, 5))


def test_distances_are_measured_in_standard_deviations():
    # The second channel is a thousand times larger and says nothing: raw distances see only it.
    x = torch.tensor([[[0.0], [0.0]], [[0.1], [2000.0]], [[9.0], [500.0]], [[9.1], [2500.0]]])
    raw = fitted(x, [0] * 4, k_neighbors=1, standardize=False).neighbours[0][:, 0].tolist()
    standard = fitted(x, [0] * 4, k_neighbors=1).neighbours[0][:, 0].tolist()
    assert raw == [2, 3, 0, 1] and standard != raw


def test_rows_depend_on_their_own_seed_only():
    model = SMOTE().fit_on(tiny_series(), tiny_series_schema())
    requests = model.make_requests(7, seed=9)
    together = model.sample(requests).data["x"]
    alone = torch.cat([model.sample(requests[i : i + 1]).data["x"] for i in range(7)])
    assert torch.equal(together, alone)


def test_no_neighbours_is_refused():
    with pytest.raises(ConfigError, match="k_neighbors"):
        SMOTE(k_neighbors=0)


def overlapping(n=80, minority=20, seed=0):
    """A minority beside a majority, as imbalanced-learn wants it: (n, 4) and labels."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) < minority).astype(int)
    return rng.normal(size=(n, 4)) + 1.2 * y[:, None], y


def weights_of(model, x):
    """Weights in the order of ``x``; the bank keeps the windows in another one."""
    place = (model.windows["x"][:, 0, None] == torch.as_tensor(x, dtype=torch.float32)[None]).all(-1).long().argmax(0)
    return model.rows.weight[place].numpy()


def test_borderline_starts_from_the_windows_in_danger_of_imbalanced_learn():
    over = pytest.importorskip("imblearn.over_sampling").BorderlineSMOTE(random_state=0)
    x, y = overlapping()
    over.fit_resample(x, y)
    model = fitted(x[:, None], y, BorderlineSMOTE, standardize=False)
    danger = np.flatnonzero(weights_of(model, x) * (y == 1))
    assert 3 < len(danger) < 20
    assert np.array_equal(danger, np.sort(over.in_danger_indices[1]))
    # Every sample starts at one of them: it lies on a segment from it to a neighbour of its class.
    samples = model.sample(100, condition={"label": 1}, seed=1).data["x"][:, 0].double().numpy()
    table = model.neighbours[0].numpy()
    points = model.windows["x"][:, 0].double().numpy()
    starts = np.flatnonzero(model.rows.weight.numpy() * (model.windows["y"].numpy() == 1))
    nearest = [
        min(distance_to_segments(row[None], points[[start, end]])[0] for start in starts for end in table[start])
        for row in samples
    ]
    assert max(nearest) < 1e-4


def test_adasyn_weighs_windows_as_imbalanced_learn(monkeypatch):
    over = pytest.importorskip("imblearn.over_sampling").ADASYN(random_state=0)
    x, y = overlapping()
    expected, rint = [], np.rint
    monkeypatch.setattr(np, "rint", lambda value: expected.append(value) or rint(value))
    over.fit_resample(x, y)
    monkeypatch.undo()
    model = fitted(x[:, None], y, ADASYN, standardize=False)
    weight = weights_of(model, x)[y == 1]
    # imbalanced-learn rounds (share of foreign neighbours, normalised) x (samples wanted).
    assert len(np.unique(weight)) > 2
    assert np.allclose(weight / weight.sum(), expected[0] / expected[0].sum(), atol=1e-6)
    requests = model.make_requests(4000, condition={"label": 1}, seed=3)
    picked = model.rows.pick(requests, KeyedRNG(requests.seed))
    share = torch.bincount(picked, minlength=len(x)) / 4000
    mass = model.rows.weight * (model.windows["y"] == 1)
    assert torch.allclose(share, mass / mass.sum(), atol=0.015)


def test_foreign_neighbours_are_counted_over_all_classes():
    level = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 0.15, 5.2])[:, None]
    share = foreign_share(level, torch.tensor([0, 0, 0, 1, 1, 2, 1]), k=2)
    assert share.tolist() == [0.5, 0.5, 0.5, 0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", (ADASYN, BorderlineSMOTE))
def test_classes_far_apart_fall_back_to_smote_with_a_warning(kind):
    x = np.random.default_rng(0).normal(size=(24, 1, 6)) + 100 * (np.arange(24) % 2)[:, None, None]
    model = fitted(x, np.arange(24) % 2, kind)
    with pytest.warns(UserWarning, match="no border around class 0, 1"):
        samples = model.sample(200, condition={"label": 1}, seed=1)
    plain = fitted(x, np.arange(24) % 2).sample(200, condition={"label": 1}, seed=1)
    assert torch.allclose(samples.data["x"].mean(), plain.data["x"].mean(), atol=0.2)


@pytest.mark.parametrize("kind", (ADASYN, BorderlineSMOTE))
def test_unlabelled_data_are_smote(kind):
    items = StackedItems({"x": torch.randn(12, 1, 6, generator=torch.Generator().manual_seed(0))})
    schema = describe(items, "timeseries")
    ours, plain = (one().fit_on(items, schema).sample(5, seed=1).data["x"] for one in (kind, SMOTE))
    assert torch.equal(ours, plain)
    with pytest.raises(ConfigError, match="m_neighbors"):
        kind(m_neighbors=0)
