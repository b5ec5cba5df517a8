"""Work on many molecules: in pieces, with a progress bar and several processes, and kept for the next time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm.auto import tqdm

T = TypeVar("T")
_CHUNK = 1000
#: Below this many molecules there is neither a progress bar nor a cache; below the next one no second process.
_MANY, _PARALLEL = 5000, 20_000
_ENVIRONMENT = "LIGHTNING_SYNTH_CACHE"
_VERSION = 1
_MEMORY: dict[str, dict[str, np.ndarray]] = {}
#: Results that are kept in memory.
_KEPT = 32


def to_bytes(lines: Sequence[str]) -> np.ndarray:
    """Lines of text as uint8, for files of numpy."""
    return np.frombuffer("".join(line + "\n" for line in lines).encode(), np.uint8)


def from_bytes(data: np.ndarray) -> list[str]:
    """Lines that `to_bytes` wrote."""
    return data.tobytes().decode().split("\n")[:-1]


def map_chunks(
    function: Callable[[Sequence[Any]], T], values: Sequence[Any], processes: int = 1, description: str = ""
) -> list[T]:
    """Apply a function to pieces of a sequence, with a progress bar and in several processes if it is long.

    Args:
        function: Of a sequence of at most 1,000 values; importable, as it travels to other processes.
        values: What to cut in pieces.
        processes: Worker processes; 1 works here.
        description: Of the bar.

    Returns:
        One result a piece.

    Example:
        >>> sum(map_chunks(len, range(2500)))
        2500
    """
    from sklearn.utils.parallel import Parallel, delayed

    parts = [values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK)]
    results: Any = map(function, parts)
    if processes > 1 and len(values) >= _PARALLEL:
        results = Parallel(n_jobs=processes, return_as="generator")(delayed(function)(part) for part in parts)
    out = []
    with tqdm(
        total=len(values), desc=description, unit="molecule", disable=len(values) < _MANY, leave=False
    ) as progress:
        for part, result in zip(parts, results, strict=True):
            out.append(result)
            progress.update(len(part))
    return out


def cached(
    kind: str, smiles: Sequence[str], *settings: str, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Compute arrays of molecules, or find what was computed for the same molecules, settings and RDKit before.

    Those of up to 5,000 molecules are kept in memory, as a study makes its DataModule anew for every repetition; larger
    ones are kept on disk.

    Args:
        kind: Of the arrays, part of the file name.
        smiles: The molecules.
        settings: What else the arrays depend on.
        compute: Makes them.

    Returns:
        The arrays.
    """
    import rdkit

    state = hashlib.blake2b("\n".join((str(_VERSION), rdkit.__version__, kind, *settings)).encode(), digest_size=16)
    state.update("\n".join(smiles).encode())
    key = f"{kind}-{state.hexdigest()}"
    if len(smiles) >= _MANY:
        return _on_disk(key, compute)
    if key not in _MEMORY:
        while len(_MEMORY) >= _KEPT:
            _MEMORY.pop(next(iter(_MEMORY)))
        _MEMORY[key] = compute()
    return _MEMORY[key]


def _on_disk(key: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    folder = Path(os.environ.get(_ENVIRONMENT) or Path.home() / ".cache" / "lightning_synth") / "molecules"
    path = folder / f"{key}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(path) as file:
        return {name: file[name] for name in file.files}
    arrays = compute()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        # Moved into place, so that another process never reads half a file.
        temporary = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    return arrays
