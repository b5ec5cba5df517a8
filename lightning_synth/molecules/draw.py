"""Drawings of molecules: grids by condition, as SVG or PNG."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.molecules.representation import InvalidMoleculeError, decode

if TYPE_CHECKING:
    from rdkit import Chem


def molecule_grid(
    rows: Mapping[str, Sequence[Any]] | Sequence[Any],
    path: str | os.PathLike[str] | None = None,
    *,
    schema: Mapping[str, Any] | None = None,
    legends: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    highlight: str | None = None,
    columns: int = 6,
    size: tuple[int, int] = (200, 160),
) -> str | bytes:
    """Draw molecules in a grid, one row a condition.

    Args:
        rows: Condition (such as ``"logP 2.5"``) to its molecules; or molecules, ``columns`` a row. Molecules are
            graphs, SMILES or RDKit molecules; the cell of what is no molecule stays blank.
        path: Also write it there; ``.png`` makes a PNG, anything else an SVG.
        schema: Of the graphs.
        legends: Condition to a line below each of its molecules, or such lines where ``rows`` are molecules; None
            writes the condition, if there is one, below the first.
        highlight: SMILES or SMARTS of a part to colour, such as a required scaffold.
        columns: Molecules a row, at most.
        size: Of one cell, in pixels.

    Returns:
        The SVG text, or the bytes of the PNG.

    Raises:
        DataError: If there is nothing to draw.
        ConfigError: If the part to colour cannot be read.

    Example:
        >>> svg = molecule_grid({"alcohols": ["CCO", "CO"], "rings": ["c1ccccc1"]}, highlight="O")
        >>> svg.count("<svg"), "alcohols" in svg or len(svg) > 1000
        (1, True)
    """
    from rdkit.Chem import Draw

    if not isinstance(rows, Mapping):
        lines = [""] * len(rows) if legends is None else list(legends)
        starts = range(0, len(rows), columns)
        rows, legends = (
            {f"row {start // columns}": part[start : start + columns] for start in starts} for part in (rows, lines)
        )
    if legends is not None and not isinstance(legends, Mapping):
        raise ConfigError("legends of several conditions are a dict, condition to lines")
    if not any(len(items) for items in rows.values()):
        raise DataError("no molecules to draw")
    pattern = _pattern(highlight) if highlight else None
    mols, texts, marks = [], [], []
    for name, items in rows.items():
        found = [_read(item, schema) for item in items[:columns]]
        given = list(legends[name]) if legends else [name, *[""] * len(found)]
        gap = columns - len(found) if len(rows) > 1 else 0
        mols += [*found, *[None] * gap]
        texts += [*given[: len(found)], *[""] * gap]
        marks += [() if mol is None or pattern is None else mol.GetSubstructMatch(pattern) for mol in found]
        marks += [()] * gap
    as_png = path is not None and Path(path).suffix.lower() == ".png"
    image = Draw.MolsToGridImage(  # type: ignore[no-untyped-call]
        [_empty() if mol is None else mol for mol in mols],
        molsPerRow=columns,
        subImgSize=size,
        legends=texts,
        highlightAtomLists=[list(mark) for mark in marks],
        useSVG=not as_png,
        returnPNG=as_png,
    )
    content: str | bytes = image if isinstance(image, (str, bytes)) else image.data
    if path is not None:
        target = Path(path)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return content


def molecule_image(
    item: Any, schema: Mapping[str, Any] | None = None, size: tuple[int, int] = (240, 200)
) -> np.ndarray:
    """Draw one molecule as pixels, for figures.

    Args:
        item: Graph or SMILES.
        schema: Of the graph.
        size: Width and height in pixels.

    Returns:
        uint8 (height, width, 4); white where it is no molecule.
    """
    from io import BytesIO

    from matplotlib.image import imread
    from rdkit.Chem.Draw import rdMolDraw2D

    drawer = rdMolDraw2D.MolDraw2DCairo(*size)
    drawer.DrawMolecule(_read(item, schema) or _empty())
    drawer.FinishDrawing()
    pixels = np.atleast_3d(imread(BytesIO(drawer.GetDrawingText()), format="png"))
    return np.asarray(255 * pixels, dtype=np.uint8)


def _read(item: Any, schema: Mapping[str, Any] | None) -> Chem.Mol | None:
    from rdkit import Chem, rdBase

    if item is None or isinstance(item, Chem.Mol):
        return item
    if isinstance(item, str):
        with rdBase.BlockLogs():
            return Chem.MolFromSmiles(item) if item else None
    if schema is None:
        raise ConfigError("graphs need the schema that says what their types are")
    try:
        return decode(item, schema)
    except InvalidMoleculeError:
        return None


def _empty() -> Chem.Mol:
    from rdkit import Chem

    return Chem.Mol()


def _pattern(text: str) -> Chem.Mol:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        pattern = Chem.MolFromSmarts(text)
    if pattern is None:
        raise ConfigError(f"{text!r} is neither SMILES nor SMARTS")
    return pattern
