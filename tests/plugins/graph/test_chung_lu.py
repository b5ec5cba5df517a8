"""Chung-Lu: expected degrees, as promised and as NetworkX has them."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.utils import from_networkx

from lightning_synth.plugins.graph.chung_lu import ChungLu
from lightning_synth.schema import describe


@pytest.fixture(scope="module")
def graph():
    graph = from_networkx(nx.barabasi_albert_graph(60, 3, seed=1))
    graph.edge_index = torch.cat([graph.edge_index, torch.tensor([[0] * 40, list(range(20, 60))])], 1)
    return graph


def test_expected_degrees(graph):
    model = ChungLu().fit_on([graph], describe([graph], "graph"))
    weight = model.tables["degree"].double()
    assert int(weight.max()) ** 2 > float(weight.sum())
    rows = 4000
    batch = model.sample(rows, seed=1).data
    degree = torch.bincount(batch.edge_index[0], minlength=60 * rows).reshape(rows, 60).double()
    p = (weight[:, None] * weight / weight.sum()).clamp(max=1).fill_diagonal_(0)
    error = (p * (1 - p)).sum(1).div(rows).sqrt()
    assert ((degree.mean(0) - p.sum(1)).abs() < 4.5 * error).all()
    # NetworkX's function has the same law.
    theirs = [dict(nx.expected_degree_graph(weight.tolist(), seed=i, selfloops=False).degree()) for i in range(200)]
    mean = np.array([[d[v] for v in range(60)] for d in theirs]).mean(0)
    assert (np.abs(mean - p.sum(1).numpy()) < 4.5 * error.numpy() * (rows / 200) ** 0.5).all()


def test_power_law_expected_degrees():
    model = ChungLu(num_nodes=20_000, mean_degree=8.0, exponent=2.6)
    degree = torch.bincount(model.sample(1, seed=1).data.edge_index[0], minlength=20_000).double()
    # Nodes come in order of their expected degree.
    assert degree[:10].mean() > 50 * degree[-1000:].mean()
    assert float(degree.mean()) == pytest.approx(8, rel=0.03)
