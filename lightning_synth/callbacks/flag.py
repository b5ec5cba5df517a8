"""FLAG: adversarial noise on node features while a model trains."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.requests import KeyedRNG, mix_seed


class FLAG(Callback):
    """Train on features moved a little in the direction that raises the loss (Kong et al. 2022, arXiv 2010.09891).

    Before every training step the noise starts uniform in [-step_size, step_size] and is moved ``steps`` times by
    ``step_size`` along the sign of its gradient (algorithm 1). The parameter gradients of these passes count 1 / steps
    each, the model's own step is the last of them: the gradient of the free adversarial training of the paper, for any
    LightningModule with a ``training_step`` that returns the loss, under automatic optimisation.

    Args:
        step_size: Of one move, in units of the features.
        steps: Passes over each batch (m of the paper); 1 trains on uniform noise alone.
        unlabelled: Step size of nodes outside ``train_mask`` as a multiple of ``step_size`` (the paper takes larger
            steps there); graphs without that mask have one size.
        seed: Of the initial noise.

    Raises:
        ConfigError: If a number is not positive, or the model optimises by hand.
        DataError: If a batch has no float node features ``x``.

    Example:
        >>> from lightning_synth.downstream import GCN
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth.testing.case import quiet_trainer
        >>> quiet_trainer(FLAG(step_size=0.01), max_steps=3).fit(GCN(hidden=8), tiny_datamodule("node"))
    """

    def __init__(self, step_size: float = 1e-3, steps: int = 3, unlabelled: float = 1.0, seed: int = 0) -> None:
        if step_size <= 0 or steps < 1 or unlabelled < 0:
            raise ConfigError(
                "step_size must be positive, steps at least 1 and unlabelled not negative, got "
                f"{step_size}, {steps} and {unlabelled}"
            )
        self.step_size, self.steps, self.unlabelled, self.seed = step_size, steps, unlabelled, seed
        self._batch: Any = None
        self._clean: Tensor | None = None
        self._sums: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse training that cannot be repeated on a batch."""
        if not pl_module.automatic_optimization or trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                "FLAG needs automatic optimisation and accumulate_grad_batches=1: it passes over each batch several "
                f"times by itself, which {type(pl_module).__name__} under this Trainer does not allow"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look for the worst noise, and leave it on the batch for the model's own step."""
        x = batch.get("x") if hasattr(batch, "edge_index") else None
        if x is None or not x.is_floating_point():
            raise DataError(f"FLAG moves float node features x of a PyG batch; this {type(batch).__name__} has none")
        size = self._sizes(batch, x)
        rng = KeyedRNG(mix_seed(self.seed, trainer.global_rank, trainer.global_step), device=x.device)
        noise = (2 * rng.uniform(x.shape) - 1) * size
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        self._sums = [torch.zeros_like(p) for p in trained]
        for _ in range(self.steps - 1):
            moved = copy.copy(batch)
            moved.x = x + noise.requires_grad_()
            found: Any = pl_module.training_step(moved, batch_idx)
            loss = found["loss"] if isinstance(found, dict) else found
            direction, *gradients = torch.autograd.grad(loss, [noise, *trained], materialize_grads=True)
            for total, gradient in zip(self._sums, gradients, strict=True):
                total += gradient
            noise = noise.detach() + size * direction.sign()
        self._clean, self._batch, batch.x = x, batch, x + noise.detach()

    def _sizes(self, batch: Any, x: Tensor) -> Tensor:
        """Size of a move of every node, (nodes, 1)."""
        size = torch.full((len(x), 1), self.step_size, dtype=x.dtype, device=x.device)
        if "train_mask" in batch:
            size[~batch.train_mask] *= self.unlabelled
        return size

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average the gradients of all passes."""
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        for parameter, total in zip(trained, self._sums, strict=True):
            own = total if parameter.grad is None else parameter.grad + total
            parameter.grad = own / self.steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Give the batch its own features back: a loader may yield the same graph again."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the batch its own features back."""
        self._restore()

    def _restore(self) -> None:
        if self._batch is not None:
            self._batch.x = self._clean
        self._batch = self._clean = None
