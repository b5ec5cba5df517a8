"""What all classical generators have in common: sizes, classes, rows, checkpoints, given parameters, bad input."""

import networkx as nx
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_networkx

import lightning_synth as ls
from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.plugins.graph.classical import simple_edges, triangles
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_graphs, tiny_schema

FITTED = {
    "erdos_renyi": {},
    "barabasi_albert": {},
    "watts_strogatz": {},
    "random_geometric": {},
    "configuration_model": {},
    "chung_lu": {},
    "sbm": {"max_blocks": 3},
    "sbm_refit": {"max_blocks": 3},
    "dcsbm": {"max_blocks": 3},
    "rmat": {},
    "bter": {},
    "dk_rewiring": {},
    "networkx_model": {},
}
GIVEN = {
    "erdos_renyi": {"p": 0.1},
    "barabasi_albert": {"m": 3},
    "watts_strogatz": {"k": 4, "p": 0.2},
    "random_geometric": {"radius": 0.2},
    "configuration_model": {"mean_degree": 4.0, "exponent": 2.5},
    "chung_lu": {"mean_degree": 4.0, "exponent": 2.5},
    "sbm": {"shares": [0.7, 0.3], "probabilities": [[0.3, 0.05], [0.05, 0.2]]},
    "rmat": {"mean_degree": 4.0, "quadrants": [0.5, 0.2, 0.2, 0.1]},
}


