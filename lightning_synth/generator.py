"""The contract: what every generator is, and all that it need not write itself."""

from __future__ import annotations

import difflib
import inspect
import json
import statistics
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from lightning_synth import checkpoint as ckpt
from lightning_synth.bank import ItemBank
from lightning_synth.conditions import Condition, resolve_conditions
from lightning_synth.errors import (
    ConfigError,
    InvalidSamplesError,
    NonFiniteLossError,
    NotFittedError,
    SchemaMismatchError,
)
from lightning_synth.requests import KeyedRNG, SampleRequests, Samples, Scored, Strings, mix_seed
from lightning_synth.schema import canonical, collate, detach, fingerprint, get_domain, num_rows, schema_diff, uncollate
from lightning_synth.sources import check_items, first_loader, loader_items, loader_schema, source_items, source_schema

#: Training sets up to this size are checked and fingerprinted before the first step.
_MAX_CHECKED = 1_000_000
#: The gradient norm is looked at every so many batches, and compared with its median so far.
_GRADIENT_EVERY, _GRADIENT_JUMP = 10, 1000.0


class Generator(LightningModule, ABC):
    """A LightningModule that learns from real items and samples new ones of the same type.

    A subclass writes `build` (its networks), `losses` (its training objective) and `sample_batch`. It inherits owned
    randomness, conditions, exact counts, distributed generation, checkpoints that reload alone, and errors that name
    what is wrong. Its own hyper-parameters are keyword arguments passed on to this constructor; they must be plain
    (numbers, strings, lists, dicts), and appear as ``self.hparams.name``.

    Args:
        schema: Plain dict that describes the training items; None (the normal case) takes it from the DataModule.
        lr: Learning rate of the default optimizer (AdamW).
        seed: Seeds the initial weights and all training noise; the global generators are not used.
        **hparams: Of the subclass.

    Raises:
        TypeError: If a hyper-parameter is unknown; the message has the nearest name.
        ConfigError: If a hyper-parameter is not plain, or ``lr`` is not positive.
    """

    domain: ClassVar[str]
    #: Conditions it understands; ``"*"`` stands for every continuous condition of the schema.
    conditions: ClassVar[tuple[str, ...]] = ()
    #: Whether any subset of the continuous conditions may be asked for: those that a dict does not name are NaN.
    partial_conditions: ClassVar[bool] = False
    #: Conditions that are strings; they arrive as `Strings`, and only if they were asked for.
    string_conditions: ClassVar[tuple[str, ...]] = ()
    #: Rows sampled at once by `sample`; rows do not depend on it, memory does.
    sample_chunk: ClassVar[int] = 1024

    def __init__(
        self, *, schema: dict[str, Any] | None = None, lr: float = 1e-3, seed: int = 0, **hparams: Any
    ) -> None:
        super().__init__()
        _refuse_unknown(type(self), hparams)
        if not lr > 0:
            raise ConfigError(f"lr must be positive, got {lr}")
        values = {"lr": lr, "seed": seed, **hparams, "schema": schema}
        _refuse_unplain(values)
        self.save_hyperparameters(values)
        self.is_fitted = False
        self.training_fingerprint: dict[str, Any] | None = None
        self._steps_alone = 0
        self._gradient_norms: deque[float] = deque(maxlen=50)
        self._warned_gradient = False
        self._built = False
        if schema is not None:
            self._build(schema)

    # ------------------------------------------------------------------ what a plugin writes

    def build(self, schema: dict[str, Any]) -> None:
        """Make the networks.

        Called once, from the constructor or from `setup`, under a seed of its own.

        Args:
            schema: Of the training items.
        """

    @abstractmethod
    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Compute the training losses.

        Args:
            batch: Raw batch in the canonical form of the domain.
            rng: Scalar-seeded: ``rng.normal(x.shape)`` has the shape of ``x``.

        Returns:
            Scalars; ``"loss"`` is optimised, all are logged.
        """

    @abstractmethod
    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG, *args: Any, **sampler_options: Any) -> Any:
        """Sample one batch.

        Args:
            requests: Rows wanted, on the device of the module.
            rng: One seed a row: ``rng.normal((2, 24))`` is (rows, 2, 24).
            *args: None; stands here so that a subclass may name the options it takes.
            **sampler_options: Of the subclass.

        Returns:
            A raw batch, or `Scored`; labels and conditions that it leaves out are filled in from the requests.
        """

    # ------------------------------------------------------------------ building

    @property
    def hparams(self) -> Any:
        """Hyper-parameters, by attribute: ``self.hparams.lr``."""
        return super().hparams

    @property
    def schema(self) -> dict[str, Any] | None:
        """Description of the training items; None before the generator has met any."""
        schema: dict[str, Any] | None = self.hparams.get("schema")
        return schema

    @property
    def is_built(self) -> bool:
        """Whether the networks exist."""
        return self._built

    def _build(self, schema: Mapping[str, Any]) -> None:
        domain = getattr(type(self), "domain", "any")
        if domain not in ("any", schema.get("domain")):
            raise SchemaMismatchError(
                f"{type(self).__name__} generates {domain} items, but the data is {schema.get('domain')}"
            )
        self.hparams["schema"] = dict(schema)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(self.hparams["seed"], 0))
            self.build(self.hparams["schema"])
        self._built = True

    def setup(self, stage: str) -> None:
        """Take the schema of the data, make the networks, and check the data before the first step."""
        schema = self._source_schema(stage)
        if schema is None:
            return
        if not self.is_built:
            self._build(schema)
            self.to(self.device)
        elif difference := schema_diff(self.schema or {}, schema):
            raise SchemaMismatchError(f"{type(self).__name__} was built for other data: {difference}")
        if stage == "fit":
            self._check_source()

    def _source_schema(self, stage: str) -> dict[str, Any] | None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if stage != "fit":
            return None
        if datamodule is not None:
            return source_schema(datamodule)
        return loader_schema(first_loader(self._bare_loader()))

    def _bare_loader(self) -> Any:
        """The loader given to `Trainer.fit` without a DataModule."""
        return self.trainer.fit_loop._data_source.instance

    def training_items(self) -> Sequence[Any]:
        """Return the training items of the attached Trainer, in the canonical form of the domain."""
        assert self.schema is not None
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            return loader_items(first_loader(self._bare_loader()), self.schema)
        return source_items(datamodule, "train", self.schema)

    def _check_source(self) -> None:
        assert self.schema is not None
        items = self.training_items()
        if not len(items):
            raise ConfigError("the training split is empty: 0 items")
        if len(items) <= _MAX_CHECKED:
            check_items(items, self.schema, "training")
            self.training_fingerprint = fingerprint(items, self.schema)

    # ------------------------------------------------------------------ training

    @property
    def progress(self) -> float:
        """Share of the Trainer's budget (max_steps, max_epochs or max_time, whichever ends first) already used."""
        trainer = self._trainer
        if trainer is None:
            return 0.0
        shares = [0.0]
        if trainer.max_steps is not None and trainer.max_steps > 0:
            shares.append(self.steps_taken / trainer.max_steps)
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            batches = trainer.num_training_batches
            within = trainer.fit_loop.epoch_loop.batch_idx / batches if 0 < batches < float("inf") else 0.0
            shares.append((trainer.current_epoch + within) / trainer.max_epochs)
        for timer in getattr(trainer, "callbacks", ()):
            if isinstance(timer, Timer) and timer._duration:
                shares.append(timer.time_elapsed() / timer._duration)
        return min(max(shares), 1.0)

    @property
    def steps_taken(self) -> int:
        """Training batches seen so far; continues after a resume."""
        trainer = self._trainer
        return self._steps_alone if trainer is None else max(int(trainer.fit_loop.epoch_loop.total_batch_idx), 0)

    def training_rng(self) -> KeyedRNG:
        """Return the noise source of this step: a function of (seed, rank, batches seen)."""
        rank = 0 if self._trainer is None else self.global_rank
        return KeyedRNG(mix_seed(self.hparams["seed"], 1, rank, self.steps_taken), device=self.device)

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor | None:
        """Compute and log the losses; a non-finite one stops training with its batch saved."""
        losses = self.compute_losses(batch)
        self.log_losses(losses, batch)
        return losses["loss"]

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute `losses` of a batch as the source yields it.

        Args:
            batch: Of the DataModule.

        Raises:
            NonFiniteLossError: If the loss is NaN or infinite.
        """
        losses = self.losses(canonical(batch, self._ready_schema()), self.training_rng())
        self.check_finite(losses, batch)
        self._steps_alone += 1
        self.is_fitted = True
        return losses

    def check_finite(self, losses: Mapping[str, Tensor], batch: Any) -> None:
        """Stop at the first non-finite loss, keeping the batch that caused it.

        Args:
            losses: Name to scalar.
            batch: What they were computed on.

        Raises:
            NonFiniteLossError: Naming the loss, the step and the saved batch.
        """
        wrong = [name for name, value in losses.items() if not bool(torch.isfinite(value.detach()).all())]
        if not wrong:
            return
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir) if self._trainer else Path.cwd()
        path = folder / f"non_finite_batch_step{self.steps_taken}.pt"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(batch, path)
        last = getattr(getattr(self._trainer, "checkpoint_callback", None), "last_model_path", "") or "none saved"
        raise NonFiniteLossError(
            f"{', '.join(wrong)} of {type(self).__name__} became non-finite at step {self.steps_taken}; "
            f"the batch is in {path}, the last good checkpoint: {last}. "
            f"Try a lower lr (now {self.hparams['lr']:g}) or Trainer(gradient_clip_val=1)"
        )

    def log_losses(self, losses: Mapping[str, Tensor], batch: Any) -> None:
        """Log losses under their own names, with the number of items as batch size.

        Args:
            losses: Name to scalar.
            batch: What they were computed on.
        """
        if self._trainer is None:
            return
        rows = num_rows(canonical(batch, self._ready_schema()), self._ready_schema())
        values = {name if name == "loss" else f"loss/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(values, batch_size=rows)
        self.log("loss_step", values["loss"], prog_bar=True, logger=False, batch_size=rows)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Warn once when the gradient leaves its usual range: the step before a divergence."""
        if self.steps_taken % _GRADIENT_EVERY:
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        usual = statistics.median(self._gradient_norms) if len(self._gradient_norms) >= 5 else float("inf")
        if norm > _GRADIENT_JUMP * usual and not self._warned_gradient:
            self._warned_gradient = True
            warnings.warn(
                f"the gradient norm of {type(self).__name__} jumped to {norm:.3g} at step {self.steps_taken} (usually "
                f"{usual:.3g}); if the loss diverges, use Trainer(gradient_clip_val=1) or a lower lr",
                stacklevel=2,
            )
        self._gradient_norms.append(norm)

    def configure_optimizers(self) -> Any:
        """Return AdamW over the trainable parameters."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.hparams["lr"])

    # ------------------------------------------------------------------ sampling

    def make_requests(self, n: int, condition: Condition = None, seed: int = 0) -> SampleRequests:
        """Number, seed and condition ``n`` rows for this generator.

        Args:
            n: How many.
            condition: As `sample`.
            seed: Of the whole request.
        """
        if not isinstance(n, Integral) or n < 0:
            raise ConfigError(f"cannot sample {n!r} items: give their number, or SampleRequests")
        return SampleRequests.make(
            int(n),
            seed=seed,
            condition=condition,
            schema=self._ready_schema(),
            names=self.conditions,
            partial=self.partial_conditions,
            strings=self.string_conditions,
        )

    @torch.no_grad()
    def sample(
        self, requests: SampleRequests | int, *, condition: Condition = None, seed: int = 0, **sampler_options: Any
    ) -> Samples:
        """Sample items.

        Args:
            requests: How many, or exact requests. A row's content depends on the checkpoint, its own seed, its
                condition and the options alone.
            condition: ``"empirical"`` (as in training; the default), ``"balanced"``, or a dict of name to a scalar, a
                sequence of length n, or one of those words. Labels may be class names. Where ``partial_conditions``
                holds, numbers that a dict does not name are unspecified; otherwise they are as in training.
                ``string_conditions`` are strings, one for all or one a row.
            seed: Of the whole request, if ``requests`` is a number.
            **sampler_options: Of the generator, e.g. ``num_steps=20``.

        Returns:
            Exactly as many rows as requested; unusable ones have ``accepted`` False.

        Raises:
            NotFittedError: Before `Trainer.fit`.
            ConfigError: If a condition is unknown or out of range.
            InvalidSamplesError: If more than half of the rows are non-finite.
        """
        self._require_fitted()
        asked = (
            self._completed(requests)
            if isinstance(requests, SampleRequests)
            else self.make_requests(requests, condition, seed)
        )
        training = self.training
        self.eval()
        try:
            parts = [self._sample_part(part, sampler_options) for part in _chunks(asked, self.sample_chunk)]
        finally:
            self.train(training)
        return Samples.cat(parts) if parts else self._no_samples(asked)

    def _require_fitted(self) -> None:
        if not self.is_built:
            raise NotFittedError(
                f"{type(self).__name__} has not been fitted: call Trainer().fit(generator, datamodule) first"
            )
        if not self.is_fitted:
            warnings.warn(
                f"{type(self).__name__} has not been fitted: these samples come from initial weights", stacklevel=3
            )

    def _ready_schema(self) -> dict[str, Any]:
        if self.schema is None:
            raise NotFittedError(f"{type(self).__name__} has no schema yet: fit it, or pass schema=")
        return self.schema

    def _completed(self, requests: SampleRequests) -> SampleRequests:
        """Fill in the conditions that ready-made requests leave open."""
        rng = SampleRequests.condition_rng(requests.seed.cpu())
        given = {
            name: value.tolist() if isinstance(value, Strings) else value.cpu()
            for name, value in requests.condition.items()
        }
        condition = resolve_conditions(
            requests.index.cpu(),
            rng,
            given,
            self._ready_schema(),
            self.conditions,
            self.partial_conditions,
            self.string_conditions,
        )
        return SampleRequests(requests.index, requests.seed, condition)

    def _sample_part(self, requests: SampleRequests, options: Mapping[str, Any]) -> Samples:
        schema = self._ready_schema()
        requests = requests.to(self.device)
        domain = get_domain(schema)
        batch = self.sample_batch(requests, KeyedRNG(requests.seed), **options)
        batch, score = batch if isinstance(batch, Scored) else (batch, {})
        batch = domain.complete(detach(batch), requests.condition, schema)
        rows = domain.num_rows(batch)
        if rows != len(requests):
            raise InvalidSamplesError(f"{type(self).__name__} returned {rows} items for {len(requests)} requests")
        finite = domain.finite(batch)
        if int(finite.sum()) * 2 < len(finite):
            share = 1 - float(finite.float().mean())
            raise InvalidSamplesError(f"{share:.0%} of the samples of {type(self).__name__} are not finite or empty")
        return Samples(batch, requests.index, requests.seed, requests.condition, score, finite, schema)

    def _no_samples(self, requests: SampleRequests) -> Samples:
        schema = self._ready_schema()
        one = self._sample_part(self.make_requests(1), {})
        empty = collate(uncollate(one.data, schema)[:0], schema)
        return Samples(
            empty, requests.index, requests.seed, requests.condition, {}, torch.zeros(0, dtype=torch.bool), schema
        )

    def predict_step(self, batch: SampleRequests, batch_idx: int = 0, dataloader_idx: int = 0) -> Samples:
        """Sample a batch of requests, e.g. of `RequestDataModule`."""
        return self.sample(batch)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `load_generator` needs: class, version, state hash, training fingerprint."""
        checkpoint[ckpt.KEY] = ckpt.describe(self, checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the networks from the checkpoint's own schema if need be."""
        schema = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}).get("schema")
        if not self.is_built and schema is not None:
            self._build(schema)
            self.to(self.device)
        meta = checkpoint.get(ckpt.KEY, {})
        self.is_fitted = bool(meta.get("fitted", True))
        self.training_fingerprint = meta.get("fingerprint")


