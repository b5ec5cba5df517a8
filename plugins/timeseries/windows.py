"""What the learned window generators share: inputs from raw batches, and the noise that a decoder leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.nn import Standardizer
from lightning_synth.requests import KeyedRNG


def observed_steps(score: Tensor, schema: Mapping[str, Any]) -> Tensor:
    """Read the mask of ragged windows off the channel that a model makes for it.

    Where all training windows are observed from their start to some step (series of unequal length), so is the result:
    it is the mask of that kind nearest to the channel. Otherwise steps with a positive score are observed. A window has
    at least one.

    Args:
        score: (rows, length), about 1 where observed and -1 elsewhere.
        schema: Of the training windows.

    Returns:
        bool (rows, length).

    Example:
        >>> score = torch.tensor([[0.9, 0.8, -0.1, 1.0, -1.0, -1.0]])
        >>> observed_steps(score, {}).long().tolist(), observed_steps(score, {"padded_at_end": True}).long().tolist()
        ([[1, 1, 0, 1, 0, 0]], [[1, 1, 1, 1, 0, 0]])
    """
    steps = torch.arange(score.shape[1], device=score.device)
    if schema.get("padded_at_end"):
        return steps <= score.clamp(-1, 1).cumsum(1).argmax(1, keepdim=True)
    seen = score > 0
    return seen | (~seen.any(1, keepdim=True) & (steps == 0))


class WindowCodec(nn.Module):
    """Turn raw batches into network inputs, and network outputs into raw batches.

    Windows are standardised per channel; ragged ones get their mask as a last channel of -1 and 1. Conditions become
    one vector a row: the label one-hot, then the standardised continuous conditions.

    Args:
        schema: Of the training windows.

    Example:
        >>> from lightning_synth.testing import tiny_series, tiny_series_schema
        >>> codec = WindowCodec(tiny_series_schema(conditions=("rpm",)))
        >>> batch = tiny_series(4, conditions=("rpm",)).tensors
        >>> codec.encode(batch).shape, codec.conditions(batch).shape
        (torch.Size([4, 2, 24]), torch.Size([4, 4]))
    """

    stats: Tensor

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self.scale = Standardizer(schema)
        self.schema, self.ragged = schema, bool(schema.get("ragged"))
        self.data_channels, self.length = int(schema["channels"]), int(schema["length"])
        self.channels = self.data_channels + self.ragged
        self.classes, self.names = int(schema.get("num_classes") or 0), list(schema.get("conditions") or {})
        self.condition_size = self.classes + len(self.names)
        stats = [[schema["conditions"][name][key] for name in self.names] for key in ("mean", "std")]
        self.register_buffer("stats", torch.tensor(stats, dtype=torch.float32), persistent=False)

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (rows, channels, length), standardised; unobserved steps are 0."""
        z: Tensor = self.scale(batch["x"].float())
        if not self.ragged:
            return z
        mask = self._mask(batch)
        return torch.cat([torch.where(mask, z, 0.0), 2.0 * mask - 1], dim=1)

    def observed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return 1 where a value of `encode` was measured and 0 elsewhere; the mask itself is always known."""
        if not self.ragged:
            return torch.ones(1, self.channels, self.length, device=self.stats.device)
        mask = self._mask(batch).float()
        return torch.cat([mask.expand(-1, self.data_channels, -1), torch.ones_like(mask)], dim=1)

    def _mask(self, batch: Mapping[str, Tensor]) -> Tensor:
        x = batch["x"]
        full = torch.ones(len(x), x.shape[-1], dtype=torch.bool, device=x.device)
        return batch.get("mask", full).bool()[:, None]

    def conditions(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return (rows, condition_size) from a batch, or from the conditions of requests together with their ``index``.

        Args:
            values: ``y`` or ``label``, and the continuous conditions; a missing one counts as zeros.
        """
        rows, device = len(next(iter(values.values()))), self.stats.device
        label = values.get("y", values.get("label"))
        parts = [torch.zeros(rows, self.classes, device=device)]
        if self.classes and label is not None:
            parts = [F.one_hot(label.long(), self.classes).float()]
        for i, name in enumerate(self.names):
            raw = values.get(name, self.stats[0, i].expand(rows))
            parts.append(((raw.float() - self.stats[0, i]) / self.stats[1, i].clamp(min=1e-6))[:, None])
        return torch.cat(parts, dim=1)

    def soft_mask(self, z: Tensor) -> Tensor:
        """Make the output of a network look like `encode`: a mask between -1 and 1, and zeros where it is -1."""
        if not self.ragged:
            return z
        mask = z[:, -1:].tanh()
        return torch.cat([z[:, :-1] * (1 + mask) / 2, mask], dim=1)

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Return a raw batch; of a ragged one at least the first step is observed."""
        if not self.ragged:
            return {"x": self.scale.inverse(z)}
        mask = observed_steps(z[:, -1], self.schema)
        return {"x": self.scale.inverse(z[:, :-1]) * mask[:, None], "mask": mask}


class ResidualNoise(nn.Module):
    """Gaussian noise like what a decoder misses: scale per row and channel, spectrum and cross-channel correlation.

    A decoder trained on squared errors returns means; sampled alone these are smoother than any real window. Its
    Gaussian likelihood says that noise belongs to them. Here the noise is not white: a small network on the decoder's
    inputs fits the scale of its residuals, and the cross-spectrum of the residuals over that scale is measured. Neither
    has any effect on the decoder.

    Args:
        channels: Channels of the window.
        length: Steps of the window.
        inputs: Size of the vector that the scale follows.
        width: Of the network for the scale.
        decay: Of the moving average of the cross-spectrum over training batches.

    Example:
        >>> noise = ResidualNoise(channels=2, length=24, inputs=3)
        >>> noise(torch.zeros(5, 3), KeyedRNG(torch.arange(5))).shape
        torch.Size([5, 2, 24])
    """

    cross: Tensor
    updates: Tensor

    def __init__(self, channels: int, length: int, inputs: int, width: int = 32, decay: float = 0.99) -> None:
        super().__init__()
        self.channels, self.length, self.decay = channels, length, decay
        self.scale = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, channels))
        # Real and imaginary parts apart: process groups cannot send complex numbers.
        self.register_buffer("cross", torch.zeros(length // 2 + 1, channels, channels, 2))
        self.register_buffer("updates", torch.zeros(()))

    def log_scale(self, h: Tensor) -> Tensor:
        """Map (rows, inputs) to (rows, channels, 1), never below -6 (0.2 % of a unit)."""
        log_scale: Tensor = F.softplus(self.scale(h) + 6) - 6
        return log_scale[:, :, None]

    def loss(self, residual: Tensor, observed: Tensor, h: Tensor) -> Tensor:
        """Return the negative log-likelihood of residuals, and measure their spectrum if gradients are wanted.

        Args:
            residual: (rows, channels, length), 0 where nothing was observed.
            observed: Broadcasts against it.
            h: (rows, inputs).
        """
        residual, log_scale = residual.detach(), self.log_scale(h.detach())
        whitened = residual * (-log_scale).exp()
        if self.training and torch.is_grad_enabled():
            self.observe(whitened.detach())
        return ((0.5 * whitened.square() + log_scale) * observed).sum((1, 2)).mean()

    @torch.no_grad()
    def observe(self, residual: Tensor) -> None:
        """Average the cross-spectrum of (rows, channels, length) into the one so far."""
        spectrum = torch.fft.rfft(residual.float(), norm="ortho").permute(2, 1, 0)
        cross = torch.view_as_real(spectrum @ spectrum.mH / len(residual))
        self.updates += 1
        self.cross.lerp_(cross, torch.clamp(1 / self.updates, min=1 - self.decay))

    def synchronise(self) -> None:
        """Take the mean over all processes."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.cross)
            self.cross /= torch.distributed.get_world_size()

    def forward(self, h: Tensor, rng: KeyedRNG) -> Tensor:
        """Draw (rows, channels, length) for (rows, inputs)."""
        white = torch.fft.rfft(rng.normal((self.channels, self.length)), norm="ortho")
        # A Hermitian root exists also where channels are constant or equal; a Cholesky factor would not.
        value, vector = torch.linalg.eigh(torch.view_as_complex(self.cross))
        root = (vector * value.clamp(min=0).sqrt()[:, None]) @ vector.mH
        coloured = torch.einsum("fcd,rdf->rcf", root, white)
        noise: Tensor = torch.fft.irfft(coloured, n=self.length, norm="ortho")
        return self.log_scale(h).exp() * noise
