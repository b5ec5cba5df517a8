"""Metrics of many small graphs: what `evaluate` runs, and `torchmetrics` classes of the main ones.

The functions are in `graph_statistics` (the five MMDs), `graph_judges` (random GIN, PolyGraph discrepancy),
`graph_validity` (validity, uniqueness, novelty, memorisation) and `graph_isomorphism`; `graph_protocol.graph_report`
makes the table of the papers, with intervals and floors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.metrics.common import MembershipMetric, TwoSampleMetric
from lightning_synth.metrics.graph_isomorphism import is_isomorphic, isomorphism_classes, wl_hashes
from lightning_synth.metrics.graph_judges import KernelLogistic, gin_scores, polygraph_discrepancy, random_gin
from lightning_synth.metrics.graph_protocol import graph_report
from lightning_synth.metrics.graph_statistics import (
    Estimator,
    Kernel,
    average_ratio,
    gaussian_emd,
    gaussian_tv,
    graph_descriptors,
    graph_mmds,
)
from lightning_synth.metrics.graph_validity import (
    Rule,
    find_blocks,
    graph_memorisation,
    is_block_model,
    valid_graphs,
    valid_unique_novel,
)
from lightning_synth.metrics.orbits import orbit_counts
from lightning_synth.metrics.planarity import is_planar
from lightning_synth.metrics.series_utility import class_adherence, train_on_synthetic
from lightning_synth.metrics.spec import MetricSpec, Schema

_FIELDS = ("x", "edge_attr")


# ---------------------------------------------------------------------------------------------- torchmetrics classes


def graphs_of(values: Any) -> Sequence[Any]:
    """Return the graphs of whatever a metric was given.

    Args:
        values: A PyG ``Batch`` or ``Data``; `Samples`, a pool, or a sequence of graphs.

    Returns:
        The graphs.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> len(graphs_of(tiny_graphs(3))), len(graphs_of(tiny_graphs(3)[0]))
        (3, 1)
    """
    if hasattr(values, "to_data_list"):
        found: Sequence[Any] = values.to_data_list()
        return found
    if hasattr(values, "edge_index"):
        return [values]
    items = values.items() if callable(getattr(values, "items", None)) else values
    return list(items)


def pack_graphs(items: Sequence[Any]) -> Tensor:
    """Write graphs into one row of integers, which processes can gather whatever the sizes.

    Args:
        items: Graphs; integer ``x`` and ``edge_attr`` are kept, other fields are not.

    Returns:
        int64, for each graph: nodes, edges, columns of ``x`` and ``edge_attr``, then their values.
    """
    parts = [np.zeros(0, np.int64)]
    for item in items:
        ends, sizes = np.asarray(item.edge_index).reshape(2, -1), (int(item.num_nodes), item.edge_index.shape[1])
        fields = [getattr(item, name, None) for name in _FIELDS]
        types = [None if f is None or torch.as_tensor(f).is_floating_point() else np.asarray(f) for f in fields]
        widths = [0 if value is None else value.size // max(rows, 1) for value, rows in zip(types, sizes, strict=True)]
        parts += [np.array([*sizes, *widths]), ends.ravel(), *(v.ravel() for v in types if v is not None)]
    return torch.as_tensor(np.concatenate(parts).astype(np.int64))


def unpack_graphs(packed: Tensor) -> list[Any]:
    """Read graphs that `pack_graphs` wrote.

    Args:
        packed: int64.

    Returns:
        PyG ``Data``.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> graph = tiny_graphs(1)[0]
        >>> bool((unpack_graphs(pack_graphs([graph]))[0].edge_index == graph.edge_index).all())
        True
    """
    from torch_geometric.data import Data

    items, at, row = [], 0, packed.cpu()
    while at < len(row):
        nodes, edges, *widths = row[at : at + 4].tolist()
        at += 4
        item = Data(edge_index=row[at : at + 2 * edges].reshape(2, edges), num_nodes=nodes)
        at += 2 * edges
        for name, rows, width in zip(_FIELDS, (nodes, edges), widths, strict=True):
            if width:
                item[name] = row[at : at + rows * width].reshape((rows, width) if width > 1 else (rows,))
                at += rows * width
        items.append(item)
    return items


class GraphMetric(TwoSampleMetric):
    """Base of metrics that compare real and synthetic graphs; its state is the graphs themselves.

    Args:
        schema: Of the graphs; its numbers of types make those part of the random GIN features.
        seed: Of everything random in it.
        **kwargs: Of `torchmetrics.Metric`.

    Shapes:
        update: a PyG ``Batch``, or graphs. compute: name to scalar float64 tensor.
    """

    higher_is_better: bool | None = False

    def _rows(self, values: Any) -> Tensor:
        return pack_graphs(graphs_of(values))

    def _spaces(self, *names: str) -> list[Any]:
        return [unpack_graphs(torch.as_tensor(self._sample(name))) for name in names]


class GraphMMD(GraphMetric):
    """Squared MMDs of degree, clustering, orbits, spectrum and wavelets; see `graph_mmds`.

    Args:
        kernel: ``"tv"`` or ``"emd"``.
        estimator: ``"biased"`` or ``"unbiased"``.
        schema: Of the graphs.
        seed: Unused.
        **kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> metric = GraphMMD()
        >>> metric.update(tiny_graphs(4), real=True), metric.update(tiny_graphs(4), real=False)
        (None, None)
        >>> metric.compute()["mmd_degree"]
        tensor(0., dtype=torch.float64)
    """

    def __init__(
        self,
        kernel: Kernel = "tv",
        estimator: Estimator = "biased",
        *,
        schema: Schema | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(schema=schema, seed=seed, **kwargs)
        self.kernel: Kernel = kernel
        self.estimator: Estimator = estimator

    def _evaluate(self, *samples: Any) -> dict[str, float]:
        return graph_mmds(samples[0], samples[1], kernel=self.kernel, estimator=self.estimator)


class GraphGIN(GraphMetric):
    """MMD, Frechet distance, precision, recall, density and coverage of random GIN features; see `gin_scores`."""

    def _evaluate(self, *samples: Any) -> dict[str, float]:
        return gin_scores(samples[0], samples[1], self.schema)


class PolyGraphDiscrepancy(GraphMetric):
    """What a classifier can tell synthetic from real graphs by; see `polygraph_discrepancy`.

    Args:
        repeats: Random halves.
        schema: Of the graphs.
        seed: Of the halves.
        **kwargs: Of `torchmetrics.Metric`.
    """

    def __init__(self, repeats: int = 1, *, schema: Schema | None = None, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(schema=schema, seed=seed, **kwargs)
        self.repeats = repeats

    def _evaluate(self, *samples: Any) -> dict[str, float]:
        options: dict[str, Any] = {"repeats": self.repeats, "seed": self.seed, "schema": self.schema}
        found = polygraph_discrepancy(samples[0], samples[1], **options)
        return {"pgd": found.value, **{f"pgd_{name}": value for name, value in found.scores.items()}}


class GraphVUN(GraphMetric):
    """Validity, uniqueness, novelty and all three together; the real graphs are those trained on.

    Args:
        rule: Of validity, see `valid_graphs`; None leaves it out.
        schema: Of the graphs.
        seed: Unused.
        **kwargs: Of `torchmetrics.Metric`.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> metric = GraphVUN("connected")
        >>> metric.update(tiny_graphs(4), real=True), metric.update(tiny_graphs(4), real=False)
        (None, None)
        >>> metric.compute()["novel"]
        tensor(0., dtype=torch.float64)
    """

    higher_is_better: bool | None = True

    def __init__(self, rule: Rule | None = None, *, schema: Schema | None = None, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(schema=schema, seed=seed, **kwargs)
        self.rule = rule

    def _evaluate(self, *samples: Any) -> dict[str, float]:
        return valid_unique_novel(samples[0], samples[1], self.rule).scores()


class GraphMemorisation(GraphMetric, MembershipMetric):
    """Distances of synthetic graphs to the training graphs against those of holdout graphs; see `graph_memorisation`.

    `update` takes ``real=True`` for training graphs, ``real=True, holdout=True`` for others.
    """

    higher_is_better: bool | None = None

    def _evaluate(self, *samples: Any) -> dict[str, float]:
        return graph_memorisation(*samples)


# -------------------------------------------------------------------------------------------------- for `evaluate`


def _mmds(_train: Any, test: Any, synthetic: Any, _schema: Schema, _seed: int) -> dict[str, float]:
    return graph_mmds(test, synthetic)


def _gin(_train: Any, test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    return gin_scores(test, synthetic, schema)


def _polygraph(_train: Any, test: Any, synthetic: Any, schema: Schema, seed: int) -> dict[str, float]:
    return {"pgd": polygraph_discrepancy(test, synthetic, seed=seed, schema=schema).value}


def _shares(_train: Any, _test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    """Shares that the real graphs have too, whatever they are; and validity where the data say what it is."""
    rules = {f"{name}_share": name for name in ("connected", "planar", "tree")}
    if schema.get("validity"):
        rules["valid"] = schema["validity"]
    shares = {row: float(valid_graphs(synthetic, rule).mean()) for row, rule in rules.items()}
    # Among more graphs there are more repetitions, so uniqueness needs the null of equal sizes.
    return {**shares, "graph_unique": valid_unique_novel([], synthetic).scores()["unique"]}


def _novelty(train: Any, _holdout: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    scores = valid_unique_novel(train, synthetic, schema.get("validity")).scores()
    rows = {"novel": "graph_novel", "vun": "vun"}
    return {row: scores[name] for name, row in rows.items() if name in scores}


def _memorisation(train: Any, holdout: Any, synthetic: Any, _schema: Schema, _seed: int) -> dict[str, float]:
    return graph_memorisation(train, holdout, synthetic)


def _adherence(train: Any, _test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    return class_adherence(train, synthetic, schema)


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("graph_mmd", _mmds, False),
    MetricSpec(
        "graph_gin",
        _gin,
        False,
        directions={"gin_precision": True, "gin_recall": True, "gin_coverage": True, "gin_density": None},
    ),
    MetricSpec("polygraph", _polygraph, False, cost="slow"),
    MetricSpec("graph_shares", _shares, None, directions={"valid": True, "graph_unique": True}),
    MetricSpec("class_adherence", _adherence, True, cost="slow"),
    MetricSpec("tstr", train_on_synthetic, True, cost="slow", directions={"trtr": None}),
    MetricSpec("graph_novelty", _novelty, True, null="threeway"),
    # Graphs further from training than real ones are a matter of fidelity; here only nearer ones are bad.
    MetricSpec(
        "graph_memorisation", _memorisation, True, null="threeway", directions={"below_first_percentile": False}
    ),
)

__all__ = [
    "METRICS",
    "GraphGIN",
    "GraphMMD",
    "GraphMemorisation",
    "GraphMetric",
    "GraphVUN",
    "KernelLogistic",
    "PolyGraphDiscrepancy",
    "average_ratio",
    "class_adherence",
    "find_blocks",
    "gaussian_emd",
    "gaussian_tv",
    "gin_scores",
    "graph_descriptors",
    "graph_memorisation",
    "graph_mmds",
    "graph_report",
    "graphs_of",
    "is_block_model",
    "is_isomorphic",
    "is_planar",
    "isomorphism_classes",
    "orbit_counts",
    "pack_graphs",
    "polygraph_discrepancy",
    "random_gin",
    "train_on_synthetic",
    "unpack_graphs",
    "valid_graphs",
    "valid_unique_novel",
    "wl_hashes",
]
