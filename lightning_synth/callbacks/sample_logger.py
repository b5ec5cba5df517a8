"""Samples drawn beside real items while a generator trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from lightning_synth.errors import ConfigError
from lightning_synth.figures import item_record, sample_figure
from lightning_synth.pool.files import write_json
from lightning_synth.schema import Items, labels


class SampleLogger(Callback):
    """Draws a few samples beside real training items: PNG and JSON in the log directory, and figures in the logger.

    TensorBoard and Weights & Biases get the figure; any other logger is left alone, with one warning. The same seeds
    are used every time, so that figures of different epochs can be compared. Where weights are averaged
    (`GeneratorEMA`), the average is sampled. The global random generators are not touched: training is the same with
    and without this callback.

    Args:
        every_n_epochs: Draw after every so many epochs, and at the end of the fit.
        n: Samples to draw.
        condition: As `Generator.sample`.
        seed: Of the request.
        **sampler_options: Of the generator, e.g. ``num_steps=10`` for a quick look.

    Raises:
        ConfigError: If a number is below 1.

    Example:
        >>> SampleLogger(every_n_epochs=5, n=4).due(epoch=4)
        True
    """

    def __init__(
        self, every_n_epochs: int = 1, n: int = 4, condition: Any = "balanced", seed: int = 0, **sampler_options: Any
    ) -> None:
        if every_n_epochs < 1 or n < 1:
            raise ConfigError(f"SampleLogger({every_n_epochs=}, {n=}): both must be at least 1")
        self.every_n_epochs, self.n, self.condition, self.seed = every_n_epochs, n, condition, seed
        self.sampler_options = sampler_options
        self._folder = Path()
        self._last = -1
        self._warned = False

    def due(self, epoch: int) -> bool:
        """Whether samples are drawn after this epoch (counted from 0)."""
        return (epoch + 1) % self.every_n_epochs == 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on the directory: asking for it is a collective call."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "samples"
        self._last = -1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw if it is due."""
        if self.due(trainer.current_epoch):
            self._draw(trainer, pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the finished generator, if the last epoch was not due."""
        epoch = max(trainer.current_epoch - 1, 0)
        if epoch > self._last:
            self._draw(trainer, pl_module, epoch)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        self._last = epoch
        if not trainer.is_global_zero:
            return
        generator: Any = pl_module
        with _averaged(trainer, pl_module):
            samples = generator.sample(self.n, condition=self.condition, seed=self.seed, **self.sampler_options)
        synthetic = samples.to("cpu").items()
        schema = samples.schema
        real = _beside(generator.training_items(), synthetic, samples.condition.get("label"), schema)
        title = f"{type(generator).__name__}, epoch {epoch}, step {trainer.global_step}"
        figure = sample_figure(real, synthetic, schema, title)
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"epoch={epoch:05d}-step={trainer.global_step:08d}"
        image = self._folder / f"{name}.png"
        figure.savefig(image, dpi=110)
        content = {
            "epoch": epoch,
            "step": trainer.global_step,
            "seed": self.seed,
            "condition": {key: value.tolist() for key, value in samples.condition.items()},
            "real": [item_record(item, schema) for item in real],
            "synthetic": [item_record(item, schema) for item in synthetic],
        }
        write_json(self._folder / f"{name}.json", content)
        self._show(trainer, figure, image)

    def _show(self, trainer: Trainer, figure: Any, image: Path) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("samples", figure, trainer.global_step)
            elif isinstance(logger, WandbLogger):
                logger.log_image("samples", [str(image)], step=trainer.global_step)
            elif not self._warned:
                self._warned = True
                rank_zero_warn(f"{type(logger).__name__} shows no figures; samples are in {self._folder}")


@contextlib.contextmanager
def _averaged(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Put averaged weights in place for a moment, as validation does."""
    active: list[Any] = [
        callback
        for callback in getattr(trainer, "callbacks", ())
        if isinstance(callback, WeightAveraging) and callback._average_model is not None
    ]
    # After the fit the average is already in place; swapping would bring the last weights back.
    active = active if trainer.training else []
    for callback in active:
        callback._swap_models(module)
    try:
        yield
    finally:
        for callback in reversed(active):
            callback._swap_models(module)


def _beside(items: Items, synthetic: Sequence[Any], asked: Any, schema: dict[str, Any]) -> Items:
    """Pick real items to compare with: of the same classes where there are any, else evenly spaced."""
    wanted = None if asked is None else asked.cpu().numpy()
    known = labels(items, schema) if wanted is not None else None
    if known is None or wanted is None:
        rows = np.linspace(0, len(items) - 1, min(len(synthetic), len(items))).round().astype(int)
        return [items[int(row)] for row in rows]
    picked = []
    for position, label in enumerate(wanted.tolist()):
        same = np.flatnonzero(known == label)
        # The k-th sample of a class is drawn beside the k-th real item of that class.
        turn = int((wanted[:position] == label).sum())
        picked.append(items[int(same[turn % len(same)] if len(same) else position % len(items))])
    return picked
