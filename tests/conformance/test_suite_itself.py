"""The suite catches bad plugins: each class below breaks one promise, and exactly that check must say so."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_synth.errors import ConfigError
from lightning_synth.generator import FitFreeGenerator, Generator
from lightning_synth.registry import GeneratorSpec
from lightning_synth.requests import KeyedRNG
from lightning_synth.testing import CHECKS, check_datamodule, check_generator, tiny_datamodule, tiny_items
from lightning_synth.testing.case import Case, Skipped


class Good(Generator):
    """A mean and a scale per class and channel (Gauss 1809): breaks nothing."""

    domain = "timeseries"
    conditions = ("label",)

    def __init__(self, *, offset: float = 0.0, lr: float = 0.1, **kwargs: Any) -> None:
        super().__init__(offset=offset, lr=lr, **kwargs)

    def build(self, schema: dict[str, Any]) -> None:
        self.shape = (schema["channels"], schema["length"])
        self.mean = nn.Parameter(torch.randn(max(schema["num_classes"], 1), self.shape[0], 1))

    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        y = batch.get("y", torch.zeros(len(batch["x"]), dtype=torch.int64))
        return {"loss": (batch["x"] + 0.1 * rng.normal(batch["x"].shape) - self.mean[y]).square().mean()}

    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        y = requests.condition.get("label", torch.zeros_like(requests.index))
        return {"x": self.mean[y] + rng.normal(self.shape)}


class DrawsGlobally(Good):
    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return {"x": torch.randn(len(requests), *self.shape)}


class TrainsGlobally(Good):
    def losses(self, batch: Any, rng: KeyedRNG) -> dict[str, Tensor]:
        return super().losses({**batch, "x": batch["x"] + torch.randn_like(batch["x"])}, rng)


class CouplesRows(Good):
    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        x = super().sample_batch(requests, rng)["x"]
        return {"x": x - 0.1 * x.mean(0, keepdim=True)}


class OrderMatters(Good):
    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        x = super().sample_batch(requests, rng)["x"]
        return {"x": x + 0.01 * torch.arange(len(x))[:, None, None]}


class IgnoresLabel(Good):
    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return {"x": rng.normal(self.shape) + self.mean.mean()}


class ReturnsOtherLabels(Good):
    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return {**super().sample_batch(requests, rng), "y": torch.zeros_like(requests.index)}


class WrongCount(Good):
    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return {"x": super().sample_batch(requests, rng)["x"][:-1]}


class IgnoresSeed(Good):
    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return super().sample_batch(requests, KeyedRNG(torch.zeros_like(rng.seed)))


class DeadParameter(Good):
    def build(self, schema: dict[str, Any]) -> None:
        super().build(schema)
        self.unused = nn.Linear(2, 2)


class LearnsNothing(Good):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class ClimbsTheLoss(Good):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, maximize=True)


class WrongDtype(Good):
    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return {"x": super().sample_batch(requests, rng)["x"].double()}


class NotFinite(Good):
    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        x = super().sample_batch(requests, rng)["x"]
        return {"x": torch.where(requests.index[:, None, None] == 2, torch.nan, x)}


class UnplainHyperparameter(Good):
    def build(self, schema: dict[str, Any]) -> None:
        super().build(schema)
        self.hparams["scale"] = np.float32(1.0)


class SwallowsArguments(Good):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{k: v for k, v in kwargs.items() if k in ("schema", "lr", "seed", "offset")})


class SeedsGlobally(Good):
    def __init__(self, **kwargs: Any) -> None:
        torch.manual_seed(0)
        super().__init__(**kwargs)


class WritesFiles(Good):
    def __init__(self, **kwargs: Any) -> None:
        with open("generator.log", "w") as file:
            file.write("hello")
        super().__init__(**kwargs)


class UnseededWeights(Good):
    count = 0

    def build(self, schema: dict[str, Any]) -> None:
        super().build(schema)
        UnseededWeights.count += 1
        self.mean.data += UnseededWeights.count


class KeepsHiddenState(Good):
    """State outside of the state dict (no source: a test, 2020)."""

    hidden = 0.0

    def on_train_end(self) -> None:
        self.hidden = 1.0

    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return {"x": super().sample_batch(requests, rng)["x"] + self.hidden}


class ChangesWhileSampling(Good):
    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        batch = super().sample_batch(requests, rng)
        self.mean.data += 1e-3
        return batch


class ForgetsToStop(Good):
    def on_train_start(self) -> None:
        self.trainer.fit_loop.epoch_loop.max_steps = 1000
        self.trainer.fit_loop.max_epochs = 20


class NoReference(Good):
    """Some generator."""


class NeedsLabels(Good):
    def build(self, schema: dict[str, Any]) -> None:
        super().build(schema)
        self.table = torch.zeros(schema["num_classes"])[0]


class NeedsManyItems(Good):
    def build(self, schema: dict[str, Any]) -> None:
        super().build(schema)
        if schema["num_train"] < 10:
            raise ValueError("give me more")


class NeedsOurDataModule(Good):
    def on_fit_start(self) -> None:
        self.shape = self.trainer.datamodule.train_items()[0]["x"].shape


class PeeksAtValidation(Good):
    def on_train_start(self) -> None:
        self.mean.data += float(self.trainer.datamodule.val_items()[0]["x"].mean())


class RotatesNothing(Good):
    conditions = ("label", "rpm")


class PretendsToGuide(Good):
    def __init__(self, *, guidance_scale: float = 1.0, condition_dropout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(guidance_scale=guidance_scale, condition_dropout=condition_dropout, **kwargs)

    def sample_batch(self, requests: Any, rng: KeyedRNG, *, guidance_scale: float = 1.0) -> Any:
        return super().sample_batch(requests, rng)


class TooBig(Good):
    def build(self, schema: dict[str, Any]) -> None:
        super().build(schema)
        self.register_buffer("table", torch.zeros(20 * 2**20))


class FitFreeGlobal(FitFreeGenerator):
    """Picks training windows with numpy's global generator (Efron 1979)."""

    domain = "timeseries"

    def sample_batch(self, requests: Any, rng: KeyedRNG) -> Any:
        return {"x": self.bank.batch["x"][np.random.randint(len(self.bank), size=len(requests))]}


