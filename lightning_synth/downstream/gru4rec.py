"""GRU4Rec: a recurrent network over a user's items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_synth.downstream.recommender import SequenceRecommender
from lightning_synth.sequence_model import INITIAL_STD, Layout


class GRU4Rec(SequenceRecommender):
    """Gated recurrent units over item vectors (Hidasi et al. 2016, arXiv 1511.06939), tied item table.

    Args:
        schema: Of the sequences; None takes it from the DataModule.
        lr: Largest learning rate of AdamW.
        seed: Of the initial weights, dropout and negatives.
        loss: ``full_softmax``, ``sampled_softmax``, ``gbce`` or ``bce``.
        num_negatives: Of ``sampled_softmax`` and ``gbce``, shared by a batch.
        weight_decay: Of AdamW.
        dim: Width.
        num_layers: Of the recurrent network.
        dropout: Of embeddings and states.

    Shapes:
        batch["item_id"]: (batch, length) int64, left-padded with 0; ``padding_mask`` alike.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("sequence")
        >>> len(GRU4Rec(schema=data.schema, dim=8).ranks(data.test_items())) == len(data.test_items())
        True
    """

    name = "gru4rec"

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        lr: float = 1e-3,
        seed: int = 0,
        loss: str = "sampled_softmax",
        num_negatives: int = 512,
        weight_decay: float = 0.0,
        dim: int = 64,
        num_layers: int = 1,
        dropout: float = 0.2,
    ) -> None:
        network = {"dim": dim, "num_layers": num_layers, "dropout": dropout}
        super().__init__(schema, lr, seed, loss, num_negatives, weight_decay, **network)

    def make_network(self, schema: Mapping[str, Any]) -> nn.Module:
        """Return the recurrent network.

        Args:
            schema: With ``vocab_size``.
        """
        return _GRU(int(schema["vocab_size"]), self.hparams.dim, self.hparams.num_layers, self.hparams.dropout)


class _GRU(nn.Module):
    """Recurrent counterpart of `CausalTransformer`."""

    def __init__(self, vocab_size: int, dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(vocab_size + 1, dim)
        nn.init.normal_(self.items.weight, std=INITIAL_STD)
        self.cells, self.out = nn.GRU(dim, dim, num_layers, batch_first=True), nn.Linear(dim, dim)
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)

    def forward(self, item_id: Tensor, mask: Tensor) -> Tensor:
        """Return the state after each real token, (tokens, dim), in the order of ``item_id[mask]``."""
        layout = Layout(mask)
        states = layout.apply(lambda x: self.cells(x)[0], self.dropout(self.items(item_id[mask])))
        out: Tensor = self.norm(self.out(self.dropout(states)))
        return out

    def last(self, item_id: Tensor, mask: Tensor) -> Tensor:
        """Return the state after the last token of each row, (rows, dim); every row needs one."""
        states: Tensor = self(item_id, mask)
        return states[mask.sum(1).cumsum(0) - 1]
