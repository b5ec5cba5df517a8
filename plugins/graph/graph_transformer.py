"""A graph transformer that predicts the clean types of all nodes and pairs of a noisy graph.

Three streams, as in DiGress (Vignac et al. 2023): nodes (graphs, n, d_node), unordered pairs (pairs, d_edge) and the
graph as a whole (graphs, d_graph). Two things make it cheap and exact:

* pairs i < j of real nodes are kept in one flat list: nothing is computed for padding, and nothing twice;
* every sum over nodes or pairs leaves padding out, so a graph's output does not depend on its neighbours in the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.errors import ConfigError

ATTENTION = ("edge_bias", "per_channel", "cayley")


class Pairs:
    """The unordered pairs of nodes in a padded batch, as one flat list.

    Args:
        mask: bool (graphs, n), True for nodes.

    Example:
        >>> pairs = Pairs(torch.tensor([[True, True, True], [True, True, False]]))
        >>> len(pairs), pairs.graph.tolist(), pairs.row.tolist(), pairs.col.tolist()
        (4, [0, 0, 0, 1], [0, 0, 1, 0], [1, 2, 2, 1])
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask, self.graphs, self.n = mask, mask.shape[0], mask.shape[1]
        both = (mask[:, :, None] & mask[:, None, :]).triu(1)
        self.graph, self.row, self.col = both.nonzero().T
        self.counts = both.sum((1, 2))
        #: Places of the two ends in the flat list of padded nodes, and of (i, j) and (j, i) in that of padded pairs.
        self.source, self.target = self.graph * self.n + self.row, self.graph * self.n + self.col
        self.upper, self.lower = self.source * self.n + self.col, self.target * self.n + self.row

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.graph)

    def dense(self, values: Tensor) -> Tensor:
        """Lay values of pairs out symmetrically.

        Args:
            values: (pairs, channels) or (pairs,).

        Returns:
            (graphs, n, n, channels) or (graphs, n, n); zero on the diagonal and on padding.
        """
        flat = values.new_zeros(self.graphs * self.n * self.n, *values.shape[1:])
        flat = flat.index_copy(0, self.upper, values).index_copy(0, self.lower, values)
        return flat.view(self.graphs, self.n, self.n, *values.shape[1:])

    def at_upper(self, dense: Tensor) -> Tensor:
        """Return entries (i, j) of (graphs, n, n, ...), (pairs, ...)."""
        return dense.reshape(-1, *dense.shape[3:]).index_select(0, self.upper)

    def at_lower(self, dense: Tensor) -> Tensor:
        """Return entries (j, i)."""
        return dense.reshape(-1, *dense.shape[3:]).index_select(0, self.lower)

    def ends(self, nodes: Tensor) -> Tensor:
        """Return the sum over the two ends of each pair, (pairs, d), of node values (graphs, n, d)."""
        flat = nodes.reshape(-1, nodes.shape[-1])
        return flat.index_select(0, self.source) + flat.index_select(0, self.target)

    def mean(self, values: Tensor) -> Tensor:
        """Average over the pairs of each graph, (graphs, d)."""
        total = values.new_zeros(self.graphs, values.shape[1]).index_add(0, self.graph, values)
        return total / self.counts.clamp(min=1)[:, None]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average node values over real nodes, (graphs, d)."""
    return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def structure_features(adjacency: Tensor, mask: Tensor, pairs: Pairs, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Relative random-walk probabilities and short cycles, which message passing on the noisy graph cannot count.

    With M = D^-1 A the features are I, M, ..., M^(steps-1) (Ma et al. 2023, eq. 1): the diagonal for nodes; for a pair
    the sum and the absolute difference of both directions, since pairs are unordered.

    Args:
        adjacency: float (graphs, n, n), 0 or 1, symmetric, zero diagonal.
        mask: bool (graphs, n).
        pairs: Of the mask.
        steps: Number of powers.

    Returns:
        Node features (graphs, n, steps + 1), the last one a third of the log degree; pair features
        (pairs, 2 * steps - 2); graph features (graphs, 3): cycles of length 3, 4 and 5, a tenth, at most 1.
    """
    degree = adjacency.sum(2)
    walk = adjacency / degree.clamp(min=1)[:, :, None]
    powers, power = [], walk
    for _ in range(steps - 1):
        powers.append(power)
        power = power @ walk
    stacked = torch.stack(powers, -1)
    upper, lower = pairs.at_upper(stacked), pairs.at_lower(stacked)
    diagonal = torch.diagonal(stacked, dim1=1, dim2=2).transpose(1, 2)
    nodes = torch.cat([mask[:, :, None].to(walk.dtype), diagonal, degree[:, :, None].log1p() / 3], -1)
    return nodes, torch.cat([upper + lower, (upper - lower).abs()], -1), _cycles(adjacency, degree)


