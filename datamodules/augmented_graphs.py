"""Transforms of graphs as augmenters of training batches."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_synth.errors import ConfigError, NotFittedError, SchemaMismatchError
from lightning_synth.generator import Generator
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import Items, Schema, schema_diff
from lightning_synth.transforms.parts import keep_marks

#: Domains whose batches are PyG graphs.
GRAPHS = ("graph", "node")


def is_transform(augmenter: Any) -> bool:
    """Whether it is a PyG transform; there is none before PyG has been imported."""
    if "torch_geometric.transforms" not in sys.modules:
        return False
    from torch_geometric.transforms import BaseTransform

    return isinstance(augmenter, BaseTransform)


def fit_transform(transform: Any, items: Items, schema: Schema) -> Any:
    """Fit a mixup, on a copy, to training graphs; other transforms stay as they are.

    Args:
        transform: Of graphs; in the node domain also a fitted generator, which then makes a new version in every step.
        items: Training graphs.
        schema: Of them.

    Raises:
        ConfigError: If it is no PyG transform, or data and transform do not go together.
        NotFittedError: If it is a generator that was not fitted.
        SchemaMismatchError: If it was fitted to other data.
    """
    domain = schema["domain"]
    if isinstance(transform, Generator) and transform.domain == domain == "node":
        return _fitted(transform, schema)
    if domain not in GRAPHS or not is_transform(transform):
        kind = "PyG transforms (lightning_synth.transforms)" if domain in GRAPHS else "generators that augment"
        raise ConfigError(f"data of the domain {domain} needs {kind}, got {type(transform).__name__}")
    if not hasattr(transform, "fit") or transform.is_fitted:
        return transform
    if domain == "node":
        raise ConfigError(f"{type(transform).__name__} mixes labelled graphs; the data is one graph with node labels")
    return copy.copy(transform).fit(items, schema["num_classes"])


def _fitted(generator: Generator, schema: Schema) -> Generator:
    """Refuse a generator that was not fitted to this graph: networks are not trained in passing."""
    if not generator.is_fitted:
        name = type(generator).__name__
        raise NotFittedError(f"{name} is not fitted: fit it to the data first, then pass it here")
    if difference := schema_diff(schema, generator.schema or {}):
        raise SchemaMismatchError(f"{type(generator).__name__} was fitted to other data: {difference}")
    return generator


def augment_graphs(transforms: Sequence[Any], probs: Sequence[float], batch: Any, rng: KeyedRNG) -> Any:
    """Apply transforms to a batch, each to every graph with its probability.

    Args:
        transforms: Ready to be applied.
        probs: One for each.
        batch: PyG ``Batch``, or the ``Data`` of a node data set; not changed.
        rng: One seed a graph.

    Returns:
        A batch of the same kind; a pair of them from `TwoViews`.

    Raises:
        ConfigError: If `TwoViews` is not the last one, or does not act always.
    """
    from lightning_synth.transforms import TwoViews, transform_with
    from lightning_synth.transforms.mixup import GraphMixup

    for i, (transform, prob) in enumerate(zip(transforms, probs, strict=True)):
        if isinstance(transform, TwoViews) and (prob < 1 or i + 1 < len(transforms)):
            raise ConfigError("TwoViews must be the last augmenter, with prob 1: a batch becomes a pair of batches")
        own = rng.fork(i)
        acts = own.fork("acts").bernoulli(prob)
        # Mixups make labels soft, those of graphs that they leave alone too.
        plain = transform.with_soft_labels(batch) if isinstance(transform, GraphMixup) else batch
        if not bool(acts.any()):
            batch = plain
            continue
        changed = transform_with(transform, batch, own.fork("augment"))
        batch = changed if bool(acts.all()) else _merged(acts, changed, plain)
    return batch


def _merged(acts: Tensor, changed: Any, plain: Any) -> Any:
    """Take the changed graphs where a transform acts, and the plain ones elsewhere."""
    from torch_geometric.data import Batch

    pairs = zip(acts.tolist(), changed.to_data_list(), plain.to_data_list(), strict=True)
    graphs = [one if act else other for act, one, other in pairs]
    everywhere = set.intersection(*(set(graph.keys()) for graph in graphs))
    somewhere = {name for graph in graphs for name in graph.keys()}
    return keep_marks(Batch.from_data_list(graphs, exclude_keys=sorted(somewhere - everywhere)), plain)
