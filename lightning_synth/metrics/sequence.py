"""Metrics of interaction sequences for `evaluate` and as torchmetrics; the functions are in `sequence_scores`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.metrics.common import TwoSampleMetric
from lightning_synth.metrics.sequence_scores import (
    NgramTable,
    bigram_rate,
    cooccurrence_index,
    cooccurrence_rate,
    gini,
    length_scores,
    popularity_scores,
    popularity_slope,
    repeat_rate,
    target_leak,
    unique_ngram_rate,
    users_of,
)
from lightning_synth.metrics.spec import MetricSpec, Schema
from lightning_synth.sequences.items import SequenceItems

# -------------------------------------------------------------------------------------------------------- evaluation


class _Key:
    """A training set as a key of a cache, by identity; holding it keeps its identity from being used again."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __hash__(self) -> int:
        return id(self.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.items is self.items


@lru_cache(maxsize=2)
def _training(key: _Key, vocab_size: int) -> dict[str, Any]:
    """What all metrics of one evaluation look up in the training sequences."""
    sequences = SequenceItems.from_items(key.items)
    return {
        "counts": np.bincount(sequences.flat(), minlength=vocab_size + 1)[1:],
        "bigrams": NgramTable.of(sequences, vocab_size, 2),
        "trigrams": NgramTable.of(sequences, vocab_size, 3),
        "cooccurrence": cooccurrence_index(sequences, vocab_size),
    }


def training_part(train: Any, items: Any, schema: Schema) -> SequenceItems:
    """Cut sequences to what generators may have learnt of them.

    Args:
        train: Training sequences.
        items: Sequences; those that go on from the training sequence of their user lose what comes after it.
        schema: With ``vocab_size`` and ``max_length``.

    Returns:
        The latest ``max_length`` items of each.
    """
    known, sequences = SequenceItems.from_items(train), SequenceItems.from_items(items)
    place = _training(_Key(train), int(schema["vocab_size"]))["cooccurrence"][1]
    found = torch.tensor([place.get(int(user), -1) for user in users_of(sequences)], dtype=torch.int64)
    size = torch.where(found >= 0, known.lengths[found], 0)
    shorter = (found >= 0) & (size < sequences.lengths)
    rows = shorter.nonzero()[:, 0]
    own, theirs = sequences[rows], known[found[rows]]
    row, index = theirs.position_rows()
    same = theirs.columns["item_id"][index] == own.columns["item_id"][index - theirs.start[row] + own.start[row]]
    # Only what begins with the training sequence goes on from it; an extension to the past does not.
    cut = rows[torch.bincount(row[~same], minlength=len(rows)) == 0]
    stop = sequences.stop.clone()
    stop[cut] = sequences.start[cut] + size[cut]
    return sequences.cut(stop=stop).latest(int(schema["max_length"]))


def _counts(items: SequenceItems, schema: Schema) -> np.ndarray:
    return np.bincount(items.flat(), minlength=int(schema["vocab_size"]) + 1)[1:]


def _popularity(train: Any, test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    real, counts = (_counts(training_part(train, items, schema), schema) for items in (test, synthetic))
    slope = popularity_slope(_training(_Key(train), int(schema["vocab_size"]))["counts"], counts)
    return {**popularity_scores(real, counts), "popularity_slope": slope}


def _transitions(train: Any, _test: Any, synthetic: Any, schema: Schema, seed: int) -> dict[str, float]:
    known, items = _training(_Key(train), int(schema["vocab_size"])), training_part(train, synthetic, schema)
    return {
        "bigram_rate": bigram_rate(known["bigrams"], items),
        "cooccurrence_rate": cooccurrence_rate(known["cooccurrence"], items, seed),
    }


def _lengths(train: Any, test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    real, other = (training_part(train, items, schema) for items in (test, synthetic))
    return {**length_scores(real, other, int(schema["max_length"])), "repeat_rate": repeat_rate(other)}


def _memorisation(train: Any, _test: Any, synthetic: Any, schema: Schema, _seed: int) -> dict[str, float]:
    table = _training(_Key(train), int(schema["vocab_size"]))["trigrams"]
    return {"unique_trigram_rate": unique_ngram_rate(table, training_part(train, synthetic, schema))}


# ---------------------------------------------------------------------------------------------- torchmetrics classes


class SequenceMetric(TwoSampleMetric):
    """Base of metrics of sequences; its state is the sequences themselves, each one behind its length.

    Args:
        schema: Of the sequences: ``vocab_size`` and ``max_length``.
        seed: Of everything random in it.
        **kwargs: Of `torchmetrics.Metric`.

    Shapes:
        update: a batch (``item_id``, ``padding_mask``) or items. compute: name to scalar float64 tensor.
    """

    higher_is_better: bool | None = False

    def _rows(self, values: Any) -> Tensor:
        if isinstance(values, dict):
            mask = values.get("padding_mask", values["item_id"] != 0)
            values = [{"item_id": ids[row]} for ids, row in zip(values["item_id"], mask, strict=True)]
        elif callable(getattr(values, "items", None)):
            values = values.items()
        parts = [torch.cat([torch.tensor([len(item["item_id"])]), item["item_id"].cpu()]) for item in values]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    def _spaces(self, *names: str) -> list[Any]:
        return [_unpacked(self._sample(name)) for name in names]

    def _own_schema(self) -> Schema:
        return self.schema or {}


class PopularityShift(SequenceMetric):
    """Popularity of the synthetic items against the real ones; see `popularity_scores` and `popularity_slope`.

    Example:
        >>> metric = PopularityShift(schema={"domain": "sequence", "vocab_size": 3, "max_length": 5})
        >>> metric.update([{"item_id": torch.tensor([1, 2])}], real=True)
        >>> metric.update([{"item_id": torch.tensor([2, 1])}], real=False)
        >>> float(metric.compute()["popularity_js"])
        0.0
    """

    def _evaluate(self, *samples: Any) -> dict[str, float]:
        real, synthetic = samples
        return _popularity(real, real, synthetic, self._own_schema(), self.seed)


class SequenceTransitions(SequenceMetric):
    """How many pairs and triples of the synthetic sequences the real ones hold; see `bigram_rate`.

    Example:
        >>> metric = SequenceTransitions(schema={"domain": "sequence", "vocab_size": 3, "max_length": 5})
        >>> metric.update([{"item_id": torch.tensor([1, 2, 3])}], real=True)
        >>> metric.update([{"item_id": torch.tensor([2, 3, 1])}], real=False)
        >>> float(metric.compute()["bigram_rate"])
        0.5
    """

    higher_is_better: bool | None = None

    def _evaluate(self, *samples: Any) -> dict[str, float]:
        real, synthetic = samples
        schema = self._own_schema()
        rates = _transitions(real, real, synthetic, schema, self.seed)
        return {**rates, **_memorisation(real, real, synthetic, schema, self.seed)}


class SequenceLengths(SequenceMetric):
    """Lengths of the synthetic sequences against the real ones; see `length_scores` and `repeat_rate`.

    Example:
        >>> metric = SequenceLengths(schema={"domain": "sequence", "vocab_size": 3, "max_length": 5})
        >>> metric.update([{"item_id": torch.tensor([1, 2, 3])}], real=True)
        >>> metric.update([{"item_id": torch.tensor([2])}], real=False)
        >>> float(metric.compute()["length_w1"])
        2.0
    """

    def _evaluate(self, *samples: Any) -> dict[str, float]:
        real, synthetic = samples
        return _lengths(real, real, synthetic, self._own_schema(), self.seed)


def _unpacked(packed: np.ndarray) -> SequenceItems:
    """Sequences that were written one behind the other, each after its length."""
    lists: list[Sequence[int]] = []
    at = 0
    while at < len(packed):
        size = int(packed[at])
        lists.append(packed[at + 1 : at + 1 + size].tolist())
        at += 1 + size
    return SequenceItems.from_lists(lists)


_BOTH_WAYS = ("popularity_gini", "catalogue_coverage", "top1_share", "popularity_slope")

METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("popularity", _popularity, False, directions=dict.fromkeys(_BOTH_WAYS)),
    MetricSpec("transitions", _transitions, None),
    MetricSpec("lengths", _lengths, False, directions={"repeat_rate": None}),
    # Real sequences repeat triples of others too: only more than they do is memorised.
    MetricSpec("memorisation", _memorisation, False),
)

__all__ = [
    "METRICS",
    "NgramTable",
    "PopularityShift",
    "SequenceLengths",
    "SequenceMetric",
    "SequenceTransitions",
    "bigram_rate",
    "cooccurrence_index",
    "cooccurrence_rate",
    "gini",
    "length_scores",
    "popularity_scores",
    "popularity_slope",
    "repeat_rate",
    "target_leak",
    "unique_ngram_rate",
]
