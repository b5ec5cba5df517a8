"""The causal transformer over item sequences that recommenders and sequence generators share, and its losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.errors import ConfigError
from lightning_synth.requests import KeyedRNG

LossName = Literal["full_softmax", "sampled_softmax", "gbce", "bce"]


#: Standard deviation of initial item vectors.
INITIAL_STD = 0.02
#: Rows up to each of these lengths attend together; longer ones in a last group.
_GROUPS = (8, 20)


@dataclass(frozen=True)
class Group:
    """Rows of similar length, right-padded for attention.

    Args:
        token: int64 (tokens of the group,), where they are among all tokens.
        slot: int64, where they go in the padded rows.
        rows: Number of rows.
        length: Of the longest row.
    """

    token: Tensor
    slot: Tensor
    rows: int
    length: int

    def pad(self, x: Tensor) -> Tensor:
        """Spread this group's share of flat tokens (tokens, d) over padded rows (rows, length, d)."""
        slots = x.new_zeros(self.rows * self.length, x.shape[1])
        return slots.index_copy(0, self.slot, x[self.token]).view(self.rows, self.length, -1)

    def flat(self, x: Tensor) -> Tensor:
        """Collect this group's tokens from padded rows (rows, length, d)."""
        return x.reshape(self.rows * self.length, -1)[self.slot]


