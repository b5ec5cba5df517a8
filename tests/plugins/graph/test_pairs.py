"""Pairs block by block: each once, draws by weight without replacement, offsets that set the number of edges."""

import pytest
import torch

from lightning_synth.plugins.graph.pairs import matching_offset, pair_blocks, race
from lightning_synth.requests import KeyedRNG


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_every_pair_comes_once_with_its_own_number(block):
    counts = torch.tensor([5, 1, 2, 8])
    parts = list(pair_blocks(counts, KeyedRNG(torch.arange(4)), block))
    row, first, second, words = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("row", "first", "second", "words")
    )
    start = (counts.cumsum(0) - counts).tolist()
    wanted = [(g, s + i, s + j) for g, s in enumerate(start) for i in range(counts[g]) for j in range(i + 1, counts[g])]
    assert list(zip(row.tolist(), first.tolist(), second.tolist(), strict=True)) == wanted
    whole = torch.cat([part.words for part in pair_blocks(counts, KeyedRNG(torch.arange(4)))])
    assert torch.equal(words, whole) and len(words.unique()) == len(words)
    alone = torch.cat([part.words for part in pair_blocks(counts[3:], KeyedRNG(torch.tensor([3])), block)])
    assert torch.equal(alone, words[row == 3])


def test_a_race_draws_in_proportion_to_weight():
    rows = 4000
    weight = torch.tensor([1.0, 2.0, 5.0]).log()
    counts, quota = torch.full((rows,), 3), torch.ones(rows, dtype=torch.int64)

    def log_weight(i, j):
        return weight[i % 3 + j % 3 - 1]

    _, first, second = race(KeyedRNG(torch.arange(rows)), counts, quota, log_weight, torch.zeros(3 * rows, dtype=bool))
    share = torch.bincount(first % 3 + second % 3 - 1) / rows
    torch.testing.assert_close(share, torch.tensor([1, 2, 5]) / 8, atol=0.025, rtol=0)


@pytest.mark.parametrize("block", [3, 1000])
def test_a_race_has_no_repeats_and_leaves_no_linked_node_alone(block):
    counts, quota = torch.tensor([30, 4, 9]), torch.tensor([40, 6, 0])
    linked = torch.ones(43, dtype=torch.bool)
    linked[7] = False

    def log_weight(i, j):
        # Almost all the weight is on pairs of the first ten nodes; node 7 has none.
        return torch.where((i == 7) | (j == 7), -60.0, torch.where(j < 10, 10.0, 0.0))

    row, first, second = race(KeyedRNG(torch.arange(3)), counts, quota, log_weight, linked, block)
    assert torch.bincount(row, minlength=3).tolist() == [40, 6, 0]
    assert len((first * 43 + second).unique()) == 46 and bool((first < second).all())
    assert set(range(34)) - {7} == set(torch.cat([first, second]).tolist())
    again = race(KeyedRNG(torch.arange(3)), counts, quota, log_weight, linked)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == set(
        zip(again[1].tolist(), again[2].tolist(), strict=True)
    )


@pytest.mark.parametrize("block", [4, 1000])
def test_the_offset_sets_the_number_of_edges(block):
    counts, wanted = torch.tensor([30, 5, 5, 6, 1]), torch.tensor([20, 10, 0, 7, 0])
    odds = 3 * torch.randn(47, generator=torch.Generator().manual_seed(0))

    def log_odds(part):
        return odds[part.first] + odds[part.second]

    offset = matching_offset(counts, wanted, log_odds, block)
    expected = torch.zeros(5, dtype=torch.float64)
    for part in pair_blocks(counts):
        expected.index_add_(0, part.row, torch.sigmoid(log_odds(part).double() + offset[part.row]))
    torch.testing.assert_close(expected, wanted.double(), rtol=0.01, atol=1e-9)
    alone = matching_offset(
        counts[3:4], wanted[3:4], lambda part: odds[40 + part.first] + odds[40 + part.second], block
    )
    torch.testing.assert_close(alone, offset[3:4])
