"""`puna plan`: the fastest layouts of a model on a cluster before it is rented, and how good predictions are."""

from pathlib import Path

import click

from puna.cli.numbers import FiniteRange
from puna.cli.stage_verb import HELP, examples


@click.command(
    "plan",
    context_settings=HELP,
    epilog=examples(
        "puna plan --model 70b --gpus 512xH100 --seq 8192 --batch-tokens 4M",
        "puna plan --model 8b --gpus 8xH200 --precision fp8 --no-write",
        "puna plan --model 405b --gpus 16384xH100 --batch-tokens 16M --tp 8 --pp 16 --no-write",
        "puna plan --evaluate published.csv --json",
        "puna plan --fit published.csv",
    ),
)
@click.option("--model", help="A size (8b, 70b, ...), a published name (llama2-13b), or a Hugging Face Llama folder.")
@click.option("--gpus", help="The cluster: a count and a kind, 512xH100.")
@click.option("--seq", default="8192", show_default=True, help="Tokens of a sequence; 128k counts in 1024s.")
@click.option("--batch-tokens", default="4M", show_default=True, help="Tokens of a step; 4M counts in 1024s.")
@click.option("--precision", type=click.Choice(["bf16", "fp8", "fp4"]), default="bf16", show_default=True)
@click.option("--network", "gbit", type=FiniteRange(min=1), help="Gb/s of network a node; default: the usual.")
@click.option("--tp", type=click.IntRange(min=1), help="Only layouts with this degree.")
@click.option("--pp", type=click.IntRange(min=1), help="Only layouts with this degree.")
@click.option("--cp", type=click.IntRange(min=1), help="Only layouts with this degree.")
@click.option("--dp-shard", type=click.IntRange(min=1), help="Only layouts with this degree.")
@click.option("--dp-replicate", type=click.IntRange(min=1), help="Only layouts with this degree.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Layouts to show.")
@click.option("--write", type=click.Path(path_type=Path), help="Recipe of the best layout; default: MODEL-GPUS.toml.")
@click.option("--no-write", is_flag=True, help="Write no recipe.")
@click.option("--evaluate", type=click.Path(path_type=Path), metavar="FILE.csv", help="Score predictions on a file.")
@click.option("--fit", type=click.Path(path_type=Path), metavar="FILE.csv", help="Fit the constants on a file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line.")
def command(
    model: str | None,
    gpus: str | None,
    seq: str,
    batch_tokens: str,
    precision: str,
    gbit: float | None,
    top: int,
    write: Path | None,
    no_write: bool,
    evaluate: Path | None,
    fit: Path | None,
    as_json: bool,
    **degrees: int | None,
) -> None:
    """Find the fastest layouts of a model on a cluster.

    Prints the best layouts with their speed, memory, and what keeps each from being faster, and writes the recipe of
    the first. Nothing is run: it is arithmetic, whose few constants are fitted on published throughputs.

    `--evaluate FILE.csv` compares predictions with published throughputs; `--fit FILE.csv` fits the constants anew.
    """
    from puna.core.errors import UsageError
    from puna.stages import planning

    if evaluate is not None and fit is not None:
        raise UsageError("--evaluate and --fit are two different commands; give one of them")
    if evaluate is not None:
        planning.evaluate_file(evaluate, as_json=as_json)
        return
    if fit is not None:
        planning.fit_file(fit, as_json=as_json)
        return
    missing = [option for option, value in (("--model", model), ("--gpus", gpus)) if value is None]
    if model is None or gpus is None:
        raise UsageError(f"give {' and '.join(missing)}, for example: puna plan --model 70b --gpus 512xH100")
    planning.plan(
        planning.Question(
            model=model,
            gpus=gpus,
            seq_len=planning.read_count(seq, "--seq"),
            batch_tokens=planning.read_count(batch_tokens, "--batch-tokens"),
            precision=precision,
            network_gbit=gbit,
            fixed={name: value for name, value in degrees.items() if value is not None},
            top=top,
        ),
        write=None if no_write else write or Path(planning.recipe_name(model, gpus)),
        as_json=as_json,
    )
