"""Bad and odd series: rows 1-23 of the fault table, each an error before training, one warning, or survival."""

import logging
import warnings

import numpy as np
import pytest
import torch

from lightning_synth.datamodules import ArrayDataModule
from lightning_synth.datamodules.coerce import coerce_series, regular_time
from lightning_synth.datamodules.windows import cut_windows
from lightning_synth.errors import ConfigError, DataError
from lightning_synth.schema import describe, validate


def series(n=6, channels=2, length=12, seed=0):
    return np.random.default_rng(seed).normal(size=(n, channels, length)).astype(np.float32)


def labels(n=6):
    return np.arange(n) % 2


def quiet(*args, **kwargs):
    """Build and load a DataModule; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ArrayDataModule(*args, **kwargs)
        data.setup("fit")
    return data


def warned(match, *args, **kwargs):
    """Build and load a DataModule that warns exactly once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = ArrayDataModule(*args, **kwargs)
        data.setup("fit")
        data.schema, data.train_items()
    texts = [str(w.message) for w in caught]
    assert len(texts) == 1 and match in texts[0], texts
    return data


def refused(match, *args, **kwargs):
    with pytest.raises(DataError, match=match):
        ArrayDataModule(*args, **kwargs).setup("fit")


# 1, 2: NaN and infinity ----------------------------------------------------------------------------------------------


def test_01_one_nan_names_series_and_channel():
    x = series()
    x[4, 1, 7] = np.nan
    refused("x_train: value at series 4, channel 1, step 7 is NaN", x, labels())
    refused("x_test: value at series 4, channel 1, step 7 is NaN", series(), labels(), x, labels())


def test_01_linear_imputation_bridges_gaps_and_holds_ends():
    x = np.arange(24.0).reshape(1, 2, 12)
    holed = x.copy()
    holed[0, 0, 3:6] = np.nan
    holed[0, 1, 0] = holed[0, 1, -1] = np.nan
    filled = coerce_series(holed, impute="linear", train=False).x
    np.testing.assert_allclose(filled[0, 0], x[0, 0])
    np.testing.assert_allclose(filled[0, 1], [13, *x[0, 1, 1:-1], 22])


def test_01_mean_imputation_uses_the_same_series_only():
    x = series()
    x[2, 0, 0] = np.nan
    filled = coerce_series(x, impute="mean").x
    np.testing.assert_allclose(filled[2, 0, 0], np.nanmean(x[2, 0]), rtol=1e-6)
    np.testing.assert_array_equal(np.delete(filled, 2, 0), np.delete(x, 2, 0))


def test_01_a_channel_of_nan_cannot_be_imputed():
    x = series()
    x[3, 1] = np.nan
    with pytest.raises(DataError, match=r"series 3, channel 1.*nothing to impute"):
        coerce_series(x, impute="linear")
    with pytest.raises(ConfigError, match="impute"):
        coerce_series(x, impute="magic")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_02_infinity(value):
    x = series()
    x[0, 1, 2] = value
    refused("series 0, channel 1, step 2 is infinite", x, labels())


def test_01_the_frame_refuses_nan_too():
    items = [{"x": torch.from_numpy(x)} for x in series()]
    schema = describe(items, "timeseries")
    items[3]["x"][1, 4] = float("nan")
    with pytest.raises(DataError, match="window 3, channel 1, step 4"):
        validate(items, schema)


# 3-6: shapes ---------------------------------------------------------------------------------------------------------


def test_03_constant_channel_is_kept_with_scale_one():
    x = series()
    x[:, 1] = 3.0
    data = warned("channel [1] is constant", x, labels())
    assert data.schema["std"][1] == 1.0 and data.schema["mean"][1] == 3.0
    assert float(data.train_items()[0]["x"][1, 0]) == 3.0


def test_04_length_zero_and_no_series():
    refused("length 0", np.zeros((3, 2, 0)))
    refused("empty", np.zeros((0, 2, 12)))
    refused("empty", np.zeros((3, 0, 12)))


def test_05_length_one_and_shorter_than_the_window():
    refused("length 1; a series needs at least 2", np.zeros((3, 2, 1)))
    refused("needs 24 samples, but the series has 12", series(), labels(), window=24)
    with pytest.raises(DataError, match="needs 24"):
        cut_windows(np.zeros((2, 12)), 24)


def test_06_ragged_lengths_are_padded_with_a_mask():
    parts = [series(1, 2, n)[0] for n in (5, 12, 9, 7)]
    data = quiet(parts, [0, 1, 0, 1])
    batch = next(iter(ArrayDataModule(parts, [0, 1, 0, 1], batch_size=4).train_dataloader()))
    assert data.schema["ragged"] and data.schema["length"] == 12 and batch["mask"].dtype == torch.bool
    for item, part in zip(data.train_items(), parts, strict=True):
        np.testing.assert_array_equal(item["x"][:, item["mask"]], part)
        assert not item["x"][:, ~item["mask"]].any()
    np.testing.assert_allclose(data.schema["mean"], np.concatenate(parts, 1).mean(1), atol=1e-6)


