"""Validation and test items never reach a generator of sequences: exchanging them leaves every output bit-identical."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lightning_synth as ls
from lightning_synth.datamodules.interactions import InteractionDataModule
from lightning_synth.registry import get_spec
from lightning_synth.testing.case import quiet, quiet_trainer


def users(held_out_seed: int) -> list[list[int]]:
    """The same training sequences with other validation and test items."""
    train = np.random.default_rng(0)
    held_out = np.random.default_rng(held_out_seed)
    sizes = train.integers(2, 9, 24)
    histories = [(1 + train.permutation(20)[:n]).tolist() for n in sizes]
    return [[*ids, *(1 + held_out.permutation(20)[:2]).tolist()] for ids in histories]


@pytest.mark.parametrize("name", ls.list_generators("sequence", available=True))
def test_other_held_out_items_leave_the_samples_bit_identical(name: str) -> None:
    outputs = []
    for seed in (1, 2):
        data = InteractionDataModule(users(seed), batch_size=8, max_length=12, vocab_size=20)
        generator = ls.get_generator(name)(**get_spec(name).tiny)
        with quiet():
            quiet_trainer(max_steps=4, limit_val_batches=0).fit(generator, datamodule=data)
        outputs.append(generator.sample(12, seed=5).data)
    assert outputs[0].keys() == outputs[1].keys()
    for key in outputs[0]:
        assert torch.equal(outputs[0][key], outputs[1][key]), key


def test_the_held_out_items_do_differ() -> None:
    first, second = (InteractionDataModule(users(seed), vocab_size=20) for seed in (1, 2))
    pairs = zip(first.test_items(), second.test_items(), strict=True)
    assert sum(not torch.equal(a["item_id"], b["item_id"]) for a, b in pairs) > 20
    pairs = zip(first.train_items(), second.train_items(), strict=True)
    assert all(torch.equal(a["item_id"], b["item_id"]) for a, b in pairs)
