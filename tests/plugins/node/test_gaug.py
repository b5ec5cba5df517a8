"""GAug: how many edges change and which, and that everything else stays."""

from __future__ import annotations

import pytest
import torch

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.plugins.node.gaug import GAug

SMALL = {"hidden": 8, "latent": 4}


def pairs(edges) -> set:
    return set(map(tuple, edges.T.tolist()))


def test_counts_are_exact_and_the_rest_is_untouched(graph, fit) -> None:
    count = graph.edge_index.shape[1] // 2
    found = fit("gaug", graph, add=0.2, drop=0.1, **SMALL).sample(1).items()[0]
    added, kept = found.edge_index[:, found.edge_is_synthetic], found.edge_index[:, ~found.edge_is_synthetic]
    assert added.shape[1] == 2 * round(0.2 * count) and kept.shape[1] == 2 * (count - round(0.1 * count))
    assert pairs(kept) < pairs(graph.edge_index) and not pairs(added) & pairs(graph.edge_index)
    assert found.is_undirected() and not found.has_self_loops()
    assert found.edge_index.unique(dim=1).shape == found.edge_index.shape
    assert bool((~found.is_synthetic).all()) and torch.equal(found.x, graph.x) and torch.equal(found.y, graph.y)
    assert all(torch.equal(found[key], graph[key]) for key in ("train_mask", "val_mask", "test_mask"))


def test_no_change_is_no_change(graph, fit) -> None:
    found = fit("gaug", graph, steps=2, add=0.0, drop=0.0, **SMALL).sample(1).items()[0]
    assert torch.equal(found.edge_index, graph.edge_index) and found.edge_index.dtype == torch.int64


def test_without_noise_the_least_likely_edges_go(graph, fit) -> None:
    model = fit("gaug", graph, add=0.0, drop=0.25, temperature=0.0, **SMALL)
    known, found = model.prepared(graph), model.sample(1).items()[0]
    keep = torch.tensor([tuple(graph.edge_index[:, e].tolist()) in pairs(found.edge_index) for e in known.pairs])
    assert float(known.edge[~keep].max()) <= float(known.edge[keep].min())


def test_without_noise_the_most_likely_candidates_come(graph, fit) -> None:
    model = fit("gaug", graph, add=0.1, drop=0.0, temperature=0.0, **SMALL)
    from lightning_synth.requests import KeyedRNG

    rng, known = KeyedRNG(5), model.prepared(graph)
    first, second, _ = model._candidates(graph, known, rng.fork("candidates"))
    assert bool((first < second).all()) and not pairs(torch.stack([first, second])) & pairs(graph.edge_index)
    odds = model.log_odds(known.mean, first, second).detach()
    found = model.augment(graph, rng)
    added = found.edge_index[:, found.edge_is_synthetic]
    took = torch.tensor([(int(a), int(b)) in pairs(added) for a, b in zip(first, second, strict=True)])
    assert float(odds[took].min()) >= float(odds[~took].max())


def test_added_edges_rather_join_one_class(graph, fit) -> None:
    model = fit("gaug", graph, steps=150, add=0.3, drop=0.3, temperature=0.3, lr=0.02, **SMALL)
    found = model.sample(1).items()[0]
    same = lambda edges: float((graph.y[edges[0]] == graph.y[edges[1]]).float().mean())  # noqa: E731
    assert same(found.edge_index[:, found.edge_is_synthetic]) > 0.45  # by chance: 1/3


def test_attributes_come_along_and_agree_in_both_directions(graph, fit) -> None:
    graph.edge_attr = graph.edge_index.sum(0)
    found = fit("gaug", graph, steps=5, add=0.2, drop=0.2, **SMALL).sample(1).items()[0]
    kept = ~found.edge_is_synthetic
    assert torch.equal(found.edge_attr[kept], found.edge_index[:, kept].sum(0))
    key = {tuple(e): int(a) for e, a in zip(found.edge_index.T.tolist(), found.edge_attr, strict=True)}
    assert all(key[b, a] == value for (a, b), value in key.items())


def test_no_label_is_read(graph, fit) -> None:
    other = graph.clone()
    other.y = (other.y + 1) % 3
    first, second = (fit("gaug", data, **SMALL).sample(1).items()[0] for data in (graph, other))
    assert torch.equal(first.edge_index, second.edge_index)


def test_a_directed_graph_is_refused(graph, fit) -> None:
    graph.edge_index = graph.edge_index[:, graph.edge_index[0] < graph.edge_index[1]]
    with pytest.raises(DataError, match=r"both directions.*to_undirected"):
        fit("gaug", graph, **SMALL)


def test_likelihoods_do_not_depend_on_the_order_of_nodes(graph, fit, permuted) -> None:
    model, (moved, place) = fit("gaug", graph, **SMALL), permuted(graph)
    torch.testing.assert_close(model.prepare(moved).mean[place], model.prepare(graph).mean)


@pytest.mark.parametrize("options", [{"add": -0.1}, {"drop": 1.5}, {"temperature": -1.0}, {"candidates": 0}])
def test_impossible_options(options) -> None:
    with pytest.raises(ConfigError):
        GAug(**options)
