"""NetworkX graphs in and out. Needs the extra ``graph``; nothing else here imports networkx."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lightning_synth.errors import DataError, MissingExtraError
from lightning_synth.graph_table import GraphTable
from lightning_synth.requests import Samples

try:
    import networkx as nx
except ImportError as error:
    raise MissingExtraError("lightning_synth.networkx needs networkx: pip install 'lightning-synth[graph]'") from error

TYPE, FEATURES, LABEL = "type", "features", "label"
_OWN = ("x", "edge_attr", "y")


def to_networkx(items: Any) -> list[nx.Graph]:
    """Turn graph items into NetworkX graphs.

    Args:
        items: PyG ``Data``, one or several, a ``Batch``, or `Samples`.

    Returns:
        One undirected ``nx.Graph`` an item, with nodes 0..n-1. Integer ``x`` and ``edge_attr`` become the node and edge
        attribute ``"type"``, floats become ``"features"`` (a list), ``y`` becomes ``graph.graph["label"]`` (a number,
        or a list where there are several), and conditions such as a density their own keys of ``graph.graph``.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> graph = to_networkx(tiny_graphs(2))[1]
        >>> graph.number_of_nodes() >= 5, graph.graph
        (True, {'label': 1})
    """
    data = items.data if isinstance(items, Samples) else items
    graphs = data.to_data_list() if hasattr(data, "to_data_list") else [data] if hasattr(data, "edge_index") else data
    return [_to_graph(item) for item in graphs]


def _to_graph(item: Any) -> nx.Graph:
    graph = nx.Graph()
    nodes = range(int(item.num_nodes))
    graph.add_nodes_from(nodes)
    if item.get("x") is not None:
        name, values = _named(item.x)
        nx.set_node_attributes(graph, dict(zip(nodes, values, strict=True)), name)
    ends = item.edge_index.T.tolist()
    if item.get("edge_attr") is None:
        graph.add_edges_from(ends)
    else:
        name, values = _named(item.edge_attr)
        graph.add_edges_from((u, v, {name: value}) for (u, v), value in zip(ends, values, strict=True))
    if item.get("y") is not None:
        label = item.y.reshape(-1).tolist()
        graph.graph[LABEL] = label[0] if len(label) == 1 else label
    for name, value in item.to_dict().items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() == 1 and name not in _OWN:
            graph.graph[name] = float(value)
    return graph


def _named(values: torch.Tensor) -> tuple[str, list[Any]]:
    return (FEATURES, values.tolist()) if values.is_floating_point() else (TYPE, values.reshape(-1).tolist())


def from_networkx(
    graphs: nx.Graph | Sequence[nx.Graph],
    *,
    node_attr: str | None = None,
    edge_attr: str | None = None,
    label: str = LABEL,
    repair: bool = True,
) -> list[Any]:
    """Turn NetworkX graphs into graph items.

    Directed graphs become undirected, parallel edges one edge, and self-loops are dropped, each with one warning that
    counts. Nodes are numbered in the order of the graph; their names are not kept. Where attributes of the nodes, the
    edges or the graphs are there but none of them is used, a warning names them.

    Args:
        graphs: One graph or several, of any NetworkX class.
        node_attr: Node attribute that becomes ``x``; None takes ``"type"``, else ``"features"``, where there are any.
            Integers and strings are types (strings are numbered in sorted order over all graphs), floats and sequences
            of numbers are features.
        edge_attr: The same of the edges, for ``edge_attr``.
        label: Key of ``graph.graph`` that becomes ``y``, where it is there; strings are numbered in sorted order. Other
            keys that hold a float in every graph become conditions.
        repair: False refuses what would have to be repaired.

    Returns:
        PyG ``Data``.

    Raises:
        DataError: If only some nodes, edges or graphs have the attribute, or its values cannot be numbers.

    Example:
        >>> from_networkx(nx.path_graph(3))[0].edge_index.tolist()
        [[0, 1, 1, 2], [1, 0, 2, 1]]
    """
    return read_networkx(graphs, node_attr, edge_attr, label).repair(refuse=not repair).items()


def read_networkx(
    graphs: nx.Graph | Sequence[nx.Graph],
    node_attr: str | None = None,
    edge_attr: str | None = None,
    label: str = LABEL,
) -> GraphTable:
    """Read graphs as `from_networkx` does, without repairing them.

    Args:
        graphs: One graph or several.
        node_attr: As `from_networkx`.
        edge_attr: As `from_networkx`.
        label: As `from_networkx`.

    Example:
        >>> read_networkx([nx.star_graph(3)]).edges.tolist()
        [[0, 1], [0, 2], [0, 3]]
    """
    if not isinstance(graphs, Iterable):
        raise DataError(f"expected a networkx graph or a list of them, got {type(graphs).__name__}")
    many = [graphs] if isinstance(graphs, nx.Graph) else list(graphs)
    for i, graph in enumerate(many):
        if not isinstance(graph, nx.Graph):
            raise DataError(f"graph {i} is a {type(graph).__name__}, not a networkx graph")
    one_way = not any(graph.is_directed() for graph in many)
    edges, sizes = [], []
    for graph in many:
        number = {node: i for i, node in enumerate(graph)}
        ends = [(number[u], number[v]) for u, v in graph.edges()]
        # Beside a directed graph, an undirected edge is an arc each way.
        edges.append(ends if one_way or graph.is_directed() else ends + [(v, u) for u, v in ends])
        sizes.append(len(graph))
    nodes = [[data for _, data in graph.nodes(data=True)] for graph in many]
    arcs = [_edge_data(graph, one_way) for graph in many]
    y, names = _labels(many, label)
    return GraphTable.from_edges(
        sizes,
        edges,
        node=_column(nodes, node_attr, "node"),
        edge=_column(arcs, edge_attr, "edge"),
        y=y,
        graph=_numbers(many, label),
        one_way=one_way,
        class_names=names,
    )


def _numbers(graphs: Sequence[nx.Graph], label: str) -> dict[str, np.ndarray]:
    """Floats of the graphs that every one of them has."""
    names = [name for name in (graphs[0].graph if graphs else ()) if name != label]
    columns = {name: [graph.graph.get(name) for graph in graphs] for name in names}
    return {
        str(name): np.array(values, np.float32)
        for name, values in columns.items()
        if all(isinstance(value, float) for value in values)
    }


def _edge_data(graph: nx.Graph, one_way: bool) -> list[Mapping[str, Any]]:
    data = [data for _, _, data in graph.edges(data=True)]
    return data if one_way or graph.is_directed() else data + data


def _column(rows: Sequence[Sequence[Mapping[str, Any]]], name: str | None, what: str) -> dict[str, np.ndarray]:
    """One attribute of all nodes or edges."""
    flat = [data for graph in rows for data in graph]
    if name is None:
        name = next((known for known in (TYPE, FEATURES) if any(known in data for data in flat)), None)
        if name is None:
            _warn_unused({str(key) for data in flat for key in data}, what, f"{TYPE!r} or {FEATURES!r}", f"{what}_attr")
            return {}
    for i, graph in enumerate(rows):
        if any(name not in data for data in graph):
            raise DataError(f"graph {i}: a {what} has no attribute {name!r}")
    try:
        values = np.array([data[name] for data in flat])
    except ValueError as error:
        raise DataError(f"{what} attribute {name!r} has values of different lengths") from error
    if values.dtype.kind in "US":
        return {"label": np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)}
    if values.dtype.kind in "iub" and values.ndim == 1:
        return {"label": values.astype(np.int64)}
    if values.dtype.kind not in "fiub" or values.ndim > 2:
        raise DataError(f"{what} attribute {name!r} holds {values.dtype} of {values.ndim} dimensions, not numbers")
    return {"attribute": values.reshape(len(flat), -1).astype(np.float32)}


def _labels(graphs: Sequence[nx.Graph], name: str) -> tuple[np.ndarray | None, list[str]]:
    """Labels of the graphs, and the names that they stand for where they are strings."""
    values = [graph.graph.get(name) for graph in graphs]
    if all(value is None for value in values):
        whole = {str(key) for graph in graphs for key, value in graph.graph.items() if isinstance(value, int)}
        _warn_unused(whole, "graph", repr(name), "label")
        return None, []
    missing = next((i for i, value in enumerate(values) if value is None), None)
    if missing is not None:
        raise DataError(f"graph {missing} has no graph attribute {name!r}, but others have: label all or none")
    array = np.array(values)
    if array.dtype.kind in "US":
        names, codes = np.unique(array, return_inverse=True)
        return codes.reshape(-1).astype(np.int64), names.tolist()
    if array.dtype.kind not in "fiub":
        raise DataError(f"graph attribute {name!r} holds {array.dtype}, not numbers")
    numbers = array.astype(np.float32).reshape(len(array), -1) if array.dtype.kind == "f" else array.astype(np.int64)
    return numbers, []


def _warn_unused(names: set[str], what: str, read: str, option: str) -> None:
    if names:
        warnings.warn(
            f"{what} attributes {sorted(names)} are not used: {read} is read; name another one with "
            f"from_networkx(..., {option}=)",
            stacklevel=5,
        )
