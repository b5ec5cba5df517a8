"""What the generators of nodes share: whom to copy how often, neighbours to draw from, and how nodes are appended."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_synth.bank import ItemBank
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.generator import Generator
from lightning_synth.plugins.graph.edges import segments
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.schema import collate

Target = Literal["max", "mean"] | int
#: Edges that a decoder is trained on in one step.
_EDGES = 1 << 16
_MASKS, _MARKS = ("train_mask", "val_mask", "test_mask"), ("is_synthetic", "edge_is_synthetic")


class Neighbours:
    """The nodes that each node hears: sources of its incoming edges, without loops, in compressed rows.

    Args:
        edge_index: int64 (2, edges), messages go from row 0 to row 1.
        num_nodes: Nodes.

    Example:
        >>> near = Neighbours(torch.tensor([[0, 2, 1], [1, 1, 0]]), 3)
        >>> near.degree, near.of(torch.tensor([1, 0]))[:2]
        (tensor([1, 2, 0]), (tensor([0, 0, 1]), tensor([0, 2, 1])))
    """

    def __init__(self, edge_index: Tensor, num_nodes: int) -> None:
        edge = (edge_index[0] != edge_index[1]).nonzero()[:, 0]
        source, target = edge_index[:, edge]
        order = (target * num_nodes + source).argsort(stable=True)
        self.source, self.edge = source[order], edge[order]
        self.degree = torch.bincount(target, minlength=num_nodes)
        self.start = self.degree.cumsum(0) - self.degree

    def of(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """List the neighbours of some nodes.

        Args:
            nodes: int64 (rows,).

        Returns:
            Row, neighbour and number of the edge, int64 (sum of degrees,) each.
        """
        row, place = segments(self.degree[nodes])
        at = self.start[nodes][row] + place
        return row, self.source[at], self.edge[at]

    def step(self, nodes: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Go to a random neighbour, or stay where there is none.

        Args:
            nodes: int64 (walks,).
            u: float in [0, 1), one for each walk.

        Returns:
            The new node and the number of the edge (-1: stayed).
        """
        degree = self.degree[nodes]
        if not len(self.source):
            return nodes, torch.full_like(nodes, -1)
        place = (u.double() * degree).long().minimum((degree - 1).clamp(min=0))
        at = (self.start[nodes] + place).clamp(max=len(self.source) - 1)
        return torch.where(degree > 0, self.source[at], nodes), torch.where(degree > 0, self.edge[at], -1)


@dataclass
class NewNodes:
    """Nodes to append to a graph, and the edges that come to them.

    Args:
        source: int64 (new,), the training node whose label and other attributes each one takes over.
        x: float (new, features), or None to take over the features too.
        row: int64 (edges,), the new node that each edge comes to, counted from 0.
        neighbour: int64 (edges,), the node it comes from.
        edge: int64 (edges,), the edge whose attributes it takes over.
    """

    source: Tensor
    x: Tensor | None
    row: Tensor
    neighbour: Tensor
    edge: Tensor


