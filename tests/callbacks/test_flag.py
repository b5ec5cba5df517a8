"""FLAG: the noise goes up the loss, gradients of all passes count, and the data come back unharmed."""

from __future__ import annotations

import pytest
import torch
from lightning import LightningModule

from lightning_synth.callbacks import FLAG
from lightning_synth.downstream import GCN
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.requests import KeyedRNG, mix_seed
from lightning_synth.testing import tiny_datamodule, tiny_node
from lightning_synth.testing.case import quiet_trainer

pytest.importorskip("torch_geometric")


class Linear(LightningModule):
    """Loss w . mean(x): its gradients are known."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5, -0.25]))
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        return (batch.x @ self.w).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("steps", [1, 3])
def test_one_step_by_hand(steps: int) -> None:
    data, model = tiny_datamodule("node"), Linear()
    x, w = data.train_items()[0].x.clone(), model.w.detach().clone()
    quiet_trainer(FLAG(step_size=0.1, steps=steps, seed=5), max_steps=1).fit(model, data.train_dataloader())
    noise = (2 * KeyedRNG(mix_seed(5, 0, 0)).uniform(x.shape) - 1) * 0.1
    passes = [(x + noise + 0.1 * t * w.sign()).mean(0) for t in range(steps)]
    torch.testing.assert_close(model.w.detach(), w - sum(passes) / steps)


def test_the_graph_of_the_loader_is_left_as_it_was() -> None:
    data = tiny_datamodule("node")
    before = data.train_items()[0].x.clone()
    quiet_trainer(FLAG(0.1), max_steps=3).fit(GCN(schema=data.schema, hidden=8), data.train_dataloader())
    assert torch.equal(data.train_items()[0].x, before)


def test_an_exception_in_the_step_leaves_it_as_it_was() -> None:
    data, model = tiny_datamodule("node"), Linear()
    before = data.train_items()[0].x.clone()
    model.training_step = lambda batch, batch_idx: (_ for _ in ()).throw(RuntimeError("no"))
    with pytest.raises(RuntimeError, match="no"):
        quiet_trainer(FLAG(0.1, steps=1), max_steps=1).fit(model, data.train_dataloader())
    assert torch.equal(data.train_items()[0].x, before)


def test_nodes_outside_the_training_mask_may_move_further() -> None:
    graph = tiny_node()
    sizes = FLAG(0.1, unlabelled=3.0)._sizes(graph, graph.x)[:, 0]
    assert torch.equal(sizes, torch.where(graph.train_mask, 0.1, 0.3))


def test_training_with_it_is_repeatable() -> None:
    weights = []
    for _ in range(2):
        model, data = GCN(hidden=8), tiny_datamodule("node")
        quiet_trainer(FLAG(0.05), max_steps=4).fit(model, data)
        weights.append(model.network.layers[0].weight.detach())
    assert torch.equal(*weights)


def test_what_cannot_be_repeated_is_refused() -> None:
    data = tiny_datamodule("node")
    with pytest.raises(ConfigError, match="automatic optimisation"):
        quiet_trainer(FLAG(), max_steps=1).fit(Linear(manual=True), data.train_dataloader())
    with pytest.raises(ConfigError, match="accumulate_grad_batches=1"):
        quiet_trainer(FLAG(), max_steps=1, accumulate_grad_batches=2).fit(Linear(), data.train_dataloader())
    with pytest.raises(ConfigError, match="step_size"):
        FLAG(step_size=0)


def test_batches_without_features_are_refused() -> None:
    data = tiny_datamodule("graph")
    with pytest.raises(DataError, match="float node features"):
        quiet_trainer(FLAG(), max_steps=1).fit(Linear(), data.train_dataloader())
