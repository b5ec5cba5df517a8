"""Synthetic minority over-sampling: points between a window and its neighbours of the same class (SMOTE and kin)."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.resampling import TrainingRows, WindowResampler
from lightning_synth.requests import KeyedRNG, SampleRequests

_CHUNK = 1024


def class_neighbours(x: Tensor, labels: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Find the nearest neighbours of every item among the items of its own class.

    Args:
        x: float (items, features).
        labels: int64 (items,), or None for one class.
        k: Neighbours wanted; a class of m items has at most m - 1 of them.

    Returns:
        int64 (items, k) neighbours, nearest first, and int64 (items,) how many of them are valid.

    Example:
        >>> neighbours, valid = class_neighbours(torch.tensor([[0.0], [1.0], [5.0]]), None, k=1)
        >>> neighbours[:, 0].tolist(), valid.tolist()
        ([1, 0, 1], [1, 1, 1])
    """
    neighbours = torch.zeros((len(x), k), dtype=torch.int64)
    valid = torch.zeros(len(x), dtype=torch.int64)
    labels = torch.zeros(len(x), dtype=torch.int64) if labels is None else labels
    for label in labels.unique():
        member = (labels == label).nonzero()[:, 0]
        size = min(k, len(member) - 1)
        valid[member] = size
        for part in member.split(_CHUNK):
            # Exact differences (not a matrix product), so that ties and near-duplicates are ordered reproducibly.
            distance = torch.cdist(x[part], x[member], compute_mode="donot_use_mm_for_euclid_dist")
            distance[part[:, None] == member] = torch.inf
            neighbours[part, :size] = member[distance.argsort(dim=1, stable=True)[:, :size]]
    return neighbours, valid


