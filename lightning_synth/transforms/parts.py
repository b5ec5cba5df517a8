"""A graph or a batch of graphs taken apart and put together again, with everything that hangs on nodes and edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import DataError
from lightning_synth.graphs import ragged_words
from lightning_synth.requests import KeyedRNG

_STRUCTURE = ("edge_index", "num_nodes", "batch", "ptr")


def num_graphs(data: Any) -> int:
    """Count the graphs of a ``Batch``; a ``Data`` is one."""
    return int(data.num_graphs) if data.get("ptr") is not None else 1


@dataclass
class Parts:
    """Sizes of the graphs of a batch, and which attributes belong to nodes and which to edges.

    Args:
        sizes: int64 (graphs,), nodes of each graph.
        owner: int64 (nodes,), the graph of each node.
        node: Names of node attributes.
        edge: Names of edge attributes.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> sorted(Parts.of(tiny_node()).node)
        ['test_mask', 'train_mask', 'val_mask', 'x', 'y']
    """

    sizes: Tensor
    owner: Tensor
    node: list[str]
    edge: list[str]

    @classmethod
    def of(cls, data: Any) -> Parts:
        """Take a graph or a batch apart.

        Args:
            data: PyG ``Data`` or ``Batch``.

        Raises:
            DataError: If edges name nodes that are not there, or an edge attribute is of another length.
        """
        edges, nodes = data.edge_index, int(data.num_nodes or 0)
        if edges is None or edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
            raise DataError("edge_index must be int64 (2, edges)")
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
            wrong = int(edges.min()) if int(edges.min()) < 0 else int(edges.max())
            raise DataError(f"edge_index names node {wrong}, but there are {nodes} nodes")
        for name in ("edge_attr", "edge_weight"):
            if data.get(name) is not None and len(data[name]) != edges.shape[1]:
                raise DataError(f"{len(data[name])} rows of {name} for {edges.shape[1]} edges")
        ptr = data.get("ptr")
        sizes = ptr.diff() if ptr is not None else torch.tensor([nodes], device=edges.device)
        owner = torch.arange(len(sizes), device=edges.device).repeat_interleave(sizes)
        names = [name for name in data.keys() if name not in _STRUCTURE and isinstance(data[name], Tensor)]
        node = [name for name in names if data.is_node_attr(name) and _fits(data, name, sizes)]
        # A label is never one of an edge, even in a graph of a single edge.
        edge = [name for name in names if data.is_edge_attr(name) and _fits(data, name, None) and name != "y"]
        return cls(sizes, owner, node, edge)

    def start(self) -> Tensor:
        """First node of each graph, int64 (graphs,)."""
        return self.sizes.cumsum(0) - self.sizes


def _fits(data: Any, name: str, sizes: Tensor | None) -> bool:
    """Whether every graph of a batch has as many rows of an attribute as nodes or edges: a label a graph has not."""
    slices = _table(data, "_slice_dict")
    if name not in slices or "edge_index" not in slices:
        return True
    wanted = slices["edge_index"].diff() if sizes is None else sizes.cpu()
    return bool((slices[name].diff().cpu() == wanted).all())


def _table(data: Any, name: str) -> dict[str, Tensor]:
    """What a batch notes about its attributes; nothing for a graph, or for a batch made by hand."""
    return getattr(data, name, None) or {}


def keep_nodes(data: Any, parts: Parts, keep: Tensor) -> Any:
    """Keep some nodes, with what belongs to them, and the edges among them; nodes are numbered anew in order.

    Args:
        data: A shallow copy, which is changed.
        parts: Of it.
        keep: bool (nodes,).

    Returns:
        The same object.
    """
    number = keep.cumsum(0) - 1
    stays = keep[data.edge_index].all(0)
    for name in parts.node:
        data[name] = data[name][keep]
    owner = parts.owner[keep]
    parts.sizes = torch.bincount(owner, minlength=len(parts.sizes))
    parts.owner = owner
    data.num_nodes = len(owner)
    if data.get("ptr") is not None:
        data.batch, data.ptr = owner, torch.cat([parts.sizes.new_zeros(1), parts.sizes.cumsum(0)])
        data._store._num_nodes = parts.sizes.tolist()
        data._slice_dict = _table(data, "_slice_dict") | {name: data.ptr.cpu() for name in parts.node}
    return set_edges(data, parts, number[data.edge_index[:, stays]], {n: data[n][stays] for n in parts.edge})


def set_edges(data: Any, parts: Parts, edge_index: Tensor, fields: Mapping[str, Tensor]) -> Any:
    """Give a graph or a batch other edges.

    Args:
        data: A shallow copy, which is changed.
        parts: Of it.
        edge_index: int64 (2, edges), in any order.
        fields: All edge attributes, (edges, ...); others that the graph has are removed.

    Returns:
        The same object.
    """
    if data.get("ptr") is not None:
        # In a batch the edges of a graph lie together.
        graph, order = parts.owner[edge_index[0]].sort(stable=True)
        edge_index, fields = edge_index[:, order], {name: value[order] for name, value in fields.items()}
        slices = torch.bincount(graph, minlength=len(parts.sizes)).cumsum(0).cpu()
        slices = torch.cat([slices.new_zeros(1), slices])
        start, none = parts.start().cpu(), torch.zeros(len(parts.sizes), dtype=torch.int64)
        data._slice_dict = _table(data, "_slice_dict") | dict.fromkeys(("edge_index", *fields), slices)
        data._inc_dict = _table(data, "_inc_dict") | dict.fromkeys(fields, none) | {"edge_index": start}
    for name in set(parts.edge) - set(fields):
        del data[name]
    data.edge_index = edge_index
    for name, value in fields.items():
        data[name] = value
    parts.edge = list(fields)
    return data


def keep_marks(batch: Any, source: Any) -> Any:
    """Carry over what was put on a batch as a whole, one row a graph, such as the provenance of a mixture.

    Args:
        batch: A new batch of as many graphs, which is changed.
        source: The batch that it was made of.

    Returns:
        The new batch.
    """
    for name in source.keys() if source.get("ptr") is not None else ():
        if name not in batch and name not in (*_table(source, "_slice_dict"), *_STRUCTURE):
            batch[name] = source[name]
    return batch


@dataclass
class Pairs:
    """The edges of an undirected graph, both directions of which are one; or those of a directed graph.

    They are sorted, so that what is drawn for them does not depend on the order in which edges are stored.

    Args:
        ends: int64 (2, pairs); of an undirected graph the smaller end first.
        graph: int64 (pairs,), ascending.
        member: int64 (edges,), the pair of each stored edge.
        undirected: Whether every edge is there in both directions.

    Example:
        >>> from torch_geometric.data import Data
        >>> graph = Data(edge_index=torch.tensor([[0, 1, 2, 1], [1, 0, 1, 2]]), num_nodes=3)
        >>> pairs = Pairs.of(graph, Parts.of(graph))
        >>> pairs.ends.tolist(), pairs.member.tolist(), pairs.undirected
        ([[0, 1], [1, 2]], [0, 0, 1, 1], True)
    """

    ends: Tensor
    graph: Tensor
    member: Tensor
    undirected: bool

    @classmethod
    def of(cls, data: Any, parts: Parts, undirected: bool | None = None) -> Pairs:
        """Find the pairs.

        Args:
            data: PyG ``Data`` or ``Batch``.
            parts: Of it.
            undirected: Treat both directions as one; None: if every edge is there in both.
        """
        (row, col), nodes = data.edge_index, max(len(parts.owner), 1)
        if undirected is not False:
            found = cls._grouped(torch.minimum(row, col) * nodes + torch.maximum(row, col), nodes, parts, True)
            balance = torch.zeros(found.ends.shape[1], dtype=torch.int64, device=row.device)
            balance.index_add_(0, found.member, (col - row).sign())
            if undirected or not bool(balance.any()):
                return found
        return cls._grouped(row * nodes + col, nodes, parts, False)

    @classmethod
    def _grouped(cls, key: Tensor, nodes: int, parts: Parts, undirected: bool) -> Pairs:
        key, member = key.unique(return_inverse=True)
        ends = torch.stack([key // nodes, key % nodes])
        return cls(ends, parts.owner[ends[0]], member, undirected)

    def counts(self, parts: Parts) -> Tensor:
        """Pairs of each graph, int64 (graphs,)."""
        return torch.bincount(self.graph, minlength=len(parts.sizes))

    def first(self) -> Tensor:
        """The first stored edge of each pair, int64 (pairs,)."""
        edges = torch.arange(len(self.member), device=self.member.device)
        none = torch.full_like(self.graph, len(edges))
        return none.scatter_reduce(0, self.member, edges, "amin")


def ragged_below(rng: KeyedRNG, counts: Tensor, high: Tensor) -> Tensor:
    """Draw ``counts[i]`` integers in [0, high[i]) from the stream of row i; ``high`` may be up to 2**53.

    Args:
        rng: One seed a row.
        counts: int64 (rows,).
        high: int64 (rows,).

    Returns:
        int64 (sum of counts,), row after row.
    """
    words = [ragged_words(rng.fork(name), counts) for name in ("high", "low")]
    unit = (words[0] << 22 | words[1] >> 9).double() * 2.0**-53
    bound = high.repeat_interleave(counts)
    return torch.minimum((unit * bound).long(), bound - 1)


def distinct_below(rng: KeyedRNG, counts: Tensor, high: Tensor) -> Tensor:
    """Draw ``counts[i]`` different integers in [0, high[i]) for each row.

    Args:
        rng: One seed a row.
        counts: int64 (rows,), at most ``high``.
        high: int64 (rows,).

    Returns:
        int64 (sum of counts,), row after row, ascending within a row, shifted by the sum of ``high`` of earlier rows.

    Example:
        >>> distinct_below(KeyedRNG(torch.tensor([1, 2])), torch.tensor([3, 2]), torch.tensor([3, 2])).tolist()
        [0, 1, 2, 3, 4]
    """
    # Where more than half are wanted, those that are left out are drawn.
    inverted = 2 * counts > high
    wanted = torch.where(inverted, high - counts, counts)
    start = high.cumsum(0) - high
    found, left, tries = counts.new_zeros(0), wanted, 0
    while bool(left.any()):
        drawn = ragged_below(rng.fork(tries), left, high) + start.repeat_interleave(left)
        found = torch.cat([found, drawn]).unique()
        row = torch.searchsorted(start, found, right=True) - 1
        left, tries = wanted - torch.bincount(row, minlength=len(high)), tries + 1
    if not bool(inverted.any()):
        return found
    whole = torch.where(inverted, high, 0)
    row = torch.arange(len(high), device=high.device).repeat_interleave(whole)
    every = start[row] + torch.arange(len(row), device=high.device) - (whole.cumsum(0) - whole)[row]
    owner = torch.searchsorted(start, found, right=True) - 1
    return torch.cat([found[~inverted[owner]], every[~torch.isin(every, found)]]).sort()[0]


def absent_pairs(pairs: Pairs, parts: Parts, wanted: Tensor, rng: KeyedRNG, self_loops: bool = False) -> Tensor:
    """Draw pairs of nodes that are not joined, each as likely as any other, in time linear in nodes and edges.

    Args:
        pairs: That there are.
        parts: Of the graphs.
        wanted: int64 (graphs,); fewer are drawn where there are not so many.
        rng: One seed a graph.
        self_loops: Whether a node may be joined with itself.

    Returns:
        int64 (2, pairs), sorted by graph.
    """
    # All pairs of a graph are numbered; the j-th of the absent ones is found by bisection among those that are there.
    sizes, start = parts.sizes, parts.start()
    total = sizes * (sizes + 1) // 2 if pairs.undirected else sizes * sizes
    base = total.cumsum(0) - total
    nodes = torch.arange(len(parts.owner), device=sizes.device) - start[parts.owner]
    ends, graph = pairs.ends - start[pairs.graph], pairs.graph
    if not self_loops:
        ends, graph = torch.cat([ends, torch.stack([nodes, nodes])], 1), torch.cat([graph, parts.owner])
    numbers = ends[1] * (ends[1] + 1) // 2 + ends[0] if pairs.undirected else ends[0] * sizes[graph] + ends[1]
    taken = (base[graph] + numbers).unique()
    room = total - torch.bincount(torch.searchsorted(base, taken, right=True) - 1, minlength=len(sizes))
    chosen = distinct_below(rng, torch.minimum(wanted, room), room)
    number = chosen + torch.searchsorted(taken - torch.arange(len(taken), device=taken.device), chosen, right=True)
    graph = torch.searchsorted(base, number, right=True) - 1
    number = number - base[graph]
    if not pairs.undirected:
        return torch.stack([number // sizes[graph], number % sizes[graph]]) + start[graph]
    # With loops the larger end is one less in the numbering of pairs low < high.
    low, high = triangle_of(number)
    return torch.stack([low, high - 1]) + start[graph]


def triangle_of(number: Tensor) -> Tensor:
    """Return the ends low < high of the pairs (0, 1), (0, 2), (1, 2), (0, 3), ... by their number, int64 (2, pairs).

    Example:
        >>> triangle_of(torch.arange(4)).tolist()
        [[0, 0, 1, 0], [1, 2, 2, 3]]
    """
    high = ((1 + (1 + 8 * number.double()).sqrt()) / 2).long()
    # The root is rounded: beyond 2**52 it can be one off either way.
    high = high - (high * (high - 1) // 2 > number).long()
    high = high + (high * (high + 1) // 2 <= number).long()
    return torch.stack([number - high * (high - 1) // 2, high])
