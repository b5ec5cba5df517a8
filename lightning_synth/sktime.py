"""Generators as sktime transformers. Needs the extra ``timeseries``; nothing else here imports sktime."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_synth.errors import ConfigError, DataError, MissingExtraError
from lightning_synth.generator import FitFreeGenerator, Generator
from lightning_synth.items import StackedItems
from lightning_synth.registry import get_generator
from lightning_synth.requests import mix_seed
from lightning_synth.schema import describe

try:
    from sktime.transformations.base import BaseTransformer
except ImportError as error:
    raise MissingExtraError("lightning_synth.sktime needs sktime: pip install 'lightning-synth[timeseries]'") from error


class SynthTransformer(BaseTransformer):  # type: ignore[misc]
    """A generator of time series that learns from a panel in ``fit`` and gives a synthetic panel in ``transform``.

    ``transform(X)`` has the instances, the columns and the time index of ``X``, with sampled values in the place of its
    own; only the shape of ``X`` matters. With class labels ``y`` in ``fit`` the generator is conditioned on the class,
    and with ``y`` in ``transform`` instance i has label ``y[i]``. It is deterministic: equal calls give equal panels. A
    single series is a panel of one instance; cut a long one into windows first. In a classification pipeline it would
    replace test instances as well: use it on the training panel alone.

    Args:
        generator: Name of a registered generator of time series, or its class.
        hparams: Hyper-parameters of the generator.
        max_steps: Training steps, for generators that are trained.
        batch_size: Instances of a training batch.
        random_state: Seed of training and sampling.

    Attributes:
        generator_: The fitted generator; ``generator_.sample(n)`` draws any number of windows.
        classes_: Class labels as given in ``fit``, or None.

    Example:
        >>> import numpy as np
        >>> from lightning_synth.sktime import SynthTransformer
        >>> X = np.random.default_rng(0).normal(size=(10, 2, 24))
        >>> y = np.repeat(["a", "b"], 5)
        >>> SynthTransformer("smote").fit(X, y).transform(X, y).shape
        (10, 2, 24)
    """

    _tags = {  # noqa: RUF012 (a class variable by sktime's contract)
        "object_type": "transformer",
        "authors": ["lightning-synth"],
        "maintainers": ["lightning-synth"],
        "python_dependencies": ["torch", "lightning"],
        "scitype:transform-input": "Series",
        "scitype:transform-output": "Series",
        "scitype:transform-labels": "Primitives",
        "scitype:instancewise": False,
        "X_inner_mtype": "pd-multiindex",
        "y_inner_mtype": "numpy1D",
        "requires_y": False,
        "fit_is_empty": False,
        "transform-returns-same-time-index": True,
        "capability:inverse_transform": False,
        "capability:multivariate": True,
        "capability:unequal_length": False,
        "capability:missing_values": False,
        "capability:categorical_in_X": False,
        "capability:random_state": True,
        "property:randomness": "derandomized",
    }

    def __init__(
        self,
        generator: str | type[Generator] = "block_bootstrap",
        hparams: dict[str, Any] | None = None,
        max_steps: int = 500,
        batch_size: int = 64,
        random_state: int = 0,
    ) -> None:
        self.generator = generator
        self.hparams = hparams
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.random_state = random_state
        super().__init__()

    def _fit(self, X: Any, y: Any = None) -> SynthTransformer:
        """Fit a new generator to the instances."""
        items = {"x": torch.tensor(_values(X), dtype=torch.float32)}
        self.classes_: Any = None
        if y is not None:
            self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
            items["y"] = torch.from_numpy(codes.astype(np.int64))
        cls = get_generator(self.generator) if isinstance(self.generator, str) else self.generator
        model = cls(**{"seed": int(self.random_state or 0), **(self.hparams or {})})
        if getattr(cls, "domain", "any") not in ("timeseries", "any"):
            raise ConfigError(f"{cls.__name__} generates items of the domain {cls.domain}, not time series")
        self.generator_ = _fitted(model, StackedItems(items), self.max_steps, self.batch_size)
        return self

    def _transform(self, X: Any, y: Any = None) -> Any:
        """Sample one instance for each of ``X``, in the frame of ``X``."""
        import pandas as pd

        shape = _values(X).shape
        schema = self.generator_.schema or {}
        if shape[1:] != (schema["channels"], schema["length"]):
            raise DataError(
                f"the generator was fitted to {schema['channels']} variables and {schema['length']} time points, "
                f"X has {shape[1]} and {shape[2]}"
            )
        condition = None if y is None or self.classes_ is None else {"label": self._codes(np.asarray(y))}
        samples = self.generator_.sample(shape[0], condition=condition, seed=mix_seed(int(self.random_state or 0), 2))
        x = samples.data["x"].double().cpu().numpy()
        return pd.DataFrame(x.transpose(0, 2, 1).reshape(-1, shape[1]), index=X.index, columns=X.columns)

    def _codes(self, y: np.ndarray) -> list[int]:
        unknown = [label for label in np.unique(y).tolist() if label not in self.classes_]
        if unknown:
            raise ConfigError(f"label {unknown[0]!r} was not in fit, which had {self.classes_.tolist()}")
        return [int(code) for code in np.searchsorted(self.classes_, y)]

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return settings that sktime's own tests use.

        Args:
            parameter_set: Name of the set; there is one.
        """
        return [
            {"generator": "jitter"},
            {"generator": "smote", "hparams": {"k_neighbors": 2}},
            {"generator": "block_bootstrap", "hparams": {"block_length": 3}, "random_state": 1},
        ]


