"""Interaction logs of many formats: one-line-a-user text, RecBole atomic files, tables, Parquet, plain lists."""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_synth.errors import ConfigError, DataError

_USER_NAMES = ("user_id", "user", "userid", "uid", "session_id", "sessionid", "reviewerid", "query_id")
_ITEM_NAMES = ("item_id", "item", "itemid", "iid", "movie_id", "movieid", "product_id", "asin", "item_id_list")
_TIME_NAMES = ("timestamp", "datetime", "time", "ts", "date", "unixreviewtime")
_DIGITS, _SPACE = np.zeros(256, bool), np.zeros(256, bool)
_DIGITS[np.frombuffer(b"0123456789-", np.uint8)] = True
_SPACE[np.frombuffer(b" \t\r\n", np.uint8)] = True


@dataclass
class Log:
    """Interactions in the order of the source.

    Args:
        user: Original user of each interaction.
        item: Original item of each interaction.
        time: float64 or int64 time of each interaction, or None.
        encoded: Items are ids of a model already (integers, 0 is padding), not names to be numbered.
        sizes: Interactions of each line of a one-line-a-user source, and `user` then holds one entry a line.
        vocab_size: Items of the catalogue, where the source knows it.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray | None = None
    encoded: bool = False
    sizes: np.ndarray | None = None
    vocab_size: int | None = None


def read_log(
    source: Any, columns: Mapping[str, str | int] | None = None, read_options: Mapping[str, Any] | None = None
) -> Log:
    """Read interactions.

    Args:
        source: A path (``.txt``, ``.inter``, ``.csv``, ``.tsv``, all also packed as ``.gz``, or ``.parquet``), a pandas
            or polars frame, or a list of sequences (ids, or dicts with ``item_id``), or anything with a method
            ``log()``.
        columns: Of a table: ``{"user": ..., "item": ..., "time": ...}`` by name or number; None finds the usual names.
        read_options: For `pandas.read_csv`, such as ``{"sep": "::", "engine": "python"}``.

    Returns:
        The log.

    Raises:
        DataError: If the source cannot be read as interactions.

    Example:
        >>> log = read_log([[1, 2, 3], [2, 4]])
        >>> log.item.tolist(), log.sizes.tolist()
        ([1, 2, 3, 2, 4], [3, 2])
    """
    if callable(getattr(source, "log", None)):
        log: Log = source.log()
        return log
    if isinstance(source, (str, Path)):
        return _read_file(Path(source), columns, read_options)
    if hasattr(source, "columns") and not isinstance(source, Mapping) and hasattr(source, "shape"):
        return _read_table(source, columns, type(source).__name__)
    if isinstance(source, Sequence) or hasattr(source, "__getitem__"):
        return _read_sequences(source)
    raise ConfigError(
        f"source must be a path, a pandas or polars frame or a list of sequences, got {type(source).__name__}"
    )


# ------------------------------------------------------------------------------------------------------------- files


def _read_file(path: Path, columns: Mapping[str, str | int] | None, options: Mapping[str, Any] | None) -> Log:
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: 0 interactions")
    suffix = Path(path.stem if path.suffix.lower() == ".gz" else path).suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path, columns)
    try:
        with _opened(path) as file:
            head = file.readline().removeprefix(codecs.BOM_UTF8)
    except gzip.BadGzipFile as error:
        raise DataError(f"{path} is no gzip file: {error}") from error
    if suffix in (".inter", ".csv", ".tsv") or options or b"\t" in head or b"," in head:
        return _read_text_table(path, columns, head, options)
    return _read_lines(path)


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_text_table(
    path: Path, columns: Mapping[str, str | int] | None, head: bytes, options: Mapping[str, Any] | None
) -> Log:
    import pandas as pd

    separator = "\t" if b"\t" in head else ","
    # A first line of numbers is no header.
    first = [field.strip() for field in head.decode("utf-8", "replace").strip().split(separator)]
    header = None if all(_is_number(field) for field in first) else 0
    try:
        table = pd.read_csv(path, **{"sep": separator, "header": header, "index_col": False, **(options or {})})
    except (ValueError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error} (read_options= go to pandas.read_csv)") from error
    if header == 0:
        # RecBole writes the type behind the name: user_id:token, item_id_list:token_seq.
        table.columns = [str(name).split(":")[0].strip() for name in table.columns]
    if "item_id_list" in table.columns:
        return _read_benchmark(table)
    return _read_table(table, columns, str(path))


def _read_benchmark(table: Any) -> Log:
    """RecBole benchmark files: a history in `item_id_list`, its next item in `item_id`."""
    lists = [str(text).split() for text in table["item_id_list"]]
    if "item_id" in table.columns:
        lists = [[*ids, str(last)] for ids, last in zip(lists, table["item_id"], strict=True)]
    sizes = np.array([len(ids) for ids in lists], np.int64)
    return Log(table["user_id"].to_numpy(), _numbers(np.array([i for ids in lists for i in ids])), sizes=sizes)


def _read_parquet(path: Path, columns: Mapping[str, str | int] | None) -> Log:
    """Interactions as rows, or RePlay's form: one row a user with list columns."""
    import pyarrow.parquet as pq
    import pyarrow.types as pt

    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    names = _named(list(table.column_names), columns, str(path))
    used = {role: table.column(name).combine_chunks() for role, name in names.items()}
    kind = used["item"].type
    if not (pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)):
        return _columns_log({role: column.to_numpy(zero_copy_only=False) for role, column in used.items()}, str(path))
    sizes = used["item"].value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    if "time" in used:
        _check_lengths(sizes, used["time"].value_lengths().to_numpy(zero_copy_only=False), str(path))
    flat = {role: used[role].flatten().to_numpy(zero_copy_only=False) for role in ("item", "time") if role in used}
    return Log(
        used["user"].to_numpy(zero_copy_only=False),
        _clean(flat["item"], "item", str(path)),
        _times(flat["time"], str(path)) if "time" in flat else None,
        sizes=sizes,
    )


