"""Diffusion-TS: a diffusion transformer that decomposes windows into trend, seasonality and a residual.

Yuan & Qiao, "Diffusion-TS: Interpretable Diffusion for General Time Series Generation", ICLR 2024 (arXiv 2403.01742).
Beyond the paper: conditions (class labels and continuous ones) and patches, so that windows of 2048 steps and more fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.diffusion import DiffusionGenerator
from lightning_synth.errors import ConfigError
from lightning_synth.nn import ConditionEmbedding, Standardizer, sinusoidal
from lightning_synth.plugins.timeseries.windows import observed_steps
from lightning_synth.requests import SampleRequests

Difference = Callable[[int, Tensor], Tensor]


def trend_basis(length: int, degree: int = 3) -> Tensor:
    """Return the powers tau, tau^2, ... of time tau = 1/(L+1) .. L/(L+1), shape (degree, length) (paper, eq. 8).

    Example:
        >>> trend_basis(3, 2)
        tensor([[0.2500, 0.5000, 0.7500],
                [0.0625, 0.2500, 0.5625]])
    """
    tau = torch.arange(1, length + 1) / (length + 1)
    return tau.pow(torch.arange(1, degree + 1)[:, None])


def dominant_season(x: Tensor) -> Tensor:
    """Keep the floor(ln K) strongest of the K Fourier bins between mean and Nyquist (paper, eq. 9-10).

    Args:
        x: (batch, length, features).

    Returns:
        The same shape: per feature, the sum of its strongest sinusoids.

    Example:
        >>> wave = torch.sin(2 * math.pi * 3 * torch.arange(24) / 24).reshape(1, 24, 1)
        >>> bool(torch.allclose(dominant_season(wave + 5), wave, atol=1e-5))
        True
    """
    length = x.shape[1]
    # Half precision has no Fourier transform.
    spectrum = torch.fft.rfft(x.float(), dim=1)
    # Bin 0 is the mean (the trend's business); the last bin of an even length is the Nyquist frequency.
    last = spectrum.shape[1] - 1 if length % 2 == 0 else spectrum.shape[1]
    bins = last - 1
    if bins < 1:
        return torch.zeros_like(x)
    strongest = spectrum[:, 1:last].detach().abs().topk(max(1, int(math.log(bins))), dim=1).indices + 1
    chosen = torch.zeros(spectrum.shape, device=x.device).scatter_(1, strongest, 1.0)
    season: Tensor = torch.fft.irfft(spectrum * chosen, n=length, dim=1)
    return season.to(x.dtype)


class AdaLayerNorm(nn.Module):
    """Layer norm whose scale and shift follow an embedding of diffusion step and conditions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.film = nn.Linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Modulate (batch, tokens, dim) by (batch, dim)."""
        scale, shift = self.film(F.silu(embedding))[:, None].chunk(2, dim=2)
        out: Tensor = self.norm(x) * (1 + scale) + shift
        return out


class Attention(nn.Module):
    """Multi-head attention of ``x`` on ``context``; ``zero_init`` starts with an output of exactly zero.

    Args:
        dim: Features of a token.
        heads: Number of heads, a divisor of ``dim``.
        zero_init: Whether the output projection starts at zero.
    """

    def __init__(self, dim: int, heads: int, zero_init: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(f"d_model={dim} is not a multiple of heads={heads}")
        self.heads = heads
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if zero_init:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (batch, tokens, dim); ``mask`` (tokens, context tokens) is True where attention is allowed."""
        key, value = self.key_value(context).chunk(2, dim=2)
        mixed = F.scaled_dot_product_attention(
            self._split(self.query(x)), self._split(key), self._split(value), attn_mask=mask
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def _mlp(dim: int, ratio: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each with a residual."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = AdaLayerNorm(dim), Attention(dim, heads), _mlp(dim, ratio)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map (batch, tokens, dim) to the same shape."""
        h = self.norm(x, embedding)
        x = x + self.attention(h, h)
        out: Tensor = x + self.mlp(x)
        return out


class DecoderBlock(nn.Module):
    """A transformer decoder block that gives away its mean, its polynomial trend and its dominant seasonality.

    Args:
        dim: Features of a token.
        heads: Attention heads.
        ratio: Width of the feed-forward part over ``dim``.
        channels: Channels of the window.
        tokens: Number of tokens; the mixing over time has O(tokens^2) weights, which is why long windows are patched.
    """

    def __init__(self, dim: int, heads: int, ratio: int, channels: int, tokens: int) -> None:
        super().__init__()
        self.norm_self, self.attend_self = AdaLayerNorm(dim), Attention(dim, heads)
        self.norm_cross, self.attend_cross = AdaLayerNorm(dim), Attention(dim, heads)
        self.split = nn.Conv1d(tokens, 2 * tokens, 1)
        self.powers, self.levels = nn.Conv1d(tokens, 3, 3, padding=1), nn.Conv1d(dim, channels, 3, padding=1)
        self.mlp, self.mean = _mlp(dim, ratio), nn.Linear(dim, channels)

    def forward(self, x: Tensor, context: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the centred tokens (b, n, d), mean (b, c), trend coefficients (b, c, 3) and season (b, n, d)."""
        h = self.norm_self(x, embedding)
        x = x + self.attend_self(h, h)
        x = x + self.attend_cross(self.norm_cross(x, embedding), context)
        for_trend, for_season = self.split(x).chunk(2, dim=1)
        trend = self.levels(F.gelu(self.powers(for_trend)).transpose(1, 2))
        x = x + self.mlp(x)
        mean = x.mean(1, keepdim=True)
        return x - mean, self.mean(mean[:, 0]), trend, dominant_season(for_season)


class Backbone(nn.Module):
    """Encoder-decoder transformer of Diffusion-TS on patches of a window.

    With ``patch=1`` this is the paper's network. Larger patches keep the same computation per token; a token then
    stands for ``patch`` steps, and the two output maps emit ``patch`` steps per token, so that fast oscillations
    survive.

    Args:
        channels: Channels of the window.
        length: Steps of the window.
        dim: Features of a token.
        heads: Attention heads.
        encoder_layers: Encoder blocks.
        decoder_layers: Decoder blocks.
        mlp_ratio: Width of the feed-forward parts over ``dim``.
        patch: Steps per token.
    """

    basis: Tensor

    def __init__(
        self,
        channels: int,
        length: int,
        dim: int = 64,
        heads: int = 4,
        encoder_layers: int = 2,
        decoder_layers: int = 2,
        mlp_ratio: int = 4,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.channels, self.length, self.dim, self.patch = channels, length, dim, patch
        self.tokens = -(-length // patch)
        self.embed = nn.Conv1d(channels, dim, patch + 2, stride=patch, padding=1)
        self.position_encoder = nn.Parameter(torch.empty(self.tokens, dim).uniform_(-0.02, 0.02))
        self.position_decoder = nn.Parameter(torch.empty(self.tokens, dim).uniform_(-0.02, 0.02))
        self.encoder = nn.ModuleList(EncoderBlock(dim, heads, mlp_ratio) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(
            DecoderBlock(dim, heads, mlp_ratio, channels, self.tokens) for _ in range(decoder_layers)
        )
        self.season = nn.Conv1d(dim, channels * patch, 1, bias=False)
        self.residual = nn.Conv1d(dim, channels * patch, 3, padding=1)
        self.mean_weight = nn.Parameter(torch.full((decoder_layers,), 1 / decoder_layers))
        self.register_buffer("basis", trend_basis(length), persistent=False)

    def _to_steps(self, per_token: Tensor) -> Tensor:
        """(b, c * patch, tokens) to (b, c, length): each token emits its patch of steps."""
        steps = per_token.reshape(len(per_token), self.channels, self.patch, -1).transpose(2, 3).flatten(2)
        return steps[:, :, : self.length]

    def parts(
        self, x: Tensor, embedding: Tensor, difference: Difference | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return trend, season and residual, each (batch, channels, length); their sum is the prediction.

        Args:
            x: (batch, channels, length).
            embedding: (batch, dim), of diffusion step and conditions.
            difference: Called with (block number, tokens) after every decoder block; what it returns is added to the
                tokens.
        """
        padded = F.pad(x, (0, self.tokens * self.patch - self.length), mode="replicate") if self.patch > 1 else x
        tokens = self.embed(padded).transpose(1, 2)
        context = tokens + self.position_encoder
        for block in self.encoder:
            context = block(context, embedding)
        h, season = tokens + self.position_decoder, torch.zeros_like(tokens)
        mean = torch.zeros(len(x), self.channels, device=x.device, dtype=x.dtype)
        powers = torch.zeros(len(x), self.channels, 3, device=x.device, dtype=x.dtype)
        for i, block in enumerate(self.decoder):
            h, block_mean, block_powers, block_season = block(h, context, embedding)
            mean, powers = mean + self.mean_weight[i] * block_mean, powers + block_powers
            season = season + block_season
            if difference is not None:
                h = h + difference(i, h)
        residual = self._to_steps(self.residual(h.transpose(1, 2)))
        level = residual.mean(2, keepdim=True)
        trend = mean[:, :, None] + level + powers @ self.basis
        return trend, self._to_steps(self.season(season.transpose(1, 2))), residual - level

    def forward(self, x: Tensor, embedding: Tensor, difference: Difference | None = None) -> Tensor:
        """Return the sum of `parts`."""
        trend, season, residual = self.parts(x, embedding, difference)
        return trend + season + residual


class ValueRange(nn.Module):
    """Range seen in training, per channel; predictions are kept inside it plus a margin.

    The original code clamps to the range exactly, which cuts real tails; a quarter of the range on either side keeps
    early, noisy predictions bounded and never touches a real window.

    Args:
        channels: Number of channels.
        margin: Allowed excess on either side, as a share of the range.
    """

    low: Tensor
    high: Tensor

    def __init__(self, channels: int, margin: float = 0.25) -> None:
        super().__init__()
        self.margin = margin
        self.register_buffer("low", torch.zeros(channels, 1))
        self.register_buffer("high", torch.zeros(channels, 1))

    @torch.no_grad()
    def observe(self, z: Tensor) -> None:
        """Widen the range to hold ``z``, (batch, channels, length)."""
        if len(z):
            low, high = z.amin((0, 2))[:, None], z.amax((0, 2))[:, None]
            self.low.copy_(torch.minimum(self.low, low))
            self.high.copy_(torch.maximum(self.high, high))

    def synchronise(self) -> None:
        """Make the range the same on all processes."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.low, torch.distributed.ReduceOp.MIN)
            torch.distributed.all_reduce(self.high, torch.distributed.ReduceOp.MAX)

    def forward(self, z: Tensor) -> Tensor:
        """Clamp; before any data was seen, do nothing."""
        if not bool((self.high > self.low).any()):
            return z
        slack = self.margin * (self.high - self.low)
        return torch.maximum(torch.minimum(z, self.high + slack), self.low - slack)


class DiffusionTS(DiffusionGenerator):
    """Diffusion transformer with trend and Fourier seasonality (Yuan & Qiao, ICLR 2024, arXiv 2403.01742).

    Standardised windows are noised; the network predicts them back as trend + season + residual under an L1 loss in
    time and in frequency. Class labels and continuous conditions (rpm, load, ...) modulate every layer norm; hidden
    conditions in a share of the training rows allow classifier-free guidance. Ragged windows are modelled with their
    mask as one more channel.

    Args:
        d_model: Features of a token.
        heads: Attention heads.
        encoder_layers: Encoder blocks.
        decoder_layers: Decoder blocks, each with a trend and a season.
        mlp_ratio: Width of the feed-forward parts over ``d_model``.
        patch_size: Steps per token; None: the smallest that leaves at most 64 tokens (1 up to length 64, 32 at 2048).
        fourier_weight: Weight of the loss in frequency; None: sqrt(length) / 5, as in the paper.
        lr: Peak learning rate; it warms up linearly and decays by a cosine over the Trainer's budget.
        **kwargs: For `DiffusionGenerator` (``target, diffusion_steps, num_steps, guidance_scale, ema_decay``...).

    Shapes:
        batch["x"]: (batch, channels, length) float32, raw units; optional ``y``, conditions, ``mask`` (batch, length).

    Example:
        >>> from lightning_synth.testing import tiny_series_schema
        >>> model = DiffusionTS(schema=tiny_series_schema(channels=2, length=24), d_model=8, heads=2)
        >>> model.backbone.tokens
        24
    """

    domain = "timeseries"
    conditions = ("label", "*")
    max_tokens = 64

    def __init__(
        self,
        *,
        d_model: int = 64,
        heads: int = 4,
        encoder_layers: int = 2,
        decoder_layers: int = 2,
        mlp_ratio: int = 4,
        patch_size: int | None = None,
        fourier_weight: float | None = None,
        lr: float = 2e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            d_model=d_model,
            heads=heads,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            mlp_ratio=mlp_ratio,
            patch_size=patch_size,
            fourier_weight=fourier_weight,
            lr=lr,
            **kwargs,
        )

    def build(self, schema: dict[str, Any]) -> None:
        """Make the backbone and its embedding of conditions."""
        self._build_backbone(schema, label=True)
        super().build(schema)

    def _build_backbone(self, schema: dict[str, Any], label: bool) -> None:
        p = self.hparams
        self.scaler = Standardizer(schema)
        self.ragged = bool(schema.get("ragged"))
        self.channels, self.length = int(schema["channels"]) + self.ragged, int(schema["length"])
        self.range = ValueRange(self.channels)
        patch = int(p["patch_size"] or -(-self.length // self.max_tokens))
        self.condition = ConditionEmbedding(schema, int(p["d_model"]), label)
        self.backbone = Backbone(
            self.channels,
            self.length,
            int(p["d_model"]),
            int(p["heads"]),
            int(p["encoder_layers"]),
            int(p["decoder_layers"]),
            int(p["mlp_ratio"]),
            patch,
        )

    def row_shape(self) -> tuple[int, ...]:
        """Return (channels, length); ragged windows have their mask as last channel."""
        return self.channels, self.length

    def standardise(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (batch, channels, length), zero mean and unit variance; unobserved steps are 0."""
        z: Tensor = self.scaler(batch["x"].float())
        if not self.ragged:
            return z
        mask = batch.get("mask", torch.ones(len(z), z.shape[-1], dtype=torch.bool, device=z.device))[:, None]
        return torch.cat([torch.where(mask, z, 0.0), 2.0 * mask - 1], dim=1)

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Standardise the windows and name the conditions."""
        z = self.standardise(batch)
        if self.training:
            self.range.observe(z)
        condition = {name: batch[name] for name in self.condition.names if name in batch}
        if "y" in batch:
            condition["label"] = batch["y"].long()
        return z, condition

    def decode(self, x0: Tensor, requests: SampleRequests) -> dict[str, Tensor]:
        """Return to raw units."""
        if not self.ragged:
            return {"x": self.scaler.inverse(x0)}
        mask = observed_steps(x0[:, -1], self._ready_schema())
        return {"x": self.scaler.inverse(x0[:, :-1]) * mask[:, None], "mask": mask}

    def limit(self, x0: Tensor) -> Tensor:
        """Clamp to the training range plus a margin."""
        clamped: Tensor = self.range(x0)
        return clamped

    def embed(self, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Return the embedding (batch, d_model) that modulates the backbone."""
        embedded: Tensor = sinusoidal(t, int(self.hparams["d_model"])) + self.condition(condition, len(t))
        return embedded

    def denoise(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Predict by the backbone."""
        prediction: Tensor = self.backbone(x_t, self.embed(t, condition))
        return prediction

    def diffusion_loss(
        self, prediction: Tensor, wanted: Tensor, t: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Weighted L1 in time plus L1 of the Fourier coefficients (paper, eq. 12)."""
        if self.ragged and "mask" in batch:
            # Steps that were not observed teach nothing, but the mask channel itself is always known.
            observed = batch["mask"][:, None].expand(-1, self.channels, -1).clone()
            observed[:, -1] = True
            prediction, wanted = prediction * observed, wanted * observed
        error = (prediction - wanted).float()
        in_time = error.abs().mean((1, 2))
        spectrum = torch.view_as_real(torch.fft.fft(error, dim=2, norm="forward"))
        in_frequency = spectrum.abs().sum(-1).mean((1, 2))
        weight = self.hparams["fourier_weight"]
        weight = math.sqrt(self.length) / 5 if weight is None else float(weight)
        per_row = in_time + weight * in_frequency
        if self.hparams["target"] == "x0":
            per_row = per_row * self.schedule.weight(t)
        return {"loss": per_row.mean(), "time": in_time.mean().detach(), "frequency": in_frequency.mean().detach()}

    def configure_optimizers(self) -> Any:
        """Adam as in the paper (betas .9, .96), scheduled."""
        return self.scheduled(torch.optim.Adam(self.parameters(), lr=float(self.hparams["lr"]), betas=(0.9, 0.96)))

    def on_train_end(self) -> None:
        """Agree on the range of values."""
        super().on_train_end()
        self.range.synchronise()
