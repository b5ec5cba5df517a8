"""Constraints at sampling time, against brute force."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_synth.constraints import (
    Acyclic,
    Bipartite,
    Connected,
    Constraint,
    MaxDegree,
    Planar,
    Tree,
    complete,
    project,
    satisfied,
)
from lightning_synth.constraints.base import check_constraint
from lightning_synth.constraints.drawing import Drawing
from lightning_synth.errors import ConfigError
from lightning_synth.registry import get_spec
from lightning_synth.testing import tiny_schema


class NoTriangle(Constraint):
    def holds(self, adjacency):
        return not np.trace(np.linalg.matrix_power(adjacency.astype(int), 3))


ORACLES = {
    Planar: lambda g: nx.check_planarity(g)[0],
    Acyclic: nx.is_forest,
    Bipartite: nx.is_bipartite,
    Connected: nx.is_connected,
    Tree: nx.is_tree,
    NoTriangle: lambda g: not any(nx.triangles(g).values()),
}
GROWING = (
    Planar(),
    Acyclic(),
    Bipartite(),
    MaxDegree(2),
    NoTriangle(),
    Planar() & MaxDegree(4),
    Bipartite() & Planar(),
)


def random_graphs(seed, graphs=6, n=9, density=0.5):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((graphs, n, n)) < density * rng.random((graphs, 1, 1)) * 2, 1)
    score = rng.random((graphs, n, n))
    return upper | upper.transpose(0, 2, 1), score + score.transpose(0, 2, 1)


def sizes_mask(seed, graphs, n):
    sizes = np.random.default_rng(seed + 1).integers(3, n + 1, graphs)
    return np.arange(n) < sizes[:, None]


def oracle(constraint, adjacency):
    """Does a graph have a property, by networkx or counting."""
    if len(constraint.parts) > 1:
        return all(oracle(part, adjacency) for part in constraint.parts)
    if isinstance(constraint, MaxDegree):
        return adjacency.sum(1).max() <= constraint.degree
    return ORACLES[type(constraint)](nx.from_numpy_array(adjacency))


def greedy(constraint, kept, proposed, score):
    """What `project` promises, the slow way."""
    grown = kept.copy()
    pairs = [tuple(pair) for pair in np.argwhere(np.triu(proposed & ~kept, 1))]
    for u, v in sorted(pairs, key=lambda pair: -score[pair]):
        grown[u, v] = grown[v, u] = True
        if not oracle(constraint, grown):
            grown[u, v] = grown[v, u] = False
    return grown


def projected(constraint, kept, proposed, score, mask):
    return project(constraint, *map(torch.from_numpy, (kept, proposed, score, mask))).numpy()


@pytest.mark.parametrize("constraint", (*GROWING, Connected(), Tree(), Tree() & MaxDegree(3)), ids=repr)
def test_holds_as_the_oracle_says(constraint):
    for seed in range(8):
        adjacency, _ = random_graphs(seed, n=3 + seed % 6, density=0.6)
        expected = [oracle(constraint, a) for a in adjacency]
        assert [constraint.holds(a) for a in adjacency] == expected
        mask = torch.ones(adjacency.shape[:2], dtype=torch.bool)
        assert satisfied(constraint, torch.from_numpy(adjacency), mask).tolist() == expected


@pytest.mark.parametrize("constraint", GROWING, ids=repr)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_project_is_greedy_insertion(constraint, seed):
    first, score = random_graphs(seed)
    then, again = random_graphs(seed + 1)
    nothing, mask = np.zeros_like(first), np.ones(first.shape[:2], dtype=bool)
    kept = projected(constraint, nothing, first, score, mask)
    assert all((a == greedy(constraint, nothing[0], b, c)).all() for a, b, c in zip(kept, first, score, strict=True))
    # Edges leave, others are proposed: one step of a sampler.
    kept &= random_graphs(seed + 2, density=0.9)[0]
    second = projected(constraint, kept, then, again, mask)
    expected = [greedy(constraint, *graph) for graph in zip(kept, then, again, strict=True)]
    assert (second == np.stack(expected)).all()
    assert all(oracle(constraint, a) for a in second)


@pytest.mark.parametrize("constraint", (Planar(), Acyclic(), Bipartite(), MaxDegree(3)), ids=repr)
def test_tracker_agrees_with_the_oracle_edge_by_edge(constraint):
    for seed in range(6):
        rng, n = np.random.default_rng(seed), 9
        tracker, grown = constraint.tracker(n), np.zeros((n, n), dtype=bool)
        for u, v in rng.permutation(np.argwhere(np.triu(np.ones((n, n)), 1))).tolist():
            grown[u, v] = grown[v, u] = True
            expected = oracle(constraint, grown)
            assert tracker.allows(u, v) == expected
            if expected:
                tracker.add(u, v)
            else:
                grown[u, v] = grown[v, u] = False
        assert grown.any()


def triangulation(rng, n):
    """Edges (edges, 2) of a Delaunay triangulation of random points."""
    from scipy.spatial import Delaunay

    triangles = Delaunay(rng.random((n, 2))).simplices
    return np.unique(
        np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]]), 1), axis=0
    )


def test_a_dense_planar_graph_is_kept_whole():
    """A triangulation grows edge by edge in any order, although most of its embedding is forced."""
    rng = np.random.default_rng(0)
    tracker = Planar().tracker(40)
    for u, v in rng.permutation(triangulation(rng, 40)).tolist():
        assert tracker.allows(u, v)
        tracker.add(u, v)


@pytest.mark.parametrize("kept", [0.0, 0.7])
def test_a_triangulation_with_wrong_edges_is_inserted_greedily(kept):
    rng, n = np.random.default_rng(1), 24
    planar, wrong = np.zeros((2, n, n), dtype=bool)
    planar[tuple(triangulation(rng, n).T)] = True
    wrong[tuple(rng.integers(0, n, (2, 12)))] = True
    old = np.triu(planar & (rng.random((n, n)) < kept))
    old, new, score = old | old.T, planar | planar.T | wrong | wrong.T, rng.random((n, n))
    np.fill_diagonal(new, False)
    score = score + score.T
    result = projected(Planar(), old[None], new[None], score[None], np.ones((1, n), dtype=bool))[0]
    assert (result == greedy(Planar(), old, new, score)).all() and (new & ~result).any()


def test_drawings_stay_plane():
    """Euler's formula for the faces, whatever edges find a place, and leaves that move for them."""
    for seed in range(10):
        rng, n = np.random.default_rng(seed), 14
        grown = nx.random_labeled_tree(n, seed=seed)
        drawing = Drawing(grown.edges)
        for u, v in rng.permutation(list(nx.non_edges(grown))).tolist():
            if (place := drawing.place(u, v)) is not None:
                drawing.add(u, v, place)
                grown.add_edge(u, v)
            rings = {node: list(ring) for node, ring in drawing.after.items()}
            assert all(set(ring) == set(grown[node]) for node, ring in rings.items())
            assert n - grown.number_of_edges() + faces(drawing) == 2
        assert grown.number_of_edges() > 1.5 * n


