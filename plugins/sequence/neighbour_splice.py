"""Neighbour splice: a user's past replaced by that of a similar user with whom they share an item."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.sequence.walks import SequenceResampler, left_padded
from lightning_synth.requests import KeyedRNG, SampleRequests


class NeighbourSplice(SequenceResampler):
    """A training user from some item on, preceded by what a similar user had before the same item.

    Of a few users who had that item, the one is taken who shares most items. The borrowed items are context only
    (``target_weight`` 0, ``item_is_synthetic``); items that would occur twice are left out of the borrowed part. A
    user with whom nobody shares the item stays as they are. Neighbours as in session-based kNN (Jannach & Ludewig 2017,
    doi:10.1145/3109859.3109872); a trivial rival of generators that extend users.

    Args:
        candidates: How many users with the same item are looked at.

    Raises:
        ConfigError: If there are no candidates.

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = NeighbourSplice().fit_on(tiny_items("sequence"), tiny_schema("sequence"))
        >>> sorted(model.sample(5).items()[0])
        ['item_id', 'item_is_synthetic', 'target_weight']
    """

    sample_chunk = 256

    def __init__(self, *, candidates: int = 8, **kwargs: Any) -> None:
        if candidates < 1:
            raise ConfigError(f"candidates must be at least 1, got {candidates}")
        super().__init__(candidates=candidates, **kwargs)

    def _occurrences(self) -> tuple[Tensor, Tensor, Tensor]:
        """Positions sorted by item, where each item's begin, and the user of each position."""
        ids = torch.from_numpy(self.sequences.flat())
        order = ids.argsort(stable=True)
        counts = torch.bincount(ids, minlength=self.size)
        return order, counts.cumsum(0) - counts, self.sequences.position_rows()[0]

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Pick users, an item of each, and a neighbour who had it.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict with ``item_is_synthetic`` and ``target_weight``.
        """
        sequences, device = self.sequences, rng.device
        order, begin, owner = (part.to(device) for part in self.derived("occurrences", self._occurrences))
        lengths = sequences.lengths.to(device)
        first = lengths.cumsum(0) - lengths
        user = rng.fork("user").integers(len(sequences))
        cut = rng.fork("cut").integers(lengths[user])
        ids = torch.from_numpy(sequences.flat()).to(device)
        shared = ids[first[user] + cut]
        occurrences = torch.bincount(ids, minlength=self.size)[shared]
        drawn = rng.fork("neighbour").integers(occurrences[:, None], (int(self.hparams["candidates"]),))
        place = order[begin[shared][:, None] + drawn]
        own = sequences[user.cpu()].padded(int(lengths.max()))
        own_ids = own["item_id"].to(device)
        best = self._overlap(own_ids, owner[place], user).argmax(1, keepdim=True)
        place = place.gather(1, best)[:, 0]
        return self._join(own_ids, lengths[user] - cut, owner[place], place - first[owner[place]])

    def _overlap(self, own: Tensor, users: Tensor, self_id: Tensor) -> Tensor:
        """Count the items that each candidate shares with the row's user, int64 (rows, candidates); oneself: -1."""
        theirs = self.sequences[users.reshape(-1).cpu()].padded(own.shape[1])["item_id"].to(own.device)
        theirs = theirs.view(*users.shape, -1)
        common = ((theirs[..., None] == own[:, None, None, :]) & (theirs[..., None] > 0)).any(3).sum(2)
        return torch.where(users == self_id[:, None], -1, common)

    def _join(self, own: Tensor, kept: Tensor, neighbour: Tensor, before: Tensor) -> dict[str, Tensor]:
        """Put the neighbour's first ``before`` items in front of the user's last ``kept`` items."""
        longest, device = own.shape[1], own.device
        sequences = self.sequences[neighbour.cpu()]
        prefix = sequences.cut(stop=sequences.start + before.cpu()).padded(longest)
        borrowed, mask = prefix["item_id"].to(device), prefix["padding_mask"].to(device)
        own_mask = (torch.arange(longest, device=device) >= longest - kept[:, None]) & (own > 0)
        twice = ((borrowed[:, :, None] == own[:, None, :]) & own_mask[:, None, :]).any(2)
        ids, synthetic = torch.cat([borrowed, own], 1), torch.arange(2 * longest, device=device) < longest
        batch = left_padded(
            ids,
            torch.cat([mask & ~twice, own_mask], 1),
            item_is_synthetic=synthetic.expand_as(ids),
            target_weight=(~synthetic).float().expand_as(ids),
        )
        batch = {name: value[:, -int(self.fitted_schema["max_length"]) :] for name, value in batch.items()}
        first = batch["padding_mask"] & (batch["padding_mask"].cumsum(1) == 1)
        return batch | {"target_weight": batch["target_weight"].masked_fill(first, 0.0)}
