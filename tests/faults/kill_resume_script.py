"""Trains, is killed, resumes. Run as a script: it imports Lightning once and forks a process for each run.

Usage: kill_resume_script.py FOLDER POINTS; prints one JSON line with what happened.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import traceback
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_synth.datamodules import ItemsDataModule, MixedDataModule
from lightning_synth.items import StackedItems

EPOCHS, REAL, SYNTHETIC = 3, 37, 11
PLACES = ("on_train_batch_start", "on_before_optimizer_step", "on_save_checkpoint", "on_train_batch_end")


def windows(n: int, start: int) -> StackedItems:
    x = start + torch.arange(n).float()[:, None, None].repeat(1, 1, 4)
    return StackedItems({"x": x, "y": torch.arange(n) % 3})


def data() -> MixedDataModule:
    real = ItemsDataModule(windows(REAL, 0), windows(4, 500), batch_size=8)
    return MixedDataModule(real, windows(SYNTHETIC, 1000), ratio=0.25, batch_size=8)


class Net(LightningModule):
    """Appends the items of every step to a file, so that they outlive the process."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.path = torch.nn.Linear(4, 3), log

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        with open(self.path, "a") as file:
            print(json.dumps([self.current_epoch, batch["x"][:, 0, 0].int().tolist()]), file=file)
        loss = torch.nn.functional.cross_entropy(self.layer(batch["x"][:, 0] / 1000), batch["y"], reduction="none")
        return (loss * batch["weight"]).mean()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.log("val", self.layer(batch["x"][:, 0]).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


class Kill(Callback):
    """Sends a signal to its own process at a step; the fourth argument says where in the step."""

    def __init__(self, step: int, place: str, number: int) -> None:
        setattr(self, place, lambda trainer, *_: self.fire(trainer, step, number))

    def fire(self, trainer: Trainer, step: int, number: int) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), number)


def train(folder: Path, name: str, callbacks: list[Callback]) -> None:
    last = folder / "last.ckpt"
    saver = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=1, save_on_exception=True)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, saver],
        default_root_dir=folder,
    )
    model = Net(folder / f"{name}.log")
    trainer.fit(model, data(), ckpt_path=last if last.exists() else None, weights_only=True if last.exists() else None)
    torch.save(model.state_dict(), folder / f"{name}.pt")


def in_child(folder: Path, name: str, callbacks: list[Callback]) -> int:
    """Run a training in a forked process; returns its wait status."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if not child:
        try:
            train(folder, name, callbacks)
            os._exit(0)
        except SystemExit as stop:
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
    return os.waitpid(child, 0)[1]


def steps(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def once(log: list) -> bool:
    """Whether every real item occurs exactly once in every epoch."""
    seen = [[i for e, batch in log for i in batch if e == epoch and i < 1000] for epoch in range(EPOCHS)]
    return all(sorted(epoch) == list(range(REAL)) for epoch in seen)


def compare(folder: Path, reference: Path, place: str, step: int, number: int) -> dict:
    """Interrupt a training, resume it, and compare it with the uninterrupted one."""
    status = in_child(folder, "killed", [Kill(step, place, number)])
    saved = folder / "last.ckpt"
    done = torch.load(saved, weights_only=True)["global_step"] if saved.exists() else 0
    resumed = in_child(folder, "resumed", [])
    full = steps(reference / "full.log")
    log = steps(folder / "killed.log")[:done] + steps(folder / "resumed.log")
    a, b = (torch.load(path, weights_only=True) for path in (reference / "full.pt", folder / "resumed.pt"))
    return {
        "place": place,
        "step": step,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "done": done,
        "resumed": resumed,
        "same_steps": log == full,
        "once": once(log),
        "same_weights": all(torch.equal(a[key], b[key]) for key in a),
    }


def main() -> None:
    root, points = Path(sys.argv[1]), int(sys.argv[2])
    in_child(root / "full", "full", [])
    total = len(steps(root / "full" / "full.log"))
    draw = random.Random(0)
    # Every place in a step is met; the step is random.
    plan = [(PLACES[i % len(PLACES)], draw.randrange(1, total)) for i in range(points)]
    found = [compare(root / str(i), root / "full", place, step, signal.SIGKILL) for i, (place, step) in enumerate(plan)]
    found.append(compare(root / "term", root / "full", "on_train_batch_start", total // 2, signal.SIGTERM))
    print(json.dumps({"total": total, "once": once(steps(root / "full" / "full.log")), "runs": found}))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    main()
