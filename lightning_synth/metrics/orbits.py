"""Exact counts of the orbits of connected graphlets with up to four nodes, in closed form on sparse matrices.

A node takes part in 15 orbits (Przulj 2007), here in the order of ORCA (Hocevar and Demsar 2014):

====== ====================================  ====== ====================================
0      end of an edge                        8      node of a 4-cycle
1, 2   end, middle of a path of 3            9      paw: the node of degree 1
3      node of a triangle                    10, 11 paw: nodes of degree 2, of degree 3
4, 5   end, inner node of a path of 4        12, 13 diamond: nodes of degree 2, of degree 3
6, 7   leaf, centre of a star of 4           14     node of a complete graph of 4
====== ====================================  ====== ====================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, tril, triu

NUM_ORBITS = 15
#: Edges whose complete graphs are looked for at a time: bounds the memory for dense graphs.
_EDGES = 1 << 15


def orbit_counts(adjacency: Any) -> npt.NDArray[np.int64]:
    """Count how often every node lies on each of the 15 orbits of graphlets with two to four nodes.

    Every count is a count of subgraphs (induced or not) that matrix products give, less what denser graphlets
    contribute to it; the complete graphs, from which all others follow, are enumerated edge by edge. Time and memory
    grow with the number of paths of length 2 (the sum of squared degrees), not with the square of the nodes. Graphs
    may be counted together as the blocks of one matrix.

    Args:
        adjacency: (n, n) symmetric array or sparse matrix of an undirected graph; non-zero entries are edges, the
            diagonal is ignored.

    Returns:
        int64 (n, 15).

    Example:
        >>> square = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
        >>> orbit_counts(square)[0].tolist()
        [2, 2, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    """
    a = _clean(adjacency)
    degree = a.sum(1)
    paths = a @ a  # common neighbours of two nodes
    shared = paths * a  # the same, of the ends of every edge: its triangles
    cliques = _four_cliques(a)
    triangles = shared.sum(1) / 2

    # Non-induced counts, in ORCA's numbering of the graphlets they become once denser ones are taken off.
    # Along an edge jk of a triangle ijk, any other common neighbour of j and k closes a diamond opposite to i.
    far_diamond = ((a @ (shared - a)) * a).sum(1) / 2
    near_diamond = _pairs(shared).sum(1)
    square = _pairs(paths).sum(1) - _choose2(degree)
    tail_here = triangles * (degree - 2)
    tail_beside = shared @ (degree - 2)
    tail_end = a @ triangles - shared.sum(1)
    star_centre = degree * (degree - 1) * (degree - 2) / 6
    star_leaf = a @ _choose2(degree - 1)
    path_inner = (degree - 1) * (a @ (degree - 1)) - shared.sum(1)
    path_end = a @ (a @ (degree - 1)) - degree * (degree - 1) - 2 * triangles

    orbits = np.zeros((a.shape[0], NUM_ORBITS))
    orbits[:, 0], orbits[:, 3], orbits[:, 14] = degree, triangles, cliques
    orbits[:, 2] = _choose2(degree) - triangles
    orbits[:, 1] = a @ (degree - 1) - 2 * triangles
    o12 = orbits[:, 12] = far_diamond - 3 * cliques
    o13 = orbits[:, 13] = near_diamond - 3 * cliques
    o8 = orbits[:, 8] = square - o12 - o13 - 3 * cliques
    o11 = orbits[:, 11] = tail_here - 2 * o13 - 3 * cliques
    o10 = orbits[:, 10] = tail_beside - 2 * o12 - 2 * o13 - 6 * cliques
    o9 = orbits[:, 9] = tail_end - 2 * o12 - 3 * cliques
    orbits[:, 7] = star_centre - o11 - o13 - cliques
    orbits[:, 6] = star_leaf - o9 - o10 - 2 * o12 - o13 - 3 * cliques
    orbits[:, 5] = path_inner - 2 * o8 - 2 * o11 - o10 - 2 * o12 - 4 * o13 - 6 * cliques
    orbits[:, 4] = path_end - 2 * o8 - 2 * o9 - o10 - 4 * o12 - 2 * o13 - 6 * cliques
    return np.rint(orbits).astype(np.int64)


def _clean(adjacency: Any) -> csr_array:
    """Zeros and ones, no diagonal, no stored zeros."""
    a = csr_array(adjacency, dtype=np.float64)
    a = csr_array(a - csr_array((a.diagonal(), (range(a.shape[0]), range(a.shape[0]))), shape=a.shape))
    a.eliminate_zeros()
    a.data[:] = 1.0
    return a


def _choose2(count: Any) -> Any:
    return count * (count - 1) / 2


def _pairs(matrix: csr_array) -> csr_array:
    """Entry by entry, how many pairs can be made of so many."""
    return csr_array((_choose2(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)


def _four_cliques(a: csr_array) -> npt.NDArray[np.float64]:
    """Complete graphs of four nodes at every node: each is found once, from the edge of its two lowest nodes."""
    later, earlier = csr_array(triu(a, 1)), csr_array(tril(a, -1))
    edges = np.stack(later.nonzero())
    count = np.zeros(a.shape[0])
    for start in range(0, edges.shape[1], _EDGES):
        low, high = edges[:, start : start + _EDGES]
        both = later[low] * later[high]  # (edges, n): common neighbours behind both ends
        fourth, third = (both @ later) * both, (both @ earlier) * both
        found = fourth.sum(1)
        count += np.bincount(low, found, len(count)) + np.bincount(high, found, len(count))
        count += fourth.sum(0) + third.sum(0)
    return count


__all__ = ["NUM_ORBITS", "orbit_counts"]
