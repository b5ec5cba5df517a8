"""Discrete flow matching for graphs with node and edge types; discrete diffusion on the same network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_synth.averaging import AveragedGenerator
from lightning_synth.conditions import KEEP, check_dropout, check_guidance
from lightning_synth.constraints.base import check_constraint
from lightning_synth.discrete_flow import PosteriorSampler, RateSampler, Sampler, cosine_level, distort, draw, noise
from lightning_synth.errors import ConfigError
from lightning_synth.graphs import Attributes, DenseGraphs, NodeCounts, graph_batch
from lightning_synth.nn import ConditionEmbedding, owned_dropout, sinusoidal
from lightning_synth.plugins.graph.graph_transformer import Belief, GraphTransformer, Pairs, WalkFeatures
from lightning_synth.requests import KeyedRNG, SampleRequests
from lightning_synth.schema import get_domain

if TYPE_CHECKING:
    from lightning_synth.constraints import Constraint

PROCESSES = ("defog", "digress")
PRIORS = ("marginal", "absorbing", "uniform")
#: Entries of n x n matrices sampled at once: 64 graphs of 64 nodes.
_MAX_ENTRIES = 64**3
_DIGRESS_STEPS = 500
#: Time from which on graphs are held to a constraint: 16 of 50 steps of "polydec". Before, much of a graph is noise, as
#: it was in training, and costly to constrain. Much later, the network cannot replace the edges that are refused.
_CONSTRAINED_FROM = 0.9


class DeFoG(AveragedGenerator):
    """Graphs by discrete flow matching (DeFoG, Qin et al. 2025, arXiv 2410.04263).

    Nodes and unordered pairs are categorical variables that are noised independently towards a prior; a graph
    transformer predicts the clean graph; a sampler, an object apart from the network (`lightning_synth.discrete_flow`),
    walks back in few steps. The sampler's settings can be changed after training, for one call
    (``sample(100, num_steps=100, eta=50)``) or for good (`lightning_synth.tuning.tune_sampler`).

    Args:
        process: ``"defog"``, or ``"digress"``: discrete diffusion with marginal transitions (Vignac et al. 2023, arXiv
            2209.14734) on the same network, 500 cosine steps.
        prior: ``"marginal"``: the type frequencies of the training graphs; ``"absorbing"``: the first type ("no edge");
            ``"uniform"``.
        num_layers: Rounds of the graph transformer.
        d_node: Features of a node, a multiple of ``heads``.
        d_edge: Features of a pair.
        d_graph: Features of the graph as a whole.
        heads: Attention heads.
        attention: ``"edge_bias"`` (a number a head), ``"cayley"`` (orthogonal, for deep networks), ``"per_channel"``
            (that of DiGress, slow).
        rrwp_steps: Powers of the random walk among the input features.
        dropout: Share of node features dropped in training.
        self_conditioning: The network also sees its last prediction; in training half of the time, from a pass before.
        edge_loss_weight: Weight of the cross-entropy of pairs; that of nodes has 1.
        train_distortion: Of the training times (`lightning_synth.discrete_flow.distort`).
        num_steps: Steps of the sampler; None is 50, or 500 for ``"digress"``.
        eta: Stochasticity of the sampler.
        omega: Target guidance of the sampler.
        distortion: Of the sampling times.
        guidance_scale: 1: plain conditional sampling; more follows label and conditions more.
        condition_dropout: Share of training graphs whose conditions are hidden.
        lr: Learning rate.
        ema_decay: Of the averaged weights that are sampled from.
        **kwargs: For `Generator`.

    Shapes:
        batch: PyG ``Batch`` with int64 ``x`` (nodes,) and ``edge_attr`` (edges,), or without.

    Sampling options: ``sampler`` (a `Sampler`), or ``num_steps, eta, omega, distortion``; ``guidance_scale``;
    ``constraint`` (`lightning_synth.constraints`), met by every sample and by all graphs on the way from time 0.9 on;
    ``num_nodes`` (a number or one for each row).

    Example:
        >>> from lightning_synth.testing import tiny_schema
        >>> model = DeFoG(schema=tiny_schema("graph"), num_layers=1, d_node=16, d_edge=8, d_graph=8, heads=2)
        >>> model.is_fitted = True
        >>> model.sample(3, seed=0, num_steps=5, num_nodes=[5, 6, 7]).data.ptr.tolist()
        [0, 5, 11, 18]
    """

    domain = "graph"
    conditions = ("label", "*")
    sample_chunk = 512

    prior_x: Tensor
    prior_e: Tensor
    condition: Any
    sizes: Any

    def __init__(
        self,
        *,
        process: str = "defog",
        prior: str = "marginal",
        num_layers: int = 6,
        d_node: int = 128,
        d_edge: int = 64,
        d_graph: int = 64,
        heads: int = 8,
        attention: str = "edge_bias",
        rrwp_steps: int = 12,
        dropout: float = 0.1,
        self_conditioning: bool = False,
        edge_loss_weight: float = 5.0,
        train_distortion: str = "identity",
        num_steps: int | None = None,
        eta: float = 0.0,
        omega: float = 0.0,
        distortion: str = "polydec",
        guidance_scale: float = 1.0,
        condition_dropout: float = 0.1,
        lr: float = 5e-4,
        ema_decay: float = 0.999,
        **kwargs: Any,
    ) -> None:
        if process not in PROCESSES:
            raise ConfigError(f"process {process!r} is not one of {PROCESSES}")
        if prior not in PRIORS:
            raise ConfigError(f"prior {prior!r} is not one of {PRIORS}")
        if min(num_layers, d_node, d_edge, d_graph, heads, rrwp_steps) < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                f"{num_layers=}, {d_node=}, {d_edge=}, {d_graph=}, {heads=} and {rrwp_steps=} must be at least 1, "
                f"{dropout=} in [0, 1)"
            )
        check_dropout(condition_dropout)
        distort(torch.zeros(()), train_distortion)
        RateSampler(num_steps or 1, eta, omega, distortion)
        super().__init__(
            process=process,
            prior=prior,
            num_layers=num_layers,
            d_node=d_node,
            d_edge=d_edge,
            d_graph=d_graph,
            heads=heads,
            attention=attention,
            rrwp_steps=rrwp_steps,
            dropout=dropout,
            self_conditioning=self_conditioning,
            edge_loss_weight=edge_loss_weight,
            train_distortion=train_distortion,
            num_steps=num_steps,
            eta=eta,
            omega=omega,
            distortion=distortion,
            guidance_scale=guidance_scale,
            condition_dropout=condition_dropout,
            lr=lr,
            ema_decay=ema_decay,
            **kwargs,
        )

    def build(self, schema: dict[str, Any]) -> None:
        """Make the network, and room for the priors and the law of sizes."""
        p = self.hparams
        self.node_types = max(int(schema.get("num_node_types") or 0), 1)
        self.edge_types = 1 + max(int(schema.get("num_edge_types") or 0), 1)
        self.max_nodes = int(schema["max_nodes"])
        names = ("num_layers", "d_node", "d_edge", "d_graph", "heads", "attention", "dropout", "self_conditioning")
        self.network = GraphTransformer(
            self.node_types, self.edge_types, **{name: p[name] for name in names}, **self.network_options(schema)
        )
        self.build_conditions(schema)
        self.time = nn.Linear(int(p["d_graph"]) + 2, int(p["d_graph"]))
        self.register_buffer("prior_x", torch.full((self.node_types,), 1 / self.node_types))
        self.register_buffer("prior_e", torch.full((self.edge_types,), 1 / self.edge_types))
        super().build(schema)

    def build_conditions(self, schema: dict[str, Any]) -> None:
        """Make the embedding of conditions, and the laws of what is drawn before and after the graph.

        Args:
            schema: Of the training items.
        """
        self.condition = ConditionEmbedding(schema, int(self.hparams["d_graph"]))
        self.sizes, self.attributes = NodeCounts(schema), Attributes(schema)

    def network_options(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Options of the network that are not hyper-parameters.

        Args:
            schema: Of the training items.
        """
        return {"features": WalkFeatures(int(self.hparams["rrwp_steps"]))}

    def setup(self, stage: str) -> None:
        """Before a fit: count sizes and types."""
        super().setup(stage)
        if stage == "fit":
            self.gather(self.training_items())

    def gather(self, items: Sequence[Any]) -> None:
        """Learn the law of sizes, the priors, and the float attributes of the training graphs.

        Args:
            items: Training graphs.
        """
        self.sizes.fit(items)
        self.attributes.fit(items)
        self.fit_priors(items)

    def fit_priors(self, items: Sequence[Any]) -> None:
        """Set what types are noised towards.

        Args:
            items: Training graphs.
        """
        if self.hparams["prior"] == "marginal":
            nodes, edges = self._type_counts(items)
            self.prior_x.copy_((nodes + 1e-3) / (nodes + 1e-3).sum())
            self.prior_e.copy_((edges + 1e-3) / (edges + 1e-3).sum())
        elif self.hparams["prior"] == "absorbing":
            self.prior_x.copy_(F.one_hot(torch.tensor(0), self.node_types))
            self.prior_e.copy_(F.one_hot(torch.tensor(0), self.edge_types))

    def _type_counts(self, items: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Frequencies of node types, and of edge types over unordered pairs."""
        sizes = torch.tensor([int(item.num_nodes) for item in items], dtype=torch.float64)
        nodes, edges = torch.zeros(self.node_types), torch.zeros(self.edge_types)
        typed_nodes, typed_edges = self.node_types > 1, self.edge_types > 2
        for item in items:
            x = item.x.reshape(-1) if typed_nodes else torch.zeros(int(item.num_nodes), dtype=torch.int64)
            e = item.edge_attr.reshape(-1) if typed_edges else torch.zeros(item.edge_index.shape[1], dtype=torch.int64)
            nodes += torch.bincount(x, minlength=self.node_types)
            edges[1:] += torch.bincount(e, minlength=self.edge_types - 1) / 2
        edges[0] = float((sizes * (sizes - 1) / 2).sum()) - edges.sum()
        return nodes, edges

    # Training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of the clean types, given the noisy graph (DeFoG, eq. 8)."""
        dense = DenseGraphs.from_batch(batch)
        pairs = Pairs(dense.mask)
        x1, e1 = dense.x, pairs.at_upper(dense.e)
        t = self.training_times(len(dense), rng)
        x_t = noise(x1, t[:, None].expand_as(x1), self.prior_x, rng.uniform(x1.shape), rng.uniform(x1.shape))
        e_t = noise(e1, t[pairs.graph], self.prior_e, rng.uniform(e1.shape), rng.uniform(e1.shape))
        condition = self.embed_batch(batch, rng)
        with owned_dropout(rng):
            belief = None
            if self.hparams["self_conditioning"] and bool(rng.fork("belief").bernoulli(0.5)):
                with torch.no_grad():
                    belief = laws(self.denoise(x_t, e_t, t, pairs, condition))
            nodes, edges = self.denoise(x_t, e_t, t, pairs, condition, belief)
        losses = {"edges": F.cross_entropy(edges.float(), e1) if len(pairs) else edges.sum()}
        if self.node_types > 1:
            losses["nodes"] = F.cross_entropy(nodes[dense.mask].float(), x1[dense.mask])
        weighted = self.hparams["edge_loss_weight"] * losses["edges"] + losses.get("nodes", 0.0)
        more = self.more_losses(condition, pairs)
        return {"loss": sum(more.values(), weighted), **losses, **more}

    def more_losses(self, condition: Tensor, pairs: Pairs) -> dict[str, Tensor]:
        """Losses of a subclass beside those of the types.

        Args:
            condition: (graphs, d_graph), embedded conditions.
            pairs: Of the clean graphs.
        """
        return {}

    def embed_batch(self, batch: Any, rng: KeyedRNG) -> Tensor:
        """Embed the conditions of training graphs, some of them hidden.

        Args:
            batch: Of the DataModule.
            rng: Scalar-seeded.

        Returns:
            (graphs, d_graph).
        """
        condition = get_domain(self._ready_schema()).conditions(batch, self._ready_schema())
        condition[KEEP] = rng.uniform((int(batch.num_graphs),)) >= self.hparams["condition_dropout"]
        embedded: Tensor = self.condition(condition, int(batch.num_graphs))
        return embedded

    def embed_requests(self, requests: SampleRequests) -> tuple[Tensor, Tensor]:
        """Embed what is asked for, and that nothing is.

        Args:
            requests: Rows wanted.

        Returns:
            Twice (rows, d_graph).
        """
        asked = self.condition(requests.condition, len(requests))
        return asked, torch.zeros_like(asked)

    def denoise(
        self, x: Tensor, e: Tensor, t: Tensor, pairs: Pairs, condition: Tensor, belief: Belief | None = None
    ) -> Belief:
        """Predict the clean types.

        Args:
            x: int64 (graphs, n), noisy node types.
            e: int64 (pairs,), noisy edge types.
            t: (graphs,), times.
            pairs: Of the graphs.
            condition: (graphs, d_graph), embedded conditions.
            belief: The last prediction, if there is one.

        Returns:
            Logits (graphs, n, node types) and (pairs, edge types).
        """
        size = pairs.mask.sum(1) / self.max_nodes
        known = torch.cat([sinusoidal(1000 * t, int(self.hparams["d_graph"])), t[:, None], size[:, None]], 1)
        logits: Belief = self.network(x, e, self.time(known) + condition, pairs, belief)
        return logits

    def training_times(self, n: int, rng: KeyedRNG) -> Tensor:
        """Draw times in [0, 1], (n,), one in each of n equal parts: less variance than n free draws."""
        u = (rng.permutation(n) + rng.uniform((n,))) / n
        if self.hparams["process"] == "defog":
            return distort(u, self.hparams["train_distortion"])
        step = (u * _DIGRESS_STEPS).floor() + 1
        levels = torch.tensor([cosine_level(s / _DIGRESS_STEPS) for s in range(_DIGRESS_STEPS + 1)], device=u.device)
        return levels[step.long().clamp(max=_DIGRESS_STEPS)]

    # Sampling ------------------------------------------------------------------------------------------------------

    @property
    def sampler(self) -> Sampler:
        """The sampler that the hyper-parameters describe."""
        p = self.hparams
        if p["process"] == "digress":
            return PosteriorSampler(p["num_steps"] or _DIGRESS_STEPS)
        return RateSampler(p["num_steps"] or 50, p["eta"], p["omega"], p["distortion"])

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
    ) -> Any:
        """Walk from the prior to graphs, those of like size together; options as in the class docstring."""
        given = {"num_steps": num_steps, "eta": eta, "omega": omega, "distortion": distortion}
        sampler = sampler or self._sampler_with({name: value for name, value in given.items() if value is not None})
        scale = float(self.hparams["guidance_scale"] if guidance_scale is None else guidance_scale)
        check_guidance(scale, float(self.hparams["condition_dropout"]))
        check_constraint(constraint, self.max_nodes)
        counts = self._counts(requests, rng, num_nodes)
        batch = self.walk(requests, rng, counts, sampler, scale, constraint=constraint)
        return self.attributes.attach(batch, requests, rng)

    def walk(
        self,
        requests: SampleRequests,
        rng: KeyedRNG,
        counts: Tensor,
        sampler: Sampler,
        guidance_scale: float,
        *,
        constraint: Constraint | None = None,
        known: Known | None = None,
        start: DenseGraphs | None = None,
        since: float = 0.0,
    ) -> Any:
        """Walk to graphs, those of like size together.

        Args:
            requests: One row a graph.
            rng: One seed a row.
            counts: int64 (rows,), sizes.
            sampler: Says how.
            guidance_scale: 0 ignores the conditions, 1 follows them plainly.
            constraint: That every graph must meet.
            known: What the graphs must contain.
            start: Noisy graphs to start from; None draws them from the prior.
            since: Time of ``start``.

        Returns:
            PyG ``Batch``.
        """
        x = torch.zeros(len(requests), self.max_nodes, dtype=torch.int64, device=self.device)
        found = []
        with self.averaged_weights():
            conditions = self.embed_requests(requests)
            for rows in _like_sizes(counts):
                part = tuple(embedded[rows] for embedded in conditions)
                walk = Walk(self, rng[rows], counts[rows], part, guidance_scale, constraint, known and known[rows])
                nodes, edges = walk.run(sampler, start and start[rows], since)
                x[rows, : walk.pairs.n] = nodes
                there, pairs = edges > 0, walk.pairs
                ends = torch.stack([pairs.row, pairs.col, rows[pairs.graph], edges - 1])
                found.append(ends[:, there])
        row, col, owner, kind = torch.cat(found, 1)
        schema, real = self._ready_schema(), torch.arange(self.max_nodes, device=self.device) < counts[:, None]
        return graph_batch(
            counts,
            torch.stack([row, col]),
            owner,
            x=x[real] if schema.get("num_node_types") else None,
            edge_attr=kind if schema.get("num_edge_types") else None,
        )

    def _sampler_with(self, changes: dict[str, Any]) -> Sampler:
        sampler = self.sampler
        if wrong := changes.keys() - vars(sampler).keys():
            raise ConfigError(f"{type(sampler).__name__} has no setting {', '.join(sorted(wrong))}")
        return type(sampler)(**{**vars(sampler), **changes})

    def _counts(
        self, requests: SampleRequests, rng: KeyedRNG, num_nodes: int | Sequence[int] | Tensor | None
    ) -> Tensor:
        """Sizes asked for (row i gets entry i modulo their number), or drawn."""
        if num_nodes is None:
            drawn: Tensor = self.sizes.draw(requests, rng)
            return drawn
        values = torch.as_tensor(num_nodes, device=self.device).long().reshape(-1)
        if int(values.min()) < 1 or int(values.max()) > self.max_nodes:
            raise ConfigError(
                f"num_nodes must lie in 1..{self.max_nodes}, the largest training graph: got {int(values.min())} to "
                f"{int(values.max())}"
            )
        return values[requests.index % len(values)]


