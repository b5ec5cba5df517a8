"""Phases under plain ddp, which waits for a gradient of every parameter (T3)."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import sys, torch, lightning as L
import torch.distributed as dist
import lightning_synth as ls
from lightning_synth.registry import get_spec
from lightning_synth.testing import tiny_datamodule
from lightning_synth.testing.case import quiet

name, settings = sys.argv[1], eval(sys.argv[2])

class Watched(ls.get_generator(name)):
    def on_train_end(self):
        super().on_train_end()
        vector = torch.cat([p.detach().flatten().double() for p in self.state_dict().values()])
        every = [torch.zeros_like(vector) for _ in range(2)]
        dist.all_gather(every, vector)
        if self.global_rank == 0:
            print("RESULT", torch.equal(*every), self.trainer.global_step)

silent = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
with quiet():
    trainer = L.Trainer(accelerator="cpu", devices=2, max_steps=9, strategy="ddp_fork", **silent)
    model = Watched(**{**get_spec(name).tiny, **settings})
    trainer.fit(model, datamodule=tiny_datamodule("timeseries", n=32, batch_size=4))
"""


@pytest.mark.ddp
@pytest.mark.parametrize(("name", "settings"), [("vq_ts", {}), ("timegan", {"update": "joint"})])
def test_two_processes_stay_equal_through_all_phases(
    name: str, settings: dict[str, Any], run_script: Any, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = run_script(script, name, repr(settings))
    assert "RESULT True 9" in done.stdout, done.stdout + done.stderr[-3000:]
