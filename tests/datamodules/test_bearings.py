"""Bearings: official files, npz, splits by fault size, load and recording, gaps, shots, downloads."""

import http.server
import threading
import warnings

import numpy as np
import pytest
import torch
from scipy.io import savemat

from lightning_synth.datamodules import BearingDataModule
from lightning_synth.datamodules.cwru import NOMINAL_RPM, Entry, catalogue, decimate, parse_name
from lightning_synth.errors import ConfigError, DataError

WINDOW = 32
KINDS = ("N", "IR", "OR", "B")
POSITIONS = (0, 3, 6, 12)
FAULTS = [(kind, size, 0) for size in (7, 14, 21) for kind in ("IR", "B")]
FAULTS += [("OR", 14, 6), *(("OR", size, position) for size in (7, 21) for position in POSITIONS[1:])]


def signal(entry, samples):
    """Encode the recording (whole part) and the sample (fraction) in every value; exact in float32."""
    code = KINDS.index(entry.kind) * 1000 + entry.size * 20 + entry.load * 4 + POSITIONS.index(entry.position)
    return (code + np.arange(samples) / 2048).astype(np.float32)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """The npz layout: all faults at four loads, healthy recordings at loads 0 and 2."""
    root = tmp_path_factory.mktemp("npz")
    for load in range(4):
        keys = {}
        for kind, size, position in FAULTS:
            name = f"{kind}at{position}" if kind == "OR" else kind
            for end, sign in (("DE", 1), ("FE", -1)):
                keys[f"{name}_{size:03d}_{end}"] = sign * signal(Entry(kind, size, position, load), 10 * WINDOW)
        keys["B_028_DE"] = signal(Entry("B", 28, 0, load), 10 * WINDOW)
        np.savez(root / f"cwru_12k_DE_load{load}.npz", **keys)
    normal = {f"load{n}_{end}_12k": signal(Entry("N", 0, 0, n), 30 * WINDOW) for n in (0, 2) for end in ("DE", "FE")}
    np.savez(root / "cwru_normal.npz", **normal, load0_DE_48k=np.zeros(9))
    return root


def build(root, **kwargs):
    return BearingDataModule(root, window=WINDOW, **kwargs)


def where(items):
    """(recording code, first sample) of every window."""
    first = items.tensors["x"][:, 0, 0].abs().double()
    code = first.floor()
    return code.int().tolist(), ((first - code) * 2048).round().int().tolist()


def size_of(code):
    return code % 1000 // 20


def closest(a, b):
    """Smallest distance in samples between windows of the same recording in two splits."""
    (code_a, at_a), (code_b, at_b) = where(a), where(b)
    same = torch.tensor(code_a)[:, None] == torch.tensor(code_b)[None]
    distance = (torch.tensor(at_a)[:, None] - torch.tensor(at_b)[None]).abs()
    return int(distance[same].min()) if bool(same.any()) else None


def test_the_documented_call(npz):
    data = build(npz, rig="cwru", end="DE", split="fault_size", shots=None)
    schema = data.schema
    assert (schema["channels"], schema["length"], schema["class_names"]) == (1, WINDOW, ["N", "IR", "OR", "B"])
    assert schema["normal_class"] == 0 and schema["sampling_rate"] == 12_000 and schema["channel_names"] == ["DE"]
    assert schema["bearing"]["num_balls"] == 9 and schema["bearing"]["pitch_diameter"] == 1.537
    assert set(schema["conditions"]) == {"rpm", "load"}
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"x", "y", "rpm", "load"} and batch["x"].dtype == torch.float32


@pytest.mark.parametrize("size", [0.007, 0.014, 0.021])
@pytest.mark.parametrize("shots", [None, 3])
def test_by_fault_size_no_damaged_bearing_is_on_both_sides(npz, size, shots):
    data = build(npz, test_fault_size=size, shots=shots)
    test, train, val = data.test_items(), data.train_items(), data.val_items()
    faulty = test.tensors["y"] > 0
    assert {size_of(code) for code in where(test[faulty])[0]} == {round(size * 1000)}
    for items in (train, val):
        codes = where(items[items.tensors["y"] > 0])[0]
        assert codes and round(size * 1000) not in {size_of(code) for code in codes}
    # The one healthy bearing is split by time: a whole window lies between two splits.
    for a, b in ((train, test), (train, val), (val, test)):
        assert closest(a, b) >= 2 * WINDOW
    assert torch.bincount(test.tensors["y"]).tolist()[1:] == [40, 40 if size == 0.014 else 120, 40]


