"""VGAE: sampled non-edges, the bound, the number of edges, and graphs that are empty or complete."""

import networkx as nx
import pytest
import torch

from lightning_synth.datamodules import ItemsDataModule, LargeGraphDataModule
from lightning_synth.errors import ConfigError
from lightning_synth.networkx import from_networkx, to_networkx
from lightning_synth.plugins.graph.vgae import VGAE
from lightning_synth.requests import KeyedRNG
from lightning_synth.testing import tiny_graphs
from lightning_synth.testing.case import quiet_trainer


def fitted(source, steps=60, **hparams):
    graphs = isinstance(source, list)
    data = ItemsDataModule(source, domain="graph") if graphs else LargeGraphDataModule(source)
    model = VGAE(**{"hidden_dim": 16, "latent_dim": 8, **hparams})
    quiet_trainer(max_steps=steps).fit(model, datamodule=data)
    return model


def test_non_edges_are_pairs_of_one_graph_that_are_no_edges():
    model = fitted(tiny_graphs(8), 1, negatives=4.0)
    first, second = model._non_edges(KeyedRNG(0))
    training = model.training_edges
    owner = torch.arange(8).repeat_interleave(training.num_nodes)
    assert len(first) and bool((owner[first] == owner[second]).all()) and bool((first != second).all())
    assert not bool(training.has(first, second).any())
    assert len(first) <= 4 * training.edges.shape[1] // 2


def test_the_kl_of_a_standard_normal_is_zero():
    model = fitted(tiny_graphs(4), 1)
    with torch.no_grad():
        for parameter in model.second.parameters():
            parameter.zero_()
    assert model.losses(None, KeyedRNG(0))["kl"].item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("source", ["large", "many"])
def test_the_expected_number_of_edges_is_right(source):
    graphs = [nx.gnm_random_graph(40, 100, seed=0), nx.gnm_random_graph(20, 20, seed=1)]
    model = fitted(graphs[0]) if source == "large" else fitted(from_networkx(graphs))
    samples = model.sample(64, seed=0)
    for size, edges in ((40, 100), (20, 20)):
        found = [item.num_edges / 2 for item in samples.items() if item.num_nodes == size]
        assert not found or sum(found) / len(found) == pytest.approx(edges, rel=0.1)


def test_empty_and_complete_graphs_stay_so():
    model = fitted(from_networkx([nx.complete_graph(6), nx.empty_graph(5), nx.path_graph(4)]), 20)
    edges = {item.num_nodes: item.num_edges // 2 for item in model.sample(30, seed=0).items()}
    assert edges[6] == 15 and edges[5] == 0


def test_communities_are_kept():
    graph = nx.planted_partition_graph(3, 20, 0.5, 0.02, seed=0)
    model = fitted(graph, 150)
    for sample in to_networkx(model.sample(3, seed=0).items()):
        inside = sum(u // 20 == v // 20 for u, v in sample.edges)
        assert inside > 0.7 * sample.number_of_edges()


@pytest.mark.parametrize("bad", [{"hidden_dim": 0}, {"latent_dim": 0}, {"beta": -1.0}, {"negatives": 0.0}])
def test_impossible_settings(bad):
    with pytest.raises(ConfigError):
        VGAE(**bad)
