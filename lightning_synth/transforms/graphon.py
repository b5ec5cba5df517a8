"""G-Mixup: graphs drawn from a mixture of the graphons of two classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.graphs import graph_batch, ragged_uniform
from lightning_synth.requests import KeyedRNG, mix_seed
from lightning_synth.transforms.mixup import GraphMixup, pick, with_label
from lightning_synth.transforms.parts import distinct_below, keep_marks, triangle_of

# Finest graphon by default.
_MOST_STEPS = 128
# Threshold of singular values, in units of the noise (universal singular value thresholding, Chatterjee 2015).
_USVT = 2.02


class GMixup(GraphMixup):
    """Put a graph drawn from the mixed graphons of two classes in the place of each graph.

    Han et al. 2022 (arXiv 2202.07179, section 4). The graphon of a class is the mean of its graphs' step
    functions, nodes sorted by degree, at one resolution, freed of noise by singular value thresholding. (The paper's
    threshold does not count how much was averaged, which empties small and sparse graphons; here it does.) A graph of
    class a becomes a graph of as many nodes, with edges from ``(1 - w) W_a + w W_b`` for another class b and w uniform
    in ``share``, and the label ``1 - w`` of a and ``w`` of b. The features or types of a node are those of a training
    node of class a (with probability w: b) at the same place in the order of degrees, those of an edge are those of any
    training edge of class a: what a node has is then what real nodes have. Work is linear in nodes and edges.

    Args:
        share: Range of w, the share of the other class.
        resolution: Steps of the graphon; None: the median number of nodes, at most 128.
        seed: As `GraphTransform`.

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> graph = GMixup().fit(tiny_graphs(16))(tiny_graphs(1)[0])
        >>> graph.y.shape, round(float(graph.y.sum()), 3), graph.is_undirected()
        (torch.Size([1, 2]), 1.0, True)
    """

    def __init__(
        self, share: tuple[float, float] = (0.1, 0.2), *, resolution: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(seed)
        if len(share) != 2 or not 0 <= share[0] <= share[1] <= 1:
            raise ConfigError(f"share must be (low, high) with 0 <= low <= high <= 1, got {share}")
        if resolution is not None and resolution < 1:
            raise ConfigError(f"resolution must be at least 1, got {resolution}")
        self.share, self.resolution = tuple(share), resolution

    def learn(self, graphs: list[Any]) -> None:
        """Estimate the graphon of each class.

        Args:
            graphs: Training graphs.
        """
        sizes = torch.tensor([int(graph.num_nodes) for graph in graphs])
        if not int(sizes.min()):
            raise DataError(f"training graph {int(sizes.argmin())} has 0 nodes")
        self._steps = steps = self.resolution or min(int(sizes.median()), _MOST_STEPS)
        labels = self.training_labels()
        self._sizes, self._classes = sizes, labels.unique()
        if len(self._classes) < 2:
            raise DataError("all training graphs are of one class: there is nothing to mix")
        self._graphon = torch.zeros(self._num_classes, steps, steps)
        for label in self._classes.tolist():
            own = [graph for graph, y in zip(graphs, labels.tolist(), strict=True) if y == label]
            self._graphon[label] = torch.from_numpy(_graphon(own, steps))
        places = torch.cat([_places(graph) for graph in graphs])
        # Classes lie two apart, so that the nearest place is one of the same class.
        self._node_key, order = (2 * labels.repeat_interleave(sizes) + places).sort()
        edges = torch.tensor([graph.num_edges for graph in graphs])
        self._edge_key, edge_order = labels.repeat_interleave(edges).sort(stable=True)
        self._x, self._edge_attr = (
            None if graphs[0].get(name) is None else torch.cat([graph[name] for graph in graphs])[sorted_]
            for name, sorted_ in (("x", order), ("edge_attr", edge_order))
        )

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Draw a mixed graph for each graph.

        Args:
            data: A graph or batch.
            rng: One seed a graph.
        """
        label = self.labels_of(data).cpu()
        if not bool(torch.isin(label, self._classes).all()):
            raise DataError(f"the training graphs have classes {self._classes.tolist()} alone, not {label.tolist()}")
        ptr = data.get("ptr")
        sizes = torch.tensor([int(data.num_nodes)]) if ptr is None else ptr.diff().cpu()
        batch = self._draw(sizes, label, KeyedRNG(rng.seed, rng.stream, device="cpu")).to(data.edge_index.device)
        keep_marks(batch, data)
        return batch if ptr is not None else batch.to_data_list()[0]

    def sample(self, n: int, seed: int = 0) -> list[Any]:
        """Draw graphs of the sizes and classes of random training graphs.

        Args:
            n: How many.
            seed: Of them.

        Returns:
            PyG ``Data``.
        """
        labels = self.training_labels()
        if n < 1:
            raise ConfigError(f"n must be at least 1, got {n}")
        rng = KeyedRNG((mix_seed(self.seed, seed) >> 1) + torch.arange(n))
        which = pick(rng.fork("graph"), torch.full((n,), len(labels)))
        graphs: list[Any] = self._draw(self._sizes[which], labels[which], rng).to_data_list()
        return graphs

    def _draw(self, sizes: Tensor, label: Tensor, rng: KeyedRNG) -> Any:
        share = self.share[0] + (self.share[1] - self.share[0]) * rng.fork("share").uniform(())
        # Another class: a step of 1..k-1 from the own one in the list of classes.
        own = torch.searchsorted(self._classes, label)
        step = 1 + pick(rng.fork("class"), torch.full_like(label, len(self._classes) - 1))
        other = self._classes[(own + step) % len(self._classes)]
        owner = torch.arange(len(sizes)).repeat_interleave(sizes)
        place = ragged_uniform(rng.fork("place"), sizes)
        # Nodes are alike before they have a place, so they may stand in its order.
        place = place[(2 * owner + place.double()).argsort()]
        step = torch.bincount(owner * self._steps + (place * self._steps).long(), minlength=len(sizes) * self._steps)
        law = torch.lerp(self._graphon[label], self._graphon[other], share[:, None, None])
        edge_owner, ends = _edges(step.reshape(len(sizes), -1), law, rng.fork("edges"))
        x = edge_attr = None
        if self._x is not None:
            cls = torch.where(ragged_uniform(rng.fork("x"), sizes) < share[owner], other[owner], label[owner])
            x = self._x[_nearest(self._node_key, 2 * cls + place)]
        if self._edge_attr is not None and len(self._edge_attr):
            u = ragged_uniform(rng.fork("edge_attr"), torch.bincount(edge_owner, minlength=len(sizes)))
            low = torch.searchsorted(self._edge_key, label[edge_owner])
            high = torch.searchsorted(self._edge_key, label[edge_owner], right=True)
            place_ = (low + (u * (high - low)).long()).clamp(max=len(self._edge_key) - 1)
            edge_attr = self._edge_attr[place_]
        batch = graph_batch(sizes, ends, edge_owner, x=x, edge_attr=edge_attr)
        return with_label(batch, torch.lerp(self.soft(label), self.soft(other), share[:, None]))


