"""MixedDataModule: batches as the real DataModule's, exact composition, real evaluation data, resuming."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_synth.datamodules import ItemsDataModule, MixedDataModule
from lightning_synth.errors import CheckpointError, ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.mixing import Anneal, BalanceClasses
from lightning_synth.mixing.filters import NoveltyFilter
from lightning_synth.pool import SyntheticPool
from lightning_synth.schema import collate
from lightning_synth.testing import tiny_datamodule
from lightning_synth.testing.tiny import tiny_items, tiny_series

REAL, SYNTHETIC, START = 20, 7, 1000


def numbered(n, start=0, classes=2):
    """Windows that hold their own number."""
    x = start + torch.arange(n).float()[:, None, None].repeat(1, 1, 4)
    return StackedItems({"x": x, "y": torch.arange(n) % classes})


def numbers(batch):
    x = batch["x"] if isinstance(batch, dict) else batch[0]
    return x[:, 0, 0].int().tolist()


def mixed(real=None, pool="numbered", **options):
    real = real or ItemsDataModule(numbered(REAL), numbered(4, 500), numbered(4, 600), batch_size=8)
    pool = numbered(SYNTHETIC, START) if isinstance(pool, str) and pool == "numbered" else pool
    return MixedDataModule(real, pool, **{"ratio": 0.25, "batch_size": 8, **options})


def pool_of(real, n=10):
    from lightning_synth.plugins.baselines import Bootstrap

    return SyntheticPool.generate(Bootstrap().fit_on(real.train_items(), real.schema), n=n, progress=False)


class Foreign(LightningDataModule):
    """A user's own DataModule: loaders only."""

    def __init__(self, dataset, held_out=None, **loader):
        super().__init__()
        self.dataset, self.held_out, self.loader = dataset, held_out, loader

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=8, shuffle=True, **self.loader)

    def val_dataloader(self):
        return DataLoader(self.held_out, batch_size=8) if self.held_out is not None else []


