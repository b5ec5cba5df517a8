"""Copies of training molecules."""

from __future__ import annotations

from typing import Any

from lightning_synth.plugins.baselines import Bootstrap


class MoleculeBootstrap(Bootstrap):
    """Copies of training molecules of the requested class, nearest to requested properties: the retrieval arm.

    The same as ``bootstrap``, for molecules alone. Asked for a property, it returns a training molecule that has it
    (within a tenth of a standard deviation of the nearest): the row that every conditional generator is read beside.
    Efron 1979, doi:10.1214/aos/1176344552.

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = MoleculeBootstrap().fit_on(tiny_items("molecule"), tiny_schema("molecule"))
        >>> {item.num_nodes for item in model.sample(5, condition={"atoms": 3.0, "hetero_atoms": 1.0}).items()}
        {3}
    """

    domain = "molecule"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
