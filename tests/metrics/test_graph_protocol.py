"""The table of the papers: rows, floors, intervals that cover, faults."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from lightning_synth.datamodules.procedural import planar_graphs, tree_graphs
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.metrics import graph_protocol
from lightning_synth.metrics.graph_judges import Discrepancy
from lightning_synth.metrics.graph_protocol import graph_report, wilson_interval
from lightning_synth.metrics.graph_statistics import graph_mmds
from lightning_synth.testing import tiny_graphs

ROWS = [
    *("mmd_degree", "mmd_clustering", "mmd_orbit", "mmd_spectral", "mmd_wavelet", "ratio"),
    *("gin_mmd", "gin_fid", "gin_precision", "gin_recall", "gin_density", "gin_coverage", "pgd"),
    *("valid", "unique", "novel", "vun", "memorisation_ratio", "below_first_percentile"),
]


@pytest.fixture(scope="module")
def trees():
    return tree_graphs(60, sizes=24, seed=0), tree_graphs(30, sizes=24, seed=1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the classifiers, most of the time of a report on few graphs."""
    found = Discrepancy(0.1, "orbit", {}, np.array([0.05, 0.15]), 8)
    monkeypatch.setattr(graph_protocol, "polygraph_discrepancy", lambda *_, **__: found)


@pytest.fixture(scope="module")
def table(trees):
    items = tree_graphs(20, sizes=24, seed=2)
    perfect = lambda n, seed: tree_graphs(n, sizes=24, seed=seed + 50)  # noqa: E731
    return graph_report(*trees, items, kind="tree", perfect=perfect, floor_repeats=3)


def test_table_has_every_score_with_interval_and_floors(table, trees) -> None:
    assert list(table.index) == ROWS
    assert list(table.columns) == ["value", "low", "high", "perfect", "perfect_sd", "train", "train_sd", "better"]
    numbers = table.drop(columns="better").to_numpy(dtype=float)
    assert np.isfinite(numbers).all()
    assert (table.low <= table.value + 1e-12).all() and (table.value <= table.high + 1e-12).all()
    assert table.attrs["train_vs_test"] == graph_mmds(trees[1], trees[0])
    assert table.attrs["num_generated"] == table.attrs["num_train_floor"] == 20 and table.attrs["undecided"] == 0


def test_true_law_scores_like_the_perfect_sampler(table) -> None:
    for row in ("ratio", "mmd_spectral", "mmd_wavelet", "gin_mmd"):
        assert abs(table.value[row] - table.perfect[row]) < 5 * table.perfect_sd[row] + 0.05
    assert table.value["vun"] == table.perfect["vun"] == 1
    assert table.train["novel"] == table.train["vun"] == table.train["memorisation_ratio"] == 0
    assert table.train["below_first_percentile"] == 1 and table.train["unique"] == 1


def test_report_is_a_pure_function(trees) -> None:
    items = tree_graphs(12, sizes=24, seed=3)
    state = torch.get_rng_state()
    options = {"resamples": 20, "floor_repeats": 2, "pgd_repeats": 2}
    a, b, c = (graph_report(*trees, items, seed=s, **options) for s in (0, 0, 1))
    assert a.equals(b) and not a.equals(c) and torch.equal(state, torch.get_rng_state())
    assert "vun" not in a.index and a.perfect.isna().all()


def test_perfect_graphs_are_dealt_into_samples_of_the_same_count(trees, quick) -> None:
    items, true = tree_graphs(10, sizes=24, seed=3), tree_graphs(35, sizes=24, seed=4)
    found = graph_report(*trees, items, perfect=true, resamples=10, pgd_repeats=1)
    parts = [graph_mmds(trees[1], true[k : k + 10])["mmd_spectral"] for k in (0, 10, 20)]
    assert found.perfect["mmd_spectral"] == pytest.approx(np.mean(parts))
    assert found.perfect_sd["mmd_spectral"] == pytest.approx(np.std(parts, ddof=1))
    with pytest.raises(DataError, match="perfect holds 9 graphs"):
        graph_report(*trees, items, perfect=true[:9])


