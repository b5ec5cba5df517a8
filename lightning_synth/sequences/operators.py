"""Augmentation operators on whole batches of sequences: vectorised, seeded row by row, the target left alone.

An operator takes a left-padded batch (``item_id``, ``padding_mask``, ``target_weight`` and further fields of shape
(batch, length)) and returns a new one of the same shape. The last item of a row, its target, keeps its place unless
``keep_target=False``; operators act on what comes before, the context. Items that an operator makes up (inserted,
substituted, masked) are context only: their ``target_weight`` is 0 and ``item_is_synthetic`` is True.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.requests import KeyedRNG
from lightning_synth.sequences.batches import Batch, columns, compact, completed, made_up, not_first
from lightning_synth.sequences.similarity import similar_items


class Operator(ABC):
    """One way to change a batch of sequences.

    Args:
        keep_target: Leave the last item of each row as it is.
    """

    name: ClassVar[str]

    def __init__(self, keep_target: bool = True) -> None:
        self.keep_target = keep_target

    def __repr__(self) -> str:
        plain = {k: v for k, v in vars(self).items() if isinstance(v, (bool, int, float, str))}
        return f"{type(self).__name__}({', '.join(f'{key}={value}' for key, value in plain.items())})"

    def fit(self, items: Iterable[Mapping[str, Any]], schema: Mapping[str, Any]) -> Operator:
        """Learn what is needed from training sequences; most operators need nothing.

        Args:
            items: Training sequences.
            schema: Of them.
        """
        return self

    def augment(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> Batch:
        """Change a batch.

        Args:
            batch: ``item_id`` int64 (batch, length), ``padding_mask`` bool, and other fields; not changed.
            rng: One seed a row.

        Returns:
            A batch of the same fields and shapes, with ``target_weight``; rows too short to be changed stay as they
            are.
        """
        whole = completed(batch)
        mask = whole["padding_mask"]
        context = mask.clone()
        if self.keep_target:
            context[:, -1] = False
        done = self.apply(whole, context, rng)
        # What a row begins with has no context, whatever it had before.
        return done | {"target_weight": done["target_weight"] * not_first(done["padding_mask"])}

    @abstractmethod
    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Change the context of each row.

        Args:
            batch: With all fields.
            context: bool (batch, length), the positions that may change.
            rng: One seed a row.
        """


class Crop(Operator):
    """Keep a contiguous part of the context (CL4SRec, Xie et al. 2022, eq. 6).

    Args:
        ratio: Share of the context that is kept, rounded down, at least one item.
        keep_target: Leave the last item of each row as it is.

    Example:
        >>> batch = {"item_id": torch.tensor([[1, 2, 3, 4, 9]]), "padding_mask": torch.ones(1, 5, dtype=torch.bool)}
        >>> Crop(0.5).augment(batch, KeyedRNG(torch.tensor([0])))["item_id"].shape
        torch.Size([1, 5])
    """

    name = "crop"

    def __init__(self, ratio: float = 0.6, keep_target: bool = True) -> None:
        super().__init__(keep_target)
        self.ratio = _share(ratio, "ratio")

    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Keep a window of each context."""
        size = context.sum(1)
        inside = _window(context, size, _count(size, self.ratio).clamp(min=1), rng)
        return compact(batch, batch["padding_mask"] & (inside | ~context))


class Mask(Operator):
    """Hide random items of the context (CL4SRec, eq. 7).

    A hidden item leaves a hole: id ``token`` and, where that is 0, no real token (``padding_mask`` False), so that
    models that attend to real tokens do not see it.

    Args:
        ratio: Share of the context that is hidden, rounded down.
        token: Id written there; 0 makes holes, another one needs a place in the model's table: a ``vocab_size`` of the
            data that is larger than the catalogue.
        keep_target: Leave the last item of each row as it is.
    """

    name = "mask"

    def __init__(self, ratio: float = 0.3, token: int = 0, keep_target: bool = True) -> None:
        super().__init__(keep_target)
        if token < 0:
            raise ConfigError(f"token must be 0 or an item id, got {token}")
        self.ratio, self.token = _share(ratio, "ratio"), token

    def fit(self, items: Iterable[Mapping[str, Any]], schema: Mapping[str, Any]) -> Operator:
        """Check that models have a place for the token."""
        if self.token > int(schema["vocab_size"]):
            raise ConfigError(
                f"mask token {self.token} has no place beside items 1..{schema['vocab_size']}; give the data a larger "
                "vocab_size, or use token=0"
            )
        return self

    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Hide items."""
        hidden = _choose(context, _count(context.sum(1), self.ratio), rng)
        made = made_up(batch, hidden, torch.full_like(batch["item_id"], self.token))
        if self.token == 0:
            made["padding_mask"] = made["padding_mask"] & ~hidden
        return made


