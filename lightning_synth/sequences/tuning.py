"""Choosing how training pairs are drawn, on validation data alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.sequences.pairs import PairSampler

if TYPE_CHECKING:
    import pandas as pd

Setting = tuple[float, float, float]
#: Values tried for each exponent, one exponent after the other.
ALPHAS, BETAS, GAMMAS = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 0.5, 1.0, 2.0), (0.0, 1.0, 2.0, math.inf)


@dataclass(frozen=True)
class PairSearch:
    """What `tune_pairs` found.

    Args:
        best: The sampler with the best score.
        table: Every setting tried, in order: ``alpha``, ``beta``, ``gamma``, ``score``.
    """

    best: PairSampler
    table: pd.DataFrame


def tune_pairs(
    data: Any,
    model: str | type | Callable[[Any], float] = "sasrec",
    *,
    settings: Sequence[Setting] | None = None,
    max_steps: int = 1000,
    model_options: Mapping[str, Any] | None = None,
    higher_is_better: bool | None = None,
    accelerator: str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> PairSearch:
    """Choose alpha, then beta, then gamma of a `PairSampler`; every setting gets the same number of steps.

    Test data are never looked at: the validation items of ``data`` score.

    Args:
        data: An `InteractionDataModule`.
        model: Name of a downstream network (`lightning_synth.downstream`), its class, or a function of a DataModule
            (whose training loader draws the pairs) that returns a score.
        settings: (alpha, beta, gamma) to try; None: one exponent after the other, 11 settings from (1, 0, inf).
        max_steps: Optimiser steps of a network.
        model_options: Its hyper-parameters.
        higher_is_better: Direction of the score; None: that of the model, or True.
        accelerator: Of the Trainer.
        seed: Of networks and draws, the same for all settings.
        progress: Show a bar.

    Returns:
        The best sampler and the table of all.

    Raises:
        DataError: If there are no validation items.
        ConfigError: If the model cannot be trained on loaders.

    Example:
        >>> from lightning_synth.datamodules import InteractionDataModule
        >>> data = InteractionDataModule([[1, 2, 3, 4], [2, 3, 4, 1]])
        >>> found = tune_pairs(data, lambda d: -abs(d.sampler.alpha - 1.5), progress=False)
        >>> found.best, len(found.table)
        (PairSampler(alpha=1.5, beta=0, gamma=inf), 11)
    """
    import pandas as pd

    if not len(data.val_items()):
        raise DataError("the DataModule has no validation items: there is nothing to choose the sampler by")
    score = _scorer(model, max_steps, dict(model_options or {}), accelerator, seed)
    better = getattr(_class_of(model), "higher_is_better", True) if higher_is_better is None else higher_is_better
    found: dict[Setting, float] = {}

    def value(setting: Setting) -> float:
        if setting not in found:
            found[setting] = score(_with_sampler(data, setting, seed))
            bar.update()
        return found[setting] if better else -found[setting]

    with tqdm(desc="tuning pairs", unit="setting", disable=not progress, leave=False) as bar:
        best = max(settings, key=value) if settings else _one_by_one(value)
    rows = [dict(zip(("alpha", "beta", "gamma", "score"), (*s, v), strict=True)) for s, v in found.items()]
    return PairSearch(PairSampler(*best), pd.DataFrame(rows))


def _one_by_one(value: Callable[[Setting], float]) -> Setting:
    """Coordinate search from every prefix, the usual recipe; its own setting wins ties."""
    best: Setting = (1.0, 0.0, math.inf)
    for position, values in enumerate((ALPHAS, BETAS, GAMMAS)):
        best = max([best, *_varied(best, position, values)], key=value)
    return best


def _varied(setting: Setting, position: int, values: Sequence[float]) -> Iterator[Setting]:
    for value in values:
        exponents = list(setting)
        exponents[position] = value
        yield exponents[0], exponents[1], exponents[2]


def _with_sampler(data: Any, setting: Setting, seed: int) -> Any:
    """The same data, read once, whose training loader draws pairs."""
    other = copy.copy(data)
    other.sampler, other.seed = PairSampler(*setting), seed
    return other


def _class_of(model: Any) -> Any:
    if isinstance(model, str):
        from lightning_synth.downstream import get_downstream

        return get_downstream(model)
    return model


def _scorer(model: Any, max_steps: int, options: dict[str, Any], accelerator: str, seed: int) -> Callable[[Any], float]:
    """A function of a DataModule that trains and scores."""
    from lightning.pytorch import LightningModule, Trainer

    cls = _class_of(model)
    if not isinstance(cls, type):
        return lambda data: float(cls(data))
    if not issubclass(cls, LightningModule) or not hasattr(cls, "score"):
        raise ConfigError(f"{cls.__name__} is not trained on batches of a loader, so pairs make no difference to it")

    def score(data: Any) -> float:
        network: Any = cls(**{"schema": data.schema, "seed": seed, **options})
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(
            max_steps=max_steps,
            max_epochs=-1,
            accelerator=accelerator,
            devices=1,
            enable_model_summary=False,
            limit_val_batches=0,
            **quiet,  # type: ignore[arg-type]
        )
        trainer.fit(network, train_dataloaders=data.train_dataloader())
        return float(network.eval().score(data.val_items())[network.metric])

    return score
