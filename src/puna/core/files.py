"""Files that are either whole or absent, and folders that know when they were changed.

Every write goes to a temporary name in the same folder, is flushed to disk, and is renamed: a killed process leaves the
old file or the new one. A finished artifact (tokenizer, corpus, shards, checkpoint) is a *sealed* folder: its
`checksums.json` lists the SHA-256 and size of every file in it. The seal's own hash is the artifact's fingerprint,
which lineage records. Content files hold no time, path or machine name, so equal work gives equal fingerprints. What a
run keeps for itself beside its product (`RUN_FILES`, `RUN_FOLDERS`) is never part of a seal.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from puna.core.errors import CorruptError, MissingError, PunaError

SEAL = "checksums.json"
TEMPORARY_PREFIX = ".tmp-"
RUN_FILES = frozenset({"config.toml", "lineage.json", "metrics.jsonl", "log.txt", ".lock", SEAL})
RUN_FOLDERS = frozenset({"checkpoints", "work", "model"})
_CHUNK = 1 << 20


@contextlib.contextmanager
def atomic_open(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing so that it appears whole or not at all.

    Args:
        path: Final name. Its folder is made when absent.
        mode: `"w"` (UTF-8, Unix line ends) or `"wb"`.

    Yields:
        The open temporary file.

    Raises:
        PunaError: The disk is full or the folder cannot be written; the old file, if any, is still there.
    """
    assert mode in {"w", "wb"}, f"mode is {mode!r}"
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=f"-{path.name}", dir=path.parent)
        temporary = Path(name)
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
        with os.fdopen(handle, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise PunaError(
            f"cannot write {path}: {error.strerror or error}. Nothing was changed; free space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented, key-sorted JSON, atomically."""
    with atomic_open(path) as file:
        json.dump(value, file, indent=2, sort_keys=True, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        MissingError: There is no such file.
        CorruptError: It is not JSON in UTF-8.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(f"{path} is not there") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{path} is not valid JSON: {error}") from error


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remove_temporaries(folder: Path | str) -> None:
    """Remove what a killed `atomic_open` left in a folder."""
    for path in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _content_files(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*")):
        first, *rest = path.relative_to(folder).parts
        kept_by_run = first in RUN_FOLDERS if rest else first in RUN_FILES
        if path.is_file() and not kept_by_run and not path.name.startswith(TEMPORARY_PREFIX):
            found.append(path)
    return found


def seal(folder: Path | str, *, kind: str, known: Mapping[str, tuple[str, int]] | None = None) -> str:
    """Write `checksums.json` over every file of a finished artifact.

    Args:
        folder: The artifact.
        kind: What it is: `"tokenizer"`, `"corpus"`, `"shards"`, `"checkpoint"`.
        known: SHA-256 and size of files that were hashed when they were written, by relative path; they need not be
            here (another machine may hold them), and are not read again.

    Returns:
        The artifact's fingerprint: SHA-256 of the seal.
    """
    folder = Path(folder)
    remove_temporaries(folder)
    files = {name: {"sha256": sha, "bytes": size} for name, (sha, size) in (known or {}).items()}
    files |= {
        name: {"sha256": sha256_file(p), "bytes": p.stat().st_size}
        for p in _content_files(folder)
        if (name := p.relative_to(folder).as_posix()) not in files
    }
    write_json(folder / SEAL, {"kind": kind, "files": files})
    return sha256_file(folder / SEAL)


def is_sealed(folder: Path | str) -> bool:
    """Whether the folder carries a seal."""
    return (Path(folder) / SEAL).is_file()


def verify(folder: Path | str) -> str:
    """Check every file of a sealed folder against its seal.

    Returns:
        The artifact's fingerprint.

    Raises:
        MissingError: The folder has no seal.
        CorruptError: A file is missing, cut short or changed; the message names it.
    """
    folder = Path(folder)
    for name, entry in read_json(folder / SEAL)["files"].items():
        path = folder / name
        if not path.is_file():
            raise CorruptError(
                f"{path} is missing, though {folder / SEAL} lists it. Make {folder} again, or restore the file."
            )
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CorruptError(
                f"{path} has {size} bytes, its seal says {entry['bytes']}. Make {folder} again, or restore the file."
            )
        if sha256_file(path) != entry["sha256"]:
            raise CorruptError(
                f"{path} is not what its checksum says: some bytes changed. Make {folder} again, or restore the file."
            )
    return sha256_file(folder / SEAL)


def fingerprint(path: Path | str) -> str:
    """Content fingerprint of an input: a sealed folder's seal, a file's bytes, or all files of a plain folder.

    A training run's folder stands for the `model/` in it.

    Raises:
        MissingError: There is nothing at that path.
    """
    path = Path(path)
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise MissingError(f"{path} is not there")
    for sealed in (path, path / "model"):
        if is_sealed(sealed):
            return sha256_file(sealed / SEAL)
    digest = hashlib.sha256()
    for file in _content_files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def need_free_space(path: Path | str, n_bytes: int) -> None:
    """Refuse to begin a write that the disk cannot hold.

    Args:
        path: Where the write will go; it need not exist yet.
        n_bytes: How much will be written.

    Raises:
        PunaError: Less than `n_bytes` plus a small reserve is free.
    """
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    reserve = 16 << 20
    if free < n_bytes + reserve:
        raise PunaError(
            f"{path} needs {(n_bytes + reserve) / 2**20:.0f} MiB, {reserve >> 20} MiB of them in reserve, "
            f"and the disk has {free / 2**20:.0f} MiB free. "
            "Nothing was written; free space or choose another folder with out=..."
        )
