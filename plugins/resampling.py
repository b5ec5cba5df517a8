"""What the fit-free generators share that build a sample from real training items of the requested class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    ) -> None:
        self.labels, self.class_names = labels, list(class_names)
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
        return TrainingRows(None, conditions, self.scale, self.index[chosen], self.class_names)

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
        if label is None or self.labels is None:
            return self.index.to(device)[rng.integers(len(self), shape)]
        labels = self.labels.to(device)
        order = labels.argsort(stable=True)
        sizes = torch.bincount(labels, minlength=int(label.max()) + 1)
        self._check(label, sizes[label])
        draw = rng.integers(_column(sizes[label], shape), shape)
        return self.index.to(device)[order[_column((sizes.cumsum(0) - sizes)[label], shape) + draw]]

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
            rank = rng[rows].integers(_column(allowed.sum(1), shape), shape, step=0)
            # The rank-th allowed item is where the running count first exceeds the rank.
            place = torch.searchsorted(allowed.cumsum(dim=1), rank.reshape(len(rank), -1), right=True)
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
            return {name: table[:, i] for i, name in enumerate(names)}
        return {name: self.bank.batch[name] for name in names if name in self.bank.batch}


class WindowResampler(Resampler):
    """Base of the generators that build a window of a time series from real training windows."""

    domain = "timeseries"

    @property
    def windows(self) -> dict[str, Tensor]:
        """The training windows as one batch."""
        batch: dict[str, Tensor] = self.bank.batch
        return batch

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Copy training windows with all their fields.

        Args:
            index: int64 (rows,).

        Returns:
            Batch dict; ``y`` and conditions are those of the source windows.
        """
        return {name: value.to(index.device)[index] for name, value in self.windows.items()}

    def blend(self, source: Tensor, other: Tensor, share: Tensor) -> dict[str, Tensor]:
        """Go a share of the way from one training window to another, in ``x`` and in the continuous conditions.

        Args:
            source: int64 (rows,).
            other: int64 (rows,), of the same class.
            share: float (rows,) in [0, 1]; 0 is the source.

        Returns:
            Batch dict; steps count as observed where both windows are.
        """
        batch, goal = self.take(source), self.take(other)
        for name in ("x", *self.fitted_schema.get("conditions", {})):
            if name in batch:
                weight = share.reshape(-1, *([1] * (batch[name].ndim - 1)))
                batch[name] = batch[name] + weight * (goal[name] - batch[name])
        if "mask" in batch:
            batch["mask"] = batch["mask"] & goal["mask"]
            batch["x"] = batch["x"] * batch["mask"][:, None]
        return batch
