"""Missing values filled in by flow_ts, against linear interpolation and the value one season earlier.

One model is trained on the first 70 % of a series and fills in windows of the last part, of which 10, 50 and 90 % of
the values are hidden at random. Scores are mean absolute errors of the hidden values in units of each channel's
standard deviation in training. Values that are missing in the file are never scored.

    python examples/imputation.py ../shared/data/timeseries/ETTh1.csv --minutes 5
    python examples/imputation.py ../shared/data/timeseries/air_quality.npz --columns CO_GT C6H6_GT NOx_GT T RH
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
from lightning import Trainer

import lightning_synth as ls


def trainer(max_steps: int) -> Trainer:
    return Trainer(
        max_steps=max_steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip


def linear(x: np.ndarray, seen: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Interpolate along time; ends are held, channels without a value get the training mean."""
    out, time_axis = np.empty_like(x), np.arange(x.shape[-1])
    for i, c in np.ndindex(*x.shape[:2]):
        known = seen[i, c]
        out[i, c] = np.interp(time_axis, time_axis[known], x[i, c, known]) if known.any() else mean[c]
    return out


def seasonal(x: np.ndarray, seen: np.ndarray, mean: np.ndarray, season: int) -> np.ndarray:
    """The nearest observed value a whole number of seasons away, before or after; else linear."""
    out, found = linear(x, seen, mean), np.zeros_like(seen)
    steps = x.shape[-1]
    for shift in [s * k for k in range(1, steps // season + 1) for s in (season, -season)]:
        source = np.arange(steps) - shift
        inside = (source >= 0) & (source < steps)
        usable = np.zeros_like(seen)
        usable[..., inside] = seen[..., source[inside]]
        take = usable & ~found
        out[take] = x[..., np.clip(source, 0, steps - 1)][take]
        found |= take
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--columns", nargs="*", default=None, help="leave out those without values in the last part")
    parser.add_argument("--season", type=int, default=24, help="steps; both example series are hourly")
    parser.add_argument("--minutes", type=float, default=5.0, help="processor time of training")
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--draws", type=int, default=10, help="samples of which the median is taken")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    split = {
        "columns": options.columns,
        "length": options.length,
        "val_fraction": 0.0,
        "test_fraction": 0.3,
        "irregular": "ignore",
    }
    data = ls.datamodules.SeriesDataModule(options.path, missing="linear", **split)
    complete = ls.datamodules.SeriesDataModule(options.path, missing="drop", **split)
    steps, model = 60, ls.get_generator("flow_ts")(observed=0.6, seed=options.seed)
    started = time.process_time()
    trainer(steps).fit(ls.get_generator("flow_ts")(observed=0.6), data)
    steps = max(100, int(60 * options.minutes * steps / (time.process_time() - started)))
    trainer(steps).fit(model, data)
    test = complete.test_items()
    chosen = np.linspace(0, len(test) - 1, min(options.windows, len(test))).round().astype(int)
    x = np.stack([test[int(i)]["x"].numpy() for i in chosen])
    mean, std = (np.array(data.schema[key], dtype=np.float32) for key in ("mean", "std"))
    rng = np.random.default_rng(options.seed)
    print(f"{options.path}: {len(x)} windows of {x.shape[1]} x {x.shape[2]}, {steps} training steps")
    print("| missing | linear interpolation | seasonal naive | flow_ts |\n|---|---|---|---|")
    for missing in (0.1, 0.5, 0.9):
        seen = rng.random(x.shape) >= missing
        filled = {
            "linear": linear(x, seen, mean),
            "seasonal": seasonal(x, seen, mean, options.season),
            "flow_ts": model.impute(x, seen, n=options.draws, seed=options.seed).median(1).values.numpy(),
        }
        error = [float((np.abs(v - x) / std[:, None])[~seen].mean()) for v in filled.values()]
        print(f"| {missing:.0%} | " + " | ".join(f"{e:.3f}" for e in error) + " |", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
