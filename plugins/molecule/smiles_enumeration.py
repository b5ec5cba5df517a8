"""SMILES enumeration: one molecule in many atom orders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_synth.graphs import graph_batch, ragged_uniform
from lightning_synth.plugins.molecule.changed import ChangedMolecules
from lightning_synth.requests import KeyedRNG


class SmilesEnumeration(ChangedMolecules):
    """Training molecules with their atoms in random order (Bjerrum 2017, arXiv 1703.07076).

    There, a molecule is written as several SMILES strings; a string is an order of the atoms, so on graphs it is a
    permutation of ``x`` and ``edge_index``. A model that reads an order (a sequence model) sees something new; one that
    does not, such as a graph network or a fingerprint, sees an exact copy: for it this arm is ``molecule_bootstrap``.
    ``smiles`` stays canonical.

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = SmilesEnumeration().fit_on(tiny_items("molecule"), tiny_schema("molecule"))
        >>> sorted(model.sample(8).items()[0].x.tolist()) == sorted(model.sample(8).items()[0].x.tolist())
        True
    """

    def change(self, picked: Tensor, batch: Any, rng: KeyedRNG) -> Any:
        """Permute the atoms of every molecule.

        Args:
            picked: int64 (rows,), positions of the source molecules in the bank.
            batch: The source molecules.
            rng: One seed a row.

        Returns:
            A PyG ``Batch``.
        """
        sizes = batch.ptr.diff()
        # Random numbers in [0, 1) plus the row: sorting shuffles within every molecule.
        key = batch.batch + ragged_uniform(rng.fork("order"), sizes).double()
        order = key.argsort()
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - batch.ptr[batch.batch]
        once = batch.edge_index[0] < batch.edge_index[1]
        edges = place[batch.edge_index[:, once]]
        owner = batch.batch[batch.edge_index[0, once]]
        return graph_batch(sizes, edges, owner, x=batch.x[order], edge_attr=batch.edge_attr[once])