def test_06_object_arrays_of_unequal_series():
    parts = np.empty(2, object)
    parts[:] = [series(1, 2, 5)[0], series(1, 2, 8)[0]]
    assert quiet(parts).schema["length"] == 8
    refused(r"x_train\[1\] has shape", [series(1, 2, 5)[0], series(1, 3, 8)[0]])


def test_06_longer_test_series_are_cut_not_leaked():
    parts = [series(1, 2, n)[0] for n in (5, 9, 6, 7)]
    test = [series(1, 2, n)[0] for n in (12, 4)]
    data = warned("x_test: 1 series are longer than 9", parts, [0, 1, 0, 1], test, [0, 1])
    assert data.schema["length"] == 9 and data.test_items()[0]["x"].shape == (2, 9)
    assert quiet(parts, [0, 1, 0, 1], test, [0, 1], length=12).schema["length"] == 12
    refused("x_test has length 10, but training series have 12", series(), labels(), series(length=10), labels())


# 7-9: time -----------------------------------------------------------------------------------------------------------


def test_07_irregular_time_is_resampled_with_a_warning():
    time = np.sort(np.random.default_rng(0).uniform(0, 11, (6, 12)), axis=1)
    line = np.repeat(2 * time[:, None] + 1, 2, axis=1)
    data = warned("uneven time steps", line, labels(), timestamps=time)
    even = np.linspace(time[:, 0], time[:, -1], 12, axis=1)
    np.testing.assert_allclose(data.train_items().tensors["x"][:, 0], 2 * even + 1, rtol=1e-5)
    refused("steps of series 0 are uneven", line, labels(), timestamps=time, irregular="error")


def test_07_regular_time_changes_nothing_and_gives_the_rate():
    x, time = series(), np.arange(12) * 0.25
    data = quiet(x, labels(), timestamps=time)
    np.testing.assert_array_equal(data.train_items().tensors["x"], x)
    assert data.schema["sampling_rate"] == 4.0
    stamps = np.datetime64("2026-01-01") + np.arange(12) * np.timedelta64(500, "ms")
    assert quiet(x, labels(), timestamps=stamps).schema["sampling_rate"] == pytest.approx(2.0)
    with pytest.raises(ConfigError, match="irregular"):
        regular_time(x, time, "t", "guess")


def test_08_duplicate_timestamps():
    time = np.arange(12.0)
    time[5] = time[4]
    refused("timestamp 5 of series 0 is a duplicate", series(), labels(), timestamps=time)


def test_09_decreasing_timestamps():
    time = np.tile(np.arange(12.0), (6, 1))
    time[3, 7] = 1.0
    refused("timestamp 7 of series 3 is earlier", series(), labels(), timestamps=time)
    time[3, 7] = np.nan
    refused("of series 3 is missing", series(), labels(), timestamps=time)
    refused("timestamps has shape", series(), labels(), timestamps=np.arange(5.0))


# 10-13: types and axes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8, bool, ">f4"])
def test_10_other_numeric_types_are_cast_and_logged(dtype, caplog):
    x = (series() > 0).astype(dtype)
    with caplog.at_level(logging.INFO):
        data = quiet(x, labels())
    assert data.train_items()[0]["x"].dtype == torch.float32 and "cast from" in caplog.text
    np.testing.assert_array_equal(data.train_items().tensors["x"], x.astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int16, torch.bool])
def test_10_torch_types(dtype):
    x = torch.from_numpy(series() > 0).to(dtype)
    assert torch.equal(quiet(x, labels()).train_items().tensors["x"], x.float())


@pytest.mark.parametrize("x", [series().astype(str), series().astype(object), series().astype(complex)])
def test_11_objects_strings_complex(x):
    refused("dtype", x, labels())


def test_12_missing_axes_are_added_with_a_warning():
    flat = np.random.default_rng(0).normal(size=(6, 12))
    assert warned("2 axes", flat, labels()).schema["channels"] == 1
    with pytest.warns(UserWarning, match="1 axes"):
        assert coerce_series(flat[0], train=False).x.shape == (1, 1, 12)
    refused("4 axes", np.zeros((2, 2, 2, 8)))


def test_13_swapped_axes_are_suspected():
    warned("transpose", series(channels=20, length=12), labels())
    quiet(series(channels=2, length=12), labels())


# 14-17: magnitudes and counts ----------------------------------------------------------------------------------------


def test_14_huge_magnitudes_warn_and_stay_finite():
    x = series()
    x[:, 1] *= 1e30
    schema = warned("channel [1] has magnitudes above", x, labels()).schema
    assert np.isfinite(schema["mean"]).all() and 1e29 < schema["std"][1] < 1e31
    refused("larger than float32", series().astype(np.float64) * 1e300, labels())


