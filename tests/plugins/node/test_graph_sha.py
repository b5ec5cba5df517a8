"""GraphSHA: hard sources, partners of the class they are taken for, and neighbours from the PageRank of the source."""

from __future__ import annotations

import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.node.base import Neighbours
from lightning_synth.plugins.node.graph_sha import GraphSHA, pagerank_neighbours
from lightning_synth.requests import KeyedRNG


def test_hard_sources_are_drawn_more_often(graph, fit) -> None:
    model = fit("graph_sha", graph, hidden=8, target=4000, classes=[2])
    rare = (graph.train_mask & (graph.y == 2)).nonzero()[:, 0]
    belief = model.prepared(graph).belief
    belief[rare[0]], belief[rare[1]] = torch.tensor([0.0, 0.2, 0.8]), torch.tensor([0.6, 0.0, 0.4])
    found = torch.bincount(model.draw_sources(graph, KeyedRNG(1)), minlength=60)
    torch.testing.assert_close(found[rare] / found.sum(), torch.tensor([0.25, 0.75]), atol=0.02, rtol=0)


def test_partners_are_of_the_class_the_source_is_taken_for(graph) -> None:
    rare = (graph.train_mask & (graph.y == 2)).nonzero()[:, 0]
    belief = torch.full((60, 3), 1 / 3)
    belief[rare[0]] = torch.tensor([0.1, 0.3, 0.6])
    partner = GraphSHA._partners(graph, belief, rare[:1].expand(20_000), KeyedRNG(0))
    assert bool(graph.train_mask[partner].all()) and 2 not in graph.y[partner].tolist()
    assert float((graph.y[partner] == 1).float().mean()) == pytest.approx(0.75, abs=0.012)


def test_features_are_nearly_the_partners(graph, fit) -> None:
    model = fit("graph_sha", graph, hidden=8, target=3000, classes=[2])
    source = model.draw_sources(graph, KeyedRNG(0))
    new = model.draw(graph, source, KeyedRNG(0))
    partner = model._partners(graph, model.prepared(graph).belief, source, KeyedRNG(0).fork("partner"))
    share = (new.x - graph.x[partner])[:, 0] / (graph.x[source] - graph.x[partner])[:, 0]
    assert float(share.median()) == pytest.approx(1 - 0.5 ** (1 / 100), abs=1e-3)  # the median of Beta(1, 100)


def test_neighbours_follow_the_pagerank(graph) -> None:
    near, stop = Neighbours(graph.edge_index, 60), 0.3
    walk = torch.zeros(60, 60, dtype=torch.float64)
    walk[graph.edge_index[1], graph.edge_index[0]] = 1
    walk /= walk.sum(1, keepdim=True).clamp(min=1)
    # Walks have one step and stop after each with probability 0.3.
    exact = stop * walk @ torch.linalg.inv(torch.eye(60) - (1 - stop) * walk)
    source = int(near.degree.argmax())
    row, neighbour, _ = pagerank_neighbours(near, torch.full((15_000,), source), stop, KeyedRNG(0))
    rank = torch.arange(len(row)) - torch.searchsorted(row, row)
    found = torch.bincount(neighbour[rank == 0], minlength=60) / int((rank == 0).sum())
    torch.testing.assert_close(found.double(), exact[source], atol=0.015, rtol=0)
    assert len(torch.unique(row * 60 + neighbour)) == len(row)
    assert int(torch.bincount(row).max()) <= int(near.degree[source])


def test_predictions_do_not_depend_on_the_order_of_nodes(graph, fit, permuted) -> None:
    model, (moved, place) = fit("graph_sha", graph, hidden=8), permuted(graph)
    torch.testing.assert_close(model.prepare(moved).belief[place], model.prepare(graph).belief)


@pytest.mark.parametrize("options", [{"mix": 0.0}, {"stop": 0.0}, {"stop": 1.5}])
def test_impossible_options(options) -> None:
    with pytest.raises(ConfigError):
        GraphSHA(**options)
