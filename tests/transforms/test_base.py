"""What all transforms share: owned randomness, no harm to the given graph, batches as graphs one by one."""

import copy

import pytest
import torch

pytest.importorskip("torch_geometric")
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import Compose, ToUndirected
from torch_geometric.utils import is_undirected

import lightning_synth.transforms as transforms
from lightning_synth.errors import DataError
from lightning_synth.requests import KeyedRNG
from lightning_synth.testing import tiny_graphs, tiny_node
from lightning_synth.testing.case import watch_global_rng
from lightning_synth.transforms import (
    AddRandomEdge,
    AugmentedDataset,
    Diffusion,
    DropEdge,
    DropNode,
    FeatureNoise,
    GMixup,
    MaskFeature,
    PairMixup,
    PerturbEdge,
    RandomWalkSubgraph,
    TwoViews,
    transform_with,
)

EDGES = (DropEdge(0.4), AddRandomEdge(0.4), PerturbEdge(0.4))
NODES = (DropNode(0.4), DropNode(0.4, remove=False), RandomWalkSubgraph(0.5))
FEATURES = (MaskFeature(0.4), MaskFeature(0.4, mode="row"), MaskFeature(0.4, mode="all"), FeatureNoise(0.3))
RANDOM = (*EDGES, *NODES, *FEATURES)
ALL = (*RANDOM, Diffusion(top_k=4), Diffusion("heat", top_k=4))


def graphs(n=5):
    """Undirected graphs with features, and edge attributes that both directions share."""
    made = tiny_graphs(n)
    for i, graph in enumerate(made):
        draw = torch.Generator().manual_seed(i)
        graph.x = 1 + torch.rand(graph.num_nodes, 3, generator=draw)
        low, high = graph.edge_index.min(0).values, graph.edge_index.max(0).values
        graph.edge_attr = torch.stack([low * 100 + high, low + high], 1).float()
        graph.node_number = torch.arange(graph.num_nodes)
    return made


def same(one, other):
    assert set(one.keys()) == set(other.keys())
    for name in one.keys():
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_the_given_graph_stays_as_it_is(transform):
    for graph in (graphs(1)[0], tiny_node(), Batch.from_data_list(graphs())):
        before = graph.clone()
        with watch_global_rng() as kept:
            transform(graph)
        assert kept[0]
        same(graph, before)


@pytest.mark.parametrize("transform", RANDOM, ids=repr)
def test_draws_are_a_function_of_seed_and_key(transform):
    def result(made, **options):
        return made(graphs(1)[0], **options)

    fresh = copy.deepcopy(transform)
    same(result(transform, key=(3, 7)), result(fresh, key=(3, 7)))
    other = copy.deepcopy(transform)
    other.seed = 1
    changed = [
        not _equal(result(transform, key=(3, key)), result(variant, key=(3, key)))
        for key in range(8)
        for variant in (other,)
    ]
    assert any(changed)
    assert any(not _equal(result(transform, key=key), result(transform, key=key + 100)) for key in range(8))


def _equal(one, other):
    return all(torch.equal(torch.as_tensor(one[n]), torch.as_tensor(other[n])) for n in ("x", "edge_index"))


def test_calls_without_a_key_count_and_epochs_start_again():
    transform, graph = FeatureNoise(), graphs(1)[0]
    first = [transform(graph).x for _ in range(3)]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    transform.set_epoch(1)
    second = [transform(graph).x for _ in range(3)]
    transform.set_epoch(0)
    assert all(torch.equal(transform(graph).x, x) for x in first)
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_a_batch_is_transformed_like_its_graphs(transform):
    items = graphs()
    seeds = torch.tensor([5, 6, 7, 8, 9])
    batch = transform_with(transform, Batch.from_data_list(items), KeyedRNG(seeds))
    alone = [transform_with(transform, item, KeyedRNG(seeds[i : i + 1])) for i, item in enumerate(items)]
    assert batch.validate()
    for one, other in zip(batch.to_data_list(), alone, strict=True):
        assert set(one.keys()) == set(other.keys()) and one.num_nodes == other.num_nodes
        for name in one.keys():
            if name != "num_nodes":
                assert torch.allclose(one[name].double(), other[name].double(), atol=1e-6), name
    again = Batch.from_data_list(alone)
    assert torch.equal(batch.batch, again.batch) and torch.equal(batch.ptr, again.ptr)


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_undirected_stays_undirected_without_repeats_or_loops(transform):
    for graph in (*graphs(), tiny_node()):
        for key in range(3):
            made = transform(graph, key=key)
            ends = made.edge_index
            assert ends.dtype == torch.int64 and is_undirected(ends, num_nodes=made.num_nodes)
            assert not bool((ends[0] == ends[1]).any()) and ends.unique(dim=1).shape == ends.shape


@pytest.mark.parametrize("transform", (*EDGES, *NODES), ids=repr)
def test_attributes_are_carried_along(transform):
    for graph in graphs():
        made = transform(graph, key=2)
        number = made.node_number
        assert len(made.x) == len(number) == made.num_nodes and made.y.tolist() == graph.y.tolist()
        if not isinstance(transform, DropNode) or transform.remove:
            assert torch.equal(made.x, graph.x[number])
        assert len(made.edge_attr) == made.num_edges
        known = {tuple(row) for row in graph.edge_attr.tolist()}
        assert {tuple(row) for row in made.edge_attr.tolist()} <= known
        # An edge that was there before has its own attribute, and both directions have one.
        ends = number[made.edge_index]
        own = torch.stack([ends.min(0).values * 100 + ends.max(0).values, ends.sum(0)], 1).float()
        pairs = {tuple(sorted(pair)) for pair in graph.edge_index.T.tolist()}
        old = torch.tensor([tuple(sorted(pair)) in pairs for pair in ends.T.tolist()], dtype=torch.bool)
        if not isinstance(transform, PerturbEdge):
            assert torch.equal(made.edge_attr[old], own[old])
        shared = {}
        for pair, row in zip(ends.T.tolist(), made.edge_attr.tolist(), strict=True):
            assert shared.setdefault(tuple(sorted(pair)), row) == row


