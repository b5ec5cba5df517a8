"""Operators by name, one after the other or as two views of every row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.requests import KeyedRNG, mix_seed
from lightning_synth.sequences.batches import Batch, choose_rows, completed
from lightning_synth.sequences.operators import OPERATORS, Crop, Mask, Operator, Reorder


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
        >>> import torch
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
        fit_operators(self.operators, items, schema)
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
        view = completed(batch)
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
        >>> import torch
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
        fit_operators(self.operators, items, schema)
        return self

    def __call__(self, batch: Mapping[str, Tensor], draw: Tensor) -> Batch:
        """Augment a batch.

        Args:
            batch: As `Operator.augment` takes it.
            draw: int64 (batch,), number of each row; negative ones stay as they are.
        """
        rng = KeyedRNG(mix_seed(self.seed, 1) + draw)
        done = completed(batch)
        for i, (operator, prob) in enumerate(zip(self.operators, self.probs, strict=True)):
            own = rng.fork(i)
            acts = own.fork("acts").bernoulli(prob) & (draw >= 0)
            done = choose_rows(acts, operator.augment(done, own.fork("augment")), done)
        return done


def fit_operators(operators: Iterable[Any], items: Iterable[Mapping[str, Any]], schema: Mapping[str, Any]) -> None:
    """Fit what has a ``fit(items, schema)``; other objects with ``augment`` need none.

    Args:
        operators: Objects with ``augment``.
        items: Training sequences.
        schema: Of them.
    """
    for operator in operators:
        if callable(getattr(operator, "fit", None)):
            operator.fit(items, schema)