def foreign_share(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return the share of other classes among the k nearest neighbours of every item, in all classes.

    Args:
        x: float (items, features).
        labels: int64 (items,).
        k: Neighbours looked at; at most items - 1.

    Returns:
        float (items,).

    Example:
        >>> foreign_share(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 1, 1]), k=1)
        tensor([1., 1., 0.])
    """
    table, valid = class_neighbours(x, None, k)
    size = int(valid.min()) if len(valid) else 0
    if not size:
        return torch.zeros(len(x))
    return (labels[table[:, :size]] != labels[:, None]).float().mean(1)


class SMOTE(WindowResampler):
    """x + u (neighbour - x), u uniform in [0, 1), the neighbour one of the k nearest windows of the same class.

    The semantics of ``imblearn.over_sampling.SMOTE`` (Chawla et al. 2002, doi:10.1613/jair.953) on the flattened
    window, but each sample depends on its own seed alone. On raw oscillations interpolation cancels phases: for
    vibration this is a floor, not a recommendation. A class with a single window can only be copied (with a warning).

    Args:
        k_neighbors: How many nearest neighbours to choose from.
        standardize: Measure distances after dividing each channel by its training standard deviation; False: raw, as
            imbalanced-learn.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> model = SMOTE().fit_on(tiny_series(8, channels=2, length=24), tiny_series_schema(channels=2, length=24))
        >>> model.sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(self, *, k_neighbors: int = 5, standardize: bool = True, **kwargs: Any) -> None:
        if k_neighbors < 1:
            raise ConfigError(f"k_neighbors must be at least 1, got {k_neighbors}")
        super().__init__(k_neighbors=k_neighbors, standardize=standardize, **kwargs)

    @property
    def neighbours(self) -> tuple[Tensor, Tensor]:
        """Nearest neighbours (items, k) and how many of them are valid (items,)."""
        return self.derived("neighbours", self._find_neighbours)

    def _points(self) -> Tensor:
        """Return what distances are measured between, (items, channels * length)."""
        x = self.windows["x"]
        if self.hparams.standardize:
            x = x / torch.tensor(self.fitted_schema["std"])[:, None]
        if "mask" in self.windows:
            x = x * self.windows["mask"][:, None]
        return x.flatten(1)

    def _find_neighbours(self) -> tuple[Tensor, Tensor]:
        table = class_neighbours(self._points(), self.windows.get("y"), self.hparams.k_neighbors)
        lonely = self.windows["y"][table[1] == 0].tolist() if "y" in self.windows else []
        if lonely:
            warnings.warn(f"SMOTE can only copy the single window of class {', '.join(map(str, lonely))}", stacklevel=4)
        return table

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Step from a window of the class towards one of its neighbours.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict with ``x`` (rows, channels, length).
        """
        table, valid = (tensor.to(rng.device) for tensor in self.neighbours)
        source = self.rows.pick(requests, rng.fork("source"))
        rank = rng.fork("neighbour").integers(valid[source].clamp(min=1))
        alone = valid[source] == 0
        neighbour = torch.where(alone, source, table[source, rank])
        return self.blend(self.take(source), neighbour, rng.fork("step").uniform(()))


class _WeightedSMOTE(SMOTE):
    """SMOTE that starts more often from some windows than from others."""

    @abstractmethod
    def source_weights(self, foreign: Tensor) -> Tensor:
        """Say how often to start from each training window.

        Args:
            foreign: float (items,), share of other classes among its ``m_neighbors`` nearest windows.
        """

    def _index_rows(self) -> TrainingRows:
        rows = super()._index_rows()
        labels = self.windows.get("y")
        if labels is None:
            return rows
        weight = self.source_weights(foreign_share(self._points(), labels, self.hparams.m_neighbors))
        mass = torch.zeros(int(labels.max()) + 1).index_add(0, labels, weight)
        apart = [label for label in labels.unique().tolist() if not mass[label]]
        if apart:
            names = ", ".join(map(str, apart))
            warnings.warn(
                f"{type(self).__name__} finds no border around class {names}: plain SMOTE there", stacklevel=4
            )
        rows.weight = weight
        return rows


class BorderlineSMOTE(_WeightedSMOTE):
    """SMOTE that starts from the windows at the border of their class.

    In danger is a window of which at least half, but not all, of the ``m_neighbors`` nearest windows belong to other
    classes; all of them would make it noise (Han et al. 2005, doi:10.1007/11538059_91, borderline-SMOTE1). The choice
    is that of ``imblearn.over_sampling.BorderlineSMOTE``, for every class and drawn by the row's own seed. A class
    without such windows falls back to SMOTE, with a warning.

    Args:
        k_neighbors: How many nearest neighbours of the same class to choose from.
        m_neighbors: How many nearest neighbours of any class tell whether a window is in danger.
        standardize: Measure distances after dividing each channel by its training standard deviation.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> BorderlineSMOTE(m_neighbors=4).fit_on(tiny_series(16), tiny_series_schema()).hparams.m_neighbors
        4
    """

    def __init__(self, *, k_neighbors: int = 5, m_neighbors: int = 10, standardize: bool = True, **kwargs: Any) -> None:
        _check_neighbours(m_neighbors)
        super().__init__(k_neighbors=k_neighbors, m_neighbors=m_neighbors, standardize=standardize, **kwargs)

    def source_weights(self, foreign: Tensor) -> Tensor:
        """Return 1 for windows in danger, else 0."""
        return ((foreign >= 0.5) & (foreign < 1)).float()


class ADASYN(_WeightedSMOTE):
    """SMOTE that starts from a window the more often, the more of its neighbours belong to other classes.

    A window is chosen with probability proportional to the share of other classes among its ``m_neighbors`` nearest
    windows (He et al. 2008, doi:10.1109/IJCNN.2008.4633969, eq. 3 and 4): the expectation of the rounded counts of
    ``imblearn.over_sampling.ADASYN``, for every class and drawn by the row's own seed. A class that has no foreign
    neighbours falls back to SMOTE, with a warning.

    Args:
        k_neighbors: How many nearest neighbours of the same class to choose from.
        m_neighbors: How many nearest neighbours of any class weigh a window; imbalanced-learn takes the same number.
        standardize: Measure distances after dividing each channel by its training standard deviation.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> ADASYN(m_neighbors=4).fit_on(tiny_series(16), tiny_series_schema()).hparams.m_neighbors
        4
    """

    def __init__(self, *, k_neighbors: int = 5, m_neighbors: int = 5, standardize: bool = True, **kwargs: Any) -> None:
        _check_neighbours(m_neighbors)
        super().__init__(k_neighbors=k_neighbors, m_neighbors=m_neighbors, standardize=standardize, **kwargs)

    def source_weights(self, foreign: Tensor) -> Tensor:
        """Return the share of other classes itself."""
        return foreign


def _check_neighbours(m_neighbors: int) -> None:
    if m_neighbors < 1:
        raise ConfigError(f"m_neighbors must be at least 1, got {m_neighbors}")
