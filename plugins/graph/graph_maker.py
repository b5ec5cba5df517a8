"""Attributed graphs by discrete diffusion in few steps: first the features of the nodes, then the edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.discrete_flow import PosteriorSampler, draw, noise
from lightning_synth.errors import ConfigError
from lightning_synth.graphs import ragged_words
from lightning_synth.nn import sinusoidal
from lightning_synth.plugins.graph.edges import below, repeats, segments, unit
from lightning_synth.plugins.graph.graph_maker_networks import Bins, EdgeNetwork, FeatureNetwork
from lightning_synth.plugins.graph.likeness import GraphLikeness, Training
from lightning_synth.plugins.graph.pairs import PairBlock, matching_offset, pair_blocks
from lightning_synth.requests import KeyedRNG, SampleRequests

#: Numbers (nodes x features x bins) that the feature network makes at a time when sampling.
_FEATURE_BLOCK = 1 << 24


class GraphMaker(GraphLikeness):
    """Large attributed graphs by discrete diffusion (in the spirit of GraphMaker, Li et al. 2024, arXiv 2310.13833).

    A sample has the nodes of a training graph with their labels and the order of magnitude of their degrees, which the
    features and then the edges are generated for: features in `node_steps` steps by a network on single nodes, edges in
    `edge_steps` steps by message passing over the noisy graph (the asynchronous variant of the paper, plus the degree
    classes). No node has parameters of its own, so that little of the training graph is repeated; ``edge_overlap``
    tells how much. Node labels are the types ``x`` or the node labels ``y``. Real-valued features are binned; training
    looks at all edges and a sample of the other pairs, with logits corrected for the sampling.

    Args:
        node_steps: Diffusion steps of the features.
        edge_steps: Diffusion steps of the edges.
        dim: Features of a node.
        pair_dim: Features of a pair.
        num_layers: Rounds of message passing.
        pairs_per_step: Pairs of nodes looked at in a training step; all of them if there are no more.
        negatives: Of pairs that are no edges, how many are looked at for each edge, if not all are. More of them drown
            the edges.
        bins: Categories of a feature.
        lr: Learning rate.
        **kwargs: For `Generator`.

    Sampling options: ``node_labels``, the label of every node of the sample, for graphs with other classes than the
    training graph; their degrees are those of random training nodes of the same label.

    Attributes:
        edge_overlap: Share of the edges of samples that are edges of their training graph.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth.testing.case import quiet_trainer
        >>> model, data = GraphMaker(dim=16, pair_dim=8), tiny_datamodule("graph")
        >>> quiet_trainer(max_steps=20).fit(model, data)
        >>> model.sample(3, seed=0).data.num_graphs
        3
    """

    edge_law: Tensor

    def __init__(
        self,
        *,
        node_steps: int = 6,
        edge_steps: int = 9,
        dim: int = 64,
        pair_dim: int = 32,
        num_layers: int = 2,
        pairs_per_step: int = 1 << 17,
        negatives: float = 5.0,
        bins: int = 8,
        lr: float = 3e-3,
        **kwargs: Any,
    ) -> None:
        if min(node_steps, edge_steps, dim, pair_dim, pairs_per_step) < 1 or num_layers < 0 or bins < 2:
            raise ConfigError(
                "steps, dimensions and pairs_per_step must be at least 1, bins at least 2 and num_layers not negative"
            )
        if negatives <= 0:
            raise ConfigError(f"negatives must be positive, got {negatives}")
        super().__init__(
            node_steps=node_steps,
            edge_steps=edge_steps,
            dim=dim,
            pair_dim=pair_dim,
            num_layers=num_layers,
            pairs_per_step=pairs_per_step,
            negatives=negatives,
            bins=bins,
            lr=lr,
            **kwargs,
        )

    def build(self, schema: dict[str, Any]) -> None:
        """Make the networks."""
        super().build(schema)
        p, dim = self.hparams, int(self.hparams["dim"])
        self.node_classes = max(int(schema.get("num_node_types") or schema.get("num_node_classes") or 0), 1)
        self.edge_types = 1 + max(int(schema.get("num_edge_types") or 0), 1)
        self.num_features = int(schema.get("num_node_features") or 0)
        self.label = nn.Embedding(self.node_classes, dim)
        self.magnitude = nn.Embedding(int(schema["max_nodes"]).bit_length() + 1, dim)
        self.graph_class = nn.Embedding(max(self._classes, 1), dim)
        self.time = nn.Linear(dim, dim)
        self.edge_network = EdgeNetwork(self.edge_types, dim, int(p["pair_dim"]), int(p["num_layers"]))
        if self.num_features:
            self.bins = Bins(self.num_features, int(p["bins"]))
            self.feature_network = FeatureNetwork(self.num_features, int(p["bins"]), dim)
            self.feature = nn.Linear(self.num_features * int(p["bins"]), dim)
        self.register_buffer("edge_law", torch.full((self.edge_types - 1,), 1 / (self.edge_types - 1)))

    def gather(self, items: Sequence[Any]) -> None:
        """Also bin the features, and count edge types.

        Args:
            items: Training graphs.
        """
        super().gather(items)
        if self.num_features:
            self.bins.fit(self.node_x)
        if self.edge_types > 2:
            kinds = torch.cat([item.edge_attr.reshape(-1) for item in items])
            counts = torch.bincount(kinds, minlength=self.edge_types - 1) + 1e-3
            self.edge_law.copy_(counts / counts.sum())

    # Networks ------------------------------------------------------------------------------------------------------

    def context(self, label: Tensor, degree: Tensor, graph_label: Tensor) -> Tensor:
        """Embed what is known of every node: its label, its degree up to a factor of 2, the label of its graph."""
        magnitude = (degree + 1).float().log2().floor().long()
        embedded: Tensor = self.label(label) + self.magnitude(magnitude) + self.graph_class(graph_label)
        return embedded

    def at(self, context: Tensor, t: Tensor) -> Tensor:
        """Add the time of every node to its context."""
        out: Tensor = context + self.time(sinusoidal(1000 * t, context.shape[1]))
        return out

    def with_features(self, context: Tensor, x: Tensor | None) -> Tensor:
        """Add the clean features, as categories, to the context."""
        if x is None:
            return context
        out: Tensor = context + self.feature(self.bins.centred(x))
        return out

    def prior(self, density: Tensor) -> Tensor:
        """Law of the type of a pair in a graph of this density, (..., edge_types)."""
        return torch.cat([1 - density[..., None], density[..., None] * self.edge_law], -1)

    # Training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of the clean features and of the clean types of pairs (GraphMaker, section 3.2).

        Args:
            batch: PyG ``Batch``.
            rng: Scalar-seeded.
        """
        graphs = Training.from_edges(batch.edge_index, batch.ptr.diff())
        owner, _ = segments(graphs.num_nodes)
        label = self._labels_of(batch)
        graph_label = batch.y[owner] if self._classes else torch.zeros_like(owner)
        context = self.context(label, graphs.degree, graph_label)
        losses: dict[str, Tensor] = {}
        x = None
        if self.num_features:
            x = self.bins.encode(batch.x)
            losses["features"] = self._feature_loss(x, context, owner, rng.fork("features"))
        losses["edges"] = self._edge_loss(
            graphs, self._kinds(batch, graphs), self.with_features(context, x), rng.fork("edges")
        )
        return {"loss": sum(losses.values(), torch.zeros_like(losses["edges"])), **losses}

    def _labels_of(self, batch: Any) -> Tensor:
        """Label of every node: its type, else its class."""
        if self.node_classes == 1:
            return torch.zeros(int(batch.ptr[-1]), dtype=torch.int64, device=self.device)
        label: Tensor = batch.x if self._ready_schema().get("num_node_types") else batch.y
        return label.reshape(-1)

    def _kinds(self, batch: Any, graphs: Training) -> Tensor:
        """Type of each edge of ``graphs``, counted from 1."""
        if self.edge_types == 2:
            return torch.ones_like(graphs.graph)
        total = int(graphs.num_nodes.sum())
        key, order = (batch.edge_index[0] * total + batch.edge_index[1]).sort(stable=True)
        place = torch.searchsorted(key, graphs.edges[0] * total + graphs.edges[1])
        kind: Tensor = batch.edge_attr.reshape(-1)[order[place]] + 1
        return kind

    def _levels(self, steps: int, graphs: int, rng: KeyedRNG) -> Tensor:
        """Draw one of the visited times for each graph."""
        times = torch.tensor(PosteriorSampler(steps).times()[:-1], device=rng.device)
        return times[rng.integers(steps, (graphs,))]

    def _feature_loss(self, x: Tensor, context: Tensor, owner: Tensor, rng: KeyedRNG) -> Tensor:
        t = self._levels(int(self.hparams["node_steps"]), int(owner[-1]) + 1, rng)[owner]
        noisy = noise(x, t[:, None].expand_as(x), self.bins.law, rng.uniform(x.shape), rng.uniform(x.shape))
        logits = self._feature_logits(noisy, self.at(context, t))
        return F.cross_entropy(logits.flatten(0, 1), x.flatten())

    def _feature_logits(self, x: Tensor, context: Tensor) -> Tensor:
        """The network says how the clean features differ from the law of all nodes."""
        out: Tensor = self.feature_network(self.bins.centred(x), context) + self.bins.law.log()
        return out

    def _edge_loss(self, graphs: Training, kind: Tensor, context: Tensor, rng: KeyedRNG) -> Tensor:
        """Judge all pairs of a noisy graph, or all its edges and noise and some of the other pairs."""
        possible = (graphs.num_nodes * (graphs.num_nodes - 1) // 2).double()
        density = (graphs.num_edges / possible.clamp(min=1)).float()
        t = self._levels(int(self.hparams["edge_steps"]), len(possible), rng)
        limit, edges = int(self.hparams["pairs_per_step"]), int(graphs.num_edges.sum())
        if float(possible.sum()) <= limit:
            pairs = _all_pairs(graphs, kind)
        else:
            noise_count = ((1 - t) * density * possible + rng.uniform(t.shape)).long()
            others = max(min(int(self.hparams["negatives"] * edges), limit - edges - int(noise_count.sum())), edges)
            pairs = _some_pairs(graphs, kind, noise_count, others, self.edge_law, rng.fork("pairs"))
        if not len(pairs.first):
            return 0.0 * sum((value.sum() for value in self.edge_network.parameters()), context.sum())
        prior, shape = self.prior(density)[pairs.graph], pairs.graph.shape
        drawn = noise(pairs.clean, t[pairs.graph], prior, rng.uniform(shape), rng.uniform(shape))
        noisy = torch.where(pairs.noisy < 0, drawn, pairs.noisy)
        there = noisy > 0
        ends = torch.stack([pairs.first, pairs.second])[:, there]
        states = self.edge_network.states(self.at(context, t[segments(graphs.num_nodes)[0]]), ends, noisy[there])
        logits = self.edge_network(states, pairs.first, pairs.second, noisy)
        # Where only some of the pairs are shown that are neither edges nor noise, their odds are that much too small.
        absent = (~there & (pairs.clean == 0)).sum()
        shown = absent / (possible.sum() - len(pairs.first) + absent).clamp(min=1)
        shift = torch.zeros_like(logits[0])
        shift[1:] = -shown.clamp(min=1e-12).log().float()
        return F.cross_entropy(torch.where(there[:, None], logits, logits + shift), pairs.clean)

    # Sampling ------------------------------------------------------------------------------------------------------

    def sample_batch(
        self, requests: SampleRequests, rng: KeyedRNG, *, node_labels: Sequence[int] | Tensor | None = None
    ) -> Any:
        """Generate features, then edges, for the nodes of a training graph, or for nodes of given labels.

        Args:
            requests: Rows to sample.
            rng: One seed a row.
            node_labels: Label of every node of each row; None: those of the training graph.

        Returns:
            A PyG ``Batch``.
        """
        source = self.sources(requests).to(self.device)
        if node_labels is None:
            nodes, counts = self.nodes_of(source), self.num_nodes[source]
        else:
            nodes, counts = self._nodes_labelled(node_labels, rng.fork("nodes"))
        owner, _ = segments(counts)
        context = self.context(self._node_label[nodes], self.degree[nodes], self.graph_label[source][owner])
        fields = self.node_fields(nodes)
        x = None
        if self.num_features:
            x = self._sample_features(context, counts, rng.fork("features"))
            u = unit(ragged_words(rng.fork("within"), counts * self.num_features)).reshape(x.shape)
            fields["x"] = self.bins.decode(x, u)
        # As many edges a node as in the training graph.
        wanted = (self.num_edges[source].double() * counts / self.num_nodes[source]).minimum(counts * (counts - 1) / 2)
        row, edges, kind = _EdgeWalk(self, self.with_features(context, x), counts, wanted, rng.fork("edges")).run()
        return self.assemble(counts, row, edges, fields, requests, rng, kind - 1 if self.edge_types > 2 else None)

    @property
    def _node_label(self) -> Tensor:
        """Label of every training node."""
        if self.node_classes == 1:
            return torch.zeros_like(self.degree)
        return self.node_x if self._ready_schema().get("num_node_types") else self.node_y

    def _nodes_labelled(self, node_labels: Sequence[int] | Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """A random training node of each asked label, for every row."""
        asked = torch.as_tensor(node_labels, device=self.device).reshape(-1)
        known = self._node_label
        sizes = torch.bincount(known, minlength=self.node_classes)
        if len(asked) == 0 or int(asked.min()) < 0 or int(asked.max()) >= len(sizes) or bool((sizes[asked] == 0).any()):
            raise ConfigError(f"node_labels must hold labels of training nodes, of 0..{len(sizes) - 1}")
        order, start = known.argsort(stable=True), sizes.cumsum(0) - sizes
        words = rng.integers(1 << 31, (len(asked),))
        nodes = order[start[asked] + below(words, sizes[asked])]
        return nodes.reshape(-1), torch.full((len(rng),), len(asked), device=self.device)

    def _sample_features(self, context: Tensor, counts: Tensor, rng: KeyedRNG) -> Tensor:
        """Walk from the prior to features, int64 (nodes, features)."""
        sampler, shape = PosteriorSampler(int(self.hparams["node_steps"])), (len(context), self.num_features)
        words = ragged_words(rng.fork("start"), counts * self.num_features).reshape(shape)
        x = draw(self.bins.law.expand(*shape, -1), unit(words))
        size = max(_FEATURE_BLOCK // self.bins.law.numel(), 1)
        for step, (t, t_next) in enumerate(pairwise(sampler.times())):
            words = ragged_words(rng.fork(step), counts * self.num_features).reshape(shape)
            parts = []
            for here, now, word in zip(x.split(size), context.split(size), words.split(size), strict=True):
                time = torch.full((len(here),), t, device=self.device)
                p = self._feature_logits(here, self.at(now, time)).softmax(-1)
                law = p if t_next == 1 else sampler.step(p, here, t, t_next, self.bins.law)
                parts.append(draw(law, unit(word)))
            x = torch.cat(parts)
        return x


class _EdgeWalk:
    """Edges of some graphs on their way from the prior to the data; every step visits all pairs block by block.

    Args:
        model: The generator.
        context: What is known of each node, (nodes, dim).
        counts: int64 (graphs,), nodes.
        wanted: float64 (graphs,), edges to be expected.
        rng: One seed a graph.
    """

    def __init__(self, model: GraphMaker, context: Tensor, counts: Tensor, wanted: Tensor, rng: KeyedRNG) -> None:
        self.model, self.context, self.counts, self.wanted, self.rng = model, context, counts, wanted, rng
        self.sampler = PosteriorSampler(int(model.hparams["edge_steps"]))
        self.total = int(counts.sum())
        pairs = counts * (counts - 1) / 2
        self.prior = model.prior((wanted / pairs.clamp(min=1)).float())
        self.offset: Tensor | None = None
        # Row, ends, type.
        self.edges = torch.zeros(4, 0, dtype=torch.int64, device=counts.device)

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, ends and type of each edge."""
        self._draw(0, lambda part: self.prior[part.row])
        for step, (t, t_next) in enumerate(pairwise(self.sampler.times()), start=1):
            self.t, self.t_next = t, t_next
            time = torch.full((self.total,), t, device=self.context.device)
            self.states = self.model.edge_network.states(
                self.model.at(self.context, time), self.edges[1:3], self.edges[3]
            )
            self.key = self.edges[1] * self.total + self.edges[2]
            if t_next == 1:
                self.offset = matching_offset(self.counts, self.wanted, self._log_odds)
            self._draw(step, self._law)
        return self.edges[0], self.edges[1:3], self.edges[3]

    def _draw(self, step: int, law: Callable[[PairBlock], Tensor]) -> None:
        found = [self.edges[:, :0]]
        for part in pair_blocks(self.counts, self.rng.fork(step)):
            kind = draw(law(part), unit(part.words))
            found.append(torch.stack([part.row, part.first, part.second, kind])[:, kind > 0])
        self.edges = torch.cat(found, 1)

    def _predicted(self, part: PairBlock) -> tuple[Tensor, Tensor]:
        """Present types and logits of the clean ones."""
        now = _lookup(self.key, self.edges[3], part.first * self.total + part.second)
        return now, self.model.edge_network(self.states, part.first, part.second, now)

    def _log_odds(self, part: PairBlock) -> Tensor:
        _, logits = self._predicted(part)
        return logits[:, 1:].logsumexp(1) - logits[:, 0]

    def _law(self, part: PairBlock) -> Tensor:
        """Law of the types after this step."""
        now, logits = self._predicted(part)
        if self.offset is not None:
            logits = torch.cat([logits[:, :1], logits[:, 1:] + self.offset[part.row, None].float()], 1)
        p = logits.softmax(-1)
        return p if self.t_next == 1 else self.sampler.step(p, now, self.t, self.t_next, self.prior[part.row])


@dataclass
class _Pairs:
    """Pairs of nodes to learn from.

    Args:
        first: int64 (pairs,), smaller node, counted over all graphs.
        second: int64 (pairs,), larger node.
        graph: int64 (pairs,).
        clean: int64 (pairs,), type; 0 for no edge.
        noisy: int64 (pairs,), type in the noisy graph; -1 where that is still to be drawn.
    """

    first: Tensor
    second: Tensor
    graph: Tensor
    clean: Tensor
    noisy: Tensor


def _all_pairs(graphs: Training, kind: Tensor) -> _Pairs:
    """Every pair."""
    total = int(graphs.num_nodes.sum())
    parts = list(pair_blocks(graphs.num_nodes))
    none = [graphs.graph[:0]]
    first, second, row = (
        torch.cat([getattr(part, name) for part in parts] or none) for name in ("first", "second", "row")
    )
    clean = _lookup(graphs.edges[0] * total + graphs.edges[1], kind, first * total + second)
    return _Pairs(first, second, row, clean, torch.full_like(first, -1))


def _some_pairs(
    graphs: Training, kind: Tensor, noise_count: Tensor, others: int, edge_law: Tensor, rng: KeyedRNG
) -> _Pairs:
    """All edges, ``noise_count`` random pairs of each graph that noise makes edges, and ``others`` random pairs.

    Random pairs that are edges are dropped: noise of an edge is not decided here.
    """
    upper = graphs.edges[0] < graphs.edges[1]
    first, second = graphs.edges[:, upper]
    noise_graph = torch.arange(len(noise_count), device=first.device).repeat_interleave(noise_count)
    bounds = (graphs.num_nodes * (graphs.num_nodes - 1) // 2).double().cumsum(0)
    place = rng.uniform((others,)).double() * bounds[-1]
    graph = torch.cat([noise_graph, torch.searchsorted(bounds, place, right=True).clamp(max=len(bounds) - 1)])
    start = graphs.num_nodes.cumsum(0) - graphs.num_nodes
    a, b = (start[graph] + rng.integers(graphs.num_nodes[graph], graph.shape) for _ in range(2))
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    noisy = torch.zeros_like(graph)
    count = len(noise_graph)
    noisy[:count] = 1 + draw(edge_law.expand(count, -1), rng.uniform((count,)))
    # Of repeated pairs the first one stays, so that noise is not also counted as no edge.
    keep = (low < high) & ~repeats(low * int(graphs.num_nodes.sum()) + high) & ~graphs.has(low, high)
    return _Pairs(
        torch.cat([first, low[keep]]),
        torch.cat([second, high[keep]]),
        torch.cat([graphs.graph[upper], graph[keep]]),
        torch.cat([kind[upper], torch.zeros_like(low[keep])]),
        torch.cat([torch.full_like(first, -1), noisy[keep]]),
    )


def _lookup(key: Tensor, value: Tensor, wanted: Tensor) -> Tensor:
    """Value at each wanted key, 0 where it is not among the sorted keys."""
    if not len(key):
        return torch.zeros_like(wanted)
    place = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
    return torch.where(key[place] == wanted, value[place], 0)
