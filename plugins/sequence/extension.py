"""What the generators share that put earlier items in front of short training users."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.bank import ItemBank
from lightning_synth.diffusion import rows_for
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.generator import Generator
from lightning_synth.plugins.sequence.walks import draw, left_padded
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.schema import collate
from lightning_synth.sequence_model import trim


class UserExtension(Generator):
    """Base of generators whose sample is a short training user, extended into the past.

    Args:
        short: Longest user that is extended; None: three quarters of training users are at most that long.
        **kwargs: For `Generator` and the subclass.

    Raises:
        ConfigError: If ``short`` is below 1.
    """

    domain = "sequence"

    def __init__(self, *, short: int | None = None, **kwargs: Any) -> None:
        if short is not None and short < 1:
            raise ConfigError(f"short must be at least 1, got {short}")
        super().__init__(short=short, **kwargs)
        self.bank = ItemBank()

    def on_fit_start(self) -> None:
        """Keep the training users: samples extend them."""
        super().on_fit_start()
        self.bank.fill(self.training_items(), self.hparams["schema"])

    def users(self, requests: SampleRequests, rng: KeyedRNG, init: Any = None) -> dict[str, Tensor]:
        """Choose the users to extend.

        Args:
            requests: Rows to sample.
            rng: One seed a row.
            init: Items or samples; row i gets ``init[i % len(init)]``. None: short training users by the rows' seeds.

        Returns:
            Left-padded batch on the device of ``rng``; the first real position counts as a target, since it will have
            a past.

        Raises:
            DataError: If ``init`` is empty or has items that training had not.
        """
        schema = self.hparams["schema"]
        if init is None:
            short = (self.bank.batch["padding_mask"].sum(1) <= self._short()).nonzero()[:, 0]
            chosen = short if len(short) else torch.arange(len(self.bank))
            rows = chosen[rng.integers(len(chosen)).cpu()]
            batch = collate([self.bank.items[i] for i in rows.tolist()], schema)
        else:
            batch = rows_for(init, requests, schema)
            largest, known = int(batch["item_id"].max()), int(schema["vocab_size"])
            if largest > known:
                raise DataError(f"init has item {largest}, but the catalogue of training is 1..{known}")
        batch = trim({name: value.to(rng.device) for name, value in batch.items()})
        mask = batch["padding_mask"]
        weight = batch.get("target_weight", mask.float())
        return batch | {"target_weight": weight.masked_fill(mask & (mask.cumsum(1) == 1), 1.0)}

    def _length_law(self) -> tuple[Tensor, Tensor]:
        """Lengths of training users, and how many have them."""
        law = self.hparams["schema"]["length_counts"]
        return torch.tensor([int(size) for size in law]), torch.tensor(list(law.values()), dtype=torch.float64)

    def _short(self) -> int:
        if self.hparams["short"] is not None:
            return int(self.hparams["short"])
        sizes, counts = self._length_law()
        return int(sizes[torch.searchsorted(counts.cumsum(0), 0.75 * counts.sum())])

    def counts(self, lengths: Tensor, rng: KeyedRNG) -> Tensor:
        """Draw how many items each row gets: a length of the users above ``short``, less its own; int64 (rows,).

        Args:
            lengths: int64 (rows,), of the users.
            rng: One seed a row.
        """
        sizes, counts = (part.to(lengths.device) for part in self._length_law())
        longer = counts * (sizes > self._short())
        if not bool(longer.any()):
            longer = counts * (sizes == sizes.max())
        return (sizes[draw(longer, rng.uniform(()))] - lengths).clamp(min=0)

    def assembled(self, generated: Tensor, new_weight: Tensor, users: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put generated items in front of their users.

        Args:
            generated: int64 (rows, slots), 0 where there is none.
            new_weight: float32 (rows, slots), weights of generated positions as targets.
            users: Of `users`.

        Returns:
            Batch dict with ``item_is_synthetic`` and ``target_weight``, 0 at the first position, which has no past.
        """
        ids = torch.cat([generated, users["item_id"]], 1)
        synthetic = torch.cat([generated > 0, torch.zeros_like(users["padding_mask"])], 1)
        weight = torch.cat([new_weight, users["target_weight"]], 1)
        batch = left_padded(ids, ids > 0, item_is_synthetic=synthetic, target_weight=weight)
        first = batch["padding_mask"] & (batch["padding_mask"].cumsum(1) == 1)
        batch["target_weight"] = batch["target_weight"].masked_fill(first, 0.0)
        return batch | {name: value for name, value in users.items() if name == "user_id"}
