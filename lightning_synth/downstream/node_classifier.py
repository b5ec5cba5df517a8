"""GCN, GAT and GraphSAGE: classifiers of the nodes of one graph, in sparse matrix products alone."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_synth.downstream.base import Classifier, scores
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.losses import balanced_softmax, class_counts, class_weights, renode_weights, tam_margin
from lightning_synth.message_passing import GNN, GraphInput
from lightning_synth.requests import mix_seed

LOSSES = ("ce", "reweight", "balanced_softmax")
#: Augmented graphs kept ready while training, if their features are not larger than this.
_KEPT, _KEPT_BYTES = 8, 32 << 20


class NodeClassifier(Classifier):
    """Classifies the nodes of one graph, trained on the nodes of its ``train_mask``; a base of the three below.

    A training batch is the whole graph (or a sampled neighbourhood), real or augmented. The protocol is that of the
    imbalanced citation benchmarks (GraphENS, TAM): Adam, weight decay on all but the last layer, the learning rate
    halved when the validation loss stands still for 100 steps, and the weights of the best validation step are kept
    (mean of accuracy and balanced accuracy of the validation nodes of the real graph; test labels play no part). With
    sampled neighbourhoods, or without validation nodes, the last weights are kept.

    Args:
        schema: Of the graph; None takes it from the DataModule.
        lr: Learning rate of Adam.
        seed: Of the initial weights and of dropout.
        hidden: Features between layers.
        num_layers: Layers.
        dropout: Share of hidden features dropped while training.
        weight_decay: On all but the last layer.
        loss: ``ce``, ``reweight`` (classes weighted by the inverse of their counts) or ``balanced_softmax``.
        tam: Add topology-aware margins to the training scores, after five steps.
        renode: Weight training nodes by their distance from the border of their class.
        tam_alpha: As in `lightning_synth.losses.tam_margin`.
        tam_beta: As in `lightning_synth.losses.tam_margin`.
        tam_phi: As in `lightning_synth.losses.tam_margin`.

    Raises:
        ConfigError: If an option is unknown or out of range.

    Shapes:
        batch: PyG ``Data``: ``x`` (nodes, features) float, ``y`` (nodes,), ``train_mask``; ``weight`` (nodes,) and
            ``is_synthetic`` (nodes,) if mixed.
    """

    domain: ClassVar[str] = "node"
    metric: ClassVar[str] = "balanced_accuracy"
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        schema: dict[str, Any] | None = None,
        lr: float = 0.01,
        seed: int = 0,
        hidden: int = 256,
        num_layers: int = 2,
        dropout: float = 0.5,
        weight_decay: float = 5e-4,
        loss: str = "ce",
        tam: bool = False,
        renode: bool = False,
        tam_alpha: float = 2.5,
        tam_beta: float = 0.5,
        tam_phi: float = 1.2,
    ) -> None:
        if loss not in LOSSES:
            raise ConfigError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if not 0 <= dropout < 1 or num_layers < 1 or hidden < 8 or hidden % 8:
            raise ConfigError(
                "dropout must be in [0, 1), num_layers at least 1 and hidden a multiple of 8, got "
                f"{dropout}, {num_layers} and {hidden}"
            )
        options = {"hidden": hidden, "num_layers": num_layers, "dropout": dropout, "weight_decay": weight_decay}
        losses = {"tam_alpha": tam_alpha, "tam_beta": tam_beta, "tam_phi": tam_phi}
        super().__init__(schema, lr, seed, loss=loss, tam=tam, renode=renode, **options, **losses)
        self._steps = 0
        self._draw: torch.Generator | None = None
        self._real: tuple[Any, GraphInput] | None = None
        self._recent: deque[GraphInput] = deque(maxlen=_KEPT)
        self._renode: Tensor | None = None
        self._best: tuple[float, dict[str, Tensor]] | None = None
        self._plateau: ReduceLROnPlateau | None = None

    def build(self, schema: dict[str, Any]) -> None:
        """Make the network."""
        if not schema["num_features"]:
            raise ConfigError(f"{self.name} needs node features x (nodes, features), and the graph has none")
        self.network = GNN(
            self.name,
            int(schema["num_features"]),
            int(self.hparams["hidden"]),
            int(schema["num_classes"]),
            int(self.hparams["num_layers"]),
        )

    def forward(self, batch: Any) -> Tensor:
        """Return class scores (nodes, classes) of all nodes of a graph."""
        scores: Tensor = self.network(GraphInput.of(batch))
        return scores

    # Training ------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Start anew."""
        self._steps, self._real, self._best, self._renode = 0, None, None, None
        self._draw = torch.Generator(self.device).manual_seed(mix_seed(int(self.hparams["seed"]), 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with weight decay on all but the last layer; the step itself watches the validation loss."""
        *front, last = self.network.layers
        groups = [
            {
                "params": [p for layer in front for p in layer.parameters()],
                "weight_decay": self.hparams["weight_decay"],
            },
            {"params": list(last.parameters()), "weight_decay": 0.0},
        ]
        optimizer = torch.optim.Adam([group for group in groups if group["params"]], lr=self.hparams["lr"])
        self._plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=100)
        return optimizer

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Loss of the training nodes."""
        logits = self.network(self._read(batch), float(self.hparams["dropout"]), self._draw)
        loss = self.node_loss(logits, batch)
        if self._trainer is not None:
            self.log("loss", loss, batch_size=int(batch.train_mask.sum()))
        return loss

    def _read(self, batch: Any) -> GraphInput:
        """Read a graph; the last few are kept, as those of a small pool come again and again."""
        known = [self._real[1]] if self._real is not None else []
        for graph in (*known, *self._recent):
            if graph.x is batch.x and graph.edge_index is batch.edge_index:
                return graph
        graph = GraphInput(batch.x, batch.edge_index, known[0] if known else None)
        if batch.x.nbytes <= _KEPT_BYTES:
            self._recent.append(graph)
        return graph

    def node_loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Compute the loss from the scores of all nodes.

        Args:
            logits: float (nodes, classes).
            batch: The graph.

        Returns:
            A scalar: the mean over training nodes, weighted by ``weight``, by class and by position if asked for.
        """
        train, hparams = batch.train_mask, self.hparams
        y, out, classes = batch.y[train], logits[train], logits.shape[1]
        counts, weight = class_counts(y, classes), out.new_ones(len(y))
        if hparams["tam"] and self._steps >= 5:
            real = train & ~batch.is_synthetic if "is_synthetic" in batch else train
            priors = class_counts(batch.y[real], classes)
            options = {name: float(hparams[f"tam_{name}"]) for name in ("alpha", "beta", "phi")}
            out = out + tam_margin(logits, batch.edge_index, batch.y, train, priors, **options)
        if hparams["loss"] == "balanced_softmax":
            losses = balanced_softmax(out, y, counts, reduction="none")
        else:
            losses = F.cross_entropy(out, y, reduction="none")
        if hparams["loss"] == "reweight":
            weight = class_weights(counts)[y]
        if hparams["renode"]:
            weight = weight * self._position_weights(batch, classes)
        if "weight" in batch:
            weight = weight * batch.weight[train]
        return (losses * weight).sum() / weight.sum().clamp(min=1e-12)

    def _position_weights(self, batch: Any, classes: int) -> Tensor:
        """ReNode weights: computed once for the real graph, anew for every augmented one."""
        if "is_synthetic" in batch and bool(batch.is_synthetic.any()):
            return renode_weights(batch.edge_index, batch.y, batch.train_mask, classes)
        if self._renode is None or len(self._renode) != int(batch.train_mask.sum()):
            self._renode = renode_weights(batch.edge_index, batch.y, batch.train_mask, classes)
        return self._renode

    @property
    def best_validation(self) -> float:
        """Mean of accuracy and balanced accuracy on the validation nodes at the best step; NaN where none was taken."""
        return float("nan") if self._best is None else self._best[0]

    # Selection -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the weights if they are the best so far on the validation nodes of the real graph."""
        self._steps += 1
        real = self._real_graph(batch)
        if real is None or self._plateau is None:
            return
        data, graph = real
        out, y = self.network(graph)[data["val_mask"]], data["y"]
        self._plateau.step(F.cross_entropy(out, y))
        found = _accuracies(out.argmax(1), y, out.shape[1])
        score = float(found["accuracy"] + found["balanced_accuracy"]) / 2
        if self._best is None or score > self._best[0]:
            self._best = (score, copy.deepcopy(self.network.state_dict()))

    def _real_graph(self, batch: Any) -> tuple[Any, GraphInput] | None:
        """The real part of a full-graph batch with validation nodes: kept from batch to batch, as it is the same."""
        if self._real is not None:
            return self._real
        assert self.schema is not None
        nodes = int(self.schema["num_nodes"])
        if batch.num_nodes < nodes or "val_mask" not in batch or not bool(batch.val_mask[:nodes].any()):
            return None
        edges = batch.edge_index
        own = (edges < nodes).all(0)
        if "edge_is_synthetic" in batch:
            own &= ~batch.edge_is_synthetic
        whole = batch.num_nodes == nodes and bool(own.all())
        graph = GraphInput(batch.x if whole else batch.x[:nodes], edges if whole else edges[:, own])
        mask = batch.val_mask[:nodes]
        self._real = ({"val_mask": mask, "y": batch.y[:nodes][mask]}, graph)
        return self._real

    def on_train_end(self) -> None:
        """Go back to the best validation step."""
        if self._best is not None:
            self.network.load_state_dict(self._best[1])
        self._real, self._renode = None, None
        self._recent.clear()

    def validation_step(self, batch: Any, batch_idx: int = 0) -> None:
        """Log ``val_loss``, ``val_accuracy`` and ``val_balanced_accuracy`` of the validation nodes."""
        out, y = self(batch)[batch.val_mask], batch.y[batch.val_mask]
        found = _accuracies(out.argmax(1), y, out.shape[1])
        self.log("val_loss", F.cross_entropy(out, y), batch_size=len(y), prog_bar=True)
        for name in ("accuracy", "balanced_accuracy"):
            self.log(f"val_{name}", found[name], batch_size=len(y))

    # Use -----------------------------------------------------------------------------------------------------------

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Return class probabilities (nodes, classes)."""
        scores: Tensor = self(batch)
        return scores.softmax(1)

    @torch.no_grad()
    def predict_proba(self, items: Sequence[Any]) -> np.ndarray:
        """Return class probabilities of all nodes of the graphs, float64 (nodes, classes).

        Args:
            items: Graphs; usually one.
        """
        parts = [self(item.to(self.device)).softmax(1).cpu() for item in items]
        return torch.cat(parts).double().numpy()

    def score(self, items: Sequence[Any]) -> dict[str, float]:
        """Score the predictions of the test nodes.

        Args:
            items: Graphs with ``test_mask``; usually one.

        Returns:
            ``balanced_accuracy``, ``macro_f1`` and ``accuracy``.

        Raises:
            DataError: If there are no test nodes.
        """
        mask = np.concatenate([item.test_mask.cpu().numpy() for item in items])
        if not mask.any():
            raise DataError("no node is in test_mask: nothing to score")
        truth = np.concatenate([item.y.cpu().numpy() for item in items])
        assert self.schema is not None
        return scores(truth[mask], self.predict(items)[mask], int(self.schema["num_classes"]))


def _accuracies(predicted: Tensor, truth: Tensor, classes: int) -> dict[str, Tensor]:
    hit = (predicted == truth).float()
    counts = class_counts(truth, classes)
    per_class = torch.zeros(classes, device=hit.device).index_add(0, truth, hit) / counts.clamp(min=1)
    return {"accuracy": hit.mean(), "balanced_accuracy": per_class[counts > 0].mean()}


class GCN(NodeClassifier):
    """Graph convolutional network (Kipf & Welling 2017, arXiv 1609.02907); options of `NodeClassifier`.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("node")
        >>> sorted(GCN(schema=data.schema, hidden=8).score(data.test_items()))
        ['accuracy', 'balanced_accuracy', 'macro_f1']
    """

    name = "gcn"


class GAT(NodeClassifier):
    """Graph attention network, eight heads (Velickovic et al. 2018, arXiv 1710.10903); options of `NodeClassifier`.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("node")
        >>> GAT(schema=data.schema, hidden=16).predict(data.test_items()).shape
        (30,)
    """

    name = "gat"


class GraphSAGE(NodeClassifier):
    """GraphSAGE with mean aggregation (Hamilton et al. 2017, arXiv 1706.02216); options of `NodeClassifier`.

    Example:
        >>> from lightning_synth.testing import tiny_datamodule
        >>> data = tiny_datamodule("node")
        >>> GraphSAGE(schema=data.schema, hidden=8).predict(data.test_items()).shape
        (30,)
    """

    name = "graphsage"
