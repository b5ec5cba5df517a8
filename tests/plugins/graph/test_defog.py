"""DeFoG: what it learns, what guides it, and what its sampler guarantees."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_networkx

from lightning_synth.constraints import Connected, Constraint, MaxDegree, Planar, Tree
from lightning_synth.datamodules import ItemsDataModule
from lightning_synth.discrete_flow import PosteriorSampler, RateSampler
from lightning_synth.errors import ConfigError
from lightning_synth.plugins.graph.defog import DeFoG
from lightning_synth.testing import tiny_datamodule, tiny_graphs, tiny_schema
from lightning_synth.testing.case import quiet, quiet_trainer

SMALL = {"num_layers": 2, "d_node": 32, "d_edge": 16, "d_graph": 16, "heads": 4, "rrwp_steps": 6, "dropout": 0.0}


def fitted(items, steps=150, batch_size=32, **options):
    model = DeFoG(**{**SMALL, "lr": 3e-3, "ema_decay": 0.95, **options})
    with quiet():
        data = ItemsDataModule(items, domain="graph", batch_size=batch_size)
        quiet_trainer(max_steps=steps, gradient_clip_val=1.0).fit(model, data)
    return model


def untrained(**options):
    model = DeFoG(schema=tiny_schema("graph"), **{**SMALL, **options})
    model.is_fitted = True
    return model


def graph(edges, **fields):
    ends = torch.tensor(edges).T
    return Data(edge_index=torch.cat([ends, ends.flip(0)], 1), num_nodes=int(ends.max()) + 1, **fields)


def networks(samples):
    return [to_networkx(item, to_undirected=True) for item in samples.items()]


@pytest.fixture(scope="module")
def sparse_or_dense():
    """Class 0: rings; class 1: complete graphs; and the number of edges of each."""
    draw = np.random.default_rng(0)
    items = []
    for i in range(64):
        n = int(draw.integers(5, 9))
        network = nx.cycle_graph(n) if i % 2 == 0 else nx.complete_graph(n)
        items.append(graph(list(network.edges), y=torch.tensor([i % 2]), density=torch.tensor([nx.density(network)])))
    return items


@pytest.fixture(scope="module")
def conditional(sparse_or_dense):
    return fitted(sparse_or_dense, steps=120)


def densities(samples):
    return np.array([nx.density(network) for network in networks(samples)])


def test_it_learns_the_two_kinds_of_graph(conditional, sparse_or_dense):
    rings = densities(conditional.sample(48, condition={"label": 0, "density": 0.4}, seed=0))
    real = np.mean([float(item.density) for item in sparse_or_dense[::2]])
    assert rings.mean() == pytest.approx(real, abs=0.1)
    full = densities(conditional.sample(48, condition={"label": 1, "density": 1.0}, seed=0))
    assert full.mean() > 0.95


def test_guidance_moves_the_output(conditional):
    """With the released code of DeFoG it does not: the second prediction is never used."""
    plain, guided, against = (
        densities(conditional.sample(48, condition={"label": 0, "density": 0.4}, seed=1, guidance_scale=w)).mean()
        for w in (1.0, 2.0, 0.0)
    )
    assert guided <= plain + 0.02 < against - 0.1


def test_the_label_brings_its_sizes():
    small = [graph([(0, 1), (1, 2)], y=torch.tensor([0])) for _ in range(4)]
    large = [graph([(i, i + 1) for i in range(9)], y=torch.tensor([1])) for _ in range(4)]
    model = fitted(small + large, steps=1)
    for label, size in ((0, 3), (1, 10)):
        assert set(model.sample(6, condition={"label": label}).data.ptr.diff().tolist()) == {size}


def test_priors_are_the_frequencies_of_the_training_graphs():
    items = [graph([(0, 1), (1, 2), (2, 3)], x=torch.tensor([0, 1, 1, 2]), edge_attr=torch.tensor([0, 1, 1] * 2))] * 3
    model = fitted(items, steps=1)
    assert torch.allclose(model.prior_x, torch.tensor([0.25, 0.5, 0.25]), atol=1e-3)
    assert torch.allclose(model.prior_e, torch.tensor([0.5, 1 / 6, 1 / 3]), atol=1e-3)
    sample = model.sample(5).data
    assert int(sample.x.max()) <= 2 and len(sample.edge_attr) == sample.edge_index.shape[1]
    absorbing = fitted(items, steps=1, prior="absorbing")
    assert absorbing.prior_e.tolist() == [1, 0, 0]


def test_types_are_learnt_together():
    """Nodes of type 0 and 1 alternate on a ring: edges join different types, and their own types alternate."""
    ring = [(i, (i + 1) % 6) for i in range(6)]
    items = [graph(ring, x=torch.tensor([0, 1] * 3), edge_attr=torch.tensor([0, 1] * 6))] * 16
    sample = fitted(items, steps=150).sample(32, seed=0).data
    ends, counts = sample.x[sample.edge_index], torch.bincount(sample.x)
    # Six nodes of which three are of each type would join different types by chance in 0.6 of all edges.
    assert float((ends[0] != ends[1]).float().mean()) > 0.75
    assert abs(int(counts[0]) - int(counts[1])) < 0.2 * int(counts.sum())
    assert float(sample.edge_attr.float().mean()) == pytest.approx(0.5, abs=0.15)


def test_float_features_come_from_nodes_of_like_degree():
    star = graph([(0, 1), (0, 2), (0, 3)], x=torch.tensor([[9.0], [1.0], [1.0], [1.0]]))
    sample = fitted([star] * 4, steps=1).sample(3, seed=0, constraint=Tree()).data
    assert sample.x.shape == (12, 1) and set(sample.x.flatten().tolist()) <= {1.0, 9.0}


@pytest.mark.parametrize(
    ("constraint", "check"),
    [
        (Planar() & Connected(), lambda g: nx.is_connected(g) and nx.check_planarity(g)[0]),
        (Tree(), nx.is_tree),
        (MaxDegree(2) & Connected(), lambda g: nx.is_connected(g) and max(dict(g.degree).values()) <= 2),
    ],
)
@pytest.mark.parametrize("process", ["defog", "digress"])
def test_constraints_hold_even_for_an_untrained_network(constraint, check, process):
    samples = untrained(process=process).sample(40, seed=3, num_steps=6, constraint=constraint)
    assert all(check(network) for network in networks(samples))
    free = untrained(process=process).sample(40, seed=3, num_steps=6)
    assert not all(check(network) for network in networks(free))


class Anything(Constraint):
    """Allows all graphs and notes how many it is asked about."""

    def __init__(self):
        self.asked = []

    def holds(self, adjacency):
        return True

    def all_hold(self, adjacency, mask):
        self.asked.append(len(adjacency))
        return np.ones(len(adjacency), dtype=bool)


def test_graphs_are_held_to_a_constraint_near_the_data_only():
    model, anything = untrained(), Anything()
    how = {"seed": 3, "num_steps": 20, "distortion": "identity"}
    held, free = model.sample(8, constraint=anything, **how).items(), model.sample(8, **how).items()
    assert all(torch.equal(a.edge_index, b.edge_index) for a, b in zip(held, free, strict=True))
    assert len(anything.asked) == 3 and anything.asked[0] == 8  # at the times 0.9, 0.95 and 1


def test_constrained_samples_do_not_depend_on_the_batch():
    model = untrained()
    together = model.sample(9, seed=2, num_steps=4, constraint=Tree()).items()
    requests = model.make_requests(9, seed=2)
    alone = [model.sample(requests[i : i + 1], num_steps=4, constraint=Tree()).items()[0] for i in range(9)]
    assert all(torch.equal(a.edge_index, b.edge_index) for a, b in zip(together, alone, strict=True))


def test_sizes_can_be_asked_for():
    model = untrained()
    assert model.sample(4, num_steps=2, num_nodes=[5, 8]).data.ptr.diff().tolist() == [5, 8, 5, 8]
    with pytest.raises(ConfigError, match="num_nodes must lie in 1.."):
        model.sample(2, num_nodes=10_000)


def test_the_sampler_is_apart_from_the_network():
    model = untrained(eta=3.0)
    assert model.sampler == RateSampler(50, eta=3.0, omega=0.0, distortion="polydec")
    assert untrained(process="digress").sampler == PosteriorSampler(500)
    same = model.sample(4, seed=0, num_steps=4, eta=0.0), model.sample(4, seed=0, sampler=RateSampler(4))
    assert torch.equal(same[0].data.edge_index, same[1].data.edge_index)
    with pytest.raises(ConfigError, match="PosteriorSampler has no setting eta"):
        untrained(process="digress").sample(2, eta=1.0)


def test_untrained_networks_sample_about_the_prior():
    model = untrained()
    model.gather(tiny_graphs(64))
    torch.nn.init.zeros_(model.network.edge_out.weight)
    with torch.no_grad():
        model.network.edge_out.bias.copy_(model.prior_e.log())
    found = float(densities(model.sample(200, seed=0, num_steps=10)).mean())
    assert found == pytest.approx(float(model.prior_e[1]), abs=0.03)


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_half_precision_trains(precision):
    model = DeFoG(**SMALL)
    with quiet():
        quiet_trainer(max_steps=3, precision=precision).fit(model, tiny_datamodule("graph"))
    assert len(model.sample(2, num_steps=3)) == 2


def test_graphs_of_one_node_are_possible():
    lonely = Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=1)
    model = fitted([lonely] * 4 + [graph([(0, 1)])] * 4, steps=2)
    assert sorted(set(model.sample(20, seed=0).data.ptr.diff().tolist())) == [1, 2]
    only = fitted([lonely] * 4, steps=2)
    assert only.sample(3).data.edge_index.shape == (2, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"process": "ddpm"},
        {"prior": "normal"},
        {"train_distortion": "x"},
        {"distortion": "x"},
        {"eta": -1.0},
        {"heads": 0},
        {"d_edge": 0},
        {"rrwp_steps": 0},
        {"dropout": -0.1},
        {"condition_dropout": 2.0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        DeFoG(**wrong)
