"""GCN, GAT and GraphSAGE: their layers are PyG's, selection looks at validation alone, and they train on pools."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lightning_synth.datamodules import MixedDataModule
from lightning_synth.downstream import GCN, get_downstream
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.message_passing import GATConv, GCNConv, GraphInput, SAGEConv, SparseMatrix
from lightning_synth.plugins.node.node_oversample import NodeOversample
from lightning_synth.testing import tiny_datamodule, tiny_node, tiny_schema
from lightning_synth.testing.case import quiet, quiet_trainer

geometric = pytest.importorskip("torch_geometric")
NAMES = ["gcn", "gat", "graphsage"]


def trained(name="gcn", data=None, steps=40, **hparams):
    data = data or tiny_datamodule("node")
    model = get_downstream(name)(schema=data.schema, hidden=16, **hparams)
    with quiet():
        quiet_trainer(max_steps=steps).fit(model, data.train_dataloader())
    return model


def node_data(graph):
    from lightning_synth.datamodules.base import ItemsDataModule

    return ItemsDataModule([graph], [graph], [graph], domain="node", batch_size=1)


class TestLayers:
    @pytest.fixture
    def graph(self):
        """A graph with an edge in one direction only and a node without neighbours."""
        data = tiny_node(12)
        edges = torch.cat([data.edge_index[:, (data.edge_index != 3).all(0)], torch.tensor([[0], [5]])], 1)
        return GraphInput(data.x, edges)

    def test_gcn(self, graph) -> None:
        ours, theirs = GCNConv(4, 6), geometric.nn.GCNConv(4, 6)
        theirs.lin.weight.data, theirs.bias.data = ours.weight.data.T.clone(), torch.ones(6)
        ours.bias.data = torch.ones(6)
        torch.testing.assert_close(ours(graph, None), theirs(graph.x, graph.edge_index))

    def test_graphsage(self, graph) -> None:
        ours, theirs = SAGEConv(4, 6), geometric.nn.SAGEConv(4, 6)
        own, near = ours.weight.data.T.chunk(2)
        theirs.lin_r.weight.data, theirs.lin_l.weight.data = own.clone(), near.clone()
        theirs.lin_l.bias.data.zero_()
        torch.testing.assert_close(ours(graph, None), theirs(graph.x, graph.edge_index))

    def test_gat(self, graph) -> None:
        ours, theirs = GATConv(4, 6, heads=2), geometric.nn.GATConv(4, 3, heads=2)
        theirs.lin.weight.data = ours.weight.data.T.clone()
        theirs.att_src.data, theirs.att_dst.data = (part[None].clone() for part in ours.attention.data)
        theirs.bias.data.zero_()
        torch.testing.assert_close(ours(graph, None), theirs(graph.x, graph.edge_index))

    @pytest.mark.parametrize("make", [GCNConv, SAGEConv, lambda a, b: GATConv(a, b, 2)])
    def test_node_order_does_not_matter(self, graph, make) -> None:
        layer, order = make(4, 6), torch.randperm(12, generator=torch.Generator().manual_seed(0))
        moved = GraphInput(graph.x[order], order.argsort()[graph.edge_index])
        torch.testing.assert_close(layer(moved, None), layer(graph, None)[order])


class TestSparse:
    def test_product_and_gradient(self) -> None:
        row, col, value = torch.tensor([2, 0, 0, 2]), torch.tensor([1, 1, 3, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0])
        matrix, dense = SparseMatrix(row, col, value, (3, 4)), torch.zeros(3, 4)
        dense.index_put_((row, col), value, accumulate=True)
        factor = torch.randn(4, 2, requires_grad=True)
        (matrix @ factor).square().sum().backward()
        wanted = dense.T @ (2 * dense @ factor.detach())
        torch.testing.assert_close(matrix @ factor, dense @ factor)
        torch.testing.assert_close(factor.grad, wanted)

    def test_copies_and_pickles(self) -> None:
        matrix = SparseMatrix.of(torch.tensor([[0.0, 2.0]]))
        wanted = matrix @ torch.ones(2, 1)
        for again in (copy.deepcopy(matrix), pickle.loads(pickle.dumps(matrix))):
            assert torch.equal(again @ torch.ones(2, 1), wanted)

    def test_sparse_features_give_what_dense_ones_give(self) -> None:
        x = torch.zeros(6, 50)
        x[torch.arange(6), torch.arange(6) * 7] = 1.0
        edges, weight = torch.tensor([[0, 1], [1, 0]]), torch.randn(50, 3)
        known = GraphInput(x, edges)
        more = torch.cat([x, torch.rand(2, 50)])
        again = GraphInput(more, edges, known)
        assert known._sparse is not None and again._sparse is known._sparse
        torch.testing.assert_close(known.features_times(weight), x @ weight)
        torch.testing.assert_close(again.features_times(weight), more @ weight)
        other = more.clone()
        other[0, 0] = 9.0
        torch.testing.assert_close(GraphInput(other, edges, known).features_times(weight), other @ weight)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_three_communities(name: str) -> None:
    data = node_data(tiny_node(90))
    model = trained(name, data, steps=80)
    assert model.score(data.test_items())["balanced_accuracy"] > 0.9
    assert model.metric == "balanced_accuracy" and model.higher_is_better


def test_one_weight_step_follows_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = trained(steps=5)
    torch.manual_seed(2)
    second, other = trained(steps=5), trained(steps=5, seed=1)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same) and not torch.equal(first.network.layers[0].weight, other.network.layers[0].weight)


def test_test_labels_play_no_part() -> None:
    graph = tiny_node()
    scrambled = graph.clone()
    scrambled.y[graph.test_mask] = (graph.y[graph.test_mask] + 1) % 3
    models = [trained(data=node_data(g), tam=True, loss="balanced_softmax", renode=True) for g in (graph, scrambled)]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def test_the_best_validation_step_is_kept() -> None:
    seen: list[tuple[float, dict]] = []

    class Watched(GCN):
        def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
            super().on_train_batch_end(outputs, batch, batch_idx)
            out, mask = self(batch), batch.val_mask
            hit = (out.argmax(1) == batch.y)[mask].float()
            recall = torch.stack([hit[batch.y[mask] == c].mean() for c in batch.y[mask].unique()]).mean()
            seen.append((float(hit.mean() + recall) / 2, copy.deepcopy(self.network.state_dict())))

    data = node_data(tiny_node())
    model = Watched(schema=data.schema, hidden=8, lr=0.1)
    quiet_trainer(max_steps=30).fit(model, data.train_dataloader())
    score, state = max(seen, key=lambda pair: pair[0])
    assert model.best_validation == pytest.approx(score) and score > seen[0][0]
    assert all(torch.equal(state[key], value) for key, value in model.network.state_dict().items())


def test_without_validation_nodes_the_last_step_counts() -> None:
    graph = tiny_node()
    graph.val_mask[:] = False
    model = trained(data=node_data(graph), steps=3)
    assert model.best_validation != model.best_validation  # NaN


def test_losses_differ_and_all_are_finite() -> None:
    graph = tiny_node()
    graph.train_mask[(graph.y == 2).nonzero()[2:, 0]] = False
    losses = {}
    for key, options in {
        "ce": {},
        "reweight": {"loss": "reweight"},
        "bs": {"loss": "balanced_softmax"},
        "tam": {"tam": True},
        "renode": {"renode": True},
    }.items():
        model = GCN(schema=node_data(graph).schema, hidden=8, **options)
        model._steps = 5
        losses[key] = float(model.node_loss(model(graph), graph).detach())
    assert len({round(value, 6) for value in losses.values()}) == len(losses)
    assert all(value == value for value in losses.values())


def test_every_epoch_trains_on_another_graph_of_the_pool() -> None:
    data = tiny_datamodule("node")
    pool = list(NodeOversample(target=9).fit_on(data.train_items(), data.schema).sample(3).items())
    mixed, seen = MixedDataModule(data, pool, ratio=1.0, mode="replace"), []

    class Watched(GCN):
        def training_step(self, batch, batch_idx=0):
            seen.append(next(i for i, graph in enumerate(pool) if torch.equal(graph.edge_index, batch.edge_index)))
            assert len(batch.weight) == batch.num_nodes and int(batch.is_synthetic.sum()) == batch.num_nodes - 30
            return super().training_step(batch, batch_idx)

    model = Watched(schema=data.schema, hidden=8)
    quiet_trainer(max_steps=6).fit(model, mixed.train_dataloader())
    assert [sorted(seen[:3]), sorted(seen[3:])] == [[0, 1, 2], [0, 1, 2]]
    assert model.best_validation > 0


def test_validation_in_training_is_on_the_real_graph() -> None:
    data = tiny_datamodule("node")
    real = data.train_items()[0]
    grown = NodeOversample(target=9, directed=False).fit_on([real], data.schema).sample(1).items()[0]
    mask, graph = GCN(schema=data.schema, hidden=8)._real_graph(grown)
    assert torch.equal(graph.x, real.x) and torch.equal(graph.edge_index, real.edge_index)
    assert torch.equal(mask["val_mask"], real.val_mask)


@pytest.mark.parametrize("options", [{"loss": "focal"}, {"dropout": 1.0}, {"num_layers": 0}, {"hidden": 12}])
def test_impossible_options_are_refused(options) -> None:
    with pytest.raises(ConfigError):
        GCN(**options)


def test_unusable_data_are_refused() -> None:
    graph = tiny_node()
    model = GCN(schema=tiny_schema("node"), hidden=8)
    graph.test_mask[:] = False
    with pytest.raises(DataError, match="test_mask"):
        model.score([graph])
    with pytest.raises(ConfigError, match="features"):
        GCN(schema={**tiny_schema("node"), "num_features": 0}, hidden=8)
    with pytest.raises(ConfigError, match="domain 'node'"):
        GCN(schema=tiny_schema("graph"))


def test_a_checkpoint_holds_the_best_weights(tmp_path) -> None:
    model = trained(steps=20)
    trainer, path = model.trainer, tmp_path / "gcn.ckpt"
    trainer.save_checkpoint(path)
    again = GCN.load_from_checkpoint(path)
    items = tiny_datamodule("node").test_items()
    assert again.score(items) == model.score(items)
