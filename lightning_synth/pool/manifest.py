"""The manifest of a pool: what generated it, from which data, and which bytes belong to it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_synth.errors import PoolError
from lightning_synth.pool.files import sha256_file, to_json

if TYPE_CHECKING:
    from lightning_synth.generator import Generator

FORMAT, FORMAT_VERSION = "lightning_synth.pool", "1.0"
#: The leading underscore keeps dataset readers (pandas, pyarrow, DuckDB globs) from taking it for a shard.
MANIFEST = "_manifest.json"
#: Key of the provenance in Parquet key-value metadata and in ``DataFrame.attrs``.
METADATA_KEY = "lightning_synth"
_PACKAGES = ("lightning-synth", "torch", "lightning", "numpy", "pyarrow", "torch-geometric")


def describe_packages(extra: Sequence[str] = ()) -> dict[str, str]:
    """Return the installed versions of what shapes a pool."""
    versions = {"python": platform.python_version()}
    for name in (*_PACKAGES, *extra):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_generator(generator: Generator, checkpoint: str | Path | None = None) -> dict[str, Any]:
    """Return name, version, settings and weight hash of a generator.

    Args:
        generator: The generator.
        checkpoint: File its weights were loaded from, if known.
    """
    from lightning_synth.checkpoint import state_hash

    cls = type(generator)
    distribution = metadata.packages_distributions().get(cls.__module__.partition(".")[0], ["lightning-synth"])[0]
    known = describe_packages((distribution,))
    return {
        "name": _registered_name(cls),
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "version": known.get(distribution, "unknown"),
        "state_sha256": state_hash(generator.state_dict()),
        "checkpoint": {"file": Path(checkpoint).name, "sha256": sha256_file(Path(checkpoint))} if checkpoint else None,
        "hparams": {key: value for key, value in dict(generator.hparams).items() if key != "schema"},
    }


def _registered_name(cls: type) -> str:
    """The name of the registry, or the name of the class."""
    from lightning_synth.registry import get_spec, list_generators

    target = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name in list_generators() if get_spec(name).target == target), cls.__name__)


def new_manifest(
    schema: Mapping[str, Any],
    *,
    generator: Mapping[str, Any] | None = None,
    training_fingerprint: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    licence: str | None = None,
    generation: int = 1,
) -> dict[str, Any]:
    """Return a manifest without counts and shards.

    Args:
        schema: Of the items.
        generator: Of `describe_generator`.
        training_fingerprint: Which items the generator was trained on.
        config: Seed, condition and sampler options of the request.
        licence: Terms under which the pool may be used, as the user states them.
        generation: 1 for a generator trained on real data, one more for each synthetic ancestor.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "is_synthetic": True,
        "generation": generation,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "licence": licence,
        "generator": dict(generator) if generator else None,
        "config": dict(config or {}),
        "schema": dict(schema),
        "training_fingerprint": dict(training_fingerprint) if training_fingerprint else None,
        "packages": describe_packages(),
        "counts": {},
        "fields": {},
        "complete": False,
        "shards": [],
    }


def provenance(manifest: Mapping[str, Any]) -> str:
    """Return the part of a manifest that every shard carries, as JSON."""
    kept = {key: value for key, value in manifest.items() if key not in ("counts", "fields", "shards", "complete")}
    return to_json(kept, sort_keys=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of a pool.

    Raises:
        PoolError: If it is missing, damaged, or of a format this version does not know.
    """
    path = folder / MANIFEST
    if not path.exists():
        shards = len(list(folder.glob("part-*.parquet"))) if folder.is_dir() else 0
        state = (
            f"the run that writes it has not finished ({shards} complete shards); start it again to continue"
            if shards
            else "it is no pool"
        )
        raise PoolError(f"{folder} has no {MANIFEST}: {state}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, version = manifest["format"], str(manifest["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise PoolError(f"{path} is damaged: {error}") from error
    if kind != FORMAT:
        raise PoolError(f"{path} is a manifest of {kind!r}, not of a pool")
    known = FORMAT_VERSION.partition(".")[0]
    if version.partition(".")[0] != known:
        raise PoolError(
            f"{path} has format version {version}, this version of lightning_synth reads {known}.x: install the "
            "version that wrote it, or write the pool again"
        )
    missing = [key for key in ("schema", "fields", "counts", "shards") if key not in manifest]
    if missing:
        raise PoolError(f"{path} is damaged: it has no {', '.join(missing)}")
    return dict(manifest)


def verify_shards(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare every shard with the manifest.

    Raises:
        PoolError: Naming the first shard that is missing, truncated or altered.
    """
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.exists():
            raise PoolError(f"shard {path} is missing")
        if (size := path.stat().st_size) != shard["bytes"]:
            raise PoolError(f"shard {path} is truncated or altered: {size} bytes, the manifest says {shard['bytes']}")
        if sha256_file(path) != shard["sha256"]:
            raise PoolError(f"shard {path} is corrupt: its sha256 differs from the manifest's; generate it again")
