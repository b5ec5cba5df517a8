"""What the README shows is what runs."""

import re
from pathlib import Path

import pytest
import torch

import lightning_synth as ls
from lightning_synth.cli import generator_table

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_two_commands_are_shown():
    assert "make demo" in README and "make test" in README


def test_the_first_snippet_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 15
    names = {}
    exec(BLOCKS[0], names)
    assert len(names["pool"]) == 200 and names["classifier"].predict(names["data"].test_items()).shape == (40,)


def test_the_plugin_in_the_readme_passes_the_suite():
    block = next(block for block in BLOCKS if "class TimeVAE" in block)
    names = {"ls": ls, "torch": torch}
    exec(block, names)
    data = ls.testing.tiny_datamodule("timeseries")
    model = names["TimeVAE"](schema=data.schema, latent_dim=4)
    with pytest.warns(UserWarning, match="initial weights"):
        assert model.sample(3, seed=0).data["x"].shape[0] == 3


def test_the_table_of_generators_is_the_registry():
    shown = re.search(r"<!-- generators: lightning-synth list -->\n(.*?)\n?<!-- end -->", README, re.S)
    head, rows = generator_table().splitlines()[:2], generator_table().splitlines()[2:]
    own = [row for row, name in zip(rows, ls.list_generators(), strict=True) if _is_own(name)]
    assert shown and shown.group(1).strip().splitlines() == head + own


def _is_own(name):
    return ls.get_spec(name).target.startswith("lightning_synth.")
