"""Long series: window counts, splits that share no row, scaling and back, missing values, times, groups, faults."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import lightning_synth as ls
from lightning_synth.datamodules import SeriesDataModule
from lightning_synth.errors import ConfigError, DataError, LeakageError
from lightning_synth.testing import check_datamodule

PARTS = ("train", "val", "test")


def table(rows=200, start=0.0):
    """Column ``row`` tells where a window came from; ``wave`` looks like a measurement."""
    t = np.arange(rows, dtype=np.float64)
    return pd.DataFrame({"row": t + start, "wave": 3 + np.sin(t / 5) + t / 100})


def rows_of(data, part):
    return set(getattr(data, f"{part}_items")().tensors["x"][:, 0].flatten().round().int().tolist())


def quiet(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = SeriesDataModule(*args, **kwargs)
        data.setup("fit")
    return data


def refused(match, *args, error=DataError, **kwargs):
    with pytest.raises(error, match=match):
        SeriesDataModule(*args, **kwargs).setup("fit")


# Formats and counts --------------------------------------------------------------------------------------------------


def test_all_formats_give_the_same_windows(tmp_path):
    frame = table()
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "headless.csv", index=False, header=False)
    frame.to_parquet(tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", X=frame.to_numpy(), columns=list(frame.columns))
    values = frame.to_numpy()
    sources = [tmp_path / name for name in ("a.csv", "a.tsv", "headless.csv", "a.parquet", "a.npz")]
    sources += [frame, values, torch.tensor(values, requires_grad=True), np.asfortranarray(values)[:, ::-1][:, ::-1]]
    for source in sources:
        data = quiet(source, length=10)
        torch.testing.assert_close(data.train_items()[5]["x"], torch.tensor(values[5:15].T, dtype=torch.float32))
        # 180 rows beside two gaps: 18 -> 1 window, 36 -> 3 windows, the rest trains.
        assert [len(getattr(data, f"{part}_items")()) for part in PARTS] == [131, 1, 21]
    assert quiet(tmp_path / "a.csv", length=10).schema["channel_names"] == ["row", "wave"]


def test_known_window_counts():
    data = quiet(table(1000), length=24, val_fraction=0.1, test_fraction=0.2)
    # 952 rows beside two gaps: 95 -> 3 windows, 190 -> 7 windows, the rest trains.
    assert [len(rows_of(data, part)) for part in PARTS] == [952 - 72 - 168, 72, 168]
    assert [len(getattr(data, f"{part}_items")()) for part in PARTS] == [712 - 23, 72 - 23, 168 - 23]
    strided = quiet(table(1000), length=24, stride=24)
    assert [len(getattr(strided, f"{part}_items")()) for part in PARTS] == [29, 3, 7]
    none = quiet(table(1000), length=24, val_fraction=0.0, test_fraction=0.0)
    assert [len(getattr(none, f"{part}_items")()) for part in PARTS] == [977, 0, 0]


def test_the_suite_of_datamodules(tmp_path):
    frame = table(300)
    frame.loc[40, "wave"] = np.nan
    frame["unit"] = np.repeat(["a", "b", "c"], 100)
    frame.to_csv(tmp_path / "a.csv", index=False)
    for options in ({"missing": "linear"}, {"missing": "mask"}, {"missing": "drop", "scale": "minmax"}):
        for split in ("time", "group"):
            data = SeriesDataModule(tmp_path / "a.csv", length=8, group="unit", split=split, batch_size=16, **options)
            assert set(check_datamodule(data).values()) == {"passed"}


# Splits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "stride"), [(10, 1), (24, 3), (7, 7)])
def test_no_row_is_in_two_splits_and_a_window_lies_between(length, stride):
    data = quiet(table(500), length=length, stride=stride)
    train, val, test = (rows_of(data, part) for part in PARTS)
    assert max(train) + length < min(val) and max(val) + length < min(test)


def test_later_rows_change_neither_training_nor_schema():
    frame, other = table(500), table(500)
    data = quiet(frame, length=10, scale="standard", columns=["wave"])
    other.loc[max(rows_of(quiet(frame, length=10), "train")) + 1 :, "wave"] *= 100
    changed = quiet(other, length=10, scale="standard", columns=["wave"])
    assert data.schema == changed.schema
    assert torch.equal(data.train_items().tensors["x"], changed.train_items().tensors["x"])


def test_the_protocol_of_the_literature_leaks_and_says_so():
    with pytest.warns(UserWarning, match="reward copies"):
        data = SeriesDataModule(table(), length=24, split="literature")
        assert len(data.train_items()) == len(data.test_items()) == 200 - 24 + 1
    assert len(data.val_items()) == 0
    pool = ls.SyntheticPool.generate(ls.get_generator("bootstrap")().fit_on(data.train_items(), data.schema), n=8)
    with pytest.raises(LeakageError):
        ls.datamodules.MixedDataModule(data, pool=pool).setup("fit")


def test_windows_never_cross_groups():
    frame = pd.concat([table(120, start=1000 * i).assign(unit=f"u{i}") for i in range(4)])
    # Rows of the groups alternate in the file.
    frame = frame.sort_values("wave", kind="stable").sort_values("row", key=lambda r: r % 1000, kind="stable")
    for split in ("time", "group"):
        data = quiet(frame, length=12, group="unit", split=split)
        assert data.schema["channel_names"] == ["row", "wave"]
        for part in PARTS:
            steps = getattr(data, f"{part}_items")().tensors["x"][:, 0].diff(dim=1)
            assert len(steps) and (steps == 1).all()
        if split == "time":
            assert all({row // 1000 for row in rows_of(data, part)} == {0, 1, 2, 3} for part in PARTS)
        else:
            units = [{row // 1000 for row in rows_of(data, part)} for part in PARTS]
            assert [len(u) for u in units] == [2, 1, 1] and set.union(*units) == {0, 1, 2, 3}


def test_subjects_of_an_array_and_other_held_out_ones_with_another_seed():
    x = np.random.default_rng(0).normal(size=(10, 3, 40))
    data = quiet(x, length=20, split="group", test_fraction=0.3)
    assert [len(getattr(data, f"{part}_items")()) for part in PARTS] == [6 * 21, 21, 3 * 21]
    other = quiet(x, length=20, split="group", test_fraction=0.3, seed=1)
    assert not torch.equal(data.test_items().tensors["x"], other.test_items().tensors["x"])


# Scaling and memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ("standard", "minmax", None))
def test_scaling_is_fitted_on_train_and_undone(scale):
    raw, data = quiet(table(400), length=10), quiet(table(400), length=10, scale=scale)
    train = data.train_items().tensors["x"]
    for part in PARTS:
        items = getattr(data, f"{part}_items")().tensors["x"]
        torch.testing.assert_close(
            data.inverse_transform(items), getattr(raw, f"{part}_items")().tensors["x"], rtol=1e-5, atol=1e-4
        )
    if scale == "minmax":
        torch.testing.assert_close(train.amin((0, 2)), torch.zeros(2))
        torch.testing.assert_close(train.amax((0, 2)), torch.ones(2))
        assert data.test_items().tensors["x"].max() > 1
    if scale == "standard":
        stretch = torch.cat([train[:, :, 0], train[-1, :, 1:].T])
        torch.testing.assert_close(stretch.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(stretch.std(0, unbiased=False), torch.ones(2), atol=1e-4, rtol=0)


def test_windows_of_one_stretch_are_views_and_survive_a_checkpoint(tmp_path, trainer_kwargs):
    from lightning.pytorch import Trainer

    data = quiet(np.random.default_rng(0).normal(size=(3000, 4)), length=100, batch_size=256)
    x = data.train_items().tensors["x"]
    assert x.untyped_storage().nbytes() < x.numel() * 4 / 50
    trainer = Trainer(max_epochs=1, **trainer_kwargs)
    trainer.fit(ls.get_generator("bootstrap")(), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    sampled = ls.load_generator(tmp_path / "a.ckpt").sample(5, seed=1).data["x"]
    assert torch.cdist(sampled.flatten(1), x.flatten(1)).amin(1).max() < 0.1


# Missing values ------------------------------------------------------------------------------------------------------


def holes(rows=300):
    frame = table(rows)
    frame.loc[[50, 51, 270], "wave"] = np.nan
    frame.loc[51, "row"] = np.nan
    return frame


def test_missing_values_are_refused_with_row_and_column():
    refused(r"row 50, column 'wave' is missing \(3 of 300 rows", holes(), length=10)


def test_linear_fills_along_time():
    data = quiet(holes(), length=10, missing="linear")
    assert data.train_items()[45]["x"][0].tolist() == list(range(45, 55))
    wave, known = data.train_items()[45]["x"][1], table()["wave"]
    between = np.interp([50, 51], [49, 52], known[[49, 52]])
    np.testing.assert_allclose(wave[5:7], between, rtol=1e-6)


def test_mean_fills_with_that_of_training():
    data = quiet(holes(), length=10, missing="mean")
    expected = holes()["wave"][: max(rows_of(data, "train")) + 1].mean()
    assert float(data.train_items()[45]["x"][1, 5]) == pytest.approx(expected, rel=1e-6)
    windows = data.test_items().tensors["x"]
    assert windows[windows[:, 0, 0] == 270][0, 1, 0] == pytest.approx(expected, rel=1e-6)


def test_drop_leaves_out_windows_that_touch_a_gap():
    full, data = quiet(table(300), length=10), quiet(holes(), length=10, missing="drop")
    assert len(full.train_items()) - len(data.train_items()) == 11
    assert len(full.test_items()) - len(data.test_items()) == 10
    assert not data.schema["ragged"] and 50 not in rows_of(data, "train")
    refused("no training window of 10 steps", table(300).where(table(300)["row"] % 5 != 0), length=10, missing="drop")


def test_mask_hides_whole_steps():
    data = quiet(holes(), length=10, missing="mask", scale="standard")
    item = data.train_items()[45]
    assert data.schema["ragged"] and item["mask"].tolist() == [True] * 5 + [False] * 2 + [True] * 3
    assert (item["x"][:, ~item["mask"]] == 0).all() and (item["x"][:, item["mask"]] != 0).all()
    frame = table(300)
    frame.loc[60:90] = np.nan
    data = quiet(frame, length=10, missing="mask")
    # Nothing is seen in the windows that begin at 60..81.
    assert len(quiet(table(300), length=10).train_items()) - len(data.train_items()) == 22


def test_a_channel_without_values_is_named():
    frame = table(300).assign(dead=np.nan)
    refused("'dead' has no value in the training part", frame, length=10, missing="mean")
    frame["dead"] = np.where(np.arange(300) < 50, 1.0, np.nan)
    with pytest.warns(UserWarning, match=r"\['dead'\] is constant"):
        refused("'dead' has no value in the val part", frame, length=10, missing="linear")


# Times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("date", "Timestamp", "when"))
@pytest.mark.parametrize("suffix", (".csv", ".parquet"))
def test_the_time_column_is_found_and_gives_the_rate(tmp_path, name, suffix):
    frame = table()
    frame.insert(0, name, pd.date_range("2026-01-01", periods=200, freq="10min"))
    path = tmp_path / f"a{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    schema = quiet(path, length=10).schema
    assert schema["channel_names"] == ["row", "wave"] and schema["sampling_rate"] == pytest.approx(1 / 600)
    assert quiet(path, length=10, sampling_rate=2.0).schema["sampling_rate"] == 2.0
    assert quiet(path, length=10, time_column=name).schema["sampling_rate"] == pytest.approx(1 / 600)


def test_seconds_as_times():
    frame = table().assign(clock=np.arange(200) * 0.5)
    assert quiet(frame, length=10, time_column="clock").schema["sampling_rate"] == 2.0
    assert quiet(frame, length=10).schema["channels"] == 3


def test_uneven_times():
    days = pd.date_range("2026-01-01", periods=300, freq="D")
    trading = days[days.dayofweek < 5][:200]
    frame = table().assign(date=trading)
    refused("uneven.*irregular='resample'", frame, length=10)
    assert quiet(frame, length=10, irregular="ignore").train_items()[0]["x"][0].tolist() == list(range(10))
    with pytest.warns(UserWarning, match="resampled"):
        data = SeriesDataModule(frame, length=10, irregular="resample")
        x = data.train_items()
    seconds = (trading[-1] - trading[0]).total_seconds() / 199
    assert data.schema["sampling_rate"] == pytest.approx(1 / seconds)
    grid = trading[0] + pd.to_timedelta(np.arange(200) * seconds, unit="s")
    grid, trading = ((times - times[0]).total_seconds() for times in (grid, trading))
    expected = np.interp(grid, trading, np.arange(200.0))
    np.testing.assert_allclose(x[20]["x"][0], expected[20:30], rtol=1e-4)


def test_doubled_unsorted_and_unreadable_times():
    stamps = pd.date_range("2026-01-01", periods=200, freq="h").to_numpy().copy()
    doubled, swapped = stamps.copy(), stamps.copy()
    doubled[7] = doubled[6]
    swapped[[7, 8]] = swapped[[8, 7]]
    for irregular in ("error", "resample", "ignore"):
        refused("timestamp 7 of series 0 is a duplicate", table().assign(date=doubled), irregular=irregular)
        refused("timestamp 8 of series 0 is earlier", table().assign(date=swapped), irregular=irregular)
    text = stamps.astype(str)
    text[9] = "yesterday"
    refused("row 9, column 'date' is no date: 'yesterday'", table().assign(date=text))
    assert len(quiet(table().assign(date=doubled), time_column=None, columns=["row", "wave"]).train_items())


def test_a_time_column_is_no_channel_unless_asked_for():
    frame = table().assign(time=np.arange(200.0))
    assert quiet(frame, length=10).schema["channel_names"] == ["row", "wave"]
    assert quiet(frame, length=10, columns=["time", "row"]).schema["channel_names"] == ["time", "row"]


# Faults --------------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read(tmp_path):
    refused("nowhere.csv does not exist", tmp_path / "nowhere.csv")
    (tmp_path / "a.xlsx").write_bytes(b"x")
    refused("type '.xlsx'", tmp_path / "a.xlsx", error=ConfigError)
    (tmp_path / "empty.csv").write_text("")
    refused("cannot be read as a table", tmp_path / "empty.csv")
    (tmp_path / "head.csv").write_text("a,b\n")
    refused("has no rows", tmp_path / "head.csv")
    (tmp_path / "semicolon.csv").write_text("a;b\n1,5;2\n2,5;3\n" * 1)
    refused("another separator", tmp_path / "semicolon.csv")
    np.savez(tmp_path / "two.npz", a=np.zeros((50, 2)), b=np.zeros((50, 2)))
    refused(r"key=; there are \['a', 'b'\]", tmp_path / "two.npz", error=ConfigError)
    for source in ({"a": [1.0]}, [[1.0]], None):
        refused("is no source of series", source)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_files_that_were_cut_short(tmp_path, suffix):
    whole, half = tmp_path / f"whole{suffix}", tmp_path / f"half{suffix}"
    table().to_parquet(whole) if suffix == ".parquet" else np.savez(whole, X=table().to_numpy())
    half.write_bytes(whole.read_bytes()[:-100])
    refused("half.*(cannot be read as Parquet|cut short)", half)
    half.write_bytes(b"no file of this kind at all")
    refused("half.*(cannot be read as Parquet|cut short)", half)


def test_a_saved_index_is_no_channel(tmp_path):
    table().to_csv(tmp_path / "saved.csv")
    with pytest.warns(UserWarning, match="numbers the rows: left out"):
        data = SeriesDataModule(tmp_path / "saved.csv", length=10)
        data.setup()
    assert data.schema["channel_names"] == ["row", "wave"]


def test_one_channel_by_name_and_frames_of_polars():
    pl = pytest.importorskip("polars")
    expected = quiet(table()[["wave"]], length=10).train_items().tensors["x"]
    for given in (
        quiet(table(), columns="wave", length=10),
        quiet(pl.from_pandas(table()), length=10, columns=["wave"]),
    ):
        assert torch.equal(given.train_items().tensors["x"], expected)
    assert torch.equal(quiet(table()["wave"], length=10).train_items().tensors["x"], expected)


def test_read_options_reach_pandas(tmp_path):
    table().to_csv(tmp_path / "a.csv", index=False, sep=";", decimal=",")
    data = quiet(tmp_path / "a.csv", length=10, read_options={"sep": ";", "decimal": ","})
    np.testing.assert_allclose(data.train_items()[0]["x"][1], table()["wave"][:10], rtol=1e-6)


def test_cells_that_are_no_numbers(tmp_path):
    frame = table().astype(object)
    frame.loc[12, "wave"] = "broken"
    frame.to_csv(tmp_path / "a.csv", index=False)
    for source in (frame, tmp_path / "a.csv"):
        refused("row 12, column 'wave' is no number: 'broken'", source, length=10)
    frame.loc[12, "wave"] = np.inf
    refused("row 12, column 'wave' is inf", frame, length=10)
    frame.loc[12, "wave"] = 1e39
    refused("row 12, column 'wave' is 1e\\+39", frame, length=10)


def test_text_columns_are_left_out_with_a_warning_unless_asked_for():
    frame = table().assign(city="Rome")
    with pytest.warns(UserWarning, match=r"\['city'\] hold text"):
        assert SeriesDataModule(frame, length=10).schema["channels"] == 2
    refused("row 0, column 'city' is no number: 'Rome'", frame, length=10, columns=["row", "city"])
    refused("no numeric column", frame[["city"]])
    refused("no column 'rom'; there are", frame, columns=["rom"], error=ConfigError)


def test_too_few_rows_says_how_many_are_needed():
    refused("100 samples are too short for 3 blocks .* needed 120", table(100), length=24)
    refused("a window needs 24 rows, but there are 20", table(20), length=24, split="literature")
    quiet(table(120), length=24)


def test_short_groups_are_left_out_with_a_warning():
    frame = pd.concat([table(n, start=1000 * i).assign(unit=i) for i, n in enumerate((200, 20, 200))])
    with pytest.warns(UserWarning, match="1 of 3 series are left out.*unit 1"):
        data = SeriesDataModule(frame, length=10, group="unit")
        assert {row // 1000 for row in rows_of(data, "train")} == {0, 2}
    with pytest.warns(UserWarning, match="left out"):
        refused("needs 3, but there are 2", frame, length=30, group="unit", split="group")


def test_one_series_cannot_be_split_by_group():
    refused("needs 3, but there are 1", table(), split="group")
    refused("row 3, column 'unit' is missing", table().assign(unit=["a"] * 3 + [None] + ["a"] * 196), group="unit")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (table().assign(flat=2.0), r"\['flat'\] is constant"),
        (table().assign(big=1e30 * np.arange(200)), r"\['big'\] has magnitudes"),
        (np.sin(np.arange(200.0)), "one axis: taken as one channel of 200 steps"),
        (
            np.random.default_rng(0).normal(size=(100, 120)),
            r"120 channels of 100 steps: is its order \(steps, channels",
        ),
    ],
)
def test_odd_values_and_shapes_warn_once(source, match):
    with pytest.warns(UserWarning, match=match) as caught:
        data = SeriesDataModule(source, length=10, scale="standard")
        assert torch.isfinite(data.train_items().tensors["x"]).all()
    assert len(caught) == 1


@pytest.mark.parametrize("dtype", ("float64", "int16", "bool"))
def test_dtypes_are_cast(dtype):
    values = (np.arange(400).reshape(200, 2) * 7 % 5 > 1).astype(dtype)
    values.setflags(write=False)
    assert quiet(values, length=10).train_items()[0]["x"].dtype == torch.float32
    refused("dtype", values.astype(str), length=10)


@pytest.mark.parametrize(
    "bad",
    [
        {"length": 1},
        {"stride": 0},
        {"split": "random"},
        {"scale": "robust"},
        {"missing": "zero"},
        {"irregular": "guess"},
        {"val_fraction": 0.5, "test_fraction": 0.5},
        {"test_fraction": -0.1},
        {"time_column": "clock"},
        {"columns": ["unit"]},
    ],
)
def test_impossible_settings(bad):
    frame = table().assign(date=pd.date_range("2026-01-01", periods=200, freq="h"))
    refused(next(iter(bad)).split("_")[-1].removesuffix("s"), frame, error=ConfigError, **{"length": 10, **bad})


def test_samples_and_batches_are_scaled_back():
    data = quiet(table(), length=10, scale="standard")
    samples = ls.get_generator("bootstrap")().fit_on(data.train_items(), data.schema).sample(3)
    expected = data.inverse_transform(samples.data["x"])
    assert torch.equal(data.inverse_transform(samples), expected)
    assert torch.equal(data.inverse_transform(samples.data), expected)
    with pytest.raises(DataError, match=r"must be \(..., 2, length\)"):
        data.inverse_transform(np.zeros((4, 3, 10)))
