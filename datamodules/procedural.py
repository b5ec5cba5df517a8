"""Graph sets made by rule: planar, stochastic block model, tree, lobster, community, ego and grid graphs.

Every sampler takes any number of graphs, any size and a seed; graph i does not depend on how many graphs are asked for.
They are the true generators behind the benchmark sets of the literature, so an evaluation can ask what a perfect model
would score at any sample count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lightning_synth.errors import ConfigError
from lightning_synth.graph_table import GraphTable

Sizes = int | Sequence[int]


def _bounds(sizes: Sizes, smallest: int) -> tuple[int, int]:
    """Inclusive bounds of a size given as one number or as (low, high)."""
    values = np.ravel(sizes)
    if len(values) not in (1, 2) or values.dtype.kind not in "iu" or not smallest <= values[0] <= values[-1]:
        raise ConfigError(f"sizes must be a number or (low, high) with {smallest} <= low <= high, got {sizes}")
    return int(values[0]), int(values[-1])


def _items(num_graphs: int, seed: int, make: Callable[[np.random.Generator], tuple[int, np.ndarray]]) -> list[Any]:
    """Call ``make`` once a graph, each time with a random generator of its own; it returns (nodes, edges (m, 2))."""
    if num_graphs < 1:
        raise ConfigError(f"num_graphs must be at least 1, got {num_graphs}")
    made = [make(np.random.default_rng((seed, i))) for i in range(num_graphs)]
    return GraphTable.from_edges([nodes for nodes, _ in made], [edges for _, edges in made]).items()


def _upper_pairs(chosen: np.ndarray) -> np.ndarray:
    """Node pairs (m, 2) above the diagonal where ``chosen`` (n, n) is True."""
    return np.argwhere(np.triu(chosen, 1))


def _connected(nodes: int, edges: np.ndarray) -> bool:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    adjacency = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    return bool(connected_components(adjacency, directed=False, return_labels=False) == 1)


def planar_graphs(num_graphs: int = 200, sizes: Sizes = 64, seed: int = 0) -> list[Any]:
    """Triangulate uniform points of the unit square (Delaunay); planar and connected.

    Args:
        num_graphs: How many.
        sizes: Nodes, a number or inclusive (low, high); at least 4.
        seed: Of sizes and points.

    Returns:
        PyG ``Data`` with ``edge_index`` and ``num_nodes``.

    Source:
        The planar set of Martinkus et al. 2022 (SPECTRE, arXiv 2204.01613): 64 nodes, 200 graphs.

    Example:
        >>> graph = planar_graphs(1, sizes=20)[0]
        >>> graph.num_nodes, graph.edge_index.shape[1] // 2 <= 3 * 20 - 6
        (20, True)
    """
    low, high = _bounds(sizes, 4)

    def make(rng: np.random.Generator) -> tuple[int, np.ndarray]:
        from scipy.spatial import Delaunay

        nodes = int(rng.integers(low, high + 1))
        corners = Delaunay(rng.random((nodes, 2))).simplices
        pairs = np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]]), axis=1)
        return nodes, np.unique(pairs, axis=0)

    return _items(num_graphs, seed, make)


def tree_edges(nodes: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a labelled tree, all ``nodes**(nodes - 2)`` of them equally likely, without a loop over nodes.

    A uniform map f of the nodes to themselves corresponds to a tree with two marked nodes (Joyal 1981): the nodes that
    f permutes become the path between the marks, in the order of their images, and every other node v hangs on f(v).

    Args:
        nodes: At least 1.
        rng: Source of randomness.

    Returns:
        int64 (nodes - 1, 2).

    Example:
        >>> tree_edges(5, np.random.default_rng(0)).shape
        (4, 2)
    """
    image = rng.integers(nodes, size=nodes)
    power = image
    # f applied at least `nodes` times ends in the part that f permutes.
    for _ in range(int(nodes).bit_length()):
        power = power[power]
    core = np.unique(power)
    path = image[core]
    rest = np.setdiff1d(np.arange(nodes), core)
    return np.concatenate([np.stack([path[:-1], path[1:]], 1), np.stack([rest, image[rest]], 1)])


