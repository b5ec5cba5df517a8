"""Recordings of the Case Western Reserve University bearing rig: which file holds what, reading them, fetching them."""

from __future__ import annotations

import logging
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.signal import BEARINGS

log = logging.getLogger(__name__)

BASE_URL = "https://engineering.case.edu/sites/default/files"
#: Shaft speed by motor load in hp, where a file does not say.
NOMINAL_RPM = {0: 1797.0, 1: 1772.0, 2: 1750.0, 3: 1730.0}
#: Geometry of the drive-end and the fan-end bearing.
GEOMETRY = {"DE": BEARINGS["cwru_de"], "FE": BEARINGS["cwru_fe"]}
#: The healthy baseline was recorded at 48 kHz only.
NORMAL_RATE = 48_000
NORMAL_FILES = (97, 98, 99, 100)

# Official file numbers at loads 0..3 hp (None: never recorded), by faulted bearing and rate; keys are the official
# names.
_FILES: dict[tuple[str, int], dict[str, tuple[int | None, ...]]] = {
    ("DE", 12_000): {
        "IR007": (105, 106, 107, 108),
        "B007": (118, 119, 120, 121),
        "OR007@6": (130, 131, 132, 133),
        "OR007@3": (144, 145, 146, 147),
        "OR007@12": (156, 158, 159, 160),
        "IR014": (169, 170, 171, 172),
        "B014": (185, 186, 187, 188),
        "OR014@6": (197, 198, 199, 200),
        "IR021": (209, 210, 211, 212),
        "B021": (222, 223, 224, 225),
        "OR021@6": (234, 235, 236, 237),
        "OR021@3": (246, 247, 248, 249),
        "OR021@12": (258, 259, 260, 261),
        "IR028": (3001, 3002, 3003, 3004),
        "B028": (3005, 3006, 3007, 3008),
    },
    ("DE", 48_000): {
        "IR007": (109, 110, 111, 112),
        "B007": (122, 123, 124, 125),
        "OR007@6": (135, 136, 137, 138),
        "OR007@3": (148, 149, 150, 151),
        "OR007@12": (161, 162, 163, 164),
        "IR014": (174, 175, 176, 177),
        "B014": (189, 190, 191, 192),
        "OR014@6": (201, 202, 203, 204),
        "IR021": (213, 214, 215, 217),
        "B021": (226, 227, 228, 229),
        "OR021@6": (238, 239, 240, 241),
        "OR021@3": (250, 251, 252, 253),
        "OR021@12": (262, 263, 264, 265),
    },
    ("FE", 12_000): {
        "IR007": (278, 279, 280, 281),
        "B007": (282, 283, 284, 285),
        "OR007@6": (294, 295, 296, 297),
        "OR007@3": (298, 299, 300, 301),
        "OR007@12": (302, 305, 306, 307),
        "IR014": (274, 275, 276, 277),
        "B014": (286, 287, 288, 289),
        "OR014@6": (313, None, None, None),
        "OR014@3": (310, 309, 311, 312),
        "IR021": (270, 271, 272, 273),
        "B021": (290, 291, 292, 293),
        "OR021@6": (315, None, None, None),
        "OR021@3": (None, 316, 317, 318),
    },
}
_NAME = re.compile(r"(?P<kind>IR|OR|B|Normal)(?P<size>\d{3})?(@(?P<position>\d+))?_(?P<load>[0-3])", re.IGNORECASE)
_NPZ = re.compile(r"cwru_(?P<rate>12|48)k_(?P<bearing>DE|FE)_load(?P<load>[0-3])$")
_KEY = re.compile(r"(?P<kind>IR|B|OR)(at(?P<position>\d+))?_(?P<size>\d{3})_(?P<end>DE|FE)$")
_NORMAL_KEY = re.compile(r"load(?P<load>[0-3])_(?P<end>DE|FE)_(?P<rate>12|48)k$")


@dataclass(frozen=True)
class Entry:
    """What one recording is, before it is read.

    Args:
        kind: ``N`` healthy, ``IR`` inner race, ``OR`` outer race, ``B`` ball.
        size: Fault diameter in thousandths of an inch; 0 if healthy.
        position: Clock position of an outer-race fault relative to the load zone; 0 for others.
        load: Motor load in hp.
    """

    kind: str
    size: int
    position: int
    load: int

    def __str__(self) -> str:
        """Return the official name, such as ``OR007@6_0``."""
        if self.kind == "N":
            return f"Normal_{self.load}"
        return f"{self.kind}{self.size:03d}{f'@{self.position}' if self.position else ''}_{self.load}"


