"""Two processes under plain Lightning: exact composition on both ranks, every real item once, exact resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("mixed_ddp_script.py")
REAL, EPOCHS = 43, 3


@pytest.fixture(scope="module")
def run(run_script, tmp_path_factory):
    """Steps of each run and rank, final weights, and what was printed."""
    folder = tmp_path_factory.mktemp("ddp")
    done = run_script(SCRIPT, folder)
    assert done.returncode == 0, done.stderr[-4000:]
    names = ("full", "resumed", "labelled")
    logs = {name: [json.loads((folder / f"{name}.{rank}").read_text()) for rank in (0, 1)] for name in names}
    weights = [torch.load(folder / f"{name}.pt{rank}")["weight"] for name in names[:2] for rank in (0, 1)]
    return logs, weights, done.stdout


def epoch_of(ranks, epoch):
    return [(items, flags) for steps in ranks for e, items, flags in steps if e == epoch]


@pytest.mark.ddp
def test_two_processes_mix_exactly_and_resume(run):
    logs, weights, output = run
    full = logs["full"]
    assert len(full[0]) == len(full[1])
    orders = []
    for epoch in range(EPOCHS):
        batches = epoch_of(full, epoch)
        for items, flags in batches:
            assert flags == [item >= 1000 for item in items]
            assert sum(flags) == round(0.25 * len(items)) and 1 <= len(items) <= 8
        assert sorted(item for items, _ in batches for item in items if item < 1000) == list(range(REAL))
        orders.append([items for items, _ in batches])
    # Another order in every epoch, and other synthetic items in the cycles of one.
    assert orders[0] != orders[1] != orders[2]
    # The checkpoint holds one loader state; with worker processes, both ranks go on from it.
    for rank in (0, 1):
        steps = len(full[rank]) // EPOCHS
        assert logs["resumed"][rank] == full[rank][steps + 3 :]
    assert all(torch.equal(weights[0], other) for other in weights[1:])
    # The middle of an epoch cannot be continued on another number of processes.
    name, message = json.loads(output.splitlines()[-1])
    assert "world_size was 2, is 1" in message, (name, message)


@pytest.mark.ddp
def test_two_processes_fill_classes_exactly(run):
    logs = run[0]
    real, pool = torch.arange(REAL) % 5 % 3, torch.arange(9) % 5 % 3
    for epoch in range(EPOCHS):
        items = torch.tensor([item for batch, _ in epoch_of(logs["labelled"], epoch) for item in batch])
        labels = torch.cat([real[items[items < 1000]], pool[items[items >= 1000] - 1000]])
        assert torch.bincount(labels).tolist() == [int(torch.bincount(real).max())] * 3