def append_nodes(data: Any, new: NewNodes, directed: bool = False) -> Any:
    """Append synthetic training nodes to a graph.

    Args:
        data: PyG ``Data``.
        new: What to append.
        directed: Edges lead to the new nodes only; False stores both directions.

    Returns:
        A new ``Data``: original nodes and edges first, with unchanged ids; ``is_synthetic`` (nodes,) and
        ``edge_is_synthetic`` (edges,) mark what was added; new nodes are in the training mask alone.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> data, one = tiny_node(), torch.tensor([0])
        >>> grown = append_nodes(data, NewNodes(torch.tensor([3]), None, one, torch.tensor([5]), one))
        >>> grown.num_nodes, grown.edge_index[:, -2:].tolist(), bool(grown.y[30] == data.y[3])
        (31, [[5, 30], [30, 5]], True)
    """
    nodes, edges = int(data.num_nodes), int(data.edge_index.shape[1])
    coming = torch.stack([new.neighbour, nodes + new.row])
    added = coming if directed else torch.cat([coming, coming.flip(0)], 1)
    like = new.edge if directed else torch.cat([new.edge, new.edge])
    out = copy.copy(data)
    for key, value in data.to_dict().items():
        if key in ("edge_index", *_MARKS, *_MASKS):
            continue
        if data.is_node_attr(key):
            more = new.x.to(value.dtype) if key == "x" and new.x is not None else value[new.source]
            out[key] = torch.cat([value, more])
        elif data.is_edge_attr(key):
            out[key] = torch.cat([value, value[like]])
    out.edge_index, out.num_nodes = torch.cat([data.edge_index, added], 1), nodes + len(new.source)
    for key in _MASKS:
        if key in data:
            out[key] = torch.cat([data[key], data[key].new_full((len(new.source),), key == "train_mask")])
    for key, before, count in zip(_MARKS, (nodes, edges), (len(new.source), added.shape[1]), strict=True):
        known = data[key] if key in data else torch.zeros(before, dtype=torch.bool, device=added.device)
        out[key] = torch.cat([known, known.new_ones(count)])
    return out


def race(row: Tensor, weight: Tensor, u: Tensor, quota: Tensor) -> Tensor:
    """Draw entries of every row without replacement, in proportion to their weights.

    An entry arrives after an exponential time of rate equal to its weight; the first ``quota`` of a row win (Efraimidis
    & Spirakis 2006, doi:10.1016/j.ipl.2005.11.003).

    Args:
        row: int64 (entries,), ascending.
        weight: float (entries,), not negative; zero never wins.
        u: float in [0, 1), one for each entry.
        quota: int64 (rows,), entries wanted; rows with fewer give all they have.

    Returns:
        int64, positions of the winners, row by row.

    Example:
        >>> row, weight, u = torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, 0.1, 0.9])
        >>> race(row, weight, u, quota=torch.tensor([2, 1]))
        tensor([0, 2])
    """
    time = -torch.log1p(-u.double()) / weight.double()
    order = time.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    _, rank = segments(torch.bincount(row, minlength=len(quota)))
    return order[(rank < quota[row[order]]) & (weight[order] > 0)]


