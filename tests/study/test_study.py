"""The study: paired statistics with known answers, an honest verdict, resuming, and every arm on equal terms."""

import json

import numpy as np
import pytest
import torch

import lightning_synth as ls
from lightning_synth.errors import ConfigError
from lightning_synth.study import Study
from lightning_synth.study_result import StudyResult, holm, mean_interval


def _data(shots=None, draw=0, noise=1.0, **_):
    """Two classes of sinusoids; few shots make the task hard, the test split stays the same."""
    rng = np.random.default_rng(0)
    t = np.arange(32)

    def make(n):
        y = np.arange(n) % 2
        phase = rng.uniform(0, 2 * np.pi, n)
        x = np.sin(2 * np.pi * (0.06 + 0.04 * y[:, None]) * t + phase[:, None]) + noise * rng.normal(size=(n, 32))
        return x[:, None].astype("float32"), y

    x, y = make(80)
    x_test, y_test = make(80)
    if shots is not None:
        order = np.random.default_rng(draw).permutation(80)
        keep = np.concatenate([order[y[order] == c][:shots] for c in (0, 1)])
        x, y = x[keep], y[keep]
    return ls.datamodules.ArrayDataModule(x, y, x_test, y_test)


def _study(tmp_path=None, **changes):
    settings = {
        "data": _data,
        "generators": {"jitter": {}},
        "downstream": {"random_forest": {"n_estimators": 10}},
        "shots": [4],
        "draws": 3,
        "pool_size": 40,
        "evaluation": False,
        "accelerator": "cpu",
        "out": tmp_path,
    }
    return Study(**{**settings, **changes})


def _records(values, policy="mixed", arm="new", downstream="rf"):
    return [
        {
            "fold": "all",
            "shots": 5,
            "draw": i,
            "seed": 0,
            "arm": arm,
            "policy": policy,
            "downstream": downstream,
            "macro_f1": v,
        }
        for i, v in enumerate(values)
    ]


def _result(real, new, classical=None):
    records = _records(real, "real", "real") + _records(new) + _records(classical or real, arm="bootstrap")
    return StudyResult(records, {"bootstrap"}, {})


def test_intervals_are_those_of_student():
    mean, low, high, p = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert (mean, low, high) == (2.5, pytest.approx(0.4457, abs=1e-4), pytest.approx(4.5543, abs=1e-4))
    assert p == pytest.approx(0.0304, abs=1e-4)
    assert np.isnan(mean_interval([1.0])[1])


def test_holm_known_answer():
    assert holm([0.01, 0.04, 0.03, 0.005]).round(3).tolist() == [0.03, 0.06, 0.06, 0.02]
    assert np.isnan(holm([np.nan, 0.01])[0]) and holm([np.nan, 0.01])[1] == 0.01


def test_gains_are_paired_with_the_same_draw():
    real = [0.2, 0.5, 0.8]
    row = _result(real, [v + d for v, d in zip(real, (0.09, 0.1, 0.11), strict=True)]).table.set_index("arm").loc["new"]
    assert row["gain"] == pytest.approx(0.1) and row["gain_low"] > 0.07


def test_the_verdict_says_plainly_what_happened():
    real = [0.50, 0.52, 0.48, 0.51]
    assert _result(real, [0.62, 0.63, 0.6, 0.62]).verdict.startswith("Synthetic data helps here: 1 of 1")
    assert _result(real, [0.5, 0.53, 0.47, 0.51]).verdict.startswith("Synthetic data does not help here: 0 of 1")
    worse = _result(real, [0.42, 0.43, 0.4, 0.42]).verdict
    assert worse.startswith("Synthetic data does not help here") and "1 lose" in worse
    assert (
        "no clear difference from the best trivial arm"
        in _result(real, [0.62, 0.63, 0.6, 0.62], [0.61, 0.64, 0.6, 0.62]).verdict
    )
    assert _result([0.5], [0.6]).verdict.startswith("Undecided")


def test_seeds_of_one_draw_are_not_counted_as_repetitions():
    records = []
    for seed in range(5):
        for policy, arm, shift in (("real", "real", 0), ("mixed", "new", 0.1)):
            part = _records([0.5 + shift + 0.001 * seed, 0.6 + shift], policy, arm)
            records += [{**r, "seed": seed} for r in part]
    assert set(StudyResult(records, set(), {}).table["repetitions"]) == {2}


