"""From what a user asks for (`{"label": "balanced", "rpm": 1750}`) to one value per requested row."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.rng import KeyedRNG

Condition = str | Mapping[str, Any] | None
_WORDS = ("empirical", "balanced")
#: Entry of a model's conditions, bool (rows,): False for rows whose other conditions must be ignored.
KEEP = "keep"


class Strings:
    """A condition that is a string, one a row; indexed, moved and concatenated like a tensor.

    Args:
        values: One string a row; ``""`` for none.

    Example:
        >>> texts = Strings(["a", "", "b"])
        >>> texts[torch.tensor([2, 0])].tolist(), len(texts[:2])
        (['b', 'a'], 2)
    """

    def __init__(self, values: Iterable[str]) -> None:
        self._values = tuple(values)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._values)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Strings:
        """Return some rows."""
        if isinstance(rows, slice):
            return Strings(self._values[rows])
        chosen = torch.as_tensor(rows)
        chosen = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
        return Strings(self._values[i] for i in chosen.tolist())

    def to(self, device: torch.device | str) -> Strings:
        """Return itself: strings live nowhere in particular."""
        return self

    def tolist(self) -> list[str]:
        """Return plain strings."""
        return list(self._values)


def condition_names(schema: Mapping[str, Any] | None, names: Sequence[str] | None = None) -> list[str]:
    """List the conditions that a schema offers and a generator understands.

    Args:
        schema: Of the items, or None.
        names: What the generator understands; ``"*"`` stands for every continuous condition; None for all.

    Returns:
        ``label`` first if there are classes, then the continuous ones.

    Example:
        >>> condition_names({"num_classes": 2, "conditions": {"rpm": {}}}, ("label",))
        ['label']
    """
    if schema is None:
        return []
    continuous = [*schema.get("conditions", {}), *schema.get("properties", {})]
    if names is not None and "*" not in names:
        continuous = [name for name in continuous if name in names]
    label = ["label"] if schema.get("num_classes", 0) and (names is None or "label" in names) else []
    return label + continuous


def check_dropout(share: float) -> None:
    """Refuse a share of hidden conditions outside [0, 1].

    Raises:
        ConfigError: If it lies outside.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"condition_dropout must lie in [0, 1], got {share}")


def check_guidance(scale: float, dropout: float) -> None:
    """Refuse guidance by a model that has never seen an item without conditions.

    Args:
        scale: Guidance scale; 0 is unconditional, 1 conditional.
        dropout: Share of training items whose conditions were hidden.

    Raises:
        ConfigError: If the unconditional model is needed but was never trained, or the scale is not finite.

    Example:
        >>> check_guidance(1.0, dropout=0.0)
    """
    if not math.isfinite(scale):
        raise ConfigError(f"guidance_scale must be finite, got {scale}")
    if scale != 1 and not dropout > 0:
        raise ConfigError(
            f"guidance_scale={scale:g} needs the unconditional model, which was never trained: "
            "condition_dropout was 0; train with condition_dropout=0.1, or use guidance_scale=1"
        )


def resolve_conditions(
    index: Tensor,
    rng: KeyedRNG,
    condition: Condition,
    schema: Mapping[str, Any] | None,
    names: Sequence[str] | None,
    partial: bool = False,
    strings: Sequence[str] = (),
) -> dict[str, Any]:
    """Give every row a value of every condition; a pure function of the row's own index and seed.

    Args:
        index: int64 (rows,).
        rng: One seed a row.
        condition: As `SampleRequests.make`.
        schema: Of the items, or None to use the given values as they are.
        names: As `condition_names`.
        partial: Continuous conditions that a mapping does not name are NaN, which stands for unspecified, instead of
            drawn as in training; ready-made tensors may hold NaN as well.
        strings: Names of conditions that are strings.

    Returns:
        Name to tensor (rows,), or to `Strings` for those of ``strings`` that were asked for.

    Raises:
        ConfigError: If a name is unknown, a length is wrong or a label out of range.
    """
    known = condition_names(schema, names)
    asked = _as_mapping(condition, known)
    texts = {name: _given_strings(name, asked.pop(name), len(index)) for name in strings if name in asked}
    if schema is None:
        return {**{name: _given(name, value, len(index)) for name, value in asked.items()}, **texts}
    for name in asked:
        if name not in known:
            raise ConfigError(
                f"condition {name!r} is not available here; known: {', '.join([*known, *strings]) or 'none'}"
            )
    if partial and isinstance(condition, Mapping):
        unspecified = torch.full((len(index),), torch.nan)
        # A class is always drawn: an item of a classification set cannot be without one.
        asked = {**{name: unspecified for name in known if name != "label"}, **asked}
    resolved: dict[str, Any] = {}
    if "label" in known:
        resolved["label"] = _labels(index, rng, asked.get("label", "empirical"), schema)
    missing = [name for name in known if name != "label" and _is_word(asked.get(name, "empirical"))]
    if missing:
        resolved.update(_empirical(rng, missing, resolved.get("label"), schema))
    for name in known:
        if name not in resolved:
            resolved[name] = _given(name, asked[name], len(index), partial)
            _warn_outside(name, resolved[name], schema)
    return {**{name: resolved[name] for name in known}, **texts}


