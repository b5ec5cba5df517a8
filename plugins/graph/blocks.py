"""Finding the blocks of a graph (spectral start, likelihood refinement, number by ICL), and what block models share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.graph.classical import ClassicalGenerator
from lightning_synth.plugins.graph.edges import pair_of, segments

#: Rounds of refinement, numbers of blocks without improvement before the search ends, nodes that k-means looks at.
_ROUNDS, _PATIENCE, _SAMPLED = 10, 2, 20_000
#: Nodes up to which all eigenvectors are computed; above, steps of subspace iteration (two products each) and vectors
#: beyond those wanted.
_DENSE, _STEPS, _MORE = 256, 20, 8


def find_blocks(
    edges: Tensor, num_nodes: int, *, num_blocks: int | None, max_blocks: int, degree_corrected: bool
) -> Tensor:
    """Estimate the block of every node.

    For each number of blocks: k-means on the leading eigenvectors of the regularised normalised adjacency (Qin & Rohe
    2013, arXiv 1309.4111), then nodes move to the block that makes their edges most likely (Gao et al. 2017, arXiv
    1505.03772), all at once, for as long as that helps. The number of blocks has the largest integrated classification
    likelihood (Daudin, Picard & Robin 2008, doi:10.1007/s11222-007-9046-7).

    Args:
        edges: int64 (2, edges), each once.
        num_nodes: Nodes.
        num_blocks: How many blocks; None searches 1..max_blocks.
        max_blocks: Largest number tried.
        degree_corrected: Whether nodes of a block may differ in degree (Karrer & Newman 2011), or are alike.

    Returns:
        int64 (num_nodes,), blocks 0..K-1, none of them empty, the largest first.

    Example:
        >>> first, second = (torch.triu_indices(8, 8, 1) + shift for shift in (0, 8))
        >>> edges = torch.cat([first, second, torch.tensor([[0], [8]])], 1)
        >>> find_blocks(edges, 16, num_blocks=None, max_blocks=4, degree_corrected=False).tolist()
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    graph = _Graph(edges, num_nodes, degree_corrected)
    tried = [num_blocks] if num_blocks else range(1, max_blocks + 1)
    vectors = graph.embedding(min(max(tried), num_nodes))
    best, best_score, since = np.zeros(num_nodes, dtype=np.int64), -np.inf, 0
    for k in tried:
        if k > num_nodes:
            break
        labels, score = graph.refined(_kmeans(vectors[:, :k], k, degree_corrected), k)
        best, best_score, since = (labels, score, 0) if score > best_score else (best, best_score, since + 1)
        if since > _PATIENCE:
            break
    # Blocks in order of size, ties in order of their first node.
    _, first, inverse, size = np.unique(best, return_index=True, return_inverse=True, return_counts=True)
    return torch.from_numpy(np.argsort(np.lexsort([first, -size]))[inverse])


