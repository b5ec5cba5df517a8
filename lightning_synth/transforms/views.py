"""Two views of a graph, for contrastive learning."""

from __future__ import annotations

from typing import Any

from lightning_synth.requests import KeyedRNG
from lightning_synth.transforms.base import GraphTransform, transform_with


class TwoViews(GraphTransform):
    """Make two independent views of each graph: a tuple, which PyG's loaders collate to a list of two batches.

    Args:
        first: Makes one view: a transform or a ``Compose`` of them.
        second: Makes the other; None: as the first, with other draws.
        seed: As `GraphTransform`; the seeds of the two are not used.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> from lightning_synth.transforms import DropEdge, MaskFeature
        >>> one, other = TwoViews(DropEdge(0.3), MaskFeature(0.3))(tiny_node())
        >>> one.num_edges < other.num_edges == tiny_node().num_edges
        True
    """

    def __init__(self, first: Any, second: Any = None, *, seed: int = 0) -> None:
        super().__init__(seed)
        self.first, self.second = first, second

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Make two views.

        Args:
            data: A graph or batch.
            rng: One seed a graph.
        """
        one = transform_with(self.first, data, rng.fork("first"))
        return one, transform_with(self.first if self.second is None else self.second, data, rng.fork("second"))
