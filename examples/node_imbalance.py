"""Imbalanced node classification on Cora: does synthesis of rare nodes beat a better loss?

The protocol of GraphENS and TAM: the public split, the last three classes cut to 20 / rho labels (rho 100: one label
beside 100; the draws are those of their code), row-normalised features, GCN, the best validation step counts. Every arm
takes the layers, the width and the parameters of TAM with the best validation score on the first draw of labels (the
papers choose them by validation, too). Synthetic nodes are drawn anew for every training step. Mean and standard error
over draws.

    python examples/node_imbalance.py ../shared/data/graphs/cora_planetoid.npz --out node_imbalance.jsonl

Finished runs are kept in --out, so that the table can be made in pieces; the whole of it takes about two
hours on one core of a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch.utils.data import DataLoader, Dataset

import lightning_synth as ls
from lightning_synth.downstream import get_downstream
from lightning_synth.requests import KeyedRNG, mix_seed

#: Arm: generator, its options, options of the classifier.
ARMS: dict[str, tuple[str | None, dict[str, Any], dict[str, Any]]] = {
    "cross_entropy": (None, {}, {}),
    "reweight": (None, {}, {"loss": "reweight"}),
    "balanced_softmax": (None, {}, {"loss": "balanced_softmax"}),
    "balanced_softmax_tam": (None, {}, {"loss": "balanced_softmax", "tam": True}),
    "renode": (None, {}, {"loss": "reweight", "renode": True}),
    "node_oversample": ("node_oversample", {}, {}),
    "graph_smote": ("graph_smote", {}, {}),
    "graph_ens": ("graph_ens", {}, {}),
    "graph_ens_tam": ("graph_ens", {}, {"tam": True}),
    "graph_sha": ("graph_sha", {}, {}),
    "node_mixup": ("node_mixup", {}, {}),
    "gaug": ("gaug", {}, {}),
}
#: Parameters of TAM to choose from: the grid of its authors.
TAM = {"tam_alpha": (2.5, 1.5, 0.5), "tam_beta": (0.5, 0.25), "tam_phi": (1.2, 0.8)}


class FreshGraphs(Dataset[Any]):
    """The training graph, augmented anew for every step."""

    def __init__(self, generator: Any, graph: Any, steps: int, seed: int) -> None:
        self.generator, self.graph, self.steps, self.seed = generator.eval(), graph, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Any:
        return self.generator.augment(self.graph, KeyedRNG(mix_seed(self.seed, step)))


def trainer(steps: int) -> Trainer:
    return Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip


def training_loader(arm: str, data: Any, seed: int, options: argparse.Namespace) -> DataLoader[Any]:
    name, hparams, _ = ARMS[arm]
    if name is None:
        return data.train_dataloader()
    generator = ls.get_generator(name)(seed=seed, **hparams)
    if isinstance(generator, ls.FitFreeGenerator):
        generator.fit_on(data.train_items(), data.schema)
    else:
        trainer(options.generator_steps).fit(generator, data.train_dataloader())
    fresh = FreshGraphs(generator, data.train_items()[0], options.steps, seed)
    return DataLoader(fresh, batch_size=1, collate_fn=lambda graphs: graphs[0])


def candidates(
    records: list[dict[str, Any]], arm: str, rho: float, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Settings of the classifier to try on the first draw: its size, then the parameters of TAM at the best size."""
    for layers, hidden in product(options.layers, options.hidden):
        yield {"num_layers": layers, "hidden": hidden}
    if ARMS[arm][2].get("tam"):
        best = chosen(records, arm, rho)
        for values in product(*TAM.values()):
            yield best | dict(zip(TAM, values, strict=True))


def run(arm: str, rho: float, setting: dict[str, Any], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    start = time.process_time()
    data = ls.datamodules.NodeDataModule(options.path, imbalance=rho, draw=seed, normalize_features=True)
    loader = training_loader(arm, data, seed, options)
    fitted = time.process_time()
    hparams = {**ARMS[arm][2], **setting}
    model = get_downstream(options.net)(schema=data.schema, seed=seed, **hparams)
    trainer(options.steps).fit(model, loader)
    done = time.process_time()
    return {
        "arm": arm, "rho": rho, "setting": setting, "seed": seed, "validation": model.best_validation,
        **model.score(data.test_items()), "seconds": done - fitted, "generator_seconds": fitted - start,
    }  # fmt: skip


def chosen(records: list[dict[str, Any]], arm: str, rho: float) -> dict[str, Any]:
    """The setting with the best validation score on the first draw."""
    first = [r for r in records if (r["arm"], r["rho"], r["seed"]) == (arm, rho, 0)]
    setting: dict[str, Any] = max(first, key=lambda r: r["validation"])["setting"]
    return setting


def table(records: list[dict[str, Any]]) -> str:
    """Mean and standard error of each arm at its setting."""
    scores = f"{'balanced accuracy':>17}  {'macro F1':>13}  {'accuracy':>13}"
    lines = [f"{'arm':22} {'rho':>4} {'layers':>6} {'width':>5}  {scores} runs"]
    for rho in sorted({r["rho"] for r in records}):
        for arm in ARMS:
            if not any((r["arm"], r["rho"]) == (arm, rho) for r in records):
                continue
            setting = chosen(records, arm, rho)
            cells = [r for r in records if (r["arm"], r["rho"], r["setting"]) == (arm, rho, setting)]
            shown = [_mean(cells, key) for key in ("balanced_accuracy", "macro_f1", "accuracy")]
            where = f"{arm:22} {rho:4g} {setting['num_layers']:6d} {setting['hidden']:5d}"
            lines.append(f"{where}  {shown[0]:>17}  {shown[1]:>13}  {shown[2]:>13} {len(cells):4d}")
    return "\n".join(lines)


def _mean(records: list[dict[str, Any]], key: str) -> str:
    values = 100 * np.array([r[key] for r in records])
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():.2f} +- {error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="Cora: npz, or a folder of Planetoid files")
    parser.add_argument("--rho", type=float, nargs="+", default=[10, 100])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--net", default="gcn", choices=["gcn", "gat", "graphsage"])
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--generator-steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None, help="JSON lines of finished runs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    records = []
    if options.out is not None and options.out.exists():
        records = [json.loads(line) for line in options.out.read_text().splitlines()]
    done = [(r["arm"], r["rho"], r["setting"], r["seed"]) for r in records]
    for rho, seed, arm in product(options.rho, range(options.seeds), options.arms):
        tried = candidates(records, arm, rho, options) if seed == 0 else [chosen(records, arm, rho)]
        for setting in tried:
            if (arm, rho, setting, seed) in done:
                continue
            records.append(run(arm, rho, setting, seed, options))
            if options.out is not None:
                with options.out.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
