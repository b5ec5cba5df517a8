"""What the fit-free generators share that build a sample from real training items of the requested class."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.generator import FitFreeGenerator
from lightning_synth.requests import KeyedRNG, SampleRequests

T = TypeVar("T")

# Items count as equally near to a requested working condition within this many standard deviations.
_TOLERANCE = 0.1
# Elements of the (requests x items) distance table held at a time.
_TABLE = 1 << 24


def lengths_of(mask: Tensor) -> Tensor:
    """Return the number of steps up to the last observed one, int64 (rows,), from a bool mask (rows, length)."""
    steps = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (mask * steps).amax(dim=-1)


class TrainingRows:
    """Which training items a request may be built from: those of its label, nearest to its working condition.

    Args:
        labels: int64 (items,), or None without classes.
        conditions: Name of a continuous condition to float (items,).
        scale: Name to the unit in which distances of that condition are measured, e.g. its standard deviation.
        index: int64 (items,), what to return for an item; None: its position.
        class_names: For messages.
        weight: float (items,), items are picked in proportion to it; a class of zeros counts as equal. None: equal.

    Example:
        >>> rows = TrainingRows(torch.tensor([0, 1, 1, 0]))
        >>> requests = SampleRequests.make(3, condition={"label": 1})
        >>> set(rows.pick(requests, KeyedRNG(requests.seed)).tolist()) <= {1, 2}
        True
    """

    def __init__(
        self,
        labels: Tensor | None,
        conditions: Mapping[str, Tensor] | None = None,
        scale: Mapping[str, float] | None = None,
        index: Tensor | None = None,
        class_names: Sequence[str] = (),
        weight: Tensor | None = None,
    ) -> None:
        self.labels, self.class_names, self.weight = labels, list(class_names), weight
        self.conditions, self.scale = dict(conditions or {}), dict(scale or {})
        given = next((t for t in (index, labels, *self.conditions.values()) if t is not None), None)
        if given is None:
            raise ConfigError("TrainingRows needs labels, conditions or an index to know the number of items")
        self.index = torch.arange(len(given)) if index is None else index

    def __len__(self) -> int:
        """Return the number of items to choose from."""
        return len(self.index)

    def of_class(self, label: int | None) -> TrainingRows | None:
        """Return the items of one class, to be picked for any requested label; None if there are none."""
        if label is None or self.labels is None or not bool((self.labels == label).any()):
            return None
        return self._subset(self.labels == label)

    def without_labels(self) -> TrainingRows:
        """Return all items, to be picked for any requested label."""
        return self._subset(torch.ones(len(self), dtype=torch.bool))

    def _subset(self, chosen: Tensor) -> TrainingRows:
        conditions = {name: value[chosen] for name, value in self.conditions.items()}
        weight = None if self.weight is None else self.weight[chosen]
        return TrainingRows(None, conditions, self.scale, self.index[chosen], self.class_names, weight)

    def pick(self, requests: SampleRequests, rng: KeyedRNG, count: int | None = None, nearest: bool = True) -> Tensor:
        """Pick training items for every request, with replacement, from the request's own randomness.

        Args:
            requests: Rows to sample; ``label`` and continuous conditions are respected where given.
            rng: One seed a row.
            count: How many items a row; None: one, without that dimension.
            nearest: Respect continuous conditions; False: only the label.

        Returns:
            int64 (rows,) or (rows, count), positions of training items.

        Raises:
            ConfigError: If a requested class has no training item.
        """
        device, shape = rng.device, () if count is None else (count,)
        names = [name for name in self.conditions if nearest and name in requests.condition]
        label = requests.condition.get("label") if self.labels is not None else None
        if len(rng) == 0:
            return torch.empty((0, *shape), dtype=torch.int64, device=device)
        if names:
            return self._nearest(requests, label, names, rng, shape)
        if self.weight is not None:
            return self._by_weight(label, rng, shape)
        if label is None or self.labels is None:
            return self.index.to(device)[rng.integers(len(self), shape)]
        labels = self.labels.to(device)
        order = labels.argsort(stable=True)
        sizes = torch.bincount(labels, minlength=int(label.max()) + 1)
        self._check(label, sizes[label])
        draw = rng.integers(_column(sizes[label], shape), shape)
        return self.index.to(device)[order[_column((sizes.cumsum(0) - sizes)[label], shape) + draw]]

    def _by_weight(self, label: Tensor | None, rng: KeyedRNG, shape: tuple[int, ...]) -> Tensor:
        """Pick within the class in proportion to the weights."""
        assert self.weight is not None
        device, weight = rng.device, self.weight.to(rng.device).double()
        if label is None or self.labels is None:
            known, asked = (torch.zeros(n, dtype=torch.int64, device=device) for n in (len(self), len(rng)))
        else:
            known, asked = self.labels.to(device), label
        order = known.argsort(stable=True)
        sizes = torch.bincount(known, minlength=int(asked.max()) + 1)
        self._check(asked, sizes[asked])
        mass = torch.zeros(len(sizes), dtype=torch.float64, device=device).index_add(0, known, weight)
        # Every class gets mass 1, so that class c occupies [c, c + 1) of the running sum.
        share = torch.where(mass[known] > 0, weight / mass[known].clamp(min=1e-300), 1.0 / sizes[known])
        ends = share[order].cumsum(0)
        before = torch.cat([torch.zeros_like(ends[:1]), ends])[sizes.cumsum(0) - sizes]
        draw = _column(before[asked], shape) + rng.uniform(shape).double()
        place = torch.searchsorted(ends, draw.reshape(-1), right=True).reshape(draw.shape)
        last = _column((sizes.cumsum(0) - 1)[asked], shape)
        return self.index.to(device)[order[place.minimum(last)]]

    def _nearest(
        self,
        requests: SampleRequests,
        label: Tensor | None,
        names: Sequence[str],
        rng: KeyedRNG,
        shape: tuple[int, ...],
    ) -> Tensor:
        """Pick among the items of the class that are nearest to the requested conditions."""
        device = rng.device
        known = torch.stack([self.conditions[n] / self.scale.get(n, 1.0) for n in names], dim=1).to(device)
        asked = torch.stack([requests.condition[n] / self.scale.get(n, 1.0) for n in names], dim=1).to(device)
        picked, step = [], max(1, _TABLE // len(self))
        for begin in range(0, len(rng), step):
            rows = slice(begin, begin + step)
            distance = torch.cdist(asked[rows].double(), known.double())
            if label is not None and self.labels is not None:
                distance = distance.masked_fill(label[rows, None] != self.labels.to(device), torch.inf)
            nearest = distance.amin(dim=1, keepdim=True)
            allowed = distance.isfinite() & (distance <= nearest + _TOLERANCE)
            if label is not None:
                self._check(label[rows], allowed.sum(1))
            if self.weight is None:
                running = allowed.cumsum(dim=1)
                rank = rng[rows].integers(_column(allowed.sum(1), shape), shape, step=0)
            else:
                weight = allowed * self.weight.to(device).double()
                running = torch.where(weight.sum(1, keepdim=True) > 0, weight, allowed.double()).cumsum(dim=1)
                rank = rng[rows].uniform(shape, step=0).double() * _column(running[:, -1], shape)
            # The rank-th allowed item is where the running count (or weight) first exceeds the rank.
            place = torch.searchsorted(running, rank.reshape(len(rank), -1), right=True)
            picked.append(place.reshape(rank.shape))
        return self.index.to(device)[torch.cat(picked)]

    def _check(self, label: Tensor, sizes: Tensor) -> None:
        """Refuse labels without training items."""
        if bool((sizes == 0).any()):
            missing = int(label[(sizes == 0).nonzero()[0, 0]])
            name = f" ({self.class_names[missing]!r})" if missing < len(self.class_names) else ""
            raise ConfigError(f"class {missing}{name} has no training item to build a sample from")


def _column(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give (rows,) values the number of dimensions of a draw of ``shape`` a row."""
    return value.reshape(-1, *([1] * len(shape)))


