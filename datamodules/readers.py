"""Reading archives of labelled series: the .ts text format of the UCR/UEA archive, and npz."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_synth.errors import DataError


@dataclass
class Labelled:
    """One split as stored.

    Args:
        x: (series, channels, length), or a list of (channels, length_i).
        y: One label a series, or None.
        class_names: In the order of the file's header, or None.
    """

    x: Any
    y: Any = None
    class_names: list[str] | None = None


def read_ts(path: Path | str) -> Labelled:
    """Read a file of the .ts format (UCR/UEA archive): values by commas, channels by colons, the label last.

    Args:
        path: The file.

    Returns:
        Series as a list of float64 (channels, length_i); ``?`` becomes NaN.

    Raises:
        DataError: Time-stamped files, broken lines (with the line number), regression targets.
    """
    header: dict[str, list[str]] = {}
    series, labels = [], []
    in_data = False
    for number, raw in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if not in_data:
            words = line.lstrip("@").split() or [""]
            in_data = words[0].lower() == "data"
            header[words[0].lower()] = words[1:]
            continue
        if header.get("timestamps", ["false"])[0].lower() == "true":
            raise DataError(
                f"{path}: the .ts file has time stamps, which are not read; resample it to even steps first"
            )
        *channels, label = line.split(":") if "classlabel" in header and _labelled(header) else [*line.split(":"), ""]
        if not channels:
            raise DataError(f"{path}, line {number}: a series and its label are needed, separated by a colon")
        try:
            rows = [np.array(channel.replace("?", "nan").split(","), dtype=np.float64) for channel in channels]
            series.append(np.stack(rows))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        labels.append(label.strip())
    if not in_data or not series:
        raise DataError(f"{path} is no .ts file with data: no @data section with series")
    return Labelled(series, labels if _labelled(header) else None, header.get("classlabel", [""])[1:] or None)


def _labelled(header: Mapping[str, list[str]]) -> bool:
    return header.get("classlabel", ["false"])[0].lower() == "true"


def open_npz(path: Path | str) -> dict[str, np.ndarray]:
    """Load all arrays of an npz; objects are not unpickled.

    Args:
        path: The file.

    Raises:
        DataError: If it is no npz of plain arrays, or only a part of one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{path} is no npz of plain arrays, or was cut short: {error}") from error


def read_npz(path: Path | str) -> tuple[Labelled, Labelled | None]:
    """Read ``X_train y_train X_test y_test`` (optional ``class_names``, ``len_train``, ``len_test``) from an npz.

    Args:
        path: The file; objects are not unpickled.

    Returns:
        The training split, and the test split or None.

    Raises:
        DataError: If ``X_train`` is missing, or entries do not fit together.
    """
    data = open_npz(path)
    if "X_train" not in data:
        raise DataError(f"{path} has no X_train; found: {', '.join(data) or 'nothing'}")
    names = [str(name) for name in data["class_names"]] if "class_names" in data else None

    def split(part: str) -> Labelled | None:
        x = data.get(f"X_{part}")
        if x is None:
            return None
        x = x[:, None] if x.ndim == 2 else x
        lengths = data.get(f"len_{part}")
        if lengths is not None and len(lengths) != len(x):
            raise DataError(f"{path}: len_{part} has {len(lengths)} entries for {len(x)} series")
        series = x if lengths is None else [row[:, :n] for row, n in zip(x, lengths.tolist(), strict=True)]
        y = data.get(f"y_{part}")
        if y is not None and names is not None and y.dtype.kind in "iu":
            if y.size and not 0 <= y.min() <= y.max() < len(names):
                raise DataError(f"{path}: y_{part} holds {y.min()}..{y.max()}, but there are {len(names)} class_names")
            y = np.asarray(names)[y]
        return Labelled(series, y, names)

    train = split("train")
    assert train is not None
    return train, split("test")


def find_archive(name: str | Path) -> tuple[Labelled, Labelled | None]:
    """Open a set of the UCR/UEA archive by name (as shipped inside sktime) or by path.

    Args:
        name: ``BasicMotions``; ``file.npz``; or ``Name_TRAIN.ts``, beside which ``Name_TEST.ts`` is looked for
            (``Name.ts`` stands for the pair; if only that one file exists, it is the training split).

    Returns:
        The training split, and the test split or None.

    Raises:
        DataError: If it cannot be found; says where it was looked for.
    """
    path = Path(name)
    if path.suffix == ".npz":
        return read_npz(_existing(path))
    train = path if path.suffix == ".ts" else _in_sktime(str(name))
    stem = train.stem.removesuffix("_TRAIN").removesuffix("_TEST")
    pair = [train.with_name(f"{stem}_{part}.ts") for part in ("TRAIN", "TEST")]
    if not pair[0].exists():
        pair = [_existing(train), pair[1]]
    return read_ts(pair[0]), read_ts(pair[1]) if pair[1].exists() and pair[1] != pair[0] else None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path} does not exist (looked for {path.resolve()})")
    return path


def _in_sktime(name: str) -> Path:
    """Find a set inside the installed sktime without importing it."""
    spec = importlib.util.find_spec("sktime")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"{name!r} is neither a .ts nor an .npz file, and sktime, which ships some sets, is not installed"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    if not (folder / name / f"{name}_TRAIN.ts").exists():
        shipped = sorted(file.parent.name for file in folder.glob("*/*_TRAIN.ts"))
        raise DataError(
            f"{name!r} is not shipped inside sktime ({', '.join(shipped)}); give the path of a .ts or .npz file"
        )
    return folder / name / f"{name}_TRAIN.ts"
