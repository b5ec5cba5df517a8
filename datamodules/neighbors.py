"""Neighbour sampling in pure PyTorch: training on a large graph a few hundred nodes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_synth.datamodules.base import EpochSampler
from lightning_synth.mixing import MixtureSampler
from lightning_synth.mixing.sampler import MixedBlock
from lightning_synth.requests import KeyedRNG, mix_seed


class SeedBlock(NamedTuple):
    """One sampled batch to load; what it holds is a function of these numbers and the seed.

    Args:
        nodes: int64 (batch,), the nodes that the loss is for.
        epoch: Number of the epoch.
        position: Of the batch in the epoch, over all processes.
        graph: Which graph, in a mixture.
    """

    nodes: np.ndarray
    epoch: int
    position: int
    graph: MixedBlock | None = None

    @property
    def rows(self) -> np.ndarray:
        """What the loader names if the batch cannot be loaded."""
        return self.nodes


class NeighborTable:
    """The incoming edges of every node, for sampling: PyG's ``NeighborLoader`` without its compiled packages.

    Args:
        graph: PyG ``Data``.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> table = NeighborTable(tiny_node())
        >>> batch = table.sample(torch.tensor([4, 7]), [2, 2], seed=1)
        >>> batch.n_id[:2].tolist(), batch.batch_size, int(batch.edge_index[1].bincount().max())
        ([4, 7], 2, 2)
    """

    def __init__(self, graph: Any) -> None:
        self.graph, self.num_nodes = graph, int(graph.num_nodes)
        self.edge = graph.edge_index[1].argsort(stable=True)
        self.source = graph.edge_index[0][self.edge]
        self.degree = torch.bincount(graph.edge_index[1], minlength=self.num_nodes)
        self.start = self.degree.cumsum(0) - self.degree
        names = [name for name in graph.keys() if name not in ("edge_index", "num_nodes")]
        self.node_fields = [name for name in names if graph.is_node_attr(name)]
        self.edge_fields = [name for name in names if graph.is_edge_attr(name)]

    def sample(self, nodes: Tensor, num_neighbors: Sequence[int], seed: int) -> Any:
        """Sample a subgraph around some nodes (Hamilton et al. 2017, arXiv 1706.02216, algorithm 2).

        Args:
            nodes: int64 (batch,), without repetition.
            num_neighbors: Incoming edges kept of each node, hop by hop; -1 for all.
            seed: Of the choice, which is without replacement.

        Returns:
            A ``Data`` of the nodes and edges found: the given nodes come first, ``batch_size`` of them; ``n_id`` and
            ``e_id`` are their numbers in the graph. Node and edge attributes are carried along; ``train_mask`` is True
            for given nodes alone.
        """
        local = torch.full((self.num_nodes,), -1)
        local[nodes] = torch.arange(len(nodes))
        found, ends, edges = [nodes], [], []
        for hop, count in enumerate(num_neighbors):
            frontier = found[-1]
            owner, place = self._choose(frontier, count, KeyedRNG(mix_seed(seed, hop) + frontier))
            at = self.start[frontier[owner]] + place
            source = self.source[at]
            fresh = source[local[source] < 0].unique()
            known = sum(map(len, found))
            local[fresh] = torch.arange(known, known + len(fresh))
            ends.append(torch.stack([local[source], local[frontier[owner]]]))
            edges.append(self.edge[at])
            found.append(fresh)
        return self._subgraph(torch.cat(found), torch.cat(ends, 1), torch.cat(edges), len(nodes))

    def _choose(self, nodes: Tensor, count: int, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Up to ``count`` distinct incoming edges of each node: position of the node, number among its edges."""
        degree = self.degree[nodes]
        if count < 0:
            owner = torch.arange(len(nodes)).repeat_interleave(degree)
            return owner, torch.arange(len(owner)) - (degree.cumsum(0) - degree)[owner]
        # Floyd's sampling without replacement (Bentley & Floyd 1987), all nodes at once: the t-th choice is uniform in
        # 0..last; if it has been taken before, `last` itself, which cannot have been.
        taken = degree.clamp(max=count)
        last = (degree - taken)[:, None] + torch.arange(count)
        drawn = rng.integers(last + 1, (count,))
        for t in range(1, count):
            again = (drawn[:, :t] == drawn[:, t : t + 1]).any(1)
            drawn[:, t] = torch.where(again, last[:, t], drawn[:, t])
        owner, place = (torch.arange(count) < taken[:, None]).nonzero(as_tuple=True)
        return owner, drawn[owner, place]

    def _subgraph(self, nodes: Tensor, edge_index: Tensor, edges: Tensor, size: int) -> Any:
        from torch_geometric.data import Data

        batch: Any = Data(edge_index=edge_index, num_nodes=len(nodes), n_id=nodes, e_id=edges, batch_size=size)
        for name in self.node_fields:
            batch[name] = self.graph[name][nodes]
        for name in self.edge_fields:
            batch[name] = self.graph[name][edges]
        if "train_mask" in batch:
            batch.train_mask &= torch.arange(len(nodes)) < size
        return batch


