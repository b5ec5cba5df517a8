"""Discrete flow matching for molecules: the graph flow network on atom and bond types that lose nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_synth.conditions import check_guidance
from lightning_synth.discrete_flow import Sampler, noise
from lightning_synth.errors import ConfigError
from lightning_synth.graphs import DenseGraphs
from lightning_synth.molecules.conditioning import (
    SCAFFOLD,
    PropertyConditions,
    Scaffold,
    check_best_of,
    guided,
    nearest_candidate,
    parse_scaffold,
    property_loss,
)
from lightning_synth.molecules.representation import BOND_TYPES, decode, encode, to_smiles
from lightning_synth.plugins.graph.defog import DeFoG, Known
from lightning_synth.plugins.graph.graph_transformer import Pairs
from lightning_synth.plugins.molecule.molecule_flow_parts import PropertyHead, SizeLaw, ValenceFeatures
from lightning_synth.requests import KeyedRNG, SampleRequests, Samples, Scored
from lightning_synth.schema import collate

if TYPE_CHECKING:
    from lightning_synth.conditions import Condition
    from lightning_synth.constraints import Constraint


class MoleculeFlow(DeFoG):
    """Molecules by discrete flow matching (DeFoG, Qin et al. 2025, arXiv 2410.04263) on a representation without loss.

    Atom types hold element and charge, bonds are Kekule bonds, so a sample is a molecule as soon as no atom has more
    bonds than its type allows. Nothing is repaired: an impossible graph stays what it is, with ``smiles`` empty. The
    network sees the valences of the noisy molecule and its own last prediction (self-conditioning, Chen et al. 2023,
    arXiv 2208.04202); sizes are drawn from p(n | condition), as in FreeGress (Ninniri et al. 2024, arXiv 2312.17397).

    Any subset of the properties, the class and a text can be asked for: ``sample(n, condition={"logP": 2.5})``; what is
    not named is unspecified. ``condition={"scaffold": "c1ccccc1"}`` holds the atoms and bonds of a part fixed at every
    step, so that every sample contains it; each attachment point (``"[*]c1ccccc1"``) gets one single bond, and the
    other atoms of the part none. ``Samples.score["has_scaffold"]`` tells which samples RDKit finds it in.

    Args:
        num_layers: Rounds of the graph transformer.
        d_node: Features of an atom, a multiple of ``heads``.
        d_edge: Features of a pair of atoms.
        d_graph: Features of the molecule as a whole, and of the embedded conditions.
        heads: Attention heads.
        rrwp_steps: Powers of the random walk among the input features.
        dropout: Share of atom features dropped in training.
        self_conditioning: The network also sees its last prediction.
        train_distortion: Of the training times: ``"polydec"`` dwells near the data, where bonds have to add up.
        eta: Stochasticity of the sampler.
        guidance_scale: 0: unconditional; 1: conditional; more extrapolates.
        condition_dropout: Share of training molecules whose conditions are all hidden, for guidance; of the others a
            random subset stays.
        property_weight: Weight of the loss of the property head, which predicts the properties of a finished molecule.
        text_encoder: ``"ngrams"``, or the name of a sentence-transformers model.
        lr: Learning rate.
        **kwargs: For `DeFoG`.

    Shapes:
        batch: PyG ``Batch`` with int64 ``x`` and ``edge_attr``, float ``y`` (molecules, properties), NaN for missing.

    Sampling options: ``sampler`` (a `Sampler`), or ``num_steps, eta, omega, distortion``; ``guidance_scale``;
    ``constraint`` (`lightning_synth.constraints`); ``num_nodes``; ``start`` and ``strength``, see `optimise`.
    ``best_of=k`` draws k molecules for every row and keeps the one whose properties, as the model itself predicts them,
    are nearest to those asked for (an impossible graph only where all k are); ``Samples.score`` then tells k and the
    predicted distance.

    Example:
        >>> from lightning_synth.testing import tiny_schema
        >>> model = MoleculeFlow(schema=tiny_schema("molecule"), num_layers=1, d_node=16, d_edge=8, d_graph=8, heads=2)
        >>> model.is_fitted = True
        >>> len(model.sample(3, seed=0, num_steps=5, num_nodes=3).data.smiles)
        3
    """

    domain = "molecule"
    conditions = ("label", "*")
    partial_conditions = True
    string_conditions = ("scaffold", "text")

    def __init__(
        self,
        *,
        num_layers: int = 5,
        d_node: int = 96,
        d_edge: int = 64,
        d_graph: int = 64,
        heads: int = 8,
        rrwp_steps: int = 8,
        dropout: float = 0.0,
        self_conditioning: bool = True,
        train_distortion: str = "polydec",
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        condition_dropout: float = 0.1,
        property_weight: float = 0.1,
        text_encoder: str = "ngrams",
        lr: float = 2e-3,
        **kwargs: Any,
    ) -> None:
        if not 0 <= condition_dropout < 1:
            raise ConfigError(f"condition_dropout must lie in [0, 1), got {condition_dropout}")
        if property_weight < 0:
            raise ConfigError(f"property_weight must not be negative, got {property_weight}")
        check_guidance(guidance_scale, condition_dropout)
        super().__init__(
            num_layers=num_layers,
            d_node=d_node,
            d_edge=d_edge,
            d_graph=d_graph,
            heads=heads,
            rrwp_steps=rrwp_steps,
            dropout=dropout,
            self_conditioning=self_conditioning,
            train_distortion=train_distortion,
            eta=eta,
            guidance_scale=guidance_scale,
            condition_dropout=condition_dropout,
            property_weight=property_weight,
            text_encoder=text_encoder,
            lr=lr,
            **kwargs,
        )

    def build_conditions(self, schema: dict[str, Any]) -> None:
        """Make the embedding of conditions, the law of sizes and the property head."""
        p = self.hparams
        self.condition = PropertyConditions(schema, int(p["d_graph"]), p["text_encoder"])
        asked_for = bool(list(self.condition.parameters()))
        self.sizes = SizeLaw(schema, int(p["d_graph"]) if asked_for else 0)
        properties = len(self.condition.names)
        self.head = PropertyHead(schema, int(p["d_node"]), properties) if properties and p["property_weight"] else None

    def network_options(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Input features: walks, cycles and valences; and the conditions, which are learned faster from there."""
        return {"features": ValenceFeatures(schema, int(self.hparams["rrwp_steps"])), "graph_at_input": True}

    def gather(self, items: Sequence[Any]) -> None:
        """Learn the law of sizes and the priors of the training molecules."""
        self.sizes.fit(items)
        self.fit_priors(items)

    # Training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of the clean types; squared error of the properties of the clean molecule."""
        losses = super().losses(batch, rng)
        if self.head is not None:
            target = self.condition.standardised(self.condition.of_batch(batch), int(batch.num_graphs))
            losses["properties"] = property_loss(self.head(DenseGraphs.from_batch(batch)), target)
            losses["loss"] = losses["loss"] + self.hparams["property_weight"] * losses["properties"]
        return losses

    def embed_batch(self, batch: Any, rng: KeyedRNG) -> Tensor:
        """Embed a random subset of the conditions of each training molecule, (molecules, d_graph)."""
        told = self.condition.hide(
            self.condition.of_batch(batch), rng.fork("hide"), float(self.hparams["condition_dropout"])
        )
        embedded: Tensor = self.condition(told, int(batch.num_graphs))
        return embedded

    def more_losses(self, condition: Tensor, pairs: Pairs) -> dict[str, Tensor]:
        """Cross-entropy of the size, given the conditions."""
        if self.sizes.head is None:
            return {}
        return {"sizes": F.cross_entropy(self.sizes(condition), pairs.mask.sum(1))}

    # Sampling ------------------------------------------------------------------------------------------------------

    def embed_requests(self, requests: SampleRequests) -> tuple[Tensor, Tensor]:
        """Embed what is asked for, and that nothing is, twice (rows, d_graph)."""
        rows = len(requests)
        return self.condition(self.condition.of_requests(requests), rows), self.condition({}, rows)

    def sample_batch(
        self,
        requests: SampleRequests,
        rng: KeyedRNG,
        *,
        sampler: Sampler | None = None,
        num_steps: int | None = None,
        eta: float | None = None,
        omega: float | None = None,
        distortion: str | None = None,
        guidance_scale: float | None = None,
        constraint: Constraint | None = None,
        num_nodes: int | Sequence[int] | Tensor | None = None,
        best_of: int = 1,
        start: Sequence[str] | None = None,
        strength: float = 0.5,
    ) -> Any:
        """Walk from the prior, or from noised molecules, to molecules; options as in the class docstring."""
        given = {"num_steps": num_steps, "eta": eta, "omega": omega, "distortion": distortion}
        sampler = sampler or self._sampler_with({name: value for name, value in given.items() if value is not None})
        scale = float(self.hparams["guidance_scale"] if guidance_scale is None else guidance_scale)
        check_guidance(scale, float(self.hparams["condition_dropout"]))
        asked = self.condition.of_requests(requests)
        if not bool(self.condition.specified(asked, len(requests)).all()):
            self.condition.check_null(float(self.hparams["condition_dropout"]))
        if best_of < 1:
            raise ConfigError(f"{best_of=} must be at least 1")
        scaffolds = self._scaffolds(requests)
        walk = partial(self.walk, requests, sampler=sampler, guidance_scale=scale, constraint=constraint)
        if start is None:
            draw = partial(self._grown, requests, scaffolds, walk, scale, num_nodes)
        else:
            draw = partial(self._edited, requests, scaffolds, walk, start, strength)
        batch, score = (draw(rng), {}) if best_of == 1 else self._best(draw, rng, asked, best_of)
        if SCAFFOLD in requests.condition:
            score["has_scaffold"] = found(batch.smiles, scaffolds)
        return Scored(batch, score)

    def _grown(
        self,
        requests: SampleRequests,
        scaffolds: Sequence[Scaffold | None],
        walk: Callable[..., Any],
        scale: float,
        num_nodes: int | Sequence[int] | Tensor | None,
        rng: KeyedRNG,
    ) -> Any:
        """Walk from the prior; a molecule has as many atoms as asked for, or as p(n | condition) says."""
        known, least = self._known(scaffolds)
        if num_nodes is None:
            counts = self._sizes(requests, rng, scale, least)
        else:
            counts = self._counts(requests, rng, num_nodes)
        if bool((counts < least).any()):
            raise ConfigError(
                f"a scaffold needs molecules of at least {int(least.max())} atoms, got {int(counts.min())}"
            )
        return with_smiles(walk(rng, counts, known=known), self._ready_schema())

    def _best(
        self, draw: Callable[[KeyedRNG], Any], rng: KeyedRNG, asked: dict[str, Tensor], count: int
    ) -> tuple[Any, dict[str, Tensor]]:
        """Of several molecules for every row, the one whose predicted properties are nearest to those asked for."""
        target, schema = self.condition.standardised(asked, len(rng)), self._ready_schema()
        check_best_of(target, self.head is not None)
        drawn = [draw(rng.fork(f"candidate {i}")) for i in range(count)]
        chosen, score = nearest_candidate([self._predicted(batch) for batch in drawn], target)
        items = [batch.to_data_list() for batch in drawn]
        return collate([items[k][row] for row, k in enumerate(chosen.tolist())], schema), score

    def _predicted(self, batch: Any) -> Tensor:
        """Standardised properties of finished molecules, (rows, properties); NaN of those that are none."""
        assert self.head is not None
        with self.averaged_weights():
            predicted: Tensor = self.head(DenseGraphs.from_batch(batch))
        invalid = torch.tensor([not smiles for smiles in batch.smiles], device=predicted.device)
        return predicted.masked_fill(invalid[:, None], torch.nan)

    def _sizes(self, requests: SampleRequests, rng: KeyedRNG, scale: float, least: Tensor) -> Tensor:
        """Draw sizes of at least ``least`` from p(n | condition)."""
        with self.averaged_weights():
            asked, free = self.embed_requests(requests)
            law = guided(self.sizes(asked), self.sizes(free), min(max(scale, 0.0), 1.0))
        drawn: Tensor = self.sizes.draw(law, least, rng.fork("num_nodes"))
        return drawn

    def _scaffolds(self, requests: SampleRequests) -> list[Scaffold | None]:
        """The scaffold of each row."""
        asked = requests.condition.get(SCAFFOLD)
        texts = [""] * len(requests) if asked is None else asked.tolist()
        types = self._ready_schema()["atom_types"]
        parsed = {text: parse_scaffold(text, types, self.max_nodes) for text in {*texts} - {""}}
        return [parsed.get(text) for text in texts]

    def _known(self, scaffolds: Sequence[Scaffold | None]) -> tuple[Known | None, Tensor]:
        """What scaffolds fix, and the fewest atoms of each molecule."""
        schema, n = self._ready_schema(), self.max_nodes
        parts = {scaffold: _fixed(scaffold, schema, n) for scaffold in {*scaffolds}}
        least = torch.tensor([parts[scaffold][1] for scaffold in scaffolds], device=self.device)
        if not any(scaffolds):
            return None, least
        known = [parts[scaffold][0] for scaffold in scaffolds]
        fields = (torch.cat([getattr(one, field) for one in known]).to(self.device) for field in vars(known[0]))
        return Known(*fields), least

    # Editing -------------------------------------------------------------------------------------------------------

    def optimise(
        self, smiles: Sequence[str], target: Condition = None, *, strength: float = 0.5, seed: int = 0, **options: Any
    ) -> Samples:
        """Edit molecules towards a target: noise them partly, and walk back under the target as condition.

        Args:
            smiles: Molecules of at most as many atoms as the largest training molecule.
            target: As ``condition`` of `sample`, e.g. ``{"logP": 3.0}``; of a ``scaffold``, which every molecule must
                have, atoms and bonds stay as they are, and with attachment points all its other bonds as well.
            strength: Share of the noise: 0 returns the molecules as they are, 1 forgets all but their sizes.
            seed: Of the samples.
            **options: Of the sampler.

        Returns:
            One sample a molecule, in order; with a scaffold ``score["has_scaffold"]`` says where RDKit finds it.

        Raises:
            ConfigError: If the strength is outside [0, 1], a molecule is too large, or it lacks the scaffold, or
                ``smiles`` is no list.
            DataError: If a SMILES cannot be read, or has atom types that training had not.

        Example:
            >>> from lightning_synth.testing import tiny_schema
            >>> model = MoleculeFlow(schema=tiny_schema("molecule"), num_layers=1, d_node=16, heads=2)
            >>> model.is_fitted = True
            >>> model.optimise(["CCO"], {"atoms": 4.0}, strength=0.0).data.smiles
            ['CCO']
        """
        if isinstance(smiles, str):
            raise ConfigError(f"smiles is a list of molecules: [{smiles!r}]")
        return self.sample(len(smiles), condition=target, seed=seed, start=list(smiles), strength=strength, **options)

    def _edited(
        self,
        requests: SampleRequests,
        scaffolds: Sequence[Scaffold | None],
        walk: Callable[..., Any],
        start: Sequence[str],
        strength: float,
        rng: KeyedRNG,
    ) -> Any:
        """Walk from noised molecules."""
        clean = self._clean(start, requests)
        known = self._kept(clean, scaffolds) if any(scaffolds) else None
        noisy = self._noised(clean, rng, strength, known)
        made = walk(rng, noisy.mask.sum(1), known=known, start=noisy, since=1 - strength)
        return with_smiles(made, self._ready_schema())

    def _clean(self, start: Sequence[str], requests: SampleRequests) -> DenseGraphs:
        """The molecules to edit (row i takes entry i modulo their number)."""
        schema = self._ready_schema()
        items = [encode(start[i], schema) for i in (requests.index % len(start)).tolist()]
        large = next((item for item in items if item.num_nodes > self.max_nodes), None)
        if large is not None:
            raise ConfigError(f"{large.smiles!r} has {large.num_nodes} atoms; training molecules had {self.max_nodes}")
        return DenseGraphs.from_batch(collate(items, schema).to(self.device), self.max_nodes)

    def _noised(self, clean: DenseGraphs, rng: KeyedRNG, strength: float, known: Known | None) -> DenseGraphs:
        """Noise molecules to the time 1 - strength, but for what is to be kept."""
        if not 0 <= strength <= 1:
            raise ConfigError(f"strength must lie in [0, 1], got {strength}")
        time, n = torch.full((), 1 - strength, device=self.device), self.max_nodes
        u, v = rng.fork("edited atoms").uniform((2, n)).unbind(1)
        x = noise(clean.x, time.expand_as(clean.x), self.prior_x, u, v).masked_fill(~clean.mask, 0)
        u, v = rng.fork("edited bonds").uniform((2, n, n)).unbind(1)
        e = noise(clean.e, time.expand_as(clean.e), self.prior_e, u, v).masked_fill(~clean.pairs, 0).triu(1)
        e = e + e.transpose(1, 2)
        if known is not None:
            x, e = torch.where(known.fixed_x, known.x, x), torch.where(known.fixed_e, known.e, e)
        return DenseGraphs(x, e, clean.mask)

    def _kept(self, clean: DenseGraphs, scaffolds: Sequence[Scaffold | None]) -> Known:
        """What scaffolds fix in molecules to edit: their atoms and bonds, where each molecule has them."""
        fixed_x, fixed_e = torch.zeros_like(clean.mask), torch.zeros_like(clean.pairs)
        for row, scaffold in enumerate(scaffolds):
            if scaffold is not None:
                places, closed = self._place(clean, row, scaffold)
                fixed_x[row, places] = True
                fixed_e[row, places[:, None], places] = True
                fixed_e[row, closed] = fixed_e[row, :, closed] = True
        return Known(clean.x, clean.e, fixed_x, fixed_e)

    def _place(self, clean: DenseGraphs, row: int, scaffold: Scaffold) -> tuple[Tensor, Tensor]:
        """Where a molecule has a scaffold, and those of its atoms whose bonds to other atoms stay as well."""
        schema = self._ready_schema()
        item = clean[row : row + 1].to_batch(schema).cpu().to_data_list()[0]
        for match in decode(item, schema).GetSubstructMatches(scaffold.pattern(), uniquify=False):
            places = torch.tensor(match, device=self.device)
            bonded = clean.e[row, places] > 0
            bonded[:, places] = False
            if not scaffold.marked or bonded.sum(1).tolist() == list(scaffold.room):
                return places, places[[scaffold.marked or room == 0 for room in scaffold.room]]
        marks = ", with all its other bonds at the attachment points" if scaffold.marked else ""
        raise ConfigError(f"{to_smiles([item], schema)[0]!r} does not contain the scaffold {scaffold.smiles!r}{marks}")


