"""GIN: learns what it should, ignores node order, and honours the weights of a mixed batch."""

import pytest
import torch
from torch_geometric.data import Batch

from lightning_synth.datamodules import MixedDataModule
from lightning_synth.downstream.gin import GIN
from lightning_synth.errors import ConfigError
from lightning_synth.testing import tiny_datamodule, tiny_graphs, tiny_schema
from lightning_synth.testing.case import quiet, quiet_trainer


def test_it_learns_tiny_graphs():
    data, model = tiny_datamodule("graph", n=48), GIN(lr=5e-3, hidden=16, num_layers=2)
    with quiet():
        quiet_trainer(max_epochs=25).fit(model, data)
    truth = torch.cat([item.y for item in data.train_items()]).numpy()
    assert (model.predict(data.train_items()) == truth).mean() > 0.8


def test_node_order_does_not_matter():
    graph = tiny_graphs(1)[0]
    order = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(0))
    moved = graph.clone()
    moved.edge_index = order[graph.edge_index]
    model = GIN(schema=tiny_schema("graph")).eval()
    with torch.no_grad():
        scores = model(Batch.from_data_list([graph, moved, *tiny_graphs(3)]))
    assert torch.allclose(scores[0], scores[1], atol=1e-5)


def test_weights_of_mixed_batches_count():
    data = tiny_datamodule("graph")
    mixed = MixedDataModule(data, pool=tiny_graphs(8, seed=5), ratio=0.5, weight=0.0, batch_size=8)
    batch = next(iter(mixed.train_dataloader()))
    model = GIN(schema=data.schema)
    expected = torch.nn.functional.cross_entropy(model(batch), batch.y, reduction="none")[~batch.is_synthetic].mean()
    assert torch.allclose(model.training_step(batch), expected, atol=1e-6)


def test_other_data_are_refused():
    with pytest.raises(ConfigError, match="gin classifies labelled items of domain 'graph'"):
        GIN(schema=tiny_schema("timeseries"))
    with pytest.raises(ConfigError, match="0 classes"):
        GIN(schema=tiny_schema("graph", labels=False))
