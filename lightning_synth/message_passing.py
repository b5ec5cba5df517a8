"""Graph networks in sparse matrix products alone: layers of GCN, GraphSAGE and GAT, and the graph as they read it."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Features with fewer non-zero entries than this are multiplied as a sparse matrix (bags of words: 1 %).
_SPARSE = 0.1


class SparseMatrix:
    """A fixed sparse matrix; ``matrix @ dense`` is differentiable with respect to the dense factor.

    Args:
        row: int64 (entries,).
        col: int64 (entries,); repeated entries add up.
        value: float (entries,).
        shape: Rows and columns.

    Example:
        >>> matrix = SparseMatrix(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([2.0, 3.0]), (2, 2))
        >>> matrix @ torch.tensor([[1.0], [10.0]])
        tensor([[20.],
                [30.]])
    """

    def __init__(self, row: Tensor, col: Tensor, value: Tensor, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._entries = (row, col, value)

    @classmethod
    def of(cls, dense: Tensor) -> SparseMatrix:
        """Take the entries of a dense matrix that are not zero."""
        row, col = dense.nonzero(as_tuple=True)
        return cls(row, col, dense[row, col], (dense.shape[0], dense.shape[1]))

    @cached_property
    def _csr(self) -> Tensor:
        return _compress(*self._entries, self.shape)

    @cached_property
    def _transposed(self) -> Tensor:
        row, col, value = self._entries
        return _compress(col, row, value, (self.shape[1], self.shape[0]))

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Multiply a dense matrix."""
        product: Tensor = _Product.apply(self, dense)  # type: ignore[no-untyped-call]
        return product

    def __reduce__(self) -> Any:
        """Copy and pickle the entries alone: compressed tensors can do neither."""
        return SparseMatrix, (*self._entries, self.shape)


def _compress(row: Tensor, col: Tensor, value: Tensor, shape: tuple[int, int]) -> Tensor:
    order = row.argsort(stable=True)
    starts = F.pad(torch.bincount(row, minlength=shape[0]).cumsum(0), (1, 0))
    # 32-bit indices are what the CPU kernel takes; others would be copied in every product.
    small = torch.int32 if len(row) < 2**31 else torch.int64
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts.to(small), col[order].to(small), value[order], size=shape, check_invariants=False
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, dense: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix._csr @ dense

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix._transposed @ grad


class GraphInput:
    """A graph as the networks read it: its features, sparse where that is faster, and its normalised adjacencies.

    Args:
        x: float (nodes, features).
        edge_index: int64 (2, edges); messages go from row 0 to row 1.
        known: Input whose features are used again where ``x`` starts with them: an augmented graph keeps those of the
            real nodes.

    Example:
        >>> graph = GraphInput(torch.eye(2), torch.tensor([[0], [1]]))
        >>> graph.mean @ torch.tensor([[1.0], [5.0]])  # node 1 hears node 0, node 0 nobody
        tensor([[0.],
                [1.]])
    """

    def __init__(self, x: Tensor, edge_index: Tensor, known: GraphInput | None = None) -> None:
        self.x, self.edge_index = x, edge_index
        self._sparse: SparseMatrix | None = None
        self._rest: Tensor | None = None
        if known is not None and known._sparse is not None and _begins_with(x, known.x):
            self._sparse, self._rest = known._sparse, x[len(known.x) :]
        elif x.numel() and float((x != 0).float().mean()) < _SPARSE:
            self._sparse, self._rest = SparseMatrix.of(x), x[:0]

    @classmethod
    def of(cls, data: Any, known: GraphInput | None = None) -> GraphInput:
        """Read a PyG ``Data``; nothing is computed again for the graph that is known already."""
        if known is not None and known.x is data.x and known.edge_index is data.edge_index:
            return known
        return cls(data.x, data.edge_index, known)

    def __len__(self) -> int:
        """Count the nodes."""
        return len(self.x)

    def features_times(self, weight: Tensor) -> Tensor:
        """Return ``x @ weight``."""
        if self._sparse is None or self._rest is None:
            return self.x @ weight
        known = self._sparse @ weight
        return torch.cat([known, self._rest @ weight]) if len(self._rest) else known

    @cached_property
    def symmetric(self) -> SparseMatrix:
        """D^-1/2 (A + I) D^-1/2 with in-degrees D (Kipf & Welling 2017, eq. 2)."""
        source, target = self.with_loops
        scale = torch.bincount(target, minlength=len(self)).to(self.x).rsqrt()
        return SparseMatrix(target, source, scale[source] * scale[target], (len(self), len(self)))

    @cached_property
    def mean(self) -> SparseMatrix:
        """D^-1 A: the average over the nodes that edges come from; nothing for a node without any."""
        source, target = self.edge_index
        degree = torch.bincount(target, minlength=len(self)).clamp(min=1).to(self.x)
        return SparseMatrix(target, source, 1 / degree[target], (len(self), len(self)))

    @cached_property
    def with_loops(self) -> Tensor:
        """Edges with one loop at every node, int64 (2, edges)."""
        nodes = torch.arange(len(self), device=self.x.device)
        other = self.edge_index[:, self.edge_index[0] != self.edge_index[1]]
        return torch.cat([other, nodes.expand(2, -1)], 1)


