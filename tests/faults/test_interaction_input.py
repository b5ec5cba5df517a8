"""Bad interaction logs end in a named error or one warning, before training starts (trust.md 7.1, rows 44 to 52)."""

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_synth.datamodules import InteractionDataModule
from lightning_synth.errors import ConfigError, DataError

GOOD = [[1, 2, 3, 4], [2, 3, 4, 1], [3, 1, 2]]


def ids(items):
    return [item["item_id"].tolist() for item in items]


@pytest.mark.parametrize("form", ("list", "text"))
@pytest.mark.parametrize("bad", (0, -3))
def test_padding_id_among_the_items(tmp_path, form, bad):
    source = [*GOOD, [1, bad, 2]]
    if form == "text":
        path = tmp_path / "log.txt"
        path.write_text("".join(f"{u} {' '.join(map(str, s))}\n" for u, s in enumerate(source, 1)))
        source = path
    with pytest.raises(DataError, match=f"interaction 12 has item id {bad}.*0 is padding: add 1"):
        InteractionDataModule(source).setup()


def test_zero_is_a_name_like_others_in_tables():
    table = pd.DataFrame({"user_id": [0, 0, 0, 1, 1, 1], "item_id": [0, 1, 2, 2, 0, 1], "timestamp": range(6)})
    data = InteractionDataModule(table)
    assert ids(data.test_items()) == [[1, 2, 3], [3, 1, 2]] and data.item_ids.tolist() == [0, 1, 2]


def test_item_beyond_the_vocabulary():
    with pytest.raises(DataError, match="interaction 3 has item id 4, more than vocab_size=3 .2 such"):
        InteractionDataModule(GOOD, vocab_size=3).setup()
    with pytest.raises(DataError, match="4 items, more than vocab_size=3"):
        InteractionDataModule([[str(i) for i in seq] for seq in GOOD], vocab_size=3).setup()
    assert InteractionDataModule(GOOD, vocab_size=9).schema["vocab_size"] == 9


def test_empty_and_single_sequences_are_left_out_and_counted():
    with pytest.warns(UserWarning, match="2 of 5 users have no or one interaction"):
        data = InteractionDataModule([[], *GOOD, [4]])
        data.setup()
    assert data.report["users_left_out"] == 2 and ids(data.test_items()) == GOOD
    assert [int(item["user_id"]) for item in data.test_items()] == [1, 2, 3]


