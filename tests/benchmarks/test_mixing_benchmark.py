"""Mixing against a plain DataLoader of the same items, as ratios within one run."""

from __future__ import annotations

import gc
import time

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from lightning_synth.datamodules import ItemsDataModule, MixedDataModule
from lightning_synth.items import StackedItems
from lightning_synth.testing import tiny_datamodule

ALLOWED = 1.05
ROUNDS = 9


def windows(n, length, seed):
    draw = torch.Generator().manual_seed(seed)
    return StackedItems({"x": torch.randn(n, 2, length, generator=draw), "y": torch.arange(n) % 4})


class Tuples(LightningDataModule):
    """A user's own DataModule: tuple batches, default collate."""

    def __init__(self, items):
        super().__init__()
        self.items = items

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.items.tensors["x"], self.items.tensors["y"]), batch_size=64, shuffle=True)


def ratio(plain, mixed):
    """Time an item takes in mixed batches over that in plain ones: the shortest of several rounds in turn.

    CPU time, and the shortest round: other jobs on the machine can only lengthen a round.
    """

    def seconds(loader):
        start = time.process_time()
        items = sum(len(batch["y"] if isinstance(batch, dict) or hasattr(batch, "y") else batch[1]) for batch in loader)
        return (time.process_time() - start) / items

    seconds(plain), seconds(mixed)
    gc.collect()
    gc.disable()
    try:
        rounds = [(seconds(plain), seconds(mixed)) for _ in range(ROUNDS)]
    finally:
        gc.enable()
    return min(mixed for _, mixed in rounds) / min(plain for plain, _ in rounds)


def loaders(kind):
    """A plain loader of real and synthetic items together, and the mixed loader of the two."""
    if kind == "graphs":
        real, extra = tiny_datamodule("graph", n=1024, batch_size=64), tiny_datamodule("graph", n=1024).train_items()
        both = [*real.train_items(), *extra]
        plain = DataLoader(both, batch_size=64, shuffle=True, collate_fn=real.train_dataloader().collate_fn)
        pool = extra
    else:
        length = {"short windows": 64, "long windows": 1024, "tuples": 64}[kind]
        items, pool = windows(4096, length, 0), windows(4096, length, 1)
        if kind == "tuples":
            real = Tuples(items)
            parts = [TensorDataset(part.tensors["x"], part.tensors["y"]) for part in (items, pool)]
            plain = DataLoader(ConcatDataset(parts), batch_size=64, shuffle=True)
        else:
            real = ItemsDataModule(items, batch_size=64)
            collate = real.train_dataloader().collate_fn
            plain = DataLoader(StackedItems.cat([items, pool]), batch_size=64, shuffle=True, collate_fn=collate)
    return plain, MixedDataModule(real, pool, ratio=0.5, batch_size=64).train_dataloader()


@pytest.mark.benchmark
@pytest.mark.parametrize("kind", ["short windows", "long windows", "tuples", "graphs"])
def test_mixing_costs_at_most_five_percent(kind):
    plain, mixed = loaders(kind)
    # A busy machine disturbs single runs: the best of five attempts counts.
    measured = []
    for _ in range(5):
        measured.append(ratio(plain, mixed))
        print(f"{kind}: mixed / plain = {measured[-1]:.3f}")
        if measured[-1] <= ALLOWED:
            break
    assert min(measured) <= ALLOWED, measured