def random_graphs(n=12, seed=0):
    """Graphs of 10 to 60 nodes with node types, edge types and two classes; class 1 is three times as dense."""
    graphs = []
    for i in range(n):
        graph = nx.gnp_random_graph(10 + 50 * (i * 7 % n) // n, 0.06 + 0.12 * (i % 2), seed=seed + i)
        edges = torch.tensor(list(graph.edges()), dtype=torch.int64).reshape(-1, 2).T
        types = edges.sum(0) % 3
        x = torch.arange(len(graph)) % 4
        both = torch.cat([edges, edges.flip(0)], 1)
        graphs.append(
            Data(x=x, edge_index=both, edge_attr=types.repeat(2), y=torch.tensor([i % 2]), num_nodes=len(graph))
        )
    return graphs


def fitted(name, graphs, **options):
    return ls.get_generator(name)(**{**FITTED[name], **options}).fit_on(graphs, describe(graphs, "graph"))


@pytest.fixture(scope="module")
def graphs():
    return random_graphs()


@pytest.mark.parametrize("name", FITTED)
def test_rows_of_very_different_sizes_depend_on_their_own_seed_only(name, graphs):
    model = fitted(name, graphs)
    requests = model.make_requests(12, seed=5)
    together = model.sample(requests).items()
    alone = [model.sample(requests[i : i + 1]).items()[0] for i in range(12)]
    assert len({graph.num_nodes for graph in alone}) > 4
    for one, other in zip(together, alone, strict=True):
        assert one.num_nodes == other.num_nodes and torch.equal(one.edge_index, other.edge_index)
        assert torch.equal(one.x, other.x) and torch.equal(one.edge_attr, other.edge_attr)


@pytest.mark.parametrize("name", FITTED)
def test_samples_are_simple_and_have_the_sizes_and_densities_of_their_class(name, graphs):
    model = fitted(name, graphs)
    density = []
    for label in (0, 1):
        sizes = {graph.num_nodes for graph in graphs if int(graph.y) == label}
        items = model.sample(60, condition={"label": label}, seed=1).items()
        assert {graph.num_nodes for graph in items} == sizes
        for graph in items:
            assert graph.is_undirected() and not graph.has_self_loops() and graph.is_coalesced()
        edges = sum(graph.num_edges for graph in items)
        density.append(edges / sum(graph.num_nodes * (graph.num_nodes - 1) for graph in items))
    assert density[0] == pytest.approx(0.06, abs=0.025) and density[1] == pytest.approx(0.18, abs=0.04)


@pytest.mark.parametrize("name", sorted(set(FITTED) - {"sbm_refit", "dk_rewiring", "networkx_model"}))
def test_another_size_keeps_the_mean_degree(name, graphs):
    # 40 nodes and more: in smaller graphs repeats and cut-off probabilities cost edges that large ones have.
    graphs = [graph for graph in graphs if graph.num_nodes >= 40 and int(graph.y) == 0]
    model = fitted(name, graphs, num_nodes=4000)
    degrees = [graph.num_edges / graph.num_nodes for graph in model.sample(4 * len(graphs), seed=3).items()]
    expected = sum(graph.num_edges / graph.num_nodes for graph in graphs) / len(graphs)
    spread = torch.tensor([graph.num_edges / graph.num_nodes for graph in graphs]).std() / len(degrees) ** 0.5
    assert sum(degrees) / len(degrees) == pytest.approx(expected, rel=0.03, abs=4 * float(spread))


@pytest.mark.parametrize("name", GIVEN)
def test_given_parameters_need_no_data(name):
    model = ls.get_generator(name)(num_nodes=100, **GIVEN[name])
    items = model.sample(3, seed=1).items()
    assert [graph.num_nodes for graph in items] == [100] * 3
    # After a fit to other graphs they still hold.
    graphs = tiny_graphs(4, num_classes=0)
    again = ls.get_generator(name)(num_nodes=100, **GIVEN[name]).fit_on(graphs, describe(graphs, "graph"))
    assert all(
        torch.equal(one.edge_index, other.edge_index)
        for one, other in zip(items, again.sample(3, seed=1).items(), strict=True)
    )
    with pytest.raises(NotFittedError, match="num_nodes"):
        ls.get_generator(name)(**GIVEN[name]).sample(1)


@pytest.mark.parametrize("name", FITTED)
def test_checkpoints_do_not_keep_the_graphs(name, graphs, tmp_path):
    from lightning.pytorch import Trainer

    from lightning_synth.datamodules.base import ItemsDataModule

    data = ItemsDataModule(graphs, domain="graph", batch_size=4)
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    model = ls.get_generator(name)(**FITTED[name])
    trainer.fit(model, datamodule=data)
    assert not len(model.bank)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = ls.load_generator(tmp_path / "model.ckpt")
    pairs = zip(model.sample(6, seed=2).items(), again.sample(6, seed=2).items(), strict=True)
    assert all(torch.equal(one.edge_index, other.edge_index) for one, other in pairs)


@pytest.mark.parametrize("name", FITTED)
def test_graphs_without_edges_and_single_nodes(name):
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    graphs = [Data(edge_index=nothing, num_nodes=n) for n in (1, 2, 5)]
    items = fitted(name, graphs).sample(20, seed=0).items()
    assert {graph.num_nodes for graph in items} == {1, 2, 5} and not sum(graph.num_edges for graph in items)


@pytest.mark.parametrize("name", FITTED)
def test_complete_graphs(name):
    full = torch.triu_indices(6, 6, 1)
    graphs = [Data(edge_index=torch.cat([full, full.flip(0)], 1), num_nodes=6)] * 2
    items = fitted(name, graphs).sample(20, seed=0).items()
    # BA cannot have more than n^2 / 4 edges, the ring has an even degree, pairing erases loops and repeats.
    least = {"barabasi_albert": 9, "watts_strogatz": 12, "configuration_model": 4, "bter": 8, "chung_lu": 8}
    assert min(graph.num_edges for graph in items) >= 2 * least.get(name, 8)


def test_a_class_without_graphs_is_named(graphs):
    one = [graph for graph in graphs if int(graph.y) == 1]
    schema = {**describe(one, "graph"), "class_names": ["rare", "common"]}
    model = ls.get_generator("erdos_renyi")().fit_on(one, schema)
    with pytest.raises(ConfigError, match="class 0 \\('rare'\\) has no training item"):
        model.sample(1, condition={"label": 0})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("erdos_renyi", {"num_nodes": 0}, "num_nodes must be at least 1"),
        ("erdos_renyi", {"p": 1.5}, r"p must lie in \[0, 1\]"),
        ("barabasi_albert", {"m": 0}, "m must be at least 1"),
        ("barabasi_albert", {"num_nodes": 3, "m": 3}, "num_nodes must be greater than m = 3"),
        ("watts_strogatz", {"k": 3}, "k must be even"),
        ("watts_strogatz", {"k": 4, "num_nodes": 4}, "num_nodes must be greater than k = 4"),
        ("random_geometric", {"radius": -1.0}, "radius"),
        ("chung_lu", {"mean_degree": 3.0}, "both mean_degree and exponent"),
        ("chung_lu", {"mean_degree": 3.0, "exponent": 2.0}, "exponent must be above 2"),
        ("configuration_model", {"mean_degree": 30.0, "exponent": 3.0, "num_nodes": 20}, "mean_degree"),
        ("sbm", {"shares": [0.5, 0.5]}, "both shares and probabilities"),
        ("sbm", {"shares": [1.0, -1.0], "probabilities": [[0.1, 0.1], [0.1, 0.1]]}, "shares must not be negative"),
        ("sbm", {"shares": [1.0], "probabilities": [[0.1, 0.2]]}, "1 x 1 table"),
        ("sbm", {"shares": [0.5, 0.5], "probabilities": [[0.1, 0.2], [0.3, 0.1]]}, "symmetric"),
        ("sbm", {"shares": [0.5, 0.5], "probabilities": [[0.1, 2.0], [2.0, 0.1]]}, r"probabilities\[0\]\[1\]"),
        ("sbm", {"max_blocks": 0}, "max_blocks must be at least 1"),
        ("dcsbm", {"num_blocks": 0}, "num_blocks must be at least 1"),
        ("sbm_refit", {"num_nodes": 5}, "leave num_nodes out"),
        ("rmat", {"quadrants": [0.5, 0.5, 0.5, 0.5]}, "four shares that add up to 1"),
        ("rmat", {"quadrants": [0.5, 0.5]}, "four shares"),
        ("dk_rewiring", {"d": 3}, "d must be 1"),
        ("dk_rewiring", {"swaps": -1.0}, "swaps"),
        ("dk_rewiring", {"num_nodes": 5}, "leave num_nodes out"),
        ("networkx_model", {"function": "watts_strogatz_grap"}, "did you mean 'watts_strogatz_graph'"),
        ("networkx_model", {"function": "read_edgelist"}, "no generator function"),
        ("networkx_model", {"function": "watts_strogatz_graph", "k": 4}, "needs 'p'"),
        ("networkx_model", {"function": "gnp_random_graph", "p": "dense"}, "no statistic"),
    ],
)
def test_impossible_parameters_are_named(name, options, words):
    with pytest.raises(ConfigError, match=words):
        ls.get_generator(name)(**options)


