"""Molecules as token sequences: spanning trees in preorder, in which every atom says how many branches it has.

A token is an atom together with the bond that leads to it and the number of its children in the spanning tree, or a
ring closure. With the number of children known, no brackets are needed (a Lukasiewicz word): the next atom hangs on the
last atom that still waits for one. The tree is a depth-first one, so a bond outside it closes a ring with an ancestor,
and it is named by the distance to that ancestor: one less than the size of the ring. Benzene is
``C(1) =C(1) -C(1) =C(1) -C(1) =C(0) ring-(5) end``.

Two masks make every sequence a molecule (as in STGG+, Jolicoeur-Martineau et al. 2024, arXiv 2407.09357): the grammar
mask, and the valence mask, which keeps one bond in reserve for every child that was announced.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_synth.graphs import DenseGraphs, graph_batch

PAD, END = 0, 1
_NEVER = 1 << 20


class Tree(NamedTuple):
    """Depth-first spanning trees of graphs; places are positions in the order of visits.

    Args:
        order: int64 (graphs, n), the atom at every place; those that do not exist come last.
        parent: int64 (graphs, n), the place of the parent; -1 for a root.
        depth: int64 (graphs, n), steps from the root.
    """

    order: Tensor
    parent: Tensor
    depth: Tensor


def depth_first(adjacency: Tensor, mask: Tensor, priority: Tensor) -> Tree:
    """Span graphs by depth-first search, all at once.

    Args:
        adjacency: bool (graphs, n, n).
        mask: bool (graphs, n), True for atoms.
        priority: (graphs, n), different within a graph: where there is a choice, the smallest one is next.

    Returns:
        The trees.

    Example:
        >>> path = torch.tensor([[[0, 0, 1], [0, 0, 1], [1, 1, 0]]], dtype=torch.bool)
        >>> tree = depth_first(path, torch.ones(1, 3, dtype=torch.bool), torch.arange(3)[None])
        >>> tree.order.tolist(), tree.parent.tolist()
        ([[0, 2, 1]], [[-1, 0, 1]])
    """
    rows, n = torch.arange(len(mask), device=mask.device), mask.shape[1]
    rank = priority.argsort(1).argsort(1)
    # The place of the neighbour that was visited last; -1: none was. Absent atoms come last, visited ones never again.
    reached = torch.where(mask, -1, -2)
    order, parent, depth = (torch.empty_like(rank) for _ in range(3))
    for place in range(n):
        atom = (reached * n - rank).argmax(1)
        before = reached[rows, atom]
        order[:, place], parent[:, place] = atom, before.clamp(min=-1)
        depth[:, place] = torch.where(before < 0, 0, depth[rows, before.clamp(min=0)] + 1)
        reached = torch.where(adjacency[rows, atom] & (reached > -_NEVER), place, reached)
        reached[rows, atom] = -_NEVER
    return Tree(order, parent, depth)


class MoleculeTokens:
    """The vocabulary of a schema; encodes graphs as sequences and decodes them.

    Tokens: padding, end, then every possible atom (bond to the parent or none, atom type, children), then every ring
    closure (bond, distance to the ancestor).

    Args:
        schema: Of the molecules (``max_nodes, atom_types, bond_types``).
        valence: int64 (atom types,), the largest total bond order of each.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("molecule")
        >>> graphs = DenseGraphs.from_batch(next(iter(data.train_dataloader())))
        >>> codec = MoleculeTokens(data.schema, torch.tensor([4, 3, 2]))
        >>> tokens = codec.encode(graphs, torch.rand(graphs.mask.shape))
        >>> codec.decode(tokens).x.bincount().tolist() == graphs.x[graphs.mask].bincount().tolist()
        True
    """

    def __init__(self, schema: Mapping[str, Any], valence: Tensor) -> None:
        self.max_atoms, self.valence = int(schema["max_nodes"]), valence.cpu()
        orders = [1 + ("SINGLE", "DOUBLE", "TRIPLE").index(name) for name in schema["bond_types"]]
        self.order_of_bond = torch.tensor(orders, dtype=torch.int64)
        #: What an announced child keeps in reserve: the lowest bond order there is.
        self.reserve = min(orders, default=1)
        atoms = [
            (order, kind, children, 0, bond)
            for bond, order in ((-1, 0), *enumerate(orders))
            for kind, most in enumerate(self.valence.tolist())
            for children in range(min((most - order) // self.reserve, self.max_atoms - 1) + 1)
            if order <= most
        ]
        rings = [(order, 0, 0, d, bond) for bond, order in enumerate(orders) for d in range(2, self.max_atoms)]
        self.first_ring, self.size = 2 + len(atoms), 2 + len(atoms) + len(rings)
        table = torch.tensor([(0, 0, 0, 0, -1)] * 2 + atoms + rings)
        #: Of every token: order of its bond, atom type, children, distance of a ring closure, type of its bond.
        self.order, self.kind, self.children, self.distance, self.bond = table.T.contiguous()
        shape = (len(orders) + 1, len(self.valence), int(self.children.max()) + 1)
        self._atom_token, token = torch.full(shape, PAD), torch.arange(2, self.first_ring)
        self._atom_token[self.bond[token] + 1, self.kind[token], self.children[token]] = token

    def longest(self) -> int:
        """Return a length that no sequence exceeds: every atom, every bond that valence allows, and the end."""
        return 1 + self.max_atoms + self.max_atoms * int(self.valence.max()) // 2

    def atom_token(self, bond: Tensor, kind: Tensor, children: Tensor) -> Tensor:
        """Return the tokens of atoms: bond type (-1 for a root), atom type, number of children."""
        table = self._atom_token.to(kind.device)
        out: Tensor = table[bond + 1, kind, children]
        return out

    def ring_token(self, bond: Tensor, distance: Tensor) -> Tensor:
        """Return the tokens of ring closures: bond type, distance to the ancestor."""
        return self.first_ring + bond * (self.max_atoms - 2) + distance - 2

    def encode(self, graphs: DenseGraphs, priority: Tensor) -> Tensor:
        """Write graphs as sequences.

        Args:
            graphs: With at most ``max_nodes`` atoms each.
            priority: As `depth_first`.

        Returns:
            Tokens, int64 (graphs, length), padded after the end.
        """
        tree = depth_first(graphs.e > 0, graphs.mask, priority)
        n, exists = graphs.mask.shape[1], graphs.mask.gather(1, tree.order)
        owner = torch.arange(len(exists), device=exists.device)[:, None].expand_as(exists)
        # Bonds between places, in the order of visits.
        bonds = graphs.e[owner[:, :, None], tree.order[:, :, None], tree.order[:, None, :]] - 1
        above = tree.parent.clamp(min=0)
        child = exists & (tree.parent >= 0)
        children = torch.zeros_like(above).scatter_add_(1, above, child.long())
        bond = torch.where(child, bonds.gather(2, above[:, :, None])[:, :, 0], -1)
        atom = self.atom_token(bond, graphs.x.gather(1, tree.order), children)
        row, place, ancestor = (bonds >= 0).tril(-1).nonzero().T
        closing = tree.parent[row, place] != ancestor
        row, place, ancestor = row[closing], place[closing], ancestor[closing]
        distance = tree.depth[row, place] - tree.depth[row, ancestor]
        ring = self.ring_token(bonds[row, place, ancestor], distance)
        # An atom is followed by its ring closures, nearest first.
        atoms = (owner * n + torch.arange(n, device=owner.device))[exists]
        site = torch.cat([atoms, row * n + place])
        slot = torch.cat([torch.zeros_like(atoms), distance])
        return _in_rows(site // n, (site * n + slot).argsort(), torch.cat([atom[exists], ring]), len(exists))

    def decode(self, tokens: Tensor) -> Any:
        """Read sequences that follow the grammar.

        Args:
            tokens: int64 (graphs, length).

        Returns:
            A PyG ``Batch`` with ``x``, ``edge_index`` and ``edge_attr``; atoms in the order of the tokens.
        """
        grammar = Grammar(self, len(tokens), tokens.shape[1], device=tokens.device)
        ends = []
        for token in tokens.T:
            other = grammar.other_end(token)
            grammar.advance(token)
            ends.append(torch.stack([grammar.atoms - 1, other], 1))
        ends_of = torch.stack(ends, 1)
        made = ends_of[:, :, 1] >= 0
        kind, bond, is_atom = self.kind.to(tokens.device), self.bond.to(tokens.device), self.is_atom(tokens)
        return graph_batch(
            is_atom.sum(1),
            ends_of[made].T,
            made.nonzero()[:, 0],
            x=kind[tokens[is_atom]],
            edge_attr=bond[tokens[made]],
        )

    def is_atom(self, tokens: Tensor) -> Tensor:
        """Return which tokens are atoms, bool of the same shape."""
        return (tokens > END) & (tokens < self.first_ring)


def _in_rows(owner: Tensor, order: Tensor, token: Tensor, rows: int) -> Tensor:
    """Give each graph a row of its tokens, with the end token behind them."""
    owner, length = owner[order], torch.bincount(owner, minlength=rows)
    place = torch.arange(len(owner), device=owner.device) - (length.cumsum(0) - length)[owner]
    out = torch.full((rows, int(length.max()) + 1), PAD, device=owner.device)
    out[owner, place] = token[order]
    return out.scatter_(1, length[:, None], END)


class Grammar:
    """The state of many growing sequences: which tokens may come next so that every one ends as a molecule.

    Args:
        codec: The vocabulary.
        rows: How many sequences.
        length: Places that a sequence has, with its end.
        fragments: Molecules may have several parts.
        device: Where.
        valence: int64 (atom types,), the largest total bond order of each; None: that of the vocabulary.

    Example:
        >>> codec = MoleculeTokens({"max_nodes": 2, "bond_types": ["SINGLE"], "atom_types": ["C"]}, torch.tensor([4]))
        >>> grammar = Grammar(codec, rows=1, length=5)
        >>> grammar.allowed()[0].nonzero()[:, 0].tolist()
        [2, 3]
        >>> grammar.advance(torch.tensor([3]))
        >>> grammar.allowed()[0].nonzero()[:, 0].tolist()
        [4]
    """

    #: One value a row; and one a row and depth, along the path from the root to the atom written last.
    _ROW, _PATH = ("atoms", "depth", "ring", "left", "slots", "pending"), ("open", "free", "held", "number", "token")

    def __init__(
        self,
        codec: MoleculeTokens,
        rows: int,
        length: int,
        fragments: bool = False,
        device: torch.device | str | None = None,
        valence: Tensor | None = None,
    ) -> None:
        self.codec, self.fragments = codec, fragments
        values = {"atoms": 0, "depth": -1, "ring": 1, "left": length, "slots": 0, "pending": 0}
        for name in self._ROW:
            setattr(self, name, torch.full((rows,), values[name], device=device))
        for name in self._PATH:
            setattr(self, name, torch.zeros((rows, codec.max_atoms), dtype=torch.int64, device=device))
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self._places = torch.arange(codec.max_atoms, device=device)
        tables = (
            codec.order,
            codec.children,
            codec.distance,
            codec.kind,
            codec.valence if valence is None else valence,
        )
        self._order, self._children, self._distance, kind, limits = (table.to(self.done.device) for table in tables)
        self._valence = limits[kind]
        self._possible = (self._order + self._children * codec.reserve <= self._valence)[2 : codec.first_ring]

    atoms: Tensor
    #: Depth of the atom written last, -1 before the first.
    depth: Tensor
    #: Distance of the ring closure written last at this atom, 1 if there is none.
    ring: Tensor
    #: Places left in the sequence.
    left: Tensor
    #: Children announced and not written yet, of all atoms together.
    slots: Tensor
    #: Atoms that have to come besides the announced children (a scaffold).
    pending: Tensor
    open: Tensor
    #: Valence that is neither used nor kept for an announced child.
    free: Tensor
    #: Of the free valence, what is kept for bonds of a scaffold.
    held: Tensor
    number: Tensor
    token: Tensor

    def __getitem__(self, rows: Tensor) -> Grammar:
        """Return the state of some rows."""
        part = copy(self)
        for name in (*self._ROW, *self._PATH, "done"):
            setattr(part, name, getattr(self, name)[rows])
        return part

    @property
    def site(self) -> Tensor:
        """Depth of the atom that the next one hangs on, (rows,); -1 if no child is waited for."""
        return torch.where(self.open > 0, self._places, -1).amax(1)

    @property
    def room(self) -> Tensor:
        """How many children an atom may announce at most, (rows,): each has to fit into the atoms and places left."""
        return torch.minimum(self.codec.max_atoms - self.atoms, self.left - 1) - self.slots - self.pending

    def at(self, values: Tensor, depth: Tensor) -> Tensor:
        """Values at a depth, (rows,); 0 above the root."""
        return values.gather(1, depth.clamp(min=0)[:, None])[:, 0] * (depth >= 0)

    def allowed(self) -> Tensor:
        """Return which tokens may come next, bool (rows, tokens)."""
        first, reserve = self.codec.first_ring, self.codec.reserve
        order, children = self._order[2:first], self._children[2:first]
        free, site = self.free - self.held, self.site
        going = ~self.done
        room = self.room
        limit = torch.where(site < 0, 0, self.at(free, site) + reserve)
        atom = (order <= limit[:, None]) & (order > 0) & (children <= room[:, None])
        roots = going & (self.slots == 0) & ((self.atoms == 0) | self.fragments)
        atom |= (order == 0) & (children < room[:, None]) & roots[:, None]
        # What the ancestor at every distance has left.
        above = self.depth[:, None] - self._places
        spare = torch.where(above >= 0, free.gather(1, above.clamp(min=0)), 0)
        most = torch.minimum(spare, spare[:, :1])[:, self._distance[first:]]
        ring = (self._order[first:] <= most) & (self._distance[first:] > self.ring[:, None])
        ring &= (going & (self.left - 2 >= self.slots + self.pending))[:, None]
        end = going & (self.slots == 0) & (self.atoms > 0) & (self.pending == 0)
        atom &= self._possible & going[:, None]
        return torch.cat([self.done[:, None], end[:, None], atom, ring], 1)

    def other_end(self, token: Tensor) -> Tensor:
        """Return the number of the atom at the other end of the bond that a token makes, (rows,); -1 for none."""
        ring = token >= self.codec.first_ring
        depth = torch.where(ring, self.depth - self._distance[token], self.site)
        bonded = ring | (self.codec.is_atom(token) & (self._order[token] > 0))
        return torch.where(bonded, self.at(self.number, depth), -1)

    def advance(self, token: Tensor) -> None:
        """Append a token to every sequence.

        Args:
            token: int64 (rows,), allowed ones.
        """
        order, children, distance = self._order[token], self._children[token], self._distance[token]
        atom, ring, rows = self.codec.is_atom(token), token >= self.codec.first_ring, torch.arange(len(token))
        bonded = atom & (order > 0)
        rows, site = rows.to(token.device), self.site.clamp(min=0)
        self.open[rows, site] -= bonded.long()
        self.free[rows, site] -= torch.where(bonded, order - self.codec.reserve, 0)
        for depth in (self.depth, self.depth - distance):
            self.free[rows, depth.clamp(min=0)] -= torch.where(ring, order, 0)
        self.depth = torch.where(atom, torch.where(bonded, site + 1, 0), self.depth)
        here = atom[:, None] & (self._places == self.depth[:, None])
        for values, value in (
            (self.open, children),
            (self.free, self._valence[token] - order - children * self.codec.reserve),
            (self.held, torch.zeros_like(order)),
            (self.number, self.atoms),
            (self.token, token),
        ):
            values.copy_(torch.where(here, value[:, None], values))
        self.atoms = self.atoms + atom.long()
        self.slots = self.slots + torch.where(atom, children - bonded.long(), 0)
        self.ring = torch.where(ring, distance, torch.where(atom, 1, self.ring))
        self.done, self.left = self.done | (token == END), self.left - 1


__all__ = ["END", "PAD", "Grammar", "MoleculeTokens", "Tree", "depth_first"]
