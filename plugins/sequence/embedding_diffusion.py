"""Earlier items for short users by diffusion over item vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from lightning_synth.conditions import KEEP
from lightning_synth.diffusion import DiffusionGenerator
from lightning_synth.downstream.sequential_rules import rule_matrix
from lightning_synth.errors import ConfigError
from lightning_synth.nn import owned_dropout, sinusoidal
from lightning_synth.plugins.sequence.autoregressive import draw_items
from lightning_synth.plugins.sequence.extension import UserExtension
from lightning_synth.plugins.sequence.walks import any_repeats
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.sequence_model import next_item_losses, trim
from lightning_synth.sequences.items import SequenceItems

#: Catalogues up to this size get a dense decomposition.
_DENSE = 512
#: Largest distance of items that count as neighbours.
_WINDOW = 10


class EmbeddingDiffusion(UserExtension, DiffusionGenerator):
    """Diffusion over the vectors of the items before a user's first one, given the user.

    The idea of DiffuASR (Liu et al. 2023, arXiv 2309.15758), with its faults repaired: the item vectors are fixed
    (they cannot collapse under the denoising loss), the network predicts clean vectors and is told which items they
    stand for by a cross-entropy, the user is really hidden in a share of training rows, so that classifier-free
    guidance has its unconditional model, and the number of items varies. Ten steps of DDIM.

    Item vectors are the singular vectors of the positive pointwise mutual information of items within ten places of
    each other in training (Levy & Goldberg 2014, "Neural word embedding as implicit matrix factorization"), of unit
    length.

    A sample extends a training user of at most ``short`` items, chosen by the row's seed, or the user given by
    ``init``. Generated positions are context (``target_weight`` 0) unless asked otherwise.

    Args:
        item_dim: Size of an item vector.
        slots: Most items that are generated.
        history: Items of the user that the network looks at, the earliest ones.
        dim: Width.
        num_layers: Blocks.
        heads: Attention heads.
        dropout: In the blocks.
        rounding: Weight of the cross-entropy.
        sharpness: Inverse temperature of the cross-entropy over cosines.
        num_negatives: Items that the cross-entropy compares with.
        short: Longest user that is extended; None: three quarters of training users are at most that long.
        diffusion_steps: Number of noise levels in training.
        num_steps: Network evaluations per sample.
        **kwargs: For `DiffusionGenerator`.

    Raises:
        ConfigError: If a size is below 1 or ``dim`` cannot be divided by ``heads``.

    Shapes:
        batch["item_id"]: (batch, length) int64, left-padded with 0; ``padding_mask`` alike.
        samples: the same, with ``item_is_synthetic`` bool and ``target_weight`` float32 (batch, length).

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = EmbeddingDiffusion(schema=tiny_schema("sequence"), dim=8, slots=3)
        >>> model.is_fitted = True
        >>> item = model.sample(1, init=tiny_items("sequence")[1:2]).items()[0]
        >>> bool(item["item_is_synthetic"][0]), bool(item["item_is_synthetic"][-1])
        (True, False)
    """

    table: Tensor
    repeats: Tensor

    def __init__(
        self,
        *,
        item_dim: int = 64,
        slots: int = 10,
        history: int = 20,
        dim: int = 64,
        num_layers: int = 2,
        heads: int = 2,
        dropout: float = 0.1,
        rounding: float = 1.0,
        sharpness: float = 20.0,
        num_negatives: int = 512,
        diffusion_steps: int = 200,
        num_steps: int = 10,
        **kwargs: Any,
    ) -> None:
        if min(item_dim, slots, history, dim, num_layers, heads, num_negatives) < 1 or dim % heads:
            raise ConfigError(f"sizes must be at least 1 and dim divisible by heads, got dim {dim} and heads {heads}")
        sizes: dict[str, Any] = {
            "item_dim": item_dim,
            "slots": slots,
            "history": history,
            "dim": dim,
            "num_layers": num_layers,
        }
        loss: dict[str, Any] = {"rounding": rounding, "sharpness": sharpness, "num_negatives": num_negatives}
        steps: dict[str, Any] = {"diffusion_steps": diffusion_steps, "num_steps": num_steps}
        super().__init__(**sizes, heads=heads, dropout=dropout, **loss, **steps, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        """Make the denoiser; item vectors are found when training starts."""
        h = self.hparams
        self.register_buffer("table", torch.zeros(int(schema["vocab_size"]) + 1, h.item_dim))
        self.register_buffer("repeats", torch.zeros((), dtype=torch.bool))
        self.enter_slot, self.enter_item = nn.Linear(h.item_dim, h.dim), nn.Linear(h.item_dim, h.dim)
        self.slot_position, self.position = nn.Embedding(h.slots, h.dim), nn.Embedding(h.history, h.dim)
        self.hidden = nn.Embedding(2, h.dim)
        self.time = nn.Sequential(nn.Linear(h.dim, h.dim), nn.SiLU(), nn.Linear(h.dim, h.dim))
        block = nn.TransformerEncoderLayer(
            h.dim, h.heads, 4 * h.dim, h.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, h.num_layers, nn.LayerNorm(h.dim), enable_nested_tensor=False)
        self.leave = nn.Linear(h.dim, h.item_dim)
        super().build(schema)

    def on_fit_start(self) -> None:
        """Find the item vectors, from training sequences alone."""
        super().on_fit_start()
        sequences = SequenceItems.from_items(self.bank.items).latest(int(self.hparams["schema"]["max_length"]))
        self.repeats.fill_(any_repeats(sequences))
        self.table.copy_(item_vectors(sequences, *self.table.shape))

    # Training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: dict[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Cut each user at a random place; denoise the items before it, given those after it.

        Args:
            batch: Left-padded sequences.
            rng: Scalar-seeded.

        Returns:
            ``loss`` and its parts ``vector`` and ``rounding``.
        """
        batch = trim(batch)
        most = (batch["padding_mask"].sum(1) - 1).clamp(max=int(self.hparams["slots"]))
        prior = 1 + (rng.fork("cut").uniform(most.shape) * most).long().minimum(most - 1)
        batch = batch | {"prior": prior}
        x0, condition = self.encode(batch)
        with owned_dropout(rng):
            return self.noised_loss(x0, condition, {"target": self._target(batch), "rng": rng.fork("negatives")}, rng)

    def _cut(self, batch: dict[str, Tensor]) -> Tensor:
        """First column of each row's history, (rows, 1)."""
        ids, lengths = batch["item_id"], batch["padding_mask"].sum(1)
        return (ids.shape[1] - lengths + batch["prior"])[:, None]

    def _target(self, batch: dict[str, Tensor]) -> Tensor:
        """The ``prior`` items before the cut, the last one in the last slot; int64 (rows, slots), 0 for none."""
        ids, cut, slots = batch["item_id"], self._cut(batch), int(self.hparams["slots"])
        place = cut - slots + torch.arange(slots, device=ids.device)
        return torch.where(place >= cut - batch["prior"][:, None], ids.gather(1, place.clamp(min=0)), 0)

    def encode(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the vectors of each row's first ``prior`` items, and the rest of the row as condition.

        Args:
            batch: Left-padded sequences with ``prior`` int64 (batch,).
        """
        history = self._history(batch["item_id"], self._cut(batch))
        return self._vectors(self._target(batch)), {"history": history, "count": batch["prior"]}

    def _history(self, ids: Tensor, cut: Tensor) -> Tensor:
        """The first items from column ``cut`` (rows, 1) on, 0 behind the end; int64 (rows, history)."""
        place = cut + torch.arange(int(self.hparams["history"]), device=ids.device)
        return torch.where(place < ids.shape[1], ids.gather(1, place.clamp(max=ids.shape[1] - 1)), 0)

    def _vectors(self, ids: Tensor) -> Tensor:
        """Item vectors at unit variance."""
        vectors: Tensor = F.embedding(ids, self.table)
        return vectors * math.sqrt(self.table.shape[1])

    def diffusion_loss(self, prediction: Tensor, wanted: Tensor, t: Tensor, batch: Any) -> dict[str, Tensor]:
        """Squared error of the vectors, and cross-entropy of the items they stand for.

        Args:
            prediction: (batch, slots, item_dim).
            wanted: The same shape.
            t: int64 (batch,), not used.
            batch: ``target`` int64 (batch, slots), 0 where there is no item; ``rng`` of the negatives.
        """
        h, used = self.hparams, batch["target"] > 0
        share = max(int(used.sum()), 1)
        vector = (prediction - wanted).square().mean(2)[used].sum() / share
        states = float(h.sharpness) * F.normalize(prediction[used], dim=1)
        rounding = next_item_losses(
            states, batch["target"][used], self.table, "sampled_softmax", batch["rng"], int(h.num_negatives)
        )
        rounding = rounding.sum() / share
        return {"loss": vector + float(h.rounding) * rounding, "vector": vector, "rounding": rounding}

    # Network -------------------------------------------------------------------------------------------------------

    def row_shape(self) -> tuple[int, ...]:
        """Return (slots, item_dim)."""
        return int(self.hparams["slots"]), int(self.hparams["item_dim"])

    def denoise(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Predict clean vectors.

        Args:
            x_t: (batch, slots, item_dim).
            t: int64 (batch,).
            condition: ``history`` int64 (batch, history), ``count`` int64 (batch,), ``keep`` bool (batch,).

        Returns:
            Shape of ``x_t``.
        """
        slots, history, keep = x_t.shape[1], condition["history"], condition[KEEP]
        time = self.time(sinusoidal(t, int(self.hparams["dim"])))[:, None]
        known = self.hidden(keep.long())[:, None] + time
        noisy = self.enter_slot(x_t) + self.slot_position.weight + time
        items = self.enter_item(self._vectors(history)) + self.position.weight
        empty = torch.arange(slots, device=x_t.device) < (slots - condition["count"])[:, None]
        padding = torch.cat([torch.zeros_like(empty[:, :1]), empty, (history == 0) | ~keep[:, None]], 1)
        states = self.blocks(torch.cat([known, noisy, items], 1), src_key_padding_mask=padding)
        out: Tensor = self.leave(states[:, 1 : 1 + slots])
        return out

    # Sampling ------------------------------------------------------------------------------------------------------

    def sample_batch(
        self,
        requests: SampleRequests,
        rng: KeyedRNG,
        *,
        temperature: float = 1.0,
        targets: bool = False,
        init: Any = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Extend users into the past.

        Args:
            requests: Rows to sample.
            rng: One seed a row.
            temperature: Of the draw of items around the clean vectors.
            targets: Train on generated positions, too.
            init: Items or samples to extend instead: row i gets ``init[i % len(init)]``.
            **options: ``num_steps, sampler, eta, guidance_scale`` of `DiffusionGenerator`.

        Returns:
            Batch dict with ``item_is_synthetic`` and ``target_weight``.
        """
        users = self.users(requests, rng.fork("user"), init)
        ids, lengths = users["item_id"], users["padding_mask"].sum(1)
        count = self.counts(lengths, rng.fork("count")).clamp(max=int(self.hparams["slots"]))
        given = {"history": self._history(ids, (ids.shape[1] - lengths)[:, None]), "count": count}
        x0 = super().sample_batch(requests, rng, given=given, **options)
        generated = self._round(x0, ids, count, rng.fork("items"), temperature)
        return self.assembled(generated, (generated > 0).float() * float(targets), users)

    def sampling_condition(
        self, requests: SampleRequests, rng: KeyedRNG, init: Tensor | None, **options: Any
    ) -> dict[str, Tensor]:
        """Return the histories and numbers of items that `sample_batch` chose."""
        given: dict[str, Tensor] = options.pop("given")
        return super().sampling_condition(requests, rng, init, **options) | given

    def decode(self, x0: Tensor, requests: SampleRequests) -> Tensor:
        """Leave the vectors to `_round`."""
        return x0

    def _round(self, x0: Tensor, ids: Tensor, count: Tensor, rng: KeyedRNG, temperature: float) -> Tensor:
        """Draw an item for each used slot, nearest to the user first; none twice in data without repeats."""
        slots = x0.shape[1]
        scores = float(self.hparams["sharpness"]) * F.normalize(x0, dim=2)
        taken = ids
        for back in range(1, slots + 1):
            logits = scores[:, -back] @ self.table.T
            logits[:, 0] = -torch.inf
            if not bool(self.repeats):
                logits = logits.scatter(1, taken, -torch.inf)
            item = draw_items(logits, rng.uniform((), step=back), temperature)
            taken = torch.cat([torch.where(count >= back, item, 0)[:, None], taken], 1)
        return taken[:, :slots]


def item_vectors(sequences: SequenceItems, size: int, dim: int) -> Tensor:
    """Factorise the positive pointwise mutual information of items near each other.

    Args:
        sequences: Of training.
        size: Item ids, padding included.
        dim: Size of a vector.

    Returns:
        float32 (size, dim) of unit length; 0 for padding and for items that are near no other.

    Example:
        >>> vectors = item_vectors(SequenceItems.from_lists([[1, 2], [1, 2], [3, 4]]), 5, 3)
        >>> bool(vectors[1] @ vectors[2] > vectors[1] @ vectors[3])
        True
    """
    ids, user = sequences.flat(), sequences.position_rows()[0].numpy()
    near = rule_matrix(ids, user, np.ones(len(ids)), size, _WINDOW, back=1.0)
    # An item is near itself: with an empty diagonal two items that only ever meet each other would be orthogonal.
    near = (near + sp.diags(np.bincount(ids, minlength=size).astype(float))).tocoo()
    mass = np.asarray(near.sum(1)).ravel()
    information = np.log(near.data * mass.sum() / (mass[near.row] * mass[near.col]))
    matrix = sp.csr_matrix((information.clip(min=0), (near.row, near.col)), shape=(size, size))
    rank = min(dim, size - 1)
    if size <= _DENSE:
        left, values, _ = np.linalg.svd(matrix.toarray())
        left, values = left[:, :rank], values[:rank]
    else:
        left, values, _ = svds(matrix, k=rank, v0=np.ones(size))
    vectors = torch.zeros(size, dim)
    vectors[:, :rank] = torch.from_numpy(np.ascontiguousarray(left * np.sqrt(values))).float()
    return F.normalize(vectors, dim=1)
