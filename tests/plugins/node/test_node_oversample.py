"""Over-sampling: exact copies, in even shares."""

from __future__ import annotations

import torch

from lightning_synth.plugins.node.node_oversample import NodeOversample
from lightning_synth.testing import tiny_schema


def test_copies_have_features_and_neighbours_of_their_source(graph) -> None:
    graph.name = torch.arange(60)  # a node attribute that goes along tells the source
    grown = NodeOversample(target=12).fit_on([graph], tiny_schema("node")).sample(1).items()[0]
    for i in range(60, grown.num_nodes):
        source = int(grown.name[i])
        assert graph.train_mask[source] and torch.equal(grown.x[i], graph.x[source])
        near = grown.edge_index[0][grown.edge_index[1] == i]
        assert sorted(near.tolist()) == sorted(graph.edge_index[0][graph.edge_index[1] == source].tolist())


def test_both_directions_are_those_of_bootstrap(graph) -> None:
    from lightning_synth.plugins.baselines import duplicate_nodes

    graph.name = torch.arange(60)
    model = NodeOversample(target=12, directed=False).fit_on([graph], tiny_schema("node"))
    grown = model.sample(1).items()[0]
    other = duplicate_nodes(graph, grown.name[60:])
    both = [set(map(tuple, data.edge_index.T.tolist())) for data in (grown, other)]
    assert both[0] == both[1] and torch.equal(grown.y, other.y)


def test_training_nodes_of_a_class_are_copied_alike(graph) -> None:
    graph.name = torch.arange(60)
    grown = NodeOversample(target=4000, classes=[2]).fit_on([graph], tiny_schema("node")).sample(1).items()[0]
    counts = torch.bincount(grown.name[60:])
    rare = (graph.train_mask & (graph.y == 2)).nonzero()[:, 0]
    assert int(counts.sum()) == int(counts[rare].sum()) == 3998
    torch.testing.assert_close(counts[rare] / 3998, torch.full((2,), 0.5), atol=0.03, rtol=0)
