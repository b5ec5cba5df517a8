"""Shared fixtures: where the real data is, and quiet, single-threaded runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def _data_root() -> Path | None:
    """$LIGHTNING_SYNTH_DATA, or shared/data beside the checkout."""
    candidates = [os.environ.get("LIGHTNING_SYNTH_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"]
    return next((Path(c) for c in candidates if c and Path(c).is_dir()), None)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets; the test is skipped where it is absent."""
    root = _data_root()
    if root is None:
        pytest.skip("real data not found: set LIGHTNING_SYNTH_DATA or put it in ../shared/data")
    return root


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests run in parallel processes; threads inside them only get in each other's way."""
    import torch

    torch.set_num_threads(1)


_RANKS = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    # A Trainer of an earlier test may have left LOCAL_RANK and its like: a script that inherits them takes itself for
    # one of two processes that somebody else starts, and waits for the other one.
    inherited = {name: value for name, value in os.environ.items() if name not in _RANKS}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # The other rank holds the pipes: it has to go too.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a Python script that starts two processes; all of them are killed where it does not end."""

    def run(*arguments: object, timeout: float = 270) -> subprocess.CompletedProcess[str]:
        return _run([sys.executable, *map(str, arguments)], timeout)

    return run


@pytest.fixture
def trainer_kwargs(tmp_path: Path) -> dict:
    """Arguments of a quiet CPU Trainer that writes nothing outside tmp_path."""
    return {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
