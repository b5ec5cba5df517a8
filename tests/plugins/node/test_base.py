"""What holds for every generator of nodes: provenance, privacy of the held-out nodes, counts, and bad input."""

from __future__ import annotations

import pytest
import torch

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.plugins.node.base import Neighbours, NewNodes, append_nodes, draw_of_class, race
from lightning_synth.requests import KeyedRNG

SMALL = {"hidden": 8}
MAKERS = {
    "node_oversample": {},
    "graph_ens": SMALL,
    "graph_sha": {**SMALL, "target": "max"},
    "graph_smote": SMALL,
    "node_mixup": SMALL,
}
EVERY = {**MAKERS, "gaug": {"hidden": 8, "latent": 4}}


def original_part(data, nodes, edges):
    """What must not have changed, read off an augmented graph."""
    return {key: data[key][:nodes] for key in ("x", "y", "train_mask", "val_mask", "test_mask")} | {
        "edge_index": data.edge_index[:, :edges]
    }


@pytest.mark.parametrize("name", MAKERS)
class TestNewNodes:
    def test_originals_come_first_and_are_unchanged(self, name, graph, fit) -> None:
        for directed in (True, False):
            grown = fit(name, graph, directed=directed, **MAKERS[name]).sample(1, seed=1).items()[0]
            nodes, edges = graph.num_nodes, graph.edge_index.shape[1]
            for key, value in original_part(grown, nodes, edges).items():
                assert torch.equal(value, graph[key]), key
            new = torch.arange(grown.num_nodes) >= nodes
            assert torch.equal(grown.is_synthetic, new)
            assert torch.equal(grown.edge_is_synthetic, torch.arange(grown.edge_index.shape[1]) >= edges)
            assert bool(grown.train_mask[new].all()) and not bool((grown.val_mask | grown.test_mask)[new].any())
            added = grown.edge_index[:, edges:]
            ends = added.sort(0).values  # edges join an original node and a new one, each pair once in each direction
            assert bool((ends[0] < nodes).all()) and bool((ends[1] >= nodes).all())
            assert bool((added[1] >= nodes).all()) == directed
            assert added.unique(dim=1).shape == added.shape
            assert directed or grown.is_undirected()

    def test_every_class_reaches_the_target(self, name, graph, fit) -> None:
        counts = torch.bincount(graph.y[graph.train_mask])
        for target, wanted in (
            ("max", counts.clamp(min=int(counts.max()))),
            ("mean", counts.clamp(min=round(float(counts.float().mean())))),
            (7, counts.clamp(min=7)),
        ):
            grown = fit(name, graph, steps=2, **{**MAKERS[name], "target": target}).sample(1).items()[0]
            assert torch.equal(torch.bincount(grown.y[grown.train_mask]), wanted)

    def test_only_the_chosen_classes_grow(self, name, graph, fit) -> None:
        counts = torch.bincount(graph.y[graph.train_mask])
        grown = fit(name, graph, steps=2, **{**MAKERS[name], "target": 12, "classes": [2]}).sample(1).items()[0]
        assert torch.bincount(grown.y[grown.train_mask]).tolist() == [*counts[:2].tolist(), 12]

    def test_edge_attributes_come_along(self, name, graph, fit) -> None:
        # The attribute of an edge is a function of its ends, so that copies can be told.
        graph.edge_attr = graph.edge_index.sum(0).float()[:, None]
        grown = fit(name, graph, steps=2, **MAKERS[name]).sample(1).items()[0]
        assert len(grown.edge_attr) == grown.edge_index.shape[1]
        assert set(grown.edge_attr[:, 0].tolist()) == set(graph.edge_attr[:, 0].tolist())

    def test_held_out_labels_are_not_read(self, name, graph, fit) -> None:
        other = graph.clone()
        held_out = ~graph.train_mask
        other.y[held_out] = (other.y[held_out] + 1) % 3
        first, second = (fit(name, data, **MAKERS[name]).sample(1, seed=4).items()[0] for data in (graph, other))
        assert torch.equal(first.x, second.x) and torch.equal(first.edge_index, second.edge_index)
        assert torch.equal(first.y[60:], second.y[60:])

    def test_held_out_nodes_are_no_parents(self, name, graph, fit) -> None:
        # Features of nodes in validation and test leave their mark in no new node.
        graph.x = torch.cat([graph.x, (graph.val_mask | graph.test_mask).float()[:, None]], 1)
        grown = fit(name, graph, target=30, **{k: v for k, v in MAKERS[name].items() if k != "target"})
        assert bool((grown.sample(1).items()[0].x[60:, -1] == 0).all())

    def test_a_class_without_training_nodes(self, name, graph, fit) -> None:
        graph.train_mask[graph.y == 2] = False
        with pytest.raises(DataError, match=r"class 2 has no training node.*classes=\[...\]"):
            fit(name, graph, steps=1, **MAKERS[name])
        counts = torch.bincount(graph.y[graph.train_mask], minlength=3)
        grown = fit(name, graph, steps=1, **{**MAKERS[name], "classes": [0, 1], "target": 15}).sample(1).items()[0]
        assert torch.bincount(grown.y[grown.train_mask]).tolist() == [15, 15] and int(counts[2]) == 0

    def test_a_class_with_one_training_node(self, name, graph, fit) -> None:
        rare = (graph.train_mask & (graph.y == 2)).nonzero()[:, 0]
        graph.train_mask[rare[1:]] = False
        grown = fit(name, graph, **{**MAKERS[name], "target": "max"}).sample(1).items()[0]
        counts = torch.bincount(grown.y[grown.train_mask])
        assert int(counts.min()) == int(counts.max()) and bool(torch.isfinite(grown.x).all())

    def test_an_isolated_parent(self, name, graph, fit) -> None:
        rare = (graph.train_mask & (graph.y == 2)).nonzero()[:, 0]
        graph.edge_index = graph.edge_index[:, ~torch.isin(graph.edge_index, rare).any(0)]
        grown = fit(name, graph, **MAKERS[name]).sample(1).items()[0]
        assert grown.num_nodes > 60 and bool(torch.isfinite(grown.x).all())

    def test_balanced_data_are_left_alone_with_a_warning(self, name, graph, fit) -> None:
        with pytest.warns(UserWarning, match="adds none; target=<number>"):
            model = get(name)
            model._build({"domain": "node", "num_features": 4, "num_classes": 3, "num_nodes": 60})
            model.check_graph(graph)
        grown = fit(name, graph, steps=1, **{**MAKERS[name], "target": 1}).sample(1).items()[0]
        assert grown.num_nodes == 60 and torch.equal(grown.edge_index, graph.edge_index)

    def test_impossible_options(self, name, graph, fit) -> None:
        with pytest.raises(ConfigError, match="target must be"):
            fit(name, graph, **{**MAKERS[name], "target": "most"})
        with pytest.raises(ConfigError, match=r"classes \[7\] must lie in 0..2"):
            fit(name, graph, **{**MAKERS[name], "classes": [7]})

    def test_directed_graphs(self, name, graph, fit) -> None:
        graph.edge_index = graph.edge_index[:, graph.edge_index[0] < graph.edge_index[1]]
        assert fit(name, graph, steps=2, **MAKERS[name]).sample(1).items()[0].num_nodes > 60
        with pytest.raises(DataError, match=r"both directions.*to_undirected"):
            fit(name, graph, directed=False, **MAKERS[name])


