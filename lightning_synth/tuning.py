"""Settings of a sampler that are chosen after training, on validation data only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from lightning_synth.discrete_flow import DISTORTIONS, RateSampler
from lightning_synth.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from lightning_synth.generator import Generator

Score = Callable[[Sequence[Any], Sequence[Any]], float]
#: MMDs of training graphs below this are not divided by.
_LEAST = 1e-3


@dataclass(frozen=True)
class SamplerSearch:
    """What `tune_sampler` found.

    Args:
        best: The sampler with the lowest score.
        table: Every setting tried, in order, with its score.
    """

    best: RateSampler
    table: pd.DataFrame


def tune_sampler(
    generator: Generator,
    val_data: Any,
    *,
    n: int = 64,
    num_steps: int | None = None,
    distortions: Sequence[str] = DISTORTIONS,
    etas: Sequence[float] = (0.0, 5.0, 10.0, 25.0, 50.0, 100.0),
    omegas: Sequence[float] = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5),
    score: Score | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SamplerSearch:
    """Choose time distortion, then eta, then omega of a fitted `defog`, and keep the best in its hyper-parameters.

    Test data are never looked at: pass a DataModule, and its validation split is used.

    Args:
        generator: Fitted, with a `RateSampler`.
        val_data: A DataModule (validation items score, training items give the scale of each term), or a list of
            validation graphs.
        n: Graphs sampled for each setting.
        num_steps: Steps of the sampler; None keeps the generator's.
        distortions: Tried first.
        etas: Tried with the best distortion.
        omegas: Tried with the best of both.
        score: Function of (sampled, validation) items, lower is better. None: mean squared MMD of degrees, clustering,
            orbits, spectra and wavelets, each over that of the training graphs.
        seed: Of the samples, the same for all settings.
        progress: Show a bar.

    Returns:
        The best sampler and the table of all.

    Raises:
        ConfigError: If the generator has no rates to tune.
        DataError: If there are no validation graphs.

    Example:
        >>> from lightning_synth.plugins.graph.defog import DeFoG
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("graph")
        >>> small = {"num_layers": 1, "d_node": 8, "d_edge": 4, "d_graph": 4, "heads": 1}
        >>> model = DeFoG(schema=data.schema, num_steps=3, **small)
        >>> model.is_fitted = True
        >>> found = tune_sampler(model, data, n=8, etas=(0.0, 5.0), omegas=(0.0,), progress=False)
        >>> len(found.table), model.sampler == found.best
        (6, True)
    """
    start = getattr(generator, "sampler", None)
    if not isinstance(start, RateSampler):
        raise ConfigError(f"{type(generator).__name__} has no discrete-flow sampler to tune")
    val, train = _items(val_data)
    measure = score or _against(train)
    best = RateSampler(num_steps or start.num_steps, distortion=distortions[0])
    rows: list[dict[str, Any]] = []
    tried: dict[RateSampler, float] = {}
    stages = (("distortion", distortions), ("eta", etas), ("omega", omegas))
    with tqdm(total=sum(len(values) for _, values in stages), desc="tuning", disable=not progress, leave=False) as bar:
        for name, values in stages:
            for value in values:
                setting = RateSampler(**{**vars(best), name: value})
                if setting not in tried:
                    samples = generator.sample(n, seed=seed, sampler=setting)
                    tried[setting] = measure(samples.items(), val)
                    rows.append({**vars(setting), "score": tried[setting]})
                bar.update()
            best = min(tried, key=lambda setting: tried[setting])
    generator.hparams.update(vars(best))
    return SamplerSearch(best, _table(rows))


def _items(val_data: Any) -> tuple[Sequence[Any], Sequence[Any] | None]:
    """Validation items, and training items where there are any."""
    if not hasattr(val_data, "val_items"):
        val, train = list(val_data), None
    else:
        val, train = val_data.val_items(), val_data.train_items()
    if not len(val):
        raise DataError("there are no validation graphs to tune the sampler on; test graphs are not for that")
    return val, train


def _against(train: Sequence[Any] | None) -> Score:
    def score(samples: Sequence[Any], val: Sequence[Any]) -> float:
        from lightning_synth.metrics.graph_statistics import graph_descriptors, graph_mmds

        reference = graph_descriptors(val)
        found = graph_mmds(reference, samples)
        scale = graph_mmds(reference, train) if train is not None else dict.fromkeys(found, 1.0)
        return float(np.mean([found[name] / max(scale[name], _LEAST) for name in found]))

    return score


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
