"""What the generators share that write sequences item by item: their network, and drawing from its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_synth.averaging import AveragedGenerator
from lightning_synth.errors import ConfigError
from lightning_synth.plugins.sequence.walks import any_repeats
from lightning_synth.requests import KeyedRNG
from lightning_synth.sequence_model import CausalTransformer, check_loss_name, next_item_losses
from lightning_synth.sequences.items import SequenceItems

#: Outcomes that are summed up before one of them is drawn.
_BLOCK = 128
#: Halvings of the interval in which the nucleus' smallest probability lies.
_BISECTIONS = 24


def check_decoding(temperature: float, top_p: float, popularity_correction: float) -> None:
    """Refuse settings that decode nothing.

    Args:
        temperature: More than 0.
        top_p: In (0, 1].
        popularity_correction: Not negative.

    Raises:
        ConfigError: Naming the setting.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be positive, got {temperature}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p must be in (0, 1], got {top_p}")
    if popularity_correction < 0:
        raise ConfigError(f"popularity_correction must not be negative, got {popularity_correction}")


def nucleus(probability: Tensor, top_p: float) -> Tensor:
    """Keep the fewest most probable outcomes that hold ``top_p`` of each row (Holtzman et al. 2020, arXiv 1904.09751).

    The smallest kept probability is found by bisection, which is cheaper than sorting a catalogue.

    Args:
        probability: float (rows, outcomes), rows sum to 1.
        top_p: Share to keep.

    Returns:
        The same, with the others at 0; not normalised.

    Example:
        >>> nucleus(torch.tensor([[0.5, 0.3, 0.15, 0.05]]), 0.7)
        tensor([[0.5000, 0.3000, 0.0000, 0.0000]])
    """
    if top_p >= 1:
        return probability
    low, high = torch.zeros_like(probability[:, :1]), probability.amax(1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = torch.where(probability >= middle, probability, 0).sum(1, keepdim=True) >= top_p
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(probability >= low, probability, 0)


def draw_items(
    logits: Tensor,
    u: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
    log_popularity: Tensor | None = None,
    popularity_correction: float = 0.0,
) -> Tensor:
    """Draw one item a row.

    Args:
        logits: float (rows, vocab_size + 1); impossible items have -inf, at least one is possible.
        u: float (rows,), uniform in [0, 1).
        temperature: Below 1 sharpens, above 1 flattens.
        top_p: Share of the nucleus.
        log_popularity: float (vocab_size + 1,).
        popularity_correction: How much of the log-popularity is taken off.

    Returns:
        int64 (rows,).

    Example:
        >>> draw_items(torch.tensor([[-torch.inf, 0.0, 0.0]] * 2), torch.tensor([0.1, 0.9]))
        tensor([1, 2])
    """
    if temperature != 1:
        logits = logits / temperature
    if popularity_correction and log_popularity is not None:
        logits = logits - popularity_correction * log_popularity
    return draw_rows(nucleus(logits.softmax(1), top_p), u)


def draw_rows(weight: Tensor, u: Tensor) -> Tensor:
    """Draw one outcome a row: a block of outcomes first, then one in it, so that few running sums are formed.

    Args:
        weight: float (rows, outcomes), not negative, each row with something positive.
        u: float (rows,), uniform in [0, 1).

    Returns:
        int64 (rows,), never an outcome of weight 0.

    Example:
        >>> draw_rows(torch.tensor([[0.0, 1.0, 3.0]] * 3), torch.tensor([0.0, 0.2, 0.9]))
        tensor([1, 1, 2])
    """
    blocks = F.pad(weight, (0, -weight.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK))
    mass = blocks.sum(2).double()
    ends = mass.cumsum(1)
    x = u.double()[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, x, right=True).clamp(max=ends.shape[1] - 1)
    inner = blocks[torch.arange(len(u), device=u.device), block[:, 0]].double().cumsum(1)
    rest = x - (ends - mass).gather(1, block)
    place = block * _BLOCK + torch.searchsorted(inner, rest, right=True).clamp(max=_BLOCK - 1)
    place = place.clamp(max=weight.shape[1] - 1)
    # Rounding may lead just past the last possible outcome of a block.
    missed = weight.gather(1, place)[:, 0] <= 0
    place[missed] = weight[missed].argmax(1, keepdim=True)
    return place[:, 0]


def extend(
    score: Callable[[Tensor, Tensor], Tensor],
    ids: Tensor,
    count: Tensor,
    rng: KeyedRNG,
    repeats: bool,
    **decoding: Any,
) -> Tensor:
    """Append items to sequences, each drawn given all before it.

    Args:
        score: Maps ids (rows, length) and their mask to logits (rows, vocab_size + 1) of the next item, which are
            changed in place.
        ids: int64 (rows, length), 0 is padding on either side.
        count: int64 (rows,), how many to append.
        rng: One seed a row.
        repeats: Whether an item may come again.
        **decoding: Of `draw_items`.

    Returns:
        int64 (rows, length + largest count); rows that got fewer are padded on the right.
    """
    length, steps = ids.shape[1], int(count.max())
    ids = torch.cat([ids, ids.new_zeros(len(ids), steps)], 1)
    for step in range(steps):
        active = (count > step).nonzero()[:, 0]
        past = ids[active, : length + step]
        logits = score(past, past > 0)
        if not repeats:
            # Start tokens lie beyond the catalogue.
            logits = logits.scatter_(1, torch.where(past < logits.shape[1], past, 0), -torch.inf)
        logits[:, 0] = -torch.inf
        ids[active, length + step] = draw_items(logits, rng[active].uniform((), step=step), **decoding)
    return ids


def log_popularity(schema: Mapping[str, Any]) -> Tensor:
    """Return log(count + 1) of every item, float32 (vocab_size + 1,).

    Args:
        schema: With ``item_counts``; without, all items count as equally popular.
    """
    counts = schema.get("item_counts") or [0] * (int(schema["vocab_size"]) + 1)
    return torch.tensor(counts, dtype=torch.float32).log1p()


class NextItemGenerator(AveragedGenerator):
    """Base of the generators that write sequences item by item with the transformer of SASRec.

    Args:
        dim: Width.
        num_layers: Blocks.
        heads: Attention heads.
        dropout: Of embeddings and branches.
        loss: One of `next_item_losses`; the sampled ones have the same optimum as ``full_softmax``, except ``gbce`` and
            ``bce``, whose scores are no log-probabilities.
        num_negatives: Of ``sampled_softmax``.
        lr: Largest learning rate.
        **kwargs: For `Generator` and the subclass.

    Raises:
        ConfigError: If the loss is unknown or not a softmax.
    """

    domain = "sequence"
    #: Whether training users come back to items they had before; found in the training items.
    repeats: Tensor
    log_popularity: Tensor

    def __init__(
        self,
        *,
        dim: int = 64,
        num_layers: int = 1,
        heads: int = 1,
        dropout: float = 0.2,
        loss: str = "sampled_softmax",
        num_negatives: int = 512,
        lr: float = 3e-3,
        **kwargs: Any,
    ) -> None:
        check_loss_name(loss)
        if "softmax" not in loss:
            raise ConfigError(f"loss {loss!r} gives no probabilities to sample from; use a softmax")
        network = {"dim": dim, "num_layers": num_layers, "heads": heads, "dropout": dropout}
        super().__init__(**network, loss=loss, num_negatives=num_negatives, lr=lr, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        """Make what all need; a subclass makes its networks first."""
        self.items = int(schema["vocab_size"])
        self.register_buffer("repeats", torch.zeros((), dtype=torch.bool))
        self.register_buffer("log_popularity", log_popularity(schema), persistent=False)
        super().build(schema)

    def make_network(self, tokens: int, max_length: int) -> CausalTransformer:
        """Return a transformer of the configured size.

        Args:
            tokens: Largest id.
            max_length: Longest sequence.
        """
        h = self.hparams
        return CausalTransformer(tokens, h.dim, h.num_layers, h.heads, h.dropout, max_length)

    def on_fit_start(self) -> None:
        """Look whether users repeat items."""
        super().on_fit_start()
        sequences = SequenceItems.from_items(self.training_items()).latest(int(self.hparams["schema"]["max_length"]))
        self.repeats.fill_(any_repeats(sequences))

    def mean_loss(self, states: Tensor, target: Tensor, network: CausalTransformer, rng: KeyedRNG) -> Tensor:
        """Mean loss in nats per item; 0 where there is nothing to predict.

        Args:
            states: float (tokens, dim).
            target: int64 (tokens,).
            network: With the item table.
            rng: Scalar-seeded, draws the negatives.
        """
        h, table = self.hparams, network.items.weight[: self.items + 1]
        losses = next_item_losses(states, target, table, h.loss, rng.fork("negatives"), int(h.num_negatives))
        return losses.sum() / max(len(losses), 1)

    def extend(
        self,
        network: CausalTransformer,
        ids: Tensor,
        count: Tensor,
        rng: KeyedRNG,
        temperature: float,
        top_p: float,
        popularity_correction: float,
    ) -> Tensor:
        """Append items drawn from a network; see `extend`.

        Args:
            network: Of this generator.
            ids: int64 (rows, length).
            count: int64 (rows,).
            rng: One seed a row.
            temperature: Below 1 sharpens, above 1 flattens.
            top_p: Share of the nucleus.
            popularity_correction: How much log-popularity is taken off the scores.
        """
        check_decoding(temperature, top_p, popularity_correction)
        table = network.items.weight[: self.items + 1]
        decoding = {"temperature": temperature, "top_p": top_p, "popularity_correction": popularity_correction}
        return extend(
            lambda past, mask: network.last(past, mask) @ table.T,
            ids,
            count,
            rng,
            bool(self.repeats),
            log_popularity=self.log_popularity,
            **decoding,
        )
