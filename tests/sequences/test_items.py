"""Sequences in flat arrays behave like a list of dicts."""

import pytest
import torch

from lightning_synth.datamodules import EndlessSampler
from lightning_synth.errors import DataError
from lightning_synth.schema import collate, describe, validate
from lightning_synth.sequences import SequenceItems
from lightning_synth.sequences.draws import EndlessItems

LISTS = [[1, 2, 3], [4], [5, 6]]
SCHEMA = {"domain": "sequence", "vocab_size": 9, "max_length": 4}


def as_dicts():
    return [
        {"item_id": torch.tensor(ids), "user_id": torch.tensor(i), "timestamp": torch.arange(len(ids)) * 0.5}
        for i, ids in enumerate(LISTS)
    ]


def test_it_is_a_sequence_of_dicts():
    dicts, items = as_dicts(), SequenceItems.from_items(as_dicts())
    assert len(items) == 3
    for got, want in zip(items, dicts, strict=True):
        assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)
    assert items[-1]["item_id"].tolist() == [5, 6]
    assert [i["item_id"].tolist() for i in items[[2, 0]]] == [[5, 6], [1, 2, 3]]
    assert [i["item_id"].tolist() for i in items[torch.tensor([False, True, False])]] == [[4]]
    with pytest.raises(IndexError):
        items[3]


def test_batches_of_dicts_and_of_flat_items_are_equal():
    one, two = collate(as_dicts(), SCHEMA), collate(SequenceItems.from_items(as_dicts()), SCHEMA)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert one["item_id"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 4], [0, 0, 5, 6]]
    assert one["timestamp"].dtype == torch.float32 and one["timestamp"][0].tolist() == [0, 0, 0.5, 1]
    assert one["target_weight"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_missing_fields_get_their_defaults():
    mixed = [
        {"item_id": torch.tensor([1, 2]), "user_id": torch.tensor(3)},
        {
            "item_id": torch.tensor([7, 8, 9]),
            "target_weight": torch.tensor([0.0, 0.0, 0.5]),
            "item_is_synthetic": torch.tensor([True, True, False]),
        },
    ]
    batch = collate(mixed, SCHEMA)
    assert batch["user_id"].tolist() == [3, -1]
    assert batch["target_weight"].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0.5]]
    assert batch["item_is_synthetic"].tolist() == [[False] * 4, [False, True, True, False]]
    with pytest.raises(DataError, match="sequence 0 has no field 'price'"):
        collate([mixed[0], {"item_id": torch.tensor([1]), "price": torch.tensor([2.0])}], SCHEMA)


def test_an_empty_batch_has_its_columns():
    batch = collate([], SCHEMA)
    assert batch["item_id"].shape == (0, 4) and batch["padding_mask"].dtype == torch.bool


def test_schema_counts_by_hand():
    schema = describe(SequenceItems.from_lists(LISTS), "sequence", max_length=2, vocab_size=7)
    assert schema["length_counts"] == {"1": 1, "2": 2}
    assert schema["item_counts"] == [0, 1, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("item", "message"),
    (
        ({"item_id": torch.tensor([1.0])}, "item_id must be integers"),
        ({"item_id": torch.tensor([[1]])}, "item_id must be integers"),
        ({"item_id": torch.tensor([], dtype=torch.int64)}, "sequence 1 is empty"),
        ({"item_id": torch.tensor([3, 10])}, "1..9 .0 is padding., got 10"),
        ({"item_id": torch.tensor([3, 0])}, "got 0"),
        ({"item_id": torch.tensor([3]), "timestamp": torch.tensor([float("nan")])}, "timestamp is not finite"),
        ({"item_id": torch.tensor([3]), "target_weight": torch.tensor([-1.0])}, "target_weight is negative"),
        ({"item_id": torch.tensor([3]), "timestamp": torch.tensor([1.0, 2.0])}, "timestamp has shape"),
    ),
)
def test_bad_items_are_named(item, message):
    with pytest.raises(DataError, match=f"sequence 1.*{message}|{message}"):
        validate([{"item_id": torch.tensor([1])}, item], SCHEMA)


def test_longer_sequences_are_valid_and_keep_their_latest_items():
    items = SequenceItems.from_lists([[1, 2, 3, 4, 5, 6]])
    validate(items, SCHEMA)
    assert collate(items, SCHEMA)["item_id"].tolist() == [[3, 4, 5, 6]]


def test_every_epoch_has_every_item_once_under_a_number_of_its_own():
    items = EndlessItems(SequenceItems.from_lists([[i, i] for i in range(1, 8)]))
    sampler = EndlessSampler(items, seed=1)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        drawn = items.__getitems__(list(sampler))
        assert sorted(drawn.rows["draw"].tolist()) == list(range(7 * epoch, 7 * epoch + 7))
        orders.append([int(item["item_id"][0]) for item in drawn])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(1, 8)) and orders[0] != orders[1]