def get(name):
    from lightning_synth.registry import get_generator

    return get_generator(name)(**{**MAKERS[name], "target": 1})


@pytest.mark.parametrize("name", EVERY)
class TestEveryGenerator:
    def test_on_the_fly_is_a_function_of_the_seed(self, name, graph, fit) -> None:
        model = fit(name, graph, **EVERY[name])
        one, again, other = (model.augment(graph, KeyedRNG(torch.tensor([seed]))) for seed in (3, 3, 4))
        assert torch.equal(one.edge_index, again.edge_index) and torch.equal(one.x, again.x)
        assert one.edge_index.shape != other.edge_index.shape or not torch.equal(one.edge_index, other.edge_index)

    def test_a_fit_makes_what_was_prepared_anew(self, name, graph, fit) -> None:
        if name == "node_oversample":
            pytest.skip("learns nothing")
        model = fit(name, graph, **EVERY[name])
        before = model.prepared(graph)
        assert model.prepared(graph) is before
        with torch.no_grad():
            next(model.parameters()).add_(0.1)
        assert model.prepared(graph) is not before

    def test_bad_features(self, name, graph, fit) -> None:
        broken = graph.clone()
        broken.x[5, 0] = torch.nan
        with pytest.raises(DataError, match="non-finite"):
            fit(name, broken, **EVERY[name])
        if name != "node_oversample":
            bare = graph.clone()
            del bare.x
            with pytest.raises(DataError, match="float node features"):
                fit(name, bare, **EVERY[name])

    def test_masks_that_overlap(self, name, graph, fit) -> None:
        graph.test_mask[graph.train_mask.nonzero()[0]] = True
        with pytest.raises(DataError, match="train_mask.*test_mask"):
            fit(name, graph, **EVERY[name])

    def test_no_training_node(self, name, graph, fit) -> None:
        model = fit(name, graph, steps=1, **EVERY[name])
        graph.train_mask[:] = False
        with pytest.raises(DataError, match="no node is in train_mask"):
            model.check_graph(graph)


