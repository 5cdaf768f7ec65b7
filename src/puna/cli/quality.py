"""`puna quality`: an earlier model labels a sample, classifiers learn from it, and a report says what they would do."""

import click

from puna.cli.stage_verb import HELP, examples, stage_command


@click.group(
    "quality",
    context_settings=HELP,
    epilog=examples(
        "puna quality label quality/label",
        "puna quality train quality/linear",
        "puna quality apply quality/apply",
        "puna quality report runs/quality/linear",
    ),
)
def command() -> None:
    """Label documents with a model, train quality classifiers."""


command.add_command(
    stage_command(
        "quality label",
        """Label a sample of a corpus with an earlier model.

The model is a checkpoint, or any OpenAI-compatible server. It rates each document
from 0 to 5 by a rubric; answers are read strictly, and some documents are labelled twice to measure agreement.
""",
        "puna quality label quality/label",
        "puna quality label quality/label label.head=education label.method=likelihood",
    )
)
command.add_command(
    stage_command(
        "quality train",
        """Train a classifier on labels, calibrate it, and judge it on labels it has not seen.

`kind=linear` learns hashed n-grams; `kind=transformer` trains a small model with the one training loop.
""",
        "puna quality train quality/linear",
        "puna quality train quality/transformer",
    )
)
command.add_command(
    stage_command(
        "quality apply",
        """Score every document of a corpus and show what a threshold would keep.

To drop documents by score, name the classifier in a `quality` step of `puna curate`.
""",
        "puna quality apply quality/apply",
        "puna quality apply quality/apply threshold=0.3",
    )
)


@command.command("report", context_settings=HELP, epilog=examples("puna quality report runs/quality/linear"))
@click.argument("folder", type=click.Path())
def report_command(folder: str) -> None:
    """Show again what `train` or `apply` found."""
    from pathlib import Path

    from puna.data.quality.report import read_report, show

    show(Path(folder), read_report(Path(folder)))
