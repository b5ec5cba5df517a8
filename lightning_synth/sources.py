"""Reading any LightningDataModule: its items, its schema, its layout, without asking for a base class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from lightning_synth.errors import DataError, SchemaError
from lightning_synth.schema import Items, Schema, canonical, describe, infer_domain, validate
from lightning_synth.schema import uncollate as split_batch

#: Foreign data sets above this size are described by their first items.
_MAX_DESCRIBED = 20_000


def first_loader(loaders: Any) -> DataLoader[Any]:
    """Return the one DataLoader of a loader hook.

    Args:
        loaders: What ``train_dataloader()`` returned.

    Raises:
        DataError: If it is no DataLoader, or streams an IterableDataset.
    """
    if isinstance(loaders, (list, tuple)) and len(loaders) == 1:
        loaders = loaders[0]
    if not isinstance(loaders, DataLoader):
        raise DataError(f"train_dataloader() returned {type(loaders).__name__}; one torch DataLoader is needed")
    if isinstance(loaders.dataset, IterableDataset):
        raise DataError(
            "the training data is an IterableDataset, whose length and order are not known; exact mixing and resuming "
            "need a map-style Dataset (with __len__ and __getitem__)"
        )
    return loaders


class _DatasetItems(Sequence[Any]):
    """A map-style dataset seen as a sequence of canonical items."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], schema: Schema) -> None:
        self.dataset, self.collate, self.schema = dataset, collate, schema

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        # Through the source's own collate, so that numbers and arrays become the tensors that a model would see.
        batch = canonical(self.collate([self.dataset[index]]), self.schema)
        return split_batch(batch, self.schema)[0]


def loader_items(loader: DataLoader[Any], schema: Schema) -> Items:
    """Return the items behind a loader in the canonical form of their domain.

    Args:
        loader: A map-style DataLoader.
        schema: Of the items.
    """
    dataset: Any = loader.dataset
    if schema["domain"] in ("node",):
        return [dataset[i] for i in range(len(dataset))]
    return _DatasetItems(dataset, loader.collate_fn, schema)


def source_items(datamodule: Any, split: str, schema: Schema) -> Items:
    """Return the items of a split of any DataModule.

    Args:
        datamodule: With ``train_items()``-like methods (ours), or only with loaders.
        split: ``train``, ``val`` or ``test``.
        schema: Of the items.

    Returns:
        A sequence; empty if the DataModule has no such split.
    """
    method = getattr(datamodule, f"{split}_items", None)
    if method is not None:
        items: Items = method()
        return items
    loaders = getattr(datamodule, f"{split}_dataloader")
    if split != "train" and _is_stock(datamodule, f"{split}_dataloader"):
        return []
    return loader_items(first_loader(loaders()), schema)


def _is_stock(datamodule: Any, name: str) -> bool:
    """Whether a loader hook is Lightning's own, which only raises."""
    return "lightning" in getattr(getattr(type(datamodule), name), "__module__", "").split(".")[0]


def loader_schema(loader: DataLoader[Any]) -> Schema:
    """Describe the data behind a foreign loader.

    Args:
        loader: The training loader.

    Raises:
        SchemaError: If the first batch fits no domain.
        DataError: If the data set is empty or unusable.
    """
    from lightning_synth.schema import layout_of

    dataset: Any = first_loader(loader).dataset
    if not len(dataset):
        raise DataError("the training data set is empty: 0 items")
    batch = loader.collate_fn([dataset[i] for i in range(min(2, len(dataset)))]) if loader.collate_fn else dataset[0]
    layout = layout_of(batch)
    domain = infer_domain(batch)
    items = loader_items(loader, {"domain": domain, "layout": layout})
    rows = [items[i] for i in range(min(len(items), _MAX_DESCRIBED))]
    return describe(rows, domain, **({"layout": layout} if layout else {}))


def source_schema(datamodule: Any) -> Schema:
    """Return the schema of any DataModule: its own, else one inferred from its training data.

    Args:
        datamodule: A LightningDataModule, set up if it needs to be.

    Raises:
        SchemaError: If there is none and none can be inferred.
    """
    schema = getattr(datamodule, "schema", None)
    if schema is not None:
        return dict(schema)
    try:
        loader = first_loader(datamodule.train_dataloader())
    except AttributeError as error:
        raise SchemaError(f"{type(datamodule).__name__} has neither .schema nor a train_dataloader()") from error
    return loader_schema(loader)


def check_items(items: Items, schema: Schema, name: str) -> None:
    """Validate items, naming the split in the error.

    Args:
        items: Items.
        schema: What they should be.
        name: Of the split.

    Raises:
        DataError: As `lightning_synth.schema.validate`.
    """
    try:
        validate(items, schema)
    except DataError as error:
        raise DataError(f"{name} data: {error}") from error
