"""The sequence model of graphs: valid samples whatever the weights, conditions, prompts and constraints."""

from functools import partial

import networkx as nx
import numpy as np
import pytest
import torch
from lightning import Trainer

from lightning_synth.constraints import Bipartite, Connected, Constraint, MaxDegree, Planar, Tree
from lightning_synth.decoder import KeyValueCache
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.graphs import DenseGraphs, graph_batch
from lightning_synth.plugins.graph.sent import SENT, _How, _score
from lightning_synth.plugins.graph.sent_tokens import EOS, PAD
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.schema import collate, describe, validate
from lightning_synth.testing import tiny_graphs, tiny_schema

PLAIN = {"domain": "graph", "max_nodes": 9, "node_counts": {"9": 1}, "num_classes": 0}
PLAIN |= dict.fromkeys(("num_node_types", "num_edge_types", "num_node_features", "num_edge_features"), 0)
TYPED = {**PLAIN, "num_node_types": 3, "num_edge_types": 2}
SMALL = {"d_model": 16, "heads": 2, "depth": 2}


def ring(n, label=None, closed=True):
    start = torch.arange(n if closed else n - 1)
    graph = graph_batch(torch.tensor([n]), torch.stack([start, (start + 1) % n]), torch.zeros_like(start)).get_example(
        0
    )
    if label is not None:
        graph.y = torch.tensor([label])
    return graph


def fitted(graphs, steps, batch_size=32, **options):
    """A model after a short fit on a list of graphs."""
    import lightning

    schema = describe(graphs, "graph")

    class Graphs(lightning.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.schema = schema

        def train_items(self):
            return graphs

        def train_dataloader(self):
            # A generator of its own: with torch's global one, the fit would depend on the tests before it.
            draw, merge = torch.Generator().manual_seed(0), partial(collate, schema=schema)
            return torch.utils.data.DataLoader(graphs, batch_size, shuffle=True, generator=draw, collate_fn=merge)

    model = SENT(**{"d_model": 32, "heads": 2, "depth": 2, "lr": 5e-3, "ema_decay": 0.9, **options})
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(accelerator="cpu", max_steps=steps, **quiet).fit(model, datamodule=Graphs())
    return model


def untrained(schema=PLAIN, **options):
    model = SENT(schema=schema, **{**SMALL, **options})
    model.is_fitted = True
    return model


def networks(samples):
    from torch_geometric.utils import to_networkx

    return [to_networkx(item, to_undirected=True) for item in samples.items()]


@pytest.mark.parametrize("schema", (PLAIN, TYPED), ids=("plain", "typed"))
@pytest.mark.parametrize("options", ({}, {"top_k": 2}, {"temperature": 5.0}, {"temperature": 0.05}), ids=str)
def test_samples_of_random_weights_are_graphs(schema, options):
    samples = untrained(schema).sample(40, seed=1, **options)
    validate(samples.items(), schema)
    assert samples.accepted.all()
    dense = DenseGraphs.from_batch(samples.data)
    assert (dense.e == dense.e.mT).all() and not dense.e.diagonal(dim1=1, dim2=2).any()
    assert (samples.data.get("x") is not None) == (samples.data.get("edge_attr") is not None) == bool(schema is TYPED)


def test_sequences_end_in_time():
    model, drawn = untrained(max_length=24), []
    decode = model.codec.decode
    model.codec.decode = lambda tokens, order: (drawn.append(tokens), decode(tokens, order))[1]
    # Weights that would go on for ever.
    with torch.no_grad():
        model.transformer.out.bias[:5] -= 100.0
    for options in ({}, {"constraint": Connected()}):
        assert all(item.num_nodes >= 4 for item in model.sample(20, **options).items())
        assert drawn[-1].shape == (20, 24) and (drawn[-1] == EOS).any(1).all()


def test_the_cache_changes_nothing():
    model = untrained(TYPED, d_model=32, depth=3).transformer.eval()
    tokens = torch.randint(1, 15, (3, 70), generator=torch.Generator().manual_seed(0))
    condition, cache = torch.randn(3, 32), KeyValueCache()
    with torch.no_grad():
        whole, token = model(tokens, condition), None
        for t in range(70):
            assert torch.allclose(model.following(token, condition, cache), whole[:, t], atol=1e-5)
            token = tokens[:, t]
            if t == 40:
                rows = torch.tensor([2, 0])
                cache.keep(rows)
                tokens, token, condition, whole = tokens[rows], token[rows], condition[rows], whole[rows]


def test_the_loss_of_a_graph_does_not_depend_on_the_others():
    """Padding is not seen: the logits of a short sequence are the same beside a long one."""
    model = untrained().transformer.eval()
    tokens, condition = torch.randint(1, 14, (2, 30), generator=torch.Generator().manual_seed(0)), torch.randn(2, 16)
    tokens[0, 12:] = PAD
    with torch.no_grad():
        assert torch.allclose(model(tokens, condition)[0, :12], model(tokens[:1, :12], condition[:1])[0], atol=1e-5)


def test_rows_do_not_depend_on_one_another(monkeypatch):
    model = untrained(TYPED)
    prompt = model.sample(1, seed=9).items()[0]
    for options in ({}, {"constraint": Planar() & MaxDegree(3)}, {"prompt": prompt, "top_k": 6}):
        requests = SampleRequests.make(12, seed=3)
        together = model.sample(requests, **options).items()
        monkeypatch.setattr("lightning_synth.plugins.graph.sent._CACHED", 1)  # 16 rows at once become 12, then 1
        for i in (0, 5, 11):
            alone = model.sample(requests[[i]], **options).items()[0]
            for name in ("edge_index", "x", "edge_attr"):
                assert alone[name].equal(together[i][name])


def test_draws_follow_the_model():
    """Perturbed maxima have the frequencies of the softmax; what is not allowed is not drawn."""
    logits, allowed = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[True, True, False, True]])
    u = torch.rand(20000, 4, generator=torch.Generator().manual_seed(0))

    def shares(temperature=1.0, top_k=None):
        token = _score(logits.expand(20000, 4), allowed, _How(temperature, top_k, 1.0, None), u).argmax(1)
        return torch.bincount(token, minlength=4) / 20000

    def expected(values):
        return torch.tensor(values).softmax(0)

    inf = float("inf")
    assert torch.allclose(shares(), expected([0.0, 1.0, -inf, 3.0]), atol=0.012)
    assert torch.allclose(shares(2.0), expected([0.0, 0.5, -inf, 1.5]), atol=0.012)
    assert torch.allclose(shares(top_k=2), expected([-inf, 1.0, -inf, 3.0]), atol=0.012)


