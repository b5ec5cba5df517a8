"""Training batches that are augmented on the fly, on the device where the model trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_synth import transforms
from lightning_synth.datamodules.augmented_graphs import GRAPHS, augment_graphs, fit_transform, is_transform
from lightning_synth.errors import ConfigError, SchemaError, SchemaMismatchError
from lightning_synth.generator import Generator
from lightning_synth.mixing import MixedLoader
from lightning_synth.registry import get_generator, list_generators
from lightning_synth.requests import KeyedRNG, mix_seed
from lightning_synth.schema import Items, Schema, canonical, layout_of, num_rows, schema_diff
from lightning_synth.sequences.augmentation import Augmentation, TwoViews, make_operators
from lightning_synth.sequences.operators import OPERATORS, Operator
from lightning_synth.sources import source_items, source_schema

# Positions between the batches of a loader whose batch size is not known.
_STRIDE = 1 << 32


class AugmentedDataModule(LightningDataModule):
    """Any LightningDataModule of time series, sequences or graphs, with augmenters acting on its training batches.

    Batches keep their form (dict, tuple, list, tensor or PyG batch) and their labels; validation, test and prediction
    batches are the source's own. What happens to a window is a pure function of (seed, epoch, position in the epoch):
    the same at any batch size, after a resume, and on any number of processes that take turns in one common order.
    Augmenters act on the batch as the loader yields it, before the source's own ``on_after_batch_transfer``.

    Local augmenters (``jitter``, ``scaling``, ``magnitude_warp``, ``time_warp``, ``window_warp``,
    ``phase_perturbation``, ``iaaft``, ``tsaug``) change the window. ``interpolate`` mixes it with a training window of
    its class. The others that build on training windows (``smote``, ``dba``, ``block_bootstrap``, ...) put a new sample
    of the same label and conditions in its place. What needs training windows is fitted on the training split.

    On interaction sequences the operators of `lightning_synth.sequences.operators` act, by name (``crop``, ``insert``,
    ...) or as objects, on real and synthetic rows alike.

    On graphs, and on one graph with node labels, the transforms of `lightning_synth.transforms` act, by name
    (``DropEdge``) or as objects, a ``Compose`` of them, or any PyG transform. Mixups are fitted on the training graphs,
    and make ``y`` float32 (graphs, classes): a graph that they leave alone has probability 1 of its class. `TwoViews`
    comes last and acts always: a batch is then a pair of batches.

    Args:
        data: The source. To augment real and synthetic windows alike, a `MixedDataModule`.
        augment: What to apply, in this order: names of generators or transforms, ``{name: hyper-parameters}``, PyG
            transforms, or generators (any object with ``augment(batch, rng) -> batch``).
        prob: Probability with which an augmenter acts on a window or graph; one number, or one for each.
        seed: Of all augmentation.

    Raises:
        ConfigError: If something cannot augment, or a probability lies outside [0, 1].

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = AugmentedDataModule(tiny_datamodule("timeseries"), ["jitter", {"magnitude_warp": {"sigma": 0.1}}])
        >>> batch = next(iter(data.train_dataloader()))
        >>> augmented = data.augment_batch(batch, epoch=0, start=0)
        >>> bool((augmented["x"] != batch["x"]).any()), bool((augmented["y"] == batch["y"]).all())
        (True, True)
    """

    def __init__(
        self,
        data: LightningDataModule,
        augment: Sequence[Any] | dict[str, Any] = ("jitter",),
        *,
        prob: float | Sequence[float] = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not hasattr(data, "train_dataloader"):
            raise ConfigError(f"data must be a LightningDataModule, got {type(data).__name__}")
        # Plain attributes, not hyper-parameters: LightningCLI gives every DataModule below `data` the outer one's.
        self.data, self.augment, self.prob, self.seed = data, augment, prob, seed
        self._given = [made for one in _listed(augment) for made in _make(one)]
        self._probs = [float(p) for p in prob] if isinstance(prob, Sequence) else [float(prob)] * len(self._given)
        if len(self._probs) != len(self._given) or not all(0 <= p <= 1 for p in self._probs):
            raise ConfigError(f"prob must be in [0, 1], one number or one for each of {len(self._given)}, got {prob}")
        self.prepare_data_per_node = getattr(data, "prepare_data_per_node", True)
        self._augmenters: list[Any] | None = None
        self._schema: Schema | None = None

    # ------------------------------------------------------------------ augmentation

    @torch.no_grad()
    def augment_batch(self, batch: Any, epoch: int, start: int, step: int = 1) -> Any:
        """Augment one training batch; the Trainer does this by itself.

        Args:
            batch: As the source yields it, on any device.
            epoch: Number of the epoch.
            start: Position of the first window in the epoch.
            step: Positions from one window to the next: the number of processes that share the epoch.

        Returns:
            A batch of the same form; the given one is not changed.
        """
        augmenters = self._ready()
        if self.schema["domain"] == "sequence":
            draw = mix_seed(self.seed, epoch) // 2 + start + step * torch.arange(len(batch["item_id"]))
            return Augmentation(augmenters, self._probs, self.seed)(batch, draw.to(batch["item_id"].device))
        if self.schema["domain"] in GRAPHS:
            seeds = mix_seed(self.seed, epoch) // 2 + start + step * torch.arange(num_rows(batch, self.schema))
            return augment_graphs(augmenters, self._probs, batch, KeyedRNG(seeds, device=batch.edge_index.device))
        layout = self.schema.get("layout") or layout_of(batch)
        whole = canonical(batch, {"layout": layout})
        if not isinstance(whole, Mapping) or "x" not in whole:
            raise SchemaError(f"cannot augment a batch without x: got a {type(batch).__name__}")
        names = ("x", "y", "mask", *self.schema.get("conditions", {}))
        fields = {name: whole[name] for name in names if name in whole}
        x: Tensor = fields["x"]
        positions = start + step * torch.arange(len(x), device=x.device)
        rng = KeyedRNG(mix_seed(self.seed, epoch) + positions)
        for i, (augmenter, prob) in enumerate(zip(augmenters, self._probs, strict=True)):
            own = rng.fork(i)
            changed = augmenter.augment(dict(fields), own.fork("augment"))
            acts = own.fork("acts").bernoulli(prob)
            for name in fields:
                # A label is what the window shows, and no augmenter may change that.
                if name != "y":
                    where = acts.reshape(-1, *([1] * (fields[name].ndim - 1)))
                    fields[name] = torch.where(where, changed[name].to(fields[name]), fields[name])
        return _in_form_of(batch, {**whole, **fields}, layout)

    def _ready(self) -> list[Any]:
        """Fit or build the augmenters on first use."""
        if self._augmenters is None:
            if self.schema["domain"] not in ("timeseries", "sequence", *GRAPHS):
                raise ConfigError(
                    "augmenters are for time series, sequences and graphs; the data is of the domain "
                    f"{self.schema['domain']}"
                )
            self._augmenters = [self._fit(given) for given in self._given]
        return self._augmenters

    def _fit(self, augmenter: Any) -> Any:
        if self.schema["domain"] in GRAPHS or is_transform(augmenter):
            return fit_transform(augmenter, self.train_items(), self.schema)
        domain, on_sequences = self.schema["domain"], isinstance(augmenter, (Operator, TwoViews))
        if isinstance(augmenter, Generator) if domain == "sequence" else on_sequences:
            kind = "sequences" if on_sequences else "time series"
            raise ConfigError(f"{type(augmenter).__name__} augments {kind}; the data is of the domain {domain}")
        if on_sequences:
            return augmenter.fit(self.train_items(), self.schema)
        if not isinstance(augmenter, Generator):
            return augmenter
        if augmenter.is_fitted:
            if difference := schema_diff(self.schema, augmenter.schema or {}):
                raise SchemaMismatchError(f"{type(augmenter).__name__} was fitted to other data: {difference}")
            return augmenter
        if getattr(augmenter, "needs_windows", True):
            return augmenter.fit_on(self.train_items(), self.schema)  # type: ignore[operator]
        # A local augmenter needs the statistics of the data, not the data.
        return type(augmenter)(**{**augmenter.hparams, "schema": dict(self.schema)})

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a training batch where it is, then do as the source does."""
        trainer = self.trainer
        if trainer is not None and trainer.training:
            # The batch on its way is not counted as ready yet; the count survives a resume.
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            ranks, rank = trainer.world_size, trainer.global_rank
            start = done * _batch_size(trainer.train_dataloader) * ranks + rank
            batch = self.augment_batch(batch, trainer.current_epoch, start, ranks)
        return self.data.on_after_batch_transfer(batch, dataloader_idx)

    # ------------------------------------------------------------------ the source

    def __getattr__(self, name: str) -> Any:
        """Look up what is not defined here in the source, e.g. ``provenance`` of a `MixedDataModule`."""
        if name.startswith("_") or "data" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.data, name)

    @property
    def schema(self) -> Schema:
        """What one item is: the source's schema, or one inferred from its training data."""
        if self._schema is None:
            self._schema = source_schema(self.data)
        return self._schema

    def train_items(self) -> Items:
        """Return the training items, not augmented."""
        return source_items(self.data, "train", self.schema)

    def val_items(self) -> Items:
        """Return the validation items."""
        return source_items(self.data, "val", self.schema)

    def test_items(self) -> Items:
        """Return the test items."""
        return source_items(self.data, "test", self.schema)

    def prepare_data(self) -> None:
        """Let the source download or convert."""
        self.data.trainer = self.trainer
        self.data.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Set up the source; for training, make the augmenters ready.

        Args:
            stage: Of the Trainer.
        """
        self.data.trainer = self.trainer
        self.data.setup(stage)  # type: ignore[arg-type]
        if stage in (None, "fit"):
            self._ready()

    def teardown(self, stage: str | None = None) -> None:
        """Tear down the source.

        Args:
            stage: Of the Trainer.
        """
        self.data.teardown(stage)  # type: ignore[arg-type]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As the source does."""
        return self.data.on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As the source does."""
        return self.data.transfer_batch_to_device(batch, device, dataloader_idx)

    def train_dataloader(self) -> Any:
        """Return the source's loader; its batches are augmented after they have reached the device."""
        return self.data.train_dataloader()

    def val_dataloader(self) -> Any:
        """Return the source's validation loaders."""
        return self.data.val_dataloader() if is_overridden("val_dataloader", self.data) else []

    def test_dataloader(self) -> Any:
        """Return the source's test loaders."""
        return self.data.test_dataloader() if is_overridden("test_dataloader", self.data) else []

    def predict_dataloader(self) -> Any:
        """Return the source's prediction loaders."""
        return self.data.predict_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Return the source's state; augmentation has none."""
        return self.data.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the source.

        Args:
            state: A result of `state_dict`.
        """
        self.data.load_state_dict(state)


def _listed(augment: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    if isinstance(augment, (str, Mapping)) or callable(getattr(augment, "augment", None)) or is_transform(augment):
        return [augment]
    return list(augment)


def _make(given: Any) -> list[Any]:
    """Make the generators of a name or of ``{name: hyper-parameters}``; others must be able to augment already."""
    if isinstance(given, str):
        return _make({given: {}})
    if isinstance(given, Mapping):
        return [one for name, options in given.items() for one in _named(name, options or {})]
    if not callable(getattr(given, "augment", None)) and not is_transform(given):
        able = [n for n in list_generators("timeseries", available=True) if hasattr(get_generator(n), "augment")]
        raise ConfigError(f"{type(given).__name__} cannot augment batches; these generators can: {', '.join(able)}")
    return [given]


def _named(name: str, options: Mapping[str, Any]) -> list[Any]:
    if name in transforms.__all__:
        return _make(getattr(transforms, name)(**options))
    return make_operators({name: options}) if name in OPERATORS else _make(get_generator(name)(**options))


def _batch_size(loader: Any) -> int:
    """Items in a full batch of a training loader."""
    if isinstance(loader, MixedLoader):
        return loader.mixture.sources.batch_size
    size = loader.batch_size if isinstance(loader, DataLoader) else None
    return size or _STRIDE


def _in_form_of(batch: Any, fields: Mapping[str, Any], layout: Sequence[str] | None) -> Any:
    """Put fields back into the form that a batch had."""
    if isinstance(batch, Mapping):
        return dict(fields)
    assert layout is not None
    values = [fields[name] for name in layout]
    if isinstance(batch, Tensor):
        return values[0]
    return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
