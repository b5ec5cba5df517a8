"""GraphMaker: features as bins, edges from few steps, labels that decide, pairs that are only sampled."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from lightning_synth.datamodules import LargeGraphDataModule
from lightning_synth.errors import ConfigError
from lightning_synth.plugins.graph.graph_maker import GraphMaker, _some_pairs
from lightning_synth.plugins.graph.graph_maker_networks import Bins, EdgeNetwork
from lightning_synth.plugins.graph.likeness import Training
from lightning_synth.requests import KeyedRNG
from lightning_synth.testing.case import quiet_trainer


def fitted(graph, steps=60, **hparams):
    data = LargeGraphDataModule(graph)
    model = GraphMaker(**{"dim": 24, "pair_dim": 12, "lr": 2e-2, **hparams})
    quiet_trainer(max_steps=steps).fit(model, datamodule=data)
    return model


def labelled(seed=0):
    """Three blocks that are node types; edges inside a block are of type 1."""
    graph = nx.planted_partition_graph(3, 30, 0.4, 0.02, seed=seed)
    edges = torch.tensor(list(graph.edges)).T
    x = torch.arange(90) // 30
    both = torch.cat([edges, edges.flip(0)], 1)
    return Data(edge_index=both, num_nodes=90, x=x, edge_attr=(x[both[0]] == x[both[1]]).long())


def inside(item, x):
    return float((x[item.edge_index[0]] == x[item.edge_index[1]]).float().mean())


# Bins ----------------------------------------------------------------------------------------------------------------


def test_few_values_are_kept_exactly():
    x = torch.tensor([[0.0, 5.0, -1.0], [1.0, 5.0, 0.5], [1.0, 5.0, 7.0], [0.0, 5.0, 7.0]])
    bins = Bins(3, 4)
    bins.fit(x)
    assert torch.equal(bins.decode(bins.encode(x), torch.rand(4, 3)), x)
    torch.testing.assert_close(bins.law[0], torch.tensor([0.5, 0.5, 0, 0]), atol=1e-3, rtol=0)
    assert int(bins.encode(x)[:, 1].max()) == 0


def test_many_values_are_binned_by_count():
    x = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0)).exp()
    bins = Bins(1, 8)
    bins.fit(x)
    counts = torch.bincount(bins.encode(x)[:, 0], minlength=8)
    assert int(counts.min()) > 600
    again = bins.decode(bins.encode(x), torch.rand(5000, 1, generator=torch.Generator().manual_seed(1)))
    levels = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(again.quantile(levels), x.quantile(levels), rtol=0.1, atol=0)
    assert torch.equal(bins.encode(again), bins.encode(x))


# The edge network ----------------------------------------------------------------------------------------------------


def test_the_edge_network_is_equivariant_and_symmetric():
    torch.manual_seed(0)
    network = EdgeNetwork(3, 8, 4, 2)
    h, edges, kind = torch.randn(6, 8), torch.tensor([[0, 1, 2, 4], [3, 4, 5, 5]]), torch.tensor([1, 2, 1, 1])
    order = torch.tensor([4, 2, 0, 5, 3, 1])
    first, second, now = torch.tensor([0, 1, 2]), torch.tensor([3, 2, 5]), torch.tensor([1, 0, 1])
    out = network(network.states(h, edges, kind), first, second, now)
    rank = order.argsort()
    moved = network.states(h[order], rank[edges], kind)
    torch.testing.assert_close(network(moved, rank[first], rank[second], now), out)
    torch.testing.assert_close(network(moved, rank[second], rank[first], now), out)


def test_other_graphs_of_the_batch_do_not_matter():
    torch.manual_seed(0)
    network = EdgeNetwork(2, 8, 4, 2)
    h, edges = torch.randn(9, 8), torch.tensor([[0, 1, 4, 5], [1, 2, 5, 6]])
    kind, first, second = torch.ones(4, dtype=torch.int64), torch.tensor([0]), torch.tensor([2])
    both = network(network.states(h, edges, kind), first, second, torch.tensor([0]))
    alone = network(network.states(h[:4], edges[:, :2], kind[:2]), first, second, torch.tensor([0]))
    torch.testing.assert_close(both, alone)


# Training ------------------------------------------------------------------------------------------------------------


def test_sampled_pairs_are_all_edges_noise_and_others_without_repeats():
    graph = labelled()
    graphs = Training.from_edges(graph.edge_index, torch.tensor([90]))
    m = graph.num_edges // 2
    kind = torch.ones(graph.num_edges, dtype=torch.int64)
    pairs = _some_pairs(graphs, kind, torch.tensor([400]), 900, torch.tensor([0.25, 0.75]), KeyedRNG(0))
    assert int((pairs.clean > 0).sum()) == m and bool((pairs.noisy[:m] == -1).all())
    assert len((pairs.first * 90 + pairs.second).unique()) == len(pairs.first) <= m + 1300
    assert bool((pairs.first < pairs.second).all()) and int(pairs.graph.max()) == 0
    assert not bool(graphs.has(pairs.first[m:], pairs.second[m:]).any())
    # Of the 400 some fall on edges, on repeats or on a node twice.
    kinds = torch.bincount(pairs.noisy[m:], minlength=3)
    assert 300 < int(kinds[1:].sum()) < 400 and int(kinds[2]) > 2 * int(kinds[1])


@pytest.mark.parametrize("pairs", [1 << 17, 1500])
def test_edges_follow_the_labels_at_the_right_density(pairs):
    graph = labelled()
    model = fitted(graph, 100, pairs_per_step=pairs)
    items = model.sample(6, seed=0).items()
    assert np.mean([item.num_edges for item in items]) == pytest.approx(graph.num_edges, rel=0.06)
    assert np.mean([inside(item, graph.x) for item in items]) == pytest.approx(inside(graph, graph.x), abs=0.12)
    kinds = [
        float((item.edge_attr == (graph.x[item.edge_index[0]] == graph.x[item.edge_index[1]])).float().mean())
        for item in items
    ]
    assert np.mean(kinds) > 0.9
    # Nodes of one label and degree class are exchangeable: hardly more is shared than between such random graphs.
    assert float(model.edge_overlap) < 0.5


def test_degrees_follow_those_of_the_training_graph():
    graph = nx.barabasi_albert_graph(150, 3, seed=0)
    model = fitted(graph, 80)
    real = np.array([degree for _, degree in graph.degree])
    item = model.sample(1, seed=0).items()[0]
    fake = torch.bincount(item.edge_index[0], minlength=150).numpy()
    assert np.corrcoef(np.log1p(real), np.log1p(fake))[0, 1] > 0.6 and fake.max() > 2.5 * fake.mean()


def test_features_follow_the_node_labels():
    y = torch.arange(90) // 30
    graph = labelled()
    x = torch.stack([(y == 1).float(), y + 0.1 * torch.rand(90, generator=torch.Generator().manual_seed(0))], 1)
    graph = Data(edge_index=graph.edge_index, num_nodes=90, x=x, y=y)
    model = fitted(graph, 100)
    item = model.sample(1, seed=0).items()[0]
    assert set(item.x[:, 0].tolist()) == {0.0, 1.0} and torch.equal(item.y, y)
    assert float(((item.x[:, 0] == 1) == (y == 1)).float().mean()) > 0.85
    assert float(((item.x[:, 1] - y).abs() < 0.5).float().mean()) > 0.85
    assert not torch.equal(item.x, x)


def test_node_labels_can_be_chosen():
    graph = labelled()
    model = fitted(graph)
    asked = [0] * 10 + [2] * 25
    items = model.sample(3, seed=0, node_labels=asked).items()
    assert all(item.x.tolist() == asked for item in items)
    degree = np.mean([item.num_edges / 35 for item in items])
    assert degree == pytest.approx(graph.num_edges / 90, rel=0.1)
    for wrong in ([], [3], [-1]):
        with pytest.raises(ConfigError, match=r"labels of training nodes, of 0\.\.2"):
            model.sample(1, node_labels=wrong)


@pytest.mark.parametrize(
    "bad", [{"node_steps": 0}, {"edge_steps": 0}, {"dim": 0}, {"bins": 1}, {"negatives": 0.0}, {"num_layers": -1}]
)
def test_impossible_settings(bad):
    with pytest.raises(ConfigError):
        GraphMaker(**bad)
