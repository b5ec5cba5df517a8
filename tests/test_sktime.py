"""Generators as sktime transformers: sktime's own checks, labels, and what a fitted generator becomes."""

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("sktime")

from sktime.utils.estimator_checks import check_estimator

from lightning_synth.errors import ConfigError, DataError
from lightning_synth.items import StackedItems
from lightning_synth.plugins.baselines import Jitter
from lightning_synth.plugins.timeseries.smote import SMOTE
from lightning_synth.schema import describe
from lightning_synth.sktime import SynthTransformer, to_sktime
from lightning_synth.testing import tiny_datamodule, tiny_series, tiny_series_schema
from lightning_synth.testing.case import quiet_trainer

TINY = {"d_model": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "num_steps": 3}


def levels(n=12):
    """A panel whose values tell the class, and labels that are words."""
    level = np.where(np.arange(n) % 2, 100.0, 0.0)
    noise = np.random.default_rng(0).normal(size=(n, 2, 10))
    return level[:, None, None] + noise, np.where(np.arange(n) % 2, "high", "a low")


def failures(estimator, **options):
    results = check_estimator(estimator, verbose=False, **options)
    assert len(results) > 3
    return {name: result for name, result in results.items() if result != "PASSED"}


@pytest.mark.filterwarnings("ignore")
def test_it_passes_the_checks_of_sktime_with_no_exclusion():
    assert not failures(SynthTransformer)


@pytest.mark.filterwarnings("ignore")
def test_a_fitted_generator_passes_them_too():
    assert not failures(to_sktime(Jitter().fit_on(tiny_series(8), tiny_series_schema())))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["dba", "t_smote", "iaaft", "interpolate", "sktime_bootstrap", "diffusion_ts"])
def test_other_generators_pass_them(name):
    hparams = TINY if name == "diffusion_ts" else {}
    assert not failures(SynthTransformer(name, hparams, max_steps=2))


@pytest.mark.filterwarnings("ignore")
def test_a_trained_generator_fits_samples_and_pickles():
    X, y = levels()
    transformer = SynthTransformer("diffusion_ts", TINY, max_steps=3, batch_size=5, random_state=1).fit(X, y)
    Xt = transformer.transform(X, y)
    assert Xt.shape == X.shape and np.isfinite(Xt).all() and transformer.generator_.is_fitted
    assert np.array_equal(pickle.loads(pickle.dumps(transformer)).transform(X, y), Xt)
    assert np.allclose(transformer.clone().fit(X, y).transform(X, y), Xt, atol=1e-4)
    assert not np.allclose(transformer.clone().set_params(random_state=2).fit(X, y).transform(X, y), Xt, atol=1e-4)


def test_instances_have_the_labels_asked_for_and_the_frame_of_X():
    X, y = levels()
    # Names that sorting would reverse.
    names, days = [f"run {20 - i}" for i in range(12)], pd.period_range("2020", periods=10, freq="D")
    index = pd.MultiIndex.from_product([names, days])
    frame = pd.DataFrame(X.transpose(0, 2, 1).reshape(-1, 2), columns=["left", "right"], index=index)
    transformer = SynthTransformer("smote", {"k_neighbors": 3}).fit(frame, y)
    assert transformer.classes_.tolist() == ["a low", "high"]
    out = transformer.transform(frame, y[::-1])
    assert out.index.equals(frame.index) and list(out.columns) == ["left", "right"]
    mean = out.groupby(level=0, sort=False).mean().to_numpy().mean(1)
    assert ((mean > 50) == (y[::-1] == "high")).all()
    # Without labels both classes occur, as in training.
    free = transformer.transform(frame).groupby(level=0, sort=False).mean().to_numpy().mean(1)
    assert 2 <= (free > 50).sum() <= 10
    with pytest.raises(ConfigError, match="'middle' was not in fit"):
        transformer.transform(frame, np.full(12, "middle"))


def test_a_fitted_generator_transforms_at_once_and_refits_on_other_data():
    X, y = levels()
    items = StackedItems({"x": torch.tensor(X).float(), "y": torch.arange(12) % 2})
    schema = describe(items, "timeseries", class_names=["a low", "high"])
    generator = SMOTE(k_neighbors=2, seed=4).fit_on(items, schema)
    transformer = to_sktime(generator)
    out = transformer.transform(X, y)
    assert transformer.generator_ is generator and ((out.mean((1, 2)) > 50) == (y == "high")).all()
    assert transformer.get_params()["hparams"]["k_neighbors"] == 2 and transformer.random_state == 4
    assert transformer.fit(X[..., :5]).transform(X[..., :5]).shape == (12, 2, 5)
    assert transformer.generator_ is not generator and len(generator.bank) == 12
    with pytest.raises(DataError, match=r"2 variables and 5 time points, X has 2 and 10"):
        transformer.transform(X)


def test_generators_that_are_no_equal_length_series_are_refused():
    with pytest.raises(ConfigError, match="not fitted"):
        to_sktime(Jitter())
    with pytest.raises(ConfigError, match="got 'jitter'; by name: SynthTransformer"):
        to_sktime("jitter")
    mask = torch.arange(24) < 10 + torch.arange(16)[:, None] % 3
    items = StackedItems(tiny_series().tensors | {"mask": mask})
    with pytest.raises(ConfigError, match="unequal length"):
        to_sktime(Jitter().fit_on(items, describe(items, "timeseries")))
    from lightning_synth.plugins.baselines import Bootstrap

    sequences = tiny_datamodule("sequence")
    with pytest.raises(ConfigError, match="no series"):
        to_sktime(Bootstrap().fit_on(sequences.train_items(), sequences.schema))


def test_a_generator_fitted_by_a_trainer_can_be_used():
    generator = Jitter()
    quiet_trainer(max_steps=1).fit(generator, tiny_datamodule("timeseries"))
    X = tiny_series(5).tensors["x"].numpy()
    assert np.allclose(to_sktime(generator).transform(X), to_sktime(generator).transform(X))


def test_importing_the_library_does_not_import_sktime():
    code = "import sys, lightning_synth as ls; ls.list_generators(); assert 'sktime' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
