"""Random graphs that match the sizes and the edge density of each class, and nothing else: a floor for graph models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from lightning_synth.generator import FitFreeGenerator
from lightning_synth.requests import KeyedRNG, SampleRequests


class ErdosRenyi(FitFreeGenerator):
    """Each pair of nodes is joined with probability p of the class (Erdos and Renyi 1959, Publ. Math. Debrecen 6, 290).

    Args:
        smoothing: Pseudo-pairs added to each class, half of them edges, so that p is never exactly 0 or 1.

    Shapes:
        density: (classes,), p of each class; one class if graphs carry no label.
        size_law: (classes, max_nodes + 1), share of graphs with so many nodes.

    Example:
        >>> from lightning_synth.testing import tiny_graphs, tiny_schema
        >>> model = ErdosRenyi().fit_on(tiny_graphs(16), tiny_schema("graph"))
        >>> model.sample(3, condition={"label": 1}).data.num_graphs
        3
    """

    domain = "graph"
    conditions = ("label",)

    def __init__(self, *, smoothing: float = 1.0, **kwargs: Any) -> None:
        super().__init__(smoothing=smoothing, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        """Reserve the statistics."""
        classes = max(schema["num_classes"], 1)
        self.register_buffer("density", torch.zeros(classes))
        self.register_buffer("size_law", torch.zeros(classes, schema["max_nodes"] + 1))

    def fit_items(self, items: Sequence[Data], rng: KeyedRNG) -> None:
        """Count nodes, pairs and edges of each class."""
        nodes = torch.tensor([graph.num_nodes for graph in items])
        edges = torch.tensor([graph.num_edges / 2 for graph in items])
        label = (
            torch.tensor([int(graph.y) for graph in items]) if self.schema["num_classes"] else torch.zeros_like(nodes)
        )
        member = torch.nn.functional.one_hot(label, len(self.density)).float().T
        pairs = member @ (nodes * (nodes - 1) / 2)
        self.density.copy_((member @ edges + self.hparams.smoothing / 2) / (pairs + self.hparams.smoothing))
        counts = member @ torch.nn.functional.one_hot(nodes, self.size_law.shape[1]).float()
        # A class without graphs borrows the sizes of all.
        counts = torch.where(counts.sum(1, keepdim=True) > 0, counts, counts.sum(0))
        self.size_law.copy_(counts / counts.sum(1, keepdim=True))

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> Batch:
        """Draw a size, then every pair of nodes."""
        label = requests.condition.get("label", torch.zeros_like(requests.index))
        size = self._sizes(label, rng.fork("size"))
        largest = self.size_law.shape[1] - 1
        joined = (rng.fork("edges").uniform((largest, largest)) < self.density[label][:, None, None]).triu(1)
        adjacency = joined | joined.mT
        graphs = [
            Data(edge_index=one[:n, :n].nonzero().T.contiguous(), num_nodes=n)
            for one, n in zip(adjacency, size.tolist(), strict=True)
        ]
        return Batch.from_data_list(graphs)

    def _sizes(self, label: Tensor, rng: KeyedRNG) -> Tensor:
        """Invert the cumulative law of sizes."""
        cumulative = self.size_law[label].cumsum(1)
        return (cumulative <= rng.uniform(())[:, None]).sum(1).clamp(max=self.size_law.shape[1] - 1)
