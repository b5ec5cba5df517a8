"""Public test tools: tiny data of every domain, and the conformance suites of generators and DataModules."""

from __future__ import annotations

from lightning_synth.testing.datamodule import check_datamodule
from lightning_synth.testing.suite import CHECKS, check_generator, parametrize_with_checks
from lightning_synth.testing.tiny import (
    ATOM_TYPES,
    BOND_TYPES,
    tiny_datamodule,
    tiny_graphs,
    tiny_items,
    tiny_molecules,
    tiny_node,
    tiny_schema,
    tiny_sequences,
    tiny_series,
    tiny_series_schema,
)

__all__ = [
    "ATOM_TYPES",
    "BOND_TYPES",
    "CHECKS",
    "check_datamodule",
    "check_generator",
    "parametrize_with_checks",
    "tiny_datamodule",
    "tiny_graphs",
    "tiny_items",
    "tiny_molecules",
    "tiny_node",
    "tiny_schema",
    "tiny_sequences",
    "tiny_series",
    "tiny_series_schema",
]
