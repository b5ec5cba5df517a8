"""Files that survive a crash: atomic writes, hashes, and one writer per directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_synth.errors import PoolError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """Hash a file without holding it in memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync_and_move(source: Path, target: Path) -> None:
    """Make the bytes durable first, then visible under their final name."""
    with open(source, "rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)


def to_json(content: Any, **options: Any) -> str:
    """Write JSON; arrays and tensors become lists, other objects their text."""
    return json.dumps(content, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v), **options)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON to a temporary name and move it.

    Raises:
        PoolError: If the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
        sync_and_move(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise PoolError(f"cannot write {path}: {error.strerror or error}") from error


class DirectoryLock:
    """Lets one job write to a directory; the lock of a dead process is taken over.

    The file lock of the operating system decides (it ends with its process), the JSON inside says who holds it. Where
    the file system has no locks, the process id inside decides.

    Args:
        folder: Directory to protect; it must exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, DirectoryLock(Path(folder)):
        ...     (Path(folder) / ".lock").exists()
        True
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            PoolError: If another live process holds it, or the directory cannot be written.
        """
        for _ in range(20):
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise PoolError(f"cannot write to {self.path.parent}: {error.strerror or error}") from error
            if self._take(file):
                return
        raise PoolError(f"cannot lock {self.path.parent}: {self.path} keeps changing hands")

    def _take(self, file: int) -> bool:
        """Return whether the opened file became ours; False asks for another try."""
        locked = _flock(file)
        if locked and not _same_file(file, self.path):
            os.close(file)  # its holder has just released and removed it
            return False
        holder = _holder(file)
        if locked is False or (locked is None and holder):
            os.close(file)
            if _alive(holder):
                pid, host, since = (holder.get(key, "?") for key in ("pid", "host", "since"))
                raise PoolError(
                    f"{self.path.parent} is being written by process {pid} on {host} since {since}; wait for it, "
                    f"choose another directory, or, if that job is gone, delete {self.path}"
                )
            # A child of the dead process may still hold the old file: a new one leaves it behind.
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            return False
        os.ftruncate(file, 0)
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        os.pwrite(file, json.dumps(mine).encode(), 0)
        self._file = file
        return True

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            os.close(self._file)
            self._file = None

    def __enter__(self) -> DirectoryLock:
        """Take the lock."""
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.release()


def _flock(file: int) -> bool | None:
    """True: locked, False: held by another, None: this file system has no locks."""
    if fcntl is None:  # pragma: no cover - Windows
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(file: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(file, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _alive(holder: Mapping[str, Any]) -> bool:
    """Whether the process of a lock may still run; on another machine it is assumed to."""
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        return True
    return True


def make_writable(folder: Path) -> None:
    """Create a directory and prove that it can be written, before any work is spent.

    Raises:
        PoolError: If it cannot.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise PoolError(f"cannot write to {folder}: {error.strerror or error}") from error


@contextlib.contextmanager
def naming_file(path: Path, advice: str) -> Iterator[None]:
    """Turn an operating system error into a `PoolError` that names the file."""
    try:
        yield
    except OSError as error:
        raise PoolError(f"cannot write {path}: {error.strerror or error}; {advice}") from error
