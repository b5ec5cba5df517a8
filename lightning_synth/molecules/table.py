"""Many molecules read at once: in parallel, cached, kept in flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lightning_synth.errors import DataError
from lightning_synth.molecules.cache import cached, from_bytes, map_chunks, to_bytes
from lightning_synth.molecules.representation import Fragments, MoleculeGraph, read_molecule


@dataclass(frozen=True)
class MoleculeTable:
    """Molecules in flat arrays.

    Args:
        smiles: Canonical SMILES of each.
        row: int64 (molecules,), position in the source.
        names: Atom types that occur.
        atoms: int64 (sum of atoms,), index into `names`, molecule after molecule.
        atom_ptr: int64 (molecules + 1,), where each molecule starts in `atoms`.
        bonds: int64 (sum of bonds, 3): atom, atom (both within the molecule), order.
        bond_ptr: int64 (molecules + 1,).
        failures: Source row and reason of what could not be read.

    Example:
        >>> table = read_table(["OCC", "c1ccccc1", "C(C"])
        >>> table.smiles, table.sizes.tolist(), table.failures[0][0]
        (['CCO', 'c1ccccc1'], [3, 6], 2)
    """

    smiles: list[str]
    row: np.ndarray
    names: list[str]
    atoms: np.ndarray
    atom_ptr: np.ndarray
    bonds: np.ndarray
    bond_ptr: np.ndarray
    failures: list[tuple[int, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.smiles)

    @property
    def sizes(self) -> np.ndarray:
        """Atoms of each molecule, int64 (molecules,)."""
        return np.diff(self.atom_ptr)

    def vocabulary(self, index: np.ndarray) -> list[str]:
        """List the atom types of some molecules, most frequent first, as `fit_vocabulary` does.

        Args:
            index: int64, positions of molecules.
        """
        chosen = np.zeros(len(self), bool)
        chosen[index] = True
        count = np.bincount(self.atoms[np.repeat(chosen, self.sizes)], minlength=len(self.names))
        present = [(name, n) for name, n in zip(self.names, count.tolist(), strict=True) if n]
        return [name for name, _ in sorted(present, key=lambda pair: (-pair[1], pair[0]))]

    def unknown(self, atom_types: Sequence[str]) -> dict[int, str]:
        """Find molecules with an atom type outside a vocabulary: position to the first such type.

        Args:
            atom_types: The vocabulary.
        """
        foreign = np.isin(self.names, np.array(list(atom_types), dtype=str), invert=True)
        place = np.flatnonzero(foreign[self.atoms])
        owner = np.searchsorted(self.atom_ptr, place, side="right") - 1
        return {int(i): self.names[self.atoms[p]] for i, p in zip(owner[::-1], place[::-1], strict=True)}


def read_table(
    molecules: Sequence[Any], fragments: Fragments = "keep", processes: int = 1, description: str = "reading molecules"
) -> MoleculeTable:
    """Read many molecules; those that cannot be read are listed, not raised.

    Args:
        molecules: SMILES or RDKit molecules.
        fragments: As `read_molecule`.
        processes: Worker processes from 20,000 molecules on.
        description: Of the progress bar.

    Returns:
        The table; cached under ``$LIGHTNING_SYNTH_CACHE`` (else ``~/.cache/lightning_synth``) from 5,000 SMILES on.
    """

    def compute() -> dict[str, np.ndarray]:
        return _pack(map_chunks(partial(_read_chunk, fragments=fragments), molecules, processes, description))

    if not all(isinstance(molecule, str) for molecule in molecules):
        return _unpack(compute())
    return _unpack(cached("table", molecules, fragments, compute=compute))


def _read_chunk(molecules: Sequence[Any], fragments: Fragments) -> list[MoleculeGraph | str]:
    """Graphs, or the reason why there is none."""
    out: list[MoleculeGraph | str] = []
    for molecule in molecules:
        try:
            out.append(read_molecule(molecule, fragments))
        except DataError as error:
            out.append(str(error))
    return out


def _pack(parts: Sequence[Sequence[MoleculeGraph | str]]) -> dict[str, np.ndarray]:
    read = [graph for part in parts for graph in part]
    kept = [(row, graph) for row, graph in enumerate(read) if isinstance(graph, MoleculeGraph)]
    failed = [(row, reason) for row, reason in enumerate(read) if isinstance(reason, str)]
    index: dict[str, int] = {}
    atoms = [index.setdefault(name, len(index)) for _, graph in kept for name in graph.atoms]
    return {
        "smiles": to_bytes([graph.smiles for _, graph in kept]),
        "row": np.array([row for row, _ in kept], np.int64),
        "names": to_bytes(list(index)),
        "atoms": np.array(atoms, np.int16),
        "atom_count": np.array([len(graph.atoms) for _, graph in kept], np.int64),
        "bonds": np.concatenate([np.zeros((0, 3), np.int16), *(graph.bonds.astype(np.int16) for _, graph in kept)]),
        "bond_count": np.array([len(graph.bonds) for _, graph in kept], np.int64),
        "failed": np.array([row for row, _ in failed], np.int64),
        "reasons": to_bytes([reason.replace("\n", " ") for _, reason in failed]),
    }


def _unpack(arrays: Mapping[str, np.ndarray]) -> MoleculeTable:
    failures = list(zip(arrays["failed"].tolist(), from_bytes(arrays["reasons"]), strict=True))
    return MoleculeTable(
        from_bytes(arrays["smiles"]),
        arrays["row"],
        from_bytes(arrays["names"]),
        arrays["atoms"].astype(np.int64),
        np.concatenate([[0], arrays["atom_count"].cumsum()]),
        arrays["bonds"].astype(np.int64),
        np.concatenate([[0], arrays["bond_count"].cumsum()]),
        failures,
    )


class MoleculeItems(Sequence[Any]):
    """Molecules as PyG ``Data``, made when asked for: a quarter of a million of them fit in 150 MB.

    Args:
        table: The molecules.
        index: int64 (items,), which of them.
        atom_types: The vocabulary; it must hold every type that occurs.
        bond_types: Names of bonds, as in the schema.
        columns: Further fields: name to a tensor with one row a molecule of the table, or a list of strings.

    Example:
        >>> items = MoleculeItems(read_table(["CCO", "C=C"]), np.arange(2), ["C", "O"], ["SINGLE", "DOUBLE"])
        >>> items[1].edge_attr.tolist(), [item.smiles for item in items[::-1]]
        ([1, 1], ['C=C', 'CCO'])
    """

    def __init__(
        self,
        table: MoleculeTable,
        index: np.ndarray,
        atom_types: Sequence[str],
        bond_types: Sequence[str],
        columns: Mapping[str, Tensor | Sequence[str]] | None = None,
    ) -> None:
        from lightning_synth.molecules.representation import _bond_index

        self.table, self.rows, self.columns = table, index, dict(columns or {})
        self._vocabulary = (tuple(atom_types), tuple(bond_types))
        self._kind = np.array([atom_types.index(name) if name in atom_types else -1 for name in table.names], np.int64)
        self._bond = _bond_index(tuple(bond_types))

    def __len__(self) -> int:
        """Return the number of molecules."""
        return len(self.rows)

    @property
    def smiles(self) -> list[str]:
        """Canonical SMILES of every molecule."""
        return [self.table.smiles[i] for i in self.rows]

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> MoleculeItems: ...

    def __getitem__(self, index: Any) -> Any:
        """Return one ``Data`` for an integer, `MoleculeItems` for a slice or an index array."""
        if isinstance(index, (int, np.integer)):
            return self._item(int(self.rows[index]))
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index.astype(np.int64) if index.size == 0 else index
        chosen = self.rows[index]
        return MoleculeItems(self.table, chosen, *self._vocabulary, self.columns)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the molecules."""
        return (self._item(int(i)) for i in self.rows)

    def __getitems__(self, index: Sequence[int]) -> MoleculeItems:
        """Return several molecules: what a DataLoader asks for, so that a batch is made without its graphs."""
        return self[index]

    def column(self, name: str) -> np.ndarray:
        """One row a molecule of ``num_nodes`` or of a further field.

        Args:
            name: Of the field.
        """
        if name == "num_nodes":
            return np.asarray(self.table.sizes[self.rows])
        column = self.columns[name]
        return column[self.rows].numpy() if isinstance(column, Tensor) else np.array([column[i] for i in self.rows])

    def batch(self) -> Any:
        """Collate all molecules into a PyG ``Batch``, as `Batch.from_data_list` would, ten times as fast."""
        from lightning_synth.graphs import assemble_batch
        from lightning_synth.molecules.batch import attach

        table, rows = self.table, self.rows
        sizes, bonds = table.sizes[rows], np.diff(table.bond_ptr)[rows]
        atom, bond = (_spans(ptr[rows], n) for ptr, n in ((table.atom_ptr, sizes), (table.bond_ptr, bonds)))
        shift = np.repeat(sizes.cumsum() - sizes, bonds)
        first, second, order = table.bonds[bond].T
        # Of every molecule all bonds come forwards, then all of them backwards.
        there = _spans(2 * (bonds.cumsum() - bonds), bonds)
        back = there + np.repeat(bonds, bonds)
        edges, kind = np.empty((2, 2 * len(bond)), np.int64), np.empty(2 * len(bond), np.int64)
        edges[:, there], edges[:, back] = np.stack([first, second]) + shift, np.stack([second, first]) + shift
        kind[there] = kind[back] = self._bond[order]
        tensors = (sizes, edges, 2 * bonds, self._kind[table.atoms[atom]], kind)
        batch = assemble_batch(*(torch.from_numpy(np.asarray(value)) for value in tensors))
        attach(batch, "smiles", self.smiles)
        for name, column in self.columns.items():
            attach(batch, name, column[rows] if isinstance(column, Tensor) else [column[i] for i in rows])
        return batch

    def _item(self, i: int) -> Any:
        from torch_geometric.data import Data

        table = self.table
        atoms = table.atoms[table.atom_ptr[i] : table.atom_ptr[i + 1]]
        first, second, order = table.bonds[table.bond_ptr[i] : table.bond_ptr[i + 1]].T
        kind = self._bond[order]
        data = Data(
            x=torch.from_numpy(self._kind[atoms]),
            edge_index=torch.from_numpy(np.stack([np.append(first, second), np.append(second, first)])),
            edge_attr=torch.from_numpy(np.append(kind, kind)),
            smiles=table.smiles[i],
            num_nodes=len(atoms),
        )
        for name, column in self.columns.items():
            data[name] = column[i : i + 1] if isinstance(column, Tensor) else column[i]
        return data


def _spans(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Write start, start + 1, ... of every span one after the other."""
    total = count.cumsum()
    return np.asarray(np.arange(total[-1] if len(total) else 0) + np.repeat(start - (total - count), count))
