"""Folders that appear whole or not at all, however the process ends.

Everything is written into a temporary folder beside the final one, flushed, sealed and renamed. A kill leaves the old
folder or the new one, and at worst a temporary that the next write removes.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from puna.checkpoint.safetensors_file import Written
from puna.core.errors import PunaError, UsageError
from puna.core.files import TEMPORARY_PREFIX, is_sealed, seal


def temporary_of(path: Path) -> Path:
    """Where the content of `path` is put together."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}")


def begin(path: Path) -> Path:
    """Make the empty temporary folder of `path`."""
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def commit(path: Path, *, kind: str, known: Mapping[str, Written] | None = None) -> str:
    """Seal the temporary folder of `path` and give it its name; what had the name is removed.

    Args:
        path: Final name.
        kind: For the seal.
        known: Checksums of files that were made when they were written.

    Returns:
        The folder's fingerprint.
    """
    temporary = temporary_of(path)
    fingerprint = seal(temporary, kind=kind, known={name: (w.sha256, w.bytes) for name, w in (known or {}).items()})
    for folder in (temporary, *(p for p in temporary.rglob("*") if p.is_dir())):
        flush_folder(folder)
    if path.exists():
        remove(path)
    temporary.replace(path)
    flush_folder(path.parent)
    return fingerprint


def write_whole(path: Path, write: Callable[[Path], Mapping[str, Written] | None], *, kind: str) -> str:
    """Make a sealed folder appear whole or not at all, replacing the sealed or empty folder that was there.

    Args:
        path: Final name.
        write: Writes the content into the empty folder that it is given; returns the checksums that it knows.
        kind: For the seal.

    Returns:
        The folder's fingerprint.

    Raises:
        UsageError: At `path` is something that was not made here.
        PunaError: It cannot be written; what was at `path` is still there.
    """
    refuse_foreign(path)
    try:
        known = write(begin(path))
        return commit(path, kind=kind, known=known)
    except OSError as error:
        raise PunaError(
            f"cannot write {path}: {error.strerror or error}. Nothing was changed; free space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary_of(path), ignore_errors=True)


def refuse_foreign(path: Path) -> None:
    """Refuse to replace what was not made here.

    Raises:
        UsageError: At `path` are files without a seal.
    """
    if path.exists() and not is_sealed(path) and (path.is_file() or any(path.iterdir())):
        raise UsageError(f"{path} is there already and holds other files; choose another folder. Nothing was written.")


def remove(path: Path) -> None:
    """Remove a folder so that a kill in the middle leaves no half of it under its name."""
    doomed = path.with_name(f"{TEMPORARY_PREFIX}old-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writes of folders left; files are left alone, the training thread may be writing one."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