def edges_and_pairs(data: Any, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
    """Choose what a decoder of edges is trained on in one step: edges, and as many random pairs of nodes.

    Args:
        data: The graph.
        rng: Scalar-seeded.

    Returns:
        All edges (of large graphs, 2**16 drawn evenly), and pairs, int64 (2, edges) each.
    """
    edges = data.edge_index
    if edges.shape[1] > _EDGES:
        edges = edges[:, rng.fork("edges").integers(edges.shape[1], (_EDGES,))]
    return edges, rng.fork("pairs").integers(int(data.num_nodes), (2, edges.shape[1]))


class GraphAugmenter(Generator):
    """Makes new versions of one graph; base of the generators of this folder.

    A sample is the whole training graph, augmented: a function of the row's seed. The graph is kept inside the
    checkpoint. Labels of training nodes alone are read; the other nodes are seen as all these methods see them (the
    transductive setting): with their features and edges, without their labels.

    A subclass writes `prepare` (what all samples share) and `new_version`.

    Args:
        **kwargs: For `Generator` and the subclass.
    """

    domain = "node"
    sample_chunk = 16
    #: Whether float node features are needed.
    needs_features: ClassVar[bool] = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bank = ItemBank()
        self._prepared: tuple[Any, Any] | None = None

    def prepare(self, data: Any) -> Any:
        """Compute what all samples share.

        Args:
            data: The training graph.
        """

    @abstractmethod
    def new_version(self, data: Any, rng: KeyedRNG) -> Any:
        """Make one new version of the training graph.

        Args:
            data: The training graph.
            rng: Scalar-seeded.

        Returns:
            A new ``Data``.
        """

    def on_fit_start(self) -> None:
        """Check and keep the training graph."""
        super().on_fit_start()
        items = self.training_items()
        self.check_graph(items[0])
        self.bank.fill(items[:1], self._ready_schema())

    def check_graph(self, data: Any) -> None:
        """Refuse graphs that cannot be augmented.

        Args:
            data: The graph.

        Raises:
            DataError: Naming what is missing, and what to do.
        """
        name = type(self).__name__
        if not bool(data.train_mask.any()):
            raise DataError(f"{name}: no node is in train_mask")
        if self.needs_features and (data.get("x") is None or not data.x.is_floating_point() or data.x.ndim != 2):
            raise DataError(f"{name} needs float node features x (nodes, features); the graph has none")
        if not self.hparams.get("directed", False) and not is_symmetric(data.edge_index, int(data.num_nodes)):
            raise DataError(
                f"{name} adds edges in both directions, but this graph has edges in one only; make it undirected "
                "(torch_geometric.utils.to_undirected), or use directed=True where the generator has it"
            )

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> Any:
        """Augment the training graph, once for every row.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            A ``Data``, or a list of several.
        """
        data = self.bank.items[0].to(self.device)
        return collate([self.augment(data, rng[i]) for i in range(len(rng))], self._ready_schema())

    @torch.no_grad()
    def augment(self, data: Any, rng: KeyedRNG) -> Any:
        """Make one new version of the training graph, e.g. another one for every training step.

        Args:
            data: The graph that the generator was fitted to.
            rng: Of one row.

        Returns:
            A new ``Data``.
        """
        return self.new_version(data, rng[0] if rng.seed.ndim else rng)

    def prepared(self, data: Any) -> Any:
        """Return `prepare` of the training graph, computed anew when the weights or the graph have changed."""
        key = (id(self.bank.items), self.device, *(p._version for p in self.parameters()))
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = (key, self.prepare(data))
        return self._prepared[1]


class NodeSynthesizer(GraphAugmenter):
    """Appends training nodes of rare classes: classes with fewer than ``target`` are filled up to it.

    New nodes are made of training nodes (validation and test nodes are never their parents) and come behind the nodes
    of the graph, whose numbers do not change.

    A subclass writes `draw`.

    Args:
        target: Training nodes that each class should have: ``max`` or ``mean`` of the counts, or a number.
        classes: Classes to fill up; None: all that are below the target.
        directed: Edges lead to the new nodes only: these hear their neighbours, but are not heard. A model that hears
            them while it trains misses them when it is used on the real graph. False stores both directions.
        **kwargs: For `GraphAugmenter` and the subclass.

    Raises:
        ConfigError: If the target is impossible.
    """

    def __init__(
        self, *, target: Target = "max", classes: Sequence[int] | None = None, directed: bool = True, **kwargs: Any
    ) -> None:
        if target not in ("max", "mean") and (not isinstance(target, int) or target < 1):
            raise ConfigError(f"target must be 'max', 'mean' or a positive number of nodes, got {target!r}")
        chosen = None if classes is None else [int(c) for c in classes]
        super().__init__(target=target, classes=chosen, directed=directed, **kwargs)

    @abstractmethod
    def draw(self, data: Any, source: Tensor, rng: KeyedRNG) -> NewNodes:
        """Make new nodes.

        Args:
            data: The training graph.
            source: int64 (new,), a training node of the wanted class for each one.
            rng: Scalar-seeded.
        """

    def check_graph(self, data: Any) -> None:
        """Refuse graphs that nodes cannot be made from; warn if none are wanted.

        Args:
            data: The graph.

        Raises:
            DataError: Also if a class to fill up has no training node.
        """
        super().check_graph(data)
        if not int(self.quota(data).sum()):
            warnings.warn(
                f"every class has its target of training nodes: {type(self).__name__} adds none; target=<number> asks "
                "for more",
                stacklevel=2,
            )

    def quota(self, data: Any) -> Tensor:
        """Count the new nodes wanted of each class.

        Args:
            data: The graph.

        Returns:
            int64 (classes,).

        Raises:
            ConfigError: If a class does not exist.
            DataError: If a class to fill up has no training node.
        """
        classes, device = int(self._ready_schema()["num_classes"]), data.y.device
        counts = torch.bincount(data.y[data.train_mask], minlength=classes)
        target, chosen = self.hparams["target"], self.hparams["classes"]
        known = {"max": int(counts.max()), "mean": round(float(counts.float().mean()))}
        chosen = list(range(classes)) if chosen is None else chosen
        if not all(0 <= c < classes for c in chosen):
            raise ConfigError(f"classes {chosen} must lie in 0..{classes - 1}")
        wanted = torch.isin(torch.arange(classes, device=device), torch.tensor(chosen, device=device))
        empty = (wanted & (counts == 0)).nonzero()[:, 0].tolist()
        if empty:
            raise DataError(
                f"class {empty[0]} has no training node to make others from; leave it out with classes=[...]"
            )
        lacking: Tensor = (known.get(target, target) - counts) * wanted
        return lacking.clamp(min=0)

    def new_version(self, data: Any, rng: KeyedRNG) -> Any:
        """Append nodes to the training graph.

        Args:
            data: The training graph.
            rng: Scalar-seeded.

        Returns:
            A new ``Data``; see `append_nodes`.
        """
        source = self.draw_sources(data, rng.fork("source"))
        return append_nodes(data, self.draw(data, source, rng), bool(self.hparams["directed"]))

    def draw_sources(self, data: Any, rng: KeyedRNG, weight: Tensor | None = None) -> Tensor:
        """Draw training nodes, within each class that lacks some, with replacement.

        Args:
            data: The training graph.
            rng: Scalar-seeded.
            weight: float (nodes,), how often nodes of a class are drawn; None: evenly.

        Returns:
            int64 (new,), class by class.
        """
        quota, train = self.quota(data), data.train_mask.nonzero()[:, 0]
        owner, _ = segments(quota)
        return draw_of_class(train, data.y[train], owner, rng, None if weight is None else weight[train])


def draw_of_class(nodes: Tensor, label: Tensor, wanted: Tensor, rng: KeyedRNG, weight: Tensor | None = None) -> Tensor:
    """Draw a node of each wanted class, with replacement.

    Args:
        nodes: int64 (nodes,).
        label: int64 (nodes,), class of each.
        wanted: int64 (draws,), classes that have nodes.
        rng: Scalar-seeded.
        weight: float (nodes,), not all zero within a class; None: evenly.

    Returns:
        int64 (draws,).

    Example:
        >>> draw_of_class(torch.tensor([7, 9]), torch.tensor([1, 0]), torch.tensor([0, 0, 1]), KeyedRNG(0))
        tensor([9, 9, 7])
    """
    order = label.argsort(stable=True)
    mass = torch.ones(len(nodes), dtype=torch.float64, device=nodes.device) if weight is None else weight.double()
    ends = mass[order].cumsum(0)
    size = torch.bincount(label, minlength=int(wanted.max()) + 1 if len(wanted) else 0)
    last = size.cumsum(0) - 1
    before = torch.where(last >= size, ends[(last - size).clamp(min=0)], 0.0)
    u = rng.uniform((len(wanted),)).double()
    place = torch.searchsorted(ends, before[wanted] + u * (ends[last.clamp(min=0)] - before)[wanted], right=True)
    return nodes[order[place.minimum(last[wanted])]]


def is_symmetric(edge_index: Tensor, num_nodes: int) -> bool:
    """Say whether every edge is there in both directions.

    Args:
        edge_index: int64 (2, edges).
        num_nodes: Nodes.

    Example:
        >>> is_symmetric(torch.tensor([[0, 1], [1, 0]]), 2), is_symmetric(torch.tensor([[0], [1]]), 2)
        (True, False)
    """
    forth, back = (edge_index[i] * num_nodes + edge_index[1 - i] for i in (0, 1))
    return bool(torch.equal(forth.sort().values, back.sort().values))


__all__ = [
    "GraphAugmenter",
    "Neighbours",
    "NewNodes",
    "NodeSynthesizer",
    "Target",
    "append_nodes",
    "draw_of_class",
    "edges_and_pairs",
    "is_symmetric",
    "race",
]