def _places(graph: Any) -> Tensor:
    """Where each node stands in the order of falling degree, in (0, 1)."""
    nodes = int(graph.num_nodes)
    degree = torch.bincount(graph.edge_index[0].cpu(), minlength=nodes)
    place = torch.empty(nodes, dtype=torch.float64)
    place[degree.argsort(descending=True, stable=True)] = (torch.arange(nodes) + 0.5).double() / nodes
    return place


def _graphon(graphs: list[Any], steps: int) -> np.ndarray:
    """Mean step function of graphs sorted by degree, without noise."""
    from scipy.sparse import coo_array

    mean = np.zeros((steps, steps))
    for graph in graphs:
        nodes = int(graph.num_nodes)
        rank = (_places(graph) * nodes).long().numpy()
        row, col = rank[graph.edge_index.cpu().numpy()]
        adjacency = coo_array((np.ones(len(row)), (row, col)), shape=(nodes, nodes)).tocsr()
        adjacency.data = np.minimum(adjacency.data, 1)
        overlap = _overlap(steps, nodes)
        mean += (overlap @ adjacency @ overlap.T).toarray() / len(graphs)
    u, s, v = np.linalg.svd(mean)
    # Largest singular value of the noise of so many 0-1 matrices, averaged down, or repeated up, to these steps.
    scale = steps / np.array([int(graph.num_nodes) for graph in graphs])
    variance = (mean * (1 - mean)).max() * (np.minimum(scale, np.sqrt(scale)) ** 2).mean() / len(graphs)
    noise = np.sqrt(steps * variance)
    s = np.where(s >= _USVT * noise, s, 0)
    estimate: np.ndarray = ((u * s) @ v).clip(0, 1).astype(np.float32)
    return estimate


