"""The real sets: counts, shapes, classes, no overlap, nothing of the test split in schema or training."""

import numpy as np
import pytest
import torch

from lightning_synth.datamodules import BearingDataModule, SeriesDataModule, TEPDataModule, UEADataModule
from lightning_synth.errors import DataError


def ids(items):
    return {x.numpy().tobytes() for x in items.tensors["x"]}


def counts(items):
    return torch.bincount(items.tensors["y"]).tolist()


@pytest.mark.parametrize("size", [0.007, 0.014, 0.021])
def test_cwru_protocol(data_root, size):
    data = BearingDataModule(data_root / "fault", shots=5, normal_windows=60, test_fault_size=size)
    assert data.schema["class_counts"] == [60, 5, 5, 5] and data.schema["length"] == 1024
    assert data.schema["conditions"]["rpm"]["min"] >= 1730 and data.schema["conditions"]["rpm"]["max"] <= 1797
    n, ir, outer, ball = counts(data.test_items())
    positions = 1 if size == 0.014 else 3
    assert n == 16 and 470 <= ir <= 476 and 470 <= ball <= 478 and 470 * positions <= outer <= 476 * positions
    splits = [ids(items) for items in (data.train_items(), data.val_items(), data.test_items())]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


@pytest.mark.parametrize(
    "kwargs", [{"split": "load"}, {"split": "recording"}, {"end": "FE"}, {"sampling_rate": 48_000, "loads": (0,)}]
)
def test_cwru_other_splits(data_root, kwargs):
    data = BearingDataModule(data_root / "fault", **kwargs)
    assert min(data.schema["class_counts"]) >= 20 and min(counts(data.test_items())) >= 10
    assert not ids(data.train_items()) & ids(data.test_items())


def test_cwru_decimation_matches_the_stored_one(data_root):
    from lightning_synth.datamodules.cwru import decimate

    with np.load(data_root / "fault" / "cwru_normal.npz") as data:
        ours, stored = decimate(data["load0_DE_48k"].astype(np.float64), 4), data["load0_DE_12k"]
    assert len(ours) == len(stored)
    np.testing.assert_allclose(ours[100:-100], stored[100:-100], atol=1e-3)


def test_tep_fourteen_classes(data_root):
    faults = (*range(1, 8), *range(9, 15))
    data = TEPDataModule(data_root / "fault" / "tep.npz", faults=faults, shots=5, draw=1)
    assert data.schema["num_classes"] == 14 and data.schema["channels"] == 52
    assert data.schema["class_counts"] == [16, *[5] * 13]
    assert counts(data.test_items()) == [33] * 14
    assert not ids(data.train_items()) & (ids(data.test_items()) | ids(data.val_items()))
    # The training runs are real ones: the first window of the normal run starts with its first row.
    with np.load(data_root / "fault" / "tep.npz") as stored:
        np.testing.assert_array_equal(data.train_items()[0]["x"][:, 0], stored["train_d00"][0])


@pytest.mark.parametrize(
    ("name", "channels", "length", "train", "test", "classes"),
    [
        ("BasicMotions", 6, 100, 40, 40, 4),
        ("Epilepsy", 3, 206, 137, 138, 4),
        ("NATOPS", 24, 51, 180, 180, 6),
        ("ECG200", 1, 96, 100, 100, 2),
        ("SyntheticControl", 1, 60, 300, 300, 6),
        ("CBF", 1, 128, 30, 900, 3),
        ("Trace", 1, 275, 100, 100, 4),
    ],
)
def test_archives(data_root, name, channels, length, train, test, classes):
    data = UEADataModule(data_root / "timeseries" / f"{name}.npz")
    schema = data.schema
    assert (schema["channels"], schema["length"], schema["num_classes"]) == (channels, length, classes)
    assert (len(data.train_items()), len(data.test_items())) == (train, test)


def test_the_npz_and_the_sktime_copy_agree(data_root):
    for name in ("ItalyPowerDemand", "JapaneseVowels"):
        a = UEADataModule(data_root / "timeseries" / f"{name}.npz", length=29 if name == "JapaneseVowels" else None)
        b = UEADataModule(name, length=29 if name == "JapaneseVowels" else None)
        torch.testing.assert_close(a.train_items().tensors, b.train_items().tensors, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a.test_items().tensors, b.test_items().tensors, rtol=1e-6, atol=1e-6)


