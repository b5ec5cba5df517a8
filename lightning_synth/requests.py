"""Owned randomness and the containers of sampling: `KeyedRNG`, `SampleRequests`, `Samples`.

Every requested row carries its own seed, and every draw is a pure function of (seed, stream, step). A pool is therefore
the same on one device or eight, at any batch size, and the global generators of torch and numpy are never touched.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_synth.conditions import Condition, resolve_conditions

_MASK = 0xFFFFFFFF
# Multipliers and Weyl constants of Philox4x32 (Salmon et al. 2011, table 2).
_M0, _M1, _W0, _W1, _ROUNDS = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 10
# Counters per pass: small enough to stay in the L2 cache of a CPU core.
_CHUNK = 1 << 16
Words = tuple[Tensor, Tensor, Tensor, Tensor]


def _philox(c0: Tensor, c1: int, c2: int, k0: Tensor, k1: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words (as int64) per counter; all arguments hold 32-bit values."""
    shape = torch.broadcast_shapes(c0.shape, k0.shape)
    x0, x1 = c0.expand(shape).clone(), torch.full(shape, c1, dtype=torch.int64, device=c0.device)
    x2, x3 = torch.full_like(x1, c2), torch.zeros_like(x1)
    p0, p1 = torch.empty_like(x0), torch.empty_like(x0)
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, which leaves the bits of the unsigned product.
        torch.mul(x0, _M0, out=p0)
        torch.mul(x2, _M1, out=p1)
        torch.bitwise_right_shift(p1, 32, out=x0)
        torch.bitwise_right_shift(p0, 32, out=x2)
        x0.bitwise_xor_(x1).bitwise_xor_(k0).bitwise_and_(_MASK)
        x2.bitwise_xor_(x3).bitwise_xor_(k1).bitwise_and_(_MASK)
        x1, p1, x3, p0 = p1, x1, p0, x3
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return x0, x1.bitwise_and_(_MASK), x2, x3.bitwise_and_(_MASK)


def _box_muller(words: Words) -> Words:
    """Four standard normal numbers from four words."""
    u0, u1, u2, u3 = (word.float().add_(0.5).mul_(2.0**-32) for word in words)
    r0, r1 = u0.log_().mul_(-2).sqrt_(), u2.log_().mul_(-2).sqrt_()
    a0, a1 = u1.mul_(2 * math.pi), u3.mul_(2 * math.pi)
    return a0.cos().mul_(r0), a0.sin_().mul_(r0), a1.cos().mul_(r1), a1.sin_().mul_(r1)


def _unit(words: Words) -> Words:
    """Four numbers in [0, 1) with the 24 bits that float32 can hold."""
    w0, w1, w2, w3 = ((word >> 8).float().mul_(2.0**-24) for word in words)
    return w0, w1, w2, w3


