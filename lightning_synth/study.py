"""Does synthetic data help on this task? Real-only, mixed and synthetic-only training, compared on real test data."""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning import LightningDataModule, LightningModule, Trainer

from lightning_synth.datamodules.base import ItemsDataModule
from lightning_synth.datamodules.mixed import MixedDataModule
from lightning_synth.downstream import get_downstream
from lightning_synth.downstream.base import scores
from lightning_synth.errors import ConfigError, LightningSynthError
from lightning_synth.evaluation import Evaluation, evaluate
from lightning_synth.generator import FitFreeGenerator, Generator
from lightning_synth.pool import SyntheticPool
from lightning_synth.registry import get_generator, get_spec, list_generators
from lightning_synth.schema import labels
from lightning_synth.study_result import StudyResult

if TYPE_CHECKING:
    from lightning_synth.mixing.policies import Mode, Policy

DataSource = LightningDataModule | Callable[..., LightningDataModule] | Mapping[str, Any]
#: Entries of a generator's configuration that are not its hyper-parameters.
_SPECIAL = ("name", "max_steps", "refine", "learn_from", "sampler")
#: Main score of a downstream model that names none, and whether higher is better.
_METRIC = ("macro_f1", True)
POLICIES = ("real", "mixed", "synthetic")
_NODE_POOL = 8


@dataclass(frozen=True)
class Cell:
    """One repetition: a fold, a number of shots, a draw of those shots, and a seed of all training."""

    fold: str
    shots: int | None
    draw: int
    seed: int

    @property
    def name(self) -> str:
        """Folder name."""
        return f"{self.fold}-shots{self.shots or 'all'}-draw{self.draw}-seed{self.seed}"


