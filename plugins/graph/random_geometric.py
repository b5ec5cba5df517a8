"""Random geometric graphs: points in a square, joined where they are near."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import ragged_words
from lightning_synth.plugins.graph.classical import ClassicalGenerator, local
from lightning_synth.plugins.graph.edges import segments, unit
from lightning_synth.requests import KeyedRNG

#: A cell of the grid and the neighbours that come after it: every pair of cells once.
_OFFSETS = ((0, 0), (1, 0), (-1, 1), (0, 1), (1, 1))


class RandomGeometric(ClassicalGenerator):
    """Nodes are uniform points of the unit square, joined if their distance is at most a radius.

    Gilbert 1961, doi:10.1137/0109045; Penrose 2003, ISBN 978-0198506263. Neighbours are looked for in a grid of cells
    at least as wide as the radius. Fitted, the radius is the one at which two random points of the square are joined
    with the probability of an edge in a training graph, borders included.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        radius: Largest distance of neighbours, in sides of the square; None takes it from the density.

    Example:
        >>> graph = RandomGeometric(num_nodes=50, radius=2**0.5).sample(1).items()[0]
        >>> graph.edge_index.shape[1] // 2 == 50 * 49 // 2
        True
    """

    sufficient = ("num_nodes", "radius")

    def __init__(self, *, num_nodes: int | None = None, radius: float | None = None, **kwargs: Any) -> None:
        if radius is not None and not 0 <= radius < math.inf:
            raise ConfigError(f"radius must not be negative, got {radius}")
        super().__init__(num_nodes=num_nodes, radius=radius, **kwargs)

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Draw points and join the near ones."""
        given = self.hparams.radius
        radius = (
            radius_of(self.density(source, num_nodes))
            if given is None
            else torch.full_like(source, given, dtype=torch.float64)
        )
        row, _ = segments(num_nodes)
        x, y = (unit(ragged_words(rng.fork(name), num_nodes)) for name in ("x", "y"))
        return local(near_pairs(x, y, row, radius), num_nodes, row)


def near_pairs(x: Tensor, y: Tensor, row: Tensor, radius: Tensor) -> Tensor:
    """Find the pairs of points of one square that are at most a radius apart.

    Args:
        x: float64 (points,) in [0, 1).
        y: float64 (points,) in [0, 1).
        row: int64 (points,), the square of each point, ascending.
        radius: float64 (squares,).

    Returns:
        int64 (2, pairs), each once.

    Example:
        >>> x = torch.tensor([0.1, 0.15, 0.9], dtype=torch.float64)
        >>> near_pairs(x, x, torch.zeros(3, dtype=torch.int64), torch.tensor([0.1]))
        tensor([[0],
                [1]])
    """
    # Not more cells than points, however small the radius.
    most = torch.bincount(row, minlength=len(radius)).double().sqrt().ceil()
    side = (1 / radius.clamp(min=1e-9)).floor().minimum(most).clamp(min=1).long()
    start = side.square().cumsum(0) - side.square()
    width = side[row]
    column, line = ((value * width).long().minimum(width - 1) for value in (x, y))
    cell, point = (start[row] + line * width + column).sort(stable=True)
    x, y, row, column, line, width = (value.index_select(0, point) for value in (x, y, row, column, line, width))
    size = torch.bincount(cell, minlength=int(side.square().sum()))
    first, limit = size.cumsum(0) - size, radius.double().square()[row]
    found = []
    for right, up in _OFFSETS:
        inside = (column + right >= 0) & (column + right < width) & (line + up < width)
        other = torch.where(inside, cell + up * width + right, 0)
        one, rank = segments(torch.where(inside, size[other], 0))
        two = first[other[one]] + rank
        near = (x[one] - x[two]).square() + (y[one] - y[two]).square() <= limit[one]
        if not (right or up):
            near &= one < two
        found.append(torch.stack([one[near], two[near]]))
    return point[torch.cat(found, 1)]


@functools.cache
def _law() -> tuple[Tensor, Tensor]:
    """Distances in [0, sqrt(2)], and the probability that two random points of the square are nearer than that."""
    r = torch.linspace(0, math.sqrt(2), 1 << 14, dtype=torch.float64)
    # Density of the distance (square line picking): https://mathworld.wolfram.com/SquareLinePicking.html
    inner = 2 * r * (r.square() - 4 * r + math.pi)
    beyond = (r.square() - 1).clamp(min=0).sqrt()
    outer = 2 * r * (4 * beyond - (r.square() + 2 - math.pi) - 4 * beyond.atan())
    p = torch.cumulative_trapezoid(torch.where(r <= 1, inner, outer), r)
    return r, torch.cat([p.new_zeros(1), p / p[-1]])


def radius_of(p: Tensor) -> Tensor:
    """Return the distance within which two random points of the unit square lie with probability p.

    Args:
        p: float64, in [0, 1].

    Returns:
        float64, of the same shape, in [0, sqrt(2)].

    Example:
        >>> torch.round(radius_of(torch.tensor([0.0, 1.0], dtype=torch.float64)), decimals=3)
        tensor([0.0000, 1.4140], dtype=torch.float64)
    """
    r, law = (value.to(p.device) for value in _law())
    # The smallest distance at which all are joined, for p = 1, up to rounding.
    high = torch.searchsorted(law, p.clamp(max=1 - 1e-12)).clamp(1, len(law) - 1)
    share = (p - law[high - 1]) / (law[high] - law[high - 1])
    return torch.where(p < 1, r[high - 1] + share * (r[high] - r[high - 1]), r[-1] * (1 + 1e-12))


__all__ = ["RandomGeometric", "near_pairs", "radius_of"]
