"""GraphENS: new nodes from a rare node and any other, with a neighbourhood drawn from both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.losses import neighbour_mean
from lightning_synth.plugins.node.base import Neighbours, NewNodes, race
from lightning_synth.plugins.node.guided import GuidedSynthesizer, ShiftedInput
from lightning_synth.requests import KeyedRNG


@dataclass
class Guide:
    """What the classifier says about a graph.

    Args:
        near: Its neighbourhoods.
        belief: float (nodes, classes), softened predictions, averaged over neighbours.
        place: int64 (nodes,), row of a training node in ``saliency``.
        saliency: float (training nodes, features), absolute gradient of the loss.
    """

    near: Neighbours
    belief: Tensor
    place: Tensor
    saliency: Tensor


class GraphENS(GuidedSynthesizer):
    """GraphENS (Park et al. 2022, ICLR, "Graph neural networks for class-imbalanced node classification").

    A new node mixes a source node of a rare class with a target: any training node, of frequent classes about as often
    as of rare ones. Its features are lambda x_source + (1 - lambda) x_target, lambda ~ Beta(2, 2); features that matter
    most for the target (by the gradient of the loss) come from the source alone (section 3.3). Its neighbours are drawn
    without replacement from the average of both neighbourhoods, the target's counting exp(-KL) of the two predictions
    as much (eq. 2 and 3), as many as a random node has, at most as many as the source. The label is the source's.

    The published method mixes anew in every epoch. `augment` does so: it makes a new graph in a few milliseconds, a
    pure function of the graph and a seed (``examples/node_imbalance.py`` calls it in every step). Or sample as many
    graphs as memory allows: ``MixedDataModule(data, pool)`` trains on another one of them in every epoch, in turn.

    Args:
        keep: Share of the features that are protected at most (``keep_prob`` of the paper).
        temperature: Divides the scores before the softmax of the predictions.
        **kwargs: For `GuidedSynthesizer` and `NodeSynthesizer` (``target``, ``classes``, ...).

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth.testing.case import quiet_trainer
        >>> model, data = GraphENS(hidden=8), tiny_datamodule("node")
        >>> quiet_trainer(max_steps=5).fit(model, data)
        >>> grown = model.sample(1).items()[0]
        >>> torch.bincount(grown.y[grown.train_mask]).tolist()
        [7, 7, 7]
    """

    def __init__(self, *, keep: float = 0.05, temperature: float = 2.0, **kwargs: Any) -> None:
        if not 0 <= keep <= 1 or temperature <= 0:
            raise ConfigError(f"keep must be in [0, 1] and temperature positive, got {keep} and {temperature}")
        super().__init__(keep=keep, temperature=temperature, **kwargs)

    def prepare(self, data: Any) -> Guide:
        """Compute predictions and the gradient of the loss with respect to the features of the training nodes."""
        train = data.train_mask.nonzero()[:, 0]
        shift = torch.zeros(len(train), data.x.shape[1], device=data.x.device, requires_grad=True)
        with torch.enable_grad():
            logits = self.network(ShiftedInput(self.read(data), train, shift))
            (gradient,) = torch.autograd.grad(self.training_loss(logits, data), shift)
        belief = neighbour_mean(logits.detach(), data.edge_index) / self.hparams["temperature"]
        place = torch.full((int(data.num_nodes),), -1, device=train.device)
        place[train] = torch.arange(len(train), device=train.device)
        near = Neighbours(data.edge_index, int(data.num_nodes))
        return Guide(near, belief.softmax(1), place, gradient.abs())

    def draw(self, data: Any, source: Tensor, rng: KeyedRNG) -> NewNodes:
        """Mix features and neighbourhoods.

        Args:
            data: The training graph.
            source: int64 (new,).
            rng: Scalar-seeded.
        """
        guide: Guide = self.prepared(data)
        # Few draws of many numbers: target, degree, and three for the mixing ratio.
        u = rng.fork("nodes").uniform((len(source), 5))
        target = self._targets(data, u[:, 0])
        distance = divergence(guide.belief[source], guide.belief[target])
        x = self._features(data, guide, source, target, distance, u[:, 2:], rng.fork("features"))
        share = torch.softmax(torch.stack([torch.zeros_like(distance), -distance]), 0)
        row, neighbour, edge = mixed_neighbours(guide.near, source, target, share, u[:, 1], rng.fork("neighbours"))
        return NewNodes(source, x, row, neighbour, edge)

    def _targets(self, data: Any, u: Tensor) -> Tensor:
        """Draw training nodes, each class in proportion to the logarithm of its count (section 3.2)."""
        train = data.train_mask.nonzero()[:, 0]
        counts = torch.bincount(data.y[train])
        # A class with one node has log 1 = 0; where all have one, they count alike.
        mass = counts.double().log() if bool((counts > 1).any()) else counts.double()
        weight = (mass / counts.clamp(min=1)).clamp(min=0)[data.y[train]]
        bounds = weight.cumsum(0)
        place = torch.searchsorted(bounds, u.double() * bounds[-1], right=True)
        targets: Tensor = train[place.clamp(max=len(train) - 1)]
        return targets

    def _features(
        self, data: Any, guide: Guide, source: Tensor, target: Tensor, distance: Tensor, u: Tensor, rng: KeyedRNG
    ) -> Tensor:
        """Mix features, with those that matter most for the target taken from the source."""
        new, width = len(source), data.x.shape[1]
        # The middle one of three uniform numbers has the law Beta(2, 2).
        ratio = u.median(1).values[:, None].expand(new, width).clone()
        most = int(width * self.hparams["keep"])
        if most and new:
            # Earliest arrivals of a race in proportion to the gradient: a draw without replacement, in order.
            weight = guide.saliency[guide.place[target]] + 1e-10
            order = (rng.exponential((new, width)) / weight).topk(most, largest=False).indices
            wanted = (torch.sigmoid(distance / 3) * most).long()
            protected = torch.arange(most, device=order.device) < wanted[:, None]
            ratio[torch.arange(new, device=order.device)[:, None].expand_as(order)[protected], order[protected]] = 1.0
        x: Tensor = data.x
        return ratio * x[source] + (1 - ratio) * x[target]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of q from p, (rows,).

    Example:
        >>> divergence(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]]))
        tensor([0.])
    """
    return (p * (p.clamp(min=1e-20).log() - q.clamp(min=1e-20).log())).sum(1).clamp(min=0)


