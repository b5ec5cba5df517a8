"""Pairing half-edges: degrees before erasing are exact, all pairings equally likely."""

import pytest
import torch

from lightning_synth.plugins.graph.configuration_model import ConfigurationModel, paired
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_graphs


def test_degrees_are_exact_before_erasing():
    degree = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(0))
    row = torch.arange(4).repeat_interleave(50)
    odd = torch.zeros(4, dtype=torch.int64).index_add(0, row, degree) % 2
    ends = paired(KeyedRNG(torch.arange(4)), row, degree)
    left = degree - torch.bincount(ends.reshape(-1), minlength=200)
    # One half-edge is left over in rows with an odd number of them.
    assert (left >= 0).all() and torch.equal(torch.zeros(4, dtype=torch.int64).index_add(0, row, left), odd)
    assert (row[ends[0]] == row[ends[1]]).all()


def test_all_pairings_are_equally_likely():
    ends = paired(KeyedRNG(torch.arange(9000)), torch.arange(9000).repeat_interleave(4), torch.ones(36000).long())
    partner = torch.empty(36000, dtype=torch.int64)
    partner[ends[0]], partner[ends[1]] = ends[1], ends[0]
    counts = torch.bincount(partner[::4] % 4, minlength=4)
    assert counts[0] == 0 and ((counts[1:] - 3000).abs() < 5 * 2000**0.5).all()


def test_sparse_graphs_lose_few_edges_and_no_node_gains_one():
    graphs = [graph for graph in tiny_graphs(1, num_classes=0)]
    ring = torch.stack([torch.arange(2000), (torch.arange(2000) + 1) % 2000])
    graphs[0].edge_index, graphs[0].num_nodes = torch.cat([ring, ring.flip(0)], 1), 2000
    batch = ConfigurationModel().fit_on(graphs, describe(graphs, "graph")).sample(10, seed=1).data
    degree = torch.bincount(batch.edge_index[0], minlength=20_000)
    assert int(degree.max()) == 2
    # For degrees of 2, half a loop and a quarter of a double edge are expected a graph (Bollobas 1980).
    assert 0 <= 10 * 2000 - batch.num_edges // 2 <= 25


def test_power_law_degrees():
    model = ConfigurationModel(num_nodes=50_000, mean_degree=6.0, exponent=3.0)
    degree = torch.bincount(model.sample(1, seed=1).data.edge_index[0], minlength=50_000).double()
    assert float(degree.mean()) == pytest.approx(6, rel=0.01)
    tail = degree[degree >= 12].sort(descending=True)[0]
    # The discrete maximum likelihood estimate of Clauset, Shalizi & Newman 2009, eq. 3.7.
    assert 1 + 1 / float((tail / 11.5).log().mean()) == pytest.approx(3, abs=0.12)