class Pairs(Dataset):
    """(numpy window, Python int) pairs."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]["x"].numpy(), int(self.items[i]["y"])


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.seen, self.real_only = torch.nn.Linear(4, 1), [], None

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, numbers(batch)))
        return (self.layer(batch["x"][:, 0] / 1000).square() * batch["weight"][:, None]).mean()

    def validation_step(self, batch, batch_idx):
        assert "is_synthetic" not in batch

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def fit(data, model=None, callbacks=(), ckpt_path=None, **options):
    model = model or Net()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", **{"max_epochs": 3, "callbacks": list(callbacks), **quiet, **options})
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return model


# ---------------------------------------------------------------- what a batch is


def test_batch_holds_real_then_synthetic_items_and_their_provenance():
    batches = list(mixed().train_dataloader())
    for batch in batches:
        assert list(batch) == ["x", "y", "is_synthetic", "weight"]
        assert batch["is_synthetic"].dtype == torch.bool and batch["weight"].dtype == torch.float32
        assert batch["is_synthetic"].tolist() == [number >= START for number in numbers(batch)]
        assert int(batch["is_synthetic"].sum()) == round(0.25 * len(batch["x"]))
    real = [number for batch in batches for number in numbers(batch) if number < START]
    assert sorted(real) == list(range(REAL))


def test_same_items_whatever_container_they_come_in():
    """Stacked, list of dicts, and workers give bit-equal batches."""
    reference = list(mixed().train_dataloader())
    listed = ItemsDataModule(list(numbered(REAL)), batch_size=8)
    for other in (mixed(listed), mixed(pool=list(numbered(SYNTHETIC, START))), mixed(num_workers=2)):
        for a, b in zip(reference, other.train_dataloader(), strict=True):
            assert list(a) == list(b)
            assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize("kind", ["tensors", "numpy"])
def test_tuple_batches_keep_arity_order_and_dtypes(kind):
    items = numbered(REAL)
    dataset = TensorDataset(items.tensors["x"], items.tensors["y"]) if kind == "tensors" else Pairs(items)
    data = mixed(Foreign(dataset))
    plain = next(iter(data.real.train_dataloader()))
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for i, batch in enumerate(loader):
            assert type(batch) is type(plain) and len(batch) == 2
            assert [part.dtype for part in batch] == [part.dtype for part in plain]
            origin = data.provenance(i)
            assert origin.is_synthetic.tolist() == [number >= START for number in numbers(batch)]
            assert [number % START for number in numbers(batch)] == origin.rows.tolist()
            assert data.provenance(i, epoch).rows.tolist() == origin.rows.tolist()
    assert data.schema["layout"] == ["x", "y"]


@pytest.mark.parametrize("domain", ["graph", "molecule", "sequence"])
def test_other_domains(domain):
    real = tiny_datamodule(domain, n=16, batch_size=8)
    data = MixedDataModule(real, tiny_items(domain, 6, seed=0), ratio=0.25, batch_size=8)
    plain = next(iter(real.train_dataloader()))
    sizes = []
    for batch in data.train_dataloader():
        assert type(batch) is type(plain)
        flags = batch["is_synthetic"]
        assert len(flags) == len(batch["weight"]) and int(flags.sum()) == round(0.25 * len(flags))
        sizes.append(len(flags))
        keys = set(batch.keys()) - set(plain.keys())
        assert keys == {"is_synthetic", "weight"}
    assert sizes == [8, 8, 5]


def test_node_domain_trains_on_the_augmented_graph():
    real = tiny_datamodule("node")
    graph = real.train_items()[0]
    extra = graph.clone()
    grown = graph.num_nodes + 10
    for key in ("x", "y", "train_mask", "val_mask", "test_mask"):
        extra[key] = torch.cat([graph[key], graph[key][:10]])
    extra.num_nodes = grown
    data = MixedDataModule(real, [extra])
    [batch] = list(data.train_dataloader())
    assert batch.num_nodes == grown
    assert batch.is_synthetic.tolist() == [False] * graph.num_nodes + [True] * 10
    train = batch.train_mask
    assert batch.weight[train & batch.is_synthetic].sum() <= batch.weight[train & ~batch.is_synthetic].sum()
    assert "is_synthetic" not in graph and "is_synthetic" not in extra
    [plain] = list(MixedDataModule(real, [extra], ratio=0.0).train_dataloader())
    assert plain.num_nodes == graph.num_nodes and not plain.is_synthetic.any()


def test_dtypes_and_extra_fields_of_the_pool_follow_the_real_items():
    pool = numbered(SYNTHETIC, START)
    pool = StackedItems({"rpm": torch.zeros(SYNTHETIC), "y": pool.tensors["y"].int(), "x": pool.tensors["x"]})
    batch = next(iter(mixed(pool=pool).train_dataloader()))
    assert list(batch) == ["x", "y", "is_synthetic", "weight"] and batch["y"].dtype == torch.int64


# ---------------------------------------------------------------- policies and pools


def test_no_pool_is_real_only():
    batches = list(mixed(pool=None).train_dataloader())
    assert [len(batch["x"]) for batch in batches] == [8, 8, 4]
    assert not any(batch["is_synthetic"].any() for batch in batches)


def test_several_pools_keep_their_names():
    data = mixed(pool={"a": numbered(3, START), "b": list(numbered(4, 2 * START))}, ratio=0.5)
    data.train_dataloader()
    assert data.sources == ("a", "b")
    found = set()
    for i, batch in enumerate(data.train_dataloader()):
        source = data.provenance(i).source.tolist()
        assert [number // START for number in numbers(batch)] == [s + 1 for s in source]
        found |= set(source)
    assert found == {-1, 0, 1}


def test_balance_and_match_through_the_datamodule():
    labels = torch.tensor([0] * 15 + [1] * 5)
    real = ItemsDataModule(StackedItems({"x": numbered(20).tensors["x"], "y": labels}), batch_size=8)
    y = torch.cat([batch["y"] for batch in mixed(real, ratio=BalanceClasses("max")).train_dataloader()])
    assert torch.bincount(y).tolist() == [15, 15]
    for batch in mixed(real, ratio=0.5, match="label").train_dataloader():
        half = len(batch["y"]) // 2
        assert torch.equal(batch["y"][:half], batch["y"][half:])


def test_weight_cap():
    data = mixed(ratio=0.75)
    weight = torch.cat([batch["weight"] for batch in data.train_dataloader()])
    synthetic = torch.cat([batch["is_synthetic"] for batch in data.train_dataloader()])
    assert weight[synthetic].sum() == pytest.approx(float(weight[~synthetic].sum()))
    assert {float(w) for w in next(iter(mixed(weight=0.5).train_dataloader()))["weight"]} == {1.0, 0.5}


def test_epoch_items_are_those_of_the_loader():
    for real in (None, Foreign(Pairs(numbered(REAL)))):
        data = mixed(real, ratio=0.75)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(2)
        items, weight, is_synthetic = data.epoch_items(epoch=2)
        assert len(items) == len(weight) == len(is_synthetic)
        seen = sorted(number for batch in loader for number in numbers(batch))
        assert sorted(int(item["x"][0, 0]) for item in items) == seen
        assert [int(item["x"][0, 0]) >= START for item in items] == is_synthetic.tolist()
        assert weight[is_synthetic].sum() <= (~is_synthetic).sum() + 1e-4


def test_filters_run_once_and_report():
    pool = StackedItems.cat([numbered(SYNTHETIC, START), numbered(3)])
    data = mixed(pool=pool, filters=[NoveltyFilter(0.0)])
    data.train_dataloader()
    assert data.filter_report["NoveltyFilter"]["all"] == {"total": 10, "rejected": 3, "rate": 0.3}
    used = {number for batch in data.train_dataloader() for number in numbers(batch) if number >= START}
    # Row numbers of provenance count the items that are left.
    assert used <= set(range(START, START + SYNTHETIC))


def test_pool_from_disk_gives_the_same_batches(tmp_path):
    real = tiny_datamodule("timeseries", n=24)
    pool = pool_of(real)
    pool.save(tmp_path / "pool")
    for a, b in zip(
        MixedDataModule(real, pool, batch_size=8).train_dataloader(),
        MixedDataModule(real, str(tmp_path / "pool"), batch_size=8).train_dataloader(),
        strict=True,
    ):
        assert torch.equal(a["x"], b["x"])


def test_pools_above_the_memory_limit_are_read_batch_by_batch(monkeypatch):
    from lightning_synth.mixing import dataset as mixed_dataset

    reference = list(mixed().train_dataloader())
    monkeypatch.setattr(mixed_dataset, "MEMORY_LIMIT", 0)

    class Rows:
        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __getitem__(self, i):
            return self.items[i]

    for a, b in zip(reference, mixed(pool=Rows(numbered(SYNTHETIC, START))).train_dataloader(), strict=True):
        assert torch.equal(a["x"], b["x"])


# ---------------------------------------------------------------- with a Trainer


def test_training_sees_every_real_item_once_an_epoch_and_validation_only_real_ones():
    model = fit(mixed())
    for epoch in range(3):
        seen = [number for e, batch in model.seen for number in batch if e == epoch]
        assert sorted(number for number in seen if number < START) == list(range(REAL))
    assert model.seen[0][1] != model.seen[4][1]


def test_anneal_trains_on_all_batches_of_every_epoch():
    model = fit(mixed(ratio=Anneal(0.5, 0.0, epochs=3)))
    for epoch in range(3):
        seen = [number for e, batch in model.seen for number in batch if e == epoch]
        assert sorted(number for number in seen if number < START) == list(range(REAL))
    assert not any(number >= START for e, batch in model.seen for number in batch if e == 2)


def test_hooks_of_the_real_datamodule_run():
    class Hooked(ItemsDataModule):
        calls: list = []

        def prepare_data(self):
            self.calls.append("prepare")

        def setup(self, stage=None):
            assert self.trainer is not None
            self.calls.append(stage)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.calls.append("transfer")
            return batch

        def teardown(self, stage=None):
            self.calls.append("teardown")

    fit(mixed(Hooked(numbered(REAL), batch_size=8)), max_epochs=1, limit_train_batches=1)
    assert Hooked.calls == ["prepare", "fit", "transfer", "teardown"]


class SaveAt(Callback):
    """Writes a checkpoint the k-th time a hook is called."""

    def __init__(self, hook, count, path):
        self.count = count
        setattr(self, hook, lambda trainer, *_: self.save(trainer, path))

    def save(self, trainer, path):
        self.count -= not trainer.sanity_checking
        if self.count == 0 and not trainer.sanity_checking:
            trainer.save_checkpoint(path)


class Scheduled(Net):
    """Asks for the number of steps: the Trainer then builds the loader before it loads the checkpoint."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 12
        return super().configure_optimizers()


