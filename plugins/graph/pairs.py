"""Pairs of nodes block by block, never an n x n matrix: weighted draws, and offsets that set the number of edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_synth.graphs import ragged_words
from lightning_synth.plugins.graph.edges import segments, unit
from lightning_synth.requests import KeyedRNG

#: Pairs of nodes looked at together: a few MB, which stay in the cache.
BLOCK = 1 << 16
#: Steps that look for an offset, and the error of the number of edges at which they stop.
_MOST_STEPS, _CLOSE = 20, 0.01
#: Odd step from key to key (2**64 over the golden ratio).
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


@dataclass
class PairBlock:
    """Some of the unordered pairs of nodes of a batch of graphs.

    Args:
        row: int64 (pairs,), the graph of each pair.
        first: int64 (pairs,), its smaller node, counted over all graphs.
        second: int64 (pairs,), its larger node.
        words: int64 (pairs,), a random number below 2**31 for each pair, or empty.
    """

    row: Tensor
    first: Tensor
    second: Tensor
    words: Tensor


def pair_blocks(num_nodes: Tensor, rng: KeyedRNG | None = None, block: int = BLOCK) -> Iterator[PairBlock]:
    """Visit every unordered pair of two nodes of the same graph once.

    Args:
        num_nodes: int64 (graphs,); the nodes of a graph follow one another.
        rng: One seed a graph; the numbers of a pair depend on it, not on blocks or other graphs.
        block: Pairs at a time, about.

    Yields:
        Blocks, in order of graph and first node.

    Example:
        >>> [(b.first.tolist(), b.second.tolist()) for b in pair_blocks(torch.tensor([3, 2]), block=100)]
        [([0, 0, 1, 3], [1, 2, 2, 4])]
    """
    row, place = segments(num_nodes)
    count = num_nodes[row] - 1 - place
    key = None
    if rng is not None:
        low, high = rng.integers(1 << 31, (2,)).unbind(-1)
        key = (high << 31 | low)[row] + place * _GOLDEN
    part = (count.cumsum(0) - count) // block
    ends = torch.searchsorted(part, torch.arange(int(part[-1]) + 1, device=row.device), right=True) if len(part) else ()
    begin = 0
    for end in ends:
        node = torch.arange(begin, int(end), device=row.device)
        begin = int(end)
        if not len(node):
            continue
        which, step = segments(count[node])
        words = row[:0] if key is None else ragged_words(KeyedRNG(key[node]), count[node])
        first = which + node[0]
        yield PairBlock(row.index_select(0, first), first, first + 1 + step, words)


def matching_offset(
    counts: Tensor, wanted: Tensor, log_odds: Callable[[PairBlock], Tensor], block: int = BLOCK
) -> Tensor:
    """Find what to add to the log odds of all pairs of a graph, so that its expected number of edges is right.

    Args:
        counts: int64 (graphs,), nodes.
        wanted: (graphs,), edges.
        log_odds: From a block of pairs to the log odds of an edge, (pairs,).
        block: Pairs at a time, about.

    Returns:
        float64 (graphs,).

    Example:
        >>> offset = matching_offset(torch.tensor([4]), torch.tensor([3]), lambda part: torch.full((6,), 2.0))
        >>> round(float(offset), 3)
        -2.0
    """
    offset = torch.zeros(len(counts), dtype=torch.float64, device=counts.device)
    pairs = (counts * (counts - 1) / 2).double()
    free = (wanted > 0) & (wanted < pairs)
    target = (wanted / pairs.clamp(min=1)).logit(1e-12)
    moving = free
    for _ in range(_MOST_STEPS):
        expected, slope = torch.zeros_like(offset), torch.zeros_like(offset)
        for part in pair_blocks(counts, block=block):
            p = torch.sigmoid(log_odds(part).double() + offset[part.row])
            expected.index_add_(0, part.row, p)
            slope.index_add_(0, part.row, p * (1 - p))
        # A graph stops by its own error alone, so that it does not depend on its batch.
        moving = moving & ((expected / wanted.clamp(min=1e-9) - 1).abs() > _CLOSE)
        if not bool(moving.any()):
            break
        # Newton's method on the log odds of the mean: exact where all pairs are alike.
        share = expected / pairs.clamp(min=1)
        step = (target - share.logit(1e-12)) * share * (1 - share) * pairs / slope.clamp(min=1e-12)
        offset = torch.where(moving, offset + step.clamp(-3, 3), offset)
    # An empty graph stays empty, a complete one complete.
    return torch.where(free, offset, torch.where(wanted > 0, 100.0, -100.0).double())


def race(
    rng: KeyedRNG,
    num_nodes: Tensor,
    quota: Tensor,
    log_weight: Callable[[Tensor, Tensor], Tensor],
    linked: Tensor,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw pairs without replacement in proportion to their weights, at least one pair for every linked node.

    Each pair arrives after an exponential time of rate equal to its weight: the earliest ones are a draw without
    replacement (Efraimidis & Spirakis 2006, doi:10.1016/j.ipl.2005.11.003), and the earliest one of a node is a draw
    among the pairs of that node. Blocks are pruned to the earliest so far, so memory is linear in ``quota``.

    Args:
        rng: One seed a graph.
        num_nodes: int64 (graphs,).
        quota: int64 (graphs,), pairs wanted.
        log_weight: From the ends of pairs, int64 (pairs,) each, to the logarithm of their weights.
        linked: bool (nodes,), nodes that must not stay alone.
        block: Pairs at a time, about.

    Returns:
        Graph, smaller node and larger node of every drawn pair.

    Example:
        >>> row, first, second = race(
        ...     KeyedRNG(torch.tensor([0])), torch.tensor([4]), torch.tensor([3]),
        ...     lambda i, j: torch.zeros(len(i)), torch.ones(4, dtype=torch.bool),
        ... )
        >>> len(row), len(set(first.tolist()) | set(second.tolist()))
        (3, 4)
    """
    total, device = int(num_nodes.sum()), num_nodes.device
    own = torch.full((total,), torch.inf, dtype=torch.float64, device=device)
    own_pair = torch.full((total,), -1, dtype=torch.int64, device=device)
    bound = torch.full((len(num_nodes),), torch.inf, dtype=torch.float64, device=device)
    kept_row, kept_pair = quota[:0], quota[:0]
    kept_time = own[:0]
    for part in pair_blocks(num_nodes, rng, block):
        time = torch.log(-torch.log1p(-unit(part.words))) - log_weight(part.first, part.second).double()
        pair = part.first * total + part.second
        for end in (part.first, part.second):
            earliest = own.scatter_reduce(0, end, time, "amin")
            new = (time == earliest[end]) & (time < own[end])
            own_pair[end[new]], own = pair[new], earliest
        early = time < bound[part.row]
        kept_row, kept_time = torch.cat([kept_row, part.row[early]]), torch.cat([kept_time, time[early]])
        kept_pair = torch.cat([kept_pair, pair[early]])
        keep = _earliest(kept_row, kept_time, quota)
        kept_row, kept_time, kept_pair = kept_row[keep], kept_time[keep], kept_pair[keep]
        bound = _last(kept_row, kept_time, quota)
    forced = own_pair[linked & (own_pair >= 0)].unique()
    owner, _ = segments(num_nodes)
    rest = ~torch.isin(kept_pair, forced)
    pair, row = torch.cat([forced, kept_pair[rest]]), torch.cat([owner[forced // max(total, 1)], kept_row[rest]])
    time = torch.cat([torch.full_like(forced, -torch.inf, dtype=torch.float64), kept_time[rest]])
    keep = _earliest(row, time, quota)
    return row[keep], pair[keep] // max(total, 1), pair[keep] % max(total, 1)


def _earliest(row: Tensor, time: Tensor, quota: Tensor) -> Tensor:
    """Positions of the earliest entries of every row, in order."""
    order = time.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    _, rank = segments(torch.bincount(row, minlength=len(quota)))
    return order[rank < quota[row[order]]]


def _last(row: Tensor, time: Tensor, quota: Tensor) -> Tensor:
    """Time of the last wanted entry of every row; infinite while there are too few."""
    count = torch.bincount(row, minlength=len(quota))
    last = torch.full((len(quota),), -torch.inf, dtype=time.dtype, device=time.device)
    last = last.scatter_reduce(0, row, time, "amax")
    return torch.where(count < quota, torch.inf, last)


__all__ = ["BLOCK", "PairBlock", "matching_offset", "pair_blocks", "race"]
