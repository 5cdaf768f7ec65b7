"""Finding files under a folder by patterns, in an order that does not depend on the file system, and reading text."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from puna.core.errors import MissingError
from puna.data.places import find_remote, is_remote, join, open_binary, writable
from puna.data.sources.task import Problem, Report


def find_files(
    root: Path | str, *, include: Sequence[str], exclude: Sequence[str], source: str
) -> list[tuple[str, int]]:
    """Files under `root`, or `root` itself when it is a file.

    Args:
        root: Folder or file, local or remote.
        include: Glob patterns matched from the right (`*.py`) or over the whole relative path (`docs/*.md`).
        exclude: Patterns of files and of folder names to leave out; hidden entries are always left out.
        source: Name of the source, for the message.

    Returns:
        `(relative POSIX path as `places.writable` gives it, bytes)`, sorted by path. Symbolic links are not followed
        out of the tree.

    Raises:
        MissingError: There is no such path, or nothing in it matches.
    """
    if is_remote(root):
        everything = find_remote(str(root), source)
        if len(everything) == 1:
            return everything
        chosen = [(n, s) for n, s in everything if _matches(n, include) and not _matches(n, exclude)]
        if not chosen:
            raise MissingError(
                f"source {source!r}: no file under {root} matches {', '.join(include)}. Change include=..."
            )
        return chosen
    root = Path(root)
    if root.is_file():
        return [(writable(root.name), root.stat().st_size)]
    if not root.is_dir():
        raise MissingError(f"source {source!r}: {root} is not there. Set its path to a folder or file that exists.")
    found: list[tuple[str, int]] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not _matches(f, exclude))
        base = Path(folder)
        for name in names:
            path = base / name
            relative = path.relative_to(root).as_posix()
            if name.startswith(".") or not _matches(relative, include) or _matches(relative, exclude):
                continue
            if path.is_symlink() and not path.exists():
                found.append((writable(relative), 0))  # reading it says what is wrong
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                continue
            if path.is_file():
                found.append((writable(relative), path.stat().st_size))
    if not found:
        raise MissingError(f"source {source!r}: no file under {root} matches {', '.join(include)}. Change include=...")
    return sorted(found)


def locate(root: Path | str, part: str) -> Path | str:
    """The file of a part that `find_files` gave."""
    return join(root, part)


def read_bytes(path: Path | str, part: str, report: Report) -> bytes | None:
    """A file's bytes, or None with a problem when the system refuses."""
    try:
        with open_binary(path) as file:
            return file.read()
    except OSError as error:
        report(Problem(part, "unreadable", error.strerror or type(error).__name__))
        return None


def decode_utf8(data: bytes, part: str, report: Report) -> str | None:
    """Text of UTF-8 bytes without a byte order mark and with Unix line ends, or None with a problem."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"byte 0x{data[error.start]:02x}: {error.reason}"
        report(Problem(part, "not UTF-8", detail, offset=error.start))
        return None
    return text.replace("\r\n", "\n") if "\r" in text else text


def _matches(path: str, patterns: Sequence[str]) -> bool:
    pure = PurePosixPath(path)
    return any(pure.match(pattern) for pattern in patterns)
