"""Small network pieces that several generators share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.conditions import KEEP
from lightning_synth.requests import KeyedRNG


class Standardizer(nn.Module):
    """Map raw windows to zero mean and unit variance per channel, and back.

    Args:
        schema: Of the training windows; its ``mean`` and ``std`` have one entry per channel.

    Shapes:
        x: (batch, channels, length).

    Example:
        >>> scale = Standardizer({"mean": [1.0], "std": [2.0]})
        >>> scale(torch.full((1, 1, 3), 5.0))
        tensor([[[2., 2., 2.]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(schema["mean"], dtype=torch.float32)[:, None])
        self.register_buffer("std", torch.tensor(schema["std"], dtype=torch.float32)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """Standardise."""
        return (x - self.mean) / self.std

    def inverse(self, z: Tensor) -> Tensor:
        """Return to raw units."""
        return z * self.std + self.mean


class ConditionEmbedding(nn.Module):
    """Sum of a label embedding and a small network on the standardised continuous conditions.

    Args:
        schema: Says which conditions exist.
        dim: Size of the embedding.
        label: Whether the label is used.
    """

    stats: Tensor

    def __init__(self, schema: Mapping[str, Any], dim: int, label: bool = True) -> None:
        super().__init__()
        known = {**(schema.get("conditions") or {}), **(schema.get("properties") or {})}
        self.dim, self.names = dim, list(known)
        classes = int(schema.get("num_classes") or 0) if label else 0
        self.label = nn.Embedding(classes, dim) if classes else None
        self.continuous = None
        if self.names:
            self.continuous = nn.Sequential(nn.Linear(len(self.names), dim), nn.SiLU(), nn.Linear(dim, dim))
        stats = [[known[name][key] for name in self.names] for key in ("mean", "std")]
        self.register_buffer("stats", torch.tensor(stats, dtype=torch.float32), persistent=False)

    def forward(self, condition: Mapping[str, Tensor], rows: int) -> Tensor:
        """Return (rows, dim); rows with ``condition["keep"]`` False, and conditions not given, contribute zero."""
        total = torch.zeros(rows, self.dim, device=self.stats.device)
        if self.label is not None and "label" in condition:
            total = total + self.label(condition["label"])
        if self.continuous is not None and all(name in condition for name in self.names):
            raw = torch.stack([condition[name].float() for name in self.names], dim=1)
            total = total + self.continuous((raw - self.stats[0]) / self.stats[1].clamp(min=1e-6))
        keep = condition.get(KEEP)
        return total if keep is None else total * keep[:, None]


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """Encode diffusion steps, int64 (batch,), as sines and cosines, (batch, dim)."""
    half = dim // 2
    rate = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / max(1, half - 1)))
    angle = t[:, None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, dim % 2))


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, eq. 34): turn pairs of features by their angle.

    Args:
        x: (batch, heads, tokens, dim).
        angle: (tokens, dim / 2), radians; 0 leaves a token as it is.

    Example:
        >>> x = torch.randn(1, 1, 3, 4)
        >>> turned = rotate(x, torch.rand(3, 2))
        >>> bool(torch.allclose(turned.norm(dim=-1), x.norm(dim=-1)))
        True
    """
    a, b = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


@contextmanager
def owned_dropout(rng: KeyedRNG) -> Iterator[None]:
    """Let dropout layers, which draw from torch's global generator, draw as ``rng`` says; the global one stands still.

    Args:
        rng: Scalar-seeded.

    Example:
        >>> layer, one = nn.Dropout(0.5), torch.ones(8)
        >>> draws = []
        >>> for _ in range(2):
        ...     with owned_dropout(KeyedRNG(3)):
        ...         draws.append(layer(one))
        >>> bool((draws[0] == draws[1]).all())
        True
    """
    with torch.random.fork_rng(devices=[rng.device] if rng.device.type == "cuda" else []):
        torch.manual_seed(int(rng.fork("dropout").integers(1 << 31)))
        yield


def warm_cosine(progress: float, warm_up: float = 0.05, floor: float = 0.01) -> float:
    """Return the factor of the learning rate at ``progress`` in [0, 1].

    Example:
        >>> [round(warm_cosine(p), 2) for p in (0.0, 0.05, 0.525, 1.0)]
        [0.05, 1.0, 0.5, 0.01]
    """
    if progress < warm_up:
        return 0.05 + 0.95 * progress / warm_up
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))
