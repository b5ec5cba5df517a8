"""Writes a pool with plain Lightning: python pool_ddp_script.py FOLDER DEVICES BATCH_SIZE STRATEGY ROWS [DIE_AT]."""

from __future__ import annotations

import os
import signal
import sys

import lightning as L
import torch

import lightning_synth as ls
from lightning_synth.testing import tiny_schema


class Noise(ls.Generator):
    """Noise, and a linear map of it."""

    domain = "timeseries"
    conditions = ("label",)

    def build(self, schema):
        self.net = torch.nn.Linear(schema["length"], schema["length"])

    def losses(self, batch, rng):
        return {"loss": self.net.weight.square().sum()}

    def sample_batch(self, requests, rng):
        noise = rng.normal((self.schema["length"],))
        return {"x": torch.stack([noise, self.net(noise)], 1)}


class Die(L.Callback):
    """kill -9 of this rank after some batches, as a scheduler would."""

    def __init__(self, at):
        self.at = at

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, devices, batch_size, strategy, rows, die_at=None):
    torch.set_num_threads(1)
    generator = Noise(schema=tiny_schema("timeseries"))
    generator.is_fitted = True
    writer = ls.PoolWriter(folder, shard_size=8)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=int(devices),
        strategy=strategy,
        logger=False,
        enable_progress_bar=False,
        callbacks=[writer] if die_at is None else [writer, Die(int(die_at))],
    )
    requests = ls.datamodules.RequestDataModule(
        n=int(rows), seed=7, condition={"label": "balanced"}, batch_size=int(batch_size)
    )
    trainer.predict(generator, datamodule=requests, return_predictions=False)
    # Lightning leaves gloo's threads running; at exit they can abort the process.
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
