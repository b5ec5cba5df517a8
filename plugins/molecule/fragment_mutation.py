"""Mutations of training molecules, atom by atom and bond by bond, that never leave the valid ones."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import DenseGraphs
from lightning_synth.molecules.representation import _MOST_BONDS, _ORDER, _usual_hydrogens, parse_atom_type
from lightning_synth.plugins.molecule.changed import ChangedMolecules
from lightning_synth.requests import KeyedRNG


class FragmentMutation(ChangedMolecules):
    """Training molecules after a few random edits: an atom added, removed or replaced, a bond raised or lowered.

    The mutations of a genetic algorithm on graphs (Jensen 2019, doi:10.1039/C8SC05372C) without its score. Atoms are
    added and bonds raised where hydrogens can make room, atoms are replaced by types whose usual valence carries their
    bonds, only ends are removed: every result is a valid molecule, and connected if its source was. New types follow
    their frequency in training; charged atoms and those with a hydrogen count of their own are not made. Models that
    add a single atom to training molecules do well on most scores of generated molecules (Renz et al. 2019,
    doi:10.1016/j.ddtec.2020.09.003), so a generator has to beat this.

    Args:
        mutations: Edits of a molecule.

    Raises:
        ConfigError: If it is negative.

    Example:
        >>> from lightning_synth.testing import tiny_items, tiny_schema
        >>> model = FragmentMutation(mutations=1).fit_on(tiny_items("molecule"), tiny_schema("molecule"))
        >>> all(item.smiles for item in model.sample(10).items())
        True
    """

    def __init__(self, *, mutations: int = 2, **kwargs: Any) -> None:
        if mutations < 0:
            raise ConfigError(f"mutations must not be negative, got {mutations}")
        super().__init__(mutations=mutations, **kwargs)

    def change(self, picked: Tensor, batch: Any, rng: KeyedRNG) -> Any:
        """Edit every molecule.

        Args:
            picked: int64 (rows,), positions of the source molecules in the bank.
            batch: The source molecules.
            rng: One seed a row.

        Returns:
            A PyG ``Batch``.
        """
        rules: _Rules = self.derived("rules", self._make_rules).to(rng.device)
        editor = _Editor(DenseGraphs.from_batch(batch), rules, int(self.hparams["mutations"]))
        for step in range(self.hparams["mutations"]):
            editor.edit(rng.fork("edit").uniform((3,), step=step).double())
        return editor.graphs().to_batch(self.fitted_schema)

    def _make_rules(self) -> _Rules:
        schema = self.fitted_schema
        count = torch.bincount(torch.cat([item.x for item in self.bank.items]), minlength=len(schema["atom_types"]))
        orders = torch.tensor([0, *(_ORDER[name] for name in schema["bond_types"])])
        return _Rules(*_tables(tuple(schema["atom_types"])), count.double(), orders)


class _Rules:
    """Tables of the vocabulary.

    Args:
        hydrogens: int64 (types, 9), hydrogens that can make room on an atom with bonds of that total order.
        carries: bool (types, 9), whether the type may be put where the bonds have that total order.
        count: float64 (types,), how often each type is in training.
        orders: int64 (1 + bond types,), order of each bond class; class 0 is no bond.
    """

    def __init__(self, hydrogens: Tensor, carries: Tensor, count: Tensor, orders: Tensor) -> None:
        self.hydrogens, self.carries, self.count, self.orders = hydrogens, carries, count, orders
        self.bond_class = torch.full((4,), -1)
        self.bond_class[orders] = torch.arange(len(orders))

    def to(self, device: torch.device) -> _Rules:
        return _Rules(*(table.to(device) for table in (self.hydrogens, self.carries, self.count, self.orders)))


@functools.lru_cache(maxsize=8)
def _tables(atom_types: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    hydrogens = torch.zeros(len(atom_types), _MOST_BONDS + 1, dtype=torch.int64)
    carries = torch.zeros(len(atom_types), _MOST_BONDS + 1, dtype=torch.bool)
    for i, name in enumerate(atom_types):
        symbol, charge, explicit = parse_atom_type(name)
        if explicit is None:
            row = [_usual_hydrogens(symbol, charge, order) for order in range(_MOST_BONDS + 1)]
            hydrogens[i] = torch.tensor(row)
            if charge == 0:
                carries[i, : row[0] + 1] = True
    return hydrogens, carries


class _Editor:
    """Molecules with room for new atoms, edited all at once; each row sees only its own draws and its own graph."""

    def __init__(self, dense: DenseGraphs, rules: _Rules, room: int) -> None:
        pad = torch.nn.functional.pad
        self.rules, self.next = rules, dense.x.shape[1]
        self.x, self.mask = pad(dense.x, (0, room)), pad(dense.mask, (0, room))
        self.order = rules.orders[pad(dense.e, (0, room, 0, room))]
        self.rows = torch.arange(len(self.x), device=self.x.device)

    def edit(self, draw: Tensor) -> None:
        """One edit a row, given three uniform numbers a row: which kind, where, what."""
        total = self.order.sum(-1)
        free = self.rules.hydrogens[self.x, total] * self.mask
        ends = (self.order > 0).sum(-1) == 1
        other = self._types(total, self.x)
        both = (free[:, :, None] > 0) & (free[:, None, :] > 0)
        top = int(self.rules.orders.max())
        upper = torch.ones_like(self.order, dtype=torch.bool).triu(1)
        allowed = [
            (free > 0) & (self._types(torch.ones_like(total), None).sum(-1) > 0),
            ends & (self.mask.sum(1, keepdim=True) > 2),
            (other.sum(-1) > 0) & self.mask,
            (both & (self.order > 0) & (self.order < top) & upper).flatten(1),
            ((self.order > 1) & upper).flatten(1),
        ]
        kind, _ = _ranked(torch.stack([choice.any(1) for choice in allowed], 1), draw[:, 0])
        for number, (choice, act) in enumerate(
            zip(allowed, (self._add, self._remove, self._replace, self._raise, self._lower), strict=True)
        ):
            place, found = _ranked(choice, draw[:, 1])
            act(self.rows[found & (kind == number)], place, draw[:, 2])
        self.next += 1

    def _types(self, total: Tensor, but: Tensor | None) -> Tensor:
        """Weight of every type at every atom, (rows, atoms, types): those that carry the bonds, without its own."""
        weight = self.rules.carries.T[total] * self.rules.count
        return weight if but is None else weight.scatter(-1, but[..., None], 0)

    def _add(self, rows: Tensor, place: Tensor, draw: Tensor) -> None:
        at, new = place[rows], self.next
        weight = self._types(torch.ones_like(self.x[:, :1]), None)[rows, 0]
        self.x[rows, new], self.mask[rows, new] = _weighted(weight, draw[rows]), True
        self._bond(rows, at, torch.full_like(at, new), torch.ones_like(at))

    def _remove(self, rows: Tensor, place: Tensor, draw: Tensor) -> None:
        at = place[rows]
        self.order[rows, at], self.order[rows, :, at] = 0, 0
        self.mask[rows, at], self.x[rows, at] = False, 0

    def _replace(self, rows: Tensor, place: Tensor, draw: Tensor) -> None:
        at = place[rows]
        weight = self._types(self.order.sum(-1), self.x)[rows, at]
        self.x[rows, at] = _weighted(weight, draw[rows])

    def _raise(self, rows: Tensor, place: Tensor, draw: Tensor) -> None:
        one, two = place[rows] // self.x.shape[1], place[rows] % self.x.shape[1]
        self._bond(rows, one, two, self.order[rows, one, two] + 1)

    def _lower(self, rows: Tensor, place: Tensor, draw: Tensor) -> None:
        one, two = place[rows] // self.x.shape[1], place[rows] % self.x.shape[1]
        self._bond(rows, one, two, self.order[rows, one, two] - 1)

    def _bond(self, rows: Tensor, one: Tensor, two: Tensor, order: Tensor) -> None:
        self.order[rows, one, two], self.order[rows, two, one] = order, order

    def graphs(self) -> DenseGraphs:
        """The molecules with their atoms moved together."""
        place = (~self.mask).long().argsort(dim=1, stable=True)
        e = self.rules.bond_class.to(self.order.device)[self.order]
        e = e.gather(1, place[:, :, None].expand_as(e)).gather(2, place[:, None, :].expand_as(e))
        return DenseGraphs(self.x.gather(1, place), e, self.mask.gather(1, place))


def _ranked(allowed: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One allowed column a row, each equally likely, and whether there is any."""
    running = allowed.cumsum(1)
    rank = (uniform * running[:, -1]).long()
    return torch.searchsorted(running, rank[:, None], right=True)[:, 0].clamp(max=allowed.shape[1] - 1), running[
        :, -1
    ] > 0


def _weighted(weight: Tensor, uniform: Tensor) -> Tensor:
    """One column a row, in proportion to its weight."""
    running = weight.cumsum(1)
    goal = (uniform * running[:, -1])[:, None]
    return torch.searchsorted(running, goal, right=True)[:, 0].clamp(max=weight.shape[1] - 1)
