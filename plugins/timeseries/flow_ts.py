"""FlowTS: rectified flow on a small transformer over time tokens and channel tokens; the default for time series.

What it is made of: rectified flow (Liu et al. 2023, arXiv 2209.03003) as first used for series by Hu et al. (2024,
arXiv 2411.07506), attention along time and along channels (as the two branches of PaD-TS, Li et al. 2025), adaptive
layer norm (Peebles & Xie 2023, arXiv 2212.09748), and whitened windows (see `whitening`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.conditions import Condition
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.flow import FlowGenerator
from lightning_synth.holdout import HeldOutGenerator, row_keys, without
from lightning_synth.items import evenly_spaced
from lightning_synth.nn import ConditionEmbedding, rotate, sinusoidal
from lightning_synth.plugins.timeseries.whitening import WindowWhitener
from lightning_synth.plugins.timeseries.windows import observed_steps
from lightning_synth.requests import KeyedRNG, SampleRequests

_MAX_TOKENS = 64
_MAX_FITTED = 8192


class Block(nn.Module):
    """Transformer block whose layer norms and residual gates follow an embedding (adaLN-zero, Peebles & Xie 2023).

    Args:
        dim: Features of a token.
        heads: Attention heads.
        mlp_ratio: Width of the feed-forward part over ``dim``.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm_attention, self.norm_mlp = (nn.LayerNorm(dim, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        # Queries and keys of unit length keep attention from saturating (Henry et al. 2020).
        self.norm_query, self.norm_key = (nn.RMSNorm(dim // heads) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedding: Tensor, angle: Tensor) -> Tensor:
        """Map (batch, tokens, dim) to the same shape."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(embedding)[:, None].chunk(6, dim=2)
        h = self.norm_attention(x) * (1 + scale) + shift
        query, key, value = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = rotate(self.norm_query(query), angle), rotate(self.norm_key(key), angle)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + gate * self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + gate_mlp * self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp)
        return out


class TwoAxisTransformer(nn.Module):
    """One transformer over two views of a window: tokens of time (all channels of a patch) and tokens of channels.

    Both attend to one another in every block, so that attention runs along time, along channels and between them, at
    the cost of patches + channels tokens instead of patches x channels. The output is the sum of what both kinds say;
    level and scale belong to the channel tokens.

    Args:
        channels: Channels of the window.
        length: Steps of the window.
        extra: Further numbers of each channel (level, scale).
        given: Numbers a value of the window comes with in imputation; 0: none.
        dim: Features of a token.
        depth: Blocks.
        heads: Attention heads.
        mlp_ratio: Width of the feed-forward parts over ``dim``.
        patch: Steps per time token.
    """

    angle: Tensor

    def __init__(
        self,
        channels: int,
        length: int,
        extra: int,
        given: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        patch: int,
    ) -> None:
        super().__init__()
        self.channels, self.length, self.patch = channels, length, patch
        self.tokens = -(-length // patch)
        self.from_time, self.from_channel = nn.Linear(channels * patch, dim), nn.Linear(length + extra, dim)
        self.name = nn.Parameter(torch.randn(channels, dim) * 0.02)
        self.place = nn.Parameter(torch.randn(self.tokens, dim) * 0.02)
        self.given_time = nn.Linear(given * channels * patch, dim, bias=False) if given else None
        self.given_channel = nn.Linear(given * (length + extra), dim, bias=False) if given else None
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm, self.film = nn.LayerNorm(dim, elementwise_affine=False), nn.Linear(dim, 2 * dim)
        self.to_time, self.to_channel = nn.Linear(dim, channels * patch), nn.Linear(dim, length + extra)
        for layer in (self.to_time, self.to_channel):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        rate = 10000 ** -torch.linspace(0, 1, dim // heads // 2 + 1)[:-1]
        steps = torch.arange(self.tokens)[:, None] * rate
        self.register_buffer("angle", torch.cat([steps, torch.zeros(channels, len(rate))]), persistent=False)

    def _patches(self, x: Tensor) -> Tensor:
        """(batch, channels, length) to (batch, tokens, channels * patch)."""
        padded = F.pad(x, (0, self.tokens * self.patch - x.shape[-1]))
        out: Tensor = padded.unflatten(2, (-1, self.patch)).transpose(1, 2).flatten(2)
        return out

    def forward(self, x: Tensor, embedding: Tensor, given: Tensor | None = None) -> Tensor:
        """Predict.

        Args:
            x: (batch, channels, length + extra).
            embedding: (batch, dim), of time and conditions.
            given: (batch, channels, given, length + extra), what is observed; zero where nothing is.
        """
        time = self.from_time(self._patches(x[..., : self.length])) + self.place
        channel = self.from_channel(x) + self.name
        if given is not None and self.given_time is not None and self.given_channel is not None:
            time = time + self.given_time(self._patches(given[..., : self.length].flatten(1, 2)))
            channel = channel + self.given_channel(given.flatten(2))
        h, embedding = torch.cat([time, channel], dim=1), F.silu(embedding)
        for block in self.blocks:
            h = block(h, embedding, self.angle)
        scale, shift = self.film(embedding)[:, None].chunk(2, dim=2)
        time, channel = (self.norm(h) * (1 + scale) + shift).split([self.tokens, self.channels], dim=1)
        steps = self.to_time(time).unflatten(2, (self.channels, self.patch)).transpose(1, 2).flatten(2)
        out: Tensor = self.to_channel(channel)
        return out + F.pad(steps[..., : self.length], (0, out.shape[-1] - self.length))


class FlowTS(HeldOutGenerator, FlowGenerator):
    """Rectified flow over whitened windows with a two-axis transformer; 19 network evaluations a window.

    Liu et al. 2023, arXiv 2209.03003; for series first Hu et al. 2024, arXiv 2411.07506.

    Class labels and continuous conditions (rpm, load, ...) modulate every layer; hidden conditions in a share of the
    training rows allow classifier-free guidance. Ragged windows are modelled with their mask as one more channel. In a
    share of the training rows a random part of the window is shown to the network, so that one and the same model
    generates, imputes and forecasts (`impute`).

    Args:
        d_model: Features of a token.
        depth: Transformer blocks.
        heads: Attention heads.
        mlp_ratio: Width of the feed-forward parts over ``d_model``.
        patch_size: Steps per time token; None: the smallest that leaves at most 64 tokens (1 up to length 64).
        level_weight: Share of the loss that level and scale have; the rest is the shape's.
        observed: Share of training rows that are shown a part of themselves; 0: no imputation.
        spectrum_weight: Weight of the difference in log power between predicted and true window.
        lr: Peak learning rate; it warms up linearly and decays by a cosine over the Trainer's budget.
        **kwargs: For `HeldOutGenerator` (``holdout, patience``) and `FlowGenerator` (``num_steps, guidance_scale,
            condition_dropout, ema_decay``...).

    Shapes:
        batch["x"]: (batch, channels, length) float32, raw units; optional ``y``, conditions, ``mask`` (batch, length).

    Example:
        >>> from lightning_synth.testing import tiny_series_schema
        >>> model = FlowTS(schema=tiny_series_schema(channels=2, length=24), d_model=16, depth=1, heads=2)
        >>> model.row_shape()
        (2, 26)
    """

    domain = "timeseries"
    conditions = ("label", "*")

    def __init__(
        self,
        *,
        d_model: int = 64,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: int = 3,
        patch_size: int | None = None,
        level_weight: float = 0.3,
        observed: float = 0.25,
        spectrum_weight: float = 0.0,
        lr: float = 2e-3,
        **kwargs: Any,
    ) -> None:
        if min(heads, depth, mlp_ratio) < 1 or d_model % (2 * heads):
            raise ConfigError(
                f"d_model={d_model} must be a multiple of 2 heads={2 * heads}; heads, depth={depth} and "
                f"mlp_ratio={mlp_ratio} at least 1"
            )
        if (patch_size is not None and patch_size < 1) or not spectrum_weight >= 0:
            raise ConfigError(f"{patch_size=} must be at least 1 or None, and {spectrum_weight=} not negative")
        if not 0 <= observed < 1:
            raise ConfigError(f"observed must lie in [0, 1), got {observed}")
        if not 0 <= level_weight <= 1:
            raise ConfigError(f"level_weight must lie in [0, 1], got {level_weight}")
        super().__init__(
            d_model=d_model,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            patch_size=patch_size,
            level_weight=level_weight,
            observed=observed,
            spectrum_weight=spectrum_weight,
            lr=lr,
            **kwargs,
        )

    # Networks ------------------------------------------------------------------------------------------------------

    def build(self, schema: dict[str, Any]) -> None:
        """Make the transformer and the embedding of conditions."""
        p = self.hparams
        self.view = WindowWhitener(schema)
        self.ragged = bool(schema.get("ragged"))
        self.length, self.channels = int(schema["length"]), int(schema["channels"]) + self.ragged
        self.condition = ConditionEmbedding(schema, int(p["d_model"]))
        self.time = nn.Sequential(nn.Linear(int(p["d_model"]), int(p["d_model"])), nn.SiLU())
        self.transformer = TwoAxisTransformer(
            self.channels,
            self.length,
            extra=2,
            given=2 if p["observed"] else 0,
            dim=int(p["d_model"]),
            depth=int(p["depth"]),
            heads=int(p["heads"]),
            mlp_ratio=int(p["mlp_ratio"]),
            patch=int(p["patch_size"] or -(-self.length // _MAX_TOKENS)),
        )
        super().build(schema)

    def row_shape(self) -> tuple[int, ...]:
        """Return (channels, length + 2); ragged windows have their mask as last channel."""
        return self.channels, self.length + 2

    def network(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Predict by the transformer."""
        embedding = self.time(sinusoidal(1000 * t, int(self.hparams["d_model"])))
        given = condition.get("given")
        rest = {name: value for name, value in condition.items() if name != "given"}
        out: Tensor = self.transformer(x, embedding + self.condition(rest, len(x)), given)
        return out

    # Windows and their encoding ------------------------------------------------------------------------------------

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Whiten the windows and name the conditions."""
        mask = batch.get("mask") if self.ragged else None
        z = self.view(batch["x"], mask, batch.get("y"))
        if self.ragged:
            seen = torch.ones_like(z[:, 0, :-2]) if mask is None else 2.0 * mask - 1
            z = torch.cat([z, F.pad(seen, (0, 2))[:, None]], dim=1)
        condition = {name: batch[name] for name in self.condition.names if name in batch}
        if "y" in batch:
            condition["label"] = batch["y"].long()
        return z, condition

    def decode(self, x1: Tensor, requests: SampleRequests, whole: bool = False) -> dict[str, Tensor]:
        """Return to raw units; of a ``whole`` window there is a value at every step, whatever its mask says."""
        label = requests.condition.get("label")
        if not self.ragged or whole:
            return {"x": self.view.inverse(x1[:, :-1] if self.ragged else x1, label=label)}
        mask = observed_steps(x1[:, -1, :-2], self._ready_schema())
        return {"x": self.view.inverse(x1[:, :-1], mask, label) * mask[:, None], "mask": mask}

    # Training ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Before a fit: learn level, scale and spectra of the training windows, and hold some of them out."""
        super().setup(stage)
        if stage != "fit":
            return
        items = self.training_items()
        kept, held = self.hold_out(items)
        if held:
            self.held_keys = row_keys(self.collated(items, held)["x"])
        if not self.is_fitted:
            batch = self.collated(items, evenly_spaced(kept, _MAX_FITTED))
            self.view.fit(batch["x"], batch.get("mask") if self.ragged else None, batch.get("y"))

    def losses(self, batch: Mapping[str, Tensor], rng: KeyedRNG) -> dict[str, Tensor]:
        """Flow-matching loss, with a part of some windows shown to the network."""
        if self.training:
            batch = without(batch, self.held_keys.to(self.device))
        x1, condition = self.encode(batch)
        if self.hparams["observed"]:
            mask = random_observations(batch["x"].shape, rng.fork("observed")).to(x1.device)
            mask = mask & (rng.fork("shown").uniform((len(x1), 1, 1)).to(x1.device) < self.hparams["observed"])
            mask = mask & batch["mask"][:, None] if "mask" in batch else mask
            condition["given"] = self.given(batch["x"], mask, batch)
        return self.path_loss(x1, condition, batch, rng)

    def given(self, x: Tensor, mask: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Describe what is observed in the terms of the answer: the interpolated window, whitened, and the mask.

        Args:
            x: (rows, channels, length), raw units; anything where not observed.
            mask: bool, the same shape.
            batch: With the labels ``y`` and the ``mask`` of ragged windows, where there are any.

        Returns:
            (rows, channels, 2, length + 2), zero for rows of which nothing is observed.
        """
        filled = interpolate(torch.where(mask, x.float(), 0.0), mask, self.view.scaler.mean)
        z = self.view(filled, batch.get("mask") if self.ragged else None, batch.get("y"))
        share = mask.double().mean(-1, keepdim=True).to(z).expand(-1, -1, 2)
        given = torch.stack([z, torch.cat([mask.to(z), share], dim=2)], dim=2)
        given = given * mask.flatten(1).any(1)[:, None, None, None]
        return F.pad(given, (0, 0, 0, 0, 0, self.channels - given.shape[1]))

    def flow_loss(
        self, error: Tensor, x1: Tensor, predicted: Tensor, t: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Mean squared error, and optionally the difference in log power near the data."""
        if self.ragged and "mask" in batch:
            # Steps that were not observed teach nothing, but the mask channel itself is always known.
            seen = F.pad(batch["mask"], (0, 2), value=True)[:, None].expand_as(error).clone()
            seen[:, -1] = True
            error = error * seen
        square = error.square()
        share = float(self.hparams["level_weight"])
        loss = (1 - share) * square[..., : self.length].mean() + share * square[..., self.length :].mean()
        if not self.hparams["spectrum_weight"]:
            return {"loss": loss}
        powers = [log_power(z[..., : self.length]) for z in (predicted, x1)]
        # Far from the data the prediction is a mean, which rightly has less power than a sample.
        near = (t > 0.5)[:, None, None]
        spectrum = ((powers[0] - powers[1]).abs() * near).mean()
        return {"loss": loss + float(self.hparams["spectrum_weight"]) * spectrum, "spectrum": spectrum.detach()}

    # Sampling ------------------------------------------------------------------------------------------------------

    def sample_batch(
        self, requests: SampleRequests, rng: KeyedRNG, *, observed: tuple[Tensor, Tensor] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """Follow the flow; what is imputed has a value at every step."""
        return self.decode(self.follow(requests, rng, observed=observed, **options), requests, observed is not None)

    def sampling_condition(
        self, requests: SampleRequests, rng: KeyedRNG, observed: tuple[Tensor, Tensor] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """Add what is observed: values (n, channels, length) in raw units, and their mask."""
        condition = super().sampling_condition(requests, rng, **options)
        if observed is not None:
            x, mask = (value[requests.index.to(value.device)].to(self.device) for value in observed)
            named = {"y": condition["label"]} if "label" in condition else {}
            condition["given"] = self.given(x, mask, named)
        return condition

    def impute(
        self, x: Any, mask: Any, n: int = 1, *, condition: Condition = None, seed: int = 0, **options: Any
    ) -> Tensor:
        """Fill in what was not observed, by sampling given the rest.

        Args:
            x: (rows, channels, length), raw units; any value, also NaN, where not observed.
            mask: bool, the same shape or (rows, 1, length); True where observed.
            n: Samples of each window; their median is a point estimate, their quantiles are intervals.
            condition: As in `sample`: one for all, or of length rows.
            seed: Of the noise.
            **options: As in `sample`.

        Returns:
            (rows, n, channels, length), raw units, equal to ``x`` where observed.

        Raises:
            ConfigError: If the generator was made with ``observed=0``.
            DataError: If the shapes do not fit, or an observed value is not finite.
        """
        if not self.hparams["observed"]:
            raise ConfigError("this model was made with observed=0: it cannot impute")
        if n < 1:
            raise ConfigError(f"impute makes n samples of each window, at least 1, got {n}")
        x, mask = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(mask, dtype=torch.bool)
        shape = (int(self._ready_schema()["channels"]), self.length)
        if x.ndim != 3 or x.shape[1:] != shape or mask.shape not in (x.shape, (len(x), 1, self.length)):
            raise DataError(f"impute needs x (rows, {shape[0]}, {shape[1]}), got {tuple(x.shape)}, {tuple(mask.shape)}")
        mask = mask.expand_as(x)
        if not bool(torch.isfinite(x[mask]).all()):
            raise DataError("an observed value is not finite: set its mask to False")
        rows = torch.arange(len(x)).repeat_interleave(n)
        x, mask = torch.where(mask, x, 0.0)[rows], mask[rows]
        if isinstance(condition, Mapping):
            condition = {k: _repeated(k, value, rows, n) for k, value in condition.items()}
        filled = self.sample(len(rows), condition=condition, seed=seed, observed=(x, mask), **options).data["x"].cpu()
        # What is left over at observed values is carried to their neighbours: no jump beside them.
        rest = interpolate(torch.where(mask, x - filled, 0.0), mask, torch.zeros(shape[0], 1))
        out: Tensor = torch.where(mask, x, filled + rest).unflatten(0, (len(rows) // n, n))
        return out

    def forecast(self, x: Any, n: int = 1, **options: Any) -> Tensor:
        """Continue windows to the full length.

        Args:
            x: (rows, channels, steps), raw units, steps < length.
            n: Samples of each window.
            **options: As in `impute`.

        Returns:
            (rows, n, channels, length), raw units; the first steps are ``x``.
        """
        x = torch.as_tensor(x, dtype=torch.float32)
        if x.ndim != 3 or x.shape[-1] > self.length:
            raise DataError(f"forecast needs x (rows, channels, at most {self.length} steps), got {tuple(x.shape)}")
        seen = torch.arange(self.length) < x.shape[-1]
        return self.impute(F.pad(x, (0, self.length - x.shape[-1])), seen.expand(len(x), 1, -1), n, **options)


def _repeated(name: str, value: Any, rows: Tensor, n: int) -> Any:
    """One entry for each of the n samples of a window; words and numbers hold for all."""
    if isinstance(value, str) or not np.ndim(value):
        return value
    values = list(value)
    if len(values) * n != len(rows):
        raise ConfigError(f"condition {name!r} has {len(values)} values for {len(rows) // n} windows")
    return [values[i] for i in rows.tolist()]


def log_power(z: Tensor) -> Tensor:
    """Log power of each frequency, (rows, channels, length / 2 + 1)."""
    out: Tensor = torch.fft.rfft(z.float(), norm="ortho").abs().square().add(1e-2).log()
    return out


def interpolate(x: Tensor, mask: Tensor, mean: Tensor) -> Tensor:
    """Fill in linearly along time; ends are held, and channels of which nothing is observed get their mean.

    Args:
        x: (rows, channels, length).
        mask: bool, the same shape.
        mean: (channels, 1).

    Example:
        >>> x, seen = torch.tensor([[[0.0, 9.0, 4.0, 9.0]]]), torch.tensor([[[True, False, True, False]]])
        >>> interpolate(x, seen, torch.zeros(1, 1))
        tensor([[[0., 2., 4., 4.]]])
    """
    steps, last = torch.arange(x.shape[-1], device=x.device), x.shape[-1]
    before = torch.where(mask, steps, -1).cummax(dim=-1).values
    after = torch.where(mask, steps, last).flip(-1).cummin(dim=-1).values.flip(-1)
    before, after = torch.where(before < 0, after, before), torch.where(after == last, before, after)
    before, after = before.clamp(0, last - 1), after.clamp(0, last - 1)
    left, right = x.gather(-1, before), x.gather(-1, after)
    filled = left + (right - left) * (steps - before) / (after - before).clamp(min=1)
    return torch.where(mask.any(-1, keepdim=True), filled, mean)


def random_observations(shape: torch.Size, rng: KeyedRNG) -> Tensor:
    """Draw what is observed of each window: points at a random rate, or everything up to a random step.

    Args:
        shape: (rows, channels, length).
        rng: Scalar-keyed.

    Returns:
        bool, of that shape.
    """
    rows, channels, length = shape
    rate = rng.fork("rate").uniform((rows, 1, 1))
    points = rng.fork("points").uniform((rows, channels, length)) < rate
    until = torch.arange(length, device=rate.device) < 1 + (rate * (length - 1)).floor()
    return torch.where(rng.fork("kind").uniform((rows, 1, 1)) < 0.7, points, until.expand(rows, channels, length))
