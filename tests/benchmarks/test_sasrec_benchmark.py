"""Cost of training SASRec: against the same network over padded batches, as public versions compute it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_synth.downstream import SASRec
from lightning_synth.schema import collate, describe
from lightning_synth.sequences.items import SequenceItems

pytestmark = pytest.mark.benchmark

VOCAB, LENGTH, DIM = 12_000, 50, 64


def cpu_seconds(job: Callable[[], Any]) -> float:
    """CPU time, so that other processes on the machine do not count; the quietest of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        job()
        times.append(time.process_time() - start)
    return min(times)


class PaddedSASRec(nn.Module):
    """The usual way: every row padded to the longest possible one, and one binary negative for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(VOCAB + 1, DIM, padding_idx=0), nn.Embedding(LENGTH, DIM)
        layer = nn.TransformerEncoderLayer(DIM, 1, DIM, 0.2, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, nn.LayerNorm(DIM), enable_nested_tensor=False)
        self.causal = nn.Transformer.generate_square_subsequent_mask(LENGTH)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        seen, wanted = F.pad(ids, (1, 0))[:, :-1], ids
        states = self.blocks(self.items(seen) + self.positions.weight, mask=self.causal)
        negative = torch.randint(1, VOCAB + 1, wanted.shape)
        scores = [(states * self.items(other)).sum(2) for other in (wanted, negative)]
        return (F.softplus(-scores[0]) + F.softplus(scores[1]))[wanted > 0].mean()


def short_users(users: int) -> dict[str, torch.Tensor]:
    """Lengths as on Amazon Beauty: most users have fewer than eight items, one in twenty has more than twenty."""
    draw = np.random.default_rng(0)
    lengths = (2 + draw.geometric(0.22, users)).clip(max=LENGTH)
    lengths[:: users // 6] = draw.integers(20, LENGTH, len(lengths[:: users // 6]))
    items = SequenceItems.from_lists([draw.integers(1, VOCAB + 1, n).tolist() for n in lengths])
    return collate(items, {**describe(items, "sequence", vocab_size=VOCAB), "max_length": LENGTH})


# The sampled softmax compares with 512 negatives instead of one.
@pytest.mark.parametrize(("loss", "factor"), [("bce", 2.0), ("sampled_softmax", 1.5)])
def test_a_training_step_costs_a_fraction_of_a_padded_one(loss: str, factor: float) -> None:
    batch = short_users(128)
    ours = SASRec(schema={"domain": "sequence", "vocab_size": VOCAB, "max_length": LENGTH}, loss=loss, dim=DIM)
    padded = PaddedSASRec()
    optimizers = [ours.configure_optimizers(), torch.optim.Adam(padded.parameters())]

    def step(loss_of: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()

    def train(which: int) -> None:
        loss_of = [lambda: ours.training_step(batch), lambda: padded.loss(batch["item_id"])][which]
        for _ in range(4):
            step(loss_of, optimizers[which])

    seconds = [cpu_seconds(lambda which=which: train(which)) for which in (0, 1)]
    print(f"\n512 users: {loss} {seconds[0]:.2f} s, padded {seconds[1]:.2f} s, ratio {seconds[1] / seconds[0]:.1f}")
    assert seconds[1] > factor * seconds[0]
