"""Arrays and archives: official splits, shots, groups, formats; nothing of the test split leaks."""

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_synth.datamodules import ArrayDataModule, UEADataModule
from lightning_synth.datamodules.readers import read_ts
from lightning_synth.errors import ConfigError, DataError


def arrays(n=12, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 2, 16)).astype(np.float32)
    return x, np.arange(n) % 3


def ids(items):
    """The series, as a set of hashable contents."""
    return {x.numpy().tobytes() for x in items.tensors["x"]}


def test_the_documented_call():
    x, y = arrays()
    data = ArrayDataModule(x, y, x[:3], y[:3], batch_size=5)
    assert [len(b["y"]) for b in data.train_dataloader()] == [5, 5, 2]
    assert len(data.val_items()) == 0 and len(data.test_items()) == 3
    torch.testing.assert_close(data.train_items().tensors["x"], torch.from_numpy(x))
    np.testing.assert_allclose(data.schema["mean"], x.mean((0, 2)), atol=1e-6)


def test_unlabelled_arrays():
    data = ArrayDataModule(arrays()[0], None, arrays()[0], None)
    assert data.schema["num_classes"] == 0 and set(data.train_items()[0]) == {"x"}


def test_attributes_not_hparams():
    x, y = arrays()
    data = ArrayDataModule(x, y, shots=2, batch_size=7)
    assert (data.shots, data.batch_size, dict(data.hparams)) == (2, 7, {})


def test_test_data_changes_neither_schema_nor_training():
    x, y = arrays()
    a, b = ArrayDataModule(x, y, x, y, val_fraction=0.25), ArrayDataModule(x, y, x * 50, y[::-1], val_fraction=0.25)
    assert a.schema == b.schema and ids(a.train_items()) == ids(b.train_items())


def test_validation_is_drawn_within_each_class():
    x, y = arrays()
    data = ArrayDataModule(x, y, val_fraction=0.25)
    assert torch.bincount(data.val_items().tensors["y"]).tolist() == [1, 1, 1]
    assert not ids(data.train_items()) & ids(data.val_items())
    assert len(data.train_items()) + len(data.val_items()) == 12


def test_groups_stay_together():
    x, y = arrays()
    group = np.repeat(["a", "b", "c", "d"], 3)
    data = ArrayDataModule(x, y, val_fraction=0.25, groups=group)
    held = {group[i] for i in range(12) if x[i].tobytes() in ids(data.val_items())}
    assert len(held) == 1 and len(data.val_items()) == 3
    with pytest.raises(DataError, match="groups has 2"):
        ArrayDataModule(x, y, val_fraction=0.25, groups=[0, 1]).setup()


def test_own_validation_split_and_conditions():
    x, y = arrays()
    data = ArrayDataModule(
        x,
        y,
        x_val=x[:2],
        y_val=y[:2],
        conditions={"load": np.arange(12)},
        conditions_val={"load": [1, 2]},
        val_fraction=0.5,
    )
    assert len(data.train_items()) == 12 and data.val_items().tensors["load"].tolist() == [1.0, 2.0]
    assert set(data.schema["condition_rows"]) == {"label", "load"}


def test_shots_leave_the_rest_for_validation():
    x, y = arrays()
    data = ArrayDataModule(x, y, shots=2, draw=1)
    assert data.schema["class_counts"] == [2, 2, 2] and len(data.val_items()) == 6
    assert not ids(data.train_items()) & ids(data.val_items())
    assert ids(data.train_items()) != ids(ArrayDataModule(x, y, shots=2, draw=2).train_items())
    with pytest.warns(UserWarning, match="fewer than 9"):
        ArrayDataModule(x, y, shots=9).setup()


def test_windows_of_recordings_are_split_by_time_with_a_gap():
    x = np.arange(2 * 100, dtype=np.float32).reshape(2, 1, 100)
    data = ArrayDataModule(x, [0, 1], window=10, stride=5, val_fraction=0.3, conditions={"rpm": [1, 2]})
    for label in (0, 1):
        train, val = (
            items.tensors["x"][items.tensors["y"] == label] for items in (data.train_items(), data.val_items())
        )
        assert float(val.min()) - float(train.max()) > 10
        assert (data.train_items().tensors["rpm"][data.train_items().tensors["y"] == label] == label + 1).all()
    assert int(data.train_items().tensors["y"][0]) == 0 and float(data.train_items()[1]["x"][0, 0]) == 5.0


