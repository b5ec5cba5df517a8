"""The conditions of molecule generators: any subset of the properties, a text, a scaffold; and guidance by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_synth.conditions import check_guidance
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.molecules.text import text_encoder
from lightning_synth.requests import KeyedRNG, SampleRequests, Strings

if TYPE_CHECKING:
    from rdkit import Chem

#: Names of the conditions that are strings, and of the class.
TEXT, SCAFFOLD, LABEL = "text", "scaffold", "label"
#: Wave lengths of the features of a property, in standard deviations: from what tells neighbours apart to a trend.
_WAVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class PropertyConditions(nn.Module):
    """Embedding of any subset of the properties, of a class and of a text.

    A property is standardised with the statistics of training and seen through sines and cosines of several wave
    lengths (Tancik et al. 2020, arXiv 2006.10739, eq. 5), so that a small network follows fine differences and tells
    categories, which are numbers as well, apart. One that is NaN is unspecified: its features are zero and a flag says
    so (Jolicoeur-Martineau et al. 2024, arXiv 2407.09357, section 3.3).

    Args:
        schema: With ``properties``, ``num_classes``, and ``has_text`` True if the molecules have descriptions.
        dim: Size of the embedding.
        encoder: ``"ngrams"``, or the name of a sentence-transformers model.

    Example:
        >>> stats = {"mean": 2.0, "std": 1.0, "min": 0.0, "max": 4.0}
        >>> conditions = PropertyConditions({"properties": {"logP": stats, "qed": stats}}, dim=8)
        >>> conditions({"logP": torch.tensor([2.5, torch.nan])}, rows=2).shape
        torch.Size([2, 8])
    """

    def __init__(self, schema: Mapping[str, Any], dim: int, encoder: str = "ngrams") -> None:
        super().__init__()
        known = schema.get("properties") or {}
        self.dim, self.names, self.encoder = dim, list(known), encoder
        stats = [[known[name][key] for name in self.names] for key in ("mean", "std")]
        self.register_buffer("stats", torch.tensor(stats, dtype=torch.float32), persistent=False)
        self.register_buffer("rates", 2 * math.pi / torch.tensor(_WAVES), persistent=False)
        width = len(self.names) * (2 + 2 * len(_WAVES))
        self.numbers = nn.Sequential(nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, dim)) if self.names else None
        self.classes = int(schema.get("num_classes") or 0)
        self.label = nn.Embedding(self.classes + 1, dim) if self.classes else None
        self.text = nn.Linear(text_encoder(encoder).width, dim, bias=False) if schema.get("has_text") else None

    stats: Tensor
    rates: Tensor

    def forward(self, condition: Mapping[str, Tensor], rows: int) -> Tensor:
        """Embed conditions.

        Args:
            condition: Name to float (rows,), NaN for unspecified ones; ``label`` int64 (rows,), -1 for none; ``text``
                (rows, width), zeros for none. What is left out is unspecified.
            rows: How many.

        Returns:
            (rows, dim).
        """
        total = torch.zeros(rows, self.dim, device=self.stats.device)
        if self.numbers is not None:
            z = self.standardised(condition, rows)
            known = ~z.isnan()
            z = z.nan_to_num()
            angle = z[:, :, None] * self.rates
            waves = torch.cat([angle.sin(), angle.cos()], 2) * known[:, :, None]
            total = total + self.numbers(torch.cat([z, (~known).float(), waves.flatten(1)], 1))
        if self.label is not None:
            label = condition.get(LABEL, torch.full((rows,), -1, device=total.device))
            total = total + self.label(label % (self.classes + 1))
        if self.text is not None and TEXT in condition:
            total = total + self.text(condition[TEXT])
        return total

    def standardised(self, condition: Mapping[str, Tensor], rows: int) -> Tensor:
        """Return the properties in standard deviations from the mean of training, (rows, properties); NaN: unknown."""
        unknown = self.stats.new_full((rows,), torch.nan)
        values = [condition.get(name, unknown).to(self.stats) for name in self.names]
        raw = torch.stack(values, 1) if values else self.stats.new_zeros(rows, 0)
        return (raw - self.stats[0]) / self.stats[1].clamp(min=1e-6)

    def of_batch(self, batch: Any) -> dict[str, Tensor]:
        """Return the conditions that training molecules satisfy.

        Args:
            batch: PyG ``Batch`` with ``y`` (molecules, properties), NaN for missing ones, ``label`` and ``text``.
        """
        condition = {name: batch.y[:, i] for i, name in enumerate(self.names)}
        if self.label is not None:
            condition[LABEL] = batch.label.reshape(-1)
        if self.text is not None:
            condition[TEXT] = text_encoder(self.encoder)(batch.text).to(self.stats.device)
        return condition

    def of_requests(self, requests: SampleRequests) -> dict[str, Tensor]:
        """Return what requests ask for, texts encoded.

        Args:
            requests: Rows wanted.

        Raises:
            ConfigError: If a text is asked for, but the training molecules had none.
        """
        condition = {name: requests.condition[name] for name in (*self.names, LABEL) if name in requests.condition}
        texts = requests.condition.get(TEXT)
        if isinstance(texts, Strings):
            if self.text is None:
                raise ConfigError("a text was asked for, but the training molecules had no descriptions")
            condition[TEXT] = text_encoder(self.encoder)(texts.tolist()).to(self.stats.device)
        return condition

    def hide(self, condition: Mapping[str, Tensor], rng: KeyedRNG, dropout: float) -> dict[str, Tensor]:
        """Hide random subsets in training, so that any subset can be asked for.

        All conditions of a molecule are hidden with probability ``dropout``; otherwise the number of properties that
        stay is drawn uniformly from one to all, and which ones at random.

        Args:
            condition: As `of_batch`.
            rng: Scalar-seeded.
            dropout: Share of molecules without any condition.

        Returns:
            The conditions, with NaN where hidden (-1 for labels, zeros for texts).
        """
        values = next(iter(condition.values()), None)
        if values is None:
            return {}
        rows, count = len(values), len(self.names)
        shown = rng.fork("shown").uniform((rows,)) >= dropout
        rank = rng.fork("rank").uniform((rows, count)).argsort(1).argsort(1)
        stay = (rank <= rng.fork("stay").integers(max(count, 1), (rows,))[:, None]) & shown[:, None]
        hidden = {name: torch.where(stay[:, i], condition[name], torch.nan) for i, name in enumerate(self.names)}
        if LABEL in condition:
            hidden[LABEL] = torch.where(shown, condition[LABEL], -1)
        if TEXT in condition:
            hidden[TEXT] = condition[TEXT] * shown[:, None]
        return hidden

    def check_null(self, dropout: float) -> None:
        """Refuse to sample without any condition from a model that always had one in training.

        Args:
            dropout: Share of training molecules whose conditions were hidden.

        Raises:
            ConfigError: If the unconditional model was never trained.
        """
        if self.names or self.label is not None or self.text is not None:
            check_guidance(0.0, dropout)

    def specified(self, condition: Mapping[str, Tensor], rows: int) -> Tensor:
        """Return which rows have any condition, bool (rows,)."""
        known = (~self.standardised(condition, rows).isnan()).any(1)
        if LABEL in condition:
            known = known | (condition[LABEL] >= 0)
        return known | (condition[TEXT] != 0).any(1) if TEXT in condition else known


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Extrapolate logits from the unconditional to the conditional ones (Ho & Salimans 2022, eq. 6, in logits).

    Args:
        conditional: Logits under the condition.
        unconditional: Logits without it.
        scale: 0: unconditional; 1: conditional; more: beyond.

    Example:
        >>> guided(torch.tensor([2.0]), torch.tensor([1.0]), 3.0)
        tensor([4.])
    """
    if scale in (0, 1):
        return conditional if scale else unconditional
    return unconditional + scale * (conditional - unconditional)


