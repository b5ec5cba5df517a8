"""Reading graphs: npz, folders in the format of the TU Dortmund sets, lists of PyG or NetworkX graphs."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightning_synth.errors import DataError
from lightning_synth.graph_table import GraphTable


@dataclass
class GraphSource:
    """What a source of graphs holds.

    Args:
        table: The graphs, as stored.
        splits: Name to int (graphs,): 0 training, 1 validation, 2 test.
        class_names: The labels as stored, in the order of ``table.y``; empty without labels.
    """

    table: GraphTable
    splits: dict[str, np.ndarray] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)


def read_graphs(source: Any) -> GraphSource:
    """Read graphs of any accepted form; labels and types are numbered from 0 in sorted order.

    Args:
        source: Path of an npz or of a folder, or a sequence of PyG ``Data`` or NetworkX graphs.

    Returns:
        The graphs, not yet repaired.

    Raises:
        DataError: If there is no such file, or it cannot be understood.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            raise DataError(f"{path} does not exist: give an npz, a folder with NAME_A.txt, or a list of graphs")
        read = GraphSource(_read_tu(path)) if path.is_dir() else _read_npz(path)
    else:
        read = GraphSource(_read_list(source))
    return _numbered(read)


def _read_list(graphs: Any) -> GraphTable:
    from torch_geometric.data import Batch, Data

    if isinstance(graphs, Batch):
        graphs = graphs.to_data_list()
    many = hasattr(graphs, "__iter__") or hasattr(graphs, "__getitem__")
    if not many or isinstance(graphs, Data) or hasattr(graphs, "adj"):
        raise DataError(
            f"a list of graphs is needed, got one {type(graphs).__name__}; for one large graph there is "
            "LargeGraphDataModule"
        )
    items = list(graphs)
    if not items:
        raise DataError("the source holds 0 graphs")
    if not hasattr(items[0], "edge_index"):
        from lightning_synth.networkx import read_networkx

        return read_networkx(items)
    return GraphTable.from_data(items)