def to_sktime(generator: Generator) -> SynthTransformer:
    """Turn a fitted generator of time series into a fitted sktime transformer.

    Its ``transform`` can be used at once; its ``fit`` fits a new generator with the same hyper-parameters.

    Args:
        generator: Fitted, of the domain ``timeseries``.

    Returns:
        The transformer; class labels are the class names of the generator's schema, or 0, 1, ...

    Raises:
        ConfigError: If the generator is of another domain, not fitted, or fitted to ragged windows.

    Example:
        >>> from lightning_synth.plugins.baselines import Jitter
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> transformer = to_sktime(Jitter().fit_on(tiny_series(8), tiny_series_schema()))
        >>> transformer.transform(tiny_series(5).tensors["x"].numpy()).shape
        (5, 2, 24)
    """
    if not isinstance(generator, Generator):
        raise ConfigError(f"to_sktime needs a fitted generator, got {generator!r:.60}; by name: SynthTransformer(...)")
    schema = generator.schema or {}
    if not generator.is_fitted or schema.get("domain") != "timeseries" or schema.get("ragged"):
        what = "not fitted" if not generator.is_fitted else "of unequal length" if schema.get("ragged") else "no series"
        raise ConfigError(f"to_sktime needs a generator fitted to series of equal length; this one is {what}")
    hparams = {name: value for name, value in generator.hparams.items() if name not in ("schema", "seed")}
    transformer = SynthTransformer(type(generator), hparams, random_state=generator.hparams["seed"])
    names = schema.get("class_names") or range(schema.get("num_classes", 0))
    transformer.generator_, transformer.classes_ = generator, np.asarray(list(names)) if len(names) else None
    transformer._is_fitted, transformer._is_vectorized = True, False
    return transformer


def _values(frame: Any) -> np.ndarray:
    """A panel in sktime's ``pd-multiindex`` as (instances, variables, time points)."""
    from sktime.datatypes import convert

    return np.asarray(convert(frame, "pd-multiindex", "numpy3D", as_scitype="Panel"), dtype=np.float64)


def _fitted(model: Generator, items: StackedItems, max_steps: int, batch_size: int) -> Generator:
    """Fit a generator to items without a DataModule."""
    schema = describe(items, "timeseries")
    if isinstance(model, FitFreeGenerator):
        return model.fit_on(items, schema)
    from lightning.pytorch import Trainer

    order = torch.Generator().manual_seed(int(model.hparams["seed"]))
    dataset: Any = items
    loader: DataLoader[Any] = DataLoader(dataset, batch_size, shuffle=True, generator=order, collate_fn=_as_batch)
    switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(max_steps=max_steps, max_epochs=-1, **dict.fromkeys(switches, False))  # type: ignore[arg-type]
    trainer.fit(model, loader)
    # Neither the Trainer nor its device belongs into a pickled transformer.
    model.trainer = None
    return model.cpu()


def _as_batch(items: Any) -> dict[str, torch.Tensor]:
    return dict(StackedItems.from_items(items).tensors)
