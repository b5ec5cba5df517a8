"""Blocks are found where they are, and only there."""

import pytest
import torch

from lightning_synth.plugins.graph.blocks import cells_of, find_blocks
from lightning_synth.plugins.graph.classical import simple_edges
from lightning_synth.plugins.graph.erdos_renyi import ErdosRenyi
from lightning_synth.plugins.graph.sbm import SBM


def agree(found, true):
    """Whether two partitions are the same up to names."""
    pairs = torch.unique(torch.stack([found, true]), dim=1).shape[1]
    return pairs == len(found.unique()) == len(true.unique())


def planted(sizes, inside, outside, seed):
    """A graph whose first nodes are the first block, and so on."""
    true = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    p = torch.where(true[:, None] == true, inside, outside)
    draw = torch.rand(p.shape, generator=torch.Generator().manual_seed(seed))
    return (draw < p).triu(1).nonzero().T, true


@pytest.mark.parametrize("degree_corrected", (False, True))
def test_planted_blocks_are_found(degree_corrected):
    for seed, sizes in enumerate(([30, 25], [40, 20, 30], [25, 25, 30, 35, 20])):
        edges, true = planted(sizes, 0.35, 0.01, seed)
        found = find_blocks(edges, len(true), num_blocks=None, max_blocks=10, degree_corrected=degree_corrected)
        assert agree(found, true)
        assert torch.bincount(found).tolist() == sorted(sizes, reverse=True)


def test_a_random_graph_is_one_block():
    for graph in ErdosRenyi(num_nodes=80, p=0.15).sample(5, seed=1).items():
        found = find_blocks(simple_edges(graph), 80, num_blocks=None, max_blocks=8, degree_corrected=False)
        assert int(found.max()) == 0


def test_bipartite_blocks_are_found():
    model = SBM(num_nodes=80, shares=[0.5, 0.5], probabilities=[[0.02, 0.4], [0.4, 0.02]])
    graph = model.sample(1, seed=3).items()[0]
    found = find_blocks(simple_edges(graph), 80, num_blocks=2, max_blocks=8, degree_corrected=False)
    low, high = simple_edges(graph)
    assert (found[low] != found[high]).double().mean() > 0.9


def test_hubs_are_blocks_only_without_degree_correction():
    # A star of stars: degrees differ by much, and nothing else does.
    draw = torch.Generator().manual_seed(0)
    weight = torch.where(torch.arange(200) < 20, 8.0, 1.0)
    p = (weight[:, None] * weight * 0.008).clamp(max=1)
    edges = (torch.rand(200, 200, generator=draw) < p).triu(1).nonzero().T
    plain, corrected = (
        find_blocks(edges, 200, num_blocks=None, max_blocks=6, degree_corrected=value) for value in (False, True)
    )
    assert int(plain.max()) >= 1 and int(corrected.max()) == 0


def test_more_blocks_than_nodes():
    edges = torch.tensor([[0, 1], [1, 2]])
    assert len(find_blocks(edges, 3, num_blocks=None, max_blocks=50, degree_corrected=False)) == 3
    assert find_blocks(edges[:, :0], 1, num_blocks=3, max_blocks=3, degree_corrected=True).tolist() == [0]


def test_large_graphs_without_structure_are_one_block():
    ring = torch.stack([torch.arange(400), (torch.arange(400) + 1) % 400])
    for edges in (ring, ring[:, ::2], ring[:, :1], ring[:, :0]):
        assert int(find_blocks(edges, 400, num_blocks=None, max_blocks=6, degree_corrected=True).max()) == 0


def test_blocks_of_a_large_graph_are_found():
    edges, true = planted([300, 250, 200], 0.05, 0.004, seed=1)
    assert agree(find_blocks(edges, 750, num_blocks=None, max_blocks=8, degree_corrected=False), true)


def test_cells_are_the_pairs_of_blocks():
    row, rank, first, second = cells_of(torch.tensor([1, 3]))
    assert row.tolist() == [0] + [1] * 6 and rank.tolist() == [0, 0, 1, 2, 3, 4, 5]
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)]
