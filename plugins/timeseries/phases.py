"""Training in phases: some networks rest while others learn, in one fit and under plain ddp."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_synth.errors import ConfigError
from lightning_synth.generator import Generator


class PhasedGenerator(Generator):
    """A generator whose networks learn one after the other, in shares of the Trainer's budget (`progress`).

    A subclass says which networks rest, and adds `zero_loss` to what it minimises (TimeGAN: Yoon et al. 2019, and VQ
    models: van den Oord et al. 2017, arXiv 1711.00937, are trained so).
    """

    @abstractmethod
    def resting(self) -> Sequence[nn.Module]:
        """Return the networks that do not learn at present."""

    def setup(self, stage: str) -> None:
        """Before a fit, see that there is a budget to divide."""
        super().setup(stage)
        if stage == "fit" and self.trainer.max_steps == -1 and self.trainer.max_epochs == -1:
            name = type(self).__name__
            raise ConfigError(f"{name} divides the Trainer's budget into phases: set max_steps or max_epochs")

    def zero_loss(self) -> Tensor:
        """Return zero, with a gradient of zero for all that rests: plain ddp waits for one of every parameter."""
        parameters = [p.flatten()[0] for network in self.resting() for p in network.parameters()]
        return 0.0 * torch.stack(parameters).sum() if parameters else torch.zeros((), device=self.device)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of what rests: with none at all, neither momentum nor weight decay moves it."""
        for network in self.resting():
            for parameter in network.parameters():
                parameter.grad = None
        super().on_before_optimizer_step(optimizer)
