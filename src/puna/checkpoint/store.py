"""The checkpoints of a run: training waits for a copy in memory only, and whatever dies, a whole one is found again.

    checkpoints/
        step-00000400/      sealed: config.json, tokenizer, model.safetensors (or pieces), train_state/, layout.json
        step-00000500/
        suspect-00000600/   was loaded twice and failed twice
        .tmp-step-...       what a killed save left; removed by the next save

A save copies the state into host buffers that are used again and again; a thread writes, hashes, flushes, seals and
renames (`sharded.py`, `whole.py`), copies to peers (`ranks.py`), removes what is not kept (`retention.py`), and now
and then begins an upload (`durable.py`). When that fails training goes on and the next save is tried; only a save
that is waited for (the last one, and at a stop), or the third failure in a row, is an error.

`latest` checks every byte. What is damaged or missing here is brought from peers or durable storage; where that fails
the next older checkpoint is used. `load` fills any layout from any other.

Source: tiers and asynchronous saves as in Gemini (SOSP 2023) and The Llama 3 Herd of Models (2407.21783), section
3.3.4.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from puna.checkpoint import whole
from puna.checkpoint.card import Card
from puna.checkpoint.durable import DurableTier
from puna.checkpoint.export import export_together
from puna.checkpoint.failures import FILE as FAILURES
from puna.checkpoint.failures import Failures
from puna.checkpoint.finding import Finder, all_damaged
from puna.checkpoint.format import MAX_SHARD_BYTES
from puna.checkpoint.layout import STATE, Layout
from puna.checkpoint.pieces import Pieces
from puna.checkpoint.ranks import Ranks, replica_transfers
from puna.checkpoint.retention import Retention, name_of, step_of
from puna.checkpoint.safetensors_file import Entry
from puna.checkpoint.sharded import Saved, load_pieces, save_pieces
from puna.checkpoint.staging import HostBuffers, on_host
from puna.checkpoint.tensors import WEIGHTS, write_index
from puna.core import console
from puna.core.errors import CorruptError, PunaError
from puna.core.files import SEAL, need_free_space, read_json, write_json

VALUES = "train_state/state.json"
_VERSION = 2
_FAILURES_IN_A_ROW = 3

Asynchronous = Literal["auto", "always", "never"]


T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """A training state between two steps.

    Attributes:
        weights: The model by Hugging Face's names.
        state: Other tensors: optimizer, masters, random states.
        values: JSON; rank 0's are kept.
    """

    weights: Mapping[str, Pieces] = field(default_factory=dict)
    state: Mapping[str, Pieces] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Pieces]:
        """All tensors under the names that `layout.json` gives them."""
        return {**self.weights, **{STATE + name: pieces for name, pieces in self.state.items()}}


class CheckpointStore:
    """The `checkpoints/` folder of one run.

    With several ranks, a method that is said to be collective must be called by all of them.

    Args:
        folder: Where; made at the first save.
        retention: What is kept here.
        node_local: The folder is on each machine's own disk; ranks of other machines see another one.
        replicas: With `node_local`, on how many further machines each file is kept.
        durable: Storage that outlives the machines.
        asynchronous: `auto` copies and writes behind training if memory for the copy is free; `never` writes at once.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        retention: Retention | None = None,
        node_local: bool = False,
        replicas: int = 0,
        durable: DurableTier | None = None,
        asynchronous: Asynchronous = "auto",
    ) -> None:
        self.folder = Path(folder)
        self._retention, self._replicas, self._durable = retention or Retention(), replicas, durable
        self._asynchronous, self._said_synchronous = asynchronous, False
        self._ranks = Ranks(self.folder, node_local=node_local)
        self._finder = Finder(self.folder, self._ranks, durable)
        self._buffers = HostBuffers()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._failures_in_a_row = 0
        self._loaded_step = -1
        self.blocked_seconds = 0.0
        """How long the last save made its caller wait."""

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / name_of(step)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint here, oldest first, whole or not."""
        if not self.folder.is_dir():
            return []
        found = (step_of(p.name) for p in self.folder.iterdir() if p.is_dir())
        return sorted(step for step in found if step is not None)

    # -- saving

    def prepare(self, snapshot: Snapshot) -> None:
        """Make the buffers for states of this shape beside training, so that the first save need not."""
        tensors = snapshot.tensors()
        if self._asynchronous != "never" and self._thread is None and self._can_copy(tensors):
            self._thread = threading.Thread(target=self._buffers.prepare, args=(tensors,), name="checkpoint buffers")
            self._thread.start()

    def save(self, step: int, snapshot: Snapshot, *, side: Callable[[Path], None], wait: bool = False) -> Path:
        """Save a checkpoint, replacing one of the same step, then remove what is not kept. Collective.

        Args:
            step: Finished steps.
            snapshot: The state; it may change as soon as this returns.
            side: Writes the files beside the tensors (config, tokenizer, card) into the folder that it is given; called
                once a folder.
            wait: Return when it is whole on disk.

        Returns:
            The checkpoint's folder, which is not there yet unless `wait`.

        Raises:
            PunaError: It cannot be written, and `wait`; or the third save in a row failed. Older checkpoints are
            untouched.
        """
        start = time.perf_counter()
        self._join()
        tensors, values = snapshot.tensors(), json.dumps(dict(snapshot.values))
        behind = not wait and self._asynchronous != "never" and self._can_copy(tensors)
        if behind:
            held = self._buffers.copy(tensors)
            self._thread = threading.Thread(
                target=self._write_behind, args=(step, held, values, side), name="checkpoint", daemon=True
            )
            self._thread.start()
        elif wait:
            self._write(step, on_host(tensors), values, side)
        else:
            self._write_behind(step, on_host(tensors), values, side)
            self._join()
        self.blocked_seconds = time.perf_counter() - start
        return self.path(step)

    def wait(self) -> None:
        """Until the save behind training is on disk. Collective.

        Raises:
            PunaError: The third save in a row failed.
        """
        self._join()

    def close(self, *, upload_seconds: float = 600.0) -> None:
        """Finish what runs behind training, and give the buffers back. Collective.

        Args:
            upload_seconds: How long to wait for an upload.
        """
        self._join(give_up=False)
        self._buffers.clear()
        if self._durable is not None and self._durable.is_busy():
            console.say(f"waiting for the upload to {self._durable.url}, {upload_seconds:.0f} s at most")
            if not self._durable.wait(upload_seconds):
                console.warn(f"the upload to {self._durable.url} has not ended; the checkpoint is in {self.folder}")

    def _can_copy(self, tensors: Mapping[str, Pieces]) -> bool:
        if self._asynchronous == "always" or self._buffers.fits(tensors):
            return True
        if not self._said_synchronous:
            console.warn("there is no free memory for a copy of the training state, so saving holds up training")
            self._said_synchronous = True
        return False

    def _join(self, *, give_up: bool = True) -> None:
        """Wait for the thread, and look at how it ended."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is None:
            return
        self._failures_in_a_row += 1
        if give_up and self._failures_in_a_row >= _FAILURES_IN_A_ROW:
            raise PunaError(f"{self._failures_in_a_row} saves in a row failed, the last one so: {error}") from error
        console.warn(f"a checkpoint was not saved: {error} Training goes on; the next one is tried.")

    def _write_behind(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except Exception as error:  # `_join` tells it in the main thread
            self._error = error

    def _write(self, step: int, tensors: Mapping[str, Pieces], values: str, side: Callable[[Path], None]) -> None:
        ranks, path = self._ranks, self.path(step)
        try:
            ranks.together(lambda: self._begin(path, sum(p.nbytes for p in tensors.values())))
            saved = ranks.together(lambda: save_pieces(whole.temporary_of(path), tensors, group=ranks.group))
            values = ranks.gather(values)[0]
            ranks.together(lambda: self._commit(path, saved, values, side) if ranks.is_leader else None)
        except OSError as error:
            raise PunaError(
                f"cannot write {path}: {error.strerror or error}. Nothing was changed; free space or choose another "
                "folder."
            ) from error
        finally:
            if ranks.is_leader:
                shutil.rmtree(whole.temporary_of(path), ignore_errors=True)
        self._failures_in_a_row, self._loaded_step = 0, -1
        self._replicate(step, saved)
        self._upload(step, saved)
        if ranks.is_leader:
            self._prune()
            (self.folder / FAILURES).unlink(missing_ok=True)

    def _begin(self, path: Path, n_bytes: int) -> None:
        if self._ranks.is_leader:
            self.folder.mkdir(parents=True, exist_ok=True)
            whole.remove_leftovers(self.folder)
            need_free_space(self.folder, n_bytes)
            (whole.begin(path) / STATE).mkdir()

    def _commit(self, path: Path, saved: Saved, values: str, side: Callable[[Path], None]) -> None:
        temporary = whole.temporary_of(path)
        saved.layout.write(temporary)
        write_json(temporary / VALUES, {"version": _VERSION, **json.loads(values)})
        weights = {n: t for n, t in saved.layout.tensors.items() if not n.startswith(STATE)}
        if all(t.is_whole for t in weights.values()) and {t.places[0].file for t in weights.values()} - {WEIGHTS}:
            files = {name: t.places[0].file for name, t in weights.items()}
            write_index(temporary, files, (Entry(n, t.dtype, t.shape) for n, t in weights.items()))
        side(temporary)
        whole.commit(path, kind="checkpoint", known=saved.files)

    def _replicate(self, step: int, saved: Saved) -> None:
        """Give the peers their copies; a peer that does not take one is no reason to lose the checkpoint."""
        ranks = self._ranks
        if not self._replicas or len(ranks.nodes) < 2:
            return
        own = [(f"{name_of(step)}/{n}", saved.files[n].bytes, saved.files[n].sha256) for n in saved.own]
        transfers = replica_transfers(ranks.nodes, ranks.gather(own), self._replicas)
        try:
            ranks.together(lambda: ranks.transfer(transfers, self.folder))
        except PunaError as error:
            if ranks.is_first:
                console.warn(f"checkpoint {step} has no copy on a peer: {error}")

    def _upload(self, step: int, saved: Saved) -> None:
        durable, ranks = self._durable, self._ranks
        if durable is None:
            return
        states = ranks.gather((durable.is_due(), durable.is_busy()))
        if states[0][0] and not any(busy for _, busy in states):
            files = list(saved.own)
            if ranks.is_first:
                files += [n for n in read_json(self.path(step) / SEAL)["files"] if n not in saved.files] + [SEAL]
            durable.upload(step, self.path(step), files, leads=ranks.is_first)

    def _prune(self) -> None:
        steps = self.steps()
        kept = self._retention.kept(steps)
        if self._durable is not None and self._durable.in_use is not None:
            kept.add(self._durable.in_use)
        for step in steps:
            if step not in kept:
                whole.remove(self.path(step))

    # -- loading

    def latest(self, *, settings: str | None = None) -> Path | None:
        """The newest checkpoint that is whole; None when there is none at all. Collective.

        Args:
            settings: Fingerprint of what the run will do. A checkpoint after which it failed twice is then put aside.

        Raises:
            CorruptError: There are checkpoints, and every one is damaged.
        """
        problems = []
        for step in self._finder.steps():
            if settings is not None and self._is_suspect(step, settings):
                problems.append(f"{name_of(step)} (put aside)")
                continue
            trouble = self._finder.make_whole(step)
            if trouble is None:
                return self.path(step)
            if self._ranks.is_first:
                console.warn(f"checkpoint {self.path(step)} is damaged and left out: {trouble}")
            problems.append(name_of(step))
        if problems:
            raise all_damaged(self.folder, problems)
        return None

    def _is_suspect(self, step: int, settings: str) -> bool:
        failures = self._ranks.gather(Failures.read(self.folder))[0]
        if not failures.are_too_many(step, settings):
            return False
        path = self.path(step)
        if self._ranks.is_leader and path.exists():
            for older in self.folder.glob("suspect-*"):
                whole.remove(older)
            path.rename(self.folder / path.name.replace("step-", "suspect-"))
        if self._ranks.is_first:
            console.warn(
                f"the run failed {failures.count} times after loading {path.name} ({failures.reason}); it is put aside "
                f"as {path.name.replace('step-', 'suspect-')} and an older checkpoint is used"
            )
        return True

    def load(self, path: Path, snapshot: Snapshot) -> dict[str, Any]:
        """Fill the pieces of a snapshot in place from a checkpoint of any layout. Collective.

        Args:
            path: From `latest`.
            snapshot: What this rank holds; its values are not looked at.

        Returns:
            The checkpoint's values.

        Raises:
            CorruptError: It lacks a tensor, or has it with another shape, or was written by another version.
        """
        tensors = snapshot.tensors()
        self._finder.bring_needed(path, tensors)
        self._ranks.together(lambda: load_pieces(path, Layout.read(path), tensors))
        values = self.values(path)
        self._loaded_step = step_of(path.name) or 0
        return values

    def export(self, step: int, out: Path, *, card: Card, max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
        """Stream the model of a checkpoint into a Hugging Face folder, all ranks together. Collective.

        Args:
            step: Of a finished save.
            out: The folder; replaced.
            card: What its model card says.
            max_shard_bytes: Limit of one weights file.

        Returns:
            Its fingerprint.

        Raises:
            CorruptError: The checkpoint is damaged in all tiers.
        """
        self._finder.steps()
        if trouble := self._finder.make_whole(step):
            raise CorruptError(
                f"{self.path(step)} cannot be made the finished model: {trouble}. The same command goes on from an "
                "older checkpoint."
            )
        self._finder.bring_all(self.path(step))
        return export_together(self.path(step), out, ranks=self._ranks, card=card, max_shard_bytes=max_shard_bytes)

    def by_the_first(self, work: Callable[[], T]) -> T:
        """Do something on rank 0 alone and give every rank its result; an error is raised on all. Collective."""
        ranks = self._ranks
        return ranks.gather(ranks.together(lambda: work() if ranks.is_first else None))[0]  # pyright: ignore[reportReturnType]

    def values(self, path: Path) -> dict[str, Any]:
        """The JSON values of a checkpoint."""
        values = read_json(path / VALUES)
        version = values.pop("version", None) if isinstance(values, dict) else None
        if version != _VERSION:
            raise CorruptError(f"{path / VALUES} has version {version}, this program reads version {_VERSION}")
        return values

    def names(self, path: Path) -> set[str]:
        """Names of the tensors of a checkpoint, those of training state below `train_state/`."""
        return set(Layout.read(path).tensors)

    def failed(self, reason: str, settings: str) -> None:
        """Note that the run ended with an error; see `failures.py`."""
        if self._ranks.is_leader and self._loaded_step >= 0 and self.path(self._loaded_step).exists():
            Failures.read(self.folder).plus(self._loaded_step, settings, reason).write(self.folder)