def faces(drawing):
    left = {(a, b) for b, ring in drawing.after.items() for a in ring}
    count = 0
    while left:
        edge, count = next(iter(left)), count + 1
        while edge in left:
            left.remove(edge)
            edge = edge[1], drawing.after[edge[1]][edge[0]]
    return count


@pytest.mark.parametrize(
    "constraint",
    (
        Connected(),
        Tree(),
        Tree() & MaxDegree(2),
        Connected() & MaxDegree(2),
        Connected() & Planar() & MaxDegree(3),
        Connected() & Bipartite(),
        Connected() & NoTriangle() & MaxDegree(2),
    ),
    ids=repr,
)
def test_complete_satisfies_every_combination(constraint):
    for seed in range(5):
        proposed, score = random_graphs(seed, graphs=8, n=12, density=0.2)
        mask = sizes_mask(seed, 8, 12)
        graphs = torch.from_numpy(projected(constraint, np.zeros_like(proposed), proposed, score, mask))
        done = complete(constraint, graphs, torch.from_numpy(score), torch.from_numpy(mask))
        assert (done == done.mT).all() and not done.diagonal(dim1=1, dim2=2).any()
        for graph, nodes in zip(done.numpy(), mask, strict=True):
            assert oracle(constraint, graph[np.ix_(nodes, nodes)])
            assert not graph[~nodes].any()
        if constraint.joins_freely:
            assert (done | graphs).equal(done)


