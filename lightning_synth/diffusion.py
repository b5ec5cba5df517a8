"""Denoising diffusion for any domain: schedule, DDIM and DDPM samplers, classifier-free guidance, averaged weights.

A subclass says how a batch becomes a tensor and back, and how noise is predicted; everything else is here:

* the forward process ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise`` (Ho et al. 2020, eq. 4);
* x0-, noise- and v-prediction (Salimans & Ho 2022, eq. 5) behind one switch;
* DDIM (Song et al. 2021, eq. 12) and ancestral sampling (Ho et al. 2020, eq. 7), with noise that belongs to the row;
* classifier-free guidance (Ho & Salimans 2022, eq. 6);
* an exponential moving average of the weights, used for sampling and saved in the checkpoint.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_synth.averaging import AveragedGenerator
from lightning_synth.conditions import KEEP, check_dropout, check_guidance
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.requests import KeyedRNG, SampleRequests, Samples

TARGETS = ("x0", "noise", "v")
SAMPLERS = ("ddim", "ddpm")


def _expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """Append dimensions, so that one value a row broadcasts over the row."""
    return coefficient.reshape(-1, *(1,) * (like.ndim - 1))


class NoiseSchedule(nn.Module):
    """How much signal is left after t steps of noising, and the algebra between x_0, noise, v and x_t.

    Args:
        steps: Number of diffusion steps T; t runs over 0..T-1.
        kind: ``"cosine"`` (Nichol & Dhariwal 2021, eq. 17, offset .008, betas clipped at .999) or ``"linear"``
            (Ho et al. 2020: betas from 1e-4 to .02 at T=1000, rescaled for other T).

    Raises:
        ConfigError: If ``kind`` is unknown or ``steps`` < 2.

    Example:
        >>> schedule = NoiseSchedule(500)
        >>> bool(schedule.signal[0] > 0.999) and bool(schedule.signal[-1] < 1e-4)
        True
    """

    betas: Tensor
    signal: Tensor

    def __init__(self, steps: int = 500, kind: str = "cosine") -> None:
        super().__init__()
        if steps < 2:
            raise ConfigError(f"a diffusion needs at least 2 steps, got {steps}")
        if kind == "cosine":
            u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
            level = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
            betas = (1 - level[1:] / level[:-1]).clamp(0, 0.999)
        elif kind == "linear":
            betas = torch.linspace(0.1 / steps, min(20 / steps, 0.999), steps, dtype=torch.float64)
        else:
            raise ConfigError(f"noise schedule {kind!r} is neither 'cosine' nor 'linear'")
        # Functions of the hyper-parameters: not worth a place in the checkpoint.
        self.register_buffer("betas", betas.float(), persistent=False)
        self.register_buffer("signal", (1 - betas).cumprod(0).float(), persistent=False)

    def __len__(self) -> int:
        """Return T."""
        return len(self.betas)

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to broadcast."""
        signal = self.signal[t]
        return _expand(signal.sqrt(), like), _expand((1 - signal).sqrt(), like)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t.

        Args:
            x0: (batch, ...) clean data.
            t: int64 (batch,).
            noise: Standard normal, shape of ``x0``.
        """
        a, b = self._scales(t, x0)
        return a * x0 + b * noise

    def noise_of(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise that leads from ``x0`` to ``x_t`` in t steps."""
        a, b = self._scales(t, x_t)
        return (x_t - a * x0) / b.clamp(min=1e-6)

    def x0_of(self, prediction: Tensor, x_t: Tensor, t: Tensor, target: str = "x0") -> Tensor:
        """Translate a network output into the clean data that it stands for.

        Args:
            prediction: Shape of ``x_t``; what ``target`` says.
            x_t: (batch, ...) noised data.
            t: int64 (batch,).
            target: ``"x0"``, ``"noise"`` or ``"v"``.
        """
        if target == "x0":
            return prediction
        a, b = self._scales(t, x_t)
        return (x_t - b * prediction) / a.clamp(min=1e-6) if target == "noise" else a * x_t - b * prediction

    def target_of(self, x0: Tensor, noise: Tensor, t: Tensor, target: str = "x0") -> Tensor:
        """Return what the network should output: ``x0``, ``noise``, or v = sqrt(abar) noise - sqrt(1 - abar) x0."""
        if target == "v":
            a, b = self._scales(t, x0)
            return a * noise - b * x0
        return x0 if target == "x0" else noise

    def weight(self, t: Tensor) -> Tensor:
        """Return the loss weight sqrt(alpha) sqrt(1 - abar) / beta / 100 (Yuan & Qiao 2024), (batch,)."""
        beta = self.betas[t]
        return (1 - beta).sqrt() * (1 - self.signal[t]).sqrt() / beta / 100

    def jumps(self, num_steps: int, start: int | None = None) -> list[tuple[int, int]]:
        """Return the visited steps as pairs (t, next t), evenly spaced; -1 stands for clean data.

        Args:
            num_steps: How many; at most the number of available steps is used.
            start: First t; default T-1.

        Example:
            >>> NoiseSchedule(100).jumps(4)
            [(99, 74), (74, 49), (49, 24), (24, -1)]
        """
        start = len(self) - 1 if start is None else start
        num_steps = max(1, min(num_steps, start + 1))
        times = torch.linspace(-1, start, num_steps + 1, dtype=torch.float64).round().long().flip(0).tolist()
        return list(pairwise(times))

    def step(
        self,
        x0: Tensor,
        x_t: Tensor,
        t: int,
        t_next: int,
        noise: Tensor | None,
        eta: float = 0.0,
        ancestral: bool = False,
    ) -> Tensor:
        """Go from x_t to x_{t_next} given a prediction of x_0.

        Args:
            x0: Predicted clean data, shape of ``x_t``.
            x_t: (batch, ...).
            t: Where ``x_t`` is.
            t_next: Where to go; -1 returns ``x0``.
            noise: Standard normal, shape of ``x_t``; None where none is needed.
            eta: 0: deterministic DDIM; 1: as much noise as ancestral sampling (Song et al. 2021, eq. 16).
            ancestral: Draw from the posterior q(x_{t_next} | x_t, x_0) (Ho et al. 2020, eq. 7).
        """
        if t_next < 0:
            return x0
        now, then = self.signal[t], self.signal[t_next]
        if ancestral:
            # The posterior of the composed step t_next -> t; equals eq. 7 when t_next = t - 1.
            alpha = now / then
            mean = then.sqrt() * (1 - alpha) / (1 - now) * x0 + alpha.sqrt() * (1 - then) / (1 - now) * x_t
            return mean if noise is None else mean + ((1 - alpha) * (1 - then) / (1 - now)).sqrt() * noise
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        direction = (x_t - now.sqrt() * x0) / (1 - now).sqrt()
        x = then.sqrt() * x0 + (1 - then - sigma.square()).clamp(min=0).sqrt() * direction
        return x if noise is None else x + sigma * noise


