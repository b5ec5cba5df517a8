"""How much synthetic data a batch holds: `FixedRatio`, `Anneal`, `BalanceClasses`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_synth.errors import ConfigError, EmptyPoolError
from lightning_synth.requests import mix_seed

Mode = Literal["append", "replace"]
Counts = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Sources:
    """What there is to mix.

    Args:
        num_real: Real items.
        num_synthetic: Synthetic items.
        batch_size: Items of a full batch.
        world_size: Processes; a step has one batch on each.
        mode: ``append`` or ``replace``.
        real_labels: int64 (num_real,) classes, or None.
        synthetic_labels: int64 (num_synthetic,) classes, or None.
    """

    num_real: int
    num_synthetic: int
    batch_size: int
    world_size: int = 1
    mode: Mode = "append"
    real_labels: np.ndarray | None = None
    synthetic_labels: np.ndarray | None = None


def split_evenly(items: int, batch_size: int, world_size: int) -> np.ndarray:
    """Sizes of the batches of one epoch, in global order: batch i belongs to step i // world_size, rank i % world_size.

    Full batches first; what is left is split evenly over the ranks of the last step (over the last two steps if there
    is less than one item a rank), so that every rank has the same number of steps and no item is dropped or repeated.

    Args:
        items: Items to hand out.
        batch_size: Items of a full batch.
        world_size: Processes.

    Returns:
        int64 (steps * world_size,), of sum ``items``.

    Raises:
        ConfigError: If there are fewer items than processes.

    Example:
        >>> split_evenly(21, 4, 2).tolist()
        [4, 4, 4, 4, 3, 2]
    """
    if 0 < items < world_size:
        raise ConfigError(f"{items} training items cannot be shared by {world_size} processes; use fewer devices")
    steps, left = divmod(items, batch_size * world_size)
    last = 1 if left else 0
    if 0 < left < world_size:
        steps, left = steps - 1, left + batch_size * world_size
        last = 2 if left >= 2 * world_size else 1
    share, extra = divmod(left, last * world_size) if last else (0, 0)
    tail = share + (np.arange(last * world_size) < extra)
    return np.concatenate([np.full(steps * world_size, batch_size), tail]).astype(np.int64)


class Policy(ABC):
    """Decides how many real and synthetic items each batch of an epoch holds."""

    @abstractmethod
    def check(self, sources: Sources) -> None:
        """Raise a named error, before training, if the policy cannot be met."""

    @abstractmethod
    def counts(self, sources: Sources, epoch: int) -> Counts:
        """Return the real and the synthetic items of each batch, int64 (steps * world_size,) each, in global order."""

    def classes(self, sources: Sources, epoch: int, seed: int) -> np.ndarray | None:
        """Return the class of each synthetic item of the epoch in the order of use, or None for any."""
        return None


class RatioPolicy(Policy):
    """A share of synthetic items that is exact in every batch."""

    #: The largest share over all epochs.
    peak: float

    @abstractmethod
    def ratio(self, epoch: int) -> float:
        """Return the share of synthetic items in ``epoch``."""

    def check(self, sources: Sources) -> None:
        """Refuse a share that leaves no room for the real items of `append` mode."""
        if sources.mode == "append" and round(self.peak * sources.batch_size) >= sources.batch_size:
            raise ConfigError(
                f"ratio {self.peak:g} leaves no real item in a batch of {sources.batch_size}; lower it, take larger "
                "batches, or use mode='replace' for synthetic-only training"
            )

    def counts(self, sources: Sources, epoch: int) -> Counts:
        """Count items: in a batch of b, round(ratio * b) are synthetic."""
        ratio, batch_size = self.ratio(epoch), sources.batch_size
        if sources.mode == "replace":
            total = split_evenly(sources.num_real, batch_size, sources.world_size)
            synthetic = np.rint(ratio * total).astype(np.int64)
            return total - synthetic, synthetic
        # The real items of a batch follow from the peak share, so that the number of steps is the same in all epochs:
        # Lightning counts the batches of an epoch once.
        room = batch_size - round(self.peak * batch_size)
        real = split_evenly(sources.num_real, room, sources.world_size)
        synthetic = np.rint(real * ratio / (1 - ratio)).astype(np.int64)
        if ratio == self.peak:
            synthetic[real == room] = batch_size - room
        return real, synthetic


def _checked_share(name: str, value: float) -> float:
    if isinstance(value, bool) or not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} must lie between 0 and 1 (the share of synthetic items in a batch), got {value!r}")
    return float(value)


class FixedRatio(RatioPolicy):
    """The same share of synthetic items in every batch of every epoch.

    Args:
        ratio: Share of synthetic items, 0 to 1 (1 only in `replace` mode: synthetic items alone).

    Raises:
        ConfigError: If the share is not between 0 and 1.

    Example:
        >>> FixedRatio(0.25).counts(Sources(num_real=9, num_synthetic=5, batch_size=4), epoch=0)[1].tolist()
        [1, 1, 1]
    """

    def __init__(self, ratio: float) -> None:
        self.peak = _checked_share("ratio", ratio)

    def ratio(self, epoch: int) -> float:
        """Return the share."""
        return self.peak


class Anneal(RatioPolicy):
    """A share of synthetic items that moves from ``start`` to ``end``, then stays there.

    A gradual end on real data beats a hard switch (arXiv 2605.06032). In `append` mode the number of steps is that of
    the larger share: a batch keeps its real items and the number of synthetic items beside them changes.

    Args:
        start: Share in epoch 0.
        end: Share from epoch ``epochs - 1`` on.
        epochs: Length of the transition.
        shape: ``linear`` or ``cosine`` (flat at both ends).

    Raises:
        ConfigError: If a value is out of range.

    Example:
        >>> policy = Anneal(0.5, 0.0, epochs=5)
        >>> [policy.ratio(epoch) for epoch in range(6)]
        [0.5, 0.375, 0.25, 0.125, 0.0, 0.0]
    """

    def __init__(self, start: float, end: float, epochs: int, shape: Literal["linear", "cosine"] = "linear") -> None:
        self.start, self.end = _checked_share("start", start), _checked_share("end", end)
        if epochs < 1:
            raise ConfigError(f"epochs must be at least 1, got {epochs}")
        if shape not in ("linear", "cosine"):
            raise ConfigError(f"shape must be 'linear' or 'cosine', got {shape!r}")
        self.epochs, self.shape = epochs, shape
        self.peak = max(self.start, self.end) if epochs > 1 else self.end

    def ratio(self, epoch: int) -> float:
        """Return the share of an epoch."""
        done = min(epoch / (self.epochs - 1), 1.0) if self.epochs > 1 else 1.0
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


class BalanceClasses(Policy):
    """Synthetic items fill every class up to the same number.

    After an epoch, real plus synthetic items of each class are exactly ``target``; a class that has more gets none.
    Full balance is not always best (arXiv 2601.16120): compare several targets.

    Args:
        target: ``max`` or ``median`` of the real class counts, or a number.

    Raises:
        ConfigError: If ``target`` is none of these.

    Example:
        >>> sources = Sources(6, 2, 4, real_labels=np.array([0, 0, 0, 0, 1, 1]), synthetic_labels=np.array([0, 1]))
        >>> BalanceClasses("max").fill(sources)
        {0: 0, 1: 2}
    """

    def __init__(self, target: Literal["max", "median"] | int = "max") -> None:
        if target not in ("max", "median") and (isinstance(target, bool) or not isinstance(target, int) or target < 1):
            raise ConfigError(f"target must be 'max', 'median' or a positive number, got {target!r}")
        self.target = target

    def fill(self, sources: Sources) -> dict[int, int]:
        """Return how many synthetic items each class gets in an epoch.

        Args:
            sources: What there is, with labels.
        """
        real, synthetic = sources.real_labels, sources.synthetic_labels
        if real is None or synthetic is None:
            raise ConfigError("BalanceClasses needs labels in the real items and in the pool")
        found, sizes = np.unique(real, return_counts=True)
        target = (
            self.target
            if isinstance(self.target, int)
            else int(np.max(sizes) if self.target == "max" else np.median(sizes))
        )
        have = {
            **dict.fromkeys(np.unique(synthetic).tolist(), 0),
            **dict(zip(found.tolist(), sizes.tolist(), strict=True)),
        }
        return {label: max(target - count, 0) for label, count in sorted(have.items())}

    def check(self, sources: Sources) -> None:
        """Refuse `replace` mode and classes that the pool cannot fill."""
        if sources.mode != "append":
            raise ConfigError("BalanceClasses adds synthetic items to the real ones: use mode='append'")
        need = self.fill(sources)
        have = set(np.asarray(sources.synthetic_labels).tolist())
        lacking = [label for label, count in need.items() if count and label not in have]
        if lacking:
            raise EmptyPoolError(f"the pool has no items of class {lacking}, which BalanceClasses has to fill")

    def counts(self, sources: Sources, epoch: int) -> Counts:
        """Spread the synthetic items evenly over the batches."""
        fill = sum(self.fill(sources).values())
        total = split_evenly(sources.num_real + fill, sources.batch_size, sources.world_size)
        upto = np.rint(np.cumsum(total) * (fill / max(total.sum(), 1))).astype(np.int64)
        synthetic = np.diff(upto, prepend=0)
        return total - synthetic, synthetic

    def classes(self, sources: Sources, epoch: int, seed: int) -> np.ndarray:
        """Interleave the classes: each is spread evenly over the epoch, from a random phase."""
        need = self.fill(sources)
        labels = np.repeat(np.array(list(need), dtype=np.int64), list(need.values()))
        phase = {label: mix_seed(seed, epoch, label) / 2.0**63 for label in need}
        when = [(np.arange(count) + phase[label]) / count for label, count in need.items() if count]
        return labels[np.argsort(np.concatenate(when), kind="stable")] if when else labels


def as_policy(ratio: float | Policy) -> Policy:
    """Return a policy for a number or a policy."""
    return ratio if isinstance(ratio, Policy) else FixedRatio(ratio)
