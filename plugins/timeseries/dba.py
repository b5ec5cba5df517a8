"""Weighted averages of windows under dynamic time warping."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.resampling import WindowResampler, lengths_in, read_at
from lightning_synth.plugins.timeseries.smote import class_neighbours
from lightning_synth.requests import KeyedRNG, SampleRequests

WEIGHTS = ("selected", "dirichlet")
# Forestier et al. 2017, section III-C (average selected): of the reference, of each selected neighbour, of the rest.
_REFERENCE, _SELECTED, _REST, _NUM_SELECTED = 0.5, 0.15, 0.2, 2
# Neighbours under warping are looked for among so many times as many plain ones.
_CANDIDATES = 4
# Table entries (pairs x diagonals x cells or channels) held at a time.
_CELLS = 1 << 25


class Alignments:
    """Dynamic time warping of many pairs at once, one anti-diagonal of the table at a time.

    The cost is the squared distance over all channels, paths start at the first and end at the last step of both
    windows, and steps further apart than ``band`` are not matched (Sakoe & Chiba 1978).

    Args:
        a: float (pairs, channels, length).
        b: As ``a``.
        last: int64 (pairs,), the last step of both windows of a pair; None: length - 1.
        band: Largest distance of two matched steps; None: any.

    Attributes:
        distance: float (pairs,), sum of the costs along the best path.

    Example:
        >>> pulse = torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]])
        >>> Alignments(pulse, pulse.roll(1, -1)).distance
        tensor([0.])
    """

    def __init__(self, a: Tensor, b: Tensor, last: Tensor | None = None, band: int | None = None) -> None:
        self.length = length = a.shape[-1]
        self.band = length - 1 if band is None else min(band, length - 1)
        self.last = torch.full((len(a),), length - 1, device=a.device) if last is None else last
        # Pairs last, so that every operation runs over contiguous memory.
        first, second = a.permute(2, 1, 0).contiguous(), b.flip(-1).permute(2, 1, 0).contiguous()
        # Row k + band + 1 holds the latest total of the cells (i, j) with i - j = k; a diagonal updates every other row
        # in place, from the rows beside it (one diagonal ago) and from itself (two ago).
        totals = first.new_full((2 * self.band + 3, len(a)), torch.inf)
        totals[self.band + 1] = 0.0
        self.distance = torch.zeros_like(totals[0])
        #: Per diagonal (cells, pairs): 0 both advance, 1 only i, 2 only j.
        self.moves: list[Tensor] = []
        for diagonal, low, cells in self._diagonals():
            start = length - 1 - (diagonal - low)
            cost = (first[low : low + cells] - second[start : start + cells]).square_().sum(dim=1)
            row = 2 * low - diagonal + self.band + 1
            both, i_only, j_only = (totals[row + shift : row + shift + 2 * cells - 1 : 2] for shift in (0, -1, 1))
            one = torch.minimum(i_only, j_only)
            self.moves.append((one < both).to(torch.uint8) * (1 + (j_only < i_only).to(torch.uint8)))
            totals[row : row + 2 * cells - 1 : 2] = torch.minimum(both, one) + cost
            if diagonal % 2 == 0:
                self.distance = torch.where(2 * self.last == diagonal, totals[self.band + 1], self.distance)

    def _diagonals(self) -> Iterator[tuple[int, int, int]]:
        """Yield i + j, the smallest i on it, and how many cells it has."""
        for diagonal in range(2 * self.length - 1):
            low = max(0, diagonal - self.length + 1, -((self.band - diagonal) // 2))
            high = min(diagonal, self.length - 1, (diagonal + self.band) // 2)
            if low <= high:
                yield diagonal, low, high - low + 1

    def matches(self) -> tuple[Tensor, Tensor]:
        """Return the first and last step of ``b`` that each step of ``a`` is matched with, int64 (pairs, length).

        Beyond the end of a window the first is behind the last.
        """
        i, j, pair = self.last.clone(), self.last.clone(), torch.arange(len(self.last), device=self.last.device)
        low = torch.full((self.length + 1, len(i)), self.length, dtype=torch.int64, device=i.device)
        high = torch.full_like(low, -1)
        for (diagonal, least, cells), moves in zip(
            reversed(list(self._diagonals())), reversed(self.moves), strict=True
        ):
            # A pair is here unless its path jumps over this diagonal; the others write to a row that nobody reads.
            here = (i + j == diagonal) & (i >= 0)
            row = torch.where(here, i, self.length)[None]
            low.scatter_(0, row, j[None])
            high.scatter_(0, row, high.gather(0, row).maximum(j[None]))
            move = moves[(i - least).clamp(0, cells - 1), pair]
            i, j = i - (here & (move != 2)).long(), j - (here & (move != 1)).long()
        return low[:-1].T, high[:-1].T


def barycentre(windows: Tensor, weights: Tensor, last: Tensor, band: int | None, num_iterations: int) -> Tensor:
    """Average groups of windows under warping (DBA, Petitjean et al. 2011; weighted: Forestier et al. 2017, eq. 2).

    Args:
        windows: float (rows, group, channels, length); the first of each group is where the average starts.
        weights: float (rows, group), at least 0.
        last: int64 (rows,), last step of the windows of a group.
        band: As in `Alignments`.
        num_iterations: How often all windows are aligned with the average.

    Returns:
        float (rows, channels, length).
    """
    rows, group, channels, length = windows.shape
    pairs = windows.reshape(rows * group, channels, length)
    # Sums over runs of steps are differences of running sums.
    running = torch.cat([torch.zeros_like(pairs[..., :1]), pairs], dim=-1).double().cumsum(dim=-1)
    mean = windows[:, 0]
    for _ in range(num_iterations):
        average = mean[:, None].expand_as(windows).reshape_as(pairs)
        low, high = Alignments(average, pairs, last.repeat_interleave(group), band).matches()
        low, behind = low.minimum(high + 1), high + 1
        ends = (step[:, None].expand(-1, channels, -1) for step in (behind, low))
        total = torch.sub(*(running.gather(2, step) for step in ends)).reshape(windows.shape)
        count = (behind - low).reshape(rows, group, 1, length)
        share = weights[:, :, None, None].double()
        mean = ((share * total).sum(1) / (share * count).sum(1).clamp(min=1e-12)).to(windows.dtype)
    return mean


class DBA(WindowResampler):
    """The weighted average of a window and its neighbours of the same class under dynamic time warping.

    Averages in which features are moved onto each other in time before they are averaged, so that peaks are not smeared
    out (Forestier et al. 2017, doi:10.1109/ICDM.2017.106). ``"selected"`` is their average selected: the reference
    weighs 0.5, two of its five nearest neighbours 0.15 each; the remaining 0.2 go to the other three (in the paper to
    the rest of the class, at a cost that grows with it). ``"dirichlet"`` draws flat Dirichlet weights over the same
    windows (their average all), which never repeats itself. Neighbours are nearest under warping among four times as
    many nearest plain ones. Ragged neighbours are stretched to the length of the reference. A class with a single
    window can only be copied (with a warning).

    Args:
        k_neighbors: Neighbours averaged with the reference.
        weights: ``"selected"`` or ``"dirichlet"``.
        band: Largest shift in time, as a share of the window.
        num_iterations: How often the windows are aligned with the average.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> DBA(num_iterations=2).fit_on(tiny_series(9), tiny_series_schema()).sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(
        self,
        *,
        k_neighbors: int = 5,
        weights: str = "selected",
        band: float = 0.1,
        num_iterations: int = 10,
        **kwargs: Any,
    ) -> None:
        if weights not in WEIGHTS:
            raise ConfigError(f"weights {weights!r} is not one of {WEIGHTS}")
        if k_neighbors < 1 or num_iterations < 1:
            raise ConfigError(f"at least 1 neighbour and iteration, got {k_neighbors=} and {num_iterations=}")
        if not 0 < band <= 1:
            raise ConfigError(f"band must lie in (0, 1], a share of the window, got {band}")
        super().__init__(k_neighbors=k_neighbors, weights=weights, band=band, num_iterations=num_iterations, **kwargs)

    @property
    def candidates(self) -> tuple[Tensor, Tensor]:
        """Plain nearest neighbours (items, candidates) and how many of them are valid (items,)."""
        return self.derived("candidates", self._find_candidates)

    def _find_candidates(self) -> tuple[Tensor, Tensor]:
        labels = self.windows.get("y")
        table = class_neighbours(self._scaled(self.windows).flatten(1), labels, _CANDIDATES * self.hparams.k_neighbors)
        lonely = labels[table[1] == 0].tolist() if labels is not None else []
        if lonely:
            warnings.warn(f"DBA can only copy the single window of class {', '.join(map(str, lonely))}", stacklevel=4)
        return table

    @property
    def _band(self) -> int:
        steps: int = max(1, round(self.hparams.band * self.fitted_schema["length"]))
        return steps

    def _scaled(self, batch: dict[str, Tensor]) -> Tensor:
        """Windows in standard deviations of each channel, so that all channels take part in the alignment."""
        x = batch["x"] / torch.tensor(self.fitted_schema["std"], device=batch["x"].device)[:, None]
        return x * batch["mask"][:, None] if "mask" in batch else x

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Average a window of the class with its neighbours.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict with ``x`` (rows, channels, length).
        """
        source = self.rows.pick(requests, rng.fork("source"))
        channels, length = self.fitted_schema["channels"], self.fitted_schema["length"]
        group = max(1 + self.hparams.k_neighbors, self.candidates[0].shape[1])
        step = max(1, _CELLS // (group * 2 * length * max(channels, self._band + 1)))
        parts = [self._average(rows, rng[begin : begin + step]) for begin, rows in _split(source, step)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else self.take(source)

    def _average(self, source: Tensor, rng: KeyedRNG) -> dict[str, Tensor]:
        neighbours, valid = self._neighbours(source)
        weights = self._weights(valid, rng)
        batch, group = self.take(source), torch.cat([source[:, None], neighbours], dim=1)
        windows, last = self._aligned(source, group)
        std = torch.tensor(self.fitted_schema["std"], device=source.device)[:, None]
        mean = barycentre(windows, weights, last, self._band, self.hparams.num_iterations)
        # A class of one is copied exactly, without a trip through other units.
        batch["x"] = torch.where(valid.any(1)[:, None, None], mean * std, batch["x"])
        if "mask" in batch:
            batch["x"] = batch["x"] * batch["mask"][:, None]
        for name in self.fitted_schema.get("conditions", {}):
            if name in batch:
                batch[name] = (weights * self.take(group.reshape(-1))[name].reshape(group.shape)).sum(1)
        return batch

    def _aligned(self, source: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled windows (rows, group, channels, length) at the length of the source, and its last step (rows,)."""
        batch = self.take(group.reshape(-1))
        last = (lengths_in(self.take(source)) - 1).clamp(min=0)
        x = self._scaled(batch)
        if "mask" in batch:
            goal = last.repeat_interleave(group.shape[1])[:, None]
            speed = (lengths_in(batch)[:, None] - 1).clamp(min=0) / goal.clamp(min=1)
            time = torch.arange(x.shape[-1], device=x.device).minimum(goal) * speed
            x = read_at({"x": x}, time)["x"]
        return x.reshape(*group.shape, *x.shape[1:]), last

    def _neighbours(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest neighbours under warping, int64 (rows, k), and which of them exist, bool (rows, k)."""
        table, count = (tensor.to(source.device)[source] for tensor in self.candidates)
        exists = torch.arange(table.shape[1], device=source.device) < count[:, None]
        windows, last = self._aligned(source, torch.cat([source[:, None], table], dim=1))
        reference = windows[:, :1].expand_as(windows[:, 1:]).reshape(-1, *windows.shape[2:])
        pairs = windows[:, 1:].reshape_as(reference)
        distance = Alignments(reference, pairs, last.repeat_interleave(table.shape[1]), self._band).distance
        order = distance.reshape(table.shape).masked_fill(~exists, torch.inf).argsort(dim=1, stable=True)
        nearest = order[:, : self.hparams.k_neighbors]
        return torch.where(exists, table, source[:, None]).gather(1, nearest), exists.gather(1, nearest)

    def _weights(self, valid: Tensor, rng: KeyedRNG) -> Tensor:
        """Weights of the reference and its neighbours, float (rows, 1 + k); they add up to 1."""
        draw = rng.fork("weights").exponential((1 + valid.shape[1],))
        if self.hparams.weights == "selected":
            rank = draw[:, 1:].masked_fill(~valid, torch.inf).argsort(dim=1).argsort(dim=1)
            rest = _REST / (valid.sum(1, keepdim=True) - _NUM_SELECTED).clamp(min=1)
            draw = torch.cat(
                [torch.full_like(draw[:, :1], _REFERENCE), torch.where(rank < _NUM_SELECTED, _SELECTED, rest)], 1
            )
        draw[:, 1:] *= valid
        return draw / draw.sum(dim=1, keepdim=True)


def _split(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    return ((begin, rows[begin : begin + size]) for begin in range(0, len(rows), size))