def test_training_floor_is_the_whole_set_when_more_was_generated(trees, quick) -> None:
    found = graph_report(*trees, tree_graphs(70, sizes=24, seed=5), resamples=10, pgd_repeats=1)
    assert found.attrs["num_train_floor"] == 60 and found.train_sd.isna().all()
    assert found.train["mmd_spectral"] == pytest.approx(found.attrs["train_vs_test"]["mmd_spectral"])


def test_intervals_cover_the_mean_over_samples(trees, quick) -> None:
    """95 % intervals of 30 samples of the true law contain the mean score of all of them in most cases."""
    tables = [
        graph_report(*trees, tree_graphs(20, sizes=24, seed=s), resamples=60, pgd_repeats=1, floor_repeats=1)
        for s in range(10, 40)
    ]
    for row in ("ratio", "mmd_wavelet", "mmd_spectral"):
        mean = np.mean([t.value[row] for t in tables])
        covered = np.mean([t.low[row] <= mean <= t.high[row] for t in tables])
        assert 0.7 < covered <= 1, (row, covered)


def test_broken_graphs_are_seen(trees) -> None:
    cycles = [Data(edge_index=torch.tensor(list(nx.cycle_graph(24).to_directed().edges)).T, num_nodes=24)] * 15
    found = graph_report(*trees, cycles, kind="tree", resamples=10, pgd_repeats=2)
    assert found.value["valid"] == found.value["vun"] == 0 and found.value["unique"] == pytest.approx(1 / 15)
    assert found.value["ratio"] > 5 * found.train["ratio"] and found.value["pgd"] > 0.5


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", ["tv", "emd"])
def test_kernels_and_estimators(trees, quick, kernel, estimator) -> None:
    items = tree_graphs(10, sizes=24, seed=6)
    found = graph_report(*trees, items, kernel=kernel, estimator=estimator, resamples=10, pgd_repeats=1)
    expected = graph_mmds(trees[1], items, kernel=kernel, estimator=estimator)
    assert {name: found.value[name] for name in expected} == pytest.approx(expected)
    assert ("ratio" in found.index) == (estimator == "biased")


def test_published_protocol_on_planar_graphs(data_root) -> None:
    z = np.load(data_root / "graphs" / "planar_64_200.npz")
    cuts = np.split(z["edges"].astype(np.int64), z["edge_ptr"][1:-1])
    items = [Data(edge_index=torch.as_tensor(np.concatenate([e, e[:, ::-1]]).T), num_nodes=64) for e in cuts]
    train, test = ([items[i] for i in np.flatnonzero(z["split"] == part)] for part in (0, 2))
    found = graph_report(
        train, test, planar_graphs(40, seed=9), kind="planar", perfect=planar_graphs, floor_repeats=3, pgd_repeats=1
    )
    assert found.value["vun"] == 1 and found.low["vun"] == pytest.approx(0.912, abs=0.001)
    # What the papers print for good models, from a model that is perfect.
    assert 1.0 < found.perfect["ratio"] < 2.3 and 1.0 < found.train["ratio"]


def test_settings_and_empty_samples_are_refused(trees) -> None:
    for options in ({"level": 1.0}, {"resamples": 0}, {"floor_repeats": 0}):
        with pytest.raises(ConfigError, match="level"):
            graph_report(*trees, trees[0], **options)
    with pytest.raises(DataError, match="0 generated graphs"):
        graph_report(*trees, [])


def test_few_graphs_give_nan_not_an_error() -> None:
    found = graph_report(tiny_graphs(5), tiny_graphs(4, seed=1), tiny_graphs(3, seed=2), resamples=5)
    assert np.isnan(found.value["pgd"]) and np.isnan(found.value["gin_recall"]) and np.isfinite(found.value["ratio"])


def test_wilson_interval_at_the_ends() -> None:
    assert wilson_interval(0.0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    low, high = wilson_interval(0.5, 400)
    assert (low + high) / 2 == pytest.approx(0.5) and high - low == pytest.approx(2 * 1.96 * 0.025, rel=0.02)
