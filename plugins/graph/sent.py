"""A small language model of graphs: random walks over induced subgraphs as sequences, and a causal transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_synth.conditions import KEEP, check_guidance
from lightning_synth.constraints import Constraint
from lightning_synth.constraints.base import check_constraint
from lightning_synth.decoder import Decoder, KeyValueCache
from lightning_synth.diffusion import rows_for
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.graphs import Attributes, DenseGraphs
from lightning_synth.holdout import HeldOutGenerator, row_keys
from lightning_synth.items import evenly_spaced
from lightning_synth.nn import ConditionEmbedding, owned_dropout
from lightning_synth.plugins.graph.sent_tokens import CLOSE, EOS, PAD, RESET, ROOM, Grammar, SentTokens
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.schema import get_domain

# Fewer training graphs than this cannot spare any.
_MAX_MEASURED = 1024
#: Numbers in the caches of keys and values of rows that are sampled at once.
_CACHED = 1 << 28
#: Tokens outside the top k come after all inside, but before none at all: a constraint may refuse every one of the k.
_UNLIKELY = 1e4


class GraphLanguageModel(nn.Module):
    """Decoder-only transformer over tokens; the condition is added to every input.

    Args:
        tokens: Size of the vocabulary.
        dim: Features.
        depth: Blocks.
        heads: Attention heads; ``dim`` is a multiple of twice their number.
        dropout: Of attention weights.
    """

    def __init__(self, tokens: int, dim: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embed, self.start = nn.Embedding(tokens, dim), nn.Parameter(torch.randn(dim))
        self.decoder, self.out = Decoder(dim, depth, heads, dropout), nn.Linear(dim, tokens)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Return logits (rows, length, tokens) of every token given those before it.

        Args:
            tokens: int64 (rows, length).
            condition: (rows, dim).
        """
        start = self.start.expand(len(tokens), 1, -1)
        x = torch.cat([start, self.embed(tokens[:, :-1])], dim=1) + condition[:, None]
        out: Tensor = self.out(self.decoder(x))
        return out

    def following(self, token: Tensor | None, condition: Tensor, cache: KeyValueCache) -> Tensor:
        """Return logits (rows, tokens) of the next token.

        Args:
            token: int64 (rows,), the latest one; None at the start.
            condition: (rows, dim).
            cache: Of the positions before; it takes in this one.
        """
        x = (self.start if token is None else self.embed(token)) + condition
        out: Tensor = self.out(self.decoder.step(x, cache))
        return out


