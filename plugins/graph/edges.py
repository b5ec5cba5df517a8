"""Kernels of the classical generators: many graphs at once, no loop over graphs, nodes or edges.

Graphs, groups and cells of a batch lie one after the other in flat tensors ("ragged"); every random number comes from
the stream of the row (the graph) that it decides about, so that a row does not depend on its batch. Work and memory are
linear in nodes and edges.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_synth.graphs import ragged_words
from lightning_synth.requests import KeyedRNG

#: Above this probability a pair is decided by itself; the rest come from a Poisson process with this much surplus.
_HEAVY = 0.25
_SURPLUS = -math.log1p(-_HEAVY) / _HEAVY


def segments(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Number the entries of a ragged tensor.

    Args:
        counts: int64 (segments,).

    Returns:
        The segment of every entry and its position within the segment, each int64 (sum of counts,).

    Example:
        >>> segments(torch.tensor([2, 0, 1]))
        (tensor([0, 0, 2]), tensor([0, 1, 0]))
    """
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    start = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - start.index_select(0, owner)


def unit(words: Tensor) -> Tensor:
    """Turn 31-bit words into float64 numbers in (0, 1)."""
    return (words.double() + 0.5) * 2.0**-31


def below(words: Tensor, high: Tensor) -> Tensor:
    """Turn 31-bit words into integers in [0, high), for high up to 2**32."""
    return (words * high) >> 31


def per_row(row: Tensor, rows: int, value: Tensor | None = None) -> Tensor:
    """Add up values (None: count entries) of each row, (rows,)."""
    if value is None:
        return torch.bincount(row, minlength=rows)
    return torch.zeros(rows, dtype=value.dtype, device=value.device).index_add(0, row, value)


def poisson(rng: KeyedRNG, mean: Tensor) -> Tensor:
    """Draw one Poisson number for each row, by inversion.

    Args:
        rng: One seed a row.
        mean: float64 (rows,).

    Returns:
        int64 (rows,).
    """
    from scipy.stats import poisson as law

    high, low = rng.integers(1 << 31, (2,)).unbind(-1)
    u = ((high << 22 | low >> 9).double() + 0.5) * 2.0**-53
    return torch.from_numpy(law.ppf(u.cpu().numpy(), mean.cpu().numpy())).long().to(mean.device)


def shuffled(rng: KeyedRNG, counts: Tensor) -> Tensor:
    """Put the entries of every row in a random order.

    Args:
        rng: One seed a row.
        counts: int64 (rows,), entries of each row.

    Returns:
        int64 (sum of counts,): positions in the flat tensor, row after row.

    Example:
        >>> shuffled(KeyedRNG(torch.tensor([1, 2])), torch.tensor([3, 2])).sort()[0]
        tensor([0, 1, 2, 3, 4])
    """
    row, _ = segments(counts)
    return (row << 31 | ragged_words(rng, counts)).argsort(stable=True)


def repeats(key: Tensor, yields: Tensor | None = None) -> Tensor:
    """Find entries whose value another entry has already: one at an earlier position, or one that does not yield.

    Args:
        key: int64 (entries,).
        yields: bool (entries,), entries that count as later than all others; None: none.

    Returns:
        bool (entries,).

    Example:
        >>> repeats(torch.tensor([5, 3, 5, 5]))
        tensor([False, False,  True,  True])
        >>> repeats(torch.tensor([5, 3, 5]), yields=torch.tensor([True, True, False]))
        tensor([ True, False, False])
    """
    value, order = (key if yields is None else 2 * key + yields).sort(stable=True)
    value = value if yields is None else value >> 1
    out = torch.zeros(len(key), dtype=torch.bool, device=key.device)
    out[order[1:][value[1:] == value[:-1]]] = True
    return out


