"""Reading one graph with node labels: npz, a folder of Planetoid files, a PyG ``Data`` or dataset."""

from __future__ import annotations

import codecs
import pickle
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.datamodules.graph_readers import open_npz
from lightning_synth.errors import DataError

MASKS = ("train_mask", "val_mask", "test_mask")


def read_node_graph(source: Any) -> Any:
    """Read a graph with node labels of any accepted form.

    Args:
        source: Path of an npz (``num_nodes``, ``edges`` (edges, 2) each once; ``y``; features ``x`` or their CSR parts
            ``x_data x_indices x_indptr x_shape``; ``train_idx val_idx test_idx`` or masks), a folder that holds one set
            of Planetoid files (``ind.NAME.x`` and so on; there or in ``raw``), a PyG ``Data``, or a PyG dataset of one
            graph.

    Returns:
        A new PyG ``Data``, not yet checked; arrays of a ``Data`` are shared, not copied.

    Raises:
        DataError: If there is no such file, or it cannot be understood.
    """
    if isinstance(source, Mapping):
        raise DataError(f"a dict of {', '.join(map(str, source))} is no graph: make a PyG Data of it, Data(**fields)")
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            raise DataError(f"{path} does not exist: give an npz, a folder of Planetoid files, or a PyG Data")
        return _read_planetoid(path) if path.is_dir() else _read_npz(path)
    if hasattr(source, "edge_index"):
        return _only_tensors(source)
    # A NetworkX graph has a length, of nodes.
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and not hasattr(source, "adj"):
        if len(source) != 1:
            raise DataError(f"the data set holds {len(source)} graphs; open it with GraphDataModule")
        return read_node_graph(source[0])
    raise DataError(
        f"cannot read a graph from {type(source).__name__}: give an npz, a folder of Planetoid files, or a PyG Data "
        "(torch_geometric.utils.from_networkx makes one of a NetworkX graph)"
    )


def _only_tensors(data: Any) -> Any:
    """A shallow copy on the CPU, without sparse adjacency or bookkeeping."""
    from torch_geometric.data import Data

    if getattr(data, "edge_index", None) is None:
        raise DataError("the graph has no edge_index")
    fields = {name: value.detach().cpu() for name, value in data.to_dict().items() if isinstance(value, Tensor)}
    x = fields.get("x")
    if x is not None and x.layout != torch.strided:
        fields["x"] = x.to_dense()
    return Data(**{**fields, "num_nodes": int(data.num_nodes)})


def _read_npz(path: Path) -> Any:
    from torch_geometric.data import Data

    arrays = open_npz(path, ("num_nodes", "edges"))
    if "edge_ptr" in arrays:
        raise DataError(f"{path} holds many graphs (it has edge_ptr); open it with GraphDataModule")
    edges, nodes = arrays["edges"], int(arrays["num_nodes"])
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise DataError(f"{path}: edges must be integers (edges, 2), got {edges.dtype} {edges.shape}")
    edge_index = torch.from_numpy(edges.T.astype(np.int64))
    # The format stores an undirected edge once.
    data = Data(edge_index=torch.cat([edge_index, edge_index.flip(0)], 1), num_nodes=nodes)
    if "x" in arrays:
        data.x = torch.from_numpy(arrays["x"].astype(np.float32))
    elif "x_data" in arrays:
        data.x = torch.from_numpy(_csr(arrays["x_data"], arrays["x_indices"], arrays["x_indptr"], arrays["x_shape"]))
    if "y" in arrays:
        data.y = torch.from_numpy(arrays["y"])
    for mask in MASKS:
        name = mask.replace("mask", "idx")
        if mask in arrays:
            data[mask] = torch.from_numpy(arrays[mask])
        elif name in arrays:
            data[mask] = _mask_of(arrays[name], nodes, f"{path}: {name}")
    return data


def _csr(values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: np.ndarray) -> np.ndarray:
    from scipy.sparse import csr_array

    dense: np.ndarray = csr_array((values, indices, indptr), shape=tuple(shape)).toarray().astype(np.float32)
    return dense


def _mask_of(index: np.ndarray, nodes: int, name: str) -> Tensor:
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < nodes:
        wrong = int(index.min()) if int(index.min()) < 0 else int(index.max())
        raise DataError(f"{name} names node {wrong}, but there are {nodes} nodes")
    mask = torch.zeros(nodes, dtype=torch.bool)
    mask[torch.from_numpy(index.astype(np.int64))] = True
    return mask


# ---------------------------------------------------------------- Planetoid


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of arrays, sparse matrices and dicts of lists, and runs nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up among the few that such files need, in the spelling of any release."""
        if module in ("scipy.sparse.csr", "scipy.sparse._csr") and name == "csr_matrix":
            from scipy.sparse import csr_matrix

            return csr_matrix
        known = {
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("collections", "defaultdict"): defaultdict,
            ("__builtin__", "list"): list,
            ("builtins", "list"): list,
            ("_codecs", "encode"): codecs.encode,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]


def _read_planetoid(folder: Path) -> Any:
    """``ind.NAME.{x,tx,allx,y,ty,ally,graph,test.index}``: public split of Yang et al. 2016 (arXiv 1603.08861)."""
    from torch_geometric.data import Data

    found = sorted(folder.glob("ind.*.graph")) or sorted(folder.glob("raw/ind.*.graph"))
    if len(found) != 1:
        raise DataError(f"{folder} must hold one file ind.NAME.graph, found {[path.name for path in found]}")
    stem = str(found[0]).removesuffix("graph")
    allx, tx = (_unpickled(stem + name).toarray().astype(np.float32) for name in ("allx", "tx"))
    ally, ty = (np.asarray(_unpickled(stem + name)) for name in ("ally", "ty"))
    num_train = len(_unpickled(stem + "y"))
    test = np.loadtxt(stem + "test.index", dtype=np.int64, ndmin=1)
    # The test rows lie in the order of the index file; CiteSeer lacks some, which are isolated and unlabelled.
    nodes = int(test.max()) + 1
    if len(allx) != len(ally) or len(tx) != len(ty) or len(tx) != len(test) or int(test.min()) != len(allx):
        raise DataError(f"{stem}*: {len(allx)} + {len(tx)} rows of features for {len(ally)} + {len(ty)} labels")
    x = np.zeros((nodes, allx.shape[1]), np.float32)
    y = np.full(nodes, -1, np.int64)
    x[: len(allx)], x[test] = allx, tx
    y[: len(ally)], y[test] = ally.argmax(1), ty.argmax(1)
    graph = _unpickled(stem + "graph")
    counts = [len(neighbours) for neighbours in graph.values()]
    row = np.repeat(np.fromiter(graph, np.int64, len(graph)), counts)
    col = np.fromiter((node for neighbours in graph.values() for node in neighbours), np.int64, sum(counts))
    edge_index = torch.from_numpy(np.stack([np.r_[row, col], np.r_[col, row]]))
    masks = (np.arange(num_train), np.arange(num_train, num_train + 500), test)
    return Data(
        x=torch.from_numpy(x),
        edge_index=edge_index.unique(dim=1),
        y=torch.from_numpy(y),
        num_nodes=nodes,
        **{name: _mask_of(index, nodes, f"{stem}{name}") for name, index in zip(MASKS, masks, strict=True)},
    )


def _unpickled(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except (OSError, EOFError, pickle.UnpicklingError, ModuleNotFoundError, AttributeError) as error:
        raise DataError(f"{path} is no Planetoid file: {error}") from error
