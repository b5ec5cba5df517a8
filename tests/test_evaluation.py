"""`evaluate`: floors, nulls, flags, determinism, every domain, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import lightning_synth as ls
from lightning_synth.datamodules.simulated_interactions import SimulatedInteractions
from lightning_synth.errors import ConfigError, DataError, EmptyPoolError, SchemaMismatchError
from lightning_synth.evaluation import Evaluation, evaluate
from lightning_synth.items import StackedItems
from lightning_synth.metrics.spec import MetricSpec
from lightning_synth.schema import describe
from lightning_synth.testing import tiny_datamodule, tiny_items

CHEAP = [
    "hellinger",
    "pcd",
    "diversity",
    "exact_copies",
    "near_duplicates",
    "nndr_tails",
    "dcr_share",
    "membership_inference",
]
FLOORS = ["bootstrap", "jitter"]


def series(n, seed, length=16):
    """Autoregressive windows of two classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, 2, length)).cumsum(-1) * 0.4 + y[:, None, None] + rng.normal(size=(n, 2, 1))
    return StackedItems({"x": torch.tensor(x, dtype=torch.float32), "y": torch.tensor(y)})


class Data:
    """The least that `evaluate` asks of a DataModule."""

    def __init__(self, train, test):
        self.train, self.test = train, test
        self.schema = describe(train, "timeseries")

    def train_items(self):
        return self.train

    def val_items(self):
        return []

    def test_items(self):
        return self.test


@pytest.fixture(scope="module")
def data():
    return Data(series(300, 0), series(300, 1))


def leak(data, share):
    items = series(300, 2)
    k = int(share * 300)
    items.tensors["x"][:k] = data.train.tensors["x"][:k]
    return items


@pytest.fixture(scope="module")
def leaky(data):
    return evaluate(leak(data, 0.05), data, metrics=CHEAP, floors=FLOORS)


def test_table_has_value_null_and_floors(leaky):
    assert isinstance(leaky, Evaluation)
    assert list(leaky.table.columns) == ["value", "real_vs_real", "real_vs_real_sd", "z", *FLOORS, "better", "verdict"]
    assert {"hellinger", "exact_copy_rate", "nndr_q01", "mia_tpr_at_1fpr"} <= set(leaky.table.index)
    numbers = leaky.table[["value", "real_vs_real", "real_vs_real_sd", "z", *FLOORS]].to_numpy(dtype=float)
    assert np.isfinite(numbers).all()
    assert leaky.table.loc["exact_copy_rate", "bootstrap"] == 1 > leaky.table.loc["exact_copy_rate", "jitter"] == 0


def test_five_per_cent_copies_are_flagged_where_averages_pass(leaky):
    assert leaky.flags[0].startswith("copies training data: 5.0 %")
    assert "nndr_q01 0 " in leaky.flags[1]
    assert leaky.flags[2] == "averages alone (dcr_share, mia_auc) would have passed this"
    assert leaky.flags[3].startswith("within real-vs-real noise")
    assert leaky.table.loc["dcr_share", "verdict"] == leaky.table.loc["mia_auc", "verdict"] == "within noise"
    assert leaky.table.loc["exact_copy_rate", "verdict"] == "worse than real"


@pytest.mark.parametrize("seed", [3, 4])
def test_independent_data_raises_no_flag(data, seed):
    result = evaluate(series(300, seed), data, metrics=CHEAP, floors=False)
    assert len(result.flags) == 1 and result.flags[0].startswith("within real-vs-real noise"), str(result)


def test_a_bad_generator_is_flagged_and_beaten_by_a_floor(data):
    bad = series(300, 5)
    bad.tensors["x"] *= 2
    result = evaluate(bad, data, metrics=["hellinger", "pcd", "prdc", "c2st"], floors=["jitter"], max_items=100)
    assert result.flags[0].startswith("differs from real data in")
    assert "the trivial generator jitter is nearer to real data" in result.flags[-1]
    assert result.table.loc["c2st_auc", "value"] > 0.8


def test_same_arguments_same_table_and_no_global_draw(data):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    names = ["hellinger", "c2st", "mmd", "membership_inference"]
    first, second, other = (
        evaluate(series(40, 2), data, metrics=names, floors=["jitter"], seed=s, repeats=2) for s in (0, 0, 1)
    )
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    assert first.table.equals(second.table)
    assert not first.table.equals(other.table)


def test_it_is_exported(data):
    assert ls.evaluate is evaluate and ls.Evaluation is Evaluation


def test_json_markdown_and_text(leaky, tmp_path):
    content = json.loads(leaky.to_json(tmp_path / "e.json"))
    assert content == json.loads((tmp_path / "e.json").read_text())
    assert content["metrics"]["exact_copy_rate"]["value"] == pytest.approx(0.05)
    assert content["meta"]["num_synthetic"] == 300 and content["flags"] == leaky.flags
    text = str(leaky)
    assert text.startswith("copies training data") and "exact_copy_rate ↓" in text and "bootstrap" in text
    lines = leaky.to_markdown().splitlines()
    assert lines[0].startswith("| metric | value | real vs real | ± sd | z | bootstrap")
    assert {line.count("|") for line in lines[: len(leaky.table) + 2]} == {lines[0].count("|")}


