"""The base: order, splits, early errors, DDP."""

import copy
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import RandomSampler

from lightning_synth.datamodules import EpochSampler, ItemsDataModule
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.items import StackedItems


def items(n, offset=0):
    return StackedItems(
        {"x": torch.arange(offset, offset + n).float()[:, None, None].expand(n, 2, 8), "y": torch.arange(n) % 3}
    )


def order(datamodule, epoch):
    loader = datamodule.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [int(v) for batch in loader for v in batch["x"][:, 0, 0]]


def test_order_is_a_function_of_seed_and_epoch():
    a, b = ItemsDataModule(items(20), batch_size=6), ItemsDataModule(items(20), batch_size=6)
    first = order(a, 0)
    torch.manual_seed(123)
    assert first == order(b, 0) == order(a, 0)
    assert first != order(a, 1) and sorted(order(a, 1)) == list(range(20))
    assert first != order(ItemsDataModule(items(20), batch_size=6, seed=1), 0)


def test_batch_size_does_not_change_the_order():
    assert order(ItemsDataModule(items(20), batch_size=3), 2) == order(ItemsDataModule(items(20), batch_size=7), 2)


def test_loaders_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    sampler_order = list(EpochSampler(range(10), seed=3))
    assert torch.equal(state, torch.random.get_rng_state()) and len(sampler_order) == 10


def test_same_order_with_workers():
    data = ItemsDataModule(items(12), batch_size=5, num_workers=1)
    assert order(data, 1) == order(ItemsDataModule(items(12), batch_size=5), 1)


def test_schema_comes_from_training_items_alone():
    a = ItemsDataModule(items(9), items(3), items(4))
    b = ItemsDataModule(items(9), items(3, 100), items(4, 1000))
    assert a.schema == b.schema and a.schema["num_train"] == 9
    assert type(a.schema) is dict


def test_given_schema_is_kept():
    schema = ItemsDataModule(items(9)).schema | {"sampling_rate": 5.0}
    assert ItemsDataModule(items(9), schema=schema).schema["sampling_rate"] == 5.0


def test_evaluation_loaders_keep_the_order():
    data = ItemsDataModule(items(4), items(5), items(6), batch_size=2)
    assert [int(v) for b in data.val_dataloader() for v in b["x"][:, 0, 0]] == list(range(5))
    assert [int(v) for b in data.test_dataloader() for v in b["x"][:, 0, 0]] == list(range(6))


def test_lists_of_items_work():
    listed = [dict(item) for item in items(5)]
    batch = next(iter(ItemsDataModule(listed, batch_size=4).train_dataloader()))
    assert batch["x"].shape == (4, 2, 8) and batch["y"].dtype == torch.int64


def test_empty_training_is_an_error():
    with pytest.raises(DataError, match="0 training items"):
        ItemsDataModule([]).setup("fit")


def test_bad_items_of_any_split_fail_before_training():
    bad = items(4)
    bad.tensors["x"] = bad.tensors["x"].clone()
    bad.tensors["x"][2, 1, 5] = float("nan")
    for splits, name in (((bad,), "training"), ((items(4), bad), "validation"), ((items(4), None, bad), "test")):
        with pytest.raises(DataError, match=rf"{name} data: .*window 2, channel 1, step 5"):
            ItemsDataModule(*splits).setup("fit")


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"num_workers": -1}])
def test_impossible_settings(bad):
    with pytest.raises(ConfigError):
        ItemsDataModule(items(3), **bad)


def test_batch_larger_than_data_warns():
    with pytest.warns(UserWarning, match="batch_size 64 is larger than the 3"):
        loader = ItemsDataModule(items(3)).train_dataloader()
    assert len(loader) == 1


def test_copies_and_pickles():
    data = ItemsDataModule(items(6), batch_size=2)
    assert order(copy.deepcopy(data), 1) == order(pickle.loads(pickle.dumps(data)), 1) == order(data, 1)


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch["x"][:, 0, 0].int().tolist())
        return self.w * batch["x"].mean()

    def validation_step(self, batch, _):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_trainer_without_validation_and_with_epochs(trainer_kwargs):
    data, model = ItemsDataModule(items(7), batch_size=3), Recorder()
    Trainer(max_epochs=2, **trainer_kwargs).fit(model, data)
    flat = [v for batch in model.seen for v in batch]
    assert flat[:7] == order(data, 0) and flat[7:] == order(data, 1)


DDP = """
    import json, sys, torch
    import torch.distributed as dist
    from lightning.pytorch import LightningModule, Trainer
    from lightning_synth.datamodules import ItemsDataModule
    from lightning_synth.items import StackedItems

    class Recorder(LightningModule):
        def __init__(self):
            super().__init__()
            self.w, self.seen = torch.nn.Parameter(torch.zeros(())), []
        def training_step(self, batch, _):
            self.seen += batch["x"][:, 0, 0].int().tolist()
            return self.w * batch["x"].mean()
        def on_train_end(self):
            with open(f"{sys.argv[1]}/{self.global_rank}.json", "w") as file:
                json.dump(self.seen, file)
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    if __name__ == "__main__":
        x = torch.arange(12.0)[:, None, None].expand(12, 2, 8)
        trainer = Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_fork", logger=False,
                          enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.fit(Recorder(), ItemsDataModule(StackedItems({"x": x}), batch_size=3))
"""


@pytest.mark.ddp
def test_two_processes_share_one_order(run_script, tmp_path):
    import json

    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(DDP))
    assert run_script(script, tmp_path).returncode == 0
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    x = torch.arange(12.0)[:, None, None].expand(12, 2, 8)
    single = order(ItemsDataModule(StackedItems({"x": x}), batch_size=3), 0)
    assert [v for pair in zip(*ranks, strict=True) for v in pair] == single


def test_our_sampler_is_kept_by_lightning():
    assert not isinstance(ItemsDataModule(items(5), batch_size=2).train_dataloader().sampler, RandomSampler)


def test_import_from_the_wrong_place():
    code = "import importlib.util as u, sys; s = u.spec_from_file_location('datamodules', sys.argv[1]); "
    code += "m = u.module_from_spec(s); s.loader.exec_module(m)"
    import lightning_synth.datamodules as package

    done = subprocess.run([sys.executable, "-c", code, package.__file__], capture_output=True, text=True)
    assert done.returncode != 0 and "import lightning_synth.datamodules" in done.stderr
