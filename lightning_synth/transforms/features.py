"""Node features masked or made noisy."""

from __future__ import annotations

from typing import Any

import torch

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.graphs import ragged_uniform
from lightning_synth.requests import KeyedRNG
from lightning_synth.transforms.base import GraphTransform, check_share
from lightning_synth.transforms.parts import Parts

_MODES = ("col", "row", "all")


class MaskFeature(GraphTransform):
    """Replace random features by a constant, as ``torch_geometric.utils.mask_feature`` does.

    Args:
        p: Probability.
        mode: What is masked as one: ``col`` a feature of all nodes of a graph, ``row`` all features of a node (as in
            GraphCL), ``all`` every entry by itself.
        fill: The constant; None: 0 for floats. Integer types need one: a type that stands for "masked".
        seed: As `GraphTransform`.

    Raises:
        ConfigError: If ``p`` is outside [0, 1] or the mode unknown.
        DataError: When applied to a graph without ``x``, or to integer types without ``fill``.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> masked = MaskFeature(0.5, mode="row")(tiny_node()).x
        >>> bool(((masked == 0).all(1) | (masked == tiny_node().x).all(1)).all())
        True
    """

    def __init__(self, p: float = 0.2, *, mode: str = "col", fill: float | None = None, seed: int = 0) -> None:
        super().__init__(seed)
        if mode not in _MODES:
            raise ConfigError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
        self.p, self.mode, self.fill = check_share(p), mode, fill

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Mask features.

        Args:
            data: A shallow copy of the graph or batch.
            rng: One seed a graph.
        """
        x, parts, rng = _features(data), Parts.of(data), rng.fork("mask")
        if self.fill is None and not x.is_floating_point():
            raise DataError("x holds integer types: MaskFeature needs fill, a type that stands for a masked node")
        flat = x.reshape(len(x), -1)
        width = flat.shape[1]
        if self.mode == "col":
            masked = (rng.uniform((width,)) < self.p)[parts.owner]
        elif self.mode == "row":
            masked = (ragged_uniform(rng, parts.sizes) < self.p)[:, None]
        else:
            masked = (ragged_uniform(rng, parts.sizes * width) < self.p).reshape(-1, width)
        fill = torch.tensor(0 if self.fill is None else self.fill, dtype=x.dtype, device=x.device)
        data.x = torch.where(masked, fill, flat).reshape(x.shape)
        return data


class FeatureNoise(GraphTransform):
    """Add Gaussian noise to float features.

    Args:
        std: Its standard deviation, in the units of ``x``.
        seed: As `GraphTransform`.

    Raises:
        ConfigError: If ``std`` is negative.
        DataError: When applied to a graph without float ``x``.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> 0.05 < float((FeatureNoise(0.1)(tiny_node()).x - tiny_node().x).std()) < 0.15
        True
    """

    def __init__(self, std: float = 0.1, *, seed: int = 0) -> None:
        super().__init__(seed)
        if not 0 <= std < float("inf"):
            raise ConfigError(f"std must be a number of at least 0, got {std}")
        self.std = std

    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Add noise.

        Args:
            data: A shallow copy of the graph or batch.
            rng: One seed a graph.
        """
        x, parts = _features(data), Parts.of(data)
        if not x.is_floating_point():
            raise DataError(f"FeatureNoise needs float features, got x of {x.dtype}")
        counts = parts.sizes * (x.numel() // max(len(x), 1))
        radius, angle = (ragged_uniform(rng.fork(name), counts) for name in ("radius", "angle"))
        # Box-Muller.
        normal = (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)
        data.x = x + self.std * normal.reshape(x.shape).to(x.dtype)
        return data


def _features(data: Any) -> torch.Tensor:
    x: torch.Tensor | None = data.get("x")
    if x is None:
        raise DataError("the graph has no features x to change")
    return x
