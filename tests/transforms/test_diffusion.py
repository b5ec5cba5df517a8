"""Diffusion against the closed form, and that it stays sparse and undirected."""

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")
from scipy.linalg import expm
from torch_geometric.data import Data
from torch_geometric.transforms import GDC

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.testing import tiny_node
from lightning_synth.transforms import Diffusion


def transition(graph):
    n = graph.num_nodes
    adjacency = np.eye(n)
    np.add.at(adjacency, tuple(graph.edge_index.numpy()), 1)
    root = 1 / np.sqrt(adjacency.sum(1))
    return root[:, None] * adjacency * root


def dense(graph):
    made = np.zeros((graph.num_nodes,) * 2)
    made[tuple(graph.edge_index.numpy())] = graph.edge_weight.numpy()
    return made


@pytest.mark.parametrize("kind", ["ppr", "heat"])
def test_the_closed_form(kind):
    graph = tiny_node(60)
    step = transition(graph)
    exact = 0.2 * np.linalg.inv(np.eye(60) - 0.8 * step) if kind == "ppr" else expm(-3.0 * (np.eye(60) - step))
    options = {"alpha": 0.2, "t": 3.0, "top_k": None, "normalize": None, "self_loops": True}
    made = dense(Diffusion(kind, tolerance=1e-8, **options)(graph))
    assert np.abs(made - exact).max() < 1e-4
    coarse = dense(Diffusion(kind, tolerance=1e-3, **options)(graph))
    assert 0 < np.abs(coarse - exact).max() < 0.02


def test_the_same_as_gdc_of_pyg():
    graph = tiny_node(60)
    theirs = GDC(
        self_loop_weight=1,
        normalization_in="sym",
        normalization_out=None,
        diffusion_kwargs={"method": "ppr", "alpha": 0.15},
        sparsification_kwargs={"method": "threshold", "eps": 0.01},
        exact=True,
    )(Data(edge_index=graph.edge_index, num_nodes=60))
    ours = Diffusion(top_k=None, eps=0.01, tolerance=1e-9, normalize=None, self_loops=True)(graph)
    made, wanted = dense(ours), np.zeros((60, 60))
    wanted[tuple(theirs.edge_index.numpy())] = theirs.edge_attr.numpy()
    differ = (made > 0) != (wanted > 0)
    # An entry may lie just at the threshold.
    assert np.abs(made - wanted)[~differ].max() < 1e-4 and (np.maximum(made, wanted)[differ] < 0.0101).all()


def test_largest_entries_are_kept_and_normalised():
    graph = tiny_node(60)
    made = Diffusion(top_k=5)(graph)
    weight = dense(made)
    assert np.allclose(weight, weight.T, atol=1e-6) and not np.diag(weight).any()
    assert (np.count_nonzero(weight, 1) >= 5).all() and np.count_nonzero(weight) <= 2 * 5 * 60
    assert np.abs(np.linalg.eigvalsh(weight)).max() < 1 + 1e-5


def test_directed_graphs_follow_their_edges():
    chain = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
    weight = dense(Diffusion()(chain))
    assert np.allclose(weight.sum(1), [1, 1, 0]) and (weight[0, 1:] > 0).all() and not np.tril(weight).any()


def test_weights_are_used_and_isolated_nodes_stay_alone():
    ends = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    graph = Data(edge_index=ends, edge_weight=torch.tensor([9.0, 9.0, 1.0, 1.0]), num_nodes=4)
    weight = dense(Diffusion(normalize=None)(graph))
    assert weight[1, 0] > weight[1, 2] and not weight[3].any()
    for bad in (-1.0, float("nan")):
        with pytest.raises(DataError, match="edge weights"):
            Diffusion()(Data(edge_index=ends, edge_weight=torch.full((4,), bad), num_nodes=3))


@pytest.mark.parametrize("options", [{"kind": "katz"}, {"alpha": 0.0}, {"t": -1.0}, {"top_k": 0}, {"normalize": "col"}])
def test_impossible_options(options):
    with pytest.raises(ConfigError):
        Diffusion(**options)