@pytest.mark.parametrize("stride", [None, 8])
@pytest.mark.parametrize(
    "kwargs", [{"shots": 3}, {"shots": 3, "split": "load"}, {"split": "recording"}, {"split": "load", "test_load": 0}]
)
def test_a_window_lies_between_splits_whatever_the_stride(npz, stride, kwargs):
    data = build(npz, stride=stride, **kwargs)
    splits = (data.train_items(), data.val_items(), data.test_items())
    for a, b in ((0, 1), (0, 2), (1, 2)):
        gap = closest(splits[a], splits[b])
        assert gap is None or gap >= 2 * WINDOW
    assert all(set(split.tensors["y"].tolist()) == {0, 1, 2, 3} for split in splits)


def test_by_load(npz):
    data = build(npz, split="load", test_load=2)
    assert set(data.test_items().tensors["load"].tolist()) == {2.0}
    assert 2.0 not in data.train_items().tensors["load"].tolist() + data.val_items().tensors["load"].tolist()
    # No healthy recording at load 3: the healthy ones are then split by time.
    other = build(npz, split="load", test_load=3).test_items()
    assert set(other.tensors["load"][other.tensors["y"] == 0].tolist()) == {0.0, 2.0}


def test_by_recording_folds_cover_every_recording_once(npz):
    held = [
        code for fold in range(4) for code in set(where(build(npz, split="recording", test_fold=fold).test_items())[0])
    ]
    faulty = [code for code in held if code >= 1000]
    assert len(faulty) == len(set(faulty)) == 52


def test_shots_are_per_fault_type_and_nested(npz):
    five, ten = build(npz, shots=5, normal_windows=20), build(npz, shots=10)
    assert five.schema["class_counts"] == [20, 5, 5, 5] and ten.schema["class_counts"][1:] == [10, 10, 10]

    def faults(data):
        items = data.train_items()
        return set(zip(*where(items[items.tensors["y"] > 0]), strict=True))

    assert faults(five) < faults(ten)
    assert faults(five) != faults(build(npz, shots=5, draw=1)) and faults(five) == faults(build(npz, shots=5))
    with pytest.warns(UserWarning, match="not 999 each"):
        build(npz, shots=999).setup()
    with pytest.warns(UserWarning, match="healthy training windows, not 999"):
        build(npz, normal_windows=999).setup()


def test_test_windows_are_thinned_evenly(npz):
    data = build(npz, test_windows=8)
    assert torch.bincount(data.test_items().tensors["y"]).tolist() == [8, 8, 8, 8]
    whole = set(zip(*where(build(npz).test_items()), strict=True))
    codes, starts = where(data.test_items())
    assert set(zip(codes, starts, strict=True)) <= whole and len(set(zip(codes, starts, strict=True))) == 32
    assert len({code for code in codes if 1000 <= code < 2000}) == 4  # every load


def test_conditions_follow_the_recording(npz):
    items = build(npz).train_items().tensors
    assert items["rpm"].tolist() == [NOMINAL_RPM[int(load)] for load in items["load"].tolist()]


def test_fan_end_accelerometer(npz):
    data = build(npz, end="FE")
    train = data.train_items()
    assert (train.tensors["x"][train.tensors["y"] > 0] < 0).all() and data.schema["channel_names"] == ["FE"]
    assert data.schema["bearing"]["num_balls"] == 9  # the damaged bearing is still the one at the drive end


def test_largest_faults_are_used_on_request(npz):
    assert 28 not in {size_of(code) for code in where(build(npz).train_items())[0]}
    with pytest.warns(UserWarning, match="IR028_0"):
        data = build(npz, fault_sizes=(0.007, 0.021, 0.028))
        assert 3000 + 28 * 20 in where(data.train_items())[0]


