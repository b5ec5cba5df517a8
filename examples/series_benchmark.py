"""How good are generated windows? One table for a series, at equal training time, beside floors.

Two protocols:

* ``literature``: windows of 24, trained on all of them and compared with the same ones, as in the published tables.
  Copies are perfect there.
* ``honest``: trained on the first part of the series and compared with windows of the last part, a gap between them.
  The row ``real (train part)`` says how different real windows of the two parts are: no generator can be expected
  below it.

Every generator is trained for the same number of minutes of processor time on one core. Windows that other code
generated join the table with ``--external name=windows.npy`` (n, channels, length), raw units; a ``windows.json``
beside it may give ``train_seconds`` and ``sample_seconds``. What is generated here is kept in that form in ``--out``.

    python examples/series_benchmark.py ../shared/data/timeseries/stock_data.csv --protocol literature --minutes 10
    python examples/series_benchmark.py ../shared/data/timeseries/stock_data.csv --protocol honest --minutes 10
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer

import lightning_synth as ls
from lightning_synth.metrics.context_fid import context_fid
from lightning_synth.metrics.distances import nearest
from lightning_synth.metrics.judges import discriminative_score
from lightning_synth.metrics.series_statistics import correlational_score, psd_distance

JUDGES = ("texture", "forest", "cnn", "gru")
FLOORS = ("bootstrap", "jitter", "block_bootstrap", "iaaft")
COLUMNS = {
    "texture": "forest judge on texture, accuracy",
    "forest": "forest judge on all features",
    "cnn": "CNN judge",
    "gru": "GRU judge",
    "context_fid": "context-FID",
    "correlation": "correlation difference",
    "psd_db": "PSD difference, dB",
    "memorisation": "distance to training windows",
    "train_seconds": "training, s",
    "sample_seconds": "1000 samples, s",
}


def trainer(max_steps: int) -> Trainer:
    return Trainer(
        max_steps=max_steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip


def fit(name: str, data: Any, seconds: float, hparams: dict[str, Any]) -> tuple[Any, float]:
    """Train for a number of processor seconds: a short run tells how many steps these are."""
    cls = ls.get_generator(name)
    started = time.process_time()
    if issubclass(cls, ls.FitFreeGenerator):
        return cls(**hparams).fit_on(data.train_items(), data.schema), time.process_time() - started
    probe = []
    for steps in (20, 120):
        started = time.process_time()
        trainer(steps).fit(cls(**hparams), data)
        probe.append(time.process_time() - started)
    steps = max(100, int(seconds / max((probe[1] - probe[0]) / 100, 1e-4)))
    started = time.process_time()
    generator = cls(**hparams)
    trainer(steps).fit(generator, data)
    return generator, time.process_time() - started


def scores(real: np.ndarray, train: np.ndarray, synthetic: np.ndarray, seed: int) -> dict[str, float]:
    judged = {j: discriminative_score(real, synthetic, j, seed=seed)[f"discriminative_{j}"] for j in JUDGES}
    scale = train.std((0, 2), keepdims=True) + 1e-9
    flat = [(x / scale).reshape(len(x), -1) for x in (synthetic, train)]
    own = np.median(nearest(flat[1][:: max(1, len(train) // 2000)], flat[1], k=2)[0][:, 1])
    return {
        **{j: value + 0.5 for j, value in judged.items()},
        "context_fid": context_fid(train[:: max(1, len(train) // 4000)], real, synthetic, seed=seed),
        "correlation": correlational_score(real, synthetic).get("correlation_difference", float("nan")),
        "psd_db": psd_distance(real, synthetic)["psd_db"],
        # 1: as far from the training windows as these are from one another; 0: copies.
        "memorisation": float(np.median(nearest(flat[0], flat[1])[0]) / own),
    }


def windows(items: Any) -> np.ndarray:
    return np.stack([item["x"].numpy() for item in items]).astype(np.float64)


def subset(x: np.ndarray, n: int, seed: int) -> np.ndarray:
    return x[np.random.default_rng(seed).permutation(len(x))[:n]]


def markdown(rows: dict[str, dict[str, float]]) -> str:
    lines = ["| windows | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{row[c]:.3g}" if c in row and np.isfinite(row[c]) else "-" for c in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--protocol", choices=["literature", "honest"], default="literature")
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--generators", nargs="*", default=["flow_ts", "diffusion_ts", "timegan", "timevae"])
    parser.add_argument("--hparams", type=json.loads, default={}, help='{"flow_ts": {"depth": 2}}')
    parser.add_argument("--external", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--columns", nargs="*", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder for the table, the scores and the windows")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    split = "literature" if options.protocol == "literature" else "time"
    extra = {} if split == "literature" else {"val_fraction": 0.0, "test_fraction": 0.3}
    data = ls.datamodules.SeriesDataModule(
        options.path, length=options.length, columns=options.columns, split=split, irregular="ignore", **extra
    )
    train, real = windows(data.train_items()), windows(data.test_items())
    n = min(options.samples, len(real) // 2)
    reference = subset(real, n, options.seed)
    rows: dict[str, dict[str, float]] = {}

    def add(name: str, x: np.ndarray, **seconds: float) -> None:
        rows[name] = {**scores(reference, train, x, options.seed), **seconds}
        print(name, {k: round(v, 4) for k, v in rows[name].items()}, flush=True)

    rest = np.random.default_rng(options.seed).permutation(len(real))[n : 2 * n]
    add("real (other windows)", real[rest])
    if split == "time":
        add("real (train part)", subset(train, n, options.seed))
    for name in (*FLOORS, *options.generators):
        learned = not issubclass(ls.get_generator(name), ls.FitFreeGenerator)
        hparams = {"seed": options.seed, **options.hparams.get(name, {})}
        generator, seconds = fit(name, data, 60 * options.minutes, hparams)
        started = time.process_time()
        x = generator.sample(n, seed=options.seed).data["x"].double().numpy()
        per_thousand = (time.process_time() - started) / n * 1000
        cost = {"train_seconds": seconds, "sample_seconds": per_thousand} if learned else {}
        if options.out and learned:
            options.out.mkdir(parents=True, exist_ok=True)
            np.save(options.out / f"{name}.npy", x.astype(np.float32))
            (options.out / f"{name}.json").write_text(json.dumps(cost))
        add(name, x, **cost)
    for pair in options.external:
        name, _, path = pair.partition("=")
        notes = Path(path).with_suffix(".json")
        add(name, np.load(path)[:n].astype(np.float64), **(json.loads(notes.read_text()) if notes.exists() else {}))
    print("\n" + markdown(rows))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scores.json").write_text(json.dumps(rows, indent=1))
        (options.out / "table.md").write_text(markdown(rows) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
