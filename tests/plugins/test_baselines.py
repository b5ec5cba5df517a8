"""Copies, jitter and interpolation: what they keep, what they change, and what they depend on."""

import numpy as np
import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.baselines import Bootstrap, Interpolate, Jitter, duplicate_nodes
from lightning_synth.plugins.resampling import TrainingRows
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.schema import describe, item_hashes, validate
from lightning_synth.testing import tiny_items, tiny_schema, tiny_series, tiny_series_schema

DOMAINS = ("timeseries", "graph", "molecule", "sequence")


def labelled(x, y, **fields):
    items = StackedItems({"x": torch.as_tensor(x, dtype=torch.float32), "y": torch.as_tensor(y), **fields})
    return items, describe(items, "timeseries")


@pytest.mark.parametrize("domain", DOMAINS)
def test_bootstrap_copies_training_items(domain):
    items, schema = tiny_items(domain), tiny_schema(domain)
    model = Bootstrap().fit_on(items, schema)
    sampled = model.sample(20, seed=3).items()
    validate(sampled, schema)
    assert set(item_hashes(sampled, schema).tolist()) <= set(item_hashes(items, schema).tolist())
    assert len(set(item_hashes(sampled, schema).tolist())) > 3


@pytest.mark.parametrize("domain", DOMAINS)
def test_bootstrap_rows_depend_on_their_own_seed_only(domain):
    model = Bootstrap().fit_on(tiny_items(domain), tiny_schema(domain))
    requests = model.make_requests(6, seed=5)
    together = item_hashes(model.sample(requests).items(), model.schema)
    alone = [item_hashes(model.sample(requests[i : i + 1]).items(), model.schema)[0] for i in range(6)]
    assert together.tolist() == alone


@pytest.mark.parametrize("domain", ("timeseries", "graph"))
def test_bootstrap_keeps_the_requested_class(domain):
    model = Bootstrap().fit_on(tiny_items(domain), tiny_schema(domain))
    batch = model.sample(9, condition={"label": 1}).data
    assert batch["y"].tolist() == [1] * 9


def test_bootstrap_is_uniform_over_the_items_of_a_class():
    items, schema = labelled(np.arange(8)[:, None, None] * np.ones((8, 1, 4)), [0, 0, 1, 1, 1, 1, 2, 2])
    x = Bootstrap().fit_on(items, schema).sample(4000, condition={"label": 1}, seed=1).data["x"][:, 0, 0]
    shares = torch.bincount(x.long(), minlength=8) / 4000
    assert shares[[0, 1, 6, 7]].sum() == 0
    assert torch.allclose(shares[2:6], torch.full((4,), 0.25), atol=0.03)


def test_bootstrap_takes_the_nearest_working_condition():
    rpm = torch.tensor([1000.0, 1000.0, 2000.0, 3000.0])
    items, schema = labelled(rpm[:, None, None].expand(4, 1, 3), [0, 0, 0, 1], rpm=rpm)
    model = Bootstrap().fit_on(items, schema)
    near = model.sample(5, condition={"label": 0, "rpm": 1900.0}).data
    assert near["rpm"].tolist() == [2000.0] * 5
    # The class counts first: 3000 is nearest, but of another class.
    assert model.sample(5, condition={"label": 0, "rpm": 2900.0}).data["rpm"].tolist() == [2000.0] * 5


def test_a_class_without_items_is_refused_by_name():
    items, _ = labelled(np.zeros((2, 1, 4)), [0, 0])
    model = Bootstrap().fit_on(items, describe(items, "timeseries", class_names=["ok", "rare"]))
    with pytest.raises(ConfigError, match="'rare'"):
        model.sample(2, condition={"label": 1})


def test_picking_from_conditions_is_the_same_in_any_chunk(monkeypatch):
    import lightning_synth.plugins.resampling as resampling

    rows = TrainingRows(torch.arange(60) % 3, {"rpm": torch.arange(60) % 2 * 1000.0}, {"rpm": 500.0})
    requests = SampleRequests.make(40, condition={"label": [i % 3 for i in range(40)], "rpm": [1000.0] * 40})
    whole = rows.pick(requests, KeyedRNG(requests.seed), 2)
    monkeypatch.setattr(resampling, "_TABLE", 60 * 7)
    assert torch.equal(rows.pick(requests, KeyedRNG(requests.seed), 2), whole)
    assert torch.equal(whole % 3, torch.arange(40)[:, None].expand(40, 2) % 3)
    assert (whole % 2 == 1).all()
    assert len(whole.unique()) > 15


def test_bootstrap_of_a_molecule_follows_a_property():
    model = Bootstrap().fit_on(tiny_items("molecule"), tiny_schema("molecule"))
    batch = model.sample(6, condition={"atoms": 3.0, "hetero_atoms": 0.0}).data
    assert set(batch.smiles) == {"C1CC1"}


