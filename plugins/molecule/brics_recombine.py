"""BRICS recombination: parts of two training molecules, joined where a synthesis could join them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.graphs import graph_batch
from lightning_synth.molecules.representation import molecules
from lightning_synth.plugins.molecule.changed import ChangedMolecules
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import collate

Ints = np.ndarray


class BricsRecombine(ChangedMolecules):
    """One side of a training molecule joined to the fitting side of another one of its class.

    Bonds are those that BRICS would cut (Degen et al. 2008, doi:10.1002/cmdc.200800178), each with the two environments
    it lies between; two molecules may swap sides at bonds between the same environments. Since a single bond replaces a
    single bond, the result is always valid. A molecule without such a bond is copied.

    Example:
        >>> from lightning_synth.molecules import encode, fit_vocabulary
        >>> from lightning_synth.schema import describe
        >>> smiles = ["CCOC(=O)c1ccccc1", "CC(C)OC(=O)CN", "O=C(OC1CC1)c1ccncc1"]
        >>> atoms = fit_vocabulary(smiles)
        >>> items = [encode(text, atoms) for text in smiles]
        >>> schema = describe(items, "molecule", atom_types=atoms, bond_types=["SINGLE", "DOUBLE", "TRIPLE"])
        >>> model = BricsRecombine().fit_on(items, schema)
        >>> all(item.smiles for item in model.sample(20).items())
        True
    """

    def change(self, picked: Tensor, batch: Any, rng: KeyedRNG) -> Any:
        """Swap one side of every molecule.

        Args:
            picked: int64 (rows,), positions of the source molecules in the bank.
            batch: The source molecules.
            rng: One seed a row.

        Returns:
            A PyG ``Batch``.
        """
        cuts: _Cuts = self.derived("cuts", self._find_cuts)
        draw = rng.fork("cut").uniform((2,)).double().cpu().numpy()
        first, second = cuts.draw(picked.cpu().numpy(), draw)
        swap = np.flatnonzero(first >= 0)
        whole = np.flatnonzero(first < 0)
        parts = [_Side.whole(self._of(picked[whole]), whole)] if len(whole) else []
        if len(swap):
            for cut in (first[swap], second[swap]):
                donors = self._of(torch.from_numpy(cuts.molecule[cut]))
                parts.append(_Side.cut(donors, cuts.atom[cut], cuts.other[cut], swap))
        return _join(parts, len(picked)).to(rng.device)

    def _of(self, index: Tensor) -> Any:
        return collate([self.bank.items[i] for i in index.tolist()], self.fitted_schema)

    def _find_cuts(self) -> _Cuts:
        labels = self.bank.labels
        return _Cuts(self.bank.items, self.fitted_schema, None if labels is None else labels.numpy())


class _Cuts:
    """Every BRICS bond of the training molecules, once from each side, and which of them fit together."""

    def __init__(self, items: Any, schema: dict[str, Any], labels: Ints | None) -> None:
        rows = []
        for i, mol in enumerate(molecules(items, schema)):
            for (a, b), (here, there) in _bonds_to_cut(mol):
                # Environments are numbered 1 to 16; some have a letter behind the number.
                one, two = (int(text.rstrip("abcdefgh")) for text in (here, there))
                rows += [(i, a, b, one, two), (i, b, a, two, one)]
        table = np.array(rows, np.int64).reshape(-1, 5)
        self.molecule, self.atom, self.other, here, there = table.T
        label = np.zeros(len(items), np.int64) if labels is None else labels
        kind = (label[self.molecule] * 32 + here) * 32 + there
        self._wanted = (label[self.molecule] * 32 + there) * 32 + here
        self._by_kind = kind.argsort(kind="stable")
        self._sorted = kind[self._by_kind]
        # Rows of one molecule lie together.
        self._first = np.searchsorted(self.molecule, np.arange(len(items) + 1))

    def draw(self, picked: Ints, uniform: Ints) -> tuple[Ints, Ints]:
        """A cut of every picked molecule (-1 if it has none), and a cut that fits it."""
        start, stop = self._first[picked], self._first[picked + 1]
        first = np.where(stop > start, start + (uniform[:, 0] * (stop - start)).astype(np.int64), -1)
        if not len(self.molecule):
            return first, first
        wanted = self._wanted[first]
        low, high = (np.searchsorted(self._sorted, wanted, side=side) for side in ("left", "right"))
        # The molecule's own other side always fits.
        second = self._by_kind[low + (uniform[:, 1] * (high - low)).astype(np.int64)]
        return first, np.where(first >= 0, second, -1)


def _bonds_to_cut(mol: Any) -> Iterable[Any]:
    from rdkit.Chem import BRICS

    found: Iterable[Any] = () if mol is None else BRICS.FindBRICSBonds(mol)  # type: ignore[no-untyped-call]
    return found


class _Side:
    """Parts of molecules: atoms, bonds between them, the row that each belongs to, and the atom at the cut."""

    def __init__(self, batch: Any, keep: Ints, row: Ints, atom: Ints | None) -> None:
        graph = batch.batch.numpy()
        place = keep.cumsum() - 1
        ends = batch.edge_index.numpy()
        inside = (ends[0] < ends[1]) & keep[ends].all(0)
        self.x, self.row = batch.x.numpy()[keep], row[graph[keep]]
        self.ends, self.kind = place[ends[:, inside]], batch.edge_attr.numpy()[inside]
        self.bond_row = row[graph[ends[0, inside]]]
        self.join = None if atom is None else place[atom]

    @classmethod
    def whole(cls, batch: Any, row: Ints) -> _Side:
        return cls(batch, np.ones(int(batch.num_nodes), bool), row, None)

    @classmethod
    def cut(cls, batch: Any, atom: Ints, other: Ints, row: Ints) -> _Side:
        """What hangs together with an atom once its bond to another atom is cut."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        start, n = batch.ptr.numpy()[:-1], int(batch.num_nodes)
        atom, other = atom + start, other + start
        ends = batch.edge_index.numpy()
        ends = ends[:, ~np.isin(ends[0] * n + ends[1], np.concatenate([atom * n + other, other * n + atom]))]
        _, part = connected_components(coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(n, n)), False)
        keep = part == part[atom][batch.batch.numpy()]
        return cls(batch, keep, row, atom)


def _join(sides: list[_Side], rows: int) -> Any:
    """Put the sides of every row into one molecule, the first one first, with a single bond between the cut atoms."""
    row = np.concatenate([side.row for side in sides])
    order = row.argsort(kind="stable")
    sizes = np.bincount(row, minlength=rows)
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - np.repeat(sizes.cumsum() - sizes, sizes)
    offsets = np.cumsum([0, *(len(side.x) for side in sides)])
    ends = [side.ends + offset for side, offset in zip(sides, offsets, strict=False)]
    kinds, owners = [side.kind for side in sides], [side.bond_row for side in sides]
    joined = [(side.join + offset, side) for side, offset in zip(sides, offsets, strict=False) if side.join is not None]
    if joined:
        (one, side), (two, _) = joined
        ends.append(np.stack([one, two]))
        kinds.append(np.zeros(len(one), np.int64))
        owners.append(side.row[side.join])
    x = np.concatenate([side.x for side in sides])[order]
    return graph_batch(
        torch.from_numpy(sizes),
        torch.from_numpy(place[np.concatenate(ends, 1)]),
        torch.from_numpy(np.concatenate(owners)),
        x=torch.from_numpy(x),
        edge_attr=torch.from_numpy(np.concatenate(kinds)),
    )
