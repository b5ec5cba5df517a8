"""Orbit counts against enumeration of all small subgraphs, and against identities on large graphs."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy.sparse import block_diag, coo_array

from lightning_synth.metrics.orbits import NUM_ORBITS, orbit_counts

# Sorted degrees of a connected graph of 2 to 4 nodes name it; each degree in it names the orbit.
ORBITS = {
    (1, 1): {1: 0},
    (1, 1, 2): {1: 1, 2: 2},
    (2, 2, 2): {2: 3},
    (1, 1, 2, 2): {1: 4, 2: 5},
    (1, 1, 1, 3): {1: 6, 3: 7},
    (2, 2, 2, 2): {2: 8},
    (1, 2, 2, 3): {1: 9, 2: 10, 3: 11},
    (2, 2, 3, 3): {2: 12, 3: 13},
    (3, 3, 3, 3): {3: 14},
}


def random_graph(n: int, p: float, seed: int) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < p, 1)
    return (upper | upper.T).astype(float)


def is_connected(a: np.ndarray) -> bool:
    return bool((np.linalg.matrix_power(a + np.eye(len(a)), len(a)) > 0).all())


def enumerated(a: np.ndarray) -> np.ndarray:
    counts = np.zeros((len(a), NUM_ORBITS), int)
    for size in (2, 3, 4):
        for nodes in itertools.combinations(range(len(a)), size):
            inner = a[np.ix_(nodes, nodes)]
            degrees = inner.sum(1).astype(int)
            if is_connected(inner):
                orbits = ORBITS[tuple(sorted(degrees.tolist()))]
                for node, degree in zip(nodes, degrees, strict=True):
                    counts[node, orbits[degree]] += 1
    return counts


@pytest.mark.parametrize("p", [0.15, 0.35, 0.6, 0.85, 1.0])
@pytest.mark.parametrize("n", [1, 4, 7, 10])
def test_counts_equal_enumeration(n: int, p: float) -> None:
    a = random_graph(n, p, seed=n)
    assert np.array_equal(orbit_counts(a), enumerated(a))


def test_named_graphs() -> None:
    complete = np.ones((5, 5)) - np.eye(5)
    assert orbit_counts(complete)[0].tolist() == [4, 0, 0, 6, *[0] * 10, 4]
    star = np.zeros((6, 6))
    star[0, 1:] = star[1:, 0] = 1
    counts = orbit_counts(star)
    assert counts[0].tolist() == [5, 0, 10, 0, 0, 0, 0, 10, *[0] * 7]
    assert counts[1].tolist() == [1, 4, 0, 0, 0, 0, 6, *[0] * 8]


def test_blocks_are_counted_apart() -> None:
    graphs = [random_graph(n, 0.5, seed=n) for n in (3, 8, 1, 12)]
    together = orbit_counts(block_diag(graphs))
    assert np.array_equal(together, np.concatenate([orbit_counts(a) for a in graphs]))


def test_loops_and_weights_do_not_count() -> None:
    a = random_graph(9, 0.5, seed=1)
    assert np.array_equal(orbit_counts(a), orbit_counts(2.5 * a + np.eye(9)))


def test_order_of_nodes_does_not_matter() -> None:
    a, order = random_graph(20, 0.4, seed=2), np.random.default_rng(0).permutation(20)
    assert np.array_equal(orbit_counts(a)[order], orbit_counts(a[np.ix_(order, order)]))


@pytest.mark.parametrize("p", [0.01, 0.1])
def test_graphs_of_500_nodes(p: float) -> None:
    """All connected and unconnected quadruples are accounted for, in little time."""
    a = random_graph(500, p, seed=3)
    start = time.process_time()
    counts = orbit_counts(coo_array(a))
    assert time.process_time() - start < 5
    total = counts.sum(0)
    degree = a.sum(1)
    # Each graphlet's orbits have fixed sizes: as many ends as middles of paths, times two, and so on.
    assert total[1] == 2 * total[2] and total[4] == total[5] and total[6] == 3 * total[7]
    assert total[9] == total[11] == total[10] / 2 and total[12] == total[13]
    assert total[0] == degree.sum()
    # Paths of four nodes as subgraphs, induced or not, counted from the middle edge.
    triangles = np.einsum("ij,jk,ki->", a, a, a) / 6
    middle = ((degree[:, None] - 1) * (degree - 1) * np.triu(a)).sum() - 3 * triangles
    paths, squares, paws, diamonds, cliques = (total[o] / k for o, k in ((4, 2), (8, 4), (9, 1), (12, 2), (14, 4)))
    assert middle == paths + 4 * squares + 2 * paws + 6 * diamonds + 12 * cliques


def test_complete_graphs_of_four_in_a_large_graph() -> None:
    a = random_graph(120, 0.3, seed=4)
    expected = sum(
        a[u, v] * a[u, w] * a[u, x] * a[v, w] * a[v, x] * a[w, x]
        for u in range(10)
        for v, w, x in itertools.combinations(np.flatnonzero(a[u]).tolist(), 3)
    )
    assert orbit_counts(a)[:10, 14].sum() == expected