BAD: list[tuple[type[Generator], set[str]]] = [
    (DrawsGlobally, {"check_sampling_is_repeatable", "check_rows_depend_on_their_seed_only"}),
    (TrainsGlobally, {"check_training_owns_its_randomness"}),
    (CouplesRows, {"check_rows_depend_on_their_seed_only"}),
    (OrderMatters, {"check_rows_depend_on_their_seed_only"}),
    (IgnoresLabel, {"check_labels_are_honoured"}),
    (ReturnsOtherLabels, {"check_labels_are_honoured"}),
    (WrongCount, {"check_counts"}),
    (IgnoresSeed, {"check_seeds_differ"}),
    (DeadParameter, {"check_gradients"}),
    (LearnsNothing, {"check_fit_changes_something", "check_ema", "check_loss"}),
    (ClimbsTheLoss, {"check_loss"}),
    (WrongDtype, {"check_items_are_valid"}),
    (NotFinite, {"check_items_are_valid"}),
    (UnplainHyperparameter, {"check_hparams_are_plain", "check_checkpoint_round_trip"}),
    (SwallowsArguments, {"check_unknown_argument"}),
    (SeedsGlobally, {"check_constructor_is_pure"}),
    (WritesFiles, {"check_constructor_is_pure"}),
    (UnseededWeights, {"check_initial_weights_follow_the_seed"}),
    (KeepsHiddenState, {"check_checkpoint_round_trip"}),
    (ChangesWhileSampling, {"check_sampling_is_repeatable"}),
    (ForgetsToStop, {"check_trainer_limits", "check_fit"}),
    (NoReference, {"check_docstring"}),
    (NeedsLabels, {"check_unlabelled_data"}),
    (NeedsManyItems, {"check_few_items"}),
    (NeedsOurDataModule, {"check_foreign_batches"}),
    (PeeksAtValidation, {"check_held_out_data_is_not_used"}),
    (RotatesNothing, {"check_continuous_conditions"}),
    (PretendsToGuide, {"check_guidance"}),
    (TooBig, {"check_budget"}),
    (FitFreeGlobal, {"check_sampling_is_repeatable"}),
]


