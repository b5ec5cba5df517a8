"""Real and synthetic items in the batches that the real DataModule would have yielded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from lightning_synth.datamodules.neighbors import MarkedGraphs, SeedMixtureSampler, unchanged
from lightning_synth.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EmptyPoolError,
    SchemaMismatchError,
)
from lightning_synth.items import StackedItems
from lightning_synth.mixing import MixedLoader, MixtureSampler
from lightning_synth.mixing.dataset import MixedCollate, MixedDataset, PoolItems, fetch, provenance_of
from lightning_synth.mixing.filters import Filter, Report, ValidityFilter, apply_filters, class_labels
from lightning_synth.mixing.leakage import check_fingerprints, check_splits, refuse_synthetic, refuse_synthetic_items
from lightning_synth.mixing.policies import FixedRatio, Mode, Policy, RatioPolicy, as_policy
from lightning_synth.pool import SyntheticPool
from lightning_synth.schema import Items, Schema, item_hashes, schema_diff, validate
from lightning_synth.sources import first_loader, loader_items, source_items, source_schema

log = logging.getLogger(__name__)
PoolLike = str | Path | SyntheticPool
_CHUNK = 4096
_CHECKED = ("num_real", "num_synthetic", "batch_size", "world_size", "seed")


class Provenance(NamedTuple):
    """Where the rows of a batch come from.

    Args:
        is_synthetic: bool (batch,).
        weight: float32 (batch,), 1 for real rows.
        rows: int64 (batch,), position in the real data set, or in the usable synthetic items.
        source: int64 (batch,), position in ``MixedDataModule.sources``, -1 for real rows.
    """

    is_synthetic: Tensor
    weight: Tensor
    rows: np.ndarray
    source: np.ndarray


@dataclass
class _Training:
    """What training batches are made of."""

    loader: DataLoader[Any]
    schema: Schema
    real_items: Items
    synthetic: Items
    rows: np.ndarray
    dataset: MixedDataset
    policy: Policy
    mode: Mode


class MixedDataModule(LightningDataModule):
    """Any LightningDataModule, with synthetic items mixed into its training batches.

    Training batches are those that the real DataModule would have yielded (its collate function makes them), plus
    provenance: dict batches get the keys ``is_synthetic`` bool (batch,) and ``weight`` float32 (batch,), PyG batches
    the attributes of these names; tuple batches keep their arity, see `provenance`. In a batch the real items come
    first. Validation, test and prediction data are the real DataModule's own, untouched.

    The share of synthetic items is exact in every batch on every rank, every real item occurs once an epoch
    (``append``), and the order is a pure function of (seed, epoch). A job that was killed in the middle of an epoch and
    resumes from its checkpoint, on the same number of processes, sees every item exactly once; only the gradients of an
    unfinished accumulation (``Trainer(accumulate_grad_batches=k)``) are lost, as always in Lightning. With
    ``ModelCheckpoint(save_on_exception=True)`` a job that is told to end (SIGTERM) saves first.

    Args:
        real: The real data. In the node domain the pool's augmented graph stands in place of the real one: a training
            batch is that graph, or, where the real data samples neighbours, a sampled part of it.
        pool: Synthetic items: a `SyntheticPool`, the directory of one, or several by name; None trains on real items
            alone.
        ratio: Share of synthetic items in a batch, or a policy: `FixedRatio`, `Anneal`, `BalanceClasses`.
        mode: ``append``: every real item once an epoch, and synthetic ones; ``replace``: synthetic items in place of
            real ones, at the number of batches of the real data alone.
        match: ``label``: each synthetic item has the label of a real item of its batch. None: no relation.
        weight: ``cap``: the total weight of the synthetic items of an epoch is at most that of the real ones; or a
            number.
        filters: Applied once to the synthetic items, in this order.
        batch_size: Items of a batch of one process, real and synthetic.
        num_workers: Loading processes.
        seed: Of order and filters.
        allow_empty: Train on real items alone, with a warning, if no synthetic item is left; else this is an error.
        timeout: Seconds to wait for a loading process.

    Raises:
        ConfigError: If options are impossible, alone or together.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth.plugins.baselines import Bootstrap
        >>> real = tiny_datamodule("timeseries", n=16)
        >>> pool = SyntheticPool.generate(Bootstrap().fit_on(real.train_items(), real.schema), n=8, progress=False)
        >>> mixed = MixedDataModule(real, pool, ratio=0.25, batch_size=8)
        >>> [int(batch["is_synthetic"].sum()) for batch in mixed.train_dataloader()]
        [2, 2, 1]
    """

    def __init__(
        self,
        real: LightningDataModule,
        pool: PoolLike | dict[str, PoolLike] | None = None,
        *,
        ratio: float | Policy = 0.5,
        mode: Literal["append", "replace"] = "append",
        match: Literal["label"] | None = None,
        weight: Literal["cap"] | float = "cap",
        filters: Sequence[Filter] = (),
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        allow_empty: bool = False,
        timeout: float = 600.0,
    ) -> None:
        super().__init__()
        if isinstance(real, MixedDataModule):
            raise ConfigError(
                "real is a MixedDataModule already; give several pools to one of them: pool={name: pool, ...}"
            )
        if not hasattr(real, "train_dataloader"):
            raise ConfigError(f"real must be a LightningDataModule, got {type(real).__name__}")
        if isinstance(pool, (list, tuple)) and any(isinstance(one, PoolLike) for one in pool):
            raise ConfigError("pool is a list; give several pools by name, pool={name: pool, ...}")
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(
                f"batch_size must be at least 1 and num_workers at least 0, got {batch_size} and {num_workers}"
            )
        # Plain attributes, not hyper-parameters: LightningCLI gives every DataModule below `data` the outer one's.
        self.real, self.pool, self.ratio, self.mode, self.match, self.weight = real, pool, ratio, mode, match, weight
        self.filters, self.batch_size, self.num_workers, self.seed = tuple(filters), batch_size, num_workers, seed
        self.allow_empty, self.timeout = allow_empty, timeout
        self.policy = as_policy(ratio)
        self.prepare_data_per_node = getattr(real, "prepare_data_per_node", True)
        #: Rejections by filter and class, after ``setup("fit")``.
        self.filter_report: dict[str, Report] = {}
        self._pools: dict[str, Any] | None = None
        self._pool_items: PoolItems | None = None
        self._training: _Training | None = None
        self._loader: MixedLoader | None = None
        self._resume: dict[str, Any] | None = None
        self._train_hashes: np.ndarray | None = None

    # ------------------------------------------------------------------ the real data

    @property
    def schema(self) -> Schema:
        """What one item is: the real DataModule's schema, or one inferred from its training data."""
        own = getattr(self.real, "schema", None)
        return dict(own) if own is not None else self._ready().schema

    def train_items(self) -> Items:
        """Return the real training items."""
        return self._items("train")

    def val_items(self) -> Items:
        """Return the real validation items."""
        return self._items("val")

    def test_items(self) -> Items:
        """Return the real test items."""
        return self._items("test")

    def _items(self, split: str) -> Items:
        return source_items(self.real, split, self.schema)

    def _attach(self) -> None:
        self.real.trainer = self.trainer

    def prepare_data(self) -> None:
        """Let the real DataModule download or convert."""
        self._attach()
        self.real.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Set up the real DataModule; for training, check and filter the pool.

        Args:
            stage: Of the Trainer.
        """
        self._attach()
        self.real.setup(stage)  # type: ignore[arg-type]
        if stage in (None, "fit"):
            self._training = self._prepare()

    def teardown(self, stage: str | None = None) -> None:
        """Tear down the real DataModule.

        Args:
            stage: Of the Trainer.
        """
        self.real.teardown(stage)  # type: ignore[arg-type]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As the real DataModule does."""
        return self.real.on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As the real DataModule does."""
        return self.real.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As the real DataModule does."""
        return self.real.on_after_batch_transfer(batch, dataloader_idx)

    # ------------------------------------------------------------------ the pool

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the pools; a single pool is called ``pool``."""
        return tuple(self._open_pools())

    def _open_pools(self) -> dict[str, Any]:
        if self._pools is None:
            given = self.pool if isinstance(self.pool, Mapping) else {} if self.pool is None else {"pool": self.pool}
            self._pools = {
                name: SyntheticPool.open(pool) if isinstance(pool, (str, Path)) else pool
                for name, pool in given.items()
            }
        return self._pools

    def _usable_rows(self, schema: Schema, real_items: Items) -> tuple[PoolItems, np.ndarray]:
        """Check the pools against the real data, filter them, and return the rows that are left."""
        pools = self._open_pools()
        filtered = any(isinstance(one, ValidityFilter) for one in self.filters)
        for name, pool in pools.items():
            _check_pool(name, pool, schema, values=not filtered)
        items = PoolItems(pools)
        rows, self.filter_report = apply_filters(self.filters, items, real_items, schema, self.seed)
        for name, report in self.filter_report.items():
            lost = [label for label, counts in report.items() if counts["rate"] == 1.0]
            log.info("%s rejected %s", name, {label: f"{counts['rate']:.1%}" for label, counts in report.items()})
            if lost and "all" not in lost:
                warnings.warn(f"{name} rejected every synthetic item of class {', '.join(lost)}", stacklevel=2)
        return items, rows

    def _check_empty(self, policy: Policy, rows: np.ndarray) -> Policy:
        """Real items alone if there is no pool; an error, or a warning, if there is one with nothing in it."""
        if self.pool is None:
            return FixedRatio(0.0)
        if len(rows) or (isinstance(policy, RatioPolicy) and not policy.peak):
            return policy
        rejected = {name: int(report["all"]["rejected"]) for name, report in self.filter_report.items()}
        why = f"the pool has no usable items (rejected by filters: {rejected})" if rejected else "the pool is empty"
        if not self.allow_empty:
            raise EmptyPoolError(
                f"{why}, but the ratio asks for synthetic items; allow_empty=True trains on real items alone"
            )
        warnings.warn(f"{why}: training on real items alone", stacklevel=2)
        return FixedRatio(0.0)

    # ------------------------------------------------------------------ training

    def _ready(self) -> _Training:
        """Set up for training if the Trainer has not done so."""
        if self._training is None:
            self.prepare_data()
            self.setup("fit")
        assert self._training is not None
        return self._training

    def _prepare(self) -> _Training:
        with warnings.catch_warnings():
            # Its batch size is not the one of the mixture.
            warnings.filterwarnings("ignore", message="batch_size .* is larger")
            # Where the real data samples the neighbours of nodes, the loader of the whole graph.
            loader = first_loader(getattr(self.real, "graph_loader", self.real.train_dataloader)())
        dataset: Any = loader.dataset
        if self._training is not None and self._training.dataset.real is dataset:
            return self._training
        _check_loader(loader)
        schema = source_schema(self.real)
        real_items = dataset if isinstance(dataset, StackedItems) else source_items(self.real, "train", schema)
        self._pool_items, rows = self._usable_rows(schema, real_items)
        policy, mode = self._check_empty(self.policy, rows), self.mode
        if schema["domain"] == "node" and len(rows):
            policy, mode = FixedRatio(float(isinstance(policy, RatioPolicy) and policy.peak > 0)), "replace"
        synthetic = self._pool_items.take(rows)
        self._train_hashes = None
        training = _Training(
            loader, schema, real_items, synthetic, rows, MixedDataset(dataset, synthetic, schema), policy, mode
        )
        self._sampler(training)
        self._training = training
        for split in ("val", "test"):
            # Foreign test data may not be loadable before setup("test"); it is checked when its loader is asked for.
            if hasattr(self.real, f"{split}_items"):
                self._check_held_out(split, getattr(self.real, f"{split}_items")())
        return training

    def _sampler(self, training: _Training) -> MixtureSampler:
        policy, mode = training.policy, training.mode
        real = synthetic = None
        if self.match or not isinstance(policy, RatioPolicy):
            real, synthetic = (
                class_labels(training.real_items, training.schema),
                class_labels(training.synthetic, training.schema),
            )
        replicas, rank = self._world(training.schema)
        options: dict[str, Any] = {
            "num_real": training.dataset.num_real,
            "num_synthetic": len(training.synthetic),
            "batch_size": 1 if training.schema["domain"] == "node" else self.batch_size,
            "ratio": policy,
            "mode": mode,
            "match": self.match if self.pool is not None else None,
            "real_labels": real,
            "synthetic_labels": synthetic,
            "weight": self.weight,
            "seed": self.seed,
            "num_replicas": replicas,
            "rank": rank,
        }
        real_data: Any = self.real
        if getattr(real_data, "num_neighbors", None) is not None:
            # A training batch is a sampled part of the graph.
            options["graphs"] = MarkedGraphs(training.dataset, self._collate(training))
            neighbors, nodes = real_data.num_neighbors, real_data.batch_size
            return SeedMixtureSampler(num_neighbors=neighbors, nodes_per_batch=nodes, **options)
        return MixtureSampler(**options)

    def _collate(self, training: _Training) -> MixedCollate:
        return MixedCollate(training.loader.collate_fn, training.schema, cap=self.weight == "cap")

    def _world(self, schema: Schema) -> tuple[int, int]:
        """Processes and rank; a single large graph is not shared out."""
        if schema["domain"] == "node":
            return 1, 0
        if self.trainer is not None:
            return self.trainer.world_size, self.trainer.global_rank
        ready = dist.is_available() and dist.is_initialized()
        return (dist.get_world_size(), dist.get_rank()) if ready else (1, 0)

    def train_dataloader(self) -> MixedLoader:
        """Return the loader of mixed batches, at the position of the checkpoint if one was loaded."""
        training = self._ready()
        sampler = self._sampler(training)
        if getattr(self.trainer, "overfit_batches", 0):
            # Lightning would replace the sampler.
            raise ConfigError("mixing needs its own sampler: use Trainer(limit_train_batches=...), not overfit_batches")
        if self.batch_size > len(training.dataset) and training.schema["domain"] != "node":
            warnings.warn(
                f"batch_size {self.batch_size} is larger than the {len(training.dataset)} items", stacklevel=2
            )
        dataset: Any = training.dataset
        collate: Any = self._collate(training)
        if isinstance(sampler, SeedMixtureSampler):
            dataset, collate = sampler.batches(), unchanged
        options: dict[str, Any] = {"pin_memory": training.loader.pin_memory}
        if self.num_workers:
            options["persistent_workers"] = True
            options["worker_init_fn"] = training.loader.worker_init_fn
            options["multiprocessing_context"] = training.loader.multiprocessing_context
        self._loader = MixedLoader(dataset, sampler, collate, self.num_workers, self.timeout, **options)
        self._loader.in_flight = self._in_flight
        resume, self._resume = self._resume, None
        if resume:
            self._check_resume(resume)
            self._loader.load_state_dict(resume["loader"])
        return self._loader

    def provenance(self, batch_idx: int, epoch: int | None = None) -> Provenance:
        """Say which rows of a training batch of this process are synthetic, whatever the form of the batch.

        Args:
            batch_idx: Number of the batch in its epoch, as in ``training_step``.
            epoch: Number of the epoch; None means the current one.

        Returns:
            A pure function of the plan: it can be asked for any batch at any time.
        """
        training = self._ready()
        sampler = self._loader.mixture if self._loader is not None else self._sampler(training)
        block, num_real, weight, _ = sampler.block(batch_idx, epoch)
        is_synthetic, weights = provenance_of(len(block), num_real, weight)
        rows, source = block.copy(), np.full(len(block), -1)
        rows[num_real:] -= training.dataset.num_real
        assert self._pool_items is not None
        source[num_real:] = self._pool_items.source(training.rows[rows[num_real:]])
        return Provenance(is_synthetic, weights, rows, source)

    def epoch_items(self, epoch: int = 0) -> tuple[Items, Tensor, Tensor]:
        """Return all training items of one epoch, for models that take a whole data set.

        Args:
            epoch: Number of the epoch.

        Returns:
            Items in the form of the domain, real ones first; ``weight`` float32 (items,); ``is_synthetic`` bool
            (items,). With several processes: the items of all of them.
        """
        training = self._ready()
        plan = self._sampler(training).plan(epoch)
        size = training.dataset.num_real
        real, rows = plan.index[plan.index < size], plan.index[plan.index >= size] - size
        parts = [fetch(training.real_items, real), fetch(training.synthetic, rows)]
        is_synthetic, weight = provenance_of(len(plan.index), len(real), plan.weight)
        stacked = [part for part in parts if isinstance(part, StackedItems)]
        if len(stacked) == len(parts):
            return StackedItems.cat(stacked), weight, is_synthetic
        return [item for part in parts for item in part], weight, is_synthetic

    # ------------------------------------------------------------------ evaluation: real data only

    def val_dataloader(self) -> Any:
        """Return the real validation loaders.

        Raises:
            SyntheticInEvaluationError: If they hold synthetic items.
            LeakageError: If their items were seen in training, or by the generator.
        """
        return self._evaluation("val")

    def test_dataloader(self) -> Any:
        """Return the real test loaders, checked like the validation loaders."""
        return self._evaluation("test")

    def predict_dataloader(self) -> Any:
        """Return the real prediction loaders; they may not hold synthetic items."""
        loaders = self.real.predict_dataloader()
        refuse_synthetic(loaders, "predict")
        return loaders

    def _evaluation(self, split: str) -> Any:
        if not is_overridden(f"{split}_dataloader", self.real):
            return []
        loaders = getattr(self.real, f"{split}_dataloader")()
        refuse_synthetic(loaders, split)
        if self._training is not None and not hasattr(self.real, f"{split}_items"):
            for loader in _map_style(loaders):
                self._check_held_out(split, loader_items(loader, self._training.schema))
        return loaders

    def _check_held_out(self, split: str, items: Items) -> None:
        """Compare an evaluation split with the training items and with what the generators were trained on."""
        training = self._ready()
        refuse_synthetic_items(items, split)
        if not len(items):
            return
        held_out = item_hashes(items, training.schema)
        if self._train_hashes is None:
            self._train_hashes = item_hashes(training.real_items, training.schema)
        check_splits(self._train_hashes, held_out, split, training.schema["domain"])
        manifests = {name: getattr(pool, "manifest", None) or {} for name, pool in self._open_pools().items()}
        known = {
            name: manifest["training_fingerprint"]
            for name, manifest in manifests.items()
            if manifest.get("training_fingerprint")
        }
        check_fingerprints(known, self._train_hashes, held_out, split)

    # ------------------------------------------------------------------ resuming

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training data and the sizes it refers to.

        Lightning also keeps the loader's own state, but drops it if the Trainer builds the loader before it loads the
        checkpoint (``trainer.estimated_stepping_batches`` in ``configure_optimizers``). The DataModule's state comes
        earlier.
        """
        if self._loader is None:
            return {}
        state = {"loader": self._loader.state_dict(), "batches": len(self._loader), **self._sizes(self._loader.mixture)}
        return {**state, "real": self.real.state_dict()}

    def _in_flight(self) -> int:
        """Count batches that were fetched but not trained on, as when an exception stops a step half-way."""
        if self.trainer is None:
            return 0
        current: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return int(current.ready - current.processed)

    @staticmethod
    def _sizes(sampler: MixtureSampler) -> dict[str, int]:
        sources = sampler.sources
        sizes = (sources.num_real, sources.num_synthetic, sources.batch_size, sources.world_size, sampler.seed)
        return dict(zip(_CHECKED, sizes, strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position.

        Args:
            state: A result of `state_dict`.
        """
        self.real.load_state_dict(state.get("real") or {})
        # Evaluating a checkpoint does not move the position of a later fit.
        if self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            self._resume = state

    def _check_resume(self, state: Mapping[str, Any]) -> None:
        """Refuse to continue within an epoch whose batches would be others."""
        assert self._loader is not None
        now = self._sizes(self._loader.mixture)
        changed = [f"{name} was {state[name]}, is {now[name]}" for name in _CHECKED if state[name] != now[name]]
        if changed and 0 < state["loader"]["batches"] < state["batches"]:
            raise CheckpointError(
                f"the checkpoint is from the middle of an epoch of other batches ({'; '.join(changed)}): going on "
                "would repeat or skip items; resume with the old settings, or from a checkpoint of the end of an epoch"
            )


def _map_style(loaders: Any) -> Iterator[DataLoader[Any]]:
    """The loaders whose items can be read one by one."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
        dataset = getattr(loader, "dataset", None)
        if isinstance(loader, DataLoader) and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
            yield loader


def _check_loader(loader: DataLoader[Any]) -> None:
    """Refuse loaders whose data set yields batches; warn if an own order is lost."""
    if loader.batch_size is None and loader.batch_sampler is None:
        raise ConfigError(
            "the real train_dataloader() has batch_size=None: its data set yields batches, not items to be mixed"
        )
    if not isinstance(loader.sampler, (SequentialSampler, RandomSampler, DistributedSampler)):
        warnings.warn(
            f"the mixture replaces the order of {type(loader.sampler).__name__} of the real train_dataloader()",
            stacklevel=2,
        )


def _check_pool(name: str, pool: Any, schema: Schema, values: bool) -> None:
    """Refuse pools of other items, and unusable items unless a filter drops them."""
    difference = schema_diff(schema, getattr(pool, "schema", schema))
    if difference:
        raise SchemaMismatchError(f"pool {name!r} does not fit the real data: {difference}")
    for start in range(0, len(pool) if values else 0, _CHUNK):
        try:
            validate(fetch(pool, np.arange(start, min(start + _CHUNK, len(pool)))), schema)
        except DataError as error:
            raise DataError(
                f"pool {name!r}, items from {start} on: {error}; ValidityFilter() drops such items"
            ) from error