def test_trivial_arms_are_always_there_and_every_arm_is_scored(tmp_path):
    result = _study(tmp_path).run(progress=False)
    assert set(result.frame["arm"]) == {"real", "bootstrap", "tsaug", "jitter"}
    assert len(result.frame) == 3 * (1 + 3 * 2)
    assert result.frame["macro_f1"].between(0, 1).all()
    page = result.report(tmp_path / "report")
    text = page.read_text()
    assert text.index(result.verdict.split(":")[0]) < text.index("<table>")
    assert {"report.html", "result.json", "table.csv", "gains.png", "samples.png"} <= {
        p.name for p in page.parent.iterdir()
    }
    assert json.loads((page.parent / "result.json").read_text())["verdict"] == result.verdict
    assert result.to_text().startswith(result.verdict)


def test_twice_the_same_numbers_and_the_global_generator_does_not_matter():
    torch.manual_seed(1)
    first = _study().run(progress=False).frame["macro_f1"]
    torch.manual_seed(2)
    np.random.seed(7)
    assert first.equals(_study().run(progress=False).frame["macro_f1"])


def test_a_study_killed_half_way_continues(tmp_path, monkeypatch):
    import lightning_synth.study as module

    whole = _study(tmp_path / "whole").run(progress=False).frame
    calls, score = [], module._CellRun._score

    def dies(self, *job):
        calls.append(job)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return score(self, *job)

    monkeypatch.setattr(module._CellRun, "_score", dies)
    with pytest.raises(KeyboardInterrupt):
        _study(tmp_path / "cut").run(progress=False)
    resumed = _study(tmp_path / "cut").run(progress=False).frame
    assert len(calls) == len(whole) + 1, "finished arms were trained again"
    assert resumed["macro_f1"].equals(whole["macro_f1"])


def test_shards_meet_in_the_folder(tmp_path):
    whole = _study(tmp_path / "whole").run(progress=False).frame
    parts = [len(_study(tmp_path / "parts").run(progress=False, shard=(i, 2)).frame) for i in range(2)]
    assert sum(parts) == len(whole)
    assert _study(tmp_path / "parts").run(progress=False).frame["macro_f1"].equals(whole["macro_f1"])
    with pytest.raises(ConfigError, match="out folder"):
        _study().run(shard=(0, 2))


def test_a_folder_of_another_study_is_refused(tmp_path):
    _study(tmp_path, draws=1).run(progress=False)
    with pytest.raises(ConfigError, match=r"other settings \(pool_size\)"):
        _study(tmp_path, draws=1, pool_size=41).run(progress=False)
    with pytest.raises(ConfigError, match=r"other settings \(generators.jitter\)"):
        _study(tmp_path, draws=1, generators={"jitter": {"scale": 0.2}}).run(progress=False)


def test_arms_and_draws_may_be_added_later(tmp_path, monkeypatch):
    import lightning_synth.study as module

    first = _study(tmp_path, draws=1).run(progress=False).frame
    calls, score = [], module._CellRun._score
    monkeypatch.setattr(module._CellRun, "_score", lambda self, *job: calls.append(job) or score(self, *job))
    more = _study(tmp_path, draws=2, generators={"jitter": {}, "smote": {}}).run(progress=False).frame
    assert len(calls) == len(more) - len(first)


def test_networks_train_through_the_mixing_datamodule_in_equal_steps(monkeypatch):
    import lightning_synth.study as module

    seen, make = [], module._trainer
    monkeypatch.setattr(module, "_trainer", lambda *a: seen.append(make(*a)) or seen[-1])
    result = _study(downstream=["wdcnn"], draws=1, downstream_steps=3).run(progress=False)
    assert {trainer.global_step for trainer in seen} == {3} and len(seen) == len(result.frame)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": ["mixed"]}, "must hold 'real'"),
        ({"policies": ["real", "fake"]}, "policies"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"generators": {"jitter": {"refine": "nobody"}}}, "which is no other arm"),
        ({"generators": {"jitter": {"learn_from": "jitter"}}}, "learns from 'jitter', which is no other arm"),
        ({"generators": {"jiter": {}}}, "did you mean jitter|jitter"),
        ({"downstream": ["no_such_model"]}, "no_such_model"),
    ],
)
def test_bad_settings_are_named_before_anything_runs(changes, message):
    with pytest.raises((ConfigError, KeyError, ls.errors.LightningSynthError), match=message):
        _study(**changes)


def test_a_fixed_datamodule_cannot_have_shots():
    with pytest.raises(ConfigError, match="callable or class_path"):
        _study(data=_data())


