"""Does augmentation help a tuned SASRec, and whom? Paired over users, at equal steps, by training length.

An arm is ``real``; a generator of `lightning_synth.list_generators("sequence")`, whose users are a share ``--ratio``
of every batch; an operator of `lightning_synth.sequences.OPERATORS`; or ``pairs:alpha,beta,gamma``, a law of training
pairs. The ranks of all users are kept for every arm and seed in ``--out``, so a run that was stopped goes on; the table
is made of what is there. Intervals are over users, the seeds of an arm averaged.

    python examples/sequence_benchmark.py ../shared/data/recsys/beauty.txt --arms real rep_pad markov prior_transformer
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer

import lightning_synth as ls
from lightning_synth.datamodules import InteractionDataModule, MixedDataModule
from lightning_synth.downstream import SASRec
from lightning_synth.generator import FitFreeGenerator
from lightning_synth.metrics.ranking import paired_bootstrap
from lightning_synth.sequences import OPERATORS


def trainer(max_steps: int) -> Trainer:
    return Trainer(
        max_steps=max_steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip


def data_of(arm: str, args: argparse.Namespace, seed: int) -> InteractionDataModule:
    """The DataModule of an arm: operators and pair samplers act inside it."""
    changes: dict[str, Any] = {}
    if arm in OPERATORS:
        changes["augment"] = arm
    if arm.startswith("pairs:"):
        alpha, beta, gamma = (float(part) for part in arm.removeprefix("pairs:").split(","))
        changes["sampler"] = {"alpha": alpha, "beta": beta, "gamma": gamma}
    return InteractionDataModule(args.data, args.batch, max_length=args.max_length, seed=seed, **changes)


def pool_of(arm: str, data: InteractionDataModule, args: argparse.Namespace, seed: int) -> ls.SyntheticPool:
    generator = ls.get_generator(arm)(seed=seed)
    if isinstance(generator, FitFreeGenerator):
        generator.fit_on(data.train_items(), data.schema)
    else:
        trainer(args.generator_steps).fit(generator, data)
    samples = generator.sample(args.pool or len(data.train_items()), seed=seed)
    return ls.SyntheticPool.from_samples(samples, generator=generator)


def ranks_of(arm: str, args: argparse.Namespace, seed: int) -> np.ndarray:
    """Train on an arm and rank the test items of all users."""
    data = data_of(arm, args, seed)
    pool = pool_of(arm, data, args, seed) if arm in ls.list_generators("sequence") else None
    mixed = MixedDataModule(data, pool, ratio=args.ratio, batch_size=args.batch, seed=seed)
    model = SASRec(schema=data.schema, seed=seed)
    trainer(args.steps).fit(model, train_dataloaders=mixed.train_dataloader())
    return model.ranks(data.test_items())


def files_of(arm: str, args: argparse.Namespace) -> Path:
    """Where the ranks of an arm are kept, without the seed."""
    share = f"-ratio{args.ratio:g}" if arm in ls.list_generators("sequence") and args.ratio != 0.5 else ""
    folder: Path = args.out
    return folder / f"{arm.replace(':', '_')}{share}-{args.steps}"


def table(ranks: dict[str, np.ndarray], data: InteractionDataModule, metric: str) -> str:
    """One row an arm: its score, and the paired difference to the first arm, for all users and by bucket."""
    groups = SASRec(schema=data.schema, dim=2).buckets(data.test_items())
    base, *others = ranks
    lines = []
    for arm in others:
        results = paired_bootstrap(ranks[arm], ranks[base], metric, groups)
        cells = [f"{r['difference']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}]" for r in results.values()]
        lines.append(f"| {arm} | {len(ranks[arm])} | {results['all']['a']:.4f} | {' | '.join(cells)} |")
    results = paired_bootstrap(ranks[base], ranks[base], metric, groups, repeats=2)
    cells = [f"{r['a']:.4f} ({r['users']:.0f} users)" for r in results.values()]
    lines.insert(0, f"| {base} | {len(ranks[base])} | {results['all']['a']:.4f} | {' | '.join(cells)} |")
    head = ["arm", "seeds", metric, *results]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="one line a user, or any file that InteractionDataModule reads")
    parser.add_argument(
        "--arms", nargs="+", default=["real", "rep_pad", "markov", "neighbour_splice", "prior_transformer"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7000, help="of SASRec, in every arm")
    parser.add_argument("--generator-steps", type=int, default=3500)
    parser.add_argument("--pool", type=int, default=0, help="generated users; 0: as many as real ones")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of generated users in a batch")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=50)
    parser.add_argument("--metric", default="ndcg@10")
    parser.add_argument("--out", type=Path, default=Path("out/sequence_benchmark"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning.*")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for arm in args.arms:
            path = Path(f"{files_of(arm, args)}-{seed}.npy")
            if not path.exists():
                start = time.process_time()
                np.save(path, ranks_of(arm, args, seed))
                print(f"{arm}, seed {seed}: {time.process_time() - start:.0f} s of processor time", flush=True)
    found = {arm: sorted(args.out.glob(f"{files_of(arm, args).name}-[0-9]*.npy")) for arm in args.arms}
    ranks = {arm: np.stack([np.load(path) for path in paths]) for arm, paths in found.items()}
    print(table(ranks, data_of("real", args, 0), args.metric))


if __name__ == "__main__":
    main()
