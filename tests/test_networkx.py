"""NetworkX graphs in and out: nothing is lost on the way, and every class of graph is understood."""

import subprocess
import sys
import warnings

import networkx as nx
import pytest
import torch
from torch_geometric.data import Batch, Data

from lightning_synth.datamodules import GraphDataModule
from lightning_synth.errors import DataError
from lightning_synth.networkx import from_networkx, to_networkx
from lightning_synth.registry import get_generator
from lightning_synth.schema import item_hashes
from lightning_synth.testing import tiny_graphs


def typed(graph):
    """Types on nodes and edges; an edge has one type in both directions."""
    row, col = graph.edge_index
    return Data(
        edge_index=graph.edge_index,
        num_nodes=graph.num_nodes,
        x=torch.arange(graph.num_nodes) % 3,
        edge_attr=(row + col) % 2,
        y=graph.y,
        density=torch.tensor([0.25]),
    )


def featured(graph):
    row, col = graph.edge_index
    return Data(
        edge_index=graph.edge_index,
        num_nodes=graph.num_nodes,
        x=torch.rand(graph.num_nodes, 2, generator=torch.Generator().manual_seed(0)),
        edge_attr=torch.stack([row + col, row * col], 1).float(),
        y=torch.tensor([[0.5, 1.5]]),
    )


@pytest.mark.parametrize("make", [lambda graph: graph, typed, featured])
def test_round_trip(make):
    items = [make(graph) for graph in tiny_graphs(5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = from_networkx(to_networkx(items))
    schema = {"domain": "graph"}
    assert item_hashes(again, schema).tolist() == item_hashes(items, schema).tolist()


def test_attributes_have_their_names():
    graph = to_networkx([typed(tiny_graphs(2)[1])])[0]
    assert graph.nodes[4]["type"] == 1 and graph.edges[0, 1]["type"] == 1 and graph.graph["label"] == 1
    assert graph.graph["density"] == 0.25
    assert to_networkx([featured(tiny_graphs(1)[0])])[0].graph["label"] == [0.5, 1.5]


def test_isolated_nodes_and_batches():
    empty = Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=4)
    assert [len(graph) for graph in to_networkx(Batch.from_data_list([empty, empty]))] == [4, 4]
    assert from_networkx(nx.empty_graph(4))[0].num_nodes == 4


def test_named_nodes_strings_and_other_attribute_names():
    molecule = nx.Graph(label="toxic")
    molecule.add_node("b", element="O")
    molecule.add_node("a", element="C")
    molecule.add_edge("a", "b", bond=2.5)
    other = nx.Graph(label="fine")
    other.add_node(0, element="N")
    first, second = from_networkx([molecule, other], node_attr="element", edge_attr="bond")
    assert first.x.tolist() == [2, 0] and second.x.tolist() == [1] and first.edge_attr.tolist() == [[2.5], [2.5]]
    assert first.y.tolist() == [1] and second.y.tolist() == [0]
    assert from_networkx(molecule)[0].get("x") is None


def test_directed_and_multiple_edges_are_repaired_with_a_warning_each():
    both = nx.DiGraph([(0, 1), (1, 0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_networkx(both)[0].edge_index.tolist() == [[0, 1], [1, 0]]
    with pytest.warns(UserWarning, match="1 edges are stored in one direction: mirrored"):
        assert from_networkx(nx.DiGraph([(2, 1)]))[0].edge_index.tolist() == [[0, 1], [1, 0]]
    with pytest.warns(UserWarning, match="1 repeated edges"):
        assert from_networkx(nx.MultiGraph([(0, 1), (1, 0)]))[0].num_edges == 2
    with pytest.warns(UserWarning, match="1 self-loops"):
        assert from_networkx(nx.Graph([(0, 0), (0, 1)]))[0].num_edges == 2
    with pytest.raises(DataError, match="1 self-loops"):
        from_networkx(nx.Graph([(0, 0), (0, 1)]), repair=False)
    # An undirected graph beside a directed one is no graph of lone directions.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_networkx([both, nx.path_graph(3)])[1].num_edges == 4


def test_what_only_some_have_is_named():
    half = nx.path_graph(3)
    half.nodes[0]["type"] = 1
    with pytest.raises(DataError, match="graph 0: a node has no attribute 'type'"):
        from_networkx(half)
    with pytest.raises(DataError, match="graph 1 has no graph attribute 'label'"):
        from_networkx([nx.Graph([(0, 1)], label=1), nx.path_graph(2)])
    with pytest.raises(DataError, match="graph 1 is a list, not a networkx graph"):
        from_networkx([nx.path_graph(2), [(0, 1)]])
    odd = nx.path_graph(2)
    nx.set_node_attributes(odd, {0: [1.0], 1: [1.0, 2.0]}, "features")
    with pytest.raises(DataError, match="different lengths"):
        from_networkx(odd)


def test_importing_the_library_does_not_import_networkx():
    code = "import sys, lightning_synth as ls; ls.list_generators(); assert 'networkx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_class_names_survive_the_datamodule():
    graphs = [nx.path_graph(3 + i) for i in range(4)]
    for i, graph in enumerate(graphs):
        graph.graph["label"] = ("ring", "chain")[i % 2]
    data = GraphDataModule(graphs, ([0, 1, 2, 3], []))
    assert data.schema["class_names"] == ["chain", "ring"] and [int(g.y) for g in data.train_items()] == [1, 0, 1, 0]


def test_attributes_that_are_not_read_are_named():
    graph = nx.path_graph(3, create_using=nx.Graph)
    nx.set_node_attributes(graph, 1, "colour")
    nx.set_edge_attributes(graph, 1.0, "weight")
    graph.graph["y"] = 1
    with pytest.warns(UserWarning) as caught:
        from_networkx(graph)
    words = " ".join(str(warning.message) for warning in caught)
    assert all(f"attributes [{name!r}] are not used" in words for name in ("colour", "weight", "y"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        item = from_networkx(graph, node_attr="colour", edge_attr="weight", label="y")[0]
    assert (item.x.tolist(), item.edge_attr.shape, item.y.tolist()) == ([1, 1, 1], (4, 1), [1])


def test_one_graph_and_samples_turn_into_networkx():
    samples = get_generator("networkx_model")("path_graph", n=4).sample(2)
    assert [graph.number_of_edges() for graph in to_networkx(samples)] == [3, 3]
    assert to_networkx(tiny_graphs(1)[0])[0].number_of_nodes() == tiny_graphs(1)[0].num_nodes


def test_what_is_no_graph_is_named():
    with pytest.raises(DataError, match="got NoneType"):
        from_networkx(None)
