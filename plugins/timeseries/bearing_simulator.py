"""Faulty bearings from physics: impulse trains at the defect frequencies, added to real healthy vibration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, SchemaError
from lightning_synth.plugins.timeseries.fault_simulator import (
    NORMAL,
    OVERSAMPLING,
    FaultSimulator,
    between,
    between_log,
    check_interval,
)
from lightning_synth.plugins.timeseries.vibration import Clock, convolve, impact_train, support
from lightning_synth.requests import KeyedRNG
from lightning_synth.signal import bearing_frequencies, bearing_geometry

INNER, OUTER, BALL = range(1, 4)
_WORDS = (
    (NORMAL, r"n\b|normal|healthy|baseline|good|no[_ -]?fault"),
    (INNER, r"ir|inner|i\b"),
    (OUTER, r"or|outer|o\b"),
    (BALL, r"b\b|ball|roll|re\b"),
)
# A rolling element takes 0.1 ms over a small spall; with the paths through the machine, up to some ms (seconds).
_PATCH = (1e-4, 3e-3)
# The drawn signal-to-noise ratio is that of a defect this wide (in ball diameters); 0.014 inch in a 6205 bearing.
_USUAL_WIDTH = 0.045
# Force of entering a spall relative to that of leaving it.
_ENTRY = 0.5


def fault_type(class_name: str) -> int:
    """Read the faulty part from a class name.

    Args:
        class_name: E.g. ``N IR OR B``, ``inner race``, ``OR@6``, ``IR_007``, ``healthy``.

    Returns:
        NORMAL, INNER, OUTER or BALL.

    Raises:
        SchemaError: If the name says none of them.

    Example:
        >>> [fault_type(name) for name in ("N", "IR_014", "outer race", "Ball")] == [NORMAL, INNER, OUTER, BALL]
        True
    """
    word = class_name.strip().lower().replace("_", " ")
    for kind, pattern in _WORDS:
        if re.match(pattern, word):
            return kind
    raise SchemaError(
        f"class {class_name!r} does not name a bearing part; the simulator knows N, IR, OR, B and the words "
        "normal/healthy, inner, outer, ball: set class_names in the DataModule"
    )


def impact_times(order: Tensor, shaft: Tensor, slip: Tensor, count: int, rng: KeyedRNG) -> Tensor:
    """Draw when a rolling element meets the defect.

    The angle between impacts is normal with mean 1/order of a revolution and relative deviation ``slip``; increments
    are independent, so the jitter accumulates and the line spectrum broadens with frequency (Antoni & Randall 2003).

    Args:
        order: Impacts per shaft revolution (rows,).
        shaft: Shaft speed, Hz (rows,).
        slip: Relative standard deviation of the increments (rows,).
        count: Impacts to draw.
        rng: One seed a row.

    Returns:
        Times in seconds (rows, count), the first one within one period after 0.
    """
    gap = (1 + slip[:, None] * rng.normal((count,))).clamp(min=0.1)
    gap[:, 0] = rng.uniform(())
    return gap.cumsum(dim=1) / (order * shaft)[:, None]


def load_zone(angle: Tensor, extent: Tensor) -> Tensor:
    """Stribeck's distribution of the load over the angle from its centre: [1 - (1 - cos angle) / (2 extent)]^(3/2).

    Args:
        angle: Radians.
        extent: Load factor epsilon; .5 is a zone of half a turn.

    Returns:
        Relative load in [0, 1], of the broadcast shape.
    """
    return (1 - (1 - angle.cos()) / (2 * extent)).clamp(min=0).pow(1.5)


def impact_amplitudes(
    kind: Tensor, times: Tensor, shaft: Tensor, cage_order: float, rng: KeyedRNG, spread: float = 0.1
) -> Tensor:
    """Strength of each impact: how loaded the defect is at that moment, times a random factor.

    An outer-race defect stands still in the load zone: its impacts vary little, with the unbalance of the shaft. An
    inner-race defect turns with the shaft through the load zone. A ball defect passes it with the cage, and strikes the
    two races in turn with unequal force.

    Args:
        kind: INNER, OUTER or BALL (rows,).
        times: Seconds (rows, impacts).
        shaft: Hz (rows,).
        cage_order: Cage speed as a multiple of the shaft speed.
        rng: One seed a row.
        spread: Relative standard deviation of the random factor.

    Returns:
        (rows, impacts), not negative.
    """
    draw = rng.uniform((5, 1))
    extent, depth, unbalance = 0.3 + 0.5 * draw[:, 0], 0.5 + 0.5 * draw[:, 1], 0.3 * draw[:, 2]
    other_race, start = 0.4 + 0.6 * draw[:, 3], 2 * math.pi * draw[:, 4]
    speed = torch.where(kind == BALL, cage_order * shaft, shaft)[:, None]
    angle = 2 * math.pi * speed * times + start
    loaded = 1 - depth + depth * load_zone(angle, extent)
    steady = 1 + unbalance * angle.cos()
    alternating = torch.where(torch.arange(times.shape[1], device=times.device) % 2 == 0, 1.0, other_race)
    strength = torch.where((kind == OUTER)[:, None], steady, loaded)
    strength = torch.where((kind == BALL)[:, None], strength * alternating, strength)
    return strength * (1 + spread * rng.normal((times.shape[1],))).clamp(min=0)


def rough_force(train: Tensor, share: Tensor, duration: Tensor, rate: float, rng: KeyedRNG) -> Tensor:
    """Force of rolling over a spall: a sharp impact, and noise while the rolling element is on the rough patch.

    Between share 0 (a localised fault: pure impacts) and 1 (an extended one: noise modulated at the defect frequency,
    second-order cyclostationary, Antoni & Randall 2003).

    Args:
        train: Impacts (rows, steps).
        share: Of the energy that goes into noise (rows,).
        duration: Decay time of the noise after each impact, seconds (rows,), at most 3 ms.
        rate: Grid points per second.
        rng: One seed a row.

    Returns:
        (rows, steps).
    """
    t = torch.arange(support(1 / _PATCH[1], rate, train.shape[1]), device=train.device) / rate
    noise = convolve(train, torch.exp(-t / duration[:, None])) * rng.normal((train.shape[1],))
    energy = train.square().sum(1) / noise.square().sum(1).clamp(min=1e-12)
    return (1 - share).sqrt()[:, None] * train + (share * energy).sqrt()[:, None] * noise


def distributed_force(angle: Tensor, depth: Tensor, rng: KeyedRNG) -> Tensor:
    """Force of a defect that is spread over a raceway: noise modulated at the defect frequency, B(t) [1 + q sin].

    Args:
        angle: Turns of the defect frequency (rows, steps).
        depth: Of the modulation, q (rows,).
        rng: One seed a row.

    Returns:
        (rows, steps).
    """
    turn = angle + rng.uniform((1,))
    return rng.normal((angle.shape[1],)) * (1 + depth[:, None] * torch.sin(2 * math.pi * turn))


class BearingSimulator(FaultSimulator):
    """Bearing faults (Antoni & Randall) on top of real healthy windows.

    x = healthy window + simulated impacts at a random signal-to-noise ratio. The impacts come at the defect frequency
    of the class (BPFI inner race, BPFO outer race, twice BSF ball) with accumulating slip, are modulated by the load
    zone, and excite one to three random resonances. Rows of the normal class are healthy windows with another sensor
    gain.

    Options beyond the localised fault at constant speed: with ``severity``, a rolling element that enters a spall
    unloads softly and strikes its far edge, later and harder the wider the spall (Sawalhi & Randall); with
    ``distributed``, rows of worn raceways; with ``speed_profile`` and ``speed_fluctuation``, a shaft that does not turn
    evenly.

    Args:
        snr_db: Interval of the ratio of impact power to healthy power, dB (of the channel that hears the fault best).
        roughness: Interval of the share of noise (a rough patch) against sharp impacts in the energy of the force.
        slip: Interval of the relative jitter of the angle between impacts.
        severity: Interval of the width of the defect in ball diameters (CWRU: 0.02 to 0.09); amplitude is proportional
            to it, and ``snr_db`` holds for 0.045. None: single impacts, whatever the width.
        distributed: Probability that the fault of a row is distributed.
        modulation: Interval of the depth q of the modulation of a distributed fault.
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
        bearing: ``cwru_de``, ``cwru_fe``, ``mfpt``, or ``num_balls ball_diameter pitch_diameter contact_angle``
            (degrees); None: of the schema.
        parts: What each class is, in the order of the labels (``["N", "IR", "OR"]``); None: the schema's class names.

    Shapes:
        x: (rows, channels, length), units of the data.

    Raises:
        SchemaError: If the data have no sampling rate, bearing geometry, healthy windows or shaft speed.

    Source:
        McFadden & Smith 1984, doi:10.1016/0022-460X(84)90595-9; Antoni & Randall 2003, doi:10.1115/1.1569940; Sawalhi
        & Randall, Vibration response of spalled rolling element bearings, MSSP 25 (2011).

    Example:
        >>> BearingSimulator(snr_db=(0, 10), bearing="cwru_de").hparams.snr_db
        [0, 10]
    """

    name = "bearing_simulator"

    def __init__(
        self,
        *,
        roughness: Sequence[float] = (0.0, 0.9),
        slip: Sequence[float] = (0.005, 0.03),
        severity: Sequence[float] | None = None,
        distributed: float = 0.0,
        modulation: Sequence[float] = (0.3, 1.0),
        bearing: str | Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 <= distributed <= 1:
            raise ConfigError(f"distributed must be a probability, got {distributed}")
        if severity is not None and check_interval("severity", severity, 0, 1)[0] == 0:
            raise ConfigError("severity must be above 0")
        super().__init__(
            roughness=check_interval("roughness", roughness, 0, 1),
            slip=check_interval("slip", slip),
            severity=None if severity is None else list(severity),
            distributed=distributed,
            modulation=check_interval("modulation", modulation, 0, 1),
            bearing=dict(bearing) if isinstance(bearing, Mapping) else bearing,
            **kwargs,
        )

    def kind_of(self, class_name: str) -> int:
        """Read the faulty part from a class name, see `fault_type`."""
        return fault_type(class_name)

    def build(self, schema: dict[str, Any]) -> None:
        """Collect what physics needs to know, from the arguments or else from the data.

        Args:
            schema: As `FaultSimulator.build`, and ``bearing``.
        """
        super().build(schema)
        bearing: Any = self.hparams.bearing or schema.get("bearing")
        self.need(bearing, "bearing", "the geometry (num_balls, ball_diameter, pitch_diameter, contact_angle)")
        self.bearing = bearing_geometry(bearing)
        # At one revolution a second, frequencies are multiples of the shaft speed.
        self.orders = {name: float(value) for name, value in bearing_frequencies(self.bearing, rpm=60.0).items()}

    def simulate(self, kind: Tensor, shaft: Tensor, rng: KeyedRNG) -> Tensor:
        """Simulate the impacts alone, in arbitrary units (rows, length).

        Args:
            kind: INNER, OUTER or BALL (rows,).
            shaft: Hz (rows,).
            rng: One seed a row.
        """
        p, steps, fine = self.hparams, self.fine_steps(), OVERSAMPLING * self.rate
        orders = [1.0, self.orders["BPFI"], self.orders["BPFO"], 2 * self.orders["BSF"]]
        count = math.ceil(1.25 * self.duration * max(orders) * self.fastest() * self.top_speed()) + 4
        order = torch.tensor(orders, device=rng.device)[kind]
        slip = between(p.slip, rng.fork("slip").uniform(()))
        times = impact_times(order, shaft, slip, count, rng.fork("times"))
        strength = impact_amplitudes(kind, times, shaft, self.orders["FTF"], rng.fork("amplitudes"))
        clock = self.clock(rng)
        if p.severity is None:
            train = impact_train(times if clock is None else clock.real(times), strength, steps, fine)
        else:
            train = self._double_impacts(kind, order * shaft, times, strength, clock, rng)
        patch = rng.fork("patch").uniform((2,))
        share, duration = between(p.roughness, patch[:, 0]), between_log(_PATCH, patch[:, 1])
        force = rough_force(train, share, duration, fine, rng.fork("rough"))
        if p.distributed:
            worn = rng.fork("worn").bernoulli(p.distributed)
            force = torch.where(worn[:, None], self._worn(order * shaft, clock, rng), force)
        return self.in_window(convolve(force, self.response(steps, rng)))

    def loudness(self, rng: KeyedRNG) -> Tensor | float:
        """Power relative to a defect of the usual width: amplitude is proportional to the width."""
        return 1.0 if self.hparams.severity is None else (self._width(rng) / _USUAL_WIDTH).square()

    def _width(self, rng: KeyedRNG) -> Tensor:
        """Width of the defect in ball diameters (rows,)."""
        return between(self.hparams.severity, rng.fork("severity").uniform(()))

    def _double_impacts(
        self, kind: Tensor, frequency: Tensor, times: Tensor, strength: Tensor, clock: Clock | None, rng: KeyedRNG
    ) -> Tensor:
        """Soft entries into the spall, opposite in sign, and sharp exits (rows, steps), Sawalhi & Randall 2011.

        On a race the next rolling element follows after pi D / n; on the ball the other race after pi d / 2.
        """
        steps, fine = self.fine_steps(), OVERSAMPLING * self.rate
        spacing = math.pi * self.bearing["pitch_diameter"] / self.bearing["num_balls"] / self.bearing["ball_diameter"]
        transit = self._width(rng) / torch.where(kind == BALL, math.pi / 2, spacing) / frequency
        leave = times + transit[:, None]
        if clock is not None:
            times, leave = clock.real(times), clock.real(leave)
        t = torch.arange(steps, device=times.device) / fine
        unloading = torch.exp(-2 * t / transit[:, None])
        entry = convolve(impact_train(times, strength, steps, fine), unloading / unloading.sum(1, keepdim=True))
        return impact_train(leave, strength, steps, fine) - _ENTRY * entry

    def _worn(self, frequency: Tensor, clock: Clock | None, rng: KeyedRNG) -> Tensor:
        """Force of a distributed fault (rows, steps)."""
        t = torch.arange(self.fine_steps(), device=rng.device) / (OVERSAMPLING * self.rate)
        turned = t if clock is None else clock.nominal(t)
        depth = between(self.hparams.modulation, rng.fork("depth").uniform(()))
        return distributed_force(frequency[:, None] * turned, depth, rng.fork("distributed"))
