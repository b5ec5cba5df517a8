"""How good are generated graphs? One table for a data set, at equal training time, beside a perfect sampler.

Every generator is trained for the same number of minutes of processor time on one core, and scored on the test split
of the file. Graphs that other code generated join the table with ``--external name=graphs.npz`` (``num_nodes``,
``edge_ptr``, ``edges``, as the data). ``--tune`` chooses the sampler of ``defog`` on the validation split.

    python examples/graph_benchmark.py ../shared/data/graphs/planar_64_200.npz --kind planar --minutes 15
    python examples/graph_benchmark.py ../shared/data/graphs/community_small.npz --kernel emd --minutes 15
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer

import lightning_synth as ls
from lightning_synth.datamodules import GraphDataModule
from lightning_synth.datamodules.procedural import PROCEDURAL
from lightning_synth.metrics import graph_report
from lightning_synth.tuning import tune_sampler


class Budget(Callback):
    """Stops after some seconds of processor time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps = seconds, 0

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.steps += 1
        trainer.should_stop = time.process_time() - self.start > self.seconds


def trainer(max_steps: int, *callbacks: Callback) -> Trainer:
    return Trainer(
        max_steps=max_steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, callbacks=list(callbacks),
    )  # fmt: skip


def fit(
    name: str, data: Any, seconds: float, hparams: dict[str, Any], out: Path | None
) -> tuple[Any, dict[str, float]]:
    """Train for a number of processor seconds: a short run tells how many steps these are. Keeps the checkpoint."""
    cls = ls.get_generator(name)
    started = time.process_time()
    if issubclass(cls, ls.FitFreeGenerator):
        generator = cls(**hparams).fit_on(data.train_items(), data.schema)
        return generator, {"train_seconds": time.process_time() - started}
    probe = Budget(0.03 * seconds)
    trainer(1_000_000, probe).fit(cls(**hparams), data)
    steps = max(10, int(probe.steps * seconds / (time.process_time() - probe.start)))
    generator, last, started = cls(**hparams), trainer(steps), time.process_time()
    last.fit(generator, data)
    if out:
        last.save_checkpoint(out / f"{name}.ckpt")
    took = time.process_time() - started
    seen = steps * min(data.batch_size, len(data.train_items())) / took
    return generator, {"train_seconds": took, "graphs_per_second": seen}


def save(path: Path, graphs: list[Any]) -> None:
    once = [graph.edge_index[:, graph.edge_index[0] < graph.edge_index[1]].T.numpy() for graph in graphs]
    ends = np.cumsum([0, *map(len, once)])
    np.savez_compressed(path, num_nodes=[g.num_nodes for g in graphs], edge_ptr=ends, edges=np.concatenate(once))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--split", default="split")
    parser.add_argument("--kind", default=None, help="rule of validity: planar, tree, lobster, sbm, connected")
    parser.add_argument("--kernel", choices=["tv", "emd"], default="tv")
    parser.add_argument("--generators", nargs="*", default=["defog", "sent", "sbm_refit", "bootstrap"])
    parser.add_argument("--hparams", type=json.loads, default={}, help='{"defog": {"num_layers": 4}}')
    parser.add_argument("--sampler", type=json.loads, default={}, help='options of sample: {"defog": {"eta": 50}}')
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--external", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--samples", type=int, nargs="*", default=[40])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder for tables, graphs and checkpoints")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = GraphDataModule(options.path, split=options.split, batch_size=options.batch_size)
    if options.tune and not len(data.val_items()):
        parser.error(f"--tune needs validation graphs, and {options.path} with the split {options.split} has none")
    perfect = (lambda n, seed: PROCEDURAL[options.kind](n, seed=1000 + seed)) if options.kind in PROCEDURAL else None

    def score(name: str, graphs: list[Any], **cost: float) -> None:
        for n in options.samples:
            if n > len(graphs):
                continue
            table = graph_report(
                data.train_items(), data.test_items(), graphs[:n], kind=options.kind, kernel=options.kernel,
                perfect=perfect, seed=options.seed,
            )  # fmt: skip
            print(f"\n## {name}: {n} graphs  {json.dumps({k: round(v, 4) for k, v in cost.items()})}", flush=True)
            print(table.round(4).to_string(), flush=True)
            if options.out:
                table.assign(**cost).to_csv(options.out / f"{name}_{n}.csv")

    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    for name in options.generators:
        hparams = {"seed": options.seed, **options.hparams.get(name, {})}
        generator, cost = fit(name, data, 60 * options.minutes, hparams, options.out)
        settings = options.sampler.get(name, {})
        if options.tune and hasattr(generator, "sampler"):
            print(tune_sampler(generator, data).table.to_string())
        started = time.process_time()
        graphs = generator.sample(max(options.samples), seed=options.seed, **settings).items()
        cost["seconds_per_graph"] = (time.process_time() - started) / len(graphs)
        if options.out:
            save(options.out / f"{name}.npz", graphs)
        score(name, graphs, **cost)
    for pair in options.external:
        name, _, path = pair.partition("=")
        score(name, list(GraphDataModule(path, split=(1.0, 0.0, 0.0)).train_items()))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
