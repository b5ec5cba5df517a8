"""DropNode, RandomWalkSubgraph, MaskFeature, FeatureNoise."""

import pytest
import torch

pytest.importorskip("torch_geometric")
from scipy.stats import binom, chisquare
from torch_geometric.data import Batch, Data

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.testing import tiny_graphs, tiny_node
from lightning_synth.transforms import DropNode, FeatureNoise, MaskFeature, RandomWalkSubgraph


def path(n):
    ends = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    return Data(edge_index=torch.cat([ends, ends.flip(0)], 1), num_nodes=n, number=torch.arange(n))


def test_nodes_are_dropped_at_the_rate():
    graph = tiny_node(300)
    dropped = sum(300 - DropNode(0.3)(graph, key=key).num_nodes for key in range(20))
    low, high = binom.ppf([1e-6, 1 - 1e-6], 6000, 0.3)
    assert low <= dropped <= high


def test_one_node_always_stays():
    batch = DropNode(1.0)(Batch.from_data_list(tiny_graphs(8)))
    assert batch.ptr.diff().tolist() == [1] * 8 and batch.num_edges == 0
    assert DropNode(0.0)(tiny_node()).num_nodes == 30


def test_dropped_nodes_that_stay_in_place_are_bare():
    graph = tiny_node()
    made = DropNode(0.5, remove=False)(graph, key=1)
    gone = (made.x == 0).all(1)
    assert made.num_nodes == 30 and 0 < int(gone.sum()) < 30
    assert not bool(gone[made.edge_index].any()) and torch.equal(made.x[~gone], graph.x[~gone])
    for name in ("y", "train_mask", "val_mask", "test_mask"):
        assert torch.equal(made[name], graph[name])


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.8, 1.0])
def test_subgraph_is_connected_and_of_the_size(ratio):
    for key in range(5):
        made = RandomWalkSubgraph(ratio)(path(20), key=key)
        wanted = -(-int(ratio * 100) * 20 // 100)
        assert made.num_nodes == wanted
        # A connected part of a path is a stretch of it.
        assert (made.number.diff() == 1).all() and made.num_edges == 2 * (wanted - 1)


def test_subgraph_stays_within_a_component_and_works_on_directed_graphs():
    two = Data(edge_index=torch.tensor([[0, 2], [1, 3]]), num_nodes=4, number=torch.arange(4))
    for key in range(5):
        made = RandomWalkSubgraph(1.0)(two, key=key)
        assert made.number.tolist() in ([0, 1], [2, 3]) and made.num_edges == 1


def test_every_neighbour_is_equally_likely_to_join():
    """A star grown from a leaf of it: the hub is second, then each other leaf joins with the same chance."""
    leaves = 5
    ends = torch.stack([torch.zeros(leaves, dtype=torch.int64), torch.arange(1, leaves + 1)])
    star = Data(edge_index=torch.cat([ends, ends.flip(0)], 1), num_nodes=6, number=torch.arange(6))
    made = RandomWalkSubgraph(0.5)(Batch.from_data_list([star] * 3000), key=0)
    assert made.ptr.diff().tolist() == [3] * 3000
    joined = made.number.bincount(minlength=6)
    assert joined[0] == 3000 and chisquare(joined[1:].tolist()).pvalue > 1e-4


@pytest.mark.parametrize("mode", ["col", "row", "all"])
def test_masked_features(mode):
    graph = Data(x=torch.ones(400, 50), edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=400)
    gone = MaskFeature(0.3, mode=mode)(graph, key=1).x == 0
    units = {"col": gone[0], "row": gone[:, 0], "all": gone.reshape(-1)}[mode]
    low, high = binom.ppf([1e-6, 1 - 1e-6], len(units), 0.3)
    assert low <= int(units.sum()) <= high
    if mode == "col":
        assert torch.equal(gone, gone[:1].expand_as(gone))
    if mode == "row":
        assert torch.equal(gone, gone[:, :1].expand_as(gone))


def test_types_are_masked_with_a_type():
    graph = Data(x=torch.tensor([1, 2, 1]), edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=3)
    with pytest.raises(DataError, match="needs fill"):
        MaskFeature(0.5)(graph)
    made = MaskFeature(1.0, mode="row", fill=9)(graph)
    assert made.x.tolist() == [9, 9, 9] and made.x.dtype == torch.int64
    with pytest.raises(DataError, match="float features"):
        FeatureNoise()(graph)


def test_noise_is_normal():
    graph = Data(x=torch.zeros(2000, 20), edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=2000)
    x = FeatureNoise(2.0)(graph, key=1).x
    assert abs(float(x.mean())) < 0.05 and abs(float(x.std()) - 2) < 0.05
    assert abs(float((x / 2).pow(4).mean()) - 3) < 0.2
    assert torch.equal(FeatureNoise(0.0)(graph).x, graph.x)


def test_bad_options_and_graphs_without_features():
    bare = path(4)
    for transform in (MaskFeature(), FeatureNoise()):
        with pytest.raises(DataError, match="no features x"):
            transform(bare)
    with pytest.raises(ConfigError, match="mode must be one of col, row, all"):
        MaskFeature(mode="column")
    with pytest.raises(ConfigError, match="ratio must be in"):
        RandomWalkSubgraph(0.0)
    with pytest.raises(ConfigError, match="std"):
        FeatureNoise(-1.0)
