"""DataModule for one large graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.datamodules.base import ItemsDataModule, Splits
from lightning_synth.datamodules.graph_readers import open_npz
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.graph_table import GraphTable

_FIELDS = ("auto", "label", "attribute", "none")


class LargeGraphDataModule(ItemsDataModule):
    """One large graph: a single training item of the domain ``graph``, without validation or test items.

    Repairs are those of `GraphDataModule`. With ``hold_out`` some edges are taken away, so that a model can be judged
    by whether it finds them (`held_out_edges`); a spanning forest always stays, so no component falls apart. The item
    has ``edge_index``, ``num_nodes``, ``x``, ``edge_attr``, and ``y`` int64 (nodes,) where there are node labels that
    did not become ``x``: ``schema["num_node_classes"]`` of them. They are no label of the graph.

    Args:
        source: Path of an npz (``num_nodes``, ``edges``; optional ``y``, and features as ``x`` or as the CSR parts
            ``x_data x_indices x_indptr x_shape``), a PyG ``Data``, or a NetworkX graph.
        x: What becomes ``x``: ``attribute`` (float features), ``label`` (int64 types: integer ``x``, else the node
            labels ``y``), ``none``, or ``auto``: features where there are any, else labels.
        hold_out: Shares of the edges held out for validation and for test.
        repair: False refuses a graph that is not simple and undirected.
        seed: Of the held-out edges.

    Example:
        >>> import networkx as nx
        >>> data = LargeGraphDataModule(nx.karate_club_graph(), hold_out=(0.0, 0.1))
        >>> data.train_items()[0].edge_index.shape[1] // 2, data.held_out_edges("test")[0].shape
        (70, torch.Size([2, 8]))
    """

    def __init__(
        self,
        source: Any,
        *,
        x: str = "auto",
        hold_out: Sequence[float] = (0.0, 0.0),
        repair: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(domain="graph", batch_size=1, seed=seed)
        if x not in _FIELDS:
            raise ConfigError(f"x must be one of {', '.join(_FIELDS)}, got {x!r}")
        if len(hold_out) != 2 or min(hold_out) < 0 or sum(hold_out) >= 1:
            raise ConfigError(f"hold_out must be two shares (val, test) that add up to less than 1, got {hold_out}")
        self.source, self.x, self.hold_out, self.repair = source, x, tuple(hold_out), repair
        self._held: dict[str, np.ndarray] = {}

    def load(self) -> Splits:
        """Read and repair the graph, and take the held-out edges away."""
        table, labels = self._read()
        if len(table) != 1:
            raise DataError(f"the source holds {len(table)} graphs; open it with GraphDataModule")
        table = table.repair(refuse=not self.repair)
        if not table.num_nodes[0]:
            raise DataError("the graph has 0 nodes")
        if labels is not None and len(labels) != table.num_nodes[0]:
            raise DataError(f"{len(labels)} node labels for {table.num_nodes[0]} nodes")
        self._all_edges = table.edges
        table = self._without_held_out(table)
        x = self.x
        if x == "auto":
            x = next(
                (name for name in ("attribute", "label") if name in table.node),
                "label" if labels is not None else "none",
            )
        if x == "label" and "label" not in table.node and labels is not None:
            table.node["label"], labels = labels, None
        item = table.items(x=x)[0]
        if labels is not None:
            item.y = torch.from_numpy(labels)
        known = {} if labels is None else {"num_node_classes": int(labels.max()) + 1}
        return Splits([item], known=known)

    def _read(self) -> tuple[GraphTable, np.ndarray | None]:
        """The graph, and its node labels numbered from 0."""
        if isinstance(self.source, (str, Path)):
            table, labels = _read_npz(Path(self.source))
        elif hasattr(self.source, "edge_index"):
            bare = self.source.clone()
            labels, bare.y = _node_labels(bare), None
            for name in ("train_mask", "val_mask", "test_mask"):
                bare[name] = None
            table = GraphTable.from_data([bare])
        else:
            from lightning_synth.networkx import read_networkx

            table, labels = read_networkx(self.source), None
        if "label" in table.node:
            table.node["label"] = _numbered(table.node["label"])
        return table, None if labels is None else _numbered(labels)

    def _without_held_out(self, table: GraphTable) -> GraphTable:
        """Draw the held-out edges among those that no spanning forest needs."""
        self._held = {"val": np.zeros((0, 2), np.int64), "test": np.zeros((0, 2), np.int64)}
        counts = [round(share * len(table.edges)) for share in self.hold_out]
        if not sum(counts):
            return table
        rng = np.random.default_rng(self.seed)
        forest = _forest(table, rng)
        free = rng.permutation(np.flatnonzero(~forest))
        if sum(counts) > len(free):
            raise ConfigError(f"hold_out asks for {sum(counts)} edges, but only {len(free)} are in no spanning forest")
        val, test, rest = np.split(free, np.cumsum(counts))
        self._held = {"val": table.edges[val], "test": table.edges[test]}
        stays = np.sort(np.concatenate([np.flatnonzero(forest), rest]))
        edge = {name: values[stays] for name, values in table.edge.items()}
        return GraphTable(table.num_nodes, table.edges[stays], table.edge_graph[stays], table.node, edge)

    def held_out_edges(self, part: str = "test") -> tuple[Tensor, Tensor]:
        """Return held-out edges, and as many pairs of nodes that are no edge at all.

        Args:
            part: ``val`` or ``test``.

        Returns:
            Two int64 (2, pairs): edges and non-edges, each pair once with the smaller node first.
        """
        self._ready()
        if part not in self._held:
            raise ConfigError(f"part must be 'val' or 'test', got {part!r}")
        edges = self._held[part]
        nodes = int(self.train_items()[0].num_nodes)
        taken = np.sort(self._all_edges @ [nodes, 1])
        rng = np.random.default_rng((self.seed, 1 if part == "val" else 2))
        found = np.zeros((0, 2), np.int64)
        room = nodes * (nodes - 1) // 2 - len(taken)
        while len(found) < min(len(edges), room):
            pairs = np.sort(rng.integers(nodes, size=(2 * len(edges) + 8, 2)), axis=1)
            pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & ~np.isin(pairs @ [nodes, 1], taken)]
            found = np.unique(np.concatenate([found, pairs]), axis=0)
        non_edges = rng.permutation(found)[: len(edges)]
        return torch.from_numpy(edges.T.copy()), torch.from_numpy(non_edges.T.copy())


def _read_npz(path: Path) -> tuple[GraphTable, np.ndarray | None]:
    if not path.exists():
        raise DataError(f"{path} does not exist: give an npz, a PyG Data or a NetworkX graph")
    arrays = open_npz(path, ("num_nodes", "edges"))
    if "edge_ptr" in arrays:
        raise DataError(f"{path} holds many graphs (it has edge_ptr); open it with GraphDataModule")
    table = GraphTable.from_edges([int(arrays["num_nodes"])], [arrays["edges"]])
    if "x" in arrays:
        table.node["attribute"] = arrays["x"].astype(np.float32)
    elif "x_data" in arrays:
        from scipy.sparse import csr_array

        parts = (arrays["x_data"], arrays["x_indices"], arrays["x_indptr"])
        table.node["attribute"] = csr_array(parts, shape=tuple(arrays["x_shape"])).toarray().astype(np.float32)
    return table, arrays.get("y")


def _node_labels(data: Any) -> np.ndarray | None:
    """Integer labels of the nodes of a PyG ``Data``; a label of the graph is of no use for one graph."""
    y = data.get("y")
    if y is None or y.is_floating_point() or y.numel() != data.num_nodes:
        return None
    return np.asarray(y.detach().cpu().reshape(-1).numpy())


def _numbered(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _forest(table: GraphTable, rng: np.random.Generator) -> np.ndarray:
    """Say which edges a random spanning forest takes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    nodes = int(table.num_nodes[0])
    # Weights that are a random order of the edges also tell which edges the forest took.
    weight = 1 + rng.permutation(len(table.edges))
    adjacency = coo_array((weight, table.edges.T), shape=(nodes, nodes)).tocsr()
    chosen = np.zeros(len(table.edges), bool)
    chosen[np.argsort(weight)[minimum_spanning_tree(adjacency).data.astype(np.int64) - 1]] = True
    return chosen