class FitFreeGenerator(Generator):
    """A generator without an optimizer: `fit` gathers the training items once, then stops the Trainer.

    A subclass writes `fit_items` (optional) and `sample_batch`; the training items themselves are kept in
    ``self.bank``, inside the checkpoint.
    """

    bank: ItemBank

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.bank = ItemBank()

    def fit_items(self, items: Sequence[Any], rng: KeyedRNG) -> None:
        """Learn from the training items, already in ``self.bank``.

        Args:
            items: Raw training items, in an order that depends on their content alone.
            rng: Scalar-seeded.
        """

    def fit_on(self, items: Sequence[Any], schema: Mapping[str, Any]) -> FitFreeGenerator:
        """Fit without a Trainer.

        Args:
            items: Training items.
            schema: Of the items.

        Returns:
            Itself.
        """
        if not self.is_built:
            self._build(schema)
        self.bank.fill(items, self._ready_schema())
        self.fit_items(self.bank.items, KeyedRNG(mix_seed(self.hparams["seed"], 1)))
        self.training_fingerprint = fingerprint(items, self._ready_schema())
        self.is_fitted = True
        return self

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Nothing is optimised."""
        return {"loss": torch.zeros((), device=self.device)}

    def training_step(self, batch: Any, batch_idx: int = 0) -> None:
        """Fit once, count it as one step, and stop the Trainer."""
        self.fit_on(self.training_items(), self._ready_schema())
        # Callbacks save nothing at global_step 0; a fit counts as one step, with no optimizer to count it.
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_ready()
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_completed()
        self.trainer.should_stop = True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Skip the rest of the epoch after the first batch."""
        return -1 if batch_idx else None

    def configure_optimizers(self) -> None:
        """No optimizer."""
        return

    def _require_fitted(self) -> None:
        if not self.is_fitted or not len(self.bank):
            raise NotFittedError(
                f"{type(self).__name__} has not been fitted: call Trainer().fit(generator, datamodule) first"
            )


