"""NodeMixup: partners of the same class, trusted pseudo-labels outside of all splits, neighbours of both."""

from __future__ import annotations

import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.node.base import Neighbours
from lightning_synth.plugins.node.node_mixup import NodeMixup, beta, either_neighbours
from lightning_synth.requests import KeyedRNG


def test_candidates_are_training_nodes_and_free_nodes_of_sure_prediction(graph, fit) -> None:
    model = fit("node_mixup", graph, steps=100, hidden=8, confidence=0.5)
    pairing = model.prepare(graph)
    belief = model.network(model.read(graph)).detach().softmax(1)
    free = ~(graph.train_mask | graph.val_mask | graph.test_mask)
    wanted = graph.train_mask | (free & (belief.max(1).values > 0.5))
    assert sorted(pairing.nodes.tolist()) == wanted.nonzero()[:, 0].tolist()
    train = graph.train_mask.nonzero()[:, 0]
    assert torch.equal(pairing.label[: len(train)], graph.y[train])
    assert torch.equal(pairing.label[len(train) :], belief.argmax(1)[pairing.nodes[len(train) :]])
    assert sorted(fit("node_mixup", graph, hidden=8, confidence=1.0).prepare(graph).nodes.tolist()) == train.tolist()


def test_partners_are_of_the_same_class_and_rather_alike(graph, fit) -> None:
    model = fit("node_mixup", graph, hidden=8, confidence=1.0, sharpness=5.0)
    pairing, source = model.prepared(graph), graph.train_mask.nonzero()[:, 0][:1].expand(20_000)
    partner = model._partners(graph, pairing, source, KeyedRNG(0))
    mates = (graph.train_mask & (graph.y == graph.y[source[0]])).nonzero()[:, 0]
    assert set(partner.tolist()) <= set(mates.tolist()) - {int(source[0])}
    alike = (pairing.around[mates] * pairing.around[source[0]]).sum(1)
    often = torch.bincount(partner, minlength=60)[mates]
    others = mates != source[0]
    assert int(often[others][alike[others].argmax()]) > int(often[others][alike[others].argmin()])


def test_the_law_of_the_share() -> None:
    share = beta(3.0, KeyedRNG(0).uniform((20_000,)))
    assert float(share.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(share.var()) == pytest.approx(1 / 28, abs=0.001)  # Beta(a, a): 1 / (8 a + 4)


def test_neighbours_of_either_each_once() -> None:
    edges = torch.tensor([[2, 3, 3, 4, 0], [0, 0, 1, 1, 1]])
    row, neighbour, edge = either_neighbours(Neighbours(edges, 5), torch.tensor([0, 4]), torch.tensor([1, 1]))
    assert row.tolist() == [0, 0, 0, 0, 1, 1, 1] and neighbour.tolist() == [0, 2, 3, 4, 0, 3, 4]
    assert torch.equal(edges[0][edge], neighbour)


def test_features_are_on_the_line_between_source_and_partner(graph, fit) -> None:
    model = fit("node_mixup", graph, hidden=8, confidence=1.0)
    source = model.draw_sources(graph, KeyedRNG(0))
    new = model.draw(graph, source, KeyedRNG(0))
    partner = model._partners(graph, model.prepared(graph), source, KeyedRNG(0).fork("partner"))
    line = graph.x[source] - graph.x[partner]
    share = ((new.x - graph.x[partner]) * line).sum(1) / line.square().sum(1)
    torch.testing.assert_close(new.x, graph.x[partner] + share[:, None] * line, atol=1e-5, rtol=0)
    assert 0 <= float(share.min()) and float(share.max()) <= 1


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"confidence": 2.0}, {"candidates": 0}])
def test_impossible_options(options) -> None:
    with pytest.raises(ConfigError):
        NodeMixup(**options)
