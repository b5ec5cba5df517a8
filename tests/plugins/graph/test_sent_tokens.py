"""Graphs as sequences: exact round trips, the walk, and the grammar."""

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_synth.graphs import DenseGraphs
from lightning_synth.plugins.graph.sent_tokens import CLOSE, EOS, OPEN, PAD, RESET, Grammar, SentTokens, walk

PLAIN = {"max_nodes": 9}
TYPED = {"max_nodes": 9, "num_node_types": 3, "num_edge_types": 4}


def random_graphs(schema, seed, count=5, density=0.3):
    """Dense graphs of 1 to 9 nodes, sparse enough to have isolated nodes and several parts."""
    draw, n = torch.Generator().manual_seed(seed), schema["max_nodes"]
    mask = torch.arange(n) < torch.randint(1, n + 1, (count, 1), generator=draw)
    both = mask[:, :, None] & mask[:, None, :]
    upper = (torch.rand(count, n, n, generator=draw) < density) & both
    kinds = torch.randint(1, schema.get("num_edge_types", 1) + 1, (count, n, n), generator=draw)
    e = (upper * kinds).triu(1)
    x = torch.randint(0, schema.get("num_node_types", 1), (count, n), generator=draw) * mask
    return DenseGraphs(x, e + e.mT, mask)


def uniform(graphs, seed=0):
    return torch.rand(graphs.mask.shape, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    return bool((a.e == b.e).all() and (a.x == b.x).all() and (a.mask == b.mask).all())


def accepted(grammar, tokens):
    """Whether a grammar lets every token of the sequences through."""
    for column in tokens.T:
        if not grammar.allowed().gather(1, column[:, None]).all():
            return False
        grammar.advance(column)
    return bool((grammar.state == grammar.DONE).all())


@pytest.mark.parametrize("schema", (PLAIN, TYPED), ids=("plain", "typed"))
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.sampled_from((0.0, 0.15, 0.3, 0.7, 1.0)))
def test_round_trip(schema, seed, density):
    graphs, codec = random_graphs(schema, seed, density=density), SentTokens(schema)
    tokens, order = codec.encode(graphs, uniform(graphs, seed))
    assert same(DenseGraphs.from_batch(codec.decode(tokens, order), size=9), graphs)
    # Without the order, the nodes are numbered as they appear.
    rows = torch.arange(len(graphs))[:, None]
    renumbered = DenseGraphs(
        graphs.x.gather(1, order), graphs.e[rows[:, :, None], order[:, :, None], order[:, None, :]], graphs.mask
    )
    assert same(DenseGraphs.from_batch(codec.decode(tokens), size=9), renumbered)
    assert tokens.shape[1] <= codec.longest()
    assert accepted(Grammar(codec, len(tokens), codec.longest() + 8), tokens)


def test_known_sequences():
    """A triangle with a tail, an isolated node, and types; the walk takes the first choice."""
    edges = torch.zeros(1, 5, 5, dtype=torch.int64)
    for u, v, kind in ((0, 1, 1), (1, 2, 1), (0, 2, 2), (0, 3, 1)):
        edges[0, u, v] = edges[0, v, u] = kind
    graph = DenseGraphs(torch.tensor([[0, 1, 0, 1, 0]]), edges, torch.ones(1, 5, dtype=torch.bool))
    plain = DenseGraphs(torch.zeros_like(graph.x), (edges > 0).long(), graph.mask)
    tokens, order = SentTokens({"max_nodes": 5}).encode(plain, torch.zeros(1, 5))
    node = [CLOSE + 1 + i for i in range(5)]
    expected = [node[0], node[1], node[2], OPEN, node[0], CLOSE]
    assert tokens.tolist() == [[*expected, RESET, node[3], OPEN, node[0], CLOSE, RESET, node[4], EOS]]
    assert order.tolist() == [[0, 1, 2, 3, 4]]
    codec = SentTokens({"max_nodes": 5, "num_node_types": 2, "num_edge_types": 2})
    kind, bond = [codec.first_node_type, codec.first_node_type + 1], [codec.first_edge_type, codec.first_edge_type + 1]
    expected = [node[0], kind[0], bond[0], node[1], kind[1], bond[0], node[2], kind[0], OPEN, bond[1], node[0], CLOSE]
    expected += [RESET, node[3], kind[1], OPEN, bond[0], node[0], CLOSE, RESET, node[4], kind[0], EOS]
    assert codec.encode(graph, torch.zeros(1, 5))[0].tolist() == [expected]


def test_prefixes_are_induced_subgraphs():
    graphs, codec = random_graphs(PLAIN, 3, count=8), SentTokens(PLAIN)
    tokens, _ = codec.encode(graphs, uniform(graphs))
    whole = DenseGraphs.from_batch(codec.decode(tokens), size=9)
    inside = (tokens == OPEN).cumsum(1) > (tokens == CLOSE).cumsum(1)
    new = (tokens > CLOSE) & ~inside
    for nodes in range(1, 9):
        # All that comes before the node of this number, and its reset.
        cut = torch.where(new.cumsum(1) > nodes, PAD, tokens)
        part = DenseGraphs.from_batch(codec.decode(cut), size=9)
        assert (part.e[:, :nodes, :nodes] == whole.e[:, :nodes, :nodes]).all()
        assert not part.e[:, nodes:].any()


