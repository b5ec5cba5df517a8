"""Parts of FaultDiffusion: difference adapters, the diversity term, and the store of exemplars (arXiv 2511.15174)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_synth.plugins.timeseries.diffusion_ts import AdaLayerNorm, Attention

DIVERSITY = ("paper", "hinge", "ratio")


def band(tokens: int, window: int) -> Tensor:
    """Return the mask of sliding-window attention: True where ``|i - j| <= window // 2``, (tokens, tokens).

    Example:
        >>> band(4, 3).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 1, 0],
                [0, 1, 1, 1],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    position = torch.arange(tokens)
    return (position[:, None] - position).abs() <= window // 2


def diversity_term(s1: Tensor, s2: Tensor, z1: Tensor, z2: Tensor, kind: str, margin: float = 1.0) -> Tensor:
    """Return the diversity loss of pairs of predictions, to be ADDED to the loss with a positive weight.

    ``"paper"`` is the printed formula, L = ... + weight * |s1 - s2|^2. Minimising it pulls the predictions together:
    with that sign diversity SHRINKS, against the paper's own text. ``"hinge"`` is -min(|s1 - s2|^2, margin):
    predictions move apart up to the margin, and no further. ``"ratio"`` is -|s1 - s2| / |z1 - z2| (mode seeking, Mao et
    al. 2019).

    Args:
        s1: Predictions, (pairs, ...).
        s2: Predictions from another noise, same shape.
        z1: The noised inputs of ``s1``.
        z2: The noised inputs of ``s2``.
        kind: ``"paper"``, ``"hinge"`` or ``"ratio"``.
        margin: Of the hinge, as a mean square over a window (standardised units).

    Returns:
        Scalar.

    Example:
        >>> one, zero = torch.ones(1, 2), torch.zeros(1, 2)
        >>> [round(float(diversity_term(2 * one, zero, one, zero, kind)), 2) for kind in DIVERSITY]
        [4.0, -1.0, -2.0]
    """
    if kind == "ratio":
        apart, inputs = (s1 - s2).abs().flatten(1).mean(1), (z1 - z2).abs().flatten(1).mean(1)
        return -(apart / (inputs + 1e-3)).mean()
    distance = (s1 - s2).square().flatten(1).mean(1)
    return distance.mean() if kind == "paper" else -distance.clamp(max=margin).mean()


class DifferenceAdapter(nn.Module):
    """One layer of the positive-negative difference adapter: sliding-window attention that starts as zero.

    Args:
        dim: Features of a token.
        heads: Attention heads.
        tokens: Number of tokens.
        window: Tokens that a token sees, itself in the middle.
    """

    mask: Tensor

    def __init__(self, dim: int, heads: int, tokens: int, window: int) -> None:
        super().__init__()
        self.norm, self.attention = AdaLayerNorm(dim), Attention(dim, heads, zero_init=True)
        self.register_buffer("mask", band(tokens, window), persistent=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map tokens (batch, tokens, dim) and an embedding (batch, dim) to a difference of the tokens' shape."""
        h = self.norm(x, embedding)
        out: Tensor = self.attention(h, h, self.mask)
        return out


class Exemplars(nn.Module):
    """The shots of each class as differences from the mean normal window; sized when they are collected.

    Args:
        channels: Channels of a window.
        length: Steps of a window.
        classes: Number of classes.
    """

    curves: Tensor
    first: Tensor
    count: Tensor
    itself: Tensor

    def __init__(self, channels: int, length: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("curves", torch.zeros(1, channels, length))
        self.register_buffer("first", torch.zeros(max(1, classes), dtype=torch.int64))
        self.register_buffer("count", torch.zeros(max(1, classes), dtype=torch.int64))
        self.register_buffer("itself", torch.zeros(max(1, classes), dtype=torch.bool))

    def fill(self, curves: Tensor, label: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Keep every shot of a class with at most ``limit`` of them, the mean window of a larger class.

        Args:
            curves: (shots, channels, length), differences from normal.
            label: int64 (shots,).
            limit: Most exemplars of a class.

        Returns:
            For each shot the number of its curve, int64, and whether that curve is the shot itself, bool.
        """
        kept, number = [torch.zeros_like(curves[:1])], torch.zeros_like(label)
        for c in label.unique().tolist():
            rows = (label == c).nonzero()[:, 0]
            few = len(rows) <= limit
            own = curves[rows] if few else curves[rows].mean(0, keepdim=True)
            self.first[c], self.count[c], self.itself[c] = sum(map(len, kept)), len(own), few
            number[rows] = self.first[c].to(label.device) + (torch.arange(len(rows), device=label.device) if few else 0)
            kept.append(own)
        self.curves = torch.cat(kept).to(self.curves)
        return number, self.itself.to(label.device)[label]

    def pick(self, label: Tensor, u: Tensor) -> Tensor:
        """Return one curve a row, (rows, channels, length), by ``u`` in [0, 1); zero for classes without shots."""
        number = self.first[label] + (u * self.count[label]).long().clamp(max=(self.count[label] - 1).clamp(min=0))
        return self.curves[torch.where(self.count[label] > 0, number, 0)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "curves")
        if saved is not None and saved.shape[1:] == self.curves.shape[1:]:
            self.curves = saved.new_zeros(saved.shape).to(self.curves.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
