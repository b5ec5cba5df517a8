"""prior_transformer, sequence_transformer and embedding_diffusion: what they promise beyond the conformance suite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_synth.datamodules.interactions import InteractionDataModule
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.plugins.sequence.autoregressive import draw_items, draw_rows, extend, nucleus
from lightning_synth.plugins.sequence.embedding_diffusion import EmbeddingDiffusion, item_vectors
from lightning_synth.plugins.sequence.prior_transformer import PriorTransformer
from lightning_synth.plugins.sequence.sequence_transformer import SequenceTransformer
from lightning_synth.requests import KeyedRNG
from lightning_synth.sequences.items import SequenceItems
from lightning_synth.testing.case import quiet, quiet_trainer

EXTENDERS = [PriorTransformer, EmbeddingDiffusion]
SMALL = {
    PriorTransformer: {"dim": 16, "num_negatives": 64, "lr": 1e-2, "dropout": 0.0},
    SequenceTransformer: {"dim": 16, "num_negatives": 64, "lr": 1e-2, "dropout": 0.0},
    EmbeddingDiffusion: {"dim": 32, "item_dim": 8, "slots": 6, "lr": 5e-3, "num_negatives": 64},
}


def steps_down(users: int = 200, vocab_size: int = 24) -> InteractionDataModule:
    """Users who step through the catalogue in order; four of five are short."""
    draw = np.random.default_rng(0)
    lengths = np.where(np.arange(users) % 5 > 0, draw.integers(5, 7, users), draw.integers(10, 13, users))
    starts = draw.integers(0, vocab_size, users)
    whole = [[(s + i) % vocab_size + 1 for i in range(n)] for s, n in zip(starts, lengths, strict=True)]
    return InteractionDataModule(whole, batch_size=32, max_length=12, vocab_size=vocab_size)


@pytest.fixture(scope="module")
def data() -> InteractionDataModule:
    return steps_down()


@pytest.fixture(scope="module")
def trained(data: InteractionDataModule) -> dict[type, torch.nn.Module]:
    models = {cls: cls(**hparams) for cls, hparams in SMALL.items()}
    with quiet():
        for model in models.values():
            quiet_trainer(max_steps=150, limit_val_batches=0).fit(model, datamodule=data)
    return models


def rule_rate(items) -> float:
    """Share of adjacent pairs that follow the rule of the data."""
    steps = [(ids[1:] - ids[:-1]) % 24 == 1 for ids in (item["item_id"] for item in items) if len(ids) > 1]
    return float(torch.cat(steps).double().mean())


@pytest.mark.parametrize("cls", list(SMALL))
def test_learns_the_rule_of_the_data(trained, cls: type) -> None:
    # Chance is 1/24; real positions of extended users follow the rule by themselves, so only new pairs count.
    items = trained[cls].sample(200).items()
    if cls is not SequenceTransformer:
        items = [{"item_id": item["item_id"][: int(item["item_is_synthetic"].sum()) + 1]} for item in items]
    assert rule_rate(items) > {EmbeddingDiffusion: 0.25}.get(cls, 0.8)


@pytest.mark.parametrize("cls", EXTENDERS)
def test_extends_short_training_users_and_leaves_their_items_alone(trained, data, cls: type) -> None:
    known = {tuple(item["item_id"].tolist()) for item in data.train_items()}
    for item in trained[cls].sample(100).items():
        synthetic, ids = item["item_is_synthetic"], item["item_id"]
        assert synthetic[0]
        assert bool((synthetic.long().diff() <= 0).all()), "generated items stand in front"
        own = tuple(ids[~synthetic].tolist())
        assert own in known
        assert len(own) <= 4
        assert len(set(ids.tolist())) == len(ids)


@pytest.mark.parametrize("cls", EXTENDERS)
def test_generated_positions_are_context_unless_asked(trained, cls: type) -> None:
    context, targets = (trained[cls].sample(50, targets=value).items() for value in (False, True))
    for one, other in zip(context, targets, strict=True):
        new = one["item_is_synthetic"]
        assert torch.equal(one["item_id"], other["item_id"])
        assert not one["target_weight"][new].any()
        assert (one["target_weight"][~new] > 0).all()
        assert (other["target_weight"][new][1:] > 0).all()
        assert other["target_weight"][0] == 0


@pytest.mark.parametrize("cls", EXTENDERS)
def test_given_users_are_extended_in_turn(trained, cls: type) -> None:
    given = SequenceItems.from_lists([[3, 4], [9, 10, 11]])
    rows = trained[cls].sample(5, init=given).items()
    own = [item["item_id"][~item["item_is_synthetic"]].tolist() for item in rows]
    assert own == [[3, 4], [9, 10, 11], [3, 4], [9, 10, 11], [3, 4]]
    with pytest.raises(DataError, match="init has item 9999"):
        trained[cls].sample(1, init=SequenceItems.from_lists([[3, 9999]]))


def test_extended_users_have_the_lengths_of_longer_ones(trained, data) -> None:
    lengths = [len(item["item_id"]) for item in trained[PriorTransformer].sample(300).items()]
    assert set(lengths) == {n for n in (len(item["item_id"]) for item in data.train_items()) if n > 4}


def test_implausible_pasts_weigh_less(trained) -> None:
    model = trained[PriorTransformer]
    users = {"item_id": torch.tensor([[10, 11]] * 2)}
    weight = model._reliability(torch.tensor([[7, 8, 9], [1, 20, 3]]), users["item_id"], users["item_id"] > 0)
    assert weight[0] > 0.6
    assert weight[1] < 0.5 * weight[0]
    untouched = model._reliability(torch.zeros(2, 0, dtype=torch.long), users["item_id"], users["item_id"] > 0)
    assert untouched.tolist() == [1, 1]


def test_without_a_judge_all_weigh_one(data) -> None:
    model = PriorTransformer(reliability=False, **SMALL[PriorTransformer])
    with quiet():
        quiet_trainer(max_steps=3).fit(model, datamodule=data)
    weights = torch.cat([item["target_weight"] for item in model.sample(20).items()])
    assert set(weights.tolist()) == {0.0, 1.0}


def test_whole_users_have_the_lengths_of_training(trained, data) -> None:
    rows = trained[SequenceTransformer].sample(2000).items()
    made = np.bincount([len(item["item_id"]) for item in rows], minlength=13) / 2000
    real = np.bincount([len(item["item_id"]) for item in data.train_items()], minlength=13) / len(data.train_items())
    assert np.abs(made - real).max() < 0.05


def test_popularity_correction_and_temperature_flatten(trained) -> None:
    def entropy(**options: float) -> float:
        ids = torch.cat([item["item_id"] for item in trained[SequenceTransformer].sample(300, **options).items()])
        share = torch.bincount(ids, minlength=25).double() / len(ids)
        return float(-(share * share.clamp(min=1e-12).log()).sum())

    def broken(**options: float) -> float:
        return 1 - rule_rate(trained[SequenceTransformer].sample(300, **options).items())

    assert broken(temperature=3.0) > broken() > broken(temperature=0.3)
    assert broken(top_p=0.5) <= broken()
    assert entropy(popularity_correction=0.0) > 0


def test_correction_takes_log_popularity_off() -> None:
    logits = torch.tensor([[-torch.inf, 2.0, 1.0]]).expand(1000, -1)
    u = (torch.arange(1000) + 0.5) / 1000
    log_popularity = torch.tensor([0.0, 2.0, 1.0])
    drawn = draw_items(logits, u, log_popularity=log_popularity, popularity_correction=1.0)
    assert torch.bincount(drawn).tolist() == [0, 500, 500]


def test_rows_are_drawn_by_their_weights_over_many_blocks() -> None:
    weight = torch.zeros(1, 1000)
    weight[0, [3, 127, 128, 999]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    u = (torch.arange(1000) + 0.5) / 1000
    counts = torch.bincount(draw_rows(weight.expand(1000, -1), u), minlength=1000)
    assert counts[[3, 127, 128, 999]].tolist() == [100, 200, 300, 400]
    assert int(draw_rows(weight, torch.tensor([1 - 2**-24]))) == 999


def test_nucleus_keeps_the_fewest_that_hold_the_share() -> None:
    probability = torch.rand(20, 500, generator=torch.Generator().manual_seed(0)).softmax(1)
    kept = nucleus(probability, 0.7) > 0
    ordered, order = probability.sort(1, descending=True)
    wanted = torch.zeros_like(kept).scatter(1, order, ordered.cumsum(1) - ordered < 0.7)
    assert (kept.sum(1) - wanted.sum(1)).abs().max() <= 1
    assert (probability * kept).sum(1).min() >= 0.7 - 1e-5


def test_extension_masks_what_a_row_has_had() -> None:
    # A network that always wants item 1, then 2, then 3.
    rank = torch.tensor([0.0, 40.0, 20.0, 0.0])
    ids = extend(
        lambda past, mask: rank.repeat(len(past), 1),
        torch.tensor([[2], [3]]),
        torch.tensor([2, 1]),
        KeyedRNG(torch.tensor([1, 2])),
        repeats=False,
    )
    assert ids.tolist() == [[2, 1, 3], [3, 1, 0]]


def test_item_vectors_have_unit_length_and_bring_neighbours_together(data) -> None:
    vectors = item_vectors(SequenceItems.from_items(data.train_items()), 25, 8)
    assert torch.allclose(vectors[1:].norm(dim=1), torch.ones(24), atol=1e-5)
    cosine = vectors[1:] @ vectors[1:].T
    assert cosine.diagonal(1).mean() > 0.5 > cosine.diagonal(12).mean()


def test_item_vectors_stay_fixed_and_never_meet_held_out_items(data) -> None:
    model = EmbeddingDiffusion(**SMALL[EmbeddingDiffusion])
    with quiet():
        quiet_trainer(max_steps=5, limit_val_batches=0).fit(model, datamodule=data)
    wanted = item_vectors(SequenceItems.from_items(model.bank.items), 25, 8)
    assert torch.equal(model.table, wanted)
    assert "table" not in dict(model.named_parameters())


def test_hiding_the_user_changes_the_prediction(trained) -> None:
    model = trained[EmbeddingDiffusion].eval()
    x, t = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([50, 50])
    history = torch.zeros(2, 20, dtype=torch.long)
    history[:, :3] = torch.tensor([[5, 6, 7], [15, 16, 17]])
    condition = {"history": history, "count": torch.tensor([6, 6])}
    seen, hidden = (
        model.denoise(x[:1].expand(2, -1, -1), t, {**condition, "keep": torch.tensor([k, k])}) for k in (True, False)
    )
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert torch.allclose(hidden[0], hidden[1], atol=1e-5)


def test_bad_settings_are_named(trained) -> None:
    for wrong in ({"temperature": 0.0}, {"top_p": 0.0}, {"popularity_correction": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            trained[SequenceTransformer].sample(1, **wrong)
    with pytest.raises(ConfigError, match="short"):
        PriorTransformer(short=0)
    with pytest.raises(ConfigError, match="probabilities"):
        SequenceTransformer(loss="bce")
    with pytest.raises(ConfigError, match="heads"):
        EmbeddingDiffusion(dim=10, heads=4)
