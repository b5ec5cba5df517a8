"""Edge perturbation moves the share of edges that it says, and nothing else."""

import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.graph.edge_perturbation import EdgePerturbation
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_graphs, tiny_molecules, tiny_schema


def edges_of(graph):
    return set(map(tuple, graph.edge_index.T.tolist()))


def test_no_share_copies():
    items = tiny_graphs(8)
    model = EdgePerturbation(share=0.0).fit_on(items, tiny_schema("graph"))
    real = [(item.num_nodes, edges_of(item)) for item in items]
    assert all((graph.num_nodes, edges_of(graph)) in real for graph in model.sample(20, seed=0).items())


def test_the_share_is_moved():
    large = tiny_graphs(1)
    ring = torch.stack([torch.arange(400), (torch.arange(400) + 1) % 400])
    large[0].edge_index, large[0].num_nodes = torch.cat([ring, ring.flip(0)], 1), 400
    model = EdgePerturbation(share=0.3).fit_on(large, describe(large, "graph"))
    graph = model.sample(1, seed=0).items()[0]
    kept = len(edges_of(graph) & edges_of(large[0])) / 800
    assert kept == pytest.approx(0.7, abs=0.06)
    assert graph.edge_index.shape[1] == pytest.approx(800, abs=12) and graph.is_undirected()


def test_types_and_labels_stay():
    items = [item for item in tiny_molecules(8)]
    for i, item in enumerate(items):
        item.y, item.smiles = torch.tensor([i % 2]), None
    items = [type(item)(x=item.x, edge_index=item.edge_index, edge_attr=item.edge_attr, y=item.y) for item in items]
    model = EdgePerturbation(share=0.5).fit_on(items, describe(items, "graph"))
    for graph in model.sample(10, condition={"label": 1}, seed=1).items():
        assert int(graph.y) == 1 and len(graph.edge_attr) == graph.edge_index.shape[1]
        assert graph.x.tolist() in [item.x.tolist() for item in items[1::2]]
        mirrored = {(u, v): t for (u, v), t in zip(graph.edge_index.T.tolist(), graph.edge_attr.tolist(), strict=True)}
        assert all(mirrored[v, u] == kind for (u, v), kind in mirrored.items())


def test_bad_share():
    with pytest.raises(ConfigError, match="share"):
        EdgePerturbation(share=1.5)