def test_node_bootstrap_appends_copies_and_leaves_the_graph_alone():
    data = tiny_items("node")[0]
    model = Bootstrap(share=0.4).fit_on([data], tiny_schema("node"))
    graph = model.sample(1, seed=2).items()[0]
    n, e, copies = data.num_nodes, data.edge_index.shape[1], round(0.4 * int(data.train_mask.sum()))
    assert graph.num_nodes == n + copies
    assert torch.equal(graph.x[:n], data.x)
    assert torch.equal(graph.y[:n], data.y)
    assert torch.equal(graph.edge_index[:, :e], data.edge_index)
    assert graph.is_synthetic.tolist() == [False] * n + [True] * copies
    assert not graph.edge_is_synthetic[:e].any() and graph.edge_is_synthetic[e:].all()
    assert graph.train_mask[n:].all() and not (graph.val_mask | graph.test_mask)[n:].any()
    assert torch.equal(graph.val_mask[:n], data.val_mask)
    assert graph.is_undirected()
    validate([graph], model.schema)


def test_a_copied_node_has_the_features_and_neighbours_of_its_source():
    data = tiny_items("node")[0]
    data.edge_attr = torch.arange(data.edge_index.shape[1]).float()[:, None]
    data.edge_attr = (data.edge_index.sum(0).float())[:, None]
    source = torch.tensor([7, 2, 7])
    graph = duplicate_nodes(data, source)
    for copy, node in enumerate(source.tolist(), start=data.num_nodes):
        assert torch.equal(graph.x[copy], data.x[node])
        neighbours = graph.edge_index[1, graph.edge_index[0] == copy].sort().values
        assert torch.equal(neighbours, data.edge_index[1, data.edge_index[0] == node].sort().values)
        attributes = graph.edge_attr[graph.edge_index[0] == copy, 0].sort().values
        assert torch.equal(attributes, data.edge_attr[data.edge_index[0] == node, 0].sort().values)


def test_jitter_has_the_requested_size_in_every_channel():
    items, schema = labelled(np.zeros((4, 2, 500)), [0, 0, 1, 1])
    schema["std"] = [1.0, 100.0]
    x = Jitter(sigma=0.2).fit_on(items, schema).sample(40, seed=1).data["x"]
    assert torch.allclose(x.std(dim=(0, 2)), torch.tensor([0.2, 20.0]), rtol=0.03)
    copies = Jitter(sigma=0.0).fit_on(items, schema).sample(3).data["x"]
    assert copies.abs().max() == 0


def test_jitter_leaves_padding_alone():
    x = torch.zeros(3, 1, 6)
    mask = torch.arange(6)[None] < torch.tensor([2, 4, 6])[:, None]
    items = StackedItems({"x": x, "mask": mask})
    data = Jitter().fit_on(items, describe(items, "timeseries")).sample(9).data
    assert (data["x"][:, 0][~data["mask"]] == 0).all()
    assert (data["x"][:, 0][data["mask"]] != 0).all()


def test_interpolation_lies_between_two_windows_of_the_class():
    level = torch.tensor([0.0, 1.0, 10.0, 12.0])
    items, schema = labelled(level[:, None, None].expand(4, 1, 5), [0, 0, 1, 1], rpm=level * 100)
    data = Interpolate().fit_on(items, schema).sample(200, condition={"label": 1}, seed=4).data
    value = data["x"][:, 0, 0]
    assert 10 <= value.min() and value.max() <= 12 and len(value.unique()) > 50
    assert torch.allclose(data["rpm"], 100 * value, rtol=1e-5)


@pytest.mark.parametrize("cls", (Jitter, Interpolate))
def test_rows_depend_on_their_own_seed_only(cls):
    model = cls().fit_on(tiny_series(), tiny_series_schema())
    requests = model.make_requests(7, seed=9)
    together = model.sample(requests).data["x"]
    alone = torch.cat([model.sample(requests[i : i + 1]).data["x"] for i in range(7)])
    assert torch.equal(together, alone)


def test_a_second_fit_replaces_the_first():
    first, second = tiny_series(seed=0), tiny_series(seed=1)
    model = Bootstrap().fit_on(first, tiny_series_schema())
    model.sample(3)
    model.fit_on(second, tiny_series_schema())
    copies = item_hashes(model.sample(10).items(), model.schema)
    assert set(copies.tolist()) <= set(item_hashes(second, model.schema).tolist())


@pytest.mark.parametrize(
    ("cls", "bad"), [(Jitter, {"sigma": -1.0}), (Interpolate, {"low": 0.7}), (Bootstrap, {"share": -1})]
)
def test_impossible_settings_are_refused(cls, bad):
    with pytest.raises(ConfigError):
        cls(**bad)
