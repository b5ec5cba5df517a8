"""GraphSMOTE: parents are nearest neighbours of one class, features and edges are theirs."""

from __future__ import annotations

import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.node.graph_smote import GraphSMOTE, nearest_other
from lightning_synth.requests import KeyedRNG


def test_parents_are_the_nearest_training_nodes_of_one_class(graph, fit) -> None:
    model = fit("graph_smote", graph, hidden=8, target=20)
    seen = model.prepared(graph)
    for node in graph.train_mask.nonzero()[:, 0].tolist():
        mates = (graph.train_mask & (graph.y == graph.y[node])).nonzero()[:, 0]
        mates = mates[mates != node]
        distance = (seen.h[mates] - seen.h[node]).norm(dim=1)
        other = int(seen.nearest[node])
        assert other in mates.tolist()
        assert float((seen.h[other] - seen.h[node]).norm()) == pytest.approx(float(distance.min()), abs=1e-5)


def test_new_nodes_lie_between_their_parents(graph, fit) -> None:
    model = fit("graph_smote", graph, hidden=8, target=500, classes=[2])
    source = model.draw_sources(graph, KeyedRNG(0))
    new = model.draw(graph, source, KeyedRNG(0))
    first, second = graph.x[source], graph.x[model.prepared(graph).nearest[source]]
    share = ((new.x - first) * (second - first)).sum(1) / (second - first).square().sum(1)
    torch.testing.assert_close(new.x, first + share[:, None] * (second - first), atol=1e-5, rtol=0)
    assert 0 <= float(share.min()) < 0.02 and 0.98 < float(share.max()) <= 1
    assert float(share.mean()) == pytest.approx(0.5, abs=0.04)


def test_neighbours_are_those_of_the_parents_the_decoder_believes_in(graph, fit) -> None:
    model = fit("graph_smote", graph, hidden=8, threshold=0.0)
    source = model.draw_sources(graph, KeyedRNG(0))
    new, seen = model.draw(graph, source, KeyedRNG(0)), model.prepared(graph)
    for i, node in enumerate(source.tolist()):
        parents = torch.tensor([node, int(seen.nearest[node])])
        either = graph.edge_index[0][torch.isin(graph.edge_index[1], parents)].unique()
        assert sorted(new.neighbour[new.row == i].tolist()) == either.tolist()
    assert len(fit("graph_smote", graph, hidden=8, threshold=1.0).draw(graph, source, KeyedRNG(0)).row) == 0


def test_edges_are_drawn_with_their_probability(graph, fit) -> None:
    model = fit("graph_smote", graph, hidden=8, target=3000, classes=[2])
    with torch.no_grad():
        model.network.bilinear.zero_()
        model.network.bias.fill_(torch.tensor(0.25).logit())
    source = model.draw_sources(graph, KeyedRNG(0))
    drawn = len(model.draw(graph, source, KeyedRNG(0)).row)
    model.hparams["threshold"] = 0.1
    assert drawn / len(model.draw(graph, source, KeyedRNG(0)).row) == pytest.approx(0.25, abs=0.02)


def test_the_decoder_does_not_care_for_direction(graph, fit) -> None:
    net = fit("graph_smote", graph, hidden=8).network
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    torch.testing.assert_close(net.edge(a, b), net.edge(b, a))


def test_the_decoder_learns_the_edges(graph, fit) -> None:
    model = fit("graph_smote", graph, steps=150, hidden=16, edge_weight=5.0)
    h, net = model.prepared(graph).h, model.network
    here = net.edge(h[graph.edge_index[0]], h[graph.edge_index[1]]).mean()
    pairs = KeyedRNG(9).integers(60, (2, 2000))
    assert float(here) > float(net.edge(h[pairs[0]], h[pairs[1]]).mean()) + 0.1


def test_blocks_of_distances_give_what_the_whole_gives(monkeypatch) -> None:
    h = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    whole = torch.cdist(h, h).fill_diagonal_(torch.inf).argmin(1)
    monkeypatch.setattr("lightning_synth.plugins.node.graph_smote._BLOCK", 100)
    assert torch.equal(nearest_other(h), whole)


def test_parents_do_not_depend_on_the_order_of_nodes(graph, fit, permuted) -> None:
    model, (moved, place) = fit("graph_smote", graph, hidden=8, target=20), permuted(graph)
    before, after = model.prepare(graph), model.prepare(moved)
    torch.testing.assert_close(after.h[place], before.h)
    train = graph.train_mask.nonzero()[:, 0]
    assert torch.equal(after.nearest[place[train]], place[before.nearest[train]])


@pytest.mark.parametrize("options", [{"threshold": 2.0}, {"edge_weight": -1.0}])
def test_impossible_options(options) -> None:
    with pytest.raises(ConfigError):
        GraphSMOTE(**options)
