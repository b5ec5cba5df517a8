"""NodeDataModule: what it reads, which nodes it trains on, neighbour sampling, mixtures in both ways of loading."""

import copy
import pickle
from collections import defaultdict

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")
from lightning.pytorch import LightningModule, Trainer
from torch_geometric.data import Data

from lightning_synth.datamodules import AugmentedDataModule, MixedDataModule, NodeDataModule
from lightning_synth.datamodules.neighbors import NeighborTable, SeedSampler
from lightning_synth.datamodules.node_readers import MASKS
from lightning_synth.datamodules.nodes import make_imbalanced, random_split
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.testing import check_datamodule, tiny_node
from lightning_synth.transforms import DropEdge, MaskFeature


def counts(data):
    return data.y[data.train_mask].bincount().tolist()


def grown(graph, extra=10):
    """The graph with copies of some training nodes, each joined to its original."""
    made, nodes = copy.copy(graph), graph.num_nodes
    source = graph.train_mask.nonzero()[:extra, 0]
    for name in ("x", "y", *MASKS):
        made[name] = torch.cat([graph[name], graph[name][source]])
    new = nodes + torch.arange(extra)
    links = torch.stack([new, source])
    made.edge_index = torch.cat([graph.edge_index, links, links.flip(0)], 1)
    made.num_nodes = nodes + extra
    return made


# ---------------------------------------------------------------- sources


def test_items_schema_and_loaders():
    data = NodeDataModule(tiny_node(60))
    [item] = data.train_items()
    assert data.val_items()[0] is item and data.test_items()[0] is item
    assert data.schema["num_nodes"] == 60 and data.schema["num_features"] == 4 and data.schema["num_classes"] == 3
    assert data.schema["class_counts"] == counts(item) and sum(counts(item)) == 30
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        [batch] = list(loader)
        assert isinstance(batch, Data) and batch.num_nodes == 60
    check_datamodule(data)


def npz(path, graph, **changes):
    upper = graph.edge_index[:, graph.edge_index[0] < graph.edge_index[1]]
    arrays = {"num_nodes": graph.num_nodes, "edges": upper.T.numpy(), "x": graph.x.numpy(), "y": graph.y.numpy()}
    arrays |= {f"{name[:-5]}_idx": np.flatnonzero(graph[name]) for name in MASKS}
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


def test_npz_and_data_are_the_same(tmp_path):
    graph = tiny_node(40)
    read = NodeDataModule(npz(tmp_path / "a.npz", graph)).train_items()[0]
    given = NodeDataModule(graph).train_items()[0]
    for name in ("x", "y", "edge_index", *MASKS):
        assert torch.equal(read[name], given[name]), name
    by_mask = {f"{name[:-5]}_idx": None for name in MASKS} | {name: graph[name].numpy() for name in MASKS}
    again = NodeDataModule(npz(tmp_path / "b.npz", graph, **by_mask)).train_items()[0]
    assert all(torch.equal(again[name], given[name]) for name in MASKS)


