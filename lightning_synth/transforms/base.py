"""What all graph transforms share: owned randomness, and one code for a graph and for a batch of graphs."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import get_worker_info

from lightning_synth.errors import ConfigError, MissingExtraError
from lightning_synth.requests import KeyedRNG, mix_seed
from lightning_synth.transforms.parts import keep_marks, num_graphs

try:
    from torch_geometric.data import Batch
    from torch_geometric.transforms import BaseTransform, Compose
except ImportError as error:
    raise MissingExtraError(
        "lightning_synth.transforms needs torch_geometric: pip install 'lightning-synth[graph]'"
    ) from error

#: What a draw belongs to: a number, or several such as (epoch, position).
Key = int | Sequence[int]


class GraphTransform(BaseTransform):  # type: ignore[misc]
    """A PyG transform of a ``Data``, or of all graphs of a ``Batch`` at once, whose randomness is its own.

    The result is a function of (seed, key). ``transform(data, key=(epoch, i))`` names the key; a call without one, as
    PyG's ``Compose`` and datasets make it, takes the number of the call since `set_epoch`. In a loading process the
    seed that torch gives the process for each epoch joins it, so that processes and epochs differ. `AugmentedDataset`
    and ``AugmentedDataModule`` set the key to (epoch, position). No global generator is drawn from. The given graph is
    not changed.

    Args:
        seed: Of all draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed, self._epoch, self._calls = seed, 0, 0

    @abstractmethod
    def apply(self, data: Any, rng: KeyedRNG) -> Any:
        """Transform a graph or a batch.

        Args:
            data: A shallow copy: attributes may be replaced, tensors not written to.
            rng: One seed a graph.

        Returns:
            The transformed graph.
        """

    def forward(self, data: Any, key: Key | None = None) -> Any:
        """Transform a graph that may be changed.

        Args:
            data: PyG ``Data`` or ``Batch``.
            key: As of the class.
        """
        if key is None:
            worker = get_worker_info()
            key = (self._epoch, 0 if worker is None else worker.seed, self._calls)
            self._calls += 1
        first = mix_seed(self.seed, *([key] if isinstance(key, int) else key)) >> 1
        return self.apply(data, KeyedRNG(first + torch.arange(num_graphs(data)), device=data.edge_index.device))

    def __call__(self, data: Any, key: Key | None = None) -> Any:
        """Transform a graph; the given one stays as it is.

        Args:
            data: PyG ``Data`` or ``Batch``.
            key: As of the class.
        """
        return self.forward(copy.copy(data), key)

    def set_epoch(self, epoch: int) -> None:
        """Start the count of calls again, with other draws for every epoch.

        Args:
            epoch: Its number.
        """
        self._epoch, self._calls = epoch, 0

    def __repr__(self) -> str:
        """Name the options."""
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({options})"


def transform_with(transform: Any, data: Any, rng: KeyedRNG) -> Any:
    """Apply a transform with given randomness.

    Args:
        transform: A `GraphTransform`, a fitted generator that can augment, any other PyG transform, or a ``Compose`` of
            them. Other transforms are applied graph by graph, and draw, if they do, from the generators that they
            always use.
        data: PyG ``Data`` or ``Batch``; not changed.
        rng: One seed a graph.

    Example:
        >>> from torch_geometric.transforms import Compose, ToUndirected
        >>> from lightning_synth.testing import tiny_node
        >>> from lightning_synth.transforms import DropEdge
        >>> steps = Compose([DropEdge(0.5), ToUndirected()])
        >>> ends = [transform_with(steps, tiny_node(), KeyedRNG(torch.tensor([3]))).edge_index for _ in range(2)]
        >>> bool((ends[0] == ends[1]).all())
        True
    """
    if isinstance(transform, Compose):
        for i, step in enumerate(transform.transforms):
            data = transform_with(step, data, rng.fork(i))
        return data
    if isinstance(transform, GraphTransform):
        return transform.apply(copy.copy(data), rng)
    if callable(getattr(transform, "augment", None)):
        return transform.augment(data, rng)
    if data.get("ptr") is None:
        return transform(data)
    return keep_marks(Batch.from_data_list([transform(graph) for graph in data.to_data_list()]), data)


class AugmentedDataset(torch.utils.data.Dataset[Any]):
    """A data set of graphs that are transformed when they are read: item i is a function of (seed, epoch, i).

    Works with any loader and any number of loading processes, persistent ones too: they share the number of the epoch.

    Args:
        graphs: PyG ``Data`` items.
        transform: As `transform_with`.
        seed: Of all draws.

    Example:
        >>> from lightning_synth.testing import tiny_graphs
        >>> from lightning_synth.transforms import DropNode
        >>> data = AugmentedDataset(tiny_graphs(4), DropNode(0.5), seed=1)
        >>> sizes = [graph.num_nodes for graph in data]
        >>> data.set_epoch(1)
        >>> sizes != [graph.num_nodes for graph in data], len(data)
        (True, 4)
    """

    def __init__(self, graphs: Sequence[Any], transform: Any, seed: int = 0) -> None:
        self.graphs, self.transform, self.seed = graphs, transform, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of an epoch; call it before the loader is iterated.

        Args:
            epoch: Its number.
        """
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Count the graphs."""
        return len(self.graphs)

    def __getitem__(self, index: int) -> Any:
        """Return a transformed graph."""
        if not 0 <= index < len(self):
            raise IndexError(f"graph {index} of {len(self)}")
        seed = mix_seed(self.seed, int(self._epoch), index)
        return transform_with(self.transform, self.graphs[index], KeyedRNG(torch.tensor([seed])))


def check_share(p: float, name: str = "p") -> float:
    """Refuse what is no probability.

    Args:
        p: The number.
        name: Of the option.

    Raises:
        ConfigError: If it lies outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise ConfigError(f"{name} must be in [0, 1], got {p}")
    return p