class Guard:
    """Refuses tokens after which a constraint could not be met.

    Args:
        constraint: On the finished graph.
        grammar: Of the sequences.
    """

    def __init__(self, constraint: Constraint, grammar: Grammar) -> None:
        self.connects = constraint.connects
        self.trackers = [constraint.tracker(grammar.codec.max_nodes) for _ in grammar.state]

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows."""
        self.trackers = [self.trackers[i] for i in rows.tolist()]

    def choose(self, score: Tensor, grammar: Grammar) -> Tensor:
        """Return the token of each row with the highest score that the constraint allows.

        Args:
            score: (rows, tokens), -inf for what the grammar does not allow.
            grammar: State of the sequences.
        """
        token: list[int] = score.argmax(1).tolist()
        for i, state in enumerate(self._states(grammar)):
            while not self._admits(i, token[i], grammar, *state):
                score[i, token[i]] = -torch.inf
                # Brackets that have been opened, with no node left to stand in them, stay empty.
                token[i] = int(score[i].argmax()) if bool((score[i] > -torch.inf).any()) else CLOSE
        return torch.tensor(token, device=score.device)

    @staticmethod
    def _states(grammar: Grammar) -> Iterator[tuple[int, int]]:
        return zip(grammar.state.tolist(), grammar.nodes.tolist(), strict=True)

    def _admits(self, i: int, token: int, grammar: Grammar, state: int, nodes: int) -> bool:
        codec, allows, here = grammar.codec, self.trackers[i].allows, nodes - 1
        if token == RESET:
            return not self.connects or any(allows(nodes, node) for node in reversed(range(nodes)))
        if codec.first_node <= token < codec.first_node_type and state >= grammar.OPENED:
            return allows(here, token - codec.first_node)
        step = token >= codec.first_edge_type if codec.edge_types else token == codec.first_node + nodes
        return not step or state not in (grammar.NODE, grammar.SHUT) or allows(here, nodes)

    def add(self, token: Tensor, grammar: Grammar) -> None:
        """Note the edges that tokens make.

        Args:
            token: int64 (rows,).
            grammar: State before them.
        """
        first, after = grammar.codec.first_node, grammar.codec.first_node_type
        for tracker, t, (state, nodes) in zip(self.trackers, token.tolist(), self._states(grammar), strict=True):
            if first <= t < after and nodes and state != grammar.FRESH:
                tracker.add(nodes - 1, t - first)


class SENT(HeldOutGenerator):
    """Graphs as sequences, learned by a small causal transformer.

    Chen et al. 2025, "Flatten Graphs as Sequences: Transformers are Scalable Graph Generators", arXiv 2502.02216.

    Every epoch writes each graph along a new random walk (`SentTokens`); samples are drawn token by token, under a
    grammar that lets every sequence end as a graph. Cost grows with nodes + edges, not with the square of the nodes.
    Node and edge types are tokens; float features are drawn from training nodes of the same degree (`Attributes`).
    The number of nodes is learned as well; with few graphs of many sizes it is better told, as a condition of the data
    (``GraphDataModule(..., conditions={"nodes": lambda graph: float(graph.num_nodes)})``).

    Args:
        d_model: Features.
        depth: Transformer blocks.
        heads: Attention heads; ``d_model`` is a multiple of twice their number.
        attention_dropout: Share of attention weights dropped in training; the paper has 0.5 in long ones.
        max_length: Longest sequence; None: one and a half times the longest one of the training graphs. Longer graphs
            teach their first nodes only, and samples end in time.
        temperature: Divides the logits; below 1 samples are more typical and less varied.
        top_k: Draw from the k most likely tokens only; None: from all.
        guidance_scale: 1: plain conditional sampling; more extrapolates from the unconditional model (Ho & Salimans
            2022, eq. 6).
        condition_dropout: Share of training graphs whose conditions are hidden, for guidance.
        holdout: Share of the training graphs (of 50 or more) that is not trained on (`HeldOutGenerator`).
        ema_decay: Decay of the averaged weights used for sampling.
        lr: Peak learning rate; it warms up linearly and decays by a cosine over the Trainer's budget.
        **kwargs: ``schema``, ``seed``, ``patience``.

    Sampling options (keywords of ``sample``): ``temperature, top_k, guidance_scale`` override the above.
    ``constraint`` is a `Constraint`, which every sample then satisfies. ``prompt`` is a graph, or a list of graphs
    (row i takes ``prompt[i % len(prompt)]``): the first nodes of the sample, with all edges between them.

    Shapes:
        batch: PyG ``Batch``; optional label ``y`` and continuous conditions, (graphs,).

    Example:
        >>> from lightning_synth.testing import tiny_schema
        >>> model = SENT(schema=tiny_schema("graph"), d_model=16, depth=1, heads=2)
        >>> model.codec.size
        14
    """

    domain = "graph"
    conditions = ("label", "*")
    min_for_holdout = 50

    def __init__(
        self,
        *,
        d_model: int = 128,
        depth: int = 6,
        heads: int = 4,
        attention_dropout: float = 0.0,
        max_length: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        guidance_scale: float = 1.0,
        condition_dropout: float = 0.1,
        holdout: float = 0.1,
        ema_decay: float = 0.995,
        lr: float = 2e-3,
        **kwargs: Any,
    ) -> None:
        if min(d_model, depth, heads) < 1 or d_model % (2 * heads):
            raise ConfigError(f"{d_model=} must be a multiple of twice {heads=}, and {depth=} at least 1")
        for name, share in (("attention_dropout", attention_dropout), ("condition_dropout", condition_dropout)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {share}")
        if max_length is not None and max_length < 2 * ROOM:
            raise ConfigError(f"max_length must be at least {2 * ROOM}, got {max_length}")
        _check_sampling(temperature, top_k)
        super().__init__(
            d_model=d_model,
            depth=depth,
            heads=heads,
            attention_dropout=attention_dropout,
            max_length=max_length,
            temperature=temperature,
            top_k=top_k,
            guidance_scale=guidance_scale,
            condition_dropout=condition_dropout,
            holdout=holdout,
            ema_decay=ema_decay,
            lr=lr,
            **kwargs,
        )

    limit: Tensor

    def build(self, schema: dict[str, Any]) -> None:
        """Make vocabulary, transformer and the embedding of conditions."""
        p = self.hparams
        self.codec = SentTokens(schema)
        self.transformer = GraphLanguageModel(self.codec.size, p.d_model, p.depth, p.heads, p.attention_dropout)
        self.condition = ConditionEmbedding(schema, p.d_model)
        self.attributes = Attributes(schema)
        self.register_buffer("limit", torch.tensor(p.max_length or self.codec.longest() + ROOM))
        super().build(schema)

    # Training ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Before a fit: measure the sequences, keep attributes, and hold some graphs out."""
        super().setup(stage)
        if stage != "fit":
            return
        items = self.training_items()
        self.attributes.fit(items)
        if self.hparams.max_length is None:
            longest = max(self._lengths(items))
            self.limit.fill_(min(longest + longest // 2, self.codec.longest()) + ROOM)
        _, held = self.hold_out(items)
        if held:
            self.held_keys = self._keys(DenseGraphs.from_batch(self.collated(items, held), self.codec.max_nodes))

    def _lengths(self, items: Sequence[Any]) -> Iterator[int]:
        """Longest sequence of every few training graphs."""
        rows = evenly_spaced(list(range(len(items))), _MAX_MEASURED)
        for start in range(0, len(rows), 64):
            graphs = DenseGraphs.from_batch(self.collated(items, rows[start : start + 64]))
            yield self.codec.encode(graphs, KeyedRNG(0, device=self.device).uniform(graphs.mask.shape))[0].shape[1]

    @staticmethod
    def _keys(graphs: DenseGraphs) -> Tensor:
        """Key of each graph's content; graphs have to be padded to one size."""
        return row_keys(torch.cat([graphs.e.flatten(1), graphs.x, graphs.mask.long()], dim=1))

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of every token given those before it and the conditions."""
        graphs, schema = DenseGraphs.from_batch(batch), self._ready_schema()
        condition = get_domain(schema).conditions(batch, schema)
        if self.training and len(self.held_keys):
            padded = DenseGraphs.from_batch(batch, self.codec.max_nodes)
            stays = ~torch.isin(self._keys(padded), self.held_keys.to(self.device))
            stays[0] |= ~stays.any()
            graphs, condition = graphs[stays], {name: value[stays] for name, value in condition.items()}
        condition[KEEP] = rng.fork("keep").uniform((len(graphs),)) >= self.hparams.condition_dropout
        tokens, _ = self.codec.encode(graphs, rng.fork("walk").uniform(graphs.mask.shape))
        tokens = tokens[:, : int(self.limit)]
        with owned_dropout(rng):
            logits = self.transformer(tokens, self.condition(condition, len(tokens)))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=PAD)}

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
        constraint: Constraint | None = None,
        prompt: Any = None,
    ) -> Any:
        """Draw sequences token by token and read them as graphs; options as in the class docstring."""
        p = self.hparams
        temperature, top_k = p.temperature if temperature is None else temperature, p.top_k if top_k is None else top_k
        _check_sampling(temperature, top_k)
        scale = float(p.guidance_scale if guidance_scale is None else guidance_scale)
        check_guidance(scale, float(p.condition_dropout))
        check_constraint(constraint, self.codec.max_nodes)
        how = _How(temperature, top_k, scale if requests.condition else 1.0, constraint)
        given = None if prompt is None else self._given(prompt, requests, constraint)
        start, order = self._opening(given, rng.fork("prompt")) if given is not None else (None, None)
        cached = int(self.limit) * int(p.d_model) * int(p.depth) * 2
        rows = torch.arange(len(requests), device=rng.device)
        with self.averaged_weights():
            tokens = [
                self._tokens(requests[part], rng.fork("tokens")[part], how, None if start is None else start[part])
                for part in rows.split(max(16, _CACHED // cached))
            ]
        batch = self.attributes.attach(self.codec.decode(torch.cat(tokens), order), requests, rng.fork("attributes"))
        if given is not None and self.attributes.node_width:
            batch.x[(batch.ptr[:-1] - given.ptr[:-1])[given.batch] + torch.arange(len(given.x)).to(rng.device)] = (
                given.x
            )
        return batch

    def _given(self, prompt: Any, requests: SampleRequests, constraint: Constraint | None) -> Any:
        """The graph that each row starts with."""
        from lightning_synth.schema import validate

        schema, items = self._ready_schema(), _prompts(prompt)
        validate(items, schema)
        for i, item in enumerate(items):
            if item.num_nodes > self.codec.max_nodes:
                raise DataError(
                    f"prompt {i} has {item.num_nodes} nodes, training graphs at most {self.codec.max_nodes}"
                )
            for field, kinds in (("x", "node"), ("edge_attr", "edge")):
                if schema.get(f"num_{kinds}_types") and item.get(field) is None:
                    raise DataError(f"prompt {i} has no {field}, but graphs have {kinds} types")
            if constraint is not None:
                adjacency = DenseGraphs.from_batch(self.collated([item], [0])).e[0] > 0
                if not constraint.holds(adjacency.cpu().numpy()):
                    raise ConfigError(f"prompt {i} does not satisfy {constraint!r}: nothing can be added to mend it")
        return rows_for(items, requests, schema)

    def _opening(self, given: Any, rng: KeyedRNG) -> tuple[Tensor, Tensor]:
        """Sequences of the given graphs without their end, and the numbers that nodes in order of appearance have."""
        graphs = DenseGraphs.from_batch(given, self.codec.max_nodes)
        tokens, order = self.codec.encode(graphs, rng.uniform((self.codec.max_nodes,)))
        if tokens.shape[1] + ROOM > int(self.limit):
            raise ConfigError(f"a prompt takes {tokens.shape[1]} tokens; max_length={int(self.limit)} leaves no room")
        order = torch.where(graphs.mask, order, torch.arange(order.shape[1], device=order.device))
        return torch.where(tokens == EOS, PAD, tokens), order

    def _tokens(self, requests: SampleRequests, rng: KeyedRNG, how: _How, start: Tensor | None) -> Tensor:
        """Draw sequences, (rows, limit)."""
        count, limit = len(requests), int(self.limit)
        connected = how.constraint is not None and how.constraint.connects
        grammar = Grammar(self.codec, count, limit, connected, self.device)
        guard = None if how.constraint is None else Guard(how.constraint, grammar)
        condition, cache, token = self._embedding(requests, how.scale), KeyValueCache(), None
        alive, drawn = torch.arange(count, device=self.device), grammar.state.new_full((count, limit), PAD)
        for t in range(limit):
            logits = self._logits(token, condition, cache, how.scale)
            score = _score(logits, grammar.allowed(), how, rng[alive].uniform((self.codec.size,), step=t))
            token = score.argmax(1) if guard is None else guard.choose(score, grammar)
            if start is not None and t < start.shape[1]:
                token = torch.where(start[alive, t] == PAD, token, start[alive, t])
            if guard is not None:
                guard.add(token, grammar)
            grammar.advance(token)
            if start is not None:
                # The nodes of a prompt get no more edges between them.
                grammar.close((start[alive] != PAD).sum(1) == t + 1)
            drawn[alive, t] = token
            going = (grammar.state != grammar.DONE).nonzero()[:, 0]
            if not len(going):
                break
            if len(going) < 0.75 * len(alive):
                rows = going if how.scale == 1 else torch.cat([going, going + len(alive)])
                cache.keep(rows)
                alive, grammar, token, condition = alive[going], grammar[going], token[going], condition[rows]
                if guard is not None:
                    guard.keep(going)
        return drawn

    def _embedding(self, requests: SampleRequests, scale: float) -> Tensor:
        """Embedding of the conditions; with guidance, the rows without conditions follow."""
        rows = len(requests)
        condition = self.condition(requests.condition, rows)
        return condition if scale == 1 else torch.cat([condition, torch.zeros_like(condition)])

    def _logits(self, token: Tensor | None, condition: Tensor, cache: KeyValueCache, scale: float) -> Tensor:
        """Logits of the next token, with guidance."""
        if scale == 1:
            return self.transformer.following(token, condition, cache)
        token = None if token is None else token.repeat(2)
        named, unnamed = self.transformer.following(token, condition, cache).chunk(2)
        return unnamed + scale * (named - unnamed)


@dataclass(frozen=True)
class _How:
    """Sampling options."""

    temperature: float
    top_k: int | None
    scale: float
    constraint: Constraint | None


def _score(logits: Tensor, allowed: Tensor, how: _How, u: Tensor) -> Tensor:
    """Perturbed log-probabilities, whose maximum is a draw from the allowed tokens (Gumbel 1954)."""
    logits = torch.where(allowed, logits.float() / how.temperature, -torch.inf)
    if how.top_k is not None:
        least = logits.topk(min(how.top_k, logits.shape[1]), dim=1).values[:, -1:]
        logits = torch.where(logits < least, logits - _UNLIKELY, logits)
    return logits - u.clamp(min=2**-25).log().neg().log()


def _prompts(prompt: Any) -> list[Any]:
    """The prompt as a list of PyG ``Data``."""
    batch = prompt.to_data_list() if hasattr(prompt, "to_data_list") else prompt
    items = list(batch) if isinstance(batch, (list, tuple)) else [batch]
    for item in items:
        if not hasattr(item, "edge_index"):
            raise DataError(
                f"a prompt is a PyG Data, a list of them or a Batch, got {type(item).__name__}; "
                "see lightning_synth.networkx.from_networkx"
            )
    return items


def _check_sampling(temperature: float, top_k: int | None) -> None:
    if temperature <= 0 or (top_k is not None and top_k < 1):
        raise ConfigError(f"{temperature=} must be positive, {top_k=} at least 1 or None")