@pytest.mark.parametrize(("name", "options"), [("barabasi_albert", {"m": 6}), ("watts_strogatz", {"k": 6})])
def test_training_graphs_too_small_for_given_parameters(name, options):
    with pytest.raises(ConfigError, match="needs larger graphs: a training graph has 5 nodes"):
        ls.get_generator(name)(**options).fit_on(tiny_graphs(16), tiny_schema("graph"))


def test_edges_of_untidy_graphs_are_counted_once():
    graph = Data(edge_index=torch.tensor([[0, 1, 0, 2, 2], [1, 0, 1, 2, 0]]), num_nodes=4)
    assert simple_edges(graph).tolist() == [[0, 0], [1, 2]]


def test_triangles_are_those_of_networkx():
    for seed in range(5):
        graph = nx.gnp_random_graph(40, 0.05 + 0.15 * seed, seed=seed)
        edges = torch.tensor(sorted(map(sorted, graph.edges())), dtype=torch.int64).reshape(-1, 2).T
        count, degree = triangles(edges, 40)
        assert count.tolist() == list(nx.triangles(graph).values())
        assert degree.tolist() == [d for _, d in graph.degree()]


def test_node_and_edge_types_come_from_the_class(graphs):
    for graph in graphs:
        if int(graph.y) == 1:
            graph.x = 4 + graph.x % 2
    model = fitted("chung_lu", graphs)
    for label, types in ((0, {0, 1, 2, 3}), (1, {4, 5})):
        items = model.sample(10, condition={"label": label}).items()
        assert set(torch.cat([graph.x for graph in items]).tolist()) == types
        back = [to_networkx(graph, edge_attrs=["edge_attr"]) for graph in items]
        assert all(g[u][v]["edge_attr"] == g[v][u]["edge_attr"] for g in back for u, v in g.edges())
