"""Reading, numbering, ordering and splitting of interaction logs."""

import gzip

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_synth.datamodules import InteractionDataModule, MixedDataModule
from lightning_synth.datamodules.interactions import k_core_rows
from lightning_synth.datamodules.simulated_interactions import SimulatedInteractions
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.plugins.baselines import Bootstrap
from lightning_synth.pool import SyntheticPool
from lightning_synth.schema import collate, uncollate
from lightning_synth.sequences import PairSampler, SequenceItems
from lightning_synth.testing import check_datamodule

LISTS = [[1, 2, 3, 4], [2, 3, 1, 4, 2], [4, 1, 2]]


def ids(items):
    return [item["item_id"].tolist() for item in items]


def small(**options):
    return InteractionDataModule(
        SimulatedInteractions(60, 40, min_length=4, mean_length=9, seed=3),
        **{"max_length": 8, "batch_size": 16, **options},
    )


def frame(seed=0):
    """LISTS as rows in a random order."""
    rows = [(f"u{u}", f"i{i}", 100 * u + t) for u, seq in enumerate(LISTS) for t, i in enumerate(seq)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def test_leave_one_out_holds_out_the_last_two():
    data = InteractionDataModule(LISTS)
    assert ids(data.train_items()) == [[1, 2], [2, 3, 1], [4]]
    assert ids(data.val_items()) == [[1, 2, 3], [2, 3, 1, 4], [4, 1]]
    assert ids(data.test_items()) == LISTS


def test_the_schema_is_that_of_the_training_sequences():
    schema = InteractionDataModule(LISTS, max_length=2).schema
    assert schema["item_counts"] == [0, 2, 2, 1, 1]
    assert (schema["vocab_size"], schema["max_length"], schema["num_train"]) == (4, 2, 3)
    # Lengths as a batch holds them: the three items of the second user are cut to two.
    assert schema["length_counts"] == {"1": 1, "2": 2}


def test_short_users_only_train():
    data = InteractionDataModule([[1, 2], *LISTS])
    assert ids(data.train_items())[0] == [1, 2]
    assert len(data.test_items()) == len(data.val_items()) == 3
    assert data.test_items()[0]["user_id"] == 1


def test_batches_keep_the_latest_items():
    data = InteractionDataModule(LISTS, max_length=2, batch_size=3)
    batch = collate(data.train_items(), data.schema)
    assert batch["item_id"].tolist() == [[1, 2], [3, 1], [0, 4]]
    assert batch["target_weight"].tolist() == [[0, 1], [0, 1], [0, 0]]
    assert batch["padding_mask"].tolist() == [[True, True], [True, True], [False, True]]
    assert len(data.train_items()[1]["item_id"]) == 3, "items are whole sequences"


def test_time_split_cuts_all_users_at_the_same_instants():
    rows = pd.DataFrame(
        {
            "user": [0] * 10 + [1] * 5 + [2] * 5,
            "item": np.arange(20) % 7,
            "time": [*range(10), *range(5), *range(15, 20)],
        }
    )
    data = InteractionDataModule(rows, split="time", val_fraction=0.25, test_fraction=0.25)
    ends = np.quantile(rows["time"], [0.5, 0.75])
    assert all((item["timestamp"] < ends[0]).all() for item in data.train_items())
    assert all(ends[0] <= item["timestamp"][-1] < ends[1] for item in data.val_items())
    assert all(item["timestamp"][-1] >= ends[1] for item in data.test_items())
    assert all(len(item["item_id"]) >= 2 for item in [*data.val_items(), *data.test_items()])
    # The user who came late has no training sequence, but a test item.
    assert 2 not in [int(item["user_id"]) for item in data.train_items()]
    assert 2 in [int(item["user_id"]) for item in data.test_items()]


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_time_split_with_users_who_are_left_out():
    rows = pd.DataFrame(
        {"user": [0, 1, 1, 1, 1, 2, 3, 3], "item": [1, 2, 3, 4, 1, 2, 3, 4], "time": [9, 0, 1, 2, 8, 9, 1, 7]}
    )
    data = InteractionDataModule(rows, split="time", val_fraction=0.0, test_fraction=0.4)
    assert ids(data.train_items()) == [[2, 3], [3]]
    assert ids(data.test_items()) == [[2, 3, 4, 1], [3, 4]]


def test_k_core_by_hand():
    # Item 3 occurs once; without it user 2 has one interaction, and without that user item 2 has one.
    log = [[1, 4, 1, 4], [1, 4, 4, 2], [2, 3]]
    data = InteractionDataModule(log, k_core=2)
    assert data.report["users"] == 2
    assert data.item_ids.tolist() == [1, 4]
    assert ids(data.test_items()) == [[1, 2, 1, 2], [1, 2, 2]]


@pytest.mark.parametrize("seed", range(3))
def test_k_core_is_a_fixed_point_and_as_large_as_can_be(seed):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 40, 150), rng.integers(0, 30, 150)
    left = k_core_rows(user, item, 3, 4)
    assert np.bincount(user[left])[user[left]].min(initial=3) >= 3
    assert np.bincount(item[left])[item[left]].min(initial=4) >= 4
    slow = set(range(150))
    while True:
        kept = {
            r for r in slow if sum(user[s] == user[r] for s in slow) >= 3 and sum(item[s] == item[r] for s in slow) >= 4
        }
        if kept == slow:
            break
        slow = kept
    assert set(left.tolist()) == slow


