"""Judges: models trained to tell synthetic windows from real ones, or to forecast after training on synthetic ones.

The recurrent judge of TimeGAN does not see texture: smoothed real data fool it. So there are three judges, and the
largest score counts. Scores keep their sign: below zero means that windows of the two samples are nearer to one another
than real windows are, as with copies of the data they are compared with. Everything is seeded; nothing touches the
global generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.errors import ConfigError
from lightning_synth.features import texture_features, window_statistics
from lightning_synth.metrics.distances import seeded
from lightning_synth.signal import as_windows

Judge = Literal["gru", "cnn", "forest", "texture"]
NAN = float("nan")
_BATCH = 128
# The recurrent judges read long windows in this many frames of several steps each.
_FRAMES = 64


class GRUJudge(nn.Module):
    """Single-layer GRU with a linear head on its last state (Yoon et al. 2019, appendix).

    Args:
        channels: Of the windows.
        length: Of the windows; more than 64 steps are read as 64 frames of several steps.
        hidden: Size of the state; None: half the number of inputs as in TimeGAN, but at least 8.

    Shapes:
        x: (batch, channels, length), standardised. Result: (batch,) logits.

    Example:
        >>> GRUJudge(2, 100)(torch.zeros(3, 2, 100)).shape
        torch.Size([3])
    """

    def __init__(self, channels: int, length: int, hidden: int | None = None) -> None:
        super().__init__()
        self.frame = math.ceil(length / _FRAMES)
        inputs = channels * self.frame
        hidden = hidden or max(inputs // 2, 8)
        self.gru = nn.GRU(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, positive for real."""
        x = F.pad(x, (0, -x.shape[-1] % self.frame))
        frames = x.unflatten(-1, (-1, self.frame)).transpose(1, 2).flatten(2)
        logits: Tensor = self.head(self.gru(frames)[1][-1])[:, 0]
        return logits


