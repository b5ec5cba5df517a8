"""Floors: copies of real items in every domain, and for windows of series jitter and interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.resampling import Augmenter, Resampler
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.schema import collate, move


def duplicate_nodes(data: Any, nodes: Tensor) -> Any:
    """Append copies of nodes to a graph; each copy has the features, the label and the neighbours of its source.

    Args:
        data: PyG ``Data`` with ``edge_index`` in both directions.
        nodes: int64 (copies,), sources, repeats allowed.

    Returns:
        A new ``Data``. Original nodes and edges come first with unchanged ids; ``is_synthetic`` (nodes,) and
        ``edge_is_synthetic`` (edges,) mark what was added; copies are training nodes, never validation or test nodes.

    Example:
        >>> from lightning_synth.testing import tiny_node
        >>> data = tiny_node()
        >>> duplicate_nodes(data, torch.tensor([3, 3])).num_nodes - data.num_nodes
        2
    """
    num_nodes, edges = int(data.num_nodes), data.edge_index
    # Every (copy, edge that leaves its source) pair; the edge back is its mirror image and shares its attributes.
    copy, edge = (edges[0] == nodes[:, None]).nonzero(as_tuple=True)
    new = torch.stack([num_nodes + copy, edges[1, edge]])
    out = data.clone()
    for key, value in data.to_dict().items():
        if key != "edge_index" and data.is_node_attr(key):
            out[key] = torch.cat([value, value[nodes]])
        elif data.is_edge_attr(key) and key != "edge_index":
            out[key] = torch.cat([value, value[edge], value[edge]])
    out.edge_index = torch.cat([edges, new, new.flip(0)], dim=1)
    out.num_nodes = num_nodes + len(nodes)
    for key, kept in (("train_mask", True), ("val_mask", False), ("test_mask", False)):
        if key in out:
            out[key][num_nodes:] = kept
    out.is_synthetic = torch.arange(out.num_nodes, device=edges.device) >= num_nodes
    out.edge_is_synthetic = torch.arange(out.edge_index.shape[1], device=edges.device) >= edges.shape[1]
    return out


class Bootstrap(Resampler):
    """Copies of real training items: the memoriser that no fidelity metric can tell from reality.

    Every other generator has to be read beside it: perfect fidelity, no novelty. In the ``node`` domain a sample is the
    training graph with copies of some of its training nodes appended (class proportions as in training).
    Efron 1979, doi:10.1214/aos/1176344552.

    Args:
        share: Only for the ``node`` domain: copies per training node.

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = Bootstrap().fit_on(tiny_items("sequence"), tiny_schema("sequence"))
        >>> len(model.sample(5).items())
        5
    """

    domain = "any"

    def __init__(self, *, share: float = 0.5, **kwargs: Any) -> None:
        if share < 0:
            raise ConfigError(f"share must not be negative, got {share}")
        super().__init__(share=share, **kwargs)

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> Any:
        """Copy training items of the requested label, nearest to the requested conditions.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            A batch as the domain collates it.
        """
        if self.fitted_schema["domain"] == "node":
            return collate(self._augmented_graphs(rng), self.fitted_schema)
        picked = self.rows.pick(requests, rng.fork("source"))
        items: Sequence[Any] = self.bank.items
        if hasattr(items, "tensors"):
            return {name: value.to(picked.device)[picked] for name, value in self.bank.batch.items()}
        return move(collate([items[i] for i in picked.tolist()], self.fitted_schema), rng.device)

    def _augmented_graphs(self, rng: KeyedRNG) -> list[Any]:
        """One augmented graph a row."""
        data = self.bank.items[0]
        train = data.train_mask.nonzero()[:, 0]
        picked = train[rng.fork("source").integers(len(train), (round(self.hparams.share * len(train)),)).cpu()]
        return [duplicate_nodes(data, nodes).to(rng.device) for nodes in picked]


class Jitter(Augmenter):
    """A real window plus white noise, scaled by the standard deviation of each channel.

    Iwana & Uchida 2021, doi:10.1371/journal.pone.0254841.

    Args:
        sigma: Standard deviation of the noise as a share of the channel's (0 copies).

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> model = Jitter(sigma=0.1).fit_on(tiny_series(8), tiny_series_schema())
        >>> model.sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    def __init__(self, *, sigma: float = 0.05, **kwargs: Any) -> None:
        if sigma < 0:
            raise ConfigError(f"sigma must not be negative, got {sigma}")
        super().__init__(sigma=sigma, **kwargs)

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Add noise to every window.

        Args:
            batch: With ``x`` (rows, channels, length).
            rng: One seed a row.

        Returns:
            Batch dict with the same fields.
        """
        scale = self.hparams.sigma * torch.tensor(self.fitted_schema["std"], device=rng.device)[:, None]
        noise = scale * rng.fork("noise").normal(batch["x"].shape[1:])
        if "mask" in batch:
            noise = noise * batch["mask"][:, None]
        return batch | {"x": batch["x"] + noise}


class Interpolate(Augmenter):
    """A point on the straight line between two random windows of one class (mixup within the class).

    Unlike SMOTE the partner is any window of the class, not a near neighbour. Zhang et al. 2018, arXiv 1710.09412.

    Args:
        low: Smallest share of the way to the partner; the largest is 1 - low.

    Shapes:
        x: (rows, channels, length), units of the data.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> Interpolate().fit_on(tiny_series(8), tiny_series_schema()).sample(3).data["x"].shape
        torch.Size([3, 2, 24])
    """

    needs_windows = True

    def __init__(self, *, low: float = 0.0, **kwargs: Any) -> None:
        if not 0 <= low <= 0.5:
            raise ConfigError(f"low must lie in [0, 0.5], got {low}")
        super().__init__(low=low, **kwargs)

    def augment(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Mix every window with a training window of its class.

        Args:
            batch: With ``x`` (rows, channels, length).
            rng: One seed a row.

        Returns:
            Batch dict with the same fields.
        """
        partner = self.rows.pick(self.requests_like(batch, rng), rng.fork("partner"), nearest=False)
        low = self.hparams.low
        return self.blend(batch, partner, low + (1 - 2 * low) * rng.fork("share").uniform(()))