class Layout:
    """Where the real tokens of a padded batch are, so that only they are computed with.

    Most users are short: of a batch padded to 50 only a seventh is real on Amazon Beauty. All layers but attention
    work on a flat (tokens, dim) matrix; attention gets rows of similar length, padded behind the last item, where a
    causal mask is all the masking that is needed.

    Args:
        mask: bool (rows, length), True = real.

    Example:
        >>> layout = Layout(torch.tensor([[False, True, True], [True, True, True]]))
        >>> layout.position, layout.last
        (tensor([0, 1, 0, 1, 2]), tensor([1, 4]))
    """

    def __init__(self, mask: Tensor) -> None:
        #: int64 (tokens,), place of each token in its sequence, from 0.
        self.position = (mask.cumsum(1) - 1)[mask]
        lengths = mask.sum(1)
        #: int64 (rows,), the flat index of each row's last token.
        self.last = lengths.cumsum(0) - 1
        row = mask.nonzero()[:, 0]
        kind = torch.bucketize(lengths, torch.tensor(_GROUPS, device=mask.device))
        self.groups = [self._group(kind == k, lengths, row) for k in range(len(_GROUPS) + 1) if bool((kind == k).any())]
        #: int64 (tokens,), which undoes the order of the groups.
        self.back = torch.cat([group.token for group in self.groups]).argsort() if self.groups else row

    def _group(self, chosen: Tensor, lengths: Tensor, row: Tensor) -> Group:
        token = chosen[row].nonzero()[:, 0]
        length = max(1, int(lengths[chosen].max()))
        slot = (chosen.cumsum(0) - 1)[row[token]] * length + self.position[token]
        return Group(token, slot, int(chosen.sum()), length)

    def apply(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply a function of padded rows to flat tokens.

        Args:
            function: (rows, length, d) to (rows, length, e); a token must depend on itself and those before it only.
            x: (tokens, d).

        Returns:
            (tokens, e).
        """
        if len(self.groups) == 1:
            return self.groups[0].flat(function(self.groups[0].pad(x)))
        return torch.cat([group.flat(function(group.pad(x))) for group in self.groups])[self.back]


class CausalBlock(nn.Module):
    """Block of SASRec: causal self-attention, then a feed-forward net, each added to its *normalised* input.

    Item vectors start small. Added to them as they are (a pre-norm block), the branches drown the item that was last,
    which says most about the next one; added to the normalised query they do not (Kang & McAuley 2018, eq. 4 and 5, as
    in the published code). NDCG@10 on the validation items of Amazon Beauty after 24 epochs: .067 against .057.

    Args:
        dim: Width.
        heads: Attention heads.
        dropout: Of both branches.
        expansion: Width of the feed-forward net in units of ``dim``.
    """

    def __init__(self, dim: int, heads: int, dropout: float, expansion: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Return tokens (tokens, dim)."""
        query = self.norm_attention(x)
        attended = layout.apply(self._attend, torch.cat([self.query(query), self.key_value(x)], 1))
        x = self.norm_feed_forward(query + self.dropout(self.out(attended)))
        out: Tensor = x + self.dropout(self.feed_forward(x))
        return out

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attention over right-padded rows: padding stands behind the real tokens, so none of them looks at it."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        attended: Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return attended


class CausalTransformer(nn.Module):
    """Transformer decoder over item ids (SASRec, Kang & McAuley 2018, arXiv 1808.09781).

    Positions count from the start of the (cut) sequence, so that padding and the length of the batch do not matter.

    Args:
        vocab_size: Largest item id; 0 is padding.
        dim: Width.
        num_layers: Blocks.
        heads: Attention heads.
        dropout: Of embeddings and branches.
        max_length: Longest sequence.

    Example:
        >>> net = CausalTransformer(vocab_size=12, dim=8, max_length=5).eval()
        >>> ids = torch.tensor([[0, 0, 3, 4], [1, 2, 3, 4]])
        >>> net(ids, ids > 0).shape
        torch.Size([6, 8])
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 64,
        num_layers: int = 1,
        heads: int = 1,
        dropout: float = 0.2,
        max_length: int = 50,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(f"dim {dim} must be divisible by heads {heads}")
        self.max_length = max_length
        self.items = nn.Embedding(vocab_size + 1, dim)
        self.positions = nn.Embedding(max_length, dim)
        # A rare item moves a few steps an epoch: from small vectors what it learns soon outweighs where it started.
        nn.init.normal_(self.items.weight, std=INITIAL_STD)
        nn.init.normal_(self.positions.weight, std=INITIAL_STD)
        self.blocks = nn.ModuleList(CausalBlock(dim, heads, dropout) for _ in range(num_layers))
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)

    def forward(self, item_id: Tensor, mask: Tensor) -> Tensor:
        """Return the state after each real token.

        Args:
            item_id: int64 (rows, length), at most ``max_length`` real tokens a row.
            mask: bool (rows, length), True = real; padding may stand on either side.

        Returns:
            float32 (tokens, dim), in the order of ``item_id[mask]``.
        """
        layout = Layout(mask)
        x = self.dropout(self.items(item_id[mask]) + self.positions(layout.position))
        for block in self.blocks:
            x = block(x, layout)
        out: Tensor = self.norm(x)
        return out

    def last(self, item_id: Tensor, mask: Tensor) -> Tensor:
        """Return the state after the last token of each row, (rows, dim); every row needs one."""
        states: Tensor = self(item_id, mask)
        return states[mask.sum(1).cumsum(0) - 1]


def trim(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut the columns of a left-padded batch in which every row is padding.

    Args:
        batch: With ``padding_mask`` bool (batch, length).

    Example:
        >>> trim({"item_id": torch.tensor([[0, 0, 5]]), "padding_mask": torch.tensor([[False, False, True]])})
        {'item_id': tensor([[5]]), 'padding_mask': tensor([[True]])}
    """
    used = batch["padding_mask"].any(0).int()
    start = int(used.argmax()) if len(used) else 0
    return {k: v[:, start:] if v.ndim == 2 and v.shape[1] == len(used) else v for k, v in batch.items()}


def target_weights(batch: dict[str, Tensor]) -> Tensor:
    """Return how much each position counts as a target, float32 (batch, length).

    ``target_weight`` where the batch has it (else 1), times the row's ``weight``; 0 for padding and for the first item
    of a row, which nothing precedes.

    Args:
        batch: Left-padded, with ``padding_mask``.
    """
    mask = batch["padding_mask"]
    weight = batch["target_weight"].float() if "target_weight" in batch else mask.float()
    if "weight" in batch:
        weight = weight * batch["weight"].float()[:, None]
    first = mask & (mask.cumsum(1) == 1)
    return weight * (mask & ~first)


def check_loss_name(loss: str) -> None:
    """Refuse an unknown loss.

    Args:
        loss: Of a configuration.

    Raises:
        ConfigError: Naming the known ones.
    """
    if loss not in get_args(LossName):
        raise ConfigError(f"unknown loss {loss!r}; known: {', '.join(get_args(LossName))}")


def next_item_losses(
    states: Tensor, target: Tensor, table: Tensor, loss: str, rng: KeyedRNG, num_negatives: int = 256, t: float = 0.75
) -> Tensor:
    """Return the loss of predicting each target from its state by inner products with an item table.

    - ``full_softmax``: cross-entropy over the catalogue.
    - ``sampled_softmax``: against uniform negatives that the whole batch shares (uniform, so no correction is needed);
      a negative equal to the target does not count.
    - ``gbce``: generalised binary cross-entropy (Petrov & Macdonald 2023, arXiv 2308.07192), shared negatives.
    - ``bce``: one negative for every target (the original SASRec).

    Args:
        states: float (tokens, dim).
        target: int64 (tokens,), ids from 1.
        table: float (vocab_size + 1, dim), row 0 unused.
        loss: Its name.
        rng: Scalar-seeded, draws the negatives.
        num_negatives: Of ``sampled_softmax`` and ``gbce``.
        t: Calibration of ``gbce``: 0 leaves its scores overconfident, 1 makes them probabilities.

    Returns:
        float (tokens,).

    Example:
        >>> states, table = torch.zeros(1, 4), torch.zeros(11, 4)
        >>> round(float(next_item_losses(states, torch.tensor([3]), table, "full_softmax", KeyedRNG(0)).exp()))
        10
    """
    vocab_size = len(table) - 1
    if loss == "full_softmax":
        return F.cross_entropy(states @ table[1:].T, target - 1, reduction="none")
    positive = (states * F.embedding(target, table)).sum(1, keepdim=True)
    if loss == "bce":
        negative = (states * F.embedding(1 + rng.integers(vocab_size, (len(target),)), table)).sum(1)
        return 0.5 * (F.softplus(-positive[:, 0]) + F.softplus(negative))
    ids = 1 + rng.integers(vocab_size, (num_negatives,))
    negatives = (states @ F.embedding(ids, table).T).masked_fill(target[:, None] == ids, -torch.inf)
    if loss == "sampled_softmax":
        return torch.cat([positive, negatives], 1).logsumexp(1) - positive[:, 0]
    rate = num_negatives / max(vocab_size - 1, 1)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    return (beta * F.softplus(-positive[:, 0]) + F.softplus(negatives).sum(1)) / (1 + num_negatives)
