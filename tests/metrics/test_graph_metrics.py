"""Metric classes of graphs, and `evaluate` on graph data."""

from __future__ import annotations

import copy
from itertools import chain

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

import lightning_synth as ls
import lightning_synth.metrics as metrics
import lightning_synth.metrics.graph as graph
from lightning_synth.datamodules.base import ItemsDataModule
from lightning_synth.datamodules.procedural import planar_graphs
from lightning_synth.errors import DataError
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_datamodule, tiny_graphs

ROWS = {
    "graph_mmd": ["mmd_degree", "mmd_clustering", "mmd_orbit", "mmd_spectral", "mmd_wavelet"],
    "graph_gin": ["gin_mmd", "gin_fid", "gin_precision", "gin_recall", "gin_density", "gin_coverage"],
    "polygraph": ["pgd"],
    "graph_shares": ["connected_share", "planar_share", "tree_share", "graph_unique"],
    "graph_novelty": ["graph_novel"],
    "graph_memorisation": ["memorisation_ratio", "below_first_percentile"],
}


def typed(n: int, seed: int = 0) -> list[Data]:
    draw = torch.Generator().manual_seed(seed)
    items = tiny_graphs(n, seed=seed)
    for item in items:
        item.x = torch.randint(3, (item.num_nodes,), generator=draw)
        item.edge_attr = item.x[item.edge_index].sum(0) % 2
    return items


def edges_moved(items: list[Data], count: int = 3) -> list[Data]:
    """The same graphs with a few edges between random nodes."""
    rng, result = np.random.default_rng(0), []
    for item in items:
        e = item.edge_index[:, item.edge_index[0] < item.edge_index[1]].numpy()
        e = e[:, rng.permutation(e.shape[1])[count:]]
        e = np.concatenate([e, rng.integers(0, item.num_nodes, (2, count))], 1)
        result.append(Data(edge_index=torch.as_tensor(np.concatenate([e, e[::-1]], 1)), num_nodes=item.num_nodes))
    return result


# ------------------------------------------------------------------------------------------------------- classes


def test_packed_graphs_come_back() -> None:
    items = [*typed(3), *tiny_graphs(2), Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=1)]
    items[0].edge_attr = torch.stack([items[0].edge_attr, items[0].edge_attr + 1], 1)
    items[1].x = items[1].x.float()
    packed = graph.pack_graphs(items)
    assert packed.dtype == torch.int64 and packed.ndim == 1
    for before, after in zip(items, graph.unpack_graphs(packed), strict=True):
        assert after.num_nodes == before.num_nodes and torch.equal(after.edge_index, before.edge_index)
        for name in ("x", "edge_attr"):
            value = before.get(name)
            kept = value is not None and not value.is_floating_point()
            assert (after.get(name) is not None) == kept and (not kept or torch.equal(after[name], value))
    assert graph.unpack_graphs(graph.pack_graphs([])) == []


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (graph.GraphMMD(), "mmd_orbit"),
        (graph.GraphMMD("emd", "unbiased"), "mmd_wavelet"),
        (graph.GraphGIN(), "gin_fid"),
        (graph.GraphGIN(schema={"num_node_types": 3, "num_edge_types": 2}), "gin_mmd"),
        (graph.PolyGraphDiscrepancy(), "pgd_gin"),
        (graph.GraphVUN("connected"), "vun"),
    ],
)
def test_metric_classes_do_not_depend_on_the_batches(metric: graph.GraphMetric, name: str) -> None:
    real, synthetic = typed(24), typed(20, seed=1)
    metric.update(Batch.from_data_list(real), real=True)
    metric.update(synthetic, real=False)
    whole = metric.compute()
    metric.reset()
    for start in range(0, 24, 7):
        metric.update(real[start : start + 7], real=True)
        metric.update(synthetic[start : start + 7], real=False)
    assert torch.equal(whole[name], metric.compute()[name]) and whole[name].dtype == torch.float64


