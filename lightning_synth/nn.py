"""Small network pieces that several generators share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Standardizer(nn.Module):
    """Map raw windows to zero mean and unit variance per channel, and back.

    Args:
        schema: Of the training windows; its ``mean`` and ``std`` have one entry per channel.

    Shapes:
        x: (batch, channels, length).

    Example:
        >>> scale = Standardizer({"mean": [1.0], "std": [2.0]})
        >>> scale(torch.full((1, 1, 3), 5.0))
        tensor([[[2., 2., 2.]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(schema["mean"], dtype=torch.float32)[:, None])
        self.register_buffer("std", torch.tensor(schema["std"], dtype=torch.float32)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """Standardise."""
        return (x - self.mean) / self.std

    def inverse(self, z: Tensor) -> Tensor:
        """Return to raw units."""
        return z * self.std + self.mean
