"""The base of the classical generators: what they keep of the training graphs, and how a sample comes about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.generator import FitFreeGenerator
from lightning_synth.graphs import Attributes, graph_batch, ragged_words
from lightning_synth.plugins.graph.edges import below, segments
from lightning_synth.plugins.resampling import TrainingRows
from lightning_synth.requests import KeyedRNG, SampleRequests, mix_seed
from lightning_synth.schema import fingerprint, item_hashes

#: Nodes of a batch; `sample_chunk` keeps below it, one graph may have more.
_NODES = 1 << 20


class Tables(nn.Module):
    """Named tensors of any length as module state.

    Example:
        >>> tables = Tables()
        >>> tables.put("degree", torch.tensor([1, 2]))
        >>> again = Tables()
        >>> _ = again.load_state_dict(tables.state_dict())
        >>> again["degree"]
        tensor([1, 2])
    """

    def put(self, name: str, value: Tensor) -> None:
        """Add or replace a tensor."""
        self.register_buffer(name, value)

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor."""
        value = self._buffers[name]
        assert value is not None
        return value

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._buffers

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the names and lengths of the checkpoint."""
        device = next((value.device for value in self.buffers()), None)
        for key in state_dict:
            if key.startswith(prefix):
                self.put(key[len(prefix) :], torch.empty_like(state_dict[key], device=device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def simple_edges(item: Any) -> Tensor:
    """Return the edges of a graph once each, smaller node first, without self-loops.

    Args:
        item: PyG ``Data``.

    Returns:
        int64 (2, edges), sorted.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> graph = tiny_graphs(1)[0]
        >>> simple_edges(graph).shape[1] * 2 == graph.edge_index.shape[1]
        True
    """
    n = int(item.num_nodes)
    low, high = torch.minimum(*item.edge_index), torch.maximum(*item.edge_index)
    key = torch.unique((low * n + high)[low != high])
    return torch.stack([key // n, key % n])


def triangles(edges: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Count the triangles and the neighbours of every node.

    Args:
        edges: As `simple_edges`.
        num_nodes: Nodes.

    Returns:
        Triangles and degrees, each int64 (num_nodes,).

    Example:
        >>> triangles(torch.tensor([[0, 0, 1, 2], [1, 2, 2, 3]]), 4)
        (tensor([1, 1, 1, 0]), tensor([2, 2, 3, 1]))
    """
    from scipy.sparse import csr_array

    degree = torch.bincount(edges.reshape(-1), minlength=num_nodes)
    # From the smaller to the larger degree no node has more than sqrt(2 m) edges, which bounds the products.
    ends = torch.where(degree[edges[0]] <= degree[edges[1]], edges, edges.flip(0)).numpy()
    up = csr_array((np.ones(ends.shape[1], dtype=np.int64), (ends[0], ends[1])), shape=(num_nodes, num_nodes))
    outer, middle = (up @ up) * up, (up.T @ up) * up
    count = outer.sum(0) + outer.sum(1) + middle.sum(1)
    return torch.from_numpy(np.asarray(count).ravel().astype(np.int64)), degree