def tree_graphs(num_graphs: int = 200, sizes: Sizes = 64, seed: int = 0) -> list[Any]:
    """Draw uniform labelled trees.

    Args:
        num_graphs: How many.
        sizes: Nodes, a number or inclusive (low, high).
        seed: Of sizes and trees.

    Returns:
        PyG ``Data`` with ``edge_index`` and ``num_nodes``.

    Source:
        The tree set of Bergmeister et al. 2024 (arXiv 2312.11529): 64 nodes, 200 graphs.

    Example:
        >>> [graph.edge_index.shape[1] // 2 for graph in tree_graphs(2, sizes=10)]
        [9, 9]
    """
    low, high = _bounds(sizes, 1)

    def make(rng: np.random.Generator) -> tuple[int, np.ndarray]:
        nodes = int(rng.integers(low, high + 1))
        return nodes, tree_edges(nodes, rng)

    return _items(num_graphs, seed, make)


def sbm_graphs(
    num_graphs: int = 200,
    sizes: Sizes = (20, 40),
    seed: int = 0,
    *,
    blocks: Sizes = (2, 5),
    p_in: float = 0.3,
    p_out: float = 0.005,
) -> list[Any]:
    """Draw connected graphs of a stochastic block model; unconnected draws are repeated.

    Args:
        num_graphs: How many.
        sizes: Nodes of one block, a number or inclusive (low, high).
        seed: Of sizes and edges.
        blocks: Number of blocks, a number or inclusive (low, high).
        p_in: Probability of an edge inside a block.
        p_out: Probability of an edge between blocks.

    Returns:
        PyG ``Data`` with ``edge_index`` and ``num_nodes``; the nodes of a block follow one another.

    Raises:
        ConfigError: If a thousand draws in a row are not connected.

    Source:
        The SBM set of Martinkus et al. 2022 (SPECTRE, arXiv 2204.01613), whose values are the defaults.

    Example:
        >>> 40 <= sbm_graphs(1)[0].num_nodes <= 200
        True
    """
    low, high = _bounds(sizes, 1)
    fewest, most = _bounds(blocks, 1)

    def make(rng: np.random.Generator) -> tuple[int, np.ndarray]:
        for _ in range(1000):
            count = rng.integers(fewest, most + 1)
            block = np.repeat(np.arange(count), rng.integers(low, high + 1, size=count))
            chance = np.where(block[:, None] == block[None], p_in, p_out)
            edges = _upper_pairs(rng.random(chance.shape) < chance)
            if _connected(len(block), edges):
                return len(block), edges
        raise ConfigError(f"sbm: p_in={p_in}, p_out={p_out} and blocks of {sizes} nodes give no connected graph")

    return _items(num_graphs, seed, make)


def lobster_graphs(
    num_graphs: int = 100, sizes: Sizes = (10, 100), seed: int = 0, *, p1: float = 0.7, p2: float = 0.7
) -> list[Any]:
    """Draw lobsters: trees that become a path when their leaves are cut off twice.

    Walks along the path; every node of it gets a geometric number of legs (another one with probability ``p1``), every
    leg a geometric number of feet (``p2``). The first n nodes met on the walk are the graph, so that n is exact.

    Args:
        num_graphs: How many.
        sizes: Nodes, a number or inclusive (low, high).
        seed: Of sizes and trees.
        p1: Probability of one more leg, below 1.
        p2: Probability of one more foot, below 1.

    Returns:
        PyG ``Data`` with ``edge_index`` and ``num_nodes``.

    Source:
        The lobster set of Liao et al. 2019 (GRAN, arXiv 1910.00760): 10 to 100 nodes, p1 = p2 = 0.7.

    Example:
        >>> [graph.num_nodes for graph in lobster_graphs(3, sizes=12)]
        [12, 12, 12]
    """
    low, high = _bounds(sizes, 1)
    if not (0 <= p1 < 1 and 0 <= p2 < 1):
        raise ConfigError(f"p1 and p2 must be in [0, 1), got {p1} and {p2}")

    def make(rng: np.random.Generator) -> tuple[int, np.ndarray]:
        nodes = int(rng.integers(low, high + 1))
        # A path of n nodes is always long enough; what is beyond the first n nodes of the walk is cut off.
        legs = rng.geometric(1 - p1, size=nodes) - 1
        feet = rng.geometric(1 - p2, size=legs.sum()) - 1
        path_of_leg = np.repeat(np.arange(nodes), legs)
        after = np.bincount(path_of_leg, weights=1 + feet, minlength=nodes).astype(np.int64)
        path = np.arange(nodes) + after.cumsum() - after
        leg = path[path_of_leg] + 1 + _restarting(1 + feet, path_of_leg)
        foot = (
            np.repeat(leg, feet) + 1 + _restarting(np.ones(feet.sum(), np.int64), np.repeat(np.arange(len(leg)), feet))
        )
        parent_child = [(path[:-1], path[1:]), (path[path_of_leg], leg), (np.repeat(leg, feet), foot)]
        edges = np.concatenate([np.stack(pair, 1) for pair in parent_child])
        return nodes, edges[(edges < nodes).all(1)]

    return _items(num_graphs, seed, make)


