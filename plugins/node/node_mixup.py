"""NodeMixup: training nodes mixed with others of their class, labelled or taken for labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_synth.errors import ConfigError
from lightning_synth.losses import neighbour_mean
from lightning_synth.plugins.node.base import Neighbours, NewNodes, draw_of_class, race
from lightning_synth.plugins.node.guided import GuidedSynthesizer
from lightning_synth.requests import KeyedRNG


@dataclass
class Pairing:
    """Who may be mixed with whom.

    Args:
        near: The neighbourhoods.
        nodes: int64 (candidates,): training nodes, and nodes of no split that the classifier is sure of.
        label: int64 (candidates,), their labels or predictions.
        around: float (nodes, classes), the mean prediction of the neighbours of every node, of length one.
    """

    near: Neighbours
    nodes: Tensor
    label: Tensor
    around: Tensor


class NodeMixup(GuidedSynthesizer):
    """NodeMixup within a class (Lu et al. 2024, arXiv 2312.13032), for the classes that lack training nodes.

    A training node is mixed with a partner of its class: another training node, or a node outside of all splits whose
    prediction the classifier is sure of (pseudo-label). Partners whose neighbours have similar labels are preferred
    (section 4.2). Features are lambda x_source + (1 - lambda) x_partner with lambda ~ Beta(a, a); the new node has the
    neighbours of both. Mixing between classes, which needs soft labels, is left out: labels here are classes.

    Args:
        alpha: a of the Beta law.
        confidence: Smallest probability of a pseudo-label; 1 leaves them out.
        sharpness: Weight of a partner: exp(sharpness cos), of the angle between the neighbours' label shares.
        candidates: Partners drawn evenly, among which one is chosen by these weights.
        **kwargs: For `GuidedSynthesizer` and `NodeSynthesizer`.

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth.testing.case import quiet_trainer
        >>> model, data = NodeMixup(hidden=8), tiny_datamodule("node")
        >>> quiet_trainer(max_steps=5).fit(model, data)
        >>> model.sample(1).items()[0].num_nodes
        36
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        confidence: float = 0.9,
        sharpness: float = 2.0,
        candidates: int = 16,
        **kwargs: Any,
    ) -> None:
        if alpha <= 0 or candidates < 1 or not 0 <= confidence <= 1:
            raise ConfigError(
                "alpha must be positive, candidates at least 1 and confidence in [0, 1], got "
                f"{alpha}, {candidates} and {confidence}"
            )
        super().__init__(alpha=alpha, confidence=confidence, sharpness=sharpness, candidates=candidates, **kwargs)

    def prepare(self, data: Any) -> Pairing:
        """Predict all nodes, and find the possible partners."""
        logits = self.network(self.read(data)).detach()
        belief, split = logits.softmax(1), data.train_mask.clone()
        for key in ("val_mask", "test_mask"):
            if key in data:
                split = split | data[key]
        sure, guess = belief.max(1)
        free = (~split & (sure > self.hparams["confidence"])).nonzero()[:, 0]
        train = data.train_mask.nonzero()[:, 0]
        around = F.normalize(neighbour_mean(belief, data.edge_index), dim=1)
        near = Neighbours(data.edge_index, int(data.num_nodes))
        return Pairing(near, torch.cat([train, free]), torch.cat([data.y[train], guess[free]]), around)

    def draw(self, data: Any, source: Tensor, rng: KeyedRNG) -> NewNodes:
        """Mix nodes of one class.

        Args:
            data: The training graph.
            source: int64 (new,).
            rng: Scalar-seeded.
        """
        pairing: Pairing = self.prepared(data)
        partner = self._partners(data, pairing, source, rng.fork("partner"))
        share = beta(self.hparams["alpha"], rng.fork("share").uniform((len(source), 1)))
        x = share * data.x[source] + (1 - share) * data.x[partner]
        return NewNodes(source, x, *either_neighbours(pairing.near, source, partner))

    def _partners(self, data: Any, pairing: Pairing, source: Tensor, rng: KeyedRNG) -> Tensor:
        """Choose one of several candidates of the class, by how alike their surroundings are."""
        new, count = len(source), int(self.hparams["candidates"])
        row = torch.arange(new, device=source.device).repeat_interleave(count)
        found = draw_of_class(pairing.nodes, pairing.label, data.y[source][row], rng.fork("candidates"))
        alike = (pairing.around[source][row] * pairing.around[found]).sum(1)
        # A node is mixed with itself only if its class has no other.
        weight = (self.hparams["sharpness"] * alike).exp() * torch.where(found == source[row], 1e-12, 1.0)
        won = race(row, weight, rng.fork("choice").uniform((len(row),)), torch.ones_like(source))
        return found[won]


def beta(a: float, u: Tensor) -> Tensor:
    """Turn uniform numbers into numbers of the law Beta(a, a).

    Example:
        >>> beta(1.0, torch.tensor([0.25]))
        tensor([0.2500])
    """
    from scipy.special import betaincinv

    value = betaincinv(a, a, u.cpu().numpy().astype(np.float64))
    return torch.from_numpy(value).to(u)


def either_neighbours(near: Neighbours, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """List the nodes that are neighbours of either of two nodes, each once.

    Args:
        near: Neighbourhoods of the graph.
        first: int64 (rows,).
        second: int64 (rows,).

    Returns:
        Row, neighbour, and number of an edge by which it is one, int64 (edges,) each.

    Example:
        >>> near = Neighbours(torch.tensor([[1, 1, 2], [0, 2, 1]]), 3)
        >>> either_neighbours(near, torch.tensor([0]), torch.tensor([1]))[1]
        tensor([1, 2])
    """
    nodes = len(near.degree)
    row, neighbour, edge = (torch.cat(both) for both in zip(near.of(first), near.of(second), strict=True))
    key, order = (row * nodes + neighbour).sort(stable=True)
    once = torch.ones_like(key, dtype=torch.bool)
    once[1:] = key[1:] != key[:-1]
    return key[once] // nodes, key[once] % nodes, edge[order[once]]
