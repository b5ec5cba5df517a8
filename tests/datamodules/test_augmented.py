"""AugmentedDataModule: what is augmented and what is not, and that it depends on (seed, epoch, position) alone."""

from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

import lightning_synth as ls
from lightning_synth.datamodules import AugmentedDataModule, ItemsDataModule, MixedDataModule
from lightning_synth.errors import ConfigError, SchemaError, SchemaMismatchError, UnknownGeneratorError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.baselines import Bootstrap, Interpolate, Jitter
from lightning_synth.plugins.timeseries.warps import MagnitudeWarp
from lightning_synth.registry import get_generator
from lightning_synth.testing import check_datamodule, tiny_datamodule, tiny_series

LOCAL = ("jitter", "scaling", "magnitude_warp", "time_warp", "window_warp", "phase_perturbation", "iaaft")
PARTNERS = ("interpolate", "smote", "adasyn", "borderline_smote", "t_smote", "dba", "block_bootstrap", "bootstrap")


class Shift:
    """A user's own augmenter: adds a constant of the row."""

    def augment(self, batch, rng):
        return batch | {"x": batch["x"] + 100 + rng.uniform((1, 1)), "y": batch["y"] + 1}


def source(n=20, batch_size=6, **options):
    parts = [tiny_series(n, seed=seed) for seed in (0, 1, 2)]
    return ItemsDataModule(*parts, batch_size=batch_size, **options)


def augmented(data=None, augment=("jitter", "magnitude_warp"), **options):
    return AugmentedDataModule(data or source(), augment, **{"prob": 0.7, **options})


