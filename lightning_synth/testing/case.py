"""What a conformance check gets: one generator class, one domain, tiny data, and one fit that all checks share."""

from __future__ import annotations

import logging
import random
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_synth.generator import FitFreeGenerator, Generator
from lightning_synth.registry import GeneratorSpec
from lightning_synth.schema import get_domain
from lightning_synth.testing.tiny import tiny_datamodule

FIT_STEPS = 30


class Skipped(Exception):
    """A check does not apply to this generator; the message says why."""


class Recorder(Callback):
    """Remembers weights at the start, which gradients arrived, and how many batches were trained."""

    def __init__(self) -> None:
        self.initial: dict[str, Tensor] = {}
        self.batches, self.trainable, self.reached = 0, set[str](), set[str]()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the initial state."""
        self.initial = tensors_of(pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note which trainable parameters have a gradient that is not zero."""
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                self.trainable.add(name)
                if parameter.grad is not None and bool((parameter.grad != 0).any()):
                    self.reached.add(name)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count."""
        self.batches += 1


@dataclass
class FitRecord:
    """A generator after a short fit, and what was seen on the way."""

    generator: Generator
    trainer: Trainer
    recorder: Recorder
    seconds: float
    checkpoint: Path
    global_rng_kept: bool


@dataclass
class Case:
    """A generator class in one domain.

    Args:
        cls: The class under test.
        domain: Which tiny data it gets.
        tiny: Hyper-parameters that make it small.
        spec: Its description, or None for a class that was handed over directly.
    """

    cls: type[Generator]
    domain: str
    tiny: Mapping[str, Any] = field(default_factory=dict)
    spec: GeneratorSpec | None = None

    @cached_property
    def datamodule(self) -> Any:
        """Tiny labelled data."""
        return tiny_datamodule(self.domain)

    @property
    def schema(self) -> dict[str, Any]:
        """Of the tiny data."""
        schema: dict[str, Any] = self.datamodule.schema
        return schema

    @property
    def fit_free(self) -> bool:
        """Whether it learns without an optimiser."""
        return issubclass(self.cls, FitFreeGenerator)

    def fresh(self, **overrides: Any) -> Generator:
        """Make a new one with the tiny hyper-parameters."""
        return self.cls(**{**self.tiny, **overrides})

    def fit(self, datamodule: Any = None, *callbacks: Callback, **limits: Any) -> tuple[Generator, Trainer]:
        """Fit a new one as a user would."""
        generator, trainer = self.fresh(), quiet_trainer(*callbacks, **(limits or {"max_steps": 3}))
        with quiet():
            trainer.fit(generator, datamodule=datamodule or self.datamodule)
        return generator, trainer

    @cached_property
    def _directory(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory(prefix="lightning_synth_check_")

    @cached_property
    def fitted(self) -> FitRecord:
        """The fit that most checks look at."""
        recorder, start = Recorder(), time.perf_counter()
        with watch_global_rng() as kept:
            generator, trainer = self.fit(self.datamodule, recorder, max_steps=FIT_STEPS)
        seconds = time.perf_counter() - start
        path = Path(self._directory.name) / "generator.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        return FitRecord(generator, trainer, recorder, seconds, path, kept[0])


def quiet_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """Make a silent CPU Trainer that writes nothing by itself."""
    silent = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with quiet():
        return Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **{**silent, **options})


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice about workers, loggers and devices."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _global_rng() -> tuple[bytes, bytes, Any]:
    numpy_state: Any = np.random.get_state()
    return (
        torch.get_rng_state().numpy().tobytes(),
        numpy_state[1].tobytes() + bytes([numpy_state[2] % 256]),
        random.getstate(),
    )


@contextmanager
def watch_global_rng() -> Iterator[list[bool]]:
    """Yield a list that holds, after the block, whether torch's, numpy's and Python's global generators stood still."""
    before, kept = _global_rng(), [False]
    yield kept
    kept[0] = before == _global_rng()


def tensors_of(module: LightningModule) -> dict[str, Tensor]:
    """Copy the tensors of a state dict (extra state is left out)."""
    return {name: value.detach().clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def difference(a: Sequence[Any], b: Sequence[Any], domain: str, ignore: Sequence[str] = ()) -> str:
    """Say where two lists of items differ; empty if they agree to 1e-4 of their scale."""
    if len(a) != len(b):
        return f"{len(a)} items against {len(b)}"
    kind = get_domain(domain)
    for i, (one, other) in enumerate(zip(a, b, strict=True)):
        left, right = kind.fields(one), kind.fields(other)
        for name in sorted((left.keys() | right.keys()) - set(ignore)):
            if not _equal(left.get(name), right.get(name)):
                return f"item {i}, field {name!r}"
    return ""


def _equal(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    scale = max(1.0, float(a.abs().max())) if a.numel() else 1.0
    return bool(torch.allclose(a, b, rtol=1e-4, atol=1e-4 * scale, equal_nan=True))
