"""Rules of validity, the block-model checker and its calibration, V.U.N., memorisation."""

from __future__ import annotations

from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
from scipy.stats import chi2

from lightning_synth.errors import ConfigError
from lightning_synth.metrics.graph_validity import (
    find_blocks,
    graph_memorisation,
    is_block_model,
    valid_graphs,
    valid_unique_novel,
)


def item(g: nx.Graph) -> SimpleNamespace:
    ends = np.array(list(nx.convert_node_labels_to_integers(g).edges), dtype=np.int64).reshape(-1, 2).T
    return SimpleNamespace(edge_index=np.concatenate([ends, ends[::-1]], 1), num_nodes=len(g))


def block_graph(sizes: list[int], seed: int, p: float = 0.3, q: float = 0.005) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    density = np.where(labels[:, None] == labels, p, q)
    upper = np.triu(np.random.default_rng(seed).random(density.shape) < density, 1)
    return (upper | upper.T).astype(float), labels


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return len(np.unique(np.stack([a, b]), axis=1).T) == a.max() + 1 == b.max() + 1


# --------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("rule", "g", "expected"),
    [
        ("connected", nx.path_graph(5), True),
        ("connected", nx.disjoint_union(nx.path_graph(3), nx.path_graph(3)), False),
        ("connected", nx.empty_graph(1), True),
        ("connected", nx.empty_graph(0), False),
        ("planar", nx.grid_2d_graph(4, 4), True),
        ("planar", nx.complete_graph(5), False),
        ("planar", nx.disjoint_union(nx.path_graph(3), nx.path_graph(3)), False),
        ("tree", nx.random_labeled_tree(20, seed=0), True),
        ("tree", nx.cycle_graph(5), False),
        ("tree", nx.disjoint_union(nx.cycle_graph(3), nx.empty_graph(1)), False),
        ("lobster", nx.star_graph(8), True),
        ("lobster", nx.path_graph(30), True),
        ("lobster", nx.balanced_tree(2, 2), True),
        ("lobster", nx.balanced_tree(3, 3), False),
        ("lobster", nx.cycle_graph(6), False),
        ("lobster", nx.empty_graph(1), True),
        ("sbm", nx.gnp_random_graph(80, 0.3, seed=0), False),
        ("sbm", nx.empty_graph(10), False),
    ],
)
def test_rules(rule: str, g: nx.Graph, expected: bool) -> None:
    assert valid_graphs([item(g)], rule).tolist() == [expected]


def test_rules_on_many_graphs_at_once_are_the_rules_of_each() -> None:
    graphs = [nx.gnp_random_graph(n, 0.25, seed=n) for n in range(1, 25)]
    graphs += [nx.random_labeled_tree(n, seed=n) for n in range(3, 12)]
    items = [item(g) for g in graphs]
    assert valid_graphs(items, "connected").tolist() == [nx.is_connected(g) for g in graphs]
    assert valid_graphs(items, "tree").tolist() == [nx.is_tree(g) for g in graphs]
    planar = [nx.is_connected(g) and nx.check_planarity(g)[0] for g in graphs]
    assert valid_graphs(items, "planar").tolist() == planar and 0 < sum(planar) < len(planar)


def test_random_lobsters_are_lobsters() -> None:
    lobsters = [g for g in (nx.random_lobster_graph(15, 0.6, 0.5, seed=s) for s in range(20)) if len(g)]
    assert valid_graphs([item(g) for g in lobsters], "lobster").all()
    longer = []
    for g in lobsters:
        leaf = next(v for v in g if g.degree(v) <= 1)
        nx.add_path(g, [leaf, "a", "b", "c", "d"])
        nx.add_path(g, ["a", "e", "f", "g"])
        longer.append(item(g))
    assert not valid_graphs(longer, "lobster").any()


def test_own_rule_and_unknown_rule() -> None:
    items = [item(nx.path_graph(n)) for n in (2, 3, 4)]
    assert valid_graphs(items, lambda graph: graph.num_nodes % 2 == 0).tolist() == [True, False, True]
    assert valid_graphs([], "planar").tolist() == []
    with pytest.raises(ConfigError, match="'bipartite' is not one of connected, planar, tree, lobster, sbm"):
        valid_graphs(items, "bipartite")


# -------------------------------------------------------------------------------------------------- block models


@pytest.mark.parametrize("sizes", [[30], [20, 40], [25, 30, 35], [20, 22, 30, 40, 38]])
def test_blocks_are_found(sizes: list[int]) -> None:
    a, truth = block_graph(sizes, seed=len(sizes))
    order = np.random.default_rng(0).permutation(len(a))
    assert same_partition(find_blocks(a[np.ix_(order, order)]), truth[order])