class Net(LightningModule):
    """Remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.layer, self.train_seen, self.val_seen = torch.nn.Linear(1, 1), [], []

    def training_step(self, batch, batch_idx):
        x = batch["x"] if isinstance(batch, dict) else batch[0]
        self.train_seen.append((self.current_epoch, x))
        return self.layer(x[:, 0, :1]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.val_seen.append(batch["x"] if isinstance(batch, dict) else batch[0])

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-9)

    def epoch(self, number):
        return torch.cat([x for epoch, x in self.train_seen if epoch == number])


def trainer(*callbacks, **options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **{"max_epochs": 2, **quiet, **options})


def fit(data, *callbacks, ckpt_path=None, **options):
    net = Net()
    trainer(*callbacks, **options).fit(net, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return net


def test_training_batches_are_augmented_and_the_others_are_not():
    data = augmented(prob=1.0)
    net = fit(data)
    for epoch in (0, 1):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        raw = torch.cat([batch["x"] for batch in loader])
        assert (net.epoch(epoch) - raw).abs().amax((1, 2)).min() > 1e-3
    # Sanity check and both epochs.
    assert torch.equal(torch.cat(net.val_seen)[-20:], data.val_items().tensors["x"])
    assert all(torch.equal(x, y) for x, y in zip(net.val_seen[:2], net.val_seen[2:4], strict=True))
    net.val_seen.clear()
    trainer().test(net, data, verbose=False)
    assert torch.equal(torch.cat(net.val_seen), data.test_items().tensors["x"])
    assert torch.equal(data.train_items().tensors["x"], tiny_series(20, seed=0).tensors["x"])


def test_augmentation_is_a_function_of_seed_epoch_and_position():
    data, batch = augmented(), next(iter(source().train_dataloader()))
    first = data.augment_batch(batch, 1, 12)["x"]
    assert torch.equal(first, augmented().augment_batch(batch, 1, 12)["x"])
    # Two rows of it, as on the second of three processes.
    rows = {name: value[1::3] for name, value in batch.items()}
    assert torch.allclose(data.augment_batch(rows, 1, 13, 3)["x"], first[1::3], atol=1e-5)
    others = (
        data.augment_batch(batch, 2, 12),
        data.augment_batch(batch, 1, 11),
        augmented(seed=1).augment_batch(batch, 1, 12),
    )
    assert all((other["x"] != first).any() for other in others)


def test_the_batch_size_does_not_matter():
    small, large = (fit(augmented(source(batch_size=size))) for size in (3, 7))
    for epoch in (0, 1):
        assert torch.allclose(small.epoch(epoch), large.epoch(epoch), atol=1e-5)
    assert (small.epoch(0) != small.epoch(1)).any()


class SaveAt(Callback):
    def __init__(self, hook, count, path):
        self.count = count
        setattr(self, hook, lambda trainer, *_: self.save(trainer, path))

    def save(self, trainer, path):
        self.count -= 1
        if self.count == 0:
            trainer.save_checkpoint(path)


@pytest.mark.parametrize(
    ("hook", "count", "done"),
    [("on_train_batch_end", 2, 2), ("on_train_batch_start", 3, 2), ("on_train_epoch_end", 1, 5)],
)
def test_a_resumed_job_sees_the_same_windows(tmp_path, hook, count, done):
    def mixture():
        pool = StackedItems(tiny_series(7, seed=9).tensors)
        return augmented(MixedDataModule(source(), pool, ratio=0.25, batch_size=6))

    path = tmp_path / "at.ckpt"
    full, resumed = fit(mixture(), SaveAt(hook, count, path)), fit(mixture(), ckpt_path=path)
    assert len(full.train_seen) == 10 and len(resumed.train_seen) == 10 - done
    for (epoch, x), (other, y) in zip(full.train_seen[done:], resumed.train_seen, strict=True):
        assert epoch == other and torch.equal(x, y)


def test_an_augmenter_acts_with_its_own_probability():
    items = StackedItems({"x": torch.zeros(600, 1, 4), "y": torch.zeros(600, dtype=torch.int64)})
    data = AugmentedDataModule(ItemsDataModule(items), [Shift(), Shift(), Shift()], prob=(1.0, 0.0, 0.25))
    batch = dict(items.tensors)
    out = data.augment_batch(batch, 0, 0)
    assert abs(float((out["x"][:, 0, 0] > 200).float().mean()) - 0.25) < 0.05
    assert out["x"].min() >= 100 and out["x"].max() < 202
    assert len(out["x"][:, 0, 0].unique()) > 590
    # Not even an augmenter that wants to changes the label, and the given batch is left alone.
    assert torch.equal(out["y"], items.tensors["y"]) and (batch["x"] == 0).all()


@pytest.mark.parametrize("name", LOCAL + PARTNERS)
def test_classical_generators_augment_by_name(name):
    if not hasattr(get_generator(name), "augment"):
        with pytest.raises(ConfigError, match="cannot augment.*jitter"):
            augmented(augment=[name])
        assert name == "bootstrap"
        return
    data = augmented(source(30), [name], prob=1.0)
    items = data.train_items()
    out = data.augment_batch(dict(items[:12].tensors), 0, 0)
    assert out["x"].shape == (12, 2, 24) and out["x"].dtype == torch.float32 and torch.isfinite(out["x"]).all()
    assert torch.equal(out["y"], items.tensors["y"][:12]) and (out["x"] != items.tensors["x"][:12]).any((1, 2)).all()
    # A row does not depend on the others of its batch.
    alone = data.augment_batch(dict(items[4:5].tensors), 0, 4)
    assert torch.allclose(alone["x"], out["x"][4:5], atol=1e-4)


def test_partners_come_from_the_class_in_the_training_split():
    data = augmented(augment=["interpolate"], prob=1.0)
    labels = torch.arange(3).repeat(50)
    far = {"x": torch.zeros(150, 2, 24), "y": labels}
    out = data.augment_batch(far, 0, 0)["x"].flatten(1)
    train = data.train_items().tensors
    # What was mixed into zeros is a multiple of a training window of the class.
    cosine = torch.nn.functional.cosine_similarity(out[:, None], train["x"].flatten(1)[None], dim=-1)
    assert cosine.amax(1).min() > 0.9999
    assert torch.equal(train["y"][cosine.argmax(1)], labels)


def test_mixtures_are_augmented_whole_and_keep_their_provenance():
    pool = StackedItems(tiny_series(10, seed=5).tensors)
    mixed = MixedDataModule(source(), pool, ratio=0.5, batch_size=6)
    data = augmented(mixed, [Shift()], prob=1.0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    out = data.augment_batch(batch, 0, 0)
    assert out.keys() == batch.keys() and (out["x"] > 90).all()
    for name in ("is_synthetic", "weight", "y"):
        assert torch.equal(out[name], batch[name])
    assert torch.equal(data.provenance(0).is_synthetic, batch["is_synthetic"])
    # The other way round: a mixture of an augmented source.
    around = MixedDataModule(augmented(source(), [Shift()], prob=1.0), pool, ratio=0.5, batch_size=6)
    assert (fit(around, max_epochs=1).epoch(0) > 90).all()


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Foreign(LightningDataModule):
    """A user's own DataModule, without a schema; its hook doubles what has reached the device."""

    def __init__(self, *tensors, collate=None):
        super().__init__()
        self.loader = DataLoader(TensorDataset(*tensors), batch_size=6, collate_fn=collate)

    def train_dataloader(self):
        return self.loader

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [2 * batch[0], *batch[1:]] if isinstance(batch, list) else batch