def mixed_neighbours(
    near: Neighbours, source: Tensor, target: Tensor, share: Tensor, u: Tensor, rng: KeyedRNG
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw neighbours without replacement from a mixture of the neighbourhoods of two nodes.

    Args:
        near: Neighbourhoods of the graph.
        source: int64 (new,).
        target: int64 (new,).
        share: float (2, new), weights of the two neighbourhoods.
        u: float (new,) in [0, 1), draw the node whose degree a new node takes after.
        rng: Scalar-seeded.

    Returns:
        Row (new node), neighbour, and number of the edge it was reached by, int64 (edges,) each. There are as many as
        a random node of the graph has, at most as many as the source has.

    Example:
        >>> near = Neighbours(torch.tensor([[1, 2], [0, 0]]), 3)
        >>> one, none = torch.tensor([0]), torch.tensor([[1.0], [0.0]])
        >>> row, neighbour, _ = mixed_neighbours(near, one, one, none, torch.zeros(1), KeyedRNG(1))
        >>> len(row) <= 2, set(neighbour.tolist()) <= {1, 2}
        (True, True)
    """
    nodes = len(near.degree)
    model = (u.double() * nodes).long()
    quota = near.degree[model].minimum(near.degree[source])
    parts = []
    for parent, weight in zip((source, target), share, strict=True):
        row, neighbour, edge = near.of(parent)
        parts.append((row, neighbour, edge, (weight / near.degree[parent].clamp(min=1))[row]))
    row, neighbour, edge, weight = (torch.cat(part) for part in zip(*parts, strict=True))
    # A neighbour of both has the sum of both weights.
    key, entry = torch.unique(row * nodes + neighbour, return_inverse=True)
    total = torch.zeros(len(key), device=weight.device, dtype=weight.dtype).index_add(0, entry, weight)
    first = torch.full_like(key, len(near.edge) + int(edge.max()) if len(edge) else 0)
    first = first.scatter_reduce(0, entry, edge, "amin")
    row = key // nodes
    won = race(row, total, rng.uniform((len(key),)), quota)
    return row[won], key[won] % nodes, first[won]
