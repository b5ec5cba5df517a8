"""Generators that make a graph in the likeness of one training graph: its nodes, other edges.

What they share: which training graph a row takes after, what is kept of the training nodes, and how many edges a sample
has in common with its training graph.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.generator import Generator
from lightning_synth.graphs import Attributes, graph_batch
from lightning_synth.plugins.graph.edges import segments
from lightning_synth.plugins.resampling import TrainingRows
from lightning_synth.requests import KeyedRNG, SampleRequests

#: Entries of n x n matrices sampled to measure the overlap: large graphs are measured on fewer samples.
_MEASURED = 1 << 21


@dataclass
class Training:
    """The edges of some training graphs, nodes counted over all of them.

    Args:
        edges: int64 (2, edges), both directions, sorted.
        graph: int64 (edges,).
        num_nodes: int64 (graphs,).
    """

    edges: Tensor
    graph: Tensor
    num_nodes: Tensor

    @classmethod
    def of(cls, items: Sequence[Any]) -> Training:
        """Join graphs.

        Args:
            items: PyG ``Data`` with both directions of every edge.
        """
        num_nodes = torch.tensor([int(item.num_nodes) for item in items])
        start = (num_nodes.cumsum(0) - num_nodes).tolist()
        edges = torch.cat([item.edge_index.cpu() + first for item, first in zip(items, start, strict=True)], 1)
        return cls.from_edges(edges, num_nodes)

    @classmethod
    def from_edges(cls, edges: Tensor, num_nodes: Tensor) -> Training:
        """Sort edges; drop self-loops and repeated ones.

        Args:
            edges: int64 (2, edges), both directions, nodes counted over all graphs.
            num_nodes: int64 (graphs,).
        """
        total = max(int(num_nodes.sum()), 1)
        key = (edges[0] * total + edges[1])[edges[0] != edges[1]].unique()
        return cls(torch.stack([key // total, key % total]), segments(num_nodes)[0][key // total], num_nodes)

    def to(self, device: torch.device) -> Training:
        """Move."""
        return Training(self.edges.to(device), self.graph.to(device), self.num_nodes.to(device))

    @property
    def num_edges(self) -> Tensor:
        """Edges of each graph, each counted once, int64 (graphs,)."""
        return torch.bincount(self.graph, minlength=len(self.num_nodes)) // 2

    @property
    def degree(self) -> Tensor:
        """Degree of each node, int64 (nodes,)."""
        return torch.bincount(self.edges[0], minlength=int(self.num_nodes.sum()))

    def has(self, first: Tensor, second: Tensor) -> Tensor:
        """Say which pairs of nodes are edges, bool (pairs,)."""
        total = int(self.num_nodes.sum())
        key = self.edges[0] * total + self.edges[1]
        wanted = first * total + second
        place = torch.searchsorted(key, wanted).clamp(max=max(len(key) - 1, 0))
        return key[place] == wanted if len(key) else torch.zeros_like(wanted, dtype=torch.bool)


class GraphLikeness(Generator):
    """A generator whose samples have the nodes of a training graph (with their types, features or labels), new edges.

    A row takes after a training graph of its label, chosen by its own seed. Only what is needed for sampling goes into
    a checkpoint: sizes, node attributes and what the subclass keeps, not the training edges.

    A subclass writes `losses` and `sample_batch`, and `finish` if sampling needs more than the weights.

    Attributes:
        edge_overlap: Share of the edges of samples that are edges of their training graph, measured after a fit.
        chance_overlap: What this would be for random graphs with as many edges.

    Args:
        schema: Of the training graphs; the number of nodes comes from it.
        **kwargs: For `Generator`.
    """

    domain = "graph"
    conditions = ("label",)
    sample_chunk = 64

    num_nodes: Tensor
    num_edges: Tensor
    graph_label: Tensor
    degree: Tensor
    node_x: Tensor
    node_y: Tensor
    edge_overlap: Tensor
    chance_overlap: Tensor

    def build(self, schema: dict[str, Any]) -> None:
        """Make room for the nodes of all training graphs; called FIRST by a subclass."""
        graphs, nodes = int(schema["num_train"]), total_nodes(schema)
        self.training_graphs: Training | None = None
        self._finished: list[int] = []
        for name, size in (("num_nodes", graphs), ("num_edges", graphs), ("graph_label", graphs), ("degree", nodes)):
            self.register_buffer(name, torch.zeros(size, dtype=torch.int64))
        for name in ("edge_overlap", "chance_overlap"):
            self.register_buffer(name, torch.zeros(()))
        if schema.get("num_node_types"):
            self.register_buffer("node_x", torch.zeros(nodes, dtype=torch.int64))
        elif schema.get("num_node_features"):
            self.register_buffer("node_x", torch.zeros(nodes, int(schema["num_node_features"])))
        if schema.get("num_node_classes"):
            self.register_buffer("node_y", torch.zeros(nodes, dtype=torch.int64))
        self.attributes = Attributes(schema)
        # A checkpoint may be taken at any step.
        self.register_state_dict_pre_hook(_before_saving)  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Compute what sampling needs from the weights and the training graphs, into buffers."""

    # Fitting -------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Before a fit: take the training graphs in."""
        super().setup(stage)
        if stage == "fit":
            self.gather(self.training_items())

    def gather(self, items: Sequence[Any]) -> None:
        """Keep sizes, degrees and node attributes, and for the time of training the edges.

        Args:
            items: Training graphs.

        Raises:
            ConfigError: If they have other numbers of nodes than those that the generator was built for.
        """
        graphs = Training.of(items)
        if len(items) != len(self.num_nodes) or int(graphs.num_nodes.sum()) != len(self.degree):
            raise ConfigError(
                f"{type(self).__name__} keeps something for every training node and was built for "
                f"{len(self.degree)} nodes of {len(self.num_nodes)} graphs, not {int(graphs.num_nodes.sum())} of "
                f"{len(items)}; make a new one"
            )
        self.num_nodes.copy_(graphs.num_nodes)
        self.num_edges.copy_(graphs.num_edges)
        self.degree.copy_(graphs.degree)
        for name in ("x", "y"):
            if hasattr(self, f"node_{name}"):
                values = torch.cat([item[name] for item in items])
                getattr(self, f"node_{name}").copy_(values.reshape(getattr(self, f"node_{name}").shape))
        if self._classes:
            self.graph_label.copy_(torch.tensor([int(item.y) for item in items]))
        self.attributes.fit(items)
        self.training_graphs = graphs

    @property
    def _classes(self) -> int:
        return int(self._ready_schema().get("num_classes") or 0)

    @property
    def training_edges(self) -> Training:
        """The training graphs, on the device of the module.

        Raises:
            NotFittedError: In a generator that was loaded, whose checkpoint does not hold them.
        """
        if self.training_graphs is None:
            raise NotFittedError(f"{type(self).__name__} has no training graphs: fit it with a Trainer")
        self.training_graphs = self.training_graphs.to(self.device)
        return self.training_graphs

    @torch.no_grad()
    def refresh(self) -> None:
        """Call `finish` if the weights have changed since."""
        versions = [parameter._version for parameter in self.parameters()]
        if self.training_graphs is not None and versions != self._finished:
            self.finish()
            self._finished = versions

    def on_train_end(self) -> None:
        """Measure the overlap of samples with their training graphs."""
        self.measure_overlap()

    # Sampling ------------------------------------------------------------------------------------------------------

    def _require_fitted(self) -> None:
        if not self.is_built or not bool(self.num_nodes.any()):
            raise NotFittedError(
                f"{type(self).__name__} has not been fitted: call Trainer().fit(generator, datamodule) first"
            )
        super()._require_fitted()

    def sources(self, requests: SampleRequests) -> Tensor:
        """Say which training graph each row takes after, int64 (rows,)."""
        labels = self.graph_label if self._classes else None
        names = self._ready_schema().get("class_names") or ()
        rows = TrainingRows(labels, index=torch.arange(len(self.num_nodes)), class_names=names)
        return rows.pick(requests, KeyedRNG(requests.seed).fork("source"))

    def nodes_of(self, source: Tensor) -> Tensor:
        """Return the training nodes of the graphs ``source``, one graph after the other."""
        start = self.num_nodes.cumsum(0) - self.num_nodes
        row, place = segments(self.num_nodes[source])
        return start[source][row] + place

    def node_fields(self, nodes: Tensor) -> dict[str, Tensor]:
        """Return ``x`` and ``y`` of training nodes, where the data has them."""
        return {name: getattr(self, f"node_{name}")[nodes] for name in ("x", "y") if hasattr(self, f"node_{name}")}

    def assemble(
        self,
        counts: Tensor,
        row: Tensor,
        edges: Tensor,
        fields: Mapping[str, Tensor],
        requests: SampleRequests,
        rng: KeyedRNG,
        edge_attr: Tensor | None = None,
    ) -> Any:
        """Make a batch of nodes and edges; edge attributes that are not given are drawn from training edges.

        Args:
            counts: int64 (rows,), nodes of each row.
            row: int64 (edges,).
            edges: int64 (2, edges), counted over the nodes of all rows.
            fields: ``x`` and ``y`` of the nodes.
            requests: The rows.
            rng: One seed a row.
            edge_attr: Types of the edges, or None.
        """
        local = edges - (counts.cumsum(0) - counts)[row]
        batch = graph_batch(counts, local, row, x=fields.get("x"), edge_attr=edge_attr)
        if "y" in fields:
            batch["y"] = fields["y"]
            batch._slice_dict["y"] = batch.ptr.cpu()
            batch._inc_dict["y"] = torch.zeros(len(counts), dtype=torch.int64)
        return self.attributes.attach(batch, requests, rng)

    @torch.no_grad()
    def measure_overlap(self, n: int = 8, seed: int = 0) -> float:
        """Sample graphs and count the edges that they share with the training graphs they take after.

        Args:
            n: How many graphs, at most; fewer large ones.
            seed: Of the samples.

        Returns:
            Share of the sampled edges, also kept in ``edge_overlap``.

        Raises:
            NotFittedError: In a generator that was loaded: the training edges are in no checkpoint.
        """
        training = self.training_edges
        rows = max(min(n, _MEASURED // int(self.num_nodes.max()) ** 2), 1)
        requests = self.make_requests(rows, seed=seed).to(self.device)
        self.refresh()
        was_training = self.training
        self.eval()
        batch = self.sample_batch(requests, KeyedRNG(requests.seed))
        self.train(was_training)
        source = self.sources(requests).to(self.device)
        nodes = self.nodes_of(source)
        common = training.has(*nodes[batch.edge_index])
        pairs = self.num_nodes[source] * (self.num_nodes[source] - 1) / 2
        density = self.num_edges[source] / pairs.clamp(min=1)
        per_graph = torch.bincount(batch.batch[batch.edge_index[0]], minlength=rows)
        self.edge_overlap.copy_(common.float().mean() if len(common) else torch.zeros(()))
        self.chance_overlap.copy_((density * per_graph).sum() / per_graph.sum().clamp(min=1))
        return float(self.edge_overlap)


class SameNodes(GraphLikeness):
    """A likeness with the very nodes of the training graph: node i of a sample stands for its node i.

    A subclass writes `losses` and `sample_edges`.
    """

    @abstractmethod
    def sample_edges(self, source: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor, Tensor]:
        """Draw edges.

        Args:
            source: int64 (rows,), the training graph of each row.
            rng: One seed a row.

        Returns:
            Row, and the two ends of each edge counted over the nodes of all rows, int64 (edges,) each.
        """

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> Any:
        """Make a graph in the likeness of a training graph of the requested label.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            A PyG ``Batch``.
        """
        self.refresh()
        source = self.sources(requests).to(self.device)
        row, first, second = self.sample_edges(source, rng.fork("edges"))
        fields = self.node_fields(self.nodes_of(source))
        return self.assemble(self.num_nodes[source], row, torch.stack([first, second]), fields, requests, rng)


def total_nodes(schema: Mapping[str, Any]) -> int:
    """Number of nodes of all training graphs."""
    return sum(int(size) * int(count) for size, count in schema["node_counts"].items())


def _before_saving(module: Any, prefix: str, keep_vars: bool) -> None:
    module.refresh()


__all__ = ["GraphLikeness", "SameNodes", "Training", "total_nodes"]
