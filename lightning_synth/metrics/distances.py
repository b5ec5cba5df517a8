"""Distances between samples in chunks of bounded memory, and the feature space in which they are taken."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_synth.errors import DataError

Array = npt.NDArray[np.float64]
ArrayLike = Any
CHUNK = 1024


def as_features(values: ArrayLike, name: str = "sample") -> Array:
    """Return values as a finite float64 array of shape (n, d).

    Args:
        values: Array or tensor of shape (n,), (n, d) or (n, ...); later axes are flattened.
        name: What to call it in an error.

    Returns:
        Array of shape (n, d).

    Raises:
        DataError: If a value is not finite; the message names its row and column.

    Example:
        >>> as_features(torch.zeros(3, 2, 4)).shape
        (3, 8)
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    array = array.reshape(len(array), int(np.prod(array.shape[1:])))
    finite = np.isfinite(array)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise DataError(f"{name}: row {row}, feature {column} is {array[row, column]}; features must be finite")
    return array


def as_pair(real: ArrayLike, synthetic: ArrayLike) -> tuple[Array, Array]:
    """Return two samples as float64 arrays of the same width.

    Args:
        real: (n, d) or (n,).
        synthetic: (m, d) or (m,).

    Returns:
        The two arrays, (n, d) and (m, d).

    Raises:
        DataError: If their widths differ or a value is not finite.

    Example:
        >>> [a.shape for a in as_pair([1.0, 2.0], [3.0])]
        [(2, 1), (1, 1)]
    """
    r, s = as_features(real, "real sample"), as_features(synthetic, "synthetic sample")
    if r.shape[1] != s.shape[1]:
        raise DataError(f"real sample has {r.shape[1]} features, synthetic sample has {s.shape[1]}")
    return r, s


def squared_distance_chunks(query: Array, reference: Array, chunk: int = CHUNK) -> Iterator[tuple[slice, Tensor]]:
    """Yield squared Euclidean distances of some rows of `query` to all rows of `reference`.

    Args:
        query: (n, d).
        reference: (m, d).
        chunk: Rows of `query` at a time; memory is chunk * m doubles.

    Yields:
        The rows of `query` as a slice, and a float64 tensor (rows, m).

    Example:
        >>> [(rows, d2.tolist()) for rows, d2 in squared_distance_chunks(np.zeros((1, 2)), np.array([[3.0, 4.0]]))]
        [(slice(0, 1, None), [[25.0]])]
    """
    # Centring first: |a|^2 + |b|^2 - 2ab cancels badly for features far from the origin.
    centre = reference.mean(0) if len(reference) else 0.0
    b = torch.as_tensor(reference - centre)
    b2 = b.square().sum(1)
    for start in range(0, len(query), chunk):
        rows = slice(start, min(start + chunk, len(query)))
        a = torch.as_tensor(query[rows] - centre)
        yield rows, torch.addmm(b2, a, b.T, alpha=-2).add_(a.square().sum(1, keepdim=True)).clamp_(min=0)


