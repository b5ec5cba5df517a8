"""Trains on a mixture with two processes, saves in the middle of an epoch, and resumes. Usage: FOLDER."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_synth.datamodules import ItemsDataModule, MixedDataModule
from lightning_synth.items import StackedItems
from lightning_synth.mixing import BalanceClasses

REAL, SYNTHETIC, EPOCHS, SAVE_AT = 43, 9, 3, (1, 2)


def windows(n: int, start: int) -> StackedItems:
    x = start + torch.arange(n).float()[:, None, None].repeat(1, 1, 4)
    return StackedItems({"x": x, "y": torch.arange(n) % 5 % 3})


class Net(LightningModule):
    def __init__(self, log: Path) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.log_path, self.steps = torch.nn.Linear(4, 1), log, []

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.steps.append([self.current_epoch, batch["x"][:, 0, 0].int().tolist(), batch["is_synthetic"].tolist()])
        return (self.layer(batch["x"][:, 0] / 1000).square() * batch["weight"][:, None]).mean()

    def on_train_end(self) -> None:
        self.log_path.with_suffix(f".{self.global_rank}").write_text(json.dumps(self.steps))
        torch.save(self.layer.state_dict(), self.log_path.with_suffix(f".pt{self.global_rank}"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Save(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, module: Net, outputs: object, batch: dict, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == SAVE_AT:
            trainer.save_checkpoint(self.path)


def train(folder: Path, name: str, devices: int, num_workers: int, labelled: bool, resume: bool) -> None:
    real = ItemsDataModule(windows(REAL, 0), batch_size=8)
    ratio = BalanceClasses("max") if labelled else 0.25
    data = MixedDataModule(real, windows(SYNTHETIC, 1000), ratio=ratio, batch_size=8, num_workers=num_workers)
    path = folder / "middle.ckpt"
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork",
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if resume else [Save(path)],
        default_root_dir=folder,
    )
    options = {"ckpt_path": path, "weights_only": True} if resume else {}
    trainer.fit(Net(folder / name), data, **options)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    train(folder, "full", 2, 0, False, resume=False)
    train(folder, "resumed", 2, 2, False, resume=True)
    try:
        train(folder, "other", 1, 0, False, resume=True)
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
    train(folder, "labelled", 2, 0, True, resume=False)