class Study:
    """Train the same downstream models on real, mixed and synthetic data and report the paired differences.

    The generators see the training split only; every score is taken on the real test split. Each arm of a downstream
    model gets the same number of optimiser steps and the same settings. Two trivial arms are always there: copies of
    real items (``bootstrap``) and the classical augmentation of the domain.

    Args:
        data: A LightningDataModule; or a callable or ``{"class_path": ..., "init_args": ...}`` that makes one, called
            with ``shots``, ``draw`` and the arguments of the fold.
        generators: Arm name to hyper-parameters. Further keys: ``name`` (registry name, if the arm is called
            otherwise), ``max_steps``, ``sampler`` (options of `Generator.sample`), ``refine`` (arm whose samples this
            one starts from), ``learn_from`` (arm whose samples are added to its training items). ``{"data": {...}}``
            alone makes an arm without a generator: real data, with these arguments of ``data`` changed (an augmenter, a
            sampler).
        downstream: Names of `lightning_synth.downstream.get_downstream`, or name to hyper-parameters; ``name`` is the
            model's name where the entry is called otherwise. A model's ``score(items)`` gives its scores on the test
            items and its ``metric`` and ``higher_is_better`` say which one is compared; without ``score`` its
            predicted classes are scored, and macro F1 is compared.
        policies: Of ``real``, ``mixed``, ``synthetic``.
        shots: Items per class to train on; None uses all.
        draws: Random choices of the shots, or of whatever else ``data`` decides by its argument ``draw``.
        seeds: Seeds of generators and downstream models, per draw.
        folds: Name to further arguments of ``data``, e.g. which bearing is tested.
        ratio: Synthetic share of each mixed batch, or a mixing policy.
        pool_size: Synthetic items per generator; None takes four per training item, 200 to 2000 (in the node domain 8
            augmented graphs, of which training takes one after the other).
        condition: Of the pool, as in `Generator.sample`.
        classes: Labels or class names to synthesise, equally often, e.g. the faults alone; None leaves it to
            ``condition``.
        generator_steps: Optimiser steps of each generator.
        downstream_steps: Optimiser steps of each downstream network.
        batch_size: Of downstream networks.
        evaluation: Score the pools of the first cell against real data, beside their floors.
        accelerator: Of the Trainers.
        out: Folder that keeps every finished arm, so that a study killed half-way continues.

    Raises:
        ConfigError: If names are unknown or the arguments do not fit together.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> study = Study(tiny_datamodule("timeseries"), {"jitter": {}}, ("random_forest",), evaluation=False)
        >>> sorted(study.arms)
        ['bootstrap', 'jitter', 'tsaug']
    """

    def __init__(
        self,
        data: DataSource,
        generators: Mapping[str, Mapping[str, Any] | None],
        downstream: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("random_forest",),
        policies: Sequence[str] = POLICIES,
        shots: Sequence[int] | None = None,
        draws: int = 1,
        seeds: int = 1,
        folds: Mapping[str, Mapping[str, Any]] | None = None,
        ratio: float | Policy = 0.5,
        pool_size: int | None = None,
        condition: str | Mapping[str, Any] = "balanced",
        classes: Sequence[int | str] | None = None,
        generator_steps: int = 500,
        downstream_steps: int = 300,
        batch_size: int = 64,
        evaluation: bool = True,
        accelerator: str = "auto",
        out: str | Path | None = None,
    ) -> None:
        self.source = data
        self.downstream = {name: {} for name in downstream} if not isinstance(downstream, Mapping) else dict(downstream)
        self.policies, self.shots = tuple(policies), tuple(shots) if shots else (None,)
        self.draws, self.seeds = draws, seeds
        self.folds = dict(folds) if folds else {"all": {}}
        self.ratio, self.pool_size, self.condition = ratio, pool_size, condition
        self.classes = tuple(classes) if classes else None
        self.generator_steps, self.downstream_steps, self.batch_size = generator_steps, downstream_steps, batch_size
        self.evaluation, self.accelerator = evaluation, accelerator
        self.out = Path(out) if out is not None else None
        self._check_arguments()
        self._first = self.build_data(next(self.cells()))
        self.arms = self._with_baselines({name: dict(config or {}) for name, config in generators.items()})
        self._check_arms()

    # ------------------------------------------------------------------ set-up

    def _check_arguments(self) -> None:
        unknown = [policy for policy in self.policies if policy not in POLICIES]
        if unknown or "real" not in self.policies:
            raise ConfigError(
                f"policies must hold 'real' and may hold 'mixed' and 'synthetic', got {list(self.policies)}"
            )
        for name, value in (("draws", self.draws), ("seeds", self.seeds), ("downstream_steps", self.downstream_steps)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name in self.downstream:
            self.model_class(name)
        if isinstance(self.source, LightningDataModule) and (self.shots != (None,) or self.folds != {"all": {}}):
            raise ConfigError(
                "shots and folds need data as a callable or class_path, so that it can be made anew for each"
            )

    def _with_baselines(self, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Add the arms that no comparison may leave out."""
        domain = self._first.schema["domain"]
        used = {config.get("name", name) for name, config in arms.items()}
        always = [name for name in list_generators(domain, available=True) if get_spec(name).baseline]
        return {**{name: {} for name in always if name not in used}, **arms}

    def _check_arms(self) -> None:
        domain = self._first.schema["domain"]
        for arm, config in self.arms.items():
            if "data" in config:
                self._check_data_arm(arm, config)
                continue
            spec = get_spec(config.get("name", arm))
            if not spec.covers(domain):
                raise ConfigError(f"generator {spec.name!r} makes {spec.domain} items, but the data is {domain}")
            for key, verb in (("refine", "refines"), ("learn_from", "learns from")):
                if key in config and (config[key] not in self.arms or config[key] == arm):
                    raise ConfigError(
                        f"arm {arm!r} {verb} {config[key]!r}, which is no other arm; arms: {', '.join(self.arms)}"
                    )
        classifiers = [name for name in self.downstream if not hasattr(self.model_class(name), "score")]
        if classifiers and labels(self._first.train_items(), self._first.schema) is None:
            raise ConfigError(
                f"the items carry no class label, but {', '.join(classifiers)} can only predict classes; "
                "a downstream model for other tasks has score(items)"
            )

    def _check_data_arm(self, arm: str, config: Mapping[str, Any]) -> None:
        if len(config) > 1:
            raise ConfigError(f"arm {arm!r} changes the data and names a generator's settings: {sorted(config)}")
        if isinstance(self.source, LightningDataModule):
            raise ConfigError(f"arm {arm!r} changes arguments of the data: give data as a callable or class_path")
        if "mixed" not in self.policies:
            raise ConfigError(f"arm {arm!r} changes the data: it is an arm of policy 'mixed', which is not asked for")
        self.build_data(next(self.cells()), config["data"])

    def model_class(self, downstream: str) -> Any:
        """Return the class of a downstream model.

        Args:
            downstream: Its entry in ``downstream``.
        """
        return get_downstream(self.downstream[downstream].get("name", downstream))

    def metrics(self) -> dict[str, tuple[str, bool]]:
        """Return the main score of each downstream model, and whether higher is better."""
        classes = {name: self.model_class(name) for name in self.downstream}
        return {
            name: (getattr(cls, "metric", _METRIC[0]), getattr(cls, "higher_is_better", _METRIC[1]))
            if hasattr(cls, "score")
            else _METRIC
            for name, cls in classes.items()
        }

    def cells(self) -> Iterator[Cell]:
        """Yield every repetition, in a fixed order."""
        for fold, shots, draw, seed in product(self.folds, self.shots, range(self.draws), range(self.seeds)):
            yield Cell(fold, shots, draw, seed)

    def build_data(self, cell: Cell, changes: Mapping[str, Any] | None = None) -> Any:
        """Make the DataModule of a cell.

        Args:
            cell: Which fold, shots and draw.
            changes: Further arguments of ``data``.
        """
        if isinstance(self.source, LightningDataModule):
            return self.source
        changes = {**self.folds[cell.fold], **(changes or {})}
        if cell.shots is not None:
            changes["shots"] = cell.shots
        if cell.shots is not None or self.draws > 1:
            changes["draw"] = cell.draw
        if isinstance(self.source, Mapping):
            module, _, name = str(self.source["class_path"]).rpartition(".")
            factory = getattr(importlib.import_module(module), name)
            return factory(**{**self.source.get("init_args", {}), **changes})
        return self.source(**changes)

    def is_baseline(self, arm: str) -> bool:
        """Whether an arm is one of the trivial ones.

        Args:
            arm: Its name.
        """
        return "data" not in self.arms[arm] and get_spec(self.arms[arm].get("name", arm)).baseline

    def config(self) -> dict[str, Any]:
        """Return the settings that determine the numbers, as plain values."""
        source = self.source if isinstance(self.source, Mapping) else {"class_path": _name_of(self.source)}
        keys = "downstream policies shots draws seeds folds pool_size condition classes".split()
        keys += ["generator_steps", "downstream_steps", "batch_size"]
        plain = {
            "data": source,
            "generators": self.arms,
            "ratio": self.ratio,
            **{key: getattr(self, key) for key in keys},
        }
        return dict(json.loads(json.dumps(plain, default=repr)))

    # ------------------------------------------------------------------ running

    def jobs(self) -> list[tuple[str, str, str]]:
        """Return (arm, policy, downstream model) of everything that a cell trains."""
        jobs = [("real", "real", name) for name in self.downstream]
        for arm, config in self.arms.items():
            # Changed data have no synthetic items to train on alone.
            policies = ("mixed",) if "data" in config else tuple(p for p in self.policies if p != "real")
            jobs += [(arm, policy, name) for policy in policies for name in self.downstream]
        return jobs

    def run(self, progress: bool = True, shard: tuple[int, int] = (0, 1)) -> StudyResult:
        """Run every arm that is not finished yet.

        Args:
            progress: Show a bar.
            shard: (i, n) runs every n-th repetition from the i-th on. n processes with one ``out`` folder share the
                work; a last call without it collects their results.

        Returns:
            The result, with ``.verdict``, ``.table`` and ``.report(folder)``.

        Raises:
            ConfigError: If ``out`` holds another study, or ``shard`` is given without ``out``.
        """
        from tqdm.auto import tqdm

        if shard != (0, 1) and self.out is None:
            raise ConfigError("shards meet in the out folder; give one")
        self._claim_folder()
        started = time.perf_counter()
        cells = list(self.cells())[shard[0] :: shard[1]]
        per_cell = len(self.jobs())
        records: list[dict[str, Any]] = []
        examples: dict[str, Any] = {}
        evaluations: dict[str, Evaluation] = {}
        with tqdm(total=len(cells) * per_cell, disable=not progress, desc="study", unit="arm") as bar, _quiet():
            for i, cell in enumerate(cells):
                run = _CellRun(self, cell, bar)
                records += run.all_records()
                if i == 0 and shard == (0, 1):
                    examples, evaluations = run.examples(), run.evaluations() if self.evaluation else {}
        baselines = {arm for arm in self.arms if self.is_baseline(arm)}
        seconds = time.perf_counter() - started
        return StudyResult(records, baselines, self.config(), examples, evaluations, seconds, self.metrics())

    def _claim_folder(self) -> None:
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        path, config = self.out / "study.json", self.config()
        if path.exists() and (changed := _changed(json.loads(path.read_text()), config)):
            raise ConfigError(
                f"{self.out} holds a study with other settings ({', '.join(changed)}); "
                "give another out folder, or delete it"
            )
        temporary = self.out / f".study-{os.getpid()}.tmp"
        temporary.write_text(json.dumps(config, indent=1))
        temporary.replace(path)


class _CellRun:
    """All arms of one cell; generators are trained when the first arm that needs them runs."""

    def __init__(self, study: Study, cell: Cell, bar: Any) -> None:
        self.study, self.cell, self.bar = study, cell, bar
        self.data = study.build_data(cell)
        self.pools: dict[str, SyntheticPool] = {}
        self.fitted: dict[str, Generator] = {}
        self.fit_seconds: dict[str, float] = {}

    def all_records(self) -> list[dict[str, Any]]:
        return [self._record(*job) for job in self.study.jobs()]

    def _record(self, arm: str, policy: str, downstream: str) -> dict[str, Any]:
        self.bar.set_postfix_str(f"{self.cell.name} {arm} {policy} {downstream}")
        path = None
        if self.study.out is not None:
            path = self.study.out / "cells" / self.cell.name / f"{arm}.{policy}.{downstream}.json"
        if path is not None and path.exists():
            record: dict[str, Any] = json.loads(path.read_text())
        else:
            record = self._score(arm, policy, downstream)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
                temporary.write_text(json.dumps(record))
                temporary.replace(path)
        self.bar.update()
        return record

    def _score(self, arm: str, policy: str, downstream: str) -> dict[str, Any]:
        changes = self.study.arms.get(arm, {}).get("data")
        data = self.data if changes is None else self.study.build_data(self.cell, changes)
        pool = None if policy == "real" or changes is not None else self._pool(arm)
        started = time.perf_counter()
        model = self._train(downstream, policy, data, pool)
        seconds = time.perf_counter() - started
        return {
            **{"fold": self.cell.fold, "shots": self.cell.shots, "draw": self.cell.draw, "seed": self.cell.seed},
            **{"arm": arm, "policy": policy, "downstream": downstream},
            **self._test_scores(model),
            **{"seconds": seconds, "generator_seconds": self.fit_seconds.get(arm, 0.0)},
        }

    def _test_scores(self, model: Any) -> dict[str, float]:
        """The model's own scores on the real test items, or those of its predicted classes."""
        test = self.data.test_items()
        if hasattr(model, "score"):
            return {name: float(value) for name, value in model.score(test).items()}
        truth = labels(test, self.data.schema)
        assert truth is not None
        return scores(truth, np.asarray(model.predict(test)), int(self.data.schema["num_classes"]))

    def _train(self, downstream: str, policy: str, data: Any, pool: SyntheticPool | None) -> Any:
        """Train one downstream model; every arm gets the same steps and settings."""
        study, cls = self.study, self.study.model_class(downstream)
        hparams = {key: value for key, value in study.downstream[downstream].items() if key != "name"}
        if not issubclass(cls, LightningModule):
            items, weight = self._all_items(policy, data, pool)
            return cls(schema=data.schema, **hparams).fit(items, weight=weight, seed=self.cell.seed)
        mode: Mode = "replace" if policy == "synthetic" else "append"
        ratio = 1.0 if policy == "synthetic" else study.ratio
        mixed = MixedDataModule(data, pool, ratio=ratio, mode=mode, batch_size=study.batch_size, seed=self.cell.seed)
        model = cls(**{"schema": data.schema, "seed": self.cell.seed, **hparams})
        trainer = _trainer(study.downstream_steps, study.accelerator)
        trainer.fit(model, train_dataloaders=mixed.train_dataloader())
        return model.eval()

    def _all_items(self, policy: str, data: Any, pool: SyntheticPool | None) -> tuple[list[Any], np.ndarray]:
        """Items and weights for models that take all at once: the synthetic weight is capped at the real weight."""
        real = [] if policy == "synthetic" else list(data.train_items())
        synthetic = [] if pool is None else list(pool.items())
        cap = min(1.0, len(real) / len(synthetic)) if real and synthetic else 1.0
        return [*real, *synthetic], np.array([1.0] * len(real) + [cap] * len(synthetic))

    # -------------------------------------------------------------- generators

    def _pool(self, arm: str) -> SyntheticPool:
        if arm not in self.pools:
            started = time.perf_counter()
            self.pools[arm] = self._sample(arm, self._fit(arm))
            self.fit_seconds[arm] = time.perf_counter() - started
        return self.pools[arm]

    def _fit(self, arm: str) -> Generator:
        config = self.study.arms[arm]
        name, max_steps = config.get("name", arm), config.get("max_steps", self.study.generator_steps)
        hparams = {key: value for key, value in config.items() if key not in _SPECIAL}
        # Arms that differ only in how they sample share one training run.
        key = json.dumps([name, max_steps, config.get("learn_from"), hparams], sort_keys=True)
        if key not in self.fitted:
            generator, data = get_generator(name)(**{"seed": self.cell.seed, **hparams}), self.data
            if "learn_from" in config:
                items = [*data.train_items(), *self._pool(config["learn_from"]).items()]
                schema, size = data.schema, self.study.batch_size
                data = ItemsDataModule(items, schema=schema, domain=schema["domain"], batch_size=size)
            if isinstance(generator, FitFreeGenerator):
                generator.fit_on(data.train_items(), data.schema)
            else:
                _trainer(max_steps, self.study.accelerator).fit(generator, data)
            self.fitted[key] = generator
        return self.fitted[key]

    def _sample(self, arm: str, generator: Generator) -> SyntheticPool:
        study, config = self.study, self.study.arms[arm]
        size = study.pool_size or self._default_size()
        options = dict(config.get("sampler", {}))
        condition = study.condition
        if study.classes:
            condition = {"label": [study.classes[i % len(study.classes)] for i in range(size)]}
        requests = generator.make_requests(size, condition, self.cell.seed)
        if "refine" in config:
            # The same rows of the other arm: row i of this pool starts from row i of that one.
            options["init"] = list(self._pool(config["refine"]).items())
        try:
            samples = generator.sample(requests, **options)
        except LightningSynthError as error:
            raise type(error)(f"arm {arm!r}, {self.cell.name}: {error}") from error
        return SyntheticPool.from_samples(samples.to("cpu"), generator=generator)

    def _default_size(self) -> int:
        if self.data.schema["domain"] == "node":
            return _NODE_POOL
        return int(np.clip(4 * len(self.data.train_items()), 200, 2000))

    def examples(self) -> dict[str, Any]:
        """Return real training items and some synthetic ones of each arm, for pictures."""
        real = list(self.data.train_items())
        return {
            "schema": self.data.schema,
            "real": real[: 16 * 64],
            **{arm: list(pool.items())[: 16 * 64] for arm, pool in self._all_pools().items()},
        }

    def evaluations(self) -> dict[str, Evaluation]:
        """Score the pools of the generators asked for; the trivial arms are among the floors beside them."""
        done = {}
        for arm, pool in self._all_pools().items():
            if self.study.is_baseline(arm):
                continue
            self.bar.set_postfix_str(f"{self.cell.name} evaluating {arm}")
            done[arm] = evaluate(
                pool, self.data, seed=self.cell.seed, metrics=["fast", "c2st"], repeats=5, max_items=400
            )
        return done

    def _all_pools(self) -> dict[str, SyntheticPool]:
        generated = [arm for arm, config in self.study.arms.items() if "data" not in config]
        return {arm: self._pool(arm) for arm in generated} if len(self.study.policies) > 1 else {}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that make finished arms worthless; more arms, folds, shots, draws or seeds do not."""
    named = ("generators", "downstream", "folds")
    changed = [
        key for key in new if key not in (*named, "shots", "draws", "seeds", "policies") and old.get(key) != new[key]
    ]
    for key in named:
        changed += [f"{key}.{name}" for name, value in new[key].items() if old[key].get(name, value) != value]
    return changed


def _name_of(source: Any) -> str:
    cls = source if isinstance(source, type) else type(source)
    return f"{cls.__module__}.{cls.__qualname__}"


def _trainer(max_steps: int, accelerator: str) -> Trainer:
    return Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's per-Trainer messages: a study makes hundreds of Trainers."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
            warnings.filterwarnings("ignore", message=".*is larger than the .* training items.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
