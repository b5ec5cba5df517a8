"""Mixing real and synthetic items in exact shares: sampler, policies, filters, and the checks against leaks."""

from lightning_synth.mixing.filters import ConfidenceFilter, Filter, NoveltyFilter, ValidityFilter
from lightning_synth.mixing.policies import Anneal, BalanceClasses, FixedRatio, Mode, Policy
from lightning_synth.mixing.sampler import MixedBlock, MixedLoader, MixtureSampler, WorkerError

__all__ = [
    "Anneal",
    "BalanceClasses",
    "ConfidenceFilter",
    "Filter",
    "FixedRatio",
    "MixedBlock",
    "MixedLoader",
    "MixtureSampler",
    "Mode",
    "NoveltyFilter",
    "Policy",
    "ValidityFilter",
    "WorkerError",
]
