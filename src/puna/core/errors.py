"""One tree of exceptions, each with the exit code that the process ends with.

A `PunaError` is for the user: it says what failed, the value got, what is allowed, and the next command. A broken
invariant of our own is an `assert`. The command line prints the message and exits with `exit_code`; it never shows a
traceback for these.

Exit codes: 0 ok, 1 failed, 2 usage or config, 3 something missing (data, extra), 4 a gate said no, 75 stopped but
resumable (`EX_TEMPFAIL` of sysexits.h), 130 interrupted.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar


class PunaError(Exception):
    """Something failed that the user can understand and act on."""

    exit_code: ClassVar[int] = 1


class UsageError(PunaError):
    """The command or its arguments cannot be carried out as given."""

    exit_code = 2


class ConfigError(UsageError):
    """Every problem of a recipe, found before any work and printed together.

    Args:
        problems: One complete sentence a problem, each naming the file or override, the key and what is allowed.
        title: What was being read.
        note: A last line that is no problem itself.
    """

    def __init__(self, problems: Sequence[str], *, title: str = "the recipe cannot be used", note: str = "") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{title}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems), *([note] if note else [])]))


class PromptTooLongError(UsageError):
    """A prompt does not fit the context of the model.

    Args:
        prompt_tokens: Tokens of the prompt.
        context_length: Tokens that the model can hold, prompt and answer together.
    """

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        super().__init__(
            f"the prompt has {prompt_tokens} tokens, the context holds {context_length} and at least one of them is "
            "needed for the answer. Shorten the prompt, or load the model with a longer context."
        )


class MissingError(PunaError):
    """A file, a folder, a data set or an optional package is not there."""

    exit_code = 3


class GateError(PunaError):
    """A gate (evaluation, safety) said no."""

    exit_code = 4


class CorruptError(PunaError):
    """A file is not what its checksum or its format says. The message names the file."""


class Stopped(PunaError):  # noqa: N818 - it is no error
    """The job was asked to stop, saved its state and can be resumed by the same command."""

    exit_code = 75


def need(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or say the pip line that brings it.

    Args:
        module: Dotted name, for example `"fastapi"`.
        extra: The extra of this package that holds it, for example `"serve"`.

    Returns:
        The imported module.

    Raises:
        MissingError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.partition(".")[0]):
            raise
        raise MissingError(
            f"this needs the package {module!r}, which is not installed. Type: pip install 'puna[{extra}]'"
        ) from error
