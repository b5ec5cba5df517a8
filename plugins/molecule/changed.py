"""What the trivial arms share: a training molecule, changed, that keeps the class and the measured targets."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from lightning_synth.molecules.batch import attach, attach_smiles, derived_properties
from lightning_synth.plugins.resampling import Resampler
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.schema import collate


class ChangedMolecules(Resampler):
    """Base of generators that change training molecules of the requested class, nearest to requested properties.

    A subclass writes `change`. The class and measured targets are those of the source molecule, as augmentations
    assume; properties that RDKit computes are computed anew.
    """

    domain = "molecule"
    conditions = ("label", "*")

    @abstractmethod
    def change(self, picked: Tensor, batch: Any, rng: KeyedRNG) -> Any:
        """Make new graphs.

        Args:
            picked: int64 (rows,), positions of the source molecules in the bank.
            batch: The source molecules.
            rng: One seed a row.

        Returns:
            A PyG ``Batch`` with ``x``, ``edge_index``, ``edge_attr``.
        """

    def sample_batch(self, requests: SampleRequests, rng: KeyedRNG) -> Any:
        """Change training molecules.

        Args:
            requests: Rows to sample.
            rng: One seed a row.

        Returns:
            A PyG ``Batch``.
        """
        schema = self.fitted_schema
        picked = self.rows.pick(requests, rng.fork("source"))
        source = collate([self.bank.items[i] for i in picked.tolist()], schema).to(rng.device)
        if not len(picked):
            return source
        batch = attach_smiles(self.change(picked, source, rng), schema)
        if source.get("label") is not None:
            attach(batch, "label", source.label)
        if schema.get("properties"):
            attach(batch, "y", derived_properties(batch.smiles, source.y, schema))
        return batch