@pytest.mark.parametrize(
    ("hook", "count", "done"),
    [("on_train_batch_end", i, i) for i in (1, 4, 6, 12)]
    + [("on_train_batch_start", 3, 2), ("on_validation_end", 2, 8), ("on_train_epoch_end", 1, 4)],
)
@pytest.mark.parametrize("model", [Net, Scheduled])
def test_resumed_training_equals_the_uninterrupted_one(tmp_path, hook, count, done, model):
    path = tmp_path / "at.ckpt"
    full = fit(mixed(), model(), [SaveAt(hook, count, path)])
    resumed = fit(mixed(), model(), ckpt_path=path)
    assert resumed.seen == full.seen[done:]
    assert torch.equal(full.layer.weight, resumed.layer.weight)


def test_resume_refuses_other_batches_in_the_middle_of_an_epoch(tmp_path):
    fit(mixed(), callbacks=[SaveAt("on_train_batch_end", 2, tmp_path / "mid.ckpt")])
    fit(mixed(), callbacks=[SaveAt("on_train_epoch_end", 1, tmp_path / "end.ckpt")])
    with pytest.raises(CheckpointError, match="batch_size was 8, is 4"):
        fit(mixed(batch_size=4), ckpt_path=tmp_path / "mid.ckpt")
    model = fit(mixed(batch_size=4), ckpt_path=tmp_path / "end.ckpt")
    assert {e for e, _ in model.seen} == {1, 2}


