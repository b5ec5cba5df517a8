"""What `molecule_flow` adds to the graph network: valences at the input, a law of sizes, a head for properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.errors import ConfigError
from lightning_synth.graphs import DenseGraphs
from lightning_synth.molecules.representation import BOND_TYPES, valence_table
from lightning_synth.plugins.graph.graph_transformer import Belief, Pairs, WalkFeatures
from lightning_synth.requests import KeyedRNG


class PropertyHead(nn.Module):
    """Properties of finished molecules: messages along the bonds, then a sum over the atoms.

    Args:
        schema: With ``atom_types``, ``bond_types`` and ``max_nodes``.
        dim: Features of an atom.
        properties: How many.
        rounds: Of messages.

    Example:
        >>> head = PropertyHead({"atom_types": ["C", "O"], "bond_types": ["SINGLE"], "max_nodes": 5}, 8, properties=2)
        >>> mask = torch.ones(3, 4, dtype=torch.bool)
        >>> head(DenseGraphs(torch.zeros(3, 4).long(), torch.ones(3, 4, 4).long(), mask)).shape
        torch.Size([3, 2])
    """

    def __init__(self, schema: Mapping[str, Any], dim: int, properties: int, rounds: int = 3) -> None:
        super().__init__()
        self.bond_types, self.scale = len(schema["bond_types"]), int(schema["max_nodes"]) ** -0.5
        self.atoms = nn.Embedding(len(schema["atom_types"]), dim)
        self.rounds = nn.ModuleList(
            nn.Sequential(nn.RMSNorm(dim), nn.Linear(dim, (1 + self.bond_types) * dim)) for _ in range(rounds)
        )
        self.out, self.bias = nn.Linear(dim, properties, bias=False), nn.Parameter(torch.zeros(properties))

    def forward(self, graphs: DenseGraphs) -> Tensor:
        """Predict standardised properties, (graphs, properties)."""
        h = self.atoms(graphs.x)
        bonds = F.one_hot(graphs.e, 1 + self.bond_types)[..., 1:].to(h.dtype)
        for messages in self.rounds:
            own, sent = messages(h).unflatten(-1, (1 + self.bond_types, -1)).tensor_split([1], dim=2)
            h = h + F.silu(own[:, :, 0] + torch.einsum("gijk,gjkd->gid", bonds, sent))
        out: Tensor = self.bias + self.scale * (self.out(h) * graphs.mask[..., None]).sum(1)
        return out


class SizeLaw(nn.Module):
    """The law of the number of atoms, given embedded conditions; without conditions that of the training molecules.

    Args:
        schema: With ``max_nodes`` and ``node_counts``.
        dim: Of the embedding; 0 if there are no conditions.

    Example:
        >>> law = SizeLaw({"max_nodes": 3, "node_counts": {"2": 5}}, dim=0)
        >>> law.draw(law(torch.zeros(4, 8)), torch.ones(4), KeyedRNG(torch.arange(4))).tolist()
        [2, 2, 2, 2]
    """

    counts: Tensor

    def __init__(self, schema: Mapping[str, Any], dim: int) -> None:
        super().__init__()
        counts = torch.zeros(int(schema["max_nodes"]) + 1)
        for size, count in schema.get("node_counts", {}).items():
            counts[int(size)] = count
        self.register_buffer("counts", counts)
        self.head = None
        if dim:
            self.head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, len(counts)))
            # Zero at first, so that it starts from the law of training.
            for parameter in self.head[2].parameters():
                nn.init.zeros_(parameter)

    def fit(self, items: Sequence[Any]) -> None:
        """Count sizes.

        Args:
            items: Training molecules.
        """
        sizes = torch.tensor([int(item.num_nodes) for item in items])
        self.counts.copy_(torch.bincount(sizes, minlength=len(self.counts)))

    def forward(self, condition: Tensor) -> Tensor:
        """Return logits of sizes, (rows, sizes), for embedded conditions (rows, dim)."""
        law = self.counts.clamp(min=1e-9).log().expand(len(condition), -1)
        return law if self.head is None else law + self.head(condition)

    def draw(self, logits: Tensor, least: Tensor, rng: KeyedRNG) -> Tensor:
        """Draw sizes.

        Args:
            logits: (rows, sizes).
            least: (rows,), the fewest atoms of each.
            rng: One seed a row.

        Returns:
            int64 (rows,).

        Raises:
            ConfigError: If no training molecule has that many atoms.
        """
        possible = (torch.arange(logits.shape[1], device=logits.device) >= least[:, None]) & (self.counts > 0)
        law = torch.where(possible, logits.double().exp(), 0.0)
        if not bool((law.sum(1) > 0).all()):
            raise ConfigError(f"a scaffold needs {int(least.max())} atoms; no training molecule has as many")
        bounds = law.cumsum(1)
        u = rng.uniform(()).double() * bounds[:, -1]
        return torch.searchsorted(bounds, u[:, None], right=True)[:, 0]


class ValenceFeatures(WalkFeatures):
    """Input features of a noisy molecule: walks and cycles, valences, and which atoms hang together.

    The valence in use of an atom is the total order of its bonds; what its type allows comes from RDKit. Both are given
    for the noisy molecule and, in the mean, for the molecule that the network believed in last.

    Args:
        schema: With ``atom_types`` and ``bond_types``.
        steps: Powers of the random walk.
    """

    limit: Tensor
    order: Tensor

    def __init__(self, schema: Mapping[str, Any], steps: int) -> None:
        super().__init__(steps)
        of_node, of_pair, of_graph = self.sizes
        self.sizes = (of_node + 7, of_pair + 1, of_graph + 3 + len(schema["atom_types"]))
        orders = [0.0, *(float(BOND_TYPES.index(name) + 1) for name in schema["bond_types"])]
        self.register_buffer("limit", valence_table(schema).float(), persistent=False)
        self.register_buffer("order", torch.tensor(orders), persistent=False)

    def forward(self, x: Tensor, e: Tensor, pairs: Pairs, belief: Belief) -> tuple[Tensor, Tensor, Tensor]:
        """Describe a noisy molecule; arguments and shapes as `WalkFeatures`."""
        nodes, edges, graph = super().forward(x, e, pairs, belief)
        real, size = pairs.mask.to(nodes.dtype), pairs.mask.sum(1, keepdim=True)
        # Bounded, so that a noisy molecule with far too many bonds is not more than one with too many.
        used = pairs.dense(self.order[e]).sum(2).clamp(max=8)
        free = (self.limit[x] - used) * real
        believed_used = pairs.dense(belief[1] @ self.order.to(belief[1].dtype)).sum(2).clamp(max=8)
        believed_free = (belief[0] @ self.limit.to(belief[0].dtype) - believed_used) * real
        together = connected(pairs.dense(e > 0), pairs.mask)
        part = together.sum(2)
        node = [used / 4, free / 4, free < 0, free == 0, believed_used / 4, believed_free / 4, part / size]
        parts = (real / part.clamp(min=1)).sum(1, keepdim=True)
        excess, room = free.clamp(max=0).sum(1, keepdim=True), free.clamp(min=0).sum(1, keepdim=True)
        share = (F.one_hot(x, len(self.limit)) * real[..., None]).sum(1) / size
        return (
            torch.cat([nodes, torch.stack([value.to(nodes.dtype) for value in node], -1)], -1),
            torch.cat([edges, pairs.at_upper(together)[:, None].to(edges.dtype)], -1),
            torch.cat([graph, (parts - 1) / size, excess / size, room / size, share], -1).to(graph.dtype),
        )


def connected(adjacency: Tensor, mask: Tensor) -> Tensor:
    """Tell which nodes a path joins, each with itself.

    Args:
        adjacency: bool (graphs, n, n), symmetric.
        mask: bool (graphs, n).

    Returns:
        bool (graphs, n, n); False on padding.

    Example:
        >>> one_edge = torch.tensor([[[0, 1, 0], [1, 0, 0], [0, 0, 0]]]).bool()
        >>> connected(one_edge, torch.ones(1, 3).bool()).sum(2).tolist()
        [[2, 2, 1]]
    """
    reach = (adjacency | torch.diag_embed(mask)).float()
    for _ in range(max(mask.shape[1] - 1, 1).bit_length()):
        reach = (reach @ reach).clamp(max=1)
    return reach > 0
