"""Faulty gears from physics: gear mesh with sidebands and tooth faults, added to real healthy vibration."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError, SchemaError
from lightning_synth.plugins.timeseries.fault_simulator import (
    LEAD,
    NORMAL,
    OVERSAMPLING,
    FaultSimulator,
    between,
    check_interval,
)
from lightning_synth.plugins.timeseries.vibration import Clock, convolve, impact_train
from lightning_synth.requests import KeyedRNG

WEAR, CRACK, MISSING = range(1, 4)
_WORDS = (
    (NORMAL, r"n\b|normal|health|baseline|good|no[_ -]?fault"),
    (WEAR, r"wear|worn|surface|eccentric|misalign|unbalance|pitting"),
    (CRACK, r"crack|root"),
    (MISSING, r"miss|broken|chip"),
)
# Mesh harmonics that reach beyond this share of the Nyquist frequency are left out, so that none is mirrored.
_BAND = 0.95


def gear_fault(class_name: str) -> int:
    """Read the fault from a class name.

    Args:
        class_name: E.g. ``healthy``, ``surface wear``, ``root crack``, ``Miss``, ``chipped tooth``.

    Returns:
        NORMAL, WEAR, CRACK or MISSING.

    Raises:
        SchemaError: If the name says none of them.

    Example:
        >>> [gear_fault(name) for name in ("Health", "Surface", "Root", "Chipped")] == [NORMAL, WEAR, CRACK, MISSING]
        True
    """
    word = class_name.strip().lower().replace("_", " ")
    for kind, pattern in _WORDS:
        if re.match(pattern, word):
            return kind
    raise SchemaError(
        f"class {class_name!r} does not name a state of a gear; the simulator knows the words normal/healthy, "
        "wear/surface/eccentric, crack/root, missing/broken/chipped: set class_names in the DataModule, or parts="
    )


def tooth_pulse(turn: Tensor, teeth: int) -> Tensor:
    """Return the pulse of one tooth: a raised cosine one tooth wide, once a revolution.

    Args:
        turn: Revolutions, of any shape; the tooth is in mesh around whole numbers.
        teeth: Of the gear.

    Returns:
        In [0, 1], of that shape.

    Example:
        >>> [round(v, 3) for v in tooth_pulse(torch.tensor([0.0, 0.5, 1.0, 1.02]), 20).tolist()]
        [1.0, 0.0, 1.0, 0.095]
    """
    away = (turn - turn.round()) * teeth
    return torch.where(away.abs() < 0.5, (1 + torch.cos(2 * math.pi * away)) / 2, 0.0)


class GearSimulator(FaultSimulator):
    """Gear faults on top of real healthy windows.

    x = healthy window + sum over mesh harmonics m of A_m [1 + a(t)] cos(2 pi m z theta + phi_m + m b(t)), with theta
    the revolutions of the faulty gear and z its teeth (McFadden 1986), at a random signal-to-noise ratio. By class:

    * ``wear`` (surface wear, eccentricity): a and b are sums of the first shaft harmonics: sidebands at multiples of
      the shaft speed around every mesh harmonic.
    * ``crack``: a and b are pulses one tooth wide, once a revolution: the weak tooth carries less and lags.
    * ``missing`` (broken, chipped tooth): the mesh gives way once a revolution, and the blow of the next tooth makes
      the structure ring.

    Rows of the normal class are healthy windows with another sensor gain.

    Args:
        teeth: Of the faulty gear, which turns with ``rpm``. Needed.
        harmonics: Mesh harmonics; those beyond the Nyquist frequency are left out.
        sidebands: Shaft harmonics that modulate the mesh of a worn gear.
        depth: Interval of the depth of the amplitude modulation.
        lag: Interval of the phase modulation, radians at the first mesh harmonic.
        burst: Interval of the power of the ringing relative to that of the mesh, for missing teeth.
        snr_db: Interval of the ratio of fault power to healthy power, dB (of the channel that hears the fault best).
        resonance: Interval of the natural frequencies as a share of the Nyquist frequency.
        damping: Interval of the damping ratio (drawn log-uniformly).
        max_modes: Most resonances of a row.
        gain_db: Sensor gain of the whole window is drawn within plus or minus this, dB.
        rpm: Shaft speed, 1/min, for data without an ``rpm`` condition.
        speed_profile: Speed relative to ``rpm`` at evenly spaced moments of the window; None: constant.
        speed_fluctuation: Interval of the relative amplitude of a slow oscillation of the speed.
        fluctuation_rate: Interval of its frequency, Hz (drawn log-uniformly).
        sampling_rate: Hz; None: of the schema.
        parts: What each class is, in the order of the labels (``["N", "crack"]``); None: the schema's class names.

    Shapes:
        x: (rows, channels, length), units of the data.

    Raises:
        SchemaError: If the data have no sampling rate, healthy windows or shaft speed, or ``teeth`` is not given.

    Source:
        McFadden, Detecting fatigue cracks in gears by amplitude and phase demodulation of the meshing vibration,
        J. Vib. Acoust. 108 (1986), 165-170.

    Example:
        >>> GearSimulator(teeth=20).hparams.depth
        [0.3, 1.0]
    """

    name = "gear_simulator"

    def __init__(
        self,
        *,
        teeth: int | None = None,
        harmonics: int = 3,
        sidebands: int = 3,
        depth: Sequence[float] = (0.3, 1.0),
        lag: Sequence[float] = (0.0, 0.5),
        burst: Sequence[float] = (0.5, 4.0),
        **kwargs: Any,
    ) -> None:
        if (teeth is not None and teeth < 2) or harmonics < 1 or sidebands < 1:
            raise ConfigError(
                f"teeth must be at least 2, harmonics and sidebands at least 1, got {teeth}, {harmonics}, {sidebands}"
            )
        super().__init__(
            teeth=teeth,
            harmonics=harmonics,
            sidebands=sidebands,
            depth=check_interval("depth", depth, 0, 1),
            lag=check_interval("lag", lag, 0, math.pi),
            burst=check_interval("burst", burst, 0),
            **kwargs,
        )

    def kind_of(self, class_name: str) -> int:
        """Read the fault from a class name, see `gear_fault`."""
        return gear_fault(class_name)

    def build(self, schema: dict[str, Any]) -> None:
        """Collect what physics needs to know, from the arguments or else from the data.

        Args:
            schema: As `FaultSimulator.build`.
        """
        super().build(schema)
        if self.hparams.teeth is None:
            raise SchemaError("gear_simulator needs the number of teeth of the gear: pass teeth=")

    def simulate(self, kind: Tensor, shaft: Tensor, rng: KeyedRNG) -> Tensor:
        """Simulate mesh and tooth fault alone, in arbitrary units (rows, length).

        Args:
            kind: WEAR, CRACK or MISSING (rows,).
            shaft: Hz (rows,).
            rng: One seed a row.
        """
        clock, start = self.clock(rng), rng.fork("start").uniform((1,))
        time = LEAD + torch.arange(int(self.fitted_schema["length"]), device=rng.device) / self.rate
        turned = time.expand(len(rng), -1) if clock is None else clock.nominal(time)
        turn = shaft[:, None] * turned + start
        mesh = self._mesh(shaft, turn, *self._modulation(kind, turn, rng), rng)
        missing = (kind == MISSING).nonzero()[:, 0]
        if not len(missing):
            return mesh
        some = mesh[missing]
        ringing = self._ringing(shaft[missing], start[missing], clock, missing, rng)
        loud = between(self.hparams.burst, rng[missing].fork("burst").uniform((1,)))
        power = some.square().mean(1, keepdim=True) / ringing.square().mean(1, keepdim=True).clamp(min=1e-20)
        # A mesh entirely beyond the Nyquist frequency leaves the ringing alone.
        scale = torch.where(power > 0, loud * power, 1.0).sqrt()
        return mesh.index_copy(0, missing, some + scale * ringing)

    def _modulation(self, kind: Tensor, turn: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Amplitude and phase modulation a(t), b(t) of the mesh (rows, steps)."""
        p = self.hparams
        depth = between(p.depth, rng.fork("depth").uniform((1,)))
        lag = between(p.lag, rng.fork("lag").uniform((1,)))
        pulse = tooth_pulse(turn, p.teeth)
        draw = rng.fork("sidebands").uniform((3, p.sidebands))
        wave = torch.zeros_like(turn)
        swing = torch.zeros_like(turn)
        for k in range(p.sidebands):
            # Weights fall off as 1 / k on average, and the first one is full.
            weight = (1.0 if k == 0 else draw[:, 0, k : k + 1]) / (k + 1)
            angle = 2 * math.pi * (k + 1) * turn
            wave = wave + weight * torch.cos(angle + 2 * math.pi * draw[:, 1, k : k + 1])
            swing = swing + weight * torch.cos(angle + 2 * math.pi * draw[:, 2, k : k + 1])
        worn = (kind == WEAR)[:, None]
        lags = torch.where((kind == MISSING)[:, None], 0.0, lag)
        return depth * torch.where(worn, wave, -pulse), lags * torch.where(worn, swing, -pulse)

    def _mesh(self, shaft: Tensor, turn: Tensor, a: Tensor, b: Tensor, rng: KeyedRNG) -> Tensor:
        """Sum over mesh harmonics of A_m (1 + a) cos(2 pi m z turn + phi_m + m b) (rows, steps)."""
        p = self.hparams
        draw = rng.fork("mesh").uniform((2, p.harmonics))
        total = torch.zeros_like(turn)
        for m in range(1, p.harmonics + 1):
            highest = (m * p.teeth + p.sidebands) * shaft[:, None] * self.top_speed()
            size = (0.2 + 0.8 * draw[:, 0, m - 1 : m]) / m * (highest < _BAND * self.rate / 2)
            # Whole turns are taken off first: float32 cannot hold the phase of many teeth over a long window.
            angle = 2 * math.pi * (m * p.teeth * turn.frac() + draw[:, 1, m - 1 : m]) + m * b
            total = total + size * angle.cos()
        return total * (1 + a)

    def _ringing(self, shaft: Tensor, start: Tensor, clock: Clock | None, rows: Tensor, rng: KeyedRNG) -> Tensor:
        """Response of the structure to one blow a revolution (rows, length)."""
        mine = rng[rows]
        count = math.ceil(self.duration * self.fastest() * self.top_speed()) + 2
        nominal = (torch.arange(1, count + 1, device=rng.device) - start) / shaft[:, None]
        times = nominal if clock is None else clock[rows].real(nominal)
        strength = (1 + 0.1 * mine.fork("strength").normal((count,))).clamp(min=0)
        blows = impact_train(times, strength, self.fine_steps(), OVERSAMPLING * self.rate)
        return self.in_window(convolve(blows, self.response(self.fine_steps(), mine)))
