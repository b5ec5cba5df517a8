"""GMixup, PairMixup and ManifoldMixup: soft labels, known graphons, identical graphs, gradients."""

import pytest
import torch

pytest.importorskip("torch_geometric")
from torch import nn
from torch_geometric.data import Batch, Data

from lightning_synth.errors import ConfigError, DataError, NotFittedError
from lightning_synth.testing import tiny_graphs
from lightning_synth.transforms import GMixup, ManifoldMixup, PairMixup


def random_graphs(p, label, n=60, nodes=20, seed=0, **fields):
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        upper = (torch.rand(nodes, nodes, generator=draw) < p).triu(1)
        edge_index = (upper | upper.T).nonzero().T
        x = torch.full((nodes,), label)
        made.append(Data(x=x, edge_index=edge_index, y=torch.tensor([label]), num_nodes=nodes, **fields))
    return made


def density(graphs):
    return sum(g.num_edges for g in graphs) / sum(g.num_nodes * (g.num_nodes - 1) for g in graphs)


def test_gmixup_mixes_densities_labels_and_types():
    train = [*random_graphs(0.2, 0), *random_graphs(0.7, 1, seed=1)]
    mixup = GMixup((0.4, 0.4)).fit(train)
    batch = mixup(Batch.from_data_list(train[:60]), key=1)
    graphs = batch.to_data_list()
    assert batch.y.shape == (60, 2) and torch.allclose(batch.y, torch.tensor([0.6, 0.4]).expand(60, 2))
    # 60 * 190 pairs: standard error 0.0046; singular value thresholding takes a little.
    assert abs(density(graphs) - (0.6 * 0.2 + 0.4 * 0.7)) < 0.03
    assert abs(float((batch.x == 1).float().mean()) - 0.4) < 0.06 and batch.x.dtype == torch.int64
    assert all(g.is_undirected() and not g.has_self_loops() and g.num_nodes == 20 for g in graphs)


def test_gmixup_learns_the_graphon():
    """Hubs and leaves: the first place of the order of degrees is joined with all, others with none."""
    star = torch.stack([torch.zeros(9, dtype=torch.int64), torch.arange(1, 10)])
    stars = [Data(edge_index=torch.cat([star, star.flip(0)], 1), y=torch.tensor([0]), num_nodes=10)] * 20
    mixup = GMixup((0.0, 0.0)).fit([*stars, *random_graphs(0.5, 1, n=20, nodes=10)])
    graphon = mixup._graphon[0]
    assert graphon.shape == (10, 10) and float(graphon[0, 1:].min()) > 0.95 and float(graphon[1:, 1:].max()) < 0.05
    [one] = mixup.sample(1, seed=3)
    assert one.y.shape == (1, 2)


def test_gmixup_of_large_sparse_graphs_keeps_their_edges():
    draw = torch.Generator().manual_seed(0)
    train = []
    for label, edges in ((0, 6000), (1, 12000)):
        ends = torch.randint(2000, (2, edges), generator=draw)
        ends = torch.cat([ends, ends.flip(0)], 1)[:, (ends[0] != ends[1]).repeat(2)].unique(dim=1)
        train.append(Data(edge_index=ends, y=torch.tensor([label]), num_nodes=2000))
    made = GMixup((0.5, 0.5)).fit(train)(train[0], key=1)
    assert made.num_nodes == 2000 and abs(made.num_edges / 18000 - 1) < 0.1
    assert (
        made.is_undirected() and not made.has_self_loops() and made.edge_index.unique(dim=1).shape[1] == made.num_edges
    )


def test_gmixup_sizes_and_samples():
    train = [*random_graphs(0.3, 0, nodes=7), *random_graphs(0.3, 1, nodes=30), *random_graphs(0.3, 2, nodes=11)]
    mixup = GMixup(resolution=9, seed=2).fit(train)
    made = mixup.sample(50, seed=1)
    assert {g.num_nodes for g in made} <= {7, 30, 11} and len(made) == 50
    again = mixup.sample(50, seed=1)
    assert all(
        torch.equal(a.edge_index, b.edge_index) and torch.equal(a.y, b.y) for a, b in zip(made, again, strict=True)
    )
    assert all(0.1 <= float(g.y.sort().values[0, -2]) <= 0.2 and abs(float(g.y.sum()) - 1) < 1e-5 for g in made)


def test_gmixup_carries_edge_types():
    train = [*random_graphs(0.4, 0), *random_graphs(0.6, 1)]
    for graph in train:
        graph.edge_attr = torch.full((graph.num_edges,), int(graph.y))
    made = GMixup().fit(train)(train[0], key=1)
    assert made.edge_attr.shape == (made.num_edges,) and made.edge_attr.unique().tolist() == [0]


