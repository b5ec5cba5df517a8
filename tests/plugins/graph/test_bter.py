"""BTER: affinity blocks, degrees, and the clustering of every degree."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.utils import from_networkx, to_networkx

from lightning_synth.plugins.graph.bter import BTER, affinity_blocks
from lightning_synth.plugins.graph.configuration_model import ConfigurationModel
from lightning_synth.schema import describe


def sequential_blocks(row, degree):
    """The rule as it is told: a block goes on for d + 1 nodes, or until the graph ends."""
    out, block, place = [], -1, 0
    while place < len(row):
        block += 1
        size = min(degree[place] + 1, sum(r == row[place] for r in row[place:]))
        out += [block] * size
        place += size
    return out


def test_affinity_blocks_are_those_of_the_sequential_rule():
    draw = np.random.default_rng(0)
    row = np.repeat(np.arange(6), [1, 40, 7, 200, 3, 60])
    degree = np.concatenate([np.sort(2 + draw.geometric(0.2, (row == i).sum())) for i in range(6)])
    found = affinity_blocks(torch.from_numpy(row), torch.from_numpy(degree))
    assert found.tolist() == sequential_blocks(row.tolist(), degree.tolist())
    assert affinity_blocks(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)).tolist() == []


@pytest.fixture(scope="module")
def graph():
    """Power-law degrees and much clustering."""
    return from_networkx(nx.powerlaw_cluster_graph(1500, 3, 0.7, seed=1))


def clustering_by_degree(graph):
    g = to_networkx(graph, to_undirected=True)
    local, degree = nx.clustering(g), dict(g.degree())
    bins = [(3, 3), (4, 5), (6, 9), (10, 20)]
    return np.array([np.mean([local[v] for v in g if low <= degree[v] <= high]) for low, high in bins])


def test_clustering_by_degree(graph):
    schema = describe([graph], "graph")
    real = clustering_by_degree(graph)
    ours, flat = (
        np.mean([clustering_by_degree(item) for item in kind().fit_on([graph], schema).sample(3, seed=1).items()], 0)
        for kind in (BTER, ConfigurationModel)
    )
    # The few nodes of high degree share blocks with some of lower degree, whose clustering is higher.
    assert ours[:3] == pytest.approx(real[:3], rel=0.25) and ours[3] == pytest.approx(real[3], rel=0.5)
    assert (flat < 0.3 * real).all()


def test_degrees(graph):
    batch = BTER().fit_on([graph], describe([graph], "graph")).sample(20, seed=2).data
    degree = torch.bincount(batch.edge_index[0], minlength=30_000).reshape(20, 1500).double().mean(0)
    real = torch.bincount(graph.edge_index[0]).double()
    assert float(degree.mean()) == pytest.approx(float(real.mean()), rel=0.03)
    for low, high in ((3, 3), (4, 6), (7, 15), (16, 100)):
        chosen = (real >= low) & (real <= high)
        assert float(degree[chosen].mean()) == pytest.approx(float(real[chosen].mean()), rel=0.12)
