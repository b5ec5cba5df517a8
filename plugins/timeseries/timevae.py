"""TimeVAE: a variational autoencoder whose decoder adds level, trend, seasonality and a residual.

Desai et al., "TimeVAE: A Variational Auto-Encoder for Multivariate Time Series Generation", 2021 (arXiv 2111.08095).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_synth.errors import ConfigError
from lightning_synth.generator import Generator
from lightning_synth.plugins.timeseries.windows import ResidualNoise, WindowCodec
from lightning_synth.requests import KeyedRNG, SampleRequests

#: Steps that the convolutions leave of a window, at most; long windows get more of them.
_SHORTEST = 16


def kl_to_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, exp(log_var)) from N(0, 1), summed over the last axis (eq. 3).

    Example:
        >>> kl_to_standard_normal(torch.zeros(1, 4), torch.zeros(1, 4))
        tensor([0.])
    """
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(-1)


def dominant_periods(x: Tensor, count: int) -> list[float]:
    """Return the periods, in steps, of the strongest Fourier bins of windows without their linear trend.

    Args:
        x: (rows, channels, length), standardised.
        count: How many.

    Example:
        >>> dominant_periods(torch.sin(2 * math.pi * torch.arange(24) / 6).reshape(1, 1, 24), 1)
        [6.0]
    """
    length = x.shape[-1]
    time = torch.linspace(-1, 1, length, device=x.device)
    centred = x - x.mean(-1, keepdim=True)
    slope = (centred * time).sum(-1, keepdim=True) / time.square().sum().clamp(min=1e-12)
    power = torch.fft.rfft(centred - slope * time).abs().square().mean((0, 1))
    # Neither the mean nor, at even lengths, the Nyquist bin, of which no sine exists.
    bins = power[1 : (length + 1) // 2]
    return [length / (int(k) + 1) for k in bins.topk(min(count, len(bins))).indices]


class ConvEncoder(nn.Module):
    """Strided convolutions over time, then mean and log-variance of the latent vector.

    Args:
        channels: Of the window.
        length: Of the window.
        widths: Channels of the convolutions; the last is repeated for windows longer than they shrink to 16 steps.
        condition_size: Of the condition vector.
        latent_dim: Of the latent vector.
    """

    def __init__(self, channels: int, length: int, widths: Sequence[int], condition_size: int, latent_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv1d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
            channels, length = width, -(-length // 2)
        self.convolutions = nn.Sequential(*layers)
        self.out = nn.Linear(channels * length + condition_size, 2 * latent_dim)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Map (rows, channels, length) and (rows, condition_size) to two tensors (rows, latent_dim)."""
        features = torch.cat([self.convolutions(x).flatten(1), condition], dim=1)
        mean, log_var = self.out(features).chunk(2, dim=1)
        # A wild log-variance in the first steps would overflow exp.
        return mean, log_var.clamp(-20, 10)


class DecomposedDecoder(nn.Module):
    """Level + polynomial trend + sinusoids + residual (paper, section 3 and figure 2).

    Args:
        channels: Of the window.
        length: Of the window.
        inputs: Size of latent vector and condition together.
        widths: As the encoder's, which the residual part mirrors.
        trend_degree: Of the polynomial without its constant, the level; 0 leaves the trend out.
        num_seasons: Sinusoids; 0 leaves the seasonality out.
        residual: Whether there is a residual part.
    """

    powers: Tensor
    frequency: Tensor

    def __init__(
        self,
        channels: int,
        length: int,
        inputs: int,
        widths: Sequence[int],
        trend_degree: int,
        num_seasons: int,
        residual: bool,
    ) -> None:
        super().__init__()
        self.channels, self.length = channels, length
        self.level = _head(inputs, channels, 1)
        self.trend = _head(inputs, channels, trend_degree) if trend_degree else None
        self.season = _head(inputs, channels, 2 * num_seasons) if num_seasons else None
        self.residual = _Residual(channels, length, inputs, widths) if residual else None
        time = torch.arange(length) / max(1, length - 1)
        self.register_buffer("powers", time ** torch.arange(1, trend_degree + 1)[:, None], persistent=False)
        # Cycles per step; the strongest of the training windows once these are known.
        self.register_buffer("frequency", torch.arange(1, num_seasons + 1) / length)

    def parts(self, h: Tensor) -> dict[str, Tensor]:
        """Return each part that exists, (rows, channels, length), from (rows, inputs)."""
        shape = (len(h), self.channels, -1)
        parts = {"level": self.level(h).reshape(shape).expand(-1, -1, self.length)}
        if self.trend is not None:
            parts["trend"] = self.trend(h).reshape(shape) @ self.powers
        if self.season is not None:
            angle = 2 * math.pi * self.frequency[:, None] * torch.arange(self.length, device=h.device)
            parts["season"] = self.season(h).reshape(shape) @ torch.cat([angle.cos(), angle.sin()])
        if self.residual is not None:
            parts["residual"] = self.residual(h)
        return parts

    def forward(self, h: Tensor) -> Tensor:
        """Return the sum of the parts."""
        return torch.stack(list(self.parts(h).values())).sum(0)


def _head(inputs: int, channels: int, coefficients: int) -> nn.Sequential:
    """Two dense layers to some coefficients a channel."""
    outputs = channels * coefficients
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))


class _Residual(nn.Module):
    """Transposed convolutions, the mirror image of the encoder.

    The original ends in a dense layer over all steps and channels, whose (channels * length)^2 weights rule out long
    windows; here a convolution maps to the channels.
    """

    def __init__(self, channels: int, length: int, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.length, self.width = length, widths[-1]
        start = -(-length // 2 ** len(widths))
        self.start = nn.Sequential(nn.Linear(inputs, self.width * start), nn.ReLU())
        layers: list[nn.Module] = []
        for wide, narrow in zip(widths[::-1], [*widths[-2::-1], widths[0]], strict=True):
            layers += [nn.ConvTranspose1d(wide, narrow, 4, stride=2, padding=1), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers, nn.Conv1d(widths[0], channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.convolutions(self.start(h).unflatten(1, (self.width, -1)))
        return out[:, :, : self.length]


class TimeVAE(Generator):
    """Variational autoencoder with trend, seasonality and residual (Desai et al. 2021, arXiv 2111.08095).

    Beyond the paper: label and continuous conditions, ragged windows (their mask is one more channel), trend and
    seasonality on by default with periods found in the training windows, and noise. A decoder trained on squared errors
    returns means, smoother than any window. What it leaves unexplained is therefore modelled too, without any effect on
    the decoder: its scale follows the latent vector, its spectrum and cross-channel correlation are measured. Samples
    add it, as the Gaussian likelihood of the model has it; ``noise_scale=0`` gives the bare means of the original.

    Args:
        latent_dim: Size of the latent vector.
        widths: Channels of the three convolutions; longer windows repeat the last until 16 steps are left.
        trend_degree: Degree of the trend; 0 leaves it out, as the original's default.
        num_seasons: How many periods to find in the training windows; 0: no seasonality, as the original's default.
        periods: Periods in steps, to be used instead; each is one sinusoid, so list the harmonics that matter.
        residual: Whether the decoder has the residual part.
        reconstruction_weight: Weight of the summed squared error against the KL term; 3 in the original code too, but
            there the data is scaled to [0, 1], where the same weight keeps less detail.
        beta: Weight of the KL term.
        noise_scale: Share of the unexplained noise that is added to samples.
        lr: Learning rate.
        **kwargs: ``schema``, ``seed``.

    Shapes:
        batch["x"]: (batch, channels, length) float32, raw units; optional ``y``, conditions, ``mask`` (batch, length).

    Raises:
        ConfigError: If a setting is out of range.

    Example:
        >>> from lightning_synth.testing import tiny_series_schema
        >>> model = TimeVAE(schema=tiny_series_schema(channels=2, length=24), latent_dim=4)
        >>> list(model.decoder.parts(torch.zeros(1, 4 + 3)))
        ['level', 'trend', 'season', 'residual']
    """

    domain = "timeseries"
    conditions = ("label", "*")

    def __init__(
        self,
        *,
        latent_dim: int = 8,
        widths: Sequence[int] = (50, 100, 200),
        trend_degree: int = 2,
        num_seasons: int = 4,
        periods: Sequence[float] | None = None,
        residual: bool = True,
        reconstruction_weight: float = 3.0,
        beta: float = 1.0,
        noise_scale: float = 1.0,
        lr: float = 2e-3,
        **kwargs: Any,
    ) -> None:
        if latent_dim < 1 or trend_degree < 0 or num_seasons < 0 or noise_scale < 0 or beta < 0:
            raise ConfigError(
                f"{latent_dim=} must be at least 1; {trend_degree=}, {num_seasons=}, {noise_scale=}, {beta=} at least 0"
            )
        if not widths or min(widths) < 1:
            raise ConfigError(f"{widths=} must name at least one width, all positive")
        if periods is not None and not all(period > 0 for period in periods):
            raise ConfigError(f"{periods=} must all be positive numbers of steps")
        if reconstruction_weight <= 0:
            raise ConfigError(f"{reconstruction_weight=} must be positive")
        super().__init__(
            latent_dim=latent_dim,
            widths=list(widths),
            trend_degree=trend_degree,
            num_seasons=num_seasons,
            periods=None if periods is None else list(periods),
            residual=residual,
            reconstruction_weight=reconstruction_weight,
            beta=beta,
            noise_scale=noise_scale,
            lr=lr,
            **kwargs,
        )

    def build(self, schema: dict[str, Any]) -> None:
        """Make encoder and decoder."""
        p = self.hparams
        self.codec = WindowCodec(schema)
        channels, length, condition_size = self.codec.channels, self.codec.length, self.codec.condition_size
        halvings = max(len(p.widths), math.ceil(math.log2(length / _SHORTEST)))
        widths = [*p.widths, *[p.widths[-1]] * (halvings - len(p.widths))]
        # No more sinusoids than the window has bins between mean and Nyquist.
        seasons = min(p.num_seasons, (length - 1) // 2) if p.periods is None else len(p.periods)
        self.encoder = ConvEncoder(channels, length, widths, condition_size, p.latent_dim)
        self.decoder = DecomposedDecoder(
            channels, length, p.latent_dim + condition_size, widths, p.trend_degree, seasons, p.residual
        )
        self.noise = ResidualNoise(self.codec.data_channels, length, p.latent_dim + condition_size)
        if p.periods:
            self.decoder.frequency.copy_(1 / torch.tensor(p.periods))

    def setup(self, stage: str) -> None:
        """Before the first fit, find the periods of the training windows."""
        super().setup(stage)
        if stage == "fit" and not self.is_fitted and self.hparams.periods is None and len(self.decoder.frequency):
            self._find_periods()

    def _find_periods(self) -> None:
        from lightning_synth.schema import collate, move

        items, schema = self.training_items(), self._ready_schema()
        some = [items[i] for i in range(0, len(items), -(-len(items) // 1000))]
        z = self.codec.encode(move(collate(some, schema), self.device))[:, : self.codec.data_channels]
        found = dominant_periods(z, len(self.decoder.frequency))
        self.decoder.frequency.copy_(1 / torch.tensor(found))

    def losses(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Reconstruct from a draw of the posterior; sums over steps and channels, means over rows (eq. 3)."""
        x, condition = self.codec.encode(batch), self.codec.conditions(batch)
        mean, log_var = self.encoder(x, condition)
        z = mean + rng.normal(mean.shape) * (0.5 * log_var).exp()
        h, observed = torch.cat([z, condition], dim=1), self.codec.observed(batch)
        residual = (x - self.decoder(h)) * observed
        # The second term is the error of the mean over channels, of the original code.
        squares = residual.square().sum((1, 2)) + residual.mean(1).square().sum(1)
        reconstruction = self.hparams.reconstruction_weight * squares.mean()
        kl = kl_to_standard_normal(mean, log_var).mean()
        data = self.codec.data_channels
        noise = self.noise.loss(residual[:, :data], observed[:, :data], h)
        loss = reconstruction + self.hparams.beta * kl + noise
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl, "noise": noise}

    def on_train_end(self) -> None:
        """Agree on the noise."""
        super().on_train_end()
        self.noise.synchronise()

    def sample_batch(
        self, requests: SampleRequests, rng: KeyedRNG, *, noise_scale: float | None = None
    ) -> dict[str, Tensor]:
        """Decode standard normal vectors and add the unexplained noise.

        Args:
            requests: Rows wanted.
            rng: One seed a row.
            noise_scale: In place of the hyper-parameter.
        """
        z = rng.fork("latent").normal((self.hparams.latent_dim,))
        condition = self.codec.conditions({"index": requests.index, **requests.condition})
        h = torch.cat([z, condition], dim=1)
        x = self.decoder(h)
        scale = self.hparams.noise_scale if noise_scale is None else noise_scale
        x[:, : self.codec.data_channels] += scale * self.noise(h, rng.fork("noise"))
        return self.codec.decode(x)
