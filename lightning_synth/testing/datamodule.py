"""The conformance suite of DataModules."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lightning_synth.schema import get_domain, item_hashes, num_rows, uncollate, validate
from lightning_synth.sequences.items import SequenceItems
from lightning_synth.testing.case import Skipped, quiet, watch_global_rng

_SPLITS = ("train", "val", "test")


def check_datamodule(datamodule: Any, raise_on_failure: bool = True) -> dict[str, str]:
    """Run the conformance suite on a DataModule.

    Args:
        datamodule: A LightningDataModule with ``schema`` and ``train_items()``, ``val_items()``, ``test_items()``.
        raise_on_failure: Raise at the end if something failed; False returns the failures in the result.

    Returns:
        Check name to ``"passed"``, ``"skipped: why"`` or ``"failed: why"``.

    Raises:
        AssertionError: Naming every failed check.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> set(check_datamodule(tiny_datamodule("timeseries")).values())
        {'passed'}
    """
    with quiet():
        datamodule.prepare_data()
        datamodule.setup("fit")
        results = {check.__name__: _run(check, datamodule) for check in DATAMODULE_CHECKS}
    failed = [
        f"{name}: {result.removeprefix('failed: ')}" for name, result in results.items() if result.startswith("failed")
    ]
    if failed and raise_on_failure:
        name = type(datamodule).__name__
        raise AssertionError(f"{name} fails {len(failed)} of {len(results)} checks\n  " + "\n  ".join(failed))
    return results


def _run(check: Callable[[Any], None], datamodule: Any) -> str:
    try:
        check(datamodule)
    except Skipped as skip:
        return f"skipped: {skip}"
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"
    return "passed"


def check_schema_is_plain(dm: Any) -> None:
    """The schema survives JSON unchanged and names a known domain."""
    schema = dm.schema
    try:
        again = json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"the schema is not plain: {error}") from error
    changed = [name for name in schema if schema[name] != again.get(name)]
    assert not changed, f"JSON changes schema entries {changed} (tuples, integer keys or numpy numbers?)"
    get_domain(schema)


def check_keeps_arguments_as_attributes(dm: Any) -> None:
    """Arguments are plain attributes: under LightningCLI a nested DataModule gets the hparams of the outer one."""
    assert not dict(dm.hparams), "constructor arguments are in self.hparams; keep them as plain attributes"


def check_items_fit_the_schema(dm: Any) -> None:
    """The items of every split pass validation, and training is not empty."""
    for split in _SPLITS:
        validate(_items(dm, split), dm.schema)
    assert len(_items(dm, "train")), "0 training items"


def check_splits_are_disjoint(dm: Any) -> None:
    """No item is in two splits."""
    if dm.schema["domain"] == "node":
        raise Skipped("a node data set splits its nodes by masks")
    hashes = {split: item_hashes(_items(dm, split), dm.schema) for split in _SPLITS}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = np.intersect1d(hashes[one], hashes[other])
        assert not len(shared), f"{len(shared)} items are in both {one} and {other}"


def _wanted(dm: Any, split: str) -> Any:
    """Hashes of the items as batches hold them: of long sequences the latest part."""
    items = _items(dm, split)
    if dm.schema["domain"] == "sequence":
        items = SequenceItems.from_items(items).latest(int(dm.schema["max_length"]))
    return item_hashes(items, dm.schema)


def check_loaders_yield_the_items(dm: Any) -> None:
    """Loaders yield batches of exactly the items: training shuffled, validation and test in order."""
    for split in _SPLITS:
        wanted = _wanted(dm, split)
        if not len(wanted):
            continue
        got = _loaded(_loader(dm, split), dm.schema)
        if split == "train":
            wanted, got = np.sort(wanted), np.sort(got)
        assert len(wanted) == len(got), f"{split} loader yields {len(got)} of {len(wanted)} items"
        assert bool((wanted == got).all()), f"{split} loader yields other items than {split}_items()"


def check_order_is_owned(dm: Any) -> None:
    """The training order is a function of (seed, epoch): repeatable, whatever the global generators hold."""
    first = _order(dm, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        again = _order(dm, 1)
    assert bool((first == again).all()), "the order of epoch 1 depends on more than (seed, epoch)"
    if len(first) > 8:
        assert bool((first != _order(dm, 2)).any()), "epochs 1 and 2 have the same order"


def check_items_leave_global_rng_alone(dm: Any) -> None:
    """Reading items and schema draws from no global generator."""
    with watch_global_rng() as kept:
        for split in _SPLITS:
            items = _items(dm, split)
            _ = items[0] if len(items) else None
    assert kept[0], "reading items draws from a global random generator"


def check_nests_in_a_mixture(dm: Any) -> None:
    """`MixedDataModule` accepts it: synthetic items join training, and never validation or test."""
    from lightning_synth.datamodules import MixedDataModule
    from lightning_synth.plugins.baselines import Bootstrap
    from lightning_synth.pool import SyntheticPool

    if dm.schema["domain"] == "node":
        raise Skipped("a node data set is one graph; nothing to mix")
    items = _items(dm, "train")
    # Evenly spaced, so that data sorted by class keeps every class.
    few = [items[i * len(items) // min(len(items), 64)] for i in range(min(len(items), 64))]
    generator = Bootstrap().fit_on(few, dm.schema)
    pool = SyntheticPool.generate(generator, n=len(few), seed=0)
    mixed = MixedDataModule(dm, pool=pool, ratio=0.5, batch_size=4)
    mixed.setup("fit")
    batch = next(iter(mixed.train_dataloader()))
    flags = batch["is_synthetic"] if hasattr(batch, "__getitem__") and not isinstance(batch, tuple) else None
    if flags is not None:
        assert bool(flags.any()) and not bool(flags.all()), f"a mixed batch has is_synthetic = {flags.tolist()}"
    for split in ("val", "test"):
        wanted = _wanted(dm, split)
        if len(wanted):
            got = _loaded(_loader(mixed, split), dm.schema)
            assert len(wanted) == len(got) and bool((wanted == got).all()), f"mixing changed the {split} split"


DATAMODULE_CHECKS: tuple[Callable[[Any], None], ...] = (
    check_schema_is_plain,
    check_keeps_arguments_as_attributes,
    check_items_fit_the_schema,
    check_splits_are_disjoint,
    check_loaders_yield_the_items,
    check_order_is_owned,
    check_items_leave_global_rng_alone,
    check_nests_in_a_mixture,
)


def _items(dm: Any, split: str) -> Sequence[Any]:
    items: Sequence[Any] = getattr(dm, f"{split}_items")()
    return items


def _loader(dm: Any, split: str) -> Any:
    return getattr(dm, f"{split}_dataloader")()


def _loaded(loader: Any, schema: dict[str, Any]) -> np.ndarray:
    """Hashes of the items of all batches, in order."""
    parts = []
    for batch in loader:
        items = uncollate(batch, schema)
        assert len(items) == num_rows(batch, schema)
        parts.append(item_hashes(items, schema))
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _order(dm: Any, epoch: int) -> np.ndarray:
    loader = _loader(dm, "train")
    set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)
    return _loaded(loader, dm.schema)
