"""Entry point of `puna`: the table of verbs, and the one place where errors become messages and exit codes.

A verb's file is imported when its verb was typed, so that `puna --help` answers at once. Whatever happens below ends
here: errors for the user are printed in one form without a traceback, an error that nobody foresaw leaves its traceback
in a log and says where, and the exit code is that of `core/errors.py`.
"""

import importlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from puna import __version__
from puna.core.errors import PunaError
from puna.core.nearest import nearest

VERBS = {
    "run": "Run a pipeline: several stages in a row.",
    "demo": "The whole way on this machine: raw text in, a chat out.",
    "recipes": "List, copy, print and check recipes.",
    "show": "Print every field of a recipe with value, origin, meaning.",
    "tokenize": "Train a tokenizer, pack shards, compare tokenizers.",
    "local-crawl": "Write this machine's documentation as a web archive.",
    "curate": "Turn sources into a clean, deduplicated corpus.",
    "plan": "Find the fastest layouts of a model on a cluster.",
    "quality": "Label documents with a model, train quality classifiers.",
    "mix": "Show the data mix of a pretraining recipe and what it costs.",
    "data": "Look at corpora and shards: what was dropped, why, where from.",
    "train": "Pretrain a model on packed shards.",
    "launch": "Write the files that start a recipe on a cluster.",
    "sft": "Fine-tune a model on dialogs.",
    "sample": "Sample answers and make preference pairs of them.",
    "rm": "Train a reward model on preferences, or check one.",
    "dpo": "Align a model to preference pairs.",
    "ppo": "Align a model to rewards by sampling: PPO, GRPO, RLOO.",
    "annotate": "Collect preferences from people, check them.",
    "round": "Run rounds of post-training: from preferences to the next model.",
    "average": "Average the weights of checkpoints.",
    "eval": "Score a model on tasks, with intervals.",
    "report": "Write the report page of a run.",
    "chat": "Talk to a model in the terminal.",
    "serve": "Serve a model: OpenAI-compatible API and a chat page.",
    "checkpoints": "List and verify the checkpoints of a run.",
    "export": "Write a model in another format.",
    "doctor": "Say what this machine can do and what is missing.",
}
"""Every verb with its first line of help; each lives in the file of its name (`eval` in `evaluate.py`)."""

MODULES = {"eval": "evaluate", "local-crawl": "local_crawl"}


class _ReaderGoneError(Exception):
    """Whoever read the output has gone; click would make an exit code of its own of the BrokenPipeError."""


class Verbs(click.Group):
    """The group that imports a verb when it is asked for."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the words; help is printed here."""
        try:
            return super().make_context(*args, **kwargs)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order of the work, not of the alphabet."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's file."""
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f"puna.cli.{MODULES.get(cmd_name, cmd_name)}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or name the nearest one."""
        if args[0] not in VERBS and not args[0].startswith("-"):
            near = nearest(args[0], VERBS)
            hint = f"Did you mean `puna {near}`?" if near else f"Verbs are: {', '.join(VERBS)}."
            raise click.UsageError(f"there is no verb {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, importing none of them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


EXAMPLES = """\b
Examples:
  puna demo
  puna show demo/pretrain
  puna train demo/pretrain train.steps=2000
  puna chat runs/demo/assistant
"""


@click.command(
    cls=Verbs,
    epilog=EXAMPLES,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="puna", message="%(prog)s %(version)s")
def cli() -> None:
    """The Llama 3 recipe as one package: raw text in, a chat out.

    A verb takes a RECIPE (a TOML file, or the name of one that comes with puna) and any number of key=value that
    override its fields. `puna VERB --help` says more about each.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process.

    Args:
        arguments: Words after `puna`; None takes them from the process.
    """
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code."""
    try:
        cli.main(None if arguments is None else list(arguments), prog_name="puna", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.UsageError as error:
        return _tell(_with_help_hint(error), 2)
    except click.ClickException as error:
        return _tell(error.format_message(), error.exit_code)
    except PunaError as error:
        if os.environ.get("RANK", "0") != "0" and error.exit_code in (2, 75):
            return error.exit_code  # every process has the same one, and the first one tells it
        return _tell(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _tell("interrupted", 130)
    except (BrokenPipeError, _ReaderGoneError):
        return _reader_is_gone()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich makes an exit code of its own of it
            return _reader_is_gone()
        raise
    except OSError as error:
        if not error.filename:
            return _tell_unexpected(error)
        return _tell(f"cannot use {error.filename}: {error.strerror or type(error).__name__}", 1)
    except Exception as error:
        return _tell_unexpected(error)
    return 0


def _reader_is_gone() -> int:
    """The reader has seen enough (`puna show x | head`); keep Python from complaining while it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _with_help_hint(error: click.UsageError) -> str:
    where = error.ctx.command_path if error.ctx else "puna"
    message = error.format_message().rstrip(".?")
    end = "?" if error.format_message().endswith("?") else "."
    return f"{message[:1].lower()}{message[1:]}{end} See `{where} --help`."


def _tell(message: str, code: int) -> int:
    from puna.core import console

    console.error(message)
    return code


def _tell_unexpected(error: BaseException) -> int:
    logs = [note.removeprefix("log: ") for note in getattr(error, "__notes__", []) if note.startswith("log: ")]
    log = logs[0] if logs else str(_write_traceback(error))
    text = str(error).strip().splitlines()
    detail = f"{type(error).__name__}{': ' + text[0] if text else ''}"
    return _tell(f"unexpected {detail}. This is a fault in puna; the traceback is in {log}", 1)


def _write_traceback(error: BaseException) -> Path:
    trace = "".join(traceback.format_exception(error))
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (puna_home() / "logs", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(trace, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    sys.stderr.write(trace)
    return Path("standard error")


def puna_home() -> Path:
    """Where puna keeps what belongs to the user, not to a run: `PUNA_HOME`, or `~/.puna`."""
    return Path(os.environ.get("PUNA_HOME") or Path.home() / ".puna")


if __name__ == "__main__":
    main()
