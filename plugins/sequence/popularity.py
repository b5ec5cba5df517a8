"""Popularity: every position drawn on its own. The lower bound of structure."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_synth.plugins.sequence.walks import SequenceResampler, draw, draw_lengths, left_padded
from lightning_synth.requests import KeyedRNG, SampleRequests


class Popularity(SequenceResampler):
    """Sequences of independent items with the popularity and the lengths of training, and no order at all.

    The TopPop of Cremonesi et al. 2010 (doi:10.1145/1864708.1864721), sampled instead of ranked. Every fidelity metric
    has to be read beside it: it wins on popularity, and none of its transitions means anything.

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = Popularity().fit_on(tiny_items("sequence"), tiny_schema("sequence"))
        >>> len(model.sample(5).items())
        5
    """

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Draw lengths and items.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict.
        """
        lengths = draw_lengths(self.fitted_schema, rng.fork("length"))
        longest = int(self.fitted_schema["max_length"])
        ids = draw(self.counts.to(rng.device), rng.fork("item").uniform((longest,)))
        return left_padded(ids, torch.arange(longest, device=rng.device) < lengths[:, None])
