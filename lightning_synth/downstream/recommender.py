"""What recommenders share: the leave-one-out protocol with full ranking, and the training of sequence networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_synth.errors import ConfigError, DataError, NotFittedError
from lightning_synth.metrics.ranking import length_buckets, popularity_buckets, ranking_scores, target_ranks
from lightning_synth.nn import owned_dropout, warm_cosine
from lightning_synth.requests import KeyedRNG, mix_seed
from lightning_synth.schema import Items, canonical, move, uncollate
from lightning_synth.sequence_model import check_loss_name, next_item_losses, target_weights, trim
from lightning_synth.sequences.items import SequenceItems
from lightning_synth.sources import source_schema

#: Users scored at a time: (users, catalogue) scores are held in memory.
_CHUNK = 512


class Ranker(ABC):
    """Anything that scores the catalogue for a user's history, and so can be ranked: HR, NDCG, MRR by bucket.

    A test sequence ends with the item to predict from the rest. The whole catalogue is ranked, without the items the
    user has seen.
    """

    #: The main score of a study, and its direction.
    metric: ClassVar[str] = "ndcg@10"
    higher_is_better: ClassVar[bool] = True

    #: Of the sequences: ``vocab_size``, and ``item_counts`` for the popularity buckets.
    schema: dict[str, Any] | None

    @abstractmethod
    def item_scores(self, contexts: SequenceItems) -> Tensor:
        """Score the catalogue after each history.

        Args:
            contexts: Of at least one item each.

        Returns:
            float (users, vocab_size + 1); column 0 (padding) is ignored.
        """

    def ranks(self, items: Items) -> np.ndarray:
        """Return the rank of each user's last item among the items not seen before, for paired comparisons.

        Args:
            items: Sequences whose last item is the target.

        Returns:
            float64 (users,), from 1; ties share the mean of their places. A target that was seen before comes last.

        Raises:
            DataError: If a sequence has fewer than two items, or one that is not in the catalogue.
        """
        sequences = SequenceItems.from_items(items)
        if len(short := (sequences.lengths < 2).nonzero()):
            i = int(short[0])
            raise DataError(
                f"sequence {i} has {int(sequences.lengths[i])} item(s); ranking needs a history and a target"
            )
        ids, known = sequences.flat(), (self.schema or {}).get("vocab_size")
        if known is not None and len(ids) and not 0 <= ids.min() <= ids.max() <= known:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise DataError(f"item {wrong} is not in the catalogue of training, 1..{known}")
        parts = [self._chunk_ranks(sequences[i : i + _CHUNK]) for i in range(0, len(sequences), _CHUNK)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _chunk_ranks(self, sequences: SequenceItems) -> np.ndarray:
        contexts, target = sequences.cut(stop=sequences.stop - 1), _last_items(sequences)
        scores = self.item_scores(contexts).cpu()
        row, index = contexts.position_rows()
        scores[:, 0] = -torch.inf
        scores[row, contexts.columns["item_id"][index]] = -torch.inf
        return np.asarray(target_ranks(scores, target).numpy())

    def score(self, items: Items) -> dict[str, float]:
        """Score test sequences.

        Args:
            items: Sequences whose last item is the target.

        Returns:
            ``hr@k``, ``ndcg@k``, ``mrr@k`` for k of 5, 10, 20; ``ndcg@10/<bucket>`` and ``hr@10/<bucket>`` for users by
            the length of their training sequence and for targets by popularity, where there are any.
        """
        ranks = self.ranks(items)
        result = ranking_scores(ranks)
        for name, rows in self.buckets(items).items():
            if not rows.any():
                continue
            part = ranking_scores(ranks[rows], ks=(10,))
            result.update({f"ndcg@10/{name}": part["ndcg@10"], f"hr@10/{name}": part["hr@10"]})
        return result

    def buckets(self, items: Items) -> dict[str, np.ndarray]:
        """Group test users by training length (their test sequence less validation and test item) and by target.

        Args:
            items: Test sequences.

        Returns:
            Name to bool (users,); groups by popularity only if the schema has ``item_counts``.
        """
        sequences = SequenceItems.from_items(items)
        groups = length_buckets(sequences.lengths.numpy() - 2)
        counts = (self.schema or {}).get("item_counts")
        return groups if counts is None else groups | popularity_buckets(_last_items(sequences).numpy(), counts)


def _last_items(sequences: SequenceItems) -> Tensor:
    return sequences.columns["item_id"][sequences.stop - 1]


class SequenceRecommender(LightningModule, Ranker):
    """A network that predicts the next item: a plain LightningModule for plain or mixed batches.

    ``target_weight`` of a batch says how much predicting each position counts, ``weight`` how much each row. Batches
    are cut to their longest sequence.

    Args:
        schema: Of the sequences; None takes it from the DataModule.
        lr: Largest learning rate of AdamW.
        seed: Of the initial weights, dropout and negatives.
        loss: ``full_softmax``, ``sampled_softmax``, ``gbce`` or ``bce`` (`next_item_losses`).
        num_negatives: Of ``sampled_softmax`` and ``gbce``, shared by a batch.
        weight_decay: Of AdamW.
        **hparams: Of the subclass.

    Raises:
        ConfigError: If the loss is unknown or the data are no sequences.
    """

    #: Has ``items`` (the table of item vectors) and ``forward(item_id, mask)``, as `CausalTransformer`.
    network: Any
    name: ClassVar[str]

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        lr: float = 1e-3,
        seed: int = 0,
        loss: str = "sampled_softmax",
        num_negatives: int = 512,
        weight_decay: float = 0.0,
        **hparams: Any,
    ) -> None:
        super().__init__()
        check_loss_name(loss)
        values = {"lr": lr, "seed": seed, "loss": loss, "num_negatives": num_negatives, "weight_decay": weight_decay}
        self.save_hyperparameters({"schema": schema, **values, **hparams})
        self.schema: dict[str, Any] | None = None
        if schema is not None:
            self._build(schema)

    @property
    def hparams(self) -> Any:
        """Hyper-parameters, by attribute."""
        return super().hparams

    @abstractmethod
    def make_network(self, schema: Mapping[str, Any]) -> nn.Module:
        """Return the network.

        Args:
            schema: With ``vocab_size`` and ``max_length``.
        """

    def setup(self, stage: str) -> None:
        """Take the schema of the data, if none was given."""
        if self.schema is None:
            self._build(source_schema(getattr(self.trainer, "datamodule", None)))

    def _build(self, schema: dict[str, Any]) -> None:
        if schema.get("domain") != "sequence":
            raise ConfigError(f"{self.name} recommends from sequences, got {schema.get('domain')} data")
        self.schema = schema
        # A checkpoint then reloads alone, also where the schema came from the DataModule.
        self.hparams["schema"] = schema
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(int(self.hparams.seed), 0))
            self.network = self.make_network(schema)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network from the checkpoint's own schema if need be."""
        schema = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}).get("schema")
        if self.schema is None and schema is not None:
            self._build(schema)

    def _rng(self) -> KeyedRNG:
        rank, step = 0, 0
        if self._trainer is not None:
            rank, step = self.global_rank, int(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        return KeyedRNG(mix_seed(int(self.hparams.seed), 1, rank, step), device=self.device)

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Mean loss of the next items, by their weights."""
        assert self.schema is not None
        batch = trim(canonical(batch, self.schema))
        ids, mask, rng = batch["item_id"], batch["padding_mask"], self._rng()
        weight = target_weights(batch)[:, 1:][mask[:, :-1]]
        # The state after each item but a row's last one predicts the item that follows.
        with owned_dropout(rng):
            states = self.network(ids[:, :-1], mask[:, :-1])
        counted = weight > 0
        losses = next_item_losses(
            states[counted],
            ids[:, 1:][mask[:, :-1]][counted],
            self.network.items.weight,
            self.hparams.loss,
            rng.fork("negatives"),
            int(self.hparams.num_negatives),
        )
        loss = (losses * weight[counted]).sum() / weight.sum().clamp(min=1e-12)
        if self._trainer is not None:
            self.log("loss", loss, batch_size=len(ids))
        return loss

    def validation_step(self, batch: Any, batch_idx: int = 0) -> None:
        """Log ``val_ndcg@10`` and ``val_hr@10`` (real sequences only come here)."""
        assert self.schema is not None
        batch = canonical(batch, self.schema)
        scores = ranking_scores(self.ranks(uncollate(move(batch, "cpu"), self.schema)), ks=(10,))
        for name in ("ndcg@10", "hr@10"):
            self.log(f"val_{name}", scores[name], batch_size=len(batch["item_id"]), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate warms up and falls along a cosine, if the Trainer has a limit."""
        h = self.hparams
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=h.lr, weight_decay=h.weight_decay, betas=(0.9, 0.98), fused=True
        )
        total = self.trainer.estimated_stepping_batches if self._trainer is not None else float("inf")
        if total == float("inf"):
            return optimizer
        schedule = LambdaLR(optimizer, lambda step: warm_cosine(step / total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def item_scores(self, contexts: SequenceItems) -> Tensor:
        """Score the catalogue after each history.

        Args:
            contexts: Of at least one item each; the latest ``max_length`` count.

        Returns:
            float32 (users, vocab_size + 1).

        Raises:
            NotFittedError: Before there is a network.
        """
        if self.schema is None:
            raise NotFittedError(f"{self.name}: no schema yet; train it, or pass schema=")
        training, limit = self.training, int(self.schema["max_length"])
        batch = contexts.padded(min(limit, int(contexts.lengths.max())))
        self.eval()
        states = self.network.last(batch["item_id"].to(self.device), batch["padding_mask"].to(self.device))
        self.train(training)
        scores: Tensor = states @ self.network.items.weight.T
        return scores