def _begins_with(x: Tensor, first: Tensor) -> bool:
    if x is first:
        return True
    return len(x) >= len(first) and x.shape[1] == first.shape[1] and torch.equal(x[: len(first)], first)


class _Conv(nn.Module):
    """A layer that projects the features and then passes them along the edges."""

    def __init__(self, d_in: int, d_out: int, weights: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(d_in, d_out * weights)))
        self.bias = nn.Parameter(torch.zeros(d_out))

    def project(self, graph: GraphInput, h: Tensor | None) -> Tensor:
        """Multiply the features (None: those of the graph itself) by the weights."""
        return graph.features_times(self.weight) if h is None else h @ self.weight


class GCNConv(_Conv):
    """Graph convolution (Kipf & Welling 2017, arXiv 1609.02907, eq. 2)."""

    def forward(self, graph: GraphInput, h: Tensor | None) -> Tensor:
        """Return (nodes, d_out)."""
        return graph.symmetric @ self.project(graph, h) + self.bias


class SAGEConv(_Conv):
    """A node's own features and the mean of its neighbours' (Hamilton et al. 2017, arXiv 1706.02216, algorithm 1)."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, weights=2)

    def forward(self, graph: GraphInput, h: Tensor | None) -> Tensor:
        """Return (nodes, d_out)."""
        own, near = self.project(graph, h).chunk(2, dim=1)
        return own + graph.mean @ near + self.bias


class GATConv(_Conv):
    """Attention over neighbours (Velickovic et al. 2018, arXiv 1710.10903, eq. 1 to 5), heads side by side."""

    def __init__(self, d_in: int, d_out: int, heads: int = 1) -> None:
        super().__init__(d_in, d_out)
        self.heads = heads
        self.attention = nn.Parameter(nn.init.xavier_uniform_(torch.empty(2, heads, d_out // heads)))

    def forward(self, graph: GraphInput, h: Tensor | None) -> Tensor:
        """Return (nodes, d_out)."""
        h = self.project(graph, h).reshape(len(graph), self.heads, -1)
        source, target = graph.with_loops
        sends, hears = (h[None] * self.attention[:, None]).sum(-1)
        score = F.leaky_relu(sends[source] + hears[target], 0.2)
        index = target[:, None].expand_as(score)
        top = (
            score.detach()
            .new_zeros(len(graph), self.heads)
            .scatter_reduce(0, index, score.detach(), "amax", include_self=False)
        )
        share = (score - top[target]).exp()
        total = torch.zeros_like(top).index_add(0, target, share)
        message = h.index_select(0, source) * (share / total[target])[:, :, None]
        return torch.zeros_like(h).index_add(0, target, message).flatten(1) + self.bias


class GNN(nn.Module):
    """Layers of one kind, with a rectifier (for attention: ELU) and dropout between them.

    Args:
        kind: ``gcn``, ``gat`` or ``graphsage``.
        d_in: Features of a node.
        hidden: Features between layers.
        d_out: Scores of a node.
        num_layers: Layers.
        heads: Of all but the last layer; for ``gat`` only.

    Example:
        >>> graph = GraphInput(torch.eye(3), torch.tensor([[0, 1], [1, 2]]))
        >>> GNN("gcn", 3, 8, 2)(graph).shape
        torch.Size([3, 2])
    """

    def __init__(self, kind: str, d_in: int, hidden: int, d_out: int, num_layers: int = 2, heads: int = 8) -> None:
        super().__init__()
        sizes = [d_in, *[hidden] * (num_layers - 1), d_out]
        last = [False] * (num_layers - 1) + [True]
        make: dict[str, Any] = {
            "gcn": lambda a, b, end: GCNConv(a, b),
            "graphsage": lambda a, b, end: SAGEConv(a, b),
            "gat": lambda a, b, end: GATConv(a, b, 1 if end else heads),
        }
        self.activate = F.elu if kind == "gat" else F.relu
        self.layers = nn.ModuleList(make[kind](*pair) for pair in zip(sizes[:-1], sizes[1:], last, strict=True))

    def forward(self, graph: GraphInput, dropout: float = 0.0, draw: torch.Generator | None = None) -> Tensor:
        """Return scores (nodes, d_out).

        Args:
            graph: The graph.
            dropout: Share of hidden features set to zero.
            draw: Of the dropout.
        """
        h: Tensor | None = None
        for layer in self.layers:
            if h is not None:
                h = self.activate(h)
                if dropout:
                    kept = torch.rand(h.shape, generator=draw, device=h.device) >= dropout
                    h = h * (kept.to(h) / (1 - dropout))
            h = layer(graph, h)
        assert h is not None
        return h
