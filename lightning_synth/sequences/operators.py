"""Augmentation operators on whole batches of sequences: vectorised, seeded row by row, the target left alone.

An operator takes a left-padded batch (``item_id``, ``padding_mask``, ``target_weight`` and further fields of shape
(batch, length)) and returns a new one of the same shape. The last item of a row, its target, keeps its place unless
``keep_target=False``; operators act on what comes before, the context. Items that an operator makes up (inserted,
substituted, masked) are context only: their ``target_weight`` is 0 and ``item_is_synthetic`` is True.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.requests import KeyedRNG, mix_seed
from lightning_synth.sequences.similarity import similar_items

Batch = dict[str, Tensor]


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
        whole = _completed(batch)
        mask = whole["padding_mask"]
        context = mask.clone()
        if self.keep_target:
            context[:, -1] = False
        done = self.apply(whole, context, rng)
        # What a row begins with has no context, whatever it had before.
        return done | {"target_weight": done["target_weight"] * _not_first(done["padding_mask"])}

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
        token: Id written there; 0 makes holes, another one needs a place in the model's table.
        keep_target: Leave the last item of each row as it is.
    """

    name = "mask"

    def __init__(self, ratio: float = 0.3, token: int = 0, keep_target: bool = True) -> None:
        super().__init__(keep_target)
        self.ratio, self.token = _share(ratio, "ratio"), token

    def apply(self, batch: Batch, context: Tensor, rng: KeyedRNG) -> Batch:
        """Hide items."""
        hidden = _choose(context, _count(context.sum(1), self.ratio), rng)
        made = _made_up(batch, hidden, torch.full_like(batch["item_id"], self.token))
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
        fields = {name: value.gather(1, order) for name, value in _columns(batch).items()}
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
        made = _made_up(batch, torch.ones_like(chosen), new)
        both = {name: torch.stack([made[name], value], 2).flatten(1) for name, value in _columns(batch).items()}
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
        return _made_up(batch, chosen, new)


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
        fields = {name: value.gather(1, source).masked_fill(~filled, 0) for name, value in _columns(batch).items()}
        return batch | fields | {"padding_mask": filled}


OPERATORS: dict[str, type[Operator]] = {
    operator.name: operator
    for operator in (Crop, Mask, Reorder, Insert, Substitute, Delete, SubsetSplit, SlidingWindow, RepPad)
}


def make_operators(given: Any) -> list[Any]:
    """Make operators of names, ``{name: arguments}``, or operators.

    Args:
        given: One of these, or a sequence of them.

    Returns:
        Objects with ``augment(batch, rng)``.

    Raises:
        ConfigError: If a name is unknown or an object cannot augment.

    Example:
        >>> [type(operator).__name__ for operator in make_operators(["crop", {"mask": {"ratio": 0.5}}])]
        ['Crop', 'Mask']
    """
    if isinstance(given, str):
        if given not in OPERATORS:
            raise ConfigError(f"operator {given!r} is unknown; known: {', '.join(OPERATORS)}")
        return [OPERATORS[given]()]
    if isinstance(given, Mapping):
        return [_make(name, options) for name, options in given.items()]
    if callable(getattr(given, "augment", None)):
        return [given]
    if isinstance(given, Iterable):
        return [operator for one in given for operator in make_operators(one)]
    raise ConfigError(f"{type(given).__name__} is no operator: it has no augment(batch, rng)")


def _make(name: str, options: Mapping[str, Any] | None) -> Operator:
    if name not in OPERATORS:
        raise ConfigError(f"operator {name!r} is unknown; known: {', '.join(OPERATORS)}")
    try:
        return OPERATORS[name](**(options or {}))
    except TypeError as error:
        raise ConfigError(f"operator {name}: {error}") from error


