"""What the models share that follow a given sequence of degrees: that of a training graph, or a power law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.graph.classical import ClassicalGenerator
from lightning_synth.plugins.graph.edges import power_law
from lightning_synth.requests import KeyedRNG


class DegreeModel(ClassicalGenerator):
    """A classical generator that starts from one degree for each node.

    Fitted, nodes have the degrees of a training graph; with ``num_nodes`` given they draw theirs from it, with
    replacement. With ``mean_degree`` and ``exponent`` given, degrees follow a power law.

    Args:
        num_nodes: Nodes of every sample; None draws the size of a training graph.
        mean_degree: Mean of the power law; None takes the degrees of a training graph.
        exponent: Of the power law, above 2; None takes the degrees of a training graph.
    """

    sufficient = ("num_nodes", "mean_degree", "exponent")

    def __init__(
        self,
        *,
        num_nodes: int | None = None,
        mean_degree: float | None = None,
        exponent: float | None = None,
        **kwargs: Any,
    ) -> None:
        if (mean_degree is None) != (exponent is None):
            raise ConfigError("a power law needs both mean_degree and exponent; give neither to fit degrees")
        if mean_degree is not None and not 0 < mean_degree < (num_nodes or float("inf")):
            raise ConfigError(f"mean_degree must be positive and below the number of nodes, got {mean_degree}")
        if exponent is not None and exponent <= 2:
            raise ConfigError(f"exponent must be above 2, where the mean is finite, got {exponent}")
        super().__init__(num_nodes=num_nodes, mean_degree=mean_degree, exponent=exponent, **kwargs)

    def learn(self, items: Sequence[Any], edges: Sequence[Tensor]) -> dict[str, Tensor]:
        """Keep the degree of every node."""
        sizes = [int(item.num_nodes) for item in items]
        degrees = [torch.bincount(part.reshape(-1), minlength=n) for part, n in zip(edges, sizes, strict=True)]
        return {"degree": torch.cat(degrees)}

    def degrees(self, source: Tensor, num_nodes: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Return the row and the degree of every node.

        Args:
            source: int64 (rows,), training graphs.
            num_nodes: int64 (rows,).
            rng: One seed a row.

        Returns:
            int64 (nodes,) and float64 (nodes,).
        """
        mean, exponent = self.hparams.mean_degree, self.hparams.exponent
        if exponent is None:
            row, node = self.resized_nodes(source, num_nodes, rng)
            return row, self.tables["degree"].index_select(0, node).double()
        row = torch.arange(len(num_nodes), device=rng.device).repeat_interleave(num_nodes)
        # Most batches have few different sizes: one law for each.
        laws = {n: power_law(n, mean, exponent) for n in num_nodes.unique().tolist()}
        return row, torch.cat([laws[n] for n in num_nodes.tolist()]).to(rng.device)


__all__ = ["DegreeModel"]
