"""Losses for imbalanced classes against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_synth.errors import ConfigError
from lightning_synth.losses import (
    balanced_softmax,
    class_weights,
    neighbour_mean,
    personalised_pagerank,
    renode_weights,
    tam_margin,
)


@pytest.fixture
def graph():
    """Nine nodes of three classes, five of them labelled; edges both ways."""
    draw = torch.Generator().manual_seed(0)
    upper = (torch.rand(9, 9, generator=draw) < 0.4).triu(1)
    edges = (upper | upper.T).nonzero().T.contiguous()
    y = torch.arange(9) % 3
    mask = torch.tensor([True, True, True, True, False, False, True, False, False])
    return edges, y, mask, torch.randn(9, 3, generator=draw)


def test_balanced_softmax_adds_the_log_counts() -> None:
    logits, y, counts = torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([1, 0]), torch.tensor([9, 1])
    first = -math.log(1 * math.exp(0) / (9 * math.exp(1) + 1 * math.exp(0)))
    second = -math.log(9 * math.exp(0.5) / (9 * math.exp(0.5) + 1 * math.exp(2)))
    assert balanced_softmax(logits, y, counts, "none").tolist() == pytest.approx([first, second])


def test_equal_counts_make_it_plain_cross_entropy() -> None:
    logits, y = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1])
    assert float(balanced_softmax(logits, y, torch.tensor([4, 4, 4]))) == pytest.approx(
        float(F.cross_entropy(logits, y))
    )


def test_a_class_without_items_stays_finite() -> None:
    assert torch.isfinite(balanced_softmax(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([3, 0])))
    assert class_weights(torch.tensor([4, 0])).tolist() == [0.5, 2.0]


def test_neighbour_mean_counts_the_node_itself() -> None:
    value = torch.tensor([[0.0], [3.0], [6.0]])
    assert neighbour_mean(value, torch.tensor([[0, 1], [2, 2]]))[:, 0].tolist() == [0.0, 3.0, 3.0]


def by_hand(graph, counts, alpha, beta, phi):
    """TAM, one node and one class at a time (Song et al. 2022, eq. 3 to 8)."""
    edges, y, mask, logits = graph
    share = [0.4 * c / sum(counts) + 0.6 for c in counts]
    temperature = [phi * (s + 1 - max(share)) for s in share]
    belief = []
    for i in range(9):
        e = [math.exp(float(logits[i, c]) * temperature[c]) for c in range(3)]
        one_hot = [float(c == int(y[i])) for c in range(3)]
        belief.append(one_hot if mask[i] else [v / sum(e) for v in e])
    near = {}
    for i in mask.nonzero()[:, 0].tolist():
        around = [i, *edges[0][edges[1] == i].tolist()]
        near[i] = [max(sum(belief[j][c] for j in around) / len(around), 1e-6) for c in range(3)]
    members = {c: [i for i in near if int(y[i]) == c] for c in range(3)}
    usual = {c: [max(sum(near[i][d] for i in members[c]) / len(members[c]), 1e-6) for d in range(3)] for c in range(3)}

    def js(p, q):
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        return sum((a * math.log(a / c) + b * math.log(b / c)) / 2 for a, b, c in zip(p, q, m, strict=True))

    rows = []
    for i in near:
        own, row = int(y[i]), []
        for c in range(3):
            if c == own:
                row.append(0.0)
                continue
            acm = min(1.0, near[i][own] / usual[own][own] * usual[own][c] / near[i][c])
            between = max(js(usual[own], usual[c]), 1e-6) ** 2
            adm = (js(near[i], usual[own]) ** 2 + between - js(near[i], usual[c]) ** 2) / (2 * between)
            row.append(alpha * math.log(acm) - beta * adm)
        rows.append(row)
    return torch.tensor(rows)


def test_tam_is_what_the_paper_says(graph) -> None:
    edges, y, mask, logits = graph
    counts = torch.bincount(y[mask], minlength=3)
    found = tam_margin(logits, edges, y, mask, counts, alpha=1.5, beta=0.25, phi=0.8)
    torch.testing.assert_close(found, by_hand(graph, counts.tolist(), 1.5, 0.25, 0.8), rtol=1e-3, atol=1e-4)
    assert bool((found.gather(1, y[mask][:, None]) == 0).all())


def test_tam_and_renode_read_no_label_outside_the_mask(graph) -> None:
    edges, y, mask, logits = graph
    other, counts = torch.where(mask, y, (y + 1) % 3), torch.bincount(y[mask], minlength=3)
    assert torch.equal(tam_margin(logits, edges, y, mask, counts), tam_margin(logits, edges, other, mask, counts))
    assert torch.equal(renode_weights(edges, y, mask, 3), renode_weights(edges, other, mask, 3))


def test_pagerank_is_the_inverse(graph) -> None:
    edges = graph[0]
    adjacency = torch.eye(9, dtype=torch.float64)
    adjacency[edges[1], edges[0]] = 1
    scale = adjacency.sum(1).rsqrt()
    exact = 0.2 * torch.linalg.inv(torch.eye(9) - 0.8 * scale[:, None] * adjacency * scale)
    found = personalised_pagerank(torch.eye(9, dtype=torch.float64), edges, teleport=0.2, tolerance=1e-9)
    torch.testing.assert_close(found, exact, atol=1e-7, rtol=0)


def test_renode_ranks_by_conflict(graph) -> None:
    edges, y, mask, _ = graph
    pi = personalised_pagerank(torch.eye(9), edges, teleport=0.15, tolerance=1e-8)
    train = mask.nonzero()[:, 0].tolist()
    reach = {c: sum(pi[:, j] for j in train if y[j] == c) / sum(int(y[j]) == c for j in train) for c in range(3)}
    conflict = [sum(float(pi[i] @ reach[c]) for c in range(3) if c != int(y[i])) for i in train]
    rank = [sorted(conflict).index(value) for value in conflict]
    wanted = [0.5 + 0.5 * (1 + math.cos(math.pi * r / (len(train) - 1))) for r in rank]
    assert renode_weights(edges, y, mask, 3).tolist() == pytest.approx(wanted)


def test_node_order_does_not_matter(graph) -> None:
    edges, y, mask, logits = graph
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    place = order.argsort()
    counts = torch.bincount(y[mask], minlength=3)
    before = torch.zeros(9, 3)
    before[mask] = tam_margin(logits, edges, y, mask, counts)
    after = torch.zeros(9, 3)
    after[mask[order]] = tam_margin(logits[order], place[edges], y[order], mask[order], counts)
    torch.testing.assert_close(after, before[order])


def test_impossible_weights_are_refused(graph) -> None:
    edges, y, mask, _ = graph
    with pytest.raises(ConfigError, match="low < high"):
        renode_weights(edges, y, mask, 3, low=2.0, high=1.0)
