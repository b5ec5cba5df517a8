"""Checks of training: it runs, it learns, it stops when told, and it can be saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_synth.adversarial import AdversarialGenerator
from lightning_synth.callbacks.ema import GeneratorEMA
from lightning_synth.checkpoint import load_generator
from lightning_synth.errors import CheckpointError, LightningSynthError
from lightning_synth.generator import Generator
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import validate
from lightning_synth.testing.case import (
    FIT_STEPS,
    Case,
    Recorder,
    Skipped,
    difference,
    quiet,
    quiet_trainer,
    tensors_of,
)
from lightning_synth.testing.tiny import tiny_datamodule, tiny_series

_SECONDS, _BYTES = 60.0, 64 * 2**20


def check_fit(case: Case) -> None:
    """``Trainer().fit(Generator(), datamodule)`` ends with a fitted generator."""
    record = case.fitted
    assert record.generator.is_fitted, "not marked as fitted after fit"
    assert record.trainer.global_step <= FIT_STEPS, f"max_steps={FIT_STEPS} but {record.trainer.global_step} steps"


def check_fit_changes_something(case: Case) -> None:
    """Weights, statistics or stored items differ from what they were before the fit."""
    record = case.fitted
    after, before = tensors_of(record.generator), record.recorder.initial
    changed = [name for name, value in after.items() if "fitted" not in name and not _same(value, before.get(name))]
    banked = any(name.endswith("_extra_state") for name in record.generator.state_dict())
    assert changed or (case.fit_free and banked), "no tensor of the state changed: nothing was learned"


def check_gradients(case: Case) -> None:
    """Every parameter that is ever trained gets a gradient that is not zero at some step."""
    if case.fit_free:
        raise Skipped("no gradient training")
    recorder = case.fitted.recorder
    assert recorder.trainable, "nothing is trainable"
    dead = sorted(recorder.trainable - recorder.reached)
    assert not dead, f"no gradient ever reached {len(dead)} parameters: {dead[:5]}"
    frozen = sorted(name for name, _ in case.fitted.generator.named_parameters() if name not in recorder.trainable)
    assert not frozen, f"parameters that are never trained should be buffers: {frozen[:5]}"


def check_loss(case: Case) -> None:
    """The loss on a training batch is finite, and lower after the fit than before it."""
    if case.fit_free:
        raise Skipped("no loss")
    if issubclass(case.cls, AdversarialGenerator):
        raise Skipped("the losses of two adversaries need not fall")
    fitted, untrained = case.fitted.generator, copy.deepcopy(case.fitted.generator)
    untrained.load_state_dict({**fitted.state_dict(), **case.fitted.recorder.initial})
    before_loss, after_loss = _mean_loss(case, untrained), _mean_loss(case, fitted)
    assert after_loss < before_loss, f"loss did not fall in {FIT_STEPS} steps: {before_loss:.4g} to {after_loss:.4g}"


def _mean_loss(case: Case, generator: Generator) -> float:
    """Mean loss over the training items, eight fixed keys each."""
    total: list[Tensor] = []
    with torch.no_grad():
        for batch in case.datamodule.train_dataloader():
            total += [generator.losses(batch, KeyedRNG(key))["loss"] for key in range(8)]
    mean = torch.stack(total).mean().item()
    assert mean == mean and abs(mean) != float("inf"), f"loss is {mean}"
    return mean


def check_training_owns_its_randomness(case: Case) -> None:
    """Two fits with different states of the global generators give the same weights."""
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator, _ = case.fit(tiny_datamodule(case.domain), max_steps=3)
            results.append(tensors_of(generator))
    unequal = [name for name in results[0] if not _same(results[0][name], results[1][name])]
    assert not unequal, f"training draws from the global generator: {len(unequal)} tensors differ, e.g. {unequal[0]}"


def check_trainer_limits(case: Case) -> None:
    """``max_steps`` and ``max_epochs`` are respected, by models with several stages or optimisers too."""
    for limits, batches in (({"max_steps": 3}, 3), ({"max_epochs": 2}, 4)):
        recorder = Recorder()
        case.fit(tiny_datamodule(case.domain, n=16, batch_size=8), recorder, **limits)
        wanted = min(batches, 2 if case.domain == "node" and "max_epochs" in limits else batches)
        if case.fit_free:
            assert recorder.batches <= wanted, f"Trainer({limits}) trained {recorder.batches} batches"
        else:
            assert recorder.batches == wanted, f"Trainer({limits}) trained {recorder.batches} batches, not {wanted}"


def check_ema(case: Case) -> None:
    """With `GeneratorEMA` the weights after fit differ from the initial ones."""
    if case.fit_free:
        raise Skipped("nothing to average")
    recorder = Recorder()
    generator, _ = case.fit(case.datamodule, recorder, GeneratorEMA(every_n_batches=2), max_steps=6)
    trained = dict(generator.named_parameters())
    assert any(not _same(value, recorder.initial.get(name)) for name, value in trained.items()), (
        "weights are the initial ones"
    )


def check_unlabelled_data(case: Case) -> None:
    """Data without labels works, or is refused with a named error."""
    datamodule = tiny_datamodule(case.domain, labels=False)
    try:
        generator, _ = case.fit(datamodule, max_steps=3)
        items = generator.sample(3, seed=0).items()
    except LightningSynthError as error:
        words = ("label", "class", "condition", "propert")
        assert any(word in str(error) for word in words), f"the refusal does not say that labels are missing: {error}"
        return
    assert len(items) == 3
    validate(items, datamodule.schema)


def check_few_items(case: Case) -> None:
    """Three training items, one a class, are enough to fit and sample: that is where synthesis is wanted most."""
    datamodule = tiny_datamodule(case.domain, n=3)
    generator, _ = case.fit(datamodule, max_steps=3)
    validate(generator.sample(4, seed=0).items(), datamodule.schema)


def check_foreign_batches(case: Case) -> None:
    """A plain DataLoader of (x, y) tuples, without any DataModule of ours, works."""
    if case.domain != "timeseries":
        raise Skipped("tuple batches exist for time series only")
    tensors = tiny_series(16).tensors
    loader = DataLoader(TensorDataset(tensors["x"], tensors["y"]), batch_size=8)
    generator = case.fresh()
    with quiet():
        quiet_trainer(max_steps=3).fit(generator, loader)
    items = generator.sample(3, seed=0).items()
    assert set(items[0]) == {"x", "y"}, f"items have the fields {sorted(items[0])}"


def check_held_out_data_is_not_used(case: Case) -> None:
    """Other validation and test items leave the fitted generator bit-identical."""
    if case.domain == "node":
        raise Skipped("a node data set splits its nodes by masks")
    states = [case.fit(tiny_datamodule(case.domain, held_out_seed=seed), max_steps=3)[0] for seed in (1, 4)]
    first, second = (tensors_of(generator) for generator in states)
    changed = [name for name in first if not _same(first[name], second[name])]
    assert not changed, f"validation or test items changed the generator: {changed[:3]}"
    found = difference(states[0].sample(3, seed=0).items(), states[1].sample(3, seed=0).items(), case.domain)
    assert not found, f"validation or test items changed the samples: {found}"


def check_budget(case: Case) -> None:
    """The tiny configuration is tiny: a minute and 64 MiB of weights at the very most."""
    assert case.fitted.seconds < _SECONDS, (
        f"{FIT_STEPS} tiny steps took {case.fitted.seconds:.0f} s; make spec.tiny smaller"
    )
    size = sum(value.nbytes for value in tensors_of(case.fitted.generator).values())
    assert size < _BYTES, f"{size / 2**20:.0f} MiB of weights; make spec.tiny smaller"


def check_checkpoint_round_trip(case: Case) -> None:
    """A checkpoint is read by torch in its safe mode, and the loaded generator samples the same items."""
    path = case.fitted.checkpoint
    torch.load(path, weights_only=True)
    loaded = load_generator(path)
    assert type(loaded) is case.cls, f"loaded a {type(loaded).__name__}"
    assert json.dumps(dict(loaded.hparams)) == json.dumps(dict(case.fitted.generator.hparams)), (
        "hyper-parameters changed"
    )
    found = difference(case.fitted.generator.sample(5, seed=3).items(), loaded.sample(5, seed=3).items(), case.domain)
    assert not found, f"samples changed by saving and loading: {found}"


def check_corrupt_checkpoint(case: Case) -> None:
    """A truncated file, and one with altered weights, are refused."""
    path = case.fitted.checkpoint
    short, altered = path.with_name("short.ckpt"), path.with_name("altered.ckpt")
    short.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _assert_refused(short, "half of a checkpoint")
    content: dict[str, Any] = torch.load(path, weights_only=True)
    numbers = [
        v for v in content["state_dict"].values() if isinstance(v, Tensor) and v.is_floating_point() and v.numel()
    ]
    if numbers:
        numbers[0].view(-1)[0] += 1
        torch.save(content, altered)
        _assert_refused(altered, "a checkpoint with one altered weight")


def _assert_refused(path: Path, what: str) -> None:
    try:
        load_generator(path)
    except CheckpointError:
        return
    raise AssertionError(f"{what} was loaded")


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and bool(torch.equal(a, b))