def test_test_recordings_shape_nothing(npz, tmp_path):
    for file in npz.iterdir():
        with np.load(file) as data:
            np.savez(tmp_path / file.name, **{k: v * 9 if "_021_" in k else v for k, v in data.items()})
    a, b = build(npz, test_fault_size=0.021, shots=3), build(tmp_path, test_fault_size=0.021, shots=3)
    assert a.schema == b.schema
    torch.testing.assert_close(a.train_items().tensors, b.train_items().tensors, rtol=0, atol=0)
    assert not torch.equal(a.test_items().tensors["x"], b.test_items().tensors["x"])


# Official files ------------------------------------------------------------------------------------------------------


def write_mat(folder, number, entry, samples=10 * WINDOW, rpm=True, name=None, extra=None):
    x = signal(entry, samples)[:, None].astype(np.float64)
    data = {f"X{number:03d}_DE_time": x, f"X{number:03d}_FE_time": -x, **(extra or {})}
    if rpm:
        data[f"X{number:03d}RPM"] = np.array([[1700 + entry.load]])
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / f"{name or number}.mat", data)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """All 12 kHz drive-end files of three sizes and two loads, and the healthy ones at 48 kHz."""
    root = tmp_path_factory.mktemp("mat")
    for number, entry in catalogue("DE", 12_000, (7, 14, 21), (0, 1)).items():
        normal = entry.kind == "N"
        write_mat(root, number, entry, (120 if normal else 10) * WINDOW, rpm=number != 98)
    return root


def test_official_files(official):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = build(official, loads=(0, 1))
        data.setup()
    items = data.train_items()
    assert set(items.tensors["rpm"][items.tensors["y"] > 0].tolist()) == {1700.0, 1701.0}
    # 98.mat has no speed: the nominal one of its load stands in.
    assert set(items.tensors["rpm"][items.tensors["y"] == 0].tolist()) == {1700.0, 1772.0}
    assert torch.bincount(data.test_items().tensors["y"]).tolist()[1:] == [20, 60, 20]


def test_healthy_recordings_are_decimated(official):
    x = build(official, loads=(0, 1)).train_items()[0]["x"][0]
    expected = decimate(signal(Entry("N", 0, 0, 0), 120 * WINDOW).astype(np.float64), 4)[:WINDOW]
    np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_decimation_keeps_slow_and_removes_fast_oscillations():
    time = np.arange(4800) / 48_000
    slow, fast = np.sin(2 * np.pi * 100 * time), np.sin(2 * np.pi * 10_000 * time)
    np.testing.assert_allclose(decimate(slow, 4)[50:-50], slow[::4][50:-50], atol=0.01)
    assert np.abs(decimate(fast, 4)[50:-50]).max() < 0.01


def test_own_names_and_a_neighbour_in_the_same_file(tmp_path):
    for entry in catalogue("DE", 12_000, (7, 21), (0,)).values():
        stranger = {"X001_DE_time": np.full((400, 1), 7000.0)} if entry.kind == "B" else None
        write_mat(tmp_path / "12k DE", 7, entry, 120 * WINDOW, name=str(entry), extra=stranger)
    write_mat(tmp_path / "48k DE", 7, Entry("IR", 7, 0, 0), name="IR007_0")
    data = build(tmp_path, fault_sizes=(0.007, 0.021), loads=(0,))
    assert data.schema["class_counts"][1] == 108
    write_mat(tmp_path / "n", 99, Entry("N", 0, 0, 2), 120 * WINDOW, extra={"X098_DE_time": np.full((400, 1), 7000.0)})
    for number, entry in catalogue("DE", 12_000, (7, 21), (2,)).items():
        write_mat(tmp_path / "n", number, entry, 120 * WINDOW) if number != 99 else None
    assert build(tmp_path / "n", fault_sizes=(0.007, 0.021), loads=(2,)).train_items().tensors["x"].max() < 5000


