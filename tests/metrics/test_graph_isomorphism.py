"""Hashes and the exact search: known pairs, NetworkX, types, the limit."""

from __future__ import annotations

from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest

from lightning_synth.metrics.graph_isomorphism import is_isomorphic, isomorphism_classes, wl_hashes


def item(g: nx.Graph, x=None, types=None) -> SimpleNamespace:
    """Edges in both directions, in the order of the graph's edges; `types` follow that order."""
    g = nx.convert_node_labels_to_integers(g)
    ends = np.array(list(g.edges), dtype=np.int64).reshape(-1, 2).T
    fields = {} if x is None else {"x": np.asarray(x)}
    if types is not None:
        fields["edge_attr"] = np.tile(np.asarray(types), 2)
    return SimpleNamespace(edge_index=np.concatenate([ends, ends[::-1]], 1), num_nodes=len(g), **fields)


def shuffled(graph: SimpleNamespace, seed: int = 0) -> SimpleNamespace:
    """The same graph with nodes and edges in another order."""
    rng = np.random.default_rng(seed)
    order, edges = rng.permutation(graph.num_nodes), rng.permutation(graph.edge_index.shape[1])
    fields = {"edge_index": order[graph.edge_index][:, edges], "num_nodes": graph.num_nodes}
    if hasattr(graph, "x"):
        fields["x"] = graph.x[np.argsort(order)]
    if hasattr(graph, "edge_attr"):
        fields["edge_attr"] = graph.edge_attr[edges]
    return SimpleNamespace(**fields)


def shrikhande() -> nx.Graph:
    steps = ((0, 1), (1, 0), (1, 1))
    return nx.Graph(((a, b), ((a + c) % 4, (b + d) % 4)) for a in range(4) for b in range(4) for c, d in steps)


@pytest.mark.parametrize(
    "g",
    [
        nx.empty_graph(1),
        nx.empty_graph(30),
        nx.complete_graph(30),
        nx.star_graph(40),
        nx.cycle_graph(50),
        nx.hypercube_graph(5),
        nx.paley_graph(29).to_undirected(),
        nx.disjoint_union(nx.cycle_graph(5), nx.cycle_graph(6)),
        nx.random_labeled_tree(64, seed=0),
        nx.gnp_random_graph(100, 0.1, seed=0),
        shrikhande(),
    ],
)
def test_another_order_of_nodes_is_the_same_graph(g: nx.Graph) -> None:
    graph = item(g)
    for seed in range(2):
        other = shuffled(graph, seed)
        assert is_isomorphic(graph, other) is True
        assert wl_hashes([graph])[0] == wl_hashes([other])[0]


@pytest.mark.parametrize("regular", [False, True])
def test_agrees_with_networkx(regular: bool) -> None:
    rng = np.random.default_rng(0)
    same = 0
    for _ in range(120 if regular else 300):
        n = int(rng.integers(3, 7)) * 2 if regular else int(rng.integers(1, 6))
        seeds = rng.integers(1 << 30, size=2).tolist()
        pair = [
            nx.random_regular_graph(3, n, seed=s) if regular else nx.gnp_random_graph(n, 0.5, seed=s) for s in seeds
        ]
        expected = nx.is_isomorphic(*pair)
        assert is_isomorphic(*map(item, pair)) is expected
        same += expected
    assert same > 10


def test_graphs_that_colour_refinement_cannot_tell_apart() -> None:
    rook = nx.line_graph(nx.complete_bipartite_graph(4, 4))
    pairs = [(rook, shrikhande()), (nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3)))]
    for first, second in pairs:
        a, b = item(first), item(second)
        assert len(set(wl_hashes([a, b]).tolist())) == 1
        assert is_isomorphic(a, b) is False and isomorphism_classes([a, b]).labels.tolist() == [0, 1]


def test_sizes_and_edges_that_differ() -> None:
    assert is_isomorphic(item(nx.path_graph(4)), item(nx.path_graph(5))) is False
    assert is_isomorphic(item(nx.path_graph(4)), item(nx.cycle_graph(4))) is False


def test_types_of_nodes_and_edges_count() -> None:
    path = nx.path_graph(4)
    a, b, c = (item(path, x=kinds) for kinds in ([0, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1]))
    assert is_isomorphic(a, b) is True and is_isomorphic(a, c) is False
    a, b, c = (item(path, types=kinds) for kinds in ([1, 0, 0], [0, 0, 1], [0, 1, 0]))
    assert is_isomorphic(a, shuffled(b)) is True and is_isomorphic(a, c) is False
    assert isomorphism_classes([a, c, b]).labels.tolist() == [0, 1, 0]
    coloured = item(nx.gnp_random_graph(30, 0.2, seed=1), x=np.arange(30) % 3)
    assert is_isomorphic(coloured, shuffled(coloured)) is True


def test_float_features_do_not_count() -> None:
    a, b = item(nx.path_graph(3), x=np.zeros((3, 2))), item(nx.path_graph(3), x=np.ones((3, 2)))
    assert is_isomorphic(a, b) is True


def test_limit_is_real_and_counts_as_equal() -> None:
    a, b = item(nx.line_graph(nx.complete_bipartite_graph(4, 4))), item(shrikhande())
    assert is_isomorphic(a, b, limit=3) is None
    found = isomorphism_classes([a, b], limit=3)
    assert found.labels.tolist() == [0, 0] and found.undecided == 1


def test_classes_point_to_their_first_graph() -> None:
    g, h = item(nx.gnp_random_graph(12, 0.4, seed=0)), item(nx.gnp_random_graph(12, 0.4, seed=1))
    found = isomorphism_classes([h, g, shuffled(g), g, shuffled(h)])
    assert found.labels.tolist() == [0, 1, 1, 1, 0] and found.undecided == 0
    assert len(isomorphism_classes([]).labels) == 0


def test_hash_does_not_depend_on_the_company() -> None:
    items = [item(nx.gnp_random_graph(n, 0.3, seed=n)) for n in (3, 9, 20)]
    from lightning_synth.metrics import graph_isomorphism

    alone = [graph_isomorphism._hash([graph])[0] for graph in items]
    assert alone == graph_isomorphism._hash(items) and len(set(alone)) == 3
