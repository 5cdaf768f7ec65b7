"""Keys are read from files.

On a command line a key is seen by everybody on the machine, in a recipe by everybody who reads the run's folder, and an
environment variable changes what a command does without a trace.
"""

from pathlib import Path

from puna.core.errors import MissingError, UsageError


def read_key(path: Path | str) -> str:
    """The key in a file, without the white space around it.

    Raises:
        MissingError: The file is not there.
        UsageError: It is empty, or holds more than one line, or what no header can carry.
    """
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise MissingError(f"key file {path} is not there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"key file {path} cannot be read: {error}") from error
    if not key:
        raise UsageError(f"key file {path} is empty; write the key into it")
    if not key.isprintable():
        raise UsageError(f"key file {path} holds more than one line; the key and nothing else is expected")
    return key
