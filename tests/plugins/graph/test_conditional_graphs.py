"""A requested density is met, in a range that no training graph has; for every generator that can be asked."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch_geometric.data import Data

import lightning_synth as ls
from lightning_synth.datamodules import GraphDataModule
from lightning_synth.testing.case import quiet, quiet_trainer

SETTINGS = {
    "defog": {"num_layers": 2, "d_node": 32, "d_edge": 16, "d_graph": 32, "heads": 4, "lr": 3e-3, "ema_decay": 0.98},
    "sent": {"d_model": 64, "depth": 2, "heads": 4, "lr": 3e-3, "ema_decay": 0.98},
}


def graphs_of_density(values, n=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    items = []
    for value in values:
        upper = (torch.rand(n, n, generator=draw) < value).triu(1)
        items.append(Data(edge_index=(upper | upper.T).nonzero().T.contiguous(), num_nodes=n))
    return items


def density(graph):
    return graph.edge_index.shape[1] / (graph.num_nodes * (graph.num_nodes - 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_density_follows_the_request_in_a_held_out_range(name):
    values = np.linspace(0.1, 0.9, 600)
    items = graphs_of_density(values[(values < 0.4) | (values > 0.6)])
    data = GraphDataModule(items, split=(0.9, 0.1, 0.0), conditions={"density": density}, batch_size=64)
    model = ls.get_generator(name)(**SETTINGS[name])
    with quiet():
        quiet_trainer(max_steps=500).fit(model, data)
    asked = np.linspace(0.4, 0.6, 40)
    found = [density(item) for item in model.sample(40, condition={"density": asked.tolist()}, seed=0).items()]
    assert spearmanr(asked, found).statistic > 0.5  # single graphs of 66 pairs scatter by .06 about their density
    repeated = np.repeat(np.linspace(0.4, 0.6, 6), 30)
    samples = model.sample(len(repeated), condition={"density": repeated.tolist()}, seed=1).items()
    mean = np.array([density(item) for item in samples]).reshape(6, 30).mean(1)
    assert spearmanr(np.linspace(0.4, 0.6, 6), mean).statistic >= 0.9
    assert np.abs(mean - np.linspace(0.4, 0.6, 6)).max() < 0.12