class TwoViews:
    """Two random views of every row, for contrastive losses (CL4SRec, section 4.2).

    Each view of each row is made by an operator of its own draw. Several operators in a row: this one comes last.

    Args:
        operators: What is drawn from; None: `Crop`, `Mask` and `Reorder` of whole rows as in CL4SRec.

    Example:
        >>> batch = {"item_id": torch.tensor([[1, 2, 3, 4, 9]]), "padding_mask": torch.ones(1, 5, dtype=torch.bool)}
        >>> first, second = TwoViews().views(batch, KeyedRNG(torch.tensor([0])))
        >>> first["item_id"].shape, second["padding_mask"].dtype
        (torch.Size([1, 5]), torch.bool)
    """

    def __init__(self, operators: Any = None) -> None:
        own = (Crop(keep_target=False), Mask(keep_target=False), Reorder(keep_target=False))
        self.operators: list[Any] = make_operators(own if operators is None else operators)

    def __repr__(self) -> str:
        return f"TwoViews({self.operators})"

    def fit(self, items: Iterable[Mapping[str, Any]], schema: Mapping[str, Any]) -> TwoViews:
        """Fit the operators that need it.

        Args:
            items: Training sequences.
            schema: Of them.
        """
        for operator in self.operators:
            fit_operator(operator, items, schema)
        return self

    def views(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> tuple[Batch, Batch]:
        """Make two views.

        Args:
            batch: As `Operator.augment` takes it.
            rng: One seed a row.

        Returns:
            Two batches of the same shape.
        """
        return self._view(batch, rng.fork("first")), self._view(batch, rng.fork("second"))

    def augment(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> Batch:
        """Add ``view1_item_id``, ``view1_padding_mask`` and the same of ``view2`` to a batch.

        Args:
            batch: As `Operator.augment` takes it.
            rng: One seed a row.
        """
        added = {
            f"view{i}_{name}": view[name]
            for i, view in enumerate(self.views(batch, rng), start=1)
            for name in ("item_id", "padding_mask")
        }
        return {**batch, **added}

    def _view(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> Batch:
        which = rng.fork("which").integers(len(self.operators))
        view = _completed(batch)
        for i, operator in enumerate(self.operators):
            view = choose_rows(which == i, operator.augment(batch, rng.fork(i)), view)
        return view


class Augmentation:
    """Operators one after the other, each acting on a row with some probability.

    Args:
        operators: As `make_operators` takes them.
        prob: Probability with which an operator acts on a row; one number, or one for each.
        seed: Together with a row's number it fixes all its draws.

    Raises:
        ConfigError: If an operator is unknown or a probability lies outside [0, 1].

    Example:
        >>> batch = {"item_id": torch.tensor([[0, 2, 3, 9]]), "padding_mask": torch.tensor([[False, True, True, True]])}
        >>> Augmentation(["delete"], prob=1.0)(batch, torch.tensor([0]))["padding_mask"].sum().item()
        2
    """

    def __init__(self, operators: Any, prob: float | Sequence[float] = 0.5, seed: int = 0) -> None:
        self.operators = make_operators(operators)
        self.probs = [float(p) for p in prob] if isinstance(prob, Sequence) else [float(prob)] * len(self.operators)
        if len(self.probs) != len(self.operators) or not all(0 <= p <= 1 for p in self.probs):
            raise ConfigError(
                f"prob must be in [0, 1], one number or one for each of {len(self.operators)}, got {prob}"
            )
        self.seed = seed

    def fit(self, items: Iterable[Mapping[str, Any]], schema: Mapping[str, Any]) -> Augmentation:
        """Fit the operators that need it.

        Args:
            items: Training sequences.
            schema: Of them.
        """
        for operator in self.operators:
            fit_operator(operator, items, schema)
        return self

    def __call__(self, batch: Mapping[str, Tensor], draw: Tensor) -> Batch:
        """Augment a batch.

        Args:
            batch: As `Operator.augment` takes it.
            draw: int64 (batch,), number of each row; negative ones stay as they are.
        """
        rng = KeyedRNG(mix_seed(self.seed, 1) + draw)
        done = _completed(batch)
        for i, (operator, prob) in enumerate(zip(self.operators, self.probs, strict=True)):
            own = rng.fork(i)
            acts = own.fork("acts").bernoulli(prob) & (draw >= 0)
            done = choose_rows(acts, operator.augment(done, own.fork("augment")), done)
        return done


def fit_operator(operator: Any, items: Iterable[Mapping[str, Any]], schema: Mapping[str, Any]) -> None:
    """Fit what has a ``fit(items, schema)``; other objects with ``augment`` need none.

    Args:
        operator: Any object with ``augment``.
        items: Training sequences.
        schema: Of them.
    """
    if callable(getattr(operator, "fit", None)):
        operator.fit(items, schema)


def choose_rows(acts: Tensor, changed: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Batch:
    """Take the changed rows where an operator acts, the old ones elsewhere; new fields are kept.

    Args:
        acts: bool (batch,).
        changed: Batch after the operator.
        batch: Batch before it.
    """
    old = {name: batch.get(name, _absent(name, value, batch)) for name, value in changed.items()}
    return {
        name: torch.where(acts.reshape(-1, *([1] * (value.ndim - 1))), value, old[name])
        for name, value in changed.items()
    }


def compact(batch: Batch, kept: Tensor, length: int | None = None) -> Batch:
    """Keep some positions and close the gaps, left-padded again.

    Args:
        batch: With fields (batch, width).
        kept: bool (batch, width).
        length: Columns of the result, the latest positions; None: as many as there are.

    Returns:
        A new batch, ``padding_mask`` included.

    Example:
        >>> batch = {"item_id": torch.tensor([[1, 2, 3]]), "padding_mask": torch.ones(1, 3, dtype=torch.bool)}
        >>> compact(batch, torch.tensor([[True, False, True]]))["item_id"].tolist()
        [[0, 1, 3]]
    """
    width = kept.shape[1]
    length = width if length is None else length
    # Column of each kept position: as far from the right end as there are kept ones from it on.
    to = length - kept.flip(1).cumsum(1).flip(1)
    # What is dropped, and what does not fit, goes to a column that is cut off.
    to = torch.where(kept & (to >= 0), to, length)
    fields = {
        name: value.new_zeros(len(value), length + 1).scatter_(1, to, value)[:, :length]
        for name, value in _columns(batch | {"padding_mask": kept}).items()
    }
    return batch | fields


def _columns(batch: Mapping[str, Tensor]) -> Batch:
    """The fields with one value a position."""
    shape = batch["padding_mask"].shape
    return {name: value for name, value in batch.items() if value.ndim == 2 and value.shape == shape}


def _completed(batch: Mapping[str, Tensor]) -> Batch:
    """A batch with all fields that operators change."""
    whole = dict(batch)
    mask = whole["padding_mask"]
    whole.setdefault("target_weight", _not_first(mask).float())
    whole.setdefault("item_is_synthetic", torch.zeros_like(mask))
    return whole


def _absent(name: str, like: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """What a field that an operator adds is for rows on which it did not act."""
    source = batch.get(name.split("_", 1)[1]) if name.startswith("view") else None
    return torch.zeros_like(like) if source is None else source


def _not_first(mask: Tensor) -> Tensor:
    """Real positions but the first one of each row."""
    return mask & (mask.cumsum(1) > 1)


def _made_up(batch: Batch, where: Tensor, item_id: Tensor) -> Batch:
    """Write other items; they are synthetic, and context only."""
    return batch | {
        "item_id": torch.where(where, item_id, batch["item_id"]),
        "target_weight": batch["target_weight"].masked_fill(where, 0.0),
        "item_is_synthetic": batch["item_is_synthetic"] | where,
    }


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
