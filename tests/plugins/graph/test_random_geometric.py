"""Points in a square: the neighbours of a search over all pairs, and the law of distances."""

import math

import networkx as nx
import pytest
import torch

from lightning_synth.plugins.graph.random_geometric import RandomGeometric, near_pairs, radius_of
from lightning_synth.schema import describe


@pytest.mark.parametrize("radius", (0.0, 1e-3, 0.07, 0.34, 0.5, 0.8, 1.5))
def test_neighbours_are_those_of_all_pairs(radius):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 300, generator=draw, dtype=torch.float64)
    row = torch.tensor([0] * 100 + [2] * 200)
    found = near_pairs(x, y, row, torch.tensor([radius, 0.1, radius / 2]))
    limit = torch.where(row == 0, radius, radius / 2)
    distance = ((x[:, None] - x).square() + (y[:, None] - y).square()).sqrt()
    expected = ((distance <= limit) & (row[:, None] == row)).triu(1).nonzero().tolist()
    assert sorted(map(sorted, found.T.tolist())) == expected


@pytest.mark.parametrize("radius", (0.1, 0.3, 0.9))
def test_expected_edges(radius):
    # Two random points of the unit square: pi r^2 - 8 r^3 / 3 + r^4 / 2 for r <= 1.
    p = math.pi * radius**2 - 8 / 3 * radius**3 + radius**4 / 2
    mean = RandomGeometric(num_nodes=60, radius=radius).sample(400, seed=1).data.num_edges / 800
    assert mean == pytest.approx(1770 * p, rel=0.02)
    assert float(radius_of(torch.tensor([p], dtype=torch.float64))) == pytest.approx(radius, rel=1e-4)
    theirs = [nx.random_geometric_graph(60, radius, seed=i).number_of_edges() for i in range(30)]
    assert mean == pytest.approx(sum(theirs) / 30, rel=0.1)


def test_the_radius_is_estimated():
    graphs = RandomGeometric(num_nodes=80, radius=0.25).sample(20, seed=1).items()
    model = RandomGeometric().fit_on(graphs, describe(graphs, "graph"))
    mean = sum(graph.num_edges for graph in graphs) / 20
    assert model.sample(300, seed=2).data.num_edges / 300 == pytest.approx(mean, rel=0.03)