def _kmeans(vectors: np.ndarray, k: int, degree_corrected: bool) -> np.ndarray:
    from sklearn.cluster import KMeans

    if k == 1:
        return np.zeros(len(vectors), dtype=np.int64)
    if degree_corrected:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    every = vectors[:: -(-len(vectors) // _SAMPLED)]
    distinct = len(np.unique(every.round(12), axis=0))
    model = KMeans(min(k, distinct), n_init=2, random_state=0).fit(every)
    labels: np.ndarray = model.predict(vectors).astype(np.int64)
    return labels


class _Graph:
    """Adjacency and likelihoods of one graph."""

    def __init__(self, edges: Tensor, num_nodes: int, degree_corrected: bool) -> None:
        from scipy.sparse import csr_array

        low, high = edges.numpy()
        ends = np.r_[low, high], np.r_[high, low]
        self.adjacency: Any = csr_array((np.ones(len(ends[0])), ends), shape=(num_nodes, num_nodes))
        self.n, self.degree = num_nodes, np.asarray(self.adjacency.sum(1)).ravel()
        self.degree_corrected = degree_corrected

    def embedding(self, k: int) -> np.ndarray:
        """Eigenvectors (nodes, k) of D^-1/2 A D^-1/2, degrees raised by their mean, largest in magnitude first."""
        scale = 1 / np.sqrt(self.degree + max(self.degree.mean(), 1e-9))
        matrix = self.adjacency * scale[:, None] * scale[None, :]
        if self.n <= _DENSE:
            value, vector = np.linalg.eigh(matrix.toarray())
        else:
            # Subspace iteration with a few vectors more than wanted. Unlike a Lanczos method it has no way to fail.
            basis = np.random.default_rng(0).normal(size=(self.n, k + _MORE))
            for _ in range(_STEPS):
                basis = matrix @ np.linalg.qr(matrix @ basis)[0]
            basis = np.linalg.qr(basis)[0]
            value, rotation = np.linalg.eigh(basis.T @ (matrix @ basis))
            vector = basis @ rotation
        leading: np.ndarray = vector[:, np.argsort(-np.abs(value))[:k]]
        return leading

    def refined(self, labels: np.ndarray, k: int) -> tuple[np.ndarray, float]:
        """Move nodes to their likeliest blocks while the likelihood of the whole grows."""
        best, best_score = labels, -np.inf
        for _ in range(_ROUNDS):
            member = np.eye(k)[labels]
            towards = self.adjacency @ member
            score = self._icl(member, towards, k)
            if score <= best_score:
                break
            best, best_score = labels, score
            labels = self._likeliest(member, towards)
        return best, best_score

    def _counts(self, member: np.ndarray, towards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends of edges between blocks (within a block twice the edges), and pairs of nodes counted alike."""
        size = member.sum(0)
        return member.T @ towards, np.outer(size, size) - np.diag(size)

    def _icl(self, member: np.ndarray, towards: np.ndarray, k: int) -> float:
        between, pairs = self._counts(member, towards)
        size = member.sum(0)
        if self.degree_corrected:
            # Karrer & Newman 2011, eq. 21.
            mass = between.sum(1)
            fit = 0.5 * _xlogy(between, between / np.maximum(np.outer(mass, mass), 1e-300)).sum()
        else:
            p = between / np.maximum(pairs, 1)
            fit = 0.5 * (_xlogy(between, p) + _xlogy(pairs - between, 1 - p)).sum()
        shares = _xlogy(size, size / self.n).sum()
        penalty = k * (k + 1) / 4 * np.log(max(self.n * (self.n - 1) / 2, 1)) + (k - 1) / 2 * np.log(self.n)
        return float(fit + shares - penalty)

    def _likeliest(self, member: np.ndarray, towards: np.ndarray) -> np.ndarray:
        between, pairs = self._counts(member, towards)
        size = member.sum(0)
        prior = np.log(np.maximum(size, 1e-9) / self.n)
        if self.degree_corrected:
            score = towards @ np.log(between + 1e-9) - self.degree[:, None] * np.log(between.sum(1) + 1e-9) + prior
        else:
            p = np.clip(between / np.maximum(pairs, 1), 1e-6, 1 - 1e-6)
            apart = size[None] - member - towards
            score = towards @ np.log(p) + apart @ np.log1p(-p) + prior
        labels: np.ndarray = score.argmax(1)
        return labels


def _xlogy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from scipy.special import xlogy

    value: np.ndarray = xlogy(x, np.maximum(y, 1e-300))
    return value


def cells_of(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Enumerate the pairs of blocks a <= b of every row.

    Args:
        blocks: int64 (rows,), number of blocks.

    Returns:
        Row, number within the row, a and b of every pair, each int64 (pairs,).

    Example:
        >>> cells_of(torch.tensor([2]))[2:]
        (tensor([0, 0, 1]), tensor([0, 1, 1]))
    """
    row, rank = segments(blocks * (blocks + 1) // 2)
    low, high = pair_of(rank)
    return row, rank, low, high - 1


def pairs_between(size: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Count the pairs of nodes between groups, or within one, int64 (cells,)."""
    return torch.where(first == second, size[first] * (size[first] - 1) // 2, size[first] * size[second])


class BlockModel(ClassicalGenerator):
    """A classical generator that estimates the blocks of every training graph (`find_blocks`).

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        num_blocks: Blocks of a training graph; None chooses the number.
        max_blocks: Largest number tried.
    """

    degree_corrected: ClassVar[bool] = False

    def __init__(
        self, *, num_nodes: int | None = None, num_blocks: int | None = None, max_blocks: int = 16, **kwargs: Any
    ) -> None:
        for name, value in (("num_blocks", num_blocks), ("max_blocks", max_blocks)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        super().__init__(num_nodes=num_nodes, num_blocks=num_blocks, max_blocks=max_blocks, **kwargs)

    def learn(self, items: Sequence[Any], edges: Sequence[Tensor]) -> dict[str, Tensor]:
        """Estimate blocks, and count the edges and the pairs of nodes between them."""
        block, blocks, between, pairs = [], [], [], []
        for item, part in zip(items, edges, strict=True):
            found = find_blocks(
                part,
                int(item.num_nodes),
                num_blocks=self.hparams.num_blocks,
                max_blocks=self.hparams.max_blocks,
                degree_corrected=self.degree_corrected,
            )
            size = torch.bincount(found)
            _, _, first, second = cells_of(torch.tensor([len(size)]))
            table = torch.zeros(len(size), len(size), dtype=torch.int64)
            ends = found[part].sort(dim=0)[0]
            table.index_put_((ends[0], ends[1]), torch.ones_like(ends[0]), accumulate=True)
            block.append(found)
            blocks.append(len(size))
            between.append(table[first, second])
            pairs.append(pairs_between(size, first, second))
        return {
            "block": torch.cat(block),
            "blocks": torch.tensor(blocks),
            "between": torch.cat(between),
            "pairs": torch.cat(pairs),
        }

    def cells(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Enumerate the pairs of blocks of a batch.

        Args:
            source: int64 (rows,), training graphs.

        Returns:
            Row of every pair, its place in the tables, and its two blocks, numbered through the batch.
        """
        blocks = self.tables["blocks"]
        cells = blocks * (blocks + 1) // 2
        row, rank, first, second = cells_of(blocks[source])
        start = (blocks[source].cumsum(0) - blocks[source])[row]
        return row, (cells.cumsum(0) - cells)[source[row]] + rank, start + first, start + second

    def thinning(self, source: Tensor, num_nodes: Tensor) -> Tensor:
        """Factor of all probabilities that keeps mean degrees in graphs of another size, float64 (rows,)."""
        return self.tables["num_nodes"][source].double() / num_nodes


__all__ = ["BlockModel", "cells_of", "find_blocks", "pairs_between"]
