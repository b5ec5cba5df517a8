"""GeneratorEMA: what stock Lightning loses (T4), the arithmetic, checkpoints and resuming."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn

from lightning_synth.adversarial import AdversarialGenerator
from lightning_synth.callbacks.collapse import CollapseMonitor
from lightning_synth.callbacks.ema import GeneratorEMA
from lightning_synth.checkpoint import load_generator
from lightning_synth.errors import ConfigError
from lightning_synth.generator import Generator
from lightning_synth.requests import KeyedRNG
from lightning_synth.testing import tiny_datamodule


class EmaGAN(AdversarialGenerator):
    """A GAN with batch norm on both sides (Goodfellow et al. 2014, arXiv 1406.2661)."""

    domain = "timeseries"

    def build(self, schema: dict[str, Any]) -> None:
        self.shape = (schema["channels"], schema["length"])
        size = schema["channels"] * schema["length"]
        self.G = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, size))
        self.D = nn.Sequential(nn.Linear(size, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    def discriminator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
        x = batch["x"].flatten(1)
        return (self.D(x) - 1).square().mean() + self.D(self.G(rng.normal((len(x), 2)))).square().mean()

    def generator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
        return (self.D(self.G(rng.normal((len(batch["x"]), 2)))) - 1).square().mean()

    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return {"x": self.G(rng.normal((2,))).unflatten(1, self.shape)}


class EmaRegressor(Generator):
    """One optimiser, one parameter a channel (Gauss 1809)."""

    domain = "timeseries"

    def build(self, schema: dict[str, Any]) -> None:
        self.shape = (schema["channels"], schema["length"])
        self.mean = nn.Parameter(torch.zeros(schema["channels"], 1))

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        return {"loss": (batch["x"] - self.mean).square().mean()}

    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return {"x": self.mean + rng.normal(self.shape)}


class History(Callback):
    """Weights after every batch; placed before the averaging callback, so it sees the raw ones."""

    def __init__(self) -> None:
        self.start: dict[str, Tensor] = {}
        self.seen: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.start = copy.deepcopy(dict(module.state_dict()))

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.seen.append(copy.deepcopy(dict(module.state_dict())))


def make_trainer(*callbacks: Callback, **options: Any) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    # The monitor only keeps the model from adding one that warns about these hopeless toys.
    silent = CollapseMonitor(every_n_epochs=1000, min_coverage=-1, min_variance_ratio=-1, min_distinct=-1)
    return L.Trainer(accelerator="cpu", callbacks=[*callbacks, silent], **{**quiet, "devices": 1, **options})


def fit(model: L.LightningModule, *callbacks: Callback, **options: Any) -> L.Trainer:
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(model, datamodule=tiny_datamodule("timeseries", n=16, batch_size=4))
    return trainer


def by_hand(history: History, name: str, decay: float, every: int = 1, start: int = 0, warmup: bool = True) -> Tensor:
    average, updates = history.start[name], 0
    for batch, state in enumerate(history.seen, start=1):
        if batch <= start or (batch - start) % every:
            continue
        beta = min(decay, (1 + updates) / (10 + updates)) if warmup else decay
        average = state[name] if updates == 0 else beta * average + (1 - beta) * state[name]
        updates += 1
    return average


class StockGAN(L.LightningModule):
    """Two optimisers as in Lightning's documentation."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.G, self.D = nn.Linear(2, 48), nn.Linear(48, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            optimizer.zero_grad()
            self.manual_backward(sign * self.D(self.G(torch.ones(4, 2))).mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.G, self.D)]


@pytest.mark.parametrize("every", [2, 4])
def test_stock_averaging_silently_gives_back_the_initial_weights(every: int) -> None:
    model, history = StockGAN(), History()
    fit(model, history, EMAWeightAveraging(decay=0.9, update_every_n_steps=every), max_epochs=2)
    final = model.state_dict()
    assert all(torch.equal(final[name], history.start[name]) for name in final)  # the trap
    assert any(not torch.equal(history.seen[-1][name], history.start[name]) for name in final)  # it had learned