def test_missing_files_say_which_and_where(tmp_path, npz):
    with pytest.raises(DataError) as error:
        build(tmp_path).setup()
    text = str(error.value)
    assert (
        "97.mat (Normal_0)" in text
        and "130.mat (OR007@6_0)" in text
        and str(tmp_path) in text
        and "download=True" in text
    )
    for number, entry in catalogue("DE", 12_000, (7, 14, 21), (0,)).items():
        write_mat(tmp_path, number, entry, 120 * WINDOW)
    with pytest.warns(UserWarning, match=r"lacks 1 of 14 recordings: 105.mat \(IR007_0\)"):
        (tmp_path / "105.mat").unlink()
        build(tmp_path, loads=(0,)).setup()
    with pytest.raises(DataError, match=r"leaves no test recordings of class IR"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(tmp_path, loads=(0,), test_fault_size=0.007).setup()


def test_no_signal_of_that_end(tmp_path):
    for number, entry in catalogue("DE", 12_000, (7, 21), (0,)).items():
        write_mat(tmp_path, number, entry)
    savemat(tmp_path / "97.mat", {"X097_DE_time": np.zeros((400, 1))})
    with pytest.raises(DataError, match=r"97.mat has no signal of the FE.*X097_DE_time"):
        build(tmp_path, end="FE", fault_sizes=(0.007, 0.021), loads=(0,)).setup()
    (tmp_path / "97.mat").write_text("<html>")
    with pytest.raises(DataError, match="no readable MATLAB file"):
        build(tmp_path, fault_sizes=(0.007, 0.021), loads=(0,)).setup()


# Downloads -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(official):
    """A local server of the official files; yields its address and the requests it got."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(official))

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()
        thread.join()


def test_download(server, official, tmp_path):
    url, asked = server
    data = build(tmp_path / "new", loads=(0, 1), download=True, base_url=url)
    torch.testing.assert_close(data.train_items().tensors, build(official, loads=(0, 1)).train_items().tensors)
    assert len(asked) == len(catalogue("DE", 12_000, (7, 14, 21), (0, 1)))
    assert not list((tmp_path / "new").glob("*.part"))
    asked.clear()
    build(tmp_path / "new", loads=(0, 1), download=True, base_url=url).setup()
    assert asked == []  # what is there is not fetched again


def test_download_is_off_by_default(server, tmp_path):
    with pytest.raises(DataError, match="no recordings"):
        build(tmp_path, base_url=server[0]).setup()
    assert server[1] == []


def test_failed_downloads_leave_nothing_behind(server, official, tmp_path):
    with pytest.raises(DataError, match=r"could not download .*99\.mat"):
        build(tmp_path, loads=(2,), test_load=2, download=True, base_url=server[0]).prepare_data()
    (official / "99.mat").write_text("<html>moved</html>")
    with pytest.raises(DataError, match="did not send a MATLAB file"):
        build(tmp_path, loads=(2,), download=True, base_url=server[0]).prepare_data()
    (official / "99.mat").unlink()
    assert list(tmp_path.iterdir()) == []


# The catalogue -------------------------------------------------------------------------------------------------------


def test_catalogue_numbers_are_unique_and_names_parse():
    for bearing, rate, count in (("DE", 12_000, 64), ("DE", 48_000, 56), ("FE", 12_000, 49)):
        entries = catalogue(bearing, rate, (7, 14, 21, 28), range(4))
        assert len(set(entries.values())) == len(entries) == count
        assert all(parse_name(str(entry)) == entry for entry in entries.values())
    assert parse_name("readme") is None
    with pytest.raises(ConfigError, match="FE bearing at 48000"):
        catalogue("FE", 48_000, (7,), (0,))


@pytest.mark.parametrize(
    "bad",
    [{"rig": "mfpt"}, {"end": "BA"}, {"split": "random"}, {"test_fault_size": 0.01}, {"loads": (4,)},
     {"split": "load", "test_load": 7}, {"split": "recording", "test_fold": 4},
     {"shots": 0}, {"normal_windows": 0}, {"test_windows": 0},
     {"sampling_rate": 16_000}, {"val_fraction": 0.9}, {"normal_test_fraction": 0.0}],
)  # fmt: skip
def test_impossible_settings(bad):
    with pytest.raises(ConfigError):
        BearingDataModule("nowhere", **bad)


def test_windows_longer_than_the_recordings(npz):
    with pytest.raises(DataError, match="too short"):
        BearingDataModule(npz, window=4096).setup()
