"""What downstream models share: how they are trained, asked and scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn import functional as F

from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.requests import mix_seed
from lightning_synth.schema import canonical, collate, move
from lightning_synth.sources import source_schema


class Downstream(Protocol):
    """A classifier that a study can train: a LightningModule, or anything with ``fit``."""

    def predict(self, items: Sequence[Any]) -> np.ndarray:
        """Return int64 classes (items,)."""

    def predict_proba(self, items: Sequence[Any]) -> np.ndarray:
        """Return float64 probabilities (items, classes)."""


def scores(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, float]:
    """Score class predictions.

    Args:
        truth: int64 (items,).
        predicted: int64 (items,).
        num_classes: Classes of the task; those absent from ``truth`` do not count.

    Returns:
        ``macro_f1``, ``balanced_accuracy`` and ``accuracy``.

    Example:
        >>> scores(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)["accuracy"]
        0.6666666666666666
    """
    confusion = np.zeros((num_classes, num_classes))
    np.add.at(confusion, (truth, predicted), 1)
    hit, actual, called = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    present = actual > 0
    f1 = 2 * hit / np.maximum(actual + called, 1)
    return {
        "macro_f1": float(f1[present].mean()),
        "balanced_accuracy": float((hit[present] / actual[present]).mean()),
        "accuracy": float(hit.sum() / max(actual.sum(), 1)),
    }


class Classifier(LightningModule, ABC):
    """A network that classifies items of one domain: a plain LightningModule for plain or mixed batches.

    A subclass writes `build` (its network) and `forward` (class scores of a batch).

    Args:
        schema: Of the items; None takes it from the DataModule.
        lr: Learning rate of AdamW.
        seed: Of the initial weights.

    Raises:
        ConfigError: If the items are of another domain, or have no classes.
    """

    name: ClassVar[str]
    domain: ClassVar[str]

    def __init__(self, schema: dict[str, Any] | None = None, lr: float = 1e-3, seed: int = 0, **hparams: Any) -> None:
        super().__init__()
        self.save_hyperparameters({"schema": schema, "lr": lr, "seed": seed, **hparams})
        self.schema: dict[str, Any] | None = None
        if schema is not None:
            self._build(schema)

    @abstractmethod
    def build(self, schema: dict[str, Any]) -> None:
        """Make the network."""

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """Return class scores (items, classes) of a batch."""

    def setup(self, stage: str) -> None:
        """Take the schema of the data, if none was given."""
        if self.schema is None:
            self._build(source_schema(getattr(self.trainer, "datamodule", None)))

    def _build(self, schema: dict[str, Any]) -> None:
        if schema.get("domain") != self.domain or not schema.get("num_classes"):
            raise ConfigError(
                f"{self.name} classifies labelled items of domain {self.domain!r}, got {schema.get('domain')} data "
                f"with {schema.get('num_classes', 0)} classes"
            )
        self.schema = schema
        # A checkpoint then reloads alone, also where the schema came from the DataModule.
        self.hparams["schema"] = schema
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(int(self.hparams["seed"]), 0))
            self.build(schema)

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Cross-entropy, averaged by the weights of the batch."""
        assert self.schema is not None
        batch = canonical(batch, self.schema)
        losses = F.cross_entropy(self(batch), batch["y"].reshape(-1), reduction="none")
        weight = batch["weight"] if "weight" in batch else None
        loss = losses.mean() if weight is None else (losses * weight).sum() / weight.sum().clamp(min=1e-12)
        if self._trainer is not None:
            self.log("loss", loss, batch_size=len(losses))
        return loss

    def validation_step(self, batch: Any, batch_idx: int = 0) -> None:
        """Log ``val_loss`` and ``val_accuracy`` (real items only come here)."""
        assert self.schema is not None
        batch = canonical(batch, self.schema)
        scores, y = self(batch), batch["y"].reshape(-1)
        self.log("val_loss", F.cross_entropy(scores, y), batch_size=len(y), prog_bar=True)
        self.log("val_accuracy", (scores.argmax(1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Return class probabilities (batch, classes)."""
        assert self.schema is not None
        scores: Tensor = self(canonical(batch, self.schema))
        return scores.softmax(1)

    @torch.no_grad()
    def predict_proba(self, items: Sequence[Any]) -> np.ndarray:
        """Return class probabilities.

        Args:
            items: Items of the schema.

        Returns:
            float64 (items, classes).
        """
        if self.schema is None:
            raise NotFittedError(f"{self.name}: no schema yet; train it, or pass schema=")
        training = self.training
        self.eval()
        parts = [torch.zeros(0, int(self.schema["num_classes"]))]
        for start in range(0, len(items), 512):
            batch = move(collate(items[start : start + 512], self.schema), self.device)
            parts.append(self(batch).softmax(1).cpu())
        self.train(training)
        return torch.cat(parts).double().numpy()

    def predict(self, items: Sequence[Any]) -> np.ndarray:
        """Return int64 classes (items,).

        Args:
            items: Items of the schema.
        """
        classes: np.ndarray = self.predict_proba(items).argmax(1).astype(np.int64)
        return classes
