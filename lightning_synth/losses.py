"""Losses for imbalanced classes: what synthesis of rare classes has to beat.

All of them are functions of tensors, for any training loop. Counts are those of the training nodes (or items) of each
class; a class without any stays finite.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_synth.errors import ConfigError

#: Below this, shares of neighbours and distances between classes count as this (as the authors of TAM do).
_LEAST = 1e-6


def class_counts(y: Tensor, num_classes: int) -> Tensor:
    """Count the labels of each class.

    Args:
        y: int64 (items,).
        num_classes: Classes.

    Returns:
        int64 (num_classes,).

    Example:
        >>> class_counts(torch.tensor([0, 2, 2]), 3)
        tensor([1, 0, 2])
    """
    return torch.bincount(y, minlength=num_classes)


def class_weights(counts: Tensor) -> Tensor:
    """Return weights that give every class the same say: the mean count over the count of the class.

    Args:
        counts: (classes,), training items of each class.

    Returns:
        float32 (classes,); a class without items has the weight of one with a single item.

    Example:
        >>> class_weights(torch.tensor([1, 3]))
        tensor([2.0000, 0.6667])
    """
    return counts.float().mean() / counts.clamp(min=1)


def balanced_softmax(logits: Tensor, y: Tensor, counts: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of a softmax whose prior is the training share of each class.

    The classes' log counts are added to the scores while training and left out when predicting, so that predictions
    assume equal classes (Ren et al. 2020, arXiv 2007.10740, eq. 4).

    Args:
        logits: float (items, classes).
        y: int64 (items,).
        counts: (classes,), training items of each class.
        reduction: As in `torch.nn.functional.cross_entropy`.

    Returns:
        The loss.

    Example:
        >>> logits, y = torch.zeros(1, 2), torch.tensor([1])
        >>> balanced_softmax(logits, y, torch.tensor([3, 1]))  # -log(1 / 4)
        tensor(1.3863)
    """
    return F.cross_entropy(logits + counts.clamp(min=1).to(logits).log(), y, reduction=reduction)


def neighbour_mean(value: Tensor, edge_index: Tensor) -> Tensor:
    """Average over every node and the nodes that its edges come from.

    Args:
        value: float (nodes, features).
        edge_index: int64 (2, edges), messages go from row 0 to row 1.

    Returns:
        float (nodes, features).

    Example:
        >>> neighbour_mean(torch.tensor([[0.0], [1.0]]), torch.tensor([[0], [1]]))
        tensor([[0.0000],
                [0.5000]])
    """
    source, target = edge_index
    total = value.index_add(0, target, value.index_select(0, source))
    degree = torch.bincount(target, minlength=len(value))
    return total / (1 + degree)[:, None]


@torch.no_grad()
def tam_margin(
    logits: Tensor,
    edge_index: Tensor,
    y: Tensor,
    train_mask: Tensor,
    counts: Tensor,
    alpha: float = 2.5,
    beta: float = 0.5,
    phi: float = 1.2,
) -> Tensor:
    """Topology-aware margins to add to the scores of the training nodes before the loss.

    A node whose neighbourhood looks like that of another class is not pushed as hard away from that class, which would
    only make false positives of the rare classes (Song et al. 2022, PMLR 162:20369, eq. 3 to 8). Unlabelled neighbours
    count with their predictions, sharper for frequent classes.

    Args:
        logits: float (nodes, classes), scores of all nodes.
        edge_index: int64 (2, edges).
        y: int64 (nodes,); only the labels of the training nodes are read.
        train_mask: bool (nodes,).
        counts: (classes,), real training nodes of each class.
        alpha: Strength of the anomalous connectivity margin (ACM).
        beta: Strength of the anomalous distribution margin (ADM).
        phi: Sharpness of the predictions.

    Returns:
        float (training nodes, classes), at most 0 but for ADM, and 0 at a node's own class.

    Example:
        >>> edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> y, mask = torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
        >>> tam_margin(torch.zeros(4, 2), edges, y, mask, torch.tensor([2, 2]), beta=0.0).abs().max()
        tensor(0.)
    """
    labels, classes = y[train_mask], logits.shape[1]
    # Temperature of each class: the share of a class counts 0.4, uniformity 0.6 (section 4.3).
    share = 0.4 * counts.to(logits) / counts.sum() + 0.6
    belief = (logits * phi * (share + 1 - share.max())).softmax(1)
    belief[train_mask] = F.one_hot(labels, classes).to(belief)
    own = F.one_hot(labels, classes).bool()
    near = neighbour_mean(belief, edge_index)[train_mask].clamp(min=_LEAST)
    usual = _class_mean(near, labels, classes).clamp(min=_LEAST)

    at_own, usual_own = near.gather(1, labels[:, None]), usual.diagonal()[labels][:, None]
    acm = (at_own / usual_own * usual[labels] / near).clamp(max=1.0).masked_fill(own, 1.0).log()
    between = _jensen_shannon(usual[:, None], usual[None]).clamp(min=_LEAST)[labels].square()
    to_each = _jensen_shannon(near[:, None], usual[None]).square()
    adm = (to_each.gather(1, labels[:, None]) + between - to_each) / (2 * between)
    return alpha * acm - beta * adm.masked_fill(own, 0.0)


