"""DataModule for bearing vibration: windows of recordings, split so that no bearing is on both sides."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from lightning_synth.datamodules import cwru
from lightning_synth.datamodules.base import ItemsDataModule, Splits
from lightning_synth.datamodules.cwru import Recording
from lightning_synth.datamodules.windows import apart, cut_windows, draw_shots, time_blocks, window_starts
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.items import StackedItems

log = logging.getLogger(__name__)

CLASSES = ("N", "IR", "OR", "B")
#: One stretch of a recording: which recording, first and last sample.
Block = tuple[Recording, int, int]


class BearingDataModule(ItemsDataModule):
    """Windows of bearing vibration: healthy, inner-race, outer-race and ball faults; conditions ``rpm`` and ``load``.

    How it splits:

    * ``fault_size`` (the honest default): every recording of one fault diameter is test. Each diameter and type is
      another physical bearing, so no faulted bearing is on both sides. Labels are the fault types alone.
    * ``load``: every fault recording of one motor load is test. The same bearings are in training at other loads, which
      flatters: about 95 % instead of 53 % accuracy (Hendriks et al. 2022).
    * ``recording``: a quarter of the recordings of each type is test (``test_fold`` 0..3). Flatters in the same way.

    There is only one healthy bearing. Its recordings are split by time into training, validation and test, one window
    apart; with ``split="load"`` those of the test load are test, if training has others.

    Validation comes from the *training* recordings, never from test: without ``shots`` it is the last ``val_fraction``
    of each; with ``shots`` it is every window that lies at least one window away from each shot.

    Args:
        root: Folder (searched with its subfolders) with the official ``.mat`` files, named ``97.mat`` or
            ``Normal_0.mat``, or with ``cwru_12k_DE_load0.npz`` and ``cwru_normal.npz``.
        rig: Only ``cwru`` so far (Case Western Reserve University).
        end: Accelerometer at the drive end (``DE``) or the fan end (``FE``).
        split: ``fault_size``, ``load`` or ``recording``.
        window: Samples in a window.
        shots: Training windows a fault type; None for all. The healthy class keeps ``normal_windows``.
        draw: Which shots and healthy windows; the shots of a smaller number are among those of a larger one.
        stride: Samples between windows; None: they touch.
        normal_windows: Healthy training windows; None for all.
        test_windows: At most so many test windows a class, evenly spaced; None for all. All four classes then weigh
            about the same in a score; otherwise some 16 healthy windows face 500 to 1400 of each fault type.
        test_fault_size: Inch, for ``split="fault_size"``.
        test_load: hp, for ``split="load"``.
        test_fold: 0..3, for ``split="recording"``.
        fault_sizes: Inch; which faults are used at all.
        loads: hp; which loads are used at all.
        fault_end: Which bearing is damaged. Fan-end faults exist as ``.mat`` at 12 kHz only.
        sampling_rate: Hz, 12000 or 48000. The healthy recordings, made at 48 kHz, are decimated to 12 kHz.
        val_fraction: Share of each training recording (of the healthy ones: of each recording) for validation.
        normal_test_fraction: Share of each healthy recording for test.
        download: Fetch official files that are missing below ``root``.
        base_url: Where to fetch them from; None for the official address.
        batch_size: Items in a batch.
        num_workers: Worker processes of each loader.
        seed: Order of training batches.

    Raises:
        DataError: If files are missing; says which and where they were looked for.

    Source:
        Case Western Reserve University Bearing Data Center. On splits: Hendriks et al., Towards better benchmarking
        using the CWRU bearing fault dataset, MSSP 2022.

    Example:
        >>> data = BearingDataModule("data/cwru", shots=5, normal_windows=60, test_fault_size=0.014)
        >>> data.shots, data.test_fault_size
        (5, 0.014)
    """

    BASE_URL: ClassVar[str] = cwru.BASE_URL

    def __init__(
        self,
        root: str | Path,
        rig: str = "cwru",
        end: Literal["DE", "FE"] = "DE",
        split: Literal["fault_size", "load", "recording"] = "fault_size",
        window: int = 1024,
        shots: int | None = None,
        *,
        draw: int = 0,
        stride: int | None = None,
        normal_windows: int | None = None,
        test_windows: int | None = None,
        test_fault_size: float = 0.021,
        test_load: int = 3,
        test_fold: int = 0,
        fault_sizes: Sequence[float] = (0.007, 0.014, 0.021),
        loads: Sequence[int] = (0, 1, 2, 3),
        fault_end: Literal["DE", "FE"] = "DE",
        sampling_rate: int = 12_000,
        val_fraction: float = 0.1,
        normal_test_fraction: float = 0.2,
        download: bool = False,
        base_url: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.root, self.rig, self.end, self.split = Path(root), rig, end, split
        self.window, self.shots, self.draw, self.stride = window, shots, draw, stride
        self.normal_windows, self.test_windows = normal_windows, test_windows
        self.test_fault_size, self.test_load, self.test_fold = test_fault_size, test_load, test_fold
        self.fault_sizes, self.loads = tuple(fault_sizes), tuple(loads)
        self.fault_end, self.sampling_rate = fault_end, sampling_rate
        self.val_fraction, self.normal_test_fraction = val_fraction, normal_test_fraction
        self.download, self.base_url = download, base_url or self.BASE_URL
        self._check()

    def _check(self) -> None:
        choices: tuple[tuple[str, Any, Sequence[Any]], ...] = (
            ("rig", self.rig, ("cwru",)),
            ("end", self.end, ("DE", "FE")),
            ("fault_end", self.fault_end, ("DE", "FE")),
            ("split", self.split, ("fault_size", "load", "recording")),
            ("sampling_rate", self.sampling_rate, (12_000, 48_000)),
        )
        if self.split == "fault_size":
            choices += (("test_fault_size", self.test_fault_size, self.fault_sizes),)
        if self.split == "load":
            choices += (("test_load", self.test_load, self.loads),)
        if self.split == "recording":
            choices += (("test_fold", self.test_fold, (0, 1, 2, 3)),)
        choices += tuple(("loads", load, (0, 1, 2, 3)) for load in self.loads)
        for name, value, allowed in choices:
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
        if not 0 < self.normal_test_fraction < 1 or not 0 <= self.val_fraction < 1 - self.normal_test_fraction:
            raise ConfigError(
                f"val_fraction {self.val_fraction} and normal_test_fraction {self.normal_test_fraction} "
                "must leave some of a recording for training"
            )
        for name, number in (
            ("shots", self.shots),
            ("normal_windows", self.normal_windows),
            ("test_windows", self.test_windows),
        ):
            if number is not None and number < 1:
                raise ConfigError(f"{name} must be at least 1, got {number}")

    def _wanted(self) -> dict[int, cwru.Entry]:
        return cwru.catalogue(self.fault_end, self.sampling_rate, map(_mils, self.fault_sizes), self.loads)

    def prepare_data(self) -> None:
        """Fetch missing official files if ``download`` is set (on one process of a node)."""
        if self.download:
            cwru.download(self.root, self._wanted(), self.base_url)

    def recordings(self) -> list[Recording]:
        """Read the recordings.

        Returns:
            Sorted by class, size, position and load.

        Raises:
            DataError: If healthy recordings, or all those of a fault type, are missing.
        """
        self.prepare_data()
        wanted = self._wanted()
        found = cwru.read_recordings(self.root, self.end, self.fault_end, self.sampling_rate, wanted)
        self._report_missing(found, wanted)
        return found

    def _report_missing(self, found: list[Recording], wanted: dict[int, cwru.Entry]) -> None:
        have = {recording.entry for recording in found}
        missing = {number: entry for number, entry in wanted.items() if entry not in have}
        names = ", ".join(f"{number}.mat ({entry})" for number, entry in missing.items())
        absent = [kind for kind in CLASSES if kind not in {entry.kind for entry in have}]
        if absent:
            raise DataError(
                f"no recordings of class {', '.join(absent)} below {self.root.resolve()}: "
                f"{len(missing)} of {len(wanted)} files are missing: {names}. Fetch them from {self.base_url} "
                "(download=True does), or give cwru_12k_DE_load0.npz and so on"
            )
        if any(entry.kind != "N" for entry in missing.values()):
            warnings.warn(f"{self.root} lacks {len(missing)} of {len(wanted)} recordings: {names}", stacklevel=4)
        elif missing:
            log.info("%s lacks the healthy recordings of loads %s", self.root, [e.load for e in missing.values()])

    def load(self) -> Splits:
        """Read, split and cut the recordings."""
        recordings = self.recordings()
        normal = [recording for recording in recordings if recording.entry.kind == "N"]
        faults = [recording for recording in recordings if recording.entry.kind != "N"]
        train, val, test = self._split_normal(normal)
        train_parts, val_parts = self._normal_parts(train, val)
        held = self._held_out(faults)
        kept = [recording for recording, out in zip(faults, held, strict=True) if not out]
        self._check_types(kept, "training")
        tested = [(r, 0, len(r.signal)) for r, out in zip(faults, held, strict=True) if out]
        self._check_types([r for r, _, _ in tested], "test")
        fault_train, fault_val = self._fault_parts(kept)
        return Splits(
            StackedItems.cat([*train_parts, *fault_train]),
            StackedItems.cat([*val_parts, *fault_val]),
            self._thinned(StackedItems.cat([self._cut(block) for block in [*test, *tested]])),
            {
                "class_names": list(CLASSES),
                "normal_class": 0,
                "sampling_rate": self.sampling_rate,
                "bearing": dict(cwru.GEOMETRY[self.fault_end]),
                "channel_names": [self.end],
            },
        )

    def _check_types(self, recordings: Sequence[Recording], side: str) -> None:
        absent = [kind for kind in CLASSES[1:] if kind not in {recording.entry.kind for recording in recordings}]
        if absent:
            raise DataError(
                f"split={self.split!r} leaves no {side} recordings of class {', '.join(absent)} below {self.root}"
            )

    def _held_out(self, faults: Sequence[Recording]) -> list[bool]:
        """Say which fault recordings are test."""
        if self.split == "fault_size":
            return [recording.entry.size == _mils(self.test_fault_size) for recording in faults]
        if self.split == "load":
            return [recording.entry.load == self.test_load for recording in faults]
        held = np.zeros(len(faults), bool)
        for kind in CLASSES[1:]:
            index = np.array([i for i, recording in enumerate(faults) if recording.entry.kind == kind], int)
            # A fixed shuffle: the sorted order would make folds the same thing as loads.
            shuffled = np.random.default_rng(0).permutation(index)
            held[shuffled[self.test_fold :: 4]] = True
        return held.tolist()

    def _split_normal(self, normal: Sequence[Recording]) -> tuple[list[Block], list[Block], list[Block]]:
        """Split healthy recordings by time, or by load where that leaves some on both sides."""
        shares = (1 - self.val_fraction - self.normal_test_fraction, self.val_fraction, self.normal_test_fraction)
        out: tuple[list[Block], list[Block], list[Block]] = ([], [], [])
        loads = {recording.entry.load for recording in normal}
        by_load = self.split == "load" and self.test_load in loads and len(loads) > 1
        for recording in normal:
            if by_load and recording.entry.load == self.test_load:
                out[2].append((recording, 0, len(recording.signal)))
                continue
            cuts = (1 - self.val_fraction, self.val_fraction, 0.0) if by_load else shares
            blocks = time_blocks(len(recording.signal), cuts, self.window)
            for part, (begin, end) in zip(out, blocks, strict=True):
                if end > begin:
                    part.append((recording, begin, end))
        return out

    def _normal_parts(
        self, train: Sequence[Block], val: Sequence[Block]
    ) -> tuple[list[StackedItems], list[StackedItems]]:
        parts = StackedItems.cat([self._cut(block) for block in train])
        if self.normal_windows is not None:
            if self.normal_windows > len(parts):
                warnings.warn(
                    f"there are only {len(parts)} healthy training windows, not {self.normal_windows}", stacklevel=5
                )
            parts = parts[draw_shots(np.zeros(len(parts), int), self.normal_windows, self.draw)]
        return [parts], [self._cut(block) for block in val]

    def _fault_parts(self, recordings: Sequence[Recording]) -> tuple[list[StackedItems], list[StackedItems]]:
        """Cut training recordings of faults into training and validation windows."""
        if self.shots is None:
            shares = (1 - self.val_fraction, self.val_fraction)
            blocks = [(r, time_blocks(len(r.signal), shares, self.window)) for r in recordings]
            parts = [[self._cut((r, *cuts[i])) for r, cuts in blocks if cuts[i][1] > cuts[i][0]] for i in (0, 1)]
            return parts[0], parts[1]
        starts = [window_starts(len(r.signal), self.window, self.stride) for r in recordings]
        owner = np.repeat(np.arange(len(recordings)), [len(s) for s in starts])
        labels = np.array([CLASSES.index(r.entry.kind) for r in recordings])[owner]
        counts = np.bincount(labels, minlength=len(CLASSES))[1:]
        if counts.min() < self.shots:
            warnings.warn(
                f"only {counts.tolist()} training windows of {CLASSES[1:]}, not {self.shots} each", stacklevel=5
            )
        chosen = draw_shots(labels, self.shots, self.draw)
        where = np.concatenate(starts)
        train, val = [], []
        for i, recording in enumerate(recordings):
            shots = where[chosen[owner[chosen] == i]]
            spare = starts[i][apart(starts[i], shots, self.window)]
            train.append(self._windows(recording, shots))
            val.append(self._windows(recording, spare))
        return train, val

    def _thinned(self, items: StackedItems) -> StackedItems:
        """Keep ``test_windows`` evenly spaced windows of every class."""
        if self.test_windows is None:
            return items
        labels = items.tensors["y"].numpy()
        classes = [np.flatnonzero(labels == label) for label in range(len(CLASSES))]
        # Midpoints of equal shares: no recording is favoured for being first or last.
        counts = [min(len(index), self.test_windows) for index in classes]
        keep = [
            index[((np.arange(n) + 0.5) * len(index) / n).astype(int)] for index, n in zip(classes, counts, strict=True)
        ]
        return items[np.concatenate(keep)]

    def _cut(self, block: Block) -> StackedItems:
        recording, begin, end = block
        return self._windows(recording, window_starts(end, self.window, self.stride, begin))

    def _windows(self, recording: Recording, starts: np.ndarray) -> StackedItems:
        """Cut windows that begin at given samples, with their label and conditions."""
        x = torch.from_numpy(cut_windows(recording.signal[None], self.window, starts=starts))
        y = torch.full((len(x),), CLASSES.index(recording.entry.kind), dtype=torch.int64)
        rpm, load = (torch.full((len(x),), float(value)) for value in (recording.rpm, recording.entry.load))
        return StackedItems({"x": x, "y": y, "rpm": rpm, "load": load})


def _mils(inches: float) -> int:
    """Return thousandths of an inch."""
    return round(inches * 1000)
