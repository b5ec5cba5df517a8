"""Mixup of two graphs whose nodes have been matched."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.requests import KeyedRNG
from lightning_synth.transforms.mixup import GraphMixup, pick
from lightning_synth.transforms.parts import keep_marks

# Largest matrix of distances; larger graphs are matched by the order of their degrees.
_MOST_PAIRS = 1 << 20


class PairMixup(GraphMixup):
    """Mix each graph with a random training graph, node by matched node.

    As S-Mixup (Ling et al. 2023, arXiv 2306.06788): ``x = w x_1 + (1 - w) M x_2``, the adjacency
    likewise, the label likewise, with w drawn from Beta(alpha, alpha) and at least 1/2. There the matching M comes from
    a trained network; here it is the assignment of nodes that is nearest in features and in degree, their own and those
    of their neighbours, so nothing is trained (graphs of more than about a thousand nodes are matched by the order of
    their degrees). The first graph keeps its nodes; a node without a match, and every edge of such a node, counts as it
    is. Integer types cannot be averaged: one of the two is taken, with probability w the first. An edge of one graph
    alone is kept with the probability that is its weight, or, with ``weighted``, all edges are kept and the result has
    ``edge_weight``.

    Args:
        alpha: Of the Beta law, positive.
        weighted: Keep all edges and their weights.
        seed: As `GraphTransform`.

    Raises:
        ConfigError: If ``alpha`` is not positive.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> first = tiny_graphs(1)[0]
        >>> mixed = PairMixup().fit(tiny_graphs(16))(first)
        >>> mixed.num_nodes == first.num_nodes, mixed.y.shape, mixed.is_undirected()
        (True, torch.Size([1, 2]), True)
    """

    def __init__(self, alpha: float = 1.0, *, weighted: bool = False, seed: int = 0) -> None:
        super().__init__(seed)
        if not alpha > 0:
            raise ConfigError(f"alpha must be positive, got {alpha}")
        self.alpha, self.weighted = alpha, weighted

    def learn(self, graphs: list[Any]) -> None:
        """Keep the training graphs.

        Args:
            graphs: Training graphs.
        """
        self._graphs = graphs

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Mix every graph.

        Args:
            data: A graph or batch.
            rng: One seed a graph.
        """
        from scipy.stats import beta
        from torch_geometric.data import Batch

        label, device = self.labels_of(data).cpu(), data.edge_index.device
        rng = KeyedRNG(rng.seed, rng.stream, device="cpu")
        u = rng.fork("share").uniform(()).double().numpy()
        share = torch.from_numpy(beta.ppf(u, self.alpha, self.alpha)).float()
        share = torch.maximum(share, 1 - share)
        partner = pick(rng.fork("partner"), torch.full_like(label, len(self._graphs)))
        soft = torch.lerp(self.soft(self.training_labels()[partner]), self.soft(label), share[:, None])
        batched = data.get("ptr") is not None
        mixed = [
            # Graphs have nodes to match of their own, so they are mixed one by one.
            _mix(one.cpu(), self._graphs[other], float(w), rng[i], self.weighted)
            for i, (one, other, w) in enumerate(
                zip(data.to_data_list() if batched else [data], partner.tolist(), share, strict=True)
            )
        ]
        for graph, y in zip(mixed, soft, strict=True):
            graph.y = y[None]
        return keep_marks(Batch.from_data_list(mixed), data).to(device) if batched else mixed[0].to(device)


