"""WDCNN: a convolutional classifier whose wide first kernel filters vibration noise."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_synth.downstream.base import Classifier
from lightning_synth.nn import Standardizer

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


class WDCNN(Classifier):
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

    name, domain = "wdcnn", "timeseries"

    def build(self, schema: dict[str, Any]) -> None:
        """Make the network."""
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
        head = [nn.Flatten(), nn.Linear(inputs * length, 100), nn.ReLU(), nn.Linear(100, int(schema["num_classes"]))]
        self.network = nn.Sequential(*blocks, *head)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return class scores (batch, classes)."""
        x = self.scale(batch["x"])
        if "mask" in batch:
            x = x * batch["mask"][:, None]
        scores: Tensor = self.network(x)
        return scores