class Reorder(Operator):
    """Shuffle a contiguous part of the context (CL4SRec, eq. 8).

    The order of tied interactions is none to begin with: see ``InteractionDataModule.report["ties"]``.

    Args:
        ratio: Share of the context that is shuffled, rounded down.
        keep_target: Leave the last item of each row as it is.
    """

    name = "reorder"

    def __init__(self, ratio: float = 0.6, keep_target: bool = True) -> None:
        super().__init__(keep_target)
        self.ratio = _share(ratio, "ratio")

    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Shuffle a window of each context."""
        size = context.sum(1)
        width = _count(size, self.ratio)
        inside = _window(context, size, width, rng)
        # Keys inside the window are random numbers between those of its neighbours, so that it stays in place.
        place = torch.arange(context.shape[1], device=context.device).float()
        first = inside.to(torch.int8).argmax(1, keepdim=True)
        inner = first - 0.5 + rng.uniform((context.shape[1],)) * width[:, None]
        order = torch.where(inside, inner, place).argsort(dim=1, stable=True)
        fields = {name: value.gather(1, order) for name, value in columns(batch).items()}
        return batch | fields | {"target_weight": batch["target_weight"]}


class Insert(Operator):
    """Put a similar item before random items of the context (CoSeRec, Liu et al. 2021, section 3.3).

    The oldest items fall out where a row has no room left.

    Args:
        ratio: Share of the context that gets a neighbour, rounded down, at least one.
        count: How many of the most similar items are drawn from.
        keep_target: Put nothing before the last item of a row.
        similar: int64 (vocab_size + 1, count) as `similar_items` returns; None: found in the training sequences.
    """

    name = "insert"

    def __init__(
        self, ratio: float = 0.4, count: int = 1, keep_target: bool = True, similar: Tensor | None = None
    ) -> None:
        super().__init__(keep_target)
        self.ratio, self.count = _share(ratio, "ratio"), _positive(count, "count")
        self.similar, self._given = similar, similar is not None

    def fit(self, items: Iterable[Mapping[str, Any]], schema: Mapping[str, Any]) -> Operator:
        """Find similar items."""
        if not self._given:
            self.similar = similar_items(items, int(schema["vocab_size"]), self.count)
        return self

    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Interleave each row with its new items, and keep the latest."""
        new = _similar_to(batch["item_id"], self.similar, rng.fork("similar"))
        chosen = _choose(context & (new > 0), _count(context.sum(1), self.ratio).clamp(min=1), rng)
        made = made_up(batch, torch.ones_like(chosen), new)
        both = {name: torch.stack([made[name], value], 2).flatten(1) for name, value in columns(batch).items()}
        kept = torch.stack([chosen, batch["padding_mask"]], 2).flatten(1)
        return compact(batch | both, kept, batch["item_id"].shape[1])


class Substitute(Insert):
    """Replace random items of the context by similar ones (CoSeRec, section 3.3).

    Args:
        ratio: Share of the context that is replaced, rounded down, at least one.
        count: How many of the most similar items are drawn from.
        keep_target: Leave the last item of each row as it is.
        similar: int64 (vocab_size + 1, count) as `similar_items` returns; None: found in the training sequences.
    """

    name = "substitute"

    def __init__(
        self, ratio: float = 0.1, count: int = 1, keep_target: bool = True, similar: Tensor | None = None
    ) -> None:
        super().__init__(ratio, count, keep_target, similar)

    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Replace items."""
        new = _similar_to(batch["item_id"], self.similar, rng.fork("similar"))
        chosen = _choose(context & (new > 0), _count(context.sum(1), self.ratio).clamp(min=1), rng)
        return made_up(batch, chosen, new)


class Delete(Operator):
    """Remove random items of the context (DA4Rec, Zhou et al. 2024); at least one item of it stays.

    Args:
        ratio: Share of the context that is removed, rounded down, at least one.
        keep_target: Leave the last item of each row as it is.
    """

    name = "delete"

    def __init__(self, ratio: float = 0.1, keep_target: bool = True) -> None:
        super().__init__(keep_target)
        self.ratio = _share(ratio, "ratio")

    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Remove items."""
        size = context.sum(1)
        removed = _choose(context, torch.minimum(_count(size, self.ratio).clamp(min=1), (size - 1).clamp(min=0)), rng)
        return compact(batch, batch["padding_mask"] & ~removed)


