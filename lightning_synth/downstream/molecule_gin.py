"""GIN for molecules: classes, or numbers some of which may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_synth.downstream.base import class_scores, regression_scores
from lightning_synth.downstream.gin import GIN
from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.schema import canonical, collate, labels, move


class MoleculeGIN(GIN):
    """Graph isomorphism network (`GIN`) on atom and bond types that predicts the class ``label`` of a molecule.

    Args:
        schema: Of the molecules; None takes it from the DataModule.
        lr: Learning rate of AdamW.
        seed: Of the initial weights.
        hidden: Features of an atom.
        num_layers: Rounds of message passing.

    Shapes:
        batch: PyG ``Batch`` with int64 ``label`` (molecules,); ``weight`` (molecules,) float32 if mixed.

    Example:
        >>> from lightning_synth.testing import tiny_molecules, tiny_schema
        >>> model = MoleculeGIN({**tiny_schema("molecule"), "num_classes": 2}, hidden=8)
        >>> model.predict(tiny_molecules(3)).shape
        (3,)
    """

    name, domain = "molecule_gin", "molecule"
    metric: ClassVar[str] = "roc_auc"
    higher_is_better: ClassVar[bool] = True

    def truth(self, batch: Any) -> Tensor:
        """Return the classes of a batch, int64 (molecules,)."""
        label: Tensor = batch.label.reshape(-1)
        return label

    def score(self, items: Sequence[Any]) -> dict[str, float]:
        """Score predictions.

        Args:
            items: Labelled molecules.

        Returns:
            ``roc_auc``, ``macro_f1``, ``balanced_accuracy`` and ``accuracy``.
        """
        if self.schema is None:
            raise NotFittedError(f"{self.name}: no schema yet; train it, or pass schema=")
        truth = labels(items, self.schema)
        assert truth is not None
        return class_scores(truth, self.predict_proba(items))


class MoleculeGINRegressor(GIN):
    """Graph isomorphism network (`GIN`) on atom and bond types that predicts the properties ``y`` of a molecule.

    Targets are standardised inside; missing ones (NaN) do not count.

    Args:
        schema: Of the molecules; None takes it from the DataModule.
        lr: Learning rate of AdamW.
        seed: Of the initial weights.
        hidden: Features of an atom.
        num_layers: Rounds of message passing.

    Shapes:
        batch: PyG ``Batch`` with float ``y`` (molecules, properties); ``weight`` (molecules,) float32 if mixed.

    Example:
        >>> from lightning_synth.testing import tiny_molecules, tiny_schema
        >>> MoleculeGINRegressor(tiny_schema("molecule"), hidden=8).predict(tiny_molecules(3)).shape
        (3, 2)
    """

    name, domain = "molecule_gin_regressor", "molecule"
    metric: ClassVar[str] = "rmse"
    higher_is_better: ClassVar[bool] = False

    mean: Tensor
    std: Tensor

    def check(self, schema: dict[str, Any]) -> None:
        """Refuse data other than molecules with properties."""
        check_properties(self.name, schema)

    def build(self, schema: dict[str, Any]) -> None:
        """Make the network."""
        stats = schema["properties"].values()
        super().build({**schema, "num_classes": len(stats)})
        self.register_buffer("mean", torch.tensor([float(s["mean"]) for s in stats]))
        self.register_buffer("std", torch.tensor([float(s["std"]) for s in stats]).clamp(min=1e-6))

    def errors(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return squared errors in standard deviations, and which count, both (molecules, properties)."""
        assert self.schema is not None
        batch = canonical(batch, self.schema)
        z = (batch.y - self.mean) / self.std
        known = ~z.isnan()
        return (self(batch) - z.nan_to_num()).square(), known

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Squared error of the known targets, averaged by the weights of the batch."""
        errors, known = self.errors(batch)
        weight = batch["weight"][:, None] * known if "weight" in batch else known.to(errors.dtype)
        loss = (errors * weight).sum() / weight.sum().clamp(min=1e-12)
        if self._trainer is not None:
            self.log("loss", loss, batch_size=len(errors))
        return loss

    def validation_step(self, batch: Any, batch_idx: int = 0) -> None:
        """Log ``val_loss`` (real items only come here)."""
        errors, known = self.errors(batch)
        loss = (errors * known).sum() / known.sum().clamp(min=1)
        self.log("val_loss", loss, batch_size=len(errors), prog_bar=True)

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Return properties in their own units (molecules, properties)."""
        assert self.schema is not None
        predicted: Tensor = self(canonical(batch, self.schema)) * self.std + self.mean
        return predicted

    @torch.no_grad()
    def predict(self, items: Sequence[Any]) -> np.ndarray:
        """Return properties in their own units, float64 (items, properties).

        Args:
            items: Items of the schema.
        """
        if self.schema is None:
            raise NotFittedError(f"{self.name}: no schema yet; train it, or pass schema=")
        training = self.training
        self.eval()
        parts = [torch.zeros(0, len(self.schema["properties"]))]
        for start in range(0, len(items), 512):
            batch = move(collate(items[start : start + 512], self.schema), self.device)
            parts.append(self.predict_step(batch).cpu())
        self.train(training)
        return torch.cat(parts).double().numpy()

    def score(self, items: Sequence[Any]) -> dict[str, float]:
        """Score predictions.

        Args:
            items: Molecules with properties.

        Returns:
            ``rmse`` and ``mae`` in the units of the properties.
        """
        predicted = self.predict(items)
        assert self.schema is not None
        return regression_scores(properties(items), predicted, list(self.schema["properties"]))


def check_properties(name: str, schema: dict[str, Any]) -> None:
    """Refuse data other than molecules with properties.

    Args:
        name: Of the model that asks.
        schema: Of the items.

    Raises:
        ConfigError: If the items are of another domain, or have no properties.
    """
    if schema.get("domain") != "molecule" or not schema.get("properties"):
        raise ConfigError(
            f"{name} predicts properties of molecules, got {schema.get('domain')} data with "
            f"{len(schema.get('properties') or ())} properties; name them with MoleculeDataModule(targets=[...])"
        )


def properties(items: Sequence[Any]) -> np.ndarray:
    """Return the properties of molecules, float64 (items, properties); NaN for missing ones."""
    return np.stack([item.y.reshape(-1).double().numpy() for item in items])
