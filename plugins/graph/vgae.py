"""Variational graph autoencoder: a latent point for every node, edges between near ones."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import ragged_words
from lightning_synth.plugins.graph.edges import unit
from lightning_synth.plugins.graph.likeness import SameNodes
from lightning_synth.plugins.graph.pairs import matching_offset, pair_blocks
from lightning_synth.requests import KeyedRNG


class VGAE(SameNodes):
    """Variational graph autoencoder (Kipf & Welling 2016, arXiv 1611.07308).

    Two graph convolutions turn a training graph into a Gaussian q(z_i) for every node; an edge has the probability
    sigmoid(z_i . z_j + offset). Training compares the edges with as many sampled pairs that are none; in a sample the
    offset makes the expected number of edges that of the training graph. It draws z from q and every pair on its own:
    such a model can only have as many triangles as it repeats edges (Chanpuriya et al. 2021, arXiv 2111.00048), which
    makes it a baseline for one large graph.

    Nodes have a learned vector each (the identity matrix as features, as in the paper for graphs without features), and
    their types or features where there are any. Every step uses all training graphs, whatever the batch.

    Args:
        hidden_dim: Features between the two convolutions, and of the learned vectors.
        latent_dim: Size of z.
        beta: Weight of the KL term; 1 is the bound of the paper.
        negatives: Sampled pairs for each edge.
        lr: Learning rate.
        **kwargs: For `Generator`.

    Attributes:
        edge_overlap: Share of the edges of samples that are edges of their training graph.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth.testing.case import quiet_trainer
        >>> model, data = VGAE(hidden_dim=8, latent_dim=4), tiny_datamodule("graph")
        >>> quiet_trainer(max_steps=20).fit(model, data)
        >>> model.sample(3, seed=0).data.num_graphs
        3
    """

    mean: Tensor
    log_std: Tensor

    def __init__(
        self,
        *,
        hidden_dim: int = 32,
        latent_dim: int = 16,
        beta: float = 1.0,
        negatives: float = 1.0,
        lr: float = 1e-2,
        **kwargs: Any,
    ) -> None:
        if hidden_dim < 1 or latent_dim < 1 or beta < 0 or negatives <= 0:
            raise ConfigError(
                "hidden_dim and latent_dim must be at least 1, beta not negative and negatives positive: got "
                f"{hidden_dim}, {latent_dim}, {beta} and {negatives}"
            )
        super().__init__(hidden_dim=hidden_dim, latent_dim=latent_dim, beta=beta, negatives=negatives, lr=lr, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        """Make the encoder, and room for q."""
        from torch_geometric.nn import GCNConv

        super().build(schema)
        nodes, hidden, latent = len(self.degree), int(self.hparams["hidden_dim"]), int(self.hparams["latent_dim"])
        self.identity = nn.Parameter(torch.randn(nodes, hidden) / math.sqrt(hidden))
        self.project: nn.Module | None = None
        if schema.get("num_node_types"):
            self.project = nn.Embedding(int(schema["num_node_types"]), hidden)
        elif schema.get("num_node_features"):
            self.project = nn.Linear(int(schema["num_node_features"]), hidden)
        self.first = GCNConv(hidden, hidden)
        self.second = GCNConv(hidden, 2 * latent)
        self.bias = nn.Parameter(torch.zeros(()))
        for name in ("mean", "log_std"):
            self.register_buffer(name, torch.zeros(nodes, latent))

    def encode(self) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the standard deviation of q, (nodes, latent_dim) each."""
        edges = self.training_edges.edges
        h = self.identity if self.project is None else self.identity + self.project(self.node_x)
        h = F.relu(self.first(h, edges))
        mean, log_std = self.second(h, edges).chunk(2, dim=1)
        return mean, log_std.clamp(max=10)

    # Training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of edges and sampled non-edges, and the KL term (eq. 5), over all training graphs.

        Args:
            batch: Not used: every step is over all training graphs.
            rng: Scalar-seeded.
        """
        training = self.training_edges
        mean, log_std = self.encode()
        z = mean + rng.normal(mean.shape) * log_std.exp()
        first, second = training.edges[:, training.edges[0] < training.edges[1]]
        edges = F.softplus(-self._logit(z, first, second))
        others = F.softplus(self._logit(z, *self._non_edges(rng.fork("pairs"))))
        reconstruction = sum((part.mean() for part in (edges, others) if len(part)), torch.zeros_like(self.bias))
        # The bound is a sum over n^2 pairs and n nodes; as a mean over pairs the KL of a node weighs 1 / n^2.
        size = self.num_nodes.repeat_interleave(self.num_nodes).float()
        kl = (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1) / 2
        kl = (kl / size.square()).sum() / len(self.num_nodes)
        return {"loss": reconstruction + self.hparams["beta"] * kl, "reconstruction": reconstruction, "kl": kl}

    def _logit(self, z: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return (z.index_select(0, first) * z.index_select(0, second)).sum(1) + self.bias

    def _non_edges(self, rng: KeyedRNG) -> Tensor:
        """Draw pairs of nodes of the same graph; those that are edges or no pairs are left out, (2, pairs)."""
        training = self.training_edges
        owner = training.graph.repeat(math.ceil(self.hparams["negatives"] / 2))
        owner = owner[: round(self.hparams["negatives"] * len(training.graph) / 2)]
        start = self.num_nodes.cumsum(0) - self.num_nodes
        first, second = (start[owner] + rng.integers(self.num_nodes[owner], owner.shape) for _ in range(2))
        keep = (first != second) & ~training.has(first, second)
        return torch.stack([first[keep], second[keep]])

    # Sampling ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Keep q."""
        mean, log_std = self.encode()
        self.mean.copy_(mean)
        self.log_std.copy_(log_std)

    def sample_edges(self, source: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor, Tensor]:
        """Draw z from q, then every pair of nodes on its own, block by block."""
        nodes, counts = self.nodes_of(source), self.num_nodes[source]
        noise = self._ragged_normal(rng.fork("z"), counts, self.mean.shape[1])
        z = self.mean[nodes] + noise * self.log_std[nodes].exp()
        offset = matching_offset(counts, self.num_edges[source], lambda part: self._logit(z, part.first, part.second))
        found = [torch.zeros(3, 0, dtype=torch.int64, device=self.device)]
        for part in pair_blocks(counts, rng.fork("pairs")):
            p = torch.sigmoid(self._logit(z, part.first, part.second).double() + offset[part.row])
            hit = unit(part.words) < p
            found.append(torch.stack([part.row, part.first, part.second])[:, hit])
        row, first, second = torch.cat(found, 1)
        return row, first, second

    @staticmethod
    def _ragged_normal(rng: KeyedRNG, counts: Tensor, width: int) -> Tensor:
        """Standard normal numbers (sum of counts, width) that depend on the seed of their row and their place."""
        u = unit(ragged_words(rng, counts * width))
        return (math.sqrt(2) * torch.erfinv(2 * u - 1)).float().reshape(-1, width)

    @torch.no_grad()
    def link_scores(self, pairs: Tensor) -> Tensor:
        """Score pairs of training nodes: the log odds of an edge between the means of q.

        Args:
            pairs: int64 (2, pairs), nodes counted over all training graphs.

        Returns:
            (pairs,).
        """
        self.refresh()
        return self._logit(self.mean, *pairs)
