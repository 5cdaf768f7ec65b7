"""`puna annotate import` and `export`: items and labels from and to Argilla, Label Studio, UltraFeedback."""

from pathlib import Path
from typing import Any

import click

from puna.cli.stage_verb import HELP, examples

FORMS = ("argilla", "label-studio", "ultrafeedback")


def _module(form: str) -> Any:
    from puna.post.preferences.interchange import argilla, label_studio, ultrafeedback

    return {"argilla": argilla, "label-studio": label_studio, "ultrafeedback": ultrafeedback}[form]


@click.command(
    "import",
    context_settings=HELP,
    epilog=examples(
        "puna annotate import argilla my-argilla my-labels",
        "puna annotate import label-studio project-1.json my-labels --field side=pw --field prompt=question",
        "puna annotate import ultrafeedback train_prefs.jsonl my-labels",
    ),
)
@click.argument("form", type=click.Choice(FORMS))
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--field", "fields", multiple=True, metavar="OURS=THEIRS", help="What a field or tag is called there.")
def read(form: str, source: Path, folder: Path, fields: tuple[str, ...]) -> None:
    """Make items.jsonl and labels.jsonl of another tool's file.

    SOURCE is the file that the tool wrote, or the folder of one (Argilla: of `to_disk`). A users.json beside it,
    {"3": {"name": "ada"}}, gives user numbers names. FOLDER receives what `puna annotate init` and `qa` read.
    """
    from puna.core import console
    from puna.core.errors import UsageError
    from puna.post.preferences.records import write_rows

    names = {}
    for text in fields:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise UsageError(f"--field {text!r} must be OURS=THEIRS, for example --field a=response_1")
        names[ours] = theirs
    found = _module(form).read(source, names)
    if not found.items:
        raise UsageError(f"{source} holds no item to compare")
    write_rows(folder / "items.jsonl", found.items)
    write_rows(folder / "labels.jsonl", found.labels)
    n = len({label.annotator for label in found.labels})
    people = "1 person" if n == 1 else f"{n} people"
    console.say(f"{len(found.items)} items and {len(found.labels)} labels of {people} in {folder}")
    _tell(found.left_out)


@click.command(
    "export",
    context_settings=HELP,
    epilog=examples(
        "puna annotate export argilla my-log my-argilla",
        "puna annotate export label-studio runs/round/items my-tasks",
        "puna annotate export ultrafeedback my-log my-ultrafeedback",
    ),
)
@click.argument("form", type=click.Choice(FORMS))
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def write(form: str, source: Path, folder: Path) -> None:
    """Write items, and labels where there are any, for another tool.

    SOURCE is a folder with items.jsonl and maybe labels.jsonl (`puna annotate log`, `puna annotate items`), or a file
    of items. What the tool has no place for is told.
    """
    from puna.core import console
    from puna.core.errors import UsageError
    from puna.core.files import atomic_open
    from puna.post.preferences.records import read_items, read_labels

    _refuse_used(folder)
    items = read_items([source / "items.jsonl" if source.is_dir() else source])
    labelled = source / "labels.jsonl"
    labels = read_labels([labelled], items=items) if source.is_dir() and labelled.is_file() else []
    if form == "ultrafeedback" and not labels:
        raise UsageError(f"{source} has no labels; UltraFeedback's rows are preferences")
    written = _module(form).write(items, labels)
    for name, text in written.files.items():
        with atomic_open(folder / name) as file:
            file.write(text)
    console.say(f"{len(items)} items and {len(labels)} labels: {', '.join(written.files)} in {folder}")
    _tell(written.left_out)


def _refuse_used(folder: Path) -> None:
    from puna.core.errors import UsageError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not an empty folder; choose another one. Nothing was written.")


def _tell(left_out: dict[str, int]) -> None:
    from puna.core import console

    for what, n in left_out.items():
        if n:
            console.say(f"  left out, {n}: {what}")
