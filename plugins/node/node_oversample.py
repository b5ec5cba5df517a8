"""Over-sampling: copies of rare nodes with all of their edges, the baseline of every other way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_synth.generator import FitFreeGenerator
from lightning_synth.plugins.node.base import Neighbours, NewNodes, NodeSynthesizer
from lightning_synth.requests import KeyedRNG


class NodeOversample(NodeSynthesizer, FitFreeGenerator):
    """Copies of training nodes of rare classes, with their features, labels and neighbours.

    Random over-sampling (Chawla et al. 2002, doi:10.1613/jair.953, section 2) as the papers on imbalanced graphs use it
    as their baseline. Nothing is learned.

    Args:
        **kwargs: For `NodeSynthesizer` (``target``, ``classes``, ``directed``).

    Example:
        >>> from lightning_synth.testing import tiny_node, tiny_schema
        >>> model = NodeOversample(target=8).fit_on([tiny_node()], tiny_schema("node"))
        >>> model.sample(1).items()[0].num_nodes
        39
    """

    needs_features = False

    def fit_items(self, items: Sequence[Any], rng: KeyedRNG) -> None:
        """Check the graph.

        Args:
            items: The training graph.
            rng: Not used.
        """
        self.check_graph(items[0])

    def prepare(self, data: Any) -> Neighbours:
        """Index the neighbours."""
        return Neighbours(data.edge_index, int(data.num_nodes))

    def draw(self, data: Any, source: Tensor, rng: KeyedRNG) -> NewNodes:
        """Copy.

        Args:
            data: The training graph.
            source: int64 (new,).
            rng: Not used: the sources are the draw.
        """
        return NewNodes(source, None, *self.prepared(data).of(source))
