"""DataModule for classifying the nodes of one graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_synth.datamodules.base import EpochSampler, ItemsDataModule, Splits
from lightning_synth.datamodules.neighbors import NeighborBatches, SeedSampler, unchanged
from lightning_synth.datamodules.node_readers import MASKS, read_node_graph
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.schema import Items, collate

_SPLITS = ("auto", "public", "random")
#: Seed of draw 0 of `make_imbalanced` in the published code.
_FIRST_SEED = 101


class NodeDataModule(ItemsDataModule):
    """One graph whose nodes are classified; its three splits are masks over the nodes.

    The single item, which stands in all three splits, is a PyG ``Data`` with ``x`` float32, ``edge_index``, ``y``
    int64 and ``train_mask val_mask test_mask``; a batch is the graph itself. Labels that are not 0..K-1 are numbered in
    sorted order (``schema["class_names"]`` keeps them); a node outside all masks may be unlabelled (-1). Self-loops and
    repeated edges are dropped, an edge in one direction is mirrored, each with one warning. A graph without ``x`` gets
    ``log(1 + degree)``.

    Args:
        source: Path of an npz or of a folder of Planetoid files (``ind.cora.x``, ...), a PyG ``Data``, or a PyG
            dataset of one graph; formats as `read_node_graph`.
        split: ``public`` (the masks of the source), ``random`` (``shots`` training and 30 validation nodes of each
            class, the rest test; Shchur et al. 2018, arXiv 1811.05868), or ``auto``: public where there are masks.
        shots: Training nodes of each class: at most so many with the public split, exactly so many with a random one
            (None: 20).
        imbalance: Cut the training labels of the last classes as `make_imbalanced` does, to this ratio; None: not.
        draw: Which of several masks of the source, and the seed of every random choice of nodes.
        undirected: Every edge in both directions; False keeps directions as they are.
        repair: False refuses self-loops, repeated edges and lone directions.
        normalize_features: Scale the features of each node to a sum of 1 (rows of zeros stay).
        num_neighbors: Edges kept of each node, hop by hop, e.g. ``(10, 10)``: a training batch is then a sampled part
            of the graph around ``batch_size`` training nodes (`NeighborTable.sample`; its ``train_mask`` holds these
            nodes alone), a pure function of (seed, epoch, position). Validation and test see the whole graph. None: the
            whole graph in one batch.
        batch_size: Training nodes of a sampled batch.
        num_workers: Loading processes for sampled batches.
        seed: Of the loaders.

    Raises:
        ConfigError: If options are impossible, alone or together.
        DataError: While loading, if masks, labels, features or edges cannot be used.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> data = NodeDataModule(tiny_node(60), imbalance=5)
        >>> data.schema["class_counts"], len(data.train_items()), next(iter(data.train_dataloader())).num_nodes
        ([10, 9, 2], 1, 60)
    """

    def __init__(
        self,
        source: Any,
        *,
        split: str = "auto",
        shots: int | None = None,
        imbalance: float | None = None,
        draw: int = 0,
        undirected: bool = True,
        repair: bool = True,
        normalize_features: bool = False,
        num_neighbors: Sequence[int] | None = None,
        batch_size: int = 1024,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(domain="node", batch_size=batch_size, num_workers=num_workers, seed=seed)
        if split not in _SPLITS:
            raise ConfigError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
        if shots is not None and shots < 1:
            raise ConfigError(f"shots must be at least 1, got {shots}")
        if imbalance is not None and imbalance < 1:
            raise ConfigError(f"imbalance is the ratio of the largest class to the smallest, at least 1: {imbalance}")
        self.source, self.split, self.shots, self.imbalance, self.draw = source, split, shots, imbalance, draw
        if isinstance(num_neighbors, int):
            raise ConfigError(f"num_neighbors is one number a hop, such as ({num_neighbors}, {num_neighbors})")
        if num_neighbors is not None and (not len(num_neighbors) or not all(n == -1 or n > 0 for n in num_neighbors)):
            raise ConfigError(f"num_neighbors must be positive, or -1 for all, one number a hop: got {num_neighbors}")
        self.undirected, self.repair, self.normalize_features = undirected, repair, normalize_features
        self.num_neighbors = None if num_neighbors is None else tuple(num_neighbors)

    def load(self) -> Splits:
        """Read, check and repair the graph, and choose the training nodes."""
        data = read_node_graph(self.source)
        _check_edges(data)
        data.y, names = _numbered(data)
        data.x = _features(data)
        data = _simple(data, self.undirected, refuse=not self.repair)
        if data.x is None:
            warnings.warn("the nodes have no features: x is log(1 + degree)", stacklevel=2)
            data.x = torch.bincount(data.edge_index[1], minlength=data.num_nodes).float().log1p()[:, None]
        if self.normalize_features:
            data.x = data.x / data.x.sum(1, keepdim=True).where(data.x.sum(1, keepdim=True) != 0, 1.0)
        data = self._with_masks(data, len(names))
        if self.imbalance is not None:
            data = make_imbalanced(data, self.imbalance, draw=self.draw)
        _warn_of_empty_classes(data, names)
        return Splits([data], [data], [data], {"num_classes": len(names), "class_names": names})

    def graph_loader(self) -> DataLoader[Any]:
        """Return the training loader of the whole graph: one batch an epoch."""
        return self._loader(self.train_items(), EpochSampler(self.train_items(), self.seed))

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the whole graph, or of sampled parts of it; a pure function of (seed, epoch)."""
        if self.num_neighbors is None:
            return self.graph_loader()
        graph = self.train_items()[0]
        return DataLoader(
            NeighborBatches(graph, self.num_neighbors, self.seed),  # type: ignore[arg-type]
            batch_size=None,
            sampler=SeedSampler(graph.train_mask.nonzero()[:, 0], self.batch_size, self.seed),
            collate_fn=unchanged,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _loader(self, items: Items, sampler: EpochSampler | None = None) -> DataLoader[Any]:
        # One graph needs no loading process.
        return DataLoader(items, batch_size=1, sampler=sampler, collate_fn=partial(collate, schema=self.schema))  # type: ignore[arg-type]

    def _with_masks(self, data: Any, num_classes: int) -> Any:
        given = [name for name in MASKS if data.get(name) is not None]
        if self.split == "public" and not given:
            raise ConfigError("split='public', but the source has no masks; use split='random'")
        if self.split == "random" or not given:
            return random_split(data, self.shots or 20, num_classes, self.draw)
        if len(given) < len(MASKS):
            raise DataError(f"the source has {', '.join(given)} alone; give {', '.join(MASKS)}, or none of them")
        for name in MASKS:
            data[name] = _mask(data[name], name, int(data.num_nodes), self.draw)
        _check_masks(data)
        return data if self.shots is None else _at_most(data, self.shots, self.draw)


# ---------------------------------------------------------------- choosing training nodes


def make_imbalanced(data: Any, rho: float, *, minority: int | None = None, draw: int = 0) -> Any:
    """Cut the training labels of some classes: step imbalance, the usual protocol on Planetoid graphs.

    As in GraphENS and the work after it (Park et al. 2022, ICLR, section 5.1): of the public split's 20 labels a class,
    the last classes keep ``20 / rho``, and draws 0, 1, ... are those of the published code (its seeds 101, 102, ...):
    with two labels a class, which ones they are moves a score more than most methods do. Where ``rho`` is larger than
    the labels there are (100), each other class is filled up to ``rho`` labels with nodes that are in no mask (all
    there are, if fewer), and the last classes keep one. Validation and test nodes stay as they are.

    Args:
        data: PyG ``Data`` with ``y``, ``train_mask``, ``val_mask``, ``test_mask``; not changed.
        rho: Labels of the largest class over those of a cut one.
        minority: How many classes, from the last one, are cut; None: half of them, rounded down (3 of Cora's 7).
        draw: Seed of the choice.

    Returns:
        A shallow copy with another ``train_mask``.

    Raises:
        ConfigError: If ``rho`` is below 1, or there are not so many classes.
        DataError: If a class to be cut has no training node.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> data = make_imbalanced(tiny_node(60), rho=3)
        >>> data.y[data.train_mask].bincount().tolist()
        [10, 9, 3]
    """
    num_classes = int(data.y.max()) + 1
    minority = num_classes // 2 if minority is None else minority
    if rho < 1:
        raise ConfigError(f"rho must be at least 1, got {rho}")
    if not 0 < minority < num_classes:
        raise ConfigError(f"minority must be in 1..{num_classes - 1} for {num_classes} classes, got {minority}")
    counts = torch.bincount(data.y[data.train_mask], minlength=num_classes)
    cut = torch.arange(num_classes) >= num_classes - minority
    if bool((counts[cut] == 0).any()):
        raise DataError(f"class {int((cut & (counts == 0)).nonzero()[0])} has no training node to keep")
    most = max(int(counts[~cut].max()), int(rho))
    fill = most > int(counts[~cut].max())
    wanted = torch.where(cut, max(int(most / rho), 1), most if fill else counts)
    return _choose(data, wanted, draw)


def _choose(data: Any, wanted: Tensor, draw: int) -> Any:
    """Keep up to so many training nodes of each class; where it has fewer, take nodes that are in no mask besides."""
    mask = torch.zeros_like(data.train_mask)
    free = ~(data.train_mask | data.val_mask | data.test_mask)
    # One stream for all classes, and nothing drawn for those that keep their labels, as in the published code.
    stream = torch.Generator().manual_seed(_FIRST_SEED + draw)
    for label, count in enumerate(wanted.tolist()):
        known, more = ((part & (data.y == label)).nonzero()[:, 0] for part in (data.train_mask, free))
        if count < len(known):
            known = known[torch.randperm(len(known), generator=stream)]
        elif count > len(known):
            more = more[torch.randperm(len(more), generator=stream)]
        mask[torch.cat([known, more])[:count]] = True
    chosen = copy.copy(data)
    chosen.train_mask = mask
    return chosen


def _at_most(data: Any, shots: int, draw: int) -> Any:
    counts = torch.bincount(data.y[data.train_mask], minlength=int(data.y.max()) + 1)
    return _choose(data, counts.clamp(max=shots), draw)


def random_split(data: Any, shots: int, num_classes: int, draw: int = 0, held_out: int = 30) -> Any:
    """Draw training and validation nodes of every class; the other labelled nodes are for test.

    Args:
        data: PyG ``Data`` with ``y``; not changed.
        shots: Training nodes of each class.
        num_classes: Of them.
        draw: Seed of the choice.
        held_out: Validation nodes of each class.

    Returns:
        A shallow copy with three masks.

    Raises:
        DataError: If a class is too small.
    """
    masks = {name: torch.zeros(int(data.num_nodes), dtype=torch.bool) for name in MASKS}
    for label in range(num_classes):
        nodes = np.random.default_rng((draw, label)).permutation((data.y == label).nonzero()[:, 0])
        if len(nodes) <= shots + held_out:
            raise DataError(
                f"a random split takes {shots} + {held_out} nodes of each class and needs one for test; class {label} "
                f"has {len(nodes)}. Give masks of your own"
            )
        for mask, part in zip(masks.values(), np.split(nodes, [shots, shots + held_out]), strict=True):
            mask[torch.from_numpy(part)] = True
    chosen = copy.copy(data)
    for name, mask in masks.items():
        chosen[name] = mask
    return chosen


# ---------------------------------------------------------------- checks and repairs


def _check_edges(data: Any) -> None:
    edges, nodes = data.edge_index, int(data.num_nodes)
    if not nodes:
        raise DataError("the graph has 0 nodes")
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        raise DataError(f"edge_index must be int64 (2, edges), got {edges.dtype} {tuple(edges.shape)}")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
        wrong = int(edges.min()) if int(edges.min()) < 0 else int(edges.max())
        raise DataError(f"edge_index names node {wrong}, but there are {nodes} nodes")
    for name in ("edge_attr", "edge_weight"):
        value = data.get(name)
        if value is not None and len(value) != edges.shape[1]:
            raise DataError(f"{len(value)} rows of {name} for {edges.shape[1]} edges")
        if value is not None and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DataError(f"{name} has non-finite values")


def _numbered(data: Any) -> tuple[Tensor, list[str]]:
    """Labels 0..K-1, -1 where there is none, and their names."""
    y, nodes = data.get("y"), int(data.num_nodes)
    if y is None:
        raise DataError("the graph has no node labels y")
    if y.is_floating_point() or y.numel() != nodes:
        raise DataError(f"y must be one integer label a node, got {y.dtype} {tuple(y.shape)} for {nodes} nodes")
    y = y.reshape(-1).long()
    classes, codes = y[y >= 0].unique(return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"the nodes have {len(classes)} classes; at least 2 are needed")
    numbered = torch.full_like(y, -1)
    numbered[y >= 0] = codes
    return numbered, [str(value) for value in classes.tolist()]


def _features(data: Any) -> Tensor | None:
    x: Tensor | None = data.get("x")
    if x is None:
        return None
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2 or len(x) != data.num_nodes:
        raise DataError(f"x must be (nodes, features), got {tuple(x.shape)} for {data.num_nodes} nodes")
    wrong = ~torch.isfinite(x).all(1)
    if bool(wrong.any()):
        raise DataError(
            f"{int(wrong.sum())} nodes have non-finite features; the first is node {int(wrong.nonzero()[0])}"
        )
    return x.float()


def _simple(data: Any, undirected: bool, refuse: bool) -> Any:
    """Drop self-loops and repeated edges; mirror lone directions if the graph is to be undirected."""
    (row, col), nodes = data.edge_index, int(data.num_nodes)
    loops = row == col
    key, order = torch.where(loops, -1, row * nodes + col).sort(stable=True)
    again = torch.zeros_like(loops)
    again[1:] = (key[1:] == key[:-1]) & (key[1:] >= 0)
    kept = order[(key >= 0) & ~again]
    row, col = row[kept], col[kept]
    lone = ~torch.isin(col * nodes + row, row * nodes + col) if undirected else torch.zeros_like(row, dtype=torch.bool)
    for count, what, cure in (
        (int(loops.sum()), "self-loops", "dropped"),
        (int(again.sum()), "repeated edges", "the first of each is kept"),
        (int(lone.sum()), "edges are stored in one direction", "mirrored (undirected=False keeps directions)"),
    ):
        if count and refuse:
            raise DataError(f"{count} {what}; repair them, or allow the repair ({cure})")
        if count:
            warnings.warn(f"{count} {what}: {cure}", stacklevel=4)
    edges, source = (
        torch.stack([torch.cat([row, col[lone]]), torch.cat([col, row[lone]])]),
        torch.cat([kept, kept[lone]]),
    )
    order = (edges[0] * nodes + edges[1]).argsort()
    simple = copy.copy(data)
    for name in (name for name in data.keys() if name != "edge_index" and data.is_edge_attr(name)):
        simple[name] = data[name][source[order]]
    simple.edge_index = edges[:, order]
    return simple


def _mask(value: Tensor, name: str, nodes: int, draw: int) -> Tensor:
    """One mask; of several (a column each) the one of this draw."""
    if value.ndim == 2 and value.shape[1] > 1:
        value = value[:, draw % value.shape[1]]
    if value.numel() != nodes:
        raise DataError(f"{name} has {value.numel()} entries for {nodes} nodes")
    if value.dtype != torch.bool and not bool(((value == 0) | (value == 1)).all()):
        raise DataError(f"{name} must be True or False for each node; node numbers belong into train_idx and its like")
    return value.reshape(-1).bool()


def _check_masks(data: Any) -> None:
    for i, one in enumerate(MASKS):
        for other in MASKS[i + 1 :]:
            both = data[one] & data[other]
            if bool(both.any()):
                raise DataError(f"{int(both.sum())} nodes are in both {one} and {other}; the first is {_first(both)}")
        unlabelled = data[one] & (data.y < 0)
        if bool(unlabelled.any()):
            raise DataError(f"{int(unlabelled.sum())} nodes of {one} have no label; the first is {_first(unlabelled)}")
    if not bool(data.train_mask.any()):
        raise DataError("0 training nodes: train_mask is empty")


def _first(mask: Tensor) -> str:
    return f"node {int(mask.nonzero()[0])}"


def _warn_of_empty_classes(data: Any, names: list[str]) -> None:
    counts = torch.bincount(data.y[data.train_mask], minlength=len(names))
    empty = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if empty:
        warnings.warn(
            f"no training nodes of class {', '.join(empty)}: it cannot be learned or synthesised", stacklevel=4
        )