def _read_lines(path: Path) -> Log:
    """``user item item ...`` a line; or ``user item`` pairs, where every line has two fields and users come again."""
    with _opened(path) as file:
        text = np.frombuffer(file.read().removeprefix(codecs.BOM_UTF8), np.uint8)
    if not len(text) or text[-1] != 10:
        text = np.append(text, np.uint8(10))
    space = _SPACE[text]
    starts = np.flatnonzero(~space & np.concatenate([[True], space[:-1]]))
    sizes = np.diff(np.searchsorted(starts, np.flatnonzero(text == 10)), prepend=0)
    sizes = sizes[sizes > 0]
    if not len(sizes):
        raise DataError(f"{path} is empty: 0 interactions")
    if (space | _DIGITS[text]).all():
        try:
            tokens = np.fromstring(text.tobytes().decode("ascii"), np.int64, sep=" ")
        except (ValueError, DeprecationWarning) as error:
            raise DataError(f"{path}: a field is no whole number: {error}") from error
    else:
        try:
            tokens = np.array(text.tobytes().decode("utf-8").split())
        except UnicodeError as error:
            raise DataError(f"{path} is no text file: {error}") from error
    if len(tokens) != len(starts):
        raise DataError(f"{path}: {len(starts)} fields, but only {len(tokens)} whole numbers among them")
    first = np.cumsum(sizes) - sizes
    user, item = tokens[first], np.delete(tokens, first)
    item = _numbers(item) if item.dtype.kind == "U" else item
    encoded = item.dtype.kind == "i"
    if len(user) > 1 and (sizes == 2).all() and len(np.unique(user)) < len(user):
        return Log(user, item, encoded=encoded)
    return Log(user, item, encoded=encoded, sizes=sizes - 1)


# ------------------------------------------------------------------------------------------------ tables and lists


def _read_table(table: Any, columns: Mapping[str, str | int] | None, name: str) -> Log:
    """Rows of a pandas or polars frame; the item column may hold lists."""
    names = _named(list(table.columns), columns, name)
    used = {role: table[column].to_numpy() for role, column in names.items()}
    if not len(used["item"]):
        raise DataError(f"{name} is empty: 0 interactions")
    if not isinstance(used["item"][0], (list, tuple, np.ndarray)):
        return _columns_log(used, name)
    sizes = np.array([len(ids) for ids in used["item"]], np.int64)
    if "time" in used:
        _check_lengths(sizes, np.array([len(times) for times in used["time"]]), name)
    flat = {role: np.concatenate([np.asarray(v) for v in used[role]]) for role in ("item", "time") if role in used}
    time = _times(flat["time"], name) if "time" in flat else None
    return Log(used["user"], _clean(flat["item"], "item", name), time, sizes=sizes)


def _columns_log(used: Mapping[str, np.ndarray], name: str) -> Log:
    time = _times(used["time"], name) if "time" in used else None
    return Log(_clean(used["user"], "user", name), _clean(used["item"], "item", name), time)


