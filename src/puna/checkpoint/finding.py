"""Finding a checkpoint of which every byte is there, over folders, machines and durable storage.

Every rank hashes its share of the files that its folder has. What no folder has whole is brought from durable storage,
the work again shared. On machines with a disk each, a rank then fetches from its peers only the files that hold boxes
which it needs (`bring_needed`).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from puna.checkpoint.durable import DurableTier
from puna.checkpoint.layout import Layout
from puna.checkpoint.pieces import Pieces
from puna.checkpoint.ranks import Ranks, Transfer
from puna.checkpoint.retention import name_of, step_of
from puna.checkpoint.sharded import read_items
from puna.core import console
from puna.core.errors import CorruptError, MissingError, PunaError
from puna.core.files import SEAL, is_sealed, read_json, sha256_file, write_json

Seal = Mapping[str, Any]


class Finder:
    """Finds checkpoints of one store.

    Args:
        folder: The store's folder.
        ranks: All processes.
        durable: The last tier.
    """

    def __init__(self, folder: Path, ranks: Ranks, durable: DurableTier | None) -> None:
        self._folder, self._ranks, self._durable = folder, ranks, durable
        self._durable_steps: set[int] = set()
        self._whole_here: set[str] = set()  # files of the step that was checked last, which this folder has whole

    def steps(self) -> list[int]:
        """Steps that some tier has, newest first."""
        here: set[int] = set()
        if self._folder.is_dir():
            here = {s for p in self._folder.iterdir() if p.is_dir() and (s := step_of(p.name)) is not None}
        away: set[int] = set()
        if self._durable is not None and self._ranks.is_first:
            try:
                away = set(self._durable.steps())
            except Exception as error:  # any of the storage's own errors
                console.warn(f"{self._durable.url} cannot be read: {error!r}. Only {self._folder} is looked at.")
        found = self._ranks.gather((here, away))
        self._durable_steps = found[0][1]
        return sorted(set().union(*(h for h, _ in found), self._durable_steps), reverse=True)

    def make_whole(self, step: int) -> str | None:
        """Check every file of a checkpoint, and bring from durable storage what no folder has whole. Collective.

        Returns:
            None when every file is whole somewhere; else what is wrong.
        """
        ranks, path = self._ranks, self._folder / name_of(step)
        seal, trouble = self._seal(step)
        if seal is None:
            return trouble
        if ranks.is_leader and not _same(seal, path):
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / SEAL, seal)
        found = ranks.gather(self._check(path, seal["files"]))
        troubles = {name: text for _, bad in found for name, text in bad.items()}
        missing = sorted(seal["files"].keys() - set().union(*(good for good, _ in found)))
        if missing and step in self._durable_steps:
            found += ranks.gather(self._fetch(step, missing))
            missing = sorted(set(missing) - set().union(*(good for good, _ in found[-ranks.size :])))
        mine = {r for r in range(ranks.size) if r in ranks.nodes[ranks.node]}
        self._whole_here = set().union(*(good for i, (good, _) in enumerate(found) if i % ranks.size in mine))
        if not missing:
            return None
        return troubles.get(missing[0], f"{path / missing[0]} is missing, though {path / SEAL} lists it")

    def _seal(self, step: int) -> tuple[Seal | None, str]:
        """The seal that all ranks go by: a folder's, else durable storage's."""
        found: tuple[Seal | None, str] = None, f"{SEAL} is missing"
        try:
            value = read_json(self._folder / name_of(step) / SEAL)
            found = (value, "") if isinstance(value.get("files"), dict) else (None, f"{SEAL} lists no files")
        except (MissingError, CorruptError, AttributeError) as error:
            found = None, str(error)
        found_all = self._ranks.gather(found)
        chosen = next((pair for pair in found_all if pair[0] is not None), found_all[0])
        if chosen[0] is None and step in self._durable_steps:
            if self._ranks.is_first and self._durable is not None:
                try:
                    chosen = self._durable.seal(step), ""
                except Exception as error:  # any of the storage's own errors
                    chosen = None, f"{chosen[1]}; {error!r}"
            chosen = self._ranks.gather(chosen)[0]
        return chosen

    def _check(self, path: Path, files: Mapping[str, Any]) -> tuple[set[str], dict[str, str]]:
        """Hash this rank's share of what is in its folder: names that are whole, and what is wrong with others."""
        ranks = self._ranks
        here = len(ranks.nodes[ranks.node])
        share = [name for i, name in enumerate(sorted(files)) if i % here == ranks.local_index]
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda name: _trouble(path / name, files[name]), share))
        good = {name for name, text in zip(share, found, strict=True) if text is None}
        return good, {name: text for name, text in zip(share, found, strict=True) if text is not None}

    def _fetch(self, step: int, names: list[str]) -> tuple[set[str], dict[str, str]]:
        """Bring this rank's share of missing files from durable storage."""
        assert self._durable is not None, "its steps were listed"
        seal, path, good = read_json(self._folder / name_of(step) / SEAL)["files"], self._folder / name_of(step), set()
        for name in names[self._ranks.rank :: self._ranks.size]:
            try:
                self._durable.fetch(step, name, path / name, sha256=seal[name]["sha256"])
            except Exception as error:  # any of the storage's own errors
                console.warn(f"{path / name} cannot be brought from {self._durable.url}: {error!r}")
                continue
            good.add(name)
        if good:
            console.say(f"{len(good)} files of {path} were brought from {self._durable.url}")
        return good, {}

    def bring_needed(self, path: Path, tensors: Mapping[str, Pieces]) -> None:
        """Fetch from peers the files that this machine's ranks need and do not have. Collective.

        Raises:
            PunaError: A file did not arrive.
        """
        ranks = self._ranks
        if len(ranks.nodes) < 2:
            return
        files = read_json(path / SEAL)["files"]
        small = sorted(name for name in files if not name.endswith(".safetensors"))
        self._carry(path, files, set(small))  # the layout among them: who lacks it cannot know what it needs
        layout = Layout.read(path)
        places = layout.metadata().storage_data
        known = {name: pieces for name, pieces in tensors.items() if name in layout.tensors}
        self._carry(path, files, {places[item.storage_index].file for item in read_items(layout, known)})

    def bring_all(self, path: Path) -> None:
        """Fetch from peers what the first machine lacks of a checkpoint. Collective.

        Raises:
            PunaError: A file did not arrive.
        """
        files = read_json(path / SEAL)["files"]
        self._carry(path, files, set(files) if self._ranks.node == 0 else set())

    def _carry(self, path: Path, files: Mapping[str, Any], needed: set[str]) -> None:
        ranks = self._ranks
        needs, has = ranks.gather(needed), ranks.gather(frozenset(self._whole_here))
        transfers = []
        for node in ranks.nodes:
            for name in sorted(set().union(*(needs[rank] for rank in node)) - has[node[0]]):
                sources = [r[0] for r in ranks.nodes if name in has[r[0]]]
                if not sources:
                    raise PunaError(f"{path / name} is whole on no machine")
                source = sources[len(transfers) % len(sources)]
                entry = files[name]
                transfers.append(Transfer(source, node[0], f"{path.name}/{name}", entry["bytes"], entry["sha256"]))
        ranks.together(lambda: ranks.transfer(transfers, self._folder))
        self._whole_here |= set().union(*(needs[rank] for rank in ranks.nodes[ranks.node]))