def open_npz(path: Path, needed: Sequence[str]) -> dict[str, np.ndarray]:
    """Load the arrays of an npz.

    Args:
        path: The file; objects are not unpickled.
        needed: Arrays that it must have.

    Raises:
        DataError: If it is no such npz, or an array is missing.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no npz of plain arrays: {error}") from error
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise DataError(f"{path} has no {', '.join(missing)}; found: {', '.join(sorted(arrays))}")
    return arrays


def _read_npz(path: Path) -> GraphSource:
    """Arrays ``num_nodes``, ``edge_ptr``, ``edges``; optional ``y``, ``node_label``... and ``split...``."""
    arrays = open_npz(path, ("num_nodes", "edges"))
    if "edge_ptr" not in arrays:
        raise DataError(f"{path} has no edge_ptr: it holds one graph; open it with LargeGraphDataModule")
    ptr, sizes = arrays["edge_ptr"], arrays["num_nodes"].astype(np.int64)
    edges = _edge_rows(arrays["edges"], path)
    if len(ptr) != len(sizes) + 1 or ptr[-1] != len(edges) or (np.diff(ptr) < 0).any():
        raise DataError(f"{path}: edge_ptr must rise from 0 to {len(edges)} in {len(sizes) + 1} entries")
    owner = np.repeat(np.arange(len(sizes)), np.diff(ptr))
    y = None if "y" not in arrays else _targets(arrays["y"])
    table = GraphTable(sizes, edges, owner, _columns(arrays, "node"), _columns(arrays, "edge"), y)
    splits = {name: value for name, value in arrays.items() if name.startswith("split")}
    for name, value in {**splits, **({} if y is None else {"y": y})}.items():
        if len(value) != len(sizes):
            raise DataError(f"{path}: {name} has {len(value)} entries for {len(sizes)} graphs")
        if name in splits and value.dtype.kind not in "iu":
            raise DataError(f"{path}: {name} must hold 0 (training), 1 (validation) or 2 (test), got {value.dtype}")
    return GraphSource(table, splits)


def _edge_rows(edges: np.ndarray, path: Path) -> np.ndarray:
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise DataError(f"{path}: edges must be integers (edges, 2), got {edges.dtype} {edges.shape}")
    return edges.astype(np.int64)


def _targets(y: np.ndarray) -> np.ndarray:
    return y.astype(np.float32).reshape(len(y), -1) if y.dtype.kind == "f" else y.astype(np.int64).reshape(-1)


def _columns(arrays: dict[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    if f"{what}_label" in arrays:
        columns["label"] = arrays[f"{what}_label"].astype(np.int64)
    if f"{what}_attr" in arrays:
        columns["attribute"] = arrays[f"{what}_attr"].astype(np.float32).reshape(len(arrays[f"{what}_attr"]), -1)
    return columns


def _read_tu(folder: Path) -> GraphTable:
    """``NAME_A.txt`` and its companions; the files may lie in a subfolder such as ``raw``."""
    found = sorted(folder.glob("*_A.txt")) or sorted(folder.glob("*/*_A.txt"))
    if len(found) != 1:
        raise DataError(f"{folder} must hold one file NAME_A.txt, found {[path.name for path in found]}")
    stem = str(found[0]).removesuffix("A.txt")
    edges = _text(stem + "A.txt", np.int64) - 1
    owner = _text(stem + "graph_indicator.txt", np.int64)[:, 0] - 1
    if (np.diff(owner) < 0).any() or (len(owner) and owner[0] < 0):
        raise DataError(f"{stem}graph_indicator.txt: the nodes of a graph must follow one another")
    sizes = np.bincount(owner)
    wrong = edges[(edges < 0) | (edges >= len(owner))]
    if len(wrong):
        raise DataError(f"{stem}A.txt names node {wrong[0] + 1}, but there are {len(owner)} nodes")
    graph = owner[edges[:, 0]]
    crossing = np.flatnonzero(graph != owner[edges[:, 1]])
    if len(crossing):
        raise DataError(f"{stem}A.txt, line {crossing[0] + 1}: the edge joins two graphs")
    # The order of the file need not be that of the graphs.
    order = np.argsort(graph, kind="stable")
    local = (edges - (sizes.cumsum() - sizes)[graph, None])[order]
    node, edge = _tu_columns(stem, "node"), _tu_columns(stem, "edge")
    for name, values in edge.items():
        if len(values) != len(order):
            raise DataError(f"{stem}edge_{name}s.txt has {len(values)} lines for {len(order)} edges")
    edge = {name: values[order] for name, values in edge.items()}
    y: np.ndarray | None = None
    if Path(stem + "graph_labels.txt").exists():
        y = _text(stem + "graph_labels.txt", np.int64)[:, 0]
    elif Path(stem + "graph_attributes.txt").exists():
        y = _text(stem + "graph_attributes.txt", np.float32)
    if y is not None and len(y) != len(sizes):
        raise DataError(f"{stem}graph_labels.txt has {len(y)} lines for {len(sizes)} graphs")
    return GraphTable(sizes, local, graph[order], node, edge, y, one_way=False)


def _tu_columns(stem: str, what: str) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    if Path(f"{stem}{what}_labels.txt").exists():
        columns["label"] = _text(f"{stem}{what}_labels.txt", np.int64)[:, 0]
    if Path(f"{stem}{what}_attributes.txt").exists():
        columns["attribute"] = _text(f"{stem}{what}_attributes.txt", np.float32)
    return columns


def _text(path: str, dtype: Any) -> np.ndarray:
    try:
        return np.loadtxt(path, delimiter=",", dtype=dtype, ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def _numbered(source: GraphSource) -> GraphSource:
    """Number labels and types from 0, in sorted order over all graphs."""
    table = source.table
    for columns in (table.node, table.edge):
        if "label" in columns:
            columns["label"] = np.unique(columns["label"], return_inverse=True)[1].reshape(-1).astype(np.int64)
    if table.y is not None and table.y.dtype.kind == "i":
        classes, codes = np.unique(table.y, return_inverse=True)
        table.y = codes.reshape(-1).astype(np.int64)
        source.class_names = [table.class_names[value] if table.class_names else str(value) for value in classes]
    return source