def test_names_are_numbered_and_can_be_looked_up():
    data = InteractionDataModule(frame())
    assert data.item_ids.tolist() == ["i1", "i2", "i3", "i4"]
    assert ids(data.test_items()) == LISTS
    assert data.decode_items(data.test_items()[2]["item_id"]).tolist() == ["i4", "i1", "i2"]
    assert data.encode_items(["i3", "i1"]).tolist() == [3, 1]
    assert data.user_ids[int(data.test_items()[1]["user_id"])] == "u1"
    for unknown in ("i9", "i12"):
        with pytest.raises(ValueError, match=f"'{unknown}' is not in the catalogue"):
            data.encode_items([unknown])


def test_sparse_ids_are_numbered_dense_ones_kept():
    assert InteractionDataModule([[10, 20, 30], [20, 900, 10]]).schema["vocab_size"] == 4
    kept = InteractionDataModule([[1, 2, 5], [2, 5, 1]])
    assert kept.schema["vocab_size"] == 5 and ids(kept.test_items())[0] == [1, 2, 5]


def test_formats_agree(tmp_path):
    table = frame()
    numbers = table.assign(user_id=table["user_id"].str[1:].astype(int), item_id=table["item_id"].str[1:].astype(int))
    text, pairs, inter, csv, parquet, lists = (
        tmp_path / name for name in ("a.txt", "b.txt", "c.inter", "d.csv", "e.parquet", "f.parquet")
    )
    text.write_text("".join(f"{u} {' '.join(map(str, seq))}\n" for u, seq in enumerate(LISTS)))
    pairs.write_text("".join(f"{u} {i}\n" for u, seq in enumerate(LISTS) for i in seq))
    inter.write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n" + numbers.to_csv(sep="\t", header=False, index=False)
    )
    numbers.rename(columns={"timestamp": "when"}).to_csv(csv, index=False)
    numbers.to_parquet(parquet)
    pd.DataFrame({"user_id": range(3), "item_id": LISTS, "timestamp": [list(range(len(s))) for s in LISTS]}).to_parquet(
        lists
    )
    sources = [
        text,
        pairs,
        inter,
        parquet,
        lists,
        numbers,
        SequenceItems.from_lists(LISTS),
        [torch.tensor(s) for s in LISTS],
    ]
    found = [InteractionDataModule(source) for source in sources]
    found.append(InteractionDataModule(csv, columns={"user": 0, "item": "item_id", "time": "when"}))
    for data in found:
        assert ids(data.test_items()) == LISTS, data.source
        assert data.schema["vocab_size"] == 4


