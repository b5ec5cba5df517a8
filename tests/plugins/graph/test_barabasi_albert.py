"""Preferential attachment: exact numbers of edges, the known law of degrees, and NetworkX's on small graphs."""

import networkx as nx
import numpy as np
import pytest
import torch

from lightning_synth.plugins.graph.barabasi_albert import BarabasiAlbert
from lightning_synth.schema import describe


def degrees(batch):
    return torch.bincount(batch.edge_index[0], minlength=int(batch.ptr[-1])).reshape(batch.num_graphs, -1)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (5, 4), (30, 1), (30, 7), (500, 20)])
def test_the_number_of_edges_is_exact(n, m):
    batch = BarabasiAlbert(num_nodes=n, m=m).sample(4, seed=1).data
    assert degrees(batch).sum(1).tolist() == [2 * m * (n - m)] * 4


def test_degrees_have_the_law_of_preferential_attachment():
    degree = degrees(BarabasiAlbert(num_nodes=100_000, m=3).sample(1, seed=1).data)[0]
    # Dorogovtsev, Mendes & Samukhin 2000: P(k) = 2 m (m + 1) / (k (k + 1) (k + 2)).
    share = torch.bincount(degree).double() / len(degree)
    for k in range(3, 12):
        expected = 2 * 3 * 4 / (k * (k + 1) * (k + 2))
        assert float(share[k]) == pytest.approx(expected, rel=0.06)
    assert share[:3].sum() == 0
    # The tail P(K >= k) = m (m + 1) / (k (k + 1)).
    assert float((degree >= 60).double().mean()) == pytest.approx(12 / (60 * 61), rel=0.2)


def test_degrees_of_every_node_are_those_of_networkx():
    rows, n, m = 800, 30, 4
    ours = degrees(BarabasiAlbert(num_nodes=n, m=m).sample(rows, seed=2).data).double().numpy()
    theirs = np.array([[d for _, d in nx.barabasi_albert_graph(n, m, seed=i).degree()] for i in range(rows)])
    error = np.sqrt((ours.var(0) + theirs.var(0)) / rows)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * np.maximum(error, 1e-9)).all()
    assert ours.max(1).mean() == pytest.approx(theirs.max(1).mean(), abs=0.5)


def test_edges_of_training_graphs_are_kept_on_average():
    graphs = [graph for m in (2, 3) for graph in BarabasiAlbert(num_nodes=40, m=m).sample(5).items()]
    # Half the graphs lose a few edges, so that no whole m fits.
    for graph in graphs[:5]:
        graph.edge_index = graph.edge_index[:, (graph.edge_index.amax(0) < 35)]
    model = BarabasiAlbert().fit_on(graphs, describe(graphs, "graph"))
    mean = model.sample(1000, seed=1).data.num_edges / 1000
    assert mean == pytest.approx(sum(graph.num_edges for graph in graphs) / 10, rel=0.02)