def _read_sequences(source: Any) -> Log:
    """Lists of ids, or dict items with ``item_id`` and, if they like, ``user_id`` and ``timestamp``."""
    rows = [row if isinstance(row, Mapping) else {"item_id": row} for row in source]
    if not rows:
        raise DataError("the list of sequences is empty: 0 interactions")
    for i, row in enumerate(rows):
        if "item_id" not in row:
            raise DataError(f"sequence {i} has no item_id; it has {sorted(row)}")
    ids = [_array(row["item_id"]) for row in rows]
    for i, values in enumerate(ids):
        if values.ndim != 1:
            raise DataError(f"sequence {i} has shape {values.shape}; a flat list of item ids is needed")
    sizes = np.array([len(values) for values in ids], np.int64)
    item = np.concatenate([values for values in ids if len(values)] or [np.zeros(0, np.int64)])
    user = np.array([_array(row["user_id"]).item() if "user_id" in row else i for i, row in enumerate(rows)])
    time = None
    if all("timestamp" in row for row in rows):
        times = [_array(row["timestamp"]) for row in rows]
        _check_lengths(sizes, np.array([t.size for t in times]), "list")
        time = _times(np.concatenate(times), "timestamp")
    return Log(user, _clean(item, "item", "list"), time, encoded=item.dtype.kind in "iu", sizes=sizes)


def _check_lengths(items: np.ndarray, times: np.ndarray, name: str) -> None:
    if len(wrong := np.flatnonzero(items != times)):
        i = int(wrong[0])
        raise DataError(f"{name}: sequence {i} has {int(items[i])} items, but {int(times[i])} times")


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values)


def _named(available: list[Any], columns: Mapping[str, str | int] | None, name: str) -> dict[str, Any]:
    """Find the columns of user, item and time."""
    asked = dict(columns or {})
    if unknown := sorted(set(asked) - {"user", "item", "time"}):
        raise ConfigError(f"columns may name user, item and time, got {unknown}")
    lower = {str(column).lower(): column for column in available}
    found: dict[str, Any] = {}
    for role, usual in (("user", _USER_NAMES), ("item", _ITEM_NAMES), ("time", _TIME_NAMES)):
        wanted = asked.get(role)
        if wanted is None and role not in asked:
            match = next((lower[n] for n in usual if n in lower), None)
        elif isinstance(wanted, int) and wanted not in available:
            match = available[wanted] if -len(available) <= wanted < len(available) else None
        else:
            match = wanted if wanted in available else None
        if match is not None:
            found[role] = match
        elif role != "time" or wanted is not None:
            raise DataError(
                f"{name} has no {role} column{f' {wanted!r}' if wanted is not None else ''}; it has "
                f"{', '.join(map(str, available))}: name it, as in columns={{'user': 0, 'item': 1, 'time': 3}}"
            )
    return found


def _clean(values: np.ndarray, role: str, name: str) -> np.ndarray:
    """Refuse missing values; numbers that are whole become integers."""
    if values.dtype.kind == "f":
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            raise DataError(f"{name}: {role} of row {int(bad[0])} is missing ({len(bad)} in all); drop such rows")
        whole = values.astype(np.int64)
        return whole if (whole == values).all() else values
    if values.dtype.kind == "O":
        import pandas as pd

        missing = pd.isna(values)
        missing[~missing] = values[~missing] == ""
        if missing.any():
            first = int(np.flatnonzero(missing)[0])
            raise DataError(f"{name}: {role} of row {first} is missing ({int(missing.sum())} in all); drop such rows")
        return values.astype(str)
    return values


def _times(values: np.ndarray, name: str) -> np.ndarray:
    """Times as numbers: seconds for dates."""
    if values.dtype.kind in "OUS":
        import pandas as pd

        try:
            values = pd.to_datetime(values, utc=True).tz_localize(None).to_numpy()
        except (ValueError, TypeError) as error:
            raise DataError(f"{name}: the time column holds neither numbers nor dates: {error}") from error
    if values.dtype.kind == "M":
        missing = np.isnat(values)
        seconds = values.astype("datetime64[s]")
        part = (values - seconds) / np.timedelta64(1, "s")
        # Within a second the order is that of the fraction.
        values = seconds.astype(np.int64) + part if (part > 0).any() else seconds.astype(np.int64)
    else:
        missing = ~np.isfinite(values)
    if missing.any():
        raise DataError(
            f"{name}: time of row {int(np.flatnonzero(missing)[0])} is missing ({int(missing.sum())} in all)"
        )
    return values.astype(np.int64) if values.dtype.kind in "iub" else values.astype(np.float64)


def _numbers(tokens: np.ndarray) -> np.ndarray:
    """Integers where all strings are, else the strings."""
    try:
        return tokens.astype(np.int64)
    except ValueError:
        return tokens


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
