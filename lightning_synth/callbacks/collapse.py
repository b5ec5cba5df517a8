"""Watch a generator for mode collapse while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_synth.errors import ConfigError
from lightning_synth.generator import Generator
from lightning_synth.schema import features


def collapse_scores(real: np.ndarray, synthetic: np.ndarray, k: int = 5) -> dict[str, float]:
    """Compare the spread of synthetic items with that of real ones.

    Args:
        real: Features (items, d) of real items, in any units.
        synthetic: Features (items, d) of synthetic items.
        k: Neighbours that set the radius of a real item's ball.

    Returns:
        ``coverage``: share of real items with a synthetic item within the distance of their k-th real neighbour (Naeem
        et al. 2020, arXiv 2002.09797, eq. 6; as many real items in place of the synthetic ones score about 1 - 2**-k).
        ``variance_ratio``: total variance of synthetic over real features, 1 is right.
        ``distinct``: share of synthetic rows that are not repeats.

    Example:
        >>> real = np.random.default_rng(0).normal(size=(100, 3))
        >>> collapse_scores(real, np.zeros((100, 3)))["distinct"]
        0.01
    """
    spread = real.std(0)
    spread[spread < 1e-12] = 1.0
    real, synthetic = (real - real.mean(0)) / spread, (synthetic - real.mean(0)) / spread
    radius = np.sort(_distances(real, real), axis=1)[:, min(k, len(real) - 1)]
    nearest = _distances(real, synthetic).min(1)
    return {
        "coverage": float((nearest <= radius).mean()),
        "variance_ratio": float(synthetic.var(0).sum() / max(real.var(0).sum(), 1e-12)),
        "distinct": len(np.unique(synthetic.round(6), axis=0)) / len(synthetic),
    }


class CollapseMonitor(Callback):
    """Sample a few hundred items now and then, and warn when they cover little of the training data.

    Logs ``collapse/coverage``, ``collapse/variance_ratio`` and ``collapse/distinct``. Samples depend on the row's seed
    only, so watching changes neither the training nor its random numbers. A generator that is still warming up
    (`AdversarialGenerator.warming_up`) is not looked at.

    Args:
        every_n_epochs: How often to look; the end of training is always looked at.
        num_samples: Largest number of real items, and of as many synthetic ones.
        min_coverage: Warn below this coverage.
        min_variance_ratio: Warn below this share of the real variance.
        min_distinct: Warn below this share of distinct synthetic items.
        seed: Of the samples.

    Raises:
        ConfigError: If a number is not positive.

    Example:
        >>> CollapseMonitor(every_n_epochs=5).num_samples
        256
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        num_samples: int = 256,
        min_coverage: float = 0.1,
        min_variance_ratio: float = 0.05,
        min_distinct: float = 0.5,
        seed: int = 0,
    ) -> None:
        if every_n_epochs < 1 or num_samples < 2:
            raise ConfigError(f"CollapseMonitor({every_n_epochs=}, {num_samples=}) must be at least 1 and 2")
        self.every_n_epochs, self.num_samples, self.seed = every_n_epochs, num_samples, seed
        self.floors = {"coverage": min_coverage, "variance_ratio": min_variance_ratio, "distinct": min_distinct}
        self.scores: list[dict[str, float]] = []
        self._looked_at = -1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look every few epochs, and log."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            scores = self._look(trainer, pl_module)
            logged = {f"collapse/{name}": value for name, value in scores.items()}
            pl_module.log_dict(logged, rank_zero_only=True, sync_dist=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look once more, at the final weights."""
        if self._looked_at != trainer.global_step:
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Score the generator and warn; nothing on ranks other than the first."""
        self._looked_at = trainer.global_step
        if not trainer.is_global_zero or not isinstance(module, Generator) or module.schema is None:
            return {}
        if getattr(module, "warming_up", False):
            return {}
        real, schema = _spaced(module.training_items(), self.num_samples), module.schema
        if len(real) < 3:
            return {}
        # As many as real ones: the floors assume equal numbers.
        samples = module.sample(len(real), seed=self.seed).items()
        scores = collapse_scores(features(real, schema), features(samples, schema))
        self.scores.append({"step": float(trainer.global_step), **scores})
        low = {name: value for name, value in scores.items() if value < self.floors[name]}
        if low:
            found = ", ".join(f"{name} {value:.3g} (floor {self.floors[name]:g})" for name, value in low.items())
            warnings.warn(
                f"samples of {type(module).__name__} cover little of the training data at step {trainer.global_step}: "
                f"{found}. It has collapsed, or is not trained yet: train longer, lower lr, or stop earlier.",
                stacklevel=2,
            )
        return scores


def _spaced(items: Sequence[Any], limit: int) -> list[Any]:
    """Evenly spaced items, at most ``limit``."""
    step = max(1, -(-len(items) // limit))
    return [items[i] for i in range(0, len(items), step)]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    distances: np.ndarray = np.sqrt(np.maximum(squared, 0))
    return distances