def _overlap(steps: int, nodes: int) -> Any:
    """How much of each of ``steps`` equal parts of [0, 1] lies in each of ``nodes`` ones, CSR (steps, nodes)."""
    from scipy.sparse import csr_array

    # In units that make all borders integers.
    borders = np.union1d(np.arange(steps + 1) * nodes, np.arange(nodes + 1) * steps)
    start, length = borders[:-1], np.diff(borders)
    return csr_array((length / nodes, (start // nodes, start // steps)), shape=(steps, nodes))


def _edges(counts: Tensor, law: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
    """Join the nodes of each two steps of a graph with their probability, without going through all pairs of nodes.

    Args:
        counts: int64 (graphs, steps), nodes of each step, which lie one after the other.
        law: float32 (graphs, steps, steps).
        rng: One seed a graph.

    Returns:
        The graph of each edge, and its ends numbered within the graph.
    """
    from scipy.stats import binom

    steps = counts.shape[1]
    a, b = torch.triu_indices(steps, steps)
    pairs = torch.where(a == b, counts[:, a] * (counts[:, a] - 1) // 2, counts[:, a] * counts[:, b])
    words = rng.integers(1 << 31, (3, len(a)))
    graph, cell = ((pairs > 0) & (law[:, a, b] > 0)).nonzero(as_tuple=True)
    a, b, pairs, words = a[cell], b[cell], pairs[graph, cell], words[graph, :, cell]
    u = (words[:, 0].double() + 0.5) * 2.0**-31
    edges = torch.from_numpy(binom.ppf(u.numpy(), pairs.numpy(), law[graph, a, b].double().numpy())).long()
    # As many different pairs of the cell: every cell has a seed of its own.
    number = distinct_below(KeyedRNG(words[:, 1] << 31 | words[:, 2]), edges, pairs)
    owner = torch.arange(len(edges)).repeat_interleave(edges)
    number = number - (pairs.cumsum(0) - pairs)[owner]
    graph, a, b = graph[owner], a[owner], b[owner]
    triangle, width = triangle_of(number), counts[graph, b]
    low = torch.where(a == b, triangle[0], number // width)
    high = torch.where(a == b, triangle[1], number % width)
    start = counts.cumsum(1) - counts
    return graph, torch.stack([start[graph, a] + low, start[graph, b] + high])


def _nearest(keys: Tensor, key: Tensor) -> Tensor:
    """Position of the nearest of some sorted keys."""
    right = torch.searchsorted(keys, key.to(keys.dtype)).clamp(1, len(keys) - 1) if len(keys) > 1 else 0 * key.long()
    left = (right - 1).clamp(min=0)
    return torch.where((key - keys[left]).abs() <= (keys[right] - key).abs(), left, right)
