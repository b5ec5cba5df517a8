"""R-MAT: shares of quadrants at every level, numbers of edges, and what is estimated."""

import itertools

import pytest
import torch

from lightning_synth.plugins.graph.rmat import RMAT, drop_edges, fit_quadrants, moments
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe

SHARES = [0.5, 0.1, 0.3, 0.1]


def test_every_level_has_the_shares_of_the_quadrants():
    count = torch.tensor([50_000, 40_000])
    shares = torch.tensor([SHARES, [0.25] * 4], dtype=torch.float64)
    ends, row = drop_edges(KeyedRNG(torch.tensor([1, 2])), torch.tensor([1024, 64]), count, shares)
    for i, levels in enumerate((10, 6)):
        mine = ends[:, row == i]
        for level in range(levels):
            down, right = mine >> level & 1
            found = torch.bincount(2 * down + right, minlength=4) / count[i]
            assert torch.allclose(found.double(), shares[i], atol=0.012)
        # Levels are independent of each other.
        joint = torch.corrcoef((mine[0] >> torch.arange(levels)[:, None] & 1).double())
        assert (joint - torch.eye(levels)).abs().max() < 0.03


def test_nodes_are_merged_evenly_where_n_is_no_power_of_two():
    shares = torch.full((1, 4), 0.25, dtype=torch.float64)
    ends, _ = drop_edges(KeyedRNG(torch.tensor([1])), torch.tensor([96]), torch.tensor([96_000]), shares)
    count = torch.bincount(ends.reshape(-1), minlength=96) / 2000
    # 128 numbers on 96 nodes: every third node gets two of them.
    assert torch.allclose(count.reshape(-1, 3).mean(0).sort()[0], torch.tensor([0.75, 0.75, 1.5]), atol=0.02)


def test_all_edges_are_different_and_as_many_as_wanted():
    model = RMAT(num_nodes=1000, mean_degree=20.0, quadrants=[0.57, 0.19, 0.19, 0.05])
    assert [graph.num_edges for graph in model.sample(3, seed=1).items()] == [20_000] * 3


def test_a_full_corner_ends_the_search():
    items = RMAT(num_nodes=16, mean_degree=14.0, quadrants=[0.97, 0.01, 0.01, 0.01]).sample(3).items()
    assert all(0 < graph.num_edges < 16 * 14 for graph in items)


def test_moments_are_those_of_a_kronecker_graph():
    a, b, d = 0.9, 0.5, 0.2
    p = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(3):
        p = torch.kron(p, torch.tensor([[a, b], [b, d]], dtype=torch.float64))
    nodes = range(8)
    edges = sum(p[i, j] for i, j in itertools.combinations(nodes, 2))
    pairs = sum(p[i, j] * p[i, k] for i in nodes for j, k in itertools.combinations(set(nodes) - {i}, 2))
    closed = sum(p[i, j] * p[j, k] * p[i, k] for i, j, k in itertools.combinations(nodes, 3))
    found = moments(*(torch.tensor(value, dtype=torch.float64) for value in (3.0, a, b, d)))
    assert torch.stack(found).tolist() == pytest.approx([float(edges), float(pairs), float(closed)])


def test_quadrants_are_recovered_from_their_moments():
    levels = torch.tensor([10.0, 14.0, 6.0], dtype=torch.float64)
    initiator = torch.tensor([[0.95, 0.5, 0.2], [0.9, 0.6, 0.3], [0.5, 0.5, 0.5]], dtype=torch.float64)
    found = fit_quadrants(levels, torch.stack(moments(levels, *initiator.T), 1))
    a, b, d = (initiator / (initiator.sum(1) + initiator[:, 1])[:, None]).T
    assert torch.allclose(found, torch.stack([a, b, b, d], 1), atol=2e-3)


def test_quadrants_are_recovered_from_a_graph():
    # Few repeats: the moments are those of a Kronecker graph, which has none.
    shares = [0.4, 0.22, 0.22, 0.16]
    graph = RMAT(num_nodes=1 << 14, mean_degree=6.0, quadrants=shares).sample(1, seed=1).items()[0]
    found = RMAT().fit_on([graph], describe([graph], "graph")).tables["quadrants"][0]
    assert torch.allclose(found, torch.tensor(shares).double(), atol=0.03)


def test_degrees_are_nearly_as_uneven_as_those_of_a_graph_of_hubs():
    graph = RMAT(num_nodes=4096, mean_degree=12.0, quadrants=[0.57, 0.19, 0.19, 0.05]).sample(1, seed=1).items()[0]
    again = RMAT().fit_on([graph], describe([graph], "graph")).sample(1, seed=2).items()[0]
    real, ours = (torch.bincount(item.edge_index[0], minlength=4096).double() for item in (graph, again))
    assert float(ours.std()) == pytest.approx(float(real.std()), rel=0.15)
    assert float((ours == 0).double().mean()) == pytest.approx(float((real == 0).double().mean()), abs=0.1)
