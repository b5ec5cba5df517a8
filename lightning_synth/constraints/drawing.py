"""A drawing in the plane that grows by the edges for which it has a place."""

from __future__ import annotations

from collections.abc import Iterable

Place = tuple[int, int]


class Drawing:
    """A plane drawing of a graph: the cyclic order of the neighbours of every node.

    ``after[u][v]`` is the neighbour of u that follows v clockwise. The face that an edge (a, b) bounds continues with
    (b, c), where c follows a around b; a new edge from b to another node of that face goes between a and c.

    Args:
        edges: Of a planar graph.

    Example:
        >>> drawing = Drawing([(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)])
        >>> for u, v in ((2, 3), (3, 4), (4, 2)):
        ...     drawing.add(u, v, drawing.place(u, v))
        >>> drawing.place(0, 1) is None  # K5 is not planar
        True
    """

    def __init__(self, edges: Iterable[tuple[int, int]] = ()) -> None:
        from networkx import Graph, check_planarity

        rings: dict[int, list[int]] = check_planarity(Graph(list(edges)))[1].get_data()
        self.after = {node: dict(zip(ring, [*ring[1:], *ring[:1]], strict=True)) for node, ring in rings.items()}

    def place(self, u: int, v: int) -> Place | None:
        """Find where an edge crosses no other, which may take moving a node that has a single edge.

        Args:
            u: Node.
            v: Node that is connected with ``u`` by a path.

        Returns:
            Neighbours of u and v which the edge is to follow; None if the drawing has no such place.
        """
        for leaf, node in ((u, v), (v, u)):
            if (place := self._on_face(u, v)) is not None:
                return place
            if len(self.after[leaf]) == 1:
                self._move(leaf, node)
        return self._on_face(u, v)

    def anywhere(self, u: int, v: int) -> Place:
        """Find where an edge between two nodes goes that no path connects: next to any others.

        Args:
            u: Node.
            v: Another one.

        Returns:
            Neighbours of u and v, -1 where there are none.
        """
        first, second = (next(iter(self.after.get(node, ())), -1) for node in (u, v))
        return first, second

    def add(self, u: int, v: int, place: Place) -> None:
        """Draw an edge.

        Args:
            u: Node.
            v: Another one.
            place: As found.
        """
        self._insert(u, v, place[0])
        self._insert(v, u, place[1])

    def _insert(self, node: int, other: int, before: int) -> None:
        ring = self.after.setdefault(node, {})
        ring[other] = ring.get(before, other)
        if before >= 0:
            ring[before] = other

    def _move(self, leaf: int, node: int) -> None:
        """Move a node with a single edge to a face that another node bounds, if its neighbour bounds one."""
        (neighbour,) = self.after[leaf]
        if (place := self._on_face(neighbour, node)) is not None:
            ring = self.after[neighbour]
            ring[next(other for other, following in ring.items() if following == leaf)] = ring.pop(leaf)
            self._insert(neighbour, leaf, place[0])

    def _on_face(self, u: int, v: int) -> Place | None:
        """A place on a face that both nodes bound."""
        after = self.after
        for start in after[u]:
            before, node = start, u
            while True:
                before, node = node, after[node][before]
                if node == v:
                    return start, before
                if node == u and before == start:
                    break
        return None
