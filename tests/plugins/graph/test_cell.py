"""CELL: the block-wise softmax is the dense one, the walk settles, edges are counted, training stops in time."""

import networkx as nx
import pytest
import torch

from lightning_synth.datamodules import ItemsDataModule, LargeGraphDataModule
from lightning_synth.errors import ConfigError
from lightning_synth.networkx import to_networkx
from lightning_synth.plugins.graph import cell as module
from lightning_synth.plugins.graph.cell import CELL
from lightning_synth.testing import tiny_graphs
from lightning_synth.testing.case import quiet_trainer


def fitted(source, steps=40, **hparams):
    graphs = isinstance(source, list)
    data = ItemsDataModule(source, domain="graph") if graphs else LargeGraphDataModule(source)
    model, trainer = CELL(**{"target_overlap": None, **hparams}), quiet_trainer(max_steps=steps)
    trainer.fit(model, datamodule=data)
    return model, trainer


def dense_normalizer(model):
    """Logarithm of the row sums, graph by graph, with the whole matrix."""
    parts = []
    for leave, enter in zip(
        model.leave.split(model.num_nodes.tolist()), model.enter.split(model.num_nodes.tolist()), strict=True
    ):
        parts.append((leave @ enter.T).logsumexp(1))
    return torch.cat(parts)


@pytest.mark.parametrize("block", [5, 60, 1 << 16])
def test_blocks_are_the_dense_softmax_and_its_gradient(block, monkeypatch):
    model, _ = fitted(tiny_graphs(7), 2)
    monkeypatch.setattr(module, "_BLOCK", block)
    torch.testing.assert_close(model.normalizer(), dense_normalizer(model))
    weight = torch.randn(len(model.degree), generator=torch.Generator().manual_seed(0))
    got = torch.autograd.grad((weight * model.normalizer()).sum(), [model.leave, model.enter])
    wanted = torch.autograd.grad((weight * dense_normalizer(model)).sum(), [model.leave, model.enter])
    torch.testing.assert_close(got, wanted)


def test_no_large_matrix_is_kept_for_the_gradient(monkeypatch):
    graph = nx.gnm_random_graph(300, 900, seed=0)
    model, _ = fitted(graph, 1)
    monkeypatch.setattr(module, "_BLOCK", 3000)
    sizes = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.losses(None, None)["loss"].backward()
    # The largest thing kept are the ends of the edges, (1800, rank); the matrix has 90,000 entries.
    assert max(sizes) <= 1800 * 9


def test_the_loss_is_the_cross_entropy_of_steps_along_edges():
    graph = nx.path_graph(3)
    model, _ = fitted(graph, 1)
    walk = (model.leave @ model.enter.T).log_softmax(1)
    wanted = -(walk[0, 1] + walk[1, 0] + walk[1, 2] + walk[2, 1]) / 4
    torch.testing.assert_close(model.losses(None, None)["loss"], wanted)


def test_the_walk_settles_in_its_stationary_distribution():
    model, _ = fitted(nx.connected_watts_strogatz_graph(20, 4, 0.2, seed=1), 30)
    model.refresh()
    walk = (model.leave @ model.enter.T).softmax(1).double()
    pi = torch.linalg.matrix_power(walk, 10_000)[0]
    rate = (model.log_rate + dense_normalizer(model)).exp().double()
    torch.testing.assert_close(rate, pi, atol=2e-4, rtol=0)


def test_samples_have_the_communities_and_the_edges_of_the_training_graph():
    graph = nx.connected_caveman_graph(5, 8)
    model, _ = fitted(graph, 100)
    for sample in to_networkx(model.sample(5, seed=0).items()):
        assert sample.number_of_edges() == graph.number_of_edges() and min(dict(sample.degree).values()) >= 1
        inside = sum(u // 8 == v // 8 for u, v in sample.edges)
        assert inside > 0.8 * graph.number_of_edges()


def test_isolated_nodes_stay_isolated():
    graph = nx.cycle_graph(12)
    graph.add_nodes_from([12, 13])
    model, _ = fitted(graph, 60)
    degrees = dict(to_networkx(model.sample(1, seed=0).items())[0].degree)
    assert all(degrees[node] >= 1 for node in range(12)) and sum(degrees.values()) == 24


def test_training_stops_at_the_target_overlap():
    graph = nx.connected_watts_strogatz_graph(60, 6, 0.1, seed=0)
    low, early = fitted(graph, 300, target_overlap=0.2, lr=0.02)
    high, late = fitted(graph, 300, target_overlap=0.6, lr=0.02)
    assert early.global_step < late.global_step < 300 and early.global_step % 5 == 0
    # The measure is of one sample: a new one may be a little below.
    assert 0.2 <= float(low.edge_overlap) < 0.6 <= float(high.edge_overlap)
    free, trainer = fitted(graph, 300, lr=0.02)
    assert trainer.global_step == 300 and float(free.edge_overlap) > float(high.edge_overlap)
    assert float(free.chance_overlap) == pytest.approx(180 / (60 * 59 / 2))


@pytest.mark.parametrize("bad", [{"rank": 0}, {"check_every": 0}, {"target_overlap": 0.0}, {"target_overlap": 1.5}])
def test_impossible_settings(bad):
    with pytest.raises(ConfigError):
        CELL(**bad)
