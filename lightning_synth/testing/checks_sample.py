"""Checks of sampling: exact counts, valid items, owned randomness, conditions, pools."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, NotFittedError
from lightning_synth.generator import Generator
from lightning_synth.requests import SampleRequests
from lightning_synth.schema import get_domain, num_rows, validate
from lightning_synth.testing.case import Case, Skipped, difference, quiet, quiet_trainer, tensors_of, watch_global_rng
from lightning_synth.testing.tiny import tiny_datamodule


def check_counts(case: Case) -> None:
    """``sample(n)`` returns exactly n rows, also for 0, 1 and numbers that no batch size divides."""
    for n in (0, 1, 7):
        samples = case.fitted.generator.sample(n, seed=0)
        counts = (len(samples), len(samples.items()), len(samples.accepted), len(samples.index))
        assert counts == (n, n, n, n), f"sample({n}) gave {counts} (rows, items, accepted, index)"
        if n or case.domain != "node":
            assert num_rows(samples.data, case.schema) == n, (
                f"sample({n}).data has {num_rows(samples.data, case.schema)} rows"
            )


def check_items_are_valid(case: Case) -> None:
    """Sampled items pass the schema, with the fields and dtypes of training items."""
    items = case.fitted.generator.sample(6, seed=0).items()
    validate(items, case.schema)
    kind = get_domain(case.domain)
    real, synthetic = kind.fields(case.datamodule.train_items()[0]), kind.fields(items[0])
    optional = {"user_id", "timestamp", "smiles", "y", "mask", "train_mask", "val_mask", "test_mask"}
    assert real.keys() - optional <= synthetic.keys(), (
        f"fields {sorted(real.keys() - optional - synthetic.keys())} are missing"
    )
    for name in real.keys() & synthetic.keys():
        want, got = real[name], synthetic[name]
        assert type(want) is type(got), f"field {name!r} is {type(got).__name__}, not {type(want).__name__}"
        if isinstance(want, Tensor):
            assert want.dtype == got.dtype, f"field {name!r} is {got.dtype}, training items have {want.dtype}"
            assert not got.requires_grad, f"field {name!r} carries a graph"


def check_sample_before_fit(case: Case) -> None:
    """Sampling without networks is a NotFittedError; sampling from initial weights at least warns."""
    try:
        case.fresh().sample(1)
    except NotFittedError:
        pass
    else:
        raise AssertionError("sample() before fit did not raise NotFittedError")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            case.fresh(schema=case.schema).sample(1)
        except NotFittedError:
            return
    assert any("not been fitted" in str(w.message) for w in caught), "sampling from initial weights is silent"


def check_rows_depend_on_their_seed_only(case: Case) -> None:
    """A row is the same alone, in any order and at any batch size."""
    generator = case.fitted.generator
    requests = _requests(case, 6)
    together = generator.sample(requests).items()
    alone = [generator.sample(requests[i : i + 1]).items()[0] for i in range(6)]
    found = difference(alone, together, case.domain)
    assert not found, f"a row sampled alone differs from the same row in a batch: {found}"
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    permuted = generator.sample(requests[order]).items()
    found = difference(permuted, [together[i] for i in order.tolist()], case.domain)
    assert not found, f"rows change with their order in the batch: {found}"
    halves = [*generator.sample(requests[:4]).items(), *generator.sample(requests[4:]).items()]
    found = difference(halves, together, case.domain)
    assert not found, f"rows change with the batch size: {found}"


def check_seeds_differ(case: Case) -> None:
    """Under one condition, other seeds give other items, and rows of one request differ from each other."""
    generator = case.fitted.generator
    one, other = generator.make_requests(8, seed=0), generator.make_requests(8, seed=1)
    same = {name: value[:1].expand(8) for name, value in one.condition.items()}
    first, second = (list(generator.sample(replace(part, condition=same)).items()) for part in (one, other))
    ignore = ("y", "label")
    assert difference(first, second, case.domain, ignore), "seed 0 and seed 1 give the same items"
    assert difference(first[:1] * 7, first[1:], case.domain, ignore), "all rows of a request are equal"


def check_sampling_is_repeatable(case: Case) -> None:
    """A request gives the same items whatever the global generators hold, and leaves them and the model alone."""
    generator = case.fitted.generator
    state, training = tensors_of(generator), generator.training
    with watch_global_rng() as kept:
        first = generator.sample(4, seed=2).items()
    assert kept[0], "sample() draws from a global random generator"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        second = generator.sample(4, seed=2).items()
    found = difference(first, second, case.domain)
    assert not found, f"the same request twice gives other items: {found}"
    assert generator.training == training, "sample() changed the training mode"
    changed = [name for name, value in tensors_of(generator).items() if not torch.equal(value, state[name])]
    assert not changed, f"sample() changed the model: {changed[:3]}"


def check_labels_are_honoured(case: Case) -> None:
    """Requested labels come back, ``"balanced"`` is balanced, and the content depends on the label."""
    classes, generator = _classes(case), case.fitted.generator
    wanted = [i % classes for i in range(2 * classes)]
    labels = _labels(case, generator.sample(len(wanted), condition={"label": wanted}, seed=0).items())
    assert labels == wanted, f"asked for labels {wanted}, got {labels}"
    balanced = _labels(case, generator.sample(4 * classes, condition={"label": "balanced"}, seed=0).items())
    counts = [balanced.count(k) for k in range(classes)]
    assert counts == [4] * classes, f"balanced gave counts {counts}"
    low, high = (generator.sample(4, condition={"label": k}, seed=0).items() for k in (0, classes - 1))
    assert difference(low, high, case.domain, ("y", "label")), "the label does not change the samples"


def check_bad_labels_are_refused(case: Case) -> None:
    """A label that training did not have is a ConfigError."""
    for label in (_classes(case), -1):
        try:
            case.fitted.generator.sample(1, condition={"label": label})
        except ConfigError:
            continue
        raise AssertionError(f"label {label} was accepted, there are {_classes(case)} classes")


def check_guidance(case: Case) -> None:
    """Guidance by a model whose unconditional half was never trained is a ConfigError, or it moves the samples."""
    record = case.fitted
    if not {"guidance_scale", "condition_dropout"} <= record.generator.hparams.keys():
        raise Skipped("no classifier-free guidance")
    _classes(case)
    generator = case.cls.load_from_checkpoint(record.checkpoint, condition_dropout=0.0)
    ask: dict[str, Any] = {"condition": {"label": 1}, "seed": 0}
    try:
        guided = generator.sample(4, guidance_scale=3.0, **ask).items()
    except ConfigError:
        pass
    else:
        plain = generator.sample(4, guidance_scale=1.0, **ask).items()
        assert difference(plain, guided, case.domain), "guidance_scale=3 was accepted and changed nothing"
    try:
        record.generator.sample(1, guidance_scale=float("nan"), **ask)
    except ConfigError:
        return
    raise AssertionError("guidance_scale=nan was accepted")


def check_continuous_conditions(case: Case) -> None:
    """Items with a continuous condition fit; where the generator knows it, requested values are followed."""
    if case.domain != "timeseries":
        raise Skipped(f"items of the domain {case.domain} carry no continuous conditions")
    datamodule = tiny_datamodule(case.domain, conditions=("rpm",))
    generator, _ = case.fit(datamodule, max_steps=10)
    validate(generator.sample(3, seed=0).items(), datamodule.schema)
    if not {"rpm", "*"} & set(case.cls.conditions):
        return
    low, high = (generator.sample(8, condition={"label": 1, "rpm": rpm}, seed=0).items() for rpm in (1050.0, 1450.0))
    # Resamplers start from the nearest training items and tell the value that these really have.
    means = [float(torch.stack([item["rpm"] for item in items]).mean()) for items in (low, high)]
    assert means[0] < means[1], f"asked for rpm 1050 and 1450, got {means[0]:.0f} and {means[1]:.0f} on average"
    assert difference(low, high, case.domain, ("rpm",)), "the condition does not change the samples"


def check_predict_writes_every_row(case: Case) -> None:
    """``Trainer.predict`` with a `PoolWriter` gives a pool of exactly n rows, the same as `sample`."""
    from lightning_synth.callbacks.pool_writer import PoolWriter
    from lightning_synth.datamodules import RequestDataModule
    from lightning_synth.pool import SyntheticPool

    if case.domain == "node":
        raise Skipped("a node data set is one graph, not a pool of rows")
    generator = case.fitted.generator
    with TemporaryDirectory() as directory:
        path = Path(directory) / "pool"
        trainer = quiet_trainer(PoolWriter(path))
        with quiet():
            trainer.predict(
                generator, datamodule=RequestDataModule(n=11, seed=7, batch_size=4), return_predictions=False
            )
        pool = SyntheticPool.open(path)
        items = [pool[i] for i in range(len(pool))]
        assert len(items) == 11, f"asked for 11 rows, the pool has {len(items)}"
        found = difference(items, generator.sample(11, seed=7).items(), case.domain)
    assert not found, f"the pool differs from sample(11, seed=7): {found}"


def _classes(case: Case) -> int:
    classes = int(case.schema.get("num_classes", 0))
    if "label" not in case.cls.conditions:
        raise Skipped("not conditioned on a label")
    if classes < 2 or case.domain == "node":
        raise Skipped(f"items of the domain {case.domain} carry no label")
    return classes


def _labels(case: Case, items: Sequence[Any]) -> list[int]:
    labels = get_domain(case.domain).labels(items)
    assert labels is not None, "sampled items carry no label"
    return [int(label) for label in labels]


def _requests(case: Case, n: int) -> SampleRequests:
    generator: Generator = case.fitted.generator
    return SampleRequests.make(n, seed=11, schema=case.schema, names=generator.conditions)
