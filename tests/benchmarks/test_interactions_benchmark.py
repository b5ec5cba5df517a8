"""How fast logs are read, and pairs and operators feed a model: processor time of one core."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from lightning_synth.datamodules import InteractionDataModule
from lightning_synth.datamodules.simulated_interactions import SimulatedInteractions
from lightning_synth.sequences import OPERATORS, PairSampler

pytestmark = pytest.mark.benchmark

#: Sequences that one core must feed in a second; two cores are to feed 50,000.
FEED = 25_000
USERS = 20_000


@pytest.fixture(scope="module")
def simulated():
    return SimulatedInteractions(USERS, 5_000, min_length=5, mean_length=20, repeats=True)


def rate(data):
    """Rows a second of an epoch, the best of three."""
    loader = data.train_dataloader()
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        rows = sum(len(batch["item_id"]) for batch in loader)
        best = max(best, rows / (time.process_time() - start))
    return best


@pytest.mark.parametrize(
    "options",
    [{"augment": [name], "augment_prob": 1.0} for name in OPERATORS] + [{"sampler": PairSampler(1.5, 1, 1)}],
    ids=str,
)
def test_feeding(simulated, options):
    assert rate(InteractionDataModule(simulated, batch_size=512, **options)) > FEED


def test_batches_cost_a_fraction_of_a_loop_over_rows(simulated):
    data = InteractionDataModule(simulated, batch_size=512)
    items = data.train_items()

    def loop():
        for start in range(0, 8192, 512):
            batch = torch.zeros(512, 50, dtype=torch.int64)
            for row, item in zip(batch, items[start : start + 512], strict=True):
                ids = item["item_id"][-50:]
                row[-len(ids) :] = ids

    def ours():
        for start in range(0, 8192, 512):
            items[start : start + 512].padded(50)

    spent = []
    for task in (loop, ours):
        rounds = []
        for _ in range(4):
            start = time.process_time()
            task()
            rounds.append(time.process_time() - start)
        spent.append(min(rounds))
    assert spent[0] > 5 * spent[1], f"{spent[0] / spent[1]:.1f}x"


_LOAD = """
import resource, sys, time
from lightning_synth.datamodules import InteractionDataModule
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
data = InteractionDataModule(sys.argv[1])
data.setup()
print(time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
"""


def test_loading_scales_to_twenty_million_interactions(simulated, tmp_path):
    """Twenty million are to load in 60 s and below 6 GB: a fiftieth of that is loaded, in a process of its own."""
    import pandas as pd

    log = simulated.log()
    table = pd.DataFrame({"user_id": np.repeat(log.user, log.sizes), "item_id": log.item, "timestamp": log.time})
    path = tmp_path / "log.parquet"
    table.sample(frac=1, random_state=0).to_parquet(path)
    found = subprocess.run([sys.executable, "-c", _LOAD, str(path)], capture_output=True, text=True, check=True).stdout
    seconds, mebibytes = map(float, found.split())
    share = len(table) / 20_000_000
    # Start-up of pandas and pyarrow, some seconds and 300 MB, does not grow with the log.
    assert seconds < 60 * share + 3
    assert mebibytes < 6 * 1024 * share + 300
