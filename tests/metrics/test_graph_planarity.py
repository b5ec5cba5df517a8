"""The planarity test against NetworkX, on graphs near the boundary and on large ones."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from lightning_synth.metrics.planarity import is_planar, is_planar_list


def planar(g: nx.Graph) -> bool:
    g = nx.convert_node_labels_to_integers(g)
    return is_planar(len(g), np.array(list(g.edges), dtype=int).reshape(-1, 2).T)


def test_small_random_graphs_agree_with_networkx() -> None:
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(1500):
        n = int(rng.integers(1, 13))
        upper = np.triu(rng.random((n, n)) < rng.uniform(0.1, 0.7), 1)
        expected = nx.check_planarity(nx.from_numpy_array(upper | upper.T))[0]
        assert is_planar(n, np.array(upper.nonzero())) == expected, upper.nonzero()
        assert is_planar_list([row.nonzero()[0].tolist() for row in upper | upper.T]) == expected
        answers.append(expected)
    assert 200 < sum(answers) < 1300


def test_triangulations_with_few_changes_agree_with_networkx() -> None:
    from scipy.spatial import Delaunay

    rng = np.random.default_rng(1)
    answers = []
    for _ in range(60):
        n = int(rng.integers(10, 60))
        corners = Delaunay(rng.random((n, 2))).simplices
        ends = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]])
        ends = np.concatenate([ends[rng.random(len(ends)) < 0.8], rng.integers(0, n, (int(rng.integers(0, 3)), 2))])
        ends = rng.permutation(n)[ends]
        g = nx.Graph(ends.tolist())
        g.add_nodes_from(range(n))
        expected = nx.check_planarity(g)[0]
        assert is_planar(n, ends.T) == expected
        answers.append(expected)
    assert 10 < sum(answers) < 50


@pytest.mark.parametrize(
    ("g", "expected"),
    [
        (nx.complete_graph(4), True),
        (nx.complete_graph(5), False),
        (nx.complete_bipartite_graph(3, 3), False),
        (nx.petersen_graph(), False),
        (nx.dodecahedral_graph(), True),
        (nx.grid_2d_graph(30, 30), True),
        (nx.disjoint_union(nx.grid_2d_graph(5, 5), nx.complete_bipartite_graph(3, 3)), False),
        (nx.disjoint_union_all([nx.complete_graph(4)] * 5), True),
        (nx.hypercube_graph(3), True),
        (nx.hypercube_graph(4), False),
        (nx.empty_graph(3), True),
        (nx.path_graph(20000), True),
    ],
)
def test_named_graphs(g: nx.Graph, expected: bool) -> None:
    assert planar(g) == expected


def test_subdivided_obstructions_in_a_large_planar_graph() -> None:
    """K5 with its edges made paths, glued to a grid, has few edges but is not planar."""
    g = nx.convert_node_labels_to_integers(nx.grid_2d_graph(10, 10))
    assert planar(g)
    new = 100
    for u, v in nx.complete_graph(5).edges:
        nx.add_path(g, [1000 + u, new, new + 1, 1000 + v])
        new += 2
    g.add_edge(0, 1000)
    assert not planar(g)
    g.remove_edge(1000, 100)
    assert planar(g)


def test_loops_direction_and_repetitions_do_not_matter() -> None:
    k4 = np.array(nx.complete_graph(4).edges).T
    messy = np.concatenate([k4, k4[::-1], k4, [[0, 1], [0, 1]]], axis=1)
    assert is_planar(4, messy) and is_planar(0, np.zeros((2, 0), int)) and is_planar(1, np.array([[0], [0]]))
