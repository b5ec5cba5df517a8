"""Bad and odd graphs: rows 24-39 and 43 of the fault table, each an error before training, one warning, or survival."""

import warnings

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from lightning_synth.datamodules import GraphDataModule, LargeGraphDataModule
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.schema import describe, features, validate
from lightning_synth.testing import tiny_graphs

ALL = ([0, 1, 2, 3], [])


def pair(edges=((0, 1), (1, 0)), num_nodes=2, **fields):
    """One odd graph."""
    edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    return Data(edge_index=edge_index, num_nodes=num_nodes, y=torch.tensor([0]), **fields)


def with_odd(odd):
    """Three good graphs, and the odd one last."""
    return [*tiny_graphs(3), odd]


def refused(match, graphs, **options):
    with pytest.raises(DataError, match=match):
        GraphDataModule(graphs, ALL, batch_size=2, **options).setup("fit")


def warned(match, graphs, **options):
    """Load a DataModule that warns exactly once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = GraphDataModule(graphs, ALL, batch_size=2, **options)
        data.setup("fit")
    texts = [str(w.message) for w in caught]
    assert len(texts) == 1 and match in texts[0], texts
    return data.train_items()


def quiet(graphs, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = GraphDataModule(graphs, ALL, batch_size=2, **options)
        data.setup("fit")
        assert sum(batch.num_graphs for batch in data.train_dataloader()) == 4
    return data.train_items()


def test_24_no_graphs(tmp_path):
    refused("0 graphs", [])
    np.savez(tmp_path / "none.npz", num_nodes=np.zeros(0, int), edge_ptr=[0], edges=np.zeros((0, 2), int))
    refused("0 graphs", tmp_path / "none.npz")
    with pytest.raises(DataError, match="0 training graphs"):
        describe([], "graph")


def test_25_a_graph_without_nodes_is_counted_and_left_out():
    assert len(warned("1 graphs have 0 nodes (the first is graph 3)", with_odd(pair((), 0)))) == 3
    refused("graph 3 has 0 nodes", with_odd(pair((), 0)), repair=False)
    with pytest.raises(DataError, match="graph 3 has 0 nodes"):
        validate(with_odd(pair((), 0)), describe(tiny_graphs(3), "graph"))


def test_26_27_34_no_edges_isolated_nodes_and_several_components():
    for odd in (pair((), 3), pair(num_nodes=5), pair(((0, 1), (1, 0), (2, 3), (3, 2)), 4)):
        item = quiet(with_odd(odd))[3]
        assert item.num_nodes == odd.num_nodes and item.num_edges == odd.num_edges


def test_28_self_loops_are_dropped():
    assert warned("1 self-loops: dropped", with_odd(pair(((0, 0), (0, 1), (1, 0)))))[3].num_edges == 2
    refused("1 self-loops", with_odd(pair(((0, 0), (0, 1), (1, 0)))), repair=False)


def test_29_repeated_edges_are_dropped_with_their_attributes():
    graphs = [pair(edge_attr=torch.tensor([1.0, 1.0])) for _ in range(3)]
    graphs.append(pair(((0, 1), (1, 0), (0, 1), (1, 0)), edge_attr=torch.tensor([2.0, 2.0, 2.0, 2.0])))
    assert warned("2 repeated edges", graphs)[3].edge_attr.tolist() == [[2.0], [2.0]]
    refused("2 repeated edges", graphs, repair=False)


def test_29_directions_that_disagree_take_the_first():
    graphs = [pair(edge_attr=torch.tensor([1, 1])) for _ in range(3)] + [
        pair(((1, 0), (0, 1)), edge_attr=torch.tensor([0, 2]))
    ]
    items = warned("1 repeated or reverse edges have other attributes", graphs)
    assert items[3].edge_attr.tolist() == [2, 2]


@pytest.mark.parametrize("node", [7, -1])
def test_30_31_edges_out_of_range(tmp_path, node):
    refused(f"graph 3: edge_index names node {node}, but there are 2 nodes", with_odd(pair(((0, node), (node, 0)))))
    np.savez(tmp_path / "bad.npz", num_nodes=[2, 2], edge_ptr=[0, 1, 2], edges=[[0, 1], [0, node]])
    refused(f"graph 1: edge_index names node {node}", tmp_path / "bad.npz")
    with pytest.raises(DataError, match=f"graph 0: edge_index names node {node}"):
        validate([pair(((0, node), (node, 0)))], describe(tiny_graphs(3), "graph"))


def test_32_float_edges(tmp_path):
    odd = pair()
    odd.edge_index = odd.edge_index.float()
    refused(r"graph 3: edge_index must be int64 \(2, edges\), got torch.float32 \(2, 2\)", with_odd(odd))
    odd.edge_index = torch.zeros(3, 2, dtype=torch.int64)
    refused(r"got torch.int64 \(3, 2\)", with_odd(odd))
    np.savez(tmp_path / "bad.npz", num_nodes=[2], edge_ptr=[0, 1], edges=[[0.0, 1.0]])
    refused(r"edges must be integers \(edges, 2\)", tmp_path / "bad.npz")


def test_32_other_integer_types_are_cast():
    odd = pair()
    odd.edge_index = odd.edge_index.int()
    assert quiet(with_odd(odd))[3].edge_index.dtype == torch.int64


def test_33_edges_in_one_direction_are_mirrored():
    assert warned("1 edges are stored in one direction: mirrored", with_odd(pair(((1, 0),))))[
        3
    ].edge_index.tolist() == [
        [0, 1],
        [1, 0],
    ]
    refused("1 edges are stored in one direction", with_odd(pair(((1, 0),))), repair=False)
    with pytest.raises(DataError, match="graph 3: edge 1->0 has no edge 0->1"):
        validate(with_odd(pair(((1, 0),))), describe(tiny_graphs(3), "graph"))


def test_28_29_the_frame_counts_loops_and_repeats_of_foreign_data():
    with pytest.warns(UserWarning, match="1 self-loops and 2 repeated edges"):
        validate([pair(((0, 0), (0, 1), (1, 0), (0, 1), (1, 0)))], describe(tiny_graphs(3), "graph"))


def test_33_directed_networkx_graphs():
    with pytest.warns(UserWarning, match="3 edges are stored in one direction"):
        data = LargeGraphDataModule(nx.cycle_graph(3, create_using=nx.DiGraph))
        data.setup()
    assert data.train_items()[0].num_edges == 6
    with pytest.raises(DataError, match="one direction"):
        LargeGraphDataModule(nx.cycle_graph(3, create_using=nx.DiGraph), repair=False).setup()


def test_35_graphs_above_the_limit():
    big = pair([(i, i + 1) for i in range(49)] + [(i + 1, i) for i in range(49)], 50)
    refused(
        r"1 graphs have more than max_nodes=10 nodes \(1 train, 0 val, 0 test\), the largest is graph 3 with 50",
        with_odd(big),
        max_nodes=10,
    )
    assert len(warned("left out", with_odd(big), max_nodes=10, oversize="drop")) == 3
    with pytest.raises(ConfigError, match="oversize"):
        GraphDataModule(with_odd(big), oversize="skip")


def test_36_one_graph_much_larger_than_the_others():
    big = pair((), 900)
    match = "the largest training graph has 900 nodes, 9 is the median: a model over all pairs of nodes needs about 3.1"
    warned(match, with_odd(big))


def test_37_types_out_of_range():
    graphs = [pair(x=torch.tensor([0, 1])) for _ in range(3)]
    schema = describe(graphs, "graph")
    with pytest.raises(DataError, match=r"graph 0: x holds type 5, outside 0\.\.1"):
        validate([pair(x=torch.tensor([0, 5]))], schema)
    with pytest.raises(DataError, match="outside"):
        validate([pair(x=torch.tensor([0, -1]))], schema)


def test_38_x_that_some_graphs_lack():
    graphs = [pair(x=torch.rand(2, 3)) for _ in range(3)] + [pair()]
    refused("graph 3 has no x, but others have", graphs)
    assert all(item.get("x") is None for item in quiet([pair() for _ in range(4)]))


def test_38_x_of_other_widths_and_types():
    graphs = [pair(x=torch.rand(2, 3)) for _ in range(3)]
    refused("different types or widths", [*graphs, pair(x=torch.rand(2, 4))])
    refused("different types or widths", [*graphs, pair(x=torch.ones(2, 3, dtype=torch.int64))])
    refused("3 integer columns", [pair(x=torch.ones(2, 3, dtype=torch.int64)) for _ in range(4)])


def test_39_attributes_of_a_wrong_length():
    graphs = [pair(edge_attr=torch.tensor([1, 1]))] * 3
    refused("graph 3: 3 rows of edge_attr for 2 edges", [*graphs, pair(edge_attr=torch.tensor([1, 1, 1]))])
    refused("graph 3: 1 rows of x for 2 nodes", [*[pair(x=torch.rand(2, 1))] * 3, pair(x=torch.rand(1, 1))])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_attributes(value):
    graphs = [pair(x=torch.rand(2, 3), edge_attr=torch.rand(1, 1).repeat(2, 1)) for _ in range(4)]
    graphs[2].x[1, 1] = value
    refused("graph 2: node attribute is not finite", graphs)
    graphs[2].x[1, 1] = 0.0
    graphs[1].edge_attr[:] = value
    refused("graph 1: edge attribute is not finite", graphs)
    with pytest.raises(DataError, match="graph 1: edge_attr has non-finite values"):
        validate(graphs, describe(graphs, "graph"))


def test_labels_that_some_graphs_lack_or_have_twice():
    bare = tiny_graphs(1, num_classes=0)[0]
    refused("graph 3 has no y, but graph 0 has", [*tiny_graphs(3), bare])
    bare.y = torch.tensor([0, 1])
    refused("graph 3: y holds 2 integers; a graph has one label", [*tiny_graphs(3), bare])
    bare.y = torch.tensor([float("nan")])
    refused("graph 3: graph label is not finite", [*tiny_graphs(3), bare])


def test_attributes_without_a_place_are_named():
    odd = pair()
    odd.pos = torch.rand(2, 3)
    warned("['pos'] are not used", with_odd(odd))


def test_43_permuted_nodes_have_the_same_features():
    graphs = [Data(**{**graph.to_dict(), "x": torch.arange(graph.num_nodes) % 3}) for graph in tiny_graphs(4)]
    permuted = []
    for graph in graphs:
        order = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(0))
        rank = order.argsort()
        permuted.append(Data(edge_index=rank[graph.edge_index], x=graph.x[order], y=graph.y, num_nodes=graph.num_nodes))
    schema = describe(graphs, "graph")
    np.testing.assert_allclose(features(permuted, schema), features(graphs, schema))


def test_conditions_are_a_mapping():
    with pytest.raises(ConfigError, match="must map names"):
        GraphDataModule(tiny_graphs(3), ALL, conditions=("density",))


@pytest.mark.parametrize(
    ("conditions", "error", "match"),
    [
        ({"x": [1.0] * 4}, ConfigError, "'x' is a field"),
        ({"label": [1.0] * 4}, ConfigError, "'label' is a field"),
        ({"num_nodes": [1.0] * 4}, ConfigError, "'num_nodes' is a field"),
        ({"density": 0.5}, ConfigError, "one number a graph"),
        ({"density": ["a"] * 4}, DataError, "graph 0: condition 'density' is no number"),
        ({"density": lambda graph: graph.edge_index}, DataError, "graph 0: condition 'density' is no number"),
    ],
)
def test_conditions_that_cannot_be(conditions, error, match):
    with pytest.raises(error, match=match):
        GraphDataModule(tiny_graphs(4), ALL, conditions=conditions).setup()


@pytest.mark.parametrize("source", [None, 3, tiny_graphs(1)[0], nx.path_graph(3)], ids=lambda s: type(s).__name__)
def test_a_source_that_is_no_list(source):
    refused("a list of graphs is needed", source)


def test_lists_of_mixed_kinds():
    refused("graph 3 is a Graph, not a PyG Data", [*tiny_graphs(3), nx.path_graph(3)])


def test_a_batch_is_a_list():
    graphs = tiny_graphs(4)
    items = GraphDataModule(Batch.from_data_list(graphs), ALL).train_items()
    assert [item.edge_index.tolist() for item in items] == [
        item.edge_index.tolist() for item in GraphDataModule(graphs, ALL).train_items()
    ]


def test_26_empty_edges_of_any_type():
    empty = Data(edge_index=torch.tensor([[], []]), num_nodes=2, y=torch.tensor([0]))
    assert GraphDataModule(with_odd(empty), ALL).train_items()[3].edge_index.dtype == torch.int64


def test_split_by_masks():
    graphs, train = tiny_graphs(6), np.array([True, True, False, True, False, False])
    data = GraphDataModule(graphs, (train, ~train & (np.arange(6) > 3), np.arange(6) == 2))
    by_index = GraphDataModule(graphs, ([0, 1, 3], [4, 5], [2]))
    for name in ("train", "val", "test"):
        parts = [[item.edge_index.tolist() for item in getattr(m.splits, name)] for m in (data, by_index)]
        assert parts[0] == parts[1]


def test_npz_cut_short_and_odd_splits(tmp_path):
    arrays = {"num_nodes": np.array([2]), "edge_ptr": np.array([0, 1]), "edges": np.array([[0, 1]])}
    np.savez(tmp_path / "odd.npz", **arrays, split=np.array(["train"]))
    refused("split must hold 0", tmp_path / "odd.npz")
    (tmp_path / "half.npz").write_bytes((tmp_path / "odd.npz").read_bytes()[:-30])
    refused("is no npz of plain arrays", tmp_path / "half.npz")