class CNNJudge(nn.Module):
    """Three convolutions, mean and maximum over time, a linear head.

    Args:
        channels: Of the windows.
        length: Of the windows; the first convolution strides over long ones.
        width: Feature maps.

    Shapes:
        x: (batch, channels, length), standardised. Result: (batch,) logits.

    Example:
        >>> CNNJudge(2, 24)(torch.zeros(3, 2, 24)).shape
        torch.Size([3])
    """

    def __init__(self, channels: int, length: int, width: int = 24) -> None:
        super().__init__()
        stride = max(1, length // 128)
        self.layers = nn.Sequential(
            nn.Conv1d(channels, width, 5 if stride == 1 else 4 * stride, stride, padding=2 * stride),
            nn.GELU(),
            nn.Conv1d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(width, width, 3, padding=2, dilation=2),
            nn.GELU(),
        )
        self.head = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, positive for real."""
        maps = self.layers(x)
        logits: Tensor = self.head(torch.cat([maps.mean(-1), maps.amax(-1)], 1))[:, 0]
        return logits


def discriminative_score(
    real: Any,
    synthetic: Any,
    judge: Judge = "gru",
    *,
    repeats: int = 3,
    iterations: int = 300,
    seed: int = 0,
) -> dict[str, float]:
    """Held-out accuracy of a judge less one half, with its sign (post-hoc discriminative score).

    The windows are dealt into `repeats` parts with equal shares of both samples; each repeat trains a judge of its own
    seed on the other parts and tests it on one, so that every window is tested once. TimeGAN trains 2000 iterations; a
    larger learning rate makes up for fewer here.

    Args:
        real: (n, channels, length).
        synthetic: (m, channels, length); the larger sample is cut to the size of the smaller.
        judge: ``"gru"``, ``"cnn"``, ``"forest"``: a random forest on window statistics and texture features, or
            ``"texture"``: one on texture features alone, which does not see level and scale.
        repeats: Parts, at least 2.
        iterations: Optimiser steps of the networks, with 128 windows each.
        seed: Of parts, weights and batches.

    Returns:
        `discriminative_<judge>`: mean accuracy - .5, in [-.5, .5]; `discriminative_<judge>_sd`: standard deviation over
        repeats. NaN with fewer than 2 windows of each kind per part.

    Raises:
        ConfigError: If the judge is unknown.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(60, 1, 24))
        >>> discriminative_score(x[:30], 5 + x[30:], "forest")["discriminative_forest"]
        0.5
    """
    if judge not in get_args(Judge):
        raise ConfigError(f"judge={judge!r} is unknown: use {', '.join(get_args(Judge))}")
    r, s = as_windows(real), as_windows(synthetic)
    size = min(len(r), len(s))
    name = f"discriminative_{judge}"
    if size < 2 * repeats:
        return {name: NAN, f"{name}_sd": NAN}
    rng = seeded(seed, "discriminative", judge)
    r, s = (x[rng.permutation(len(x))[:size]] for x in (r, s))
    # Real and synthetic together decide about the scale: the judge may use it, but must not saturate.
    both = np.concatenate([r, s])
    truth = np.repeat([1.0, 0.0], size)
    part = np.tile(np.arange(size) % repeats, 2)
    trees = judge in ("forest", "texture")
    if trees:
        inputs: Any = texture_features(both)
        if judge == "forest":
            inputs = np.concatenate([window_statistics(both), inputs], 1)
    else:
        inputs = torch.as_tensor(_standardised(both), dtype=torch.float32)
    right = []
    for fold in range(repeats):
        train, test = np.flatnonzero(part != fold), np.flatnonzero(part == fold)
        draw = int(rng.integers(2**31))
        if trees:
            found = _forest_says(inputs[train], truth[train], inputs[test], draw)
        else:
            found = _network_says(judge, inputs, truth, train, test, iterations, draw)
        right.append(float((found == truth[test]).mean()))
    return {name: float(np.mean(right)) - 0.5, f"{name}_sd": float(np.std(right, ddof=1))}


def _standardised(x: np.ndarray) -> np.ndarray:
    scale = x.std((0, 2), keepdims=True)
    return np.asarray((x - x.mean((0, 2), keepdims=True)) / np.where(scale > 1e-12, scale, 1.0))


def _forest_says(x: np.ndarray, y: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(100, random_state=seed, min_samples_leaf=2).fit(x, y)
    return np.asarray(forest.predict(test))


def _network_says(
    judge: Judge, x: Tensor, truth: np.ndarray, train: np.ndarray, test: np.ndarray, iterations: int, seed: int
) -> np.ndarray:
    kind = GRUJudge if judge == "gru" else CNNJudge
    model = seeded_network(lambda: kind(x.shape[1], x.shape[2]), seed)
    y = torch.as_tensor(truth, dtype=torch.float32)
    rows = torch.as_tensor(train)

    def loss(index: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x[rows[index]]), y[rows[index]])

    train_network(model, loss, len(rows), iterations, seed, lr=5e-3 if judge == "gru" else 2e-3)
    with torch.no_grad():
        logits = torch.cat([model(x[index]) for index in torch.as_tensor(test).split(512)])
    return (logits > 0).double().numpy()


def seeded_network(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a network whose initial weights depend on the seed alone; the global generator is left as it was.

    Args:
        make: Constructor.
        seed: Of the weights.

    Example:
        >>> a, b = (seeded_network(lambda: nn.Linear(2, 2), 3) for _ in range(2))
        >>> bool((a.weight == b.weight).all())
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def train_network(
    model: nn.Module, loss: Callable[[Tensor], Tensor], rows: int, iterations: int, seed: int, lr: float
) -> None:
    """Train with Adam on seeded batches, then switch to evaluation.

    Args:
        model: The network.
        loss: Of the indices of a batch, int64 (batch,).
        rows: Number of training rows.
        iterations: Steps.
        seed: Of the batches.
        lr: Learning rate, which falls to a tenth along a half cosine.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(iterations, 1), eta_min=lr / 10)
    model.train()
    with torch.enable_grad():
        for index in _batches(rows, iterations, seed):
            optimizer.zero_grad(set_to_none=True)
            loss(index).backward()
            # Recurrent judges meet exploding gradients on windows with jumps.
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


