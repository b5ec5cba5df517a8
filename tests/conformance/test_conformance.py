"""Every registered generator, built in or from an installed package, passes the conformance suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightning_synth.registry import list_generators
from lightning_synth.testing import check_datamodule, parametrize_with_checks, tiny_datamodule


@parametrize_with_checks(list_generators())
def test_generator(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("domain", ["timeseries", "graph", "node", "molecule", "sequence"])
def test_tiny_datamodule(domain: str) -> None:
    if domain in ("graph", "node", "molecule"):
        pytest.importorskip("torch_geometric")
    check_datamodule(tiny_datamodule(domain))
