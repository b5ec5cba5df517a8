"""Two optimisers: steps count batches (T5), both updates run under DDP (T3), settings are refused or honoured."""

from __future__ import annotations

import itertools
import textwrap
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

from lightning_synth import adversarial
from lightning_synth.adversarial import AdversarialGenerator
from lightning_synth.callbacks.collapse import CollapseMonitor
from lightning_synth.checkpoint import load_generator
from lightning_synth.errors import ConfigError, NonFiniteLossError
from lightning_synth.requests import KeyedRNG
from lightning_synth.testing import check_generator, tiny_datamodule, tiny_series, tiny_series_schema


class ToyGAN(AdversarialGenerator):
    """The smallest GAN of windows (Goodfellow et al. 2014, arXiv 1406.2661), conditioned on the label."""

    domain = "timeseries"
    conditions = ("label",)

    def __init__(self, *, latent_dim: int = 4, **kwargs: Any) -> None:
        super().__init__(latent_dim=latent_dim, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        self.shape = (schema["channels"], schema["length"])
        self.classes, size = max(schema["num_classes"], 1), schema["channels"] * schema["length"]
        self.G = nn.Sequential(nn.Linear(self.hparams.latent_dim + self.classes, 16), nn.Tanh(), nn.Linear(16, size))
        self.D = nn.Sequential(nn.Linear(size + self.classes, 16), nn.Tanh(), nn.Linear(16, 1))

    def fake(self, z: Tensor, label: Tensor) -> Tensor:
        return self.G(torch.cat([z, self.one_hot(label)], 1)).unflatten(1, self.shape)

    def judge(self, x: Tensor, label: Tensor) -> Tensor:
        return self.D(torch.cat([x.flatten(1), self.one_hot(label)], 1))

    def one_hot(self, label: Tensor) -> Tensor:
        return nn.functional.one_hot(label, self.classes).float()

    def label(self, batch: Any) -> Tensor:
        return batch.get("y", torch.zeros(len(batch["x"]), dtype=torch.int64))

    def discriminator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
        y = self.label(batch)
        fake = self.fake(rng.normal((len(y), self.hparams.latent_dim)), y)
        return softplus(-self.judge(batch["x"], y)).mean() + softplus(self.judge(fake, y)).mean()

    def generator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
        y = self.label(batch)
        return softplus(-self.judge(self.fake(rng.normal((len(y), self.hparams.latent_dim)), y), y)).mean()

    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        label = requests.condition.get("label", torch.zeros_like(requests.index))
        return {"x": self.fake(rng.normal((self.hparams.latent_dim,)), label)}


class StockGAN(L.LightningModule):
    """Manual optimisation as in Lightning's documentation."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.G, self.D, self.calls = nn.Linear(2, 3), nn.Linear(3, 1), 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.calls += 1
        g_opt, d_opt = self.optimizers()
        for optimizer in (d_opt, g_opt):
            fake = self.G(torch.ones(2, 2))
            loss = self.D(fake.detach()).mean() if optimizer is d_opt else -self.D(fake).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.G, self.D)]


class CountBatches(Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.count += 1


def make_trainer(*callbacks: Callback, **options: Any) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(accelerator="cpu", callbacks=list(callbacks), **{**quiet, "devices": 1, **options})


def fit(model: L.LightningModule, *callbacks: Callback, **options: Any) -> L.Trainer:
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(model, datamodule=tiny_datamodule("timeseries", n=16, batch_size=4))
    return trainer


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -------------------------------------------------------------------------------------------------- T5: steps


def test_stock_lightning_stops_after_half_of_max_steps() -> None:
    model = StockGAN()
    fit(model, max_steps=10)
    assert model.calls == 5


@pytest.mark.parametrize("settings", [{}, {"update": "joint"}, {"d_steps": 3}, {"accumulate": 2}])
def test_max_steps_counts_batches(settings: dict[str, Any], tmp_path: Path) -> None:
    counter = CountBatches()
    trainer = fit(ToyGAN(**settings), counter, max_steps=10)
    assert (counter.count, trainer.global_step) == (10, 10)
    trainer.save_checkpoint(tmp_path / "gan.ckpt", weights_only=False)
    assert torch.load(tmp_path / "gan.ckpt", weights_only=True)["global_step"] == 10


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    whole, resumed, counter = ToyGAN(), ToyGAN(), CountBatches()
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    fit(whole, saver, max_steps=8, enable_checkpointing=True)
    trainer, datamodule = make_trainer(counter, max_steps=8), tiny_datamodule("timeseries", n=16, batch_size=4)
    trainer.fit(resumed, datamodule=datamodule, ckpt_path=tmp_path / "step=4.ckpt")
    assert (counter.count, trainer.global_step) == (4, 8)
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(load_generator(tmp_path / "step=4.ckpt")), weights(whole))


def test_max_epochs_and_periodic_checkpoints_count_batches(tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fit(ToyGAN(), saver, max_epochs=2, enable_checkpointing=True)
    assert sorted(p.stem for p in tmp_path.glob("*.ckpt")) == ["step=3", "step=6"]
    assert load_generator(tmp_path / "step=6.ckpt").sample(3).data["x"].shape == (3, 2, 24)


# -------------------------------------------------------------------------------------------------- the two updates


def setting(update: str) -> tuple[ToyGAN, dict[str, Tensor], KeyedRNG]:
    model = ToyGAN(schema=tiny_series_schema(), update=update)
    return model, dict(tiny_series(8).tensors), KeyedRNG(3)


@pytest.mark.parametrize("side", ["D", "G"])
def test_a_loss_leaves_no_gradient_on_the_other_side(side: str) -> None:
    model, batch, rng = setting("joint")
    loss = model._discriminator_loss(batch, rng, 0) if side == "D" else model._generator_loss(batch, rng)
    loss.backward()
    own, other = (model.D, model.G) if side == "D" else (model.G, model.D)
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in own.parameters())
    assert all(p.grad is None and p.requires_grad for p in other.parameters())


class SGDToyGAN(ToyGAN):
    """With plain gradient steps, so that a step can be computed by hand (no source: a test)."""

    def make_optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr)


@pytest.mark.parametrize("update", ["joint", "alternating"])
def test_one_batch_equals_the_hand_computed_update(update: str) -> None:
    schema, batch = tiny_series_schema(), dict(tiny_series(16).tensors)
    model = SGDToyGAN(schema=schema, update=update, lr=0.1, d_lr=0.2)
    by_hand = SGDToyGAN(schema=schema)
    rng = by_hand.training_rng()
    d_grads = torch.autograd.grad(by_hand._discriminator_loss(batch, rng, 0), list(by_hand.D.parameters()))
    if update == "joint":
        g_grads = torch.autograd.grad(by_hand._generator_loss(batch, rng), list(by_hand.G.parameters()))
    with torch.no_grad():
        for p, g in zip(by_hand.D.parameters(), d_grads, strict=True):
            p -= 0.2 * g
    if update == "alternating":
        g_grads = torch.autograd.grad(by_hand._generator_loss(batch, rng), list(by_hand.G.parameters()))
    with torch.no_grad():
        for p, g in zip(by_hand.G.parameters(), g_grads, strict=True):
            p -= 0.1 * g
    make_trainer(max_steps=1).fit(model, DataLoader(list(tiny_series(16)), batch_size=16))
    torch.testing.assert_close(weights(model), weights(by_hand))


def test_accumulation_steps_once_per_group_and_at_the_end() -> None:
    seen: list[Tensor] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            seen.append(weights(module))

    fit(ToyGAN(accumulate=3), Watch(), max_epochs=1)
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert moved == [False, True, True]  # batches 1, 2: nothing; 3: a full group; 4: the last of the epoch


def test_accumulated_gradient_is_the_mean_over_batches() -> None:
    class NoNoise(SGDToyGAN):
        def training_rng(self) -> KeyedRNG:
            return KeyedRNG(0)

    items = tiny_series(4)
    loader = DataLoader([items[i] for i in (0, 1, 0, 1)], batch_size=2)
    one, two = NoNoise(update="joint"), NoNoise(update="joint", accumulate=2)
    make_trainer(max_steps=1).fit(one, loader)
    make_trainer(max_steps=2).fit(two, loader)
    torch.testing.assert_close(weights(two), weights(one))


def test_clipping_bounds_the_gradient_norm_of_each_side() -> None:
    norms: list[float] = []

    class Norms(SGDToyGAN):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
            norms.append(float(torch.cat(grads).norm()))

    fit(Norms(clip_val=1e-3), max_steps=3)
    assert len(norms) == 6 and max(norms) <= 1.001e-3


def test_repeated_discriminator_steps_see_new_weights_under_mixed_precision() -> None:
    """Autocast keeps low-precision copies of weights: without care the second loss is computed with the old ones."""
    losses: list[float] = []

    class SameNoise(SGDToyGAN):
        def discriminator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
            loss = super().discriminator_loss(batch, KeyedRNG(0))
            losses.append(float(loss))
            return loss

    fit(SameNoise(d_steps=3, d_lr=0.1), max_steps=1, precision="bf16-mixed")
    assert losses[0] > losses[1] > losses[2]


# ---------------------------------------------------------------------------------------------- settings and refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gradient_clip_val": 0.5}, ["gradient_clip_val=0.5", "ToyGAN(clip_val=0.5)"]),
        ({"accumulate_grad_batches": 4}, ["accumulate_grad_batches=4", "ToyGAN(accumulate=4)"]),
        ({"strategy": "ddp"}, ["'ddp_find_unused_parameters_true'", "ToyGAN(update='joint')"]),
    ],
)
def test_impossible_trainers_are_refused_with_the_remedy(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        fit(ToyGAN(), max_steps=1, **options)
    assert all(word in str(error.value) for word in words)


def test_prediction_under_plain_ddp_is_allowed() -> None:
    trainer, model = make_trainer(strategy="ddp"), ToyGAN()
    trainer.state.fn, model.trainer = TrainerFn.PREDICTING, trainer
    assert model.configure_callbacks() == []
    trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(ConfigError, match="find_unused_parameters_true"):
        model.configure_callbacks()


@pytest.mark.parametrize(
    "settings",
    [
        {"update": "both"},
        {"d_steps": 0},
        {"accumulate": 0},
        {"clip_val": 0.0},
        {"d_lr": -1.0},
        {"d_steps": 2, "update": "joint"},
        {"d_steps": 2, "accumulate": 2},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ToyGAN(**settings)


def test_a_parameter_of_neither_side_is_named() -> None:
    class Forgotten(ToyGAN):
        def build(self, schema: dict[str, Any]) -> None:
            super().build(schema)
            self.extra = nn.Linear(1, 1)

    with pytest.raises(ConfigError, match=r"extra\.weight.*neither side"):
        fit(Forgotten(), max_steps=1)


@pytest.mark.parametrize("side", ["discriminator", "generator"])
def test_a_non_finite_loss_stops_before_it_reaches_the_weights(side: str, tmp_path: Path) -> None:
    class Breaks(ToyGAN):
        def discriminator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
            return super().discriminator_loss(batch, rng) * (float("nan") if side == "discriminator" else 1)

        def generator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
            return super().generator_loss(batch, rng) * (float("nan") if side == "generator" else 1)

    model = Breaks()
    with pytest.raises(NonFiniteLossError, match=rf"{side} of Breaks.*Breaks\(clip_val=1\)"):
        fit(model, max_steps=3, default_root_dir=tmp_path)
    assert bool(torch.isfinite(weights(model)).all())


def test_networks_must_be_found() -> None:
    class Nameless(ToyGAN):
        def build(self, schema: dict[str, Any]) -> None:
            self.generator = nn.Linear(1, 1)

    with pytest.raises(ConfigError, match=r"self\.D.*discriminator_networks"):
        fit(Nameless(), max_steps=1)


def test_schedulers_are_stepped_with_their_interval_and_frequency() -> None:
    class Scheduled(ToyGAN):
        def configure_optimizers(self) -> Any:
            d_opt, g_opt = super().configure_optimizers()
            by_step = torch.optim.lr_scheduler.StepLR(d_opt, 1, gamma=0.5)
            by_epoch = torch.optim.lr_scheduler.StepLR(g_opt, 1, gamma=0.1)
            return [d_opt, g_opt], [{"scheduler": by_step, "interval": "step", "frequency": 2}, by_epoch]

    model = Scheduled(lr=1.0, d_lr=1.0)
    fit(model, max_epochs=2)  # 8 batches
    rates = [optimizer.param_groups[0]["lr"] for optimizer in model.optimizers()]
    assert rates == pytest.approx([0.5**4, 0.1**2])


def test_a_discriminator_that_always_wins_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert adversarial._PATIENCE == 200
    monkeypatch.setattr(adversarial, "_PATIENCE", 20)
    monkeypatch.setattr(adversarial, "_LOOK_EVERY", 10)

    class Hopeless(ToyGAN):
        def discriminator_loss(self, batch: Any, rng: KeyedRNG) -> Tensor:
            return super().discriminator_loss(batch, rng) * 1e-6

    class Critic(Hopeless):
        saturated_below = None

    with pytest.warns(UserWarning, match="discriminator loss below 0.001 for 2") as caught:
        fit(Hopeless(), max_steps=50)
    assert sum("discriminator loss" in str(w.message) for w in caught) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Critic(), max_steps=30)
    assert not any("discriminator loss" in str(w.message) for w in caught)


def test_collapse_is_watched_unless_the_user_already_does() -> None:
    own = CollapseMonitor(every_n_epochs=1)
    trainer = fit(ToyGAN(), own, max_epochs=2)
    assert [c for c in trainer.callbacks if isinstance(c, CollapseMonitor)] == [own] and len(own.scores) == 2
    trainer = fit(ToyGAN(), max_steps=1)
    assert sum(isinstance(c, CollapseMonitor) for c in trainer.callbacks) == 1


def test_toy_gan_conforms() -> None:
    results = check_generator(ToyGAN)
    assert results["check_gradients"] == "passed" and results["check_loss"].startswith("skipped")


def test_it_learns_the_mean_of_the_data() -> None:
    model = ToyGAN(lr=1e-2, seed=1)
    fit(model, max_steps=250)
    real = tiny_series(16).tensors["x"].mean((0, 2))
    before = (ToyGAN(schema=model.schema, seed=1).eval(), model)
    errors = []
    for one in before:
        one.is_fitted = True
        errors.append(float((one.sample(200).data["x"].mean((0, 2)) - real).norm()))
    assert errors[1] < 0.5 * errors[0]


# -------------------------------------------------------------------------------------------------- T3: DDP


SCRIPT = """
import sys, torch, lightning as L
import torch.distributed as dist
sys.path.insert(0, {folder!r})
from test_adversarial import ToyGAN, StockGAN, make_trainer
from lightning_synth.callbacks.ema import GeneratorEMA
from lightning_synth.testing import tiny_datamodule

kind, strategy = sys.argv[1:]
model = StockGAN() if kind == "stock" else ToyGAN(update=kind)
trainer = make_trainer(max_steps=6 if kind != "stock" else 12, strategy=strategy, devices=2)
class Check(L.Callback):
    def on_train_end(self, trainer, module):
        vector = torch.cat([p.detach().flatten() for p in module.parameters()])
        every = [torch.zeros_like(vector) for _ in range(2)]
        dist.all_gather(every, vector)
        if trainer.global_rank == 0:
            print("RESULT", torch.equal(*every), trainer.global_step, trainer.fit_loop.epoch_loop.total_batch_idx + 1)
trainer.callbacks.extend([GeneratorEMA(every_n_batches=2), Check()] if kind != "stock" else [Check()])
trainer.fit(model, datamodule=tiny_datamodule("timeseries", n=32, batch_size=4))
"""


@pytest.fixture
def run_two_processes(run_script: Any, tmp_path: Path) -> Any:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT.format(folder=str(Path(__file__).parent))))
    return partial(run_script, script)


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("kind", "strategy"), [("joint", "ddp_fork"), ("alternating", "ddp_fork_find_unused_parameters_true")]
)
def test_both_updates_keep_two_processes_equal(kind: str, strategy: str, run_two_processes: Any) -> None:
    done = run_two_processes(kind, strategy)
    assert "RESULT True 6 6" in done.stdout, done.stdout + done.stderr[-3000:]


@pytest.mark.ddp
def test_stock_alternating_updates_fail_under_plain_ddp(run_two_processes: Any) -> None:
    done = run_two_processes("stock", "ddp_fork")
    assert done.returncode and "parameters that were not used in producing" in done.stderr, (
        done.stdout + done.stderr[-3000:]
    )
