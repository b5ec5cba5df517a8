"""SASRec: a causal transformer over a user's items, with the losses that make it strong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_synth.downstream.recommender import SequenceRecommender
from lightning_synth.sequence_model import CausalTransformer


class SASRec(SequenceRecommender):
    """Self-attentive sequential recommendation (Kang & McAuley 2018, arXiv 1808.09781), tied item table.

    The loss matters more than anything else: with a softmax in place of one binary negative it passes what was
    published for augmentation on top of the original (Klenitskiy & Vasilev 2023, arXiv 2309.07602).

    Args:
        schema: Of the sequences; None takes it from the DataModule.
        lr: Largest learning rate of AdamW.
        seed: Of the initial weights, dropout and negatives.
        loss: ``full_softmax``, ``sampled_softmax``, ``gbce`` or ``bce``.
        num_negatives: Of ``sampled_softmax`` and ``gbce``, shared by a batch.
        weight_decay: Of AdamW.
        dim: Width.
        num_layers: Blocks.
        heads: Attention heads.
        dropout: Of embeddings and branches.

    Shapes:
        batch["item_id"]: (batch, length) int64, left-padded with 0; ``padding_mask`` alike.
        batch["target_weight"]: (batch, length) float32, optional.
        batch["weight"]: (batch,) float32, optional: of a mixed batch.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("sequence")
        >>> sorted(SASRec(schema=data.schema, dim=8).score(data.test_items()))[:2]
        ['hr@10', 'hr@10/head']
    """

    name = "sasrec"

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        lr: float = 3e-3,
        seed: int = 0,
        loss: str = "sampled_softmax",
        num_negatives: int = 512,
        weight_decay: float = 0.0,
        dim: int = 64,
        num_layers: int = 1,
        heads: int = 1,
        dropout: float = 0.5,
    ) -> None:
        network = {"dim": dim, "num_layers": num_layers, "heads": heads, "dropout": dropout}
        super().__init__(schema, lr, seed, loss, num_negatives, weight_decay, **network)

    def make_network(self, schema: Mapping[str, Any]) -> nn.Module:
        """Return the transformer.

        Args:
            schema: With ``vocab_size`` and ``max_length``.
        """
        h = self.hparams
        return CausalTransformer(
            int(schema["vocab_size"]), h.dim, h.num_layers, h.heads, h.dropout, int(schema["max_length"])
        )
