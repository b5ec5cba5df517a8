"""TimeGAN: adversarial training in a latent space that is learned to be predictable step by step.

Yoon, Jarrett, van der Schaar, "Time-series Generative Adversarial Networks", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.adversarial import AdversarialGenerator, frozen
from lightning_synth.errors import ConfigError
from lightning_synth.plugins.timeseries.phases import PhasedGenerator
from lightning_synth.plugins.timeseries.windows import WindowCodec
from lightning_synth.requests import KeyedRNG, SampleRequests

# Weights of the authors' code: reconstruction, supervised loss inside the embedder's, supervised loss, moments.
_RECONSTRUCT, _PREDICTABLE, _SUPERVISE, _MOMENTS = 10.0, 0.1, 100.0, 100.0
#: The discriminator rests while its loss is below this, as in the authors' code.
_DISCRIMINATOR_REST = 0.15


class Recurrent(nn.Module):
    """GRUs over time, then a dense layer at every step; the condition is an input of every step.

    Args:
        inputs: Features of a step.
        condition_size: Of the condition vector.
        hidden: Units of each GRU.
        layers: GRUs on top of each other.
        outputs: Features of a step that comes out.
        sigmoid: Whether the outputs are squashed to (0, 1).
        bidirectional: Whether the GRUs see the future too.
    """

    def __init__(
        self,
        inputs: int,
        condition_size: int,
        hidden: int,
        layers: int,
        outputs: int,
        sigmoid: bool,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        size = inputs + condition_size
        self.recurrent = nn.GRU(size, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.dense = nn.Linear(hidden * (1 + bidirectional), outputs)
        self.sigmoid = sigmoid

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (rows, length, inputs) and (rows, condition_size) to (rows, length, outputs)."""
        repeated = condition[:, None].expand(-1, x.shape[1], -1)
        out: Tensor = self.dense(self.recurrent(torch.cat([x, repeated], dim=2))[0])
        return out.sigmoid() if self.sigmoid else out


def supervised_loss(latent: Tensor, predicted: Tensor) -> Tensor:
    """Squared error of each step's prediction against the next step (eq. 9), for (rows, length, features).

    Example:
        >>> h = torch.arange(4.0).reshape(1, 4, 1)
        >>> supervised_loss(h, h + 1), supervised_loss(h, h)
        (tensor(0.), tensor(1.))
    """
    if latent.shape[1] < 2:
        return 0 * predicted.sum()
    return (latent[:, 1:] - predicted[:, :-1]).square().mean()


