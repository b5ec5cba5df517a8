"""What mixups of graphs share: the classes of the training graphs, and soft labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import DataError, NotFittedError
from lightning_synth.requests import KeyedRNG
from lightning_synth.transforms.base import GraphTransform


class GraphMixup(GraphTransform):
    """A transform that mixes each graph with training graphs, and makes its label soft: ``y`` float32 (1, classes).

    It needs `fit` before it is applied. Losses that take class probabilities, such as ``cross_entropy``, take such
    labels as they are.

    Args:
        seed: As `GraphTransform`.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._labels: Tensor | None = None
        self._num_classes = 0

    def fit(self, graphs: Sequence[Any], num_classes: int | None = None) -> Any:
        """Learn from training graphs.

        Args:
            graphs: PyG ``Data`` with an integer label ``y``.
            num_classes: Of the labels; None: as many as occur.

        Returns:
            Itself.

        Raises:
            DataError: If there are no graphs, or labels are missing.
        """
        graphs = list(graphs)
        if not graphs:
            raise DataError("0 training graphs: nothing to mix with")
        self._labels = torch.cat([_label(graph, f"training graph {i}") for i, graph in enumerate(graphs)])
        self._num_classes = num_classes or int(self._labels.max()) + 1
        self.learn(graphs)
        return self

    def learn(self, graphs: list[Any]) -> None:
        """Keep what mixing needs; called by `fit`.

        Args:
            graphs: Training graphs.
        """

    @property
    def is_fitted(self) -> bool:
        """Whether it has seen training graphs."""
        return self._labels is not None

    def training_labels(self) -> Tensor:
        """Return the labels of the training graphs, int64 (graphs,).

        Raises:
            NotFittedError: Before `fit`.
        """
        if self._labels is None:
            raise NotFittedError(f"{type(self).__name__} mixes with training graphs: call fit(graphs) first")
        return self._labels

    def labels_of(self, data: Any) -> Tensor:
        """Return the labels of the graphs to be mixed, int64 (graphs,).

        Args:
            data: PyG ``Data`` or ``Batch``.

        Raises:
            NotFittedError: Before `fit`.
            DataError: If a label is missing or no class of the training graphs.
        """
        self.training_labels()
        label = _label(data, "the graph")
        if not 0 <= int(label.min()) <= int(label.max()) < self._num_classes:
            wrong = int(label.min()) if int(label.min()) < 0 else int(label.max())
            raise DataError(f"label {wrong} is none of the {self._num_classes} classes of the training graphs")
        return label

    def soft(self, label: Tensor) -> Tensor:
        """Turn labels into probabilities, float32 (graphs, classes)."""
        return torch.nn.functional.one_hot(label, self._num_classes).float()

    def with_soft_labels(self, data: Any) -> Any:
        """Return a shallow copy whose labels are probabilities: 1 of the class of each graph.

        Args:
            data: PyG ``Data`` or ``Batch``.
        """
        label, data = self.labels_of(data), copy.copy(data)
        if data.get("ptr") is None:
            data.y = self.soft(label)
            return data
        data._slice_dict, data._inc_dict = dict(data._slice_dict), dict(data._inc_dict)
        return with_label(data, self.soft(label))


def _label(data: Any, what: str) -> Tensor:
    y: Tensor | None = data.get("y")
    if y is None or y.is_floating_point() or y.ndim > 1:
        raise DataError(f"{what} has no integer class label y, which mixup needs")
    return y.reshape(-1)


def pick(rng: KeyedRNG, counts: Tensor) -> Tensor:
    """Draw one of ``counts[i]`` things for each row, int64 (rows,)."""
    return (rng.uniform(()).double() * counts).long().clamp(max=int(counts.max()) - 1)


def with_label(batch: Any, y: Tensor) -> Any:
    """Give a batch one row of ``y`` a graph.

    Args:
        batch: PyG ``Batch``.
        y: (graphs, ...).
    """
    batch.y = y
    batch._slice_dict["y"] = torch.arange(len(y) + 1)
    batch._inc_dict["y"] = torch.zeros(len(y), dtype=torch.int64)
    return batch