def test_a_set_without_test_part(data_root):
    with pytest.warns(UserWarning, match="no test part"):
        data = UEADataModule(data_root / "timeseries" / "ECG5000_train.npz", shots=2)
        assert data.schema["class_counts"] == [2] * 5
    assert len(data.test_items()) == 0 and len(data.val_items()) == 490


# Long series ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "channels", "windows", "hertz"),
    [
        ("stock_data.csv", 6, 3685 - 23, None),
        ("energy_appliances.parquet", 28, 19735 - 23, 1 / 600),
        ("ETTh1.csv", 7, 17420 - 23, 1 / 3600),
        ("exchange_rate.npz", 8, 7588 - 23, None),
    ],
)
def test_long_series(data_root, name, channels, windows, hertz):
    path = data_root / "timeseries" / name
    with pytest.warns(UserWarning, match="literature"):
        published = SeriesDataModule(path, length=24, split="literature")
        assert published.schema["channels"] == channels and published.schema["sampling_rate"] == pytest.approx(hertz)
    assert len(published.train_items()) == len(published.test_items()) == windows
    honest = SeriesDataModule(path, length=24)
    parts = [honest.train_items(), honest.val_items(), honest.test_items()]
    # Windows lost: 23 at the start of each stretch after the first, and those that touch a gap.
    assert sum(len(part) for part in parts) == windows - 2 * (24 + 23)
    assert 0.68 < len(parts[0]) / windows < 0.75 and not ids(parts[0]) & ids(parts[2])
    torch.testing.assert_close(parts[0][0]["x"], published.train_items()[0]["x"])
    torch.testing.assert_close(parts[2][-1]["x"], published.train_items()[-1]["x"])


def test_windows_of_stocks_are_rows_of_the_file(data_root):
    path = data_root / "timeseries" / "stock_data.csv"
    data = SeriesDataModule(path, length=24, scale="minmax")
    rows = np.loadtxt(path, delimiter=",", skiprows=1)
    x = data.inverse_transform(data.train_items()[100]["x"])
    np.testing.assert_allclose(x, rows[100:124].T, rtol=1e-5)
    train = data.train_items().tensors["x"]
    assert float(train.min()) == 0 and float(train.max()) == 1 < float(data.test_items().tensors["x"].max())


def test_air_quality_has_missing_values(data_root):
    path = data_root / "timeseries" / "air_quality.npz"
    with pytest.raises(DataError, match=r"row 9, column 'NOx_GT' is missing \(8529 of 9356 rows"):
        SeriesDataModule(path).setup("fit")
    # NMHC_GT was measured in the first weeks only.
    with pytest.raises(DataError, match="'NMHC_GT' has no value in the val part"):
        SeriesDataModule(path, missing="linear").setup("fit")
    assert SeriesDataModule(path, missing="mean").schema["channels"] == 13
    some = {"columns": ["CO_GT", "T", "RH", "AH"]}
    filled, dropped, masked = (SeriesDataModule(path, **some, missing=m) for m in ("linear", "drop", "mask"))
    assert len(filled.train_items()) > len(masked.train_items()) > 2 * len(dropped.train_items()) > 0
    mask = masked.train_items().tensors["mask"]
    assert 0.05 < 1 - float(mask.float().mean()) < 0.3 and bool(mask.any(1).all())
    assert ids(dropped.train_items()) < ids(filled.train_items())


def test_subjects_of_fmri(data_root):
    path = data_root / "timeseries" / "fmri_netsim_sim3.npz"
    data = SeriesDataModule(path, length=24, split="group")
    counts = [len(items) for items in (data.train_items(), data.val_items(), data.test_items())]
    assert data.schema["channels"] == 15 and counts == [n * (200 - 23) for n in (35, 5, 10)]
    in_time = SeriesDataModule(path, length=24)
    # 152 of the 200 steps lie beside two gaps; each subject gives one window to validation and to test.
    assert [len(in_time.val_items()), len(in_time.test_items())] == [50, 50]
    assert len(in_time.train_items()) == 50 * (152 - 48 - 23)
