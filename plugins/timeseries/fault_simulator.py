"""What simulators of faulty machines share: a simulated signal on top of real healthy windows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, SchemaError
from lightning_synth.plugins.resampling import TrainingRows, WindowResampler
from lightning_synth.plugins.timeseries.vibration import Clock, impulse_response, support
from lightning_synth.requests import KeyedRNG, SampleRequests

#: The kind of a healthy class; kinds of faults are numbered from 1 by the subclass.
NORMAL = 0
# The simulation starts this long before the window, so that earlier impacts still ring in it (seconds).
LEAD = 0.02
# Impacts fall on a grid this much finer than the sampling interval.
OVERSAMPLING = 4
# Requested shaft speeds may exceed the fastest of training by this factor.
_SPEED_MARGIN = 2.0
_CHUNK = 256


def check_interval(name: str, pair: Sequence[float], least: float = -math.inf, most: float = math.inf) -> list[float]:
    """Return an interval as a list.

    Args:
        name: For messages.
        pair: Low and high.
        least: Lower bound of both.
        most: Upper bound of both.

    Raises:
        ConfigError: If it is none, or leaves the bounds.
    """
    if len(pair) != 2 or pair[0] > pair[1]:
        raise ConfigError(f"{name} must be an interval (low, high), got {tuple(pair)}")
    if pair[0] < least or pair[1] > most:
        raise ConfigError(f"{name} must lie in [{least:g}, {most:g}], got {tuple(pair)}")
    return list(pair)


def between(pair: Sequence[float], share: Tensor) -> Tensor:
    """Go from the low to the high end of an interval, evenly."""
    return pair[0] + (pair[1] - pair[0]) * share


def between_log(pair: Sequence[float], share: Tensor) -> Tensor:
    """Go from the low to the high end of an interval of positive numbers, in equal ratios."""
    return pair[0] * (pair[1] / pair[0]) ** share


class FaultSimulator(WindowResampler):
    """Base of simulators: healthy window + simulated fault at a random signal-to-noise ratio.

    Rows of the normal class are healthy windows with another sensor gain. A subclass says what a class name means
    (`kind_of`) and writes `simulate`.

    Args:
        snr_db: Interval of the ratio of fault power to healthy power, dB (of the channel that hears the fault best).
        resonance: Interval of the natural frequencies as a share of the Nyquist frequency.
        damping: Interval of the damping ratio (drawn log-uniformly).
        max_modes: Most resonances of a row.
        gain_db: Sensor gain of the whole window is drawn within plus or minus this, dB.
        rpm: Shaft speed, 1/min, for data without an ``rpm`` condition.
        speed_profile: Speed relative to ``rpm`` at evenly spaced moments of the window, e.g. ``(0.8, 1.2)`` for a
            run-up; None: constant.
        speed_fluctuation: Interval of the relative amplitude of a slow oscillation of the speed.
        fluctuation_rate: Interval of its frequency, Hz (drawn log-uniformly).
        sampling_rate: Hz; None: of the schema.
        parts: What each class is, in the order of the labels; None: the schema's class names.
    """

    #: Of the generator, for messages.
    name: ClassVar[str]

    def __init__(
        self,
        *,
        snr_db: Sequence[float] = (-10.0, 10.0),
        resonance: Sequence[float] = (0.15, 0.85),
        damping: Sequence[float] = (0.02, 0.1),
        max_modes: int = 3,
        gain_db: float = 1.0,
        rpm: float | None = None,
        speed_profile: Sequence[float] | None = None,
        speed_fluctuation: Sequence[float] = (0.0, 0.0),
        fluctuation_rate: Sequence[float] = (0.5, 10.0),
        sampling_rate: float | None = None,
        parts: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        check_interval("resonance", resonance, 0, 1)
        check_interval("damping", damping, 0, 1)
        if min(damping) <= 0 or max(damping) >= 1 or min(resonance) <= 0 or max_modes < 1:
            raise ConfigError("damping must lie in (0, 1), resonance in (0, 1] and max_modes be at least 1")
        if speed_profile is not None and (not len(speed_profile) or min(speed_profile) <= 0):
            raise ConfigError(f"speed_profile must be positive numbers, got {speed_profile}")
        if fluctuation_rate[0] <= 0:
            raise ConfigError(f"fluctuation_rate must be positive, got {tuple(fluctuation_rate)}")
        super().__init__(
            snr_db=check_interval("snr_db", snr_db),
            resonance=list(resonance),
            damping=list(damping),
            max_modes=max_modes,
            gain_db=gain_db,
            rpm=rpm,
            speed_profile=None if speed_profile is None else list(speed_profile),
            speed_fluctuation=check_interval("speed_fluctuation", speed_fluctuation, 0, 0.9),
            fluctuation_rate=check_interval("fluctuation_rate", fluctuation_rate, 0, 10),
            sampling_rate=sampling_rate,
            parts=None if parts is None else list(parts),
            **kwargs,
        )

    @abstractmethod
    def kind_of(self, class_name: str) -> int:
        """Return what a class is: NORMAL, or a number of the subclass from 1 on."""

    @abstractmethod
    def simulate(self, kind: Tensor, shaft: Tensor, rng: KeyedRNG) -> Tensor:
        """Simulate the signal of a fault alone, in arbitrary units.

        Args:
            kind: Of the fault, never NORMAL (rows,).
            shaft: Shaft speed, Hz (rows,).
            rng: One seed a row.

        Returns:
            (rows, length).
        """

    def loudness(self, rng: KeyedRNG) -> Tensor | float:
        """Return the power relative to ``snr_db`` (rows,), e.g. by severity."""
        return 1.0

    def build(self, schema: dict[str, Any]) -> None:
        """Collect what physics needs to know, from the arguments or else from the data.

        Args:
            schema: Of a timeseries; ``sampling_rate``, ``class_names`` and the condition ``rpm`` are read.
        """
        rate: Any = self.hparams.sampling_rate or schema.get("sampling_rate")
        self.need(rate, "sampling_rate", "the sampling rate in Hz")
        speed = self.hparams.rpm or schema.get("conditions", {}).get("rpm")
        self.need(speed, "rpm", "the shaft speed in 1/min")
        if not schema.get("num_classes"):
            raise SchemaError(f"{self.name} needs labelled classes: use a DataModule whose schema has them")
        names = self.hparams.parts or schema["class_names"]
        if len(names) != schema["num_classes"]:
            raise ConfigError(f"parts names {len(names)} classes, the data have {schema['num_classes']}")
        self.kinds = [self.kind_of(name) for name in names]
        if NORMAL not in self.kinds:
            raise SchemaError(f"{self.name} adds faults to healthy windows, but none of {list(names)} is healthy")
        self.rate = float(rate)

    def need(self, value: Any, argument: str, what: str) -> None:
        """Refuse to go on without something.

        Args:
            value: Missing if empty.
            argument: That could provide it.
            what: In words.
        """
        if not value:
            raise SchemaError(f"{self.name} needs {what}: pass {argument}=, or use a DataModule whose schema has it")

    @property
    def healthy(self) -> TrainingRows:
        """The windows of normal operation."""
        return self.derived("healthy", self._find_healthy)

    def _find_healthy(self) -> TrainingRows:
        rows = self.rows.of_class(self.kinds.index(NORMAL))
        if rows is None:
            raise SchemaError(f"{self.name} adds faults to healthy windows, but the training data have none")
        return rows

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Add simulated faults to healthy windows of the nearest working condition.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            Batch dict with ``x`` (rows, channels, length).
        """
        batch = self.take(self.healthy.pick(requests, rng.fork("background")))
        label = requests.condition["label"]
        kind = torch.tensor(self.kinds, device=rng.device)[label]
        shaft = self._shaft_speed(requests, batch, rng)
        gain = 10 ** (self.hparams.gain_db * (2 * rng.fork("gain").uniform((1, 1)) - 1) / 20)
        x = batch["x"] * gain
        fault = x.new_zeros(len(x), 1, x.shape[-1])
        for rows in (kind != NORMAL).nonzero()[:, 0].split(_CHUNK):
            if len(rows):
                fault[rows, 0] = self.simulate(kind[rows], shaft[rows], rng[rows])
        power = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        # A window shorter than the time between impacts may hold none.
        heard = fault.square().mean(-1, keepdim=True).clamp(min=1e-20)
        x = x + fault * (power * self._snr(x.shape[1], rng) / heard).sqrt()
        if "mask" in batch:
            x = x * batch["mask"][:, None]
        if "rpm" in batch:
            batch["rpm"] = 60 * shaft
        return batch | {"x": x, "y": label}

    def _shaft_speed(self, requests: SampleRequests, batch: Mapping[str, Tensor], rng: KeyedRNG) -> Tensor:
        """Shaft speed in Hz (rows,): as asked, else of the healthy window, else the fixed one."""
        rpm: Tensor | None = requests.condition.get("rpm", batch.get("rpm"))
        if self.hparams.rpm is not None and "rpm" not in requests.condition:
            rpm = torch.full((len(rng),), float(self.hparams.rpm), device=rng.device)
        if rpm is None:
            raise SchemaError(f"{self.name} needs the shaft speed: condition={{'rpm': ...}} or rpm=...")
        if len(rpm) and not 0 < float(rpm.min()) <= float(rpm.max()) <= self.fastest() * 60:
            raise ConfigError(f"rpm {float(rpm.min()):g}..{float(rpm.max()):g} is outside 0..{self.fastest() * 60:g}")
        return rpm / 60

    def fastest(self) -> float:
        """Highest shaft speed in Hz that can be asked for; it fixes the number of draws, so rows do not interact."""
        trained = float(self.fitted_schema.get("conditions", {}).get("rpm", {}).get("max", 0.0))
        return _SPEED_MARGIN * max(trained, self.hparams.rpm or 0.0) / 60

    def _snr(self, channels: int, rng: KeyedRNG) -> Tensor:
        """Power ratio (rows, channels, 1): as drawn on the best channel, up to 6 dB less on the others."""
        loss = 6 * rng.fork("channels").uniform((channels, 1))
        snr = between(self.hparams.snr_db, rng.fork("snr").uniform((1, 1))) - (loss - loss.amin(1, keepdim=True))
        loudness = torch.as_tensor(self.loudness(rng), device=rng.device).reshape(-1, 1, 1)
        return torch.pow(10, snr / 10) * loudness

    @property
    def duration(self) -> float:
        """Seconds that are simulated: the window and what comes before it."""
        return LEAD + float(self.fitted_schema["length"]) / self.rate

    def top_speed(self) -> float:
        """Highest speed relative to the nominal one that profile and fluctuation reach."""
        return float(max(self.hparams.speed_profile or [1.0]) * (1 + self.hparams.speed_fluctuation[1]))

    def clock(self, rng: KeyedRNG) -> Clock | None:
        """Draw how the speed varies; None if it is constant."""
        p = self.hparams
        if p.speed_profile is None and p.speed_fluctuation[1] == 0:
            return None
        draw = rng.fork("speed").uniform((3,))
        deviation = between(p.speed_fluctuation, draw[:, 0])
        frequency = between_log(p.fluctuation_rate, draw[:, 1])
        return Clock(p.speed_profile, deviation, frequency, 2 * math.pi * draw[:, 2], LEAD, self.duration)

    def response(self, steps: int, rng: KeyedRNG) -> Tensor:
        """Draw resonances and return their impulse response on the fine grid (rows, at most ``steps``).

        Args:
            steps: Of the signal that it is convolved with.
            rng: One seed a row.
        """
        p, fine = self.hparams, OVERSAMPLING * self.rate
        draw = rng.fork("structure").uniform((3, p.max_modes))
        frequency = between(p.resonance, draw[:, 0]) * self.rate / 2
        damping = between_log(p.damping, draw[:, 1])
        modes = 1 + rng.fork("modes").integers(p.max_modes, (1,))
        gain = (0.2 + 0.8 * draw[:, 2]) * (torch.arange(p.max_modes, device=rng.device) < modes)
        slowest = 2 * math.pi * p.damping[0] * p.resonance[0] * self.rate / 2
        return impulse_response(frequency, damping, gain, support(slowest, fine, steps), fine)

    def fine_steps(self) -> int:
        """Points of the fine grid, lead included."""
        return OVERSAMPLING * (self._lead_steps() + int(self.fitted_schema["length"]))

    def in_window(self, fine: Tensor) -> Tensor:
        """Take the window (rows, length) out of a signal on the fine grid."""
        return fine[:, OVERSAMPLING * self._lead_steps() :: OVERSAMPLING]

    def _lead_steps(self) -> int:
        return round(LEAD * self.rate)