def _batches(rows: int, iterations: int, seed: int) -> Iterator[Tensor]:
    """Batches without replacement, reshuffled when the rows are used up."""
    draw = torch.Generator().manual_seed(seed)
    size = min(_BATCH, rows)
    order, start = torch.randperm(rows, generator=draw), 0
    for _ in range(iterations):
        if start + size > rows:
            order, start = torch.randperm(rows, generator=draw), 0
        yield order[start : start + size]
        start += size


class Forecaster(nn.Module):
    """GRU that predicts a value in (0, 1) at every step (the predictor of TimeGAN).

    Args:
        inputs: Channels read.
        hidden: Size of the state.

    Shapes:
        x: (batch, inputs, steps). Result: (batch, steps).

    Example:
        >>> Forecaster(3, 8)(torch.zeros(2, 3, 10)).shape
        torch.Size([2, 10])
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions."""
        states = self.gru(x.transpose(1, 2))[0]
        values: Tensor = torch.sigmoid(self.head(states)[..., 0])
        return values


def predictive_score(
    real: Any, synthetic: Any, *, iterations: int = 500, seed: int = 0, max_length: int = _FRAMES
) -> float:
    """Mean absolute error on real windows of a forecaster trained on synthetic ones (TimeGAN).

    The forecaster reads all channels but the last up to a step and predicts the last channel at the next step; with one
    channel it reads that one. Values are scaled to [0, 1] by the range of the real ones. TimeGAN trains 5000
    iterations with a state of half the channels; here the state has at least 8.

    Args:
        real: (n, channels, length), for testing.
        synthetic: (m, channels, length), for training.
        iterations: Optimiser steps, 128 windows each.
        seed: Of weights and batches.
        max_length: Longer windows are cut into pieces of this many steps.

    Returns:
        The error, in units of the real range of the last channel; NaN for windows of one step or an empty sample.

    Example:
        >>> x = np.sin(np.arange(40) / 3 + np.arange(50)[:, None])[:, None]
        >>> predictive_score(x, x, iterations=100) < predictive_score(x, x[..., ::-1] ** 3, iterations=100)
        True
    """
    r, s = as_windows(real), as_windows(synthetic)
    if min(len(r), len(s)) == 0 or r.shape[-1] < 2:
        return NAN
    low, high = r.min((0, 2), keepdims=True), r.max((0, 2), keepdims=True)
    pieces = [_pieces((x - low) / np.where(high > low, high - low, 1.0), max_length) for x in (r, s)]
    test, train = (torch.as_tensor(x, dtype=torch.float32) for x in pieces)
    inputs = slice(0, max(1, r.shape[1] - 1))
    count = max(1, r.shape[1] - 1)
    model = seeded_network(lambda: Forecaster(count, max(r.shape[1] // 2, 8)), seed)

    def error(x: Tensor) -> Tensor:
        predicted: Tensor = model(x[:, inputs, :-1])
        return (predicted - x[:, -1, 1:]).abs().mean()

    train_network(model, lambda index: error(train[index]), len(train), iterations, seed, lr=1e-2)
    with torch.no_grad():
        return float(error(test))


def _pieces(x: np.ndarray, length: int) -> np.ndarray:
    """Cut windows into pieces of at most `length` steps; a shorter rest is left out."""
    if x.shape[-1] <= length:
        return x
    parts = x.shape[-1] // length
    cut = x[..., : parts * length].reshape(*x.shape[:2], parts, length)
    return np.asarray(cut.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], length))