class NeighborBatches:
    """A data set whose index is a `SeedBlock`, for a loader with ``batch_size=None``.

    Args:
        graph: The graph; or, in a mixture, a function of a `MixedBlock` that returns it.
        num_neighbors: As `NeighborTable.sample`.
        seed: Of the choice of neighbours.
    """

    def __init__(self, graph: Any | Callable[[MixedBlock], Any], num_neighbors: Sequence[int], seed: int) -> None:
        self.graph, self.num_neighbors, self.seed = graph, tuple(num_neighbors), seed
        self._table: tuple[bytes, NeighborTable] | None = None

    def __getitem__(self, block: SeedBlock) -> Any:
        """Sample one batch."""
        seed = mix_seed(self.seed, block.epoch, block.position)
        return self._table_of(block.graph).sample(torch.from_numpy(block.nodes), self.num_neighbors, seed)

    def _table_of(self, block: MixedBlock | None) -> NeighborTable:
        """The table of a graph; only that of the last one is kept."""
        key = b"" if block is None else block.rows.tobytes()
        if self._table is None or self._table[0] != key:
            self._table = key, NeighborTable(self.graph if block is None else self.graph(block))
        return self._table[1]


class MarkedGraphs:
    """Looks up the graph of a block, with provenance on its nodes.

    Args:
        dataset: Takes a `MixedBlock` as index.
        collate: Marks its nodes.
    """

    def __init__(self, dataset: Any, collate: Callable[[Any], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __call__(self, block: MixedBlock) -> Any:
        """Return the graph."""
        return self.collate(self.dataset[block])

    def train_nodes(self, block: MixedBlock) -> Tensor:
        """Return its training nodes, int64."""
        nodes: Tensor = self(block).train_mask.nonzero()[:, 0]
        return nodes


class SeedSampler(EpochSampler):
    """Deals the training nodes out in batches, in an order that is a pure function of (seed, epoch).

    Args:
        nodes: int64 (nodes,).
        batch_size: Nodes of a batch.
        seed: Of the order.

    Example:
        >>> sampler = SeedSampler(torch.arange(5), batch_size=2)
        >>> [len(block.nodes) for block in sampler], len(sampler)
        ([2, 2, 1], 3)
    """

    def __init__(self, nodes: Tensor, batch_size: int, seed: int = 0) -> None:
        super().__init__(nodes, seed)  # type: ignore[arg-type]
        self.nodes, self.batch_size = nodes.numpy(), batch_size

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of this process."""
        own = self.nodes[list(super().__iter__())]
        for step in range(len(self)):
            nodes = own[step * self.batch_size : (step + 1) * self.batch_size]
            yield SeedBlock(nodes, self.epoch, step * self.num_replicas + self.rank)

    def __len__(self) -> int:
        """Return the batches of this process."""
        return -(-self.num_samples // self.batch_size)


class SeedMixtureSampler(MixtureSampler):
    """A mixture of whole graphs, one an epoch, the training nodes of which are dealt out in batches.

    Args:
        graphs: The graphs of blocks.
        num_neighbors: As `NeighborTable.sample`.
        nodes_per_batch: Nodes of a batch.
        **options: Of `MixtureSampler`.
    """

    def __init__(
        self, *, graphs: MarkedGraphs, num_neighbors: Sequence[int], nodes_per_batch: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self.graphs, self.num_neighbors, self.nodes_per_batch = graphs, num_neighbors, nodes_per_batch
        self._order: tuple[int, MixedBlock, np.ndarray] | None = None

    def _nodes(self, epoch: int) -> tuple[MixedBlock, np.ndarray]:
        """The graph of an epoch and its training nodes in order of use."""
        if self._order is None or self._order[0] != epoch:
            graph = self.plan(epoch).block(0)
            nodes = self.graphs.train_nodes(graph).numpy()
            order = np.random.default_rng((self.seed, epoch)).permutation(len(nodes))
            self._order = epoch, graph, nodes[order]
        return self._order[1:]

    def batches(self) -> NeighborBatches:
        """Return the data set that takes what this sampler yields."""
        return NeighborBatches(self.graphs, self.num_neighbors, self.seed)

    def seeds(self, step: int, epoch: int | None = None) -> SeedBlock:
        """Return what a sampled batch is made of.

        Args:
            step: Number of the batch within the epoch.
            epoch: Number of the epoch; None means the current one.
        """
        epoch = self.epoch if epoch is None else epoch
        graph, nodes = self._nodes(epoch)
        return SeedBlock(nodes[step * self.nodes_per_batch : (step + 1) * self.nodes_per_batch], epoch, step, graph)

    def block(self, step: int, epoch: int | None = None) -> MixedBlock:
        """Return the graph that a batch is sampled from.

        Args:
            step: Number of the batch within the epoch.
            epoch: Number of the epoch; None means the current one.
        """
        return self._nodes(self.epoch if epoch is None else epoch)[0]

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches from batch ``start`` of the epoch on."""
        return map(self.seeds, range(self.start, len(self)))

    def __len__(self) -> int:
        """Return the batches of the epoch."""
        return -(-len(self._nodes(self.epoch)[1]) // self.nodes_per_batch)


def unchanged(batch: Any) -> Any:
    """Return what a data set made: it is a batch already."""
    return batch
