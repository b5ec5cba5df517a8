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


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
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
    """Run a Python script that starts two processes.

    On a crowded machine the rendezvous of two torch processes was seen to hang, before any line of ours ran: a script
    that does not end is killed with its children and started once more. A script that fails is not.
    """

    def run(*arguments: object, timeout: float = 130) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        try:
            return _run(command, timeout)
        except subprocess.TimeoutExpired:
            return _run(command, timeout)

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
