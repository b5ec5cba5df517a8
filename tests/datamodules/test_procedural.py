"""Procedural graph sets: each sampler makes the graphs its name says, at any size, from its seed alone."""

import networkx as nx
import numpy as np
import pytest

from lightning_synth.datamodules.procedural import (
    PROCEDURAL,
    community_graphs,
    ego_graphs,
    grid_graphs,
    lobster_graphs,
    planar_graphs,
    sbm_graphs,
    tree_edges,
    tree_graphs,
)
from lightning_synth.errors import ConfigError
from lightning_synth.networkx import to_networkx


def same(a, b):
    return a.num_nodes == b.num_nodes and a.edge_index.tolist() == b.edge_index.tolist()


@pytest.mark.parametrize("name", PROCEDURAL)
def test_any_count_any_seed_and_prefixes(name):
    make = PROCEDURAL[name]
    few, many, other = make(2, seed=1), make(4, seed=1), make(2, seed=2)
    assert len(many) == 4 and all(map(same, few, many)) and not all(map(same, few, other))
    assert all(graph.is_undirected() and not graph.has_self_loops() for graph in many)


@pytest.mark.parametrize("name", PROCEDURAL)
def test_impossible_sizes(name):
    for sizes in (0, (9, 5), 9.5, (9, 10, 11)):
        with pytest.raises(ConfigError, match="sizes"):
            PROCEDURAL[name](1, sizes=sizes)
    with pytest.raises(ConfigError, match="num_graphs"):
        PROCEDURAL[name](0)


def test_planar_graphs_are_planar_and_connected():
    graphs = to_networkx(planar_graphs(5, sizes=(10, 64)))
    assert all(nx.check_planarity(graph)[0] and nx.is_connected(graph) for graph in graphs)
    # A triangulation of points whose hull has h corners has 3 n - 3 - h edges.
    assert all(2 * len(graph) < graph.number_of_edges() <= 3 * len(graph) - 6 for graph in graphs)


def test_planar_graphs_are_those_of_the_benchmark(data_root):
    stored = np.load(data_root / "graphs" / "planar_64_200.npz")["edge_ptr"][-1] / 200
    ours = np.mean([graph.edge_index.shape[1] / 2 for graph in planar_graphs(200, seed=1)])
    assert abs(ours - stored) < 1.0


def test_all_labelled_trees_are_equally_likely():
    rng = np.random.default_rng(0)
    draws = [tuple(sorted(map(tuple, np.sort(tree_edges(4, rng), 1).tolist()))) for _ in range(4800)]
    trees, counts = np.unique(draws, axis=0, return_counts=True)
    assert len(trees) == 16
    # Chi-square of 15 degrees of freedom: above 37.7 once in a thousand.
    assert ((counts - 300) ** 2 / 300).sum() < 37.7


@pytest.mark.parametrize("nodes", [1, 2, 3, 64, 1000])
def test_trees_are_trees(nodes):
    assert nx.is_tree(to_networkx(tree_graphs(1, sizes=nodes))[0])


def test_sbm_has_the_blocks_and_densities_of_the_paper():
    graphs = to_networkx(sbm_graphs(20, sizes=30, blocks=3))
    assert all(len(graph) == 90 and nx.is_connected(graph) for graph in graphs)
    inside = sum(u // 30 == v // 30 for graph in graphs for u, v in graph.edges)
    across = sum(graph.number_of_edges() for graph in graphs) - inside
    assert inside / (20 * 3 * 435) == pytest.approx(0.3, abs=0.01)
    assert across / (20 * 3 * 900) == pytest.approx(0.005, abs=0.001)
    with pytest.raises(ConfigError, match="no connected graph"):
        sbm_graphs(1, p_in=0.0, p_out=0.0)


def test_lobsters_become_a_path_without_their_leaves_twice():
    for graph in to_networkx(lobster_graphs(20, sizes=(1, 60), seed=3)):
        assert nx.is_tree(graph)
        for _ in range(2):
            graph.remove_nodes_from([node for node, degree in list(graph.degree) if degree <= 1])
        assert not len(graph) or (nx.is_tree(graph) and max(dict(graph.degree).values()) <= 2)


def test_lobsters_have_geometric_legs():
    paths = [to_networkx(lobster_graphs(1, sizes=300, p1=0.0))[0], to_networkx(lobster_graphs(1, sizes=300, p2=0.0))[0]]
    assert nx.is_isomorphic(paths[0], nx.path_graph(300))
    # Legs without feet: 1 / (1 - p1) nodes for every node of the path.
    assert sum(degree > 1 for _, degree in paths[1].degree) == pytest.approx(300 * 0.3, abs=25)


def test_communities():
    for graph in to_networkx(community_graphs(10, sizes=(12, 20))):
        half = len(graph) // 2
        between = sum((u < half) != (v < half) for u, v in graph.edges)
        assert between == max(round(0.05 * len(graph)), 1)
    dense = to_networkx(community_graphs(1, sizes=30, communities=3, p_in=1.0, between=0.0))[0]
    assert dense.number_of_edges() == 3 * 45 + 3


def test_egos_are_neighbourhoods():
    for graph in to_networkx(ego_graphs(10, sizes=(4, 18))):
        assert 4 <= len(graph) <= 18 and nx.eccentricity(graph, 0) == 1
    ring = grid_graphs(1, sizes=5)[0]
    # Two steps from the middle of a grid reach 13 nodes.
    assert all(graph.num_nodes == 13 for graph in ego_graphs(3, sizes=13, radius=2, host=ring))
    with pytest.raises(ConfigError, match="no node of the host graph has 50 to 60 nodes within 1 steps"):
        ego_graphs(1, sizes=(50, 60), host=ring)


def test_grids():
    graphs = grid_graphs(200, sizes=(2, 4))
    assert {graph.num_nodes for graph in graphs} == {4, 6, 8, 9, 12, 16}
    assert nx.is_isomorphic(to_networkx(grid_graphs(1, sizes=7))[0], nx.grid_2d_graph(7, 7))
