"""Tiny data of every domain: a few seconds of training, no download, no optional chemistry package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.schema import Items, Schema, describe, item_hashes

# SMILES, atoms (index into ATOM_TYPES) and bonds (atom, atom, index into BOND_TYPES); the first two hold every type.
ATOM_TYPES, BOND_TYPES = ("C", "N", "O"), ("SINGLE", "DOUBLE")
_MOLECULES: tuple[tuple[str, Sequence[int], Sequence[tuple[int, int, int]]], ...] = (
    ("C=O", (0, 2), ((0, 1, 1),)),
    ("CN", (0, 1), ((0, 1, 0),)),
    ("CC", (0, 0), ((0, 1, 0),)),
    ("CO", (0, 2), ((0, 1, 0),)),
    ("CCO", (0, 0, 2), ((0, 1, 0), (1, 2, 0))),
    ("CCN", (0, 0, 1), ((0, 1, 0), (1, 2, 0))),
    ("CC=O", (0, 0, 2), ((0, 1, 0), (1, 2, 1))),
    ("C1CC1", (0, 0, 0), ((0, 1, 0), (1, 2, 0), (2, 0, 0))),
    ("CC(=O)O", (0, 0, 2, 2), ((0, 1, 0), (1, 2, 1), (1, 3, 0))),
    ("C1CCC1", (0, 0, 0, 0), ((0, 1, 0), (1, 2, 0), (2, 3, 0), (3, 0, 0))),
    ("NCCO", (1, 0, 0, 2), ((0, 1, 0), (1, 2, 0), (2, 3, 0))),
    ("CC(C)=O", (0, 0, 0, 2), ((0, 1, 0), (1, 2, 0), (1, 3, 1))),
)
# Training, validation and test molecules do not overlap.
_MOLECULE_PARTS = (slice(0, 8), slice(8, 10), slice(10, 12))


def tiny_series(
    n: int = 16,
    channels: int = 2,
    length: int = 24,
    num_classes: int = 3,
    seed: int = 0,
    conditions: Sequence[str] = (),
) -> StackedItems:
    """Make noisy sine waves whose frequency tells the class.

    Args:
        n: Number of windows.
        channels: Channels, each with an offset and a scale of its own.
        length: Samples in a window.
        num_classes: Classes, taken in turn; 0 makes unlabelled windows.
        seed: Of phases and noise.
        conditions: Names of continuous conditions; each raises the amplitude a little.

    Returns:
        Items ``x`` float32 (channels, length), ``y`` int64, and one float32 number for each condition.

    Example:
        >>> tiny_series(4)[1]["x"].shape, tiny_series(4)[1]["y"]
        (torch.Size([2, 24]), tensor(1))
    """
    draw = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % max(num_classes, 1)
    extra = {name: 1000 + 500 * torch.rand(n, generator=draw) for name in conditions}
    gain = 1 + sum(((value - 1000) / 1000 for value in extra.values()), torch.zeros(n))
    phase = 2 * math.pi * torch.rand(n, channels, 1, generator=draw)
    time = torch.arange(length) / length
    wave = torch.sin(2 * math.pi * (label[:, None, None] + 1) * time + phase) * gain[:, None, None]
    wave = wave + 0.1 * torch.randn(n, channels, length, generator=draw)
    scale = torch.arange(1.0, channels + 1)[:, None]
    fields = {"x": (5 * scale + 2 * scale * wave).float(), **{name: value.float() for name, value in extra.items()}}
    return StackedItems({**fields, "y": label} if num_classes else fields)


def tiny_series_schema(
    channels: int = 2, length: int = 24, num_classes: int = 3, n: int = 16, conditions: Sequence[str] = ()
) -> Schema:
    """Describe `tiny_series` of the same arguments.

    Args:
        channels: Channels.
        length: Samples in a window.
        num_classes: Classes; 0 for unlabelled.
        n: Number of training windows.
        conditions: Names of continuous conditions.

    Returns:
        A plain schema.

    Example:
        >>> tiny_series_schema(channels=3)["channels"]
        3
    """
    return describe(tiny_series(n, channels, length, num_classes, conditions=conditions), "timeseries")


def tiny_graphs(n: int = 16, num_classes: int = 2, seed: int = 0) -> list[Any]:
    """Make rings of 5 to 9 nodes with random chords; class 1 has more of them.

    Args:
        n: Number of graphs.
        num_classes: Classes, taken in turn; 0 for none.
        seed: Of sizes and chords.

    Returns:
        PyG ``Data`` with ``edge_index`` in both directions and ``y`` (1,).

    Example:
        >>> tiny_graphs(3)[0].is_undirected()
        True
    """
    draw = torch.Generator().manual_seed(seed)
    return [_tiny_graph(i % num_classes if num_classes else None, draw) for i in range(n)]


def _tiny_graph(label: int | None, draw: torch.Generator) -> Any:
    from torch_geometric.data import Data

    nodes = int(torch.randint(5, 10, (), generator=draw))
    ring = torch.roll(torch.eye(nodes, dtype=torch.bool), 1, 1)
    chords = (torch.rand(nodes, nodes, generator=draw) < 0.1 + 0.3 * (label or 0)).triu(1)
    adjacency = ring | ring.T | chords | chords.T
    data = Data(edge_index=adjacency.nonzero().T.contiguous(), num_nodes=nodes)
    if label is not None:
        data.y = torch.tensor([label])
    return data


def tiny_node(num_nodes: int = 30, seed: int = 0) -> Any:
    """Make one graph of three communities with features, labels and masks.

    Args:
        num_nodes: Nodes.
        seed: Of edges and features.

    Returns:
        PyG ``Data`` with ``x`` (num_nodes, 4), ``y``, ``train_mask``, ``val_mask``, ``test_mask``.

    Example:
        >>> int(tiny_node().train_mask.sum())
        15
    """
    from torch_geometric.data import Data

    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(num_nodes) % 3
    together = y[:, None] == y[None, :]
    upper = (torch.rand(num_nodes, num_nodes, generator=draw) < torch.where(together, 0.4, 0.05)).triu(1)
    x = torch.nn.functional.one_hot(y, 4).float() + 0.3 * torch.randn(num_nodes, 4, generator=draw)
    part = torch.randperm(num_nodes, generator=draw)
    half, three = num_nodes // 2, 3 * num_nodes // 4
    masks = {"train_mask": part < half, "val_mask": (part >= half) & (part < three), "test_mask": part >= three}
    return Data(x=x, edge_index=(upper | upper.T).nonzero().T.contiguous(), y=y, num_nodes=num_nodes, **masks)


def tiny_molecules(n: int = 12) -> list[Any]:
    """Make molecules of two to four heavy atoms, written by hand.

    Args:
        n: How many; beyond 12 they repeat.

    Returns:
        PyG ``Data`` with ``x`` (atoms,) int64 index into `ATOM_TYPES`, ``edge_attr`` int64 index into `BOND_TYPES`,
        ``smiles``, and ``y`` (1, 2): number of heavy atoms, and of hetero-atoms.

    Example:
        >>> tiny_molecules(5)[4].smiles
        'CCO'
    """
    return [_tiny_molecule(*_MOLECULES[i % len(_MOLECULES)]) for i in range(n)]


def _tiny_molecule(smiles: str, atoms: Sequence[int], bonds: Sequence[tuple[int, int, int]]) -> Any:
    from torch_geometric.data import Data

    x, table = torch.tensor(atoms), torch.tensor(bonds)
    ends, kinds = table[:, :2].T, table[:, 2]
    y = torch.tensor([[float(len(atoms)), float((x > 0).sum())]])
    edges = torch.cat([ends, ends.flip(0)], 1)
    return Data(x=x, edge_index=edges, edge_attr=torch.cat([kinds, kinds]), smiles=smiles, y=y, num_nodes=len(atoms))


def tiny_sequences(n: int = 16, vocab_size: int = 12, max_length: int = 8, seed: int = 0) -> list[dict[str, Tensor]]:
    """Make interaction sequences that mostly go on to the next item.

    Args:
        n: Number of users.
        vocab_size: Largest item id; ids start at 1.
        max_length: Longest sequence; the shortest has 3 items.
        seed: Of starts, lengths and steps.

    Returns:
        Items with ``item_id`` (length,) and ``user_id``.

    Example:
        >>> int(min(item["item_id"].min() for item in tiny_sequences()))
        1
    """
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, max_length + 1, (n,), generator=draw)
    # Every tenth step jumps; the first user walks through the last item, so that the vocabulary is complete.
    steps = torch.where(torch.rand(n, max_length, generator=draw) < 0.9, 1, 5)
    start = torch.randint(0, vocab_size, (n, 1), generator=draw)
    start[0], lengths[0] = vocab_size - 2, max_length
    ids = (start + steps.cumsum(1)) % vocab_size + 1
    return [{"item_id": ids[i, : lengths[i]], "user_id": torch.tensor(i)} for i in range(n)]


def tiny_items(domain: str, n: int = 16, labels: bool = True, seed: int = 0, conditions: Sequence[str] = ()) -> Items:
    """Make tiny items of a domain.

    Args:
        domain: One of ``timeseries graph node molecule sequence``.
        n: How many (a node data set is one graph).
        labels: With class labels, where the domain has them.
        seed: Of the items.
        conditions: Names of continuous conditions (timeseries only).

    Raises:
        ConfigError: If the domain is unknown.

    Example:
        >>> len(tiny_items("sequence", n=5))
        5
    """
    if domain == "timeseries":
        return tiny_series(n, num_classes=3 if labels else 0, seed=seed, conditions=conditions)
    if domain == "graph":
        return tiny_graphs(n, num_classes=2 if labels else 0, seed=seed)
    if domain == "node":
        return [tiny_node(seed=seed)]
    if domain == "molecule":
        known = tiny_molecules()[_MOLECULE_PARTS[seed % 3]]
        return [known[i % len(known)] for i in range(n)]
    if domain == "sequence":
        return tiny_sequences(n, seed=seed)
    raise ConfigError(f"no tiny data for domain {domain!r}")


def tiny_schema(domain: str, n: int = 16, labels: bool = True, conditions: Sequence[str] = ()) -> Schema:
    """Describe the training items of `tiny_datamodule`.

    Args:
        domain: One of ``timeseries graph node molecule sequence``.
        n: Number of training items.
        labels: With class labels, where the domain has them.
        conditions: Names of continuous conditions (timeseries only).

    Example:
        >>> tiny_schema("sequence")["vocab_size"]
        12
    """
    known: dict[str, Any] = {}
    if domain == "molecule":
        names = ["atoms", "hetero_atoms"]
        known = {"atom_types": list(ATOM_TYPES), "bond_types": list(BOND_TYPES), "property_names": names}
    return describe(tiny_items(domain, n, labels, conditions=conditions), domain, **known)


def tiny_datamodule(
    domain: str = "timeseries",
    n: int = 16,
    batch_size: int = 8,
    labels: bool = True,
    conditions: Sequence[str] = (),
    held_out_seed: int = 1,
) -> Any:
    """Make a datamodule of tiny items.

    Args:
        domain: One of ``timeseries graph node molecule sequence``.
        n: Number of training items; validation and test have half as many.
        batch_size: Of its loaders.
        labels: With class labels, where the domain has them.
        conditions: Names of continuous conditions (timeseries only).
        held_out_seed: Of the validation items; test items have the next one.

    Returns:
        An ``ItemsDataModule``.

    Example:
        >>> tiny_datamodule("timeseries").schema["num_classes"]
        3
    """
    from lightning_synth.datamodules.base import ItemsDataModule

    schema, train = tiny_schema(domain, n, labels, conditions), tiny_items(domain, n, labels, 0, conditions)
    if domain == "node":
        return ItemsDataModule(train, train, train, schema=schema, domain=domain, batch_size=batch_size)
    val = _unseen(tiny_items(domain, n, labels, held_out_seed, conditions), schema, train)[: n // 2]
    test = _unseen(tiny_items(domain, n, labels, held_out_seed + 1, conditions), schema, train, val)[: n // 2]
    return ItemsDataModule(train, val, test, schema=schema, domain=domain, batch_size=batch_size)


def _unseen(items: Items, schema: Schema, *others: Items) -> list[Any]:
    """Items that are in none of the others."""
    seen = {int(value) for other in others for value in item_hashes(other, schema)}
    return [item for item, value in zip(items, item_hashes(items, schema), strict=True) if int(value) not in seen]