def nearest(
    query: ArrayLike, reference: ArrayLike, k: int = 1, *, exclude_self: bool = False
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Distances and indices of the k nearest reference rows, exact (a copy has distance 0).

    Args:
        query: (n, d).
        reference: (m, d).
        k: How many neighbours; at most m (m - 1 with `exclude_self`), missing ones get distance inf, index -1.
        exclude_self: `query` is `reference` itself, and a row is not its own neighbour (its copies are).

    Returns:
        Distances (n, k), ascending, and indices (n, k).

    Example:
        >>> nearest([0.0, 1.0, 3.0], [0.0, 1.0, 3.0], exclude_self=True)[0].ravel().tolist()
        [1.0, 1.0, 2.0]
    """
    q, r = as_pair(query, reference)
    available = max(0, min(k, len(r) - int(exclude_self)))
    distance = np.full((len(q), k), np.inf)
    index = np.full((len(q), k), -1, dtype=np.int64)
    if available == 0:
        return distance, index
    for rows, d2 in squared_distance_chunks(q, r):
        if exclude_self:
            at = torch.arange(rows.start, rows.stop)
            d2[at - rows.start, at] = torch.inf
        chosen = _smallest(d2, available).numpy()
        # The matrix product leaves rounding errors of 1e-8: recompute the few that count, so that copies get exactly 0.
        exact = np.sqrt(np.square(q[rows, None, :] - r[chosen]).sum(-1))
        order = exact.argsort(1, kind="stable")
        distance[rows, :available] = np.take_along_axis(exact, order, 1)
        index[rows, :available] = np.take_along_axis(chosen, order, 1)
    return distance, index


def _smallest(d2: Tensor, k: int) -> Tensor:
    """Columns of the k smallest values of every row, unordered; a few passes of argmin beat sorting. Alters `d2`."""
    if k > 3:
        return d2.topk(k, largest=False, sorted=False).indices
    found = []
    for _ in range(k):
        found.append(d2.argmin(1, keepdim=True))
        d2.scatter_(1, found[-1], torch.inf)
    return torch.cat(found, 1)


class FeatureSpace:
    """Standardised features of at most `max_dim` dimensions, fitted on real items only.

    Wide features are replaced by their leading principal components and, as one more coordinate, the logarithm of
    what the components leave over: noise outside the principal plane stays visible. Where some features are constant in
    the real data, they become one coordinate, the distance from those constants. Train and holdout items must be given
    together: components fitted on train alone would reproduce train items better, and every membership metric would
    see that.

    Args:
        real: (n, d) features of all real items at hand.
        max_dim: Most dimensions of the result, at least 3.

    Example:
        >>> space = FeatureSpace(np.random.default_rng(0).normal(size=(50, 100)), max_dim=8)
        >>> space(np.zeros((3, 100))).shape
        (3, 8)
    """

    def __init__(self, real: ArrayLike, max_dim: int = 64) -> None:
        array = as_features(real, "real sample")
        self.mean = array.mean(0)
        spread = array.std(0)
        varies = spread > 1e-9 * np.maximum(1.0, np.abs(self.mean))
        self.kept, self.constant = np.flatnonzero(varies), np.flatnonzero(~varies)
        self.std = np.where(varies, spread, 1.0)
        self.components: Array | None = None
        width = max_dim - int(len(self.constant) > 0)
        if len(self.kept) > width:
            z = self._standardise(array)
            self.components = _principal(z, width - 1)
            left = self._left_over(z)
            self.left_mean, self.left_std = float(left.mean()), max(float(left.std()), 1e-6)

    def _standardise(self, array: Array) -> Array:
        return np.asarray((array - self.mean)[:, self.kept] / self.std[self.kept])

    def _left_over(self, z: Array) -> Array:
        assert self.components is not None
        rest = z - (z @ self.components) @ self.components.T
        return np.asarray(np.log(np.square(rest).sum(1) + 1e-6 * z.shape[1]))

    def __call__(self, features: ArrayLike) -> Array:
        """Map features to the standardised space.

        Args:
            features: (n, d), d as in the constructor.

        Returns:
            (n, at most max_dim).
        """
        array = as_features(features, "features")
        z = self._standardise(array)
        parts = [z]
        if self.components is not None:
            parts = [z @ self.components, (self._left_over(z) - self.left_mean)[:, None] / self.left_std]
        if len(self.constant):
            parts.append(np.linalg.norm((array - self.mean)[:, self.constant], axis=1, keepdims=True))
        return np.concatenate(parts, 1)


def _principal(z: Array, count: int, rows: int = 1000) -> Array:
    """Leading principal directions (d, count) of centred rows, from at most 1000 of them drawn evenly."""
    part = z if len(z) <= rows else z[np.sort(seeded(0, "principal").permutation(len(z))[:rows])]
    # The Gram matrix is the smaller problem for long windows: its eigenvectors give the directions.
    if part.shape[1] <= len(part):
        vectors = np.linalg.eigh(part.T @ part)[1][:, ::-1]
    else:
        values, left = np.linalg.eigh(part @ part.T)
        keep = values > 1e-10 * values[-1]
        vectors = (part.T @ left[:, keep] / np.sqrt(values[keep]))[:, ::-1]
    return np.ascontiguousarray(vectors[:, :count])


def seeded(seed: int, *names: int | str) -> np.random.Generator:
    """Return a numpy generator that depends on the seed and the names alone.

    Args:
        seed: The seed of the whole computation.
        names: What the draw is for; different names give independent streams.

    Returns:
        A generator of its own.

    Example:
        >>> bool(seeded(0, "a").random() == seeded(0, "a").random() != seeded(0, "b").random())
        True
    """
    keys = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, *keys])
