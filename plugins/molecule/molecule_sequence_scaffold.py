"""Scaffolds in token sequences: which tokens are forced so that a growing molecule contains a given part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from lightning_synth.graphs import DenseGraphs
from lightning_synth.molecules.conditioning import Scaffold
from lightning_synth.plugins.molecule.molecule_sequence_tokens import Grammar, MoleculeTokens, depth_first
from lightning_synth.requests import KeyedRNG


class ScaffoldGuide:
    """Writes the atoms and ring closures of a scaffold, and leaves to the model what grows between them.

    The scaffold has a spanning tree of its own, from a random atom. Children that belong to it come first, so an atom
    of the scaffold is next wherever the atom in turn still owes one; only its number of children is left to the model,
    which says how many branches grow from it. Valence is held back for the bonds of the scaffold that are to come.
    Where attachment points say what grows, one branch grows from each of them.

    Args:
        codec: The vocabulary.
        scaffolds: One for every row, or None.
        schema: Of the molecules.
        rng: One seed a row; says in which order the scaffold is written.
    """

    _GIVEN = ("bond", "kind", "children", "need", "room", "must", "rings", "size", "marked")
    _STATE = (*_GIVEN, "place", "closed", "inside", "owed")

    def __init__(
        self, codec: MoleculeTokens, scaffolds: Sequence[Scaffold | None], schema: Mapping[str, Any], rng: KeyedRNG
    ) -> None:
        self.codec = codec
        graphs, room = _dense(scaffolds, schema, rng.device)
        rows, n = graphs.mask.shape
        # As many numbers for every row as the largest molecule needs: a draw depends on its shape.
        tree = depth_first(graphs.e > 0, graphs.mask, rng.uniform((codec.max_atoms,))[:, :n])
        owner = torch.arange(rows, device=rng.device)[:, None]
        bonds = graphs.e[owner[:, :, None], tree.order[:, :, None], tree.order[:, None, :]] - 1
        above, child = tree.parent.clamp(min=0), (tree.parent >= 0) & graphs.mask
        order_of = codec.order_of_bond.to(rng.device)
        # Of every atom in the order of writing: bond to its parent, type, children in the scaffold, room for new bonds.
        self.bond = torch.where(child, bonds.gather(2, above[:, :, None])[:, :, 0], -1)
        self.kind, self.room = graphs.x.gather(1, tree.order), room.gather(1, tree.order) // codec.reserve
        self.children = torch.zeros_like(above).scatter_add_(1, above, child.long())
        # Valence beyond what an announced child has in reserve.
        beyond = torch.where(child, order_of[self.bond] - codec.reserve, 0)
        self.need = torch.zeros_like(above).scatter_add_(1, above, beyond)
        places = torch.arange(n, device=rng.device)
        closing = (bonds >= 0).tril(-1) & (places != tree.parent[:, :, None])
        orders = torch.where(closing, order_of[bonds], 0)
        self.need += orders.sum(1) + orders.sum(2)
        distance = tree.depth[:, :, None] - tree.depth[:, None, :]
        token = torch.where(closing, codec.ring_token(bonds, distance), _NONE)
        # Nearest ancestors first, as the grammar wants them.
        nearest = torch.where(closing, distance, _NONE).argsort(2)
        self.rings = token.gather(2, nearest)
        self.size = graphs.mask.sum(1)
        self.marked = torch.tensor([s is not None and s.marked for s in scaffolds], device=rng.device)
        #: New bonds that every atom has to get.
        self.must = self.room * self.marked[:, None]
        #: Atoms and ring closures written so far; whether the atom written last is one of the scaffold.
        self.place, self.closed = torch.zeros_like(self.size), torch.zeros_like(self.size)
        self.inside = torch.zeros_like(self.marked)
        #: Children in the scaffold that the atom at every depth still lacks.
        self.owed = torch.zeros(rows, codec.max_atoms, dtype=torch.int64, device=rng.device)

    def start(self, grammar: Grammar) -> None:
        """Tell the grammar how many atoms have to come, and lengthen the sequences by the ring closures."""
        grammar.pending = grammar.pending + self.size + self.must.sum(1)
        grammar.left = grammar.left + (self.rings < _NONE).sum((1, 2))

    def __getitem__(self, rows: Tensor) -> ScaffoldGuide:
        """Return the state of some rows."""
        part = copy(self)
        for name in self._STATE:
            setattr(part, name, getattr(self, name)[rows])
        return part

    def _now(self, values: Tensor, place: Tensor) -> Tensor:
        """Values of one place of every row."""
        return values[torch.arange(len(place), device=place.device), place.clamp(0, values.shape[1] - 1)]

    def _ring(self) -> Tensor:
        """The ring closure that has to come now, (rows,)."""
        rings = self._now(self.rings, self.place - 1)
        ring = rings.gather(1, self.closed.clamp(max=rings.shape[1] - 1)[:, None])[:, 0]
        return torch.where(self.inside, ring, _NONE)

    def _atom(self, grammar: Grammar) -> Tensor:
        """Whether an atom of the scaffold has to come now, bool (rows,)."""
        first = (grammar.atoms == 0) & (self.size > 0)
        return (first | (grammar.at(self.owed, grammar.site) > 0)) & (self._ring() == _NONE)

    def restrict(self, allowed: Tensor, grammar: Grammar) -> Tensor:
        """Return which tokens may come next, bool (rows, tokens).

        Args:
            allowed: By the grammar.
            grammar: State of the sequences.
        """
        codec, device = self.codec, allowed.device
        rings = torch.arange(codec.size, device=device) >= codec.first_ring
        # An atom of the scaffold closes the rings of the scaffold, and no others.
        allowed = allowed & ~(self.inside[:, None] & rings)
        extra = codec.children.to(device) - self._now(self.children, self.place)[:, None]
        least = self._now(self.must, self.place)
        most = torch.minimum(self._now(self.room, self.place), grammar.room + least)
        same = codec.bond.to(device) == self._now(self.bond, self.place)[:, None]
        same &= codec.kind.to(device) == self._now(self.kind, self.place)[:, None]
        atom = same & (extra >= least[:, None]) & (extra <= most[:, None]) & ~rings
        atom[:, :2] = False
        ring = self._ring()
        exact = torch.arange(codec.size, device=device) == ring[:, None]
        allowed = torch.where(self._atom(grammar)[:, None], atom, allowed)
        return torch.where((ring < _NONE)[:, None], exact, allowed)

    def advance(self, token: Tensor, grammar: Grammar) -> None:
        """Append a token to every sequence, in the grammar as well.

        Args:
            token: int64 (rows,), allowed ones.
            grammar: State of the sequences.
        """
        rows = torch.arange(len(token), device=token.device)
        atom, ring = self._atom(grammar), self._ring() < _NONE
        site, depth, first = grammar.site.clamp(min=0), grammar.depth.clamp(min=0), grammar.atoms == 0
        order, distance = self.codec.order.to(token.device)[token], self.codec.distance.to(token.device)[token]
        # What was held for this bond is used by it.
        bonded = atom & ~first
        self.owed[rows, site] -= bonded.long()
        grammar.held[rows, site] -= torch.where(bonded, order - self.codec.reserve, 0)
        for end in (depth, (depth - distance).clamp(min=0)):
            grammar.held[rows, end] -= torch.where(ring, order, 0)
        children, need = self._now(self.children, self.place), self._now(self.need, self.place)
        came = children + self._now(self.must, self.place) + first.long()
        grammar.pending = grammar.pending - torch.where(atom, came, 0)
        is_atom = self.codec.is_atom(token)
        grammar.advance(token)
        here = is_atom[:, None] & (torch.arange(self.owed.shape[1], device=token.device) == grammar.depth[:, None])
        free = grammar.at(grammar.free, grammar.depth)
        held = torch.where(self.marked, free, need) * atom
        grammar.held = torch.where(here, held[:, None], grammar.held)
        self.owed = torch.where(here, (children * atom)[:, None], self.owed)
        self.inside = torch.where(is_atom, atom, self.inside)
        self.place = self.place + atom.long()
        self.closed = torch.where(is_atom, 0, self.closed + ring.long())


#: Stands for no ring closure.
_NONE = 1 << 30


def _dense(
    scaffolds: Sequence[Scaffold | None], schema: Mapping[str, Any], device: torch.device
) -> tuple[DenseGraphs, Tensor]:
    """Lay scaffolds out densely; and the room of every atom, int64 (rows, n)."""
    kinds = {name: i for i, name in enumerate(schema["atom_types"])}
    types = {("SINGLE", "DOUBLE", "TRIPLE").index(name) + 1: i for i, name in enumerate(schema["bond_types"])}
    n = max((len(s.atoms) for s in scaffolds if s is not None), default=1)
    distinct = list(dict.fromkeys(scaffolds))
    x, room, e = (torch.zeros(len(distinct), n, *more, dtype=torch.int64) for more in ((), (), (n,)))
    for i, scaffold in enumerate(distinct):
        if scaffold is None:
            continue
        x[i, : len(scaffold.atoms)] = torch.tensor([kinds[name] for name in scaffold.atoms])
        room[i, : len(scaffold.atoms)] = torch.tensor(scaffold.room)
        for first, second, order in scaffold.bonds:
            e[i, first, second] = e[i, second, first] = types[order] + 1
    size = torch.tensor([0 if s is None else len(s.atoms) for s in distinct])
    which = torch.tensor([distinct.index(s) for s in scaffolds])
    graphs = DenseGraphs(x, e, torch.arange(n) < size[:, None])[which]
    return DenseGraphs(graphs.x.to(device), graphs.e.to(device), graphs.mask.to(device)), room[which].to(device)
