"""The containers of sampling: `SampleRequests`, `Samples`, `Scored`; with the `KeyedRNG` that rows are drawn from."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_synth.conditions import Condition, Strings, resolve_conditions
from lightning_synth.rng import KeyedRNG, mix_seed


def _cat(parts: Sequence[Any]) -> Any:
    """Concatenate conditions: tensors, or strings."""
    if isinstance(parts[0], Strings):
        return Strings(value for part in parts for value in part.tolist())
    return torch.cat(list(parts))


class Scored(NamedTuple):
    """What `Generator.sample_batch` may return instead of a batch: it fills `Samples.score`.

    Args:
        batch: The sampled rows.
        score: Name to float tensor (rows,).
    """

    batch: Any
    score: dict[str, Tensor]


@dataclass
class SampleRequests:
    """What to sample: one row per item wanted.

    Args:
        index: int64 (rows,), the position of each row in the pool.
        seed: int64 (rows,), the seed of each row.
        condition: Name to tensor (rows,): ``label`` int64, others float32 in their own units (NaN: unspecified, for
            generators with ``partial_conditions``); or to `Strings`.
    """

    index: Tensor
    seed: Tensor
    condition: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        n: int,
        *,
        seed: int = 0,
        condition: Condition = None,
        schema: Mapping[str, Any] | None = None,
        names: Sequence[str] | None = None,
        partial: bool = False,
        strings: Sequence[str] = (),
        start: int = 0,
    ) -> SampleRequests:
        """Number, seed and condition ``n`` rows.

        Args:
            n: How many rows.
            seed: Seed of the whole request; row i gets a seed of its own from it.
            condition: None or ``"empirical"`` (as in training), ``"balanced"`` (equal classes), or a dict of name to a
                scalar, a sequence of length n, or one of those two words.
            schema: Of the items; says which conditions exist. None: only given values are used.
            names: The conditions that the generator understands (``"*"``: all continuous ones); None for all.
            partial: Continuous conditions that a dict does not name are NaN (unspecified), not drawn as in training.
            strings: Conditions that are strings.
            start: Index of the first row; rows start..start+n-1 are the same whatever was asked for before.

        Returns:
            The requests.

        Raises:
            ConfigError: If a condition is unknown, of the wrong length, or a label out of range.

        Example:
            >>> SampleRequests.make(3, seed=1).index
            tensor([0, 1, 2])
        """
        index = torch.arange(start, start + n, dtype=torch.int64)
        seeds = torch.tensor([mix_seed(seed, i) for i in range(start, start + n)], dtype=torch.int64)
        rng = cls.condition_rng(seeds)
        return cls(index, seeds, resolve_conditions(index, rng, condition, schema, names, partial, strings))

    @staticmethod
    def condition_rng(seed: Tensor) -> KeyedRNG:
        """Return the stream that conditions are drawn from, apart from the noise of sampling."""
        return KeyedRNG(seed, stream=zlib.crc32(b"condition"))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.index)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> SampleRequests:
        """Return some rows."""
        return SampleRequests(self.index[rows], self.seed[rows], {k: v[rows] for k, v in self.condition.items()})

    def to(self, device: torch.device | str) -> SampleRequests:
        """Move all tensors to a device."""
        condition = {k: v.to(device) for k, v in self.condition.items()}
        return SampleRequests(self.index.to(device), self.seed.to(device), condition)

    @staticmethod
    def cat(parts: Sequence[SampleRequests]) -> SampleRequests:
        """Concatenate requests with the same conditions."""
        return SampleRequests(
            torch.cat([p.index for p in parts]),
            torch.cat([p.seed for p in parts]),
            {k: _cat([p.condition[k] for p in parts]) for k in parts[0].condition},
        )


@dataclass
class Samples:
    """Sampled items with the provenance of each.

    Args:
        data: A batch as the DataModule would collate it.
        index: int64 (rows,).
        seed: int64 (rows,).
        condition: Name to tensor (rows,) or `Strings`, as requested.
        score: Name to float tensor (rows,), e.g. of a filter.
        accepted: bool (rows,); False rows are kept and counted, never redrawn silently.
        schema: Of the items.
    """

    data: Any
    index: Tensor
    seed: Tensor
    condition: dict[str, Any]
    score: dict[str, Tensor]
    accepted: Tensor
    schema: dict[str, Any]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.index)

    def items(self) -> Sequence[Any]:
        """Return the sampled items one by one, without the batch dimension."""
        from lightning_synth.schema import uncollate

        return uncollate(self.data, self.schema)

    def to(self, device: torch.device | str) -> Samples:
        """Move all tensors to a device."""
        from lightning_synth.schema import move

        return Samples(
            move(self.data, device),
            self.index.to(device),
            self.seed.to(device),
            {k: v.to(device) for k, v in self.condition.items()},
            {k: v.to(device) for k, v in self.score.items()},
            self.accepted.to(device),
            self.schema,
        )

    @staticmethod
    def cat(parts: Sequence[Samples]) -> Samples:
        """Concatenate samples of one schema."""
        from lightning_synth.schema import collate

        first = parts[0]
        if len(parts) == 1:
            return first
        items = [item for part in parts for item in part.items()]
        return Samples(
            collate(items, first.schema),
            torch.cat([p.index for p in parts]),
            torch.cat([p.seed for p in parts]),
            {k: _cat([p.condition[k] for p in parts]) for k in first.condition},
            {k: torch.cat([p.score[k] for p in parts]) for k in first.score},
            torch.cat([p.accepted for p in parts]),
            first.schema,
        )


__all__ = ["KeyedRNG", "SampleRequests", "Samples", "Scored", "Strings", "mix_seed"]
