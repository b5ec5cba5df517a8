"""What graph generators share: ragged draws that do not depend on the batch, and batches from flat edges."""

import numpy as np
import pytest
import torch

from lightning_synth.graphs import graph_batch, ragged_uniform, ragged_words
from lightning_synth.requests import KeyedRNG

pytest.importorskip("torch_geometric")


def test_a_row_of_a_ragged_draw_depends_on_its_own_seed_only():
    seeds = torch.tensor([3, 4, 5])
    together = ragged_words(KeyedRNG(seeds), torch.tensor([40, 0, 1000])).split([40, 0, 1000])
    for i, n in enumerate((40, 0, 1000)):
        assert torch.equal(ragged_words(KeyedRNG(seeds[i : i + 1]), torch.tensor([n])), together[i])
    # Fewer numbers are the first of more.
    assert torch.equal(ragged_words(KeyedRNG(seeds[2:]), torch.tensor([7])), together[2][:7])


def test_repeated_ragged_draws_differ():
    rng = KeyedRNG(torch.tensor([1]))
    first, second = (ragged_words(rng, torch.tensor([50])) for _ in range(2))
    assert not (first == second).any()


def test_ragged_numbers_are_uniform_and_independent():
    u = ragged_uniform(KeyedRNG(torch.arange(50)), torch.arange(50) * 40).double().numpy()
    # Kolmogorov-Smirnov at 1e-4, and no correlation between neighbours.
    distance = np.abs(np.sort(u) - np.arange(len(u)) / len(u)).max()
    assert distance < 2.23 / len(u) ** 0.5
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / len(u) ** 0.5
    assert 0 <= u.min() and u.max() < 1


def test_batches_hold_simple_undirected_graphs():
    sizes = torch.tensor([3, 1, 4])
    edges = torch.tensor([[2, 0, 1, 1, 3, 3], [0, 2, 1, 0, 0, 0]])
    batch = graph_batch(sizes, edges, torch.tensor([0, 0, 0, 2, 2, 2]), edge_attr=torch.tensor([7, 8, 9, 5, 6, 4]))
    one, two, three = batch.to_data_list()
    assert one.edge_index.tolist() == [[0, 2], [2, 0]] and one.edge_attr.tolist() == [7, 7]
    assert two.num_nodes == 1 and two.edge_index.shape == (2, 0)
    assert three.edge_index.tolist() == [[0, 0, 1, 3], [1, 3, 0, 0]] and three.edge_attr.tolist() == [5, 6, 5, 6]
