"""Samplers are tuned on validation graphs, and on nothing else."""

import pytest

from lightning_synth.discrete_flow import RateSampler
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.plugins.graph.defog import DeFoG
from lightning_synth.testing import tiny_datamodule, tiny_graphs, tiny_schema
from lightning_synth.tuning import tune_sampler

SMALL = {"num_layers": 1, "d_node": 8, "d_edge": 4, "d_graph": 4, "heads": 1}
QUICK = {"n": 4, "num_steps": 2, "progress": False}


@pytest.fixture
def model():
    generator = DeFoG(schema=tiny_schema("graph"), **SMALL)
    generator.is_fitted = True
    return generator


def test_each_stage_starts_from_the_best_so_far(model):
    wanted = RateSampler(2, eta=5.0, omega=0.1, distortion="cos")
    seen = []

    def score(samples, val):
        seen.append(len(samples))
        return -sum(
            getattr(model_setting(seen), name) == getattr(wanted, name) for name in ("distortion", "eta", "omega")
        )

    # The settings are tried in this order, each one once.
    order = [("identity", 0.0, 0.0), ("cos", 0.0, 0.0), ("cos", 5.0, 0.0), ("cos", 5.0, 0.1)]

    def model_setting(seen):
        distortion, eta, omega = order[len(seen) - 1]
        return RateSampler(2, eta, omega, distortion)

    options = {"distortions": ("identity", "cos"), "etas": (0.0, 5.0), "omegas": (0.0, 0.1)}
    found = tune_sampler(model, tiny_graphs(4), score=score, **options, **QUICK)
    assert found.best == wanted == model.sampler
    assert list(zip(found.table.distortion, found.table.eta, found.table.omega, strict=True)) == order


def test_test_graphs_are_not_looked_at(model):
    class Guarded:
        def __init__(self, data):
            self.val_items, self.train_items = data.val_items, data.train_items

        def test_items(self):
            raise AssertionError("the test split was read")

    options = {"distortions": ("identity",), "etas": (0.0, 10.0), "omegas": (0.0,)}
    found = tune_sampler(model, Guarded(tiny_datamodule("graph")), **options, **QUICK)
    assert found.table.score.notna().all()


def test_clear_errors(model):
    with pytest.raises(DataError, match="no validation graphs"):
        tune_sampler(model, [], **QUICK)
    diffusion = DeFoG(schema=tiny_schema("graph"), process="digress", **SMALL)
    with pytest.raises(ConfigError, match="no discrete-flow sampler"):
        tune_sampler(diffusion, tiny_graphs(4), **QUICK)
