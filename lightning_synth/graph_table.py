"""Many graphs as flat arrays: what every reader makes, checked and repaired in one pass, then cut into items."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lightning_synth.errors import ConfigError, DataError

FIELDS = ("auto", "label", "attribute", "none")


@dataclass
class GraphTable:
    """Graphs one after the other.

    Args:
        num_nodes: int64 (graphs,).
        edges: int64 (edges, 2), node numbers within their graph.
        edge_graph: int64 (edges,), the graph of each edge.
        node: ``label`` int64 (nodes,) and ``attribute`` float32 (nodes, d) of all nodes, where there are any.
        edge: The same of the edges.
        y: int64 (graphs,) labels or float32 (graphs, targets), or None.
        graph: Numbers of the graphs, such as a density: name to float32 (graphs,).
        one_way: Each edge is listed once; False: an undirected edge is two rows, one in each direction.
        class_names: What the labels 0, 1... were called in the source; empty: they were numbers.

    Example:
        >>> table = GraphTable.from_edges([3], [[(0, 1), (1, 2), (2, 1), (2, 2)]])
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     table.repair().items()[0].edge_index.tolist()
        [[0, 1, 1, 2], [1, 0, 2, 1]]
    """

    num_nodes: np.ndarray
    edges: np.ndarray
    edge_graph: np.ndarray
    node: dict[str, np.ndarray] = field(default_factory=dict)
    edge: dict[str, np.ndarray] = field(default_factory=dict)
    y: np.ndarray | None = None
    graph: dict[str, np.ndarray] = field(default_factory=dict)
    one_way: bool = True
    class_names: list[str] = field(default_factory=list)

    @classmethod
    def from_edges(cls, num_nodes: Sequence[int], edges: Sequence[Any], **fields: Any) -> GraphTable:
        """Join the edge lists of graphs.

        Args:
            num_nodes: Of each graph.
            edges: Of each graph, (edges, 2).
            **fields: The other fields.
        """
        parts = [np.asarray(part, dtype=np.int64).reshape(-1, 2) for part in edges]
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        flat = np.concatenate([np.zeros((0, 2), np.int64), *parts])
        return cls(np.asarray(num_nodes, np.int64), flat, owner, **fields)

    @classmethod
    def from_data(cls, items: Sequence[Any]) -> GraphTable:
        """Join PyG ``Data``.

        Args:
            items: With ``edge_index``; optional ``x``, ``edge_attr`` (integers are types, floats are features), ``y``,
                and floats of one element, which are conditions. Other attributes are left out with a warning.

        Raises:
            DataError: Naming the graph whose field has a wrong type, shape or length, or is missing.
        """
        rows = [_Row(i, item) for i, item in enumerate(items)]
        numbers = {name for name in rows[0].numbers if all(name in row.numbers for row in rows)} if rows else set()
        extra = sorted({name for row in rows for name in (*row.extra, *row.numbers)} - numbers)
        if extra:
            warnings.warn(f"graph attributes {extra} are not used: a graph has x, edge_attr and y", stacklevel=3)
        num_nodes = [row.num_nodes for row in rows]
        fields = {
            "node": _column(rows, "x", num_nodes),
            "edge": _column(rows, "edge_attr", [len(row.edges) for row in rows]),
            "y": _targets(rows),
            "graph": {name: np.array([row.numbers[name] for row in rows], np.float32) for name in sorted(numbers)},
        }
        return cls.from_edges(num_nodes, [row.edges for row in rows], one_way=False, **fields)

    def __len__(self) -> int:
        """Return the number of graphs."""
        return len(self.num_nodes)

    @property
    def start(self) -> np.ndarray:
        """Number of the first node of each graph among all nodes, int64 (graphs,)."""
        start: np.ndarray = self.num_nodes.cumsum() - self.num_nodes
        return start

    def check(self) -> GraphTable:
        """Refuse what no repair can mend.

        Returns:
            Itself.

        Raises:
            DataError: No graphs; node numbers out of range; non-finite features; columns of a wrong length.
        """
        if not len(self):
            raise DataError("the source holds 0 graphs")
        limit = self.num_nodes[self.edge_graph]
        wrong = np.argwhere((self.edges < 0) | (self.edges >= limit[:, None]))
        if len(wrong):
            row, end = wrong[0]
            raise DataError(
                f"graph {self.edge_graph[row]}: edge_index names node {self.edges[row, end]}, "
                f"but there are {limit[row]} nodes"
            )
        every = np.arange(len(self))
        targets = {} if self.y is None else {"label": self.y}
        for what, columns, owner in (
            ("node", self.node, np.repeat(every, self.num_nodes)),
            ("edge", self.edge, self.edge_graph),
            ("graph", {**targets, **self.graph}, every),
        ):
            for name, values in columns.items():
                if len(values) != len(owner):
                    raise DataError(f"{len(values)} rows of {what} {name}s for {len(owner)} {what}s")
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    row = np.argwhere(~np.isfinite(values))[0, 0]
                    raise DataError(f"graph {owner[row]}: {what} {name} is not finite")
        return self

    def repair(self, refuse: bool = False) -> GraphTable:
        """Make all graphs simple and undirected: drop self-loops and repeated edges, and mirror lone directions.

        Args:
            refuse: Raise instead of repairing.

        Returns:
            A table that lists each edge once, from its smaller node, sorted.

        Raises:
            DataError: With ``refuse``, saying what and how often.
        """
        self.check()
        forward = self.edges[:, 0] < self.edges[:, 1]
        nodes = int(self.num_nodes.sum())
        ends = self.edges + self.start[self.edge_graph, None]
        key = ends.min(1) * nodes + ends.max(1)
        # The direction from the smaller node comes first: its attributes are those of the edge.
        order = np.lexsort((~forward, key))
        order = order[self.edges[order, 0] != self.edges[order, 1]]
        _, first, inverse, counts = np.unique(key[order], return_index=True, return_inverse=True, return_counts=True)
        kept = order[first]
        ahead = np.bincount(inverse, weights=forward[order], minlength=len(counts)).astype(np.int64)
        allowed = np.minimum(ahead, 1) + np.minimum(counts - ahead, 1) if not self.one_way else np.ones_like(counts)
        other = np.zeros(len(order), bool)
        for values in self.edge.values():
            other |= (values[order] != values[kept[inverse]]).reshape(len(order), -1).any(1)
        problems = (
            (len(self.edges) - len(order), "self-loops", "dropped"),
            (int((counts - allowed).sum()), "repeated edges", "the first of each is kept"),
            (0 if self.one_way else int((allowed == 1).sum()), "edges are stored in one direction", "mirrored"),
            (int(other.sum()), "repeated or reverse edges have other attributes", "those of the first are used"),
        )
        _report(problems, refuse)
        columns = {name: values[kept] for name, values in self.edge.items()}
        pairs = np.sort(self.edges[kept], axis=1)
        return GraphTable(self.num_nodes, pairs, self.edge_graph[kept], self.node, columns, self.y, self.graph)

    def items(self, x: str = "auto", edge_attr: str = "auto") -> list[Any]:
        """Cut a repaired table into items.

        Args:
            x: What becomes ``x``: ``label`` (int64 types), ``attribute`` (float features), ``none``, or ``auto``:
                labels where there are any, else attributes. One-hot attributes can be asked for as ``label``.
            edge_attr: The same of the edges.

        Returns:
            PyG ``Data`` with ``edge_index`` in both directions, sorted, and ``num_nodes``.

        Raises:
            ConfigError: If a field is asked for that the data has not.
        """
        from torch_geometric.data import Data

        node, edge = _chosen(self.node, x, "x"), _chosen(self.edge, edge_attr, "edge_attr")
        nodes = int(self.num_nodes.sum())
        low, high = (self.edges + self.start[self.edge_graph, None]).T
        source, target = np.concatenate([low, high]), np.concatenate([high, low])
        order = np.argsort(source * nodes + target)
        directed = np.concatenate([self.edges.T, self.edges[:, ::-1].T], axis=1)[:, order]
        cut = np.r_[0, 2 * np.bincount(self.edge_graph, minlength=len(self)).cumsum()]
        places = np.r_[0, self.num_nodes.cumsum()]
        mirrored = None if edge is None else np.concatenate([edge, edge])[order]
        items = []
        for i in range(len(self)):
            fields: dict[str, Any] = {"edge_index": _tensor(directed[:, cut[i] : cut[i + 1]])}
            if node is not None:
                fields["x"] = _tensor(node[places[i] : places[i + 1]])
            if mirrored is not None:
                fields["edge_attr"] = _tensor(mirrored[cut[i] : cut[i + 1]])
            if self.y is not None:
                fields["y"] = _tensor(self.y[i : i + 1])
            fields |= {name: _tensor(values[i : i + 1]) for name, values in self.graph.items()}
            items.append(Data(**fields, num_nodes=int(self.num_nodes[i])))
        return items


def _report(problems: Sequence[tuple[int, str, str]], refuse: bool) -> None:
    for count, what, cure in problems:
        if count and refuse:
            raise DataError(f"{count} {what}; repair them, or allow the repair ({cure})")
        if count:
            warnings.warn(f"{count} {what}: {cure}", stacklevel=4)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def _chosen(columns: dict[str, np.ndarray], wanted: str, name: str) -> np.ndarray | None:
    """The column that becomes ``x`` or ``edge_attr``."""
    if wanted not in FIELDS:
        raise ConfigError(f"{name} must be one of {', '.join(FIELDS)}, got {wanted!r}")
    if wanted == "none":
        return None
    if wanted == "auto":
        return next((columns[key] for key in ("label", "attribute") if key in columns), None)
    if wanted == "label" and "label" not in columns and "attribute" in columns:
        hot = columns["attribute"]
        if not bool((((hot == 0) | (hot == 1)).all(1) & (hot.sum(1) == 1)).all()):
            raise ConfigError(f"{name}='label': the data has attributes that are not one-hot, and no labels")
        return np.asarray(hot.argmax(1), np.int64)
    if wanted not in columns:
        raise ConfigError(f"{name}={wanted!r}: the data has {sorted(columns) or 'neither labels nor attributes'}")
    return columns[wanted]


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() == 1


class _Row:
    """The fields of one PyG ``Data`` as arrays, with their types checked."""

    def __init__(self, number: int, item: Any) -> None:
        self.number = number
        if not hasattr(item, "to_dict"):
            raise DataError(f"graph {number} is a {type(item).__name__}, not a PyG Data as graph 0")
        stored = item.to_dict()
        edges = stored.pop("edge_index", None)
        if edges is None:
            raise DataError(f"graph {number} has no edge_index")
        edges = torch.as_tensor(edges).detach().cpu()
        # An empty tensor is float32 unless told otherwise.
        edges = edges if edges.numel() else edges.long()
        if edges.ndim != 2 or edges.shape[0] != 2 or edges.is_floating_point() or edges.dtype == torch.bool:
            raise DataError(
                f"graph {number}: edge_index must be int64 (2, edges), got {edges.dtype} {tuple(edges.shape)}"
            )
        self.edges = edges.numpy().T.astype(np.int64)
        self.num_nodes = int(item.num_nodes or 0)
        stored.pop("num_nodes", None)
        self.fields = {name: stored.pop(name, None) for name in ("x", "edge_attr", "y")}
        self.numbers = {name: float(value) for name, value in stored.items() if _is_number(value)}
        self.extra = [name for name, value in stored.items() if value is not None and name not in self.numbers]

    def get(self, name: str) -> np.ndarray | None:
        value = self.fields[name]
        return None if value is None else np.asarray(torch.as_tensor(value).detach().cpu())


def _column(rows: Sequence[_Row], name: str, lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """One field of all graphs: integers as ``label``, floats as ``attribute``."""
    values = [row.get(name) for row in rows]
    if all(value is None for value in values):
        return {}
    parts: list[np.ndarray] = []
    for row, value, length in zip(rows, values, lengths, strict=True):
        if value is None:
            raise DataError(f"graph {row.number} has no {name}, but others have")
        what = "edges" if name == "edge_attr" else "nodes"
        if len(value) != length:
            raise DataError(f"graph {row.number}: {len(value)} rows of {name} for {length} {what}")
        flat = value.reshape(length, -1) if length else value.reshape(0, int(np.prod(value.shape[1:], dtype=int)))
        parts.append(flat)
    filled = [part for part in parts if len(part)]
    floating = {part.dtype.kind == "f" for part in filled}
    widths = {part.shape[1] for part in filled}
    if len(floating) > 1 or len(widths) > 1:
        raise DataError(f"{name} has different types or widths among the graphs: {sorted(widths)} columns")
    if not filled:
        return {}
    if floating == {True}:
        return {"attribute": np.concatenate(filled).astype(np.float32)}
    if widths != {1}:
        raise DataError(f"{name} has {widths.pop()} integer columns; keep one column of types, or make them floats")
    return {"label": np.concatenate(filled)[:, 0].astype(np.int64)}


def _targets(rows: Sequence[_Row]) -> np.ndarray | None:
    """Labels int64 (graphs,), or float32 (graphs, targets)."""
    values = [row.get("y") for row in rows]
    given = [row.number for row, value in zip(rows, values, strict=True) if value is not None]
    if not given:
        return None
    if len(given) < len(rows):
        missing = next(row.number for row, value in zip(rows, values, strict=True) if value is None)
        raise DataError(f"graph {missing} has no y, but graph {given[0]} has: label all or none")
    flat = [np.asarray(value).reshape(-1) for value in values]
    if any(value.dtype.kind == "f" for value in flat):
        if len({len(value) for value in flat}) > 1:
            raise DataError(f"y has different lengths among the graphs: {sorted({len(value) for value in flat})}")
        return np.stack(flat).astype(np.float32)
    wrong = next((i for i, value in enumerate(flat) if len(value) != 1), None)
    if wrong is not None:
        raise DataError(f"graph {rows[wrong].number}: y holds {len(flat[wrong])} integers; a graph has one label")
    return np.concatenate(flat).astype(np.int64)