def test_complete_adds_the_best_edges():
    """As the maximum spanning tree of networkx over the parts."""
    adjacency, score = random_graphs(3, graphs=4, n=10, density=0.1)
    mask = np.ones((4, 10), dtype=bool)
    done = complete(Connected(), *map(torch.from_numpy, (adjacency, score, mask))).numpy()
    for graph, old, value in zip(done, adjacency, score, strict=True):
        whole = nx.from_numpy_array(value)
        for u, v in np.argwhere(old):
            whole[u][v]["weight"] = 1000.0
        best = nx.maximum_spanning_tree(whole)
        expected = old.copy()
        for u, v in best.edges:
            expected[u, v] = expected[v, u] = True
        assert (graph == expected).all()


def test_saturated_parts_give_up_their_weakest_edge():
    two = np.kron(np.eye(2), np.ones((3, 3)) - np.eye(3)).astype(bool)[None]
    score = np.add.outer(np.arange(6.0), np.arange(6.0))[None]
    mask = np.ones((1, 6), dtype=bool)
    ring = Connected() & MaxDegree(2)
    done = complete(ring, *map(torch.from_numpy, (two, score, mask))).numpy()[0]
    assert not done[0, 1] and not done[3, 4] and oracle(ring, done)


def test_what_cannot_be_met_is_said():
    nothing, score, mask = (
        torch.zeros(1, 4, 4, dtype=torch.bool),
        torch.zeros(1, 4, 4),
        torch.ones(1, 4, dtype=torch.bool),
    )
    for degree in (0, 1):
        with pytest.raises(
            ConfigError, match=rf"Connected\(\) & MaxDegree\({degree}\) cannot be met: graph 0 of 4 nodes"
        ):
            complete(Connected() & MaxDegree(degree), nothing, score, mask)
    with pytest.raises(ConfigError, match="negative"):
        MaxDegree(-1)
    with pytest.raises(TypeError, match="override"):
        type("Nothing", (Constraint,), {})


@pytest.mark.parametrize("constraint", (Planar() & MaxDegree(3), Tree(), Acyclic()), ids=repr)
def test_graphs_do_not_depend_on_one_another(constraint):
    proposed, score = random_graphs(5, graphs=8)
    mask = sizes_mask(5, 8, 9)

    def both(rows):
        graphs = projected(constraint, np.zeros_like(proposed[rows]), proposed[rows], score[rows], mask[rows])
        return complete(constraint, *map(torch.from_numpy, (graphs, score[rows], mask[rows]))).numpy()

    together = both(slice(None))
    assert all((together[i] == both(slice(i, i + 1))[0]).all() for i in range(8))
    assert not together[~mask].any()


def test_projection_follows_a_renumbering():
    proposed, score = random_graphs(6, graphs=1)
    mask, order = np.ones((1, 9), dtype=bool), np.random.default_rng(0).permutation(9)
    constraint = Planar() & MaxDegree(4)
    one = projected(constraint, np.zeros_like(proposed), proposed, score, mask)
    other = projected(
        constraint, np.zeros_like(proposed), proposed[:, order][:, :, order], score[:, order][:, :, order], mask
    )
    assert (one[:, order][:, :, order] == other).all()


class FourEdges(Constraint):
    def holds(self, adjacency):
        return adjacency.sum() >= 8


@pytest.mark.parametrize("wrong", ["tree", Tree, [Tree(), MaxDegree(2)]], ids=str)
def test_what_is_no_constraint_is_named(wrong):
    with pytest.raises(ConfigError, match="must be a Constraint"):
        check_constraint(wrong, 5)


@pytest.mark.parametrize("name", ["defog", "sent"])
def test_a_property_that_edges_bring_about_is_refused(name):
    spec = get_spec(name)
    model = spec.load()(schema=tiny_schema("graph"), **spec.tiny)
    model.is_fitted = True
    with pytest.raises(ConfigError, match="FourEdges.. refuses a graph without edges"):
        model.sample(2, constraint=Planar() & FourEdges())