def property_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the properties that are known.

    Args:
        predicted: (rows, properties), standardised.
        target: Same shape, NaN where unknown.

    Example:
        >>> property_loss(torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, torch.nan]]))
        tensor(4.)
    """
    known = ~target.isnan()
    return ((predicted - target.nan_to_num()).square() * known).sum() / known.sum().clamp(min=1)


def check_best_of(target: Tensor, has_head: bool) -> None:
    """Refuse to choose among candidates where there is nothing to choose by.

    Args:
        target: (rows, properties) asked for, NaN for what was not.
        has_head: Whether the model predicts properties.

    Raises:
        ConfigError: If it does not, or a row asks for no property.
    """
    if not has_head or bool(target.isnan().all(1).any()):
        raise ConfigError("best_of compares properties: ask for at least one, with property_weight above 0")


def nearest_candidate(predicted: Sequence[Tensor], target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Choose, for every row, the candidate whose predicted properties are nearest to those asked for.

    Args:
        predicted: Of every candidate (rows, properties), standardised; NaN for one that must not be chosen.
        target: (rows, properties) asked for, NaN for what was not.

    Returns:
        Number of the chosen candidate, int64 (rows,); and what `Samples.score` tells: ``best_of``, how many candidates
        there were, and ``predicted_distance``, the root mean squared error in standard deviations (NaN if none could
        be chosen).

    Example:
        >>> chosen, score = nearest_candidate([torch.tensor([[3.0]]), torch.tensor([[1.5]])], torch.tensor([[1.0]]))
        >>> chosen.tolist(), score["predicted_distance"].tolist()
        ([1], [0.5])
    """
    distances = torch.stack([(values - target).square().nanmean(1).sqrt() for values in predicted])
    chosen = distances.nan_to_num(nan=torch.inf).argmin(0)
    distance = distances.gather(0, chosen[None])[0]
    return chosen, {"best_of": torch.full_like(distance, len(predicted)), "predicted_distance": distance}