def pair_of(position: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends low < high of the pairs (0, 1), (0, 2), (1, 2), (0, 3), ... by their number.

    Example:
        >>> pair_of(torch.arange(4))
        (tensor([0, 0, 1, 0]), tensor([1, 2, 2, 3]))
    """
    high = ((1 + (1 + 8 * position.double()).sqrt()) / 2).long()
    # The root is rounded: beyond 2**52 it can be one off either way.
    high = high - (high * (high - 1) // 2 > position).long()
    high = high + (high * (high + 1) // 2 <= position).long()
    return position - high * (high - 1) // 2, high


def successes(rng: KeyedRNG, row: Tensor, trials: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Find the successes among many Bernoulli trials, in time linear in the successes.

    The gap from one success to the next is geometric (Batagelj & Brandes 2005, doi:10.1103/PhysRevE.71.036113).

    Args:
        rng: One seed a row.
        row: int64 (cells,), the row of each cell, ascending.
        trials: int64 (cells,), trials in each cell.
        p: float64 (cells,), probability of success in each cell.

    Returns:
        The cell of every success and the number of the trial, each int64 (successes,); all are different.

    Example:
        >>> cell, trial = successes(KeyedRNG(torch.tensor([0])), torch.tensor([0]), torch.tensor([3]), torch.ones(1))
        >>> trial
        tensor([0, 1, 2])
    """
    rows = len(rng)
    last = torch.full_like(trials, -1)
    active = (trials > 0).nonzero()[:, 0]
    found: list[tuple[Tensor, Tensor]] = [(row[:0], row[:0])]
    while len(active):
        left = (trials - 1 - last)[active].double() * p[active]
        count = (left + 6 * left.sqrt() + 3).long()
        u = unit(ragged_words(rng, per_row(row[active], rows, count)))
        cell = active.repeat_interleave(count)
        gap = (u.log() / torch.log1p(-p[cell].double())).minimum(trials[cell].double()).long() + 1
        run = gap.cumsum(0)
        ends = count.cumsum(0) - 1
        before = torch.cat([run.new_zeros(1), run[ends[:-1]]])
        trial = run + (last[active] - before).repeat_interleave(count)
        keep = trial < trials[cell]
        found.append((cell[keep], trial[keep]))
        last[active] = trial[ends]
        active = active[last[active] < trials[active] - 1]
    cells, places = zip(*found, strict=True)
    return torch.cat(cells), torch.cat(places)


def power_law(num_nodes: int, mean_degree: float, exponent: float) -> Tensor:
    """Return expected degrees whose density falls as degree ** -exponent: the quantiles of a Pareto law.

    Args:
        num_nodes: How many.
        mean_degree: Their mean.
        exponent: Of the density, above 2.

    Returns:
        float64 (num_nodes,), largest first, at most num_nodes - 1.

    Example:
        >>> float(power_law(1000, mean_degree=6.0, exponent=3.0).median().round(decimals=1))
        4.3
    """
    rank = (torch.arange(num_nodes, dtype=torch.float64) + 0.5) / num_nodes
    degree = rank ** (-1 / (exponent - 1))
    return (degree * (mean_degree / degree.mean())).clamp(max=num_nodes - 1)


class Groups:
    """Weighted nodes in groups (blocks of nodes, or whole graphs), heaviest first.

    Args:
        row: int64 (groups,), the row of each group.
        group: int64 (nodes,), the group of each node.
        weight: float64 (nodes,), not negative.
    """

    def __init__(self, row: Tensor, group: Tensor, weight: Tensor) -> None:
        rows = int(row.max()) + 1 if len(row) else 0
        # Whole units, so that sums are exact whatever the batch; a row has at most 2**31 of them.
        total = per_row(row[group], rows, weight)
        self.scale = torch.exp2((30 - torch.log2(total.clamp(min=1e-300))).floor().clamp(max=30))
        units = (weight * self.scale[row[group]]).round().long()
        self.key, self.node = ((group << 32) - units).sort(stable=True)
        self.units = units.index_select(0, self.node)
        self.row, self.size = row, torch.bincount(group, minlength=len(row))
        self.start = self.size.cumsum(0) - self.size
        self.bounds = torch.cat([units.new_zeros(1), self.units.cumsum(0)])
        self.before = self.bounds[self.start]
        self.mass = self.bounds[self.start + self.size] - self.before

    def heaviest(self, group: Tensor) -> Tensor:
        """Units of the heaviest node of each group; 0 if it is empty."""
        place = self.start[group].clamp(max=max(len(self.units) - 1, 0))
        return torch.where(self.size[group] > 0, self.units[place], 0) if len(self.units) else 0 * group

    def heavier(self, group: Tensor, bound: Tensor) -> Tensor:
        """How many nodes of each group have at least ``bound`` units."""
        least = bound.clamp(min=1, max=2.0**31).long()
        return torch.searchsorted(self.key, (group << 32) - least, right=True) - self.start[group]

    def pick(self, group: Tensor, words: Tensor) -> Tensor:
        """Draw a position among the sorted nodes of each group, in proportion to weight."""
        return torch.searchsorted(self.bounds, self.before[group] + below(words, self.mass[group]), right=True) - 1


def weighted_pairs(rng: KeyedRNG, groups: Groups, first: Tensor, second: Tensor, rate: Tensor) -> Tensor:
    """Join nodes i of one group and j of another, independently with probability min(1, rate w_i w_j).

    This is the law of Chung & Lu 2002 (doi:10.1007/PL00012580) between groups of nodes, in time linear in the expected
    number of edges: pairs of probability up to 1/4 come from a Poisson process over pairs of weighted ends, thinned so
    that each pair is hit with exactly its probability; the few others are decided one by one.

    Args:
        rng: One seed a row.
        groups: The nodes.
        first: int64 (cells,), one group of each cell; rows ascending.
        second: int64 (cells,), the other group, of the same row; it may be the same.
        rate: float64 (cells,).

    Returns:
        int64 (2, edges), numbers of nodes; an edge may occur more than once, and counts once.
    """
    row = groups.row[first]
    rate = rate / groups.scale[row].square()
    light = _light_pairs(rng.fork("light"), groups, first, second, rate)
    heavy = _heavy_pairs(rng.fork("heavy"), groups, first, second, rate)
    return groups.node[torch.cat([light, heavy], 1)]


def _light_pairs(rng: KeyedRNG, groups: Groups, first: Tensor, second: Tensor, rate: Tensor) -> Tensor:
    rows, row = len(rng), groups.row[first]
    # Ends of a pair within one group can be drawn in either order.
    mean = rate * groups.mass[first] * groups.mass[second] * torch.where(first == second, 0.5, 1.0)
    count = poisson(rng.fork("count"), _SURPLUS * per_row(row, rows, mean))
    cell = _choose_cell(rng.fork("cell"), row, mean, count)
    start, end = (
        groups.pick(group[cell], ragged_words(rng.fork(name), count))
        for name, group in (("first", first), ("second", second))
    )
    q = rate[cell] * (groups.units[start] * groups.units[end])
    # The Poisson process has the rate _SURPLUS q, the wanted one -log(1 - q) <= _SURPLUS q.
    share = -torch.log1p(-q.clamp(max=_HEAVY)) / (_SURPLUS * q)
    keep = (start != end) & (q <= _HEAVY) & (unit(ragged_words(rng.fork("keep"), count)) < share)
    return torch.stack([start[keep], end[keep]])


def _choose_cell(rng: KeyedRNG, row: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """Draw one of the cells of the row for every point, in proportion to their means."""
    cells = torch.bincount(row, minlength=len(count))
    start = cells.cumsum(0) - cells
    if int(cells.max()) <= 1:
        return start.repeat_interleave(count)
    table = mean.new_zeros(len(cells), int(cells.max()))
    owner, rank = segments(cells)
    table[owner, rank] = mean
    table = table.cumsum(1)
    # In whole units again: 2**31 a row.
    bounds = (table / table[:, -1:].clamp(min=1e-300) * 2.0**31).round().long()[owner, rank] + (owner << 32)
    point = torch.arange(len(count), device=count.device).repeat_interleave(count)
    return torch.searchsorted(bounds, (point << 32) + ragged_words(rng, count), right=True)


def _heavy_pairs(rng: KeyedRNG, groups: Groups, first: Tensor, second: Tensor, rate: Tensor) -> Tensor:
    """Decide the pairs of probability above `_HEAVY`: in each group they are those with the heaviest nodes."""
    heaviest = groups.heaviest(second).double()
    # One unit of margin for rounding; what is too light is dropped below.
    cell, rank = segments(groups.heavier(first, _HEAVY / (rate * heaviest) - 1))
    start = groups.start[first[cell]] + rank
    entry, rank = segments(groups.heavier(second[cell], _HEAVY / (rate[cell] * groups.units[start]) - 1))
    cell, start = cell[entry], start[entry]
    end = groups.start[second[cell]] + rank
    q = rate[cell] * (groups.units[start] * groups.units[end])
    pair = (q > _HEAVY) & ((first[cell] != second[cell]) | (start < end))
    cell, start, end, q = cell[pair], start[pair], end[pair], q[pair]
    hit = unit(ragged_words(rng, per_row(groups.row[first[cell]], len(rng)))) < q
    return torch.stack([start[hit], end[hit]])


__all__ = [
    "Groups",
    "below",
    "pair_of",
    "per_row",
    "poisson",
    "power_law",
    "repeats",
    "segments",
    "shuffled",
    "successes",
    "unit",
    "weighted_pairs",
]