def _cycles(a: Tensor, degree: Tensor) -> Tensor:
    """Numbers of 3-, 4- and 5-cycles from closed walks, scaled."""
    a2 = a @ a
    a3 = a2 @ a
    closed3 = torch.diagonal(a3, dim1=1, dim2=2)
    closed4 = (a2 * a2).sum(2)
    closed5 = (a2 * a3).sum(2)
    three = closed3.sum(1) / 6
    four = (closed4 - degree * (degree - 1) - (a @ degree[:, :, None])[:, :, 0]).sum(1) / 8
    five = (closed5 - 2 * closed3 * degree - (a @ closed3[:, :, None])[:, :, 0] + closed3).sum(1) / 10
    return (torch.stack([three, four, five], 1) / 10).clamp(max=1)


#: Laws that the network gave at the last step: of node types (graphs, n, K) and of edge types (pairs, K).
Belief = tuple[Tensor, Tensor]


class WalkFeatures(nn.Module):
    """Input features beside the types: those of `structure_features`. A subclass may add to them.

    Args:
        steps: Powers of the random walk.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        #: Features of a node, a pair and the graph.
        self.sizes = (steps + 1, 2 * steps - 2, 3)

    def forward(self, x: Tensor, e: Tensor, pairs: Pairs, belief: Belief) -> tuple[Tensor, Tensor, Tensor]:
        """Describe a noisy graph.

        Args:
            x: int64 (graphs, n), node types.
            e: int64 (pairs,), edge types; 0 is no edge.
            pairs: Of the batch.
            belief: Zero where there is none; it gives the features their dtype.

        Returns:
            (graphs, n, a), (pairs, b) and (graphs, c), with a, b, c as in ``sizes``.
        """
        return structure_features(pairs.dense((e > 0).to(belief[0].dtype)), pairs.mask, pairs, self.steps)


class FiLM(nn.Module):
    """Layer norm whose scale and shift follow the graph stream; starts as a plain layer norm."""

    def __init__(self, dim: int, d_graph: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.film = nn.Linear(d_graph, 2 * dim)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        """Modulate (rows, ..., dim) by (rows, d_graph)."""
        scale, shift = self.film(graph).unflatten(0, (-1, *[1] * (x.ndim - 2))).chunk(2, dim=-1)
        out: Tensor = self.norm(x) * (1 + scale) + shift
        return out


def feed_forward(dim: int, width: int, dropout: float) -> nn.Sequential:
    """Two layers with a ReLU between them."""
    middle = [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
    return nn.Sequential(nn.Linear(dim, width), *middle, nn.Linear(width, dim))


class EdgeBiasAttention(nn.Module):
    """Attention of nodes whose scores are scaled and shifted by the pair: one number a head.

    score_ijh = (1 + w_h . E_ij) Q_ih . K_jh / sqrt(d) + b_h . E_ij. What DiGress does for each channel (see
    `PerChannelAttention`) is done for each head here: d_node / heads times less memory.

    Args:
        d_node: Features of a node.
        d_edge: Features of a pair.
        heads: Divisor of ``d_node``.
    """

    def __init__(self, d_node: int, d_edge: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.bias = nn.Linear(d_node, 3 * d_node), nn.Linear(d_edge, 2 * heads)
        self.out, self.edge_out = nn.Linear(d_node, d_node), nn.Linear(2 * heads, d_edge)

    def forward(self, x: Tensor, e: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return updates of nodes (graphs, n, d_node) and pairs (pairs, d_edge)."""
        q, k, v = (part.transpose(1, 2) for part in self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scale, shift = pairs.dense(self.bias(e)).permute(0, 3, 1, 2).chunk(2, dim=1)
        scores = scores * (1 + scale) + shift
        nodes = self._mix(scores, pairs.mask) @ v
        both = scores.permute(0, 2, 3, 1)
        upper, lower = pairs.at_upper(both), pairs.at_lower(both)
        # An unordered pair sees both directions through symmetric functions of them.
        symmetric = torch.cat([upper + lower, (upper - lower).abs()], -1)
        return self.out(nodes.transpose(1, 2).flatten(2)), self.edge_out(symmetric)

    def _mix(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1).nan_to_num()


class CayleyAttention(EdgeBiasAttention):
    """Attention by an orthogonal matrix: the Cayley transform of the skew part of the scores.

    R = (I - K/2)^-1 (I + K/2) with K = eps (S - S') / (2 sqrt n); orthogonal mixing neither smooths nor collapses deep
    networks.

    Args:
        d_node: Features of a node.
        d_edge: Features of a pair.
        heads: Divisor of ``d_node``.
    """

    def __init__(self, d_node: int, d_edge: int, heads: int) -> None:
        super().__init__(d_node, d_edge, heads)
        self.strength = nn.Parameter(torch.ones(heads, 1, 1))

    def _mix(self, scores: Tensor, mask: Tensor) -> Tensor:
        both = mask[:, None, :, None] & mask[:, None, None, :]
        size = mask.sum(1).clamp(min=1).sqrt()[:, None, None, None]
        half = self.strength * (scores - scores.transpose(-1, -2)).masked_fill(~both, 0.0) / (4 * size)
        one = torch.eye(mask.shape[1], device=mask.device, dtype=scores.dtype)
        # There is no solver in half precision.
        wide = torch.promote_types(scores.dtype, torch.float32)
        mixed: Tensor = torch.linalg.solve((one - half).to(wide), (one + half).to(wide)).to(scores.dtype)
        return mixed


class PerChannelAttention(nn.Module):
    """Attention of DiGress: a weight for every channel, n^2 d_node numbers. For comparison; slow.

    Args:
        d_node: Features of a node.
        d_edge: Features of a pair.
        heads: Divisor of ``d_node``; only sets the scale of the scores.
    """

    def __init__(self, d_node: int, d_edge: int, heads: int) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(d_node // heads)
        self.qkv, self.bias = nn.Linear(d_node, 3 * d_node), nn.Linear(d_edge, 2 * d_node)
        self.out, self.edge_out = nn.Linear(d_node, d_node), nn.Linear(d_node, d_edge)

    def forward(self, x: Tensor, e: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return updates of nodes (graphs, n, d_node) and pairs (pairs, d_edge)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scale, shift = pairs.dense(self.bias(e)).chunk(2, dim=-1)
        scores = q[:, :, None] * k[:, None] * self.scale * (1 + scale) + shift
        weight = scores.masked_fill(~pairs.mask[:, None, :, None], -torch.inf).softmax(2).nan_to_num()
        edges = self.edge_out(pairs.at_upper(scores) + pairs.at_lower(scores))
        return self.out((weight * v[:, None]).sum(2)), edges


class Layer(nn.Module):
    """One round: nodes attend to nodes, pairs see their ends and scores, the graph sees the means of both."""

    def __init__(self, d_node: int, d_edge: int, d_graph: int, heads: int, attention: str, dropout: float) -> None:
        super().__init__()
        kinds = {"edge_bias": EdgeBiasAttention, "per_channel": PerChannelAttention, "cayley": CayleyAttention}
        self.attention = kinds[attention](d_node, d_edge, heads)
        self.node_norm, self.node_norm2 = FiLM(d_node, d_graph), FiLM(d_node, d_graph)
        self.edge_norm, self.edge_norm2 = nn.LayerNorm(d_edge), nn.LayerNorm(d_edge)
        self.to_edge = nn.Linear(d_node, d_edge)
        self.node_ff = feed_forward(d_node, 2 * d_node, dropout)
        # No dropout on pairs: there are many more of them than nodes, and their draws would cost a quarter of the time.
        self.edge_ff = feed_forward(d_edge, d_edge, 0.0)
        self.graph_ff = nn.Sequential(
            nn.Linear(d_graph + d_node + d_edge, d_graph), nn.ReLU(), nn.Linear(d_graph, d_graph)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, e: Tensor, y: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Update nodes (graphs, n, d_node), pairs (pairs, d_edge) and graphs (graphs, d_graph)."""
        nodes, edges = self.attention(self.node_norm(x, y), self.edge_norm(e), pairs)
        x = x + self.dropout(nodes)
        h = self.node_norm2(x, y)
        x = x + self.node_ff(h)
        e = e + edges + pairs.ends(self.to_edge(h))
        e = e + self.edge_ff(self.edge_norm2(e))
        y = y + self.graph_ff(torch.cat([y, masked_mean(x, pairs.mask), pairs.mean(e)], -1))
        return x, e, y


class GraphTransformer(nn.Module):
    """Logits of clean node and edge types from a noisy graph.

    Args:
        node_types: Number of node types.
        edge_types: Number of edge types, "no edge" included.
        d_node: Features of a node.
        d_edge: Features of a pair.
        d_graph: Features of the graph stream, also the size of the embedding that `forward` takes.
        num_layers: Rounds.
        heads: Divisor of ``d_node``.
        attention: ``"edge_bias"``, ``"cayley"``, or ``"per_channel"``.
        rrwp_steps: Powers of the random walk (`structure_features`).
        dropout: Share of node features dropped.
        self_conditioning: The network also sees its last prediction (Chen et al. 2023, arXiv 2208.04202).
        features: Input features beside the types; None for `WalkFeatures`.
        graph_at_input: Nodes and pairs get the graph stream added at the input, not through the norms of the rounds
            alone.

    Raises:
        ConfigError: If the attention is unknown or the heads do not divide ``d_node``.

    Example:
        >>> net = GraphTransformer(2, 2, d_node=16, d_edge=8, d_graph=8, num_layers=1, heads=2)
        >>> pairs = Pairs(torch.ones(3, 5, dtype=torch.bool))
        >>> nodes, edges = net(torch.zeros(3, 5).long(), torch.zeros(len(pairs)).long(), torch.zeros(3, 8), pairs)
        >>> nodes.shape, edges.shape
        (torch.Size([3, 5, 2]), torch.Size([30, 2]))
    """

    def __init__(
        self,
        node_types: int,
        edge_types: int,
        *,
        d_node: int = 128,
        d_edge: int = 64,
        d_graph: int = 64,
        num_layers: int = 6,
        heads: int = 8,
        attention: str = "edge_bias",
        rrwp_steps: int = 12,
        dropout: float = 0.1,
        self_conditioning: bool = False,
        features: WalkFeatures | None = None,
        graph_at_input: bool = False,
    ) -> None:
        super().__init__()
        if attention not in ATTENTION:
            raise ConfigError(f"attention {attention!r} is not one of {ATTENTION}")
        if d_node % heads:
            raise ConfigError(f"d_node={d_node} is not divisible by heads={heads}")
        if rrwp_steps < 2:
            raise ConfigError(f"rrwp_steps must be at least 2, got {rrwp_steps}")
        self.node_types, self.edge_types, self.self_conditioning = node_types, edge_types, self_conditioning
        self.features = features or WalkFeatures(rrwp_steps)
        copies, (of_node, of_pair, of_graph) = 1 + self_conditioning, self.features.sizes
        self.node_in = nn.Sequential(
            nn.Linear(copies * node_types + of_node, d_node), nn.ReLU(), nn.Linear(d_node, d_node)
        )
        self.edge_in = nn.Sequential(
            nn.Linear(copies * edge_types + of_pair, d_edge), nn.ReLU(), nn.Linear(d_edge, d_edge)
        )
        self.graph_in = nn.Sequential(nn.Linear(d_graph + of_graph, d_graph), nn.ReLU(), nn.Linear(d_graph, d_graph))
        self.graph_at_input = nn.Linear(d_graph, d_node + d_edge) if graph_at_input else None
        self.layers = nn.ModuleList(
            Layer(d_node, d_edge, d_graph, heads, attention, dropout) for _ in range(num_layers)
        )
        self.last_edges, self.edge_norm = nn.Linear(d_node, d_edge), nn.LayerNorm(d_edge)
        self.graph_out, self.edge_out = nn.Linear(d_graph, d_edge), nn.Linear(d_edge, edge_types)
        # With a single type there is nothing to predict.
        self.node_out = nn.Sequential(nn.LayerNorm(d_node), nn.Linear(d_node, node_types)) if node_types > 1 else None

    def forward(
        self, x: Tensor, e: Tensor, graph: Tensor, pairs: Pairs, belief: Belief | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the clean types.

        Args:
            x: int64 (graphs, n), noisy node types.
            e: int64 (pairs,), noisy edge types; 0 is no edge.
            graph: (graphs, d_graph), embedding of time, size and conditions.
            pairs: Of the batch.
            belief: The last prediction, if there is one.

        Returns:
            Logits (graphs, n, node_types) and (pairs, edge_types).
        """
        types = F.one_hot(x, self.node_types).to(graph.dtype), F.one_hot(e, self.edge_types).to(graph.dtype)
        last = belief if belief is not None else (torch.zeros_like(types[0]), torch.zeros_like(types[1]))
        nodes, edges, cycles = self.features(x, e, pairs, last)
        seen = zip(types, last, strict=True) if self.self_conditioning else ((part,) for part in types)
        given_nodes, given_edges = seen
        h = self.node_in(torch.cat([*given_nodes, nodes], -1))
        w = self.edge_in(torch.cat([*given_edges, edges], -1))
        y = self.graph_in(torch.cat([graph, cycles], -1))
        if self.graph_at_input is not None:
            to_nodes, to_edges = self.graph_at_input(y).split((h.shape[-1], w.shape[-1]), -1)
            h, w = h + to_nodes[:, None], w + to_edges[pairs.graph]
        for layer in self.layers:
            h, w, y = layer(h, w, y, pairs)
        w = self.edge_norm(w + pairs.ends(self.last_edges(h)))
        logits = self.edge_out(F.relu(w + self.graph_out(y)[pairs.graph]))
        return h.new_zeros(*x.shape, 1) if self.node_out is None else self.node_out(h), logits
