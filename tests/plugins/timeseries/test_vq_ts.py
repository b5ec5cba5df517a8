"""What only a language model of windows can get wrong: drawing, the cache, the codebook, and the two phases."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from lightning_synth.datamodules.base import ItemsDataModule
from lightning_synth.decoder import KeyValueCache
from lightning_synth.errors import ConfigError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.timeseries.vq_ts import VQTS, Codebook, TokenPrior, draw_tokens
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_datamodule, tiny_series, tiny_series_schema
from lightning_synth.testing.case import quiet, quiet_trainer

TINY: dict[str, Any] = {"num_codes": 16, "width": 8, "d_model": 16, "heads": 2, "layers": 2}


def fit(model: VQTS, *callbacks: Any, datamodule: Any = None, **limits: Any) -> None:
    with quiet():
        quiet_trainer(*callbacks, **limits).fit(
            model, datamodule=datamodule or tiny_datamodule("timeseries", n=16, batch_size=4)
        )


def test_tokens_are_drawn_with_their_probability() -> None:
    probability, n = torch.tensor([0.1, 0.6, 0.3]), 20_000
    drawn = draw_tokens(probability.log().expand(n, 3), KeyedRNG(0).uniform((n,)))
    assert torch.allclose(drawn.bincount(minlength=3) / n, probability, atol=0.015)
    cold = draw_tokens(probability.log().expand(n, 3), KeyedRNG(0).uniform((n,)), temperature=0.5)
    squared = probability.square() / probability.square().sum()
    assert torch.allclose(cold.bincount(minlength=3) / n, squared, atol=0.015)


@pytest.mark.parametrize(("top_p", "allowed"), [(1e-9, {1}), (0.6, {1}), (0.61, {1, 2}), (1.0, {0, 1, 2})])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, allowed: set[int]) -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log().expand(500, 3)
    u = torch.cat([torch.zeros(1), torch.full((1,), 1 - 2**-24), KeyedRNG(0).uniform((498,))])
    assert set(draw_tokens(logits, u, top_p=top_p).tolist()) == allowed


def test_the_transformer_is_causal_and_its_cache_changes_nothing() -> None:
    prior = TokenPrior(num_codes=7, tokens=6, condition_size=2, dim=16, heads=2, layers=2)
    tokens, condition = KeyedRNG(0).integers(7, (3, 6)), KeyedRNG(1).normal((3, 2))
    logits = prior(tokens, condition)
    for changed in range(6):
        other = tokens.clone()
        other[:, changed] = (other[:, changed] + 1) % 7
        same = torch.isclose(prior(other, condition), logits, atol=1e-6).all(2).all(0)
        assert same.tolist() == [position <= changed for position in range(6)]
    x, cache = prior.first(condition), KeyValueCache()
    for position in range(6):
        assert torch.allclose(prior.following(x, cache), logits[:, position], atol=1e-5)
        x = prior.embed(tokens[:, position])


def test_condition_comes_before_the_first_token() -> None:
    prior = TokenPrior(num_codes=7, tokens=6, condition_size=2, dim=16, heads=2, layers=1)
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    one, other = prior(tokens, torch.tensor([[1.0, 0]])), prior(tokens, torch.tensor([[0.0, 1]]))
    assert not bool(torch.isclose(one, other).all(2).any())


def test_codes_move_to_their_vectors_and_dead_ones_are_revived() -> None:
    torch.manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(4, 6), dim=1)
    book = Codebook(num_codes=16, dim=6, decay=0.8)
    book.codes[:] = book.codes[0]
    book.total[:] = book.codes
    for step in range(40):
        rng = KeyedRNG(step)
        vectors = torch.nn.functional.normalize(centres[rng.integers(4, (200,))] + 0.01 * rng.normal((200, 6)), dim=1)
        book.update(vectors, book.assign(vectors), rng)
    assert float((centres @ book.codes.T).max(1).values.min()) > 0.999
    assert len(book.assign(centres).unique()) == 4
    assert torch.allclose(book.codes.norm(dim=1), torch.ones(16), atol=1e-5)


class Moved(L.Callback):
    """Which networks changed in each batch."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        self.before = {name: value.clone() for name, value in module.state_dict().items()}

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        changed = [name for name, value in module.state_dict().items() if not torch.equal(value, self.before[name])]
        self.moved.append({name.split(".")[0] for name in changed})


