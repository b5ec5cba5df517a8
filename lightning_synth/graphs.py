"""What graph generators share: batches from flat edges, dense padded graphs, the law of sizes, and attributes.

Inside a model an absent edge is a type of its own: dense edge types are 0 for "no edge" and t + 1 for edge type t of
the data. Outside, ``edge_attr`` holds t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_synth.requests import KeyedRNG, SampleRequests

#: Training nodes and edges kept for drawing attributes.
_KEPT = 100_000
#: Numbers drawn under one key in a ragged draw, and the odd step from key to key (2**64 over the golden ratio).
_BLOCK, _GOLDEN = 32, 0x9E3779B97F4A7C15 - (1 << 64)


def graph_batch(
    num_nodes: Tensor, edges: Tensor, edge_graph: Tensor, *, x: Tensor | None = None, edge_attr: Tensor | None = None
) -> Any:
    """Make a PyG ``Batch`` of simple undirected graphs from one flat list of edges, without a loop over graphs.

    Self-loops and repeated edges are dropped (of repeated ones the first is kept), and both directions are stored.

    Args:
        num_nodes: int64 (graphs,).
        edges: int64 (2, edges), node numbers within their graph, each edge at least once, in any direction.
        edge_graph: int64 (edges,), the graph of each edge.
        x: Node types or features of all graphs one after the other, (sum of num_nodes, ...).
        edge_attr: Types or features of `edges`, (edges, ...).

    Returns:
        A ``Batch`` that `to_data_list` can take apart.

    Example:
        >>> batch = graph_batch(torch.tensor([2, 3]), torch.tensor([[0, 1, 2], [1, 0, 0]]), torch.tensor([0, 0, 1]))
        >>> [graph.edge_index.tolist() for graph in batch.to_data_list()]
        [[[0, 1], [1, 0]], [[0, 2], [2, 0]]]
    """
    start = (num_nodes.cumsum(0) - num_nodes).index_select(0, edge_graph)
    low, high = torch.minimum(edges[0], edges[1]) + start, torch.maximum(edges[0], edges[1]) + start
    total = int(num_nodes.sum())
    # Only pairs are sorted, and ends read off the sorted keys: gathers cost more than sorting.
    key, order = torch.where(low != high, low * total + high, -1).sort(stable=True)
    first = key >= 0
    first[1:] &= key[1:] != key[:-1]
    key, order = key[first], order[first]
    low, high = key // max(total, 1), key % max(total, 1)
    key, twice = torch.cat([key, high * total + low]).sort()
    edge_index = torch.stack([key // max(total, 1), key % max(total, 1)])
    attr = None if edge_attr is None else edge_attr[order].repeat(2, *[1] * (edge_attr.ndim - 1))[twice]
    per_graph = 2 * torch.bincount(edge_graph.index_select(0, order), minlength=len(num_nodes))
    return assemble_batch(num_nodes, edge_index, per_graph, x, attr)


def assemble_batch(
    num_nodes: Tensor, edge_index: Tensor, per_graph: Tensor, x: Tensor | None, attr: Tensor | None
) -> Any:
    """Make a PyG ``Batch`` of arrays that are in its order already.

    Args:
        num_nodes: int64 (graphs,).
        edge_index: int64 (2, edges), numbered through the batch, graph by graph.
        per_graph: int64 (graphs,), edges of each.
        x: Of all nodes, or None.
        attr: Of all edges, or None.

    Returns:
        A ``Batch`` that `to_data_list` can take apart.
    """
    from torch_geometric.data import Batch

    graphs, device = len(num_nodes), edge_index.device
    ptr = torch.cat([num_nodes.new_zeros(1), num_nodes.cumsum(0)])
    edge_ptr = torch.cat([per_graph.new_zeros(1), per_graph.cumsum(0)])
    fields = {"edge_index": edge_index, "x": x, "edge_attr": attr}
    given = {name: value for name, value in fields.items() if value is not None}
    owner = torch.arange(graphs, device=device).repeat_interleave(num_nodes)
    batch = Batch(**given, batch=owner, ptr=ptr)
    # What `Batch.from_data_list` would note, so that graphs and their attributes can be taken apart again.
    batch._num_graphs = graphs
    batch._store.num_nodes = int(ptr[-1])
    batch._store._num_nodes = num_nodes.tolist()
    slices = {"edge_index": edge_ptr, "x": ptr, "edge_attr": edge_ptr}
    steps = {"edge_index": ptr[:-1]}
    zero = torch.zeros(graphs, dtype=torch.int64)
    batch._slice_dict = {name: slices[name].cpu() for name in given}
    batch._inc_dict = {name: steps[name].cpu() if name in steps else zero for name in given}
    return batch


@dataclass
class DenseGraphs:
    """Graphs padded to one size, with categorical nodes and edges.

    Args:
        x: int64 (graphs, n), node types; 0 where the data has none, and on padding.
        e: int64 (graphs, n, n), symmetric; 0 for no edge, t + 1 for edge type t; 0 on the diagonal and padding.
        mask: bool (graphs, n), True for nodes.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("graph", n=4)
        >>> batch = next(iter(data.train_dataloader()))
        >>> dense = DenseGraphs.from_batch(batch)
        >>> again = DenseGraphs.from_batch(dense.to_batch(data.schema))
        >>> bool((again.e == dense.e).all()), dense.mask.sum(1).tolist() == batch.ptr.diff().tolist()
        (True, True)
    """

    x: Tensor
    e: Tensor
    mask: Tensor

    @classmethod
    def from_batch(cls, batch: Any, size: int | None = None) -> DenseGraphs:
        """Lay a PyG ``Batch`` out densely.

        Args:
            batch: With int64 ``x`` and ``edge_attr``, or without; float features are left out.
            size: Nodes to pad to; None takes the largest graph.
        """
        counts = batch.ptr.diff()
        n, device = size or int(counts.max()), batch.edge_index.device
        mask = torch.arange(n, device=device) < counts[:, None]
        x = torch.zeros(len(counts), n, dtype=torch.int64, device=device)
        if batch.get("x") is not None and not batch.x.is_floating_point():
            x[mask] = batch.x.reshape(-1)
        row, col = batch.edge_index
        owner = batch.batch[row]
        e = torch.zeros(len(counts), n, n, dtype=torch.int64, device=device)
        typed = batch.get("edge_attr") is not None and not batch.edge_attr.is_floating_point()
        kind = batch.edge_attr.reshape(-1) + 1 if typed else torch.ones_like(row)
        e[owner, row - batch.ptr[owner], col - batch.ptr[owner]] = kind
        return cls(x, e, mask)

    def to_batch(self, schema: Mapping[str, Any]) -> Any:
        """Make a PyG ``Batch``; types that the schema does not have are left out.

        Args:
            schema: Of the items.
        """
        owner, row, col = self.e.triu(1).nonzero().T
        types = self.e[owner, row, col] - 1
        return graph_batch(
            self.mask.sum(1),
            torch.stack([row, col]),
            owner,
            x=self.x[self.mask] if schema.get("num_node_types") else None,
            edge_attr=types if schema.get("num_edge_types") else None,
        )

    @property
    def pairs(self) -> Tensor:
        """Pairs of two different nodes, bool (graphs, n, n)."""
        both = self.mask[:, :, None] & self.mask[:, None, :]
        return both & ~torch.eye(both.shape[-1], dtype=torch.bool, device=both.device)

    def __len__(self) -> int:
        """Return the number of graphs."""
        return len(self.x)

    def __getitem__(self, rows: Any) -> DenseGraphs:
        """Return some graphs, at the same padding."""
        return DenseGraphs(self.x[rows], self.e[rows], self.mask[rows])


def _labels_of(items: Sequence[Any], num_classes: int) -> Tensor:
    """Class of each graph; 0 where there are none."""
    if not num_classes:
        return torch.zeros(len(items), dtype=torch.int64)
    return torch.tensor([int(item.y) for item in items])


class NodeCounts(nn.Module):
    """The law of graph sizes, for each class.

    Args:
        schema: Of the items (``max_nodes``, ``num_classes``).

    Example:
        >>> from lightning_synth.testing import tiny_graphs, tiny_schema
        >>> sizes = NodeCounts(tiny_schema("graph"))
        >>> sizes.fit(tiny_graphs(16))
        >>> requests = SampleRequests.make(3)
        >>> bool((sizes.draw(requests, KeyedRNG(requests.seed)) >= 5).all())
        True
    """

    counts: Tensor

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self.num_classes = int(schema.get("num_classes") or 0)
        shape = (max(self.num_classes, 1), int(schema["max_nodes"]) + 1)
        counts = torch.zeros(shape)
        # Until the training items have been seen: the law of all classes together, which the schema has.
        for size, count in schema.get("node_counts", {}).items():
            counts[:, int(size)] = count
        self.register_buffer("counts", counts)

    def fit(self, items: Sequence[Any]) -> None:
        """Count sizes.

        Args:
            items: Training graphs.
        """
        labels = _labels_of(items, self.num_classes)
        sizes = torch.tensor([int(item.num_nodes) for item in items])
        self.counts.zero_()
        self.counts.index_put_(
            (labels.to(self.counts.device), sizes.to(self.counts.device)),
            torch.ones(len(items), device=self.counts.device),
            accumulate=True,
        )

    def draw(self, requests: SampleRequests, rng: KeyedRNG) -> Tensor:
        """Draw a size for each row, from the training graphs of its class.

        Args:
            requests: With or without ``label``.
            rng: One seed a row.

        Returns:
            int64 (rows,).
        """
        counts = self.counts.sum(0, keepdim=True) if "label" not in requests.condition else self.counts
        label = requests.condition.get("label", torch.zeros_like(requests.index)) if len(counts) > 1 else None
        law = counts[label] if label is not None else counts.expand(len(requests), -1)
        # A class without training graphs has the sizes of all.
        law = torch.where(law.sum(1, keepdim=True) > 0, law, self.counts.sum(0))
        bounds = law.double().cumsum(1)
        u = rng.fork("num_nodes").uniform(()).double() * bounds[:, -1]
        return torch.searchsorted(bounds, u[:, None], right=True)[:, 0].clamp(max=law.shape[1] - 1)


class Attributes(nn.Module):
    """Node and edge attributes for generators that only make structure: drawn from training nodes of like degree.

    A node of degree d gets the type or the features of a random training node of the same class and of degree d (of the
    nearest degree that exists); an edge gets those of a random training edge between nodes of the same two types.

    Args:
        schema: Of the items.

    Example:
        >>> from torch_geometric.data import Data
        >>> graph = Data(edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), x=torch.tensor([0, 1, 0]), num_nodes=3)
        >>> schema = {"num_node_types": 2, "max_nodes": 3}
        >>> attributes = Attributes(schema)
        >>> attributes.fit([graph])
        >>> star = graph_batch(torch.tensor([3]), torch.tensor([[0, 0], [1, 2]]), torch.tensor([0, 0]))
        >>> attributes.attach(star, SampleRequests.make(1), KeyedRNG(torch.tensor([0]))).x.tolist()
        [1, 0, 0]
    """

    node_key: Tensor
    node_value: Tensor
    edge_key: Tensor
    edge_value: Tensor

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self.num_classes = int(schema.get("num_classes") or 0)
        self.node_types, self.node_width = schema.get("num_node_types") or 0, schema.get("num_node_features") or 0
        self.edge_types, self.edge_width = schema.get("num_edge_types") or 0, schema.get("num_edge_features") or 0
        for name in ("node_key", "node_value", "edge_key", "edge_value"):
            self.register_buffer(name, torch.zeros(0))

    @property
    def needed(self) -> bool:
        """Whether the items have attributes at all."""
        return bool(self.node_types or self.node_width or self.edge_types or self.edge_width)

    def fit(self, items: Sequence[Any]) -> None:
        """Keep the attributes of the training nodes and edges, sorted by what they are looked up by.

        Args:
            items: Training graphs.
        """
        if not self.needed:
            return
        degree = torch.cat([torch.bincount(item.edge_index[0], minlength=item.num_nodes) for item in items])
        label = _labels_of(items, self.num_classes)
        if self.node_types or self.node_width:
            sizes = torch.tensor([int(item.num_nodes) for item in items])
            values = torch.cat([item.x for item in items])
            self._keep("node", self._node_key(label.repeat_interleave(sizes), degree), values)
        if self.edge_types or self.edge_width:
            ends = torch.cat([self._ends(item.get("x"), item.edge_index) for item in items])
            self._keep("edge", ends, torch.cat([item.edge_attr for item in items]))

    def _node_key(self, label: Tensor, degree: Tensor) -> Tensor:
        return label * (1 << 32) + degree

    def _ends(self, x: Tensor | None, edge_index: Tensor) -> Tensor:
        """Key of an edge: the types of its ends, smaller one first."""
        if x is None or not self.node_types:
            return torch.zeros_like(edge_index[0])
        ends = x.reshape(-1)[edge_index]
        return ends.amin(0) * self.node_types + ends.amax(0)

    def _keep(self, name: str, key: Tensor, value: Tensor) -> None:
        if len(key) > _KEPT:
            part = torch.arange(_KEPT) * len(key) // _KEPT
            key, value = key[part], value[part]
        order = key.argsort(stable=True)
        device = self.node_key.device
        setattr(self, f"{name}_key", key[order].to(device))
        setattr(self, f"{name}_value", value[order].to(device))

    def attach(self, batch: Any, requests: SampleRequests, rng: KeyedRNG) -> Any:
        """Give a batch of structures the attributes of the schema that it lacks.

        Args:
            batch: PyG ``Batch``.
            requests: One row a graph.
            rng: One seed a row.

        Returns:
            The same batch.
        """
        counts = batch.ptr.diff()
        if (self.node_types or self.node_width) and batch.get("x") is None:
            label = requests.condition.get("label", torch.zeros_like(counts)) if self.num_classes else 0 * counts
            degree = torch.bincount(batch.edge_index[0], minlength=int(batch.ptr[-1]))
            key = self._node_key(label.repeat_interleave(counts), degree)
            u = ragged_uniform(rng.fork("node attributes"), counts)
            self._add(batch, "x", self.node_value[self._lookup(self.node_key, key, u)], batch.ptr)
        if (self.edge_types or self.edge_width) and batch.get("edge_attr") is None:
            self._attach_edges(batch, rng)
        return batch

    def _attach_edges(self, batch: Any, rng: KeyedRNG) -> None:
        row, col = batch.edge_index
        per_graph = torch.bincount(batch.batch[row], minlength=len(batch.ptr) - 1)
        u = ragged_uniform(rng.fork("edge attributes"), per_graph)
        key = self._ends(batch.get("x"), batch.edge_index)
        value = self.edge_value[self._lookup(self.edge_key, key, u)]
        # Both directions of an edge carry the attribute drawn for the one from the smaller node.
        number = row * int(batch.ptr[-1]) + col
        back = torch.searchsorted(number, col * int(batch.ptr[-1]) + row)
        value = torch.where((row < col).reshape(-1, *[1] * (value.ndim - 1)), value, value[back])
        edge_ptr = torch.cat([per_graph.new_zeros(1), per_graph.cumsum(0)])
        self._add(batch, "edge_attr", value, edge_ptr)

    @staticmethod
    def _lookup(keys: Tensor, key: Tensor, u: Tensor) -> Tensor:
        """Row of a random kept entry with this key, or with the nearest one."""
        place = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
        before = (place - 1).clamp(min=0)
        nearer = (keys[before] - key).abs() < (keys[place] - key).abs()
        key = keys[torch.where(nearer, before, place)]
        low, high = torch.searchsorted(keys, key), torch.searchsorted(keys, key, right=True)
        return low + (u * (high - low)).long().clamp(max=high - low - 1)

    @staticmethod
    def _add(batch: Any, name: str, value: Tensor, slices: Tensor) -> None:
        batch[name] = value
        batch._slice_dict[name] = slices.cpu()
        batch._inc_dict[name] = torch.zeros(len(slices) - 1, dtype=torch.int64)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take buffers of any length."""
        for name in ("node_key", "node_value", "edge_key", "edge_value"):
            if prefix + name in state_dict:
                setattr(self, name, state_dict[prefix + name].to(self.node_key.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def ragged_words(rng: KeyedRNG, counts: Tensor) -> Tensor:
    """Draw ``counts[i]`` random 31-bit integers from the stream of row i, without padding.

    The j-th number of a row depends on the row's seed, the draw and j alone, not on the counts of any row.

    Args:
        rng: One seed a row.
        counts: int64 (rows,).

    Returns:
        int64 (sum of counts,) in [0, 2**31), row after row.

    Example:
        >>> few, many = (ragged_words(KeyedRNG(torch.tensor([1])), torch.tensor([n])) for n in (2, 500))
        >>> bool((few == many[:2]).all())
        True
    """
    # Every block of numbers has a key of its own, counted on from one that this draw has given the row.
    blocks = (counts + _BLOCK - 1) // _BLOCK
    low, high = rng.integers(1 << 31, (2,)).unbind(-1)
    first = blocks.cumsum(0) - blocks
    row = torch.arange(len(counts), device=counts.device).repeat_interleave(blocks)
    number = torch.arange(len(row), device=counts.device) - first[row]
    words = KeyedRNG((high << 31 | low)[row] + number * _GOLDEN).integers(1 << 31, (_BLOCK,))
    wanted = (counts[row] - number * _BLOCK)[:, None] > torch.arange(_BLOCK, device=counts.device)
    return words.masked_select(wanted)


def ragged_uniform(rng: KeyedRNG, counts: Tensor) -> Tensor:
    """Draw ``counts[i]`` uniform numbers from the stream of row i, as `ragged_words`.

    Args:
        rng: One seed a row.
        counts: int64 (rows,).

    Returns:
        float32 in [0, 1) (sum of counts,), row after row.

    Example:
        >>> rng = KeyedRNG(torch.tensor([1, 2]))
        >>> ragged_uniform(rng, torch.tensor([1, 3])).shape
        torch.Size([4])
    """
    return (ragged_words(rng, counts) >> 7).float() * 2.0**-24


__all__ = ["Attributes", "DenseGraphs", "NodeCounts", "graph_batch", "ragged_uniform", "ragged_words"]