class TestParts:
    def test_neighbours_leave_out_loops_and_keep_edge_numbers(self) -> None:
        edges = torch.tensor([[0, 1, 2, 2, 0], [1, 1, 1, 0, 2]])
        row, source, edge = Neighbours(edges, 3).of(torch.tensor([1, 1, 2]))
        assert row.tolist() == [0, 0, 1, 1, 2]
        assert source.tolist() == [0, 2, 0, 2, 0] and torch.equal(edges[0][edge], source)

    def test_a_step_goes_to_each_neighbour_alike(self) -> None:
        near = Neighbours(torch.tensor([[1, 2, 3], [0, 0, 0]]), 4)
        end, _ = near.step(torch.zeros(30_000, dtype=torch.int64), KeyedRNG(0).uniform((30_000,)))
        shares = torch.bincount(end, minlength=4) / 30_000
        torch.testing.assert_close(shares, torch.tensor([0, 1, 1, 1]) / 3, atol=0.012, rtol=0)
        assert near.step(torch.tensor([1]), torch.tensor([0.5]))[1].tolist() == [-1]

    def test_the_race_is_a_draw_without_replacement(self) -> None:
        weight, rows = torch.tensor([3.0, 2.0, 1.0]), 20_000
        row = torch.arange(rows).repeat_interleave(3)
        won = race(row, weight.repeat(rows), KeyedRNG(1).uniform((3 * rows,)), torch.full((rows,), 2)) % 3
        first, second = won.reshape(-1, 2).T
        assert float((first == 0).float().mean()) == pytest.approx(3 / 6, abs=0.012)
        # Second place: sum over the first of p_first * p_second / (1 - p_first).
        p = weight / 6
        wanted = sum(float(p[i] * p[2] / (1 - p[i])) for i in (0, 1))
        assert float((second == 2).float().mean()) == pytest.approx(wanted, abs=0.012)

    def test_draws_within_a_class_follow_the_weights(self) -> None:
        nodes, label = torch.tensor([4, 5, 6, 7]), torch.tensor([1, 0, 1, 0])
        weight = torch.tensor([1.0, 2.0, 3.0, 0.0])
        found = draw_of_class(nodes, label, torch.tensor([0, 1]).repeat(10_000), KeyedRNG(2), weight)
        assert set(found[0::2].tolist()) == {5}
        assert float((found[1::2] == 6).float().mean()) == pytest.approx(0.75, abs=0.015)

    def test_an_augmented_graph_can_be_augmented_again(self, graph) -> None:
        none = torch.zeros(0, dtype=torch.int64)
        once = append_nodes(graph, NewNodes(torch.tensor([0]), None, none, none, none))
        twice = append_nodes(once, NewNodes(torch.tensor([60]), None, none, none, none))
        assert twice.is_synthetic.nonzero()[:, 0].tolist() == [60, 61]
        assert graph.num_nodes == 60 and "is_synthetic" not in graph
