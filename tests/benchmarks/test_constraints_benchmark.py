"""Constraints on 64 nodes: what they add to the time of discrete flow, on proposals like those of a trained network."""

from __future__ import annotations

import time

import networkx as nx
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("torch_geometric")

from scipy.spatial import Delaunay
from torch_geometric.utils import to_networkx

from lightning_synth.constraints import Bipartite, Connected, Constraint, MaxDegree, Planar, Tree
from lightning_synth.plugins.graph.defog import DeFoG
from lightning_synth.testing import tiny_schema

NODES, GRAPHS = 64, 8


class NoTriangle(Constraint):
    """A constraint of one's own."""

    def allows(self, adjacency, u, v):
        return not (adjacency[u] & adjacency[v]).any()


class Knowing(DeFoG):
    """Spends the time of its network, but predicts a given graph: a few edges of it are missed, a few are wrong."""

    target: torch.Tensor

    def denoise(self, x, e, t, pairs, condition, belief=None):
        nodes, edges = super().denoise(x, e, t, pairs, condition, belief)
        target = pairs.at_upper(self.target.expand(len(pairs.mask), -1, -1))
        # Of 178 edges 3 are missing and of 1,838 other pairs 5 are joined in each prediction.
        return nodes, 0 * edges + torch.where(target, 4.0, -6.0)[:, None] * F.one_hot(torch.tensor(1), 2)


def knowing(kind):
    if kind == "tree":
        network = nx.random_labeled_tree(NODES, seed=0)
    else:
        points = torch.rand(NODES, 2, generator=torch.Generator().manual_seed(0))
        network = nx.Graph()
        for triangle in Delaunay(points.numpy()).simplices:
            nx.add_cycle(network, triangle.tolist())
    schema = {**tiny_schema("graph"), "max_nodes": NODES}
    model = Knowing(schema=schema, num_layers=4, d_node=64, d_edge=32, d_graph=32, heads=4)
    model.target = torch.from_numpy(nx.to_numpy_array(network, nodelist=range(NODES)) > 0)
    model.is_fitted = True
    return model


def sampled(model, **options):
    start = time.process_time()
    samples = model.sample(GRAPHS, seed=0, num_nodes=NODES, **options)
    seconds = time.process_time() - start
    return seconds, [to_networkx(item, to_undirected=True) for item in samples.items()]


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("kind", "constraint", "check"),
    [
        ("planar", Planar() & Connected(), lambda g: nx.is_connected(g) and nx.check_planarity(g)[0]),
        ("tree", Tree(), nx.is_tree),
        ("tree", Bipartite(), nx.is_bipartite),
        ("planar", MaxDegree(6) & Connected(), lambda g: nx.is_connected(g) and max(dict(g.degree).values()) <= 6),
        ("tree", NoTriangle(), lambda g: not any(nx.triangles(g).values())),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
def test_a_constraint_takes_less_time_than_the_network(kind, constraint, check):
    model = knowing(kind)
    sampled(model, num_steps=2, constraint=constraint)  # imports
    free, without = sampled(model)
    held, graphs = sampled(model, constraint=constraint)
    share = sum(map(check, without)) / GRAPHS
    print(f"\n{constraint!r}: {held / GRAPHS:.3f} s a sample against {free / GRAPHS:.3f} s, of which {share:.0%} valid")
    assert all(map(check, graphs)) and share < 1
    assert held < 2 * free