class SubsetSplit(Operator):
    """Remove each item of the context with some probability (Song & Suh 2022); its latest item stays.

    Args:
        prob: Probability that an item is removed.
        keep_target: Leave the last item of each row as it is.
    """

    name = "subset_split"

    def __init__(self, prob: float = 0.25, keep_target: bool = True) -> None:
        super().__init__(keep_target)
        self.prob = _share(prob, "prob")

    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Remove items."""
        removed = context & rng.bernoulli(self.prob, (context.shape[1],))
        removed[:, -2 if self.keep_target else -1] = False
        return compact(batch, batch["padding_mask"] & ~removed)


class SlidingWindow(Operator):
    """Cut a window out of each row; the last item of the window is the new target.

    Choosing another target is what this operator is for, so ``keep_target`` is not asked.

    Args:
        length: Items of the window, target included; shorter rows stay as they are.
    """

    name = "sliding_window"

    def __init__(self, length: int = 5) -> None:
        super().__init__(keep_target=False)
        if length < 2:
            raise ConfigError(f"length must be at least 2 (a context and a target), got {length}")
        self.length = length

    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Keep one window of each row."""
        size = context.sum(1)
        inside = _window(context, size, size.clamp(max=self.length), rng)
        done = compact(batch, inside)
        done["target_weight"][:, -1] = batch["target_weight"][:, -1]
        return done


class RepPad(Operator):
    """Fill the padding with copies of the row itself (Dang et al. 2024, RecSys; type 1, or 2 with ``delimiter``).

    Copies are targets like the row itself, but for the first item of a copy: it does not follow from what is before
    it. Fills U{1, ..., floor(length / n)} copies of a row of n items; what does not fit falls out at the left.

    Args:
        delimiter: Leave a hole between copies (type 2).
    """

    name = "rep_pad"

    def __init__(self, delimiter: bool = False) -> None:
        super().__init__(keep_target=True)
        self.delimiter = delimiter

    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Repeat each row to the left."""
        mask = batch["padding_mask"]
        length, size = mask.shape[1], mask.sum(1, keepdim=True)
        # Holes of an earlier operator would be repeated as items: such rows are closed up first.
        batch = compact(batch, mask)
        copies = 1 + rng.integers((length // size.clamp(min=1)).clamp(min=1), (1,))
        back = torch.arange(length - 1, -1, -1, device=mask.device)
        period = (size + int(self.delimiter)).clamp(min=1)
        within = back % period
        filled = (back < period * (copies + 1)) & (within < size)
        source = (length - 1 - within).expand_as(mask)
        fields = {name: value.gather(1, source).masked_fill(~filled, 0) for name, value in columns(batch).items()}
        return batch | fields | {"padding_mask": filled}


def _count(size: Tensor, ratio: float) -> Tensor:
    """floor(ratio * size), int64; the tiny summand undoes products such as 0.3 * 10 = 2.9999."""
    return (size * ratio + 1e-6).floor().long()


def _window(context: Tensor, size: Tensor, width: Tensor, rng: KeyedRNG) -> Tensor:
    """A random contiguous part of each context: bool (batch, length)."""
    start = rng.integers((size - width + 1).clamp(min=1))
    place = context.cumsum(1) - 1
    return context & (place >= start[:, None]) & (place < (start + width)[:, None])


def _choose(allowed: Tensor, count: Tensor, rng: KeyedRNG) -> Tensor:
    """``count`` random positions of the allowed ones of each row, or all where there are fewer."""
    keys = rng.integers(1 << 31, (allowed.shape[1],)).masked_fill(~allowed, 1 << 31)
    threshold = keys.sort(1).values.gather(1, (count - 1).clamp(min=0, max=allowed.shape[1] - 1)[:, None])
    return allowed & (keys <= threshold) & (count > 0)[:, None]


def _similar_to(item_id: Tensor, similar: Tensor | None, rng: KeyedRNG) -> Tensor:
    """A similar item for every position, 0 where there is none."""
    if similar is None:
        raise NotFittedError("similar items are not known yet: call fit(train_items, schema), or give similar=")
    table = similar.to(item_id.device)
    if table.shape[1] == 1:
        return table[item_id, 0]
    # An item with fewer similar ones than asked for draws from those it has.
    known = (table > 0).sum(1).clamp(min=1)[item_id]
    return table[item_id, rng.integers(known, item_id.shape[1:])]


def _share(value: float, name: str) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} must lie in [0, 1], got {value}")
    return float(value)


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
    return int(value)


OPERATORS: dict[str, type[Operator]] = {
    operator.name: operator
    for operator in (Crop, Mask, Reorder, Insert, Substitute, Delete, SubsetSplit, SlidingWindow, RepPad)
}
