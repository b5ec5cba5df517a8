"""dK rewiring: a training graph whose edges swap ends, with all degrees or all joint degrees kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import ragged_words
from lightning_synth.plugins.graph.classical import ClassicalGenerator, local
from lightning_synth.plugins.graph.edges import segments
from lightning_synth.requests import KeyedRNG


class DKRewiring(ClassicalGenerator):
    """A random simple graph with exactly the degrees (d = 1) or the joint degrees (d = 2) of a training graph.

    Mahadevan et al. 2006, doi:10.1145/1159913.1159930 (dK-series): 1K keeps how many nodes have each degree, 2K how
    many edges join each pair of degrees. Pairs of edges (a, b), (c, d) become (a, d), (c, b); for 2K the ends b and d
    have one degree. All edges of all graphs are paired at random and swap at once; a swap is refused if one of its four
    edges occurs in another swap or in the graph, or is a loop. This rule is symmetric in time, so that the chain is
    uniform over the graphs it can reach.

    Nodes stay who they are: types and features of the training graph are kept.

    Args:
        d: 1 or 2.
        swaps: Attempts per edge; 10 is the usual number.

    Example:
        >>> from lightning_synth.testing import tiny_graphs, tiny_schema
        >>> graphs = tiny_graphs(1)
        >>> sample = DKRewiring(d=1).fit_on(graphs, tiny_schema("graph")).sample(1, condition={"label": 0}).items()[0]
        >>> bool((torch.bincount(sample.edge_index[0]) == torch.bincount(graphs[0].edge_index[0])).all())
        True
    """

    resizable = False

    def __init__(self, *, d: int = 2, swaps: float = 10.0, **kwargs: Any) -> None:
        if d not in (1, 2):
            raise ConfigError(f"d must be 1 (degrees) or 2 (joint degrees), got {d}")
        if not swaps >= 0:
            raise ConfigError(f"swaps must not be negative, got {swaps}")
        super().__init__(d=d, swaps=swaps, **kwargs)

    def learn(self, items: Sequence[Any], edges: Sequence[Tensor]) -> dict[str, Tensor]:
        """Keep the edges, and the types or features of the nodes."""
        # Half the bytes: node numbers within a graph are small.
        tables = {"edges": torch.cat(list(edges), 1).int()}
        schema = self._ready_schema()
        if schema.get("num_node_types") or schema.get("num_node_features"):
            tables["x"] = torch.cat([item.x for item in items])
        return tables

    def node_values(self, source: Tensor, num_nodes: Tensor) -> Tensor | None:
        """Return the types or features of the training nodes."""
        if "x" not in self.tables:
            return None
        _, node = self.training_nodes(source, num_nodes)
        return self.tables["x"][node]

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Swap ends of edges, all of them in every round."""
        sizes = self.tables["num_edges"]
        count = sizes[source]
        row, rank = segments(count)
        start = num_nodes.cumsum(0) - num_nodes
        ends = self.tables["edges"][:, (sizes.cumsum(0) - sizes)[source][row] + rank].long() + start[row]
        node_row, _ = segments(num_nodes)
        kind = node_row
        if self.hparams.d == 2:
            degree = torch.bincount(ends.reshape(-1), minlength=len(node_row))
            kind = torch.unique((node_row << 32) + degree, return_inverse=True)[1]
        # A round tries each edge once, that is half a swap per edge.
        for attempt in range(round(2 * self.hparams.swaps)):
            ends = swapped(ragged_words(rng.fork(attempt), count), ends, kind)
        return local(ends, num_nodes, node_row)


def swapped(words: Tensor, ends: Tensor, kind: Tensor) -> Tensor:
    """Let random pairs of edges swap their second ends where the graph stays simple.

    Args:
        words: int64 (edges,), 31 random bits for each edge.
        ends: int64 (2, edges), a simple graph.
        kind: int64 (nodes,), what the two swapped ends have in common.

    Returns:
        int64 (2, edges), each edge in a random direction.
    """
    nodes = len(kind)
    ends = torch.where((words & 1).bool(), ends, ends.flip(0))
    group, order = ((kind.index_select(0, ends[1]) << 30) + (words >> 1)).sort(stable=True)
    group = group >> 30
    place = torch.arange(len(group), device=group.device)
    begins = torch.ones_like(group, dtype=torch.bool)
    begins[1:] = group[1:] != group[:-1]
    rank = place - torch.where(begins, place, 0).cummax(0)[0] if len(group) else place
    # The first and the second of a group are a pair, the third and the fourth, and so on.
    leads = (rank[:-1] % 2 == 0) & ~begins[1:]
    one, two = order[:-1][leads], order[1:][leads]
    (a, b), (c, d) = ends.index_select(1, one), ends.index_select(1, two)
    first, second = torch.cat([ends[0], a, c]), torch.cat([ends[1], d, b])
    single = _single(torch.minimum(first, second) * nodes + torch.maximum(first, second))
    fine = single[one] & single[two] & single[len(order) :].reshape(2, -1).all(0) & (a != d) & (b != c)
    ends[1, one[fine]], ends[1, two[fine]] = d[fine], b[fine]
    return ends


def _single(key: Tensor) -> Tensor:
    """Which values occur once."""
    value, order = key.sort()
    differs = torch.ones(len(key) + 1, dtype=torch.bool, device=key.device)
    differs[1:-1] = value[1:] != value[:-1]
    out = torch.empty_like(differs[1:])
    out[order] = differs[1:] & differs[:-1]
    return out


__all__ = ["DKRewiring", "swapped"]
