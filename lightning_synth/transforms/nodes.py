"""Nodes dropped at random, and connected parts of graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import ragged_uniform
from lightning_synth.requests import KeyedRNG
from lightning_synth.transforms.base import GraphTransform, check_share
from lightning_synth.transforms.parts import Pairs, Parts, keep_nodes, set_edges


class DropNode(GraphTransform):
    """Drop each node with some probability, with its edges (GraphCL, You et al. 2020, arXiv 2010.13902).

    A graph keeps at least one node.

    Args:
        p: Probability.
        remove: Take the nodes out and number the others anew. False leaves them in place, without edges and with
            float features of zero: two views of a graph then have the same nodes, and none loses its training nodes.
        seed: As `GraphTransform`.

    Raises:
        ConfigError: If ``p`` is outside [0, 1].

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> graph = DropNode(0.5)(tiny_node())
        >>> graph.num_nodes == len(graph.x) == len(graph.y) == len(graph.train_mask) < 30
        True
    """

    def __init__(self, p: float = 0.2, *, remove: bool = True, seed: int = 0) -> None:
        super().__init__(seed)
        self.p, self.remove = check_share(p), remove

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Drop nodes.

        Args:
            data: A shallow copy of the graph or batch.
            rng: One seed a graph.
        """
        parts = Parts.of(data)
        u = ragged_uniform(rng.fork("drop"), parts.sizes)
        most = torch.full((len(parts.sizes),), -1.0, device=u.device).scatter_reduce(0, parts.owner, u, "amax")
        keep = (u >= self.p) | (u == most[parts.owner])
        if self.remove:
            return keep_nodes(data, parts, keep)
        stays = keep[data.edge_index].all(0)
        x = data.get("x")
        if x is not None and x.is_floating_point():
            data.x = torch.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0)
        return set_edges(data, parts, data.edge_index[:, stays], {name: data[name][stays] for name in parts.edge})


class RandomWalkSubgraph(GraphTransform):
    """Keep a connected part that has grown from a random node, one random neighbour at a time.

    GraphCL's "subgraph" as its authors run it (You et al. 2020, arXiv 2010.13902): each step adds a node drawn
    uniformly from the neighbours of those there are, until a share of the nodes is in. It is done for all steps at
    once: give every node an exponential waiting time that starts when a neighbour joins; as such times have no memory,
    the nodes join in the order of the shortest paths from the root (first-passage percolation). A component smaller
    than the share is kept whole.

    Args:
        ratio: Share of the nodes of each graph, in (0, 1].
        seed: As `GraphTransform`.

    Raises:
        ConfigError: If ``ratio`` is outside (0, 1].

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> RandomWalkSubgraph(0.5)(tiny_node()).num_nodes
        15
    """

    def __init__(self, ratio: float = 0.8, *, seed: int = 0) -> None:
        super().__init__(seed)
        if not 0 < ratio <= 1:
            raise ConfigError(f"ratio must be in (0, 1], got {ratio}")
        self.ratio = ratio

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Cut parts out.

        Args:
            data: A shallow copy of the graph or batch.
            rng: One seed a graph.
        """
        parts = Parts.of(data)
        filled = parts.sizes > 0
        root = (parts.start() + (rng.fork("root").uniform(()) * parts.sizes).long())[filled]
        waiting = -torch.log1p(-ragged_uniform(rng.fork("waiting"), parts.sizes).double()) + 1e-12
        arrival = self._arrival(Pairs.of(data, parts, undirected=True).ends, waiting, root)
        # Rank within the graph: sorted by arrival, then by graph.
        order = arrival.argsort(stable=True)
        order = order[parts.owner[order].argsort(stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - parts.start()[parts.owner]
        wanted = (self.ratio * parts.sizes).ceil().long()
        return keep_nodes(data, parts, (rank < wanted[parts.owner]) & arrival.isfinite())

    @staticmethod
    def _arrival(ends: Tensor, waiting: Tensor, root: Tensor) -> Tensor:
        """When each node joins the part of its graph."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import dijkstra

        ends = ends[:, ends[0] != ends[1]]
        row, col = torch.cat([ends, ends.flip(0)], 1)
        weight, place = waiting[col].cpu().numpy(), (row.cpu().numpy(), col.cpu().numpy())
        graph = coo_array((weight, place), shape=(len(waiting), len(waiting))).tocsr()
        return torch.from_numpy(dijkstra(graph, indices=root.cpu().numpy(), min_only=True)).to(waiting.device)
