"""kill -9 at random points, and SIGTERM: after resuming, no sample twice, none lost, the same final weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_resume_script.py")


def run(folder, points):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, str(points)], capture_output=True, text=True, env=env, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(result, points):
    assert result["once"] and len(result["runs"]) == points + 1
    for one in result["runs"]:
        assert one["same_steps"], f"a sample twice or lost: {one}"
        assert one["once"] and one["same_weights"] and one["resumed"] == 0, one
    *killed, terminated = result["runs"]
    assert all(one["signal"] == signal.SIGKILL for one in killed)
    # SIGTERM: the step is finished, a checkpoint written, and the process says that it was stopped.
    assert terminated["signal"] == 0 and terminated["exit"] not in (0, 70), terminated
    assert terminated["done"] == terminated["step"] + 1


def test_four_kills_and_a_sigterm(tmp_path):
    check(run(tmp_path, 4), 4)


@pytest.mark.slow
def test_twenty_random_kills(tmp_path):
    check(run(tmp_path, 20), 20)