def _chunks(requests: SampleRequests, size: int) -> Iterator[SampleRequests]:
    return (requests[start : start + size] for start in range(0, len(requests), size))


def known_hparams(cls: type) -> dict[str, Any] | None:
    """Collect the named constructor arguments of a generator class and their defaults.

    Args:
        cls: A subclass of `Generator`.

    Returns:
        Name to default; None if some class takes hyper-parameters without naming them.
    """
    known: dict[str, Any] = {}
    named = False
    for base in cls.__mro__:
        if base is LightningModule:
            break
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        own = {p.name: p.default for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        named = named or base is FitFreeGenerator or (bool(own) and base is not Generator)
        known = {**own, **known}
    return known if named else None


def _refuse_unknown(cls: type, hparams: Mapping[str, Any]) -> None:
    known = known_hparams(cls)
    for name in hparams if known is not None else ():
        if name not in (known or {}):
            near = difflib.get_close_matches(name, known or (), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(sorted(known or ()))}"
            raise TypeError(f"{cls.__name__} has no argument {name!r}{hint}")


def _refuse_unplain(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        try:
            json.dumps(value, allow_nan=True)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"hyper-parameter {name!r} is a {type(value).__name__}; only numbers, strings, lists and dicts can be "
                "saved in a checkpoint that loads with weights_only=True"
            ) from error
