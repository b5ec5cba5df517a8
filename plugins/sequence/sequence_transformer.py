"""A causal transformer that writes whole users."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.nn import owned_dropout
from lightning_synth.plugins.sequence.autoregressive import NextItemGenerator
from lightning_synth.plugins.sequence.walks import draw_lengths, left_padded
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.sequence_model import trim


class SequenceTransformer(NextItemGenerator):
    """Autoregressive model of whole users: the length first, then one item after the other.

    The network is that of SASRec (Kang & McAuley 2018, arXiv 1808.09781). It starts from a token that tells the
    length, drawn from the law of training, so that short and long users differ in what they take, too. Items are
    sampled; taking the best one each time loses half of a catalogue.

    Args:
        dim: Width.
        num_layers: Blocks.
        heads: Attention heads.
        dropout: Of embeddings and branches.
        loss: ``sampled_softmax`` or ``full_softmax``.
        num_negatives: Of ``sampled_softmax``.

    Shapes:
        batch["item_id"]: (batch, length) int64, left-padded with 0; ``padding_mask`` alike.

    Example:
        >>> from lightning_synth.testing import tiny_schema
        >>> model = SequenceTransformer(schema=tiny_schema("sequence"), dim=8)
        >>> model.is_fitted = True
        >>> len(model.sample(3).items())
        3
    """

    def build(self, schema: dict[str, Any]) -> None:
        """Make the network; ids beyond the catalogue are the start tokens, one for each length."""
        longest = int(schema["max_length"])
        self.network = self.make_network(int(schema["vocab_size"]) + longest, longest)
        super().build(schema)

    def losses(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Predict every item from the length and the items before it.

        Args:
            batch: Left-padded sequences.
            rng: Scalar-seeded.

        Returns:
            ``loss``, nats per item (against the negatives, where they are sampled).
        """
        batch = trim(batch)
        ids, mask = batch["item_id"], batch["padding_mask"]
        # The start token stands where the first item would; the last item is a target only.
        first = mask & (mask.cumsum(1) == 1)
        inputs = torch.where(first, self.items + mask.sum(1, keepdim=True), ids.roll(1, dims=1))
        with owned_dropout(rng):
            states = self.network(inputs, mask)
        return {"loss": self.mean_loss(states, ids[mask], self.network, rng)}

    def sample_batch(
        self,
        requests: SampleRequests,
        rng: KeyedRNG,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        popularity_correction: float = 0.0,
    ) -> dict[str, Tensor]:
        """Draw lengths, then items.

        Args:
            requests: Rows to sample.
            rng: One seed a row.
            temperature: Below 1 sharpens, above 1 flattens.
            top_p: Share of the nucleus.
            popularity_correction: How much log-popularity is taken off the scores.

        Returns:
            Batch dict.
        """
        lengths = draw_lengths(self.hparams["schema"], rng.fork("length"))
        start = (self.items + lengths)[:, None]
        with self.averaged_weights():
            ids = self.extend(
                self.network, start, lengths, rng.fork("items"), temperature, top_p, popularity_correction
            )[:, 1:]
        return left_padded(ids, ids > 0)
