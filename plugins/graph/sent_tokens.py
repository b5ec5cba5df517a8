"""Graphs as token sequences: depth-first walks that list, for every new node, its edges to the nodes before it.

SENT (Chen et al. 2025, "Flatten Graphs as Sequences", arXiv 2502.02216): every prefix of a sequence is the sequence of
an induced subgraph. The walk goes from a node to a random new neighbour as long as there is one; unlike there, it then
goes back to the last node that has one, so that prefixes of a connected graph are connected. Isolated nodes and several
connected parts survive the round trip.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_synth.graphs import DenseGraphs, graph_batch

PAD, EOS, RESET, OPEN, CLOSE = range(5)
#: Places that the longest piece of a sequence takes: / node type < edge node > EOS. Nothing is started with less left.
ROOM = 8


def walk(adjacency: Tensor, mask: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Order the nodes of graphs by a random depth-first walk, all graphs at once.

    The next node is drawn from the unvisited neighbours of the node visited last that has some; where no visited node
    has one, from all unvisited nodes.

    Args:
        adjacency: bool (graphs, n, n).
        mask: bool (graphs, n), True for nodes.
        u: (graphs, n), uniform in [0, 1): one number a step.

    Returns:
        Nodes in their order, int64 (graphs, n), those that do not exist last; and whether each was reached by an edge
        from the one before it, bool (graphs, n).

    Example:
        >>> path = torch.tensor([[[0, 0, 1], [0, 0, 1], [1, 1, 0]]], dtype=torch.bool)
        >>> walk(path, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3))
        (tensor([[0, 2, 1]]), tensor([[False,  True,  True]]))
    """
    rows, n = torch.arange(len(mask), device=mask.device), mask.shape[1]
    # When a neighbour was last visited; absent nodes come last, visited ones never again.
    recency = torch.where(mask, -1, -2)
    order, walked = [], []
    for step in range(n):
        best = recency.amax(1)
        choice = recency == best[:, None]
        rank = (u[:, step] * choice.sum(1)).long()
        node = (choice.cumsum(1) <= rank[:, None]).sum(1)
        order.append(node)
        walked.append((best == step - 1) & (step > 0))
        recency = torch.where(adjacency[rows, node] & (recency > -3), step, recency)
        recency[rows, node] = -3
    return torch.stack(order, 1), torch.stack(walked, 1)