def test_named_users_of_numbered_items(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("anna 1 2 4\nben 4 2 1\n")
    data = InteractionDataModule(path)
    assert ids(data.test_items()) == [[1, 2, 4], [4, 2, 1]] and data.user_ids.tolist() == ["anna", "ben"]


def test_polars_frames_are_read():
    polars = pytest.importorskip("polars")
    data = InteractionDataModule(polars.from_pandas(frame()))
    assert ids(data.test_items()) == LISTS


def test_dates_are_times():
    table = frame()
    table["timestamp"] = pd.to_datetime(table["timestamp"], unit="D")
    assert ids(InteractionDataModule(table).test_items()) == LISTS
    table["timestamp"] = table["timestamp"].astype(str)
    assert ids(InteractionDataModule(table).test_items()) == LISTS


def test_ties_follow_the_policy_and_are_reported():
    table = pd.DataFrame({"user": 0, "item": [5, 3, 4, 1, 2], "time": [1, 1, 1, 2, 2]})
    table = pd.concat([table, table.assign(user=1, item=[6, 3, 4, 1, 2])])
    assert ids(InteractionDataModule(table).test_items())[0] == [5, 3, 4, 1, 2]
    assert ids(InteractionDataModule(table, ties="item").test_items())[0] == [3, 4, 5, 1, 2]
    orders = {tuple(ids(InteractionDataModule(table, ties="shuffle", seed=s).test_items())[0]) for s in range(20)}
    assert len(orders) > 3 and {frozenset(order[:3]) for order in orders} == {frozenset((3, 4, 5))}
    ties = InteractionDataModule(table).report["ties"]
    assert ties == {"adjacent_pairs": 0.75, "users": 1.0, "validation_and_test": 1.0, "tied_pairs_in_item_order": 2 / 3}
    assert InteractionDataModule(LISTS).report["ties"] is None


def test_report_counts_cold_targets():
    data = InteractionDataModule([[1, 2, 3, 9], [1, 3, 2, 1], [2, 1, 4, 3]], vocab_size=9)
    assert data.report["cold_test_targets"] == pytest.approx(1 / 3)
    assert data.report["interactions"] == {"train": 6, "test": 12}


def test_three_splits_are_views_of_one_array():
    data = small()
    assert data.train_items().columns["item_id"].data_ptr() == data.test_items().columns["item_id"].data_ptr()


def test_it_is_a_datamodule():
    check_datamodule(small())


def test_the_default_needs_no_file():
    data = InteractionDataModule()
    assert data.report["users"] == 943 and data.schema["vocab_size"] == 1682


def test_pairs_replace_the_training_batches_only():
    data = small(sampler={"alpha": 1.0, "beta": 0.0})
    batch = next(iter(data.train_dataloader()))
    assert batch["target_weight"].sum(1).eq(1).all() and batch["target_weight"][:, -1].eq(1).all()
    assert "draw" not in batch
    assert ids(data.train_items()) == ids(small().train_items())
    assert next(iter(data.val_dataloader()))["target_weight"].sum(1).max() > 1


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return {int(u): row.tolist() for b in loader for u, row in zip(b["user_id"], b["item_id"], strict=True)}


@pytest.mark.parametrize(
    "options", ({"augment": ["crop", {"insert": {"ratio": 0.5}}]}, {"augment": "reorder", "augment_prob": 1.0})
)
def test_augmentation_depends_on_seed_epoch_and_row_alone(options):
    first = epoch(small(**options), 1)
    assert first == epoch(small(**options, batch_size=7), 1)
    assert first != epoch(small(**options), 2)
    assert first != epoch(small(**options, seed=1), 1)
    assert first != epoch(small(), 1)


def test_loading_processes_draw_the_same():
    options = {"augment": ["mask"], "sampler": PairSampler(2.0, 1.0, 0.0)}
    assert epoch(small(**options, num_workers=1), 1) == epoch(small(**options), 1)


def test_drawn_anew_in_every_epoch_of_a_mixture():
    """Operators act on real rows; synthetic ones keep the weights they came with."""
    real = small(augment=["delete"], augment_prob=1.0, sampler=PairSampler())
    pool = SyntheticPool.generate(Bootstrap().fit_on(real.train_items(), real.schema), n=20, progress=False)
    loader = MixedDataModule(real, pool, ratio=0.5, batch_size=8).train_dataloader()
    seen = []
    for number in range(2):
        loader.mixture.set_epoch(number)
        batches = list(loader)
        rows = [row.tolist() for b in batches for row in b["item_id"][~b["is_synthetic"]]]
        seen.append(sorted(rows))
        for batch in batches:
            assert batch["target_weight"][~batch["is_synthetic"]].sum(1).eq(1).all()
            whole = batch["is_synthetic"]
            expected = (batch["padding_mask"][whole].sum(1) - 1).float()
            assert torch.equal(batch["target_weight"][whole].sum(1), expected)
    assert seen[0] != seen[1] and len(seen[0]) == len(seen[1]) == 60


def test_uncollated_batches_are_the_items_again():
    data = small(max_length=None)
    items = uncollate(collate(data.train_items(), data.schema), data.schema)
    for item, again in zip(data.train_items(), items, strict=True):
        assert torch.equal(item["item_id"], again["item_id"]) and torch.equal(item["timestamp"], again["timestamp"])
        assert item["user_id"] == again["user_id"]


def test_dates_with_a_zone_and_within_a_second_keep_their_order():
    moments = pd.to_datetime([900, 500, 100, 0], unit="ms", utc=True)
    table = pd.DataFrame({"user": 0, "item": [4, 3, 2, 1], "time": moments})
    assert ids(InteractionDataModule(table).test_items()) == [[1, 2, 3, 4]]
    table["time"] = moments.tz_localize(None)
    assert ids(InteractionDataModule(table).test_items()) == [[1, 2, 3, 4]]


def test_packed_files_and_byte_order_marks_are_read(tmp_path):
    frame().to_csv(tmp_path / "log.csv.gz", index=False)
    assert ids(InteractionDataModule(tmp_path / "log.csv.gz").test_items()) == LISTS
    text = "".join(" ".join(map(str, [u, *seq])) + "\n" for u, seq in enumerate(LISTS))
    (tmp_path / "log.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "marked.txt").write_text(text, encoding="utf-8-sig")
    for name in ("log.txt.gz", "marked.txt"):
        data = InteractionDataModule(tmp_path / name)
        assert ids(data.test_items()) == LISTS and data.user_ids.tolist() == [0, 1, 2]
    (tmp_path / "bad.txt.gz").write_text(text)
    with pytest.raises(DataError, match="no gzip file"):
        InteractionDataModule(tmp_path / "bad.txt.gz").setup()


def test_unusable_sources_are_named(tmp_path):
    (tmp_path / "a.parquet").write_text("hello")
    lists = {"user_id": ["a", "b"], "item_id": [[1, 2], [3, 2, 1]]}
    missing = pd.array(["x", None, "z"], dtype="string")
    for source, message in (
        (tmp_path / "a.parquet", "cannot be read as Parquet"),
        ([{"items": [1, 2]}], "sequence 0 has no item_id"),
        (pd.DataFrame({"user_id": [1, 1, 1], "item_id": missing}), "item of row 1 is missing"),
        (pd.DataFrame({**lists, "timestamp": [[1, 2], [1, 2]]}), "sequence 1 has 3 items, but 2 times"),
    ):
        with pytest.raises(DataError, match=message):
            InteractionDataModule(source).setup()
    with pytest.raises(ConfigError, match="k_core must be one whole number"):
        InteractionDataModule(LISTS, k_core=2.5)


def test_padding_has_no_original_id():
    data = InteractionDataModule(LISTS)
    with pytest.raises(DataError, match="0 is no item"):
        data.decode_items(torch.tensor([1, 0]))
