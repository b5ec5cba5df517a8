"""Small worlds: exact numbers of edges, the clustering of ring and random graph, and what is estimated."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.utils import to_networkx

from lightning_synth.plugins.graph.watts_strogatz import WattsStrogatz
from lightning_synth.schema import describe


def transitivity(items):
    return np.mean([nx.transitivity(to_networkx(graph, to_undirected=True)) for graph in items])


def test_without_moves_it_is_the_ring():
    graph = WattsStrogatz(num_nodes=30, k=6, p=0.0).sample(1).items()[0]
    ring = nx.watts_strogatz_graph(30, 6, 0.0)
    assert {tuple(sorted(edge)) for edge in ring.edges()} == {tuple(sorted(e)) for e in graph.edge_index.T.tolist()}
    assert transitivity([graph]) == pytest.approx(3 * (6 - 2) / (4 * (6 - 1)))


def test_all_moved_it_is_a_random_graph():
    items = WattsStrogatz(num_nodes=400, k=8, p=1.0).sample(5, seed=1).items()
    assert [graph.num_edges for graph in items] == [3200] * 5
    assert transitivity(items) == pytest.approx(8 / 400, abs=0.006)
    # Barrat & Weigt 2000: the variance of the degrees is k p (2 - p) / 2.
    degree = torch.cat([torch.bincount(graph.edge_index[0], minlength=400) for graph in items]).double()
    assert float(degree.var()) == pytest.approx(4, rel=0.15) and int(degree.min()) >= 4


@pytest.mark.parametrize(("n", "k"), [(5, 4), (7, 4), (30, 4)])
def test_small_graphs_are_as_those_of_networkx(n, k):
    items = WattsStrogatz(num_nodes=n, k=k, p=0.4).sample(400, seed=1).items()
    assert {graph.num_edges for graph in items} == {n * k}
    theirs = [nx.transitivity(nx.watts_strogatz_graph(n, k, 0.4, seed=i)) for i in range(400)]
    assert transitivity(items) == pytest.approx(np.mean(theirs), abs=4 * np.std(theirs) / 14 + 0.01)


@pytest.mark.parametrize(("k", "p"), [(6, 0.05), (6, 0.3), (2, 0.3)])
def test_parameters_are_estimated(k, p):
    graphs = WattsStrogatz(num_nodes=500, k=k, p=p).sample(4, seed=1).items()
    model = WattsStrogatz().fit_on(graphs, describe(graphs, "graph"))
    assert model.tables["p"].tolist() == pytest.approx([p] * 4, abs=0.12 if k == 2 else 0.05)
    assert model.sample(20).data.num_edges == 20 * 500 * k
