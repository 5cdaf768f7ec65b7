"""`puna checkpoints`: which checkpoints a run has, and whether every byte of them is what it was."""

import click

from puna.cli.stage_verb import HELP, examples


@click.group(
    "checkpoints",
    context_settings=HELP,
    epilog=examples("puna checkpoints ls runs/demo/base", "puna checkpoints verify runs/demo/base"),
)
def command() -> None:
    """List and verify the checkpoints of a run.

    RUN is a run folder, its checkpoints/, or one checkpoint. They are only read.
    """


@command.command("ls", context_settings=HELP, epilog=examples("puna checkpoints ls runs/demo/base"))
@click.argument("run", type=click.Path())
def ls_command(run: str) -> None:
    """List checkpoints: step, size, files of tensors, when they were written."""
    import time

    from puna.checkpoint.finding import checkpoints_of
    from puna.core import console
    from puna.core.files import is_sealed

    for path in checkpoints_of(run):
        files = [p for p in path.rglob("*") if p.is_file()]
        size = console.short_bytes(sum(p.stat().st_size for p in files))
        tensors = sum(p.suffix == ".safetensors" for p in files)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
        note = "" if is_sealed(path) else "  no seal: it cannot be used"
        console.say(f"{path.name}  {size:>10}  {tensors} tensor file{'s' if tensors != 1 else ''}  {when}{note}")


@command.command(
    "verify",
    context_settings=HELP,
    epilog=examples(
        "puna checkpoints verify runs/demo/base",
        "puna checkpoints verify runs/demo/base/checkpoints/step-00000400",
    ),
)
@click.argument("run", type=click.Path())
def verify_command(run: str) -> None:
    """Read every byte and compare it with the seal.

    Exit code 1 when a checkpoint is damaged; each damaged one is named with the file.
    """
    from puna.checkpoint.finding import checkpoints_of
    from puna.core import console
    from puna.core.errors import CorruptError, MissingError
    from puna.core.files import verify

    found, damaged = checkpoints_of(run), []
    for path in found:
        try:
            console.say(f"{path.name}  whole  {verify(path)[:12]}")
        except (CorruptError, MissingError) as error:
            damaged.append(path.name)
            console.warn(f"{path.name}  damaged: {error}")
    if damaged:
        raise CorruptError(
            f"{len(damaged)} of {len(found)} checkpoints are damaged: {', '.join(damaged)}. A run that resumes passes "
            "over them; remove them to free their space."
        )
