"""R-MAT: edges fall into quadrants of the adjacency matrix, then into quadrants of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import ragged_words
from lightning_synth.plugins.graph.classical import ClassicalGenerator, triangles
from lightning_synth.plugins.graph.edges import per_row, repeats, segments
from lightning_synth.requests import KeyedRNG

#: Levels decided by one random number.
_AT_ONCE = 4
#: Rounds of drawing until all edges are different; a crowded corner may have no more of them.
_ROUNDS = 16
#: Points a side of the search grid, times it is refined, and by how much.
_GRID, _ZOOMS, _FACTOR = 25, 4, 6.0


class RMAT(ClassicalGenerator):
    """Each edge picks a quadrant of the adjacency matrix with probabilities a, b, c, d, log2(n) times over.

    Chakrabarti, Zhan & Faloutsos 2004, doi:10.1137/1.9781611972740.43; the edge-by-edge form of stochastic Kronecker
    graphs (Leskovec et al. 2010, arXiv 0812.4905). Loops and repeats are drawn again, up to a number of rounds. Where n
    is no power of two, neighbouring nodes of the next one are merged evenly.

    Fitted, the number of edges is that of a training graph, and b = c; the quadrants come as near as they can to its
    pairs of edges at a node and its triangles, the method of moments of Gleich & Owen 2012
    (doi:10.1080/15427951.2012.680824). These moments count repeats, so that where a dense corner has many of them,
    samples are a little less uneven than the graph.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        mean_degree: Mean degree of every sample; None takes that of a training graph. Graph500 has 32.
        quadrants: Probabilities a, b, c, d (top left, top right, bottom left, bottom right); None estimates them.
            Graph500 has 0.57, 0.19, 0.19, 0.05.

    Example:
        >>> model = RMAT(num_nodes=256, mean_degree=8.0, quadrants=[0.57, 0.19, 0.19, 0.05])
        >>> model.sample(1).items()[0].edge_index.shape[1] // 2
        1024
    """

    sufficient = ("num_nodes", "mean_degree", "quadrants")

    def __init__(
        self,
        *,
        num_nodes: int | None = None,
        mean_degree: float | None = None,
        quadrants: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if mean_degree is not None and not 0 <= mean_degree < (num_nodes or float("inf")):
            raise ConfigError(f"mean_degree must lie between 0 and the number of nodes, got {mean_degree}")
        if quadrants is not None:
            quadrants = [float(share) for share in quadrants]
            if len(quadrants) != 4 or min(quadrants) < 0 or abs(sum(quadrants) - 1) > 1e-6:
                raise ConfigError(f"quadrants must be four shares that add up to 1, got {quadrants}")
        super().__init__(num_nodes=num_nodes, mean_degree=mean_degree, quadrants=quadrants, **kwargs)

    def learn(self, items: Sequence[Any], edges: Sequence[Tensor]) -> dict[str, Tensor]:
        """Estimate the quadrants of every training graph, unless they are given."""
        if self.hparams.quadrants is not None:
            return {}
        sizes = [int(item.num_nodes) for item in items]
        counts = [triangles(part, n) for part, n in zip(edges, sizes, strict=True)]
        observed = [
            [float(degree.sum()) / 2, float((degree * (degree - 1)).sum()) / 2, float(count.sum()) / 3]
            for count, degree in counts
        ]
        levels = torch.tensor(sizes, dtype=torch.float64).clamp(min=2).log2()
        return {"quadrants": fit_quadrants(levels, torch.tensor(observed, dtype=torch.float64))}

    def _wanted(self, source: Tensor, num_nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Edges wanted and shares of the quadrants, int64 (rows,) and float64 (rows, 4)."""
        degree, given = self.hparams.mean_degree, self.hparams.quadrants
        mean = self.mean_degree(source) if degree is None else torch.full_like(source, degree, dtype=torch.float64)
        wanted = (mean * num_nodes / 2).round().long().minimum(num_nodes * (num_nodes - 1) // 2)
        if given is None:
            return wanted, self.tables["quadrants"][source]
        return wanted, torch.tensor(given, dtype=torch.float64, device=source.device).expand(len(source), 4)

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Draw edges until there are as many different ones as wanted."""
        wanted, shares = self._wanted(source, num_nodes)
        first, total = num_nodes.cumsum(0) - num_nodes, int(num_nodes.sum())
        row = key = source[:0]
        for attempt in range(_ROUNDS):
            lacking = wanted - per_row(row, len(wanted))
            if not int(lacking.max()):
                break
            # Twice as many from the second round on: much of what is drawn then is there already.
            count = lacking * (2 if attempt else 1)
            ends, owner = drop_edges(rng.fork(attempt), num_nodes, count, shares)
            start = first.index_select(0, owner)
            pair = (torch.minimum(*ends) + start) * total + torch.maximum(*ends) + start
            different = ends[0] != ends[1]
            row, key = torch.cat([row, owner[different]]), torch.cat([key, pair[different]])
            new = ~repeats(key)
            row, key = _at_most(wanted, row[new], key[new])
        start = first.index_select(0, row)
        return torch.stack([key // total - start, key % total - start]), row


def _at_most(wanted: Tensor, row: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the first edges of every row."""
    order = row.argsort(stable=True)
    _, rank = segments(per_row(row, len(wanted)))
    order = order[rank < wanted[row[order]]]
    return row[order], key[order]


def drop_edges(rng: KeyedRNG, num_nodes: Tensor, count: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Drop edges through the quadrants.

    Args:
        rng: One seed a row.
        num_nodes: int64 (rows,).
        count: int64 (rows,), edges of each row.
        shares: float64 (rows, 4), probabilities of the quadrants.

    Returns:
        Ends (2, edges) within each graph, and the row of each edge; loops and repeats included.
    """
    row = torch.arange(len(count), device=count.device).repeat_interleave(count)
    levels = (num_nodes.clamp(min=2) - 1).double().log2().floor().long() + 1
    # One random word decides over some levels at once: which of all their quadrants, in whole units of 2**-31.
    cells = shares
    for _ in range(_AT_ONCE - 1):
        cells = (cells[:, :, None] * shares[:, None]).flatten(1)
    bounds = (cells.cumsum(1) * 2.0**31).round().long() + (torch.arange(len(count), device=count.device) << 32)[:, None]
    down, right = _bits(torch.arange(4**_AT_ONCE, device=count.device))
    ends = torch.zeros((2, len(row)), dtype=torch.int64, device=count.device)
    for level in range(0, int(levels.max()), _AT_ONCE):
        word = ragged_words(rng.fork(level), count) + (row << 32)
        cell = torch.searchsorted(bounds.reshape(-1), word, right=True) % 4**_AT_ONCE
        used = (levels - level).clamp(0, _AT_ONCE).index_select(0, row)
        for end, bits in zip(ends, (down, right), strict=True):
            end.bitwise_left_shift_(used).add_(bits.index_select(0, cell) >> (_AT_ONCE - used))
    # Nodes of the next power of two, merged evenly into the nodes that there are.
    return (ends * num_nodes.index_select(0, row)) >> levels.index_select(0, row), row


def _bits(cell: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the nested quadrants of each cell."""
    down = right = torch.zeros_like(cell)
    for level in reversed(range(_AT_ONCE)):
        quadrant = cell // 4**level % 4
        down, right = 2 * down + quadrant // 2, 2 * right + quadrant % 2
    return down, right


def moments(levels: Tensor, a: Tensor, b: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expected edges, pairs of edges at a node, and triangles of a Kronecker graph of initiator [a b; b d].

    Gleich & Owen 2012, eq. 2 to 4.

    Args:
        levels: float64, log2 of the number of nodes.
        a: float64, initiator.
        b: float64, initiator.
        d: float64, initiator.

    Returns:
        E, H and the triangles, of the broadcast shape.
    """
    edges = (a + 2 * b + d) ** levels - (a + d) ** levels
    pairs = (
        ((a + b) ** 2 + (b + d) ** 2) ** levels
        - 2 * (a * (a + b) + d * (d + b)) ** levels
        - (a**2 + 2 * b**2 + d**2) ** levels
        + 2 * (a**2 + d**2) ** levels
    )
    triangles = (
        (a**3 + 3 * b**2 * (a + d) + d**3) ** levels
        - 3 * (a * (a**2 + b**2) + d * (b**2 + d**2)) ** levels
        + 2 * (a**3 + d**3) ** levels
    )
    return edges / 2, pairs / 2, triangles / 6


def fit_quadrants(levels: Tensor, observed: Tensor) -> Tensor:
    """Choose the shares of the quadrants that come nearest to the observed pairs of edges and triangles.

    The pairs say how uneven the two halves are, the triangles how much of the edges lies on the diagonal.

    Args:
        levels: float64 (graphs,), log2 of the number of nodes.
        observed: float64 (graphs, 3): edges, pairs of edges at a node, and triangles.

    Returns:
        float64 (graphs, 4), with a >= d and b = c.

    Example:
        >>> k = torch.tensor([10.0], dtype=torch.float64)
        >>> a, b, d = (torch.tensor([v], dtype=torch.float64) for v in (0.95, 0.5, 0.2))
        >>> torch.round(2.15 * fit_quadrants(k, torch.stack(moments(k, a, b, d), 1)), decimals=2)[0].tolist()
        [0.95, 0.5, 0.5, 0.2]
    """
    graphs = len(levels)
    # Any point of the triangle of shares: what is on the diagonal, and how much more of it is at the top.
    diagonal, lean = (torch.full((graphs,), 0.5, dtype=torch.float64) for _ in range(2))
    width = 0.5
    steps = torch.linspace(-1, 1, _GRID, dtype=torch.float64)
    for _ in range(_ZOOMS):
        x = (diagonal[:, None, None] + width * steps[:, None]).clamp(0, 1).expand(-1, -1, _GRID)
        y = (lean[:, None, None] + width * steps).clamp(0, 1).expand(-1, _GRID, -1)
        best = _misfit(levels[:, None, None], observed[:, :, None, None], x, y).flatten(1).argmin(1)
        at = torch.arange(graphs)
        diagonal, lean, width = x.flatten(1)[at, best], y.flatten(1)[at, best], width / _FACTOR
    a, b = diagonal * (1 + lean) / 2, (1 - diagonal) / 2
    return torch.stack([a, b, b, diagonal - a], 1)


def _misfit(levels: Tensor, observed: Tensor, diagonal: Tensor, lean: Tensor) -> Tensor:
    edges, pairs, closed = observed.unbind(1)
    a, b = diagonal * (1 + lean) / 2, (1 - diagonal) / 2
    # The scale at which the edges are as observed.
    scale = (2 * edges / (1 - diagonal.clamp(max=1 - 1e-9) ** levels).clamp(min=1e-12)) ** (1 / levels)
    _, expected, triples = moments(levels, scale * a, scale * b, scale * (diagonal - a))
    return ((expected - pairs) / pairs.clamp(min=1)).square() + ((triples - closed) / closed.clamp(min=1)).square()


__all__ = ["RMAT", "drop_edges", "fit_quadrants", "moments"]
