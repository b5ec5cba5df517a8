"""Rectified flow for any domain with a continuous representation: straight paths from noise to data.

A subclass says how a batch becomes a tensor and back, and how the velocity is predicted; everything else is here:

* the path ``x_t = t x_1 + (1 - t) x_0`` from noise x_0 to data x_1 and its velocity ``x_1 - x_0`` (Liu et al. 2023,
  eq. 1; Lipman et al. 2023, eq. 22 with sigma_min = 0);
* logit-normal times in training (Esser et al. 2024, eq. 19) and shifted times in sampling (eq. 23);
* a network output of unit variance at every t, so that an untrained network already samples the standard normal;
* Euler and Heun steps, classifier-free guidance within an interval of t (Kynkaanniemi et al. 2024), averaged weights.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_synth.averaging import AveragedGenerator
from lightning_synth.conditions import KEEP, check_dropout, check_guidance
from lightning_synth.diffusion import rows_for
from lightning_synth.errors import ConfigError
from lightning_synth.requests import KeyedRNG, SampleRequests

SOLVERS = ("heun", "euler")


def shifted_times(num_steps: int, shift: float = 1.0, start: float = 0.0) -> list[float]:
    """Return times from ``start`` to 1, steps being finer near the noise for ``shift`` > 1 (Esser et al. 2024, eq. 23).

    Args:
        num_steps: Number of steps.
        shift: Ratio of the last to the first step size's square root; 1: equal steps.
        start: First time.

    Example:
        >>> [round(t, 2) for t in shifted_times(4, shift=3.0)]
        [0.0, 0.1, 0.25, 0.5, 1.0]
    """
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    t = u / (u + shift * (1 - u))
    return [float(value) for value in start + (1 - start) * t]


def preconditioning(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scales that keep the network's input and output at unit variance for data and noise of unit variance.

    With x_t = t x_1 + (1 - t) x_0 and v = x_1 - x_0, the best linear prediction of v is ``c_skip x_t``; what is left
    has standard deviation ``c_out`` (the same reasoning as Karras et al. 2022, appendix B.6, on a straight path).

    Args:
        t: Times in [0, 1].

    Returns:
        ``c_in, c_skip, c_out``, so that v = c_skip x_t + c_out network(c_in x_t).

    Example:
        >>> [round(float(c), 3) for c in preconditioning(torch.tensor(0.5))]
        [1.414, 0.0, 1.414]
    """
    power = t.square() + (1 - t).square()
    return power.rsqrt(), (2 * t - 1) / power, power.rsqrt()