def test_15_denormals_survive():
    x = series() * np.float32(1e-42)
    assert (x != 0).any()
    np.testing.assert_array_equal(quiet(x, labels()).train_items().tensors["x"], x)


def test_16_one_series_warns():
    warned("holds 1 series", series(1), None)


def test_16_one_series_can_be_cut_into_windows():
    with pytest.warns(UserWarning, match="holds 1 series"):
        data = ArrayDataModule(series(1, 2, 240), window=24, val_fraction=0.2)
        data.setup("fit")
    assert (len(data.train_items()), len(data.val_items())) == (8, 1)


def test_17_class_with_one_example():
    data = warned("class [1] has 1 training series", series(), [0, 0, 0, 0, 0, 1])
    assert data.schema["class_counts"] == [5, 1]


# 18, 19: labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [-1, np.nan])
def test_18_missing_labels(missing):
    refused("label of series 2 is missing", series(), np.array([0, 1, missing, 1, 0, 1]))


def test_18_other_missing_labels():
    refused("label of series 1 is missing", series(), ["a", None, "b", "a", "b", "a"])
    refused("label of series 0 is missing", series(), ["", "a", "b", "a", "b", "a"])
    refused("one label each", series(), labels(5))
    refused("y_train is given, but y_test is missing", series(), labels(), series(), None)
    refused("y_test is given, but y_train is missing", series(), None, series(), labels())
    assert quiet(series(), ["-1", "1"] * 3).schema["class_names"] == ["-1", "1"]


@pytest.mark.parametrize(
    ("y", "names", "first"),
    [
        ([5, 3, 5, 3, 9, 9], ["3", "5", "9"], 1),
        (["ok", "bad", "ok", "bad", "ok", "bad"], ["bad", "ok"], 1),
        ([2.0, 1.0, 2.0, 1.0, 2.0, 1.0], ["1", "2"], 1),
        (torch.tensor([7, 7, 8, 8, 7, 8]), ["7", "8"], 0),
        ([True, False, True, False, True, False], ["False", "True"], 1),
    ],
)
def test_19_labels_are_mapped_and_the_mapping_saved(y, names, first):
    data = quiet(series(), y, series(2, seed=1), y[:2])
    assert data.schema["class_names"] == names and int(data.train_items()[0]["y"]) == first
    assert data.test_items().tensors["y"].tolist() == data.train_items().tensors["y"][:2].tolist()


def test_19_a_test_class_that_training_lacks():
    refused("y_test has class 7, which no training series has", series(), labels(), series(1), [7])


# 20-23: memory -------------------------------------------------------------------------------------------------------


def test_20_read_only_memory_map(tmp_path):
    np.save(tmp_path / "x.npy", series())
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    tensor = quiet(x, labels()).train_items().tensors["x"]
    tensor += 1
    np.testing.assert_array_equal(x, series())


@pytest.mark.parametrize("view", [lambda x: x[::2, :, ::-1], lambda x: np.asfortranarray(x), lambda x: x[:, ::-1]])
def test_21_strided_views(view):
    x = view(series(8))
    tensor = quiet(x, labels(len(x))).train_items().tensors["x"]
    assert tensor.is_contiguous()
    np.testing.assert_array_equal(tensor, x)


def test_22_tensors_elsewhere_are_moved_with_a_warning(monkeypatch):
    class Elsewhere(torch.Tensor):
        """A tensor that says it is on a GPU (none is needed to test what happens then)."""

        device = torch.device("cuda", 0)

    x = torch.from_numpy(series()).as_subclass(Elsewhere)
    monkeypatch.setattr(Elsewhere, "detach", lambda self: self.as_subclass(torch.Tensor), raising=False)
    data = warned("x_train is on cuda:0", x, labels())
    assert data.train_items().tensors["x"].device.type == "cpu"


def test_23_gradients_are_dropped():
    x = torch.from_numpy(series()).requires_grad_()
    tensor = quiet(x, labels()).train_items().tensors["x"]
    assert not tensor.requires_grad and x.requires_grad
    tensor += 1
    np.testing.assert_array_equal(x.detach(), series())


def test_conditions_are_checked():
    data = quiet(
        series(), labels(), series(2), labels(2), conditions={"rpm": range(6)}, conditions_test={"rpm": [1, 2]}
    )
    assert data.schema["conditions"]["rpm"]["max"] == 5.0 and float(data.test_items()[1]["rpm"]) == 2.0
    refused("is not finite at series 1", series(), labels(), conditions={"rpm": [0, np.inf, 0, 0, 0, 0]})
    refused("but there are 6 series", series(), labels(), conditions={"rpm": [0]})
    refused("reserved", series(), labels(), conditions={"mask": range(6)})
    refused(
        r"conditions_test has \[\], but training has \['rpm'\]",
        series(),
        labels(),
        series(),
        labels(),
        conditions={"rpm": range(6)},
    )
