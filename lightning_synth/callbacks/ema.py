"""Moving average of the generator's weights, counted in batches."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_synth.errors import ConfigError

_CURRENT, _COUNT = "current_model_state", "averaging_state"


class GeneratorEMA(WeightAveraging):
    """Exponential moving average of the generator networks; sampling, validation and checkpoints use the average.

    Lightning's ``EMAWeightAveraging`` counts optimiser steps. With two optimisers and an even ``update_every_n_steps``
    it never averages, and ends the fit by putting the initial weights back without a word. This one counts batches,
    leaves discriminators and buffers (batch-norm statistics) as they are, and never replaces weights it has not
    averaged.

    The decay warms up as ``min(decay, (1 + s) / (10 + s))`` after s updates (as in TensorFlow's moving averages), so
    short runs are not dominated by the first weights. The first update copies.

    Args:
        decay: Weight of the old average, in [0, 1).
        every_n_batches: Update the average after every so many training batches.
        start_batch: Number of batches to wait before the first update.
        warmup: Use the warm-up above; False for a constant decay.

    Raises:
        ConfigError: If a value is out of range.

    Example:
        >>> GeneratorEMA(decay=0.99).decay_at(0), GeneratorEMA(decay=0.99).decay_at(10_000)
        (0.1, 0.99)
    """

    def __init__(
        self, decay: float = 0.999, every_n_batches: int = 1, start_batch: int = 0, warmup: bool = True
    ) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"GeneratorEMA(decay={decay}) must be in [0, 1)")
        if every_n_batches < 1 or start_batch < 0:
            raise ConfigError(f"GeneratorEMA({every_n_batches=}, {start_batch=}) must be at least 1 and 0")
        super().__init__(use_buffers=False)
        self.decay, self.every_n_batches, self.start_batch, self.warmup = decay, every_n_batches, start_batch, warmup
        self._batches = 0

    def decay_at(self, updates: int) -> float:
        """Return the weight of the old average after ``updates`` updates."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    @property
    def num_updates(self) -> int:
        """How often the average was updated."""
        return 0 if self._average_model is None else int(self._average_model.n_averaged)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start afresh; the networks may not exist yet, they are often built in the module's own setup."""
        if stage == "fit":
            self._average_model = None
            self._batches = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the average, unless a checkpoint did, on the device of the module."""
        self._prepare(pl_module).to(pl_module.device)
        if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
            warnings.warn(
                "ModelCheckpoint(save_weights_only=True) asks no callback: its files hold the current weights, not the "
                "average of GeneratorEMA; use save_weights_only=False",
                stacklevel=2,
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch and update the average if it is due."""
        self._batches += 1
        due = self._batches - self.start_batch
        weights = nn.ParameterList(_generator_parameters(pl_module).values())
        if due > 0 and due % self.every_n_batches == 0 and len(weights):
            self._prepare(pl_module).update_parameters(weights)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: the average is a matter of batches."""

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches seen."""
        return {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of batches seen."""
        self._batches = state_dict["batches"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average into ``state_dict`` and keep the current weights aside, for resuming."""
        if self._average_model is None or not self.num_updates:
            return
        average = self._average(pl_module)
        checkpoint[_CURRENT] = {name: checkpoint["state_dict"][name] for name in average}
        checkpoint[_COUNT] = {"n_averaged": self.num_updates}
        checkpoint["state_dict"] = checkpoint["state_dict"] | {k: v.detach().clone() for k, v in average.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume: restore the average, and give the module its own weights back."""
        if trainer.state.fn != TrainerFn.FITTING or not {_CURRENT, _COUNT} <= checkpoint.keys():
            return
        # The module holds the average at this point: it was in "state_dict".
        self._average_model = None
        self._prepare(pl_module).n_averaged.fill_(checkpoint[_COUNT]["n_averaged"])
        with torch.no_grad():
            for name, parameter in _generator_parameters(pl_module).items():
                parameter.copy_(checkpoint[_CURRENT][name])

    def _prepare(self, module: LightningModule) -> AveragedModel:
        if self._average_model is None:
            weights = nn.ParameterList(_generator_parameters(module).values())
            self._average_model = AveragedModel(weights, multi_avg_fn=self._lerp)
        return self._average_model

    def _lerp(self, averaged: Any, current: Any, count: Tensor | int) -> None:
        # A frozen weight stays bit-equal: lerp adds a multiple of the difference.
        get_ema_multi_avg_fn(self.decay_at(int(count)))(averaged, current, count)

    def _average(self, module: LightningModule) -> dict[str, Tensor]:
        average = self._prepare(module).module.parameters()
        return dict(zip(_generator_parameters(module), average, strict=True))

    @torch.no_grad()
    def _swap_models(self, pl_module: LightningModule) -> None:
        if not self.num_updates:
            return
        average = self._average(pl_module)
        for name, parameter in _generator_parameters(pl_module).items():
            kept = average[name].clone()
            average[name].copy_(parameter)
            parameter.copy_(kept)

    @torch.no_grad()
    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        if not self.num_updates:
            return
        average = self._average(pl_module)
        for name, parameter in _generator_parameters(pl_module).items():
            parameter.copy_(average[name])


def _generator_parameters(module: LightningModule) -> dict[str, nn.Parameter]:
    """Name to parameter of the generator networks; of the whole module where it does not tell them apart."""
    networks = getattr(module, "generator_networks", None)
    chosen = {id(p) for network in (networks() if networks else (module,)) for p in network.parameters()}
    return {name: p for name, p in module.named_parameters() if id(p) in chosen}
