"""The checkpoints of a run: saved whole or not at all, sealed, found again after any kill, and pruned.

    checkpoints/
        step-00000400/      a Hugging Face folder + train_state/, sealed
        step-00000500/
        .tmp-step-...       what a killed save left; removed by the next save

A save writes into a temporary folder, flushes every file, seals the folder and renames it. `latest` checks the seal
byte by byte and falls back to the next older checkpoint when one is damaged, with a warning. What is in a checkpoint is
the caller's business (`train_state.py`).
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from puna.core import console
from puna.core.errors import CorruptError, MissingError, PunaError, UsageError
from puna.core.files import TEMPORARY_PREFIX, is_sealed, need_free_space, remove_temporaries, seal, verify

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointStore:
    """The `checkpoints/` folder of one run.

    Args:
        folder: Where; made at the first save.
        keep_last: Newest checkpoints to keep, at least 1.
        keep_every: Also keep each checkpoint whose step is a multiple of this; 0 keeps none for that.
    """

    def __init__(self, folder: Path | str, *, keep_last: int = 2, keep_every: int = 0) -> None:
        assert keep_last >= 1, f"keep_last is {keep_last}"
        self.folder = Path(folder)
        self._keep_last, self._keep_every = keep_last, keep_every

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first, whole or not."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(p.name) for p in self.folder.iterdir() if p.is_dir())
        return sorted(int(m[1]) for m in matches if m)

    def save(self, step: int, write: Callable[[Path], None], *, n_bytes: int) -> Path:
        """Save a checkpoint, replacing one of the same step, then prune.

        Args:
            step: Finished steps.
            write: Writes the content into the empty folder that it is given.
            n_bytes: About how much that will be; the disk is asked first.

        Returns:
            The checkpoint's folder.

        Raises:
            PunaError: The disk is too small. Older checkpoints are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)
        need_free_space(self.folder, n_bytes)
        path = self.path(step)
        write_whole(path, write, kind="checkpoint", replace_any=True)
        self._prune()
        return path

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole; None when there is none at all.

        Raises:
            CorruptError: There are checkpoints, and every one is damaged.
        """
        problems = []
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                verify(path)
            except (CorruptError, MissingError) as error:
                console.warn(f"checkpoint {path} is damaged and left out: {error}")
                problems.append(path.name)
                continue
            return path
        if problems:
            raise CorruptError(
                f"no checkpoint in {self.folder} can be used, all are damaged: {', '.join(problems)}. Restore one, or "
                "begin again with --fresh."
            )
        return None

    def _prune(self) -> None:
        steps = self.steps()
        kept = set(steps[-self._keep_last :])
        if self._keep_every:
            kept |= {step for step in steps if step % self._keep_every == 0}
        for step in steps:
            if step not in kept:
                _remove(self.path(step))


def write_whole(path: Path, write: Callable[[Path], object], *, kind: str, replace_any: bool = False) -> str:
    """Make a sealed folder appear whole or not at all, replacing the sealed or empty folder that was there.

    Args:
        path: Final name.
        write: Writes the content into the empty folder that it is given.
        kind: For the seal.
        replace_any: Replace a folder without a seal too (a damaged checkpoint).

    Returns:
        The folder's fingerprint.

    Raises:
        UsageError: At `path` is something that was not made here.
        PunaError: It cannot be written; what was at `path` is still there.
    """
    if path.exists() and not (replace_any or is_sealed(path)) and (path.is_file() or any(path.iterdir())):
        raise UsageError(f"{path} is there already and holds other files; choose another folder. Nothing was written.")
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        fingerprint = seal(temporary, kind=kind)
        if path.exists():
            _remove(path)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise PunaError(
            f"cannot write {path}: {error.strerror or error}. Nothing was changed; free space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return fingerprint


def _remove(path: Path) -> None:
    """Remove a folder so that a kill in the middle leaves no half of it under its name."""
    doomed = path.with_name(f"{TEMPORARY_PREFIX}old-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