def rows_for(source: Any, requests: SampleRequests, schema: Mapping[str, Any]) -> Any:
    """Choose a given row for every requested one: ``source[i % len(source)]`` for the request of index i.

    Args:
        source: `Samples`, a batch, a list of items, or an array (rows, channels, length) of windows.
        requests: Rows to sample.
        schema: Of the items.

    Returns:
        A batch on the device of the requests.

    Raises:
        DataError: If there is no row, or windows have another shape than the schema's or are not finite.
    """
    from lightning_synth.schema import collate, move, uncollate

    data, is_series = source.data if isinstance(source, Samples) else source, schema["domain"] == "timeseries"
    if is_series and isinstance(data, (Tensor, np.ndarray)):
        data = {"x": torch.from_numpy(np.array(data)) if isinstance(data, np.ndarray) else data}
    items = uncollate(data, schema) if isinstance(data, Mapping) else data
    if not len(items):
        raise DataError("there is no row to start from: the given samples or items are empty")
    rows = [items[i % len(items)] for i in requests.index.tolist()]
    if is_series:
        rows = _windows(rows, (int(schema["channels"]), int(schema["length"])))
    return move(collate(rows, schema), requests.index.device)


def _windows(rows: Sequence[Any], shape: tuple[int, int]) -> list[Any]:
    """Check the shape of windows to start from and that they are finite, and make them float32."""
    wrong = next((tuple(row["x"].shape) for row in rows if tuple(row["x"].shape) != shape), None)
    if wrong is not None:
        raise DataError(f"a window to start from has shape {wrong}; the model makes {shape} (channels, length)")
    if not all(bool(torch.isfinite(row["x"]).all()) for row in rows):
        raise DataError("a window to start from has values that are not finite: impute them first")
    return [{**row, "x": row["x"].float()} for row in rows]


