"""Metrics: plain functions on features (numpy in, numbers out), `torchmetrics.Metric` classes, and their nulls.

Names are imported on first use, so that this package stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

_CLASSES = (
    "AlphaPrecision",
    "ClassifierTwoSample",
    "DCRShare",
    "DDPlot",
    "Diversity",
    "ExactCopies",
    "HellingerDistance",
    "MaximumMeanDiscrepancy",
    "MembershipInference",
    "MembershipMetric",
    "NearDuplicates",
    "NearestNeighbourRatio",
    "PRDC",
    "PairwiseCorrelationDifference",
    "TwoSampleMetric",
)
_SERIES_CLASSES = (
    "AutocorrelationDifference",
    "ContextFID",
    "CorrelationalScore",
    "DiscriminativeScore",
    "EnvelopeLines",
    "MarginalDifference",
    "Memorisation",
    "PSDDistance",
    "PredictiveScore",
)
_GRAPH_CLASSES = (
    "GraphGIN",
    "GraphMMD",
    "GraphMemorisation",
    "GraphVUN",
    "PolyGraphDiscrepancy",
)
_FUNCTIONS = {
    "timeseries": _SERIES_CLASSES,
    "context_fid": ("frechet_distance", "train_encoder"),
    "judges": ("discriminative_score", "predictive_score"),
    "series_statistics": (
        "autocorrelation_difference",
        "correlational_score",
        "envelope_line_differences",
        "marginal_difference",
        "moment_differences",
        "psd_distance",
    ),
    "series_utility": ("class_adherence", "memorisation", "train_on_synthetic"),
    "distances": ("FeatureSpace", "nearest"),
    "diversity": ("alpha_precision", "dcscore", "diversity_ratios", "prdc", "vendi"),
    "fidelity": (
        "classifier_two_sample",
        "dd_plot_r2",
        "depth",
        "gaussian_hellinger",
        "hellinger",
        "mmd",
        "pairwise_correlation_difference",
    ),
    "nulls": ("Calibrated", "against_real"),
    "privacy": (
        "dcr_share",
        "exact_copies",
        "membership_inference",
        "near_duplicates",
        "neighbour_distance_ratio",
        "nndr_tails",
        "payload_hashes",
        "tpr_at_fpr",
    ),
    "spec": ("MetricSpec",),
    "graph": _GRAPH_CLASSES,
    "graph_isomorphism": ("is_isomorphic", "isomorphism_classes", "wl_hashes"),
    "graph_judges": ("KernelLogistic", "gin_scores", "polygraph_discrepancy", "random_gin"),
    "graph_protocol": ("graph_report",),
    "graph_statistics": (
        "average_ratio",
        "gaussian_emd",
        "gaussian_tv",
        "graph_descriptors",
        "graph_mmds",
        "structure_features",
    ),
    "graph_validity": ("find_blocks", "graph_memorisation", "is_block_model", "valid_graphs", "valid_unique_novel"),
    "molecule_facts": ("MoleculeSet",),
    "molecule_report": ("conditional_report", "molecule_report", "text_report"),
    "molecule_scores": (
        "descriptor_discrepancy",
        "fcd",
        "filter_share",
        "fragment_similarity",
        "internal_diversity",
        "kl_score",
        "molecule_validity",
        "nearest_similarity",
        "property_distances",
        "scaffold_similarity",
        "similarity_to_nearest",
        "train_similarity",
        "wl_mmd",
    ),
    "orbits": ("orbit_counts",),
    "planarity": ("is_planar",),
}
_HOME = {name: "common" for name in _CLASSES} | {name: home for home, names in _FUNCTIONS.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'lightning_synth.metrics' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lightning_synth.metrics.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
