"""Random GIN features and PolyGraph discrepancy: known answers, invariances, what each can and cannot see."""

from __future__ import annotations

from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import lightning_synth.metrics.graph_judges as gj
from lightning_synth.errors import DataError


def item(g: nx.Graph, **fields) -> SimpleNamespace:
    ends = np.array(list(nx.convert_node_labels_to_integers(g).edges), dtype=np.int64).reshape(-1, 2).T
    both = torch.as_tensor(np.concatenate([ends, ends[::-1]], 1))
    return SimpleNamespace(edge_index=both, num_nodes=len(g), **fields)


def gnp(count: int, seed: int, sizes=(20,), p: float = 0.2) -> list[SimpleNamespace]:
    draw = np.random.default_rng(seed)
    return [
        item(nx.gnp_random_graph(int(draw.choice(sizes)), p, seed=draw.integers(1 << 30).item())) for _ in range(count)
    ]


# ---------------------------------------------------------------------------------------------------- random GIN


def test_gin_of_regular_graphs_by_hand() -> None:
    """All nodes of a regular graph have the same state, so that a graph is its size times one state."""
    small, large = (gj.random_gin([item(nx.cycle_graph(n))])[0] for n in (5, 10))
    assert np.allclose(large, 2 * small) and small.shape == (70,)
    draw = torch.Generator().manual_seed(42)
    state = np.array([4.0 + 2 * 4.0])  # degree in both directions, plus that of two neighbours
    for _ in range(2):
        weight = torch.nn.init.orthogonal_(torch.empty(35, len(state)), generator=draw).double().numpy()
        bias = torch.empty(35).uniform_(-1 / len(state) ** 0.5, 1 / len(state) ** 0.5, generator=draw).double().numpy()
        state = np.maximum((weight @ state + bias) / np.sqrt(1 + 1e-5), 0)
    assert np.allclose(small[:35], 5 * state / np.sqrt(1 + 1e-5))


def test_gin_does_not_depend_on_company_or_order() -> None:
    items, state = gnp(6, 0, sizes=(5, 20, 30)), torch.get_rng_state()
    order = torch.randperm(items[0].num_nodes, generator=torch.Generator().manual_seed(0))
    turned = SimpleNamespace(edge_index=order[items[0].edge_index], num_nodes=items[0].num_nodes)
    assert np.allclose(gj.random_gin([turned])[0], gj.random_gin(items)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_gin_sees_types_that_the_schema_has() -> None:
    path = nx.path_graph(3)
    kinds = [torch.tensor(k) for k in ([0, 1, 0], [1, 0, 0])]
    bonds = [torch.tensor(k) for k in ([0, 1, 0, 1], [1, 1, 1, 1])]
    nodes, edges = [item(path, x=k) for k in kinds], [item(path, edge_attr=k) for k in bonds]
    plain = gj.random_gin([*nodes, *edges])
    assert np.allclose(plain, plain[0])
    for items, schema in ((nodes, {"num_node_types": 2}), (edges, {"num_edge_types": 2})):
        a, b = gj.random_gin(items, schema)
        assert not np.allclose(a, b)


def test_gin_scores_of_one_law_and_of_two() -> None:
    same = gj.gin_scores(gnp(80, 0), gnp(80, 1))
    other = gj.gin_scores(gnp(80, 0), gnp(80, 2, p=0.5))
    assert same["gin_mmd"] < 0.05 < 0.3 < other["gin_mmd"] and same["gin_fid"] < 0.05 * other["gin_fid"]
    assert same["gin_coverage"] > 0.85 and other["gin_coverage"] == other["gin_density"] == 0


def test_gin_scores_of_a_narrowed_law_lose_recall_not_precision() -> None:
    found = gj.gin_scores(gnp(80, 0, sizes=(10, 20, 30)), gnp(80, 1, sizes=(20,)))
    assert found["gin_precision"] > 0.85 and found["gin_recall"] < 0.6 and found["gin_coverage"] < 0.6


def test_gin_scores_need_graphs() -> None:
    with pytest.raises(DataError, match="0 reference and 3 generated"):
        gj.gin_scores([], gnp(3, 0))
    few = gj.gin_scores(gnp(3, 0), gnp(3, 1))
    assert np.isfinite(few["gin_fid"]) and np.isnan(few["gin_recall"])


# ------------------------------------------------------------------------------------------ PolyGraph discrepancy


def test_discrepancy_of_one_law_is_near_zero() -> None:
    found = gj.polygraph_discrepancy(gnp(80, 0), gnp(80, 1), repeats=3)
    assert found.value < 0.2 and found.size == 80 and found.draws.shape == (3,)
    assert set(found.scores) == {"degree", "clustering", "spectral", "wavelet", "orbit", "gin"}


def test_discrepancy_of_two_laws_is_near_one() -> None:
    found = gj.polygraph_discrepancy(gnp(60, 0), gnp(60, 1, p=0.5))
    assert found.value > 0.9 and found.descriptor


def test_discrepancy_sees_a_narrowed_law_that_a_linear_judge_does_not() -> None:
    rng = np.random.default_rng(0)
    real, narrow = rng.normal(size=(200, 5)), 0.4 * rng.normal(size=(200, 5))
    bounds = [gj._bound(real, narrow, [judge])[1] for judge in (LogisticRegression(), gj.KernelLogistic())]
    assert bounds[0] < 0.2 < 0.6 < bounds[1]


def test_bound_grows_with_the_share_of_wrong_graphs() -> None:
    real, good, bad = gnp(80, 0), gnp(80, 1), gnp(80, 2, p=0.5)
    values = [gj.polygraph_discrepancy(real, [*bad[:k], *good[k:]], repeats=2).value for k in (0, 20, 40, 80)]
    assert values == sorted(values) and values[-1] > values[0] + 0.7
    # The divergence of P and (P + Q) / 2, for P and Q apart, has the root .558; 40 graphs for training find less.
    assert 0.3 < values[2] < 0.6


def test_discrepancy_is_a_pure_function_and_takes_other_judges() -> None:
    real, other = gnp(24, 0), gnp(40, 1, p=0.3)
    runs = [gj.polygraph_discrepancy(real, other, seed=s) for s in (1, 1, 2)]
    assert runs[0].scores == runs[1].scores != runs[2].scores and runs[0].size == 24
    linear = gj.polygraph_discrepancy(real, other, classifiers=[LogisticRegression(C=0.1), LogisticRegression(C=1.0)])
    assert 0 <= linear.value <= 1


def test_equal_and_few_graphs() -> None:
    cycles = [item(nx.cycle_graph(6))] * 10
    assert gj.polygraph_discrepancy(cycles, cycles).value == 0
    assert np.isnan(gj.polygraph_discrepancy(cycles[:7], cycles).value)


def test_kernel_judge_gives_probabilities() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    y = (np.square(x).sum(1) < 1.4).astype(int)
    p = gj.KernelLogistic().fit(x[:200], y[:200]).predict_proba(x[200:])
    assert np.allclose(p.sum(1), 1) and ((p[:, 1] > 0.5) == y[200:]).mean() > 0.85