def test_pair_mixup_of_a_graph_with_itself_is_that_graph():
    draw = torch.Generator().manual_seed(0)
    graph = tiny_graphs(1)[0]
    graph.x = torch.rand(graph.num_nodes, 3, generator=draw)
    graph.edge_attr = torch.rand(graph.num_edges, 2, generator=draw)
    order = torch.randperm(graph.num_nodes, generator=draw)
    other = Data(
        x=graph.x[order],
        edge_index=order.argsort()[graph.edge_index],
        edge_attr=graph.edge_attr,
        y=graph.y,
        num_nodes=graph.num_nodes,
    )
    made = PairMixup().fit([other], num_classes=2)(graph, key=1)
    assert torch.allclose(made.x, graph.x, atol=1e-6) and made.num_edges == graph.num_edges
    wanted = graph.edge_attr[(graph.edge_index[0] * 100 + graph.edge_index[1]).argsort()]
    assert torch.allclose(made.edge_attr, wanted, atol=1e-6) and made.y.tolist() == [[1.0, 0.0]]


def test_pair_mixup_weights_and_labels():
    one, other = random_graphs(1.0, 0, n=1, nodes=4)[0], random_graphs(0.0, 1, n=1, nodes=4)[0]
    mixup = PairMixup(weighted=True).fit([other])
    made = mixup(one, key=1)
    share = float(made.y[0, 0])
    assert 0.5 <= share <= 1 and abs(float(made.y.sum()) - 1) < 1e-6
    assert made.num_edges == 12 and torch.allclose(made.edge_weight, torch.tensor(share))
    kept = [PairMixup(alpha=9.0, seed=i).fit([other])(one, key=1) for i in range(50)]
    assert all(g.is_undirected() for g in kept)
    share = sum(float(g.y[0, 0]) for g in kept) / 50
    assert abs(sum(g.num_edges for g in kept) / 600 - share) < 0.15


def test_pair_mixup_of_different_sizes_in_a_batch():
    train = tiny_graphs(12)
    batch = PairMixup().fit(train)(Batch.from_data_list(train), key=2)
    assert [g.num_nodes for g in batch.to_data_list()] == [g.num_nodes for g in train]
    assert batch.y.shape == (12, 2) and batch.is_undirected() and not batch.has_self_loops()


@pytest.mark.parametrize("make", [GMixup, PairMixup])
def test_mixups_say_what_they_lack(make):
    graph = tiny_graphs(1)[0]
    with pytest.raises(NotFittedError, match="call fit"):
        make()(graph)
    with pytest.raises(DataError, match="0 training graphs"):
        make().fit([])
    with pytest.raises(DataError, match="no integer class label"):
        make().fit(tiny_graphs(3, num_classes=0))
    fitted = make().fit(tiny_graphs(8))
    graph.y = torch.tensor([5])
    with pytest.raises(DataError, match="label 5 is none of the 2 classes"):
        fitted(graph)


def test_impossible_options():
    with pytest.raises(ConfigError, match="share"):
        GMixup((0.5, 0.2))
    with pytest.raises(ConfigError, match="alpha"):
        PairMixup(0.0)
    with pytest.raises(ConfigError, match="alpha"):
        ManifoldMixup(-1.0)
    with pytest.raises(DataError, match="one class"):
        GMixup().fit(random_graphs(0.5, 0, n=3))


# ---------------------------------------------------------------- hidden representations


def test_hidden_rows_and_targets_are_mixed_alike():
    """With a linear loss the mixed loss is the loss of the mixed target."""
    layer, mixup = nn.Identity(), ManifoldMixup(seed=3)
    handle = mixup.attach(layer)
    x = torch.arange(8.0)[:, None]
    mixed = layer(x)
    assert not torch.equal(mixed, x)
    loss = mixup.loss(lambda output, target: (output - target).abs().sum() * 0 + target.sum(0), mixed, x.clone())
    assert torch.allclose(loss, x.sum(0))
    loss = mixup.loss(lambda output, target: (target * torch.arange(8.0)[:, None]).sum(), mixed, x)
    assert torch.allclose(loss, (mixed * torch.arange(8.0)[:, None]).sum())
    layer.eval()
    assert torch.equal(layer(x), x) and float(mixup.loss(lambda o, t: t.sum(), x, x)) == 28
    layer.train()
    handle.remove()
    assert torch.equal(layer(x), x)


def test_steps_repeat_and_a_mask_keeps_the_others():
    layer, x = nn.Identity(), torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    mixup = ManifoldMixup(seed=1)
    mixup.attach(layer)
    first, second = layer(x), layer(x)
    mixup.step = 0
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    mixup.mask = torch.tensor([True, False, True, True, False, False])
    mixed = layer(x)
    assert torch.equal(mixed[~mixup.mask], x[~mixup.mask])
    target = torch.arange(6.0)
    whole = mixup.loss(lambda o, t: t[mixup.mask].sum(), mixed, target)
    part = mixup.loss(lambda o, t: t.sum(), mixed[mixup.mask], target[mixup.mask])
    assert torch.allclose(whole, part) and float(part) == 5
    mixup.mask = torch.ones(3, dtype=torch.bool)
    with pytest.raises(DataError, match="6 entries"):
        layer(x)


def test_gradients_flow_through_the_hook():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    mixup = ManifoldMixup()
    mixup.attach(model[0])
    mixup.loss(nn.functional.cross_entropy, model(torch.randn(4, 2)), torch.tensor([0, 1, 0, 1])).backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())
