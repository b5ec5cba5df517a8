"""Fields of molecules in a PyG ``Batch``: SMILES, properties, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_synth.molecules.representation import to_smiles


def attach(batch: Any, name: str, value: Tensor | Sequence[str]) -> Any:
    """Give a batch a field with one row or string a graph that survives `to_data_list`.

    Args:
        batch: PyG ``Batch``, changed in place.
        name: Of the field.
        value: Tensor (graphs, ...) or one string a graph.

    Returns:
        The batch.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> batch = next(iter(tiny_datamodule("molecule", n=4).train_dataloader()))
        >>> attach(batch, "text", ["a"] * batch.num_graphs).to_data_list()[1].text
        'a'
    """
    # PyG splits only what it has slices of.
    batch[name] = value if isinstance(value, Tensor) else list(value)
    batch._slice_dict[name] = torch.arange(len(value) + 1)
    batch._inc_dict[name] = torch.zeros(len(value), dtype=torch.int64)
    return batch


def attach_smiles(batch: Any, schema: Mapping[str, Any]) -> Any:
    """Write the canonical SMILES of every graph; it is empty where RDKit does not accept the graph.

    Args:
        batch: PyG ``Batch`` with ``x`` and ``edge_attr``, changed in place.
        schema: With ``atom_types`` and ``bond_types``.

    Returns:
        The batch.
    """
    if "smiles" in batch:
        del batch["smiles"]
    return attach(batch, "smiles", [text or "" for text in to_smiles(batch.to_data_list(), schema)])


def derived_properties(smiles: Sequence[str], y: Tensor, schema: Mapping[str, Any]) -> Tensor:
    """Properties of changed molecules: computed ones anew, measured ones as those of the molecules they were made from.

    Args:
        smiles: Of the changed molecules.
        y: float32 (molecules, properties) of their sources.
        schema: Its ``properties`` name the columns; ``targets`` those that were measured.

    Returns:
        float32 (molecules, properties).

    Example:
        >>> schema = {"properties": {"heavy_atoms": {}, "kelvin": {}}, "targets": ["kelvin"]}
        >>> derived_properties(["CCO"], torch.tensor([[9.0, 351.0]]), schema)
        tensor([[  3., 351.]])
    """
    from lightning_synth.molecules.properties import PROPERTIES, compute_properties

    measured = schema.get("targets") or ()
    columns = [(i, name) for i, name in enumerate(schema["properties"]) if name in PROPERTIES and name not in measured]
    y = y.clone()
    if columns:
        values = compute_properties(smiles, [name for _, name in columns])
        y[:, [i for i, _ in columns]] = torch.from_numpy(values.astype(np.float32)).to(y.device)
    return y