def with_smiles(batch: Any, schema: Mapping[str, Any]) -> Any:
    """Give a batch of molecules their canonical SMILES; an empty one where RDKit accepts none.

    Args:
        batch: PyG ``Batch`` of `lightning_synth.graphs.graph_batch`.
        schema: Of the items.

    Returns:
        The same batch.
    """
    graphs = batch.clone().cpu().to_data_list()
    batch.smiles = [smiles or "" for smiles in to_smiles(graphs, schema)]
    batch._slice_dict["smiles"] = torch.arange(len(graphs) + 1)
    batch._inc_dict["smiles"] = torch.zeros(len(graphs), dtype=torch.int64)
    return batch


def found(smiles: Sequence[str], scaffolds: Sequence[Scaffold | None]) -> Tensor:
    """Tell which molecules contain their scaffold, as RDKit sees it.

    Every graph holds the atoms and bonds of its scaffold; but a part can become aromatic, or cease to be, by what grows
    around it, and a graph that is no molecule has no parts.

    Args:
        smiles: Of the samples; empty where they are no molecules.
        scaffolds: One a sample; None for none, which every molecule contains.

    Returns:
        float (samples,), 1 or 0.
    """
    from rdkit import Chem

    patterns = {scaffold: scaffold.pattern() for scaffold in {*scaffolds} if scaffold is not None}
    molecules = [Chem.MolFromSmiles(one) if one else None for one in smiles]
    has = [
        mol is not None and (scaffold is None or mol.HasSubstructMatch(patterns[scaffold]))
        for mol, scaffold in zip(molecules, scaffolds, strict=True)
    ]
    return torch.tensor(has, dtype=torch.float32)


