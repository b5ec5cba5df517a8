"""A small citation-like graph, and fits of a few steps."""

from __future__ import annotations

import pytest
import torch

from lightning_synth.datamodules.base import ItemsDataModule
from lightning_synth.registry import get_generator
from lightning_synth.testing import tiny_node
from lightning_synth.testing.case import quiet, quiet_trainer

pytest.importorskip("torch_geometric")


@pytest.fixture
def graph():
    """Sixty nodes; class 2 has two training nodes, the others about ten; some nodes are in no split."""
    data = tiny_node(60)
    rare = (data.train_mask & (data.y == 2)).nonzero()[:, 0]
    data.train_mask[rare[2:]] = False
    return data


@pytest.fixture
def fit():
    """Fit a generator to one graph."""

    def fitted(name, data, steps=15, **hparams):
        model = get_generator(name)(**hparams)
        source = ItemsDataModule([data], [data], [data], domain="node", batch_size=1)
        with quiet():
            quiet_trainer(max_steps=steps).fit(model, source.train_dataloader())
        return model.eval()

    return fitted


@pytest.fixture
def permuted():
    """Renumber the nodes of a graph; returns it and the new number of every old node."""

    def move(data, seed=0):
        order = torch.randperm(int(data.num_nodes), generator=torch.Generator().manual_seed(seed))
        out = data.clone()
        for key in ("x", "y", "train_mask", "val_mask", "test_mask"):
            out[key] = data[key][order]
        place = order.argsort()
        out.edge_index = place[data.edge_index]
        return out, place

    return move
