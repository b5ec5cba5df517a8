"""The example plugin: found through its entry point as an installed package would be, and conforming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "examples" / "third_party_plugin"

SCRIPT = """
import sys
import lightning_synth as ls
assert "erdos_renyi_example" in ls.list_generators("graph"), ls.list_generators("graph")
assert "erdos_renyi_example" not in ls.list_generators("timeseries")
assert not {"torch", "torch_geometric"} & set(sys.modules), "listing generators imports heavy packages"
results = ls.testing.check_generator("erdos_renyi_example")
print("PASSED", sum(result == "passed" for result in results.values()))
"""


def test_an_installed_package_adds_a_generator(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["lightning_synth.generators"].items()]
    installed = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (installed / "entry_points.txt").write_text("\n".join(["[lightning_synth.generators]", *lines]))
    paths = [str(tmp_path), str(PLUGIN / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0 and int(done.stdout.split()[-1]) > 20, done.stdout + done.stderr[-3000:]
