"""The conformance suite of lightning-synth, and the one thing that only this generator can get wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("lightning_synth_erdos_renyi", reason="pip install ./examples/third_party_plugin")

import torch

import lightning_synth as ls
from lightning_synth.testing import parametrize_with_checks, tiny_graphs, tiny_schema


@parametrize_with_checks(["erdos_renyi_example"])
def test_conformance(check: Callable[[], None]) -> None:
    check()


def test_density_and_sizes_of_each_class_are_matched() -> None:
    graphs, schema = tiny_graphs(400), tiny_schema("graph", n=400)
    model = ls.get_generator("erdos_renyi_example")().fit_on(graphs, schema)
    for label in (0, 1):
        real = [g for g in graphs if int(g.y) == label]
        synthetic = model.sample(2000, condition={"label": label}, seed=0).items()
        assert _density(synthetic) == pytest.approx(_density(real), rel=0.03)
        assert _mean_size(synthetic) == pytest.approx(_mean_size(real), rel=0.03)


def _density(graphs: list) -> float:
    return sum(g.num_edges for g in graphs) / sum(g.num_nodes * (g.num_nodes - 1) for g in graphs)


def _mean_size(graphs: list) -> float:
    return torch.tensor([float(g.num_nodes) for g in graphs]).mean().item()