class FlowGenerator(AveragedGenerator):
    """Base of rectified-flow generators.

    A subclass implements `encode`, `decode`, `row_shape` and `network`, and makes its networks in ``build`` (calling
    ``super().build(schema)`` LAST, so that the weight average covers them).

    Args:
        num_steps: Steps of the sampler; "heun" evaluates the network twice a step but for the last one.
        solver: ``"heun"`` or ``"euler"``.
        shift: Steps are finer near the noise for more than 1, near the data for less.
        time_mean: Mean of the logit of the training times; above 0 there are more near the data, where fine structure
            is decided (as the noise levels of Karras et al. 2022).
        time_scale: Standard deviation of that logit.
        guidance_scale: 1: plain conditional sampling; w > 1 extrapolates from the unconditional prediction, which
            follows the condition more and varies less.
        guidance_interval: Times between which guidance acts.
        condition_dropout: Share of training rows whose conditions are hidden, so that the unconditional model exists.
        ema_decay: Decay of the averaged weights used for sampling; 0 samples from the weights themselves.
        **kwargs: For `Generator`.

    Sampling options (keywords of ``sample``): ``num_steps, solver, shift, guidance_scale`` override the above. ``init``
    (samples, a batch, items, or an array of windows) with ``strength`` in (0, 1] starts row i from
    ``init[i % len(init)]`` (i is the row's index) at time 1 - strength of the path instead of from pure noise.
    """

    def __init__(
        self,
        *,
        num_steps: int = 10,
        solver: str = "heun",
        shift: float = 0.5,
        time_mean: float = 1.0,
        time_scale: float = 1.4,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | list[float] = (0.1, 0.9),
        condition_dropout: float = 0.1,
        ema_decay: float = 0.999,
        **kwargs: Any,
    ) -> None:
        _check_solver(solver, num_steps, shift)
        check_dropout(condition_dropout)
        if len(guidance_interval) != 2 or not time_scale >= 0:
            raise ConfigError(
                f"guidance_interval must be two times and time_scale not negative, got {guidance_interval} "
                f"and {time_scale}"
            )
        super().__init__(
            num_steps=num_steps,
            solver=solver,
            shift=shift,
            time_mean=time_mean,
            time_scale=time_scale,
            guidance_scale=guidance_scale,
            guidance_interval=list(guidance_interval),
            condition_dropout=condition_dropout,
            ema_decay=ema_decay,
            **kwargs,
        )

    # What a subclass says ------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the clean tensor (batch, *row_shape), about unit variance, and the conditions (each (batch, ...))."""

    @abstractmethod
    def decode(self, x1: Tensor, requests: SampleRequests) -> Any:
        """Return the batch that the clean tensor stands for."""

    @abstractmethod
    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of one row of the clean tensor."""

    @abstractmethod
    def network(self, x: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Predict the velocity beyond its linear part, in units of its standard deviation.

        Args:
            x: (batch, *row_shape), noised data scaled to unit variance.
            t: float (batch,) in [0, 1]; 1 is data.
            condition: Name to tensor (batch, ...), raw units; ``condition["keep"]`` (bool) is False for rows whose
                other conditions must be ignored.

        Returns:
            Shape of ``x``.
        """

    def flow_loss(self, error: Tensor, x1: Tensor, predicted: Tensor, t: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return the losses; ``"loss"`` is optimised. Default: mean squared error.

        Args:
            error: (batch, *row_shape), of the network's output, in units of its standard deviation.
            x1: The clean tensor.
            predicted: The clean tensor seen from x_t.
            t: float (batch,).
            batch: The batch that was encoded, for masks and weights.
        """
        return {"loss": error.square().mean()}

    # Training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Compare the predicted with the true velocity at random times."""
        x1, condition = self.encode(batch)
        return self.path_loss(x1, condition, batch, rng)

    def path_loss(self, x1: Tensor, condition: dict[str, Tensor], batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Return `flow_loss` of a clean tensor at random times.

        Args:
            x1: (batch, *row_shape).
            condition: Name to tensor (batch, ...).
            batch: Passed on to `flow_loss`.
            rng: Scalar-keyed.
        """
        n, device = len(x1), x1.device
        mean, scale = float(self.hparams["time_mean"]), float(self.hparams["time_scale"])
        t = torch.sigmoid(mean + scale * rng.normal((n,))).to(device)
        x0 = rng.normal(x1.shape).to(device)
        if KEEP not in condition:
            condition = {**condition, KEEP: rng.uniform((n,)).to(device) >= self.hparams["condition_dropout"]}
        at = _expand(t, x1)
        x_t = at * x1 + (1 - at) * x0
        c_in, c_skip, c_out = preconditioning(at)
        output = self.network(c_in * x_t, t, condition)
        error = output - (x1 - x0 - c_skip * x_t) / c_out
        predicted = x_t + (1 - at) * (c_skip * x_t + c_out * output)
        return self.flow_loss(error, x1, predicted, t, batch)

    # Sampling ------------------------------------------------------------------------------------------------------

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG, **options: Any) -> Any:
        """Follow the flow from the rows' own noise; options as in the class docstring, others: `sampling_condition`."""
        return self.decode(self.follow(requests, rng, **options), requests)

    def follow(
        self,
        requests: SampleRequests,
        rng: KeyedRNG,
        *,
        num_steps: int | None = None,
        solver: str | None = None,
        shift: float | None = None,
        guidance_scale: float | None = None,
        init: Any = None,
        strength: float = 0.5,
        **options: Any,
    ) -> Tensor:
        """Return the clean tensor at the end of the flow, (rows, *row_shape).

        Args:
            requests: Rows wanted.
            rng: One seed a row.
            num_steps: As the hyper-parameter, which is taken for None; so for the next three.
            solver: As the hyper-parameter.
            shift: As the hyper-parameter.
            guidance_scale: As the hyper-parameter.
            init: Rows to start from.
            strength: Share of the path from there.
            **options: Of `sampling_condition`.
        """
        p = self.hparams
        num_steps, solver = int(p["num_steps"] if num_steps is None else num_steps), solver or p["solver"]
        shift = float(p["shift"] if shift is None else shift)
        scale = float(p["guidance_scale"] if guidance_scale is None else guidance_scale)
        _check_solver(solver, num_steps, shift)
        check_guidance(scale, float(p["condition_dropout"]))
        condition = self.sampling_condition(requests, rng, **options)
        x, start = rng.fork("noise").normal(self.row_shape(), step=0).to(self.device), 0.0
        if init is not None:
            if not 0 < strength <= 1:
                raise ConfigError(f"strength must be in (0, 1], got {strength}")
            start = 1.0 - strength
            x = start * self.encode(rows_for(init, requests, self._ready_schema()))[0] + strength * x
        with self.averaged_weights():
            for t, t_next in pairwise(shifted_times(num_steps, shift, start)):
                v = self.velocity(x, t, condition, scale)
                ahead = x + (t_next - t) * v
                if solver == "heun" and t_next < 1:
                    ahead = x + (t_next - t) * 0.5 * (v + self.velocity(ahead, t_next, condition, scale))
                x = ahead
        return x

    def sampling_condition(self, requests: SampleRequests, rng: KeyedRNG, **options: Any) -> dict[str, Tensor]:
        """Return the conditions of `network` for sampling.

        Args:
            requests: Rows wanted.
            rng: One seed a row.
            **options: Further options of ``sample``, which a subclass may take.

        Raises:
            TypeError: If an option is unknown.
        """
        if options:
            raise TypeError(f"{type(self).__name__} has no sampling option {', '.join(options)}")
        return {name: value.to(self.device) for name, value in requests.condition.items()}

    def velocity(self, x: Tensor, t: float, condition: dict[str, Tensor], guidance_scale: float = 1.0) -> Tensor:
        """Velocity at time t; with guidance, both predictions come from one pass over a doubled batch.

        Args:
            x: (rows, *row_shape).
            t: Time in [0, 1].
            condition: Name to tensor (rows, ...).
            guidance_scale: As the hyper-parameter.
        """
        low, high = self.hparams["guidance_interval"]
        keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if guidance_scale == 1.0 or not low <= t <= high:
            return self._velocity(x, t, {**condition, KEEP: keep})
        twice = {name: torch.cat([value, value]) for name, value in condition.items()}
        both = self._velocity(torch.cat([x, x]), t, {**twice, KEEP: torch.cat([keep, ~keep])})
        with_condition, without = both.chunk(2)
        return without + guidance_scale * (with_condition - without)

    def _velocity(self, x: Tensor, t: float, condition: dict[str, Tensor]) -> Tensor:
        times = torch.full((len(x),), t, device=x.device)
        c_in, c_skip, c_out = preconditioning(_expand(times, x))
        return c_skip * x + c_out * self.network(c_in * x, times, condition)


def _expand(value: Tensor, like: Tensor) -> Tensor:
    """Append dimensions, so that one value a row broadcasts over the row."""
    return value.reshape(-1, *(1,) * (like.ndim - 1))


def _check_solver(solver: str, num_steps: int, shift: float) -> None:
    if solver not in SOLVERS:
        raise ConfigError(f"solver {solver!r} is not one of {SOLVERS}")
    if num_steps < 1 or shift <= 0:
        raise ConfigError(f"num_steps must be at least 1 and shift positive, got {num_steps} and {shift}")
