"""Bad input of a mixture: each case is a named error before training, or a warning and a documented action."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from lightning_synth.datamodules import ItemsDataModule, MixedDataModule
from lightning_synth.errors import (
    ConfigError,
    DataError,
    EmptyPoolError,
    LeakageError,
    SchemaMismatchError,
    SyntheticInEvaluationError,
)
from lightning_synth.items import StackedItems
from lightning_synth.mixing import WorkerError
from lightning_synth.mixing.filters import ValidityFilter
from lightning_synth.plugins.baselines import Bootstrap
from lightning_synth.pool import SyntheticPool
from lightning_synth.testing import tiny_datamodule
from lightning_synth.testing.tiny import tiny_items, tiny_series


def pool_of(data, n=8):
    return SyntheticPool.generate(Bootstrap().fit_on(data.train_items(), data.schema), n=n, progress=False)


def batches(*args, **options):
    return list(MixedDataModule(*args, **{"batch_size": 8, **options}).train_dataloader())


# ---------------------------------------------------------------- ratios and pools


@pytest.mark.parametrize("ratio", [-0.1, 1.01, float("nan")])
def test_impossible_ratio_is_an_error_at_once(ratio):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        MixedDataModule(tiny_datamodule(), ratio=ratio)


def test_a_ratio_without_room_for_real_items_is_an_error():
    with pytest.raises(ConfigError, match="mode='replace'"):
        batches(tiny_datamodule(), tiny_series(8, seed=5), ratio=1.0)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (ItemsDataModule(tiny_series(8, channels=3)), "channels: expected 2, got 3"),
        (ItemsDataModule(tiny_series(8, length=12)), "length: expected 24, got 12"),
        (tiny_datamodule("graph"), "domain: expected timeseries, got graph"),
    ],
)
def test_schema_mismatch_shows_the_difference(other, difference):
    with pytest.raises(SchemaMismatchError, match=difference):
        batches(tiny_datamodule(), pool_of(other))


def test_pool_items_without_a_field_of_the_real_ones_are_refused():
    real = ItemsDataModule(tiny_series(16, conditions=("rpm",)))
    with pytest.raises(SchemaMismatchError, match=r"lack.*rpm"):
        batches(real, tiny_series(8, seed=5))


def test_empty_pool_is_an_error_or_on_request_a_warning():
    data = tiny_datamodule()
    with pytest.raises(EmptyPoolError, match="allow_empty=True"):
        batches(data, pool_of(data, n=0))
    with pytest.warns(UserWarning, match="training on real items alone"):
        found = batches(data, pool_of(data, n=0), allow_empty=True)
    assert not any(batch["is_synthetic"].any() for batch in found)
    assert batches(data, pool_of(data, n=0), ratio=0.0)


def test_a_pool_emptied_by_filters_says_so():
    with pytest.raises(EmptyPoolError, match=r"rejected by filters.*'ValidityFilter': 8"):
        batches(tiny_datamodule(), tiny_series(8, seed=5), filters=[ValidityFilter(check=lambda item: False)])


def test_small_pool_repeats_with_a_warning():
    with pytest.warns(UserWarning, match="the pool has 2: they repeat"):
        found = batches(tiny_datamodule(), tiny_series(2, seed=5))
    assert [int(batch["is_synthetic"].sum()) for batch in found] == [4, 4, 4, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_pool_is_an_error_that_names_the_place(value):
    x = tiny_series(8, seed=5).tensors["x"].clone()
    x[3, 1, 7] = value
    pool = StackedItems({"x": x, "y": torch.arange(8) % 3})
    with pytest.raises(DataError, match=r"pool 'pool'.*window 3, channel 1, step 7.*ValidityFilter"):
        batches(tiny_datamodule(), pool)
    assert batches(tiny_datamodule(), pool, filters=[ValidityFilter()])


def test_labels_that_the_real_data_do_not_know_are_an_error():
    pool = StackedItems({"x": tiny_series(4, seed=5).tensors["x"], "y": torch.tensor([0, 1, 9, 2])})
    with pytest.raises(DataError, match=r"label y is 9, outside 0..2"):
        batches(tiny_datamodule(), pool)


def test_batch_larger_than_the_data_warns():
    with pytest.warns(UserWarning, match="batch_size 100 is larger than the 20 items"):
        [batch] = batches(tiny_datamodule(), tiny_series(4, seed=5), batch_size=100, ratio=0.2)
    assert int(batch["is_synthetic"].sum()) == 4


# ---------------------------------------------------------------- evaluation data


class Loaders(LightningDataModule):
    def __init__(self, val=None, test=None):
        super().__init__()
        self.sets = {"val": val, "test": test}

    def train_dataloader(self):
        return DataLoader(list(tiny_series(16)), batch_size=8)

    def val_dataloader(self):
        return DataLoader(self.sets["val"], batch_size=8) if self.sets["val"] is not None else []

    def test_dataloader(self):
        return {"a": DataLoader(self.sets["test"], batch_size=8)} if self.sets["test"] is not None else []


def marked(flag):
    return [{**item, "is_synthetic": torch.tensor(flag)} for item in tiny_series(4, seed=7)]


def test_synthetic_items_in_evaluation_are_refused():
    pool = pool_of(tiny_datamodule())
    real = list(tiny_series(4, seed=7))
    for bad in (pool, ConcatDataset([real, pool]), Subset(pool, [0, 1]), marked(True), [*marked(False), *marked(True)]):
        for split in ("val", "test"):
            data = MixedDataModule(Loaders(**{split: bad}), pool, batch_size=8)
            with pytest.raises(SyntheticInEvaluationError, match="validation" if split == "val" else "test"):
                getattr(data, f"{split}_dataloader")()
    assert len(MixedDataModule(Loaders(val=marked(False)), pool).val_dataloader()) == 1


def test_synthetic_items_in_the_splits_of_an_items_datamodule_are_refused_before_training():
    data = tiny_datamodule()
    held_out = StackedItems({**tiny_series(4, seed=7).tensors, "is_synthetic": torch.ones(4, dtype=torch.bool)})
    real = ItemsDataModule(tiny_series(16), held_out)
    with pytest.raises(SyntheticInEvaluationError, match="4 items with is_synthetic"):
        batches(real, pool_of(data))


def test_the_same_window_in_training_and_test_is_refused():
    train, test = tiny_series(16), StackedItems.cat([tiny_series(4, seed=7), tiny_series(16)[5:6]])
    with pytest.raises(LeakageError, match=r"1 of 5 test items are also training items .the first is item 4"):
        batches(ItemsDataModule(train, test_items=test), tiny_series(4, seed=5))
    with pytest.raises(LeakageError, match="validation"):
        data = MixedDataModule(Loaders(val=list(tiny_series(16)[:2])), tiny_series(4, seed=5), batch_size=8)
        data.train_dataloader(), data.val_dataloader()


def test_equal_graphs_in_training_and_test_are_a_warning():
    graphs = tiny_items("graph", 8)
    with pytest.warns(UserWarning, match="1 of 1 test items are also training items"):
        batches(ItemsDataModule(graphs, test_items=graphs[:1], domain="graph"), tiny_items("graph", 4, seed=5))


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("domain", ["timeseries", "graph", "sequence"])
def test_a_generator_trained_on_evaluation_items_is_refused(split, domain):
    train, held_out = tiny_items(domain, 12, seed=0), tiny_items(domain, 6, seed=4)
    real = ItemsDataModule(train, **{f"{split}_items": held_out}, domain=domain)
    honest = pool_of(real)
    assert batches(real, honest)
    everything = StackedItems.cat([train, held_out]) if domain == "timeseries" else [*train, *held_out]
    leaky = pool_of(ItemsDataModule(everything, domain=domain))
    with pytest.raises(LeakageError, match=r"pool 'leaky': 6 of 6 .* items were in the training data of its generator"):
        batches(real, {"honest": honest, "leaky": leaky})


# ---------------------------------------------------------------- real loaders


class OneLoader(LightningDataModule):
    def __init__(self, loader):
        super().__init__()
        self.loader = loader

    def train_dataloader(self):
        return self.loader


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tiny_series(4))


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (lambda: DataLoader(Stream(), batch_size=2), DataError, "IterableDataset"),
        (lambda: DataLoader([{"x": torch.zeros(4, 2, 24)}], batch_size=None), ConfigError, "batch_size=None"),
        (lambda: [1, 2, 3], DataError, "returned list"),
        (lambda: DataLoader([], batch_size=2), DataError, "0 items"),
    ],
)
def test_loaders_that_cannot_be_mixed_are_named(loader, error, message):
    with pytest.raises(error, match=message):
        batches(OneLoader(loader()), tiny_series(4, seed=5))


def test_an_own_sampler_is_replaced_with_a_warning():
    sampler = torch.utils.data.WeightedRandomSampler([1.0] * 16, 16)
    with pytest.warns(UserWarning, match="replaces the order of WeightedRandomSampler"):
        batches(OneLoader(DataLoader(list(tiny_series(16)), batch_size=8, sampler=sampler)), tiny_series(4, seed=5))


# ---------------------------------------------------------------- loading processes


class Faulty(Dataset):
    """Item 5 fails in a way of its choice."""

    def __init__(self, fault):
        self.items, self.fault = tiny_series(16), fault

    def __len__(self):
        return 16

    def __getitem__(self, i):
        if i == 5 and self.fault != "none" and torch.utils.data.get_worker_info() is not None:
            {"error": self.fail, "kill": self.kill, "hang": self.hang}[self.fault]()
        return self.items[i]

    def fail(self):
        raise ValueError("sensor file is truncated")

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self):
        time.sleep(60)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("error", DataError, "real item 5 could not be read: ValueError: sensor file is truncated"),
        ("kill", WorkerError, "most likely for lack of memory.*batch [0-9].*num_workers=0"),
        ("hang", WorkerError, "did not answer.*timed out after 2 seconds"),
    ],
)
def test_failing_workers_say_what_happened_and_where(fault, error, message):
    real = OneLoader(DataLoader(Faulty(fault), batch_size=8))
    data = MixedDataModule(real, tiny_series(4, seed=5), batch_size=8, num_workers=1, timeout=2)
    loader = data.train_dataloader()
    with pytest.raises(error, match=message):
        list(loader)
    loader._iterator = None
