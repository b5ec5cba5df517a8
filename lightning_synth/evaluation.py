"""`evaluate`: every metric of a domain for a synthetic sample, beside real-vs-real and trivial generators."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from lightning_synth import schema as schemas
from lightning_synth.errors import ConfigError, DataError, EmptyPoolError, SchemaMismatchError
from lightning_synth.metrics.distances import Array, FeatureSpace, as_features, seeded
from lightning_synth.metrics.nulls import Calibrated, split_rows, summarise, take, threeway_rows
from lightning_synth.metrics.spec import MetricSpec, Schema
from lightning_synth.registry import get_spec, list_generators
from lightning_synth.sources import check_items, source_items, source_schema

if TYPE_CHECKING:
    import pandas as pd

#: With fewer real test items, halves of them are too small: the reference is then train and test together.
MIN_TEST = 40
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        table: One row per metric. Columns `value`, `real_vs_real` and `real_vs_real_sd` (the null), `z`, one column for
            every floor generator, `better` ("higher", "lower" or "") and `verdict`.
        flags: What the table says, in words; the first line is the summary.
        notes: What could not be done, or was done differently.
        meta: Counts, sizes, seed, seconds per metric.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule, tiny_items
        >>> data = tiny_datamodule("timeseries", n=24)
        >>> result = evaluate(data.train_items(), data, metrics=["exact_copies"], floors=False)
        >>> float(result.table.loc["exact_copy_rate", "value"])
        1.0
    """

    table: pd.DataFrame
    flags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as JSON; NaN and infinite numbers become null.

        Args:
            path: Also write it there.

        Returns:
            The JSON text.
        """
        rows = {str(name): {key: _plain(value) for key, value in row.items()} for name, row in self.table.iterrows()}
        content = {"metrics": rows, "flags": self.flags, "notes": self.notes, "meta": self.meta}
        text = json.dumps(content, indent=2, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_markdown(self) -> str:
        """The table and the flags as Markdown.

        Returns:
            The text.
        """
        cells = _cells(self.table)
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        lines.insert(1, "|---" + "|---:" * (len(cells[0]) - 2) + "|---|")
        remarks = [f"- {text}" for text in (*self.flags, *self.notes)]
        return "\n".join([*lines, "", *remarks]) + "\n"

    def __str__(self) -> str:
        """Flags, then the table in aligned columns, then notes."""
        cells = _cells(self.table)
        width = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        last = len(width) - 1
        align = [str.ljust, *[str.rjust] * (last - 1), str.ljust]
        lines = ["  ".join(align[i](cell, width[i]) for i, cell in enumerate(row)).rstrip() for row in cells]
        return "\n".join([*self.flags, "", *lines, *(f"note: {text}" for text in self.notes)])


def evaluate(
    synthetic: Any,
    datamodule: Any,
    *,
    seed: int = 0,
    metrics: Iterable[str | MetricSpec] | None = None,
    floors: bool | Sequence[str] = True,
    repeats: int = 10,
    max_items: int = 1000,
    progress: bool = False,
) -> Evaluation:
    """Compare synthetic items with the real ones of a DataModule, and say what the numbers mean.

    Fidelity and diversity metrics compare with real test items, which no generator has seen; membership metrics ask
    whether the synthetic items are nearer to training than to test items. Where test sequences continue those of
    training users, they are compared without the items held out, and only copies are counted for privacy. Every number
    stands beside its real-vs-real null at the same sizes (`lightning_synth.metrics.nulls`) and beside trivial
    generators fitted on the training items.

    Args:
        synthetic: A `SyntheticPool`, `Samples`, or a sequence of items.
        datamodule: With `.schema`, `.train_items()`, `.test_items()`, or any LightningDataModule.
        seed: Seed of all draws; the same arguments give the same table.
        metrics: Names of metrics ("c2st"), of groups ("common", "privacy", the domain, "fast": those that train no
            model), or `MetricSpec`s; None for all.
        floors: Whether to add the trivial generators (`GeneratorSpec.floor`), or the names of generators to add.
        repeats: Draws of the null of fast metrics; slow ones get a third.
        max_items: Real and synthetic items in one comparison, at most (twice that for membership metrics).
        progress: Show a bar over the metrics.

    Returns:
        Table, flags, notes.

    Raises:
        EmptyPoolError: If there is no synthetic item.
        SchemaMismatchError: If the synthetic items are of another schema; shows the difference.
        DataError: If real or synthetic items cannot be used.
        ConfigError: If a metric is unknown.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("timeseries", n=24)
        >>> result = evaluate(data.train_items(), data, metrics=["privacy"], floors=False)
        >>> result.flags[0]
        'copies training data: 100.0 % of the synthetic items are exact copies of training items'
    """
    schema = source_schema(datamodule)
    specs = _select(metrics, schema["domain"])
    items = _synthetic_items(synthetic, schema)
    notes: list[str] = []
    train, test = _real_items(datamodule, schema, notes)
    data = _Samples(train, test, {SYNTHETIC: items}, schema, seed, 2 * max_items)
    if data.continued:
        notes.append(
            "the held-out sequences continue those of training users: fidelity is to the sequences of these users up "
            "to there, so copies look good; nobody was left out of training, so privacy rows that compare with such "
            "people are left out, and copies are compared with those among training users"
        )
        specs = [spec for spec in specs if spec.null != "threeway" or spec.inputs == "hashes"]
    for name in _floor_names(floors, schema["domain"]):
        floor = _floor_items(name, train, schema, min(len(items), 2 * max_items), seed, notes)
        if floor is not None:
            data.add(name, floor)
    rows: list[_Row] = []
    seconds: dict[str, float] = {}
    for spec in tqdm(specs, desc="evaluating", unit="metric", disable=not progress, leave=False):
        start = time.perf_counter()
        try:
            rows += _rows(spec, data, repeats, seed, max_items)
        except Exception as error:
            text = f"metric {spec.name} failed: {type(error).__name__}: {error}"
            warnings.warn(text, stacklevel=2)
            notes.append(text)
        seconds[spec.name] = round(time.perf_counter() - start, 3)
    meta = {
        "domain": schema["domain"],
        "seed": seed,
        "repeats": repeats,
        "num_train": len(train),
        "num_test": len(test),
        "num_synthetic": len(items),
        "floors": list(data.columns)[1:],
        "seconds": seconds,
    }
    return Evaluation(_table(rows, data), _flags(rows), notes, meta)


@dataclass(frozen=True)
class _Row:
    """One line of the table."""

    name: str
    spec: MetricSpec
    result: Calibrated
    floors: dict[str, float]

    @property
    def better(self) -> bool | None:
        return self.spec.better(self.name)

    @property
    def worse(self) -> bool:
        """On the bad side of the null (of either side, where no side is good)."""
        z = self.result.z
        return abs(z) > 0 if self.better is None else (z < 0) == self.better

    @property
    def verdict(self) -> str:
        if not math.isfinite(self.result.p):
            return "no null"
        if self.result.p >= 0.05:
            return "within noise"
        if self.better is None:
            return "above real" if self.result.z > 0 else "below real"
        return "worse than real" if self.worse else "beyond real"


class _Samples:
    """Real and synthetic items, and their features and hashes, each computed once."""

    def __init__(self, train: Any, test: Any, columns: Mapping[str, Any], schema: Schema, seed: int, cap: int) -> None:
        self.train, self.test, self.columns, self.schema = train, test, dict(columns), schema
        self.seed, self.cap = seed, cap
        self._space: FeatureSpace | None = None
        self._features: dict[str, Array] = {}
        self._hashes: dict[str, Any] = {}
        self.continued = schema["domain"] == "sequence" and _shared_users(train, test)
        if self.continued:
            from lightning_synth.metrics.sequence import training_part

            self.test = training_part(train, test, schema)

    def add(self, name: str, items: Any) -> None:
        self.columns[name] = items

    def inputs(self, kind: str) -> tuple[Any, Any, dict[str, Any]]:
        """Train, test and columns as a metric wants them."""
        get = {"items": self._items, "features": self._feature_rows, "hashes": self._hash_rows}[kind]
        return get("train"), get("test"), {name: get(name) for name in self.columns}

    def _all(self, name: str) -> Any:
        return {"train": self.train, "test": self.test}.get(name, self.columns.get(name))

    def _items(self, name: str) -> Any:
        items = self._all(name)
        if len(items) <= self.cap or name not in self.columns:
            return items
        return take(items, np.sort(seeded(self.seed, "cap", "items").permutation(len(items))[: self.cap]))

    def _feature_rows(self, name: str) -> Array:
        if not self._features:
            real = [self._raw("train"), self._raw("test")]
            self._space = FeatureSpace(np.concatenate(real))
            self._features = {"train": self._space(real[0]), "test": self._space(real[1])}
        if name not in self._features:
            assert self._space is not None
            self._features[name] = self._space(self._raw(name))
        return self._features[name]

    def _raw(self, name: str) -> Array:
        items = self._items(name)
        if name not in self.columns and len(items) > self.cap:
            items = take(items, np.sort(seeded(self.seed, "cap", name).permutation(len(items))[: self.cap]))
        rows = _node_rows(items, name) if self.schema["domain"] == "node" else schemas.features(items, self.schema)
        return as_features(rows, f"features of {name} items")

    def _hash_rows(self, name: str) -> Any:
        from lightning_synth.metrics.privacy import payload_hashes

        if name not in self._hashes:
            self._hashes[name] = payload_hashes(self._all(name), self.schema)
        return self._hashes[name]


def _shared_users(train: Any, test: Any) -> bool:
    """Whether test sequences are of training users, as where users' last items are held out."""
    from lightning_synth.metrics.sequence_scores import users_of
    from lightning_synth.sequences.items import SequenceItems

    seen, held_out = (users_of(SequenceItems.from_items(items)) for items in (train, test))
    return bool(np.isin(held_out[held_out >= 0], seen).any())


