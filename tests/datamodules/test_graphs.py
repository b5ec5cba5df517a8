"""Many graphs: formats, published splits, shots, buckets; nothing of validation or test reaches training."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from lightning_synth.datamodules import GraphDataModule
from lightning_synth.datamodules.graphs import BucketSampler
from lightning_synth.datamodules.procedural import tree_graphs
from lightning_synth.datamodules.splits import published_split, stratified_split
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.schema import item_hashes
from lightning_synth.testing import check_datamodule, tiny_graphs


def hashes(items):
    return set(item_hashes(items, {"domain": "graph"}).tolist())


def sizes(data):
    return [len(part) for part in (data.splits.train, data.splits.val, data.splits.test)]


def npz(path, labels=True, **arrays):
    """Four triangles with tails of 0..3 nodes."""
    edges = [[(0, 1), (0, 2), (1, 2), *((i, i + 1) for i in range(2, 2 + tail))] for tail in range(4)]
    ptr = np.r_[0, np.cumsum([len(part) for part in edges])]
    y = {"y": np.array([5, 5, 9, 9])} if labels else {}
    np.savez(path, num_nodes=np.arange(3, 7), edge_ptr=ptr, edges=np.concatenate(edges), **y, **arrays)
    return path


# The suite -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bucket": True}, {"shots": 3}])
def test_conformance(options):
    assert "failed" not in " ".join(
        check_datamodule(GraphDataModule(tiny_graphs(40), batch_size=4, **options)).values()
    )


def test_conformance_of_a_procedural_set():
    check_datamodule(GraphDataModule("planar", num_graphs=20, sizes=(10, 20), batch_size=4))


@pytest.mark.parametrize("name", ["MUTAG", "IMDB-BINARY"])
def test_conformance_of_a_set_with_identical_graphs(data_root, name):
    check_datamodule(GraphDataModule(data_root / "graphs" / f"{name}.npz"))


# Formats -------------------------------------------------------------------------------------------------------------


def test_npz(tmp_path):
    path = npz(
        tmp_path / "set.npz",
        split=np.array([0, 0, 1, 2]),
        split_other=np.array([2, 2, 0, 0]),
        node_label=np.repeat([3, 7], 9),
        node_attr=np.arange(18.0),
    )
    data = GraphDataModule(path)
    assert sizes(data) == [2, 1, 1] and data.schema["class_names"] == ["5", "9"]
    first = data.train_items()[0]
    assert first.edge_index.tolist() == [[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]
    assert first.y.tolist() == [0] and first.x.tolist() == [0, 0, 0]
    assert data.test_items()[0].y.tolist() == [1] and data.test_items()[0].x.tolist() == [1] * 6
    # The second type is in no training graph, but in the set.
    assert data.schema["num_node_types"] == 2 and data.schema["class_counts"] == [2, 0]
    assert sizes(GraphDataModule(path, "split_other")) == [2, 0, 2]
    features = GraphDataModule(path, x="attribute").train_items()[1]
    assert features.x.tolist() == [[3.0], [4.0], [5.0], [6.0]]
    assert GraphDataModule(path, x="none").train_items()[0].get("x") is None


def test_tu_folder(tmp_path):
    folder = tmp_path / "TOY" / "raw"
    folder.mkdir(parents=True)
    # Two graphs, edges of the second first; node 5 is isolated.
    files = {
        "A": "3, 4\n4, 3\n1, 2\n2, 1\n",
        "graph_indicator": "1\n1\n2\n2\n2\n",
        "graph_labels": "-1\n1\n",
        "node_labels": "6\n8\n8\n6\n6\n",
        "node_attributes": "0.5, 1\n1, 2\n2, 3\n3, 4\n4, 5\n",
        "edge_labels": "2\n2\n1\n1\n",
    }
    for name, text in files.items():
        (folder / f"TOY_{name}.txt").write_text(text)
    data = GraphDataModule(tmp_path / "TOY", ([0, 1], [], []), batch_size=2)
    one, two = data.train_items()
    assert one.edge_index.tolist() == [[0, 1], [1, 0]] and two.num_nodes == 3
    assert one.x.tolist() == [0, 1] and one.edge_attr.tolist() == [0, 0] and two.edge_attr.tolist() == [1, 1]
    assert data.schema["class_names"] == ["-1", "1"] and data.schema["num_edge_types"] == 2
    assert GraphDataModule(tmp_path / "TOY", ([0, 1], [])).train_items()[1].y.tolist() == [1]
    assert GraphDataModule(tmp_path / "TOY", ([0, 1], []), x="attribute").train_items()[0].x.shape == (2, 2)
    (folder / "TOY_A.txt").write_text("1, 3\n3, 1\n")
    with pytest.raises(DataError, match="line 1: the edge joins two graphs"):
        GraphDataModule(tmp_path / "TOY").setup()


def test_lists_of_pyg_and_networkx_graphs_agree():
    graphs = [nx.gnp_random_graph(8, 0.4, seed=i) for i in range(10)]
    for i, graph in enumerate(graphs):
        graph.graph["label"] = i % 2
    pyg = [
        Data(
            edge_index=torch.tensor([*graph.edges, *((v, u) for u, v in graph.edges)]).T,
            num_nodes=8,
            y=torch.tensor([graph.graph["label"]]),
        )
        for graph in graphs
    ]
    assert hashes(GraphDataModule(graphs).train_items()) == hashes(GraphDataModule(pyg).train_items())


def test_one_hot_features_can_become_types():
    graph = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), x=torch.eye(3)[[2, 0]])
    data = GraphDataModule([graph, graph.clone()], ([0], [1]), x="label", batch_size=1)
    assert data.train_items()[0].x.tolist() == [2, 0] and data.schema["num_node_types"] == 3
    with pytest.raises(ConfigError, match="not one-hot"):
        GraphDataModule([Data(edge_index=graph.edge_index, x=torch.rand(2, 3))], ([0], []), x="label").setup()
    with pytest.raises(ConfigError, match="neither labels nor attributes"):
        GraphDataModule(tiny_graphs(4), x="attribute").setup()


def test_conditions_by_value_and_by_rule():
    graphs = tiny_graphs(10)
    density = [graph.num_edges / graph.num_nodes for graph in graphs]
    data = GraphDataModule(graphs, conditions={"density": density, "nodes": lambda graph: graph.num_nodes})
    item = data.train_items()[0]
    assert float(item.density) == pytest.approx(item.num_edges / item.num_nodes) and float(item.nodes) == item.num_nodes
    assert set(data.schema["conditions"]) == {"density", "nodes"}
    # They survive a list of Data, which carries them.
    assert "density" in GraphDataModule(data.train_items()).schema["conditions"]
    with pytest.raises(DataError, match="'density' has 3 values for 10 graphs"):
        GraphDataModule(graphs, conditions={"density": [1, 2, 3]}).setup()
    with pytest.raises(DataError, match="graph 0: condition 'density' is nan"):
        GraphDataModule(graphs, conditions={"density": lambda graph: float("nan")}).setup()


def test_unknown_sources(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        GraphDataModule(tmp_path / "none.npz").setup()
    np.savez(tmp_path / "one.npz", num_nodes=3, edges=[[0, 1]])
    with pytest.raises(DataError, match="LargeGraphDataModule"):
        GraphDataModule(tmp_path / "one.npz").setup()
    np.savez(tmp_path / "other.npz", X=[1])
    with pytest.raises(DataError, match=r"has no num_nodes, edges; found: X"):
        GraphDataModule(tmp_path / "other.npz").setup()
    with pytest.raises(ConfigError, match="procedural"):
        GraphDataModule(tiny_graphs(4), num_graphs=3).setup()


# Splits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name", "stored"),
    [
        ("planar_64_200", "spectre", "split"),
        ("sbm_200", "spectre", "split"),
        ("protein_dd_918", "spectre", "split"),
        ("community_12_21_100", "spectre", "split"),
        ("tree_64_200", "bergmeister", "split"),
        ("planar_64_200", "digress", "split_digress"),
        ("sbm_200", "digress", "split_digress"),
        ("community_12_21_100", "digress", "split_digress"),
        ("ego_small", "gdss", "split"),
        ("grid", "gdss", "split"),
    ],
)
def test_published_splits(data_root, file, name, stored):
    split = np.load(data_root / "graphs" / f"{file}.npz")[stored]
    np.testing.assert_array_equal(published_split(name, len(split)), split)


def test_splits_by_name(data_root):
    path = data_root / "graphs" / "planar_64_200.npz"
    data = GraphDataModule(path)
    assert sizes(data) == [128, 32, 40] and sizes(GraphDataModule(path, "split_digress")) == [128, 32, 40]
    assert hashes(data.splits.test) == hashes(GraphDataModule(path, "spectre").splits.test)
    assert hashes(data.splits.test) != hashes(GraphDataModule(path, "digress").splits.test)
    with pytest.raises(ConfigError, match="the source stores split, split_digress; published ones: spectre, digress"):
        GraphDataModule(path, "official").setup()


def test_index_lists():
    graphs = tiny_graphs(6)
    data = GraphDataModule(graphs, {"train": [4, 0], "test": [1]}, batch_size=1)
    assert sizes(data) == [2, 0, 1]
    for split, match in (
        (([0, 1], [1], []), "graph 1 is in train and in val"),
        (([0], [], [6]), "test names graph 6, but there are 6 graphs"),
        (([0], [], [-1]), "test names graph -1"),
        (([0],), "three lists"),
        ((0.5, 0.2, 0.2), "add up to 1"),
        ((0.0, 0.5, 0.5), "train > 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            GraphDataModule(graphs, split).setup()


def test_fractions_are_exact_within_each_class():
    labels = np.repeat([0, 1], [50, 10])
    part = stratified_split(labels, (0.6, 0.2, 0.2), seed=3)
    assert np.bincount(part[labels == 0]).tolist() == [30, 10, 10] and np.bincount(part[labels == 1]).tolist() == [
        6,
        2,
        2,
    ]
    assert (part != stratified_split(labels, (0.6, 0.2, 0.2), seed=4)).any()


def test_identical_graphs_stay_on_one_side():
    graphs = [graph for graph in tiny_graphs(12) for _ in range(3)]
    # The label is no difference: the same graph with another label would be a leak too.
    for graph in graphs:
        graph.y = torch.randint(2, (1,), generator=torch.Generator().manual_seed(graph.num_edges))
    data = GraphDataModule([graph.clone() for graph in graphs])
    train, val, test = (hashes(part) for part in (data.splits.train, data.splits.val, data.splits.test))
    assert not train & val and not train & test and not val & test and val and test


def test_shots_leave_the_rest_for_validation():
    graphs = tiny_graphs(20)
    half = ([*range(16)], [], [*range(16, 20)])
    data = GraphDataModule(graphs, half, shots=3)
    assert data.schema["class_counts"] == [3, 3] and sizes(data) == [6, 10, 4]
    assert hashes(data.train_items()) != hashes(GraphDataModule(graphs, half, shots=3, draw=1).train_items())
    assert hashes(data.train_items()) < hashes(GraphDataModule(graphs, half, shots=5).train_items())
    # A validation split of its own stays as it is.
    assert sizes(GraphDataModule(graphs, ([*range(16)], [16], [17]), shots=3)) == [6, 1, 1]
    with pytest.warns(UserWarning, match="fewer than 9"):
        GraphDataModule(graphs, half, shots=9).setup()


def test_imbalance_cuts_training_only():
    graphs = tiny_graphs(40)
    data = GraphDataModule(graphs, imbalance={"1": 0.25}, batch_size=4)
    whole = GraphDataModule(graphs)
    assert data.schema["class_counts"] == [13, 3] and whole.schema["class_counts"] == [13, 13]
    assert hashes(data.splits.test) == hashes(whole.splits.test)
    assert GraphDataModule(graphs, imbalance={1: 5}).schema["class_counts"] == [13, 5]
    with pytest.raises(ConfigError, match="class 'x'; classes: 0, 1"):
        GraphDataModule(graphs, imbalance={"x": 0.5}).setup()
    with pytest.raises(ConfigError, match="keeps 99"):
        GraphDataModule(graphs, imbalance={0: 99}).setup()


# Loaders -------------------------------------------------------------------------------------------------------------


def test_buckets_waste_little_padding_and_keep_every_graph_once():
    graphs = tree_graphs(103, sizes=(2, 200))
    data = GraphDataModule(graphs, ([*range(103)], []), batch_size=10, bucket=True)

    def padded(loader):
        return sum(batch.num_graphs * int(batch.ptr.diff().max()) ** 2 for batch in loader)

    plain = GraphDataModule(graphs, ([*range(103)], []), batch_size=10).train_dataloader()
    loader = data.train_dataloader()
    assert padded(loader) < 0.6 * padded(plain)
    batches = [batch.ptr.diff().tolist() for batch in loader]
    assert sorted(size for batch in batches for size in batch) == sorted(graph.num_nodes for graph in graphs)
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    loader.sampler.set_epoch(1)
    assert [batch.ptr.diff().tolist() for batch in loader] != batches


def test_processes_share_the_buckets():
    graphs = tree_graphs(43, sizes=(2, 200))
    ranks = []
    for rank in range(2):
        sampler = BucketSampler(graphs, seed=1, batch_size=5)
        sampler.num_replicas, sampler.rank, sampler.total_size, sampler.num_samples = 2, rank, 44, 22
        ranks.append(list(sampler))
    assert set(ranks[0]) | set(ranks[1]) == set(range(43)) and len(ranks[0]) == len(ranks[1]) == 22
    nodes = np.array([[graphs[i].num_nodes for i in rank[:20]] for rank in ranks]).reshape(2, 4, 5)
    # The two batches of one step have sizes of the same range.
    assert np.abs(nodes[0].mean(1) - nodes[1].mean(1)).max() < 20


def test_memory_estimate():
    data = GraphDataModule(tree_graphs(10, sizes=64), batch_size=4)
    assert data.dense_memory(channels=2, layers=3) == 4 * 64 * 64 * 2 * 3 * 4


def test_attributes_not_hparams():
    data = GraphDataModule(tiny_graphs(4), batch_size=3, max_nodes=9)
    assert (data.max_nodes, data.batch_size, dict(data.hparams)) == (9, 3, {})


def test_procedural_sets_say_what_is_valid():
    assert GraphDataModule("tree", num_graphs=10, sizes=6).schema["validity"] == "tree"
    assert "validity" not in GraphDataModule("grid", num_graphs=5, sizes=3).schema
    with pytest.raises(ConfigError, match="validity must be one of planar"):
        GraphDataModule("tree", validity="acyclic")
