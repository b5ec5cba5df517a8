"""Generators trained against a discriminator: the two-optimiser machinery, owned once."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer, do_nothing_closure
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_synth.errors import ConfigError, NonFiniteLossError
from lightning_synth.generator import Generator
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import canonical

# A discriminator loss this small for that many batches means that the generator gets no gradient any more.
_SATURATED, _PATIENCE, _LOOK_EVERY = 1e-3, 200, 50


class AdversarialGenerator(Generator):
    """A generator network trained against a discriminator, with the bookkeeping of two optimisers done right.

    A subclass makes its networks in `build` (by default called ``G`` and ``D``), and writes `discriminator_loss`,
    `generator_loss` and `sample_batch`. The rest is here:

    - ``Trainer(max_steps=10)`` means ten batches, as for any other model; Lightning would count both optimisers and
      stop after five. `global_step` in checkpoints, callbacks and resuming counts batches too.
    - While one loss is computed, the networks of the other side are frozen: no detach is needed, no gradient leaks.
    - ``update="alternating"`` updates the discriminator ``d_steps`` times, then the generator. Under DDP this needs
      ``strategy="ddp_find_unused_parameters_true"``. ``update="joint"`` computes both losses on the same weights and
      calls backward once, which runs under plain ``strategy="ddp"``.
    - Clipping and accumulation are settings of the model, because Lightning refuses its own with two optimisers.
    - Learning-rate schedulers returned by `configure_optimizers` are stepped at their ``interval`` and ``frequency``.
    - A discriminator whose loss stays near zero, and a generator that lost most of the data, raise a warning.

    Args:
        update: ``"alternating"`` or ``"joint"``.
        d_steps: Discriminator updates for each generator update, on the same batch with new noise (alternating only).
        clip_val: Largest gradient norm of each side; None does not clip.
        accumulate: Batches whose gradients are averaged into one update of each side.
        d_lr: Learning rate of the discriminator; None takes ``lr``.
        lr: Learning rate of the generator.
        **kwargs: Hyper-parameters of the subclass, ``schema`` and ``seed``.

    Raises:
        ConfigError: If settings are impossible, alone or together with the Trainer's.

    Example:
        >>> class CriticGAN(AdversarialGenerator):
        ...     domain, saturated_below = "timeseries", None
        ...
        ...     def build(self, schema):
        ...         self.G, self.D = nn.Linear(4, schema["length"]), nn.Linear(schema["length"], 1)
        ...
        ...     def discriminator_loss(self, batch, rng):
        ...         return self.D(self.G(rng.normal((len(batch["x"]), 4)))).mean() - self.D(batch["x"][:, 0]).mean()
        ...
        ...     def generator_loss(self, batch, rng):
        ...         return -self.D(self.G(rng.normal((len(batch["x"]), 4)))).mean()
        ...
        ...     def sample_batch(self, requests, rng):
        ...         return {"x": self.G(rng.normal((1, 4)))}
        >>> CriticGAN(d_steps=5).hparams["update"]
        'alternating'

    References:
        Goodfellow et al. 2014, arXiv 1406.2661 (alternating updates); Mescheder et al. 2018, arXiv 1801.04406 (joint).
    """

    # Wasserstein losses are near zero when all is well: such subclasses set None.
    saturated_below: float | None = _SATURATED

    def __init__(
        self,
        *,
        update: Literal["alternating", "joint"] = "alternating",
        d_steps: int = 1,
        clip_val: float | None = None,
        accumulate: int = 1,
        d_lr: float | None = None,
        lr: float = 2e-4,
        **kwargs: Any,
    ) -> None:
        _check_settings(update, d_steps, clip_val, accumulate, d_lr)
        # To be read as self.hparams["update"]: as an attribute it is dict.update.
        settings: dict[str, Any] = {
            "update": update,
            "d_steps": d_steps,
            "clip_val": clip_val,
            "accumulate": accumulate,
            "d_lr": d_lr,
        }
        super().__init__(lr=lr, **settings, **kwargs)
        self.automatic_optimization = False
        self._near_zero: Tensor | int = 0
        self._warned_saturated = False

    @abstractmethod
    def discriminator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
        """Return the scalar loss of the discriminator; generator networks are frozen while it is computed.

        Args:
            batch: As `Generator.losses`.
            rng: Scalar key; draws have exactly the shape asked for.
        """

    @abstractmethod
    def generator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
        """Return the scalar loss of the generator; discriminator networks are frozen while it is computed."""

    @property
    def warming_up(self) -> bool:
        """Whether the generator is not trained against the discriminator yet: collapse is not looked for until then."""
        return False

    def generator_networks(self) -> Sequence[nn.Module]:
        """Return the modules that the generator's optimiser trains."""
        return (self._network("G", "generator_networks"),)

    def discriminator_networks(self) -> Sequence[nn.Module]:
        """Return the modules that the discriminator's optimiser trains."""
        return (self._network("D", "discriminator_networks"),)

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Return both losses, for validation; training computes them one by one."""
        d_loss, g_loss = self._discriminator_loss(batch, rng, 0), self._generator_loss(batch, rng)
        return {"loss": g_loss, "generator": g_loss, "discriminator": d_loss}

    def configure_optimizers(self) -> Any:
        """Return the optimisers, the discriminator's first; override to add schedulers (Lightning's usual forms)."""
        d_params, g_params = _trainable(self.discriminator_networks()), _trainable(self.generator_networks())
        self._check_split(d_params, g_params)
        d_lr = self.hparams.lr if self.hparams.d_lr is None else self.hparams.d_lr
        return [self.make_optimizer(d_params, d_lr), self.make_optimizer(g_params, self.hparams.lr)]

    def make_optimizer(self, parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
        """Return the optimiser of one side: Adam with the usual low momentum of adversarial training."""
        return torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.9))

    def configure_callbacks(self) -> list[Callback]:
        """Refuse impossible Trainers, and watch for mode collapse unless the user already does."""
        from lightning_synth.callbacks.collapse import CollapseMonitor

        if self.trainer.state.fn != TrainerFn.FITTING:
            return []
        # The first hook in which the Trainer is known: Lightning's own refusals, which come next, name no remedy.
        self._check_trainer()
        watched = any(isinstance(callback, CollapseMonitor) for callback in _callbacks(self))
        return [] if watched else [CollapseMonitor()]

    def training_step(self, batch: Any, batch_idx: int = 0) -> None:
        """Update both sides on one batch."""
        d_opt, g_opt = self._optimizer_pair()
        update = self._joint if self.hparams["update"] == "joint" else self._alternating
        due, rng = self._update_due(batch_idx), self.training_rng()
        with _one_step_per_batch(d_opt, g_opt):
            d_loss, g_loss = update(canonical(batch, self._ready_schema()), rng, d_opt, g_opt, due)
        losses = {"loss": g_loss, "generator": g_loss, "discriminator": d_loss}
        self.is_fitted = True
        self._watch_saturation(d_loss)
        self.log_losses(losses, batch)
        if due:
            self._step_schedulers("step", self.global_step)

    def on_train_epoch_end(self) -> None:
        """Step the schedulers that count epochs."""
        super().on_train_epoch_end()
        self._step_schedulers("epoch", self.current_epoch + 1)

    def _alternating(
        self, batch: Any, rng: KeyedRNG, d_opt: LightningOptimizer, g_opt: LightningOptimizer, due: bool
    ) -> tuple[Tensor, Tensor]:
        for repeat in range(self.hparams.d_steps):
            d_loss = self._discriminator_loss(batch, rng, repeat)
            self.manual_backward(d_loss / self.hparams.accumulate)
            self._step(d_opt, due)
        g_loss = self._generator_loss(batch, rng)
        self.manual_backward(g_loss / self.hparams.accumulate)
        self._step(g_opt, due)
        return d_loss.detach(), g_loss.detach()

    def _joint(
        self, batch: Any, rng: KeyedRNG, d_opt: LightningOptimizer, g_opt: LightningOptimizer, due: bool
    ) -> tuple[Tensor, Tensor]:
        """One backward pass that reaches every parameter: what DDP's gradient reducer expects."""
        d_loss, g_loss = self._discriminator_loss(batch, rng, 0), self._generator_loss(batch, rng)
        self.manual_backward((d_loss + g_loss) / self.hparams.accumulate)
        self._step(d_opt, due)
        self._step(g_opt, due)
        return d_loss.detach(), g_loss.detach()

    def _discriminator_loss(self, batch: Any, rng: KeyedRNG, repeat: int) -> Tensor:
        with frozen(self.generator_networks()):
            loss = self.discriminator_loss(batch, rng.fork("discriminator").fork(repeat))
        self.check_finite({"discriminator": loss}, batch)
        return loss

    def _generator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
        with frozen(self.discriminator_networks()):
            loss = self.generator_loss(batch, rng.fork("generator"))
        self.check_finite({"generator": loss}, batch)
        return loss

    def check_finite(self, losses: Mapping[str, Tensor], batch: Any) -> None:
        """Stop at a non-finite loss before it reaches the weights; the advice on clipping is the one that works here.

        Args:
            losses: Name to scalar.
            batch: What they were computed on.

        Raises:
            NonFiniteLossError: Naming the loss, the step and the saved batch.
        """
        try:
            super().check_finite(losses, batch)
        except NonFiniteLossError as error:
            clipped = f"{type(self).__name__}(clip_val=1)"
            raise NonFiniteLossError(str(error).replace("Trainer(gradient_clip_val=1)", clipped)) from None

    def _step(self, optimizer: LightningOptimizer, due: bool) -> None:
        if not due:
            return
        if self.hparams.clip_val is not None:
            self.clip_gradients(optimizer.optimizer, self.hparams.clip_val, "norm")
        optimizer.step()
        optimizer.zero_grad()
        # Under mixed precision the next loss of this batch must not see low-precision copies of the old weights.
        torch.clear_autocast_cache()

    def _update_due(self, batch_idx: int) -> bool:
        """Whether this batch completes a group of ``accumulate``, or is the last one there is."""
        last = self.trainer.is_last_batch or self.global_step + 1 == self.trainer.max_steps
        return (batch_idx + 1) % self.hparams.accumulate == 0 or last

    def _optimizer_pair(self) -> tuple[LightningOptimizer, LightningOptimizer]:
        optimizers = self.optimizers()
        if not isinstance(optimizers, list) or len(optimizers) != 2:
            raise ConfigError(f"{type(self).__name__}.configure_optimizers must return two: discriminator, generator")
        d_opt, g_opt = optimizers
        assert isinstance(d_opt, LightningOptimizer) and isinstance(g_opt, LightningOptimizer)
        return d_opt, g_opt

    def _step_schedulers(self, interval: str, count: int) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                raise ConfigError(f"{type(self).__name__}: ReduceLROnPlateau needs a metric; losses of a GAN are none")
            if config.interval == interval and count % config.frequency == 0:
                config.scheduler.step()

    def _watch_saturation(self, d_loss: Tensor) -> None:
        """Warn once when the discriminator wins for good (counted on the device, read now and then)."""
        if self.saturated_below is None or self._warned_saturated:
            return
        self._near_zero = torch.where(d_loss.abs() < self.saturated_below, self._near_zero + 1, 0)
        if self.global_step % _LOOK_EVERY == 0 and int(self._near_zero) >= _PATIENCE:
            self._warned_saturated = True
            warnings.warn(
                f"{type(self).__name__}: discriminator loss below {self.saturated_below:g} for {int(self._near_zero)} "
                "batches: the generator no longer learns. Lower d_lr or d_steps, or use fewer discriminator layers.",
                stacklevel=2,
            )

    def _network(self, name: str, method: str) -> nn.Module:
        network = getattr(self, name, None)
        if not isinstance(network, nn.Module):
            raise ConfigError(f"{type(self).__name__}: build() must set self.{name}, or override {method}()")
        return network

    def _check_split(self, d_params: Sequence[nn.Parameter], g_params: Sequence[nn.Parameter]) -> None:
        d_ids, g_ids = {id(p) for p in d_params}, {id(p) for p in g_params}
        for name, parameter in self.named_parameters():
            sides = (id(parameter) in d_ids) + (id(parameter) in g_ids)
            if parameter.requires_grad and sides != 1:
                what = "both sides" if sides else "neither side"
                raise ConfigError(
                    f"{type(self).__name__}: parameter {name!r} belongs to {what}; "
                    "list its module in exactly one of generator_networks() and discriminator_networks()"
                )

    def _check_trainer(self) -> None:
        trainer, name = self.trainer, type(self).__name__
        if trainer.gradient_clip_val:
            raise ConfigError(
                f"{name} has two optimisers, so Trainer(gradient_clip_val={trainer.gradient_clip_val}) cannot be used; "
                f"use {name}(clip_val={trainer.gradient_clip_val})"
            )
        if trainer.accumulate_grad_batches != 1:
            number = trainer.accumulate_grad_batches
            raise ConfigError(
                f"{name} has two optimisers, so Trainer(accumulate_grad_batches={number}) cannot be used; "
                f"use {name}(accumulate={number})"
            )
        if self.hparams.clip_val is not None and trainer.precision == "16-mixed":
            raise ConfigError(
                f"{name}(clip_val=...) under precision='16-mixed' would clip scaled gradients; use 'bf16-mixed'"
            )
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy) and self.hparams["update"] == "alternating":
            if not strategy._ddp_kwargs.get("find_unused_parameters", False):
                start = strategy._start_method
                plain = "ddp" if start == "popen" else f"ddp_{start}"
                raise ConfigError(
                    f"{name}(update='alternating') under Trainer(strategy={plain!r}) would fail: each loss leaves the "
                    "other side's parameters without gradient. Use "
                    f"Trainer(strategy='{plain}_find_unused_parameters_true') or {name}(update='joint')"
                )


