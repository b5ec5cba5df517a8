"""Graph diffusion: edges between nodes that are near in many steps, by sparse powers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.requests import KeyedRNG
from lightning_synth.transforms.base import GraphTransform
from lightning_synth.transforms.parts import Pairs, Parts, set_edges

#: Entries that the rows diffused at once may have.
_ENTRIES = 1 << 23
_KINDS = ("ppr", "heat")


class Diffusion(GraphTransform):
    """Replace the edges by those of a diffused graph (GDC, Gasteiger et al. 2019, arXiv 1911.05485, equation 1).

    ``S = sum_k theta_k T^k`` with the symmetric transition matrix T of the graph with self-loops (of a directed graph:
    the one of a walk along its edges), and ``theta_k = alpha (1 - alpha)^k`` (personalised PageRank) or
    ``exp(-t) t^k / k!`` (heat kernel). The powers are formed row by row and sparsely: what is left to be spread from a
    node is dropped where it is less than ``tolerance`` times the node's degree, as in the push method of Andersen et
    al. 2006, so that work and memory are linear in the nodes. No matrix of all pairs is ever made.

    Then the largest entries of each row are kept and normalised. An undirected graph stays one: a pair is joined if
    either end keeps it. The result is ``edge_index`` and ``edge_weight``; other edge attributes have no meaning on the
    new edges and are dropped. An ``edge_weight`` of the given graph is used. There is no randomness.

    Args:
        kind: ``ppr`` or ``heat``.
        alpha: Probability of a return to the start, in (0, 1).
        t: Time of the heat kernel.
        top_k: Entries kept of each row; None: all above ``eps``.
        eps: Smallest entry kept.
        tolerance: What may be left unspread, for each unit of degree.
        normalize: ``sym`` (each weight over the root of the degrees of both ends; directed graphs: over the sum of the
            row), or None for the entries of S themselves.
        self_loops: Keep the diagonal.
        seed: Not used.

    Raises:
        ConfigError: If an option is out of range.
        DataError: When applied to negative or non-finite edge weights.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> graph = Diffusion(top_k=5)(tiny_node())
        >>> graph.is_undirected(), graph.edge_weight.shape == graph.edge_index.shape[1:]
        (True, True)
    """

    def __init__(
        self,
        kind: str = "ppr",
        *,
        alpha: float = 0.15,
        t: float = 5.0,
        top_k: int | None = 64,
        eps: float = 0.0,
        tolerance: float = 1e-4,
        normalize: str | None = "sym",
        self_loops: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if kind not in _KINDS:
            raise ConfigError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
        if not 0 < alpha < 1 or not 0 < t < 100 or not 0 < tolerance < 1 or eps < 0:
            raise ConfigError(
                f"alpha and tolerance must be in (0, 1), t in (0, 100), eps at least 0: "
                f"got alpha={alpha}, tolerance={tolerance}, t={t}, eps={eps}"
            )
        if normalize not in ("sym", None) or (top_k is not None and top_k < 1):
            raise ConfigError(f"normalize must be 'sym' or None, top_k at least 1: got {normalize!r} and {top_k}")
        self.kind, self.alpha, self.t, self.top_k, self.eps = kind, alpha, t, top_k, eps
        self.tolerance, self.normalize, self.self_loops = tolerance, normalize, self_loops

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Diffuse; graphs of a batch stay apart.

        Args:
            data: A shallow copy of the graph or batch.
            rng: Not used.
        """
        from scipy.sparse import vstack

        parts = Parts.of(data)
        undirected = Pairs.of(data, parts).undirected
        walk, degree = self._walk(data)
        rows = [self._sparse(part, degree, start, undirected) for start, part in self._powers(walk, degree)]
        spread = vstack(rows, format="csr") if rows else walk
        if undirected:
            spread = spread.maximum(spread.T.tocsr())
        found = spread.tocoo()
        row, col, value = found.row, found.col, found.data
        if self.normalize and len(value):
            total = np.bincount(row, value, minlength=len(degree))
            value = value / (np.sqrt(total[row] * total[col]) if undirected else total[row])
        weight = torch.from_numpy(value.astype(np.float32)).to(data.edge_index.device)
        ends = torch.from_numpy(np.stack([row, col]).astype(np.int64)).to(data.edge_index.device)
        return set_edges(data, parts, ends, {"edge_weight": weight})

    @staticmethod
    def _walk(data: Any) -> tuple[Any, np.ndarray]:
        """The transition matrix of a walk that may stay where it is, CSR, and the degrees."""
        from scipy.sparse import coo_array, diags_array, eye_array

        nodes, (row, col) = int(data.num_nodes), data.edge_index.cpu().numpy()
        weight = data.get("edge_weight")
        values = np.ones(len(row)) if weight is None else weight.reshape(-1).double().cpu().numpy()
        if not (np.isfinite(values) & (values >= 0)).all():
            raise DataError("diffusion needs finite edge weights of at least 0")
        adjacency = coo_array((values, (row, col)), shape=(nodes, nodes)).tocsr() + eye_array(nodes, format="csr")
        degree = np.asarray(adjacency.sum(1)).ravel()
        return (diags_array(1 / degree) @ adjacency).tocsr(), degree

    def _powers(self, walk: Any, degree: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Blocks of rows of the diffused walk: number of the first row, CSR."""
        from scipy.sparse import csr_array, eye_array

        nodes, block = len(degree), max(1, int(_ENTRIES * self.tolerance))
        identity = eye_array(nodes, format="csr")
        weights = self._weights()
        # What is yet to be spread after each power.
        remaining = 1 - np.cumsum(weights) + weights
        for start in range(0, nodes, block):
            power = csr_array(identity[start : start + block])
            spread = weights[0] * power
            for theta, left in zip(weights[1:], remaining[1:], strict=True):
                power = power @ walk
                power.data[left * power.data < self.tolerance * degree[power.indices]] = 0
                power.eliminate_zeros()
                if not power.nnz:
                    break
                spread = spread + theta * power
            yield start, spread

    def _weights(self) -> np.ndarray:
        """Coefficients theta_k down to where hardly anything is left to be spread."""
        if self.kind == "ppr":
            steps = math.ceil(math.log(self.tolerance) / math.log(1 - self.alpha))
            return self.alpha * (1 - self.alpha) ** np.arange(steps + 1)
        from scipy.stats import poisson

        weights: np.ndarray = poisson.pmf(np.arange(int(poisson.isf(self.tolerance, self.t)) + 2), self.t)
        return weights

    def _sparse(self, rows: Any, degree: np.ndarray, start: int, undirected: bool) -> Any:
        """Keep the largest entries of each row of S."""
        from scipy.sparse import csr_array

        row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        col, value = rows.indices, rows.data
        if undirected:
            # From the walk to the symmetric transition matrix, which has the same powers up to this scaling.
            value = value * np.sqrt(degree[row + start] / degree[col])
        keep = value > self.eps if self.self_loops else (value > self.eps) & (col != row + start)
        row, col, value = row[keep], col[keep], value[keep]
        if self.top_k is not None:
            # Of equal entries the one with the smaller column is kept.
            order = np.lexsort((col, -value, row))
            counts = np.bincount(row, minlength=rows.shape[0])
            rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
            kept = order[rank < self.top_k]
            row, col, value = row[kept], col[kept], value[kept]
        return csr_array((value, (row, col)), shape=rows.shape)
