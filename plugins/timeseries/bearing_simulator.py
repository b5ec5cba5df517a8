"""Faulty bearings from physics: impulse trains at the defect frequencies, added to real healthy vibration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, SchemaError
from lightning_synth.plugins.resampling import TrainingRows, WindowResampler
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.signal import bearing_frequencies

NORMAL, INNER, OUTER, BALL = range(4)
_WORDS = (
    (NORMAL, r"n\b|normal|healthy|baseline|good|no[_ -]?fault"),
    (INNER, r"ir|inner|i\b"),
    (OUTER, r"or|outer|o\b"),
    (BALL, r"b\b|ball|roll|re\b"),
)
# The simulation starts this long before the window, so that earlier impacts still ring in it (seconds).
_LEAD = 0.02
# Impacts fall on a grid this much finer than the sampling interval.
_OVERSAMPLING = 4
# Requested shaft speeds may exceed the fastest of training by this factor.
_SPEED_MARGIN = 2.0
# A rolling element takes 0.1 ms over a small spall; with the paths through the machine, up to some ms (seconds).
_PATCH = (1e-4, 3e-3)
_CHUNK = 256


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


def impact_train(times: Tensor, amplitudes: Tensor, steps: int, rate: float) -> Tensor:
    """Put impacts on a grid; one between two grid points is shared by them, which keeps its time.

    Args:
        times: Seconds from the start of the grid (rows, impacts).
        amplitudes: (rows, impacts).
        steps: Grid points.
        rate: Grid points per second.

    Returns:
        (rows, steps).

    Example:
        >>> impact_train(torch.tensor([[0.25]]), torch.tensor([[2.0]]), 4, 10.0)
        tensor([[0., 0., 1., 1.]])
    """
    place = times * rate
    left = place.floor()
    share = amplitudes * (place - left)
    inside = (left >= 0) & (left < steps - 1)
    left = torch.where(inside, left, 0).long()
    grid = torch.zeros((len(times), steps), device=times.device)
    grid.scatter_add_(1, left, torch.where(inside, amplitudes - share, 0))
    return grid.scatter_add_(1, left + 1, torch.where(inside, share, 0))


def impulse_response(frequency: Tensor, damping: Tensor, gain: Tensor, steps: int, rate: float) -> Tensor:
    """Response of a resonant structure: sum over its modes of g exp(-z w t) sin(w sqrt(1 - z^2) t), w = 2 pi f.

    Args:
        frequency: Natural frequencies, Hz (rows, modes).
        damping: Damping ratios z (rows, modes).
        gain: Weight g of each mode (rows, modes).
        steps: Points in time.
        rate: Points per second.

    Returns:
        (rows, steps).
    """
    t = torch.arange(steps, device=frequency.device) / rate
    omega = 2 * math.pi * frequency[..., None]
    decay, damped = damping[..., None] * omega, omega * (1 - damping[..., None] ** 2).sqrt()
    return (gain[..., None] * torch.exp(-decay * t) * torch.sin(damped * t)).sum(1)


def convolve(signal: Tensor, response: Tensor) -> Tensor:
    """Causal convolution of each row with its own response, cut to the length of the signal (rows, steps)."""
    # The least length with small factors that leaves room for the tail.
    least = 2 * signal.shape[-1]
    size = min(odd * 2 ** math.ceil(math.log2(least / odd)) for odd in (1, 3, 5, 9, 15))
    out: Tensor = torch.fft.irfft(torch.fft.rfft(signal, size) * torch.fft.rfft(response, size), size)
    return out[:, : signal.shape[-1]]


def rough_force(train: Tensor, share: Tensor, duration: Tensor, rate: float, rng: KeyedRNG) -> Tensor:
    """Force of rolling over a spall: a sharp impact, and noise while the rolling element is on the rough patch.

    Between share 0 (a localised fault: pure impacts) and 1 (an extended one: noise modulated at the defect frequency,
    second-order cyclostationary, Antoni & Randall 2003).

    Args:
        train: Impacts (rows, steps).
        share: Of the energy that goes into noise (rows,).
        duration: Decay time of the noise after each impact, seconds (rows,).
        rate: Grid points per second.
        rng: One seed a row.

    Returns:
        (rows, steps).
    """
    t = torch.arange(train.shape[1], device=train.device) / rate
    noise = convolve(train, torch.exp(-t / duration[:, None])) * rng.normal((train.shape[1],))
    energy = train.square().sum(1) / noise.square().sum(1).clamp(min=1e-12)
    return (1 - share).sqrt()[:, None] * train + (share * energy).sqrt()[:, None] * noise


class BearingSimulator(WindowResampler):
    """Localised bearing faults (Antoni & Randall) on top of real healthy windows.

    x = healthy window + simulated impacts at a random signal-to-noise ratio. The impacts come at the defect frequency
    of the class (BPFI inner race, BPFO outer race, twice BSF ball) with accumulating slip, are modulated by the load
    zone, and excite one to three random resonances. Rows of the normal class are healthy windows with another sensor
    gain. McFadden & Smith 1984, doi:10.1016/0022-460X(84)90595-9; Antoni & Randall 2003, doi:10.1115/1.1569940.

    Args:
        snr_db: Interval of the ratio of impact power to healthy power, dB (of the channel that hears the fault best).
        roughness: Interval of the share of noise (a rough patch) against sharp impacts in the energy of the force.
        slip: Interval of the relative jitter of the angle between impacts.
        resonance: Interval of the natural frequencies as a share of the Nyquist frequency.
        damping: Interval of the damping ratio (drawn log-uniformly).
        max_modes: Most resonances of a row.
        gain_db: Sensor gain of the whole window is drawn within plus or minus this, dB.
        rpm: Shaft speed, 1/min, for data without an ``rpm`` condition.
        sampling_rate: Hz; None: of the schema.
        bearing: ``num_balls ball_diameter pitch_diameter contact_angle`` (degrees); None: of the schema.
        parts: What each class is, in the order of the labels (``["N", "IR", "OR"]``); None: the schema's class names.

    Shapes:
        x: (rows, channels, length), units of the data.

    Raises:
        SchemaError: If the data have no sampling rate, bearing geometry, healthy windows or shaft speed.

    Example:
        >>> BearingSimulator(snr_db=(0, 10)).hparams.snr_db
        [0, 10]
    """

    def __init__(
        self,
        *,
        snr_db: Sequence[float] = (-10.0, 10.0),
        roughness: Sequence[float] = (0.0, 0.9),
        slip: Sequence[float] = (0.005, 0.03),
        resonance: Sequence[float] = (0.15, 0.85),
        damping: Sequence[float] = (0.02, 0.1),
        max_modes: int = 3,
        gain_db: float = 1.0,
        rpm: float | None = None,
        sampling_rate: float | None = None,
        bearing: Mapping[str, float] | None = None,
        parts: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        intervals = {"snr_db": snr_db, "roughness": roughness, "slip": slip, "resonance": resonance, "damping": damping}
        for name, pair in intervals.items():
            if len(pair) != 2 or pair[0] > pair[1]:
                raise ConfigError(f"{name} must be an interval (low, high), got {tuple(pair)}")
        if min(roughness) < 0 or max(roughness) > 1:
            raise ConfigError(f"roughness must lie in [0, 1], got {tuple(roughness)}")
        if min(damping) <= 0 or max(damping) >= 1 or min(resonance) <= 0 or max(resonance) > 1 or max_modes < 1:
            raise ConfigError("damping must lie in (0, 1), resonance in (0, 1] and max_modes be at least 1")
        super().__init__(
            snr_db=list(snr_db),
            roughness=list(roughness),
            slip=list(slip),
            resonance=list(resonance),
            damping=list(damping),
            max_modes=max_modes,
            gain_db=gain_db,
            rpm=rpm,
            sampling_rate=sampling_rate,
            bearing=None if bearing is None else dict(bearing),
            parts=None if parts is None else list(parts),
            **kwargs,
        )

    def build(self, schema: dict[str, Any]) -> None:
        """Collect what physics needs to know, from the arguments or else from the data.

        Args:
            schema: Of a timeseries; ``sampling_rate``, ``bearing``, ``class_names`` and the condition ``rpm`` are read.
        """
        bearing: Any = self.hparams.bearing or schema.get("bearing")
        rate: Any = self.hparams.sampling_rate or schema.get("sampling_rate")
        for value, name, what in (
            (rate, "sampling_rate", "the sampling rate in Hz"),
            (bearing, "bearing", "the geometry (num_balls, ball_diameter, pitch_diameter, contact_angle)"),
            (self.hparams.rpm or schema.get("conditions", {}).get("rpm"), "rpm", "the shaft speed in 1/min"),
            (schema.get("num_classes"), "class_names", "labelled classes (N, IR, OR, B)"),
        ):
            if not value:
                hint = "" if name == "class_names" else f"pass {name}=, or "
                raise SchemaError(f"bearing_simulator needs {what}: {hint}use a DataModule whose schema has it")
        names = self.hparams.parts or schema["class_names"]
        if len(names) != schema["num_classes"]:
            raise ConfigError(f"parts names {len(names)} classes, the data have {schema['num_classes']}")
        self.kinds = [fault_type(name) for name in names]
        if NORMAL not in self.kinds:
            raise SchemaError(f"bearing_simulator adds faults to healthy windows, but none of {list(names)} is healthy")
        # At one revolution a second, frequencies are multiples of the shaft speed.
        self.orders = {name: float(value) for name, value in bearing_frequencies(bearing, rpm=60.0).items()}
        self.rate = float(rate)

    @property
    def healthy(self) -> TrainingRows:
        """The windows of normal operation."""
        return self.derived("healthy", self._find_healthy)

    def _find_healthy(self) -> TrainingRows:
        rows = self.rows.of_class(self.kinds.index(NORMAL))
        if rows is None:
            raise SchemaError("bearing_simulator adds faults to healthy windows, but the training data have none")
        return rows

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> dict[str, Tensor]:
        """Add simulated impacts to healthy windows of the nearest working condition.

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
        parts = [self.impacts(kind[i], shaft[i], rng[i]) for i in torch.arange(len(rng)).split(_CHUNK)]
        impacts = torch.cat([*parts, x.new_zeros((0, x.shape[-1]))])[:, None]
        power = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        # A window shorter than the time between impacts may hold none.
        heard = impacts.square().mean(-1, keepdim=True).clamp(min=1e-20)
        impacts = impacts * (power * self._snr(x.shape[1], rng) / heard).sqrt()
        if "rpm" in batch:
            batch["rpm"] = 60 * shaft
        return batch | {"x": torch.where((kind == NORMAL)[:, None, None], x, x + impacts), "y": label}

    def _shaft_speed(self, requests: SampleRequests, batch: Mapping[str, Tensor], rng: KeyedRNG) -> Tensor:
        """Shaft speed in Hz (rows,): as asked, else of the healthy window, else the fixed one."""
        rpm = requests.condition.get("rpm", batch.get("rpm"))
        if self.hparams.rpm is not None and "rpm" not in requests.condition:
            rpm = torch.full((len(rng),), float(self.hparams.rpm), device=rng.device)
        if rpm is None:
            raise SchemaError("bearing_simulator needs the shaft speed: condition={'rpm': ...} or rpm=...")
        if len(rpm) and not 0 < float(rpm.min()) <= float(rpm.max()) <= self._fastest() * 60:
            raise ConfigError(f"rpm {float(rpm.min()):g}..{float(rpm.max()):g} is outside 0..{self._fastest() * 60:g}")
        return rpm / 60

    def _fastest(self) -> float:
        """Highest shaft speed in Hz that can be asked for; it fixes the number of draws, so rows do not interact."""
        trained = float(self.fitted_schema.get("conditions", {}).get("rpm", {}).get("max", 0.0))
        return _SPEED_MARGIN * max(trained, self.hparams.rpm or 0.0) / 60

    def _snr(self, channels: int, rng: KeyedRNG) -> Tensor:
        """Power ratio (rows, channels, 1): as drawn on the best channel, up to 6 dB less on the others."""
        low, high = self.hparams.snr_db
        loss = 6 * rng.fork("channels").uniform((channels, 1))
        snr = low + (high - low) * rng.fork("snr").uniform((1, 1)) - (loss - loss.amin(1, keepdim=True))
        return torch.pow(10, snr / 10)

    def impacts(self, kind: Tensor, shaft: Tensor, rng: KeyedRNG) -> Tensor:
        """Simulate the impacts alone, in arbitrary units.

        Args:
            kind: NORMAL, INNER, OUTER or BALL (rows,); NORMAL rows are to be ignored.
            shaft: Hz (rows,).
            rng: One seed a row.

        Returns:
            (rows, length).
        """
        p, length, rate = self.hparams, self.fitted_schema["length"], self.rate
        orders = [1.0, self.orders["BPFI"], self.orders["BPFO"], 2 * self.orders["BSF"]]
        count = math.ceil(1.25 * (_LEAD + length / rate) * max(orders) * self._fastest()) + 4
        draw = rng.fork("structure").uniform((3, p.max_modes))
        frequency = (p.resonance[0] + (p.resonance[1] - p.resonance[0]) * draw[:, 0]) * rate / 2
        damping = p.damping[0] * (p.damping[1] / p.damping[0]) ** draw[:, 1]
        modes = 1 + rng.fork("modes").integers(p.max_modes, (1,))
        gain = (0.2 + 0.8 * draw[:, 2]) * (torch.arange(p.max_modes, device=rng.device) < modes)
        slip = p.slip[0] + (p.slip[1] - p.slip[0]) * rng.fork("slip").uniform(())
        order = torch.tensor(orders, device=rng.device)[kind]
        times = impact_times(order, shaft, slip, count, rng.fork("times"))
        amplitudes = impact_amplitudes(kind, times, shaft, self.orders["FTF"], rng.fork("amplitudes"))
        before, fine = round(_LEAD * rate), _OVERSAMPLING * rate
        steps = _OVERSAMPLING * (before + length)
        patch = rng.fork("patch").uniform((2,))
        share = p.roughness[0] + (p.roughness[1] - p.roughness[0]) * patch[:, 0]
        duration = _PATCH[0] * (_PATCH[1] / _PATCH[0]) ** patch[:, 1]
        force = rough_force(impact_train(times, amplitudes, steps, fine), share, duration, fine, rng.fork("rough"))
        signal = convolve(force, impulse_response(frequency, damping, gain, steps, fine))
        return signal[:, _OVERSAMPLING * before :: _OVERSAMPLING]
