"""CELL: a low-rank random walk model of a graph, trained with a block-wise softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_synth.errors import ConfigError
from lightning_synth.plugins.graph.likeness import SameNodes
from lightning_synth.plugins.graph.pairs import race
from lightning_synth.requests import KeyedRNG

#: Entries of W computed at a time.
_BLOCK = 1 << 20
#: The stationary distribution has settled when a step changes it by less than this (total variation).
_SETTLED, _MOST_STEPS = 1e-4, 50

#: Nodes of the rows (graphs, r) and columns (graphs, n) of a block of W, and which of each are no padding.
Block = tuple[Tensor, Tensor, Tensor, Tensor]


class CELL(SameNodes):
    """Cross-entropy low-rank logits (Rendsburg, Heidrich & von Luxburg 2020): NetGAN without the GAN.

    The steps of a random walk on a graph are modelled by P = softmax of the rows of W, where W = U V^T has rank
    ``rank``, by maximum likelihood over the edges. A sample draws as many edges as the training graph has, without
    replacement, in proportion to how often the walk P takes them, one for every linked node first. The rank and the
    number of steps decide how much is learned by heart; `target_overlap` stops in time.

    Every step uses all training graphs, whatever the batch; nodes of a graph only compete with each other. Work is
    quadratic in the nodes of a graph, memory linear.

    Args:
        rank: Of the logits W.
        target_overlap: Stop training when samples have this share of edges in common with their training graph, beyond
            what a random graph of its density would have; None never stops.
        check_every: Steps between two looks at the overlap.
        weight_decay: Of Adam.
        lr: Learning rate of Adam.
        **kwargs: For `Generator`.

    Attributes:
        edge_overlap: Share of the edges of samples that are edges of their training graph.

    Source:
        Rendsburg et al., NetGAN without GAN, ICML 2020 (PMLR 119:8073): eq. 2 for the loss, section 3.3 for sampling.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> from lightning_synth.testing.case import quiet_trainer
        >>> model, data = CELL(rank=4), tiny_datamodule("graph")
        >>> quiet_trainer(max_steps=20).fit(model, data)
        >>> model.sample(3, seed=0).data.num_graphs
        3
    """

    log_rate: Tensor

    def __init__(
        self,
        *,
        rank: int = 9,
        target_overlap: float | None = 0.5,
        check_every: int = 5,
        weight_decay: float = 1e-7,
        lr: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if rank < 1 or check_every < 1:
            raise ConfigError(f"rank and check_every must be at least 1, got {rank} and {check_every}")
        if target_overlap is not None and not 0 < target_overlap <= 1:
            raise ConfigError(f"target_overlap must lie in (0, 1] or be None, got {target_overlap}")
        super().__init__(
            rank=rank,
            target_overlap=target_overlap,
            check_every=check_every,
            weight_decay=weight_decay,
            lr=lr,
            **kwargs,
        )

    def build(self, schema: dict[str, Any]) -> None:
        """Make a row of U and a row of V for every training node."""
        super().build(schema)
        shape = (len(self.degree), int(self.hparams["rank"]))
        self.leave = nn.Parameter(torch.randn(shape) * shape[1] ** -0.5)
        self.enter = nn.Parameter(torch.randn(shape) * shape[1] ** -0.5)
        self.register_buffer("log_rate", torch.zeros(shape[0]))

    def configure_optimizers(self) -> Any:
        """Return Adam, as the paper."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"])

    # Training ------------------------------------------------------------------------------------------------------

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        """Cross-entropy of the steps along the edges of all training graphs, mean over edges and directions (eq. 2).

        Args:
            batch: Not used: every step is over all training graphs.
            rng: Not used.
        """
        source, target = self.training_edges.edges
        if not len(source):
            return {"loss": 0.0 * (self.leave.sum() + self.enter.sum())}
        taken = (self.leave[source] * self.enter[target]).sum(1)
        return {"loss": (self.normalizer()[source] - taken).mean()}

    def normalizer(self) -> Tensor:
        """Return the logarithm of the sum of exp(W_ij) over the nodes j of the graph of i, (nodes,)."""
        value: Tensor = _Normalizer.apply(self.leave, self.enter, self.blocks)  # type: ignore[no-untyped-call]
        return value

    def blocks(self) -> Iterator[Block]:
        """Cut the matrices of all graphs into blocks: graphs of like size together, large ones by rows.

        Yields:
            Node of each row (graphs, r) and of each column (graphs, n), and which of them are no padding.
        """
        device = self.num_nodes.device
        size, order = self.num_nodes.sort(descending=True)
        start = (self.num_nodes.cumsum(0) - self.num_nodes)[order]
        begin = 0
        while begin < len(order):
            n = int(size[begin])
            graphs = slice(begin, begin + max(_BLOCK // max(n * n, 1), 1))
            begin = graphs.stop
            place = torch.arange(n, device=device)
            real = place < size[graphs, None]
            nodes = torch.where(real, start[graphs, None] + place, start[graphs, None])
            for rows in place.split(max(_BLOCK // max(n * len(nodes), 1), 1)):
                yield nodes[:, rows], nodes, real[:, rows], real

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop when samples have enough in common with the training graphs."""
        target, every = self.hparams["target_overlap"], self.hparams["check_every"]
        if target is None or (self.steps_taken + 1) % every:
            return
        overlap = self.measure_overlap()
        chance = float(self.chance_overlap)
        if overlap >= chance + target * (1 - chance):
            self.trainer.should_stop = True

    # Sampling ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Find the stationary distribution pi of the walk; keep log pi_i - log sum_j exp(W_ij)."""
        normalizer = self.normalizer()
        degree = self.degree.float()
        # The walk along the training edges has this one; the learned walk is near.
        pi = degree / degree.sum().clamp(min=1)
        for _ in range(_MOST_STEPS):
            after = torch.zeros_like(pi)
            for rows, columns, real_rows, real in self.blocks():
                logits = _logits(self.leave, self.enter, rows, columns, real) - normalizer[rows][..., None]
                flow = (pi[rows] * real_rows)[:, None] @ logits.exp()
                after.index_add_(0, columns[real], flow[:, 0][real])
            change = float((after - pi).abs().sum()) / 2
            pi = after
            if change < _SETTLED:
                break
        self.log_rate.copy_(pi.clamp(min=1e-30).log() - normalizer)

    def sample_edges(self, source: Tensor, rng: KeyedRNG) -> tuple[Tensor, Tensor, Tensor]:
        """Draw as many edges as the training graph has, in proportion to pi_i P_ij + pi_j P_ji."""
        nodes = self.nodes_of(source)
        quota, linked = self.num_edges[source], self.degree[nodes] > 0
        return race(rng, self.num_nodes[source], quota, lambda i, j: self._log_weight(nodes[i], nodes[j]), linked)

    def _log_weight(self, i: Tensor, j: Tensor) -> Tensor:
        there, back = (
            self.log_rate[a] + (self.leave.index_select(0, a) * self.enter.index_select(0, b)).sum(1)
            for a, b in ((i, j), (j, i))
        )
        return torch.logaddexp(there, back)

    @torch.no_grad()
    def link_scores(self, pairs: Tensor) -> Tensor:
        """Score pairs of training nodes: how often the walk steps from one to the other, as a logarithm.

        Args:
            pairs: int64 (2, pairs), nodes counted over all training graphs.

        Returns:
            (pairs,).
        """
        self.refresh()
        return self._log_weight(*pairs)


class _Normalizer(torch.autograd.Function):
    """Row sums of exp(W), whose gradient computes W once more: no block of it outlives its turn."""

    @staticmethod
    def forward(ctx: Any, leave: Tensor, enter: Tensor, blocks: Callable[[], Iterator[Block]]) -> Tensor:
        """Sum block by block."""
        out = leave.new_zeros(len(leave))
        for rows, columns, real_rows, real in blocks():
            value = _logits(leave, enter, rows, columns, real).logsumexp(-1)
            out[rows[real_rows]] = value[real_rows]
        ctx.save_for_backward(leave, enter, out)
        ctx.blocks = blocks
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """The derivative by W_ij is P_ij."""
        leave, enter, normalizer = ctx.saved_tensors
        by_leave, by_enter = torch.zeros_like(leave), torch.zeros_like(enter)
        for rows, columns, real_rows, real in ctx.blocks():
            walk = (_logits(leave, enter, rows, columns, real) - normalizer[rows][..., None]).exp()
            by_logit = walk * (grads[0][rows] * real_rows)[..., None]
            by_leave.index_add_(0, rows.flatten(), (by_logit @ enter[columns]).flatten(0, 1))
            by_enter.index_add_(0, columns.flatten(), (by_logit.mT @ leave[rows]).flatten(0, 1))
        return by_leave, by_enter, None


def _logits(leave: Tensor, enter: Tensor, rows: Tensor, columns: Tensor, real: Tensor) -> Tensor:
    """A block of W, (graphs, r, n), minus infinity at padding."""
    return (leave[rows] @ enter[columns].mT).masked_fill(~real[:, None], -torch.inf)
