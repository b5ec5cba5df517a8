"""dK rewiring: what is kept is kept exactly, and the rest is uniform."""

import networkx as nx
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import from_networkx

from lightning_synth.plugins.graph.dk_rewiring import DKRewiring
from lightning_synth.schema import describe


def degrees(graph):
    return torch.bincount(graph.edge_index[0], minlength=graph.num_nodes)


def joint(graph):
    """How many edges join each pair of degrees."""
    ends = degrees(graph)[graph.edge_index]
    pairs, count = torch.unique(ends, dim=1, return_counts=True)
    return {tuple(pair): number for pair, number in zip(pairs.T.tolist(), count.tolist(), strict=True)}


@pytest.fixture(scope="module")
def graph():
    return from_networkx(nx.powerlaw_cluster_graph(300, 3, 0.5, seed=1))


@pytest.mark.parametrize("d", (1, 2))
def test_degrees_of_every_node_are_kept_and_edges_are_not(graph, d):
    model = DKRewiring(d=d).fit_on([graph], describe([graph], "graph"))
    before = set(map(tuple, graph.edge_index.T.tolist()))
    for item in model.sample(3, seed=1).items():
        assert torch.equal(degrees(item), degrees(graph))
        assert len(before & set(map(tuple, item.edge_index.T.tolist()))) < 0.25 * len(before)
        assert (joint(item) == joint(graph)) == (d == 2)


def test_no_swaps_copy(graph):
    model = DKRewiring(swaps=0.0).fit_on([graph], describe([graph], "graph"))
    copy = model.sample(1).items()[0]
    assert set(map(tuple, copy.edge_index.T.tolist())) == set(map(tuple, graph.edge_index.T.tolist()))


def test_graphs_of_equal_degrees_are_equally_likely():
    # 2-regular graphs on six labelled nodes: 60 hexagons and 10 pairs of triangles.
    ring = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6])
    graph = Data(edge_index=torch.cat([ring, ring.flip(0)], 1), num_nodes=6)
    model = DKRewiring(d=1).fit_on([graph], describe([graph], "graph"))
    rows = 3500
    batch = model.sample(rows, seed=1).data
    dense = torch.zeros(rows, 6, 6, dtype=torch.int64)
    row, col = batch.edge_index
    dense[batch.batch[row], row % 6, col % 6] = 1
    code = (dense.reshape(rows, 36) << torch.arange(36)).sum(1)
    counts = code.unique(return_counts=True)[1]
    # Chi-square with 69 degrees of freedom stays below 124 with probability 0.9999.
    assert len(counts) == 70 and float(((counts - 50) ** 2 / 50).sum()) < 124


def test_nodes_keep_their_features(graph):
    for x in (torch.arange(300) % 5, torch.randn(300, 2, generator=torch.Generator().manual_seed(0))):
        item = Data(edge_index=graph.edge_index, x=x, num_nodes=300)
        model = DKRewiring().fit_on([item], describe([item], "graph"))
        assert torch.equal(model.sample(1).items()[0].x, x)
