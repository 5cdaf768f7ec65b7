"""`puna launch`: the files that start a recipe on a node, under Slurm, or on Kubernetes."""

from pathlib import Path
from typing import Any, get_args

import click

from puna.cli.numbers import FiniteRange
from puna.cli.stage_verb import HELP, examples, recipe_arguments


@click.command(
    "launch",
    context_settings=HELP,
    epilog=examples(
        "puna launch llama3-8b --torchrun --gpus 8 data.rows=8 train.accumulation=256",
        "puna launch llama3-70b --slurm --gpus 2048 --partition train --hours 48",
        "puna launch llama3-405b --kubernetes --gpus 16384 --image registry.example/puna:0.1",
    ),
)
@recipe_arguments
@click.option("--torchrun", is_flag=True, help="A script for one node.")
@click.option("--slurm", is_flag=True, help="A batch script for sbatch.")
@click.option("--kubernetes", is_flag=True, help="An indexed Job and its Service.")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs in all; default: the product of the recipe's degrees.")
@click.option("--gpus-per-node", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the files; default: launch/RECIPE.")
@click.option("--gpu", default="H100", show_default=True, help="Kind of card, to check that the run fits its memory.")
@click.option("--no-check", is_flag=True, help="Write the files even if the run does not seem to fit.")
@click.option("--hours", type=FiniteRange(min=0.1), default=24.0, show_default=True, help="Time limit (Slurm).")
@click.option("--partition", default="", help="Slurm partition.")
@click.option("--account", default="", help="Slurm account.")
@click.option("--python", default="python", show_default=True, help="Interpreter of the environment with puna.")
@click.option("--image", default="puna:latest", show_default=True, help="Container image (Kubernetes).")
@click.option("--claim", default="puna-data", show_default=True, help="PersistentVolumeClaim at /data (Kubernetes).")
@click.option("--rdma", default="", help="Resource of the network cards, such as rdma/ib (Kubernetes).")
@click.option("--restarts", type=click.IntRange(min=0), default=20, show_default=True, help="Starts after failures.")
def command(
    recipe: str,
    overrides: tuple[str, ...],
    gpus: int | None,
    out: Path | None,
    gpu: str,
    no_check: bool,
    **settings: Any,
) -> None:
    """Write the files that start a recipe on a cluster.

    The recipe is checked first, and that it fits the cards' memory. Nothing is started: the command to type is
    printed. Every file starts the same command again after a failure, which resumes from the last checkpoint.
    """
    from puna.core import console
    from puna.core.errors import UsageError
    from puna.stages import launch, recipes, showing, stage

    targets: list[launch.Target] = [name for name in get_args(launch.Target) if settings.pop(name)]
    if len(targets) != 1:
        given = " and ".join(f"--{name}" for name in targets)
        raise UsageError(
            f"{f'{given} are different places; give one of' if given else 'say where:'} --torchrun (one node), --slurm "
            "or --kubernetes"
        )
    [target] = targets
    path = recipes.find_recipe(recipe)
    shown = showing.resolve(path, overrides)
    many = [verb for verb in stage.STAGES if stage.find_stage(verb).on_many]
    if shown.verb not in many:
        raise UsageError(
            f"{recipe} is a recipe of `puna {shown.verb}`, which runs in one process; recipes of "
            f"{', '.join(many)} can be launched"
        )
    world_size = launch.world_size(shown.resolved.config, gpus)
    if shown.verb == "train" and not no_check:
        from puna.stages.dry_run import check_memory

        check_memory(shown.resolved.config, world_size=world_size, gpu=gpu)
    job = launch.Job(
        name=launch.job_name(path.stem),
        words=("puna", shown.verb, recipes.as_typed(path), *overrides),
        gpus=world_size,
        **settings,
    )
    folder = out or Path("launch") / path.stem
    for file in launch.write(job, target, folder):
        console.say(f"wrote {file}; start it with:")
        console.command(launch.how_to_start(target, file))
