"""What graph_maker predicts with: features as categories, a network on single nodes and one on pairs of nodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Points at which the distribution within an interval is kept.
_FINE = 16


class Bins(nn.Module):
    """Float features as categories: the values themselves where a feature has few, else intervals of equal count.

    Args:
        num_features: Columns.
        bins: Categories of each.

    Example:
        >>> bins = Bins(1, 4)
        >>> x = torch.tensor([[0.0], [2.0], [0.0]])
        >>> bins.fit(x)
        >>> bins.decode(bins.encode(x), torch.rand(3, 1)).flatten().tolist()
        [0.0, 2.0, 0.0]
    """

    table: Tensor
    threshold: Tensor
    law: Tensor

    def __init__(self, num_features: int, bins: int) -> None:
        super().__init__()
        self.num_features, self.bins = num_features, bins
        self.register_buffer("table", torch.zeros(num_features, bins, _FINE + 1))
        self.register_buffer("threshold", torch.zeros(num_features, bins - 1))
        self.register_buffer("law", torch.full((num_features, bins), 1 / bins))

    def fit(self, x: Tensor) -> None:
        """Find values or intervals, and how frequent they are.

        Args:
            x: float32 (nodes, features).
        """
        ordered = x.T.sort(dim=1).values
        rank = (ordered.diff(dim=1) != 0).cumsum(1)
        rank = torch.cat([torch.zeros_like(ordered[:, :1], dtype=torch.int64), rank], 1)
        place = torch.linspace(0, x.shape[0] - 1, self.bins * _FINE + 1, device=x.device).long()
        quantile = ordered[:, place]
        # Beyond the last value the largest one is repeated, which no number exceeds.
        value = ordered[:, -1:].repeat(1, self.bins).scatter(1, rank.clamp(max=self.bins - 1), ordered)
        few = rank[:, -1:] < self.bins
        # Neighbouring intervals share an end.
        self.table.copy_(torch.where(few[..., None], value[..., None], quantile.unfold(1, _FINE + 1, _FINE)))
        middle = (value[:, :-1] + value[:, 1:]) / 2
        self.threshold.copy_(torch.where(few, middle, quantile[:, _FINE:-1:_FINE]))
        counts = F.one_hot(self.encode(x), self.bins).sum(0) + 1e-3
        self.law.copy_(counts / counts.sum(1, keepdim=True))

    def encode(self, x: Tensor) -> Tensor:
        """Return categories, int64 (nodes, features)."""
        return (x[..., None] > self.threshold).sum(-1)

    def centred(self, category: Tensor) -> Tensor:
        """Return one-hot categories less their mean, of length 1 on average, (nodes, features * bins).

        Without this, every step of the optimizer moves the sum over thousands of equal entries a long way.
        """
        spread = (self.law * (1 - self.law)).sum().sqrt().clamp(min=1e-3)
        return ((F.one_hot(category, self.bins) - self.law) / spread).flatten(1)

    def decode(self, category: Tensor, u: Tensor) -> Tensor:
        """Return values, distributed as in their interval; ``u`` is uniform, of the shape of ``category``."""
        place = u * _FINE
        step = place.long().clamp(max=_FINE - 1)
        column = torch.arange(self.num_features, device=u.device)
        low, high = (self.table[column, category, step + after] for after in (0, 1))
        return low + (high - low) * (place - step).float()


class FeatureNetwork(nn.Module):
    """Predicts the clean features of a node from its noisy ones, its label and the time; nodes on their own.

    Args:
        num_features: Columns.
        bins: Categories of each.
        dim: Features inside.
    """

    def __init__(self, num_features: int, bins: int, dim: int) -> None:
        super().__init__()
        self.shape = (num_features, bins)
        self.enter = nn.Linear(num_features * bins, dim)
        self.hidden = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.leave = nn.Linear(dim, num_features * bins)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return logits (nodes, features, bins) for noisy ``x`` (nodes, features * bins), ``context`` (nodes, dim)."""
        out: Tensor = self.leave(self.hidden(self.enter(x) + context))
        return out.reshape(-1, *self.shape)


class EdgeNetwork(nn.Module):
    """Predicts the clean type of pairs of nodes from the noisy graph around them.

    Rounds of message passing over the noisy edges make a state for every node; a pair is judged by the product of two
    states, its own noisy type, and a term for each end.

    Args:
        edge_types: With "no edge" as type 0.
        dim: Features of a node.
        pair_dim: Features of a pair.
        num_layers: Rounds of message passing.
    """

    def __init__(self, edge_types: int, dim: int, pair_dim: int, num_layers: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(edge_types, dim)
        self.rounds = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * dim + 1, dim), nn.SiLU(), nn.Linear(dim, dim)) for _ in range(num_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_layers))
        self.end = nn.Linear(dim, pair_dim)
        self.alone = nn.Linear(dim, edge_types)
        self.pair_kind = nn.Embedding(edge_types, pair_dim)
        self.pair = nn.Sequential(nn.Linear(pair_dim, pair_dim), nn.SiLU(), nn.Linear(pair_dim, edge_types))

    def states(self, h: Tensor, edges: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
        """Pass messages.

        Args:
            h: (nodes, dim).
            edges: int64 (2, edges), each once.
            kind: int64 (edges,), their types.

        Returns:
            What `forward` takes of each node, (nodes, pair_dim) and (nodes, edge_types).
        """
        source, target = torch.cat([edges, edges.flip(0)], 1)
        degree = torch.bincount(target, minlength=len(h))[:, None].float()
        typed = self.kind(kind.repeat(2))
        for update, norm in zip(self.rounds, self.norms, strict=True):
            total = torch.zeros_like(h).index_add(0, target, h[source] + typed)
            h = norm(h + update(torch.cat([h, total / degree.clamp(min=1), degree.log1p()], 1)))
        return self.end(h), self.alone(h)

    def forward(self, states: tuple[Tensor, Tensor], first: Tensor, second: Tensor, kind: Tensor) -> Tensor:
        """Return logits (pairs, edge_types) of pairs whose noisy type is ``kind``."""
        end, alone = states
        # index_select is several times faster than indexing.
        meet = end.index_select(0, first) * end.index_select(0, second)
        logits: Tensor = self.pair(meet + self.pair_kind(kind))
        return logits + alone.index_select(0, first) + alone.index_select(0, second)


__all__ = ["Bins", "EdgeNetwork", "FeatureNetwork"]