def newest_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint of a `checkpoints/` folder, by this process alone; None when there is none at all.

    Raises:
        CorruptError: There are checkpoints, and every one is damaged.
    """
    finder, problems = Finder(folder, Ranks(folder, alone=True), None), []
    for step in finder.steps():
        trouble = finder.make_whole(step)
        if trouble is None:
            return folder / name_of(step)
        console.warn(f"checkpoint {folder / name_of(step)} is damaged and left out: {trouble}")
        problems.append(name_of(step))
    if problems:
        raise all_damaged(folder, problems)
    return None


def checkpoints_of(run: Path | str) -> list[Path]:
    """The checkpoints that a path stands for, oldest first: a run folder, its `checkpoints/`, or one checkpoint.

    Raises:
        MissingError: There is none.
    """
    run = Path(run)
    if run.is_dir() and is_sealed(run):
        return [run]
    for folder in (run / "checkpoints", run):
        found = sorted(p for p in folder.glob("step-*") if step_of(p.name) is not None and p.is_dir())
        if found:
            return sorted(found, key=lambda p: step_of(p.name) or 0)
    raise MissingError(f"there are no checkpoints in {run}. Name a run folder, its checkpoints/, or one checkpoint.")


def all_damaged(folder: Path, problems: Sequence[str]) -> CorruptError:
    """The error when no checkpoint is left."""
    return CorruptError(
        f"no checkpoint in {folder} can be used, all are damaged: {', '.join(problems)}. Restore one, or "
        "begin again with --fresh."
    )


def _same(seal: Seal, path: Path) -> bool:
    try:
        return read_json(path / SEAL) == seal
    except (MissingError, CorruptError):
        return False


def _trouble(path: Path, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with a file; None if it is what its seal says."""
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path} has {size} bytes, its seal says {entry['bytes']}"
        if sha256_file(path) != entry["sha256"]:
            return f"{path} is not what its checksum says: some bytes changed"
    except OSError as error:
        return f"{path} is missing or cannot be read: {error.strerror or error}"
    return None
