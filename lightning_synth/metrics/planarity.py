"""Whether a graph can be drawn without crossings: the left-right test, without the drawing.

De Fraysseix, Ossona de Mendez and Rosenstiehl, as told by Brandes ("The left-right planarity test", 2009). A
depth-first search leaves a tree and back edges from nodes to their ancestors; the graph is planar if the back edges can
be put on two sides such that none of the pairs that would cross are on the same one. What is asked is only yes or no,
so back edges are kept as lists of the heights they return to, and each node's constraints are built from those of its
children.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

#: Heights that back edges on the left and on the right return to, lowest first; the sides may be swapped.
Pair = tuple[list[int], list[int]]


class _Edge(NamedTuple):
    """An edge away from the root, with what hangs below it."""

    lowest: int
    second: int
    pairs: list[Pair]


def is_planar(num_nodes: int, edges: npt.ArrayLike) -> bool:
    """Say whether a graph is planar.

    Args:
        num_nodes: Nodes.
        edges: (2, edges) ends; direction, repeated edges and loops do not matter.

    Returns:
        Whether it can be drawn in the plane without crossings; it need not be connected.

    Example:
        >>> k5 = np.array(np.triu_indices(5, 1))
        >>> is_planar(5, k5), is_planar(5, k5[:, 1:])
        (False, True)
    """
    return is_planar_list(_neighbours(num_nodes, edges))


def is_planar_list(neighbours: Sequence[Sequence[int]]) -> bool:
    """Say whether a graph is planar, given the neighbours of each node.

    Args:
        neighbours: Of every node; no node is its own or another's twice.

    Returns:
        As `is_planar`.

    Example:
        >>> is_planar_list([[1, 2], [0, 2], [0, 1]])
        True
    """
    if sum(map(len, neighbours)) // 2 > max(3 * len(neighbours) - 6, 1):
        return False
    order, parent, height = _depth_first(neighbours)
    hanging: list[list[_Edge]] = [[] for _ in neighbours]
    for v in reversed(order):  # children before their parents
        h = height[v]
        # A back edge goes up to an ancestor which is not the parent; its other end sees it from above.
        up = [height[w] for w in neighbours[v] if height[w] < h - 1]
        edge = _joined(hanging[v] + [_Edge(low, h, [([], [low])]) for low in up], h)
        if edge is None:
            return False
        hanging[v] = []
        if parent[v] >= 0:
            hanging[parent[v]].append(edge)
    return True


def _neighbours(num_nodes: int, edges: npt.ArrayLike) -> list[list[int]]:
    row, col = np.asarray(edges, dtype=np.int64).reshape(2, -1)
    code = np.concatenate([row * num_nodes + col, col * num_nodes + row])[np.tile(row != col, 2)]
    near, far = np.divmod(np.unique(code), max(num_nodes, 1))
    ends, flat = np.searchsorted(near, np.arange(num_nodes + 1)).tolist(), far.tolist()
    return [flat[ends[v] : ends[v + 1]] for v in range(num_nodes)]


def _depth_first(neighbours: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
    """Nodes in the order of their discovery, parents (-1 at roots) and heights (0 at roots)."""
    order: list[int] = []
    parent, height = [-1] * len(neighbours), [-1] * len(neighbours)
    todo = [iter(near) for near in neighbours]
    for root in range(len(neighbours)):
        if height[root] >= 0:
            continue
        height[root], v = 0, root
        order.append(root)
        while v >= 0:
            for w in todo[v]:
                if height[w] < 0:
                    parent[w], height[w] = v, height[v] + 1
                    order.append(w)
                    v = w
                    break
            else:
                v = parent[v]
    return order, parent, height


def _joined(edges: list[_Edge], h: int) -> _Edge | None:
    """The edge from its parent to a node at height h, given the edges from the node on; None if they must cross."""
    # Edges that return lower go further out; of equal ones, those with another return point go further in.
    edges.sort(key=lambda edge: 2 * edge.lowest + (edge.second < h))
    stack: list[Pair] = []
    lowest = edges[0].lowest if edges else h
    for edge in edges:
        if edge.lowest < h:
            if not stack:
                stack = edge.pairs
            elif not _constrain(stack, edge, lowest):
                return None
    _trim(stack, h - 1)
    # What returns to the parent itself ends there.
    lowest = min(lowest, h - 1)
    second = min([p for edge in edges for p in edge[:2] if p > lowest], default=h - 1)
    return _Edge(lowest, min(second, h - 1), stack)


def _constrain(stack: list[Pair], edge: _Edge, lowest: int) -> bool:
    """Put the back edges of one more edge opposite to those they conflict with; False if that cannot be."""
    left: list[int] = []
    right: list[int] = []
    for one, other in reversed(edge.pairs):
        if one and other:
            return False  # all that hangs below this edge has to be on one side
        both = one or other
        if both[0] > lowest:  # those that return to the very lowest point conflict with nothing
            right = both + right
    while True:
        one, other = stack[-1]
        here, there = bool(one) and one[-1] > edge.lowest, bool(other) and other[-1] > edge.lowest
        if here and there:
            return False
        if not (here or there):
            break
        stack.pop()
        left, right = (one + left, other + right) if here else (other + left, one + right)
    if left or right:
        stack.append((left, right))
    return True


def _trim(stack: list[Pair], h: int) -> None:
    """Take away the back edges that return to height h, which is where they end."""
    while stack and all(not side or side[0] >= h for side in stack[-1]):
        stack.pop()
    if stack:
        for side in stack[-1]:
            while side and side[-1] >= h:
                side.pop()


__all__ = ["is_planar", "is_planar_list"]
