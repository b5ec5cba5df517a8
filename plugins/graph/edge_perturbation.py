"""Edge perturbation: training graphs with some edges moved, the usual augmentation of graph classification."""

from __future__ import annotations

from typing import Any

import torch

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import graph_batch, ragged_uniform
from lightning_synth.plugins.resampling import Resampler
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.schema import collate


class EdgePerturbation(Resampler):
    """A training graph of the requested class, each edge of which is moved to a random pair with some probability.

    GraphCL (You et al. 2020, arXiv 2010.13902, section 3.2): the share of edges is dropped and as many are added
    (less those that fall on an edge that is there, or on a single node). An added edge has the type or features of a
    dropped one; nodes stay as they are. A share of 0 copies.

    Args:
        share: Probability that an edge is moved.

    Raises:
        ConfigError: If the share is outside [0, 1].

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = EdgePerturbation(share=0.5).fit_on(tiny_items("graph"), tiny_schema("graph"))
        >>> len(model.sample(5).items())
        5
    """

    domain = "graph"
    conditions = ("label",)

    def __init__(self, *, share: float = 0.2, **kwargs: Any) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"share must be in [0, 1], got {share}")
        super().__init__(share=share, **kwargs)

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> Any:
        """Move edges of training graphs.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            A PyG ``Batch``.
        """
        picked = self.rows.pick(requests, rng.fork("source"))
        batch = collate([self.bank.items[i] for i in picked.tolist()], self.fitted_schema).to(rng.device)
        once = batch.edge_index[0] < batch.edge_index[1]
        edges, attr = batch.edge_index[:, once], None if batch.get("edge_attr") is None else batch.edge_attr[once]
        owner, sizes = batch.batch[edges[0]], batch.ptr.diff()
        # Edges of one graph lie together in a batch, so the draws of a row follow the order of its own edges.
        counts = torch.bincount(owner, minlength=len(requests))
        moved = ragged_uniform(rng.fork("drop"), counts) < self.hparams["share"]
        ends = [(ragged_uniform(rng.fork(name), counts) * sizes[owner]).long() for name in ("from", "to")]
        local = edges - batch.ptr[owner]
        # Kept edges come first: of an edge that is there twice the first one stays.
        order = moved.long().argsort(stable=True)
        result = torch.where(moved, torch.stack(ends), local)[:, order]
        return graph_batch(
            sizes, result, owner[order], x=batch.get("x"), edge_attr=None if attr is None else attr[order]
        )