def _node_rows(graphs: Sequence[Any], name: str) -> Array:
    """One row per node of one large graph: its features, its degree, the mean features and degree of its neighbours."""
    from scipy.sparse import coo_array

    rows = []
    for data in graphs:
        n = int(data.num_nodes)
        row, col = data.edge_index.numpy()
        adjacency = coo_array((np.ones(len(row)), (row, col)), shape=(n, n)).tocsr()
        degree = np.asarray(adjacency.sum(1)).ravel()
        own = np.zeros((n, 0)) if data.get("x") is None else data.x.double().numpy()
        own = np.concatenate([np.log1p(degree)[:, None], own], 1)
        around = adjacency @ own / np.maximum(degree, 1)[:, None]
        mask = data.get(f"{name}_mask") if name in ("train", "test") else data.get("is_synthetic")
        chosen = slice(None) if mask is None or mask.dtype.itemsize > 1 or not mask.any() else mask.numpy()
        rows.append(np.concatenate([own, around], 1)[chosen])
    return np.concatenate(rows)


def _select(metrics: Iterable[str | MetricSpec] | None, domain: str) -> list[MetricSpec]:
    """The specs asked for, in the order of the report."""
    groups: dict[str, tuple[MetricSpec, ...]] = {}
    for name in ("common", domain, "privacy"):
        module = f"lightning_synth.metrics.{name}"
        if importlib.util.find_spec(module) is not None:
            groups[name] = tuple(importlib.import_module(module).METRICS)
    known = [spec for group in groups.values() for spec in group]
    groups["fast"] = tuple(spec for spec in known if spec.cost == "fast")
    if metrics is None:
        return known
    asked = [metrics] if isinstance(metrics, (str, MetricSpec)) else list(metrics)
    chosen: list[MetricSpec] = []
    for entry in asked:
        found = [entry] if isinstance(entry, MetricSpec) else list(groups.get(entry, ()))
        found = found or [spec for spec in known if spec.name == entry]
        if not found:
            names = ", ".join([*groups, *(spec.name for spec in known)])
            raise ConfigError(f"metric {entry!r} is unknown for domain {domain!r}; known: {names}")
        chosen += [spec for spec in found if spec not in chosen]
    return chosen


