"""The graph transformer: permutation equivariance, no influence of the batch, and features against counting."""

import networkx as nx
import pytest
import torch

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.graph.graph_transformer import (
    ATTENTION,
    CayleyAttention,
    GraphTransformer,
    Pairs,
    structure_features,
)

SIZES = (7, 4, 1, 6)


def make(attention, **options):
    torch.manual_seed(0)
    options = {"d_node": 16, "d_edge": 8, "d_graph": 8, "num_layers": 3, "heads": 4, "rrwp_steps": 5, **options}
    net = GraphTransformer(3, 3, attention=attention, **options).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def random_batch(sizes=SIZES):
    draw = torch.Generator().manual_seed(1)
    n = max(sizes)
    mask = torch.arange(n) < torch.tensor(sizes)[:, None]
    x = torch.randint(0, 3, mask.shape, generator=draw) * mask
    e = torch.randint(0, 3, (len(sizes), n, n), generator=draw).triu(1)
    e = (e + e.transpose(1, 2)) * (mask[:, :, None] & mask[:, None, :])
    return x, e, mask, torch.randn(len(sizes), 8, generator=draw)


def run(net, x, e, mask, graph):
    """Node logits, and pair logits laid out densely."""
    pairs = Pairs(mask)
    with torch.no_grad():
        nodes, edges = net(x, pairs.at_upper(e), graph, pairs)
    return nodes, pairs.dense(edges)


@pytest.mark.parametrize("attention", ATTENTION)
def test_permuting_the_nodes_permutes_the_output(attention):
    net, (x, e, mask, graph) = make(attention), random_batch((6, 6))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    nodes, edges = run(net, x, e, mask, graph)
    moved_nodes, moved_edges = run(net, x[:, order], e[:, order][:, :, order], mask, graph)
    assert torch.allclose(moved_nodes, nodes[:, order], atol=1e-5)
    assert torch.allclose(moved_edges, edges[:, order][:, :, order], atol=1e-5)
    assert float((nodes[:, 0] - nodes[:, 1]).abs().max()) > 1e-3


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_graph_does_not_see_its_neighbours_in_the_batch(attention):
    net, (x, e, mask, graph) = make(attention), random_batch()
    nodes, edges = run(net, x, e, mask, graph)
    for i, size in enumerate(SIZES):
        one, only = slice(i, i + 1), slice(0, size)
        alone_nodes, alone_edges = run(net, x[one, only], e[one, only, only], mask[one, only], graph[one])
        assert torch.allclose(alone_nodes, nodes[one, only], atol=1e-5)
        assert torch.allclose(alone_edges, edges[one, only, only], atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTION)
def test_every_input_matters(attention):
    net, (x, e, mask, graph) = make(attention), random_batch((5,))
    _, before = run(net, x, e, mask, graph)
    flipped = e.clone()
    flipped[0, 0, 1] = flipped[0, 1, 0] = (e[0, 0, 1] + 1) % 3
    for changed in ((1 + x) % 3, e, mask, graph), (x, flipped, mask, graph), (x, e, mask, graph + 1):
        assert float((run(net, *changed)[1] - before).abs().max()) > 1e-4


def test_cycles_and_walks_are_counted():
    graph = nx.gnp_random_graph(9, 0.45, seed=4)
    a = torch.tensor(nx.to_numpy_array(graph), dtype=torch.float64)[None]
    mask = torch.ones(1, 9, dtype=torch.bool)
    pairs = Pairs(mask)
    nodes, edges, cycles = structure_features(a, mask, pairs, steps=4)
    lengths = [len(cycle) for cycle in nx.simple_cycles(graph, length_bound=5)]
    expected = torch.tensor([lengths.count(k) / 10 for k in (3, 4, 5)], dtype=torch.float64)
    assert torch.allclose(cycles[0], expected.clamp(max=1))
    walk = a[0] / a[0].sum(1, keepdim=True).clamp(min=1)
    cubed = torch.linalg.matrix_power(walk, 3)
    assert torch.allclose(nodes[0, :, 3], torch.diagonal(cubed))
    assert torch.allclose(edges[:, 2], (cubed + cubed.T)[pairs.row, pairs.col])


def test_few_cycles_are_exact():
    ring = torch.roll(torch.eye(5), 1, 0)
    mask = torch.ones(1, 5, dtype=torch.bool)
    cycles = structure_features((ring + ring.T)[None], mask, Pairs(mask), 3)[2]
    assert torch.allclose(cycles, torch.tensor([[0.0, 0.0, 0.1]]), atol=1e-6)


def test_cayley_mixing_is_orthogonal():
    layer = CayleyAttention(8, 4, 2)
    scores, mask = torch.randn(3, 2, 6, 6), torch.arange(6) < torch.tensor([6, 4, 2])[:, None]
    mixed = layer._mix(scores, mask)
    assert torch.allclose(mixed @ mixed.transpose(-1, -2), torch.eye(6).expand_as(mixed), atol=1e-5)


def test_pairs_lay_out_symmetrically():
    pairs = Pairs(torch.tensor([[True] * 4, [True, True, False, False]]))
    values = torch.arange(1.0, 8.0)
    dense = pairs.dense(values)
    assert torch.equal(dense, dense.transpose(1, 2)) and torch.equal(pairs.at_upper(dense), values)
    assert float(dense[1, 2:].abs().sum()) == 0
    assert torch.equal(pairs.mean(values[:, None])[:, 0], torch.tensor([3.5, 7.0]))


@pytest.mark.parametrize("wrong", [{"attention": "linear"}, {"heads": 3}, {"rrwp_steps": 1}])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        GraphTransformer(1, 2, **{"d_node": 16, **wrong})
