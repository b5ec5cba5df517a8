"""WDCNN: a convolutional classifier whose wide first kernel filters vibration noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.nn import Standardizer
from lightning_synth.requests import mix_seed
from lightning_synth.schema import canonical, collate
from lightning_synth.sources import source_schema

#: Steps of the window for which the paper sized its first kernel (64, stride 16).
_PAPER_LENGTH = 2048


def _block(inputs: int, outputs: int, kernel: int, stride: int, length: int) -> tuple[nn.Module, int]:
    """Convolution, normalisation, ReLU, and pooling while the window is long enough; returns the new length."""
    layers: list[nn.Module] = [nn.Conv1d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2)]
    length = (length + 2 * ((kernel - 1) // 2) - kernel) // stride + 1
    layers += [nn.BatchNorm1d(outputs), nn.ReLU()]
    if length >= 4:
        layers.append(nn.MaxPool1d(2))
        length //= 2
    return nn.Sequential(*layers), length


class WDCNN(LightningModule):
    """Deep convolutional network with a wide first kernel (Zhang et al. 2017, doi:10.3390/s17020425).

    For windows shorter than the paper's 2048 steps the first kernel and its stride shrink in proportion, and pooling
    stops when nothing is left to pool.

    Args:
        schema: Of the windows; None takes it from the DataModule.
        lr: Learning rate of AdamW.
        seed: Of the initial weights.

    Shapes:
        batch["x"]: (batch, channels, length) float32, raw; standardised inside.
        batch["y"]: (batch,) int64.
        batch["weight"]: (batch,) float32, optional: of a mixed batch.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("timeseries")
        >>> WDCNN(schema=data.schema).predict(data.train_items()).shape == (len(data.train_items()),)
        True
    """

    def __init__(self, schema: dict[str, Any] | None = None, lr: float = 1e-3, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters({"schema": schema, "lr": lr, "seed": seed})
        self.schema = schema
        self.network: nn.Module | None = None
        if schema is not None:
            self._build(schema)

    def setup(self, stage: str) -> None:
        """Take the schema of the data, if none was given."""
        if self.network is None:
            self._build(source_schema(getattr(self.trainer, "datamodule", None)))

    def _build(self, schema: dict[str, Any]) -> None:
        if schema.get("domain") != "timeseries" or not schema.get("num_classes"):
            raise ConfigError(
                f"wdcnn classifies labelled windows of a time series, got {schema.get('domain')} data "
                f"with {schema.get('num_classes', 0)} classes"
            )
        self.schema = schema
        # A checkpoint then reloads alone, also where the schema came from the DataModule.
        self.hparams["schema"] = schema
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(int(self.hparams["seed"]), 0))
            self.scale, length = Standardizer(schema), int(schema["length"])
            kernel = max(3, 64 * length // _PAPER_LENGTH) | 1
            blocks, inputs = [], int(schema["channels"])
            for outputs, size, stride in (
                (16, kernel, max(1, kernel // 4)),
                (32, 3, 1),
                (64, 3, 1),
                (64, 3, 1),
                (64, 3, 1),
            ):
                block, length = _block(inputs, outputs, size, stride, length)
                blocks.append(block)
                inputs = outputs
            head = [
                nn.Flatten(),
                nn.Linear(inputs * length, 100),
                nn.ReLU(),
                nn.Linear(100, int(schema["num_classes"])),
            ]
            self.network = nn.Sequential(*blocks, *head)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return class scores (batch, classes)."""
        assert self.network is not None
        x = self.scale(batch["x"])
        if "mask" in batch:
            x = x * batch["mask"][:, None]
        scores: Tensor = self.network(x)
        return scores

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Cross-entropy, averaged by the weights of the batch."""
        assert self.schema is not None
        batch = canonical(batch, self.schema)
        losses = F.cross_entropy(self(batch), batch["y"], reduction="none")
        weight = batch.get("weight")
        loss = losses.mean() if weight is None else (losses * weight).sum() / weight.sum().clamp(min=1e-12)
        if self._trainer is not None:
            self.log("loss", loss, batch_size=len(losses))
        return loss

    def validation_step(self, batch: Any, batch_idx: int = 0) -> None:
        """Log ``val_loss`` and ``val_accuracy`` (real items only come here)."""
        assert self.schema is not None
        batch = canonical(batch, self.schema)
        scores, y = self(batch), batch["y"]
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
            items: Windows.

        Returns:
            float64 (items, classes).
        """
        if self.schema is None:
            raise NotFittedError("wdcnn: no schema yet; train it, or pass schema=")
        training = self.training
        self.eval()
        parts = [torch.zeros(0, int(self.schema["num_classes"]))]
        for start in range(0, len(items), 512):
            batch = collate(items[start : start + 512], self.schema)
            fields = {key: batch[key].to(self.device) for key in ("x", "mask") if key in batch}
            parts.append(self(fields).softmax(1).cpu())
        self.train(training)
        return torch.cat(parts).double().numpy()

    def predict(self, items: Sequence[Any]) -> np.ndarray:
        """Return int64 classes (items,).

        Args:
            items: Windows.
        """
        classes: np.ndarray = self.predict_proba(items).argmax(1).astype(np.int64)
        return classes