@dataclass(frozen=True)
class Scaffold:
    """A part that molecules have to contain.

    Args:
        smiles: Canonical, without attachment points.
        atoms: Type of every atom.
        bonds: (atom, atom, order) of every bond.
        room: How many new bonds may go out from every atom, whatever their order.
        marked: Whether attachment points say where to grow; as many bonds as there is room for then do go out, single
            ones that close no ring with the scaffold.
    """

    smiles: str
    atoms: tuple[str, ...]
    bonds: tuple[tuple[int, int, int], ...]
    room: tuple[int, ...]
    marked: bool

    def pattern(self) -> Chem.Mol:
        """Return the molecule to search for."""
        from rdkit import Chem

        return Chem.MolFromSmiles(self.smiles)


def parse_scaffold(
    smiles: str, atom_types: Sequence[str], max_atoms: int, valence: Sequence[int] | None = None
) -> Scaffold:
    """Read a scaffold and check that molecules can grow from it.

    Args:
        smiles: A connected part; attachment points ``[*]`` (also ``[*:1]``) say where it grows, without any it may
            grow wherever valence is left.
        atom_types: Vocabulary of training.
        max_atoms: Size of the largest molecule that can be made.
        valence: Largest total bond order of every atom type; None: what RDKit accepts.

    Raises:
        ConfigError: If it cannot be read, has atoms that training had not, or no room to grow.

    Example:
        >>> parse_scaffold("[*]c1ccccc1", ["C"], max_atoms=9).room
        (1, 0, 0, 0, 0, 0)
    """
    from rdkit import Chem, rdBase

    from lightning_synth.molecules.representation import max_valence, read_molecule

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or not mol.GetNumAtoms():
        raise ConfigError(f"scaffold {smiles!r} is not a SMILES that RDKit can read")
    body, marks = _without_marks(mol, smiles)
    try:
        graph = read_molecule(body, fragments="raise")
    except DataError as error:
        raise ConfigError(f"scaffold {smiles!r}: {error}") from error
    unknown = [name for name in graph.atoms if name not in atom_types]
    if unknown:
        raise ConfigError(f"scaffold {smiles!r} has the atom type {unknown[0]!r}, which training molecules had not")
    used = [0] * len(graph.atoms)
    for first, second, order in graph.bonds.tolist():
        used[first] += order
        used[second] += order
    limits = {name: max_valence(name) if valence is None else valence[i] for i, name in enumerate(atom_types)}
    free = [limits[name] - bonds for name, bonds in zip(graph.atoms, used, strict=True)]
    if min(free) < 0:
        crowded = graph.atoms[free.index(min(free))]
        raise ConfigError(f"scaffold {smiles!r} has more bonds at {crowded} than training molecules have")
    if marks is not None:
        # The atoms of the graph are in the order of its own SMILES; marks are carried over by matching.
        match = body.GetSubstructMatch(Chem.MolFromSmiles(graph.smiles))
        free = [min(left, marks[match[i]]) for i, left in enumerate(free)]
    if not any(free) or len(graph.atoms) + (sum(free) if marks is not None else 1) > max_atoms:
        raise ConfigError(
            f"scaffold {smiles!r} has no attachment room: {len(graph.atoms)} atoms of at most {max_atoms}, "
            f"{sum(free)} free valences"
        )
    bonds = tuple((first, second, order) for first, second, order in graph.bonds.tolist())
    return Scaffold(graph.smiles, graph.atoms, bonds, tuple(free), marks is not None)


def _without_marks(mol: Chem.Mol, smiles: str) -> tuple[Chem.Mol, list[int] | None]:
    """Put hydrogen in the place of attachment points; return the molecule and how many every atom had."""
    from rdkit import Chem

    marks = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() == 0]
    if not marks:
        return mol, None
    counts = [0] * mol.GetNumAtoms()
    for mark in marks:
        bonds = mark.GetBonds()
        if len(bonds) != 1 or bonds[0].GetBondType() != Chem.BondType.SINGLE:
            raise ConfigError(f"scaffold {smiles!r}: an attachment point [*] has one single bond")
        counts[bonds[0].GetOtherAtomIdx(mark.GetIdx())] += 1
    edited = Chem.RWMol(mol)
    for atom in list(edited.GetAtoms()):
        atom.SetIntProp("marks", counts[atom.GetIdx()])
    for mark in marks:
        edited.ReplaceAtom(mark.GetIdx(), Chem.Atom(1))
    body = Chem.RemoveHs(edited.GetMol())
    return body, [atom.GetIntProp("marks") if atom.HasProp("marks") else 0 for atom in body.GetAtoms()]
