"""Noising and sampling of categorical variables: discrete flow matching, and discrete diffusion as its older form.

A variable z in {0, ..., K-1} is noised towards a prior p0: z_t ~ t delta(z_1) + (1 - t) p0, t = 1 being data. A network
predicts p(z_1 | z_t). How one walks back from t = 0 to t = 1 is up to a sampler, an object apart from the network:

* `RateSampler`: a continuous-time Markov chain (DeFoG, Qin et al. 2025), its rates averaged over the prediction in
  closed form instead of over one draw of z_1, which has less variance and costs nothing;
* `PosteriorSampler`: the posterior of discrete diffusion with marginal transitions (DiGress, Vignac et al. 2023), whose
  noise has the same form with t for the signal level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError

DISTORTIONS = ("identity", "polydec", "polyinc", "cos", "revcos")


def distort(t: Tensor, kind: str) -> Tensor:
    """Warp times in [0, 1] (DeFoG, section 3.3): ``"polydec"`` spends more steps near the data.

    Args:
        t: Times.
        kind: ``"identity"``, ``"polydec"`` 2t - t^2, ``"polyinc"`` t^2, ``"cos"`` (1 - cos pi t)/2 or ``"revcos"``
            2t - (1 - cos pi t)/2.

    Raises:
        ConfigError: If the kind is unknown.

    Example:
        >>> distort(torch.tensor([0.0, 0.5, 1.0]), "polydec").tolist()
        [0.0, 0.75, 1.0]
    """
    if kind == "identity":
        return t
    if kind == "polydec":
        return 2 * t - t.square()
    if kind == "polyinc":
        return t.square()
    if kind in ("cos", "revcos"):
        warped = (1 - torch.cos(math.pi * t)) / 2
        return warped if kind == "cos" else 2 * t - warped
    raise ConfigError(f"time distortion {kind!r} is not one of {DISTORTIONS}")


def noise(clean: Tensor, t: Tensor, prior: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Draw z_t: the clean value with probability t, a draw from the prior otherwise.

    Args:
        clean: int64, any shape.
        t: Same shape, in [0, 1].
        prior: (K,).
        u: Uniform, same shape: decides which.
        v: Uniform, same shape: the draw from the prior.

    Returns:
        int64, same shape.

    Example:
        >>> one = torch.ones(3)
        >>> noise(torch.tensor([2, 2, 2]), one, torch.ones(3) / 3, 0.5 * one, 0 * one).tolist()
        [2, 2, 2]
    """
    return torch.where(u < t, clean, draw(prior.expand(*clean.shape, -1), v))


def draw(p: Tensor, u: Tensor) -> Tensor:
    """Invert the distribution function.

    Args:
        p: Probabilities (..., K), not necessarily normalised.
        u: Uniform (...).

    Returns:
        int64 (...).

    Example:
        >>> draw(torch.tensor([[0.2, 0.8]]), torch.tensor([0.3])).tolist()
        [1]
    """
    bounds = p.cumsum(-1)
    return (u[..., None] * bounds[..., -1:] >= bounds[..., :-1]).sum(-1)


class Sampler(ABC):
    """How to walk from the prior to the data: a schedule of times, and the probabilities of one step."""

    @abstractmethod
    def times(self) -> list[float]:
        """Return the visited times, from 0 to 1."""

    @abstractmethod
    def step(self, p: Tensor, z: Tensor, t: float, t_next: float, prior: Tensor) -> Tensor:
        """Return the law of z at ``t_next`` < 1; at 1 it is the prediction itself.

        Args:
            p: Predicted law of the clean value, (..., K).
            z: int64 (...), the present value.
            t: Present time.
            t_next: Next time.
            prior: (K,).

        Returns:
            Probabilities (..., K).
        """


