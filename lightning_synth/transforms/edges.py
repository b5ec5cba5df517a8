"""Edges dropped, added and moved at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import ragged_uniform
from lightning_synth.requests import KeyedRNG
from lightning_synth.transforms.base import GraphTransform, check_share
from lightning_synth.transforms.parts import Pairs, Parts, absent_pairs, ragged_below, set_edges


class DropEdge(GraphTransform):
    """Drop each edge with some probability (DropEdge, Rong et al. 2020, arXiv 1907.10903, section 4.1).

    An undirected edge goes or stays in both directions; the edges that stay keep their order and attributes.

    Args:
        p: Probability.
        undirected: Treat both directions as one edge; None: if every edge of the graph is there in both.
        seed: As `GraphTransform`.

    Raises:
        ConfigError: If ``p`` is outside [0, 1].

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> graph = DropEdge(0.5)(tiny_node())
        >>> graph.is_undirected(), graph.num_edges < tiny_node().num_edges
        (True, True)
    """

    def __init__(self, p: float = 0.2, *, undirected: bool | None = None, seed: int = 0) -> None:
        super().__init__(seed)
        self.p, self.undirected = check_share(p), undirected

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Drop edges.

        Args:
            data: A shallow copy of the graph or batch.
            rng: One seed a graph.
        """
        parts = Parts.of(data)
        pairs = Pairs.of(data, parts, self.undirected)
        stays = ~_dropped(pairs, parts, self.p, rng)[pairs.member]
        return set_edges(data, parts, data.edge_index[:, stays], {name: data[name][stays] for name in parts.edge})


def _dropped(pairs: Pairs, parts: Parts, p: float, rng: KeyedRNG) -> Tensor:
    return ragged_uniform(rng.fork("drop"), pairs.counts(parts)) < p


class AddRandomEdge(GraphTransform):
    """Add a share of new edges between nodes that are not joined, each absent pair as likely as any other.

    Of an undirected graph both directions are added. A new edge has the attributes of a random edge of its graph (of a
    graph without edges: zeros, and weight 1). Added edges stand behind the others. ``round(p * edges)`` are added,
    fewer only where there is no room.

    Args:
        p: Share of the number of edges, at least 0.
        self_loops: Whether a node may be joined with itself.
        multi_edges: Whether nodes that are joined may be joined again; any pair is then drawn, with replacement.
        undirected: Add both directions; None: if every edge of the graph is there in both.
        seed: As `GraphTransform`.

    Raises:
        ConfigError: If ``p`` is negative.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> AddRandomEdge(0.5)(tiny_node()).num_edges / tiny_node().num_edges
        1.5
    """

    def __init__(
        self,
        p: float = 0.2,
        *,
        self_loops: bool = False,
        multi_edges: bool = False,
        undirected: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if not 0 <= p < float("inf"):
            raise ConfigError(f"p must be a number of at least 0, got {p}")
        self.p, self.self_loops, self.multi_edges, self.undirected = p, self_loops, multi_edges, undirected

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Add edges.

        Args:
            data: A shallow copy of the graph or batch.
            rng: One seed a graph.
        """
        parts = Parts.of(data)
        pairs = Pairs.of(data, parts, self.undirected)
        wanted = (self.p * pairs.counts(parts) + 0.5).long()
        if self.multi_edges:
            added = _any_pairs(parts, wanted, self.self_loops, rng.fork("pairs"))
        else:
            added = absent_pairs(pairs, parts, wanted, rng.fork("pairs"), self.self_loops)
        every = torch.ones(len(pairs.member), dtype=torch.bool, device=added.device)
        return _with_added(data, parts, pairs, every, added, rng.fork("attributes"))


class PerturbEdge(GraphTransform):
    """Drop each edge with some probability and add as many between nodes that were not joined.

    GraphCL (You et al. 2020, arXiv 2010.13902, section 3.2). Undirected graphs and attributes as in `AddRandomEdge`.

    Args:
        p: Probability.
        undirected: Treat both directions as one edge; None: if every edge of the graph is there in both.
        seed: As `GraphTransform`.

    Raises:
        ConfigError: If ``p`` is outside [0, 1].

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> PerturbEdge(0.3)(tiny_node()).num_edges == tiny_node().num_edges
        True
    """

    def __init__(self, p: float = 0.2, *, undirected: bool | None = None, seed: int = 0) -> None:
        super().__init__(seed)
        self.p, self.undirected = check_share(p), undirected

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Move edges.

        Args:
            data: A shallow copy of the graph or batch.
            rng: One seed a graph.
        """
        parts = Parts.of(data)
        pairs = Pairs.of(data, parts, self.undirected)
        dropped = _dropped(pairs, parts, self.p, rng)
        wanted = torch.bincount(pairs.graph[dropped], minlength=len(parts.sizes))
        added = absent_pairs(pairs, parts, wanted, rng.fork("pairs"))
        return _with_added(data, parts, pairs, ~dropped[pairs.member], added, rng.fork("attributes"))


def _any_pairs(parts: Parts, wanted: Tensor, self_loops: bool, rng: KeyedRNG) -> Tensor:
    """Pairs of each graph, drawn with replacement."""
    wanted = torch.where(parts.sizes > (0 if self_loops else 1), wanted, 0)
    sizes, start = parts.sizes.repeat_interleave(wanted), parts.start().repeat_interleave(wanted)
    row = ragged_below(rng.fork("from"), wanted, parts.sizes)
    # Without self-loops: a step of 1..n-1 from the first node.
    other = ragged_below(rng.fork("to"), wanted, parts.sizes - int(not self_loops))
    return torch.stack([row, other if self_loops else (row + 1 + other) % sizes]) + start


def _with_added(data: Any, parts: Parts, pairs: Pairs, stays: Tensor, added: Tensor, rng: KeyedRNG) -> Any:
    """Append edges, with the attributes of random edges of the graph, to those that stay."""
    graph = parts.owner[added[0]]
    counts, known = torch.bincount(graph, minlength=len(parts.sizes)), pairs.counts(parts)
    source = (known.cumsum(0) - known)[graph] + ragged_below(rng, counts, known.clamp(min=1))
    lonely = known[graph] == 0
    first = torch.cat([pairs.first(), pairs.member.new_zeros(1)])
    twice = added[0] != added[1] if pairs.undirected else torch.zeros_like(lonely)
    fields = {}
    for name in parts.edge:
        values = data[name]
        padded = values if len(values) else values.new_zeros((1, *values.shape[1:]))
        new = padded[first[torch.where(lonely, len(first) - 1, source)]]
        new[lonely] = 1 if name == "edge_weight" else 0
        fields[name] = torch.cat([values[stays], new, new[twice]])
    edge_index = torch.cat([data.edge_index[:, stays], added, added.flip(0)[:, twice]], 1)
    return set_edges(data, parts, edge_index, fields)
