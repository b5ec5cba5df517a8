"""Checkpoints of generators: reload alone, safely, and notice when they are damaged."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_synth.errors import CheckpointError

if TYPE_CHECKING:
    from lightning_synth.generator import Generator

KEY = "lightning_synth"
FORMAT = 1


def describe(generator: Generator, state: Mapping[str, Any]) -> dict[str, Any]:
    """Say whose weights these are.

    Args:
        generator: The module being saved.
        state: The state dict as it will be written (after averaging, if any).

    Returns:
        Plain metadata for the checkpoint.
    """
    from lightning_synth import __version__

    return {
        "format": FORMAT,
        "class": f"{type(generator).__module__}:{type(generator).__qualname__}",
        "version": __version__,
        "fitted": generator.is_fitted,
        "fingerprint": generator.training_fingerprint,
        "state_sha256": state_hash(state),
    }


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], f"{path}.{key}")
    else:
        yield path, value


def state_hash(state: Mapping[str, Any]) -> str:
    """Hash every tensor and value of a state dict.

    Args:
        state: Of a module.

    Returns:
        sha256 as hex; one flipped bit changes it.

    Example:
        >>> state_hash({"w": torch.zeros(2)}) == state_hash({"w": torch.ones(2)})
        False
    """
    digest = hashlib.sha256()
    for path, value in _leaves(state):
        digest.update(path.encode())
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read and verify a checkpoint without running any code in it.

    Args:
        path: A file written by a Trainer.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: If it is missing, empty, truncated, altered, non-finite, holds objects, or is no generator's.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    if not path.stat().st_size:
        raise CheckpointError(f"checkpoint {path} is empty (0 bytes){_alternatives(path)}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path} holds Python objects; it is refused, nothing in it was run: {error}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is corrupt or truncated ({error}){_alternatives(path)}") from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of a lightning_synth generator")
    _verify(checkpoint, path)
    return checkpoint


def _verify(checkpoint: Mapping[str, Any], path: Path) -> None:
    meta = checkpoint[KEY]
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {meta.get('format')}, this version reads {FORMAT}; upgrade lightning-synth"
        )
    if state_hash(checkpoint["state_dict"]) != meta["state_sha256"]:
        raise CheckpointError(
            f"{path}: the weights do not match their hash; the file was altered or damaged{_alternatives(path)}"
        )
    for name, value in _leaves(checkpoint["state_dict"]):
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: {name[1:]} has non-finite values{_alternatives(path)}")


def _others(path: Path) -> list[Path]:
    """Other checkpoints of the folder, newest first."""
    others = [other for other in path.parent.glob("*.ckpt") if other != path]
    return sorted(others, key=lambda other: other.stat().st_mtime, reverse=True)


def _alternatives(path: Path) -> str:
    others = _others(path)
    return f"; use {others[0]}" if others else ""


def _resolve(target: str) -> type[Generator]:
    """Find the class of a checkpoint: only installed plugins and modules that are already imported are trusted."""
    from lightning_synth.generator import Generator
    from lightning_synth.registry import get_spec, list_generators

    module_name, _, qualname = target.partition(":")
    targets = {get_spec(name).target: name for name in list_generators()}
    if target in targets:
        get_spec(targets[target]).load()
    elif module_name.split(".")[0] != "lightning_synth" and module_name not in sys.modules:
        raise CheckpointError(
            f"the checkpoint's class {target} is not registered; import {module_name} first, or register it"
        )
    cls: Any = importlib.import_module(module_name)
    for part in qualname.split("."):
        cls = getattr(cls, part, None)
    if not (isinstance(cls, type) and issubclass(cls, Generator)):
        raise CheckpointError(f"the checkpoint's class {target} is not a Generator")
    return cls


def load_generator(ckpt_path: str | Path, *, fallback: bool = False, **overrides: Any) -> Generator:
    """Load a generator from its checkpoint alone.

    Args:
        ckpt_path: A file written by a Trainer.
        fallback: If the file is damaged, take the newest sound checkpoint of the same folder, with a warning.
        **overrides: Hyper-parameters to change.

    Returns:
        The generator, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: If the file is missing, damaged, altered, non-finite, or of another kind.
    """
    path = Path(ckpt_path)
    candidates = [path, *(_others(path) if fallback else ())]
    for i, candidate in enumerate(candidates):
        try:
            checkpoint = read_checkpoint(candidate)
            break
        except CheckpointError as error:
            if i + 1 == len(candidates):
                raise
            warnings.warn(f"{error}; falling back to {candidates[i + 1]}", stacklevel=2)
    return _restore(checkpoint, overrides)


def _restore(checkpoint: dict[str, Any], overrides: Mapping[str, Any]) -> Generator:
    from lightning_synth.generator import known_hparams

    cls = _resolve(checkpoint[KEY]["class"])
    saved = dict(checkpoint["hyper_parameters"])
    known = known_hparams(cls)
    if known is not None:
        missing = sorted(name for name in known if name not in saved and name not in ("kwargs", "hparams", "schema"))
        if missing:
            warnings.warn(f"the checkpoint predates {', '.join(missing)}; the defaults are used", stacklevel=3)
    generator = cls(**{**saved, **overrides})
    generator.on_load_checkpoint(checkpoint)
    generator.load_state_dict(checkpoint["state_dict"])
    return generator.eval()