@dataclass(frozen=True)
class Recording:
    """One recording.

    Args:
        entry: What it is.
        signal: float32 (samples,), acceleration in g.
        rpm: Shaft speed.
        source: File it came from.
    """

    entry: Entry
    signal: np.ndarray
    rpm: float
    source: str


def catalogue(bearing: str, rate: int, sizes: Iterable[int], loads: Iterable[int]) -> dict[int, Entry]:
    """List the official files of a choice of faults and loads, the healthy ones included.

    Args:
        bearing: Which bearing is damaged: ``DE`` or ``FE``.
        rate: Sampling rate in Hz, 12000 or 48000.
        sizes: Fault diameters in thousandths of an inch.
        loads: Motor loads in hp.

    Returns:
        File number to what it holds.

    Raises:
        ConfigError: If there is no such series of recordings.

    Example:
        >>> str(catalogue("DE", 12000, [7], [0])[130])
        'OR007@6_0'
    """
    if (bearing, rate) not in _FILES:
        raise ConfigError(f"no recordings of faults of the {bearing} bearing at {rate} Hz; there are {sorted(_FILES)}")
    loads, sizes = list(loads), set(sizes)
    entries = {NORMAL_FILES[load]: Entry("N", 0, 0, load) for load in loads}
    for name, numbers in _FILES[bearing, rate].items():
        for load in loads:
            number = numbers[load]
            entry = parse_name(f"{name}_{load}")
            if number is not None and entry is not None and entry.size in sizes:
                entries[number] = entry
    return entries


def parse_name(name: str) -> Entry | None:
    """Parse an official name such as ``OR007@6_0`` or ``Normal_2``; None if it is none."""
    match = _NAME.search(name)
    if match is None:
        return None
    kind = match["kind"].upper()
    if kind == "NORMAL":
        return Entry("N", 0, 0, int(match["load"]))
    if match["size"] is None:
        return None
    return Entry(kind, int(match["size"]), int(match["position"] or 0), int(match["load"]))


def read_recordings(root: Path, end: str, bearing: str, rate: int, wanted: dict[int, Entry]) -> list[Recording]:
    """Read what there is below a folder: ``cwru_*.npz`` if any, else official ``.mat`` files.

    Args:
        root: Folder, searched with its subfolders; or one file.
        end: Accelerometer: ``DE`` or ``FE``.
        bearing: Damaged bearing.
        rate: Hz.
        wanted: As `catalogue`.

    Returns:
        Recordings sorted by what they are; each wanted one at most once.
    """
    entries = set(wanted.values())
    files = [root] if root.is_file() else sorted(root.rglob("*")) if root.is_dir() else []
    npz = [file for file in files if file.suffix == ".npz" and file.stem.startswith("cwru_")]
    if npz:
        found = [r for file in npz for r in _read_npz(file, end, bearing, rate, entries)]
    else:
        found = _read_mats([file for file in files if file.suffix == ".mat"], end, bearing, rate, wanted)
    unique = {recording.entry: recording for recording in reversed(found)}
    return [unique[entry] for entry in sorted(unique, key=lambda e: (e.kind, e.size, e.position, e.load))]


def _read_npz(file: Path, end: str, bearing: str, rate: int, entries: set[Entry]) -> list[Recording]:
    """Read one file of the npz layout; only the wanted arrays are unpacked."""
    out = []
    match = _NPZ.match(file.stem)
    if match is not None and (match["bearing"], int(match["rate"]) * 1000) != (bearing, rate):
        return []
    with np.load(file, allow_pickle=False) as data:
        for key in data.files:
            entry = _npz_entry(key, match, end, rate)
            if entry in entries:
                out.append(_recording(entry, data[key], NOMINAL_RPM[entry.load], f"{file.name}:{key}"))
    return out


def _npz_entry(key: str, file: re.Match[str] | None, end: str, rate: int) -> Entry:
    nothing = Entry("", 0, 0, 0)
    if file is None:
        normal = _NORMAL_KEY.match(key)
        fits = normal is not None and normal["end"] == end and int(normal["rate"]) * 1000 == rate
        return Entry("N", 0, 0, int(normal["load"])) if normal is not None and fits else nothing
    fault = _KEY.match(key)
    if fault is None or fault["end"] != end:
        return nothing
    return Entry(fault["kind"], int(fault["size"]), int(fault["position"] or 0), int(file["load"]))


