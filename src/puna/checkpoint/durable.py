"""The last tier: copies of checkpoints in storage that outlives the machines (`s3://`, `gs://`, `file://`), by fsspec.

An upload runs in a thread of its own and never holds up training or local saves: when it is slow the next one is left
out, when the storage is dead that is said, and tried again later. A checkpoint there counts when every file that its
`checksums.json` lists is there with its size, so ranks upload their own files in any order and need not wait for each
other.
"""

import json
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec

from puna.checkpoint.retention import Retention, name_of, step_of
from puna.core import console
from puna.core.errors import CorruptError, MissingError
from puna.core.files import SEAL, TEMPORARY_PREFIX, sha256_file


class DurableTier:
    """Checkpoints of one run in durable storage.

    Args:
        url: Folder, in any form that fsspec knows; its package (`s3fs`, `gcsfs`) must be installed.
        every_seconds: Shortest time between two uploads; 0 uploads every checkpoint.
        retention: What is kept there.

    Raises:
        MissingError: fsspec knows no such storage, or lacks its package.
    """

    def __init__(self, url: str, *, every_seconds: float = 3600.0, retention: Retention | None = None) -> None:
        self.url, self._every = url.rstrip("/"), every_seconds
        self._retention = retention or Retention(last=3)
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise MissingError(
                f"cannot use the storage {url}: {error}. Install its fsspec package (s3fs, gcsfs, ...)."
            ) from error
        self._thread: threading.Thread | None = None
        self._begun_at: float | None = None
        self.in_use: int | None = None  # the step whose local files are being read

    # -- writing

    def is_due(self) -> bool:
        """Whether the next checkpoint shall be uploaded; never while an upload runs."""
        if self._thread is not None and self._thread.is_alive():
            return False
        return self._begun_at is None or time.monotonic() - self._begun_at >= self._every

    def is_busy(self) -> bool:
        """Whether an upload runs."""
        return self._thread is not None and self._thread.is_alive()

    def upload(self, step: int, folder: Path, files: Sequence[str], *, leads: bool) -> None:
        """Begin to upload files of a checkpoint.

        Args:
            step: Its step.
            folder: Where it lies.
            files: Paths of the files that this process is to bring.
            leads: This process also removes what retention does not keep.
        """
        self._begun_at, self.in_use = time.monotonic(), step
        self._thread = threading.Thread(
            target=self._upload, args=(step, folder, tuple(files), leads), name="checkpoint upload", daemon=True
        )
        self._thread.start()

    def _upload(self, step: int, folder: Path, files: tuple[str, ...], leads: bool) -> None:
        try:
            for name in sorted(files, key=lambda name: name == SEAL):  # the seal comes last
                remote = f"{self._root}/{folder.name}/{name}"
                self._fs.makedirs(remote.rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(folder / name), remote)
            if leads:
                self._prune()
        except Exception as error:  # any of the storage's own errors
            self._begun_at = None  # try again with the next checkpoint
            console.warn(
                f"{self.url} did not take checkpoint {step}: {error!r}. Training goes on; the next one is tried."
            )
        finally:
            self.in_use = None

    def wait(self, seconds: float) -> bool:
        """Wait for a running upload, so long at most. Returns whether none runs any more."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.is_busy()

    def _prune(self) -> None:
        steps = self.steps()
        for step in sorted(set(steps) - self._retention.kept(steps)):
            self._fs.rm(self._path(step), recursive=True)

    # -- reading

    def steps(self) -> list[int]:
        """Steps of which every file is there, oldest first."""
        self._fs.invalidate_cache()
        if not self._fs.exists(self._root):
            return []
        names = (entry.rstrip("/").rpartition("/")[2] for entry in self._fs.ls(self._root, detail=False))
        steps = sorted(step for name in names if (step := step_of(name)) is not None)
        return [step for step in steps if self._is_complete(step)]

    def _is_complete(self, step: int) -> bool:
        try:
            files = self.seal(step)["files"]
        except (FileNotFoundError, CorruptError):
            return False
        sizes = self._fs.find(self._path(step), detail=True)
        there = {name.removeprefix(self._path(step)).lstrip("/"): entry["size"] for name, entry in sizes.items()}
        return all(there.get(name) == entry["bytes"] for name, entry in files.items())

    def seal(self, step: int) -> dict[str, Any]:
        """The `checksums.json` of a checkpoint there."""
        try:
            return json.loads(self._fs.cat_file(f"{self._path(step)}/{SEAL}"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CorruptError(f"{self.url}: the seal of step {step} is not JSON: {error}") from error

    def fetch(self, step: int, name: str, target: Path, *, sha256: str) -> None:
        """Bring one file here, whole or not at all.

        Raises:
            CorruptError: It is not what its checksum says.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
        try:
            self._fs.get_file(f"{self._path(step)}/{name}", str(temporary))
            if sha256_file(temporary) != sha256:
                raise CorruptError(f"{self.url}/{name_of(step)}/{name} is not what its checksum says")
            temporary.replace(target)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            temporary.unlink(missing_ok=True)

    def _path(self, step: int) -> str:
        return f"{self._root}/{name_of(step)}"