def _class_mean(value: Tensor, y: Tensor, classes: int) -> Tensor:
    total = value.new_zeros(classes, value.shape[1]).index_add(0, y, value)
    return total / class_counts(y, classes).clamp(min=1)[:, None]


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    middle = ((p + q) / 2).log()
    return ((p * (p.log() - middle)).sum(-1) + (q * (q.log() - middle)).sum(-1)) / 2


def personalised_pagerank(
    start: Tensor, edge_index: Tensor, teleport: float = 0.15, tolerance: float = 1e-6, most_steps: int = 200
) -> Tensor:
    """Spread columns of start values by personalised PageRank, without a matrix of nodes by nodes.

    Solves P = teleport (I - (1 - teleport) A)^-1 start for the symmetrically normalised adjacency A with self-loops, by
    power iteration: every step costs one pass over the edges.

    Args:
        start: float (nodes, columns).
        edge_index: int64 (2, edges), both directions.
        teleport: Probability of returning to the start at each step.
        tolerance: Largest change of a value at which to stop.
        most_steps: At most so many passes.

    Returns:
        float (nodes, columns).

    Example:
        >>> edges = torch.tensor([[0, 1], [1, 0]])
        >>> personalised_pagerank(torch.eye(2), edges, teleport=0.5)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])
    """
    source, target = edge_index
    scale = (1 + torch.bincount(target, minlength=len(start))).to(start).rsqrt()[:, None]
    value = start
    for _ in range(most_steps):
        sent = value * scale
        spread = scale * sent.index_add(0, target, sent.index_select(0, source))
        before, value = value, teleport * start + (1 - teleport) * spread
        if float((value - before).abs().max()) < tolerance:
            break
    return value


@torch.no_grad()
def renode_weights(
    edge_index: Tensor,
    y: Tensor,
    train_mask: Tensor,
    num_classes: int,
    *,
    low: float = 0.5,
    high: float = 1.5,
    teleport: float = 0.15,
) -> Tensor:
    """Weights of the training nodes: less for those near the border of their class.

    A node's conflict ("Totoro") is the PageRank mass of other classes' training nodes that reaches it; weights fall
    from ``high`` to ``low`` with its rank along a cosine (ReNode, Chen et al. 2021, arXiv 2110.04099, eq. 2 to 4).

    Args:
        edge_index: int64 (2, edges), both directions.
        y: int64 (nodes,); only the labels of the training nodes are read.
        train_mask: bool (nodes,).
        num_classes: Classes.
        low: Weight of the node in most conflict.
        high: Weight of the node in least conflict.
        teleport: Of the PageRank.

    Returns:
        float32 (training nodes,).

    Raises:
        ConfigError: If ``low`` is not below ``high``.

    Example:
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> y, mask = torch.tensor([0, 0, 1]), torch.tensor([True, True, True])
        >>> [round(w, 6) for w in renode_weights(edges, y, mask, 2).tolist()]  # node 0 is farthest from class 1
        [1.5, 0.5, 1.0]
    """
    if not 0 <= low < high:
        raise ConfigError(f"renode weights need 0 <= low < high, got {low} and {high}")
    labels = y[train_mask]
    start = torch.zeros(len(y), num_classes, device=y.device)
    start[train_mask] = F.one_hot(labels, num_classes).float() / class_counts(labels, num_classes).clamp(min=1)
    reach = personalised_pagerank(start, edge_index, teleport)
    others = reach.sum(1, keepdim=True) - reach
    conflict = personalised_pagerank(others, edge_index, teleport)[train_mask].gather(1, labels[:, None])[:, 0]
    rank = conflict.argsort(stable=True).argsort(stable=True).float()
    angle = torch.pi * rank / max(len(labels) - 1, 1)
    return low + 0.5 * (high - low) * (1 + angle.cos())
