"""Do the classical arms help on real data, over real data alone, with the synthetic weight capped at the real one?"""

import numpy as np
import pytest

import lightning_synth as ls
from lightning_synth.datamodules.bearings import BearingDataModule
from lightning_synth.datamodules.tep import TEPDataModule
from lightning_synth.downstream.random_forest import RandomForest
from lightning_synth.items import StackedItems
from lightning_synth.schema import labels

pytestmark = pytest.mark.slow


def macro_f1(true, predicted):
    from sklearn.metrics import f1_score

    return f1_score(true, predicted, average="macro")


def scores(data, name, asked, per_class=100, test_stride=1):
    """Macro F1 on the test split of a random forest on real items, and on real and synthetic ones."""
    train, test = data.train_items(), data.test_items()[::test_stride]
    generator = ls.get_generator(name)().fit_on(train, data.schema)
    wanted = np.repeat(asked, per_class)
    synthetic = generator.sample(len(wanted), condition={"label": wanted.tolist()}, seed=data.draw).items()
    weight = np.r_[np.ones(len(train)), np.full(len(wanted), min(1.0, len(train) / len(wanted)))]
    forest = {"n_estimators": 100, "class_weight": "balanced"}
    alone = RandomForest(data.schema, **forest).fit(train, seed=data.draw).predict(test)
    both = (
        RandomForest(data.schema, **forest).fit(StackedItems.cat([train, synthetic]), weight, data.draw).predict(test)
    )
    true = labels(test, data.schema)
    return macro_f1(true, alone), macro_f1(true, both)


@pytest.mark.parametrize("shots", (5, 20))
def test_the_bearing_simulator_helps_on_faults_of_an_unseen_size(data_root, shots):
    """CWRU drive end, all loads, windows of 1024: another fault diameter, hence other bearings, in each test fold."""
    found = []
    for size in (0.014, 0.021, 0.007):
        for draw in range(2):
            data = BearingDataModule(
                data_root / "fault", shots=shots, draw=draw, normal_windows=60, test_fault_size=size
            )
            found.append(scores(data, "bearing_simulator", (0, 1, 2, 3), test_stride=4))
    alone, both = np.array(found).mean(0)
    assert both - alone > 0.08, f"real only {alone:.3f}, real and simulated {both:.3f}"
    assert both > 0.67


@pytest.mark.filterwarnings("ignore:SMOTE can only copy")
def test_transplanted_normal_variation_helps_where_copies_do_not(data_root):
    """Tennessee Eastman, 14 classes, one window a fault."""
    faults = (*range(1, 8), *range(9, 15))
    datasets = [TEPDataModule(data_root / "fault" / "tep.npz", faults, shots=1, draw=draw) for draw in range(3)]
    found = {
        name: np.mean([scores(data, name, range(1, 14), 20) for data in datasets], axis=0)
        for name in ("smote", "normal_transplant")
    }
    real, copies = found["smote"]
    assert found["normal_transplant"][1] - real > 0.04, found
    # With one window a class SMOTE can only copy it.
    assert copies < real + 0.03, found