def _fixed(scaffold: Scaffold | None, schema: Mapping[str, Any], n: int) -> tuple[Known, int]:
    """What a scaffold fixes in a molecule, whose first atoms it is; and how many atoms that takes at least."""
    x, e = torch.zeros(1, n, dtype=torch.int64), torch.zeros(1, n, n, dtype=torch.int64)
    known = Known(x, e, torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(e, dtype=torch.bool))
    if scaffold is None:
        return known, 1
    size, types = len(scaffold.atoms), schema["bond_types"]
    needed = size + (sum(scaffold.room) if scaffold.marked else 1)
    orders = [order for *_, order in scaffold.bonds] + [1] * scaffold.marked
    missing = {BOND_TYPES[order - 1] for order in orders} - set(types)
    if missing:
        raise ConfigError(f"scaffold {scaffold.smiles!r} has a {missing.pop()} bond; training molecules have none")
    known.x[0, :size] = torch.tensor([schema["atom_types"].index(name) for name in scaffold.atoms])
    known.fixed_x[0, :size] = known.fixed_e[0, :size, :size] = True
    bonds = [(first, second, types.index(BOND_TYPES[order - 1])) for first, second, order in scaffold.bonds]
    if scaffold.marked:
        ends = [atom for atom, room in enumerate(scaffold.room) for _ in range(room)]
        bonds += [(atom, size + i, types.index(BOND_TYPES[0])) for i, atom in enumerate(ends)]
    for first, second, kind in bonds:
        known.e[0, first, second] = known.e[0, second, first] = kind + 1
    closed = torch.tensor([scaffold.marked or room == 0 for room in scaffold.room]).nonzero()[:, 0]
    known.fixed_e[0, closed] = known.fixed_e[0, :, closed] = True
    return known, needed
