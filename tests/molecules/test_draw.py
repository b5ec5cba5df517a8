"""Grids of molecules by condition."""

import pytest
from rdkit import Chem

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.figures import sample_figure
from lightning_synth.molecules import encode, molecule_grid
from lightning_synth.molecules.draw import molecule_image
from lightning_synth.testing import tiny_items, tiny_schema

TYPES = ["C", "O"]


def test_svg_and_png(tmp_path):
    rows = {"small": ["CCO", "CO"], "rings": [encode("c1ccccc1O", TYPES)]}
    assert molecule_grid(rows, schema=TYPES, highlight="O").startswith("<?xml")
    molecule_grid(rows, tmp_path / "grid.png", schema=TYPES)
    molecule_grid(rows, tmp_path / "grid.svg", schema=TYPES)
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG" and "<svg" in (tmp_path / "grid.svg").read_text()


def test_what_is_no_molecule_is_blank():
    wrong = encode("CC(C)(C)C", TYPES)
    wrong.edge_attr[:] = 1
    assert (molecule_image(wrong, TYPES) == 255).all() and (molecule_image("CCO") < 255).any()
    molecule_grid([wrong, "C(", "CCO", "", None, Chem.MolFromSmiles("CO")], schema=TYPES)


def test_lines_below_molecules():
    bare, told = (molecule_grid(["CCO", "CO", "C"], columns=2, legends=lines) for lines in (None, ["a", "b", "c"]))
    assert len(told) > len(bare)


def test_refusals():
    with pytest.raises(DataError, match="no molecules to draw"):
        molecule_grid({"none": []})
    with pytest.raises(ConfigError, match="neither SMILES nor SMARTS"):
        molecule_grid(["CCO"], highlight="not a pattern")
    with pytest.raises(ConfigError, match="legends of several conditions are a dict"):
        molecule_grid({"small": ["CCO"]}, legends=["a"])
    with pytest.raises(ConfigError, match="need the schema"):
        molecule_grid([encode("CCO", TYPES)])


def test_figures_of_molecules():
    items = tiny_items("molecule")
    figure = sample_figure(items[:2], items[2:4], tiny_schema("molecule"))
    assert all(axis.images for axis in figure.axes)
