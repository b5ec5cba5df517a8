"""What goes out to other libraries comes back the same; none of them is installed here."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from lightning_synth.datamodules import InteractionDataModule
from lightning_synth.errors import DataError
from lightning_synth.sequences import (
    PairSampler,
    ReplayTransform,
    SequenceItems,
    to_frame,
    to_pairs_text,
    to_recbole,
    to_rectools,
    to_replay_parquet,
    to_text,
)

LISTS = [[1, 2, 3, 4], [2, 3, 1, 4, 2], [4, 1, 2]]
WEIGHTED = [
    {"item_id": torch.tensor([5, 6, 7]), "target_weight": torch.tensor([0.0, 0.0, 0.5]), "user_id": torch.tensor(1)},
    {"item_id": torch.tensor([8, 9]), "target_weight": torch.tensor([0.0, 1.0]), "user_id": torch.tensor(-1)},
]


def ids(items):
    return [item["item_id"].tolist() for item in items]


def original():
    return InteractionDataModule([[f"i{i}" for i in seq] for seq in LISTS])


def test_text_comes_back(tmp_path):
    data = original()
    plain = to_text(data.test_items(), tmp_path / "plain.txt")
    assert plain.read_text().splitlines()[0] == "1 1 2 3 4"
    assert ids(InteractionDataModule(plain).test_items()) == LISTS
    named = to_text(data.test_items(), tmp_path / "named.txt", item_ids=data.item_ids, user_ids=data.user_ids)
    again = InteractionDataModule(named)
    assert named.read_text().startswith("0 i1 i2 i3 i4\n")
    assert again.item_ids.tolist() == data.item_ids.tolist() and ids(again.test_items()) == LISTS


def test_pairs_text_comes_back(tmp_path):
    path = to_pairs_text(SequenceItems.from_lists(LISTS), tmp_path / "pairs.txt")
    assert path.read_text().splitlines()[:5] == ["1 1", "1 2", "1 3", "1 4", "2 2"]
    assert ids(InteractionDataModule(path).test_items()) == LISTS


def test_frames_come_back_with_weights():
    frame = to_frame(SequenceItems.from_lists(LISTS))
    assert ids(InteractionDataModule(frame).test_items()) == LISTS
    assert frame["weight"].tolist()[:5] == [0, 1, 1, 1, 0]
    weighted = to_frame(WEIGHTED)
    assert weighted["weight"].tolist() == [0, 0, 0.5, 0, 1]
    pairs = PairSampler.last_target().bind(WEIGHTED[1:])
    assert to_frame(pairs.__getitems__([0]))["weight"].tolist() == [0, 1]


def test_synthetic_users_have_names_of_their_own():
    users = to_frame([*WEIGHTED, WEIGHTED[0]], user_ids=np.array(["anna", "ben"]))["user_id"]
    assert users.tolist() == ["ben"] * 3 + ["synthetic1"] * 2 + ["synthetic2"] * 3


def test_rectools_frame_keeps_the_order_of_ties():
    items = SequenceItems.from_items(
        [{"item_id": torch.tensor(seq), "timestamp": torch.zeros(len(seq))} for seq in LISTS]
    )
    frame = to_rectools(items)
    assert frame.columns.tolist() == ["user_id", "item_id", "weight", "datetime"]
    shuffled = frame.sample(frac=1, random_state=0).sort_values(["user_id", "datetime"])
    assert shuffled.groupby("user_id")["item_id"].agg(list).tolist() == LISTS
    assert str(frame["datetime"].dtype).startswith("datetime64")
    assert to_rectools(WEIGHTED)["weight"].tolist() == [0, 0, 0.5, 0, 1]


def test_replay_parquet_counts_items_from_0(tmp_path):
    data = original()
    path = tmp_path / "deep" / "train.parquet"
    metadata = to_replay_parquet(data.test_items(), path, data.schema)
    table = pq.read_table(path)
    assert table.column("item_id").to_pylist() == [[i - 1 for i in seq] for seq in LISTS]
    assert table.column("target_weight").to_pylist()[0] == [0, 1, 1, 1]
    assert metadata["item_id"] == {"shape": 50, "padding": 4} and metadata["user_id"] == {}
    assert set(metadata) == set(table.column_names)
    assert ids(InteractionDataModule(path).test_items()) == LISTS


def test_recbole_benchmark_files(tmp_path):
    data = InteractionDataModule(LISTS)
    synthetic = [{"item_id": torch.tensor([1, 2, 3]), "target_weight": torch.tensor([0.0, 0.0, 1.0])}]
    config = to_recbole(data, tmp_path, "mine", synthetic)
    assert config["benchmark_filename"] == ["train", "valid", "test"]
    frames = {
        part: pd.read_csv(tmp_path / "mine" / f"mine.{part}.inter", sep="\t", dtype=str)
        for part in config["benchmark_filename"]
    }
    for frame in frames.values():
        assert frame.columns.tolist() == ["user_id:token", "item_id_list:token_seq", "item_id:token"]
    # One row a target: the third user has a single training item and none.
    assert frames["train"].to_numpy().tolist() == [
        ["0", "1", "2"],
        ["1", "2", "3"],
        ["1", "2 3", "1"],
        ["synthetic3", "1 2", "3"],
    ]
    assert frames["test"].to_numpy()[0].tolist() == ["0", "1 2 3", "4"]
    test = InteractionDataModule(tmp_path / "mine" / "mine.test.inter")
    assert ids(test.test_items()) == LISTS


# -------------------------------------------------------------------------------------------------- RePlay transform


def replay_batch():
    """As RePlay's `ParquetModule` pads it: items from 0, padding = number of items."""
    ids = torch.tensor([[9, 9, 0, 3, 5, 7], [1, 2, 3, 4, 5, 6]])
    mask = ids != 9
    return {
        "item_id": ids,
        "item_id_mask": mask,
        "rating": torch.where(mask, ids.float(), 0.0),
        "user_id": torch.arange(2),
    }