class SentTokens:
    """The vocabulary of a schema; encodes graphs as sequences and decodes them.

    Tokens: padding, end, reset "/", brackets "<" ">", node numbers in order of appearance, node types, edge types. A
    node is ``[edge type] number [node type] [< ([edge type] number)+ >]``: an edge from the node before it, unless a
    reset stands before, and in brackets, in ascending order, its other edges to earlier nodes.

    Args:
        schema: Of the graphs (``max_nodes, num_node_types, num_edge_types``).

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("graph", n=4)
        >>> graphs = DenseGraphs.from_batch(next(iter(data.train_dataloader())))
        >>> codec = SentTokens(data.schema)
        >>> tokens, order = codec.encode(graphs, torch.rand(graphs.mask.shape))
        >>> again = DenseGraphs.from_batch(codec.decode(tokens, order), size=graphs.mask.shape[1])
        >>> bool((again.e == graphs.e).all())
        True
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.max_nodes = int(schema["max_nodes"])
        self.node_types, self.edge_types = (int(schema.get(f"num_{kind}_types") or 0) for kind in ("node", "edge"))
        self.first_node = CLOSE + 1
        self.first_node_type = self.first_node + self.max_nodes
        self.first_edge_type = self.first_node_type + self.node_types
        self.size = self.first_edge_type + self.edge_types

    def longest(self) -> int:
        """Return the length of the longest possible sequence, that of a complete graph."""
        n = self.max_nodes
        return 1 + n * (4 + bool(self.node_types)) + (1 + bool(self.edge_types)) * n * (n - 1) // 2

    def encode(self, graphs: DenseGraphs, u: Tensor) -> tuple[Tensor, Tensor]:
        """Write graphs as sequences, along random walks.

        Args:
            graphs: With at most ``max_nodes`` nodes each.
            u: (graphs, n), uniform in [0, 1): a walk is a function of its row.

        Returns:
            Tokens, int64 (graphs, length), padded at the end; and the nodes in order of appearance, int64 (graphs, n).
        """
        order, walked = walk(graphs.e > 0, graphs.mask, u)
        n, place, exists = order.shape[1], order.argsort(1), graphs.mask.gather(1, order)
        row, one, other = graphs.e.nonzero().T
        kind, node, earlier = graphs.e[row, one, other] - 1, place[row, one], place[row, other]
        came = walked[row, node] & (earlier == node - 1)
        # In brackets: edges to earlier nodes, but not the one that the walk came along.
        inner = (earlier < node) & ~came
        reset, bracket = exists & ~walked, torch.zeros_like(exists)
        reset[:, 0] = False
        bracket[row[inner], node[inner]] = True
        site, (came_site, inner_site) = _sites(exists), (row[part] * n + node[part] for part in (came, inner))
        # What stands where: node (counted over all graphs), slot within what is said of it, token.
        parts = [
            (_sites(reset), 0, RESET),
            (site, 2, self.first_node + site % n),
            (_sites(bracket), 4, OPEN),
            (inner_site, 6 + 2 * earlier[inner], self.first_node + earlier[inner]),
            (_sites(bracket), 5 + 2 * n, CLOSE),
        ]
        if self.node_types:
            parts.append((site, 3, self.first_node_type + graphs.x.gather(1, order)[exists]))
        if self.edge_types:
            parts.append((came_site, 1, self.first_edge_type + kind[came]))
            parts.append((inner_site, 5 + 2 * earlier[inner], self.first_edge_type + kind[inner]))
        return _in_rows(parts, len(order), n, 6 + 2 * n), order

    def decode(self, tokens: Tensor, order: Tensor | None = None) -> Any:
        """Read sequences that follow the grammar.

        Args:
            tokens: int64 (graphs, length); what comes after the end is ignored.
            order: int64 (graphs, n): numbers for the nodes in order of appearance; None keeps that order.

        Returns:
            A PyG ``Batch``, with types where the schema has them.
        """
        tokens = torch.where((tokens == EOS).cumsum(1) > 0, PAD, tokens)
        inside = (tokens == OPEN).cumsum(1) > (tokens == CLOSE).cumsum(1)
        number = tokens - self.first_node
        is_number = (number >= 0) & (number < self.max_nodes)
        new = is_number & ~inside
        node = new.cumsum(1) - 1
        previous = F.pad(tokens[:, :-1], (1, 0), value=RESET)
        edge = is_number & (inside | (previous != RESET))
        other = torch.where(new, node - 1, number)
        owner = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
        ends, kind = torch.stack([node[edge], other[edge]]), F.pad(tokens[:, 1:], (0, 1))[new] - self.first_node_type
        if order is not None:
            ends = order[owner[edge], ends]
            kind = kind[(owner[new] * order.shape[1] + order[owner[new], node[new]]).argsort()]
        return graph_batch(
            new.sum(1),
            ends,
            owner[edge],
            x=kind if self.node_types else None,
            edge_attr=previous[edge] - self.first_edge_type if self.edge_types else None,
        )


def _sites(where: Tensor) -> Tensor:
    """Numbers of the True places, counted over all rows."""
    return where.flatten().nonzero()[:, 0]


def _in_rows(parts: list[tuple[Tensor, Any, Any]], graphs: int, nodes: int, slots: int) -> Tensor:
    """Sort tokens by node and slot, and give each graph a row that ends with the end token."""
    site = torch.cat([part[0] for part in parts])
    slot, token = (torch.cat([part[0] * 0 + part[i] for part in parts]) for i in (1, 2))
    order = (site * slots + slot).argsort()
    owner = site[order] // nodes
    length = torch.bincount(owner, minlength=graphs)
    place = torch.arange(len(owner), device=owner.device) - (length.cumsum(0) - length)[owner]
    rows = torch.full((graphs, int(length.max()) + 1), PAD, device=owner.device)
    rows[owner, place] = token[order]
    return rows.scatter_(1, length[:, None], EOS)


class Grammar:
    """The state of many growing sequences: which tokens may come next so that every one ends as a graph.

    Args:
        codec: The vocabulary.
        rows: How many sequences.
        length: Places that a sequence has, with its end.
        connected: Every node after the first needs an edge to an earlier one.
        device: Where.

    Example:
        >>> grammar = Grammar(SentTokens({"max_nodes": 2}), rows=1, length=16)
        >>> [grammar.allowed()[0].nonzero()[:, 0].tolist(), grammar.advance(torch.tensor([5]))]
        [[5], None]
        >>> grammar.allowed()[0].nonzero()[:, 0].tolist()
        [1, 2, 6]
    """

    # States: a number without an edge has to follow, one with an edge, a node type; a node may get brackets, has had
    # them; brackets have just opened, the type of an edge is known, an edge is complete; the end.
    FRESH, WALK, TYPE, NODE, SHUT, OPENED, EDGE, NEXT, DONE = range(9)

    def __init__(
        self,
        codec: SentTokens,
        rows: int,
        length: int,
        connected: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.codec, self.connected = codec, connected
        self.state, self.nodes, self.last = (torch.full((rows,), value, device=device) for value in (self.FRESH, 0, -1))
        #: The present node was reached by an edge; it still needs one.
        self.walked, self.owes = (torch.zeros(rows, dtype=torch.bool, device=device) for _ in range(2))
        self.left = torch.full((rows,), length, device=device)
        self._numbers = torch.arange(codec.max_nodes, device=device)
        starts = [RESET, OPEN, CLOSE, codec.first_node, codec.first_node_type, codec.first_edge_type]
        self._starts = torch.tensor(starts, device=device)
        self._next = self._table().to(self.state.device)

    def _table(self) -> Tensor:
        """State after a token of each kind (end, /, <, >, number, node type, edge type)."""
        named = self.TYPE if self.codec.node_types else self.NODE
        table = torch.full((9, 7), self.DONE)
        ended = [self.NODE, self.SHUT]
        table[ended, 1], table[:, 2], table[:, 3] = self.FRESH, self.OPENED, self.SHUT
        table[[self.FRESH, self.WALK, *ended], 4] = named
        table[[self.OPENED, self.EDGE, self.NEXT], 4] = self.NEXT
        table[self.TYPE, 5], table[ended, 6], table[[self.OPENED, self.NEXT], 6] = self.NODE, self.WALK, self.EDGE
        return table

    def __getitem__(self, rows: Tensor) -> Grammar:
        """Return the state of some rows."""
        part = copy(self)
        for name in ("state", "nodes", "last", "walked", "owes", "left"):
            setattr(part, name, getattr(self, name)[rows])
        return part

    @property
    def top(self) -> Tensor:
        """Nodes below this number may stand in the brackets of the present node, (rows,)."""
        return self.nodes - 1 - self.walked.long()

    def allowed(self) -> Tensor:
        """Return which tokens may come next, bool (rows, tokens)."""
        codec, state = self.codec, self.state
        ended = ((state == self.NODE) | (state == self.SHUT)) & ~self.owes
        room = self.left >= ROOM
        grow = ended & room & (self.nodes < codec.max_nodes)
        another = (state == self.OPENED) | ((state == self.NEXT) & room & (self.last + 1 < self.top))
        new = (state == self.FRESH) | (state == self.WALK)
        inner = state == self.EDGE
        if not codec.edge_types:
            new, inner = new | grow, inner | another
        opens = (state == self.NODE) & (room | self.owes) & (self.top > 0)
        numbers = self._numbers
        number = new[:, None] & (numbers == self.nodes[:, None])
        number |= inner[:, None] & (numbers > self.last[:, None]) & (numbers < self.top[:, None])
        head = torch.stack([state == self.DONE, ended, grow, opens, state == self.NEXT], 1)
        types = (state == self.TYPE)[:, None].expand(-1, codec.node_types)
        return torch.cat([head, number, types, (grow | another)[:, None].expand(-1, codec.edge_types)], 1)

    def advance(self, token: Tensor) -> None:
        """Append a token to every sequence.

        Args:
            token: int64 (rows,), allowed ones.
        """
        kind = torch.searchsorted(self._starts, token.contiguous(), right=True)
        state, is_number = self.state, kind == 4
        new = is_number & (state <= self.SHUT)
        self.owes = torch.where(new, self.connected & (state == self.FRESH) & (self.nodes > 0), self.owes & (kind != 2))
        self.walked = torch.where(new, state != self.FRESH, self.walked)
        self.last = torch.where(is_number, torch.where(new, -1, token - self.codec.first_node), self.last)
        self.nodes = self.nodes + new.long()
        self.state, self.left = self._next[state, kind], self.left - 1

    def close(self, rows: Tensor) -> None:
        """Let the present node have no further edges to earlier ones.

        Args:
            rows: bool (rows,), where.
        """
        self.state = torch.where(rows & (self.state == self.NODE), self.SHUT, self.state)


__all__ = ["CLOSE", "EOS", "OPEN", "PAD", "RESET", "ROOM", "Grammar", "SentTokens", "walk"]
