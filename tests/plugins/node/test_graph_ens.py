"""GraphENS: targets, mixing ratios, protected features and neighbours follow the laws of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_synth.errors import ConfigError
from lightning_synth.losses import class_counts, class_weights
from lightning_synth.plugins.node.base import Neighbours
from lightning_synth.plugins.node.graph_ens import GraphENS, divergence, mixed_neighbours
from lightning_synth.requests import KeyedRNG


def test_targets_are_drawn_by_the_logarithm_of_the_counts(graph, fit) -> None:
    model = fit("graph_ens", graph, steps=1, hidden=8)
    found = model._targets(graph, KeyedRNG(0).uniform((40_000,)))
    assert bool(graph.train_mask[found].all())
    counts = torch.bincount(graph.y[graph.train_mask]).float()
    shares = torch.bincount(graph.y[found]) / len(found)
    torch.testing.assert_close(shares, counts.log() / counts.log().sum(), atol=0.01, rtol=0)


def test_divergence() -> None:
    p, q = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    assert float(divergence(p, q)) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)


def test_the_gradient_is_that_of_the_features(graph, fit) -> None:
    model = fit("graph_ens", graph, hidden=8)
    x = graph.x.clone().requires_grad_()
    data = graph.clone()
    data.x = x
    y = graph.y[graph.train_mask]
    model._input = None
    logits = model.network(model.read(data))[graph.train_mask]
    F.cross_entropy(logits, y, class_weights(class_counts(y, 3))).backward()
    model._input = None
    torch.testing.assert_close(model.prepare(graph).saliency, x.grad[graph.train_mask].abs())


def test_features_lie_between_the_parents(graph, fit) -> None:
    model = fit("graph_ens", graph, hidden=8, keep=0.0)
    guide, train = model.prepared(graph), graph.train_mask.nonzero()[:, 0]
    source, target = train[:1].expand(5000), train[-1:].expand(5000)
    x = model._features(graph, guide, source, target, torch.zeros(5000), KeyedRNG(1).uniform((5000, 3)), KeyedRNG(0))
    ratio = (x - graph.x[target]) / (graph.x[source] - graph.x[target])
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 4), atol=1e-3, rtol=0)
    # Beta(2, 2) has the mean 1/2 and the variance 1/20.
    assert float(ratio[:, 0].mean()) == pytest.approx(0.5, abs=0.01)
    assert float(ratio[:, 0].var()) == pytest.approx(0.05, abs=0.003)


def test_what_matters_most_for_the_target_comes_from_the_source(graph, fit) -> None:
    model = fit("graph_ens", graph, hidden=8, keep=0.5)
    guide, train = model.prepared(graph), graph.train_mask.nonzero()[:, 0]
    guide.saliency = torch.tensor([8.0, 4.0, 2.0, 1.0]).expand(len(train), 4)
    source, target = train[:1].expand(20_000), train[-1:].expand(20_000)
    for distance, kept in ((0.0, 1), (1.0, 1), (100.0, 2)):  # sigmoid(d / 3) of two features, rounded down
        u, kl = KeyedRNG(1).uniform((20_000, 3)), torch.full((20_000,), distance)
        x = model._features(graph, guide, source, target, kl, u, KeyedRNG(0))
        protected = (x == graph.x[source]).float()
        assert set(protected.sum(1).tolist()) == {kept}
        if kept == 1:
            wanted = torch.tensor([8.0, 4.0, 2.0, 1.0]) / 15
            torch.testing.assert_close(protected.mean(0), wanted, atol=0.012, rtol=0)


class TestNeighbours:
    #: Node 0 hears 2, 3, 4, 5; node 1 hears 4, 5, 6; the others hear nobody.
    near = Neighbours(torch.tensor([[2, 3, 4, 5, 4, 5, 6], [0, 0, 0, 0, 1, 1, 1]]), 7)

    def draw(self, share: float, new: int = 60_000, near: Neighbours | None = None):
        source, target = torch.zeros(new, dtype=torch.int64), torch.ones(new, dtype=torch.int64)
        shares = torch.tensor([[1 - share], [share]]).expand(2, new)
        return mixed_neighbours(near or self.near, source, target, shares, KeyedRNG(2).uniform((new,)), KeyedRNG(3))

    def test_the_first_one_is_drawn_from_the_mixture(self) -> None:
        # Every node has one neighbour more often than not: quota 1 where the model node has one.
        edges = torch.tensor([[2, 3, 4, 5, 4, 5, 6, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6]])
        row, neighbour, _ = self.draw(0.3, near=Neighbours(edges, 7))
        single = torch.bincount(row)[row] == 1
        wanted = torch.tensor([0, 0, 0.7 / 4, 0.7 / 4, 0.7 / 4 + 0.1, 0.7 / 4 + 0.1, 0.1])
        found = torch.bincount(neighbour[single], minlength=7) / int(single.sum())
        torch.testing.assert_close(found, wanted, atol=0.01, rtol=0)

    def test_no_neighbour_twice_and_not_more_than_the_source_has(self) -> None:
        row, neighbour, edge = self.draw(0.5, 2000)
        assert int(torch.bincount(row).max()) <= 4
        assert len(torch.unique(row * 7 + neighbour)) == len(row)
        assert torch.equal(self.near.source[self.near.edge.argsort()][edge], neighbour)

    def test_degrees_are_those_of_random_nodes(self) -> None:
        row, _, _ = self.draw(0.5)
        found = torch.bincount(torch.bincount(row, minlength=60_000), minlength=5) / 60_000
        torch.testing.assert_close(found, torch.tensor([5, 0, 0, 1, 1]) / 7, atol=0.01, rtol=0)

    def test_a_share_of_zero_is_the_source_alone(self) -> None:
        _, neighbour, _ = self.draw(0.0, 2000)
        assert set(neighbour.tolist()) == {2, 3, 4, 5}


def test_predictions_do_not_depend_on_the_order_of_nodes(graph, fit, permuted) -> None:
    model, (moved, place) = fit("graph_ens", graph, hidden=8), permuted(graph)
    before, after = model.prepare(graph), model.prepare(moved)
    torch.testing.assert_close(after.belief[place], before.belief)
    train = graph.train_mask.nonzero()[:, 0]
    torch.testing.assert_close(after.saliency[after.place[place[train]]], before.saliency[before.place[train]])


@pytest.mark.parametrize("options", [{"keep": 1.5}, {"temperature": 0.0}, {"hidden": 0}, {"dropout": 1.0}])
def test_impossible_options(options) -> None:
    with pytest.raises(ConfigError):
        GraphENS(**options)
