"""Functions of NetworkX: the very graphs that they make, and parameters from training graphs."""

import networkx as nx
import pytest
import torch
from torch_geometric.utils import from_networkx

import lightning_synth as ls
from lightning_synth.errors import ConfigError
from lightning_synth.plugins.graph.networkx_model import NetworkXModel
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe


def edge_set(edges):
    return {tuple(sorted(edge)) for edge in edges}


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        ("watts_strogatz_graph", {"n": 20, "k": 4, "p": 0.3}),
        ("barabasi_albert_graph", {"n": 20, "m": 2}),
        ("random_geometric_graph", {"n": 15, "radius": 0.4}),
        ("stochastic_block_model", {"sizes": [5, 8], "p": [[0.7, 0.1], [0.1, 0.5]]}),
        ("scale_free_graph", {"n": 12}),
        ("grid_2d_graph", {"m": 3, "n": 4}),
    ],
)
def test_a_row_is_the_graph_of_the_function(function, parameters):
    model = ls.get_generator("networkx_model")(function=function, **parameters)
    requests = model.make_requests(3, seed=4)
    # The seed that the row hands over: edges, then the first draw.
    seeds = KeyedRNG(requests.seed).fork("edges").integers(1 << 31).tolist()
    for graph, seed in zip(model.sample(requests).items(), seeds, strict=True):
        seeded = {} if function == "grid_2d_graph" else {"seed": seed}
        theirs = nx.convert_node_labels_to_integers(nx.Graph(getattr(nx, function)(**parameters, **seeded)))
        theirs.remove_edges_from(list(nx.selfloop_edges(theirs)))
        assert graph.num_nodes == len(theirs)
        assert edge_set(graph.edge_index.T.tolist()) == edge_set(theirs.edges())


@pytest.fixture(scope="module")
def graphs():
    return [from_networkx(nx.gnm_random_graph(10 + 5 * i, 20 + 10 * i, seed=i)) for i in range(4)]


def test_sizes_and_edges_come_from_training_graphs(graphs):
    schema = describe(graphs, "graph")
    known = {(graph.num_nodes, graph.num_edges) for graph in graphs}
    items = NetworkXModel().fit_on(graphs, schema).sample(30, seed=1).items()
    assert {(graph.num_nodes, graph.num_edges) for graph in items} == known
    items = NetworkXModel("barabasi_albert_graph").fit_on(graphs, schema).sample(30, seed=1).items()
    assert {(graph.num_nodes, graph.num_edges // 2) for graph in items} == {(n, 2 * (n - 2)) for n in (10, 15, 20, 25)}


def test_a_statistic_by_name(graphs):
    model = NetworkXModel("watts_strogatz_graph", k="mean_degree", p=0.0).fit_on(graphs, describe(graphs, "graph"))
    assert all(graph.num_edges == 4 * graph.num_nodes for graph in model.sample(10).items())
    assert model.hparams.parameters == {"k": "mean_degree", "p": 0.0}
    same = NetworkXModel("watts_strogatz_graph", parameters={"k": "mean_degree", "p": 0.0})
    assert same.hparams.parameters == model.hparams.parameters


def test_refusals_of_networkx_are_named():
    with pytest.raises(ConfigError, match=r"networkx refuses random_regular_graph\(d=3, n=5\): n \* d must be even"):
        NetworkXModel("random_regular_graph", d=3, n=5).sample(1)
    with pytest.raises(ConfigError, match="no graph with nodes"):
        NetworkXModel("path_graph", n=0).sample(1)
    with pytest.raises(TypeError, match="watts_strogatz_graph has no argument 'prob'"):
        NetworkXModel("watts_strogatz_graph", k=4, prob=0.1)


def test_isolated_nodes_are_kept():
    graph = NetworkXModel("empty_graph", n=4).sample(1).items()[0]
    assert graph.num_nodes == 4 and graph.edge_index.shape == (2, 0)
    assert torch.equal(graph.edge_index, torch.zeros(2, 0, dtype=torch.int64))
