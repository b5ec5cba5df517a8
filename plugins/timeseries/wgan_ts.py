"""Conditional Wasserstein GAN with gradient penalty, convolutional, for windows of a multivariate series.

Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017 (arXiv 1704.00028).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.adversarial import AdversarialGenerator
from lightning_synth.errors import ConfigError
from lightning_synth.plugins.timeseries.windows import WindowCodec
from lightning_synth.requests import KeyedRNG, SampleRequests

#: Steps of the coarsest resolution, about.
_COARSEST = 8


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: KeyedRNG) -> Tensor:
    """Return the mean of (|gradient| - 1)^2 at points between real and generated rows (Gulrajani et al., eq. 3).

    Args:
        critic: Maps (rows, ...) to one number a row, each from its own row alone.
        real: (rows, ...).
        fake: The same shape.
        rng: Scalar-seeded.

    Example:
        >>> x = torch.zeros(2, 3)
        >>> round(float(gradient_penalty(lambda x: 3 * x[:, 0] + 4 * x[:, 1], x, x, KeyedRNG(0))), 4)
        16.0
    """
    share = rng.uniform((len(real), *[1] * (real.ndim - 1)))
    between = (fake + share * (real - fake)).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # The root has no gradient at zero.
    norm = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
    return (norm - 1).square().mean()


class ConvGenerator(nn.Module):
    """Latent vector and condition to a window: dense to about 8 steps, then doublings with convolutions.

    Every resolution gets noise of its own, with a learned weight a feature: fine texture need not be spun out of the
    latent vector (as in StyleGAN, Karras et al. 2019, arXiv 1812.04948).

    Args:
        channels: Of the window.
        length: Of the window.
        inputs: Size of latent vector and condition together.
        width: Features at the finest resolution; twice as many at coarser ones.
    """

    def __init__(self, channels: int, length: int, inputs: int, width: int) -> None:
        super().__init__()
        self.length = length
        blocks = _num_halvings(length)
        widths = [*[2 * width] * blocks, width]
        self.start_length = -(-length // 2**blocks)
        self.lengths = [self.start_length * 2**i for i in range(blocks + 1)]
        self.start = nn.Linear(inputs, widths[0] * self.start_length)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(wide, narrow, 5, padding=2) for wide, narrow in zip([widths[0], *widths], widths, strict=False)
        )
        self.noise_weight = nn.ParameterList(nn.Parameter(torch.full((width, 1), 0.1)) for width in widths)
        # One group: a normalisation of each row alone, independent of its batch.
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in widths)
        self.out = nn.Conv1d(widths[-1], channels, 5, padding=2)

    def noise_shape(self) -> int:
        """How many numbers of noise one row takes."""
        return sum(self.lengths)

    def forward(self, h: Tensor, noise: Tensor) -> Tensor:
        """Map (rows, inputs) and (rows, noise_shape) to (rows, channels, length)."""
        x = self.start(h).unflatten(1, (-1, self.start_length))
        layers = zip(self.convolutions, self.norms, self.noise_weight, noise.split(self.lengths, dim=1), strict=True)
        for i, (convolution, norm, weight, level) in enumerate(layers):
            x = F.interpolate(x, scale_factor=2.0) if i else x
            x = F.leaky_relu(norm(convolution(x)) + weight * level[:, None], 0.2)
        out: Tensor = self.out(x)[:, :, : self.length]
        return out


class ConvCritic(nn.Module):
    """Strided convolutions to one number; the condition enters by projection (Miyato & Koyama 2018, arXiv 1802.05637).

    No normalisation, which the gradient penalty rules out across rows (Gulrajani et al., section 4).

    Args:
        channels: Of the window.
        length: Of the window.
        condition_size: Of the condition vector.
        width: Features at the finest resolution; twice as many at coarser ones.
    """

    def __init__(self, channels: int, length: int, condition_size: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(channels, width, 5, padding=2), nn.LeakyReLU(0.2)]
        features = width
        for _ in range(_num_halvings(length)):
            layers += [nn.Conv1d(features, 2 * width, 5, stride=2, padding=2), nn.LeakyReLU(0.2)]
            features, length = 2 * width, -(-length // 2)
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features * length, 4 * width), nn.LeakyReLU(0.2))
        # No bias: it cancels in every loss.
        self.out = nn.Linear(4 * width, 1, bias=False)
        self.project = nn.Linear(condition_size, 4 * width, bias=False) if condition_size else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (rows, channels, length) and (rows, condition_size) to (rows,)."""
        features = self.features(x)
        score: Tensor = self.out(features)[:, 0]
        return score if self.project is None else score + (features * self.project(condition)).sum(1)


