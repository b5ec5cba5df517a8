"""Real interaction logs: counts, ties and transitions as published and as measured from the files by other means."""

import numpy as np
import pytest
import torch

from lightning_synth.datamodules import InteractionDataModule
from lightning_synth.metrics.sequence import NgramTable, bigram_rate
from lightning_synth.sequences import OPERATORS, PairSampler, SequenceItems, to_recbole, to_replay_parquet, to_text


def ids(items):
    return [item["item_id"].tolist() for item in items]


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "cold", "short"),
    (
        ("beauty.txt", 22_363, 12_101, 198_502, 0.0062, 0.320),
        ("toys.txt", 19_412, 11_924, 167_597, 0.0144, 0.339),
        ("lastfm.txt", 1_090, 3_646, 52_551, 0.0018, 0.072),
        ("ml-1m.txt", 6_040, 3_416, 999_611, 0.0, 0.0),
        ("ml-100k.inter", 943, 1_682, 100_000, None, 0.0),
    ),
)
def test_counts_of_published_files(data_root, name, users, items, interactions, cold, short):
    report = InteractionDataModule(data_root / "recsys" / name).report
    assert (report["users"], report["items"], report["interactions"]["test"]) == (users, items, interactions)
    assert report["interactions"]["train"] == interactions - 2 * users
    assert cold is None or report["cold_test_targets"] == pytest.approx(cold, abs=5e-5)
    assert report["train_length"]["<=3"] == pytest.approx(short, abs=5e-4)


def test_the_order_of_beauty_is_partly_that_of_its_ids(data_root):
    """43.9 % of adjacent pairs tie, 87.6 % of users have a tie, 43.5 % of last pairs; all in the order of the ids."""
    ties = InteractionDataModule(data_root / "recsys" / "beauty_timestamps.tsv").report["ties"]
    expected = {"adjacent_pairs": 0.439, "users": 0.876, "validation_and_test": 0.435, "tied_pairs_in_item_order": 1.0}
    assert ties == pytest.approx(expected, abs=1e-3)


def test_two_files_of_beauty_hold_the_same_sequences(data_root):
    """Once as lines and once as rows with times, under other item numbers."""
    lines = InteractionDataModule(data_root / "recsys" / "beauty.txt").test_items()
    rows = InteractionDataModule(data_root / "recsys" / "beauty_timestamps.tsv").test_items()
    assert sorted(lines.lengths.tolist()) == sorted(rows.lengths.tolist())
    counts = [np.sort(np.bincount(items.flat())) for items in (lines, rows)]
    assert (counts[0][-12_101:] == counts[1][-12_101:]).all()


def test_a_time_split_of_movielens(data_root):
    data = InteractionDataModule(data_root / "recsys" / "ml-100k.inter", split="time")
    latest = max(int(item["timestamp"][-1]) for item in data.train_items())
    assert data.report["interactions"]["train"] == pytest.approx(80_000, rel=0.01)
    assert all(int(item["timestamp"][-1]) > latest for item in [*data.val_items(), *data.test_items()])


def test_the_core_of_movielens(data_root):
    data = InteractionDataModule(data_root / "recsys" / "ml-100k.inter", k_core=(20, 50))
    whole = data.test_items()
    assert np.bincount(whole.flat())[1:].min() >= 50 and int(whole.lengths.min()) >= 20
    assert data.schema["vocab_size"] < 700


def test_real_sequences_repeat_pairs_of_others_but_not_all(data_root):
    """Between what independent draws repeat (.005) and what walks over real pairs repeat (.99)."""
    data = InteractionDataModule(data_root / "recsys" / "beauty.txt")
    train = data.train_items()
    table = NgramTable.of(train, 12_101, 2)
    assert 0.12 < bigram_rate(table, train) < 0.25
    shuffled = SequenceItems.from_lists(
        [torch.randperm(12_101, generator=torch.Generator().manual_seed(0))[:5000].tolist()]
    )
    assert bigram_rate(table, shuffled) < 0.02


def test_adapters_bring_lastfm_back(data_root, tmp_path):
    data = InteractionDataModule(data_root / "recsys" / "lastfm.txt")
    whole = ids(data.test_items())
    assert ids(InteractionDataModule(to_text(data.test_items(), tmp_path / "l.txt")).test_items()) == whole
    to_replay_parquet(data.test_items(), tmp_path / "l.parquet", data.schema)
    assert ids(InteractionDataModule(tmp_path / "l.parquet").test_items()) == whole
    to_recbole(data, tmp_path, "lastfm")
    again = InteractionDataModule(tmp_path / "lastfm" / "lastfm.test.inter", max_length=None)
    recent = [row[-51:] for row in whole]
    # Some items are met in older history only, so the numbers differ: the names do not.
    assert [again.decode_items(row).tolist() for row in ids(again.test_items())] == recent


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_on_beauty(data_root, name):
    data = InteractionDataModule(data_root / "recsys" / "beauty.txt", batch_size=4096, augment=[name], augment_prob=1.0)
    plain = InteractionDataModule(
        data_root / "recsys" / "beauty.txt", batch_size=4096, augment=[name], augment_prob=0.0
    )
    batch, before = (next(iter(d.train_dataloader())) for d in (data, plain))
    changed = (batch["item_id"] != before["item_id"]).any(1)
    assert float(changed.float().mean()) > 0.3
    assert bool(batch["padding_mask"].any(1).all()) and int(batch["item_id"].max()) <= 12_101


def test_short_users_get_more_pairs_with_a_smaller_alpha(data_root):
    data = InteractionDataModule(data_root / "recsys" / "beauty.txt")
    share = {}
    for alpha in (0.0, 1.0, 2.0):
        pairs = PairSampler(alpha).bind(data.train_items())
        user = pairs.__getitems__(torch.arange(20_000)).rows["user_id"]
        share[alpha] = float((data.train_items().lengths[user] <= 7).double().mean())
    assert share[0.0] == pytest.approx(0.771, abs=0.01) and share[0.0] > share[1.0] > share[2.0]
