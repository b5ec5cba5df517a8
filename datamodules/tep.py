"""DataModule for the Tennessee Eastman process: a simulated chemical plant with 21 faults."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lightning_synth.datamodules.base import ItemsDataModule, Splits
from lightning_synth.datamodules.windows import apart, cut_windows, draw_shots, time_blocks, window_starts
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.items import StackedItems

VARIABLES = 52
#: Sample of a test run at which its fault starts (8 hours at 3 minutes).
FAULT_ONSET = 160
CHANNEL_NAMES = [*(f"XMEAS({i})" for i in range(1, 42)), *(f"XMV({i})" for i in range(1, 12))]


class TEPDataModule(ItemsDataModule):
    """Windows of the Tennessee Eastman process with Braatz's runs: 52 variables every 3 minutes.

    There is one training and one test run for the normal plant and for each fault. Training windows come from training
    runs (where the fault is active throughout), test windows from test runs, from the onset of the fault at sample 160
    on; the normal test run is used from there on too, so that all classes have equally many. Label 0 is normal, label k
    the k-th entry of ``faults``. Faults 3, 9 and 15 are almost undetectable.

    Validation comes from *training* runs: of the normal run its end, one window away from the rest; of fault runs the
    same without ``shots``, and with ``shots`` every window at least one window away from each shot (with many shots
    none is left).

    Args:
        path: ``tep.npz`` (``train_d00`` .. ``train_d21``, ``test`` (22, 960, 52)), or a folder with ``d00.dat`` ..
            ``d21_te.dat`` (``d00.dat``, which is stored transposed, is put right).
        faults: Numbers 1..21, in the order of the labels.
        window: Samples in a window.
        shots: Training windows a fault; None for all. The normal class keeps ``normal_windows``.
        draw: Which shots and normal windows; the shots of a smaller number are among those of a larger one.
        stride: Samples between windows; None: they touch.
        normal_windows: Normal training windows; None for all.
        val_fraction: Share of a training run for validation, see above.
        batch_size: Items in a batch.
        num_workers: Worker processes of each loader.
        seed: Order of training batches.

    Raises:
        DataError: If files are missing or of another shape; says which.

    Source:
        Downs and Vogel, A plant-wide industrial process control problem, 1993; runs by Chiang, Russell and Braatz,
        2000.

    Example:
        >>> data = TEPDataModule("data/tep.npz", faults=(1, 2, 4), shots=5)
        >>> data.faults, data.window
        ((1, 2, 4), 24)
    """

    def __init__(
        self,
        path: str | Path,
        faults: Sequence[int] = (1, 2, 4),
        window: int = 24,
        shots: int | None = None,
        *,
        draw: int = 0,
        stride: int | None = None,
        normal_windows: int | None = None,
        val_fraction: float = 0.2,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.path, self.faults, self.window, self.shots = Path(path), tuple(faults), window, shots
        self.draw, self.stride, self.normal_windows, self.val_fraction = draw, stride, normal_windows, val_fraction
        wrong = [fault for fault in self.faults if fault not in range(1, 22)]
        if wrong or not self.faults or len(set(self.faults)) < len(self.faults):
            raise ConfigError(
                f"faults must be different numbers 1..21 (0, the normal plant, is always there), got {faults}"
            )
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"val_fraction must be in [0, 1), got {val_fraction}")
        for name, number in (("shots", shots), ("normal_windows", normal_windows)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} must be at least 1, got {number}")

    def load(self) -> Splits:
        """Read the runs and cut them."""
        runs = [read_run(self.path, fault) for fault in (0, *self.faults)]
        parts = [self._train_run(train, label) for label, (train, _) in enumerate(runs)]
        tested = [
            self._items(test, window_starts(len(test), self.window, self.stride, FAULT_ONSET), label)
            for label, (_, test) in enumerate(runs)
        ]
        return Splits(
            StackedItems.cat([train for train, _ in parts]),
            StackedItems.cat([val for _, val in parts]),
            StackedItems.cat(tested),
            {
                "class_names": ["normal", *(f"fault {fault}" for fault in self.faults)],
                "normal_class": 0,
                "sampling_rate": 1 / 180,
                "channel_names": CHANNEL_NAMES,
            },
        )

    def _train_run(self, run: np.ndarray, label: int) -> tuple[StackedItems, StackedItems]:
        """Return training and validation windows of one training run."""
        if label > 0 and self.shots is not None:
            starts = window_starts(len(run), self.window, self.stride)
            chosen = starts[self._draw(len(starts), self.shots, label)]
            spare = starts[apart(starts, chosen, self.window)]
        else:
            head, tail = time_blocks(len(run), (1 - self.val_fraction, self.val_fraction), self.window)
            chosen = window_starts(head[1], self.window, self.stride)
            spare = window_starts(tail[1], self.window, self.stride, tail[0])
            if label == 0 and self.normal_windows is not None:
                chosen = chosen[self._draw(len(chosen), self.normal_windows, label)]
        return self._items(run, chosen, label), self._items(run, spare, label)

    def _draw(self, have: int, want: int, label: int) -> np.ndarray:
        if want > have:
            what = f"fault {self.faults[label - 1]}" if label else "normal"
            warnings.warn(f"{self.path}: the training run of class {what} has {have} windows, not {want}", stacklevel=5)
        return draw_shots(np.full(have, label), want, self.draw)

    def _items(self, run: np.ndarray, starts: np.ndarray, label: int) -> StackedItems:
        x = torch.from_numpy(cut_windows(run.T, self.window, starts=starts))
        return StackedItems({"x": x, "y": torch.full((len(x),), label, dtype=torch.int64)})


def read_run(path: Path, fault: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the training and the test run of a fault.

    Args:
        path: As `TEPDataModule`.
        fault: 0 (normal) to 21.

    Returns:
        Two float32 (samples, 52) arrays.

    Raises:
        DataError: If files are missing or of another shape.
    """
    if path.is_dir() and not (path / "tep.npz").exists():
        return _checked(_dat(path, f"d{fault:02d}.dat")), _checked(_dat(path, f"d{fault:02d}_te.dat"))
    file = path / "tep.npz" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{path.resolve()} is neither tep.npz nor a folder with d00.dat .. d21_te.dat")
    with np.load(file, allow_pickle=False) as data:
        key = f"train_d{fault:02d}"
        if key not in data.files or "test" not in data.files or len(data["test"]) <= fault:
            raise DataError(f"{file} lacks {key} or row {fault} of test; it has {', '.join(data.files)}")
        return _checked((data[key], f"{file}:{key}")), _checked((data["test"][fault], f"{file}:test[{fault}]"))


def _dat(folder: Path, name: str) -> tuple[np.ndarray, str]:
    files = sorted(folder.rglob(name))
    if not files:
        raise DataError(f"{name} is missing below {folder.resolve()}; the Braatz archive holds d00.dat .. d21_te.dat")
    return np.loadtxt(files[0]), str(files[0])


def _checked(read: tuple[np.ndarray, str]) -> np.ndarray:
    """Put a transposed run right, and check it."""
    run, source = read
    if run.ndim == 2 and run.shape[1] != VARIABLES and run.shape[0] == VARIABLES:
        run = run.T
    if run.ndim != 2 or run.shape[1] != VARIABLES:
        raise DataError(f"{source} has shape {run.shape}; (samples, {VARIABLES}) is needed")
    bad = ~np.isfinite(run)
    if bad.any():
        sample, variable = (int(v) for v in np.argwhere(bad)[0])
        raise DataError(f"{source}: sample {sample} of {CHANNEL_NAMES[variable]} is not finite")
    return np.ascontiguousarray(run, dtype=np.float32)
