"""GAug: likely edges added, unlikely ones dropped, by a variational graph autoencoder."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.errors import ConfigError
from lightning_synth.message_passing import GCNConv, GraphInput
from lightning_synth.plugins.node.base import GraphAugmenter, Neighbours, edges_and_pairs
from lightning_synth.requests import KeyedRNG


@dataclass
class Likelihood:
    """What the autoencoder thinks of edges and of pairs two steps apart.

    Args:
        near: The neighbourhoods.
        mean: float (nodes, latent).
        edge: float (pairs,), log odds of each edge of ``pairs``.
        pairs: int64 (pairs,), numbers of the edges from the smaller node to the larger.
        back: int64 (pairs,), numbers of the same edges the other way.
    """

    near: Neighbours
    mean: Tensor
    edge: Tensor
    pairs: Tensor
    back: Tensor


class GAug(GraphAugmenter):
    """GAug-M (Zhao et al. 2021, arXiv 2006.06830, section 4.1), with edges drawn rather than ranked.

    A variational graph autoencoder (two graph convolutions, edge probability sigmoid(z_i . z_j)) is trained on edges
    and as many sampled pairs. A sample drops a share of the edges, unlikely ones first, and adds a share of new ones,
    likely ones first; Gumbel noise of size ``temperature`` on the log odds makes every sample another one (0 ranks
    them, as published). Candidates for new edges are pairs of nodes two or three steps apart and random pairs, in
    number proportional to the edges: all n^2 pairs of a large graph are never looked at. Nodes, features, labels and
    masks stay as they are; labels are not used.

    Args:
        add: New edges as a share of the edges.
        drop: Dropped edges as a share of the edges.
        temperature: Size of the noise on the log odds.
        candidates: Pairs looked at for each direction of an edge of the graph.
        hidden: Features between the convolutions.
        latent: Size of z.
        beta: Weight of the KL term, per node and pair as in the bound of the autoencoder.
        lr: Learning rate.
        **kwargs: For `GraphAugmenter`.

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth.testing.case import quiet_trainer
        >>> model, data = GAug(hidden=8, latent=4), tiny_datamodule("node")
        >>> quiet_trainer(max_steps=5).fit(model, data)
        >>> graph = model.sample(1).items()[0]
        >>> graph.num_nodes, graph.is_undirected(), int(graph.edge_is_synthetic.sum()) > 0
        (30, True, True)
    """

    def __init__(
        self,
        *,
        add: float = 0.1,
        drop: float = 0.1,
        temperature: float = 1.0,
        candidates: int = 2,
        hidden: int = 32,
        latent: int = 16,
        beta: float = 1.0,
        lr: float = 0.01,
        **kwargs: Any,
    ) -> None:
        if add < 0 or not 0 <= drop <= 1 or temperature < 0 or candidates < 1 or min(hidden, latent) < 1:
            raise ConfigError(
                "add and temperature must not be negative, drop must be in [0, 1], candidates, hidden and latent at "
                f"least 1, got {add}, {temperature}, {drop}, {candidates}, {hidden} and {latent}"
            )
        options = {"add": add, "drop": drop, "temperature": temperature, "candidates": candidates}
        super().__init__(**options, hidden=hidden, latent=latent, beta=beta, lr=lr, **kwargs)
        self._input: GraphInput | None = None

    def build(self, schema: dict[str, Any]) -> None:
        """Make the encoder."""
        hidden, latent = int(self.hparams["hidden"]), int(self.hparams["latent"])
        self.first = GCNConv(max(int(schema["num_features"]), 1), hidden)
        self.second = GCNConv(hidden, 2 * latent)
        self.bias = nn.Parameter(torch.zeros(()))

    def encode(self, data: Any) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the standard deviation of z, (nodes, latent) each."""
        self._input = GraphInput.of(data, self._input)
        mean, log_std = self.second(self._input, self.first(self._input, None).relu()).chunk(2, 1)
        return mean, log_std.clamp(max=10)

    def log_odds(self, z: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Return the log odds of edges between pairs of nodes, (pairs,)."""
        return (z.index_select(0, first) * z.index_select(0, second)).sum(1) + self.bias

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of edges and sampled pairs, and the KL term (Kipf & Welling 2016, arXiv 1611.07308, eq. 5).

        Args:
            batch: The graph, or a sampled neighbourhood of it.
            rng: Of z and of the pairs.
        """
        mean, log_std = self.encode(batch)
        z = mean + rng.normal(mean.shape) * log_std.exp()
        edges, pairs = edges_and_pairs(batch, rng)
        here, absent = F.softplus(-self.log_odds(z, *edges)), F.softplus(self.log_odds(z, *pairs))
        reconstruction = (here.mean() + absent.mean()) / 2 if edges.shape[1] else z.new_zeros(())
        kl = (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1).mean() / (2 * len(mean))
        return {"loss": reconstruction + self.hparams["beta"] * kl, "reconstruction": reconstruction, "kl": kl}

    def prepare(self, data: Any) -> Likelihood:
        """Compute z and the log odds of all edges."""
        mean = self.encode(data)[0].detach()
        nodes, (row, col) = int(data.num_nodes), data.edge_index
        pairs = (row < col).nonzero()[:, 0]
        order = (row * nodes + col).argsort(stable=True)
        place = torch.searchsorted((row * nodes + col)[order], (col * nodes + row)[pairs])
        back = order[place.clamp(max=max(len(order) - 1, 0))]
        edge = self.log_odds(mean, row[pairs], col[pairs]).detach()
        return Likelihood(Neighbours(data.edge_index, nodes), mean, edge, pairs, back)

    def new_version(self, data: Any, rng: KeyedRNG) -> Any:
        """Drop and add edges.

        Args:
            data: The training graph.
            rng: Scalar-seeded.

        Returns:
            A new ``Data``: kept edges first, in their order; ``edge_is_synthetic`` (edges,) marks added ones.
        """
        known: Likelihood = self.prepared(data)
        count, size = len(known.pairs), self.hparams["temperature"]
        unlikely = -known.edge + size * gumbel(rng.fork("drop"), count)
        dropped = unlikely.topk(round(self.hparams["drop"] * count)).indices
        keep = torch.ones(data.edge_index.shape[1], dtype=torch.bool, device=data.edge_index.device)
        keep[known.pairs[dropped]] = keep[known.back[dropped]] = False
        first, second, like = self._candidates(data, known, rng.fork("candidates"))
        likely = self.log_odds(known.mean, first, second).detach() + size * gumbel(rng.fork("add"), len(first))
        won = likely.topk(min(round(self.hparams["add"] * count), len(first))).indices
        added = torch.stack([first[won], second[won]])
        return _with_edges(data, keep, torch.cat([added, added.flip(0)], 1), like[won].repeat(2))

    def _candidates(self, data: Any, known: Likelihood, rng: KeyedRNG) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs that are no edges, each once: ends of short walks from the ends of edges, and random pairs.

        Returns:
            Smaller node, larger node, and an edge at the start of the walk, whose attributes a new edge takes over.
        """
        nodes, edges = int(data.num_nodes), data.edge_index
        start = edges[0].repeat(int(self.hparams["candidates"]))
        like = torch.arange(edges.shape[1], device=edges.device).repeat(int(self.hparams["candidates"]))
        end, _ = known.near.step(start, rng.uniform((len(start),)))
        end, _ = known.near.step(end, rng.uniform((len(start),)))
        third, _ = known.near.step(end, rng.uniform((len(start),)))
        kind = rng.uniform((len(start),))
        end = torch.where(kind < 0.5, end, torch.where(kind < 0.75, third, rng.integers(nodes, (len(start),))))
        key = torch.minimum(start, end) * nodes + torch.maximum(start, end)
        taken = torch.minimum(edges[0], edges[1]) * nodes + torch.maximum(edges[0], edges[1])
        usable = (start != end) & ~torch.isin(key, taken)
        key, order = key[usable].sort(stable=True)
        once = torch.ones_like(key, dtype=torch.bool)
        once[1:] = key[1:] != key[:-1]
        return key[once] // nodes, key[once] % nodes, like[usable][order[once]]


def gumbel(rng: KeyedRNG, count: int) -> Tensor:
    """Draw standard Gumbel noise, (count,)."""
    return -rng.exponential((count,)).clamp(min=1e-20).log()


def _with_edges(data: Any, keep: Tensor, added: Tensor, like: Tensor) -> Any:
    """A graph with some of its edges and new ones; these take over the attributes of others."""
    out = copy.copy(data)
    for key, value in data.to_dict().items():
        if key not in ("edge_index", "edge_is_synthetic") and data.is_edge_attr(key):
            out[key] = torch.cat([value[keep], value[like]])
    known = data.edge_is_synthetic if "edge_is_synthetic" in data else torch.zeros_like(keep)
    out.edge_index = torch.cat([data.edge_index[:, keep], added], 1)
    out.edge_is_synthetic = torch.cat([known[keep], known.new_ones(added.shape[1])])
    if "is_synthetic" not in out:
        out.is_synthetic = torch.zeros(int(data.num_nodes), dtype=torch.bool, device=keep.device)
    return out
