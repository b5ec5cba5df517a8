"""The rooms: what is packaged, and that data flows one way."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
APPLICATIONS = {"study", "report", "cli", "testing"}


def _packages():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]


def test_every_package_folder_is_in_the_wheel():
    folders = {"lightning_synth": ROOT / "lightning_synth"}
    folders |= {f"lightning_synth.{name}": ROOT / name for name in ("plugins", "datamodules")}
    found = set()
    for prefix, folder in folders.items():
        for init in folder.rglob("__init__.py"):
            parts = init.parent.relative_to(folder).parts
            if prefix == "lightning_synth" and parts[:1] in (("plugins",), ("datamodules",)):
                continue
            found.add(".".join((prefix, *parts)))
    assert found == set(_packages())


@pytest.mark.parametrize("name", ["plugins", "datamodules"])
def test_folders_cannot_be_imported_under_a_second_name(name):
    run = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode and f"lightning_synth.{name}" in run.stderr


def test_the_frame_imports_no_plugin_and_no_datamodule():
    pattern = re.compile(r"^\s*(from|import) +lightning_synth\.(plugins|datamodules)", re.M)
    offenders = []
    for path in (ROOT / "lightning_synth").rglob("*.py"):
        relative = path.relative_to(ROOT / "lightning_synth")
        first = relative.parts[0].removesuffix(".py")
        if first in {"plugins", "datamodules", *APPLICATIONS}:
            continue
        if pattern.search(path.read_text()):
            offenders.append(str(relative))
    assert not offenders
