"""A part of the training split that a generator does not train on, to notice when it starts to learn by heart.

The validation split of the DataModule stays unseen, as it must: what is held out here comes from the training split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_synth.averaging import AveragedGenerator
from lightning_synth.errors import ConfigError
from lightning_synth.items import evenly_spaced
from lightning_synth.requests import KeyedRNG

# Held-out items come in this many runs of neighbours: windows that overlap with trained ones are only at their ends.
_RUNS = 4
# Looks at the held-out items in a fit, and at how many of them.
_CHECKS, _MAX_HELD = 20, 256


def row_keys(x: Tensor) -> Tensor:
    """Return a key of each row's content, int64 (rows,); equal rows have equal keys.

    Args:
        x: float32 (rows, ...).

    Example:
        >>> a = torch.randn(3, 2, 4)
        >>> bool((row_keys(a[[0, 1, 0]])[[0, 2]] == row_keys(a)[0]).all()), len(row_keys(a).unique())
        (True, 3)
    """
    bits = x.float().contiguous().flatten(1).view(torch.int32).long()
    place = torch.arange(1, bits.shape[1] + 1, device=x.device)
    # Odd multipliers are invertible modulo 2^64, so a change of one value always changes the key.
    return (bits * (place * 0x1E3779B97F4A7C15 + (place % 2 == 0).long())).sum(1)


def held_out_rows(count: int, share: float) -> list[int]:
    """Choose which of ``count`` items to hold out: runs of neighbours, evenly spread.

    Example:
        >>> held_out_rows(40, 0.2)
        [4, 5, 14, 15, 24, 25, 34, 35]
    """
    size = int(count * share / _RUNS)
    starts = [int((i + 0.5) * count / _RUNS) - size // 2 for i in range(_RUNS)]
    return [row for start in starts for row in range(start, start + size)]


class BestWeights(nn.Module):
    """The parameters at the smallest held-out loss so far, in buffers, so that a resumed training knows them.

    Args:
        parameters: Name to parameter; the same names are passed to the other methods.
    """

    loss: Tensor
    waited: Tensor

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("loss", torch.tensor(torch.finfo(torch.float32).max))
        self.register_buffer("waited", torch.zeros((), dtype=torch.int64))
        for name, value in parameters.items():
            self.register_buffer(name.replace(".", "/"), value.detach().clone())

    @torch.no_grad()
    def offer(self, loss: Tensor, parameters: Mapping[str, Tensor]) -> int:
        """Remember the parameters if their loss is the smallest so far.

        Args:
            loss: Scalar.
            parameters: As in the constructor.

        Returns:
            Number of offers since the best one.
        """
        better = bool(loss < self.loss)
        self.waited.copy_(torch.zeros_like(self.waited) if better else self.waited + 1)
        if better:
            self.loss.copy_(loss)
            for name, value in parameters.items():
                self.get_buffer(name.replace(".", "/")).copy_(value)
        return int(self.waited)

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Write the best parameters into ``parameters``, if there are any."""
        if float(self.loss) < torch.finfo(torch.float32).max:
            for name, value in parameters.items():
                value.copy_(self.get_buffer(name.replace(".", "/")))


def without(batch: Mapping[str, Tensor], keys: Tensor) -> dict[str, Tensor]:
    """Drop the rows of a series batch whose key is among ``keys``; at least one row stays.

    Args:
        batch: With ``x`` (rows, ...).
        keys: int64, of held-out rows.
    """
    if not len(keys):
        return dict(batch)
    stays = ~torch.isin(row_keys(batch["x"]), keys)
    stays[0] |= ~stays.any()
    return {name: value[stays] for name, value in batch.items()}


class HeldOutGenerator(AveragedGenerator):
    """Base of generators that keep the averaged weights which were best on held-out training items.

    A subclass calls `hold_out` in its ``setup`` of a fit, and leaves the rows of ``held_keys`` out of its losses while
    it trains.

    Args:
        holdout: Share of the training items that is not trained on. The loss on them is logged twenty times a fit as
            ``held_out_loss``, and beside it ``memorisation``, by which share the loss on trained items is smaller.
        patience: Stop after so many looks without a better loss; None goes on to the end.
        **kwargs: For `AveragedGenerator` and the subclass.

    Raises:
        ConfigError: If ``holdout`` is not a share in [0, .5].
    """

    #: Fewer training items than this cannot spare any.
    min_for_holdout = 200

    def __init__(self, *, holdout: float = 0.05, patience: int | None = None, **kwargs: Any) -> None:
        if not 0 <= holdout <= 0.5:
            raise ConfigError(f"holdout must lie in [0, .5], got {holdout}")
        super().__init__(holdout=holdout, patience=patience, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        """Make room for the best weights."""
        super().build(schema)
        self.best = BestWeights(self._sampled_from())
        self._looks = 0
        self._held: dict[str, Any] = {}
        self.held_keys = torch.empty(0, dtype=torch.int64)

    def hold_out(self, items: Sequence[Any]) -> tuple[list[int], list[int]]:
        """Choose the held-out items and keep them in view.

        Args:
            items: Of training.

        Returns:
            Indices that are trained on, and indices that are held out (none, if there are too few items).
        """
        held = held_out_rows(len(items), self.hparams["holdout"]) if len(items) >= self.min_for_holdout else []
        chosen = set(held)
        kept = [i for i in range(len(items)) if i not in chosen]
        views = {"held_out": held, "trained": kept} if held else {}
        self._held = {name: self.collated(items, evenly_spaced(rows, _MAX_HELD)) for name, rows in views.items()}
        return kept, held

    def collated(self, items: Sequence[Any], rows: Sequence[int]) -> Any:
        """Return some items as a batch on the device of the model.

        Args:
            items: Of the schema.
            rows: Which.
        """
        from lightning_synth.schema import collate, move

        return move(collate([items[i] for i in rows], self._ready_schema()), self.device)

    def _sampled_from(self) -> dict[str, Tensor]:
        """The weights that samples come from: the averaged ones, or the plain ones where there is no average."""
        return dict(self.average.named_buffers() if self.hparams["ema_decay"] > 0 else self.named_parameters())

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Look at the held-out items now and then."""
        super().on_train_batch_end(*args, **kwargs)
        due = int(self.progress * _CHECKS)
        if self._held and due > self._looks:
            self._look()
        self._looks = due

    @torch.no_grad()
    def _look(self) -> None:
        from lightning_synth.schema import move

        self.eval()
        with self.averaged_weights():
            # The same noise at every look, so that losses compare.
            loss = {
                name: self.losses(move(batch, self.device), KeyedRNG(0, device=self.device))["loss"]
                for name, batch in self._held.items()
            }
        self.train()
        self.log("held_out_loss", loss["held_out"], rank_zero_only=True)
        self.log("memorisation", 1 - loss["trained"] / loss["held_out"], rank_zero_only=True)
        waited = self.best.offer(loss["held_out"], self._sampled_from())
        if self.hparams["patience"] is not None and waited >= self.hparams["patience"]:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Keep the weights that were best on the held-out items."""
        super().on_train_end()
        if self._held:
            self.best.restore(self._sampled_from())
