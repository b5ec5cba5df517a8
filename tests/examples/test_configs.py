"""Every YAML in examples/configs runs, at tiny size."""

from pathlib import Path

import pytest
import yaml

import lightning_synth as ls
from lightning_synth.cli import main

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "configs"
QUIET = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]


def test_no_config_is_forgotten():
    found = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    covered = {"fit_fault_diffusion.yaml", "generate.yaml", "fit_classifier.yaml"}
    covered |= {f"diffusion_ts/{name}.yaml" for name in ("stocks", "etth", "energy")}
    studies = ("demo", "tep", "cwru", "graphs", "molecules", "node_imbalance", "sequence_augmentation")
    assert found == covered | {f"study/{name}.yaml" for name in studies}


@pytest.mark.parametrize("name", ["stocks", "etth", "energy"])
def test_diffusion_ts_at_its_authors_settings(name, tmp_path, data_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = CONFIGS / "diffusion_ts" / f"{name}.yaml"
    source = Path(yaml.safe_load(path.read_text())["data"]["init_args"]["source"])
    where = data_root / source.relative_to("../shared/data")
    with pytest.warns(UserWarning, match="literature"):
        main(["fit", "-c", str(path), f"--data.source={where}", "--trainer.max_steps=1", *QUIET])


def test_fit_generate_and_mix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", str(CONFIGS / "fit_fault_diffusion.yaml"), "--trainer.max_steps=3", *QUIET])
    main(["generate", "-c", str(CONFIGS / "generate.yaml"), "--n=12", *QUIET])
    assert len(ls.SyntheticPool.open("pools/fault_diffusion")) == 12
    main(["fit", "-c", str(CONFIGS / "fit_classifier.yaml"), "--trainer.max_steps=2", *QUIET])


FOREST = {"n_estimators": 5}
MODELS = {
    "graphs.yaml": {"random_forest": FOREST, "gin": {}},
    "molecules.yaml": {"fingerprint_forest": FOREST, "molecule_gin": {}},
    "node_imbalance.yaml": {"gcn": {}, "gcn_tam": {"name": "gcn", "tam": True}},
}


def _tiny_study(name, tmp_path, **changes):
    config = yaml.safe_load((CONFIGS / "study" / name).read_text())
    arms = {arm: {**(settings or {}), **changes.get(arm, {})} for arm, settings in config["generators"].items()}
    config.update(
        generators=arms,
        shots=[2] if "shots" in config else None,
        draws=1,
        seeds=1,
        pool_size=2 if name == "node_imbalance.yaml" else 20,
        generator_steps=2,
        downstream_steps=2,
        downstream=MODELS.get(name, {"random_forest": FOREST, "wdcnn": {}}),
        evaluation=False,
        out=str(tmp_path / "out"),
        accelerator="cpu",
    )
    config["folds"] = dict(list((config.get("folds") or {"all": {}}).items())[:1])
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config))
    return config, path


def test_the_demo_study(tmp_path, capsys):
    _, path = _tiny_study("demo.yaml", tmp_path)
    main(["study", "-c", str(path)])
    assert "Undecided" in capsys.readouterr().out and (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("name", ["tep.yaml", "cwru.yaml", "graphs.yaml", "molecules.yaml", "node_imbalance.yaml"])
def test_the_studies_of_real_data(name, tmp_path, data_root):
    # 50 steps of sampling untrained networks would show nothing more than 2.
    config, path = _tiny_study(name, tmp_path, defog={"num_steps": 2}, molecule_flow={"num_steps": 2})
    where = config["data"]["init_args"]
    for key in ("path", "root", "source"):
        if key in where:
            where[key] = str(data_root / Path(where[key]).relative_to("../shared/data"))
    path.write_text(yaml.safe_dump(config))
    main(["study", "-c", str(path)])
    assert (tmp_path / "out" / "report.html").exists()


def test_the_study_of_sequences(tmp_path):
    """Every arm, on 60 users who walk through 20 items."""
    config = yaml.safe_load((CONFIGS / "study" / "sequence_augmentation.yaml").read_text())
    lines = (" ".join(str(1 + (7 * u + i) % 20) for i in range(5 + u % 9)) for u in range(60))
    (tmp_path / "users.txt").write_text("\n".join(f"{u + 1} {line}" for u, line in enumerate(lines)))
    small = {"sasrec": {"dim": 4}, "gru4rec": {"dim": 4}, "sequential_rules": {}}
    config["data"]["init_args"]["source"] = str(tmp_path / "users.txt")
    config.update(
        folds=None, seeds=1, pool_size=20, generator_steps=2, downstream_steps=2, accelerator="cpu", downstream=small
    )
    config["out"] = str(tmp_path / "out")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    main(["study", "-c", str(tmp_path / "study.yaml")])
    assert (tmp_path / "out" / "report.html").exists()
