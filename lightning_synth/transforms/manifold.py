"""Manifold mixup: hidden representations and labels of a batch mixed in pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy.stats import beta
from torch import Tensor, nn

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.requests import KeyedRNG, mix_seed


class ManifoldMixup:
    """A forward hook that mixes the rows of a module's output, and the loss that belongs to it.

    Verma et al. 2019 (arXiv 1806.05236); for graphs, Wang et al. 2021 (doi:10.1145/3442381.3449796) mix what comes
    after the readout. Hook it to the module whose output has one row a graph (a window, a node), before the classifier:
    ``h_i`` becomes ``w h_i + (1 - w) h_j`` with a random partner j and one w a batch. Nothing happens in evaluation.
    The draws are a function of (seed, step).

    Args:
        alpha: w is drawn from Beta(alpha, alpha).
        seed: Of all draws.

    Attributes:
        step: Number of the next draw; it counts up by itself. Setting it to ``trainer.global_step`` makes a resumed run
            draw what the whole one would have drawn.
        mask: bool (rows,), rows that are mixed, among themselves; None: all. For nodes: the ``train_mask``.

    Raises:
        ConfigError: If ``alpha`` is not positive.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> mixup = ManifoldMixup(seed=1)
        >>> handle = mixup.attach(model[1])
        >>> loss = mixup.loss(nn.functional.cross_entropy, model(torch.randn(6, 3)), torch.arange(6) % 2)
        >>> handle.remove()
    """

    def __init__(self, alpha: float = 1.0, seed: int = 0) -> None:
        if not alpha > 0:
            raise ConfigError(f"alpha must be positive, got {alpha}")
        self.alpha, self.seed, self.step = alpha, seed, 0
        self.mask: Tensor | None = None
        self._mixed: tuple[Tensor, float] | None = None

    def attach(self, module: nn.Module) -> Any:
        """Hook it to a module.

        Args:
            module: Its output is a tensor (rows, ...).

        Returns:
            A handle; ``handle.remove()`` takes the hook away.
        """
        return module.register_forward_hook(self._hook)

    def _hook(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        self._mixed = None
        if not module.training:
            return None
        rng = KeyedRNG(mix_seed(self.seed, self.step), device=output.device)
        self.step += 1
        share = float(beta.ppf(float(rng.fork("share").uniform(())), self.alpha, self.alpha))
        partner = torch.arange(len(output), device=output.device)
        rows = partner.clone() if self.mask is None else partner[self._checked(self.mask, output)]
        partner[rows] = rows[rng.fork("partner").permutation(len(rows))]
        self._mixed = partner, share
        return share * output + (1 - share) * output[partner]

    @staticmethod
    def _checked(mask: Tensor, output: Tensor) -> Tensor:
        if mask.dtype != torch.bool or len(mask) != len(output):
            raise DataError(f"mask must be bool with {len(output)} entries, got {mask.dtype} with {len(mask)}")
        return mask

    def loss(self, criterion: Callable[[Tensor, Tensor], Tensor], output: Tensor, target: Tensor) -> Tensor:
        """Mix the losses for the targets of the rows and for those of their partners, with w and 1 - w.

        Args:
            criterion: Such as ``cross_entropy``.
            output: Of the model, one row for each mixed one, or for each row of `mask` alone.
            target: Its targets, in the same rows.

        Returns:
            The loss; without a mixed forward pass, as in evaluation, that of the criterion.

        Raises:
            DataError: If there are neither as many targets as mixed rows nor as the mask has.
        """
        if self._mixed is None:
            return criterion(output, target)
        partner, share = self._mixed
        if len(target) != len(partner) and self.mask is not None:
            # Rows of the mask alone: partners by their position among them.
            rows = self.mask.nonzero()[:, 0]
            partner = torch.searchsorted(rows, partner[rows])
        if len(target) != len(partner):
            raise DataError(f"{len(target)} targets for {len(partner)} mixed rows")
        return share * criterion(output, target) + (1 - share) * criterion(output, target[partner])