def _synthetic_items(synthetic: Any, schema: Schema) -> Any:
    """Items of a pool, `Samples` or a sequence, checked against the schema."""
    own = getattr(synthetic, "schema", None)
    if isinstance(own, Mapping):
        difference = schemas.schema_diff(schema, own)
        if difference:
            raise SchemaMismatchError(f"the synthetic items are not of the data's schema: {difference}")
    items = synthetic.items() if callable(getattr(synthetic, "items", None)) else synthetic
    if len(items) == 0:
        raise EmptyPoolError("there are no synthetic items to evaluate")
    if schema["domain"] in ("timeseries", "sequence"):
        check_items(items, schema, SYNTHETIC)
    return items


def _real_items(datamodule: Any, schema: Schema, notes: list[str]) -> tuple[Any, Any]:
    """Training items and the reference: test items, else validation items, else train and test together."""
    train, test = source_items(datamodule, "train", schema), source_items(datamodule, "test", schema)
    if len(train) == 0:
        raise DataError("the DataModule has no training items")
    if schema["domain"] == "node":
        return train, test if len(test) else train
    if len(test) == 0:
        test = source_items(datamodule, "val", schema)
        notes.append("no test items: the reference is the validation split")
    if len(test) < MIN_TEST:
        notes.append(
            f"only {len(test)} items held out: too few to split, so the reference of fidelity metrics is train and "
            "held-out items together, and copies look good there"
        )
    return train, test


