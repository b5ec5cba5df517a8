"""The command line, as a user types it."""

import json

import pytest

import lightning_synth as ls
from lightning_synth.cli import main


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Lightning saves the configuration of a run into the working directory."""
    monkeypatch.chdir(tmp_path)


def test_list_and_info(capsys):
    main(["list", "--domain", "graph"])
    assert "`bootstrap`" in capsys.readouterr().out
    main(["info", "fault_diffusion"])
    out = capsys.readouterr().out
    assert "arXiv" in out and "Args:" in out
    main([])
    assert "study" in capsys.readouterr().out


def test_unknown_generator_is_named():
    with pytest.raises(ls.errors.UnknownGeneratorError, match="fault_diffusion"):
        main(["info", "fault_difusion"])


def test_fit_generate_mix_evaluate(tmp_path, capsys):
    data = ["--data=lightning_synth.datamodules.UEADataModule", "--data.name=ItalyPowerDemand", "--data.shots=4"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    checkpoint = tmp_path / "last.ckpt"
    saver = [
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        f"--trainer.callbacks.dirpath={tmp_path}",
        "--trainer.callbacks.filename=last",
        "--trainer.callbacks.enable_version_counter=false",
    ]
    main(["fit", "--model=lightning_synth.plugins.baselines.Jitter", *data, *quiet, *saver])
    assert checkpoint.exists()
    pool = tmp_path / "pool"
    main(
        ["generate", f"--ckpt_path={checkpoint}", f"--out={pool}", "--n=13", "--seed=3", *quiet[:1], quiet[1], quiet[2]]
    )
    opened = ls.SyntheticPool.open(pool)
    assert len(opened) == 13 and opened.manifest["counts"]["requested"] == 13
    mixed = [
        "--data=lightning_synth.datamodules.MixedDataModule",
        "--data.real=lightning_synth.datamodules.UEADataModule",
        "--data.real.name=ItalyPowerDemand",
        f"--data.pool={pool}",
        "--data.batch_size=8",
    ]
    main(
        [
            "fit",
            "--model=lightning_synth.downstream.WDCNN",
            *mixed,
            *quiet,
            "--trainer.max_steps=2",
            "--trainer.enable_checkpointing=false",
        ]
    )
    capsys.readouterr()
    main(["evaluate", str(pool), *data, "--metrics=[fast]", f"--json={tmp_path / 'scores.json'}"])
    assert capsys.readouterr().out.strip() and json.loads((tmp_path / "scores.json").read_text())


def test_print_config(capsys):
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                "--model=lightning_synth.plugins.baselines.Jitter",
                "--data=lightning_synth.datamodules.UEADataModule",
                "--print_config",
            ]
        )
    out = capsys.readouterr().out
    assert "class_path: lightning_synth.plugins.baselines.Jitter" in out and "seed_everything" in out


def test_study_writes_its_report(tmp_path, capsys):
    config = {
        "data": {"class_path": "lightning_synth.datamodules.UEADataModule", "init_args": {"name": "ItalyPowerDemand"}},
        "generators": {"smote": {}},
        "downstream": {"random_forest": {"n_estimators": 5}},
        "shots": [3],
        "draws": 2,
        "pool_size": 20,
        "evaluation": False,
        "out": str(tmp_path / "out"),
    }
    path = tmp_path / "study.json"
    path.write_text(json.dumps(config))
    main(["study", "-c", str(path)])
    assert "Synthetic data" in capsys.readouterr().out and (tmp_path / "out" / "report.html").exists()