@pytest.mark.parametrize("form", ("list", "tuple", "namedtuple", "tensor"))
def test_foreign_batches_keep_their_form(form):
    fields = tiny_series(12).tensors
    collates = {
        "list": None,
        "tuple": lambda rows: tuple(torch.stack(column) for column in zip(*rows, strict=True)),
        "namedtuple": lambda rows: Pair(*(torch.stack(column) for column in zip(*rows, strict=True))),
        "tensor": lambda rows: torch.stack([row[0] for row in rows]),
    }
    data = augmented(Foreign(fields["x"], fields["y"], collate=collates[form]), ["jitter"], prob=1.0)
    batch = next(iter(data.train_dataloader()))
    out = data.augment_batch(batch, 0, 0)
    assert type(out) is type(batch)
    if form == "tensor":
        assert out.shape == batch.shape and (out != batch).any()
    else:
        assert (out[0] != batch[0]).any((1, 2)).all() and torch.equal(out[1], batch[1])


def test_augmenters_act_before_the_hook_of_the_source():
    fields = tiny_series(12).tensors
    data = augmented(Foreign(fields["x"], fields["y"]), ["jitter"], prob=1.0)
    seen = fit(data, max_epochs=1).epoch(0)
    first = data.augment_batch(next(iter(data.train_dataloader())), 0, 0)[0]
    assert torch.equal(seen[:6], 2 * first)
    assert list(data.val_dataloader()) == [] and list(data.test_dataloader()) == []


def test_ragged_windows_and_half_precision():
    mask = torch.arange(24) < torch.tensor([24, 9, 15])[torch.arange(12) % 3][:, None]
    fields = tiny_series(12).tensors
    items = StackedItems(fields | {"mask": mask, "x": fields["x"] * mask[:, None]})
    data = augmented(ItemsDataModule(items), ["jitter", "time_warp", "phase_perturbation", "interpolate"], prob=1.0)
    out = data.augment_batch(dict(items.tensors), 0, 0)
    assert (out["mask"] <= mask).all() and (out["x"][~out["mask"][:, None].expand(-1, 2, -1)] == 0).all()
    half = {"x": items.tensors["x"].bfloat16(), "mask": mask, "y": fields["y"]}
    assert (
        augmented(ItemsDataModule(items), ["jitter", "scaling"]).augment_batch(half, 0, 0)["x"].dtype == torch.bfloat16
    )


def test_it_passes_the_conformance_suite():
    data = AugmentedDataModule(tiny_datamodule("timeseries"), ["jitter", {"interpolate": {"low": 0.1}}])
    assert set(check_datamodule(data).values()) == {"passed"}
    assert ls.datamodules.AugmentedDataModule is AugmentedDataModule


def test_names_hyperparameters_and_generators():
    fitted = Interpolate().fit_on(tiny_series(20), source().schema)
    data = augmented(augment=["jitter", {"magnitude_warp": {"sigma": 0.3}, "scaling": None}, Jitter(sigma=0.2), fitted])
    data.setup("fit")
    made = data._augmenters
    assert [type(one).__name__ for one in made] == ["Jitter", "MagnitudeWarp", "Scaling", "Jitter", "Interpolate"]
    assert made[1].hparams.sigma == 0.3 and made[3].hparams.sigma == 0.2 and made[4] is fitted
    # Local augmenters know the statistics of the data, and keep none of it.
    assert made[1].schema == data.schema and not len(made[1].bank)
    assert isinstance(augmented(augment={"magnitude_warp": {}})._given[0], MagnitudeWarp)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"augment": ["jiter"]}, UnknownGeneratorError, "jitter"),
        ({"augment": ["diffusion_ts"]}, ConfigError, "DiffusionTS cannot augment"),
        ({"augment": [Bootstrap()]}, ConfigError, "magnitude_warp"),
        ({"augment": ["jitter"], "prob": 1.5}, ConfigError, "prob"),
        ({"augment": ["jitter"], "prob": [0.5, 0.5]}, ConfigError, "one for each of 1"),
        ({"data": [1, 2]}, ConfigError, "LightningDataModule"),
    ],
)
def test_impossible_settings_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        augmented(**options)


def test_other_data_are_refused():
    with pytest.raises(ConfigError, match="time series"):
        augmented(tiny_datamodule("sequence")).setup("fit")
    fitted = Interpolate().fit_on(tiny_series(8, channels=3), tiny_datamodule("timeseries").schema | {"channels": 3})
    with pytest.raises(SchemaMismatchError, match="channels"):
        augmented(augment=[fitted]).setup("fit")
    with pytest.raises(SchemaError, match="without x"):
        augmented().augment_batch({"z": torch.zeros(2)}, 0, 0)
