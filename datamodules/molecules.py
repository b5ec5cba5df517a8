"""DataModule for molecules: files, lists, published sets, scaffold splits, targets with gaps, computed properties."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_synth.datamodules.base import ItemsDataModule, Splits
from lightning_synth.datamodules.splits import (
    PARTS,
    TEST,
    TRAIN,
    UNUSED,
    VAL,
    scaffold_split,
    split_by_rows,
    stratified_split,
)
from lightning_synth.datamodules.windows import draw_shots, left_out
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.molecules.properties import compute_properties, murcko_scaffolds
from lightning_synth.molecules.representation import BOND_TYPES, Fragments, to_smiles
from lightning_synth.molecules.table import MoleculeItems, MoleculeTable, read_table

_SHOWN = 10
#: Molecules whose way there and back is checked when a data set is loaded.
_CHECKED = 1000
_MISSING = ("", "nan", "na", "<na>", "n/a", "none", "null")
_SUFFIXES = (".csv", ".tsv", ".parquet", ".smi", ".smiles", ".txt", ".sdf")

#: Published sets: file, and how it is read. `split` names the file of test rows that the papers share.
PRESETS: dict[str, dict[str, Any]] = {
    "zinc250k": {"file": "zinc250k.smi", "split": "zinc250k_valid_idx.json"},
    "qm9": {"file": "qm9_smiles_133885.csv", "split": "qm9_valid_idx.json"},
    "qm9_orbitals": {"file": "qm9_homo_lumo_gap_clean.csv", "targets": ("homo", "lumo", "gap"), "split": "random"},
    "moses": {"file": "moses_test.csv", "smiles": "SMILES", "split": "random"},
    "esol": {"file": "esol.csv", "targets": ("measured log solubility in mols per litre",)},
    "lipophilicity": {"file": "lipophilicity.csv", "targets": ("exp",)},
    "bbbp": {"file": "bbbp.csv", "targets": ("p_np",), "task": "classification"},
    "clintox": {"file": "clintox.csv", "targets": ("CT_TOX",), "task": "classification"},
    "chebi20": {
        "file": ("chebi20_validation.tsv", "chebi20_test.tsv"),
        "smiles": "SMILES",
        "text": "description",
        "split": "file",
    },
}


@dataclass
class _Source:
    """Molecules as they were found, and the columns beside them."""

    molecules: list[Any]
    targets: np.ndarray
    text: list[str] | None = None
    file: np.ndarray | None = None


class MoleculeDataModule(ItemsDataModule):
    """Molecules as graphs without loss, from a file, a list, or RDKit's own NCI set.

    What was read, left out and cut is printed when the data are loaded. Atom types are those of the training molecules;
    validation and test molecules with others are left out, with a warning that counts. Equal molecules (by SMILES
    without stereochemistry) are on one side of a drawn split.

    Args:
        source: Path of a csv, tsv, parquet, smi (also .txt: SMILES first on each line), or sdf file; several paths; a
            list of SMILES or of RDKit molecules; a pandas or polars frame; or ``"nci"``, 5,000 molecules that come
            with RDKit.
        split: ``scaffold``: whole Bemis-Murcko scaffolds, the most frequent ones in training; ``random_scaffold``:
            scaffolds in random order; ``random``; ``file``: the last of several files tests; index lists (train, val,
            test), also as a dict, by row of the source; or a JSON file with such a dict or a list of test rows.
        batch_size: Molecules in a batch of one process.
        targets: Numeric columns (SDF: properties); empty cells are missing, NaN in ``y``.
        smiles: Column of the SMILES.
        text: Column of a description, kept as ``text``.
        properties: Properties to compute, see `lightning_synth.molecules.properties.property_function`; they follow the
            targets in ``y``.
        task: ``regression``: all targets are columns of ``y``. ``classification``: the one target is a class (numbers
            or words) and becomes ``label``; rows without it are left out.
        fractions: Of training, validation and test, for drawn splits.
        fragments: Of molecules in several parts, such as salts: keep the ``largest``, ``keep`` all, or ``raise``.
        invalid: ``skip`` unreadable molecules with a warning that lists their rows, or ``raise``. If more than half
            are unreadable it is an error.
        duplicates: ``keep`` molecules that occur again (those on both sides of a given split are counted in a
            warning), or ``drop`` all but the first; then test molecules go first, so that they leave training.
        unknown: ``drop`` or ``raise``: validation and test molecules with atom types that training lacks.
        max_atoms: Largest molecule allowed, in heavy atoms; None for no limit.
        oversize: ``drop`` larger ones with a warning that counts, or ``error``.
        atom_types: A vocabulary; None takes that of the training split (before ``shots`` and ``imbalance``).
        shots: Training molecules a class, or in all without classes; None for all.
        draw: Which shots, and which molecules ``imbalance`` keeps.
        imbalance: Class name to how many training molecules of it to keep: a number, or a share.
        processes: Worker processes that read many molecules; None: one a processor.
        num_workers: Worker processes of each loader.
        seed: Order of training batches, and drawn splits.

    Example:
        >>> data = MoleculeDataModule(["CC", "CCC", "C=C", "CCCC"], split="random", fractions=(0.5, 0.25, 0.25))
        >>> data.schema["domain"], [len(data.train_items()), len(data.val_items()), len(data.test_items())]
        ('molecule', [2, 1, 1])
    """

    def __init__(
        self,
        source: Any = "nci",
        split: str | Sequence[Any] | Mapping[str, Any] | os.PathLike[str] = "scaffold",
        batch_size: int = 64,
        *,
        targets: Sequence[str] = (),
        smiles: str = "smiles",
        text: str | None = None,
        properties: Sequence[str] = (),
        task: Literal["regression", "classification"] = "regression",
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        fragments: Fragments = "largest",
        invalid: Literal["skip", "raise"] = "skip",
        duplicates: Literal["keep", "drop"] = "keep",
        unknown: Literal["drop", "raise"] = "drop",
        max_atoms: int | None = None,
        oversize: Literal["drop", "error"] = "drop",
        atom_types: Sequence[str] | None = None,
        shots: int | None = None,
        draw: int = 0,
        imbalance: Mapping[Any, float] | None = None,
        processes: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(domain="molecule", batch_size=batch_size, num_workers=num_workers, seed=seed)
        choices = {
            "task": (task, ("regression", "classification")),
            "fragments": (fragments, ("largest", "keep", "raise")),
            "invalid": (invalid, ("skip", "raise")),
            "duplicates": (duplicates, ("keep", "drop")),
            "unknown": (unknown, ("drop", "raise")),
            "oversize": (oversize, ("drop", "error")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        targets = (targets,) if isinstance(targets, str) else tuple(targets)
        properties = (properties,) if isinstance(properties, str) else tuple(properties)
        twice = [name for name, count in Counter([*targets, *properties]).items() if count > 1]
        if twice:
            raise ConfigError(f"targets and properties name {twice[0]!r} twice; every column of y needs its own name")
        if max_atoms is not None and max_atoms < 1:
            raise ConfigError(f"max_atoms must be at least 1, or None, got {max_atoms}")
        if task == "classification" and len(targets) != 1:
            raise ConfigError(f"a classification needs one target, got {len(targets)}: {list(targets)}")
        if imbalance and task != "classification":
            raise ConfigError("imbalance keeps a part of a class; it needs task='classification'")
        self.source, self.split, self.targets, self.smiles, self.text = source, split, targets, smiles, text
        self.properties, self.task, self.fractions, self.fragments = properties, task, tuple(fractions), fragments
        self.invalid, self.duplicates, self.unknown = invalid, duplicates, unknown
        self.max_atoms, self.oversize, self.atom_types = max_atoms, oversize, atom_types
        self.shots, self.draw, self.imbalance = shots, draw, imbalance
        self.processes = processes or os.cpu_count() or 1
        self._words: list[str] | None = None

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        smiles: str = "smiles",
        targets: Sequence[str] = (),
        split: Any = "scaffold",
        **options: Any,
    ) -> MoleculeDataModule:
        r"""Read a table of molecules.

        Args:
            path: A csv, tsv or parquet file with a header.
            smiles: Column of the SMILES.
            targets: Numeric columns.
            split: As the class.
            **options: Of the class.

        Example:
            >>> import tempfile
            >>> path = Path(tempfile.mkdtemp()) / "boiling.csv"
            >>> _ = path.write_text("smiles,kelvin\nCCO,351\nCO,338\nCCC,\n")
            >>> data = MoleculeDataModule.from_csv(path, targets=["kelvin"], split=([0, 1, 2], [], []))
            >>> [round(float(item.y)) if item.y == item.y else None for item in data.train_items()]
            [351, 338, None]
        """
        return cls(path, split, targets=targets, smiles=smiles, **options)

    @classmethod
    def preset(cls, name: str, root: str | os.PathLike[str], **options: Any) -> MoleculeDataModule:
        """Read a published set with its usual columns and split.

        Args:
            name: ``zinc250k`` and ``qm9`` (test rows of GDSS, https://github.com/harryjo97/GDSS), ``qm9_orbitals``
                (HOMO, LUMO, gap), ``moses``, ``esol``, ``lipophilicity``, ``bbbp``, ``clintox`` (scaffold splits),
                ``chebi20`` (descriptions).
            root: Folder of the files.
            **options: Of the class; they win over those of the preset.

        Raises:
            ConfigError: If there is no such preset.
            DataError: If a file is missing, naming it.
        """
        if name not in PRESETS:
            raise ConfigError(f"no molecule set {name!r}; known: {', '.join(PRESETS)}")
        settings = dict(PRESETS[name])
        files = settings.pop("file")
        if str(settings.get("split", "")).endswith(".json"):
            settings["split"] = Path(root) / settings["split"]
        settings = {**settings, **options}
        paths = [Path(root) / file for file in ([files] if isinstance(files, str) else files)]
        wanted = [*paths, settings["split"]] if isinstance(settings.get("split"), os.PathLike) else paths
        for path in wanted:
            if not Path(path).is_file():
                raise DataError(f"{name!r} needs the file {path}, which is not there; nothing is downloaded")
        return cls(paths[0] if len(paths) == 1 else paths, **settings)

    # ---------------------------------------------------------------------------------------------------- loading

    def load(self) -> Splits:
        """Read, check, split and describe the molecules."""
        source = self._read()
        table = read_table(source.molecules, self.fragments, self.processes)
        self._report_failures(table, len(source.molecules))
        targets = source.targets[table.row]
        classes, labels = self._classes(targets)
        part = self._parts(table, source, labels)
        part[labels == UNUSED] = UNUSED
        part = self._without_large(table, part)
        part = self._duplicates(table, part)
        train = np.flatnonzero(part == TRAIN)
        if not len(train):
            raise DataError("the split leaves 0 training molecules")
        # Of the whole training split, so that neither schema nor test set depend on the shots.
        atom_types = list(self.atom_types or table.vocabulary(train))
        part = self._without_unknown(table, part, atom_types)
        train = np.flatnonzero(part == TRAIN)
        part[train[left_out(labels[train], classes, self.imbalance, self.draw)]] = UNUSED
        part = self._few(part, labels)
        _warn_of_empty_classes(labels[part == TRAIN], classes)
        names, columns = self._columns(table, targets, labels, source.text)
        indices = (np.flatnonzero(part == code) for code in (TRAIN, VAL, TEST))
        items = [MoleculeItems(table, index, atom_types, BOND_TYPES, columns) for index in indices]
        self._print_coverage(table, items[0], len(source.molecules))
        known: dict[str, Any] = {
            "atom_types": atom_types,
            "bond_types": list(BOND_TYPES),
            "property_names": names,
            "targets": list(self.targets),
            "task": self.task,
            "several_fragments": any("." in table.smiles[i] for i in train),
        }
        if classes:
            known["class_names"] = classes
        train_items, val_items, test_items = items
        return Splits(train_items, val_items, test_items, known)

    def _read(self) -> _Source:
        source = self.source
        if isinstance(source, str) and source == "nci" and not Path(source).exists():
            source = _nci_file()
        if isinstance(source, (str, os.PathLike)):
            return self._read_file(Path(source))
        if isinstance(source, Sequence) and source and all(_is_path(path) for path in source):
            parts = [self._read_file(Path(path)) for path in source]
            return _Source(
                [molecule for part in parts for molecule in part.molecules],
                np.concatenate([part.targets for part in parts]),
                [text for part in parts for text in part.text or ()] if self.text else None,
                np.repeat(np.arange(len(parts)), [len(part.molecules) for part in parts]),
            )
        if hasattr(source, "columns"):
            return self._from_frame(source, "the frame")
        molecules = list(source)
        if not molecules:
            raise DataError("the list of molecules is empty")
        if self.targets or self.text:
            raise ConfigError("targets and text are columns; a list of molecules has none: pass a frame")
        # An empty SMILES is listed as unreadable by `read_table`; so is a gap (None, NaN).
        molecules = [m if isinstance(m, str) or hasattr(m, "GetAtoms") else "" for m in molecules]
        return _Source(molecules, np.zeros((len(molecules), 0)))

    def _read_file(self, path: Path) -> _Source:
        if not path.is_file():
            raise DataError(f"no file {path}")
        suffix = path.suffix.lower()
        if suffix in (".csv", ".tsv", ".parquet"):
            return self._from_frame(_read_frame(path), str(path))
        if suffix == ".sdf":
            return self._from_sdf(path)
        if suffix not in _SUFFIXES:
            raise ConfigError(f"{path} is none of csv, tsv, parquet, smi, txt, sdf; unpack it if it is packed")
        if self.targets or self.text:
            raise ConfigError(f"{path} has SMILES only, no columns {[*self.targets, *filter(None, [self.text])]}")
        molecules = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if not molecules:
            raise DataError(f"{path} is empty")
        return _Source(molecules, np.zeros((len(molecules), 0)))

    def _from_frame(self, frame: Any, name: str) -> _Source:
        columns = [str(column) for column in frame.columns]
        for column in (self.smiles, *self.targets, *filter(None, [self.text])):
            if column not in columns:
                raise ConfigError(f"{name} has no column {column!r}; columns: {', '.join(columns)}")
        if not len(frame):
            raise DataError(f"{name} has 0 rows")
        molecules = [value if isinstance(value, str) else "" for value in frame[self.smiles]]
        if name.endswith(".tsv"):
            # The published descriptions of molecules double every backslash of their SMILES.
            molecules = [value.replace("\\\\", "\\") for value in molecules]
        targets = [self._numbers(list(frame[column]), column, name) for column in self.targets]
        text = [value if isinstance(value, str) else "" for value in frame[self.text]] if self.text else None
        return _Source(molecules, np.stack(targets, 1) if targets else np.zeros((len(molecules), 0)), text)

    def _from_sdf(self, path: Path) -> _Source:
        from rdkit import Chem, rdBase

        if not path.stat().st_size:
            raise DataError(f"{path} is empty")
        with rdBase.BlockLogs():
            read = list(Chem.SDMolSupplier(str(path)))
        cells = {
            name: [mol.GetProp(name) if mol is not None and mol.HasProp(name) else "" for mol in read]
            for name in (*self.targets, *filter(None, [self.text]))
        }
        for name, column in cells.items():
            if not any(column):
                raise ConfigError(f"no molecule of {path} has the property {name!r}")
        targets = [self._numbers(cells[target], target, str(path)) for target in self.targets]
        text = cells[self.text] if self.text else None
        # An empty SMILES is listed as unreadable by `read_table`.
        molecules = ["" if mol is None else mol for mol in read]
        return _Source(molecules, np.stack(targets, 1) if targets else np.zeros((len(read), 0)), text)

    def _numbers(self, cells: Sequence[Any], column: str, name: str) -> np.ndarray:
        """Numbers of a column, NaN where empty; the words of a class column are numbered in sorted order."""
        empty = [str(cell).strip().lower() in _MISSING for cell in cells]
        try:
            values = np.array([np.nan if gap else float(cell) for cell, gap in zip(cells, empty, strict=True)])
        except ValueError:
            if self.task == "classification":
                words = [str(cell).strip() for cell in cells]
                self._words = sorted({word for word, gap in zip(words, empty, strict=True) if not gap})
                place = {word: i for i, word in enumerate(self._words)}
                return np.array([np.nan if gap else place[word] for word, gap in zip(words, empty, strict=True)])
            row = next(i for i, (c, gap) in enumerate(zip(cells, empty, strict=True)) if not gap and not _is_number(c))
            raise DataError(f"{name}, row {row}: {column!r} is {cells[row]!r}, which is no number") from None
        if np.isinf(values).any():
            row = int(np.isinf(values).argmax())
            raise DataError(f"{name}, row {row}: {column!r} is infinite; leave missing values empty")
        return values

    def _classes(self, targets: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Class names and the class of every molecule; -1 where it is missing, 0 without classes."""
        if self.task != "classification":
            return [], np.zeros(len(targets), np.int64)
        values = targets[:, 0]
        found, known = np.unique(values[np.isfinite(values)]), np.isfinite(values)
        if len(found) < 2:
            raise DataError(f"target {self.targets[0]!r} has {len(found)} classes; a classification needs two")
        if not known.all():
            warnings.warn(f"{(~known).sum()} molecules have no {self.targets[0]!r}: left out", stacklevel=2)
        labels = np.where(known, np.searchsorted(found, np.where(known, values, found[0])), UNUSED)
        return [self._words[int(value)] if self._words else f"{value:g}" for value in found], labels

    def _report_failures(self, table: MoleculeTable, count: int) -> None:
        if not table.failures:
            return
        rows = ", ".join(str(row) for row, _ in table.failures[:_SHOWN])
        more = ", ..." if len(table.failures) > _SHOWN else ""
        text = (
            f"{len(table.failures)} of {count} molecules cannot be used, rows {rows}{more} (counted from 0); "
            f"the first: {table.failures[0][1]}"
        )
        if self.invalid == "raise" or 2 * len(table.failures) > count:
            raise DataError(text)
        warnings.warn(f"{text}: left out", stacklevel=2)

    # -------------------------------------------------------------------------------------------------- splitting

    def _parts(self, table: MoleculeTable, source: _Source, labels: np.ndarray) -> np.ndarray:
        """The split of every molecule of the table: 0, 1, 2."""
        split = self.split
        if split in ("scaffold", "random_scaffold"):
            scaffolds = murcko_scaffolds(table.smiles, self.processes)
            order = None if split == "scaffold" else np.random.default_rng(self.seed)
            return scaffold_split(scaffolds, self.fractions, order)
        if split == "random":
            same = np.unique(table.smiles, return_inverse=True)[1]
            return stratified_split(np.maximum(labels, 0), self.fractions, self.seed, same)
        if split == "file":
            if source.file is None:
                raise ConfigError("split='file' needs several files; the last one tests")
            is_test = source.file == source.file.max()
            part: np.ndarray = np.where(is_test, TEST, TRAIN)[table.row]
            train = np.flatnonzero(part == TRAIN)
            share = self.fractions[1] / (self.fractions[0] + self.fractions[1])
            shuffled = np.random.default_rng(self.seed).permutation(train)
            part[shuffled[: round(share * len(train))]] = VAL
            return part
        return np.asarray(_given_split(split, len(source.molecules))[table.row])

    def _without_large(self, table: MoleculeTable, part: np.ndarray) -> np.ndarray:
        large = np.flatnonzero((table.sizes > (self.max_atoms or np.inf)) & (part != UNUSED))
        if not len(large):
            return part
        counts = ", ".join(f"{(part[large] == code).sum()} {name}" for code, name in enumerate(PARTS))
        message = f"{len(large)} molecules have more than max_atoms={self.max_atoms} heavy atoms ({counts})"
        if self.oversize == "error":
            first = large[table.sizes[large].argmax()]
            raise DataError(f"{message}, the largest is row {table.row[first]} with {table.sizes[first]}")
        warnings.warn(f"{message}: left out", stacklevel=2)
        part[large] = UNUSED
        return part

    def _duplicates(self, table: MoleculeTable, part: np.ndarray) -> np.ndarray:
        """Count, or leave out, molecules that occur again; test molecules win over validation over training."""
        used = np.flatnonzero(part != UNUSED)
        order = used[np.lexsort([used, -part[used]])]
        same = np.unique([table.smiles[i] for i in order], return_inverse=True)[1]
        first = np.full(same.max() + 1 if len(same) else 0, -1)
        first[same[::-1]] = order[::-1]
        again = order[first[same] != order]
        across = again[part[first[same][first[same] != order]] != part[again]]
        if self.duplicates == "drop":
            if len(again):
                warnings.warn(
                    f"{len(again)} molecules occur again ({len(across)} across splits): dropped", stacklevel=2
                )
            part[again] = UNUSED
        elif len(across):
            warnings.warn(
                f"{len(across)} molecules of training or validation are also in a later split (without "
                f"stereochemistry; the first is row {table.row[across.min()]}): duplicates='drop' leaves them out",
                stacklevel=2,
            )
        return part

    def _few(self, part: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if self.shots is None:
            return part
        train = np.flatnonzero(part == TRAIN)
        short = [int(label) for label in np.unique(labels[train]) if (labels[train] == label).sum() < self.shots]
        if short:
            warnings.warn(f"class {short} has fewer than {self.shots} training molecules; all are used", stacklevel=2)
        part[train] = UNUSED
        part[train[draw_shots(labels[train], self.shots, self.draw)]] = TRAIN
        return part

    def _without_unknown(self, table: MoleculeTable, part: np.ndarray, atom_types: Sequence[str]) -> np.ndarray:
        unknown = {i: name for i, name in table.unknown(atom_types).items() if part[i] != UNUSED}
        if not unknown:
            return part
        first, names = min(unknown), ", ".join(sorted(set(unknown.values())))
        message = (
            f"{len(unknown)} molecules have atom types that training lacks ({names}; "
            f"the first is row {table.row[first]}, {table.smiles[first]!r})"
        )
        if self.unknown == "raise" or any(part[i] == TRAIN for i in unknown):
            raise DataError(message)
        warnings.warn(f"{message}: left out of validation and test", stacklevel=2)
        part[list(unknown)] = UNUSED
        return part

    # ------------------------------------------------------------------------------------------------- describing

    def _columns(
        self, table: MoleculeTable, targets: np.ndarray, labels: np.ndarray, text: list[str] | None
    ) -> tuple[list[str], dict[str, Any]]:
        """Names of the properties, and the fields of every molecule."""
        computed = compute_properties(table.smiles, self.properties, self.processes)
        is_class = self.task == "classification"
        names = [*(() if is_class else self.targets), *self.properties]
        columns: dict[str, Any] = {}
        if names:
            values = np.concatenate([targets[:, :0] if is_class else targets, computed], 1)
            columns["y"] = torch.from_numpy(values).float()
        if is_class:
            columns["label"] = torch.from_numpy(labels)
        if text is not None:
            columns["text"] = [text[row] for row in table.row]
        return names, columns

    def _print_coverage(self, table: MoleculeTable, train: MoleculeItems, count: int) -> None:
        """Say what share of the source the representation holds; checked on training molecules."""
        rows = np.unique(np.linspace(0, len(train) - 1, min(len(train), _CHECKED)).round().astype(int))
        checked = train[rows]
        schema = {"atom_types": list(train._vocabulary[0]), "bond_types": list(BOND_TYPES)}
        exact = np.mean([a == b for a, b in zip(to_smiles(checked, schema), checked.smiles, strict=True)])
        rank_zero_info(
            f"molecules: {len(table)} of {count} rows read ({len(table) / count:.1%}), "
            f"{len(schema['atom_types'])} atom types, at most {table.sizes.max()} heavy atoms; "
            f"{exact:.1%} of {len(checked)} training molecules come back exactly from their graph"
        )


def _given_split(split: Any, count: int) -> np.ndarray:
    """A split given by rows of the source, or a JSON file of such rows."""
    if isinstance(split, (str, os.PathLike)):
        split = _stored_split(Path(split), count)
    if not isinstance(split, Mapping) and all(np.ndim(rows) == 0 for rows in split):
        raise ConfigError(f"split={tuple(split)} are no rows; fractions go to fractions=, with split='random'")
    return split_by_rows(split, count, "row")


def _stored_split(path: Path, count: int) -> dict[str, Any]:
    if path.suffix != ".json":
        raise ConfigError(f"no split {str(path)!r}: scaffold, random_scaffold, random, file, row lists or a JSON file")
    if not path.is_file():
        raise DataError(f"no file {path}")
    try:
        split = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is no JSON file: {error}") from error
    if isinstance(split, dict) and not set(split) & set(PARTS):
        split = next(iter(split.values()))
    if not isinstance(split, dict):
        # The files of GDSS list test rows, partly as strings.
        test = np.array([int(row) for row in split])
        split = {"train": np.setdiff1d(np.arange(count), test), "test": test}
    return dict(split)


def _warn_of_empty_classes(labels: np.ndarray, classes: Sequence[str]) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts.tolist(), strict=False) if not count]
    if empty:
        warnings.warn(f"no training molecules of class {', '.join(empty)}: it cannot be learned", stacklevel=5)


def _is_path(source: Any) -> bool:
    """Configuration files have paths as plain strings; no SMILES ends like a file."""
    return isinstance(source, os.PathLike) or (isinstance(source, str) and source.lower().endswith(_SUFFIXES))


def _read_frame(path: Path) -> Any:
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        # index_col: with a separator too many at the end of lines, pandas would take the SMILES for row names.
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty") from None
    except ValueError as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _nci_file() -> Path:
    try:
        from rdkit import RDConfig
    except ImportError:
        raise ConfigError("molecules need RDKit: pip install 'lightning-synth[molecule]'") from None
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    if not path.is_file():
        raise DataError(f"RDKit came without {path}; pass a file or a list of SMILES")
    return path
