"""Augmentation of graphs: seeded, sparse PyG transforms, and mixup. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "AddRandomEdge": "edges",
    "AugmentedDataset": "base",
    "Diffusion": "diffusion",
    "DropEdge": "edges",
    "DropNode": "nodes",
    "FeatureNoise": "features",
    "GMixup": "graphon",
    "GraphTransform": "base",
    "ManifoldMixup": "manifold",
    "MaskFeature": "features",
    "PairMixup": "pair_mixup",
    "PerturbEdge": "edges",
    "RandomWalkSubgraph": "nodes",
    "TwoViews": "views",
    "transform_with": "base",
}
__all__ = [
    "AddRandomEdge",
    "AugmentedDataset",
    "Diffusion",
    "DropEdge",
    "DropNode",
    "FeatureNoise",
    "GMixup",
    "GraphTransform",
    "ManifoldMixup",
    "MaskFeature",
    "PairMixup",
    "PerturbEdge",
    "RandomWalkSubgraph",
    "TwoViews",
    "transform_with",
]

if TYPE_CHECKING:
    from lightning_synth.transforms.base import AugmentedDataset, GraphTransform, transform_with
    from lightning_synth.transforms.diffusion import Diffusion
    from lightning_synth.transforms.edges import AddRandomEdge, DropEdge, PerturbEdge
    from lightning_synth.transforms.features import FeatureNoise, MaskFeature
    from lightning_synth.transforms.graphon import GMixup
    from lightning_synth.transforms.manifold import ManifoldMixup
    from lightning_synth.transforms.nodes import DropNode, RandomWalkSubgraph
    from lightning_synth.transforms.pair_mixup import PairMixup
    from lightning_synth.transforms.views import TwoViews


def __getattr__(name: str) -> Any:
    """Import a transform on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lightning_synth.transforms' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lightning_synth.transforms.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