def failures(cls: type[Generator], names: set[str]) -> dict[str, str]:
    """Run some checks on one case; what they said."""
    case, said = Case(cls, "timeseries"), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            try:
                CHECKS[name](case)
            except Skipped:
                continue
            except Exception as error:
                said[name] = f"{type(error).__name__}: {error}"
    return said


@pytest.mark.parametrize(("cls", "expected"), BAD, ids=[cls.__name__ for cls, _ in BAD])
def test_a_bad_plugin_fails_the_named_check(cls: type[Generator], expected: set[str], tmp_path: Any) -> None:
    said = failures(cls, expected)
    assert said.keys() == expected
    assert all(len(text) > 20 for text in said.values()), "a failure must say what is wrong"


def test_a_good_plugin_passes_everything() -> None:
    results = check_generator(Good)
    assert results.keys() == CHECKS.keys()
    assert {name for name, result in results.items() if result != "passed"} == {"check_spec", "check_guidance"}


def test_every_check_is_proven_to_fail_for_somebody() -> None:
    proven = set().union(*(names for _, names in BAD))
    # The rest guards code of the base class, which no plugin of ten lines can break.
    inherited = {
        "check_spec",
        "check_corrupt_checkpoint",
        "check_sample_before_fit",
        "check_bad_labels_are_refused",
        "check_predict_writes_every_row",
    }
    assert proven | inherited == CHECKS.keys()


def spec_of(cls: type[Generator], **options: Any) -> GeneratorSpec:
    told = {"conditions": ("label",), "domain": "timeseries", "summary": "A test.", "reference": "none", **options}
    return GeneratorSpec(name=cls.__name__.lower(), target=f"{cls.__module__}:{cls.__qualname__}", **told)


def test_a_spec_that_contradicts_its_class_fails() -> None:
    for options, word in (({"conditions": ()}, "conditions|says"), ({"summary": ""}, "summary")):
        with pytest.raises(AssertionError, match=word):
            CHECKS["check_spec"](Case(Good, "timeseries", {}, spec_of(Good, **options)))


def test_all_failures_are_reported_at_once() -> None:
    with pytest.raises(AssertionError, match="IgnoresLabel fails") as error:
        check_generator(IgnoresLabel)
    assert "check_labels_are_honoured: AssertionError: the label does not change the samples" in str(error.value)


def test_expected_failures_are_strict() -> None:
    known = spec_of(IgnoresLabel, expected_failures={"check_labels_are_honoured": "floor", "check_docstring": "a test"})
    results = check_generator(known)
    assert results["check_labels_are_honoured"] == "expected failure: floor"
    with pytest.raises(AssertionError, match=r"check_fit: passes, but the spec expects it to fail \(no\)"):
        check_generator(spec_of(Good, expected_failures={"check_fit": "no"}))
    with pytest.raises(ConfigError, match="check_nonsense"):
        check_generator(spec_of(Good, expected_failures={"check_nonsense": "no"}))


def test_a_missing_package_skips_with_its_name() -> None:
    results = check_generator(spec_of(Good, requires=("no_such_package",)))
    assert set(results.values()) == {"skipped: no_such_package not installed"}


class TestBadDataModules:
    """`check_datamodule` names what is wrong."""

    def failing(self, dm: Any) -> set[str]:
        results = check_datamodule(dm, raise_on_failure=False)
        return {name for name, result in results.items() if result.startswith("failed")}

    def test_overlapping_splits(self) -> None:
        dm = tiny_datamodule("timeseries")
        dm._given = (dm._given[0], dm._given[0][:4], dm._given[2])
        assert "check_splits_are_disjoint" in self.failing(dm)

    def test_arguments_in_hparams(self) -> None:
        dm = tiny_datamodule("timeseries")
        dm.save_hyperparameters({"batch_size": 8})
        assert self.failing(dm) == {"check_keeps_arguments_as_attributes"}

    def test_numpy_in_the_schema(self) -> None:
        dm = tiny_datamodule("timeseries")
        dm._schema["sampling_rate"] = np.float32(12000)
        assert "check_schema_is_plain" in self.failing(dm)

    def test_unowned_order(self) -> None:
        dm = tiny_datamodule("timeseries")
        dm.train_dataloader = lambda: torch.utils.data.DataLoader(
            list(tiny_items("timeseries")), batch_size=8, shuffle=True
        )
        assert "check_order_is_owned" in self.failing(dm)
