"""From proposed edges to graphs that satisfy a constraint, many at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_synth.constraints.base import All, Bools, Constraint, Edges, edges_of
from lightning_synth.constraints.components import count_parts, part_labels, spanning
from lightning_synth.constraints.connectivity import Acyclic, Connected
from lightning_synth.errors import ConfigError


def project(constraint: Constraint, kept: Tensor, proposed: Tensor, score: Tensor, mask: Tensor) -> Tensor:
    """Insert as many proposed edges as are allowed, greedily, those with the highest score first.

    Args:
        constraint: What must hold; `Connected` is left to `complete`.
        kept: bool (graphs, n, n), symmetric: edges of graphs that satisfy the constraint, or are what removals left
            of such graphs.
        proposed: bool (graphs, n, n), symmetric: edges to add.
        score: float (graphs, n, n), symmetric; higher is inserted first.
        mask: bool (graphs, n), True for nodes.

    Returns:
        bool (graphs, n, n), symmetric; each graph depends on its own arguments alone.

    Example:
        >>> triangle = ~torch.eye(3, dtype=torch.bool)[None]
        >>> score = torch.tensor([[[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]])
        >>> mask = torch.ones(1, 3, dtype=torch.bool)
        >>> project(Acyclic(), torch.zeros_like(triangle), triangle, score, mask)[0].int().tolist()
        [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    """
    nodes = mask.cpu().numpy()
    pairs = _pairs(nodes)
    old = kept.cpu().numpy() & pairs
    new = proposed.cpu().numpy() & pairs & ~old
    value = score.double().cpu().numpy()
    wanted = All([part for part in constraint.parts if not part.connects])
    result = old | new
    # Most proposals of a trained model are fine as they are.
    changed = np.flatnonzero(new.any((1, 2)))
    wrong = changed[~wanted.all_hold(result[changed], nodes[changed])]
    if all(isinstance(part, Acyclic) for part in wanted.parts):
        result[wrong] = spanning(old[wrong], new[wrong], value[wrong])
    else:
        for i in wrong:
            result[i] = _inserted(wanted, old[i], new[i], value[i])
    return torch.from_numpy(result).to(kept.device)


def complete(constraint: Constraint, adjacency: Tensor, score: Tensor, mask: Tensor) -> Tensor:
    """Add the highest-scoring edges that the constraint needs: those that connect the graph, where it must be.

    Where other constraints leave no edge between two parts (all nodes have their largest degree already), each part
    gives up its lowest-scoring edge that does not hold it together, and the joining starts again.

    Args:
        constraint: What must hold.
        adjacency: bool (graphs, n, n), symmetric: what `project` returned.
        score: float (graphs, n, n), symmetric, of all pairs of nodes.
        mask: bool (graphs, n), True for nodes.

    Returns:
        bool (graphs, n, n), symmetric; every graph satisfies the constraint.

    Raises:
        ConfigError: If a graph cannot: for example `Connected() & MaxDegree(1)` of three nodes.

    Example:
        >>> edges = torch.zeros(1, 3, 3, dtype=torch.bool)
        >>> complete(Connected(), edges, torch.eye(3)[None], torch.tensor([[True, True, False]])).sum().item() // 2
        1
    """
    if not constraint.connects:
        return adjacency
    nodes, value, result = mask.cpu().numpy(), score.double().cpu().numpy(), adjacency.cpu().numpy().copy()
    apart = np.flatnonzero(~Connected().all_hold(result, nodes))
    if constraint.joins_freely:
        between = _pairs(nodes[apart]) & ~result[apart]
        result[apart] |= spanning(result[apart], between, value[apart])
    else:
        for i in apart:
            result[i] = _joined(constraint, result[i], value[i], nodes[i], f"graph {i}")
    return torch.from_numpy(result).to(adjacency.device)


def satisfied(constraint: Constraint, adjacency: Tensor, mask: Tensor) -> Tensor:
    """Test finished graphs.

    Args:
        constraint: What must hold.
        adjacency: bool (graphs, n, n), symmetric.
        mask: bool (graphs, n), True for nodes.

    Returns:
        bool (graphs,).

    Example:
        >>> from lightning_synth.constraints import MaxDegree, Tree
        >>> path = torch.tensor([[[0, 1, 0], [1, 0, 1], [0, 1, 0]]], dtype=torch.bool)
        >>> satisfied(Tree() & MaxDegree(1), path, torch.ones(1, 3, dtype=torch.bool))
        tensor([False])
    """
    nodes = mask.cpu().numpy()
    held = constraint.all_hold(adjacency.cpu().numpy() & _pairs(nodes), nodes)
    return torch.from_numpy(held).to(adjacency.device)


def _pairs(nodes: Bools) -> Bools:
    """Pairs of two different nodes, (graphs, n, n)."""
    return nodes[:, :, None] & nodes[:, None, :] & ~np.eye(nodes.shape[1], dtype=bool)


def _by_score(edges: Bools, score: npt.NDArray[np.float64]) -> Edges:
    """Edges of one graph, those with the highest score first."""
    pairs = np.stack(np.triu(edges, 1).nonzero(), axis=1)
    order = (-score[pairs[:, 0], pairs[:, 1]]).argsort(kind="stable")
    return [(int(u), int(v)) for u, v in pairs[order]]


def _inserted(constraint: Constraint, old: Bools, new: Bools, score: npt.NDArray[np.float64]) -> Bools:
    """One graph with the new edges that are allowed."""
    tracker, result = constraint.tracker(len(old)), old.copy()
    tracker.add_all(edges_of(old))
    for u, v in _by_score(new, score):
        if tracker.allows(u, v):
            tracker.add(u, v)
            result[u, v] = result[v, u] = True
    return result


def _joined(constraint: Constraint, adjacency: Bools, score: npt.NDArray[np.float64], nodes: Bools, name: str) -> Bools:
    """One graph, connected by allowed edges; gives edges up where none is left."""
    pairs = _pairs(nodes[None])[0]
    while True:
        label = part_labels(adjacency[None])[0]
        adjacency = _inserted(constraint & Acyclic(), adjacency, pairs & (label[:, None] != label), score)
        if Connected().all_hold(adjacency[None], nodes[None])[0]:
            return adjacency
        loose = _loose(adjacency, score)
        if not loose:
            parts = count_parts(adjacency[None])[0] - (~nodes).sum()
            raise ConfigError(f"{constraint!r} cannot be met: {name} of {nodes.sum()} nodes stays in {parts} parts")
        for u, v in loose:
            adjacency[u, v] = adjacency[v, u] = False


def _loose(adjacency: Bools, score: npt.NDArray[np.float64]) -> Edges:
    """Of every part the lowest-scoring edge that is on a cycle, if it has one."""
    from networkx import Graph, bridges

    edges = _by_score(adjacency, score)
    holding = {frozenset(edge) for edge in bridges(Graph(edges))} if edges else set()
    label = part_labels(adjacency[None])[0]
    return list({label[u]: (u, v) for u, v in edges if frozenset((u, v)) not in holding}.values())
