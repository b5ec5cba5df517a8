"""FaultDiffusion: zero start, frozen backbone, few shots, diversity sign, exemplars, refinement."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_synth.datamodules.base import ItemsDataModule
from lightning_synth.errors import CheckpointError, ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.difference import DIVERSITY, DifferenceAdapter, diversity_term
from lightning_synth.plugins.timeseries.diffusion_ts import DiffusionTS
from lightning_synth.plugins.timeseries.fault_diffusion import FaultDiffusion
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing.case import quiet_trainer

TINY: dict[str, Any] = {"d_model": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "num_steps": 10}


def faults(shots: int = 2, normals: int = 24, length: int = 24) -> StackedItems:
    """Normal noise (class 0), a shift of +6 in channel 0 (class 1), a ramp in channel 1 (class 2)."""
    rng = KeyedRNG(5)
    x = rng.normal((normals + 2 * shots, 2, length)) * torch.tensor([1.0, 10.0])[:, None]
    x[normals : normals + shots, 0] += 6
    x[normals + shots :, 1] += torch.linspace(0, 80, length)
    y = torch.cat([torch.zeros(normals), torch.ones(shots), torch.full((shots,), 2.0)]).long()
    rpm = 1500 + 300 * rng.uniform((len(x),))
    return StackedItems({"x": x, "y": y, "rpm": rpm})


def module_of(items: StackedItems, batch_size: int = 16) -> ItemsDataModule:
    return ItemsDataModule(items, batch_size=batch_size, domain="timeseries")


@pytest.fixture(scope="module")
def fitted() -> FaultDiffusion:
    model = FaultDiffusion(**TINY, adapter_lr=5e-3)
    quiet_trainer(max_steps=200).fit(model, datamodule=module_of(faults(shots=2, normals=32), 32))
    return model


class Watch(Callback):
    """Copies the backbone when stage 2 has begun, and remembers at which step that was."""

    def __init__(self) -> None:
        self.backbone: dict[str, Tensor] = {}
        self.began = -1
        self.equal_at_start = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if bool(pl_module.adapting) and self.began < 0:
            self.began = trainer.global_step
            self.backbone = {name: p.detach().clone() for name, p in pl_module.backbone.named_parameters()}


def test_band_attention_equals_explicit_windows() -> None:
    torch.manual_seed(0)
    adapter = DifferenceAdapter(8, 2, 10, 5)
    torch.nn.init.normal_(adapter.attention.out.weight)
    x, embedding = torch.randn(3, 10, 8), torch.randn(3, 8)
    out, h = adapter(x, embedding), adapter.norm(x, embedding)
    for i in range(10):
        window = h[:, max(0, i - 2) : i + 3]
        assert torch.allclose(out[:, i : i + 1], adapter.attention(h[:, i : i + 1], window), atol=1e-5)


def test_stage_two_starts_as_the_backbone_bit_for_bit() -> None:
    items = faults()
    model = FaultDiffusion(schema=describe(items, "timeseries"), **TINY)
    model.exemplars.fill(torch.randn(4, 2, 24), torch.tensor([1, 1, 2, 2]), 8)
    x, t = KeyedRNG(1).normal((6, 2, 24)), torch.full((6,), 200)
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    normal = {"label": torch.zeros_like(label)}
    assert torch.equal(model.denoise(x, t, {"label": label}), model.denoise(x, t, normal))
    # With an exemplar A: A plus the backbone's view of what is left.
    curve = model.exemplars.pick(label, torch.zeros(6))
    moved = x - model.schedule.signal[200].sqrt() * curve
    assert torch.equal(
        model.denoise(x, t, {"label": label, "exemplar": curve}), model.denoise(moved, t, normal) + curve
    )


@pytest.mark.parametrize("limits", [{"max_steps": 30}, {"max_epochs": 10}], ids=["steps", "epochs"])
def test_backbone_is_frozen_bit_for_bit_in_stage_two(limits: dict[str, int]) -> None:
    watch, model, module = Watch(), FaultDiffusion(stage_fraction=0.5, **TINY), module_of(faults(), 16)
    trainer = quiet_trainer(watch, **limits)
    trainer.fit(model, datamodule=module)
    total = trainer.global_step
    assert total == limits.get("max_steps", 20) and 0.4 * total <= watch.began - 1 <= 0.6 * total
    assert all(torch.equal(watch.backbone[name], p) for name, p in model.backbone.named_parameters())
    with model.averaged_weights():
        assert all(torch.equal(watch.backbone[name], p) for name, p in model.backbone.named_parameters())
    assert float(model.adapters[0].attention.out.weight.detach().abs().max()) > 0
    assert all(p.requires_grad for p in model.parameters())


def test_all_weights_are_tuned_at_a_fresh_learning_rate() -> None:
    watch, model = Watch(), FaultDiffusion(**TINY, tune="all", exemplars=0, vicinity=0.0, diversity_weight=0.0)
    rates: list[float] = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    quiet_trainer(watch, Rates(), max_steps=60).fit(model, datamodule=module_of(faults()))
    moved = [name for name, p in model.backbone.named_parameters() if not torch.equal(watch.backbone[name], p)]
    assert len(moved) == len(watch.backbone)
    # Down to almost nothing at the end of stage 1, then up again.
    assert min(rates[30:40]) < 0.1 * model.hparams.lr < 0.5 * max(rates[40:])


def test_shots_are_learned_and_normal_windows_kept(fitted: FaultDiffusion) -> None:
    x = fitted.sample(90, condition="balanced").data
    normal, shift, ramp = (x["x"][x["y"] == c] for c in range(3))
    assert float(normal[:, 0].mean()) == pytest.approx(0, abs=0.5) and 0.4 < float(normal[:, 0].std()) < 1.4
    assert float(shift[:, 0].mean()) == pytest.approx(6, abs=1.0)
    slope = ramp[:, 1, -4:].mean() - ramp[:, 1, :4].mean()
    assert float(slope) == pytest.approx(80 * 20 / 23, rel=0.25)
    # Not copies: the samples of a class differ from one another by normal fluctuation.
    assert float(shift[:, 0].std(0).mean()) > 0.3


def test_no_exemplar_and_no_vicinity_is_the_paper_and_still_runs() -> None:
    model = FaultDiffusion(**TINY, exemplars=0, vicinity=0.0, diversity="paper")
    quiet_trainer(max_steps=20).fit(model, datamodule=module_of(faults()))
    assert int(model.exemplars.count.sum()) == 0
    assert bool(torch.isfinite(model.sample(6, condition="balanced").data["x"]).all())


@pytest.mark.parametrize("case", ["unlabelled", "only_normal", "no_normal"])
def test_missing_classes_are_no_trouble(case: str) -> None:
    items = faults()
    tensors = dict(items.tensors)
    if case == "unlabelled":
        del tensors["y"]
    elif case == "only_normal":
        tensors = items[:24].tensors
    else:
        tensors = items[24:].tensors
    model = FaultDiffusion(**TINY)
    known = {"num_classes": 3, "normal_class": 0} if case != "unlabelled" else {}
    schema = describe(StackedItems(tensors), "timeseries", **known)
    module = ItemsDataModule(StackedItems(tensors), schema=schema, batch_size=8)
    before = FaultDiffusion(schema=schema, **TINY).adapters[0].attention.out.weight
    quiet_trainer(max_steps=10).fit(model, datamodule=module)
    assert not torch.equal(before, model.adapters[0].attention.out.weight)
    assert bool(torch.isfinite(model.sample(4).data["x"]).all())


def test_ragged_windows_keep_their_masks_apart_from_the_exemplars() -> None:
    tensors = dict(faults().tensors)
    tensors["mask"] = torch.arange(24).expand(len(tensors["x"]), -1) < 18
    tensors["x"] = tensors["x"] * tensors["mask"][:, None]
    model = FaultDiffusion(**TINY)
    quiet_trainer(max_steps=30).fit(model, datamodule=module_of(StackedItems(tensors)))
    out = model.sample(6, condition={"label": 1}).data
    assert float(model.exemplars.curves[:, -1].abs().max()) == 0
    assert bool(out["mask"].any(1).all()) and bool((out["x"][~out["mask"][:, None].expand(-1, 2, -1)] == 0).all())


def test_printed_sign_shrinks_and_hinge_grows_the_distance_of_two_samples() -> None:
    moved = {}
    for kind in DIVERSITY:
        s = torch.tensor([[1.0, 0.0], [0.6, 0.2]], requires_grad=True)
        optimizer = torch.optim.SGD([s], lr=0.05)
        start = float((s[0] - s[1]).detach().square().mean())
        for _ in range(100):
            optimizer.zero_grad()
            diversity_term(s[:1], s[1:], torch.ones(1, 2), torch.zeros(1, 2), kind, margin=1.0).backward()
            optimizer.step()
        moved[kind] = float((s[0] - s[1]).detach().square().mean()) / start
    assert moved["paper"] < 0.01
    assert 5 < moved["hinge"] and moved["hinge"] * 0.1 < 1.3  # start distance .1, stops at the margin of 1
    assert moved["ratio"] > 1.5


def test_pretrained_backbone_is_taken_over(tmp_path: Path) -> None:
    module = module_of(faults())
    base = DiffusionTS(**TINY)
    trainer = quiet_trainer(max_steps=8)
    trainer.fit(base, datamodule=module)
    trainer.save_checkpoint(tmp_path / "base.ckpt")
    model = FaultDiffusion(pretrained=str(tmp_path / "base.ckpt"), **TINY)
    quiet_trainer(max_steps=8).fit(model, datamodule=module)
    with base.averaged_weights():
        expected = {name: p.detach().clone() for name, p in base.backbone.named_parameters()}
    assert all(torch.equal(expected[name], p) for name, p in model.backbone.named_parameters())
    assert torch.equal(model.scaler.std, base.scaler.std)
    wrong = FaultDiffusion(pretrained=str(tmp_path / "base.ckpt"), **{**TINY, "d_model": 32})
    with pytest.raises(CheckpointError, match="d_model"):
        quiet_trainer(max_steps=2).fit(wrong, datamodule=module)


def test_stages_alone_and_checkpoint_round_trip(tmp_path: Path) -> None:
    from lightning_synth import load_generator

    module = module_of(faults())
    model = FaultDiffusion(**TINY)
    trainer = quiet_trainer(max_steps=20)
    trainer.fit(model, datamodule=module)
    trainer.save_checkpoint(tmp_path / "fd.ckpt")
    again = load_generator(str(tmp_path / "fd.ckpt"))
    sample = model.sample(6, condition="balanced").data["x"]
    assert torch.equal(again.sample(6, condition="balanced").data["x"], sample)
    only = FaultDiffusion(stage="pretrain", **TINY)
    quiet_trainer(max_steps=5).fit(only, datamodule=module)
    assert float(only.adapters[0].attention.out.weight.detach().abs().max()) == 0 and not bool(only.adapting)


def test_generator_ema_callback_gets_along_with_the_exemplars() -> None:
    from lightning_synth.callbacks import GeneratorEMA

    model = FaultDiffusion(**TINY)
    quiet_trainer(GeneratorEMA(), max_steps=12).fit(model, datamodule=module_of(faults()))
    assert bool(torch.isfinite(model.sample(4, condition="balanced").data["x"]).all())


def test_spread_and_blend_widen_a_class(fitted: FaultDiffusion) -> None:
    deviation = [
        float(fitted.sample(60, condition={"label": 1}, spread=spread, blend=blend).data["x"][:, 0].std())
        for spread, blend in ((1.0, 0.0), (3.0, 0.0), (1.0, 2.0))
    ]
    assert deviation[0] < deviation[1] and deviation[0] < deviation[2]
    with pytest.raises(TypeError, match="spreed"):
        fitted.sample(1, spreed=2.0)


def test_training_resumes_inside_stage_two(tmp_path: Path) -> None:
    module = module_of(faults())
    first = FaultDiffusion(stage_fraction=0.5, **TINY)
    trainer = quiet_trainer(max_steps=12, max_epochs=-1)
    trainer.fit(first, datamodule=module)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = FaultDiffusion(stage_fraction=0.5, **TINY)
    quiet_trainer(max_steps=20).fit(again, datamodule=module, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    backbone = dict(first.backbone.named_parameters())
    assert all(torch.equal(backbone[name], p) for name, p in again.backbone.named_parameters())
    assert not torch.equal(first.adapters[0].attention.out.weight, again.adapters[0].attention.out.weight)


def test_rows_do_not_depend_on_the_batch(fitted: FaultDiffusion) -> None:
    requests = fitted.make_requests(10, "balanced", seed=2)
    together = fitted.sample(requests).data["x"]
    for rows in ([0], [1, 5], [9, 3, 0]):
        assert torch.allclose(fitted.sample(requests[torch.tensor(rows)]).data["x"], together[rows], atol=1e-4)


def test_given_windows_are_refined(fitted: FaultDiffusion) -> None:
    init = {"x": faults(shots=2, normals=32).tensors["x"][32:34]}
    light, half = (
        fitted.sample(2, condition={"label": 1}, init=init, strength=strength).data["x"] for strength in (0.02, 0.6)
    )
    near, far = (float((v - init["x"])[:, 0].abs().mean()) for v in (light, half))
    assert near < 0.5 and near < far < 2


def test_guidance_scale_leads_from_normal_to_fault(fitted: FaultDiffusion) -> None:
    level = [
        float(fitted.sample(20, condition={"label": 1}, guidance_scale=w).data["x"][:, 0].mean()) for w in (0.0, 1.0)
    ]
    assert level[0] < 2 < 4 < level[1]


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"stage": "second"}, {"diversity": "none"}, {"stage_fraction": 1.0}):
        with pytest.raises(ConfigError):
            FaultDiffusion(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_steps"):
        quiet_trainer(max_steps=-1, max_epochs=-1).fit(FaultDiffusion(**TINY), datamodule=module_of(faults()))


@pytest.mark.ddp
def test_both_stages_under_plain_ddp(run_script: Any, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import torch
        from lightning import Callback, Trainer
        from lightning_synth.datamodules.base import ItemsDataModule
        from lightning_synth.items import StackedItems
        from lightning_synth.plugins.timeseries.fault_diffusion import FaultDiffusion
        from lightning_synth.requests import KeyedRNG

        class Compare(Callback):
            # The fit runs in forked processes, so that is where the weights can be looked at.
            def on_train_end(self, trainer, model):
                adapter, embed = model.adapters[0].attention.out.weight, model.backbone.embed.weight
                for weight in (adapter.detach(), embed.detach(), model.range.high):
                    both = [torch.zeros_like(weight) for _ in range(2)]
                    torch.distributed.all_gather(both, weight.contiguous())
                    assert torch.equal(both[0], both[1]) and float(weight.abs().max()) > 0
                with model.averaged_weights():
                    assert torch.equal(backbone[0], model.backbone.embed.weight)
                print("finished", trainer.global_rank, flush=True)

            def on_train_batch_end(self, trainer, model, *args):
                if bool(model.adapting) and not backbone:
                    backbone.append(model.backbone.embed.weight.detach().clone())

        backbone = []
        if __name__ == "__main__":
            x = KeyedRNG(0).normal((40, 2, 24))
            y = (torch.arange(40) >= 36).long() + (torch.arange(40) >= 38).long()
            module = ItemsDataModule(StackedItems({"x": x + 4 * y[:, None, None], "y": y}), batch_size=8)
            model = FaultDiffusion(d_model=16, heads=2, encoder_layers=1, decoder_layers=1, stage_fraction=0.5)
            options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            trainer = Trainer(
                **options, accelerator="cpu", strategy="ddp_fork", devices=2, max_steps=12, callbacks=[Compare()]
            )
            trainer.fit(model, datamodule=module)
    """)
    )
    run = run_script(script)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("finished") == 2
