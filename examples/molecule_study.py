"""Does adding generated molecules help to predict properties? Four data sets, few labels, and a rare class.

BBBP and ClinTox are classified with 100 labels, 50 of each class, and with 95 against 5; ESOL and Lipophilicity are
regressed from 100 labels. Test molecules have scaffolds that no training molecule has; the split is made before any
generator is trained (MoleculeNet's scaffold split), and all arms of a model get the same optimiser steps. Differences
are paired, with intervals.

    python examples/molecule_study.py ../shared/data/molecules --draws 10
    python examples/molecule_study.py ../shared/data/molecules --tasks esol --draws 2 --generator-steps 200
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning_synth as ls

#: Column of the target, and the rare class of a classification.
TASKS: dict[str, tuple[str, str | None]] = {
    "bbbp": ("p_np", "0"),
    "clintox": ("CT_TOX", "1"),
    "esol": ("measured log solubility in mols per litre", None),
    "lipophilicity": ("exp", None),
}
ARMS = (
    "molecule_bootstrap", "smiles_enumeration", "fragment_mutation", "brics_recombine",
    "molecule_sequence", "molecule_flow",
)  # fmt: skip


def study(folder: Path, task: str, regime: str, options: argparse.Namespace) -> ls.Study:
    """Make the study of one data set."""
    target, rare = TASKS[task]
    arguments: dict[str, Any] = {"source": str(folder / f"{task}.csv"), "targets": [target], "split": "scaffold"}
    arguments["duplicates"] = "drop"
    if rare is not None:
        arguments["task"] = "classification"
    # The vocabulary of the whole training part: few labels do not decide which test molecules are left.
    arguments["atom_types"] = ls.datamodules.MoleculeDataModule(**arguments).schema["atom_types"]
    downstream: dict[str, dict[str, Any]] = {"fingerprint_forest_regressor": {}, "molecule_gin_regressor": {}}
    shots = 100
    if rare is not None:
        downstream = {"fingerprint_forest": {"class_weight": "balanced"}, "molecule_gin": {}}
        shots = 50
        if regime == "rare":
            arguments["imbalance"], shots = {rare: 5}, 95
    return ls.Study(
        {"class_path": "lightning_synth.datamodules.MoleculeDataModule", "init_args": arguments},
        {arm: {} for arm in options.arms},
        downstream,
        policies=options.policies,
        shots=[shots],
        draws=options.draws,
        seeds=options.seeds,
        generator_steps=options.generator_steps,
        downstream_steps=options.downstream_steps,
        pool_size=options.pool_size,
        evaluation=False,
        accelerator="cpu",
        out=options.out / f"{task}_{regime}",
    )


def main() -> None:
    """Run the studies that the command line asks for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--policies", nargs="+", default=["real", "mixed"])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--generator-steps", type=int, default=600)
    parser.add_argument("--downstream-steps", type=int, default=300)
    parser.add_argument("--pool-size", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("out/molecule_study"))
    options = parser.parse_args()
    for task in options.tasks:
        for regime in ("balanced", "rare") if TASKS[task][1] is not None else ("labels",):
            result = study(options.folder, task, regime, options).run()
            print(f"\n{task}, {regime}\n{result.to_text()}")
            result.report(options.out / f"{task}_{regime}")


if __name__ == "__main__":
    main()
