"""Few-shot Tennessee Eastman with K windows of every class, the normal class too, in the classifier.

The generators see the K shots of each fault and all normal training windows; the classifier sees K windows of each of
14 classes, alone and with 20 synthetic windows a class whose total weight equals that of the real ones. Scores are
macro F1 on the test runs from fault onset.

    python examples/few_shot_tep.py ../shared/data/fault/tep.npz --shots 1 3 5 --draws 5
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch
from lightning import Trainer

import lightning_synth as ls
from lightning_synth.downstream.base import scores
from lightning_synth.schema import labels

FAULTS = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14)
PER_CLASS = 20


def fit(name: str, data: ls.datamodules.TEPDataModule, steps: int) -> ls.Generator:
    generator = ls.get_generator(name)()
    if isinstance(generator, ls.FitFreeGenerator):
        return generator.fit_on(data.train_items(), data.schema)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(generator, data)
    return generator


def score(data: ls.datamodules.TEPDataModule, shots: int, synthetic: list, seed: int) -> float:
    train = data.train_items()
    y = labels(train, data.schema)
    few = [train[int(i)] for c in range(len(FAULTS) + 1) for i in np.flatnonzero(y == c)[:shots]]
    weight = [1.0] * len(few) + [len(few) / max(len(synthetic), 1)] * len(synthetic)
    forest = ls.downstream.RandomForest(data.schema).fit([*few, *synthetic], np.array(weight), seed)
    test = data.test_items()
    return scores(labels(test, data.schema), np.asarray(forest.predict(test)), len(FAULTS) + 1)["macro_f1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--arms", nargs="+", default=["normal_transplant", "fault_diffusion"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("shots draw real " + " ".join(options.arms))
    for shots in options.shots:
        rows = []
        for draw in range(options.draws):
            data = ls.datamodules.TEPDataModule(options.path, faults=FAULTS, shots=shots, draw=draw, val_fraction=0.0)
            row = [score(data, shots, [], draw)]
            for arm in options.arms:
                generator = fit(arm, data, options.steps)
                n = PER_CLASS * (len(FAULTS) + 1)
                row.append(score(data, shots, list(generator.sample(n, condition="balanced", seed=draw).items()), draw))
            rows.append(row)
            print(shots, draw, *(f"{value:.3f}" for value in row), flush=True)
        print(shots, "mean", *(f"{value:.3f}" for value in np.mean(rows, axis=0)), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
