"""Metrics of molecules for `evaluate`; the functions are in `molecule_scores`, the tables in `molecule_report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning_synth.metrics.molecule_facts import MoleculeSet, smiles_of
from lightning_synth.metrics.molecule_report import conditional_report, molecule_report, nearest_texts, text_report
from lightning_synth.metrics.molecule_scores import (
    descriptor_discrepancy,
    fcd,
    filter_share,
    fragment_similarity,
    internal_diversity,
    kl_score,
    molecule_validity,
    nearest_similarity,
    property_distances,
    scaffold_similarity,
    similarity_to_nearest,
    train_similarity,
    wl_mmd,
)
from lightning_synth.metrics.spec import MetricSpec, Schema

#: Training molecules that nearness to training is measured on.
_TRAIN = 5000
_train: tuple[Any, MoleculeSet] | None = None


def _training(items: Sequence[Any]) -> MoleculeSet:
    """SMILES of the training items; kept, since `evaluate` passes the same items again and again."""
    global _train
    if _train is None or _train[0] is not items:
        _train = (items, MoleculeSet([item.smiles for item in items]))
    return _train[1]


def _validity(train: Any, _test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    return molecule_validity(synthetic, set(_training(train).smiles), schema)


def _alone(name: str, function: Callable[[MoleculeSet], float]) -> Any:
    return lambda _train, _test, synthetic, schema, _seed: {name: function(MoleculeSet.of(synthetic, schema))}


def _pair(name: str, function: Callable[[MoleculeSet, MoleculeSet], Any]) -> Any:
    def compute(_train: Any, test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
        found = function(MoleculeSet.of(test, schema), MoleculeSet.of(synthetic, schema))
        return found if isinstance(found, dict) else {name: found}

    return compute


def _nearness(train: Any, _test: Any, synthetic: Any, schema: Schema, seed: int) -> dict[str, float]:
    return train_similarity(_training(train).draw(_TRAIN, seed, "train"), MoleculeSet.of(synthetic, schema))


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("molecule_validity", _validity, higher_is_better=True),
    MetricSpec("internal_diversity", _alone("internal_diversity", internal_diversity)),
    MetricSpec("filters", _alone("filters", filter_share)),
    MetricSpec("train_similarity", _nearness),
    MetricSpec("snn", _pair("snn", similarity_to_nearest), higher_is_better=True),
    MetricSpec("fragment_similarity", _pair("fragment_similarity", fragment_similarity), higher_is_better=True),
    MetricSpec("scaffold_similarity", _pair("scaffold_similarity", scaffold_similarity), higher_is_better=True),
    MetricSpec("property_distance", _pair("property_distance", property_distances), higher_is_better=False),
    MetricSpec("kl_score", _pair("kl_score", kl_score), higher_is_better=True),
    MetricSpec("wl_mmd", _pair("wl_mmd", wl_mmd), higher_is_better=False),
    MetricSpec("fcd", _pair("fcd", fcd), higher_is_better=False, cost="slow"),
    MetricSpec("discrepancy", _pair("discrepancy", descriptor_discrepancy), higher_is_better=False, cost="slow"),
)

__all__ = [
    "METRICS",
    "MoleculeSet",
    "conditional_report",
    "descriptor_discrepancy",
    "fcd",
    "filter_share",
    "fragment_similarity",
    "internal_diversity",
    "kl_score",
    "molecule_report",
    "molecule_validity",
    "nearest_similarity",
    "nearest_texts",
    "property_distances",
    "scaffold_similarity",
    "similarity_to_nearest",
    "smiles_of",
    "text_report",
    "train_similarity",
    "wl_mmd",
]
