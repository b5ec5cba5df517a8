"""Randomness that a row owns: a counter-based generator (Philox) keyed by seeds, and the mixing of seeds.

Every requested row carries its own seed, and every draw is a pure function of (seed, stream, step). A pool is therefore
the same on one device or eight, at any batch size, and the global generators of torch and numpy are never touched.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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