def moment_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Difference of means plus that of standard deviations, over the batch at every step and channel (authors' code).

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> moment_loss(x, x + 3), moment_loss(x, 2 * x)
        (tensor(3.), tensor(1.))
    """
    spreads = (rows.var(0, unbiased=False).add(1e-12).sqrt() for rows in (real, fake))
    return (real.mean(0) - fake.mean(0)).abs().mean() + torch.stack(list(spreads)).diff(dim=0).abs().mean()


def _judged(logits: Tensor, real: bool) -> Tensor:
    """Cross-entropy of the discriminator's logits, one a step (eq. 8)."""
    return F.softplus(-logits if real else logits).mean()


class TimeGAN(PhasedGenerator, AdversarialGenerator):
    """Embedder, recovery, supervisor, generator and discriminator (Yoon et al., NeurIPS 2019).

    One fit has three phases, as shares of the Trainer's budget: embedder and recovery learn to autoencode windows;
    the supervisor learns to predict the next latent step; then all are trained, the generator against the
    discriminator in the latent space (eq. 7 to 11 with the weights of the authors' code).

    Where it differs from the code: windows are standardised and the recovery has no sigmoid, because a scale of
    [0, 1] from the training range could never leave that range; some of the noise is drawn once a window, as the
    paper's static features have it, without which GRUs average the level of a window away; the generator is updated
    once, not twice, for each update of the discriminator; the discriminator is bidirectional, as in the paper.
    Labels and continuous conditions are inputs of every network at every step.

    Args:
        hidden_dim: Units of each GRU, and size of a latent step.
        num_layers: GRUs in each network; the supervisor has one less.
        noise_dim: Noise of each step.
        static_dim: Noise drawn once a window.
        phases: Shares of the budget of the first two phases.
        gamma: Weight of the discriminator's view of latents that did not pass the supervisor.
        supervise: Weight of the supervised loss in the third phase, relative to the authors' (eta of eq. 11).
        lr: Learning rate of both sides.
        **kwargs: For `AdversarialGenerator` (``d_lr, d_steps, clip_val, update``...), ``schema`` and ``seed``.

    Shapes:
        batch["x"]: (batch, channels, length) float32, raw units; optional ``y``, conditions, ``mask`` (batch, length).

    Raises:
        ConfigError: If a setting is out of range, or the Trainer has no budget to divide.

    Example:
        >>> from lightning_synth.testing import tiny_series_schema
        >>> model = TimeGAN(schema=tiny_series_schema(channels=2, length=24), hidden_dim=8)
        >>> model.phase, model.warming_up
        (1, True)
    """

    domain = "timeseries"
    conditions = ("label", "*")
    # The discriminator rests by itself.
    saturated_below = None

    def __init__(
        self,
        *,
        hidden_dim: int = 24,
        num_layers: int = 3,
        noise_dim: int = 8,
        static_dim: int = 8,
        phases: Sequence[float] = (0.25, 0.15),
        gamma: float = 1.0,
        supervise: float = 1.0,
        lr: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        if min(hidden_dim, num_layers, noise_dim) < 1 or static_dim < 0:
            raise ConfigError(
                f"{hidden_dim=}, {num_layers=} and {noise_dim=} must be at least 1, {static_dim=} at least 0"
            )
        if len(phases) != 2 or min(phases) < 0 or sum(phases) >= 1:
            raise ConfigError(f"{phases=} must be two shares of the budget that leave some of it to the third phase")
        if gamma < 0 or supervise < 0:
            raise ConfigError(f"{gamma=} and {supervise=} must not be negative")
        super().__init__(
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            noise_dim=noise_dim,
            static_dim=static_dim,
            phases=list(phases),
            gamma=gamma,
            supervise=supervise,
            lr=lr,
            **kwargs,
        )

    def build(self, schema: dict[str, Any]) -> None:
        """Make the five networks."""
        p, codec = self.hparams, WindowCodec(schema)
        self.codec, hidden, layers = codec, p.hidden_dim, p.num_layers
        size = codec.condition_size
        self.embedder = Recurrent(codec.channels, size, hidden, layers, hidden, sigmoid=True)
        self.recovery = Recurrent(hidden, size, hidden, layers, codec.channels, sigmoid=False)
        self.G = Recurrent(p.noise_dim + p.static_dim, size, hidden, layers, hidden, sigmoid=True)
        self.supervisor = Recurrent(hidden, size, hidden, max(1, layers - 1), hidden, sigmoid=True)
        self.D = Recurrent(hidden, size, hidden, layers, 1, sigmoid=False, bidirectional=True)

    # Training ------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> int:
        """Number of the present phase, 1 to 3."""
        first, second = self.hparams.phases
        return 1 + int(self.progress >= first) + int(self.progress >= first + second)

    @property
    def warming_up(self) -> bool:
        """Whether adversarial training has not begun."""
        return self.phase < 3

    def generator_networks(self) -> Sequence[nn.Module]:
        """Return all networks but the discriminator."""
        return self.embedder, self.recovery, self.supervisor, self.G

    def make_optimizer(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """Return Adam with its usual momentum, as the authors' code."""
        return torch.optim.Adam(parameters, lr=lr)

    def resting(self) -> Sequence[nn.Module]:
        """Return the networks that the present phase leaves alone."""
        first = (self.supervisor, self.G, self.D)
        second = (self.embedder, self.recovery, self.G, self.D)
        return {1: first, 2: second, 3: ()}[self.phase]

    def discriminator_loss(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> Tensor:
        """Tell latents of real windows from generated ones, before and after the supervisor (eq. 8)."""
        if self.training and self.phase < 3:
            return self.zero_loss()
        condition = self.codec.conditions(batch)
        real = self.embedder(self._steps(batch), condition)
        fake, supervised = self._latents(condition, self._noise(len(condition), rng))
        loss = _judged(self.D(real, condition), True) + _judged(self.D(supervised, condition), False)
        loss = loss + self.hparams.gamma * _judged(self.D(fake, condition), False)
        # Its value without its gradient while the discriminator is too good.
        return torch.where(loss > _DISCRIMINATOR_REST, loss, loss.detach() + 0 * loss)

    def generator_loss(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> Tensor:
        """Return the loss of the present phase."""
        x, condition = self._steps(batch), self.codec.conditions(batch)
        phase = self.phase if self.training else 3
        if phase == 2:
            with frozen([self.embedder]):
                latent = self.embedder(x, condition)
            return self._supervised(latent, condition) + self.zero_loss()
        latent = self.embedder(x, condition)
        loss = self._reconstruction(x, latent, condition)
        if phase == 1:
            return loss + self.zero_loss()
        with frozen([self.supervisor]):
            loss = loss + _PREDICTABLE * self._supervised(latent, condition)
        return loss + self._joint_loss(x, latent.detach(), condition, rng)

    def _joint_loss(self, x: Tensor, latent: Tensor, condition: Tensor, rng: KeyedRNG) -> Tensor:
        """The loss of generator and supervisor (eq. 11 and the moments of the authors' code)."""
        fake, supervised = self._latents(condition, self._noise(len(x), rng))
        fooled = _judged(self.D(supervised, condition), True)
        fooled = fooled + self.hparams.gamma * _judged(self.D(fake, condition), True)
        predicted = _root(self._supervised(latent, condition))
        with frozen([self.recovery]):
            moments = moment_loss(x, self._recover(supervised, condition))
        total: Tensor = fooled + self.hparams.supervise * _SUPERVISE * predicted + _MOMENTS * moments
        return total

    def _reconstruction(self, x: Tensor, latent: Tensor, condition: Tensor) -> Tensor:
        """Weighted root mean squared error of the autoencoder (eq. 7)."""
        return _RECONSTRUCT * _root((x - self._recover(latent, condition)).square().mean())

    def _supervised(self, latent: Tensor, condition: Tensor) -> Tensor:
        return supervised_loss(latent, self.supervisor(latent, condition))

    # Networks ------------------------------------------------------------------------------------------------------

    def _steps(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Standardised windows (rows, length, channels)."""
        return self.codec.encode(batch).transpose(1, 2)

    def _noise(self, rows: int, rng: KeyedRNG) -> Tensor:
        return self._join(
            rng.normal((rows, self.codec.length, self.hparams.noise_dim)), rng.normal((rows, self.hparams.static_dim))
        )

    def _join(self, steps: Tensor, static: Tensor) -> Tensor:
        """Repeat the static noise at every step."""
        return torch.cat([steps, static[:, None].expand(-1, steps.shape[1], -1)], dim=2)

    def _latents(self, condition: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Latents from noise, and after the supervisor; both (rows, length, hidden_dim)."""
        fake = self.G(noise, condition)
        return fake, self.supervisor(fake, condition)

    def _recover(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Standardised windows (rows, length, channels) from latents."""
        return self.codec.soft_mask(self.recovery(latent, condition).transpose(1, 2)).transpose(1, 2)

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Generate latents, pass them through the supervisor, and recover windows."""
        condition = self.codec.conditions({"index": requests.index, **requests.condition})
        steps = rng.fork("steps").normal((self.codec.length, self.hparams.noise_dim))
        noise = self._join(steps, rng.fork("static").normal((self.hparams.static_dim,)))
        _, latent = self._latents(condition, noise)
        return self.codec.decode(self._recover(latent, condition).transpose(1, 2))


def _root(square: Tensor) -> Tensor:
    """Square root with a finite gradient at zero."""
    return (square + 1e-12).sqrt()