@dataclass(frozen=True)
class RateSampler(Sampler):
    """Continuous-time Markov chain in Euler steps.

    Args:
        num_steps: Number of steps.
        eta: Extra jumps that keep the law of z_t (detailed balance): they correct earlier errors.
        omega: Extra jumps towards the prediction.
        distortion: Of the times, see `distort`.

    Example:
        >>> sampler = RateSampler(num_steps=4)
        >>> p, z, prior = torch.tensor([[0.25, 0.75]]), torch.tensor([0]), torch.tensor([0.5, 0.5])
        >>> [round(v, 3) for v in sampler.step(p, z, 0.5, 0.6, prior)[0].tolist()]
        [0.85, 0.15]
    """

    num_steps: int = 50
    eta: float = 0.0
    omega: float = 0.0
    distortion: str = "polydec"

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        distort(torch.zeros(()), self.distortion)
        if not (self.num_steps >= 1 and 0 <= self.eta < math.inf and 0 <= self.omega < math.inf):
            raise ConfigError(
                f"num_steps must be at least 1, eta and omega not negative: got {self.num_steps}, {self.eta} and "
                f"{self.omega}"
            )

    def times(self) -> list[float]:
        """Return num_steps + 1 distorted times."""
        return [
            float(t) for t in distort(torch.linspace(0, 1, self.num_steps + 1, dtype=torch.float64), self.distortion)
        ]

    def step(self, p: Tensor, z: Tensor, t: float, t_next: float, prior: Tensor) -> Tensor:
        """Jump with the rates of `rates` times the length of the step."""
        jump = self.rates(p, z, t, prior) * (t_next - t)
        total = jump.sum(-1, keepdim=True)
        # Where a step is too long for its rates, it jumps for certain, in their proportions.
        jump = jump / total.clamp(min=1)
        return jump.scatter_add(-1, z[..., None], (1 - jump.sum(-1, keepdim=True)).clamp(min=0))

    def rates(self, p: Tensor, z: Tensor, t: float, prior: Tensor) -> Tensor:
        """Average rates of leaving z for each other value (DeFoG, eq. 6, 10 and 12), (..., K); 0 for z itself.

        With z_1 ~ p: only z_1 = j or, where the prior falls from z to j, any third value, makes the rate to j positive.
        Values outside the support of the prior (an absorbing one) can only be left through eta.
        """
        now = z[..., None]
        here, p_here = prior[z][..., None], p.gather(-1, now)
        # p / Z_t, where Z_t counts the values that have positive probability at time t, given z_1.
        share = p / ((prior > 0).sum() + (prior <= 0))
        rest = share.sum(-1, keepdim=True) - share.gather(-1, now) - share
        third = rest * (here - prior).clamp(min=0) * (prior > 0)
        leave = (share * (1 - prior + here + self.omega) + third) / ((1 - t) * here).clamp(min=1e-9)
        balance = torch.where(here > 0, t * p + (1 - t) * prior, p_here * (1 - t) * prior)
        rates = torch.where(here > 0, leave, torch.zeros_like(leave)) + self.eta * balance
        return rates.scatter(-1, now, 0.0)


@dataclass(frozen=True)
class PosteriorSampler(Sampler):
    """Ancestral sampling of discrete diffusion with a cosine schedule (DiGress, eq. 3 to 5).

    Its `step` also takes a prior of its own for every variable, (..., K).

    Args:
        num_steps: Number of steps.

    Example:
        >>> sampler = PosteriorSampler(num_steps=2)
        >>> p = sampler.step(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), 0.5, 0.999, torch.tensor([0.5, 0.5]))
        >>> bool(p[0, 1] > 0.99)
        True
    """

    num_steps: int = 500

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if self.num_steps < 1:
            raise ConfigError(f"num_steps must be at least 1, got {self.num_steps}")

    def times(self) -> list[float]:
        """Return signal levels of the cosine schedule (Nichol & Dhariwal 2021, eq. 17)."""
        return [0.0, *(float(cosine_level(s / self.num_steps)) for s in range(self.num_steps - 1, 0, -1)), 1.0]

    def step(self, p: Tensor, z: Tensor, t: float, t_next: float, prior: Tensor) -> Tensor:
        """Average q(z_next | z, z_1) over the prediction."""
        now, stay = z[..., None], t / t_next
        here = torch.zeros_like(p).scatter(-1, now, 1.0)
        m = prior.expand_as(p).gather(-1, now)
        # q(z_t | z_1) for every z_1, then p(z_1) / q.
        weight = p / (t * here + (1 - t) * m).clamp(min=1e-9)
        ahead = t_next * weight + (1 - t_next) * prior * weight.sum(-1, keepdim=True)
        law = (stay * here + (1 - stay) * m) * ahead
        total = law.sum(-1, keepdim=True)
        # A value that the prior excludes and that was never clean cannot occur; the prediction is as good as any law.
        return torch.where(total > 0, law / total.clamp(min=1e-30), p)


def cosine_level(s: float) -> float:
    """Signal level of the cosine schedule at the share ``s`` of the noising time.

    Example:
        >>> cosine_level(0.0), round(cosine_level(1.0), 6)
        (1.0, 0.0)
    """
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2 / start


__all__ = ["DISTORTIONS", "PosteriorSampler", "RateSampler", "Sampler", "cosine_level", "distort", "draw", "noise"]