@pytest.mark.parametrize("every", [1, 2, 4])
def test_ours_keeps_what_was_learned(every: int) -> None:
    model, history = EmaGAN(), History()
    ema = GeneratorEMA(decay=0.9, every_n_batches=every)
    fit(model, history, ema, max_epochs=2)
    assert ema.num_updates == 8 // every
    final = model.state_dict()
    assert all(not torch.equal(final[name], history.start[name]) for name in final if "weight" in name)


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize(("every", "start"), [(1, 0), (2, 0), (2, 3)])
def test_the_average_equals_the_one_computed_by_hand(every: int, start: int, warmup: bool) -> None:
    model, history = EmaGAN(update="joint"), History()
    fit(model, history, GeneratorEMA(0.5, every, start, warmup), max_epochs=3)
    final = model.state_dict()
    for name in final:
        if name.startswith("G.") and name.endswith(("weight", "bias")):
            expected = by_hand(history, name, 0.5, every, start, warmup)
            torch.testing.assert_close(final[name], expected)
        else:  # discriminators and buffers are the last ones
            assert torch.equal(final[name], history.seen[-1][name]), name


def test_one_optimiser_and_bare_parameters_are_averaged_too() -> None:
    model, history = EmaRegressor(lr=0.1), History()
    fit(model, history, GeneratorEMA(decay=0.9), max_epochs=3)
    torch.testing.assert_close(model.state_dict()["mean"], by_hand(history, "mean", 0.9))


def test_without_an_update_the_trained_weights_stay() -> None:
    model, history = EmaGAN(), History()
    fit(model, history, GeneratorEMA(start_batch=100), max_epochs=1)
    assert all(torch.equal(value, history.seen[-1][name]) for name, value in model.state_dict().items())


def test_checkpoints_hold_the_average_and_load_alone(tmp_path: Path) -> None:
    history = History()
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=6, filename="{step}")
    fit(EmaGAN(), history, GeneratorEMA(decay=0.9), saver, max_epochs=2, enable_checkpointing=True)
    loaded = load_generator(tmp_path / "step=6.ckpt")
    history.seen = history.seen[:6]
    torch.testing.assert_close(loaded.state_dict()["G.0.weight"], by_hand(history, "G.0.weight", 0.9))
    assert torch.equal(loaded.state_dict()["D.0.weight"], history.seen[-1]["D.0.weight"])
    assert len(loaded.sample(3, seed=0)) == 3


def test_resuming_continues_weights_and_average(tmp_path: Path) -> None:
    whole, resumed = EmaGAN(), EmaGAN()
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    fit(whole, GeneratorEMA(decay=0.9, every_n_batches=3), saver, max_steps=12, enable_checkpointing=True)
    ema = GeneratorEMA(decay=0.9, every_n_batches=3)
    trainer, datamodule = make_trainer(ema, max_steps=12), tiny_datamodule("timeseries", n=16, batch_size=4)
    trainer.fit(resumed, datamodule=datamodule, ckpt_path=tmp_path / "step=8.ckpt")
    assert ema.num_updates == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_validation_and_sampling_of_the_monitor_restore_the_raw_weights() -> None:
    """Whoever looks in between must not disturb training."""
    plain, watched = EmaGAN(), EmaGAN()
    fit(plain, GeneratorEMA(decay=0.9), max_epochs=2)
    monitor = CollapseMonitor(every_n_epochs=1, min_coverage=-1, min_variance_ratio=-1, min_distinct=-1)
    fit(watched, GeneratorEMA(decay=0.9), monitor, max_epochs=2)
    assert all(torch.equal(value, watched.state_dict()[name]) for name, value in plain.state_dict().items())


def test_validation_uses_the_average() -> None:
    seen: list[Tensor] = []

    class Validated(EmaRegressor):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.mean.detach().clone())

    history = History()
    model = Validated(lr=0.1)
    fit(model, history, GeneratorEMA(decay=0.9), max_epochs=1, num_sanity_val_steps=0)
    torch.testing.assert_close(seen[-1], by_hand(history, "mean", 0.9))
    torch.testing.assert_close(model.mean.detach(), seen[-1])


def test_checkpoints_that_would_miss_the_average_are_pointed_out(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, save_weights_only=True)
    with pytest.warns(UserWarning, match="save_weights_only=True"):
        fit(EmaGAN(), GeneratorEMA(), saver, max_steps=1, enable_checkpointing=True)


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"every_n_batches": 0}, {"start_batch": -1}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="GeneratorEMA"):
        GeneratorEMA(**settings)
