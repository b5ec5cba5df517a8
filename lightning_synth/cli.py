"""The command line: Lightning's own commands, and list, info, generate, evaluate, study."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

import lightning_synth as ls
from lightning_synth.registry import DOMAINS, get_spec


class SynthCLI(LightningCLI):
    """LightningCLI over any LightningModule and any LightningDataModule, by full class path.

    The schema needs no link: a generator takes it from the data when the Trainer sets it up.
    """

    def __init__(self, args: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lightning-synth"},
            args=list(args) if args is not None else None,
            **kwargs,
        )


def _parser(command: str, about: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"lightning-synth {command}", description=about)
    parser.add_argument("-c", "--config", action="config", help="YAML or JSON file with these arguments")
    return parser


def list_command(args: Sequence[str]) -> None:
    """Print the table of generators."""
    parser = _parser("list", "List the registered generators.")
    parser.add_argument("--domain", choices=DOMAINS, default=None)
    print(generator_table(parser.parse_args(list(args)).domain))


def generator_table(domain: str | None = None) -> str:
    """Return the registered generators as a Markdown table.

    Args:
        domain: Only those of one domain.

    Example:
        >>> "| `bootstrap` |" in generator_table("graph")
        True
    """
    lines = ["| name | domain | conditions | what it does | source | extra |", "|---|---|---|---|---|---|"]
    for name in ls.list_generators(domain):
        spec = get_spec(name)
        conditions = ", ".join(spec.conditions) or "-"
        lines.append(
            f"| `{name}` | {spec.domain} | {conditions} | {spec.summary} | {spec.reference} | {spec.extra or '-'} |"
        )
    return "\n".join(lines)


def info_command(args: Sequence[str]) -> None:
    """Print all that is known of one generator."""
    parser = _parser("info", "Describe a generator and its arguments.")
    parser.add_argument("name", help="a name of `lightning-synth list`")
    spec = get_spec(parser.parse_args(list(args)).name)
    print(f"{spec.name} ({spec.domain})\n{spec.summary}\nSource: {spec.reference}")
    print(f"Class: {spec.target.replace(':', '.')}\nConditions: {', '.join(spec.conditions) or 'none'}")
    missing = spec.missing()
    absent = f" (missing: {', '.join(missing)})" if missing else ""
    print(f"Needs: {', '.join(spec.requires) or 'nothing more'}{absent}")
    if not missing:
        print(textwrap.indent(inspect.getdoc(spec.load()) or "", "  "))


def generate_command(args: Sequence[str]) -> None:
    """Sample a pool from a checkpoint, on any number of devices."""
    parser = _parser("generate", "Sample a pool from the checkpoint of a generator.")
    parser.add_argument("--ckpt_path", type=str, required=True, help="checkpoint written by fit")
    parser.add_argument("--out", type=str, required=True, help="folder of the pool")
    parser.add_argument("--n", type=int, required=True, help="how many items")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--condition", type=dict | str | None, default=None, help="e.g. balanced, or {label: 3}")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_class_arguments(Trainer, "trainer", skip={"callbacks", "enable_checkpointing", "enable_model_summary"})
    options = parser.instantiate_classes(parser.parse_args(list(args)))
    from lightning_synth.callbacks import PoolWriter
    from lightning_synth.datamodules import RequestDataModule

    requests = RequestDataModule(
        n=options.n, seed=options.seed, condition=options.condition, batch_size=options.batch_size
    )
    options.trainer.callbacks.append(PoolWriter(options.out))
    generator = ls.load_generator(options.ckpt_path)
    options.trainer.predict(generator, datamodule=requests, return_predictions=False)
    if options.trainer.is_global_zero:
        pool = ls.SyntheticPool.open(options.out, only_accepted=False)
        print(f"{len(pool)} items in {options.out}")


def evaluate_command(args: Sequence[str]) -> None:
    """Score a pool beside its floors."""
    parser = _parser("evaluate", "Score a pool against real data, beside what trivial generators score.")
    parser.add_argument("pool", help="folder of the pool")
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--metrics", type=list[str] | None, default=None, help="names or groups, e.g. [fast]; all if absent"
    )
    parser.add_argument("--json", type=str | None, default=None, help="also write the numbers here")
    options = parser.instantiate_classes(parser.parse_args(list(args)))
    evaluation = ls.evaluate(
        ls.SyntheticPool.open(options.pool), options.data, seed=options.seed, metrics=options.metrics, progress=True
    )
    print(evaluation)
    if options.json:
        Path(options.json).write_text(evaluation.to_json())


def study_command(args: Sequence[str]) -> None:
    """Run a study and write its report."""
    parser = _parser("study", "Compare real-only, mixed and synthetic-only training on real test data.")
    parser.add_argument("--data", type=dict, required=True, help="class_path and init_args of a LightningDataModule")
    parser.add_class_arguments(ls.Study, None, skip={"data", "ratio", "out"})
    parser.add_argument("--shard", type=str | None, default=None, help="i/n: every n-th repetition from the i-th on")
    parser.add_argument("--ratio", type=float, default=0.5, help="synthetic share of a mixed batch")
    parser.add_argument(
        "--out", type=str, default="out/study", help="folder of the report; finished arms are kept there"
    )
    options = parser.parse_args(list(args)).as_dict()
    options.pop("config", None)
    shard = options.pop("shard")
    study = ls.Study(**options)
    if shard is not None:
        i, n = (int(part) for part in shard.split("/"))
        study.run(shard=(i, n))
        return
    result = study.run()
    print(f"\n{result.to_text()}\n")
    print(f"report: {result.report(options['out'])}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": list_command,
    "info": info_command,
    "generate": generate_command,
    "evaluate": evaluate_command,
    "study": study_command,
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        args: Of the command line; None takes those of the process.
    """
    args = sys.argv[1:] if args is None else list(args)
    if args and args[0] in COMMANDS:
        COMMANDS[args[0]](args[1:])
    elif not args or args[0] in ("-h", "--help"):
        about = [f"  {name:10}{(function.__doc__ or '').strip()}" for name, function in COMMANDS.items()]
        print("usage: lightning-synth COMMAND [--help] ...\n\n" + "\n".join(about))
        print("  fit, validate, test, predict: as LightningCLI, with --model and --data by class path")
    else:
        SynthCLI(args)


if __name__ == "__main__":
    main()
