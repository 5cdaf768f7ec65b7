"""`puna train`: pretrain a model on packed shards; `--dry-run --world-size N` rehearses one rank of a large run."""

import re
from typing import Any

import click

from puna.cli.numbers import FiniteRange
from puna.cli.stage_verb import stage_command

LLAMA3_FAILURES = 2.2e-5
"""Interruptions an hour and GPU: 466 in 54 days on 16,384 (2407.21783, section 3.3.4)."""

HELP = """Pretrain a model on packed shards.

Saves checkpoints while it trains; the same command resumes from the last whole one. Ctrl-C saves and ends with exit
code 75. On several processes: torchrun --nproc-per-node 8 -m puna.cli.main train RECIPE parallel.dp_shard=8

With --dry-run and --world-size, one rank of the run is built, sharded and run on shapes alone, on this machine: memory
by kind, bytes on each link, the pipeline, expected speed and goodput. What cannot fit is refused.
"""

command = stage_command(
    "train",
    HELP,
    "puna train demo/pretrain",
    "puna train demo/pretrain --dry-run",
    "puna train demo/pretrain train.steps=2000 out=runs/trial",
    "puna train llama3-8b parallel.dp_shard=8 data.rows=8 --dry-run --world-size 8",
)

for _option in (
    click.Option(["--world-size"], type=click.IntRange(1), help="With --dry-run: rehearse a run of so many processes."),
    click.Option(["--gpu"], help="With --world-size: the card; default: H100."),
    click.Option(
        ["--failures"],
        type=FiniteRange(min=0),
        help="With --world-size: interruptions an hour and GPU; default: 2.2e-5, as Llama 3's.",
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="With --world-size: one JSON object as the last line."),
):
    command.params.append(_option)

_plain = command.callback


def _callback(world_size: int | None, gpu: str | None, failures: float | None, as_json: bool, **rest: Any) -> None:
    if world_size is None:
        given = [
            name
            for name, is_given in (
                ("--gpu", gpu is not None),
                ("--failures", failures is not None),
                ("--json", as_json),
            )
            if is_given
        ]
        if given:
            raise click.UsageError(
                f"{' and '.join(given)} describe a large run that is rehearsed: add --dry-run --world-size N"
            )
        assert _plain is not None
        _plain(**rest)
        return
    if not rest["dry_run"]:
        raise click.UsageError("--world-size is for --dry-run; torchrun says how many processes a real run has")
    from puna.core import config
    from puna.stages import recipes
    from puna.stages.dry_run import dry_run
    from puna.stages.pretrain import PretrainRecipe

    if gpu is not None and re.match(r"\s*\d+\s*[xX*]", gpu):
        raise click.UsageError(
            f"--gpu is the kind of card alone, for example H100; --world-size says how many, got {gpu}"
        )
    resolved = config.load(PretrainRecipe, recipes.find_recipe(rest["recipe"]), rest["overrides"])
    failures = LLAMA3_FAILURES if failures is None else failures
    dry_run(resolved.config, world_size=world_size, gpu=gpu or "H100", failures=failures, as_json=as_json)


command.callback = _callback