@pytest.mark.parametrize("transform", (*EDGES, DropNode(0.4), RandomWalkSubgraph(0.5)), ids=repr)
def test_the_order_in_which_edges_are_stored_does_not_matter(transform):
    graph = tiny_node()
    order = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(0))
    shuffled = copy.copy(graph)
    shuffled.edge_index = graph.edge_index[:, order]
    one, other = (transform(g, key=4).edge_index for g in (graph, shuffled))
    assert torch.equal(one.unique(dim=1), other.unique(dim=1))


@pytest.mark.parametrize("transform", (Diffusion(top_k=None, tolerance=1e-6), MaskFeature(0.5)), ids=repr)
def test_what_is_not_drawn_for_nodes_is_equivariant(transform):
    """Renumbering the nodes renumbers the result."""
    graph = tiny_node()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    number = order.argsort()
    renumbered = Data(x=graph.x[order], edge_index=number[graph.edge_index], num_nodes=30)
    plain = Data(x=graph.x, edge_index=graph.edge_index, num_nodes=30)
    one, other = transform(plain, key=1), transform(renumbered, key=1)
    assert torch.equal(one.x[order], other.x)
    if "edge_weight" in one:
        dense = [torch.zeros(30, 30).index_put((*g.edge_index,), g.edge_weight) for g in (one, other)]
        assert torch.allclose(dense[0][order][:, order], dense[1], atol=1e-5)


@pytest.mark.parametrize("transform", EDGES, ids=repr)
def test_renumbering_does_not_change_the_law(transform):
    """Mean degree of one node over many draws, under two numberings: the same within the noise."""
    graph = tiny_node()
    number = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    renumbered = Data(edge_index=number[graph.edge_index], num_nodes=30)
    plain = Data(edge_index=graph.edge_index, num_nodes=30)
    batches = [Batch.from_data_list([g] * 400) for g in (plain, renumbered)]
    means = [
        transform(b, key=3).edge_index[0].bincount(minlength=12000).view(400, 30).double().mean(0) for b in batches
    ]
    # 30 nodes, standard error of a mean below 0.15.
    assert float((means[0] - means[1][number]).abs().max()) < 0.6


def test_compose_with_other_transforms():
    steps = Compose([DropEdge(0.3, seed=1), ToUndirected(), AddRandomEdge(0.3, seed=2), MaskFeature(0.3, seed=3)])
    first = steps(graphs(1)[0])
    for step in steps.transforms:
        if not isinstance(step, ToUndirected):
            step.set_epoch(0)
    same(first, steps(graphs(1)[0]))
    assert is_undirected(first.edge_index)


def test_two_views_differ_and_go_through_a_loader():
    views = TwoViews(Compose([DropEdge(0.5), FeatureNoise()]))
    one, other = views(graphs(1)[0], key=1)
    assert not torch.equal(one.x, other.x)
    same(one, views(graphs(1)[0], key=1)[0])
    first, second = next(iter(DataLoader(AugmentedDataset(graphs(6), views), batch_size=3)))
    assert first.num_graphs == second.num_graphs == 3 and not torch.equal(first.x, second.x)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_is_a_function_of_seed_epoch_and_index(workers):
    data = AugmentedDataset(graphs(6), FeatureNoise(), seed=4)
    loader = DataLoader(data, batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    epochs = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        epochs.append(torch.cat([batch.x for batch in loader]))
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    data.set_epoch(1)
    assert torch.equal(epochs[1], torch.cat([graph.x for graph in data]))


def test_processes_of_a_loader_draw_apart():
    class Dataset(torch.utils.data.Dataset):
        transform = FeatureNoise()

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return self.transform(graphs(1)[0])

    draw = torch.Generator()
    loader = DataLoader(Dataset(), num_workers=2, generator=draw)
    drawn = []
    for epoch in (0, 1):
        draw.manual_seed(epoch)
        drawn += [batch.x for batch in loader]
    assert len({x.sum().item() for x in drawn}) == 8


def test_single_nodes_and_graphs_without_edges_survive():
    odd = [Data(x=torch.ones(1, 2), edge_index=torch.zeros(2, 0, dtype=torch.int64), y=torch.tensor([0]), num_nodes=1)]
    odd += [Data(x=torch.ones(3, 2), edge_index=torch.zeros(2, 0, dtype=torch.int64), y=torch.tensor([1]), num_nodes=3)]
    for transform in ALL:
        for graph in (*odd, Batch.from_data_list(odd)):
            assert transform(graph).num_nodes >= 1


@pytest.mark.parametrize("name", transforms.__all__)
def test_names_are_exported(name):
    assert getattr(transforms, name).__doc__


def test_bad_graphs_are_refused():
    graph = Data(edge_index=torch.tensor([[0, 5], [1, 0]]), num_nodes=3)
    with pytest.raises(DataError, match="names node 5, but there are 3 nodes"):
        DropEdge()(graph)
    graph = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), edge_attr=torch.ones(3, 1), num_nodes=3)
    with pytest.raises(DataError, match="3 rows of edge_attr for 2 edges"):
        AddRandomEdge()(graph)
    with pytest.raises(AttributeError, match="no attribute 'DropAll'"):
        _ = transforms.DropAll


@pytest.mark.parametrize("made", [GMixup(), PairMixup()], ids=repr)
def test_repr_names_the_options(made):
    assert repr(made).startswith(type(made).__name__ + "(seed=0")
