"""How most networks here are trained: warm-up and cosine, clipped gradients, and an average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_synth.errors import ConfigError
from lightning_synth.generator import Generator
from lightning_synth.nn import warm_cosine


class WeightAverage(nn.Module):
    """Exponential moving average of parameters, kept in buffers so that checkpoints carry it.

    The decay warms up, min(decay, (1 + s) / (10 + s)) after s updates: short fits are not dominated by initial weights.

    Args:
        parameters: Name to parameter; the same mapping is passed to the other methods.
        decay: Share of the old average that an update keeps, after warm-up.
    """

    updates: Tensor

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        for name, value in parameters.items():
            self.register_buffer(self._key(name), value.detach().clone())

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "/")

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Move the average towards the present values."""
        s = int(self.updates)
        share = 1 - min(self.decay, (1 + s) / (10 + s))
        for name, value in parameters.items():
            self.get_buffer(self._key(name)).lerp_(value.detach(), share)
        self.updates += 1

    @torch.no_grad()
    def commit(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Write the averages into the parameters."""
        for name, value in parameters.items():
            value.copy_(self.get_buffer(self._key(name)))

    @torch.no_grad()
    def reset(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Start anew from the present values."""
        for name, value in parameters.items():
            self.get_buffer(self._key(name)).copy_(value)
        self.updates.zero_()

    @contextmanager
    def applied(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Use the averages for the time of a ``with`` block; no copies are made."""
        raw = {name: value.data for name, value in parameters.items()}
        try:
            for name, value in parameters.items():
                value.data = self.get_buffer(self._key(name))
            yield
        finally:
            for name, value in parameters.items():
                value.data = raw[name]


class AveragedGenerator(Generator):
    """Base of generators that sample from averaged weights.

    The learning rate warms up over 5 % of the Trainer's budget and then follows a cosine down to 1 %; gradients are
    clipped to norm 1 unless the Trainer clips.

    A subclass makes its networks in ``build`` and calls ``super().build(schema)`` LAST, so that the average covers
    them.

    Args:
        ema_decay: Decay of the average; 0 samples from the weights themselves.
        **kwargs: For `Generator` and the subclass.
    """

    average: WeightAverage

    def __init__(self, *, ema_decay: float = 0.995, **kwargs: Any) -> None:
        if not 0 <= ema_decay < 1:
            raise ConfigError(f"ema_decay must lie in [0, 1), got {ema_decay}")
        super().__init__(ema_decay=ema_decay, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        """Make the averaged copy of all parameters made so far."""
        self.average = WeightAverage(dict(self.named_parameters()), float(self.hparams["ema_decay"]))

    def configure_optimizers(self) -> Any:
        """AdamW, scheduled."""
        return self.scheduled(torch.optim.AdamW(self.parameters(), lr=float(self.hparams["lr"]), weight_decay=0.01))

    def scheduled(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Add warm-up and cosine.

        Args:
            optimizer: Of a subclass.
        """
        scheduler = LambdaLR(optimizer, lambda _: warm_cosine(self.progress))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient to norm 1 unless the Trainer clips."""
        super().on_before_optimizer_step(optimizer)
        if not self.trainer.gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Update the averaged weights."""
        super().on_train_batch_end(*args, **kwargs)
        if self.hparams["ema_decay"] > 0:
            self.average.update(dict(self.named_parameters()))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Use the averaged weights for the time of a ``with`` block."""
        if self.hparams["ema_decay"] > 0 and int(self.average.updates) > 0:
            with self.average.applied(dict(self.named_parameters())):
                yield
        else:
            yield