def input_gradient(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Differentiate a score with respect to its input, also inside ``Trainer.predict``.

    The Trainer predicts in inference mode, where ``torch.enable_grad()`` alone fails ("does not require grad"):
    inference mode must be left, and the tensor copied, since a tensor made inside it can never require a gradient.

    Args:
        score: (batch, ...) to (batch,), differentiable; other tensors that it needs must not be inference tensors.
        x: (batch, ...).

    Returns:
        The gradient, shape of ``x``.

    Example:
        >>> with torch.inference_mode():
        ...     input_gradient(lambda x: x.square().sum(1), torch.ones(1, 2))
        tensor([[2., 2.]])
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(score(leaf).sum(), leaf)
    return gradient


class DiffusionGenerator(AveragedGenerator):
    """Base of diffusion generators of any domain.

    A subclass implements `encode`, `decode`, `row_shape` and `denoise`, and makes its networks in ``build`` (calling
    ``super().build(schema)`` LAST, so that the weight average covers them).

    Args:
        target: What the network predicts: ``"x0"``, ``"noise"`` or ``"v"``.
        diffusion_steps: Number T of noise levels in training.
        noise_schedule: ``"cosine"`` or ``"linear"``.
        num_steps: Network evaluations per sample (DDIM); ``sampler="ddpm"`` always uses all T.
        sampler: ``"ddim"`` or ``"ddpm"``.
        eta: Randomness of DDIM, 0 (deterministic given the first noise) to 1.
        guidance_scale: 1: plain conditional sampling; w > 1 extrapolates from the unconditional prediction, which
            follows the condition more and varies less.
        condition_dropout: Share of training rows whose conditions are hidden, so that the unconditional model exists.
        ema_decay: Decay of the averaged weights used for sampling; 0 samples from the weights themselves.
        lr: Learning rate.
        **kwargs: For `Generator`.

    Sampling options (keywords of ``sample``): ``num_steps, sampler, eta, guidance_scale`` override the above. ``init``
    (samples, a batch, items, or an array of windows) with ``strength`` in (0, 1] starts row i from
    ``init[i % len(init)]`` (i is the row's index) noised to that share of the diffusion instead of from pure noise.
    ``guide`` is a function of the predicted clean tensor (batch, *row_shape) that returns log-scores (batch,); samples
    climb its gradient times ``guide_scale``.
    """

    schedule: NoiseSchedule

    def __init__(
        self,
        *,
        target: str = "x0",
        diffusion_steps: int = 500,
        noise_schedule: str = "cosine",
        num_steps: int = 50,
        sampler: str = "ddim",
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        condition_dropout: float = 0.1,
        ema_decay: float = 0.995,
        lr: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        if target not in TARGETS:
            raise ConfigError(f"target {target!r} is not one of {TARGETS}")
        _check_sampler(sampler, num_steps, eta)
        check_dropout(condition_dropout)
        super().__init__(
            target=target,
            diffusion_steps=diffusion_steps,
            noise_schedule=noise_schedule,
            num_steps=num_steps,
            sampler=sampler,
            eta=eta,
            guidance_scale=guidance_scale,
            condition_dropout=condition_dropout,
            ema_decay=ema_decay,
            lr=lr,
            **kwargs,
        )

    # What a subclass says ------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the clean tensor (batch, *row_shape), about unit scale, and the conditions (each (batch,))."""

    @abstractmethod
    def decode(self, x0: Tensor, requests: SampleRequests) -> Any:
        """Return the batch that the clean tensor stands for."""

    @abstractmethod
    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of one row of the clean tensor."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Predict ``hparams.target`` from noised data.

        Args:
            x_t: (batch, *row_shape).
            t: int64 (batch,).
            condition: Name to tensor (batch,), raw units; ``condition["keep"]`` (bool) is False for rows whose other
                conditions must be ignored.

        Returns:
            Shape of ``x_t``.
        """

    def limit(self, x0: Tensor) -> Tensor:
        """Keep a predicted clean tensor inside the possible; default: everything is possible."""
        return x0

    def diffusion_loss(self, prediction: Tensor, wanted: Tensor, t: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return the losses; ``"loss"`` is optimised. Default: mean squared error.

        Args:
            prediction: (batch, *row_shape) output of `denoise`.
            wanted: The same shape, what it should be.
            t: int64 (batch,).
            batch: The batch that was encoded, for masks and weights.
        """
        return {"loss": (prediction - wanted).square().mean()}

    # Training ------------------------------------------------------------------------------------------------------

    def null_share(self) -> float:
        """Share of training rows from which the unconditional model learns; 0 refuses guidance."""
        return float(self.hparams["condition_dropout"])

    def build(self, schema: dict[str, Any]) -> None:
        """Make the noise schedule and the averaged copy of all parameters made so far."""
        self.schedule = NoiseSchedule(int(self.hparams["diffusion_steps"]), self.hparams["noise_schedule"])
        super().build(schema)

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Noise the batch at random levels and compare the prediction with the truth."""
        x0, condition = self.encode(batch)
        return self.noised_loss(x0, condition, batch, rng)

    def noised_loss(self, x0: Tensor, condition: dict[str, Tensor], batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Return `diffusion_loss` of a clean tensor at random noise levels.

        Args:
            x0: (batch, *row_shape).
            condition: Name to tensor (batch,).
            batch: Passed on to `diffusion_loss`.
            rng: Scalar-keyed.
        """
        n, device = len(x0), x0.device
        t = rng.integers(len(self.schedule), (n,)).to(device)
        noise = rng.normal(x0.shape).to(device)
        if KEEP not in condition:
            condition = {**condition, KEEP: rng.uniform((n,)).to(device) >= self.hparams["condition_dropout"]}
        x_t = self.schedule.add_noise(x0, t, noise)
        prediction = self.denoise(x_t, t, condition)
        wanted = self.schedule.target_of(x0, noise, t, self.hparams["target"])
        return self.diffusion_loss(prediction, wanted, t, batch)

    # Sampling ------------------------------------------------------------------------------------------------------

    def sample_batch(
        self,
        requests: SampleRequests,
        rng: KeyedRNG,
        *,
        num_steps: int | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
        init: Any = None,
        strength: float = 0.5,
        guide: Callable[[Tensor], Tensor] | None = None,
        guide_scale: float = 1.0,
        **options: Any,
    ) -> Any:
        """Denoise from the rows' own noise; options as in the class docstring, others go to `sampling_condition`."""
        num_steps = int(self.hparams["num_steps"]) if num_steps is None else num_steps
        sampler = self.hparams["sampler"] if sampler is None else sampler
        eta = float(self.hparams["eta"]) if eta is None else eta
        scale = float(self.hparams["guidance_scale"]) if guidance_scale is None else guidance_scale
        _check_sampler(sampler, num_steps, eta)
        check_guidance(scale, self.null_share())
        clean = None if init is None else self._init_rows(init, requests)
        condition, noise = self.sampling_condition(requests, rng, clean, **options), rng.fork("noise")
        x, start = noise.normal(self.row_shape(), step=0).to(self.device), len(self.schedule) - 1
        if clean is not None:
            x, start = self._noised(clean, strength, x)
        ancestral = sampler == "ddpm"
        jumps = self.schedule.jumps(start + 1 if ancestral else num_steps, start)
        with self.averaged_weights():
            for k, (t, t_next) in enumerate(jumps, start=1):
                x0 = self._predict_x0(x, t, condition, scale)
                if guide is not None:
                    x0 = self._guided(x0, x, t, condition, scale, guide, guide_scale)
                fresh = noise.normal(x.shape[1:], step=k).to(x) if (ancestral or eta > 0) and t_next >= 0 else None
                x = self.schedule.step(self.limit(x0), x, t, t_next, fresh, eta, ancestral)
        return self.decode(self.finish(x, condition), requests)

    def finish(self, x0: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Change the clean tensors after the last step; default: nothing.

        Args:
            x0: (rows, *row_shape).
            condition: As given to `denoise`.
        """
        return x0

    def sampling_condition(
        self, requests: SampleRequests, rng: KeyedRNG, init: Tensor | None, **options: Any
    ) -> dict[str, Tensor]:
        """Return the conditions of `denoise` for sampling, each (rows,) or (rows, ...).

        Args:
            requests: Rows wanted.
            rng: One seed a row.
            init: Clean tensor (rows, *row_shape) that sampling starts from, or None.
            **options: Further options of ``sample``, which a subclass may take.

        Raises:
            TypeError: If an option is unknown.
        """
        if options:
            raise TypeError(f"{type(self).__name__} has no sampling option {', '.join(options)}")
        return {name: value.to(self.device) for name, value in requests.condition.items()}

    def _predict_x0(self, x: Tensor, t: int, condition: dict[str, Tensor], scale: float) -> Tensor:
        """Clean data seen from x_t; with guidance, both predictions come from one pass over a doubled batch."""
        n = len(x)
        keep = torch.ones(n, dtype=torch.bool, device=x.device)
        if scale == 1.0:
            times = torch.full((n,), t, device=x.device)
            return self.schedule.x0_of(
                self.denoise(x, times, {**condition, KEEP: keep}), x, times, self.hparams["target"]
            )
        twice = {name: torch.cat([value, value]) for name, value in condition.items()}
        times = torch.full((2 * n,), t, device=x.device)
        both = self.denoise(torch.cat([x, x]), times, {**twice, KEEP: torch.cat([keep, ~keep])})
        with_condition, without = self.schedule.x0_of(both, torch.cat([x, x]), times, self.hparams["target"]).chunk(2)
        return without + scale * (with_condition - without)

    def _guided(
        self,
        x0: Tensor,
        x: Tensor,
        t: int,
        condition: dict[str, Tensor],
        scale: float,
        guide: Callable[[Tensor], Tensor],
        guide_scale: float,
    ) -> Tensor:
        """Move the noise by -sqrt(1 - abar) times the gradient of a log-score (Dhariwal & Nichol 2021, alg. 2)."""

        def score(leaf: Tensor) -> Tensor:
            # Conditions made in inference mode cannot be saved for the backward pass; copies made here can.
            return guide(self._predict_x0(leaf, t, {name: value.clone() for name, value in condition.items()}, scale))

        gradient = input_gradient(score, x)
        signal = self.schedule.signal[t]
        return x0 + guide_scale * (1 - signal) / signal.sqrt().clamp(min=0.05) * gradient

    def _init_rows(self, init: Any, requests: SampleRequests) -> Tensor:
        """Rows of ``init``, chosen by the request's index, as clean tensors."""
        return self.encode(rows_for(init, requests, self._ready_schema()))[0]

    def _noised(self, clean: Tensor, strength: float, noise: Tensor) -> tuple[Tensor, int]:
        """Clean rows at the noise level where sampling then starts, and that level."""
        if not 0 < strength <= 1:
            raise ConfigError(f"strength must be in (0, 1], got {strength}")
        start = max(0, round(strength * len(self.schedule)) - 1)
        times = torch.full((len(clean),), start, device=clean.device)
        return self.schedule.add_noise(clean, times, noise), start


def _check_sampler(sampler: str, num_steps: int, eta: float) -> None:
    if sampler not in SAMPLERS:
        raise ConfigError(f"sampler {sampler!r} is not one of {SAMPLERS}")
    if num_steps < 1 or not 0 <= eta <= 1:
        raise ConfigError(f"num_steps must be at least 1 and eta in [0, 1], got {num_steps} and {eta}")
