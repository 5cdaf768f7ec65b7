"""The folder of a product while it is being made: how work is begun, recognised as finished, and thrown away.

A product (a corpus, a shard set) is made in its own folder, with `work/` for what is half done. `work/recipe.json` says
what the work is for; the manifest, written last but for the seal, carries the same fingerprint. So a killed run finds
one of three states: finished (at most the seal is missing), begun for the same recipe (go on), or begun for another
(what it left is removed, with a word).
"""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core import console
from puna.core.files import SEAL, TEMPORARY_PREFIX, is_sealed, read_json, remove_temporaries, seal, write_json

MANIFEST = "manifest.json"
WORK = "work"


@dataclass(frozen=True)
class Work:
    """A product in the making.

    Attributes:
        folder: The product's folder.
        kind: What it is, for the seal: `corpus`, `shards`.
        recipe: Fingerprint of everything that decides its content.
        products: Glob patterns of what the work puts into the folder.
        verb: Who speaks: `curate`.
        keep: Whether `work/` stays when the product is finished.
    """

    folder: Path
    kind: str
    recipe: str
    products: tuple[str, ...]
    verb: str
    keep: bool = False

    @property
    def path(self) -> Path:
        """Where what is half done lies."""
        return self.folder / WORK

    def finished(self) -> bool:
        """Whether the product is there; a seal or a cleaning that a kill prevented is made up for."""
        manifest = self.folder / MANIFEST
        if not manifest.is_file() or read_json(manifest).get("recipe") != self.recipe:
            return False
        self._end()
        return True

    def begin(self, stale: Callable[[Path], Iterable[Path]] = lambda work: [work]) -> None:
        """Make the folder ready; what belongs to another recipe is removed.

        Args:
            stale: What of `work/` another recipe cannot use; all of it unless told.
        """
        remove_temporaries(self.folder)
        begun = self.path / "recipe.json"
        if begun.exists() and read_json(begun) == self.recipe:
            return
        old = [path for pattern in (*self.products, MANIFEST, SEAL) for path in self.folder.glob(pattern)]
        if old or self.path.exists():
            console.say(f"{self.verb}: {self.folder} holds work on another recipe or other input; what fits is kept")
        for path in [*old, *(stale(self.path) if self.path.exists() else ())]:
            remove(path)
        write_json(begun, self.recipe)

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, clean up, seal."""
        write_json(self.folder / MANIFEST, {**manifest, "recipe": self.recipe})
        self._end()

    def _end(self) -> None:
        if not self.keep:
            shutil.rmtree(self.path, ignore_errors=True)
        if not is_sealed(self.folder):
            seal(self.folder, kind=self.kind)


def link(source: Path, target: Path) -> None:
    """Give a finished file a second name; copy it where the file system has no links. The target is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{target.name}"
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
