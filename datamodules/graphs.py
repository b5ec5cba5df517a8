"""DataModule for many graphs: files, lists, procedural sets, published splits, size buckets."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_synth.datamodules.base import EpochSampler, ItemsDataModule, Splits
from lightning_synth.datamodules.graph_readers import GraphSource, read_graphs
from lightning_synth.datamodules.procedural import PROCEDURAL
from lightning_synth.datamodules.splits import (
    PARTS,
    PUBLISHED_SPLITS,
    TEST,
    TRAIN,
    UNUSED,
    VAL,
    published_split,
    split_by_rows,
    stratified_split,
)
from lightning_synth.datamodules.windows import draw_shots, left_out
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.schema import describe, item_hashes

#: Rules of validity that the metrics know.
_RULES = ("planar", "tree", "lobster", "sbm", "connected")
#: Fields of a graph, of a batch of them, and of what models make of their conditions.
_RESERVED = frozenset(
    "x y label edge_index edge_attr edge_weight pos num_nodes batch ptr is_synthetic weight keep".split()
)
#: What the published sets are split into: 128 / 32 / 40 of 200 graphs.
_DEFAULT_FRACTIONS = (0.64, 0.16, 0.2)
#: Size of the largest graph, as a multiple of the median, from which padding is worth a warning.
_OUTLIER = 20
#: Spread of the sizes by which buckets are sorted, so that neighbours change from epoch to epoch.
_JITTER = 0.1


class BucketSampler(EpochSampler):
    """Batches of graphs of similar size, in random order; a pure function of (seed, epoch), whatever the process count.

    Args:
        items: Graphs.
        seed: Together with the epoch it fixes the order.
        batch_size: Of one process.

    Example:
        >>> from lightning_synth.datamodules.procedural import tree_graphs
        >>> graphs = tree_graphs(40, sizes=(2, 100))
        >>> sizes = np.array([graphs[i].num_nodes for i in BucketSampler(graphs, batch_size=8)]).reshape(-1, 8)
        >>> bool((sizes.max(1) - sizes.min(1)).mean() < 40)
        True
    """

    def __init__(self, items: Sequence[Any], seed: int = 0, batch_size: int = 1) -> None:
        super().__init__(items, seed)
        self.sizes = np.array([int(item.num_nodes) for item in items])
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        """Yield this process's share of the epoch's order."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = np.argsort(self.sizes * (1 + _JITTER * rng.random(len(self.sizes))))
        # One block is a batch of every process: they get graphs of the same size, so that none waits for another.
        block = self.batch_size * self.num_replicas
        whole = len(order) // block * block
        left = rng.integers(whole // block + 1) * block
        rest = order[left : left + len(order) - whole]
        blocks = np.delete(order, np.s_[left : left + len(rest)]).reshape(-1, block)
        # The incomplete block has to come last.
        order = np.concatenate([rng.permutation(blocks).reshape(-1), rest])
        return iter(np.resize(order, self.total_size)[self.rank :: self.num_replicas].tolist())


class GraphDataModule(ItemsDataModule):
    """Many graphs: from a file, a list, or made by rule.

    Self-loops and repeated edges are dropped, edges given in one direction mirrored, and graphs without nodes left out,
    each with one warning that counts; ``repair=False`` refuses them. The graph label becomes ``y``, numbered from 0 in
    sorted order (``schema["class_names"]`` has the values of the source).

    Args:
        source: Path of an npz (``num_nodes``, ``edge_ptr``, ``edges``; optional ``y``, ``node_label``, ``node_attr``,
            ``edge_label``, ``edge_attr``, ``split...``), of a folder in the format of the TU Dortmund sets
            (``NAME_A.txt``...), a list of PyG ``Data`` or NetworkX graphs, or the name of a procedural set: ``planar``,
            ``sbm``, ``tree``, ``lobster``, ``community``, ``ego``, ``grid``.
        split: Name of a split stored in the file, or of a published one (`published_split`); fractions
            ``(train, val, test)``, drawn within each class with identical graphs on one side; or index lists or masks
            ``(train, val, test)``, also as a dict. ``"split"`` falls back to fractions 0.64, 0.16, 0.2 where the source
            has no stored split.
        batch_size: Graphs in a batch of one process.
        x: What becomes ``x``: ``label`` (int64 types), ``attribute`` (float features), ``none``, or ``auto``: labels
            where there are any, else attributes. One-hot attributes can be asked for as ``label``.
        edge_attr: The same of the edges.
        conditions: Continuous conditions of the graphs: name to one number a graph of the source, or to a function of
            a graph, such as its density. Floats of one element that a PyG ``Data`` carries are conditions as well.
        shots: Training graphs a class; None for all. Where there is no validation split, the others validate.
        draw: Which shots, and which graphs ``imbalance`` keeps.
        imbalance: Class (its name in the source) to how many training graphs of it to keep: a number, or a share.
        max_nodes: Largest graph allowed; None for no limit.
        oversize: ``error`` or ``drop`` (with a warning that counts) for larger ones.
        bucket: Make training batches of graphs of similar size, which wastes less padding.
        repair: False refuses graphs that are not simple, undirected and non-empty.
        validity: What a valid graph is, for `lightning_synth.evaluate`: ``planar``, ``tree``, ``lobster``, ``sbm`` or
            ``connected``. Procedural sets have their own.
        num_graphs: Of a procedural set; None: its published number.
        sizes: Of a procedural set, a number or inclusive (low, high), see the sampler; None: the published sizes.
        num_workers: Worker processes of each loader.
        seed: Order of training batches, drawn splits, and procedural graphs.

    Example:
        >>> data = GraphDataModule("tree", num_graphs=20, sizes=(5, 9), batch_size=8)
        >>> [len(part) for part in (data.splits.train, data.splits.val, data.splits.test)]
        [13, 3, 4]
        >>> data.schema["domain"], len(data.train_dataloader())
        ('graph', 2)
    """

    def __init__(
        self,
        source: Any,
        split: str | Sequence[Any] | Mapping[str, Any] = "split",
        batch_size: int = 64,
        *,
        x: str = "auto",
        edge_attr: str = "auto",
        conditions: Mapping[str, Any] | None = None,
        shots: int | None = None,
        draw: int = 0,
        imbalance: Mapping[Any, float] | None = None,
        max_nodes: int | None = None,
        oversize: str = "error",
        bucket: bool = False,
        repair: bool = True,
        validity: str | None = None,
        num_graphs: int | None = None,
        sizes: int | Sequence[int] | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(domain="graph", batch_size=batch_size, num_workers=num_workers, seed=seed)
        if oversize not in ("error", "drop"):
            raise ConfigError(f"oversize must be 'error' or 'drop', got {oversize!r}")
        self.source, self.split, self.x, self.edge_attr = source, split, x, edge_attr
        if not isinstance(conditions, Mapping | None):
            raise ConfigError(f"conditions must map names to numbers or functions of a graph, got {conditions!r:.60}")
        self.conditions = conditions
        self.shots, self.draw, self.imbalance = shots, draw, imbalance
        self.max_nodes, self.oversize, self.bucket, self.repair = max_nodes, oversize, bucket, repair
        self.num_graphs, self.sizes = num_graphs, sizes
        if validity not in (None, *_RULES):
            raise ConfigError(f"validity must be one of {', '.join(_RULES)}, got {validity!r}")
        self.validity = validity

    @property
    def splits(self) -> Splits:
        """The three lists of PyG ``Data``: ``train``, ``val``, ``test``."""
        return self._ready()

    def load(self) -> Splits:
        """Read or make the graphs, repair and split them."""
        source = self._read()
        table = source.table.repair(refuse=not self.repair)
        items = self._with_conditions(table.items(self.x, self.edge_attr))
        labels = table.y if source.class_names and table.y is not None else np.zeros(len(items), np.int64)
        part = self._without_unusable(self._parts(source, items, labels), table.num_nodes)
        rows = np.flatnonzero(part == TRAIN)
        part[rows[left_out(labels[rows], source.class_names, self.imbalance, self.draw)]] = UNUSED
        part = self._few(part, labels)
        # Types are those of the whole set: one that only a test graph has is no unknown type.
        whole = describe(items, "graph")
        known = {name: whole[name] for name in ("num_node_types", "num_edge_types")}
        if source.class_names:
            known["class_names"] = source.class_names
        if rule := self.validity or (self.source if self._is_procedural and self.source in _RULES else None):
            known["validity"] = rule
        train, val, test = ([items[i] for i in np.flatnonzero(part == code)] for code in (TRAIN, VAL, TEST))
        if not train:
            raise DataError("the split leaves 0 training graphs")
        self._warn_memory(train)
        return Splits(train, val, test, known)

    @property
    def _is_procedural(self) -> bool:
        return isinstance(self.source, str) and self.source in PROCEDURAL and not Path(self.source).exists()

    def _read(self) -> GraphSource:
        if not self._is_procedural:
            if self.num_graphs is not None or self.sizes is not None:
                raise ConfigError(
                    f"num_graphs and sizes are for procedural sets ({', '.join(PROCEDURAL)}), not {self.source!r:.60}"
                )
            return read_graphs(self.source)
        options = {"num_graphs": self.num_graphs, "sizes": self.sizes}
        given = {name: value for name, value in options.items() if value is not None}
        return read_graphs(PROCEDURAL[self.source](**given, seed=self.seed))

    def _with_conditions(self, items: list[Any]) -> list[Any]:
        for name, given in (self.conditions or {}).items():
            if name in _RESERVED:
                raise ConfigError(f"{name!r} is a field of every graph and cannot name a condition")
            if not callable(given) and not np.ndim(given):
                raise ConfigError(f"condition {name!r} must be one number a graph or a function of a graph: {given!r}")
            values = [given(item) for item in items] if callable(given) else list(given)
            if len(values) != len(items):
                raise DataError(f"condition {name!r} has {len(values)} values for {len(items)} graphs")
            for i, (item, value) in enumerate(zip(items, values, strict=True)):
                item[name] = torch.tensor([_number(value, i, name)])
        return items

    def _parts(self, source: GraphSource, items: Sequence[Any], labels: np.ndarray) -> np.ndarray:
        """The split of every graph: 0, 1, 2, or -1 for none."""
        split = self.split
        if isinstance(split, str):
            if split in source.splits:
                return np.asarray(source.splits[split], np.int64)
            if split in PUBLISHED_SPLITS:
                return published_split(split, len(items))
            if split != "split":
                stored = f"the source stores {', '.join(sorted(source.splits)) or 'no splits'}"
                raise ConfigError(f"no split {split!r}: {stored}; published ones: {', '.join(PUBLISHED_SPLITS)}")
            split = _DEFAULT_FRACTIONS
        values = list(split.values() if isinstance(split, Mapping) else split)
        if all(np.ndim(value) == 0 for value in values):
            fractions = split if not isinstance(split, Mapping) else [split.get(name, 0.0) for name in PARTS]
            return stratified_split(labels, [float(share) for share in fractions], self.seed, _identical(items))
        return split_by_rows(split, len(items), "graph")

    def _without_unusable(self, part: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Leave out graphs without nodes, and those above the limit."""
        part = part.copy()
        empty = np.flatnonzero((sizes == 0) & (part != UNUSED))
        if len(empty):
            if not self.repair:
                raise DataError(f"graph {empty[0]} has 0 nodes ({len(empty)} such graphs)")
            warnings.warn(f"{len(empty)} graphs have 0 nodes (the first is graph {empty[0]}): left out", stacklevel=2)
            part[empty] = UNUSED
        large = np.flatnonzero((sizes > (self.max_nodes or np.inf)) & (part != UNUSED))
        if len(large):
            counts = ", ".join(f"{(part[large] == code).sum()} {name}" for code, name in enumerate(PARTS))
            message = f"{len(large)} graphs have more than max_nodes={self.max_nodes} nodes ({counts})"
            if self.oversize == "error":
                first = large[sizes[large].argmax()]
                raise DataError(f"{message}, the largest is graph {first} with {sizes[first]}; or use oversize='drop'")
            warnings.warn(f"{message}: left out", stacklevel=2)
            part[large] = UNUSED
        return part

    def _few(self, part: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Keep the shots; the others validate where nothing else does."""
        if self.shots is None:
            return part
        train = np.flatnonzero(part == TRAIN)
        short = [label for label in np.unique(labels[train]) if (labels[train] == label).sum() < self.shots]
        if short:
            warnings.warn(f"class {short} has fewer than {self.shots} training graphs; all are used", stacklevel=2)
        chosen = train[draw_shots(labels[train], self.shots, self.draw)]
        part[train] = UNUSED if (part == VAL).any() else VAL
        part[chosen] = TRAIN
        return part

    def dense_memory(self, channels: int = 64, layers: int = 8) -> int:
        """Estimate what a model over all pairs of nodes holds for its gradient, for the largest batch.

        Args:
            channels: Edge channels.
            layers: Layers, each of which keeps one float32 tensor of all pairs and channels.

        Returns:
            Bytes.

        Example:
            >>> GraphDataModule("tree", num_graphs=100, sizes=64).dense_memory() // 2**20
            512
        """
        return _dense_memory(self.splits.train, self.batch_size, channels, layers)

    def _warn_memory(self, train: Sequence[Any]) -> None:
        sizes = np.array([graph.num_nodes for graph in train])
        needed, present = _dense_memory(train, self.batch_size), _memory()
        outlier = sizes.max() > _OUTLIER * np.median(sizes)
        if outlier or needed > present:
            why = f"{np.median(sizes):.0f} is the median" if outlier else f"{present / 2**30:.0f} GiB are there"
            warnings.warn(
                f"the largest training graph has {sizes.max()} nodes, {why}: a model over all pairs of nodes needs "
                f"about {needed / 2**30:.1f} GiB for a batch of {self.batch_size} (64 channels, 8 layers); use "
                "max_nodes, bucket=True or a smaller batch_size",
                stacklevel=2,
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled loader, of batches of similar size with ``bucket``."""
        if not self.bucket:
            return super().train_dataloader()
        items = self.train_items()
        return self._loader(items, BucketSampler(items, self.seed, self.batch_size))


def _number(value: Any, i: int, name: str) -> float:
    """One number, or a tensor of one, as a finite float."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"graph {i}: condition {name!r} is no number: {error}") from error
    if not np.isfinite(number):
        raise DataError(f"graph {i}: condition {name!r} is {value}")
    return number


def _identical(items: Sequence[Any]) -> np.ndarray:
    """A number for each graph that is the same for graphs identical but for their label."""
    bare = [item.clone() for item in items]
    for item in bare:
        item.y = None
    return item_hashes(bare, {"domain": "graph"})


def _dense_memory(train: Sequence[Any], batch_size: int, channels: int = 64, layers: int = 8) -> int:
    largest = max(graph.num_nodes for graph in train)
    return int(min(batch_size, len(train)) * largest**2 * channels * layers * 4)


def _memory() -> int:
    """Bytes of the memory that a model would use: of the first GPU, else of the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63