def test_windowed_shots_never_validate_on_their_neighbours():
    x = np.arange(2 * 100, dtype=np.float32).reshape(2, 1, 100)
    data = ArrayDataModule(x, [0, 1], window=10, shots=2)
    assert data.schema["class_counts"] == [2, 2] and len(data.val_items()) == 0


def test_normal_class_by_name():
    x, _ = arrays()
    data = ArrayDataModule(x, ["ok", "broken", "ok"] * 4, normal_class="ok")
    assert data.schema["normal_class"] == 1
    assert (
        ArrayDataModule(x, ["ok", "broken", "ok"] * 4, class_names=["B", "N"], normal_class="N").schema["normal_class"]
        == 1
    )
    with pytest.raises(ConfigError, match="normal_class"):
        ArrayDataModule(x, ["ok", "broken", "ok"] * 4, normal_class="fine").setup()


@pytest.mark.parametrize("bad", [{"val_fraction": 1.0}, {"val_fraction": -0.1}])
def test_impossible_fractions(bad):
    with pytest.raises(ConfigError):
        ArrayDataModule(*arrays(), **bad)


# Archives ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "train", "test"),
    [("BasicMotions", (6, 100), 40, 40), ("ItalyPowerDemand", (1, 24), 67, 1029), ("GunPoint", (1, 150), 50, 150),
     ("ArrowHead", (1, 251), 36, 175)],
)  # fmt: skip
def test_sets_inside_sktime(name, shape, train, test):
    data = UEADataModule(name)
    assert (data.schema["channels"], data.schema["length"]) == shape
    assert (len(data.train_items()), len(data.test_items())) == (train, test)
    assert not ids(data.train_items()) & ids(data.test_items())


def test_class_names_follow_the_header():
    data = UEADataModule("BasicMotions", shots=3, draw=5)
    assert data.schema["class_names"] == ["Standing", "Running", "Walking", "Badminton"]
    assert data.schema["class_counts"] == [3] * 4 and len(data.val_items()) == 28


def test_unequal_lengths():
    with pytest.warns(UserWarning, match="x_test: 1 series are longer than 26"):
        data = UEADataModule("JapaneseVowels")
        data.setup()
    assert data.schema["ragged"] and data.schema["length"] == 26 and data.schema["class_counts"] == [30] * 9
    assert data.train_items().tensors["mask"].sum(1).min() == 7
    assert UEADataModule("JapaneseVowels", length=29).schema["length"] == 29


TS = """# a comment
@problemName Tiny
@timeStamps false
@univariate false
@equalLength false
@classLabel true up down
@data
1,2,3:4,5,6:up
3,2,1,0:6,5,4,{}:down
1,2,4:4,5,7:up
3,2,0,0:6,5,3,2:down
"""


def test_any_ts_file(tmp_path):
    (tmp_path / "Tiny_TRAIN.ts").write_text(TS.format(3))
    (tmp_path / "Tiny_TEST.ts").write_text(TS.format(2))
    for name in ("Tiny_TRAIN.ts", "Tiny.ts", "Tiny_TEST.ts"):
        data = UEADataModule(tmp_path / name)
        assert data.schema["class_names"] == ["up", "down"] and len(data.test_items()) == 4
        assert data.train_items().tensors["x"][1, 1].tolist() == [6, 5, 4, 3]
        assert data.train_items().tensors["mask"][0].tolist() == [True, True, True, False]