def test_json_is_valid_where_a_null_is_missing():
    tiny = Data(series(5, 0), series(4, 1))
    result = evaluate(series(6, 2), tiny, metrics=["exact_copies"], floors=False)
    assert json.loads(result.to_json())["metrics"]["exact_copy_rate"]["real_vs_real"] is None
    assert result.table.loc["exact_copy_rate", "verdict"] == "no null"


@pytest.mark.parametrize("domain", ["timeseries", "graph", "molecule", "sequence", "node"])
def test_every_domain_with_its_floors(domain):
    data = tiny_datamodule(domain, n=24)
    items = tiny_items(domain, n=16, seed=1) if domain != "node" else data.train_items()
    result = evaluate(items, data, metrics=["common", "privacy"], repeats=2)
    assert {"hellinger", "precision", "exact_copy_rate"} <= set(result.table.index), result.notes
    assert "bootstrap" in result.table.columns
    assert not [note for note in result.notes if "failed" in note]


def test_samples_of_a_generator(data):
    generator = ls.get_generator("bootstrap")()
    generator.fit_on(data.train, data.schema)
    result = evaluate(generator.sample(50, seed=0), data, metrics=["exact_copies"], floors=False)
    assert result.table.loc["exact_copy_rate", "value"] == 1


def test_own_metric_and_groups(data):
    def gap(train, test, synthetic, schema, seed):
        return {"mean_gap": abs(float(torch.stack([i["x"].mean() for i in synthetic]).mean()))}

    own = MetricSpec("mean_gap", gap, higher_is_better=False)
    result = evaluate(series(40, 1), data, metrics=[own, "pcd"], floors=False, repeats=2)
    assert list(result.table.index) == ["mean_gap", "pcd"]
    assert result.table.loc["mean_gap", "better"] == "lower"


def test_a_failing_metric_or_floor_is_a_note_not_the_end(data):
    def broken(*_):
        raise RuntimeError("no such thing")

    with pytest.warns(UserWarning, match="metric broken failed: RuntimeError: no such thing"):
        result = evaluate(series(40, 1), data, metrics=[MetricSpec("broken", broken), "pcd"], floors=["no_such_floor"])
    assert list(result.table.index) == ["pcd"]
    assert any("floor no_such_floor left out" in note for note in result.notes)


def test_few_test_items_are_said(data):
    result = evaluate(series(40, 1), Data(series(60, 0), series(10, 1)), metrics=["pcd"], floors=False)
    assert "only 10 items held out" in result.notes[0]
    none = Data(series(60, 0), [])
    assert evaluate(series(40, 1), none, metrics=["pcd"], floors=False).notes[0].startswith("no test items")


def test_refusals(data):
    with pytest.raises(EmptyPoolError):
        evaluate([], data)
    with pytest.raises(ConfigError, match="metric 'helinger' is unknown for domain 'timeseries'; known: common"):
        evaluate(series(40, 1), data, metrics=["helinger"])
    bad = series(40, 1)
    bad.tensors["x"][3, 1, 2] = float("nan")
    with pytest.raises(DataError, match="3"):
        evaluate(bad, data, floors=False)
    generator = ls.get_generator("bootstrap")()
    generator.fit_on(series(20, 0, length=8), describe(series(20, 0, length=8), "timeseries"))
    with pytest.raises(SchemaMismatchError, match="length: expected 16, got 8"):
        evaluate(generator.sample(20, seed=0), data)


@pytest.mark.slow
def test_full_report_of_2000_by_64_stays_under_20_seconds_of_one_core():
    import time

    data = Data(series(2000, 0, 32), series(2000, 1, 32))
    start = time.process_time()
    evaluate(series(2000, 2, 32), data, metrics=["common", "privacy"], floors=False)
    assert time.process_time() - start < 20


def test_held_out_items_of_training_users_are_no_other_people():
    data = ls.datamodules.InteractionDataModule(SimulatedInteractions(60, 40, min_length=4, mean_length=9, seed=3))
    generator = ls.get_generator("bootstrap")().fit_on(data.train_items(), data.schema)
    result = evaluate(generator.sample(50, seed=0), data, metrics="privacy", floors=False)
    assert list(result.table.index) == ["exact_copy_rate", "copied_train_rate", "unique_rate"]
    value, null = result.table.loc["exact_copy_rate", ["value", "real_vs_real"]]
    assert value > 0.9 and null < 0.1
    assert any("privacy rows" in note for note in result.notes) and "copies training data" in result.flags[0]


def test_training_sequences_are_real_though_test_sequences_are_longer():
    data = ls.datamodules.InteractionDataModule(SimulatedInteractions(200, 40, min_length=4, mean_length=9, seed=3))
    result = evaluate(data.train_items(), data, metrics=["hellinger", "dd_plot", "mmd"], floors=False, repeats=4)
    assert result.flags[0].startswith("within real-vs-real noise"), str(result)