def test_it_learns_rings():
    """Of a few sizes: nearly all samples are rings, of the sizes that were trained, as often."""
    model = fitted([ring(n) for n in (5, 6, 6, 8)] * 8, steps=130, holdout=0.0)
    graphs = networks(model.sample(60, seed=0))
    rings = [g for g in graphs if nx.is_isomorphic(g, nx.cycle_graph(len(g)))]
    assert len(rings) >= 55
    sizes = np.bincount([len(g) for g in rings], minlength=9)
    assert set(sizes.nonzero()[0]) == {5, 6, 8} and sizes[6] > max(sizes[5], sizes[8])


def test_labels_and_guidance_move_what_is_drawn():
    """Class 1 has 70 % rings, class 0 as many paths; guidance exaggerates it."""
    graphs = [ring(6, label, closed=(i % 10 < 7) == bool(label)) for i in range(40) for label in (0, 1)]
    model = fitted(graphs, steps=100, holdout=0.0, condition_dropout=0.3)

    def rings(label, scale):
        samples = model.sample(100, seed=2, condition={"label": label}, guidance_scale=scale)
        return np.mean([g.number_of_edges() == len(g) for g in networks(samples)])

    assert 0.5 < rings(1, 1.0) < 0.9 and 0.1 < rings(0, 1.0) < 0.5
    # Over orders of the training graphs the shares scatter by .1: the contrast of the classes is what guidance raises.
    assert rings(1, 5.0) - rings(0, 5.0) > rings(1, 1.0) - rings(0, 1.0) + 0.15


def test_continuous_conditions_are_followed():
    """Rings told their size: what is asked for is what comes, also between the sizes of training."""
    graphs = [ring(n) for n in (4, 5, 6, 9, 10) for _ in range(8)]
    for graph in graphs:
        graph.size = torch.tensor([float(graph.num_nodes)])
    model = fitted(graphs, steps=100, holdout=0.0)
    asked = torch.arange(4, 11).repeat_interleave(8).float()
    samples = model.sample(56, condition={"size": asked}, guidance_scale=2.0)
    sizes = samples.data.ptr.diff().float()
    assert torch.corrcoef(torch.stack([sizes, asked]))[0, 1] > 0.8


def test_samples_contain_their_prompt():
    model = untrained(TYPED)
    prompts = [g for g in model.sample(60, seed=5).items() if g.num_nodes <= 6][:3]
    assert len(prompts) == 3 and any(g.num_edges for g in prompts)
    samples = model.sample(30, seed=6, prompt=prompts).items()
    batched = model.sample(30, seed=6, prompt=collate(prompts, TYPED)).items()
    assert all(a.edge_index.equal(b.edge_index) for a, b in zip(samples, batched, strict=True))
    assert any(item.num_nodes > 6 for item in samples)
    for i, item in enumerate(samples):
        prompt = prompts[i % 3]
        part = item.subgraph(torch.arange(prompt.num_nodes))
        assert part.x.equal(prompt.x)
        assert DenseGraphs.from_batch(collate([part], TYPED)).e.equal(
            DenseGraphs.from_batch(collate([prompt], TYPED)).e
        )
    # An isolated node and one graph for all rows.
    lonely = collate(prompts[:1], TYPED).get_example(0)
    lonely.x, lonely.num_nodes = torch.cat([lonely.x, torch.tensor([2])]), lonely.num_nodes + 1
    assert all(item.x[: len(lonely.x)].equal(lonely.x) for item in model.sample(5, prompt=lonely).items())


