"""Barabasi-Albert graphs: nodes arrive one after the other and prefer neighbours that have many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import ragged_words
from lightning_synth.plugins.graph.classical import ClassicalGenerator
from lightning_synth.plugins.graph.edges import below, per_row, repeats, segments
from lightning_synth.requests import KeyedRNG


class BarabasiAlbert(ClassicalGenerator):
    """Growth with preferential attachment: a new node joins m different nodes, in proportion to their degrees.

    Barabasi & Albert 1999, doi:10.1126/science.286.5439.509. As in ``networkx.barabasi_albert_graph``, growth starts
    from a star of m + 1 nodes, so that there are exactly m (n - m) edges. An attachment copies an earlier end of an
    edge, known or itself a copy (Batagelj & Brandes 2005, doi:10.1103/PhysRevE.71.036113): chains of copies are
    followed for all nodes at once, and nodes that arrive between 2**k and 2**(k + 1) are made distinct together.

    Fitted, m is the number for which m (n - m) is the number of edges of a training graph; a row rounds it up or down
    at random, so that the mean is kept.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        m: Edges of a new node; None estimates them.

    Example:
        >>> graph = BarabasiAlbert(num_nodes=100, m=3).sample(1).items()[0]
        >>> graph.edge_index.shape[1] // 2 == 3 * (100 - 3)
        True
    """

    sufficient = ("num_nodes", "m")

    def __init__(self, *, num_nodes: int | None = None, m: int | None = None, **kwargs: Any) -> None:
        if m is not None and m < 1:
            raise ConfigError(f"m must be at least 1, got {m}")
        if m is not None and num_nodes is not None and num_nodes <= m:
            raise ConfigError(f"num_nodes must be greater than m = {m}, got {num_nodes}")
        super().__init__(num_nodes=num_nodes, m=m, **kwargs)

    def learn(self, items: Sequence[Any], edges: Sequence[Tensor]) -> dict[str, Tensor]:
        """Check that the training graphs are large enough for a given m."""
        smallest = min(int(item.num_nodes) for item in items)
        if self.hparams.m is not None and self.hparams.num_nodes is None and smallest <= self.hparams.m:
            raise ConfigError(f"m = {self.hparams.m} needs larger graphs: a training graph has {smallest} nodes")
        return {}

    def _attachments(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> Tensor:
        if self.hparams.m is not None:
            return torch.full_like(num_nodes, self.hparams.m)
        n = num_nodes.double()
        edges = self.density(source, num_nodes) * n * (n - 1) / 2
        # The smaller root of m (n - m) = edges; at most n^2 / 4 edges can be had.
        m = (n - (n.square() - 4 * edges).clamp(min=0).sqrt()) / 2
        return (m + rng.uniform(()).double()).floor().long().minimum(num_nodes - 1)

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Grow the graphs."""
        m = self._attachments(source, num_nodes, rng.fork("m"))
        row, place = segments(m * (num_nodes - m - 1))
        target = _Growth(m, row, place).run(rng.fork("growth"))
        star, leaf = segments(m)
        new = m[row] + 1 + place // m[row]
        ends = torch.stack([torch.cat([torch.zeros_like(leaf), new]), torch.cat([leaf + 1, target])])
        return ends, torch.cat([star, row])


class _Growth:
    """Targets of all attachments; attachment j of the i-th new node stands at place i m + j of its row.

    Ends of edges are numbered as they come to be: m times the centre of the star, its m leaves, then for every new node
    its m targets and m times itself.
    """

    def __init__(self, m: Tensor, row: Tensor, place: Tensor) -> None:
        self.rows, self.m, self.row, self.place = len(m), m.index_select(0, row), row, place
        self.new = place // self.m
        count = per_row(row, len(m))
        self.start = (count.cumsum(0) - count).index_select(0, row)
        self.end = torch.zeros_like(place)

    def run(self, rng: KeyedRNG) -> Tensor:
        target = torch.zeros_like(self.place)
        latest, low = int(self.new.max()) if len(self.new) else -1, 0
        while low <= latest:
            high = max(2 * low, 1)
            part = ((self.new >= low) & (self.new < high)).nonzero()[:, 0]
            self._attach(part, target, rng.fork(low))
            low = high
        return target

    def _attach(self, part: Tensor, target: Tensor, rng: KeyedRNG) -> None:
        """Draw the targets of some new nodes, again where a node would be joined to another twice."""
        redraw = part
        while len(redraw):
            words = ragged_words(rng, per_row(self.row[redraw], self.rows))
            self.end[redraw] = below(words, 2 * self.m[redraw] * (1 + self.new[redraw]))
            target[part] = self._node_at(part)
            node = self.start[part] + self.new[part]
            redraw = part[repeats(node * (int(target.max()) + 1) + target[part])]

    def _node_at(self, part: Tensor) -> Tensor:
        """Follow each attachment to a known end of an edge."""
        out = torch.zeros_like(part)
        at, open_ = part, torch.arange(len(part), device=part.device)
        while len(open_):
            m, end = self.m.index_select(0, at), self.end.index_select(0, at)
            later = end - 2 * m
            new, j = later // (2 * m), later % (2 * m)
            copy = (later >= 0) & (j < m)
            node = torch.where(later >= 0, m + 1 + new, (end - m + 1).clamp(min=0))
            out[open_] = node
            at, open_ = (self.start.index_select(0, at) + new * m + j)[copy], open_[copy]
        return out


__all__ = ["BarabasiAlbert"]