def _restarting(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sum of the earlier values of the same group; groups follow one another."""
    before = values.cumsum() - values
    first = np.searchsorted(group, group)
    return np.asarray(before - before[first]) if len(values) else before


def community_graphs(
    num_graphs: int = 100,
    sizes: Sizes = (12, 20),
    seed: int = 0,
    *,
    communities: int = 2,
    p_in: float = 0.7,
    between: float = 0.05,
) -> list[Any]:
    """Draw Erdos-Renyi communities of equal size, joined by a few edges.

    Args:
        num_graphs: How many.
        sizes: Nodes of the graph, a number or inclusive (low, high); rounded down to a multiple of ``communities``.
        seed: Of sizes and edges.
        communities: Number of communities.
        p_in: Probability of an edge inside a community.
        between: Edges between each two communities, as a share of the nodes of the graph; at least one.

    Returns:
        PyG ``Data`` with ``edge_index`` and ``num_nodes``; the nodes of a community follow one another.

    Source:
        The community set of You et al. 2018 (GraphRNN, arXiv 1802.08773): p = 0.7 inside, 0.05 n edges between.

    Example:
        >>> {graph.num_nodes % 2 for graph in community_graphs(5)}
        {0}
    """
    low, high = _bounds(sizes, communities)

    def make(rng: np.random.Generator) -> tuple[int, np.ndarray]:
        each = int(rng.integers(low, high + 1)) // communities
        nodes = each * communities
        member = np.repeat(np.arange(communities), each)
        edges = [_upper_pairs((rng.random((nodes, nodes)) < p_in) & (member[:, None] == member[None]))]
        links = min(max(round(between * nodes), 1), each * each)
        for a, b in _upper_pairs(np.ones((communities, communities), bool)):
            pair = rng.choice(each * each, size=links, replace=False)
            edges.append(np.stack([a * each + pair // each, b * each + pair % each], 1))
        return nodes, np.concatenate(edges)

    return _items(num_graphs, seed, make)


def ego_graphs(
    num_graphs: int = 200, sizes: Sizes = (4, 18), seed: int = 0, *, radius: int = 1, host: Any = None
) -> list[Any]:
    """Cut the neighbourhoods of random nodes out of a large graph.

    Args:
        num_graphs: How many.
        sizes: Nodes, a number or inclusive (low, high); nodes whose neighbourhood is larger or smaller are passed over.
        seed: Of the nodes, and of the host graph.
        radius: Steps from the centre to the rim.
        host: PyG ``Data`` to cut from. None: a preferential attachment graph whose new nodes join a random edge at both
            ends two times out of three, so that neighbourhoods hold triangles as those of citation graphs do.

    Returns:
        PyG ``Data`` with ``edge_index`` and ``num_nodes``; node 0 is the centre. With ``host=None`` more graphs than
        the host has suitable centres repeat centres.

    Raises:
        ConfigError: If no neighbourhood has the wanted size.

    Source:
        The ego sets of You et al. 2018 (GraphRNN, arXiv 1802.08773) are cut from CiteSeer, which may be given as
        ``host``: 4 to 18 nodes for the small one, 50 to 399 for the large one.

    Example:
        >>> all(4 <= graph.num_nodes <= 18 for graph in ego_graphs(5))
        True
    """
    from scipy.sparse import coo_array

    low, high = _bounds(sizes, 1)
    edges, nodes = _host(seed, high) if host is None else (host.edge_index.numpy().T, int(host.num_nodes))
    both = np.concatenate([edges, edges[:, ::-1]])
    adjacency = coo_array((np.ones(len(both), bool), (both[:, 0], both[:, 1])), shape=(nodes, nodes)).tocsr()
    reach = (adjacency + _identity(nodes)).astype(bool)
    ball = reach
    for _ in range(radius - 1):
        ball = (ball @ reach).astype(bool)
    inside = np.diff(ball.indptr)
    centres = np.flatnonzero((inside >= low) & (inside <= high))
    if not len(centres):
        raise ConfigError(
            f"ego: no node of the host graph has {low} to {high} nodes within {radius} steps "
            f"(they have {inside.min()} to {inside.max()})"
        )

    def make(rng: np.random.Generator) -> tuple[int, np.ndarray]:
        centre = rng.choice(centres)
        members = ball.indices[ball.indptr[centre] : ball.indptr[centre + 1]]
        members = np.concatenate([[centre], np.sort(members[members != centre])])
        return len(members), _upper_pairs(adjacency[members][:, members].toarray())

    return _items(num_graphs, seed, make)


def _identity(nodes: int) -> Any:
    from scipy.sparse import eye_array

    return eye_array(nodes, dtype=bool, format="csr")


def _host(seed: int, size: int, nodes: int = 4000) -> tuple[np.ndarray, int]:
    """A growing graph: a new node joins one end of a random edge, and with probability 2/3 the other end too."""
    rng = np.random.default_rng((seed, 1 << 20))
    nodes = max(nodes, 20 * size)
    pick, side, closes = rng.random(nodes), rng.integers(2, size=nodes), rng.random(nodes) < 2 / 3
    edges = [(0, 1)]
    for node in range(2, nodes):
        ends = edges[int(pick[node] * len(edges))]
        edges.append((ends[side[node]], node))
        if closes[node]:
            edges.append((ends[1 - side[node]], node))
    return np.array(edges), nodes


def grid_graphs(num_graphs: int = 100, sizes: Sizes = (10, 19), seed: int = 0) -> list[Any]:
    """Draw rectangular grids.

    Args:
        num_graphs: How many.
        sizes: Nodes along each side, a number or inclusive (low, high); the two sides are independent.
        seed: Of the sides.

    Returns:
        PyG ``Data`` with ``edge_index`` and ``num_nodes``.

    Source:
        The grid set of You et al. 2018 (GraphRNN, arXiv 1802.08773) holds the 100 grids of 10 to 19 nodes a side.

    Example:
        >>> graph = grid_graphs(1, sizes=3)[0]
        >>> graph.num_nodes, graph.edge_index.shape[1] // 2
        (9, 12)
    """
    low, high = _bounds(sizes, 1)

    def make(rng: np.random.Generator) -> tuple[int, np.ndarray]:
        rows, columns = rng.integers(low, high + 1, size=2)
        node = np.arange(rows * columns).reshape(rows, columns)
        across = np.stack([node[:, :-1].ravel(), node[:, 1:].ravel()], 1)
        down = np.stack([node[:-1].ravel(), node[1:].ravel()], 1)
        return int(rows * columns), np.concatenate([across, down])

    return _items(num_graphs, seed, make)


#: Name of a procedural set to its sampler.
PROCEDURAL: dict[str, Callable[..., list[Any]]] = {
    "community": community_graphs,
    "ego": ego_graphs,
    "grid": grid_graphs,
    "lobster": lobster_graphs,
    "planar": planar_graphs,
    "sbm": sbm_graphs,
    "tree": tree_graphs,
}