def _read_mats(files: Sequence[Path], end: str, bearing: str, rate: int, wanted: dict[int, Entry]) -> list[Recording]:
    """Read official .mat files, named by number (``97.mat``) or by what they are (``OR007@6_0.mat``)."""
    entries, out = set(wanted.values()), []
    for file in files:
        number = int(file.stem) if file.stem.isdigit() else None
        entry = wanted.get(number) if number is not None else parse_name(file.stem)
        if number is None and entry is not None and not _folder_fits(file, entry, bearing, rate):
            continue
        if entry in entries and entry is not None:
            out.append(_read_mat(file, entry, end, rate))
    return out


def _folder_fits(file: Path, entry: Entry, bearing: str, rate: int) -> bool:
    """Names alone do not tell 12k from 48k, or drive from fan end: where the folder says so, it must agree."""
    if entry.kind == "N":
        return True
    folder = str(file.parent).lower().replace("_", " ")
    other_rate = {12_000: "48k", 48_000: "12k"}[rate]
    other_end = {"DE": ("fan end", "fe data"), "FE": ("drive end", "de data")}[bearing]
    return other_rate not in folder and not any(word in folder for word in other_end)


def _read_mat(file: Path, entry: Entry, end: str, rate: int) -> Recording:
    """Read one .mat file. Some hold the variables of a neighbour too (99.mat: X098), some no speed (98.mat)."""
    from scipy.io import loadmat

    try:
        data = loadmat(file)
    except Exception as error:
        raise DataError(f"{file} is no readable MATLAB file: {error}") from error
    names = [name for name in data if name.endswith(f"_{end}_time")]
    if not names:
        have = sorted(name for name in data if name.endswith("_time"))
        raise DataError(f"{file} has no signal of the {end} accelerometer (X..._{end}_time); it has {have}")
    number = int(file.stem) if file.stem.isdigit() else None
    own = [name for name in names if number is not None and name == f"X{number:03d}_{end}_time"]
    name = (own or names)[-1]
    rpm_name = f"{name.split('_')[0]}RPM"
    rpm = float(np.ravel(data[rpm_name])[0]) if rpm_name in data else NOMINAL_RPM[entry.load]
    signal = np.asarray(data[name], np.float64).reshape(-1)
    if entry.kind == "N" and rate != NORMAL_RATE:
        signal = decimate(signal, NORMAL_RATE // rate)
    return _recording(entry, signal, rpm, str(file))


def decimate(signal: np.ndarray, factor: int) -> np.ndarray:
    """Lower the sampling rate after a linear-phase FIR low pass (no phase shift).

    Args:
        signal: (samples,).
        factor: Of the rate.

    Returns:
        (samples / factor,).
    """
    from scipy.signal import decimate as scipy_decimate

    return np.asarray(scipy_decimate(signal, factor, ftype="fir", zero_phase=True))


def _recording(entry: Entry, signal: np.ndarray, rpm: float, source: str) -> Recording:
    signal = np.asarray(signal, np.float32).reshape(-1)
    if not np.isfinite(signal).all():
        raise DataError(f"{source}: sample {int(np.flatnonzero(~np.isfinite(signal))[0])} is not finite")
    return Recording(entry, signal, rpm, source)


def download(root: Path, numbers: Iterable[int], base_url: str = BASE_URL, timeout: float = 60.0) -> list[Path]:
    """Fetch official files that are not there yet; each is written under a temporary name and moved.

    Args:
        root: Folder; made if it does not exist.
        numbers: Official file numbers.
        base_url: Where ``97.mat`` and the others lie.
        timeout: Seconds without an answer.

    Returns:
        The files that were fetched.

    Raises:
        DataError: If one cannot be fetched, or is no MATLAB file (servers answer with a web page).
    """
    root.mkdir(parents=True, exist_ok=True)
    present = {file.stem for file in root.rglob("*.mat")}
    fetched = []
    for number in (n for n in numbers if str(n) not in present):
        url, target = f"{base_url}/{number}.mat", root / f"{number}.mat"
        partial = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer, partial.open("wb") as file:
                shutil.copyfileobj(answer, file)
            with partial.open("rb") as fetched_file:
                if fetched_file.read(6) != b"MATLAB":
                    raise DataError(f"{url} did not send a MATLAB file; download it by hand to {root}")
            partial.replace(target)
        except (urllib.error.URLError, OSError) as error:
            raise DataError(f"could not download {url}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        log.info("downloaded %s", url)
        fetched.append(target)
    return fetched
