"""What the generators that look at a classifier share: a graph convolutional network trained on the same graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_synth.errors import ConfigError
from lightning_synth.losses import class_counts, class_weights
from lightning_synth.message_passing import GNN, GraphInput
from lightning_synth.plugins.node.base import NodeSynthesizer
from lightning_synth.requests import KeyedRNG


class ShiftedInput(GraphInput):
    """A graph with something added to the features of some nodes: its gradient is that of those features.

    Args:
        graph: The graph.
        nodes: int64 (rows,).
        shift: float (rows, features).
    """

    def __init__(self, graph: GraphInput, nodes: Tensor, shift: Tensor) -> None:
        super().__init__(graph.x, graph.edge_index, graph)
        self._nodes, self._shift = nodes, shift

    def features_times(self, weight: Tensor) -> Tensor:
        """Return ``(x + shift) @ weight``."""
        return super().features_times(weight).index_add(0, self._nodes, self._shift @ weight)


class GuidedSynthesizer(NodeSynthesizer):
    """Appends nodes where a classifier says: base of the generators that need predictions or gradients.

    The classifier is a two-layer GCN on the training nodes, each class with the same weight.

    Args:
        hidden: Its hidden features.
        dropout: Share of them dropped while training.
        lr: Learning rate.
        weight_decay: Of all weights.
        **kwargs: For `NodeSynthesizer` and the subclass.

    Raises:
        ConfigError: If an option is out of range.
    """

    def __init__(
        self,
        *,
        hidden: int = 64,
        dropout: float = 0.5,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        if hidden < 1 or not 0 <= dropout < 1 or weight_decay < 0:
            raise ConfigError(
                "hidden must be at least 1, dropout in [0, 1) and weight_decay not negative, got "
                f"{hidden}, {dropout} and {weight_decay}"
            )
        super().__init__(hidden=hidden, dropout=dropout, lr=lr, weight_decay=weight_decay, **kwargs)
        self._input: GraphInput | None = None

    def build(self, schema: dict[str, Any]) -> None:
        """Make the classifier."""
        width, classes = max(int(schema["num_features"]), 1), int(schema["num_classes"])
        self.network = GNN("gcn", width, int(self.hparams["hidden"]), classes)

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of the training nodes, every class with the same weight.

        Args:
            batch: The graph, or a sampled neighbourhood of it.
            rng: Of the dropout.
        """
        draw = torch.Generator(self.device).manual_seed(int(rng.integers(1 << 31)))
        logits = self.network(self.read(batch), float(self.hparams["dropout"]), draw)
        return {"loss": self.training_loss(logits, batch)}

    def training_loss(self, logits: Tensor, data: Any) -> Tensor:
        """Cross-entropy of the training nodes.

        Args:
            logits: float (nodes, classes).
            data: The graph.
        """
        y = data.y[data.train_mask]
        return F.cross_entropy(logits[data.train_mask], y, class_weights(class_counts(y, logits.shape[1])))

    def read(self, data: Any) -> GraphInput:
        """Return the graph as the network reads it, kept from step to step."""
        self._input = GraphInput.of(data, self._input)
        return self._input

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with weight decay, as usual for these networks."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"])
