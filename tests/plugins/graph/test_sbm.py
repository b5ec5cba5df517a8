"""Block models: given and estimated densities, sizes drawn or kept, degrees corrected."""

import pytest
import torch

from lightning_synth.plugins.graph.classical import simple_edges
from lightning_synth.plugins.graph.dcsbm import DCSBM
from lightning_synth.plugins.graph.sbm import SBM
from lightning_synth.plugins.graph.sbm_refit import SBMRefit
from lightning_synth.schema import describe

TABLE = [[0.5, 0.02, 0.1], [0.02, 0.3, 0.02], [0.1, 0.02, 0.2]]


def densities(edges, block, blocks):
    """Share of the pairs between blocks that are joined."""
    size = torch.bincount(block, minlength=blocks).double()
    pairs = torch.outer(size, size) - torch.diag(size)
    both = torch.cat([edges, edges.flip(0)], 1)
    count = torch.bincount(block[both[0]] * blocks + block[both[1]], minlength=blocks**2)
    return count.reshape(blocks, blocks) / pairs


@pytest.fixture(scope="module")
def graph():
    return SBM(num_nodes=300, shares=[0.5, 0.3, 0.2], probabilities=TABLE).sample(1, seed=1).items()[0]


def test_estimated_densities_are_the_given_ones(graph):
    model = SBM().fit_on([graph], describe([graph], "graph"))
    block = model.tables["block"]
    size = torch.bincount(block)
    assert (size / 300).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.08)
    found = densities(simple_edges(graph), block, 3)
    assert torch.allclose(found, torch.tensor(TABLE).double(), atol=0.02)
    between = (model.tables["between"] / model.tables["pairs"]).double()
    assert torch.allclose(between, found[[0, 0, 1, 0, 1, 2], [0, 1, 1, 2, 2, 2]], atol=1e-6)


def test_densities_are_recovered_from_samples(graph):
    model = SBM().fit_on([graph], describe([graph], "graph"))
    items = model.sample(6, seed=2).items()
    again = SBM().fit_on(items, describe(items, "graph"))
    assert again.tables["blocks"].tolist() == [3] * 6
    rows = (again.tables["between"] / again.tables["pairs"]).reshape(6, 6)
    first = (model.tables["between"] / model.tables["pairs"]).double()
    assert torch.allclose(rows.double().mean(0), first, atol=0.02)


def test_sizes_of_blocks_vary_in_sbm_and_stay_in_the_refit(graph):
    true = torch.bincount(SBM().fit_on([graph], describe([graph], "graph")).tables["block"])
    spread = []
    for kind in (SBM, SBMRefit):
        items = kind().fit_on([graph], describe([graph], "graph")).sample(8, seed=3).items()
        found = SBM(num_blocks=3).fit_on(items, describe(items, "graph")).tables["block"].reshape(8, 300)
        sizes = torch.stack([torch.bincount(block, minlength=3) for block in found])
        assert torch.allclose(sizes.double().mean(0), true.double(), atol=15)
        spread.append(sizes.double().std(0).max())
    assert spread[0] > 4 and spread[1] == 0


def test_the_refit_draws_edges_within_the_blocks_of_the_graph(graph):
    model = SBMRefit().fit_on([graph], describe([graph], "graph"))
    block = model.tables["block"]
    mean = torch.stack([densities(simple_edges(item), block, 3) for item in model.sample(50, seed=4).items()]).mean(0)
    assert torch.allclose(mean, densities(simple_edges(graph), block, 3), atol=0.005)


def test_dcsbm_keeps_degrees_and_block_densities(graph):
    # Hubs in every block: a tenth of the nodes gets most of the edges.
    draw = torch.Generator().manual_seed(0)
    block = torch.arange(400) // 200
    weight = torch.where(torch.arange(400) % 10 == 0, 6.0, 1.0)
    p = weight[:, None] * weight * torch.where(block[:, None] == block, 0.02, 0.002)
    edges = (torch.rand(400, 400, generator=draw) < p).triu(1).nonzero().T
    graph = type(graph)(edge_index=torch.cat([edges, edges.flip(0)], 1), num_nodes=400)
    model = DCSBM().fit_on([graph], describe([graph], "graph"))
    assert model.tables["blocks"].tolist() == [2]
    batch = model.sample(200, seed=1).data
    degree = torch.bincount(batch.edge_index[0], minlength=80_000).reshape(200, 400).double()
    real = torch.bincount(graph.edge_index[0], minlength=400).double()
    # Loops and the minimum cost a hub a little; nothing is gained.
    assert (degree.mean(0) - real).abs().max() < 0.12 * real.max()
    assert float(degree.mean()) == pytest.approx(float(real.mean()), rel=0.03)
    first = densities(simple_edges(graph), model.tables["block"], 2)
    items = batch.to_data_list()[:50]
    mean = torch.stack([densities(simple_edges(item), model.tables["block"], 2) for item in items]).mean(0)
    assert torch.allclose(mean, first, rtol=0.06)
    # The plain model levels the degrees out.
    plain = SBM(num_blocks=2).fit_on([graph], describe([graph], "graph")).sample(1, seed=1).data
    level = torch.bincount(plain.edge_index[0], minlength=400).double()
    assert level.std() < 0.6 * real.std() < degree.std()
