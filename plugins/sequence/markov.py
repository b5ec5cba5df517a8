"""Markov chain: each item drawn from those that followed the one before. The upper bound of memorised bigrams."""

from __future__ import annotations

from torch import Tensor

from lightning_synth.plugins.sequence.walks import RuleWalk, draw_lengths
from lightning_synth.requests import KeyedRNG, SampleRequests


class Markov(RuleWalk):
    """First-order Markov chain over items, with popularity where nothing followed an item in training.

    First items and lengths have the law of training. In data without repeats an item is not drawn twice while another
    one is to be had. Nearly every adjacent pair is one of training: a generator that comes close to this has memorised.
    Rendle, Freudenthaler & Schmidt-Thieme 2010, doi:10.1145/1772690.1772773.

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = Markov().fit_on(tiny_items("sequence"), tiny_schema("sequence"))
        >>> len(model.sample(5).items())
        5
    """

    window, back, decay, history = 1, 0.0, 1.0, 1

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Walk through the bigrams.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict.
        """
        return self.walk(draw_lengths(self.fitted_schema, rng.fork("length")), rng)