def test_prefixes_of_connected_graphs_are_connected():
    graph = nx.connected_watts_strogatz_graph(30, 4, 0.5, seed=0)
    e = torch.from_numpy(nx.to_numpy_array(graph)).long().expand(20, 30, 30)
    graphs = DenseGraphs(torch.zeros(20, 30, dtype=torch.int64), e, torch.ones(20, 30, dtype=torch.bool))
    tokens, _ = SentTokens({"max_nodes": 30}).encode(graphs, uniform(graphs))
    jump, after = (tokens == RESET)[:, :-2], tokens[:, 2:]
    assert jump.any() and (after[jump] == OPEN).all()


def test_walks_are_uniform():
    """All orders of a triangle are equally likely, and its nodes are neighbours."""
    everything = ~torch.eye(3, dtype=torch.bool).expand(6000, 3, 3)
    u = torch.rand(6000, 3, generator=torch.Generator().manual_seed(0))
    order, walked = walk(everything, torch.ones(6000, 3, dtype=torch.bool), u)
    counts = torch.bincount(order @ torch.tensor([9, 3, 1]))
    counts = counts[counts > 0]
    assert len(counts) == 6 and (counts - 1000).abs().max() < 130
    assert walked.all(0).tolist() == [False, True, True]


def test_a_walk_is_a_function_of_its_row_and_of_its_size():
    graphs, codec = random_graphs(TYPED, 4, count=6), SentTokens(TYPED)
    u = uniform(graphs)
    tokens, _ = codec.encode(graphs, u)
    for i in range(6):
        n = int(graphs.mask[i].sum())
        small = DenseGraphs(graphs.x[[i], :n], graphs.e[[i], :n, :n], graphs.mask[[i], :n])
        alone, _ = codec.encode(small, u[[i], :n])
        assert alone[0].tolist() == tokens[i, : alone.shape[1]].tolist()
        assert not tokens[i, alone.shape[1] :].any()


@pytest.mark.parametrize("schema", (PLAIN, TYPED), ids=("plain", "typed"))
@pytest.mark.parametrize("connected", (False, True))
@pytest.mark.parametrize("length", (16, 40, 300))
def test_random_sentences_are_graphs(schema, connected, length):
    """Any tokens that the grammar allows end in time and decode without a loss."""
    codec, draw = SentTokens(schema), torch.Generator().manual_seed(length)
    grammar, drawn = Grammar(codec, 200, length, connected), []
    for _ in range(length):
        allowed = grammar.allowed()
        assert allowed.any(1).all()
        drawn.append(torch.where(allowed, torch.rand(allowed.shape, generator=draw), -1.0).argmax(1))
        grammar.advance(drawn[-1])
    tokens = torch.stack(drawn, 1)
    assert (tokens == EOS).any(1).all()
    batch = codec.decode(tokens)
    graphs = DenseGraphs.from_batch(batch, size=9)
    number = (tokens >= codec.first_node) & (tokens < codec.first_node_type)
    inside = (tokens == OPEN).cumsum(1) > (tokens == CLOSE).cumsum(1)
    # Every number but the first is an edge unless it follows a reset: none is lost, none is double.
    edges = number.sum(1) - 1 - (tokens == RESET).sum(1)
    assert ((graphs.e > 0).sum((1, 2)) // 2).tolist() == edges.tolist()
    assert graphs.mask.sum(1).tolist() == (number & ~inside).sum(1).tolist()
    if schema is TYPED:
        assert batch.x.min() >= 0 and batch.x.max() < 3 and batch.edge_attr.min() >= 0 and batch.edge_attr.max() < 4
    if connected:
        for graph, nodes in zip(graphs.e, graphs.mask.sum(1).tolist(), strict=True):
            assert nx.is_connected(nx.from_numpy_array(graph[:nodes, :nodes].numpy()))


def test_what_the_grammar_refuses():
    codec = SentTokens({"max_nodes": 3})
    zero, one, two = codec.first_node, codec.first_node + 1, codec.first_node + 2
    for sentence in (
        [one],  # numbers appear in order
        [zero, zero],
        [zero, one, OPEN],  # the only other node is the one before
        [zero, one, two, OPEN, CLOSE],
        [zero, one, two, OPEN, one],
        [zero, RESET, EOS],
        [RESET],
        [EOS],
    ):
        assert not accepted(Grammar(codec, 1, 40), torch.tensor([[*sentence, EOS]]))
    assert accepted(Grammar(codec, 1, 40), torch.tensor([[zero, one, two, OPEN, zero, CLOSE, EOS]]))
    assert not accepted(Grammar(codec, 1, 40, connected=True), torch.tensor([[zero, RESET, one, EOS]]))
    assert accepted(Grammar(codec, 1, 40, connected=True), torch.tensor([[zero, RESET, one, OPEN, zero, CLOSE, EOS]]))
