"""Checking samples while they are generated: invalid items and copies of training items are marked, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_synth.errors import ConfigError, DataError, InvalidSamplesError
from lightning_synth.items import StackedItems
from lightning_synth.requests import Samples
from lightning_synth.schema import Items, item_hashes, overlap, validate
from lightning_synth.sources import source_items

#: Labels and conditions are no content: a training window under another label is still a copy.
_CONTENT = ("x", "mask")


class PoolAudit(Callback):
    """Marks samples that must not pass for new ones: ``accepted`` becomes False, scores say why, nothing is redrawn.

    Scores of 0 or 1: ``copy`` (equal, bit for bit, to a training item) and ``invalid`` (not an item of the schema:
    non-finite values, labels out of range, edges to missing nodes, graphs that are no molecule...). `PoolWriter` stores
    them with each row and their sums in the manifest, wherever this callback stands in the list.

    Args:
        train: Training items, or the DataModule that has them: copies are then found whatever their label. None: the
            fingerprint that the generator took while it was fitted, which holds hashes of whole items.
        reject_copies: Mark copies as not accepted; False only counts them.
        max_invalid: Share of invalid rows above which the run ends with an error.

    Raises:
        ConfigError: If ``max_invalid`` is not in [0, 1].

    Example:
        >>> from lightning_synth import get_generator
        >>> from lightning_synth.testing import tiny_datamodule
        >>> dm = tiny_datamodule("timeseries")
        >>> gen = get_generator("bootstrap")().fit_on(dm.train_items(), dm.schema)
        >>> samples = PoolAudit().mark(gen.sample(4), gen.training_fingerprint)
        >>> samples.accepted.tolist(), samples.score["copy"].tolist()
        ([False, False, False, False], [1.0, 1.0, 1.0, 1.0])
    """

    def __init__(self, train: Any = None, *, reject_copies: bool = True, max_invalid: float = 0.5) -> None:
        if not 0 <= max_invalid <= 1:
            raise ConfigError(f"max_invalid is a share of rows, got {max_invalid}")
        self.train, self.reject_copies, self.max_invalid = train, reject_copies, max_invalid
        #: Rows seen by this process since the start of the run, and how many were invalid, copies, accepted.
        self.counts = dict.fromkeys(("rows", "invalid", "copy", "accepted"), 0)
        self._known: np.ndarray | None = None
        self._first_problem = ""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self.counts = dict.fromkeys(self.counts, 0)
        self._first_problem = ""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Mark the samples of a batch."""
        if isinstance(outputs, Samples):
            self.mark(outputs, getattr(pl_module, "training_fingerprint", None))

    def mark(self, samples: Samples, fingerprint: Mapping[str, Any] | None = None) -> Samples:
        """Score samples and mark those that are unusable.

        Args:
            samples: Of a generator; changed in place.
            fingerprint: ``training_fingerprint`` of the generator, used where no training items were given.

        Returns:
            The same samples, with scores ``copy`` (where the training data is known) and ``invalid``.
        """
        items = samples.to("cpu").items()
        ok = samples.accepted.cpu().numpy()
        invalid = ~ok | self._invalid(items, samples.schema)
        rejected = invalid
        samples.score["invalid"] = torch.from_numpy(invalid.astype(np.float32)).to(samples.accepted.device)
        copies = self._copies(items, samples.schema, fingerprint)
        if copies is not None:
            samples.score["copy"] = torch.from_numpy(copies.astype(np.float32)).to(samples.accepted.device)
            rejected = rejected | (copies & self.reject_copies)
            self.counts["copy"] += int(copies.sum())
        samples.accepted = torch.from_numpy(~rejected).to(samples.accepted.device)
        self.counts["rows"] += len(samples)
        self.counts["invalid"] += int(invalid.sum())
        self.counts["accepted"] += int((~rejected).sum())
        return samples

    def _invalid(self, items: Items, schema: Mapping[str, Any]) -> np.ndarray:
        wrong = np.zeros(len(items), dtype=bool)
        if schema["domain"] == "molecule":
            # Generators leave the SMILES of a graph empty that RDKit does not accept.
            wrong[:] = [item.get("smiles") == "" for item in items]
            if wrong.any():
                self._first_problem = self._first_problem or f"molecule {wrong.argmax()} is none: its smiles is empty"
        if self._problem(items, schema) is None:
            return wrong
        # Only now one by one: most batches are sound.
        for i, item in enumerate(items):
            problem = self._problem([item], schema)
            wrong[i] |= problem is not None
            self._first_problem = self._first_problem or problem or ""
        return wrong

    @staticmethod
    def _problem(items: Items, schema: Mapping[str, Any]) -> str | None:
        try:
            validate(items, schema)
        except DataError as error:
            return str(error)
        return None

    def _copies(
        self, items: Items, schema: Mapping[str, Any], fingerprint: Mapping[str, Any] | None
    ) -> np.ndarray | None:
        if not len(items):
            return np.zeros(0, dtype=bool)
        if self.train is not None:
            if self._known is None:
                train = source_items(self.train, "train", dict(schema)) if _is_datamodule(self.train) else self.train
                self._known = item_hashes(_content(train, schema), schema)
            return np.isin(item_hashes(_content(items, schema), schema), self._known)
        return overlap(fingerprint, item_hashes(items, schema)) if fingerprint else None

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was found.

        Raises:
            InvalidSamplesError: If too many rows are invalid; they are counted, and the first problem is named.
        """
        rows, invalid = self.counts["rows"], self.counts["invalid"]
        if rows and invalid / rows > self.max_invalid:
            first = f", first: {self._first_problem}" if self._first_problem else ""
            raise InvalidSamplesError(
                f"{invalid} of {rows} samples ({invalid / rows:.0%}) are invalid{first}; train longer, or raise "
                "max_invalid"
            )
        accepted, copies = self.counts["accepted"], self.counts["copy"]
        rank_zero_info(
            f"audit: {rows} rows, {accepted} accepted, {invalid} invalid ({invalid / max(rows, 1):.0%}), "
            f"{copies} copies of training items"
        )


def _is_datamodule(train: Any) -> bool:
    return hasattr(train, "train_dataloader")


def _content(items: Sequence[Any], schema: Mapping[str, Any]) -> Items:
    """Items without labels and conditions."""
    if schema["domain"] == "timeseries":
        stacked = StackedItems.from_items(items)
        return StackedItems({name: value for name, value in stacked.tensors.items() if name in _CONTENT})
    if schema["domain"] in ("graph", "molecule"):
        graphs = [item.clone() for item in items]
        for graph in graphs:
            for name in [key for key in ("y", "smiles") if key in graph]:
                delattr(graph, name)
        return graphs
    return items