def test_evaluating_a_checkpoint_does_not_move_a_later_fit(tmp_path):
    data = mixed()
    full = fit(data, callbacks=[SaveAt("on_train_batch_end", 2, tmp_path / "mid.ckpt")])
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(accelerator="cpu", **quiet).validate(Net(), data, ckpt_path=tmp_path / "mid.ckpt", verbose=False)
    assert fit(data).seen == full.seen


def test_reloading_the_loader_every_epoch_changes_nothing():
    assert fit(mixed(), reload_dataloaders_every_n_epochs=1).seen == fit(mixed()).seen


class Wide(Net):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(24, 1)


def test_nested_under_the_command_line(tmp_path):
    """Under LightningCLI all DataModules below `data` share hyper-parameters; the checkpoint must load weights_only."""
    from lightning.pytorch.cli import LightningCLI

    splits = {"train": tiny_series(24), "test": tiny_series(8, seed=2)}
    pool = pool_of(ItemsDataModule(splits["train"])).save(tmp_path / "pool")
    arrays = {f"{name}_{split}": items.tensors[name].tolist() for split, items in splits.items() for name in ("x", "y")}
    package = "lightning_synth"
    options = {
        "real": {"class_path": f"{package}.datamodules.ArrayDataModule", "init_args": arrays},
        "pool": {"a": str(pool)},
        "ratio": {"class_path": f"{package}.mixing.Anneal", "init_args": {"start": 0.5, "end": 0.0, "epochs": 3}},
        "filters": [{"class_path": f"{package}.mixing.NoveltyFilter", "init_args": {"quantile": 0.0}}],
        "batch_size": 8,
        "allow_empty": True,
    }
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    config = {
        "trainer": {**quiet, "max_steps": 2, "default_root_dir": str(tmp_path)},
        "data": {"class_path": f"{package}.datamodules.MixedDataModule", "init_args": options},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    args = ["fit", "--config", str(path)]
    cli = LightningCLI(Wide, LightningDataModule, subclass_mode_data=True, save_config_callback=None, args=args)
    assert isinstance(cli.datamodule.policy, Anneal) and cli.datamodule.sources == ("a",)
    [saved] = tmp_path.glob("checkpoints/*.ckpt")
    assert "MixedDataModule" in torch.load(saved, weights_only=True)


def test_overfit_batches_is_a_clear_error():
    with pytest.raises(ConfigError, match="limit_train_batches"):
        fit(mixed(), overfit_batches=1)


# ---------------------------------------------------------------- no leak


def test_changing_validation_and_test_items_leaves_the_mix_bit_identical():
    def batches(shift):
        real = ItemsDataModule(numbered(REAL), numbered(4, 500 + shift), numbered(9, 700 + shift), batch_size=8)
        found = []
        data = mixed(real, filters=[NoveltyFilter(0.1)])
        for epoch in range(2):
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            found += list(loader)
        return found

    for a, b in zip(batches(0), batches(50), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_evaluation_loaders_are_the_real_ones():
    data = mixed()
    assert [numbers(batch) for batch in data.val_dataloader()] == [[500, 501, 502, 503]]
    assert [numbers(batch) for batch in data.test_dataloader()] == [[600, 601, 602, 603]]
    assert len(data.val_items()) == len(data.test_items()) == 4 and len(data.train_items()) == REAL
    assert mixed(Foreign(Pairs(numbered(REAL)))).test_dataloader() == []


def test_batches_equal_those_that_the_real_collate_makes():
    data = mixed()
    schema = data.schema
    for i, batch in enumerate(data.train_dataloader()):
        origin = data.provenance(i)
        rows = [
            numbered(SYNTHETIC, START)[int(r)] if s else numbered(REAL)[int(r)]
            for r, s in zip(origin.rows, origin.is_synthetic, strict=True)
        ]
        expected = collate(rows, schema)
        assert all(torch.equal(batch[key], value) for key, value in expected.items())


def test_options_are_checked_at_once():
    with pytest.raises(ConfigError, match="already"):
        MixedDataModule(mixed())
    with pytest.raises(ConfigError, match="LightningDataModule"):
        MixedDataModule(np.zeros(3))
    with pytest.raises(ConfigError, match="pool is a list"):
        MixedDataModule(tiny_datamodule("timeseries"), ["one", "other"])
    with pytest.raises(ConfigError, match="batch_size"):
        mixed(batch_size=0)