@pytest.mark.parametrize("limits", [{"max_steps": 8}, {"max_epochs": 2}])
def test_the_tokenizer_rests_while_the_transformer_learns(limits: dict[str, int]) -> None:
    moved = Moved()
    fit(VQTS(**TINY), moved, **limits)
    assert moved.moved == [{"tokenizer", "noise"}] * 4 + [{"prior"}] * 4


def test_it_learns_two_patterns_and_follows_the_label() -> None:
    """Rising windows of class 0 and falling ones of class 1."""
    y = torch.arange(64) % 2
    ramp = torch.linspace(-1, 1, 16) * (1 - 2 * y)[:, None, None] + 0.05 * KeyedRNG(0).normal((64, 1, 16))
    items = StackedItems({"x": 10 + 3 * ramp, "y": y})
    model = VQTS(**{**TINY, "lr": 5e-3})
    fit(model, datamodule=ItemsDataModule(items, batch_size=32), max_steps=160)
    for label, sign in ((0, 1.0), (1, -1.0)):
        x = model.sample(64, condition={"label": label}).data["x"]
        rise = (x[:, 0, -1] - x[:, 0, 0]) * sign
        assert float((rise > 3).float().mean()) > 0.9
        assert float(x.mean()) == pytest.approx(10, abs=0.3)


def test_options_of_sampling_replace_the_hyper_parameters() -> None:
    model = VQTS(schema=tiny_series_schema(), **TINY)
    model.is_fitted = True
    varied, typical = (model.sample(64, condition={"label": 0}, top_p=p).data["x"] for p in (1.0, 1e-6))
    assert float(varied.std(0).mean()) > 0 and float(typical.std(0).max()) < 1e-5
    with pytest.raises(ConfigError, match="temperature"):
        model.sample(2, temperature=0.0)


@pytest.mark.parametrize(("length", "tokens"), [(1, 1), (8, 4), (24, 12), (25, 13), (128, 64), (129, 33), (1024, 64)])
def test_the_number_of_tokens_follows_the_length(length: int, tokens: int) -> None:
    model = VQTS(schema=tiny_series_schema(2, length), **TINY)
    assert model.tokenizer.tokens == tokens
    assert all(bool(torch.isfinite(v)) for v in model.losses(tiny_series(4, 2, length).tensors, KeyedRNG(0)).values())
    model.is_fitted = True
    assert model.sample(3).data["x"].shape == (3, 2, length)


def test_ragged_windows_come_with_masks_and_ignore_padding() -> None:
    x, mask = torch.randn(8, 2, 24), torch.arange(24) < torch.arange(8, 24, 2)[:, None]
    items = StackedItems({"x": torch.where(mask[:, None], x, 0.0), "mask": mask})
    model = VQTS(schema=describe(items, "timeseries"), **TINY).eval()
    padded = {**items.tensors, "x": torch.where(mask[:, None], x, 99.0)}
    assert torch.equal(model.losses(items.tensors, KeyedRNG(1))["loss"], model.losses(padded, KeyedRNG(1))["loss"])
    model.is_fitted = True
    out = model.sample(5).data
    assert bool(out["mask"].any(1).all()) and float((out["x"] * ~out["mask"][:, None]).abs().max()) == 0


def test_a_fit_without_a_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="VQTS divides the Trainer's budget.*max_steps or max_epochs"):
        fit(VQTS(**TINY), max_epochs=-1)


@pytest.mark.parametrize(
    "settings", [{"downsample": 3}, {"d_model": 10}, {"token_noise": 1.0}, {"temperature": 0.0}, {"top_p": 0.0}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        VQTS(**settings)