def _check_settings(update: str, d_steps: int, clip_val: float | None, accumulate: int, d_lr: float | None) -> None:
    if update not in ("alternating", "joint"):
        raise ConfigError(f"update={update!r} must be 'alternating' or 'joint'")
    if d_steps < 1 or accumulate < 1:
        raise ConfigError(f"{d_steps=} and {accumulate=} must be at least 1")
    if clip_val is not None and clip_val <= 0:
        raise ConfigError(f"{clip_val=} must be positive, or None")
    if d_lr is not None and d_lr <= 0:
        raise ConfigError(f"{d_lr=} must be positive, or None")
    if d_steps > 1 and update == "joint":
        raise ConfigError(f"{d_steps=} needs update='alternating': a joint update has one backward pass")
    if d_steps > 1 and accumulate > 1:
        raise ConfigError(f"{d_steps=} cannot be combined with {accumulate=}")


def _callbacks(module: Generator) -> list[Callback]:
    callbacks: list[Callback] = module.trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def _trainable(networks: Iterable[nn.Module]) -> list[nn.Parameter]:
    unique = {id(p): p for network in networks for p in network.parameters() if p.requires_grad}
    return list(unique.values())


@contextmanager
def frozen(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Compute something that leaves no gradient in these networks (the graph remembers what was frozen)."""
    parameters = _trainable(networks)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _one_step_per_batch(*optimizers: LightningOptimizer) -> Iterator[None]:
    """Let the Trainer count this batch as one step, however many optimiser steps it takes.

    Lightning's manual loop puts its counter into two hooks of each optimiser and takes them out after the batch.
    """
    before, after = optimizers[0]._on_before_step, optimizers[0]._on_after_step
    for optimizer in optimizers:
        optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
    yield
    before()
    after()
