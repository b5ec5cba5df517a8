"""flow_ts on labelled recordings: classes that an independent classifier recognises, as varied as real ones."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import StandardScaler

import lightning_synth as ls
from lightning_synth.features import series_features
from lightning_synth.metrics.diversity import prdc
from lightning_synth.schema import labels
from lightning_synth.testing.case import quiet_trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def adherence_and_recall(data, steps):
    """Accuracy on synthetic over accuracy on real test windows, and recall over that of real training windows."""
    model = ls.get_generator("flow_ts")()
    quiet_trainer(max_steps=steps).fit(model, datamodule=data)
    train, test, schema = data.train_items(), data.test_items(), data.schema
    truth = labels(test, schema)
    synthetic = model.sample(len(test), condition={"label": [int(v) for v in truth]}, seed=1)
    known, real, made = (series_features(i, schema, "all") for i in (train, test, list(synthetic.items())))
    forest = RandomForestClassifier(300, random_state=0).fit(known, labels(train, schema))
    accuracy = [forest.score(x, truth) for x in (made, real)]
    # Features that hardly vary in real windows (a constant standard deviation) would drown all others.
    varies = known.std(0) > 1e-3 * (1e-3 + np.abs(known.mean(0)))
    scale = StandardScaler().fit(known[:, varies])
    space = PCA(min(20, len(known) - 1), random_state=0).fit(scale.transform(known[:, varies]))
    known, real, made = (space.transform(scale.transform(x[:, varies])) for x in (known, real, made))
    picked = np.random.default_rng(0).permutation(len(made))[: len(known)]
    recall = [prdc(real, x)["recall"] for x in (made[picked], known)]
    return accuracy[0] / accuracy[1], recall[0] / recall[1]


@pytest.mark.parametrize("name", ["ECG200", "Epilepsy", "NATOPS"])
def test_classes_are_recognised_and_varied(name, data_root):
    data = ls.datamodules.UEADataModule(str(data_root / "timeseries" / f"{name}.npz"), batch_size=32)
    adherence, recall = adherence_and_recall(data, steps=500)
    print(f"\n{name}: adherence {adherence:.3f} of real, recall {recall:.2f} of the floor")
    assert adherence >= 0.95 and recall >= 0.8


def test_basic_motions_from_ten_windows_a_class(data_root):
    data = ls.datamodules.UEADataModule(str(data_root / "timeseries" / "BasicMotions.npz"), batch_size=32)
    adherence, recall = adherence_and_recall(data, steps=500)
    print(f"\nBasicMotions: adherence {adherence:.3f} of real, recall {recall:.2f} of the floor")
    # Below the .95 and .8 of the larger sets: 40 training windows of 600 values.
    assert adherence >= 0.8 and recall >= 0.45
