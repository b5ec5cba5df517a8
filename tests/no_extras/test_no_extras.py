"""Runs in an environment without any extra: `make no-extras`. Elsewhere it is skipped."""

import importlib.util
import subprocess
import sys

import pytest

EXTRAS = ("torch_geometric", "rdkit", "sktime", "tsaug", "imblearn", "networkx")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tsaug") is not None, reason="this environment has the extras installed"
)


def test_import_and_listing_work():
    code = (
        "import lightning_synth as ls; names = ls.list_generators(); assert 'tsaug' in names and 'bootstrap' in names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_can_run_is_known():
    import lightning_synth as ls

    assert "tsaug" in ls.list_generators(available=False) and "fault_diffusion" in ls.list_generators(available=True)


def test_a_missing_extra_is_named():
    import lightning_synth as ls
    from lightning_synth.errors import MissingExtraError

    with pytest.raises(MissingExtraError, match=r"pip install 'lightning-synth\[timeseries\]'"):
        ls.get_generator("tsaug")


def test_a_generator_without_extras_trains_and_samples(tmp_path):
    import torch
    from lightning import Trainer

    import lightning_synth as ls

    data = ls.datamodules.ArrayDataModule(torch.randn(12, 2, 24), [0, 1] * 6, torch.randn(4, 2, 24), [0, 1] * 2)
    generator = ls.get_generator("fault_diffusion")()
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(generator, data)
    assert generator.sample(3, num_steps=2).data["x"].shape == (3, 2, 24)