def test_prompts_that_cannot_be():
    model = untrained(TYPED)
    whole, untyped = ring(6), ring(12)
    with pytest.raises(DataError, match="prompt 0 has no x"):
        model.sample(2, prompt=whole)
    with pytest.raises(DataError, match="prompt 0 has 12 nodes"):
        model.sample(2, prompt=untyped)
    with pytest.raises(ConfigError, match=r"prompt 0 does not satisfy Tree\(\)"):
        untrained().sample(2, prompt=whole, constraint=Tree())
    for prompt in (nx.path_graph(3), "path", [[0, 1]]):
        with pytest.raises(DataError, match="a prompt is a PyG Data"):
            model.sample(2, prompt=prompt)
    with pytest.raises(ConfigError, match="leaves no room"):
        untrained(max_length=16).sample(2, prompt=whole)


class FewEdges(Constraint):
    def holds(self, adjacency):
        return adjacency.sum() <= 8


@pytest.mark.parametrize("schema", (PLAIN, TYPED), ids=("plain", "typed"))
@pytest.mark.parametrize(
    "constraint",
    (
        Planar(),
        Tree(),
        Connected(),
        Bipartite() & MaxDegree(2),
        Connected() & MaxDegree(2),
        FewEdges(),
        MaxDegree(0),
        Connected() & MaxDegree(0),
        Connected() & Planar() & Bipartite(),
    ),
    ids=repr,
)
def test_constraints_hold(schema, constraint):
    samples = untrained(schema).sample(30, seed=4, constraint=constraint, top_k=4).items()
    for item in samples:
        adjacency = DenseGraphs.from_batch(collate([item], schema)).e[0].numpy() > 0
        assert constraint.holds(adjacency)
    if constraint.connects and "MaxDegree(0)" in repr(constraint):
        assert {item.num_nodes for item in samples} == {1}
    else:
        assert len({item.num_nodes for item in samples}) > 2


def test_a_constraint_goes_with_a_prompt():
    constraint = Connected() & MaxDegree(3)
    for item in untrained().sample(20, prompt=ring(5), constraint=constraint).items():
        assert constraint.holds(DenseGraphs.from_batch(collate([item], PLAIN)).e[0].numpy() > 0)


def test_held_out_graphs_are_not_trained_on_and_the_best_weights_stay():
    graphs = tiny_graphs(60)
    model = fitted(graphs, steps=25, holdout=0.2)
    assert len(model.held_keys) == 12 and float(model.best.loss) < 10
    trained = ~torch.isin(model._keys(DenseGraphs.from_batch(collate(graphs, model.schema), 9)), model.held_keys)
    assert 40 < trained.sum() <= 48  # some graphs are there twice
    counts, encode = [], model.codec.encode
    model.codec.encode = lambda graphs, u: (counts.append(len(graphs)), encode(graphs, u))[1]
    model.train().losses(collate(graphs, model.schema), KeyedRNG(0))
    model.eval().losses(collate(graphs, model.schema), KeyedRNG(0))
    assert counts == [int(trained.sum()), 60]
    kept = model.best.get_buffer("transformer/out/bias")
    assert model.average.get_buffer("transformer/out/bias").equal(kept)


def test_long_graphs_are_cut():
    model = fitted(tiny_graphs(8), steps=2, max_length=20)
    assert int(model.limit) == 20
    assert all(
        torch.isfinite(value) for value in model.losses(collate(tiny_graphs(8), model.schema), KeyedRNG(0)).values()
    )


def test_float_features_come_from_training_nodes():
    graphs = tiny_graphs(8)
    for i, graph in enumerate(graphs):
        graph.x = torch.full((graph.num_nodes, 2), float(i))
    model = fitted(graphs, steps=2)
    prompt = ring(3)
    prompt.x = torch.tensor([[-1.0, -2.0]]).expand(3, 2)
    for item in model.sample(6, prompt=prompt).items():
        assert item.x[:3].equal(prompt.x) and item.x.shape == (item.num_nodes, 2)
        assert ((item.x[3:] >= 0) & (item.x[3:] < 8)).all()


@pytest.mark.parametrize(
    "options",
    (
        {"d_model": 18, "heads": 4},
        {"attention_dropout": 1.0},
        {"condition_dropout": -0.1},
        {"holdout": 0.9},
        {"max_length": 3},
        {"temperature": 0.0},
        {"top_k": 0},
    ),
    ids=str,
)
def test_impossible_settings_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        SENT(**options)
    if next(iter(options)) in ("temperature", "top_k"):
        with pytest.raises(ConfigError, match=next(iter(options))):
            untrained(tiny_schema("graph")).sample(2, **options)
