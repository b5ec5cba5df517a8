"""The real sets: counts, shapes, classes, no overlap, nothing of the test split in schema or training."""

import numpy as np
import pytest
import torch

from lightning_synth.datamodules import BearingDataModule, TEPDataModule, UEADataModule


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