def planetoid(folder, graph, test):
    """Write a graph as ``ind.a.*``: 4 labelled nodes first, the test nodes last, in the order of the index file."""
    from scipy.sparse import csr_matrix

    first = min(test)
    x, y = csr_matrix(graph.x.numpy()), torch.nn.functional.one_hot(graph.y, 3).numpy()
    parts = {"x": x[:4], "allx": x[:first], "tx": x[test], "y": y[:4], "ally": y[:first], "ty": y[test]}
    neighbours = defaultdict(list)
    for u, v in graph.edge_index.T.tolist():
        neighbours[u].append(v)
    for name, value in (parts | {"graph": neighbours}).items():
        (folder / f"ind.a.{name}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / "ind.a.test.index").write_text("\n".join(map(str, test)))


def test_planetoid_folders(tmp_path):
    graph = tiny_node(600)
    # As in CiteSeer, one node of the test range (597) is missing: no features, no label, in no mask.
    test = [598, 595, 599, 596]
    raw = tmp_path / "raw"
    raw.mkdir()
    planetoid(raw, graph, test)
    [item] = NodeDataModule(tmp_path).train_items()
    assert item.num_nodes == 600 and torch.equal(item.edge_index, graph.edge_index)
    known = torch.arange(600) != 597
    assert torch.equal(item.x[known], graph.x[known]) and torch.equal(item.y[known], graph.y[known])
    assert not bool(item.x[597].any()) and int(item.y[597]) == -1
    assert item.train_mask.nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert item.val_mask.nonzero()[:, 0].tolist() == list(range(4, 504))
    assert item.test_mask.nonzero()[:, 0].tolist() == sorted(test)


def test_pyg_datasets_and_several_splits():
    graph = tiny_node(40)
    graph.train_mask = torch.stack([graph.train_mask, graph.val_mask, graph.test_mask], 1)
    graph.val_mask, graph.test_mask = graph.train_mask.roll(1, 1), graph.train_mask.roll(2, 1)
    plain = tiny_node(40)
    made = [NodeDataModule([graph], draw=draw).train_items()[0] for draw in (0, 1, 2)]
    assert [torch.equal(m.train_mask, plain[name]) for m, name in zip(made, MASKS, strict=True)] == [True] * 3


def test_labels_are_numbered_and_extra_fields_kept():
    graph = tiny_node(30)
    graph.y = torch.tensor([10, 30, 20])[graph.y]
    graph.edge_attr = torch.arange(graph.num_edges)
    graph.year = torch.arange(30)
    data = NodeDataModule(graph)
    [item] = data.train_items()
    assert data.schema["class_names"] == ["10", "20", "30"]
    assert torch.equal(item.y, torch.tensor([0, 2, 1])[tiny_node(30).y]) and torch.equal(item.year, graph.year)
    assert torch.equal(item.edge_index, graph.edge_index) and torch.equal(item.edge_attr, graph.edge_attr)
    assert graph.y.max() == 30


def test_row_normalised_features():
    graph = tiny_node(30)
    graph.x = graph.x.abs()
    graph.x[3] = 0
    x = NodeDataModule(graph, normalize_features=True).train_items()[0].x
    assert torch.allclose(x.sum(1), torch.where(torch.arange(30) == 3, 0.0, 1.0)) and bool((x[3] == 0).all())


# ---------------------------------------------------------------- choosing nodes


def test_step_imbalance():
    graph = tiny_node(300)
    graph = random_split(graph, 20, 3)
    assert counts(graph) == [20, 20, 20]
    for ratio, wanted in ((1, [20, 20, 20]), (5, [20, 20, 4]), (10, [20, 20, 2]), (20, [20, 20, 1])):
        made = make_imbalanced(graph, ratio)
        assert counts(made) == wanted and not bool((made.train_mask & ~graph.train_mask).any())
        assert torch.equal(made.val_mask, graph.val_mask) and torch.equal(made.test_mask, graph.test_mask)
    assert counts(make_imbalanced(graph, 10, minority=2)) == [20, 2, 2]
    one, same, other = (make_imbalanced(graph, 10, draw=draw).train_mask for draw in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert counts(graph) == [20, 20, 20]


def test_draws_are_those_of_the_published_code():
    graph = random_split(tiny_node(300), 20, 3)
    for draw in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(101 + draw)  # its global seed, of which the first use is this permutation
            order = torch.randperm(20)
        rare = (graph.train_mask & (graph.y == 2)).nonzero()[:, 0]
        made = make_imbalanced(graph, 10, draw=draw)
        assert set((made.train_mask & (graph.y == 2)).nonzero()[:, 0].tolist()) == set(rare[order[:2]].tolist())


def test_a_ratio_beyond_the_labels_takes_unused_nodes():
    graph = tiny_node(600)
    graph.train_mask, graph.val_mask, graph.test_mask = (torch.zeros(600, dtype=torch.bool) for _ in range(3))
    graph.train_mask[:60] = graph.val_mask[60:90] = graph.test_mask[90:300] = True
    made = make_imbalanced(graph, 80)
    assert counts(made) == [80, 80, 1] and not bool((made.train_mask & (made.val_mask | made.test_mask)).any())
    assert counts(make_imbalanced(graph, 150)) == [120, 120, 1]


def test_few_shots_and_random_splits():
    graph = tiny_node(300)
    shots = NodeDataModule(graph, shots=4)
    assert shots.schema["class_counts"] == [4, 4, 4]
    assert torch.equal(shots.test_items()[0].test_mask, graph.test_mask)
    made = [NodeDataModule(graph, split="random", shots=5, draw=draw).train_items()[0] for draw in (0, 0, 1)]
    assert torch.equal(made[0].train_mask, made[1].train_mask) and not torch.equal(
        made[0].train_mask, made[2].train_mask
    )
    item = made[0]
    assert item.train_mask.sum() == 15 and item.val_mask.sum() == 90 and item.test_mask.sum() == 195
    bare = Data(x=graph.x, edge_index=graph.edge_index, y=graph.y)
    assert NodeDataModule(bare).schema["class_counts"] == [20, 20, 20]
    both = NodeDataModule(graph, shots=10, imbalance=5)
    assert both.schema["class_counts"] == [10, 10, 2]


# ---------------------------------------------------------------- neighbour sampling


def test_sampled_batches_hold_the_neighbours():
    graph = tiny_node(60)
    graph.edge_attr = torch.arange(graph.num_edges)
    table = NeighborTable(graph)
    nodes = torch.tensor([7, 3, 40])
    batch = table.sample(nodes, [2, 3], seed=1)
    assert batch.n_id[:3].tolist() == [7, 3, 40] and batch.batch_size == 3
    assert len(batch.n_id.unique()) == batch.num_nodes == len(batch.x)
    assert torch.equal(batch.x, graph.x[batch.n_id]) and torch.equal(batch.y, graph.y[batch.n_id])
    assert torch.equal(batch.n_id[batch.edge_index], graph.edge_index[:, batch.e_id])
    assert torch.equal(batch.edge_attr, batch.e_id) and len(batch.e_id.unique()) == batch.num_edges
    into = batch.edge_index[1].bincount(minlength=batch.num_nodes)
    degree = graph.edge_index[1].bincount(minlength=60)[batch.n_id]
    assert torch.equal(into[:3], degree[:3].clamp(max=2)) and bool((into <= degree.clamp(max=3)).all())
    assert torch.equal(table.sample(nodes, [2, 3], seed=1).e_id, batch.e_id)
    assert not torch.equal(table.sample(nodes, [2, 3], seed=2).e_id, batch.e_id)
    whole = table.sample(nodes, [-1], seed=1)
    assert torch.equal(whole.edge_index[1].bincount(minlength=3)[:3], graph.edge_index[1].bincount(minlength=60)[nodes])


def test_every_neighbour_is_equally_likely():
    """A thousand nodes with five neighbours each, of which two are kept."""
    nodes = torch.arange(1000)
    ends = torch.stack([1000 + torch.arange(5000), nodes.repeat_interleave(5)])
    batch = NeighborTable(Data(edge_index=ends, num_nodes=6000)).sample(nodes, [2], seed=0)
    seen = ((batch.n_id[1000:] - 1000) % 5).bincount(minlength=5)
    # 400 each, standard deviation 15.5.
    assert seen.sum() == 2000 and (seen - 400).abs().max() < 80


def test_sampled_loading_visits_every_training_node_once():
    data = NodeDataModule(tiny_node(90), num_neighbors=(3, 3), batch_size=8)
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(loader) == len(batches) == 6
        seeds = [batch.n_id[: batch.batch_size] for batch in batches]
        assert all(torch.equal(b.n_id[b.train_mask], s) for b, s in zip(batches, seeds, strict=True))
        orders.append((torch.cat(seeds), [b.e_id for b in batches]))
    nodes = data.train_items()[0].train_mask.nonzero()[:, 0]
    assert torch.equal(orders[0][0].sort()[0], nodes) and not torch.equal(orders[0][0], orders[1][0])
    assert torch.equal(orders[0][0], orders[2][0])
    assert all(torch.equal(a, b) for a, b in zip(orders[0][1], orders[2][1], strict=True))
    [whole] = list(data.val_dataloader())
    assert whole.num_nodes == 90


def test_two_ranks_share_the_nodes():
    blocks = []
    for rank in (0, 1):
        sampler = SeedSampler(torch.arange(21), batch_size=4, seed=1)
        sampler.num_replicas, sampler.rank, sampler.num_samples, sampler.total_size = 2, rank, 11, 22
        blocks += list(sampler)
    assert len({block.position for block in blocks}) == len(blocks) == 6
    assert set(np.concatenate([block.nodes for block in blocks])) == set(range(21))


def test_processes_do_not_change_what_is_sampled():
    one, two = (NodeDataModule(tiny_node(90), num_neighbors=(3,), batch_size=8, num_workers=n) for n in (0, 2))
    for a, b in zip(one.train_dataloader(), two.train_dataloader(), strict=True):
        assert torch.equal(a.n_id, b.n_id) and torch.equal(a.edge_index, b.edge_index)


# ---------------------------------------------------------------- mixing and training


class Net(LightningModule):
    """Mean of neighbours, then a linear layer; the loss is weighted and masked."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(4, 3), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        near = torch.zeros_like(batch.x).index_add(0, batch.edge_index[1], batch.x[batch.edge_index[0]])
        loss = torch.nn.functional.cross_entropy(self.layer(batch.x + near), batch.y, reduction="none")
        weight = batch.get("weight", torch.ones(batch.num_nodes))
        return (loss * weight)[batch.train_mask].mean()

    def validation_step(self, batch, batch_idx):
        assert batch.num_nodes == 60 and "is_synthetic" not in batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("num_neighbors", [None, (4, 4)])
def test_mixtures_train_on_the_augmented_graph(num_neighbors, trainer_kwargs):
    real = NodeDataModule(tiny_node(60), num_neighbors=num_neighbors, batch_size=16)
    graph = real.train_items()[0]
    data = MixedDataModule(real, [grown(graph)])
    net = Net()
    Trainer(max_epochs=2, **trainer_kwargs).fit(net, data)
    epoch = net.seen[: len(net.seen) // 2]
    assert len(epoch) == (1 if num_neighbors is None else 3)
    trained = torch.cat([batch.get("n_id", torch.arange(70))[batch.train_mask] for batch in epoch])
    assert torch.equal(trained.sort()[0], torch.cat([graph.train_mask.nonzero()[:, 0], 60 + torch.arange(10)]))
    for batch in epoch:
        number = batch.get("n_id", torch.arange(70))
        assert torch.equal(batch.is_synthetic, number >= 60) and len(batch.weight) == batch.num_nodes
    assert "is_synthetic" not in graph


def test_a_sampled_mixture_resumes_in_the_middle_of_an_epoch():
    def loader():
        real = NodeDataModule(tiny_node(60), num_neighbors=(4,), batch_size=8)
        return MixedDataModule(real, [grown(real.train_items()[0])], seed=3).train_dataloader()

    whole = [batch.e_id for batch in loader()]
    first = loader()
    batches = iter(first)
    start = [next(batches).e_id for _ in range(2)]
    resumed = loader()
    resumed.load_state_dict(first.state_dict())
    rest = [batch.e_id for batch in resumed]
    assert len(whole) == 5 and all(torch.equal(a, b) for a, b in zip(whole, start + rest, strict=True))
    real = loader()
    real.mixture.set_epoch(1)
    assert not torch.equal(next(iter(real)).e_id, whole[0])


@pytest.mark.parametrize("num_neighbors", [None, (4, 4)])
def test_augmented_on_the_fly(num_neighbors, trainer_kwargs):
    real = NodeDataModule(tiny_node(60), num_neighbors=num_neighbors, batch_size=16)
    runs = []
    for _ in range(2):
        net = Net()
        data = AugmentedDataModule(real, [DropEdge(0.5), MaskFeature(0.5, mode="row")], prob=1.0, seed=1)
        Trainer(max_epochs=2, **trainer_kwargs).fit(net, data)
        runs.append([batch.edge_index for batch in net.seen])
        assert all(bool((batch.x == 0).all(1).any()) for batch in net.seen)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    if num_neighbors is None:
        whole = real.train_items()[0].num_edges
        assert len(runs[0]) == 2 and max(edges.shape[1] for edges in runs[0]) < whole
        assert not torch.equal(runs[0][0], runs[0][1])


# ---------------------------------------------------------------- options and real data


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("split must be one of", {"split": "mine"}),
        ("shots must be at least 1", {"shots": 0}),
        ("at least 1: 0.5", {"imbalance": 0.5}),
        ("num_neighbors must be positive", {"num_neighbors": (0, 3)}),
        ("one number a hop", {"num_neighbors": 5}),
        ("batch_size", {"batch_size": 0}),
    ],
)
def test_impossible_options(match, options):
    with pytest.raises(ConfigError, match=match):
        NodeDataModule(tiny_node(), **options)


def test_impossible_choices():
    with pytest.raises(DataError, match=r"takes 20 \+ 30 nodes of each class"):
        NodeDataModule(tiny_node(60), split="random").setup()
    bare = Data(x=torch.ones(4, 1), edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ConfigError, match="no masks"):
        NodeDataModule(bare, split="public").setup()
    with pytest.raises(ConfigError, match="minority"):
        make_imbalanced(tiny_node(), 5, minority=3)
    with pytest.raises(ConfigError, match="rho"):
        make_imbalanced(tiny_node(), 0.5)


def test_cora(data_root):
    data = NodeDataModule(data_root / "graphs" / "cora_planetoid.npz")
    [item] = data.train_items()
    assert item.num_nodes == 2708 and item.num_edges == 2 * 5278 and item.x.shape == (2708, 1433)
    assert [int(item[name].sum()) for name in MASKS] == [140, 500, 1000] and counts(item) == [20] * 7
    assert item.is_undirected()
    rare = NodeDataModule(data_root / "graphs" / "cora_planetoid.npz", imbalance=10)
    assert rare.schema["class_counts"] == [20, 20, 20, 20, 2, 2, 2]
    rarer = NodeDataModule(data_root / "graphs" / "cora_planetoid.npz", imbalance=100)
    # The second class has 90 nodes that are in no mask or in the training one.
    assert rarer.schema["class_counts"] == [100, 90, 100, 100, 1, 1, 1]


def test_a_graph_without_features_gets_degrees(data_root):
    data = NodeDataModule(data_root / "graphs" / "pubmed_structure.npz")
    with pytest.warns(UserWarning, match=r"x is log\(1 \+ degree\)"):
        [item] = data.train_items()
    degree = item.edge_index[1].bincount(minlength=item.num_nodes)
    assert item.x.shape == (19717, 1) and torch.allclose(item.x[:, 0].expm1().round().long(), degree)