def _num_halvings(length: int) -> int:
    return max(0, round(math.log2(length / _COARSEST)))


class WGANTS(AdversarialGenerator):
    """Conditional WGAN-GP of windows (Gulrajani et al. 2017, arXiv 1704.00028).

    The critic scores standardised windows, with a penalty on gradients other than 1; the generator raises the score of
    its own. Labels and continuous conditions are concatenated to the latent vector, and enter the critic by projection.
    Ragged windows carry their mask as one more channel. A warning is raised when the generator loses most of the data
    (`CollapseMonitor`).

    Args:
        latent_dim: Size of the latent vector.
        width: Features of the finest convolutions of both networks; coarser ones have twice as many.
        penalty: Weight of the gradient penalty (lambda of eq. 3).
        d_steps: Critic updates for each generator update; Trainer steps count generator updates.
        lr: Learning rate of the generator.
        betas: Of Adam, both sides; the paper has (0, 0.9).
        **kwargs: For `AdversarialGenerator` (``d_lr, clip_val``; ``update="joint"`` needs ``d_steps=1``), ``schema``
            and ``seed``.

    Shapes:
        batch["x"]: (batch, channels, length) float32, raw units; optional ``y``, conditions, ``mask`` (batch, length).

    Raises:
        ConfigError: If a setting is out of range.

    Example:
        >>> from lightning_synth.testing import tiny_series_schema
        >>> model = WGANTS(schema=tiny_series_schema(channels=2, length=24), width=8)
        >>> model.G.lengths
        [6, 12, 24]
    """

    domain = "timeseries"
    conditions = ("label", "*")
    # A Wasserstein loss near zero is a good sign.
    saturated_below = None

    def __init__(
        self,
        *,
        latent_dim: int = 32,
        width: int = 32,
        penalty: float = 10.0,
        d_steps: int = 5,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.0, 0.9),
        **kwargs: Any,
    ) -> None:
        if latent_dim < 1 or width < 1 or penalty < 0:
            raise ConfigError(f"{latent_dim=} and {width=} must be at least 1, {penalty=} at least 0")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"{betas=} must be two numbers in [0, 1)")
        super().__init__(
            latent_dim=latent_dim, width=width, penalty=penalty, d_steps=d_steps, lr=lr, betas=list(betas), **kwargs
        )

    def build(self, schema: dict[str, Any]) -> None:
        """Make generator and critic."""
        p, codec = self.hparams, WindowCodec(schema)
        self.codec = codec
        inputs = p.latent_dim + codec.condition_size
        self.G = ConvGenerator(codec.channels, codec.length, inputs, p.width)
        self.D = ConvCritic(codec.channels, codec.length, codec.condition_size, p.width)

    def make_optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        """Return Adam, as in the paper."""
        return torch.optim.Adam(parameters, lr=lr, betas=tuple(self.hparams.betas))

    def generate(self, condition: Tensor, latent: Tensor, noise: Tensor) -> Tensor:
        """Return standardised windows (rows, channels, length).

        Args:
            condition: (rows, condition_size).
            latent: (rows, latent_dim).
            noise: (rows, ``G.noise_shape()``).
        """
        return self.codec.soft_mask(self.G(torch.cat([latent, condition], dim=1), noise))

    def _fake(self, condition: Tensor, rng: KeyedRNG) -> Tensor:
        rows = len(condition)
        latent, noise = rng.normal((rows, self.hparams.latent_dim)), rng.normal((rows, self.G.noise_shape()))
        return self.generate(condition, latent, noise)

    def discriminator_loss(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> Tensor:
        """Score generated windows low and real ones high, at unit slope (eq. 3)."""
        real, condition = self.codec.encode(batch), self.codec.conditions(batch)
        fake = self._fake(condition, rng)
        penalty = gradient_penalty(lambda x: self.D(x, condition), real, fake, rng.fork("between"))
        difference = self.D(fake, condition).mean() - self.D(real, condition).mean()
        loss: Tensor = difference + self.hparams.penalty * penalty
        return loss

    def generator_loss(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> Tensor:
        """Raise the score of generated windows."""
        condition = self.codec.conditions(batch)
        loss: Tensor = -self.D(self._fake(condition, rng), condition).mean()
        return loss

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Generate from one latent vector and one draw of fine noise a row."""
        condition = self.codec.conditions({"index": requests.index, **requests.condition})
        latent = rng.fork("latent").normal((self.hparams.latent_dim,))
        return self.codec.decode(self.generate(condition, latent, rng.fork("noise").normal((self.G.noise_shape(),))))