class ClassicalGenerator(FitFreeGenerator):
    """A random graph model whose parameters are estimated from each training graph.

    A row picks a training graph of its class and draws a new graph of the size and the parameters found there. Given
    parameters replace the estimated ones; with ``num_nodes`` given, the mean degree of the training graph is kept.
    Where all parameters are given (`sufficient`), no data is needed and `sample` works without a fit. Of the training
    graphs, only the estimates are kept. Node and edge types or features are those of training nodes of like degree and
    of training edges (`lightning_synth.graphs.Attributes`).

    A subclass writes `learn` (what to keep) and `draw` (or `draw_graphs`).

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
    """

    domain = "graph"
    conditions = ("label",)
    #: Hyper-parameters that, all given, leave nothing to be estimated.
    sufficient: ClassVar[tuple[str, ...]] = ()
    #: Whether samples can have another size than a training graph.
    resizable: ClassVar[bool] = True

    tables: Tables
    attributes: Attributes

    def __init__(self, *, num_nodes: int | None = None, **kwargs: Any) -> None:
        if num_nodes is not None and num_nodes < 1:
            raise ConfigError(f"num_nodes must be at least 1, got {num_nodes}")
        if num_nodes is not None and not self.resizable:
            raise ConfigError(f"{type(self).__name__} decides the number of nodes itself: leave num_nodes out")
        super().__init__(num_nodes=num_nodes, **kwargs)

    # ------------------------------------------------------------------ what a subclass writes

    def learn(self, items: Sequence[Any], edges: Sequence[Tensor]) -> dict[str, Tensor]:
        """Estimate what is kept of the training graphs, besides sizes and classes.

        Args:
            items: Training graphs.
            edges: Their edges, as `simple_edges`.

        Returns:
            Name to tensor, one row a graph, or one a node or edge of all graphs in turn.
        """
        return {}

    def draw(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Draw the edges of a batch of graphs.

        Args:
            source: int64 (rows,), the training graph that each row takes its parameters from.
            num_nodes: int64 (rows,), nodes of each row.
            rng: One seed a row.

        Returns:
            Edges (2, edges) as node numbers within their graph, and the row of each (edges,); loops and repeats are
            dropped later.
        """
        raise NotImplementedError

    def draw_graphs(self, source: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor, Tensor]:
        """Draw sizes and edges; to be written instead of `draw` where the size is part of what is drawn.

        Args:
            source: int64 (rows,), the training graph that each row takes its parameters from.
            rng: One seed a row.

        Returns:
            Number of nodes (rows,), and what `draw` returns.
        """
        given = self.hparams.num_nodes
        num_nodes = torch.full_like(source, given) if given else self.tables["num_nodes"][source]
        return num_nodes, *self.draw(source, num_nodes, rng)

    def node_values(self, source: Tensor, num_nodes: Tensor) -> Tensor | None:
        """Return types or features of all nodes where the model knows them; None leaves them to `Attributes`."""
        return None

    # ------------------------------------------------------------------ fitting

    def build(self, schema: dict[str, Any]) -> None:
        """Make room for the estimates."""
        self.tables, self.attributes = Tables(), Attributes(schema)

    @property
    def sample_chunk(self) -> int:  # type: ignore[override]
        """Rows sampled at once: fewer, the larger the graphs."""
        largest = self.hparams.num_nodes or (self.schema or {}).get("max_nodes", 1)
        return int(min(max(_NODES // largest, 1), 1024))

    def fit_on(self, items: Sequence[Any], schema: Mapping[str, Any]) -> ClassicalGenerator:
        """Fit without a Trainer; the graphs themselves are not kept.

        Args:
            items: Training graphs.
            schema: Of the graphs.

        Returns:
            Itself.
        """
        if not self.is_built:
            self._build(schema)
        order = np.argsort(item_hashes(items, self._ready_schema()), kind="stable")
        self.fit_items([items[i] for i in order], KeyedRNG(mix_seed(self.hparams["seed"], 1)))
        self.training_fingerprint = fingerprint(items, self._ready_schema())
        self.is_fitted = True
        return self

    def fit_items(self, items: Sequence[Any], rng: KeyedRNG) -> None:
        """Estimate parameters.

        Args:
            items: Training graphs, in an order that depends on their content alone.
            rng: Scalar-seeded; not used.
        """
        edges = [simple_edges(item) for item in items]
        found = {
            "num_nodes": torch.tensor([int(item.num_nodes) for item in items]),
            "num_edges": torch.tensor([part.shape[1] for part in edges]),
            **self.learn(items, edges),
        }
        if self._ready_schema().get("num_classes"):
            found["label"] = torch.tensor([int(item.y) for item in items])
        self.tables = Tables()
        for name, value in found.items():
            self.tables.put(name, value.to(self.device))
        self.attributes.fit(items)

    # ------------------------------------------------------------------ sampling

    @property
    def is_specified(self) -> bool:
        """Whether all parameters are given, so that nothing has to be estimated."""
        return bool(self.sufficient) and all(self.hparams[name] is not None for name in self.sufficient)

    def _ready_schema(self) -> dict[str, Any]:
        """A model whose parameters are all given makes plain graphs until it has met other data."""
        if self.schema is None and self.is_specified:
            self._build({"domain": "graph", "num_classes": 0, "max_nodes": self.hparams.num_nodes or 1, "num_train": 0})
        return super()._ready_schema()

    def _require_fitted(self) -> None:
        if self.is_specified:
            self._ready_schema()
        elif not self.is_fitted:
            raise NotFittedError(
                f"{type(self).__name__} has not been fitted: call Trainer().fit(generator, datamodule) first"
                + (f", or give {', '.join(self.sufficient)}" if self.sufficient else "")
            )

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> Any:
        """Draw graphs.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            PyG ``Batch``.
        """
        source = self._pick(requests, rng.fork("training graph"))
        num_nodes, edges, row = self.draw_graphs(source, rng.fork("edges"))
        batch = graph_batch(num_nodes, edges, row, x=self.node_values(source, num_nodes))
        return self.attributes.attach(batch, requests, rng.fork("attributes"))

    def _pick(self, requests: SampleRequests, rng: KeyedRNG) -> Tensor:
        """Pick a training graph of its class for every row."""
        if "num_nodes" not in self.tables:
            return torch.zeros_like(requests.index)
        labels = self.tables["label"] if "label" in self.tables else None
        index = torch.arange(len(self.tables["num_nodes"]), device=rng.device)
        names = self._ready_schema().get("class_names", ())
        return TrainingRows(labels, index=index, class_names=names).pick(requests, rng)

    def mean_degree(self, source: Tensor) -> Tensor:
        """Mean degree of training graphs, float64 (rows,)."""
        return 2 * self.tables["num_edges"][source].double() / self.tables["num_nodes"][source]

    def density(self, source: Tensor, num_nodes: Tensor) -> Tensor:
        """Share of the pairs that are joined, for the mean degree of the training graphs, float64 (rows,)."""
        return (self.mean_degree(source) / (num_nodes - 1).clamp(min=1)).clamp(max=1)

    def training_nodes(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG | None = None) -> tuple[Tensor, Tensor]:
        """Choose the training node that each node takes its parameters from.

        Args:
            source: int64 (rows,), training graphs.
            num_nodes: int64 (rows,).
            rng: One seed a row, to draw with replacement; None: each node of the training graph stands for itself.

        Returns:
            The row of each node and its training node in the tables, each int64 (nodes,).
        """
        row, rank = segments(num_nodes)
        sizes = self.tables["num_nodes"]
        start = (sizes.cumsum(0) - sizes)[source]
        if rng is not None:
            rank = below(ragged_words(rng, num_nodes), sizes[source].index_select(0, row))
        return row, start.index_select(0, row) + rank

    def resized_nodes(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Choose training nodes: drawn with replacement where ``num_nodes`` is given, else themselves."""
        return self.training_nodes(source, num_nodes, rng if self.hparams.num_nodes else None)


def local(edges: Tensor, num_nodes: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Turn node numbers within the batch into node numbers within their graph.

    Args:
        edges: int64 (2, edges), in the batch.
        num_nodes: int64 (rows,).
        row: int64 (nodes,), the row of each node.

    Returns:
        Edges within their graph, and the row of each.
    """
    owner = row.index_select(0, edges[0])
    return edges - (num_nodes.cumsum(0) - num_nodes).index_select(0, owner), owner


def check_share(name: str, value: float | None) -> None:
    """Refuse probabilities outside [0, 1]."""
    if value is not None and not 0 <= value <= 1:
        raise ConfigError(f"{name} must lie in [0, 1], got {value}")


__all__ = ["ClassicalGenerator", "Tables", "check_share", "local", "simple_edges", "triangles"]