def test_types_count_in_the_state() -> None:
    schema = {"num_node_types": 3, "num_edge_types": 2}
    items, bare = typed(30), tiny_graphs(30)
    for metric, equal in ((graph.GraphGIN(), True), (graph.GraphGIN(schema=schema), False)):
        metric.update(items, real=True)
        metric.update(bare, real=False)
        assert (float(metric.compute()["gin_mmd"]) < 1e-9) == equal


def test_memorisation_class() -> None:
    metric = graph.GraphMemorisation()
    metric.update(tiny_graphs(12), real=True)
    metric.update(tiny_graphs(12, seed=1), real=True, holdout=True)
    metric.update(tiny_graphs(12), real=False)
    assert float(metric.compute()["memorisation_ratio"]) == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_compute_before_update_says_what_is_missing() -> None:
    with pytest.raises(DataError, match="no real rows"):
        graph.GraphMMD().compute()


def test_public_names_are_exported() -> None:
    for name in ("GraphMMD", "GraphVUN", "graph_report", "graph_mmds", "orbit_counts", "is_planar", "valid_graphs"):
        assert name in metrics.__all__ and getattr(metrics, name) is getattr(graph, name)


# ------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("labels", [True, False])
def test_every_metric_of_the_table_computes(labels: bool) -> None:
    parts = [tiny_graphs(24, num_classes=2 if labels else 0, seed=s) for s in range(3)]
    schema = describe(parts[0], "graph")
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for spec in graph.METRICS:
        found = spec.compute(*parts, schema, 0)
        assert found == spec.compute(*parts, schema, 0), spec.name
        assert all(np.isfinite(value) for value in found.values()), (spec.name, found)
        if spec.name in ROWS:
            assert list(found) == ROWS[spec.name]
        else:
            assert bool(found) == labels
    assert torch.equal(state, torch.get_rng_state()) and (np.random.get_state()[1] == numpy_state).all()


def test_metrics_do_not_change_the_graphs() -> None:
    parts = [typed(12, seed=s) for s in range(3)]
    before = copy.deepcopy(parts)
    for spec in graph.METRICS:
        spec.compute(*parts, describe(parts[0], "graph"), 0)
    for old, new in zip(chain(*before), chain(*parts), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in ("edge_index", "x", "edge_attr", "y"))


def test_schema_may_say_what_is_valid() -> None:
    items = tiny_graphs(12)
    schema = {**describe(items, "graph"), "validity": "tree"}
    found = {
        k: v for s in graph.METRICS[3:] if s.name in ROWS for k, v in s.compute(items, items, items, schema, 0).items()
    }
    assert found["valid"] == found["vun"] == 0


def test_evaluate_tiny_graphs() -> None:
    data = tiny_datamodule("graph", n=40)
    result = ls.evaluate(tiny_graphs(30, seed=9), data, metrics=["graph"], floors=["bootstrap"], repeats=3)
    assert set(chain(*ROWS.values())) <= set(result.table.index) and not [n for n in result.notes if "failed" in n]
    assert (
        result.table.loc["graph_novel", "bootstrap"] == 0 and result.table.loc["memorisation_ratio", "bootstrap"] == 0
    )
    assert np.isfinite(result.table.loc["class_adherence", "value"])


def test_evaluate_tells_perfect_broken_and_copied_planar_graphs() -> None:
    train, test = planar_graphs(90, sizes=32, seed=0), planar_graphs(90, sizes=32, seed=1)
    data = ItemsDataModule(train, test_items=test, domain="graph")
    chosen, options = [*ROWS][:2] + [*ROWS][3:], {"floors": False, "repeats": 8}
    perfect = ls.evaluate(planar_graphs(90, sizes=32, seed=2), data, metrics=chosen, **options)
    broken = ls.evaluate(edges_moved(planar_graphs(90, sizes=32, seed=3)), data, metrics=chosen, **options)
    copied = ls.evaluate(train, data, metrics=chosen, **options)
    assert perfect.flags[0].startswith("within real-vs-real noise")
    assert broken.flags[0].startswith("differs from real data") and broken.table.z["mmd_orbit"] > 5
    assert broken.table.value["planar_share"] < 0.3 < perfect.table.value["planar_share"] == 1
    assert copied.flags[0].startswith("leaks training data") and "graph_novel 0 (real 1)" in copied.flags[0]
