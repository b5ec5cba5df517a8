"""SampleLogger: a figure and its numbers on disk, in the logger where it can show them, and nothing else changed."""

from __future__ import annotations

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lightning_synth import Generator, GeneratorEMA, SampleLogger, get_generator
from lightning_synth.errors import ConfigError
from lightning_synth.testing import tiny_datamodule


class Toy(Generator):
    domain = "timeseries"
    conditions = ("label",)

    def build(self, schema):
        self.bias = torch.nn.Parameter(torch.zeros(schema["channels"], schema["length"]))
        self.seen = []

    def losses(self, batch, rng):
        return {"loss": (self.bias - batch["x"] + rng.normal(batch["x"].shape)).square().mean()}

    def sample_batch(self, requests, rng):
        self.seen.append(float(self.bias.detach().mean()))
        return {"x": self.bias + rng.normal(self.bias.shape)}


def fit(generator, dm, trainer_kwargs, *callbacks, **options):
    trainer = L.Trainer(callbacks=list(callbacks), **{**trainer_kwargs, "max_epochs": 5, **options})
    trainer.fit(generator, dm)
    return trainer


def test_figures_and_numbers_every_k_epochs_and_at_the_end(trainer_kwargs, tmp_path):
    dm = tiny_datamodule("timeseries")
    fit(Toy(), dm, trainer_kwargs, SampleLogger(every_n_epochs=2, n=3, seed=4))
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    epochs = [1, 3, 4]
    assert [name.split("-")[0] for name in names if name.endswith("png")] == [f"epoch={e:05d}" for e in epochs]
    content = [json.loads((tmp_path / "samples" / name).read_text()) for name in names if name.endswith("json")]
    assert [entry["epoch"] for entry in content] == epochs
    # Drawn beside real windows of the same classes.
    assert [item["y"] for item in content[0]["synthetic"]] == [item["y"] for item in content[0]["real"]] == [0, 1, 2]
    train = [item["x"].tolist() for item in dm.train_items()]
    assert all(item["x"] in train for item in content[0]["real"])


@pytest.mark.parametrize("domain", ("timeseries", "graph", "node", "molecule", "sequence"))
def test_every_domain_is_drawn(domain, trainer_kwargs, tmp_path):
    fit(get_generator("bootstrap")(), tiny_datamodule(domain), trainer_kwargs, SampleLogger(n=2))
    images = list((tmp_path / "samples").glob("*.png"))
    assert len(images) == 1 and images[0].stat().st_size > 2000
    content = json.loads(images[0].with_suffix(".json").read_text())
    assert len(content["synthetic"]) == 2 and content["real"]


def test_training_is_the_same_with_and_without_it(trainer_kwargs):
    weights = []
    for callbacks in ((), (SampleLogger(),)):
        generator = Toy()
        torch.manual_seed(0)
        fit(generator, tiny_datamodule("timeseries"), trainer_kwargs, *callbacks)
        weights.append((generator.bias.detach().clone(), torch.rand(1)))
    assert torch.equal(weights[0][0], weights[1][0]) and torch.equal(weights[0][1], weights[1][1])


def test_the_average_is_sampled_and_training_goes_on_from_the_last_weights(trainer_kwargs):
    plain, averaged = Toy(lr=0.1), Toy(lr=0.1)
    dm = tiny_datamodule("timeseries")
    fit(plain, dm, trainer_kwargs, SampleLogger())
    ema = GeneratorEMA(decay=0.9, warmup=False)
    fit(averaged, dm, trainer_kwargs, SampleLogger(), ema)
    # The average lags behind the weights, which move from 0 to the mean of the data.
    assert all(a < b for a, b in zip(averaged.seen[1:], plain.seen[1:], strict=True))
    last = plain.bias.detach()
    current = torch.nn.ParameterList(ema._average_model.module.parameters())[0].detach()
    assert torch.equal(averaged.bias.detach(), current) and not torch.equal(current, last)
    assert averaged.seen[-1] == pytest.approx(float(averaged.bias.detach().mean()), abs=1e-6)


def test_loggers_get_the_figure_or_one_warning(trainer_kwargs, tmp_path, recwarn):
    class Wandb(WandbLogger):
        def __init__(self):
            self.images = []

        experiment = None
        name, version, save_dir, log_dir, _checkpoint_name = "w", "0", None, None, None

        def log_image(self, key, images, step=None, **kwargs):
            self.images.append((key, images, step))

        def log_metrics(self, metrics, step=None): ...
        def log_hyperparams(self, params): ...
        def finalize(self, status): ...
        def after_save_checkpoint(self, callback): ...

    wandb, board = Wandb(), TensorBoardLogger(tmp_path, name="board")
    loggers = [CSVLogger(tmp_path, name="csv"), board, wandb]
    trainer = fit(Toy(), tiny_datamodule("timeseries"), trainer_kwargs, SampleLogger(), max_epochs=2, logger=loggers)
    folder = tmp_path / "csv" / "version_0" / "samples"
    assert str(folder.parent) == trainer.log_dir and len(list(folder.glob("*.png"))) == 2
    assert [(key, step) for key, _, step in wandb.images] == [("samples", 2), ("samples", 4)]
    assert sum("CSVLogger shows no figures" in str(w.message) for w in recwarn.list) == 1
    board.experiment.flush()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(board.log_dir).Reload()
    assert len(events.Images("samples")) == 2


def test_bad_settings():
    for wrong in ({"every_n_epochs": 0}, {"n": 0}):
        with pytest.raises(ConfigError):
            SampleLogger(**wrong)