def _mix(one: Any, other: Any, share: float, rng: KeyedRNG, weighted: bool) -> Any:
    from torch_geometric.data import Data

    nodes, match = int(one.num_nodes), _matching(one, other)
    known = match >= 0
    mixed = Data(num_nodes=nodes)
    if one.get("x") is not None:
        partner = torch.where(known.reshape(-1, *[1] * (one.x.ndim - 1)), other.x[match.clamp(min=0)], one.x)
        mixed.x = _blend(one.x, partner, share, rng.fork("x"))
    back = torch.full((int(other.num_nodes),), -1)
    back[match[known]] = known.nonzero()[:, 0]
    moved = back[other.edge_index]
    present = (moved >= 0).all(0)
    edge_index = torch.cat([one.edge_index, moved[:, present]], 1)
    # An edge of a node without a match is mixed with nothing.
    alone = ~known[one.edge_index].all(0)
    weight = torch.cat([torch.where(alone, 1.0, share), torch.full((int(present.sum()),), 1 - share)])
    key, member = (edge_index[0] * nodes + edge_index[1]).unique(return_inverse=True)
    weight = torch.zeros(len(key)).index_add(0, member, weight).clamp(max=1)
    ends = torch.stack([key // nodes, key % nodes])
    low, high = ends.amin(0), ends.amax(0)
    pair, which = (low * nodes + high).unique(return_inverse=True)
    stays = torch.ones(len(key), dtype=torch.bool)
    if not weighted:
        stays = rng.fork("edges").uniform((len(pair),))[which] < weight
    mixed.edge_index = ends[:, stays]
    if weighted:
        mixed.edge_weight = weight
    if one.get("edge_attr") is not None:
        mixed.edge_attr = _edge_attr(one, other, present, member, len(key), share, rng, which)[stays]
    return mixed


def _edge_attr(
    one: Any, other: Any, present: Tensor, member: Tensor, edges: int, share: float, rng: KeyedRNG, which: Tensor
) -> Tensor:
    """Attributes of the joined edges: blended where both graphs have the edge, else those of the one that has it."""
    first, second = member[: one.num_edges], member[one.num_edges :]
    ours, theirs = _spread(one.edge_attr, first, edges), _spread(other.edge_attr[present], second, edges)
    known = torch.zeros(2, edges, dtype=torch.bool)
    known[0, first], known[1, second] = True, True
    known = known.reshape(2, -1, *[1] * (ours.ndim - 1))
    blended = _blend(ours, theirs, share, rng.fork("edge_attr"), which)
    return torch.where(known.all(0), blended, torch.where(known[0], ours, theirs))


def _spread(values: Tensor, at: Tensor, rows: int) -> Tensor:
    """Put rows into a tensor of zeros."""
    return values.new_zeros((rows, *values.shape[1:])).index_copy(0, at, values)


def _blend(one: Tensor, other: Tensor, share: float, rng: KeyedRNG, group: Tensor | None = None) -> Tensor:
    """Average floats; of integers take one of the two, the same one within a group."""
    if one.is_floating_point():
        return torch.lerp(other, one, share)
    group = torch.arange(len(one)) if group is None else group
    first = rng.uniform((int(group.max()) + 1 if len(group) else 0,))[group] < share
    return torch.where(first.reshape(-1, *[1] * (one.ndim - 1)), one, other)


def _matching(one: Any, other: Any) -> Tensor:
    """The node of the other graph that each node is matched with, -1 for none, int64 (nodes,)."""
    from scipy.optimize import linear_sum_assignment

    ours, theirs = _profile(one), _profile(other)
    if ours.shape[1] != theirs.shape[1]:
        raise DataError(f"graphs of {ours.shape[1] - 2} and {theirs.shape[1] - 2} features cannot be mixed")
    match = np.full(len(ours), -1)
    if len(ours) * len(theirs) > _MOST_PAIRS:
        # By the order of degrees, then of the neighbours' degrees, which needs no matrix of all pairs.
        row, col = (np.lexsort(profile[:, -2:].flip(1).T.numpy())[::-1] for profile in (ours, theirs))
        row, col = row[: len(col)], col[: len(row)]
    else:
        row, col = linear_sum_assignment(torch.cdist(ours, theirs).numpy())
    match[row] = col
    return torch.from_numpy(match)


def _profile(graph: Any) -> Tensor:
    """What nodes are matched by: features or types, log degree, and the mean of it over neighbours."""
    nodes, (row, col) = int(graph.num_nodes), graph.edge_index
    degree = torch.bincount(col, minlength=nodes).float()
    own = degree.log1p()
    near = torch.zeros(nodes).index_add(0, col, own[row]) / degree.clamp(min=1)
    x = graph.get("x")
    if x is None:
        return torch.stack([own, near], 1)
    if not x.is_floating_point():
        # Different types are at the distance of two one-hot vectors whatever their numbers, by a fixed random code.
        x = KeyedRNG(x.reshape(nodes, -1)[:, 0]).normal((16,)) / 4
    return torch.cat([x.reshape(nodes, -1).float(), own[:, None], near[:, None]], 1)