def _as_mapping(condition: Condition, known: Sequence[str]) -> dict[str, Any]:
    if condition is None:
        return {}
    if isinstance(condition, str):
        if condition not in _WORDS:
            raise ConfigError(f"condition {condition!r} is neither a dict nor one of {_WORDS}")
        return dict.fromkeys(known, condition)
    if not isinstance(condition, Mapping):
        raise ConfigError(
            f"condition must be a dict, such as {{'label': [0, 1]}}, or one of {_WORDS}; got {condition!r}"
        )
    return {name: value for name, value in condition.items() if value is not None}


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value in _WORDS


def _given(name: str, value: Any, n: int, partial: bool = False) -> Tensor:
    if isinstance(value, str):
        raise ConfigError(f"condition {name!r} is a number, or one of {_WORDS}; got {value!r}")
    # A tensor with NaN is ready-made; a NaN that a user typed is a slip.
    unspecified_allowed = partial and isinstance(value, Tensor)
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"condition {name!r} must be a number, or one a row: {error}") from error
    if name == "label" and tensor.is_floating_point() and bool((tensor != tensor.round()).any()):
        raise ConfigError(f"labels are whole numbers or class names, got {tensor.tolist()!r:.60}")
    tensor = tensor.to(torch.int64 if name == "label" else torch.float32)
    bad = tensor.isinf() if unspecified_allowed else ~torch.isfinite(tensor)
    if bool(bad.any()):
        advice = "; leave a condition out where it does not matter" if partial else ""
        raise ConfigError(f"condition {name!r} has non-finite values{advice}")
    if tensor.ndim and tensor.shape != (n,):
        raise ConfigError(f"condition {name!r} has {tuple(tensor.shape)} values, but {n} rows were asked for")
    return tensor if tensor.ndim else tensor.expand(n).clone()


def _given_strings(name: str, value: Any, n: int) -> Strings:
    """One string a row; ``""`` and None stand for none."""
    one = isinstance(value, str) or not isinstance(value, Iterable)
    values = [value] * n if one else list(value)
    wrong = next((v for v in values if not isinstance(v, str) and v is not None), None)
    if wrong is not None:
        raise ConfigError(f"condition {name!r} is a string or a list of strings; got {wrong!r}")
    if len(values) != n:
        raise ConfigError(f"condition {name!r} has {len(values)} values, but {n} rows were asked for")
    return Strings(v or "" for v in values)


def _named_label(value: Any, schema: Mapping[str, Any]) -> Any:
    """Translate class names to numbers."""
    class_names = [str(name) for name in schema.get("class_names") or ()]
    one = [value] if isinstance(value, str) else value.tolist() if hasattr(value, "tolist") else value
    if hasattr(one, "__len__") and not isinstance(one, Tensor) and len(one) and all(isinstance(v, str) for v in one):
        unknown = [v for v in one if v not in class_names]
        if unknown:
            raise ConfigError(f"label {unknown[0]!r} is not a class; classes: {class_names}")
        numbers = [class_names.index(v) for v in one]
        return numbers[0] if isinstance(value, str) else numbers
    return value


def _labels(index: Tensor, rng: KeyedRNG, value: Any, schema: Mapping[str, Any]) -> Tensor:
    counts = torch.tensor(schema.get("class_counts") or [1] * schema["num_classes"], dtype=torch.float64)
    if isinstance(value, str) and value == "balanced":
        present = counts.nonzero()[:, 0]
        return present[index % len(present)]
    if isinstance(value, str) and value == "empirical":
        edges = counts.cumsum(0) / counts.sum()
        draw = rng.fork("label").uniform((), step=0).double()
        return torch.searchsorted(edges, draw, right=True).clamp(max=len(counts) - 1)
    labels = _given("label", _named_label(value, schema), len(index))
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < schema["num_classes"]:
        raise ConfigError(
            f"label {int(labels.min())}..{int(labels.max())} is outside 0..{schema['num_classes'] - 1}, "
            "the classes of training"
        )
    return labels


def _empirical(
    rng: KeyedRNG, names: Sequence[str], label: Tensor | None, schema: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Draw joint training rows of the continuous conditions, within the label where there is one."""
    rows = schema.get("condition_rows")
    draw = rng.fork("continuous").uniform((), step=0)
    if not rows:
        stats = {**schema.get("conditions", {}), **schema.get("properties", {})}
        noise = rng.fork("continuous").normal((len(names),), step=1)
        return {name: noise[:, i] * stats[name]["std"] + stats[name]["mean"] for i, name in enumerate(names)}
    if label is None or "label" not in rows:
        pick = (draw * len(rows[names[0]])).long()
    else:
        table = torch.tensor(rows["label"], dtype=torch.int64)
        order = table.argsort(stable=True)
        count = torch.bincount(table, minlength=int(schema["num_classes"]))
        first = count.cumsum(0) - count
        # A class absent from the table (more classes than rows) borrows the rows of all.
        size = torch.where(count[label] > 0, count[label], len(table))
        start = torch.where(count[label] > 0, first[label], 0)
        pick = order[start + (draw * size).long()]
    return {name: torch.tensor(rows[name], dtype=torch.float32)[pick] for name in names}


def _warn_outside(name: str, value: Tensor, schema: Mapping[str, Any]) -> None:
    stats = {**schema.get("conditions", {}), **schema.get("properties", {})}.get(name, {})
    if "min" in stats and bool(((value < stats["min"]) | (value > stats["max"])).any()):
        warnings.warn(
            f"condition {name!r} goes outside the training range [{stats['min']:g}, {stats['max']:g}]: extrapolation",
            stacklevel=4,
        )
