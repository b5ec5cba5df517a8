"""FaultDiffusion: a diffusion model of normal windows, frozen, plus adapters that learn what a fault changes.

Xu et al., "FaultDiffusion: Few-Shot Fault Time Series Generation with Diffusion Model" (2025, arXiv 2511.15174).
The paper has no public code; what it leaves open (attention window, loss weights, shots) is decided and named here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_synth.conditions import KEEP
from lightning_synth.errors import CheckpointError, ConfigError
from lightning_synth.items import evenly_spaced
from lightning_synth.nn import ConditionEmbedding, sinusoidal, warm_cosine
from lightning_synth.plugins.timeseries.difference import DIVERSITY, DifferenceAdapter, Exemplars, diversity_term
from lightning_synth.plugins.timeseries.diffusion_ts import Difference, DiffusionTS
from lightning_synth.requests import KeyedRNG, SampleRequests

STAGES = ("both", "pretrain", "adapt")
TUNE = ("adapters", "all")
Rows = dict[str, Tensor]
#: Keys beside the fields of an item: the number of a shot's exemplar, and whether that is the shot itself.
_CURVE, _ITSELF = "exemplar_number", "exemplar_is_itself"
_SPREAD = "spread"
_BANK_BYTES = 1 << 28


class FaultDiffusion(DiffusionTS):
    """Few-shot fault windows as normal windows plus a learned difference (Xu et al. 2025, arXiv 2511.15174).

    Stage 1 trains the backbone (Diffusion-TS) on normal windows. Stage 2 freezes it, bit for bit, and trains only the
    difference: zero-initialised sliding-window attention after every decoder block, each fed with the backbone's tokens
    plus the sum of the earlier adapters' outputs, conditioned on class and continuous conditions. Both stages run in
    one ``Trainer.fit``; the normal class is ``schema["normal_class"]``, else the largest one. Without labels every
    window is normal, and the adapters adapt on all of them. Sampling the normal class is the backbone alone.

    Two additions make it work from one shot on; ``exemplars=0, vicinity=0`` is the paper's model:

    * Exemplars. With few shots the large part of a fault is a shift of level and shape that a frozen network cannot
      express in some hundred steps. The shots, as differences from the mean normal window, are therefore kept: row by
      row one of them, A, is subtracted from the noised input and added to the prediction, x0 = A + f(x_t - sqrt(abar)
      A), where f is the frozen backbone with its adapters. Stage 2 so starts from "the shot, fluctuating as normal
      windows do", and the adapters learn what is different from that.
    * Vicinity. A shot is one draw of difference + normal fluctuation. In training, fresh fluctuation (a normal window
      minus the normal mean, times a random factor around ``vicinity``) is added to it, so that the model learns the
      difference and not the one fluctuation it came with.

    A checkpoint holds the exemplars, that is, up to ``exemplars`` real windows of each class.

    ``guidance_scale`` w extrapolates from normal to fault: w > 1 exaggerates the fault, 0 < w < 1 makes it incipient.
    ``tune="all"`` frees the backbone in stage 2 too. With ``exemplars=0, vicinity=0, diversity_weight=0, spread=1,
    blend=0`` that is the ordinary way of transfer: Diffusion-TS trained on normal windows and then fine-tuned on the
    shots; the adapters only tell it the class.

    To work on top of simulated windows, ``sample(n, init=windows, strength=0.5, condition={"label": ...})``: each
    window is its own exemplar, and ``strength`` says how much fresh fluctuation (of normal operation, changed by the
    adapters of the class) it gets.

    Args:
        stage: ``"both"``, ``"pretrain"`` (backbone only) or ``"adapt"`` (adapters only).
        stage_fraction: Share of the Trainer's budget that stage 1 gets.
        tune: What stage 2 trains: ``"adapters"`` (the paper's), or ``"all"`` weights.
        pretrained: Checkpoint of a `DiffusionTS` or `FaultDiffusion` of the same sizes, whose backbone and scaling
            replace stage 1.
        window: Tokens seen by the adapters' attention; None: 7, and a sixteenth of the tokens where that is more.
        diversity: ``"hinge"``, ``"ratio"`` or ``"paper"``; see `diversity_term`: the printed sign shrinks diversity.
        diversity_weight: Weight of that term; 0 switches it off.
        diversity_margin: Of the hinge.
        exemplars: Most shots of a class that are kept as exemplars; a larger class has its mean window; 0: none.
        vicinity: Mean factor of the fresh fluctuation; it varies by half of itself on either side.
        spread: Factor on the generated fluctuation around the exemplar of a class with one shot; with K shots it is 1 +
            (spread - 1) / K^(1/4). Few shots cover a class too narrowly for a classifier, so the default widens; 1
            looks most like the shots. Also an option of ``sample``.
        blend: Standard deviation of the share of the difference of two other exemplars that is added to a row's own.
            Also an option of ``sample``.
        adapter_lr: Peak learning rate of stage 2.
        bank_size: Most training windows kept in memory for stage 1 and for stage 2.
        lr: Peak learning rate of stage 1.
        **kwargs: For `DiffusionTS`.

    Shapes:
        batch["x"]: (batch, channels, length) float32, raw units; ``y`` (batch,) int64; conditions (batch,).

    Example:
        >>> from lightning_synth.testing import tiny_series_schema
        >>> model = FaultDiffusion(schema=tiny_series_schema(channels=2, length=24, num_classes=3), d_model=8, heads=2)
        >>> len(model.adapters)
        2
    """

    adapting: Tensor

    def __init__(
        self,
        *,
        stage: str = "both",
        stage_fraction: float = 0.6,
        tune: str = "adapters",
        pretrained: str | None = None,
        window: int | None = None,
        diversity: str = "hinge",
        diversity_weight: float = 0.01,
        diversity_margin: float = 1.0,
        exemplars: int = 32,
        vicinity: float = 1.0,
        spread: float = 3.0,
        blend: float = 0.5,
        adapter_lr: float = 2e-3,
        bank_size: int = 4096,
        lr: float = 2e-3,
        **kwargs: Any,
    ) -> None:
        for name, value, known in (("stage", stage, STAGES), ("diversity", diversity, DIVERSITY), ("tune", tune, TUNE)):
            if value not in known:
                raise ConfigError(f"{name}={value!r} must be one of {known}")
        if not 0 < stage_fraction < 1:
            raise ConfigError(
                f"stage_fraction must be inside (0, 1), got {stage_fraction}; use stage= for one stage alone"
            )
        super().__init__(
            stage=stage,
            stage_fraction=stage_fraction,
            tune=tune,
            pretrained=pretrained,
            window=window,
            diversity=diversity,
            diversity_weight=diversity_weight,
            diversity_margin=diversity_margin,
            exemplars=exemplars,
            vicinity=vicinity,
            spread=spread,
            blend=blend,
            adapter_lr=adapter_lr,
            bank_size=bank_size,
            lr=lr,
            **kwargs,
        )

    # Networks ------------------------------------------------------------------------------------------------------

    def build(self, schema: dict[str, Any]) -> None:
        """Make backbone, adapters and the store of exemplars."""
        self._build_backbone(schema, label=False)
        p, tokens, dim = self.hparams, self.backbone.tokens, self.backbone.dim
        window = int(p["window"] or max(7, tokens // 16 | 1))
        self.adapters = nn.ModuleList(
            DifferenceAdapter(dim, int(p["heads"]), tokens, window) for _ in range(int(p["decoder_layers"]))
        )
        self.fault_condition = ConditionEmbedding(schema, dim)
        classes = int(schema.get("num_classes") or 0)
        self.exemplars = Exemplars(self.channels, self.length, classes)
        self.normal_class = _normal_class(schema)
        self.register_buffer("adapting", torch.zeros((), dtype=torch.bool))
        self._normals: Rows = {}
        self._shots: Rows = {}
        super(DiffusionTS, self).build(schema)

    def denoise(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Predict by the backbone, and for faults by backbone, adapters and exemplar."""
        rows = len(x_t)
        # keep=False means "normal" here: it switches the difference off and never hides rpm or load from the backbone.
        embedding = sinusoidal(t, self.backbone.dim) + self.condition({**condition, KEEP: torch.ones_like(t)}, rows)
        is_fault = self._is_fault(condition, rows)
        if not bool(is_fault.any()):
            plain: Tensor = self.backbone(x_t, embedding)
            return plain
        curve = condition.get("exemplar")
        shift = torch.zeros_like(x_t) if curve is None else curve * is_fault[:, None, None]
        signal = self.schedule.signal[t][:, None, None]
        difference = self._difference(t, condition, is_fault)
        prediction: Tensor = self.backbone(x_t - signal.sqrt() * shift, embedding, difference)
        if self.hparams["target"] == "x0":
            return prediction + shift
        # noise is the same for x0 and x0 - shift; v = sqrt(abar) noise - sqrt(1 - abar) x0
        return prediction if self.hparams["target"] == "noise" else prediction - (1 - signal).sqrt() * shift

    def null_share(self) -> float:
        """1: guidance starts from the model of the normal windows, which has no conditions."""
        return 1.0

    def _is_fault(self, condition: Mapping[str, Tensor], rows: int) -> Tensor:
        """Rows for which the difference is switched on, bool (rows,)."""
        label, keep = condition.get("label"), condition.get(KEEP)
        on = torch.ones(rows, dtype=torch.bool, device=self.device)
        if label is not None and self.normal_class is not None:
            on = label != self.normal_class
        return on if keep is None else on & keep

    def _difference(self, t: Tensor, condition: Mapping[str, Tensor], is_fault: Tensor) -> Difference:
        """Adapters with accumulation: layer k sees the backbone's tokens plus all earlier adapter outputs."""
        embedding = sinusoidal(t, self.backbone.dim) + self.fault_condition(condition, len(t))
        outputs: list[Tensor] = []

        def layer(i: int, tokens: Tensor) -> Tensor:
            out: Tensor = self.adapters[i](tokens + sum(outputs), embedding) * is_fault[:, None, None]
            outputs.append(out)
            return out

        return layer

    # Training ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Before a fit: keep normal windows and shots at hand, scale by the former, load a pretrained backbone."""
        super().setup(stage)
        if stage != "fit":
            return
        if self.hparams["stage"] == "both" and self.trainer.max_steps == -1 and self.trainer.max_epochs == -1:
            raise ConfigError("FaultDiffusion divides the Trainer's budget into stages: set max_steps or max_epochs")
        self._collect()
        if not bool(self.adapting) and self.hparams["pretrained"]:
            self._load_backbone(str(self.hparams["pretrained"]))
        elif not self.is_fitted and self._normals:
            self._scale_by(self._normals)
        # Sized before callbacks copy the module and ddp looks at its buffers; stage 1 does not use them.
        self._keep_exemplars()

    def on_train_start(self) -> None:
        """Move the windows at hand to the device."""
        super().on_train_start()
        self._normals, self._shots = (
            {name: value.to(self.device) for name, value in rows.items()} for rows in (self._normals, self._shots)
        )

    def _collect(self) -> None:
        """Take up to ``bank_size`` normal windows and as many shots of the training split."""
        from lightning_synth.schema import collate, labels

        items, schema = self.training_items(), self.schema
        assert schema is not None
        y = labels(items, schema)
        fault = torch.zeros(len(items), dtype=torch.bool)
        if y is not None and self.normal_class is not None:
            fault = torch.from_numpy(y != self.normal_class)
        limit = min(int(self.hparams["bank_size"]), max(1, _BANK_BYTES // (4 * self.channels * self.length)))
        for name, chosen in (("_normals", ~fault), ("_shots", fault)):
            rows = evenly_spaced(chosen.nonzero()[:, 0].tolist(), limit)
            batch = collate([items[i] for i in rows], schema) if rows else {}
            setattr(self, name, {k: v.to(self.device) for k, v in batch.items() if isinstance(v, Tensor)})

    def _scale_by(self, rows: Rows) -> None:
        """Standardise by the normal windows: next to large faults, normal fluctuation would be tiny in pooled units."""
        x = rows["x"].double()
        mask = rows["mask"][:, None].double() if "mask" in rows else torch.ones_like(x[:, :1])
        count = mask.sum((0, 2)).clamp(min=1)
        mean = (x * mask).sum((0, 2)) / count
        std = ((x - mean[:, None]).square() * mask).sum((0, 2)).div(count).sqrt()
        pooled = self.scaler.std[:, 0].double()
        self.scaler.mean.copy_(mean[:, None])
        # A channel that hardly moves in normal operation keeps a share of the pooled scale.
        self.scaler.std.copy_(torch.maximum(std, 0.02 * pooled)[:, None])

    def _load_backbone(self, path: str) -> None:
        """Copy backbone (its averaged weights where there are any), scaling and range from a checkpoint."""
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = checkpoint["state_dict"]
        averaged = int(state.get("average.updates", torch.zeros(()))) > 0
        own = dict(self.named_parameters())
        for name in (name for name in own if name.startswith("backbone.")):
            saved = state.get(f"average.{name.replace('.', '/')}" if averaged else name)
            if saved is None or saved.shape != own[name].shape:
                shape = None if saved is None else tuple(saved.shape)
                raise CheckpointError(
                    f"{path}: {name} has shape {shape}, expected {tuple(own[name].shape)}; use the d_model, layers, "
                    "patch_size, channels and length that the checkpoint was trained with"
                )
            own[name].data.copy_(saved)
        for name in ("scaler.mean", "scaler.std", "range.low", "range.high"):
            self.get_buffer(name).copy_(state[name])
        self.average.reset(own)

    @property
    def is_adapting(self) -> bool:
        """Whether the present training step belongs to stage 2."""
        if self.hparams["stage"] != "both":
            return bool(self.hparams["stage"] == "adapt")
        return bool(self.hparams["pretrained"]) or self.progress >= float(self.hparams["stage_fraction"])

    def losses(self, batch: Rows, rng: KeyedRNG) -> dict[str, Tensor]:
        """Denoise normal windows (stage 1) or shots (stage 2), always in batches of full size."""
        if not self.training:
            z, condition = self.encode(batch)
            on = torch.ones(len(z), dtype=torch.bool, device=z.device)
            return self.noised_loss(z, {**condition, **self._exemplar_of(condition, rng), KEEP: on}, batch, rng)
        adapting = self.is_adapting or bool(self.adapting)
        if adapting and not bool(self.adapting):
            self._begin_adapting()
        with _resting(self._frozen(adapting)) as resting:
            losses = self._adapter_losses(batch, rng) if adapting else self._pretrain_losses(batch, rng)
        if self._trainer is not None and self.trainer.world_size > 1:
            # Plain ddp waits for a gradient of every parameter; `on_before_optimizer_step` drops these again.
            losses["loss"] = losses["loss"] + 0.0 * sum(p.flatten()[0] for p in resting)
        return losses

    def _frozen(self, adapting: bool) -> list[nn.Parameter]:
        """Parameters that rest in a stage: the backbone in stage 2 (unless all are tuned), the others in stage 1."""
        backbone, others = self._backbone_and_others()
        if not adapting:
            return others
        return backbone if self.hparams["tune"] == "adapters" else []

    def _backbone_and_others(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        backbone = [*self.backbone.parameters(), *self.condition.parameters()]
        known = {id(p) for p in backbone}
        return backbone, [p for p in self.parameters() if id(p) not in known]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of resting parameters: with none at all, neither Adam's momentum nor decay moves them."""
        for parameter in self._frozen(bool(self.adapting)):
            parameter.grad = None
        super().on_before_optimizer_step(optimizer)

    def _begin_adapting(self) -> None:
        """Continue from the averaged backbone."""
        parameters = dict(self.named_parameters())
        if self.hparams["ema_decay"] > 0 and int(self.average.updates) > 0:
            self.average.commit(parameters)
        self.average.reset(parameters)
        self.adapting.fill_(True)

    def _keep_exemplars(self) -> None:
        if not self._shots:
            return
        z, rows = self.standardise(self._shots), len(self._shots["x"])
        self.range.observe(z)
        number = torch.zeros(rows, dtype=torch.int64, device=z.device)
        itself = torch.ones_like(number).bool()
        if int(self.hparams["exemplars"]):
            number, itself = self.exemplars.fill(self._values(z), self._shots["y"], int(self.hparams["exemplars"]))
        self._shots = {**self._shots, _CURVE: number, _ITSELF: itself}

    def _values(self, z: Tensor) -> Tensor:
        """Windows with the mask channel of ragged ones set to 0: masks are neither added nor subtracted."""
        return torch.cat([z[:, :-1], torch.zeros_like(z[:, -1:])], dim=1) if self.ragged else z

    def _pretrain_losses(self, batch: Rows, rng: KeyedRNG) -> dict[str, Tensor]:
        """Denoise the normal rows of the batch, filled up with others to its size."""
        wanted = len(batch["x"])
        rows = (
            _taken(batch, batch["y"] == self.normal_class) if "y" in batch and self.normal_class is not None else batch
        )
        missing = wanted - len(rows["x"])
        if missing and self._normals:
            index = rng.fork("normal").integers(len(self._normals["x"]), (missing,)).to(self.device)
            rows = _joined(rows, _taken(self._normals, index))
        z, condition = self.encode(rows if len(rows["x"]) else batch)
        condition.pop("label", None)
        # Seen from stage 2 these are rows whose difference is switched off.
        off = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        return self.noised_loss(z, {**condition, KEEP: off}, rows if len(rows["x"]) else batch, rng)

    def _adapter_losses(self, batch: Rows, rng: KeyedRNG) -> dict[str, Tensor]:
        """Denoise shots in pairs: one window at one noise level under two noises, for the diversity term."""
        rows = self._shot_batch(batch, rng)
        z, condition = self.encode(rows)
        half = len(z)
        z = z + self._fluctuation(rows, z, rng)
        extra = self._exemplar_of(condition, rng, rows.get(_CURVE))
        t = rng.integers(len(self.schedule), (half,)).to(z.device)
        twice = {name: torch.cat([value, value]) for name, value in {**condition, **extra, "z": z, "t": t}.items()}
        z, t = twice.pop("z"), twice.pop("t")
        noise = rng.normal(z.shape).to(z.device)
        x_t = self.schedule.add_noise(z, t, noise)
        prediction = self.denoise(x_t, t, {**twice, KEEP: torch.ones_like(t, dtype=torch.bool)})
        wanted = self.schedule.target_of(z, noise, t, self.hparams["target"])
        losses = self.diffusion_loss(prediction, wanted, t, {k: torch.cat([v, v]) for k, v in rows.items()})
        weight = float(self.hparams["diversity_weight"])
        if not weight:
            return losses
        clean = self.schedule.x0_of(prediction, x_t, t, self.hparams["target"])
        term = diversity_term(
            clean[:half],
            clean[half:],
            x_t[:half],
            x_t[half:],
            self.hparams["diversity"],
            float(self.hparams["diversity_margin"]),
        )
        return {**losses, "loss": losses["loss"] + weight * term, "diversity": term.detach()}

    def _shot_batch(self, batch: Rows, rng: KeyedRNG) -> Rows:
        """Half as many shots as the batch has rows (each is used twice), classes equally often."""
        count, draw = max(1, len(batch["x"]) // 2), rng.fork("shots")
        if self._shots:
            u, v = draw.uniform((2, count)).to(self.device)
            return _taken(self._shots, _balanced(self._shots["y"], u, v))
        fault = batch["y"] != self.normal_class if "y" in batch and self.normal_class is not None else None
        if fault is not None and bool(fault.any()):
            return _taken(batch, fault)
        # No faults: adapt to everything, as unlabelled rows (a normal label would switch the adapters off).
        return {name: value for name, value in batch.items() if name != "y"}

    def _fluctuation(self, rows: Rows, z: Tensor, rng: KeyedRNG) -> Tensor:
        """Normal windows minus the normal mean (zero when standardised), randomly scaled; (rows, channels, length)."""
        amount = float(self.hparams["vicinity"])
        if not amount or not self._normals or _ITSELF not in rows:
            return torch.zeros_like(z)
        draw, n = rng.fork("vicinity"), len(z)
        index = draw.integers(len(self._normals["x"]), (n,)).to(self.device)
        fresh = self._values(self.standardise(_taken(self._normals, index)))
        scale = amount * (0.5 + draw.uniform((n,))).to(self.device) * rows[_ITSELF]
        return fresh * scale[:, None, None]

    def _exemplar_of(self, condition: Rows, rng: KeyedRNG, curve: Tensor | None = None) -> Rows:
        """Exemplar of each row: curve number ``curve``, else any of the row's class."""
        if "label" not in condition or not int(self.exemplars.count.sum()):
            return {}
        if curve is not None:
            return {"exemplar": self.exemplars.curves[curve]}
        label = condition["label"]
        u = rng.fork("exemplar").uniform((len(label),)).to(label.device)
        return {"exemplar": self.exemplars.pick(label, u)}

    def configure_optimizers(self) -> Any:
        """Adam with one warm-up and cosine per stage."""
        p = self.hparams
        backbone, others = self._backbone_and_others()
        groups = [{"params": backbone, "lr": float(p["lr"])}, {"params": others, "lr": float(p["adapter_lr"])}]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.96))
        split = float(p["stage_fraction"]) if p["stage"] == "both" and not p["pretrained"] else 0.0

        def first(_: int) -> float:
            if split and self.progress >= split and p["tune"] == "all":
                return second(_)
            return warm_cosine(min(1.0, self.progress / split) if split else self.progress)

        def second(_: int) -> float:
            return warm_cosine(max(0.0, self.progress - split) / (1 - split))

        scheduler = LambdaLR(optimizer, [first, second])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Sampling ------------------------------------------------------------------------------------------------------

    def sampling_condition(
        self,
        requests: SampleRequests,
        rng: KeyedRNG,
        init: Tensor | None,
        spread: float | None = None,
        blend: float | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Add an exemplar of the requested class, or the given window as its own exemplar."""
        condition = super().sampling_condition(requests, rng, init, **options)
        if init is not None:
            return {**condition, "exemplar": self._values(init)}
        if "label" not in condition or not int(self.exemplars.count.sum()):
            return condition
        label, draw = condition["label"], rng.fork("exemplar")
        u = draw.uniform((3,), step=0)
        curve, one, other = (self.exemplars.pick(label, v) for v in u.unbind(1))
        share = float(self.hparams["blend"] if blend is None else blend) * draw.normal((), step=1)
        factor = float(self.hparams["spread"] if spread is None else spread)
        few = self.exemplars.itself[label] & (label != self.normal_class)
        return {
            **condition,
            "exemplar": curve + (share * few)[:, None, None] * (one - other),
            # A kernel around each of K shots: its excess width shrinks with K, slowly as in many dimensions.
            _SPREAD: torch.where(few, 1 + (factor - 1) * self.exemplars.count[label].clamp(min=1) ** -0.25, 1.0),
        }

    def finish(self, x0: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Widen the fluctuation around the exemplar."""
        if _SPREAD not in condition:
            return x0
        centre = condition["exemplar"]
        wide = centre + condition[_SPREAD][:, None, None] * (x0 - centre)
        return torch.cat([wide[:, :-1], x0[:, -1:]], dim=1) if self.ragged else wide


def _normal_class(schema: Mapping[str, Any]) -> int | None:
    """The declared normal class, else the largest one; None without labels."""
    if not schema.get("num_classes"):
        return None
    declared = schema.get("normal_class")
    counts = schema.get("class_counts") or [1]
    return int(declared) if declared is not None else max(range(len(counts)), key=counts.__getitem__)


@contextmanager
def _resting(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Keep parameters out of the graphs built inside the block; afterwards they are trainable again, as ddp expects."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield parameters
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _taken(rows: Rows, which: Tensor) -> Rows:
    return {name: value[which] for name, value in rows.items()}


def _joined(first: Rows, second: Rows) -> Rows:
    return {name: torch.cat([value, second[name].to(value)]) for name, value in first.items() if name in second}


def _balanced(label: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Row numbers: a class by ``u``, then a row of it by ``v``, both uniform in [0, 1)."""
    order = label.argsort(stable=True)
    classes, count = label.unique(return_counts=True)
    which = (u * len(classes)).long()
    first = count.cumsum(0) - count
    return order[first[which] + (v * count[which]).long()]
