"""What likenesses share: whose nodes a sample has, how many edges it repeats, what a checkpoint holds."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch_geometric.data import Data

from lightning_synth.checkpoint import load_generator
from lightning_synth.datamodules import ItemsDataModule, LargeGraphDataModule
from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.plugins.graph.cell import CELL
from lightning_synth.plugins.graph.graph_maker import GraphMaker
from lightning_synth.plugins.graph.likeness import Training
from lightning_synth.plugins.graph.vgae import VGAE
from lightning_synth.schema import item_hashes, validate
from lightning_synth.testing import tiny_graphs, tiny_node
from lightning_synth.testing.case import quiet_trainer

MODELS = {
    "cell": lambda **kw: CELL(rank=3, target_overlap=None, **kw),
    "vgae": lambda **kw: VGAE(hidden_dim=8, latent_dim=4, **kw),
    "graph_maker": lambda **kw: GraphMaker(dim=16, pair_dim=8, num_layers=1, **kw),
}
each_model = pytest.mark.parametrize("name", MODELS)


def fitted(model, data, steps=5, *callbacks):
    quiet_trainer(*callbacks, max_steps=steps).fit(model, datamodule=data)
    return model


def attributed(n=12):
    """Graphs with node types, edge types and labels: type 2 only in class 1, edge type = whether ends agree."""
    items = []
    for graph in tiny_graphs(n):
        x = torch.arange(graph.num_nodes) % (2 + int(graph.y))
        row, col = graph.edge_index
        items.append(Data(**{**graph.to_dict(), "x": x, "edge_attr": (x[row] == x[col]).long()}))
    return items


def data_of(items):
    return ItemsDataModule(items, domain="graph", batch_size=4)


def test_training_edges_are_simple_and_found():
    edges = torch.tensor([[1, 0, 2, 2, 1, 4], [0, 1, 2, 1, 2, 3]])
    graphs = Training.from_edges(torch.cat([edges, edges[:, :1], edges[:, -1:].flip(0)], 1), torch.tensor([3, 2]))
    assert graphs.edges.tolist() == [[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]]
    assert graphs.graph.tolist() == [0, 0, 0, 0, 1, 1] and graphs.degree.tolist() == [1, 2, 1, 1, 1]
    assert graphs.has(torch.tensor([0, 0, 4]), torch.tensor([1, 2, 3])).tolist() == [True, False, True]


# Samples -------------------------------------------------------------------------------------------------------------


@each_model
def test_types_labels_and_edge_types_come_along(name):
    items = attributed()
    data = data_of(items)
    model = fitted(MODELS[name](), data)
    samples = model.sample(30, condition={"label": 1}, seed=0)
    validate(samples.items(), data.schema)
    known = {tuple(item.x.tolist()) for item in items if int(item.y) == 1}
    assert {tuple(item.x.tolist()) for item in samples.items()} <= known
    assert {int(item.y) for item in samples.items()} == {1}
    assert {int(kind) for item in samples.items() for kind in item.edge_attr} == {0, 1}
    if name != "graph_maker":
        # Edges get the type of training edges between such nodes; the diffusion model makes types of its own.
        for item in samples.items():
            row, col = item.edge_index
            assert torch.equal(item.edge_attr, (item.x[row] == item.x[col]).long())


@each_model
def test_features_and_node_labels_of_one_large_graph(name):
    data = LargeGraphDataModule(tiny_node())
    model = fitted(MODELS[name](), data)
    real, graph = data.train_items()[0], model.sample(2, seed=1).items()[1]
    validate([graph], data.schema)
    assert graph.num_nodes == 30 and torch.equal(graph.y, real.y) and graph.x.shape == real.x.shape
    assert torch.equal(graph.x, real.x) == (name != "graph_maker")


@each_model
def test_graphs_without_edges_survive(name):
    empty = Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=3)
    one = Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=1)
    pair = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    for items in ([empty, one], [empty, one, pair]):
        model = fitted(MODELS[name](), data_of(items), 2)
        edges = {item.num_nodes: item.num_edges for item in model.sample(20, seed=0).items()}
        assert edges[3] == 0 and edges[1] == 0


@each_model
def test_overlap_is_measured_against_the_graph_that_a_row_takes_after(name):
    model = fitted(MODELS[name](), data_of(tiny_graphs(6)))
    assert 0 < float(model.edge_overlap) < 1 and 0 < float(model.chance_overlap) < 1
    graphs = model.training_edges
    # With the training graphs themselves as samples everything is shared.
    batch_of = {}

    def copies(requests, rng, **options):
        source = model.sources(requests)
        nodes, counts = model.nodes_of(source), model.num_nodes[source]
        row = torch.arange(len(source)).repeat_interleave(counts)
        first, second = (part.reshape(-1) for part in torch.meshgrid(*[torch.arange(len(nodes))] * 2, indexing="ij"))
        keep = (first < second) & (row[first] == row[second]) & graphs.has(nodes[first], nodes[second])
        batch_of["edges"] = int(keep.sum())
        return model.assemble(counts, row[first[keep]], torch.stack([first, second])[:, keep], {}, requests, rng)

    model.sample_batch = copies
    assert model.measure_overlap() == 1.0 and batch_of["edges"] > 0


@each_model
def test_a_checkpoint_of_any_step_samples_like_the_generator_at_that_step(name, tmp_path):
    class SaveAtThree(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "three.ckpt")

    full = fitted(MODELS[name](), data_of(tiny_graphs(8)), 6, SaveAtThree())
    short = fitted(MODELS[name](), data_of(tiny_graphs(8)), 3)
    loaded = load_generator(tmp_path / "three.ckpt")
    schema = {"domain": "graph"}
    hashes = [item_hashes(model.sample(5, seed=0).items(), schema).tolist() for model in (short, loaded, full)]
    assert hashes[0] == hashes[1] and hashes[0] != hashes[2]
    with pytest.raises(NotFittedError, match="no training graphs"):
        loaded.measure_overlap()


@each_model
def test_other_training_graphs_need_another_generator(name):
    model = fitted(MODELS[name](), data_of(tiny_graphs(6)), 1)
    with pytest.raises(ConfigError, match="make a new one"):
        fitted(model, data_of(tiny_graphs(7)), 1)


def test_training_edges_are_in_no_checkpoint():
    graph = tiny_graphs(1)[0]
    for make in MODELS.values():
        model = fitted(make(), data_of([graph]), 1)
        shapes = [tuple(value.shape) for value in model.state_dict().values() if hasattr(value, "shape")]
        assert (2, graph.num_edges) not in shapes and (graph.num_edges,) not in shapes


@pytest.mark.parametrize("name", ["cell", "vgae"])
def test_held_out_edges_are_found(name):
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(4), 25)
    adjacency = np.triu(rng.random((100, 100)) < np.where(block[:, None] == block, 0.4, 0.01), 1)
    edges = torch.from_numpy(np.argwhere(adjacency).T)
    graph = Data(edge_index=torch.cat([edges, edges.flip(0)], 1), num_nodes=100)
    data = LargeGraphDataModule(graph, hold_out=(0.0, 0.2))
    model = fitted(CELL(rank=4, target_overlap=None) if name == "cell" else VGAE(), data, 40)
    found, absent = (model.link_scores(pairs) for pairs in data.held_out_edges())
    auc = float((found[:, None] > absent).float().mean())
    assert auc > 0.8