def test_replay_transform_translates_ids_and_padding():
    batch = replay_batch()
    done = ReplayTransform(["delete"], num_items=9, prob=1.0, seed=3)(batch)
    assert {k: (v.shape, v.dtype) for k, v in done.items()} == {k: (v.shape, v.dtype) for k, v in batch.items()}
    mask = done["item_id_mask"]
    assert (done["item_id"][~mask] == 9).all() and mask.sum(1).tolist() == [3, 5]
    assert torch.equal(done["rating"][mask], done["item_id"][mask].float()), "other columns move along"
    assert done["item_id"][:, -1].tolist() == [7, 6]
    assert torch.equal(batch["item_id"], replay_batch()["item_id"])


def test_replay_transform_draws_anew_for_every_batch_and_can_be_repeated():
    one, two = (ReplayTransform(["reorder"], num_items=9, prob=1.0, seed=1) for _ in range(2))
    batch = replay_batch()
    drawn, again = ([transform(batch)["item_id"].tolist() for _ in range(6)] for transform in (one, two))
    assert drawn == again and len({str(rows) for rows in drawn}) > 2


def test_replay_transform_fits_and_runs_in_a_chain():
    train = SequenceItems.from_lists([[1, 2, 3], [2, 3, 4], [6, 8, 10]])
    transform = ReplayTransform(["substitute"], num_items=10, prob=1.0, padding_value=10).fit(train)
    batch = {"item_id": torch.tensor([[10, 1, 2]]), "item_id_mask": torch.tensor([[False, True, True]])}
    done = torch.nn.Sequential(transform)(batch)
    assert done["item_id"].tolist() == [[10, 2, 2]]


def test_replay_transform_names_what_is_missing():
    with pytest.raises(DataError, match="no 'item_id' or no 'item_id_mask'"):
        ReplayTransform(["crop"], num_items=3)({"item_id": torch.ones(1, 2)})


def test_no_sequences_make_empty_files(tmp_path):
    assert to_text([], tmp_path / "a.txt").read_text() == to_pairs_text([], tmp_path / "b.txt").read_text() == ""
