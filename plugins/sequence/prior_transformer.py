"""Items that short users may have had before: a transformer over reversed sequences, without a look at the future."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.nn import owned_dropout
from lightning_synth.plugins.sequence.autoregressive import NextItemGenerator
from lightning_synth.plugins.sequence.extension import UserExtension
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.sequence_model import trim


class PriorTransformer(UserExtension, NextItemGenerator):
    """Puts generated earlier items in front of short training users.

    The idea of ASReP (Liu et al. 2021, arXiv 2105.00522): a model of reversed sequences continues a user into the past.
    As published it starts from sequences that hold the test item and takes the best item each time, which turns a Gini
    index of .53 into .90. Here it sees training sequences only, items are sampled, and the number of items has the law
    of the users who are longer.

    A sample extends a training user of at most ``short`` items, chosen by the row's seed; or the user given by
    ``init``. Generated positions are context (``target_weight`` 0) unless asked otherwise. How plausible they are
    is judged by a second, forward model: the user's targets weigh

        w = sigmoid(sharpness * (log p(first real item | generated items) - log p(first real item)))

    where the last term is its popularity.

    Args:
        reliability: Weigh by the forward model; False weighs 1 and trains no forward model.
        sharpness: Slope of the weight, per nat.
        short: Longest user that is extended; None: three quarters of training users are at most that long.
        dim: Width.
        num_layers: Blocks.
        heads: Attention heads.
        dropout: Of embeddings and branches.
        loss: ``sampled_softmax`` or ``full_softmax``.
        num_negatives: Of ``sampled_softmax``.

    Raises:
        ConfigError: If ``short`` is below 1.

    Shapes:
        batch["item_id"]: (batch, length) int64, left-padded with 0; ``padding_mask`` alike.
        samples: the same, with ``item_is_synthetic`` bool and ``target_weight`` float32 (batch, length).

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = PriorTransformer(schema=tiny_schema("sequence"), dim=8)
        >>> model.is_fitted = True
        >>> item = model.sample(1, init=tiny_items("sequence")[1:2]).items()[0]
        >>> bool(item["item_is_synthetic"][0]), bool(item["item_is_synthetic"][-1])
        (True, False)
    """

    forward_network: Any

    def __init__(self, *, reliability: bool = True, sharpness: float = 0.5, **kwargs: Any) -> None:
        super().__init__(reliability=reliability, sharpness=sharpness, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        """Make the backward network, and the forward one that judges it."""
        vocab_size, longest = int(schema["vocab_size"]), int(schema["max_length"])
        self.backward_network = self.make_network(vocab_size, longest)
        self.forward_network = self.make_network(vocab_size, longest) if self.hparams["reliability"] else None
        super().build(schema)

    def losses(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Predict every item from those after it, and, for the judge, from those before it.

        Args:
            batch: Left-padded sequences.
            rng: Scalar-seeded.

        Returns:
            ``loss`` and its parts ``backward`` and ``forward``, nats per item.
        """
        batch = trim(batch)
        ids, mask = batch["item_id"], batch["padding_mask"]
        parts = {"backward": self._loss(self.backward_network, ids.flip(1), mask.flip(1), rng.fork("backward"))}
        if self.forward_network is not None:
            parts["forward"] = self._loss(self.forward_network, ids, mask, rng.fork("forward"))
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def _loss(self, network: Any, ids: Tensor, mask: Tensor, rng: KeyedRNG) -> Tensor:
        """Mean loss of the next item of rows padded on either side."""
        both = mask[:, :-1] & mask[:, 1:]
        with owned_dropout(rng):
            states = network(ids[:, :-1], both)
        return self.mean_loss(states, ids[:, 1:][both], network, rng)

    def sample_batch(
        self,
        requests: SampleRequests,
        rng: KeyedRNG,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        popularity_correction: float = 0.0,
        targets: bool = False,
        init: Any = None,
    ) -> dict[str, Tensor]:
        """Extend users into the past.

        Args:
            requests: Rows to sample.
            rng: One seed a row.
            temperature: Below 1 sharpens, above 1 flattens.
            top_p: Share of the nucleus.
            popularity_correction: How much log-popularity is taken off the scores.
            targets: Train on generated positions, too, with the weight w.
            init: Items or samples to extend instead, e.g. test histories: row i gets ``init[i % len(init)]``. The
                weights of their targets are theirs times w.

        Returns:
            Batch dict with ``item_is_synthetic`` and ``target_weight``.
        """
        users = self.users(requests, rng.fork("user"), init)
        ids, mask = users["item_id"], users["padding_mask"]
        count, decoding = self.counts(mask.sum(1), rng.fork("count")), (temperature, top_p, popularity_correction)
        with self.averaged_weights():
            reverse = self.extend(self.backward_network, ids.flip(1), count, rng.fork("items"), *decoding)
            generated = reverse[:, ids.shape[1] :].flip(1)
            weight = self._reliability(generated, ids, mask)[:, None]
        users["target_weight"] = users["target_weight"] * weight
        return self.assembled(generated, weight * (generated > 0) * float(targets), users)

    def _reliability(self, generated: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The weight w of each row, (rows,); 1 where nothing was generated."""
        weight = torch.ones(len(ids), device=ids.device)
        rows = (generated > 0).any(1).nonzero()[:, 0]
        if self.forward_network is None or not len(rows):
            return weight
        first = ids.gather(1, mask.int().argmax(1, keepdim=True))[rows] - 1
        past = generated[rows]
        scores = self.forward_network.last(past, past > 0) @ self.forward_network.items.weight[1:].T
        gain = (scores.log_softmax(1) - self.log_popularity[1:].log_softmax(0)).gather(1, first)[:, 0]
        return weight.index_copy(0, rows, (float(self.hparams["sharpness"]) * gain).sigmoid())