def test_a_graph_without_blocks_is_one_block() -> None:
    assert find_blocks(block_graph([60], 0, p=0.1)[0]).max() == 0
    assert find_blocks(np.zeros((5, 5))).tolist() == [0] * 5


def test_densities_that_are_not_the_models_are_invalid() -> None:
    assert is_block_model(block_graph([30, 30, 30], 1)[0])
    assert not is_block_model(block_graph([30, 30, 30], 1, p=0.6)[0])
    assert not is_block_model(block_graph([30, 30, 30], 1, q=0.05)[0])
    assert not is_block_model(block_graph([60, 60], 1)[0]) and not is_block_model(block_graph([30], 1)[0])
    assert is_block_model(block_graph([60, 60], 1)[0], block_size=(20, 70))
    assert not is_block_model(block_graph([12, 12, 12, 12], 1)[0])


def test_checker_is_calibrated_by_the_true_blocks() -> None:
    """The answer for the blocks found is that for the blocks drawn, and about a tenth of true graphs fail."""
    rng = np.random.default_rng(0)
    agree, valid = [], []
    for seed in range(80):
        a, labels = block_graph(rng.integers(20, 41, size=rng.integers(2, 6)).tolist(), seed)
        size = np.bincount(labels)
        density = (np.eye(len(size))[labels].T @ a @ np.eye(len(size))[labels]) / (np.outer(size, size) - np.diag(size))
        expected = np.where(np.eye(len(size)), 0.3, 0.005)
        by_truth = chi2.sf((density - expected) ** 2 / (density * (1 - density) + 1e-6), 1).mean() > 0.9
        found = is_block_model(a)
        agree.append(found == by_truth)
        valid.append(found)
    assert np.mean(agree) > 0.95 and 0.8 < np.mean(valid) < 0.98


def test_real_block_graphs_are_as_valid_as_reported(data_root) -> None:
    """85.9 % of the training graphs with graph-tool (DeFoG, table 1)."""
    z = np.load(data_root / "graphs" / "sbm_200.npz")
    cuts = np.split(z["edges"].astype(np.int64), z["edge_ptr"][1:-1])
    rows = np.flatnonzero(z["split"] == 0)
    items = [
        SimpleNamespace(edge_index=np.concatenate([cuts[i].T, cuts[i].T[::-1]], 1), num_nodes=int(z["num_nodes"][i]))
        for i in rows
    ]
    assert 0.84 < valid_graphs(items, "sbm").mean() < 0.95


# --------------------------------------------------------------------------------------------- V.U.N. and memory


def test_vun_by_hand() -> None:
    path, cycle, star, two = nx.path_graph(6), nx.cycle_graph(6), nx.star_graph(5), nx.empty_graph(2)
    train = [item(path)]
    reversed_path = item(nx.relabel_nodes(path, {i: 5 - i for i in range(6)}))
    found = valid_unique_novel(train, [reversed_path, item(cycle), item(star), item(cycle), item(two)], "connected")
    assert found.novel.tolist() == [False, True, True, True, True]
    assert found.unique.tolist() == [True, True, True, False, True]
    assert found.scores() == {"valid": 0.8, "unique": 0.8, "novel": 0.8, "vun": 0.4}


def test_vun_without_rule_or_graphs() -> None:
    assert set(valid_unique_novel([], [item(nx.path_graph(3))]).scores()) == {"unique", "novel"}
    empty = valid_unique_novel([item(nx.path_graph(3))], [], "tree").scores()
    assert set(empty) == {"valid", "unique", "novel", "vun"} and np.isnan(list(empty.values())).all()


def test_memorisation_of_copies_near_copies_and_new_graphs() -> None:
    def graphs(seed: int) -> list[nx.Graph]:
        return [nx.gnp_random_graph(30, 0.15, seed=1000 * seed + i) for i in range(60)]

    def edited(g: nx.Graph) -> nx.Graph:
        g = g.copy()
        g.remove_edge(*next(iter(g.edges)))
        return g

    train, holdout, new = graphs(0), graphs(1), graphs(2)
    near = [edited(g) for g in train]
    items = {
        name: [item(g) for g in part]
        for name, part in {"train": train, "holdout": holdout, "new": new, "near": near}.items()
    }
    fresh, copies, edits = (
        graph_memorisation(items["train"], items["holdout"], items[name]) for name in ("new", "train", "near")
    )
    assert fresh["memorisation_ratio"] == pytest.approx(1, abs=0.05) and fresh["below_first_percentile"] < 0.1
    assert copies == {"memorisation_ratio": 0.0, "below_first_percentile": 1.0}
    # Novelty does not see an edge moved; this does.
    assert valid_unique_novel(items["train"], items["near"]).scores()["novel"] == 1
    assert edits["memorisation_ratio"] < 0.8 and edits["below_first_percentile"] > 0.9
