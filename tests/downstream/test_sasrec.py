"""SASRec and GRU4Rec: what training counts, what ranking masks, and that both learn a known rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_synth.datamodules.base import ItemsDataModule
from lightning_synth.downstream import get_downstream
from lightning_synth.downstream.gru4rec import GRU4Rec
from lightning_synth.downstream.sasrec import SASRec
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.requests import KeyedRNG
from lightning_synth.schema import collate, describe
from lightning_synth.sequence_model import CausalBlock, CausalTransformer, Layout, next_item_losses
from lightning_synth.testing import tiny_datamodule
from lightning_synth.testing.case import quiet_trainer

MODELS = [SASRec, GRU4Rec]


def cycle(users: int = 64, vocab_size: int = 20, seed: int = 0) -> ItemsDataModule:
    """Users who step through the catalogue in order, from anywhere."""
    draw = np.random.default_rng(seed)
    starts, lengths = draw.integers(0, vocab_size, users), draw.integers(4, 9, users)
    whole = [torch.arange(s, s + n) % vocab_size + 1 for s, n in zip(starts, lengths, strict=True)]
    train = [{"item_id": ids[:-2]} for ids in whole]
    schema = describe(train, "sequence", vocab_size=vocab_size, max_length=8)
    return ItemsDataModule(
        train, test_items=[{"item_id": ids} for ids in whole], schema=schema, domain="sequence", batch_size=16
    )


def batch_of(*rows: list[int], **columns: list[list[float]]) -> dict[str, torch.Tensor]:
    schema = {"domain": "sequence", "vocab_size": 20, "max_length": 8}
    items = [{"item_id": torch.tensor(ids)} for ids in rows]
    for name, values in columns.items():
        for item, value in zip(items, values, strict=True):
            item[name] = torch.tensor(value)
    return collate(items, schema)


def model_of(cls: type, **hparams: object) -> torch.nn.Module:
    schema = {"domain": "sequence", "vocab_size": 20, "max_length": 8, "item_counts": [0] + [1] * 20}
    return cls(schema=schema, dim=16, dropout=0.0, loss="full_softmax", **hparams)


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize(
    ("loss", "steps"), [("full_softmax", 150), ("sampled_softmax", 150), ("gbce", 600), ("bce", 150)]
)
def test_learns_a_known_rule_with_every_loss(cls: type, loss: str, steps: int) -> None:
    data = cycle()
    model = cls(loss=loss, num_negatives=16, dim=16, dropout=0.0, lr=1e-2)
    quiet_trainer(max_steps=steps).fit(model, datamodule=data)
    # Chance is 5 of the 12 to 17 items that are not seen.
    assert model.score(data.test_items())["hr@5"] > 0.8


@pytest.mark.parametrize("cls", MODELS)
def test_padding_and_neighbours_in_the_batch_do_not_matter(cls: type) -> None:
    model = model_of(cls).eval()
    alone, together = batch_of([3, 4, 5]), batch_of([1, 2, 3, 4, 5, 6, 7], [3, 4, 5], [9])
    mask = together["padding_mask"]
    states = model.network(together["item_id"], mask)
    kept = states[(mask.nonzero()[:, 0] == 1)]
    assert torch.allclose(model.network(alone["item_id"], alone["padding_mask"]), kept, atol=1e-6)
    right = torch.tensor([[3, 4, 5, 0, 0]])
    assert torch.allclose(model.network(right, right > 0), kept, atol=1e-6)


@pytest.mark.parametrize("cls", MODELS)
def test_a_state_depends_on_the_past_only(cls: type) -> None:
    model = model_of(cls).eval()
    long = [(i * 7) % 20 + 1 for i in range(8)]
    one, other = batch_of(long), batch_of([*long[:5], 1, 2, 3])
    states = [model.network(batch["item_id"], batch["padding_mask"]) for batch in (one, other)]
    assert torch.allclose(states[0][:5], states[1][:5], atol=1e-6)
    assert not torch.allclose(states[0][5:], states[1][5:], atol=1e-3)


@pytest.mark.parametrize("cls", MODELS)
def test_only_weighted_positions_are_targets(cls: type) -> None:
    model = model_of(cls)
    whole = model.training_step(batch_of([1, 2, 3, 4], target_weight=[[0.0, 0.0, 0.0, 1.0]]))
    # Context alone: another first item changes the loss, another weight of the only target does not.
    heavier = model.training_step(batch_of([1, 2, 3, 4], target_weight=[[0.0, 0.0, 0.0, 3.0]]))
    other = model.training_step(batch_of([9, 2, 3, 4], target_weight=[[0.0, 0.0, 0.0, 1.0]]))
    assert torch.allclose(whole, heavier)
    assert not torch.allclose(whole, other)
    nothing = model.training_step(batch_of([1, 2], target_weight=[[0.0, 0.0]]))
    assert nothing.item() == 0.0


@pytest.mark.parametrize("cls", MODELS)
def test_rows_count_by_their_weight(cls: type) -> None:
    model = model_of(cls)
    both = batch_of([1, 2, 3], [7, 8, 9, 10]) | {"weight": torch.tensor([1.0, 0.0])}
    assert torch.allclose(model.training_step(both), model.training_step(batch_of([1, 2, 3])))
    uneven = batch_of([1, 2, 3], [7, 8, 9]) | {"weight": torch.tensor([3.0, 1.0])}
    parts = [model.training_step(batch_of(ids)) for ids in ([1, 2, 3], [7, 8, 9])]
    assert torch.allclose(model.training_step(uneven), (3 * parts[0] + parts[1]) / 4)


@pytest.mark.parametrize("cls", MODELS)
def test_seen_items_are_masked_and_a_seen_target_comes_last(cls: type) -> None:
    model = model_of(cls)
    repeat = [{"item_id": torch.tensor([1, 2, 1])}]
    assert model.ranks(repeat).tolist() == [21.0]
    # Of 20 items 19 are seen: the one left is first, whatever its score.
    last = [{"item_id": torch.arange(1, 21)}]
    assert model.ranks(last).tolist() == [1.0]


def test_full_softmax_of_equal_scores_is_the_log_of_the_catalogue() -> None:
    states, table = torch.zeros(3, 4), torch.zeros(11, 4)
    target, rng = torch.tensor([1, 5, 10]), KeyedRNG(0)
    assert next_item_losses(states, target, table, "full_softmax", rng).exp().tolist() == pytest.approx([10.0] * 3)
    assert next_item_losses(states, target, table, "bce", rng).tolist() == pytest.approx([np.log(2)] * 3)
    # 40 negatives of 10 items: those equal to the target do not count.
    losses = next_item_losses(states, target, table, "sampled_softmax", rng.fork("a"), 40)
    ids = 1 + rng.fork("a").integers(10, (40,))
    assert losses.exp().tolist() == pytest.approx([41.0 - int((ids == t).sum()) for t in target])


def test_gbce_at_t_0_is_bce_and_at_t_1_discounts_by_the_sampling_rate() -> None:
    draw = torch.Generator().manual_seed(0)
    states, table = torch.randn(5, 4, generator=draw), torch.randn(101, 4, generator=draw)
    target = torch.tensor([1, 2, 3, 4, 5])
    plain, calibrated = (next_item_losses(states, target, table, "gbce", KeyedRNG(1), 25, t) for t in (0.0, 1.0))
    positive = torch.nn.functional.softplus(-(states * table[target]).sum(1))
    assert torch.allclose(plain - calibrated, (1 - 25 / 99) * positive / 26, atol=1e-5)


def test_sampled_softmax_approaches_full_softmax() -> None:
    data = cycle()
    scores = []
    for loss in ("full_softmax", "sampled_softmax"):
        model = SASRec(loss=loss, num_negatives=64, dim=16, dropout=0.0, lr=3e-2)
        quiet_trainer(max_steps=60).fit(model, datamodule=data)
        scores.append(model.score(data.test_items())["ndcg@10"])
    assert abs(scores[0] - scores[1]) < 0.05


def test_training_is_repeatable_whatever_the_global_generator_holds() -> None:
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = SASRec(dim=16, seed=3)
        quiet_trainer(max_steps=3).fit(model, datamodule=tiny_datamodule("sequence"))
        weights.append(model.network.items.weight.detach())
    assert torch.equal(weights[0], weights[1])


def test_checkpoints_reload_alone(tmp_path) -> None:
    data = tiny_datamodule("sequence")
    model, trainer = SASRec(dim=16), quiet_trainer(max_steps=3)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "sasrec.ckpt")
    loaded = SASRec.load_from_checkpoint(tmp_path / "sasrec.ckpt", weights_only=True)
    assert np.array_equal(loaded.ranks(data.test_items()), model.ranks(data.test_items()))


def test_validation_logs_the_main_score() -> None:
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(SASRec(dim=16), datamodule=tiny_datamodule("sequence"))
    assert 0 <= float(trainer.callback_metrics["val_ndcg@10"]) <= 1


def test_scores_come_by_length_and_popularity() -> None:
    data = cycle()
    model = SASRec(schema=data.schema, dim=8)
    names = model.score(data.test_items())
    assert {"ndcg@10", "ndcg@10/length<=3", "ndcg@10/length4-7", "hr@10/head", "hr@10/tail"} <= names.keys()
    assert model.metric == "ndcg@10"
    assert len(model.ranks(data.test_items())) == len(data.test_items())


def test_a_block_adds_its_branches_to_the_normalised_item() -> None:
    block, x = CausalBlock(8, heads=1, dropout=0.0), torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    layout = Layout(torch.ones(1, 3, dtype=torch.bool))
    torch.nn.init.zeros_(block.out.weight)  # without attention, what is left is each item by itself
    # Small item vectors weigh as much beside the branches as large ones.
    torch.testing.assert_close(block(x, layout), block(100 * x, layout), atol=1e-3, rtol=0)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="full_softmax"):
        SASRec(loss="cross_entropy")
    with pytest.raises(ConfigError, match="sequence"):
        SASRec(schema={"domain": "timeseries"})
    with pytest.raises(ConfigError, match="heads"):
        CausalTransformer(5, dim=8, heads=3)
    with pytest.raises(DataError, match="sequence 1 has 1 item"):
        model_of(SASRec).ranks([{"item_id": torch.tensor([1, 2])}, {"item_id": torch.tensor([1])}])
    with pytest.raises(DataError, match=r"item 99 is not in the catalogue of training, 1\.\.20"):
        model_of(SASRec).ranks([{"item_id": torch.tensor([1, 99])}])
    assert get_downstream("sasrec") is SASRec
    assert get_downstream("gru4rec") is GRU4Rec