def test_a_user_without_items_on_a_line(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("1 1 2 3\n2\n\n3 3 1 2\n")
    with pytest.warns(UserWarning, match="1 of 3 users"):
        assert ids(InteractionDataModule(path).test_items()) == [[1, 2, 3], [3, 1, 2]]


@pytest.mark.parametrize("source", ([], [[]], [[1], [2]]))
def test_nothing_to_learn_from(source):
    with pytest.raises(DataError, match="0 interactions|no user has two interactions"):
        InteractionDataModule(source).setup()


def test_long_sequences_lose_their_oldest_items_in_batches():
    data = InteractionDataModule([list(range(1, 10)), [2, 1, 3]], max_length=3)
    batch = next(iter(data.test_dataloader()))
    assert batch["item_id"].tolist() == [[7, 8, 9], [2, 1, 3]]


def test_a_user_on_two_lines(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("7 1 2 3\n8 3 1 2\n7 3 2\n")
    with pytest.raises(DataError, match="user 7 is on more than one line .1 such"):
        InteractionDataModule(path).setup()
    merged = InteractionDataModule(path, duplicates="merge")
    assert ids(merged.test_items()) == [[1, 2, 3, 3, 2], [3, 1, 2]]


def test_all_users_alike():
    with pytest.warns(UserWarning, match="all users have the same sequence"):
        InteractionDataModule([[1, 2, 3]] * 4).setup()


def test_one_item_only():
    with pytest.raises(DataError, match="one item only"):
        InteractionDataModule([[1, 1, 1], [1, 1]]).setup()


def test_ties_keep_the_order_of_the_file():
    rng = np.random.default_rng(0)
    item = rng.integers(1, 40, 3000)
    table = pd.DataFrame({"user": np.arange(3000) % 30, "item": item, "time": 0})
    found = InteractionDataModule(table).test_items()
    assert [sum(map(len, ids(found)))] == [3000]
    assert found[3]["item_id"].tolist() == InteractionDataModule(table).encode_items(item[3::30]).tolist()


def test_items_that_are_no_integers():
    table = pd.DataFrame({"user": list("aabb") * 2, "item": list("xyzx") * 2, "time": range(8)})
    data = InteractionDataModule(table)
    assert data.item_ids.tolist() == ["x", "y", "z"] and ids(data.test_items())[0] == [1, 2, 1, 2]
    floats = InteractionDataModule(table.assign(item=np.tile([1.0, 2.0, 3.0, 1.0], 2)))
    assert floats.item_ids.dtype.kind == "i"


# -------------------------------------------------------------------------------------------------------- other faults


@pytest.mark.parametrize("column", ("user", "item", "time"))
def test_missing_values_are_named(column):
    table = pd.DataFrame({"user": [1.0, 1, 2, 2], "item": [1.0, 2, 1, 2], "time": [1.0, 2, 3, 4]})
    table.loc[2, column] = np.nan
    with pytest.raises(DataError, match=f"{column} of row 2 is missing"):
        InteractionDataModule(table).setup()


def test_missing_names_are_named():
    table = pd.DataFrame({"user": ["a", None, "b"], "item": [1, 2, 3]})
    with pytest.raises(DataError, match="user of row 1 is missing"):
        InteractionDataModule(table).setup()


def test_columns_that_are_not_there():
    table = pd.DataFrame({"who": [1, 1], "what": [1, 2]})
    with pytest.raises(DataError, match="no user column; it has who, what: name it"):
        InteractionDataModule(table).setup()
    with pytest.raises(DataError, match="no time column 'when'"):
        InteractionDataModule(table, columns={"user": "who", "item": "what", "time": "when"}).setup()
    with pytest.raises(ConfigError, match="columns may name user, item and time, got .'rating'"):
        InteractionDataModule(table, columns={"user": "who", "item": "what", "rating": 2}).setup()


def test_times_that_are_none():
    table = pd.DataFrame({"user": [1, 1], "item": [1, 2], "time": ["soon", "later"]})
    with pytest.raises(DataError, match="neither numbers nor dates"):
        InteractionDataModule(table).setup()
    with pytest.raises(ConfigError, match="split='time' needs times"):
        InteractionDataModule(GOOD, split="time").setup()


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        InteractionDataModule(tmp_path / "none.txt").setup()
    for text in ("", "\n\n"):
        (tmp_path / "empty.txt").write_text(text)
        with pytest.raises(DataError, match="is empty: 0 interactions"):
            InteractionDataModule(tmp_path / "empty.txt").setup()
    (tmp_path / "odd.txt").write_text("1 2 3\n2 3-1 2\n")
    with pytest.raises(DataError, match="odd.txt.*whole number"):
        InteractionDataModule(tmp_path / "odd.txt").setup()
    (tmp_path / "binary.txt").write_bytes(bytes(range(128, 256)))
    with pytest.raises(DataError, match="binary.txt is no text file"):
        InteractionDataModule(tmp_path / "binary.txt").setup()
    (tmp_path / "ragged.csv").write_text("user,item\n1,2\n1,2,3\n")
    with pytest.raises(DataError, match="ragged.csv cannot be read as a table"):
        InteractionDataModule(tmp_path / "ragged.csv").setup()
    with pytest.raises(ConfigError, match="source must be a path"):
        InteractionDataModule(3).setup()


def test_a_core_that_is_empty():
    with pytest.raises(DataError, match="k_core=.9, 9. leaves no interaction of 11"):
        InteractionDataModule(GOOD, k_core=9).setup()


def test_sequences_that_are_no_lists_of_ids():
    with pytest.raises(DataError, match="sequence 1 has shape"):
        InteractionDataModule([[1, 2, 3], torch.ones(2, 2, dtype=torch.int64)]).setup()
    with pytest.raises(DataError, match="sequence 0 has 3 items, but 2 times"):
        InteractionDataModule([{"item_id": [1, 2, 3], "timestamp": [1, 2]}]).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"split": "random"}, "split must be one of"),
        ({"ties": "any"}, "ties must be one of"),
        ({"duplicates": "drop"}, "duplicates must be one of"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave a training part"),
        ({"batch_size": 0}, "batch_size"),
        ({"augment": ["crop"], "augment_prob": 2.0}, "prob must be in"),
        ({"augment": ["krop"]}, "operator 'krop' is unknown"),
        ({"sampler": {"alpha": float("inf")}}, "alpha must lie in"),
    ),
)
def test_impossible_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        InteractionDataModule(GOOD, **options)