def test_refining_starts_from_the_same_rows_of_the_other_arm(monkeypatch):
    from lightning_synth.plugins.baselines import Jitter

    inits = []

    def sample(self, requests, rng, *, init=None, **options):
        inits.append(init)
        rows = None if init is None else torch.stack([item["x"] for item in init])
        return {"x": self.bank.batch["x"][rng.integers(len(self.bank))] if rows is None else rows}

    monkeypatch.setattr(Jitter, "sample_batch", sample)
    study = _study(
        generators={"refined": {"name": "jitter", "refine": "bootstrap"}}, draws=1, policies=["real", "mixed"]
    )
    study.run(progress=False)
    assert any(init is not None and len(init) == 40 for init in inits)


def test_an_arm_learns_from_the_samples_of_another(monkeypatch):
    from lightning_synth.plugins.baselines import Jitter

    seen, fit = {}, Jitter.fit_on

    def fit_on(self, items, schema):
        seen[self.hparams["sigma"]] = items
        return fit(self, items, schema)

    monkeypatch.setattr(Jitter, "fit_on", fit_on)
    arms = {"alone": {"name": "jitter", "sigma": 0.1}, "more": {"name": "jitter", "sigma": 0.2, "learn_from": "alone"}}
    _study(generators=arms, draws=1, policies=["real", "mixed"]).run(progress=False)
    real = len(seen[0.1])
    assert len(seen[0.2]) == real + 40
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(seen[0.1], seen[0.2][:real], strict=True))


class _Mean:
    """Predicts the mean of the training windows; scored by its error, which is better when lower."""

    metric, higher_is_better = "rmse", False

    def __init__(self, schema, shift=0.0):
        self.shift = shift

    def fit(self, items, weight=None, seed=0):
        self.mean = np.average([float(item["x"].mean()) for item in items], weights=weight)
        return self

    def score(self, items):
        truth = np.array([float(item["x"].mean()) for item in items])
        return {"rmse": float(np.sqrt(np.mean((truth - self.mean - self.shift) ** 2))), "bias": self.shift}


def test_a_model_may_score_itself_and_lower_may_be_better(monkeypatch):
    import lightning_synth.study as module

    monkeypatch.setattr(module, "get_downstream", lambda name: {"mean": _Mean}[name])
    arms = {"near": {"name": "mean"}, "far": {"name": "mean", "shift": 3.0}}
    result = _study(downstream=arms, policies=["real", "mixed"]).run(progress=False)
    assert result.metric == "rmse" and {"rmse", "bias"} <= set(result.frame)
    table = result.table.set_index(["downstream", "arm"])
    assert (table["rmse"]["far"] > table["rmse"]["near"] + 2).all()
    worse = result.table.query("gain < 0")
    real = table["rmse"]["near", "real"]
    assert np.allclose(table["gain"]["near"].drop("real"), real - table["rmse"]["near"].drop("real"))
    assert "lower RMSE" in result.verdict and len(worse) > 0


def test_unlabelled_items_need_a_model_that_scores_itself(monkeypatch):
    from lightning_synth.testing import tiny_datamodule

    data = tiny_datamodule("timeseries", labels=False)
    with pytest.raises(ConfigError, match=r"no class label, but random_forest"):
        _study(data=data, shots=None)


def test_models_of_different_scores_keep_their_own():
    records = [
        {**r, "rmse": 1 - r["macro_f1"]}
        for r in _records([0.5, 0.6], "real", "real", "a") + _records([0.6, 0.7], downstream="a")
    ]
    records += [{**r, "downstream": "b"} for r in records]
    result = StudyResult(records, set(), {}, metrics={"b": ("rmse", False)})
    table = result.table
    assert set(table["metric"]) == {"macro_f1", "rmse"} and result.metric == "score"
    assert np.allclose(table[table["policy"] == "mixed"]["gain"], 0.1)
    assert "score" in result.to_text()


def test_an_arm_may_change_the_data_instead_of_adding_samples():
    arms = {"quiet": {"data": {"noise": 0.0}}}
    result = _study(generators=arms, policies=["real", "mixed", "synthetic"]).run(progress=False)
    quiet = result.frame[result.frame["arm"] == "quiet"]
    assert set(quiet["policy"]) == {"mixed"} and len(quiet) == 3
    real = result.frame[result.frame["arm"] == "real"]
    assert not np.allclose(quiet["macro_f1"], real["macro_f1"])
    with pytest.raises(ConfigError, match="changes the data"):
        _study(generators={"quiet": {"data": {}, "name": "jitter"}})
    with pytest.raises(ConfigError, match="changes the data"):
        _study(generators={"quiet": {"data": {}}}, policies=["real", "synthetic"])
