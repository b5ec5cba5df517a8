"""GIN: a graph classifier as strong as the Weisfeiler-Leman test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.downstream.base import Classifier


class GIN(Classifier):
    """Graph isomorphism network (Xu et al. 2019, arXiv 1810.00826) with sum and mean readouts of every layer.

    Nodes enter with their type or features and their degree; edge types are embedded and added to the messages
    (GINE, Hu et al. 2020). Layer norms take the place of batch norms, so that a graph's score does not depend on its
    batch, nor real graphs on the synthetic ones beside them.

    Args:
        schema: Of the graphs; None takes it from the DataModule.
        lr: Learning rate of AdamW.
        seed: Of the initial weights.
        hidden: Features of a node.
        num_layers: Rounds of message passing.

    Shapes:
        batch: PyG ``Batch`` with label ``y`` (graphs,); ``weight`` (graphs,) float32 if mixed.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("graph")
        >>> GIN(schema=data.schema).predict(data.train_items()).shape == (len(data.train_items()),)
        True
    """

    name, domain = "gin", "graph"

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        lr: float = 1e-3,
        seed: int = 0,
        hidden: int = 64,
        num_layers: int = 4,
    ) -> None:
        super().__init__(schema, lr, seed, hidden=hidden, num_layers=num_layers)

    def build(self, schema: dict[str, Any]) -> None:
        """Make the network."""
        d, self.types = int(self.hparams["hidden"]), int(schema.get("num_node_types") or 0)
        self.enter = nn.Linear(1 + self.types + int(schema.get("num_node_features") or 0), d)
        kinds = int(schema.get("num_edge_types") or 0)
        self.edge_type = nn.Embedding(kinds, d) if kinds else None
        self.rounds = nn.ModuleList(
            nn.Sequential(nn.Linear(d, d), nn.LayerNorm(d), nn.ReLU(), nn.Linear(d, d), nn.LayerNorm(d), nn.ReLU())
            for _ in range(self.hparams["num_layers"])
        )
        readouts = 2 * (1 + int(self.hparams["num_layers"]))
        self.head = nn.Sequential(nn.Linear(readouts * d, d), nn.ReLU(), nn.Linear(d, int(schema["num_classes"])))

    def forward(self, batch: Any) -> Tensor:
        """Return class scores (graphs, classes)."""
        source, target = batch.edge_index
        graphs, nodes = int(batch.num_graphs), len(batch.batch)
        degree = torch.bincount(target, minlength=nodes).float()
        h = self.enter(torch.cat([degree[:, None].log1p(), *self._given(batch)], 1))
        size = torch.bincount(batch.batch, minlength=graphs).clamp(min=1)[:, None]
        readouts = []
        for layer in (None, *self.rounds):
            if layer is not None:
                message = h[source]
                if self.edge_type is not None:
                    message = F.relu(message + self.edge_type(batch.edge_attr.reshape(-1)))
                h = layer(h + torch.zeros_like(h).index_add(0, target, message))
            total = h.new_zeros(graphs, h.shape[1]).index_add(0, batch.batch, h)
            readouts += [total / size.sqrt(), total / size]
        scores: Tensor = self.head(torch.cat(readouts, 1))
        return scores

    def _given(self, batch: Any) -> list[Tensor]:
        """Types as one-hot vectors, or float features."""
        if self.types:
            return [F.one_hot(batch.x.reshape(-1), self.types).float()]
        return [batch.x.float()] if batch.get("x") is not None else []
