"""Bad and odd node data: each an error before training that says what and where, one warning, or survival."""

import warnings

import networkx
import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data

from lightning_synth.datamodules import MixedDataModule, NodeDataModule
from lightning_synth.datamodules.node_readers import MASKS
from lightning_synth.datamodules.nodes import make_imbalanced
from lightning_synth.errors import DataError, SyntheticInEvaluationError
from lightning_synth.schema import describe, validate
from lightning_synth.testing import tiny_node
from lightning_synth.transforms import DropEdge


def odd(**changes):
    """A good graph with some attributes replaced."""
    graph = tiny_node()
    for name, value in changes.items():
        graph[name] = value
    return graph


def refused(match, source, **options):
    with pytest.raises(DataError, match=match):
        NodeDataModule(source, **options).setup("fit")


def warned(match, source, **options):
    """Load a graph that warns exactly once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = NodeDataModule(source, **options)
        data.setup("fit")
    texts = [str(one.message) for one in caught]
    assert len(texts) == 1 and match in texts[0], texts
    return data.train_items()[0]


def quiet(source, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = NodeDataModule(source, **options)
        data.setup("fit")
        assert len(list(data.train_dataloader())) == 1
    return data.train_items()[0]


# ---------------------------------------------------------------- edges


def test_24_25_no_nodes():
    empty = Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=0, y=torch.zeros(0, dtype=torch.int64))
    refused("0 nodes", empty)
    refused("holds 0 graphs", [])


def test_26_27_34_no_edges_and_isolated_nodes_survive():
    item = quiet(odd(edge_index=torch.zeros(2, 0, dtype=torch.int64)))
    assert item.num_edges == 0 and item.num_nodes == 30
    graph = tiny_node()
    item = quiet(odd(edge_index=graph.edge_index[:, (graph.edge_index > 5).all(0)]))
    assert not bool((item.edge_index <= 5).any()) and item.num_nodes == 30
    assert quiet(odd(), num_neighbors=(3,)).num_nodes == 30


def test_28_29_self_loops_and_repeated_edges_are_dropped():
    edges = tiny_node().edge_index
    loops = torch.cat([edges, torch.tensor([[4, 5], [4, 5]])], 1)
    assert torch.equal(warned("2 self-loops: dropped", odd(edge_index=loops)).edge_index, edges)
    refused("2 self-loops", odd(edge_index=loops), repair=False)
    twice = torch.cat([edges, edges[:, :3]], 1)
    assert torch.equal(warned("3 repeated edges", odd(edge_index=twice)).edge_index, edges)
    refused("3 repeated edges", odd(edge_index=twice), repair=False)


@pytest.mark.parametrize("node", [30, -1])
def test_30_31_edges_of_nodes_that_are_not_there(node):
    refused(f"names node {node}, but there are 30 nodes", odd(edge_index=torch.tensor([[0, node], [1, 2]])))


def test_32_edges_of_the_wrong_type():
    refused("edge_index must be int64", odd(edge_index=tiny_node().edge_index.float()))
    refused("edge_index must be int64", odd(edge_index=tiny_node().edge_index.T.contiguous()))
    refused("no edge_index", Data(x=torch.ones(3, 1), edge_index=None))


def test_33_edges_in_one_direction_are_mirrored_or_kept_when_asked():
    edges = tiny_node().edge_index
    upper = edges[:, edges[0] < edges[1]]
    graph = odd(edge_index=upper, edge_attr=torch.arange(upper.shape[1]))
    item = warned(f"{upper.shape[1]} edges are stored in one direction", graph)
    assert torch.equal(item.edge_index, edges)
    back = {tuple(pair): int(value) for pair, value in zip(item.edge_index.T.tolist(), item.edge_attr, strict=True)}
    assert all(back[v, u] == value for (u, v), value in back.items())
    refused("stored in one direction", graph, repair=False)
    assert torch.equal(quiet(graph, undirected=False).edge_index, upper)
    both = quiet(odd(), undirected=False)
    assert torch.equal(both.edge_index, edges)


def test_39_edge_attributes_of_another_length():
    refused("3 rows of edge_attr", odd(edge_attr=torch.ones(3, 2)))
    refused("edge_weight has non-finite", odd(edge_weight=torch.full((tiny_node().num_edges,), float("nan"))))


# ---------------------------------------------------------------- features and labels


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_features(value):
    x = tiny_node().x
    x[7, 1] = x[9, 0] = value
    refused("2 nodes have non-finite features; the first is node 7", odd(x=x))


def test_38_features_that_are_missing_or_of_another_length():
    refused(r"x must be \(nodes, features\), got \(29, 4\) for 30 nodes", odd(x=torch.ones(29, 4), num_nodes=30))
    graph = tiny_node()
    del graph.x
    assert warned("no features", graph).x.shape == (30, 1)


def test_10_features_and_masks_of_other_types_are_cast():
    graph = odd(x=(tiny_node().x > 0).int(), train_mask=tiny_node().train_mask.to(torch.uint8), y=tiny_node().y.int())
    item = quiet(graph)
    assert item.x.dtype == torch.float32 and item.train_mask.dtype == torch.bool and item.y.dtype == torch.int64


def test_labels_that_are_missing_or_wrong():
    graph = tiny_node()
    del graph.y
    refused("no node labels y", graph)
    refused("one integer label a node", odd(y=torch.ones(30)))
    refused("one integer label a node", odd(y=torch.ones(30, 3, dtype=torch.int64)))
    refused("one integer label a node", odd(y=torch.ones(29, dtype=torch.int64)))
    refused("1 classes", odd(y=torch.zeros(30, dtype=torch.int64)))


def test_18_unlabelled_nodes_may_stand_outside_the_masks_alone():
    graph = tiny_node()
    node = int(graph.train_mask.nonzero()[0])
    y = graph.y.clone()
    y[node] = -1
    refused(f"1 nodes of train_mask have no label; the first is node {node}", odd(y=y))
    mask = graph.train_mask.clone()
    mask[node] = False
    assert int(quiet(odd(y=y, train_mask=mask)).y[node]) == -1


def test_17_classes_with_one_or_no_training_node():
    graph = tiny_node()
    lonely = graph.train_mask & (graph.y != 2)
    lonely[(graph.train_mask & (graph.y == 2)).nonzero()[0]] = True
    assert quiet(odd(train_mask=lonely)).y[lonely].bincount().tolist()[2] == 1
    none = graph.train_mask & (graph.y != 2)
    item = warned("no training nodes of class 2", odd(train_mask=none))
    assert int(item.y.max()) == 2
    with pytest.raises(DataError, match="class 2 has no training node to keep"):
        make_imbalanced(item, 5)
    refused("0 training nodes", odd(train_mask=torch.zeros(30, dtype=torch.bool)))


# ---------------------------------------------------------------- masks


def test_masks_that_overlap():
    graph = tiny_node()
    train, val = graph.train_mask, graph.val_mask.clone()
    both = train.nonzero()[:2, 0]
    val[both] = True
    refused(f"2 nodes are in both train_mask and val_mask; the first is node {int(both[0])}", odd(val_mask=val))


def test_masks_of_the_wrong_length_or_kind():
    refused("val_mask has 29 entries for 30 nodes", odd(val_mask=tiny_node().val_mask[:29]))
    refused("True or False for each node", odd(train_mask=torch.arange(30)))
    graph = tiny_node()
    del graph.test_mask
    refused("the source has train_mask, val_mask alone", graph)


def test_split_indices_out_of_range(tmp_path):
    edges = np.array([[0, 1], [1, 2]])
    arrays = {"num_nodes": 3, "edges": edges, "y": np.array([0, 1, 0]), "val_idx": [1], "test_idx": [2]}
    np.savez(tmp_path / "a.npz", train_idx=np.array([0, 7]), **arrays)
    refused("train_idx names node 7, but there are 3 nodes", tmp_path / "a.npz")


# ---------------------------------------------------------------- sources


def test_files_that_cannot_be_read(tmp_path):
    refused("does not exist", tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    refused("is no npz", tmp_path / "bad.npz")
    np.savez(tmp_path / "many.npz", num_nodes=[3, 3], edge_ptr=[0, 1, 2], edges=[[0, 1], [0, 1]])
    refused("open it with GraphDataModule", tmp_path / "many.npz")
    refused("2 graphs", [tiny_node(), tiny_node()])
    refused("cannot read a graph from int", 7)
    refused("cannot read a graph from Graph", networkx.path_graph(3))
    refused("a dict of x, y is no graph", {"x": 1, "y": 2})
    (tmp_path / "empty").mkdir()
    refused("must hold one file ind.NAME.graph", tmp_path / "empty")


def test_pickles_that_would_run_something_are_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    for name in ("x", "tx", "allx", "y", "ty", "ally", "graph"):
        (tmp_path / f"ind.a.{name}").write_bytes(pickle.dumps(Evil()))
    refused("is no Planetoid file: it asks for builtins.print", tmp_path)


# ---------------------------------------------------------------- pools and transforms


def all_test():
    """Masks in which the last node is a test node."""
    last = torch.arange(30) == 29
    graph = tiny_node()
    return {"train_mask": graph.train_mask & ~last, "val_mask": graph.val_mask & ~last, "test_mask": last}


def schema():
    return describe([tiny_node()], "node")


@pytest.mark.parametrize(
    ("match", "changes"),
    [
        ("train_mask has 29 entries", {"train_mask": torch.ones(29, dtype=torch.bool)}),
        ("val_mask must be bool", {"val_mask": torch.zeros(30)}),
        ("y has 29 entries", {"y": torch.zeros(29, dtype=torch.int64)}),
        ("label 3, outside 0..2", {"y": torch.full((30,), 3)}),
        ("label -1, outside 0..2", {"y": torch.full((30,), -1)}),
        (r"node \d+ is in \['train_mask', 'val_mask'\]", {"val_mask": tiny_node().train_mask}),
        ("node 29 is synthetic, but in", {"is_synthetic": torch.arange(30) > 28, **all_test()}),
        ("non-finite", {"x": torch.full((30, 4), float("nan"))}),
    ],
)
def test_augmented_graphs_are_checked(match, changes):
    with pytest.raises(DataError, match=match):
        validate([odd(**changes)], schema())
    real = NodeDataModule(tiny_node())
    with pytest.raises(DataError, match=match):
        MixedDataModule(real, [odd(**changes)]).setup("fit")


def test_57_synthetic_nodes_in_the_source_are_refused():
    graph = odd(is_synthetic=tiny_node().train_mask)
    with pytest.raises(SyntheticInEvaluationError, match="synthetic"):
        MixedDataModule(NodeDataModule(graph), [tiny_node()]).setup("fit")


def test_directed_graphs_and_transforms():
    """A transform takes a graph as undirected only if every edge has its reverse."""
    edges = tiny_node().edge_index[:, 1:]
    made = DropEdge(0.0)(Data(edge_index=edges, num_nodes=30))
    assert torch.equal(made.edge_index, edges) and not made.is_undirected()


def test_every_mask_has_a_name():
    assert all(name in tiny_node() for name in MASKS)
