"""GraphSHA: rare nodes on the border of their class, mixed with those they are taken for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.graph.edges import segments
from lightning_synth.plugins.node.base import Neighbours, NewNodes, Target, draw_of_class
from lightning_synth.plugins.node.guided import GuidedSynthesizer
from lightning_synth.requests import KeyedRNG

#: Walks for each neighbour wanted, and their longest length: those that end where others did do not count.
_WALKS, _LONGEST = 4, 128
#: Steps whose random numbers are drawn together.
_BLOCK = 16


@dataclass
class Borders:
    """Where the classifier puts the nodes.

    Args:
        near: The neighbourhoods.
        belief: float (nodes, classes), predictions.
    """

    near: Neighbours
    belief: Tensor


class GraphSHA(GuidedSynthesizer):
    """GraphSHA (Li et al. 2023, arXiv 2306.09612): "harder" training nodes of rare classes.

    A source is a training node of a rare class, drawn in proportion to how unsure the classifier is of it; its partner
    is a training node of the class that the source is most likely mixed up with (drawn from the source's predictions).
    Features are lambda x_source + (1 - lambda) x_partner, lambda ~ Beta(1, 100) (eq. 4): nearly the partner's, so that
    the border of the rare class moves out. To keep the other class from losing, the new node's neighbours are the
    source's alone (SemiMixup, section 4.2): ends of random walks from it that stop with probability ``stop`` at every
    step, which is a draw from its personalised PageRank without a matrix. The label is the source's.

    Args:
        target: ``mean`` as published; see `NodeSynthesizer`.
        mix: Second parameter of the Beta law; large ones give nearly the partner's features, 1 any mixture.
        stop: Teleport probability of the PageRank.
        **kwargs: For `GuidedSynthesizer` and `NodeSynthesizer`.

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth.testing.case import quiet_trainer
        >>> model, data = GraphSHA(hidden=8, target=8), tiny_datamodule("node")
        >>> quiet_trainer(max_steps=5).fit(model, data)
        >>> grown = model.sample(1).items()[0]
        >>> torch.bincount(grown.y[grown.train_mask]).tolist()
        [8, 8, 8]
    """

    def __init__(self, *, target: Target = "mean", mix: float = 100.0, stop: float = 0.05, **kwargs: Any) -> None:
        if mix <= 0 or not 0 < stop <= 1:
            raise ConfigError(f"mix must be positive and stop in (0, 1], got {mix} and {stop}")
        super().__init__(target=target, mix=mix, stop=stop, **kwargs)

    def prepare(self, data: Any) -> Borders:
        """Predict all nodes."""
        belief = self.network(self.read(data)).detach().softmax(1)
        return Borders(Neighbours(data.edge_index, int(data.num_nodes)), belief)

    def draw_sources(self, data: Any, rng: KeyedRNG, weight: Tensor | None = None) -> Tensor:
        """Draw training nodes of rare classes, the harder the more often (eq. 2).

        Args:
            data: The training graph.
            rng: Scalar-seeded.
            weight: float (nodes,); None: one minus the probability of the true class.
        """
        if weight is None:
            belief = self.prepared(data).belief
            known = data.y.clamp(min=0)  # labels of other nodes are read past, never used
            weight = 1 - belief.gather(1, known[:, None])[:, 0] + 1e-6
            weight = torch.where(data.train_mask, weight, 0.0)
        return super().draw_sources(data, rng, weight)

    def draw(self, data: Any, source: Tensor, rng: KeyedRNG) -> NewNodes:
        """Mix features with a partner's, and take neighbours of the source.

        Args:
            data: The training graph.
            source: int64 (new,).
            rng: Scalar-seeded.
        """
        known: Borders = self.prepared(data)
        partner = self._partners(data, known.belief, source, rng.fork("partner"))
        # Beta(1, b) by inversion.
        share = 1 - (1 - rng.fork("share").uniform((len(source), 1))) ** (1 / self.hparams["mix"])
        x = share * data.x[source] + (1 - share) * data.x[partner]
        return NewNodes(source, x, *pagerank_neighbours(known.near, source, self.hparams["stop"], rng.fork("walk")))

    @staticmethod
    def _partners(data: Any, belief: Tensor, source: Tensor, rng: KeyedRNG) -> Tensor:
        """Draw a training node of the class that each source is taken for, likely ones of that class first (eq. 3)."""
        train = data.train_mask.nonzero()[:, 0]
        label = data.y[train]
        likely = belief[source] * (torch.bincount(label, minlength=belief.shape[1]) > 0)
        likely = likely.scatter(1, data.y[source][:, None], 0.0).double()
        # Where only one class has training nodes, the partner is one of it.
        alone = likely.sum(1) <= 0
        likely[alone] = likely[alone].scatter(1, data.y[source][alone][:, None], 1.0)
        ends = likely.cumsum(1)
        u = rng.fork("class").uniform((len(source), 1)).double() * ends[:, -1:]
        wanted = torch.searchsorted(ends, u, right=True)[:, 0].clamp(max=belief.shape[1] - 1)
        sure = belief[train].gather(1, label[:, None])[:, 0] + 1e-6
        return draw_of_class(train, label, wanted, rng.fork("node"), sure)


def pagerank_neighbours(near: Neighbours, source: Tensor, stop: float, rng: KeyedRNG) -> tuple[Tensor, Tensor, Tensor]:
    """Draw different neighbours from the personalised PageRank of nodes: the ends of random walks from them.

    Args:
        near: Neighbourhoods of the graph.
        source: int64 (new,).
        stop: Probability that a walk ends at each step.
        rng: Scalar-seeded.

    Returns:
        Row (new node), neighbour, and number of the last edge of the walk, int64 (edges,) each; at most as many as a
        random node of the graph has, and as the source has.

    Example:
        >>> near = Neighbours(torch.tensor([[1, 2, 0, 0], [0, 0, 1, 2]]), 3)
        >>> row, neighbour, _ = pagerank_neighbours(near, torch.tensor([0, 0]), 1.0, KeyedRNG(0))
        >>> set(neighbour.tolist()) <= {1, 2}  # walks of one step
        True
    """
    nodes, new = len(near.degree), len(source)
    quota = near.degree[rng.fork("degree").integers(nodes, (new,))].minimum(near.degree[source])
    row, _ = segments(quota * _WALKS)
    u = 1 - rng.fork("length").uniform((len(row),)).double()
    # A walk has one step and then others until it stops (a walk of none would end at the source itself).
    length = 1 + (u.log() / torch.log1p(torch.tensor(-min(stop, 1 - 1e-9), dtype=torch.float64))).long()
    length = length.clamp(max=_LONGEST)
    at, edge = source[row].clone(), torch.full_like(row, -1)
    for step in range(int(length.max()) if len(length) else 0):
        going = (length > step).nonzero()[:, 0]
        if step % _BLOCK == 0:
            numbers = torch.zeros(len(row), _BLOCK, device=row.device)
            numbers[going] = rng.fork("step").uniform((len(going), _BLOCK), step=step)
        at[going], edge[going] = near.step(at[going], numbers[going, step % _BLOCK])
    # The first ends that differ, in the order of the walks, are a draw without replacement.
    key = row * nodes + at
    order = key.argsort(stable=True)
    first = torch.ones_like(key, dtype=torch.bool)
    first[order[1:]] = key[order][1:] != key[order][:-1]
    kept = (first & (edge >= 0)).nonzero()[:, 0]
    _, rank = segments(torch.bincount(row[kept], minlength=new))
    kept = kept[rank < quota[row[kept]]]
    return row[kept], at[kept], edge[kept]
