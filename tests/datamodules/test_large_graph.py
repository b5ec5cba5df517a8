"""One large graph: what becomes its attributes, and edges held out without breaking it apart."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from lightning_synth.datamodules import GraphDataModule, LargeGraphDataModule
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.networkx import to_networkx
from lightning_synth.schema import labels
from lightning_synth.testing import check_datamodule, tiny_graphs, tiny_node


def test_conformance():
    check_datamodule(LargeGraphDataModule(nx.karate_club_graph(), hold_out=(0.05, 0.1)))


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "keys"),
    [
        ("polblogs", 1222, 16714, set()),
        ("cora_planetoid", 2708, 5278, {"x", "y"}),
        ("email_eu_core", 1005, 16064, {"x"}),
        ("karate", 34, 78, {"x"}),
    ],
)
def test_files(data_root, name, nodes, edges, keys):
    data = LargeGraphDataModule(data_root / "graphs" / f"{name}.npz")
    graph = data.train_items()[0]
    assert (graph.num_nodes, graph.num_edges) == (nodes, 2 * edges)
    assert set(graph.keys()) - {"edge_index", "num_nodes"} == keys
    assert labels(data.train_items(), data.schema) is None and data.schema["num_classes"] == 0


def test_node_labels_stay_beside_features(data_root):
    path = data_root / "graphs" / "cora_planetoid.npz"
    data = LargeGraphDataModule(path)
    graph = data.train_items()[0]
    assert graph.x.shape == (2708, 1433) and graph.y.shape == (2708,) and data.schema["num_node_classes"] == 7
    typed = LargeGraphDataModule(path, x="label")
    assert typed.schema["num_node_types"] == 7 and typed.train_items()[0].x.tolist() == graph.y.tolist()
    assert "num_node_classes" not in typed.schema


def test_data_with_masks_and_networkx_graphs():
    graph = LargeGraphDataModule(tiny_node()).train_items()[0]
    assert graph.x.shape == (30, 4) and graph.y.shape == (30,) and graph.get("train_mask") is None
    club = nx.karate_club_graph()
    nx.set_node_attributes(club, nx.get_node_attributes(club, "club"), "type")
    assert LargeGraphDataModule(club).schema["num_node_types"] == 2


@pytest.mark.parametrize("hold_out", [(0.1, 0.0), (0.05, 0.2)])
def test_held_out_edges_leave_the_components_whole(hold_out):
    whole = nx.connected_watts_strogatz_graph(60, 6, 0.2, seed=0)
    whole.add_edges_from([(60, 61), (61, 62), (62, 60)])
    data = LargeGraphDataModule(whole, hold_out=hold_out)
    left = to_networkx(data.train_items())[0]
    assert nx.number_connected_components(left) == 2
    held = {part: {tuple(pair) for pair in data.held_out_edges(part)[0].T.tolist()} for part in ("val", "test")}
    assert [len(held["val"]), len(held["test"])] == [round(share * 183) for share in hold_out]
    assert not held["val"] & held["test"] and not (held["val"] | held["test"]) & set(left.edges)
    assert set(left.edges) | held["val"] | held["test"] == {tuple(sorted(edge)) for edge in whole.edges}
    for part in ("val", "test"):
        non_edges = [tuple(pair) for pair in data.held_out_edges(part)[1].T.tolist()]
        assert len(set(non_edges)) == len(held[part]) and not any(whole.has_edge(*pair) for pair in non_edges)


def test_no_edge_of_a_tree_can_be_held_out():
    with pytest.raises(ConfigError, match="asks for 2 edges, but only 0"):
        LargeGraphDataModule(nx.path_graph(21), hold_out=(0.0, 0.1)).setup()


def test_the_draw_is_owned():
    graph = nx.karate_club_graph()
    first, again, other = (LargeGraphDataModule(graph, hold_out=(0, 0.2), seed=seed) for seed in (0, 0, 1))
    for a, b in zip(first.held_out_edges(), again.held_out_edges(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.held_out_edges()[0], other.held_out_edges()[0])


def test_wrong_sources(tmp_path, data_root):
    with pytest.raises(DataError, match="GraphDataModule"):
        LargeGraphDataModule(data_root / "graphs" / "MUTAG.npz").setup()
    with pytest.raises(DataError, match="does not exist"):
        LargeGraphDataModule(tmp_path / "none.npz").setup()
    with pytest.raises(DataError, match="0 nodes"):
        LargeGraphDataModule(nx.Graph()).setup()
    np.savez(tmp_path / "bad.npz", num_nodes=3, edges=[[0, 1]], y=[0, 1])
    with pytest.raises(DataError, match="2 node labels for 3 nodes"):
        LargeGraphDataModule(tmp_path / "bad.npz").setup()
    for options in ({"hold_out": (0.5, 0.5)}, {"hold_out": (0.1,)}, {"x": "y"}):
        with pytest.raises(ConfigError):
            LargeGraphDataModule(nx.path_graph(3), **options)
    with pytest.raises(ConfigError, match="'val' or 'test'"):
        LargeGraphDataModule(nx.path_graph(3)).held_out_edges("train")


def test_a_graph_with_a_graph_label_has_none_here():
    graph = tiny_graphs(1)[0]
    assert LargeGraphDataModule(graph).train_items()[0].get("y") is None
    assert GraphDataModule([graph], ([0], []), batch_size=1).train_items()[0].y.tolist() == [0]
    assert LargeGraphDataModule(Data(edge_index=graph.edge_index, num_nodes=graph.num_nodes)).schema["num_train"] == 1