def test_missing_values_in_a_ts_file(tmp_path):
    (tmp_path / "Tiny_TRAIN.ts").write_text(TS.format("?"))
    with pytest.raises(DataError, match="series 1, channel 1, step 3 is NaN"):
        UEADataModule(tmp_path / "Tiny_TRAIN.ts").setup()
    with pytest.warns(UserWarning, match="no test part"):
        data = UEADataModule(tmp_path / "Tiny_TRAIN.ts", impute="linear")
        data.setup()
    assert float(data.train_items()[1]["x"][1, 3]) == 4.0


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (TS.replace("@timeStamps false", "@timeStamps true").format(1), "time stamps"),
        (TS.format("x"), "line 9"),
        (TS.replace("4,5,6", "4,5").format(1), "line 8"),
        ("nothing", "no @data section"),
        (TS.format(1) + "\n4,5,6", "series and its label are needed"),
        ("@\n", "no @data section"),
    ],
)
def test_broken_ts_files(tmp_path, text, match):
    (tmp_path / "broken.ts").write_text(text)
    with pytest.raises(DataError, match=match):
        read_ts(tmp_path / "broken.ts")


def test_npz_file(tmp_path):
    x, y = arrays()
    np.savez(
        tmp_path / "set.npz",
        X_train=x,
        y_train=y,
        X_test=x[:4] + 1,
        y_test=y[:4],
        class_names=np.array(["a", "b", "c"]),
    )
    data = UEADataModule(tmp_path / "set.npz")
    assert data.schema["class_names"] == ["a", "b", "c"] and len(data.test_items()) == 4
    np.savez(tmp_path / "other.npz", X=x)
    with pytest.raises(DataError, match="has no X_train; found: X"):
        UEADataModule(tmp_path / "other.npz").setup()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"class_names": np.array(["a"])}, "y_train holds 0..2, but there are 1 class_names"),
        ({"len_train": np.array([3, 4])}, "len_train has 2 entries for 12 series"),
    ],
)
def test_npz_whose_entries_do_not_fit(tmp_path, change, match):
    x, y = arrays()
    np.savez(tmp_path / "set.npz", X_train=x, y_train=y, **change)
    with pytest.raises(DataError, match=match):
        UEADataModule(tmp_path / "set.npz").setup()


def test_npz_cut_short(tmp_path):
    np.savez(tmp_path / "set.npz", X_train=arrays()[0])
    (tmp_path / "half.npz").write_bytes((tmp_path / "set.npz").read_bytes()[:500])
    with pytest.raises(DataError, match=r"half.npz is no npz of plain arrays, or was cut short"):
        UEADataModule(tmp_path / "half.npz").setup()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"class_names": ["a", "b"]}, ConfigError, "3 different names"),
        ({"class_names": ["a", "b", "b"]}, ConfigError, "3 different names"),
        ({"channel_names": ["a"]}, ConfigError, "1 channel_names for 2 channels"),
        ({"length": 20}, ConfigError, "all of x_train have 16 steps"),
        ({"conditions": {"keep": np.arange(12)}}, DataError, "'keep' is reserved"),
        ({"conditions": {"given": np.arange(12)}}, DataError, "'given' is reserved"),
    ],
)
def test_settings_that_do_not_fit_the_arrays(options, error, match):
    with pytest.raises(error, match=match):
        ArrayDataModule(*arrays(), **options).setup()


def test_conditions_may_be_a_frame():
    data = ArrayDataModule(*arrays(), conditions=pd.DataFrame({"rpm": np.arange(12)}))
    assert data.train_items().tensors["rpm"].tolist() == list(range(12))


def test_npz_padded_with_nan(tmp_path):
    x, y = arrays()
    lengths = np.array([16, 9] * 6)
    for row, n in zip(x, lengths, strict=True):
        row[:, n:] = np.nan
    np.savez(tmp_path / "set.npz", X_train=x, y_train=y, len_train=lengths)
    with pytest.warns(UserWarning, match="no test part"):
        data = UEADataModule(tmp_path / "set.npz")
        data.setup()
    assert data.train_items().tensors["mask"].sum(1).tolist() == lengths.tolist()


def test_unknown_sets_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"not shipped inside sktime \(.*BasicMotions"):
        UEADataModule("NoSuchSet").setup()
    with pytest.raises(DataError, match="does not exist"):
        UEADataModule(tmp_path / "none.npz").setup()