def _floor_names(floors: bool | Sequence[str], domain: str) -> list[str]:
    if not isinstance(floors, bool):
        return [floors] if isinstance(floors, str) else list(floors)
    return [name for name in list_generators(domain, available=True) if get_spec(name).floor] if floors else []


def _floor_items(name: str, train: Any, schema: Schema, n: int, seed: int, notes: list[str]) -> Any:
    """Items of a trivial generator fitted on the training items; None, and a note, where it cannot."""
    try:
        generator: Any = get_spec(name).load()()
        generator.fit_on(train, schema)
        return generator.sample(n, seed=seed).items()
    except Exception as error:
        notes.append(f"floor {name} left out: {type(error).__name__}: {error}")
        return None


def _rows(spec: MetricSpec, data: _Samples, repeats: int, seed: int, max_items: int) -> list[_Row]:
    """The rows of one metric, with null and floors."""
    train, test, columns = data.inputs(spec.inputs)
    draws = repeats if spec.cost == "fast" else max(2, repeats // 3)
    counts = {"null": draws, **dict.fromkeys(columns, 2 if spec.cost == "fast" else 1), SYNTHETIC: draws}
    options: dict[str, Any] = {"repeats": counts, "seed": seed, "max_items": max_items}
    if spec.null == "threeway":
        test = test[:0] if data.continued else test
        few = len(train) + len(test) < 3 * 4
        compute = threeway_rows
    else:
        if len(test) < MIN_TEST and data.schema["domain"] != "node":
            test = _joined(train, test)
        few = len(test) < 2 * 4
        compute = split_rows
    if few or min(map(len, columns.values())) < 4:
        draw = int(seeded(seed, spec.name).integers(2**31))
        found = {name: [dict(spec.compute(train, test, c, data.schema, draw))] for name, c in columns.items()}
        found["null"], size = [], len(test)
    else:
        found, size = compute(spec, train, test, columns, data.schema, **options)
    sizes = (size, min(size, len(columns[SYNTHETIC])))
    value = summarise(found, SYNTHETIC, sizes, seed)
    floors = {name: summarise(found, name, sizes, seed) for name in columns if name != SYNTHETIC}
    return [
        _Row(row, spec, c, {f: floors[f][row].value for f in floors if row in floors[f]}) for row, c in value.items()
    ]


def _joined(train: Any, test: Any) -> Any:
    """Train and test as one collection."""
    if isinstance(train, np.ndarray):
        return np.concatenate([train, test])
    return [*train, *test]


def _table(rows: list[_Row], data: _Samples) -> pd.DataFrame:
    import pandas as pd

    direction = {True: "higher", False: "lower", None: ""}
    records = [
        {
            "value": row.result.value,
            "real_vs_real": row.result.null_mean,
            "real_vs_real_sd": row.result.null_sd,
            "z": row.result.z,
            **{name: row.floors.get(name, float("nan")) for name in data.columns if name != SYNTHETIC},
            "better": direction[row.better],
            "verdict": row.verdict,
        }
        for row in rows
    ]
    floors = [name for name in data.columns if name != SYNTHETIC]
    names = ["value", "real_vs_real", "real_vs_real_sd", "z", *floors, "better", "verdict"]
    return pd.DataFrame(records, index=pd.Index([row.name for row in rows], name="metric"), columns=names)


def _flags(rows: list[_Row]) -> list[str]:
    """The table in words: leaks first, then fidelity, then the floors."""
    fidelity = [row for row in rows if row.spec.null == "split" and math.isfinite(row.result.p)]
    privacy = [row for row in rows if row.spec.null == "threeway" and math.isfinite(row.result.p)]
    return [*_leaks(privacy), *_fidelity(fidelity), *_beaten(fidelity)]


def _leaks(rows: list[_Row]) -> list[str]:
    # Many rows are looked at: one of them at 5 % is no finding.
    found = {row.name: row for row in rows if row.worse and row.result.p < 0.05 / max(1, len(rows))}
    flags = []
    copies = found.pop("exact_copy_rate", None)
    found = {name: row for name, row in found.items() if name not in ("copied_train_rate", "unique_rate")}
    if copies is not None:
        share = 100 * copies.result.value
        flags.append(f"copies training data: {share:.1f} % of the synthetic items are exact copies of training items")
    if found:
        seen = ", ".join(
            f"{name} {row.result.value:.3g} (real {row.result.null_mean:.3g})" for name, row in found.items()
        )
        flags.append(f"leaks training data: {seen}")
    averages = [row.name for row in rows if row.name in ("dcr_share", "mia_auc")]
    if flags and averages and not any(name in found for name in averages):
        flags.append(f"averages alone ({', '.join(averages)}) would have passed this")
    return flags


def _fidelity(rows: list[_Row]) -> list[str]:
    if not rows:
        return []
    level = 0.05 / len(rows)
    bad = sorted((row for row in rows if row.worse and row.result.p < level), key=lambda row: -abs(row.result.z))
    if not bad:
        inside = sum(row.verdict == "within noise" for row in rows)
        return [f"within real-vs-real noise: no fidelity row is off ({inside} of {len(rows)} at the 5 % level)"]
    worst = ", ".join(f"{row.name} {row.result.value:.3g} (real {row.result.null_mean:.3g})" for row in bad[:3])
    return [f"differs from real data in {len(bad)} of {len(rows)} rows: {worst}"]


def _beaten(rows: list[_Row]) -> list[str]:
    """Which floors are nearer to real-vs-real on most rows."""
    flags = []
    for name in rows[0].floors if rows else ():
        pairs = [(row.floors.get(name, math.nan), row.result) for row in rows]
        nearer = [abs(f - c.null_mean) < abs(c.value - c.null_mean) for f, c in pairs if math.isfinite(f)]
        if nearer and sum(nearer) > len(nearer) / 2:
            flags.append(f"the trivial generator {name} is nearer to real data in {sum(nearer)} of {len(nearer)} rows")
    return flags


def _plain(value: Any) -> Any:
    """A JSON value: numbers rounded to 6 digits, NaN and infinities as None."""
    if isinstance(value, str):
        return value
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _cells(table: pd.DataFrame) -> list[list[str]]:
    """The table as text, header first; direction marks in the name."""
    numeric = [name for name in table.columns if name not in ("better", "verdict")]
    mark = {"higher": " ↑", "lower": " ↓", "": ""}
    rows = [["metric", *(name.replace("real_vs_real_sd", "± sd").replace("_", " ") for name in numeric), "verdict"]]
    for name, row in table.iterrows():
        numbers = (f"{row[column]:+.1f}" if column == "z" else f"{row[column]:.3f}" for column in numeric)
        rows.append([f"{name}{mark[row['better']]}", *numbers, row["verdict"]])
    return rows