class Resampler(FitFreeGenerator):
    """Base of the generators that build a sample from real training items; any domain."""

    conditions: ClassVar[tuple[str, ...]] = ("label", "*")
    _derived_from: Sequence[Any] | None = None
    _derived: dict[str, Any]

    def derived(self, name: str, make: Callable[[], T]) -> T:
        """Compute something from the bank once, and again only if the bank has changed (a second fit, a checkpoint).

        Args:
            name: Key.
            make: Computes the value.
        """
        if self._derived_from is not self.bank.items:
            self._derived_from, self._derived = self.bank.items, {}
        if name not in self._derived:
            self._derived[name] = make()
        value: T = self._derived[name]
        return value

    @property
    def fitted_schema(self) -> dict[str, Any]:
        """Schema of the training items."""
        return self._ready_schema()

    @property
    def rows(self) -> TrainingRows:
        """The training items by class and working condition."""
        return self.derived("rows", self._index_rows)

    def _index_rows(self) -> TrainingRows:
        schema, items = self.fitted_schema, self.bank.items
        stats = {**schema.get("conditions", {}), **schema.get("properties", {})}
        scale = {name: float(stats[name]["std"]) for name in stats}
        columns = self._condition_columns(list(stats))
        index = torch.arange(len(items))
        return TrainingRows(self.bank.labels, columns, scale, index, schema.get("class_names", ()))

    def _condition_columns(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Continuous conditions of the training items; for molecules they are the columns of ``y``."""
        items = self.bank.items
        if not names:
            return {}
        if self.fitted_schema["domain"] == "molecule":
            table = torch.stack([item.y.reshape(-1) for item in items])
            # A missing property is as far from every request as the average molecule.
            table = torch.where(table.isfinite(), table, table.nanmean(0))
            return {name: table[:, i] for i, name in enumerate(names)}
        return {name: self.bank.batch[name] for name in names if name in self.bank.batch}


class WindowResampler(Resampler):
    """Base of the generators that build a window of a time series from real training windows."""

    domain = "timeseries"
    #: Whether `augment` draws on the training windows, so that the generator has to be fitted first.
    needs_windows: ClassVar[bool] = True

    @property
    def windows(self) -> dict[str, Tensor]:
        """The training windows as one batch."""
        batch: dict[str, Tensor] = self.bank.batch
        return batch

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Put a new sample of the same label and conditions in the place of every window.

        Args:
            batch: With ``x`` (rows, channels, length), and ``y``, conditions and ``mask`` where the data have them.
            rng: One seed a row, on the device of the batch.

        Returns:
            A batch with the same fields on the same device; row i depends on row i and its seed alone.
        """
        return {**batch, **self.sample_batch(self.requests_like(batch, rng), rng)}

    def requests_like(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> SampleRequests:
        """Ask for one sample a row, with its label and conditions.

        Args:
            batch: As `augment` takes it.
            rng: One seed a row.
        """
        condition = {name: batch[name] for name in self.fitted_schema.get("conditions", {}) if name in batch}
        if "y" in batch:
            condition["label"] = batch["y"]
        return SampleRequests(torch.arange(len(rng), device=rng.device), rng.seed, condition)

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Copy training windows with all their fields.

        Args:
            index: int64 (rows,).

        Returns:
            Batch dict on the device of ``index``; ``y`` and conditions are those of the source windows.
        """
        # Rows travel, not the whole bank.
        return {name: value[index.to(value.device)].to(index.device) for name, value in self.windows.items()}

    def blend(self, batch: Mapping[str, Tensor], other: Tensor, share: Tensor) -> dict[str, Tensor]:
        """Go a share of the way from given windows to training windows, in ``x`` and in the continuous conditions.

        Args:
            batch: Windows to start from.
            other: int64 (rows,), training windows of the same class.
            share: float (rows,) in [0, 1]; 0 is the start.

        Returns:
            Batch dict; steps count as observed where both windows are.
        """
        out, goal = dict(batch), self.take(other)
        for name in ("x", *self.fitted_schema.get("conditions", {})):
            if name in out:
                weight = share.reshape(-1, *([1] * (out[name].ndim - 1)))
                out[name] = out[name] + weight * (goal[name] - out[name])
        if "mask" in out:
            out["mask"] = out["mask"] & goal["mask"]
            out["x"] = out["x"] * out["mask"][:, None]
        return out


class Augmenter(WindowResampler):
    """Base of the generators that change one window at a time: a sample is a training window, changed.

    A subclass writes `augment`, a pure function of a row and its seed. It serves both as a generator and, with
    `lightning_synth.datamodules.AugmentedDataModule`, on batches while a model trains, on the device of the batch.
    """

    needs_windows = False

    @abstractmethod
    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Change every window; label and conditions stay.

        Args:
            batch: With ``x`` (rows, channels, length), and ``y``, conditions and ``mask`` where the data have them.
            rng: One seed a row, on the device of the batch.

        Returns:
            A new batch with the same fields; row i depends on row i and its seed alone.
        """

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Pick a training window of the class and change it.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict with ``x`` (rows, channels, length).
        """
        return self.augment(self.take(self.rows.pick(requests, rng.fork("source"))), rng)


def lengths_in(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the number of steps of every window of a batch, int64 (rows,); padding does not count.

    Args:
        batch: With ``x`` (rows, channels, length) and, for ragged data, ``mask`` (rows, length).
    """
    x = batch["x"]
    if "mask" in batch:
        return lengths_of(batch["mask"])
    return torch.full((len(x),), x.shape[-1], dtype=torch.int64, device=x.device)


def equally_long(batch: Mapping[str, Tensor]) -> Iterator[tuple[Tensor | slice, int]]:
    """Group the windows of a batch by length, for transforms that have none of the padding in them.

    Args:
        batch: As `lengths_in` takes it.

    Yields:
        Rows and their length, without empty windows.
    """
    if "mask" not in batch:
        yield slice(None), batch["x"].shape[-1]
        return
    lengths = lengths_of(batch["mask"])
    for length in lengths.unique().tolist():
        if length:
            yield (lengths == length).nonzero()[:, 0], length


def read_at(batch: Mapping[str, Tensor], time: Tensor) -> dict[str, Tensor]:
    """Read windows at other times, by linear interpolation between steps; all channels together.

    Args:
        batch: With ``x`` (rows, channels, length).
        time: float (rows, length), in steps; times before the first or after the last step of a window are clamped.

    Returns:
        Batch dict; a step counts as observed where both of its neighbours were, and no window gets longer.

    Example:
        >>> read_at({"x": torch.tensor([[[0.0, 1.0, 4.0]]])}, torch.tensor([[0.5, 1.5, 9.0]]))["x"]
        tensor([[[0.5000, 2.5000, 4.0000]]])
    """
    x, last = batch["x"], (lengths_in(batch) - 1).clamp(min=0)[:, None]
    time = time.clamp(min=0).minimum(last.to(time.dtype))
    before = time.floor().long()
    after = (before + 1).minimum(last)
    channels = x.shape[1]
    low, high = (x.gather(2, step[:, None].expand(-1, channels, -1)) for step in (before, after))
    out = dict(batch) | {"x": low + (time - before)[:, None].to(x.dtype) * (high - low)}
    if "mask" in batch:
        mask = batch["mask"]
        steps = torch.arange(mask.shape[-1], device=mask.device)
        # A time that falls on a step needs no second neighbour.
        both = mask.gather(1, before) & (mask.gather(1, after) | (time == before))
        out["mask"] = both & (steps <= last) & mask.any(1, keepdim=True)
        out["x"] = out["x"] * out["mask"][:, None]
    return out
