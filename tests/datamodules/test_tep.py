"""Tennessee Eastman: runs, onset, shots, both file layouts."""

import numpy as np
import pytest
import torch

from lightning_synth.datamodules import TEPDataModule
from lightning_synth.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def runs():
    """Run k of part p at sample t holds 1000 * k + 0.001 * t in every variable, negative in test runs."""
    time = np.arange(960)[:, None] * 1e-3 + np.zeros((1, 52))
    train = [time[: 500 if k == 0 else 480] + 1000 * (k + 1) for k in range(22)]
    return train, [-(time + 1000 * (k + 1)) for k in range(22)]


@pytest.fixture(scope="module")
def npz(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("tep") / "tep.npz"
    train, test = runs
    np.savez(
        path,
        **{f"train_d{k:02d}": x.astype(np.float32) for k, x in enumerate(train)},
        test=np.float32(test),
        fault_onset=160,
    )
    return path


def sample_of(x):
    """Which sample of its run a window starts at."""
    first = x[:, 0, 0].abs()
    return ((first % 1000) * 1000).round().int()


def test_shapes_classes_and_onset(npz):
    data = TEPDataModule(npz)
    assert data.schema["class_names"] == ["normal", "fault 1", "fault 2", "fault 4"]
    assert (data.schema["channels"], data.schema["length"], data.schema["normal_class"]) == (52, 24, 0)
    assert len(data.schema["channel_names"]) == 52 and data.schema["sampling_rate"] == pytest.approx(1 / 180)
    test = data.test_items().tensors
    assert torch.bincount(test["y"]).tolist() == [33] * 4
    assert sample_of(test["x"]).min() == 160
    assert torch.equal(test["x"][:, 0, 0].abs().div(1000).int(), torch.tensor([1, 2, 3, 5])[test["y"]].int())


def test_training_is_apart_from_test_and_validation(npz):
    data = TEPDataModule(npz, shots=5)
    assert (data.test_items().tensors["x"] < 0).all() and (data.train_items().tensors["x"] > 0).all()
    assert (data.val_items().tensors["x"] > 0).all()
    assert data.schema["class_counts"] == [16, 5, 5, 5]
    train, val = data.train_items().tensors, data.val_items().tensors
    for label in range(4):
        a, b = sample_of(train["x"][train["y"] == label]), sample_of(val["x"][val["y"] == label])
        assert (a[:, None] - b[None]).abs().min() >= 48


@pytest.mark.parametrize("stride", [None, 6])
def test_gap_without_shots(npz, stride):
    data = TEPDataModule(npz, stride=stride)
    train, val = data.train_items().tensors, data.val_items().tensors
    for label in range(4):
        assert sample_of(val["x"][val["y"] == label]).min() - sample_of(train["x"][train["y"] == label]).max() >= 48


def test_draws(npz):
    starts = [
        sample_of(TEPDataModule(npz, shots=k, draw=d).train_items().tensors["x"][16:]).tolist()
        for k, d in ((3, 0), (3, 1))
    ]
    assert starts[0] != starts[1]
    more = TEPDataModule(npz, shots=6, draw=0).train_items().tensors
    assert set(starts[0][:3]) <= set(sample_of(more["x"][more["y"] == 1]).tolist())
    assert TEPDataModule(npz, shots=3, normal_windows=4).schema["class_counts"] == [4, 3, 3, 3]
    with pytest.warns(UserWarning, match="fault 1 has 20 windows, not 21"):
        TEPDataModule(npz, shots=21).setup()


def test_test_runs_shape_nothing(npz, runs, tmp_path):
    train, test = runs
    np.savez(
        tmp_path / "tep.npz",
        **{f"train_d{k:02d}": x.astype(np.float32) for k, x in enumerate(train)},
        test=np.float32(test) * 7,
    )
    a, b = TEPDataModule(npz, shots=5), TEPDataModule(tmp_path / "tep.npz", shots=5)
    assert a.schema == b.schema
    torch.testing.assert_close(a.train_items().tensors, b.train_items().tensors, rtol=0, atol=0)


def test_dat_files_with_the_transposed_one(runs, npz, tmp_path):
    train, test = runs
    for k in (0, 1):
        np.savetxt(tmp_path / f"d{k:02d}.dat", train[k].T if k == 0 else train[k])
        np.savetxt(tmp_path / f"d{k:02d}_te.dat", test[k])
    a, b = TEPDataModule(tmp_path, faults=(1,)), TEPDataModule(npz, faults=(1,))
    torch.testing.assert_close(a.train_items().tensors, b.train_items().tensors, rtol=1e-6, atol=0)
    torch.testing.assert_close(a.test_items().tensors, b.test_items().tensors, rtol=1e-6, atol=0)
    with pytest.raises(DataError, match=r"d02\.dat is missing below"):
        TEPDataModule(tmp_path, faults=(1, 2)).setup()


def test_missing_and_broken_files(npz, tmp_path):
    with pytest.raises(DataError, match="nor a folder"):
        TEPDataModule(tmp_path / "none.npz").setup()
    np.savez(tmp_path / "tep.npz", train_d00=np.zeros((500, 52)), test=np.zeros((1, 960, 52)))
    with pytest.raises(DataError, match="lacks train_d01"):
        TEPDataModule(tmp_path).setup()
    np.savez(tmp_path / "tep.npz", train_d00=np.zeros((500, 50)), test=np.zeros((1, 960, 52)))
    with pytest.raises(DataError, match=r"has shape \(500, 50\)"):
        TEPDataModule(tmp_path).setup()
    bad = np.zeros((500, 52))
    bad[7, 41] = np.nan
    np.savez(tmp_path / "tep.npz", train_d00=bad, test=np.zeros((1, 960, 52)))
    with pytest.raises(DataError, match=r"sample 7 of XMV\(1\) is not finite"):
        TEPDataModule(tmp_path).setup()


@pytest.mark.parametrize("bad", [{"faults": (0, 1)}, {"faults": (22,)}, {"faults": ()}, {"faults": (1, 1)},
                                 {"shots": 0}, {"val_fraction": 1.0}, {"normal_windows": 0}])  # fmt: skip
def test_impossible_settings(bad):
    with pytest.raises(ConfigError):
        TEPDataModule("tep.npz", **bad)


def test_window_longer_than_a_run(npz):
    with pytest.raises(DataError, match="too short"):
        TEPDataModule(npz, window=400).setup()
