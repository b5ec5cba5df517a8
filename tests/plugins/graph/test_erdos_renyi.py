"""G(n, p): numbers of edges are binomial."""

import pytest
import torch

from lightning_synth.plugins.graph.erdos_renyi import ErdosRenyi
from lightning_synth.schema import describe


def edge_counts(batch):
    return torch.bincount(batch.batch[batch.edge_index[0]], minlength=batch.num_graphs) // 2


@pytest.mark.parametrize("p", (0.02, 0.5, 0.9))
def test_the_number_of_edges_is_binomial(p):
    count = edge_counts(ErdosRenyi(num_nodes=40, p=p).sample(1000, seed=1).data).double()
    mean, variance = 780 * p, 780 * p * (1 - p)
    assert float(count.mean()) == pytest.approx(mean, abs=4 * (variance / 1000) ** 0.5)
    assert float(count.var()) == pytest.approx(variance, rel=0.2)


def test_no_edges_and_all_edges():
    assert ErdosRenyi(num_nodes=20, p=0.0).sample(2).data.num_edges == 0
    assert ErdosRenyi(num_nodes=20, p=1.0).sample(2).data.num_edges == 2 * 380


def test_density_is_learned_and_kept_in_sparse_large_graphs():
    graphs = ErdosRenyi(num_nodes=50, p=0.2).sample(20, seed=2).items()
    model = ErdosRenyi().fit_on(graphs, describe(graphs, "graph"))
    count = edge_counts(model.sample(400, seed=3).data).double()
    assert float(count.mean()) == pytest.approx(1225 * 0.2, rel=0.03)
    # Training graphs differ: the law of sizes is a mixture of binomials.
    assert count.var() > 1225 * 0.2 * 0.8
