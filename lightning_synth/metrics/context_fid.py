"""Context-FID: Frechet distance of learned window embeddings, with an encoder trained on real training windows only.

The encoder is a small TS2Vec (Yue et al. 2022): dilated convolutions, trained so that a step has the same
representation in two overlapping, differently masked crops, and another one than other steps and other windows. Values
depend on the encoder: compare only numbers of one encoder, which is trained once per set of training windows.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.metrics.distances import Array, as_pair
from lightning_synth.metrics.judges import seeded_network
from lightning_synth.signal import as_windows

NAN = float("nan")
_KEPT = 4
_CACHE: OrderedDict[str, SeriesEncoder] = OrderedDict()


class _Block(nn.Module):
    """Two dilated convolutions with a residual connection."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        out: Tensor = x + self.second(F.gelu(self.first(F.gelu(x))))
        return out


class SeriesEncoder(nn.Module):
    """Embeds windows; see `train_encoder`.

    Args:
        mean: Of each channel.
        std: Of each channel.
        length: Of the windows.
        dim: Size of the embedding.
        width: Feature maps.

    Shapes:
        x: (batch, channels, length), raw. Result: (batch, dim, steps), one embedding per step.

    Example:
        >>> SeriesEncoder(np.zeros(2), np.ones(2), 24, dim=8)(torch.zeros(3, 2, 24)).shape
        torch.Size([3, 8, 24])
    """

    mean: Tensor
    std: Tensor
    #: Standard deviation of each embedding coordinate over training windows; 1 before training.
    spread: Tensor

    def __init__(self, mean: np.ndarray, std: np.ndarray, length: int, dim: int = 32, width: int = 32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32)[:, None])
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32)[:, None])
        self.register_buffer("spread", torch.ones(dim, dtype=torch.float64))
        # Long windows are read in overlapping frames: the contrast across steps is quadratic in their number.
        stride = max(1, length // 64)
        self.project = nn.Conv1d(len(mean), width, 2 * stride - 1, stride, padding=stride - 1)
        depth = max(1, int(np.ceil(np.log2(max(length // stride, 4) / 4))))
        self.blocks = nn.Sequential(*(_Block(width, 2**level) for level in range(depth)))
        self.head = nn.Conv1d(width, dim, 1)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return embeddings of all steps; steps where ``keep`` (batch, 1, steps) is 0 are hidden before the blocks."""
        hidden = self.project((x - self.mean) / self.std)
        out: Tensor = self.head(F.gelu(self.blocks(hidden if keep is None else hidden * keep)))
        return out

    @torch.no_grad()
    def encode(self, x: Any) -> Array:
        """Return embeddings of windows, float64 (n, dim): the maximum over the steps.

        Args:
            x: (n, channels, length).
        """
        windows = torch.as_tensor(np.ascontiguousarray(as_windows(x)), dtype=torch.float32)
        parts = [self(part).amax(-1) for part in windows.split(512)]
        return np.asarray(torch.cat(parts).double().numpy())


def hierarchical_contrast(a: Tensor, b: Tensor) -> Tensor:
    """Contrastive loss of TS2Vec: across windows and across steps, at every scale of a maximum pooling by two.

    Args:
        a: Embeddings of one view (batch, steps, dim).
        b: Of the other view, the same steps.

    Returns:
        Scalar, mean over scales.

    Example:
        >>> hierarchical_contrast(torch.zeros(4, 8, 2), torch.zeros(4, 8, 2)).round(decimals=2)
        tensor(1.6900)
    """
    total, scales = a.new_zeros(()), 0
    while True:
        across_windows = _contrast(a.transpose(0, 1), b.transpose(0, 1)) if len(a) > 1 else a.new_zeros(())
        across_steps = _contrast(a, b) if a.shape[1] > 1 else a.new_zeros(())
        total, scales = total + (across_windows + across_steps) / 2, scales + 1
        if a.shape[1] == 1:
            return total / scales
        a, b = (F.max_pool1d(z.transpose(1, 2), 2).transpose(1, 2) for z in (a, b))


def _contrast(a: Tensor, b: Tensor) -> Tensor:
    """InfoNCE within groups: (groups, members, dim); a member's positive is itself in the other view."""
    members = a.shape[1]
    z = torch.cat([a, b], 1)
    likeness = z @ z.transpose(1, 2)
    itself = torch.eye(2 * members, dtype=torch.bool, device=a.device)
    likeness = likeness.masked_fill(itself, -torch.inf)
    other = torch.arange(2 * members, device=a.device).roll(members)
    return F.cross_entropy(likeness.flatten(0, 1), other.repeat(len(a)))


def train_encoder(
    real: Any, *, dim: int = 32, iterations: int = 200, batch_size: int = 32, seed: int = 0
) -> SeriesEncoder:
    """Train an encoder on real training windows.

    Args:
        real: (n, channels, length), at least 2.
        dim: Size of the embedding. A Frechet distance needs several windows per dimension.
        iterations: Optimiser steps.
        batch_size: Windows in a step.
        seed: Of weights, crops and masks.

    Returns:
        The encoder, frozen.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(20, 2, 24))
        >>> train_encoder(x, dim=8, iterations=2).encode(x).shape
        (20, 8)
    """
    windows = as_windows(real)
    std = windows.std((0, 2))
    mean, length = windows.mean((0, 2)), windows.shape[-1]
    encoder = seeded_network(lambda: SeriesEncoder(mean, np.where(std > 1e-9, std, 1.0), length, dim), seed)
    assert isinstance(encoder, SeriesEncoder)
    x = torch.as_tensor(windows, dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    with torch.enable_grad():
        for _ in range(iterations):
            rows = torch.randperm(len(x), generator=draw)[:batch_size]
            a, b = _two_views(encoder, x[rows], draw)
            optimizer.zero_grad(set_to_none=True)
            hierarchical_contrast(a, b).backward()
            optimizer.step()
    some = torch.randperm(len(x), generator=draw)[:1000].sort().values
    encoder.spread.copy_(torch.as_tensor(encoder.encode(windows[some.numpy()]).std(0) + 1e-9))
    return encoder.eval().requires_grad_(False)


def _two_views(encoder: SeriesEncoder, x: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Embeddings of the common steps of two crops, with half of the steps hidden in each."""
    stride = int(encoder.project.stride[0])
    steps = x.shape[-1] // stride
    # Crops [left, end) and [start, right) overlap in [start, end).
    common = int(torch.randint(max(2, steps // 4), steps + 1, (), generator=draw)) if steps > 2 else steps
    start = int(torch.randint(steps - common + 1, (), generator=draw))
    end = start + common
    left = int(torch.randint(start + 1, (), generator=draw))
    right = end + int(torch.randint(steps - end + 1, (), generator=draw))
    views = []
    for low, high in ((left, end), (start, right)):
        crop = x[..., low * stride : high * stride]
        keep = (torch.rand(len(x), 1, high - low, generator=draw) < 0.5).float()
        z = encoder(crop, keep)
        views.append(z[..., start - low : end - low].transpose(1, 2))
    return views[0], views[1]


def cached_encoder(real: Any, *, dim: int = 32, iterations: int = 200, seed: int = 0) -> SeriesEncoder:
    """Return the encoder of these windows, trained at most once in a process for the same windows and settings.

    Args:
        real: (n, channels, length).
        dim: See `train_encoder`.
        iterations: See `train_encoder`.
        seed: See `train_encoder`.
    """
    windows = np.ascontiguousarray(as_windows(real))
    digest = hashlib.blake2b(windows.tobytes(), digest_size=16).hexdigest()
    key = f"{digest}-{windows.shape}-{dim}-{iterations}-{seed}"
    if key not in _CACHE:
        _CACHE[key] = train_encoder(windows, dim=dim, iterations=iterations, seed=seed)
    _CACHE.move_to_end(key)
    while len(_CACHE) > _KEPT:
        _CACHE.popitem(last=False)
    return _CACHE[key]


def frechet_distance(real: Any, synthetic: Any) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians fitted to two samples.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); it is biased upwards by about the dimension over the sample size.

    Args:
        real: (n, d) features.
        synthetic: (m, d).

    Returns:
        The distance, NaN with fewer than 2 rows.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1000, 3))
        >>> round(frechet_distance(x, 2 * x + 1), 0)
        6.0
    """
    a, b = as_pair(real, synthetic)
    if min(len(a), len(b)) < 2:
        return NAN
    first, second = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (a, b))
    # tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric: no complex rounding errors.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(max(shift + np.trace(first) + np.trace(second) - 2 * cross, 0.0))


def context_fid(train: Any, real: Any, synthetic: Any, *, dim: int = 32, iterations: int = 200, seed: int = 0) -> float:
    """Frechet distance of window embeddings (Jeha et al. 2022), standardised by the spread of the real ones.

    Dividing each embedding coordinate by its standard deviation over the training windows frees the number from the
    scale of the encoder, which contrastive training does not fix.

    Args:
        train: (k, channels, length) real windows that the encoder is trained on.
        real: (n, channels, length), compared.
        synthetic: (m, channels, length).
        dim: Size of the embedding.
        iterations: Optimiser steps of the encoder.
        seed: Of the encoder.

    Returns:
        The distance per dimension; 1 is a shift of every coordinate by a standard deviation. NaN with fewer than 2
        windows.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(40, 1, 24))
        >>> context_fid(x, x, x, dim=4, iterations=2)
        0.0
    """
    if min(len(train), len(real), len(synthetic)) < 2:
        return NAN
    encoder = cached_encoder(train, dim=dim, iterations=iterations, seed=seed)
    scale = encoder.spread.numpy()
    distance = frechet_distance(encoder.encode(real) / scale, encoder.encode(synthetic) / scale)
    return 0.0 if distance < 1e-9 else distance / dim
