"""Mixing real and synthetic items: `MixtureSampler` orders them, `MixedLoader` hands them out and can be resumed.

The order of an epoch is a pure function of (seed, epoch, sizes, policy). It is a global list of batches; batch i
belongs to step ``i // world_size`` on rank ``i % world_size``. Another number of processes therefore gives the same
full batches, on other ranks; only the last step, which shares out what is left, differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_synth.errors import ConfigError, EmptyPoolError, LightningSynthError
from lightning_synth.mixing.policies import (
    BalanceClasses,
    Counts,
    Mode,
    Policy,
    RatioPolicy,
    Sources,
    as_policy,
)
from lightning_synth.requests import KeyedRNG, mix_seed

# Streams of random orders: 0 for the real items, 1 + group for the pool.
_REAL = 0
# An epoch by which every schedule has ended.
_LATE = 1 << 40


class WorkerError(LightningSynthError, RuntimeError):
    """A loading process died or hung."""


class MixedBlock(NamedTuple):
    """One batch to load: the first ``num_real`` indices are real items, the rest synthetic ones.

    Args:
        rows: int64 (batch,); row >= real items of the data set means synthetic.
        num_real: Real items in the batch.
        weight: Weight of each synthetic item; real ones have 1.
        epoch: For data sets whose items are drawn anew in every epoch.
    """

    rows: np.ndarray
    num_real: int
    weight: float
    epoch: int = 0


@dataclass(frozen=True)
class Plan:
    """The batches of one epoch, for all processes.

    Args:
        index: int64, the items of all batches in order; in a batch the real ones come first.
        start: int64 (batches + 1,): batch i holds ``index[start[i]:start[i + 1]]``.
        real: int64 (batches,), real items of each batch.
        weight: Weight of a synthetic item.
        epoch: Number of the epoch.
    """

    index: np.ndarray
    start: np.ndarray
    real: np.ndarray
    weight: float
    epoch: int = 0

    @classmethod
    def make(
        cls,
        real: np.ndarray,
        counts: np.ndarray,
        synthetic: np.ndarray,
        others: np.ndarray,
        weight: float,
        epoch: int = 0,
    ) -> Plan:
        """Lay out the batches.

        Args:
            real: Indices of real items in order of use.
            counts: Real items of each batch.
            synthetic: Indices of synthetic items in order of use.
            others: Synthetic items of each batch.
            weight: Weight of a synthetic item.
            epoch: Number of the epoch.
        """
        start = np.concatenate([[0], np.cumsum(counts + others)])
        index = np.empty(start[-1], dtype=np.int64)
        # Before the i-th batch lie all earlier items of the other kind; after its real items come its synthetic ones.
        index[np.arange(len(real)) + np.repeat(np.cumsum(others) - others, counts)] = real
        index[np.arange(len(synthetic)) + np.repeat(np.cumsum(counts), others)] = synthetic
        return cls(index, start, counts, weight, epoch)

    def block(self, position: int) -> MixedBlock:
        """Return a batch.

        Args:
            position: step * world_size + rank.
        """
        rows = self.index[self.start[position] : self.start[position + 1]]
        return MixedBlock(rows, int(self.real[position]), self.weight, self.epoch)


def _cycle(seed: int, stream: int, start: int, count: int, rows: np.ndarray) -> np.ndarray:
    """Entries start..start+count of an endless stream that runs through ``rows`` again and again, reshuffled."""
    if not count:
        return rows[:0]
    first, last = start // len(rows), (start + count - 1) // len(rows)
    cycles = torch.arange(first, last + 1) + (mix_seed(seed, stream) >> 1)
    order = KeyedRNG(cycles, stream=stream).permutation(len(rows)).numpy().reshape(-1)
    offset = start - first * len(rows)
    found: np.ndarray = rows[order[offset : offset + count]]
    return found


class MixtureSampler(DistributedSampler[Any]):
    """Orders real and synthetic items into batches of an exact composition, for each epoch and process.

    It yields whole batches (`MixedBlock`), so use ``DataLoader(data, sampler=MixtureSampler(...), batch_size=None)``.
    It is a `DistributedSampler` because Lightning wraps any other sampler in one that shuffles, which destroys the
    composition.

    Args:
        num_real: Real items; they have the indices 0..num_real-1.
        num_synthetic: Synthetic items; they have the indices num_real..num_real+num_synthetic-1.
        batch_size: Items of a full batch on one process.
        ratio: Share of synthetic items, or a policy.
        mode: ``append``: every real item once an epoch, plus synthetic ones. ``replace``: as many steps as the real
            data alone, synthetic items in place of real ones; the real items are used up over successive epochs.
        match: ``label``: the j-th synthetic item of a batch has the class of the j-th real one (again from the first if
            there are more synthetic ones). None: no relation.
        real_labels: int64 (num_real,), needed for ``match`` and `BalanceClasses`.
        synthetic_labels: int64 (num_synthetic,), likewise.
        weight: ``cap``: min(1, real items / synthetic items of the epoch); or a number.
        seed: Seed of the order.
        num_replicas: Processes.
        rank: This process.

    Raises:
        ConfigError: If the options are impossible, alone or together.
        EmptyPoolError: If synthetic items are needed and there are none, at all or of some class.

    Example:
        >>> sampler = MixtureSampler(6, 3, batch_size=4, ratio=0.25, seed=1)
        >>> [(block.num_real, len(block.rows)) for block in sampler]
        [(3, 4), (3, 4)]
        >>> sorted(i for block in sampler for i in block.rows[: block.num_real].tolist())
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        num_real: int,
        num_synthetic: int,
        batch_size: int,
        *,
        ratio: float | Policy = 0.5,
        mode: Mode = "append",
        match: Literal["label"] | None = None,
        real_labels: np.ndarray | None = None,
        synthetic_labels: np.ndarray | None = None,
        weight: Literal["cap"] | float = "cap",
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if num_real < 1 or batch_size < 1:
            raise ConfigError(
                f"mixing needs real items and a batch size, got {num_real} items, batches of {batch_size}"
            )
        super().__init__(cast("Dataset[Any]", range(num_real + num_synthetic)), num_replicas, rank, seed=seed)
        self.sources = Sources(num_real, num_synthetic, batch_size, num_replicas, mode, real_labels, synthetic_labels)
        self.policy, self.match, self.weight = as_policy(ratio), match, weight
        self.start = 0
        self._check()
        self._groups = self._pool_groups()
        # What the epochs before this one have used of each stream: real items, then each group of the pool.
        self._used: list[dict[int, int]] = [{}]
        self._plan: tuple[int, Plan] | None = None

    def _check(self) -> None:
        sources = self.sources
        if sources.mode not in ("append", "replace"):
            raise ConfigError(f"mode must be 'append' or 'replace', got {sources.mode!r}")
        if self.match not in (None, "label"):
            raise ConfigError(f"match must be None or 'label', got {self.match!r}")
        if self.weight != "cap" and (isinstance(self.weight, str) or not 0 <= self.weight < float("inf")):
            raise ConfigError(f"weight must be 'cap' or a number >= 0, got {self.weight!r}")
        self.policy.check(sources)
        real, synthetic = (np.stack(both) for both in zip(*map(self._counts, (0, _LATE)), strict=True))
        share = int(synthetic.max(initial=0))
        if share and not sources.num_synthetic:
            raise EmptyPoolError("synthetic items are asked for, but the pool is empty")
        if share > sources.num_synthetic:
            known = sources.num_synthetic
            warnings.warn(f"a batch takes {share} synthetic items, the pool has {known}: they repeat", stacklevel=4)
        if not share and isinstance(self.policy, RatioPolicy) and self.policy.peak:
            size = sources.batch_size
            warnings.warn(f"ratio {self.policy.peak:g} of a batch of {size} is no synthetic item", stacklevel=4)
        if self.match:
            self._check_match(real)

    def _counts(self, epoch: int) -> Counts:
        return self.policy.counts(self.sources, epoch)

    def _check_match(self, real: np.ndarray) -> None:
        sources = self.sources
        if isinstance(self.policy, BalanceClasses):
            raise ConfigError("BalanceClasses decides the labels itself: leave match=None")
        if sources.real_labels is None or sources.synthetic_labels is None:
            raise ConfigError("match='label' needs labels in the real items and in the pool")
        if not real.all():
            raise ConfigError("match='label' needs a real item in every batch; lower the ratio")
        lacking = sorted(set(sources.real_labels.tolist()) - set(sources.synthetic_labels.tolist()))
        if lacking and sources.num_synthetic:
            raise EmptyPoolError(f"the pool has no items of class {lacking}, which match='label' needs")

    def _pool_groups(self) -> dict[int, np.ndarray]:
        """Rows of the pool by stream number: one stream for all, or one for each class."""
        labels = self.sources.synthetic_labels
        if labels is None or not (self.match or isinstance(self.policy, BalanceClasses)):
            return {0: np.arange(self.sources.num_synthetic)}
        return {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}

    def _real_order(self, epoch: int, count: int) -> np.ndarray:
        return _cycle(self.seed, _REAL, self._used[epoch].get(-1, 0), count, np.arange(self.sources.num_real))

    def _wanted(self, epoch: int, real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
        """Group of the pool for each synthetic item of the epoch, in order of use."""
        if not self.match:
            classes = self.policy.classes(self.sources, epoch, self.seed)
            return np.zeros(int(synthetic.sum()), dtype=np.int64) if classes is None else classes
        labels = cast("np.ndarray", self.sources.real_labels)[self._real_order(epoch, int(real.sum()))]
        batch = np.repeat(np.arange(len(synthetic)), synthetic)
        slot = np.arange(len(batch)) - np.repeat(np.cumsum(synthetic) - synthetic, synthetic)
        wanted: np.ndarray = labels[(np.cumsum(real) - real)[batch] + slot % real[batch]]
        return wanted

    def _advance(self, epoch: int) -> None:
        """Count what each epoch before ``epoch`` uses, so that every stream continues where it stopped."""
        while len(self._used) <= epoch:
            last = len(self._used) - 1
            real, synthetic = self._counts(last)
            used = {**self._used[last]}
            groups, counts = np.unique(self._wanted(last, real, synthetic), return_counts=True)
            for group, count in zip((-1, *groups.tolist()), (int(real.sum()), *counts.tolist()), strict=True):
                used[group] = used.get(group, 0) + count
            self._used.append(used)

    def plan(self, epoch: int | None = None) -> Plan:
        """Compute the batches of an epoch, for all processes.

        Args:
            epoch: Number of the epoch; None means the current one (`set_epoch`).

        Returns:
            The plan: a pure function of (seed, epoch) and the constructor's arguments except ``rank``.
        """
        epoch = self.epoch if epoch is None else epoch
        if self._plan is None or self._plan[0] != epoch:
            self._plan = epoch, self._make_plan(epoch)
        return self._plan[1]

    def _make_plan(self, epoch: int) -> Plan:
        self._advance(epoch)
        real, synthetic = self._counts(epoch)
        wanted = self._wanted(epoch, real, synthetic)
        rows = np.empty(len(wanted), dtype=np.int64)
        for group in np.unique(wanted).tolist():
            slots = np.flatnonzero(wanted == group)
            rows[slots] = _cycle(self.seed, 1 + group, self._used[epoch].get(group, 0), len(slots), self._groups[group])
        rows += self.sources.num_real
        order = self._real_order(epoch, int(real.sum()))
        return Plan.make(order, real, rows, synthetic, self._weight(real, synthetic), epoch)

    def _weight(self, real: np.ndarray, synthetic: np.ndarray) -> float:
        if self.weight != "cap":
            return float(self.weight)
        # Synthetic-only training has no real weight to be capped by.
        return min(1.0, float(real.sum()) / float(synthetic.sum())) if synthetic.any() and real.any() else 1.0

    def block(self, step: int, epoch: int | None = None) -> MixedBlock:
        """Return one batch of this process.

        Args:
            step: Number of the batch within the epoch.
            epoch: Number of the epoch; None means the current one.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"batch {step} of {len(self)}")
        return self.plan(epoch).block(step * self.num_replicas + self.rank)

    def __len__(self) -> int:
        """Return the batches of an epoch on one process."""
        known = self._plan is not None and self._plan[0] == self.epoch
        return len(self.plan().real if known else self._counts(self.epoch)[0]) // self.num_replicas

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of this process, from batch ``start`` of the epoch on."""
        plan, positions = self.plan(), range(self.rank, len(self) * self.num_replicas, self.num_replicas)
        return map(plan.block, positions[self.start :])


class MixedLoader(DataLoader[Any]):
    """A `DataLoader` over `MixedBlock`s whose position is part of the checkpoint.

    Its state ``{"epoch", "batches"}`` is the same on all processes, because Lightning saves that of rank 0 and gives it
    to every rank. A job that was killed in the middle of an epoch continues with the next batch.

    Args:
        dataset: Takes a `MixedBlock` as index.
        sampler: The order.
        collate_fn: Makes a batch of what the data set returned.
        num_workers: Loading processes.
        timeout: Seconds to wait for a loading process before `WorkerError`.
        **kwargs: Further options of `DataLoader`.

    Attributes:
        mixture: The sampler.

    Raises:
        ConfigError: If the sampler is of another kind.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: MixtureSampler,
        collate_fn: Callable[[Any], Any],
        num_workers: int = 0,
        timeout: float = 600.0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(sampler, MixtureSampler):
            raise ConfigError(f"MixedLoader needs a MixtureSampler, got {type(sampler).__name__}")
        # An own generator: the base seed of the workers must not be drawn from the global one.
        options: Any = {"generator": torch.Generator(), **kwargs, "batch_size": None, "shuffle": None}
        options |= {"num_workers": num_workers, "timeout": timeout if num_workers else 0.0}
        super().__init__(dataset, sampler=sampler, collate_fn=collate_fn, **options)
        self.mixture = sampler
        #: Batches handed out but not trained on yet; the DataModule asks the Trainer.
        self.in_flight: Callable[[], int] = _none
        self._position = (0, 0)
        self._resume: tuple[int, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches were handed out and used."""
        epoch, batches = self._position
        used = max(batches - self.in_flight(), 0)
        return {"epoch": self.mixture.epoch, "batches": used if epoch == self.mixture.epoch else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a saved position.

        Args:
            state: A result of `state_dict`.
        """
        self._resume = int(state["epoch"]), int(state["batches"])
        self.mixture.set_epoch(self._resume[0])
        self._position = self._resume

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches of the sampler's epoch, from the saved position on if there is one for it."""
        # A generator: Lightning calls set_epoch after iter() and before the first next().
        epoch, resume = self.mixture.epoch, self._resume
        self._resume = None
        start = resume[1] if resume and resume[0] == epoch and resume[1] < len(self) else 0
        self.mixture.start, self._position = start, (epoch, start)
        if self.generator is not None:
            self.generator.manual_seed(mix_seed(self.mixture.seed, epoch) >> 1)
        batches = super().__iter__()
        for step in range(start, len(self)):
            batch = self._next(batches, step)
            self._position = (epoch, step + 1)
            yield batch

    def _next(self, batches: Iterator[Any], step: int) -> Any:
        try:
            return next(batches)
        except LightningSynthError:
            raise
        except (RuntimeError, ConnectionError, EOFError) as error:
            reason = _worker_failure(error)
            if not self.num_workers or reason is None:
                raise
            index = self.mixture.block(step).rows.tolist()
            raise WorkerError(
                f"{reason} while batch {step} of epoch {self.mixture.epoch} (items {index[:8]}...) was awaited; "
                "num_workers=0 shows the cause in this process"
            ) from error


def _none() -> int:
    """No batch is in flight."""
    return 0


def _worker_failure(error: BaseException) -> str | None:
    """What happened to a loading process, or None if the error is another one."""
    text = str(error)
    if "timed out" in text:
        return f"a loading process did not answer ({text})"
    if isinstance(error, (ConnectionError, EOFError)) or "exited unexpectedly" in text or "is killed by signal" in text:
        return f"a loading process was killed, most likely for lack of memory ({text or type(error).__name__})"
    return None
