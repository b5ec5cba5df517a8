"""CollapseMonitor: known scores, the warning of a collapsed generator, silence for a good one."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_synth.callbacks.collapse import CollapseMonitor, collapse_scores
from lightning_synth.errors import ConfigError
from lightning_synth.generator import Generator
from lightning_synth.plugins.baselines import Bootstrap
from lightning_synth.requests import KeyedRNG
from lightning_synth.testing import tiny_datamodule


def cloud(n: int, d: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_real_against_real_scores_one() -> None:
    scores = collapse_scores(cloud(600), cloud(600, seed=1))
    assert scores["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)  # the null of Naeem et al. 2020, eq. 9
    assert scores["variance_ratio"] == pytest.approx(1, abs=0.1)
    assert scores["distinct"] == 1


def test_a_single_point_is_a_collapse() -> None:
    scores = collapse_scores(cloud(300), np.repeat(cloud(1, seed=2), 300, axis=0))
    assert (
        scores["coverage"] < 0.1 and scores["variance_ratio"] < 1e-12 and scores["distinct"] == pytest.approx(1 / 300)
    )


def test_half_of_the_modes_cover_half() -> None:
    left, right = cloud(200) - 50, cloud(200, seed=1) + 50
    scores = collapse_scores(np.concatenate([left, right]), cloud(400, seed=2) - 50)
    assert scores["coverage"] == pytest.approx(0.5, abs=0.03)


def test_scores_do_not_depend_on_units() -> None:
    scale = np.array([1e-3, 1.0, 1e4])
    plain, scaled = (collapse_scores(cloud(200) * s, cloud(200, seed=1) * s + 0) for s in (1.0, scale))
    assert plain == pytest.approx(scaled)


def test_copies_cover_everything() -> None:
    assert collapse_scores(cloud(100), cloud(100))["coverage"] == 1


class ConstantGenerator(Generator):
    """Learns the mean and always samples it (Gauss 1809): collapsed by design."""

    domain = "timeseries"

    def build(self, schema: dict[str, Any]) -> None:
        self.mean = nn.Parameter(torch.zeros(schema["channels"], schema["length"]))

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        return {"loss": (batch["x"] - self.mean).square().mean()}

    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return {"x": self.mean.detach().expand(len(requests), *self.mean.shape)}


def fit(model: L.LightningModule, monitor: CollapseMonitor, epochs: int) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[monitor],
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=tiny_datamodule("timeseries", n=32, batch_size=16))
    return trainer


def test_a_collapsed_generator_is_reported_and_logged() -> None:
    monitor = CollapseMonitor(every_n_epochs=2, num_samples=64)
    with pytest.warns(UserWarning, match=r"ConstantGenerator.*variance_ratio.*distinct 0\.0312"):
        trainer = fit(ConstantGenerator(), monitor, epochs=5)
    assert [score["step"] for score in monitor.scores] == [4, 8, 10]  # epochs 2 and 4, and the end
    assert float(trainer.callback_metrics["collapse/distinct"]) == pytest.approx(1 / 32)


def test_a_good_generator_is_not() -> None:
    monitor = CollapseMonitor(every_n_epochs=1, num_samples=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Bootstrap(), monitor, epochs=1)
    assert not [w for w in caught if "cover little" in str(w.message)]
    assert monitor.scores[0]["coverage"] > 0.8


def test_looking_does_not_change_training() -> None:
    watched, alone = ConstantGenerator(), ConstantGenerator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(watched, CollapseMonitor(every_n_epochs=1), epochs=3)
    fit(alone, CollapseMonitor(every_n_epochs=100, min_coverage=-1, min_variance_ratio=-1, min_distinct=-1), epochs=3)
    assert torch.equal(watched.mean, alone.mean)


@pytest.mark.parametrize("settings", [{"every_n_epochs": 0}, {"num_samples": 1}])
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="CollapseMonitor"):
        CollapseMonitor(**settings)