@dataclass(frozen=True)
class Known:
    """The part of each graph that is given (inpainting), at the padding of the largest graph.

    Args:
        x: int64 (graphs, n), node types.
        e: int64 (graphs, n, n), edge types; 0 is no edge.
        fixed_x: bool (graphs, n), True where ``x`` is given.
        fixed_e: bool (graphs, n, n), True where ``e`` is given, be it that there is no edge.
    """

    x: Tensor
    e: Tensor
    fixed_x: Tensor
    fixed_e: Tensor

    def __getitem__(self, rows: Tensor) -> Known:
        """Return some rows."""
        return Known(self.x[rows], self.e[rows], self.fixed_x[rows], self.fixed_e[rows])


def laws(logits: Belief) -> Belief:
    """Turn logits of node and edge types into probabilities."""
    return logits[0].float().softmax(-1), logits[1].float().softmax(-1)


class Walk:
    """Graphs of like size on their way from the prior to the data.

    Draws are laid out for the largest possible graph, so that they do not depend on who else is in the batch.

    Args:
        model: That predicts.
        rng: One seed a row.
        counts: int64 (graphs,), sizes.
        conditions: Of `DeFoG.embed_requests`.
        guidance_scale: 0 ignores the conditions, 1 follows them plainly.
        constraint: That every graph must meet.
        known: What each graph must contain.
    """

    def __init__(
        self,
        model: DeFoG,
        rng: KeyedRNG,
        counts: Tensor,
        conditions: tuple[Tensor, ...],
        guidance_scale: float,
        constraint: Constraint | None = None,
        known: Known | None = None,
    ) -> None:
        self.model, self.rng, self.scale, self.constraint = model, rng, guidance_scale, constraint
        mask = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]
        self.mask, self.pairs = mask, Pairs(mask)
        self.asked, self.free = conditions if guidance_scale else (conditions[1], conditions[1])
        self.guided = guidance_scale != 1.0 and not torch.equal(self.asked, self.free)
        total, row, col = model.max_nodes, self.pairs.row, self.pairs.col
        self.place = row * (2 * total - row - 1) // 2 + col - row - 1
        self._fix(known)

    def _fix(self, known: Known | None) -> None:
        """Lay out which variables are given, and their values."""
        pairs, mask = self.pairs, self.mask
        self.fixed_x, self.value_x = torch.zeros_like(mask), torch.zeros_like(mask, dtype=torch.int64)
        self.fixed_e, self.value_e = torch.zeros_like(pairs.graph, dtype=torch.bool), torch.zeros_like(pairs.graph)
        if known is not None:
            n = pairs.n
            self.fixed_x, self.value_x = known.fixed_x[:, :n], known.x[:, :n]
            self.fixed_e, self.value_e = pairs.at_upper(known.fixed_e[:, :n, :n]), pairs.at_upper(known.e[:, :n, :n])

    def run(self, sampler: Sampler, start: DenseGraphs | None = None, since: float = 0.0) -> tuple[Tensor, Tensor]:
        """Walk to the data.

        Args:
            sampler: Says how.
            start: Noisy graphs to start from; None draws them from the prior.
            since: Time of ``start``.

        Returns:
            Node types (graphs, n) and edge types (pairs,).
        """
        model, times = self.model, [since, *(t for t in sampler.times() if t > since)]
        p_x, p_e = model.prior_x.expand(*self.mask.shape, -1), model.prior_e.expand(len(self.pairs), -1)
        if start is None:
            x, e = self._draw(p_x, p_e, 0)
        else:
            x, e = start.x[:, : self.pairs.n], self.pairs.at_upper(start.e[:, : self.pairs.n, : self.pairs.n])
        belief, constrained = None, torch.zeros_like(e)
        for step, (t, t_next) in enumerate(pairwise(times), start=1):
            p_x, p_e = law_x, law_e = belief = self.predict(x, e, t, belief)
            if t_next < 1:
                law_x = sampler.step(p_x, x, t, t_next, model.prior_x)
                law_e = sampler.step(p_e, e, t, t_next, model.prior_e)
            x, e = self._draw(law_x, law_e, step)
            if t_next >= _CONSTRAINED_FROM:
                e = constrained = self._project(constrained, e, p_e, step)
        return x.masked_fill(~self.mask, 0), self._complete(e, p_e)

    def predict(self, x: Tensor, e: Tensor, t: float, belief: Belief | None) -> Belief:
        """Laws of the clean types; with guidance p ~ p_cond^w p_uncond^(1 - w), in the last step too."""
        logits = self._logits(x, e, t, self.asked, belief)
        if self.guided:
            free = self._logits(x, e, t, self.free, belief)
            logits = free[0] + self.scale * (logits[0] - free[0]), free[1] + self.scale * (logits[1] - free[1])
        p_x, p_e = laws(logits)
        p_x = torch.where(self.fixed_x[..., None], F.one_hot(self.value_x, p_x.shape[-1]), p_x)
        return p_x, torch.where(self.fixed_e[:, None], F.one_hot(self.value_e, p_e.shape[-1]), p_e)

    def _logits(self, x: Tensor, e: Tensor, t: float, condition: Tensor, belief: Belief | None) -> Belief:
        times = torch.full((len(x),), t, device=x.device)
        nodes, edges = self.model.denoise(x, e, times, self.pairs, condition, belief)
        return nodes.float().log_softmax(-1), edges.float().log_softmax(-1)

    def _draw(self, law_x: Tensor, law_e: Tensor, step: int) -> tuple[Tensor, Tensor]:
        e = torch.where(self.fixed_e, self.value_e, draw(law_e, self._uniform("pairs", step)))
        if self.model.node_types == 1:
            return torch.zeros_like(self.mask, dtype=torch.int64), e
        v = self.rng.fork("nodes").uniform((self.model.max_nodes,), step=step)[:, : self.pairs.n]
        return torch.where(self.fixed_x, self.value_x, draw(law_x, v).masked_fill(~self.mask, 0)), e

    def _uniform(self, stream: str, step: int) -> Tensor:
        """A uniform number for each pair, (pairs,)."""
        total = self.model.max_nodes
        u = self.rng.fork(stream).uniform((max(total * (total - 1) // 2, 1),), step=step)
        return u[self.pairs.graph, self.place]

    def _project(self, old: Tensor, new: Tensor, p: Tensor, step: int) -> Tensor:
        """Refuse new edges that break the constraint."""
        if self.constraint is None:
            return new
        from lightning_synth.constraints import project

        kept, proposed, dense = (old > 0) & (new > 0), (old == 0) & (new > 0), self.pairs.dense
        allowed = project(self.constraint, dense(kept), dense(proposed), dense(self._score(p, step)), self.mask)
        return torch.where(self.pairs.at_upper(allowed), new, 0)

    def _complete(self, e: Tensor, p: Tensor) -> Tensor:
        """Add the edges that the constraint demands, with their likeliest type; drop those that stand against it."""
        if self.constraint is None:
            return e
        from lightning_synth.constraints import complete

        dense = self.pairs.dense
        done = complete(self.constraint, dense(e > 0), dense(self._score(p, -1)), self.mask)
        kind = torch.where(e > 0, e, p[:, 1:].argmax(-1) + 1)
        return torch.where(self.pairs.at_upper(done), kind, 0)

    def _score(self, p: Tensor, step: int) -> Tensor:
        """Order of insertion: log odds plus logistic noise of the row's own, so that like pairs have like chances."""
        u = self._uniform("order", step).clamp(1e-7, 1 - 1e-7)
        return torch.logit(1 - p[:, 0], eps=1e-6) + torch.logit(u)


def _like_sizes(counts: Tensor) -> Iterator[Tensor]:
    """Rows in parts of like size, so that little is computed for padding and memory is bounded."""
    order = counts.argsort(stable=True, descending=True)
    while len(order):
        size = max(1, _MAX_ENTRIES // max(int(counts[order[0]]) ** 2, 1))
        yield order[:size]
        order = order[size:]
