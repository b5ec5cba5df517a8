"""GraphSMOTE: rare nodes between near neighbours of their class, with edges that a decoder believes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_synth.errors import ConfigError
from lightning_synth.message_passing import GraphInput, SAGEConv
from lightning_synth.plugins.node.base import Neighbours, NewNodes, edges_and_pairs
from lightning_synth.plugins.node.guided import GuidedSynthesizer
from lightning_synth.plugins.node.node_mixup import either_neighbours
from lightning_synth.requests import KeyedRNG

#: Distances looked at together.
_BLOCK = 1 << 22


@dataclass
class Embedding:
    """The graph as the encoder sees it.

    Args:
        near: The neighbourhoods.
        h: float (nodes, hidden).
        nearest: int64 (nodes,), the training node of the same class nearest to each training node of a class to fill
            up (itself where it is the only one); -1 elsewhere.
    """

    near: Neighbours
    h: Tensor
    nearest: Tensor


class _Network(nn.Module):
    """An encoder, a bilinear decoder of edges, and a classifier."""

    def __init__(self, d_in: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.encoder = SAGEConv(d_in, hidden)
        self.bilinear = nn.Parameter(nn.init.xavier_uniform_(torch.empty(hidden, hidden)))
        self.bias = nn.Parameter(torch.zeros(()))
        self.classifier = SAGEConv(hidden, classes)

    def encode(self, graph: GraphInput) -> Tensor:
        """Return embeddings (nodes, hidden)."""
        h: Tensor = self.encoder(graph, None).relu()
        return h

    def edge(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the probability of an edge between rows of embeddings, the same in both directions (eq. 5)."""
        bilinear = (self.bilinear + self.bilinear.T) / 2
        return torch.sigmoid(((first @ bilinear) * second).sum(1) + self.bias)


class GraphSMOTE(GuidedSynthesizer):
    """GraphSMOTE (Zhao et al. 2021, arXiv 2103.08826).

    A new node lies between a training node of a rare class and the nearest training node of the same class, where near
    is meant in the embedding of a GraphSAGE layer (eq. 2 and 3); features are interpolated by the same share. Its
    candidate neighbours are those of both parents; each becomes one with the probability that the edge decoder gives.
    Encoder, decoder and classifier are trained together; the decoder's weighted squared error (eq. 6) is taken over
    edges and as many sampled pairs, which is unbiased and needs no matrix of nodes by nodes.

    A class with one training node has copies of it with these edges. (The published code reads the edges of the parents
    from wrong rows of the adjacency; here parents are the nodes that were interpolated.)

    Args:
        edge_weight: Of the decoder's loss beside the classifier's.
        threshold: Take the edges above this probability, as in the paper's discrete variant; None draws each with its
            probability, which makes the neighbourhoods of nodes of the same parents differ.
        **kwargs: For `GuidedSynthesizer` and `NodeSynthesizer` (``target``, ``classes``, ...).

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth.testing.case import quiet_trainer
        >>> model, data = GraphSMOTE(hidden=8), tiny_datamodule("node")
        >>> quiet_trainer(max_steps=5).fit(model, data)
        >>> grown = model.sample(1).items()[0]
        >>> torch.bincount(grown.y[grown.train_mask]).tolist()
        [7, 7, 7]
    """

    def __init__(self, *, edge_weight: float = 1.0, threshold: float | None = None, **kwargs: Any) -> None:
        if edge_weight < 0 or (threshold is not None and not 0 <= threshold <= 1):
            raise ConfigError(
                f"edge_weight must not be negative, and threshold None or in [0, 1], got {edge_weight} and {threshold}"
            )
        super().__init__(edge_weight=edge_weight, threshold=threshold, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        """Make encoder, decoder and classifier."""
        width, classes = max(int(schema["num_features"]), 1), int(schema["num_classes"])
        self.network: Any = _Network(width, int(self.hparams["hidden"]), classes)

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of the training nodes, and the squared error of edges and sampled pairs.

        Args:
            batch: The graph, or a sampled neighbourhood of it.
            rng: Of pairs and dropout.
        """
        graph, net = self.read(batch), self.network
        h = net.encode(graph)
        drop = torch.Generator(self.device).manual_seed(int(rng.integers(1 << 31)))
        kept = torch.rand(h.shape, generator=drop, device=h.device) >= self.hparams["dropout"]
        node = self.training_loss(net.classifier(graph, h * kept / (1 - self.hparams["dropout"])), batch)
        edges, pairs = edges_and_pairs(batch, rng)
        # Few random pairs are edges: as in the paper, both kinds weigh the same in total.
        here = (1 - net.edge(h[edges[0]], h[edges[1]])).square()
        absent = net.edge(h[pairs[0]], h[pairs[1]]).square()
        edge = torch.cat([here, absent]).mean() if edges.shape[1] else node.new_zeros(())
        return {"loss": node + self.hparams["edge_weight"] * edge, "node": node, "edge": edge}

    def prepare(self, data: Any) -> Embedding:
        """Embed the graph and find the other parents."""
        h = self.network.encode(self.read(data)).detach()
        nearest = torch.full((int(data.num_nodes),), -1, device=h.device)
        for label in self.quota(data).nonzero()[:, 0].tolist():
            members = (data.train_mask & (data.y == label)).nonzero()[:, 0]
            nearest[members] = members[nearest_other(h[members])]
        return Embedding(Neighbours(data.edge_index, int(data.num_nodes)), h, nearest)

    def draw(self, data: Any, source: Tensor, rng: KeyedRNG) -> NewNodes:
        """Interpolate parents and decode edges.

        Args:
            data: The training graph.
            source: int64 (new,).
            rng: Scalar-seeded.
        """
        seen: Embedding = self.prepared(data)
        other = seen.nearest[source]
        share = rng.fork("share").uniform((len(source), 1))
        x, h = (value[source] + share * (value[other] - value[source]) for value in (data.x, seen.h))
        row, neighbour, edge = either_neighbours(seen.near, source, other)
        probability, least = self.network.edge(h[row], seen.h[neighbour]).detach(), self.hparams["threshold"]
        kept = probability > (rng.fork("edges").uniform((len(row),)) if least is None else least)
        return NewNodes(source, x, row[kept], neighbour[kept], edge[kept])


def nearest_other(h: Tensor) -> Tensor:
    """Find the nearest other row of every row, without the whole matrix of distances; a single row finds itself.

    Args:
        h: float (rows, features).

    Returns:
        int64 (rows,).

    Example:
        >>> nearest_other(torch.tensor([[0.0], [1.0], [5.0]]))
        tensor([1, 0, 1])
    """
    if len(h) < 2:
        return torch.zeros(len(h), dtype=torch.int64, device=h.device)
    found, step = [], max(1, _BLOCK // len(h))
    for start in range(0, len(h), step):
        distance = torch.cdist(h[start : start + step], h)
        rows = torch.arange(len(distance), device=h.device)
        distance[rows, rows + start] = torch.inf
        found.append(distance.argmin(1))
    return torch.cat(found)
