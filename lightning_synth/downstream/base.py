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

from lightning_synth.errors import ConfigError, DataError, NotFittedError
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


def class_scores(truth: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Score class probabilities.

    Args:
        truth: int64 (items,).
        probability: (items, classes).

    Returns:
        ``roc_auc`` (that of each class against the others, averaged) and what `scores` returns.

    Raises:
        DataError: If all items are of one class, which leaves the area undefined.

    Example:
        >>> class_scores(np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]))["roc_auc"]
        1.0
    """
    from sklearn.metrics import roc_auc_score

    present = np.unique(truth)
    if len(present) < 2:
        raise DataError(f"ROC-AUC of {len(truth)} items needs two classes, but all are of class {present.tolist()}")
    areas = [roc_auc_score(truth == c, probability[:, c]) for c in present]
    return {"roc_auc": float(np.mean(areas)), **scores(truth, probability.argmax(1), probability.shape[1])}


def regression_scores(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Score predicted numbers, in the units of the targets; missing ones (NaN) do not count.

    Args:
        truth: (items, targets).
        predicted: (items, targets).
        names: Of the targets.

    Returns:
        ``rmse`` and ``mae``, averaged over targets; for several targets also ``rmse/<name>``.

    Raises:
        DataError: If a target has no known value.

    Example:
        >>> regression_scores(np.array([[1.0], [np.nan]]), np.array([[3.0], [0.0]]), ["logP"])
        {'rmse': 2.0, 'mae': 2.0}
    """
    unknown = [name for name, known in zip(names, np.isfinite(truth).any(0), strict=True) if not known]
    if unknown:
        raise DataError(f"none of the {len(truth)} items has a value of {', '.join(unknown)}: nothing to score")
    error = predicted - truth
    rmse = np.sqrt(np.nanmean(error**2, axis=0))
    each = {f"rmse/{name}": float(value) for name, value in zip(names, rmse, strict=True)} if len(names) > 1 else {}
    return {"rmse": float(rmse.mean()), "mae": float(np.nanmean(np.abs(error), axis=0).mean()), **each}


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

    def check(self, schema: dict[str, Any]) -> None:
        """Refuse data that it cannot learn from.

        Args:
            schema: Of the items.

        Raises:
            ConfigError: If the items are of another domain, or have no classes.
        """
        if schema.get("domain") != self.domain or not schema.get("num_classes"):
            raise ConfigError(
                f"{self.name} classifies labelled items of domain {self.domain!r}, got {schema.get('domain')} data "
                f"with {schema.get('num_classes', 0)} classes"
            )

    def truth(self, batch: Any) -> Tensor:
        """Return the classes of a batch, int64 (items,); after a mixup their probabilities, (items, classes)."""
        y: Tensor = batch["y"]
        return y if y.ndim == 2 and y.is_floating_point() else y.reshape(-1)

    def _build(self, schema: dict[str, Any]) -> None:
        self.check(schema)
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
        losses = F.cross_entropy(self(batch), self.truth(batch), reduction="none")
        weight = batch["weight"] if "weight" in batch else None
        loss = losses.mean() if weight is None else (losses * weight).sum() / weight.sum().clamp(min=1e-12)
        if self._trainer is not None:
            self.log("loss", loss, batch_size=len(losses))
        return loss

    def validation_step(self, batch: Any, batch_idx: int = 0) -> None:
        """Log ``val_loss`` and ``val_accuracy`` (real items only come here)."""
        assert self.schema is not None
        batch = canonical(batch, self.schema)
        scores, y = self(batch), self.truth(batch)
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
