"""DropEdge, AddRandomEdge, PerturbEdge: exact counts, rates, directions."""

from collections import Counter

import pytest
import torch

pytest.importorskip("torch_geometric")
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare
from torch_geometric.data import Batch, Data
from torch_geometric.utils import is_undirected

from lightning_synth.errors import ConfigError
from lightning_synth.testing import tiny_node
from lightning_synth.transforms import AddRandomEdge, DropEdge, PerturbEdge


def keys(graph):
    return set(map(tuple, graph.edge_index.T.tolist()))


def directed(n=40, edges=200):
    draw = torch.Generator().manual_seed(0)
    ends = torch.randint(n, (2, edges), generator=draw)
    return Data(edge_index=ends[:, ends[0] != ends[1]].unique(dim=1), num_nodes=n)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_drop_rate_is_within_binomial_bounds(p):
    graph = tiny_node(120)
    pairs = graph.num_edges // 2
    low, high = binom.ppf([1e-6, 1 - 1e-6], pairs, p)
    for key in range(20):
        kept = DropEdge(p)(graph, key=key).num_edges // 2
        assert low <= pairs - kept <= high
    total = sum(pairs - DropEdge(p)(graph, key=key).num_edges // 2 for key in range(40))
    low, high = binom.ppf([1e-6, 1 - 1e-6], 40 * pairs, p)
    assert low <= total <= high


def test_directed_edges_are_dropped_one_by_one():
    graph = tiny_node()
    made = DropEdge(0.5, undirected=False)(graph, key=1)
    assert not made.is_undirected() and keys(made) < keys(graph)
    one_way = directed()
    assert 0 < len(keys(DropEdge(0.5)(one_way, key=1))) < one_way.num_edges
    both = DropEdge(0.5, undirected=True)(one_way, key=1)
    assert all(((v, u) in keys(both)) == ((v, u) in keys(one_way)) for u, v in keys(both))


def test_adding_nothing_changes_nothing():
    graph = tiny_node()
    graph.edge_weight = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = AddRandomEdge(0.0)(graph)
    assert torch.equal(made.edge_index, graph.edge_index) and made.edge_index.dtype == torch.int64
    assert torch.equal(made.edge_weight, graph.edge_weight) and made.edge_weight.dtype == torch.float64


@pytest.mark.parametrize("graph", [tiny_node(), directed()], ids=["undirected", "directed"])
@pytest.mark.parametrize("p", [0.1, 0.5, 1.0, 50.0])
def test_new_edges_are_new_and_exactly_as_many(graph, p):
    before, n = keys(graph), graph.num_nodes
    made = AddRandomEdge(p)(graph, key=3)
    unit = 2 if graph.is_undirected() else 1
    wanted = min(unit * int(p * (len(before) // unit) + 0.5), n * (n - 1) - len(before))
    assert len(keys(made)) == made.num_edges == len(before) + wanted
    assert torch.equal(made.edge_index[:, : graph.num_edges], graph.edge_index)
    assert not any(u == v for u, v in keys(made)) and made.is_undirected() == (graph.is_undirected() or p == 50.0)


def test_every_absent_pair_is_equally_likely():
    ring = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6])
    graph = Data(edge_index=torch.cat([ring, ring.flip(0)], 1), num_nodes=6)
    made = AddRandomEdge(1 / 6)(Batch.from_data_list([graph] * 3000), key=0)
    row, col = made.edge_index
    counts = (6 * (row % 6) + col % 6).bincount(minlength=36).reshape(6, 6)
    absent = [int(counts[i, j]) for i in range(6) for j in range(i) if (i - j) % 6 not in (1, 5)]
    assert sum(absent) == 3000 and len(absent) == 9 and chisquare(absent).pvalue > 1e-4


def test_loops_and_repeats_when_asked_for():
    pair = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    assert keys(AddRandomEdge(5.0, self_loops=True)(pair)) == {(0, 1), (1, 0), (0, 0), (1, 1)}
    made = AddRandomEdge(5.0, multi_edges=True)(pair)
    assert made.num_edges == 12 and keys(made) == {(0, 1), (1, 0)}
    made = AddRandomEdge(9.0, multi_edges=True, self_loops=True)(pair, key=1)
    assert {(0, 0), (1, 1), (0, 1), (1, 0)} == keys(made) and made.is_undirected()


def test_a_graph_without_edges_gets_none_by_share_and_a_lonely_attribute_is_zero():
    empty = Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), edge_weight=torch.zeros(0), num_nodes=4)
    assert AddRandomEdge(1.0)(empty).num_edges == 0


def test_moved_edges_keep_their_number():
    graph = tiny_node(60)
    for key in range(5):
        made = PerturbEdge(0.3)(graph, key=key)
        assert made.num_edges == graph.num_edges == len(keys(made)) and made.is_undirected()
        moved = len(keys(graph) - keys(made)) // 2
        low, high = binom.ppf([1e-6, 1 - 1e-6], graph.num_edges // 2, 0.3)
        assert low <= moved <= high
    assert keys(PerturbEdge(0.0)(graph)) == keys(graph)
    assert not keys(PerturbEdge(1.0)(graph)) & keys(graph)


def test_a_complete_graph_has_no_room():
    full = Data(edge_index=(~torch.eye(5, dtype=torch.bool)).nonzero().T, num_nodes=5)
    assert AddRandomEdge(1.0)(full).num_edges == 20


@st.composite
def odd_graphs(draw):
    """Directed or not, with self-loops, repeated edges and isolated nodes."""
    n = draw(st.integers(1, 7))
    ends = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=20))
    edges = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T
    if draw(st.booleans()):
        edges = torch.cat([edges, edges.flip(0)], 1)
    return Data(edge_index=edges, edge_attr=torch.arange(edges.shape[1]), num_nodes=n)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(odd_graphs(), st.floats(0, 1), st.integers(0, 1000))
def test_any_graph(graph, p, key):
    mirrored = is_undirected(graph.edge_index, num_nodes=graph.num_nodes)
    before = Counter(map(tuple, graph.edge_index.T.tolist()))
    dropped, added, moved = (make(p)(graph, key=key) for make in (DropEdge, AddRandomEdge, PerturbEdge))
    for made in (dropped, added, moved):
        assert made.num_nodes == graph.num_nodes and len(made.edge_attr) == made.num_edges and made.validate()
        if mirrored:
            assert is_undirected(made.edge_index, num_nodes=made.num_nodes)
    # Repeated edges go or stay together, with their own attributes.
    kept = Counter(map(tuple, dropped.edge_index.T.tolist()))
    assert all(before[edge] == count for edge, count in kept.items())
    assert torch.equal(graph.edge_index[:, dropped.edge_attr], dropped.edge_index)
    new = Counter(map(tuple, added.edge_index.T.tolist())) - before
    assert all(count == 1 and edge not in before and edge[0] != edge[1] for edge, count in new.items())
    assert not any(edge[0] == edge[1] for edge in Counter(map(tuple, moved.edge_index.T.tolist())) - before)


@pytest.mark.parametrize("make", [DropEdge, PerturbEdge])
@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_impossible_shares(make, p):
    with pytest.raises(ConfigError, match=r"p must be in \[0, 1\]"):
        make(p)
    with pytest.raises(ConfigError, match="at least 0"):
        AddRandomEdge(-abs(p))