def mix_seed(*parts: int) -> int:
    """Combine integers into one 63-bit seed (splitmix64 finaliser over the parts).

    Args:
        *parts: Any integers; their order matters.

    Returns:
        A seed in [0, 2**63).

    Example:
        >>> mix_seed(1, 2) != mix_seed(2, 1)
        True
    """
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state + (part & 0xFFFFFFFFFFFFFFFF) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class KeyedRNG:
    """Counter-based random numbers: draw = f(seed, stream, step), vectorised over rows.

    The generator is Philox4x32-10 (Salmon et al. 2011). The result of a draw has the shape ``seed.shape + shape``. In
    sampling, ``seed`` holds one seed a row, so ``rng.normal((2, 24))`` is (rows, 2, 24) and row i depends on
    ``seed[i]`` alone. In training the seed is a scalar, so ``rng.normal(x.shape)`` has the shape of ``x``.

    Args:
        seed: One integer, or int64 tensor of shape (rows,).
        stream: Independent sequences of the same seed have different streams.
        device: Where draws are made; default: the device of ``seed``.

    Example:
        >>> rng = KeyedRNG(torch.tensor([7, 8]))
        >>> rng.normal((3,)).shape
        torch.Size([2, 3])
        >>> bool((KeyedRNG(torch.tensor([8])).uniform((4,), step=1) == rng.uniform((4,), step=1)[1]).all())
        True
    """

    def __init__(self, seed: int | Tensor, stream: int = 0, device: torch.device | str | None = None) -> None:
        if isinstance(seed, int):
            seed = torch.tensor(seed if seed < 1 << 63 else seed - (1 << 64), dtype=torch.int64)
        self.seed = seed.to(device=device, dtype=torch.int64)
        self.stream = stream & _MASK
        self._step = 0

    def __len__(self) -> int:
        """Return the number of rows (1 for a scalar seed)."""
        return self.seed.numel()

    @property
    def device(self) -> torch.device:
        """Where draws are made."""
        return self.seed.device

    def fork(self, stream: int | str) -> KeyedRNG:
        """Return an independent generator of the same rows.

        Args:
            stream: Number or name of the new stream.
        """
        number = zlib.crc32(stream.encode()) if isinstance(stream, str) else stream
        return KeyedRNG(self.seed, mix_seed(self.stream, number) & _MASK)

    def __getitem__(self, index: Any) -> KeyedRNG:
        """Return the generator of some rows, same stream and draw counter."""
        part = KeyedRNG(self.seed[index], self.stream)
        part._step = self._step
        return part

    def _next(self, step: int | None) -> int:
        if step is not None:
            return step & 0x7FFFFFFF
        self._step += 1
        # Unnumbered draws count in the upper half, so that they never meet an explicit step.
        return 0x80000000 | self._step

    def _draw(
        self,
        shape: Sequence[int],
        step: int | None,
        transform: Callable[[Words], Words] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Fill ``seed.shape + shape`` with transformed words, a cache-sized chunk at a time."""
        count, c1, seeds = math.prod(shape), self._next(step), self.seed.reshape(-1)
        blocks = max(1, -(-count // 4))
        k0, k1 = (seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None]
        counters = torch.arange(blocks, dtype=torch.int64, device=self.device)
        out = torch.empty((len(seeds), 4, blocks), dtype=dtype, device=self.device)
        chunk = _CHUNK if self.device.type == "cpu" else 1 << 24
        rows = max(1, chunk // blocks)
        for r in range(0, len(seeds), rows):
            for b in range(0, blocks, chunk):
                words = _philox(counters[b : b + chunk], c1, self.stream, k0[r : r + rows], k1[r : r + rows])
                for slot, value in enumerate(transform(words) if transform else words):
                    out[r : r + rows, slot, b : b + chunk] = value
        return out.reshape(len(seeds), 4 * blocks)[:, :count].reshape((*self.seed.shape, *shape))

    def normal(self, shape: Sequence[int], step: int | None = None) -> Tensor:
        """Draw standard normal numbers (Box-Muller).

        Args:
            shape: Shape of one row's draw.
            step: Number of the draw; None takes the next one, so that repeated calls differ.

        Returns:
            float32 of shape ``seed.shape + shape``.
        """
        return self._draw(shape, step, _box_muller)

    def uniform(self, shape: Sequence[int], step: int | None = None) -> Tensor:
        """Draw uniform numbers in [0, 1).

        Args:
            shape: Shape of one row's draw.
            step: Number of the draw; None takes the next one.

        Returns:
            float32 of shape ``seed.shape + shape``.
        """
        return self._draw(shape, step, _unit)

    def integers(self, high: int | Tensor, shape: Sequence[int] = (), step: int | None = None) -> Tensor:
        """Draw integers in [0, high).

        Args:
            high: Exclusive bound at most 2**31; a tensor must broadcast against the result.
            shape: Shape of one row's draw.
            step: Number of the draw; None takes the next one.

        Returns:
            int64 of shape ``seed.shape + shape``.
        """
        return (self._draw(shape, step, dtype=torch.int64) * high) >> 32

    def bernoulli(self, p: float | Tensor, shape: Sequence[int] = (), step: int | None = None) -> Tensor:
        """Draw True with probability ``p`` (bool, ``seed.shape + shape``)."""
        return self.uniform(shape, step) < p

    def exponential(self, shape: Sequence[int], step: int | None = None) -> Tensor:
        """Draw from the exponential law of mean 1 (float32, ``seed.shape + shape``)."""
        return -torch.log1p(-self.uniform(shape, step))

    def permutation(self, n: int, step: int | None = None) -> Tensor:
        """Draw a random order of 0..n-1 for each row (int64, ``seed.shape + (n,)``)."""
        return self._draw((n,), step, dtype=torch.int64).argsort(dim=-1, stable=True)


class Strings:
    """A condition that is a string, one a row; indexed, moved and concatenated like a tensor.

    Args:
        values: One string a row; ``""`` for none.

    Example:
        >>> texts = Strings(["a", "", "b"])
        >>> texts[torch.tensor([2, 0])].tolist(), len(texts[:2])
        (['b', 'a'], 2)
    """

    def __init__(self, values: Iterable[str]) -> None:
        self._values = tuple(values)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._values)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Strings:
        """Return some rows."""
        if isinstance(rows, slice):
            return Strings(self._values[rows])
        chosen = torch.as_tensor(rows)
        chosen = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
        return Strings(self._values[i] for i in chosen.tolist())

    def to(self, device: torch.device | str) -> Strings:
        """Return itself: strings live nowhere in particular."""
        return self

    def tolist(self) -> list[str]:
        """Return plain strings."""
        return list(self._values)


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
