"""A small language model of molecules whose every sample is valid: spanning trees, masks, a causal transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.averaging import AveragedGenerator
from lightning_synth.conditions import check_guidance
from lightning_synth.decoder import Decoder, KeyValueCache
from lightning_synth.errors import ConfigError, InvalidSamplesError
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
from lightning_synth.nn import owned_dropout
from lightning_synth.plugins.molecule.molecule_sequence_scaffold import ScaffoldGuide
from lightning_synth.plugins.molecule.molecule_sequence_tokens import PAD, Grammar, MoleculeTokens
from lightning_synth.requests import KeyedRNG, SampleRequests, Scored

#: How many ancestors of the present atom the network sees besides the sequence.
_ANCESTORS = 6
#: Numbers in the caches of keys and values of rows that are sampled at once.
_CACHED = 1 << 27
#: How often molecules in which the scaffold is not found are drawn.
_ATTEMPTS = 20


class TreeTransformer(nn.Module):
    """Decoder-only transformer that sees, at every position, the latest token and the state of the tree.

    Args:
        codec: The vocabulary.
        dim: Features.
        depth: Blocks.
        heads: Attention heads; ``dim`` is a multiple of twice their number.
        dropout: Of attention weights.
    """

    offset: Tensor

    def __init__(self, codec: MoleculeTokens, dim: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        sizes = torch.tensor(view_sizes(codec))
        self.embed = nn.Embedding(int(sizes.sum()), dim)
        self.embed.weight.data.mul_(len(sizes) ** -0.5)
        self.decoder, self.out = Decoder(dim, depth, heads, dropout), nn.Linear(dim, codec.size)
        self.register_buffer("offset", sizes.cumsum(0) - sizes, persistent=False)

    def forward(self, views: Tensor, condition: Tensor) -> Tensor:
        """Return what is known at every position, (rows, length, dim).

        Args:
            views: int64 (rows, length, features), as `view`.
            condition: (rows, dim), added at every position.
        """
        out: Tensor = self.decoder(self._embedded(views) + condition[:, None])
        return out

    def following(self, view: Tensor, condition: Tensor, cache: KeyValueCache) -> Tensor:
        """Return logits (rows, tokens) of the next token.

        Args:
            view: int64 (rows, features) of this position.
            condition: (rows, dim).
            cache: Of the positions before; it takes in this one.
        """
        out: Tensor = self.out(self.decoder.step(self._embedded(view) + condition, cache))
        return out

    def _embedded(self, views: Tensor) -> Tensor:
        flat = (views + self.offset).reshape(-1, views.shape[-1])
        return F.embedding_bag(flat, self.embed.weight, mode="sum").reshape(*views.shape[:-1], -1)


_MOST = {"free": 9, "slots": 12, "atoms": 64}


def view_sizes(codec: MoleculeTokens) -> list[int]:
    """Return how many values every feature of `view` has."""
    return [codec.size] * (2 + _ANCESTORS) + [_MOST["free"]] * 2 + [_MOST["slots"], _MOST["atoms"]]


def view(grammar: Grammar, latest: Tensor) -> Tensor:
    """Describe the state of growing molecules to the network.

    Args:
        grammar: Their state.
        latest: int64 (rows,), the latest token; padding at the start.

    Returns:
        int64 (rows, features): the latest token; the atom that the next one hangs on; the ancestors of the atom written
        last; the free valences of both; the number of children waited for, and of atoms.
    """
    site, depth = grammar.site, grammar.depth
    path = [grammar.at(grammar.token, depth - i) for i in range(1, _ANCESTORS + 1)]
    counts = (
        (grammar.at(grammar.free, site), "free"),
        (grammar.at(grammar.free, depth), "free"),
        (grammar.slots, "slots"),
        (grammar.atoms, "atoms"),
    )
    capped = [value.clamp(0, _MOST[name] - 1) for value, name in counts]
    return torch.stack([latest, grammar.at(grammar.token, site), *path, *capped], 1)


class MoleculeSequence(AveragedGenerator):
    """Molecules as sequences, learned by a small causal transformer; every sample is a valid molecule.

    A molecule is written along a depth-first spanning tree (`MoleculeTokens`); grammar and valence masks, as in STGG+
    (Jolicoeur-Martineau et al. 2024, "Any-Property-Conditional Molecule Generation with Self-Criticism using Spanning
    Trees", arXiv 2407.09357), hold in training and sampling alike, so nothing is learned about what cannot be and
    nothing has to be repaired. Most molecules are written in the order of their canonical SMILES, which is learned
    fastest; a share in random orders, so that a scaffold can come first.

    Any subset of the properties, the class and a text can be asked for: ``sample(n, condition={"logP": 2.5})``. What is
    not named is unspecified. ``condition={"scaffold": "[*]c1ccccc1"}`` grows molecules from a part (`ScaffoldGuide`)
    that RDKit then finds in every one of them.

    Args:
        d_model: Features.
        depth: Transformer blocks.
        heads: Attention heads; ``d_model`` is a multiple of twice their number.
        attention_dropout: Share of attention weights dropped in training.
        random_orders: Share of training molecules written from a random atom in random order.
        temperature: Divides the logits; below 1 samples are more typical and less varied.
        top_k: Draw from the k most likely tokens only; None: from all.
        guidance_scale: 0: unconditional; 1: conditional; more extrapolates.
        condition_dropout: Share of training molecules whose conditions are all hidden, for guidance; of the others a
            random subset stays.
        property_weight: Weight of the loss of the property head, which predicts the properties of a finished molecule.
        text_encoder: ``"ngrams"``, or the name of a sentence-transformers model.
        ema_decay: Decay of the averaged weights used for sampling.
        lr: Peak learning rate; it warms up linearly and decays by a cosine over the Trainer's budget.
        **kwargs: ``schema``, ``seed``.

    Sampling options (keywords of ``sample``): ``temperature, top_k, guidance_scale`` override the above. ``best_of=k``
    draws k molecules for every row and keeps the one whose properties, as the model itself predicts them, are nearest
    to those asked for; ``Samples.score`` then tells k and the predicted distance. With a scaffold, its
    ``draws`` counts how often a row was drawn until RDKit found the scaffold in it.

    Shapes:
        batch: PyG ``Batch`` with ``x``, ``edge_attr``, ``y`` (molecules, properties), NaN for missing ones.

    Example:
        >>> from lightning_synth.testing import tiny_schema
        >>> model = MoleculeSequence(schema=tiny_schema("molecule"), d_model=16, depth=1, heads=2)
        >>> model.codec.size
        27
    """

    domain = "molecule"
    conditions = ("label", "*")
    partial_conditions = True
    string_conditions = ("scaffold", "text")

    def __init__(
        self,
        *,
        d_model: int = 128,
        depth: int = 4,
        heads: int = 4,
        attention_dropout: float = 0.0,
        random_orders: float = 0.1,
        temperature: float = 1.0,
        top_k: int | None = None,
        guidance_scale: float = 1.0,
        condition_dropout: float = 0.1,
        property_weight: float = 0.1,
        text_encoder: str = "ngrams",
        ema_decay: float = 0.995,
        lr: float = 3e-3,
        **kwargs: Any,
    ) -> None:
        if min(d_model, depth, heads) < 1 or d_model % (2 * heads):
            raise ConfigError(f"{d_model=} must be a multiple of twice {heads=}, and {depth=} at least 1")
        for name, share in (("attention_dropout", attention_dropout), ("condition_dropout", condition_dropout)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {share}")
        if not 0 <= random_orders <= 1 or property_weight < 0:
            raise ConfigError(f"{random_orders=} must lie in [0, 1], and {property_weight=} not be negative")
        _check_sampling(temperature, top_k, 1)
        check_guidance(guidance_scale, condition_dropout)
        super().__init__(
            d_model=d_model,
            depth=depth,
            heads=heads,
            attention_dropout=attention_dropout,
            random_orders=random_orders,
            temperature=temperature,
            top_k=top_k,
            guidance_scale=guidance_scale,
            condition_dropout=condition_dropout,
            property_weight=property_weight,
            text_encoder=text_encoder,
            ema_decay=ema_decay,
            lr=lr,
            **kwargs,
        )

    limit: Tensor
    fragments: Tensor
    valence: Tensor

    def build(self, schema: dict[str, Any]) -> None:
        """Make vocabulary, transformer, the embedding of conditions and the property head."""
        from lightning_synth.molecules.representation import valence_table

        p = self.hparams
        self.codec = MoleculeTokens(schema, valence_table(schema))
        # Where RDKit accepts more than training molecules have (seven bonds of iodine, metals), their most counts.
        self.register_buffer("valence", self.codec.valence.clone())
        self.transformer = TreeTransformer(self.codec, p.d_model, p.depth, p.heads, p.attention_dropout)
        self.conditioning = PropertyConditions(schema, p.d_model, p.text_encoder)
        self.order = nn.Embedding(2, p.d_model) if 0 < p.random_orders < 1 else None
        properties = len(self.conditioning.names)
        self.head = nn.Linear(p.d_model, properties) if properties and p.property_weight else None
        self.register_buffer("limit", torch.tensor(self.codec.longest()))
        self.register_buffer("fragments", torch.tensor(False))
        super().build(schema)

    # Training ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Before a fit: find out how long sequences are, how many bonds atoms have, and if there are several parts."""
        super().setup(stage)
        if stage != "fit":
            return
        items = self.training_items()
        parts = [item.smiles.count(".") + 1 for item in items]
        longest = max(item.edge_index.shape[1] // 2 + count + 1 for item, count in zip(items, parts, strict=True))
        self.limit.fill_(min(longest + longest // 4, self.codec.longest()))
        self.fragments.fill_(max(parts) > 1)
        self.valence.copy_(self._bonds_of(items))

    def _bonds_of(self, items: Sequence[Any]) -> Tensor:
        """The largest total bond order of every atom type among molecules, (atom types,)."""
        kind = torch.cat([item.x for item in items])
        sizes = torch.tensor([item.num_nodes for item in items])
        bonds = torch.tensor([item.edge_index.shape[1] for item in items])
        atom = torch.cat([item.edge_index[0] for item in items]) + (sizes.cumsum(0) - sizes).repeat_interleave(bonds)
        order = self.codec.order_of_bond[torch.cat([item.edge_attr for item in items])]
        total = torch.zeros_like(kind).scatter_add_(0, atom, order)
        return torch.zeros_like(self.codec.valence).scatter_reduce_(0, kind, total, "amax")

    def _grammar(self, rows: int, length: int) -> Grammar:
        return Grammar(self.codec, rows, length, bool(self.fragments), self.device, self.valence)

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of the next token among the allowed ones; squared error of hidden properties."""
        p, graphs = self.hparams, DenseGraphs.from_batch(batch)
        rows, n = graphs.mask.shape
        shuffled = rng.fork("shuffled").uniform((rows,)) < p.random_orders
        canonical = torch.arange(n, device=self.device).float()
        priority = torch.where(shuffled[:, None], rng.fork("order").uniform((rows, n)), canonical)
        tokens = self.codec.encode(graphs, priority)
        asked = self.conditioning.of_batch(batch)
        hidden = self.conditioning.hide(asked, rng.fork("hide"), p.condition_dropout)
        views, allowed = self._trace(tokens)
        with owned_dropout(rng):
            known = self.transformer(views, self._embedding(hidden, rows, shuffled))
        there = tokens != PAD
        logits = self.transformer.out(known[there]).masked_fill(~allowed[there], -torch.inf)
        losses = {"tokens": F.cross_entropy(logits, tokens[there])}
        if self.head is not None:
            ends = known[torch.arange(rows, device=self.device), there.sum(1) - 1]
            told = ~self.conditioning.standardised(hidden, rows).isnan()
            # What the network was told is no prediction.
            target = self.conditioning.standardised(asked, rows).masked_fill(told, torch.nan)
            losses["properties"] = property_loss(self.head(ends), target)
        return {"loss": losses["tokens"] + p.property_weight * losses.get("properties", 0.0), **losses}

    def _embedding(self, condition: dict[str, Tensor], rows: int, shuffled: Tensor) -> Tensor:
        """Embed conditions and the kind of order."""
        embedded: Tensor = self.conditioning(condition, rows)
        return embedded if self.order is None else embedded + self.order(shuffled.long())

    def _trace(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees before every token, and which tokens were allowed there."""
        grammar = self._grammar(len(tokens), self.codec.longest())
        latest, views, allowed = torch.zeros_like(tokens[:, 0]), [], []
        for token in tokens.T:
            views.append(view(grammar, latest))
            allowed.append(grammar.allowed())
            grammar.advance(token)
            latest = token
        return torch.stack(views, 1), torch.stack(allowed, 1)

    def configure_optimizers(self) -> Any:
        """AdamW with the betas of language models, scheduled."""
        settings = {"lr": self.hparams.lr, "betas": (0.9, 0.95), "weight_decay": 0.1}
        return self.scheduled(torch.optim.AdamW(self.parameters(), **settings))

    # Sampling ------------------------------------------------------------------------------------------------------

    def sample_batch(
        self,
        requests: SampleRequests,
        rng: KeyedRNG,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        guidance_scale: float | None = None,
        best_of: int = 1,
    ) -> Any:
        """Draw sequences token by token and read them as molecules; options as in the class docstring."""
        p = self.hparams
        temperature, top_k = p.temperature if temperature is None else temperature, p.top_k if top_k is None else top_k
        _check_sampling(temperature, top_k, best_of)
        scale = float(p.guidance_scale if guidance_scale is None else guidance_scale)
        check_guidance(scale, p.condition_dropout)
        asked = self.conditioning.of_requests(requests)
        if not bool(self.conditioning.specified(asked, len(requests)).all()):
            self.conditioning.check_null(p.condition_dropout)
        how = _How(temperature, top_k, scale, self._scaffolds(requests))
        with self.averaged_weights():
            if best_of == 1:
                tokens, draws = self._sequences(asked, rng.fork("tokens"), how)
                # What was drawn again is counted, not hidden.
                score = {"draws": draws} if SCAFFOLD in requests.condition else {}
                return Scored(self._molecules(tokens), score)
            return self._best(asked, rng.fork("tokens"), how, best_of)

    def _scaffolds(self, requests: SampleRequests) -> list[Scaffold | None]:
        """The scaffold of every row."""
        asked = requests.condition.get(SCAFFOLD)
        texts = [""] * len(requests) if asked is None else asked.tolist()
        atom_types = self._ready_schema()["atom_types"]
        known = {
            text: parse_scaffold(text, atom_types, self.codec.max_atoms, self.valence.tolist())
            for text in dict.fromkeys(texts)
            if text
        }
        return [known.get(text) for text in texts]

    def _best(self, asked: dict[str, Tensor], rng: KeyedRNG, how: _How, count: int) -> Scored:
        """Of several molecules for every row, the one whose predicted properties are nearest to those asked for."""
        target = self.conditioning.standardised(asked, len(rng))
        check_best_of(target, self.head is not None)
        drawn = [self._sequences(asked, rng.fork(f"candidate {i}"), how)[0] for i in range(count)]
        chosen, score = nearest_candidate([self._predicted(tokens, how) for tokens in drawn], target)
        width = max(tokens.shape[1] for tokens in drawn)
        all_of = torch.stack([F.pad(tokens, (0, width - tokens.shape[1])) for tokens in drawn])
        return Scored(self._molecules(all_of[chosen, torch.arange(len(chosen), device=chosen.device)]), score)

    def _predicted(self, tokens: Tensor, how: _How) -> Tensor:
        """Standardised properties of finished molecules, as the property head sees them, (rows, properties)."""
        assert self.head is not None
        known = self.transformer(self._trace(tokens)[0], self._conditions({}, replace(how, scale=0.0)))
        out: Tensor = self.head(known[torch.arange(len(tokens), device=self.device), (tokens != PAD).sum(1) - 1])
        return out

    def _sequences(self, asked: dict[str, Tensor], rng: KeyedRNG, how: _How) -> tuple[Tensor, Tensor]:
        """Draw sequences, (rows, length), as many at a time as memory allows, and count the draws of each row.

        A part of a molecule can become aromatic, or cease to be, by what grows around it; RDKit then no longer finds
        the scaffold. Such rows are drawn again.
        """
        cached = int(self.limit) * int(self.hparams.d_model) * int(self.hparams.depth) * 2
        rows = torch.arange(len(rng), device=rng.device)
        drawn = torch.full((len(rng), self.codec.longest()), PAD, device=rng.device)
        draws = torch.zeros(len(rng), device=rng.device)
        for attempt in range(_ATTEMPTS):
            draws[rows] += 1
            for part in rows.split(max(16, _CACHED // cached)):
                condition = {name: value[part] for name, value in asked.items()}
                tokens = self._tokens(condition, rng.fork(attempt)[part], how.of(part))
                drawn[part] = F.pad(tokens, (0, drawn.shape[1] - tokens.shape[1]))
            rows = rows[~self._contained(drawn[rows], how.of(rows).scaffolds)]
            if not len(rows):
                return drawn[:, : int((drawn != PAD).sum(1).max())], draws
        lost = how.of(rows).scaffolds[0]
        raise InvalidSamplesError(
            f"no molecule that contains {lost.smiles if lost else ''!r} was found in {_ATTEMPTS} attempts"
        )

    def _contained(self, tokens: Tensor, scaffolds: Sequence[Scaffold | None]) -> Tensor:
        """Whether RDKit finds the scaffold in the molecule of every row, bool (rows,)."""
        from lightning_synth.molecules.representation import molecules

        found = torch.ones(len(tokens), dtype=torch.bool)
        asked = [(i, scaffold) for i, scaffold in enumerate(scaffolds) if scaffold is not None]
        if asked:
            patterns = {scaffold: scaffold.pattern() for _, scaffold in asked}
            rows = [i for i, _ in asked]
            built = molecules(self.codec.decode(tokens[rows].cpu()).to_data_list(), self._ready_schema())
            for (i, scaffold), mol in zip(asked, built, strict=True):
                found[i] = mol is not None and mol.HasSubstructMatch(patterns[scaffold])
        return found.to(tokens.device)

    def _tokens(self, asked: dict[str, Tensor], rng: KeyedRNG, how: _How) -> Tensor:
        """Draw sequences token by token, (rows, length)."""
        count, guide = len(rng), None
        grammar = self._grammar(count, int(self.limit))
        if any(how.scaffolds):
            guide = ScaffoldGuide(self.codec, how.scaffolds, self._ready_schema(), rng.fork("scaffold"))
            guide.start(grammar)
        condition = self._conditions(asked, how)
        alive, cache = torch.arange(count, device=self.device), KeyValueCache()
        latest, columns = torch.zeros_like(alive), list[Tensor]()
        while len(alive):
            logits = self._logits(view(grammar, latest), condition, cache, how.scale)
            allowed = grammar.allowed()
            allowed = allowed if guide is None else guide.restrict(allowed, grammar)
            token = _draw(logits, allowed, how, rng[alive].uniform((), step=len(columns)))
            (grammar.advance(token) if guide is None else guide.advance(token, grammar))
            columns.append(torch.full((count,), PAD, device=self.device).index_put_((alive,), token))
            latest, going = token, (~grammar.done).nonzero()[:, 0]
            if len(going) < 0.9 * len(alive) or not len(going):
                rows = going if how.scale in (0, 1) else torch.cat([going, going + len(alive)])
                cache.keep(rows)
                alive, grammar, latest, condition = alive[going], grammar[going], latest[going], condition[rows]
                guide = None if guide is None else guide[going]
        return torch.stack(columns, 1)

    def _conditions(self, asked: dict[str, Tensor], how: _How) -> Tensor:
        """Embedding of the conditions; with guidance, the rows without conditions follow."""
        shuffled = torch.tensor([scaffold is not None for scaffold in how.scaffolds], device=self.device)
        parts = []
        if how.scale != 0:
            parts.append(self._embedding(asked, len(shuffled), shuffled))
        if how.scale != 1:
            parts.append(self._embedding({}, len(shuffled), shuffled))
        return torch.cat(parts)

    def _logits(self, views: Tensor, condition: Tensor, cache: KeyValueCache, scale: float) -> Tensor:
        """Logits of the next token, with guidance."""
        if scale in (0, 1):
            return self.transformer.following(views, condition, cache)
        named, unnamed = self.transformer.following(views.repeat(2, 1), condition, cache).chunk(2)
        return guided(named, unnamed, scale)

    def _molecules(self, tokens: Tensor) -> Any:
        """Read sequences as a batch of molecules with their SMILES."""
        from lightning_synth.molecules.batch import attach_smiles

        return attach_smiles(self.codec.decode(tokens.cpu()), self._ready_schema()).to(self.device)


@dataclass(frozen=True)
class _How:
    """Sampling options, and the scaffold of every row."""

    temperature: float
    top_k: int | None
    scale: float
    scaffolds: list[Scaffold | None]

    def of(self, rows: Tensor) -> _How:
        """The same for some rows."""
        return replace(self, scaffolds=[self.scaffolds[i] for i in rows.tolist()])


def _draw(logits: Tensor, allowed: Tensor, how: _How, u: Tensor) -> Tensor:
    """Draw an allowed token of every row by inverting the distribution function at u."""
    logits = (logits.double() / how.temperature).masked_fill(~allowed, -torch.inf)
    if how.top_k is not None:
        least = logits.topk(min(how.top_k, logits.shape[1]), dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    edges = logits.softmax(1).cumsum(1)
    token: Tensor = (edges <= u.double()[:, None] * edges[:, -1:]).sum(1)
    return token


def _check_sampling(temperature: float, top_k: int | None, best_of: int) -> None:
    if not temperature > 0 or (top_k is not None and top_k < 1) or best_of < 1:
        raise ConfigError(f"{temperature=} must be positive, {top_k=} at least 1 or None, and {best_of=} at least 1")
