"""The record beside every artifact, and the walk from an artifact up to everything it was made from.

A run folder holds `lineage.json`: the step's name and version, its config, the fingerprints of its inputs and of its
output. Times, the command and the paths of inputs are recorded too, but enter no fingerprint. Paths are kept relative
to the folder, so a tree of runs can be moved or copied whole and its lineage still leads upward.

It does not decide anything: whether to run, resume or refuse is `runner.py`'s.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from puna.core import files
from puna.core.errors import CorruptError, GateError

RECORD = "lineage.json"
FULL_CHECK_BYTES = 4 << 30  # above this a check compares sizes only; hashing 4 GiB takes some 10 s

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Input:
    """One input as it was when the step ran.

    Attributes:
        path: Where it lies, relative to the folder of the record.
        fingerprint: Its content fingerprint.
    """

    path: str
    fingerprint: str


@dataclass(frozen=True)
class Record:
    """What `lineage.json` says.

    Attributes:
        stage: The verb that ran: `train`, `tokenize pack`.
        name: The author's name of the step.
        version: The author's version of the step.
        status: `running` (or killed while running), `finished`, `stopped` (resumable) or `failed`.
        config: The settings that decide the output, without paths of inputs and output.
        inputs: By config key.
        output: Fingerprint of the product, once finished.
        command: The command that ran it, as a user types it.
        puna: Version of this package that ran it last.
        started: First start, ISO 8601 in UTC.
        finished: The end, ISO 8601 in UTC.
        session_started: Seconds since 1970 of the session that runs or ran last.
        seconds: Working time over all sessions.
        error: What a failed run failed with.
        accepted: Drifts that a person accepted: differences, config and inputs of each.
    """

    stage: str
    name: str
    version: int
    status: Status
    config: dict[str, Any]
    inputs: dict[str, Input]
    output: str | None = None
    command: str = ""
    puna: str = ""
    started: str = ""
    finished: str | None = None
    session_started: float = 0.0
    seconds: float = 0.0
    error: str | None = None
    accepted: list[dict[str, Any]] = field(default_factory=list)

    @property
    def refused(self) -> str:
        """What a gate said when it said no; empty when the run did not end so."""
        kind, _, said = (self.error or "").partition(": ")
        return said if self.status == "failed" and kind == GateError.__name__ else ""


def read_record(folder: Path | str) -> Record | None:
    """The record of a run folder, or None when there is none.

    Raises:
        CorruptError: There is a file, but it is no lineage record.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    raw = files.read_json(path)
    try:
        inputs = {name: Input(**entry) for name, entry in raw.pop("inputs").items()}
        record = Record(inputs=inputs, **raw)
    except (TypeError, KeyError, AttributeError) as error:
        raise CorruptError(f"{path} is not a lineage record: {error}. Use --fresh to begin again.") from error
    if record.status not in get_args(Status):
        raise CorruptError(f"{path} has status {record.status!r}, allowed are {', '.join(get_args(Status))}")
    return record


def write_record(folder: Path | str, record: Record) -> None:
    """Write the record atomically."""
    files.write_json(Path(folder) / RECORD, asdict(record))


def product_of(folder: Path | str) -> Path:
    """The sealed part of a run folder: itself, or its `model/`; the folder when nothing is sealed."""
    folder = Path(folder)
    for part in (folder, folder / "model"):
        if files.is_sealed(part):
            return part
    return folder


def check(folder: Path | str) -> str:
    """Check a sealed artifact and give its fingerprint.

    Up to 4 GiB every byte is hashed; above, presence and sizes are compared, because hashing a corpus of terabytes
    before every step would cost more than the step.

    Raises:
        MissingError: Nothing there is sealed.
        CorruptError: A file is missing or not what the seal says.
    """
    product = product_of(folder)
    entries = files.read_json(product / files.SEAL)["files"]
    if sum(entry["bytes"] for entry in entries.values()) <= FULL_CHECK_BYTES:
        return files.verify(product)
    for name, entry in entries.items():
        path = product / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise CorruptError(f"{path} is missing or not {entry['bytes']} bytes long. Make {folder} again.")
    return files.sha256_file(product / files.SEAL)


@dataclass(frozen=True)
class Ancestor:
    """One artifact on the way up.

    Attributes:
        path: Its folder or file.
        record: How it was made; None for what no step made (a file from outside).
        fingerprint: Its content now, or None when it is no longer there.
        parents: Paths of what it was made from, by config key.
        changed: It is not what its children were made from, or its own record no longer fits.
        depth: Steps above the artifact asked for.
    """

    path: Path
    record: Record | None
    fingerprint: str | None
    parents: dict[str, Path]
    changed: bool
    depth: int


def run_folder_of(path: Path | str) -> Path:
    """The run folder that an artifact lies in: `RUN` for `RUN/model`, `RUN/checkpoints/STEP` and `RUN/rows.jsonl`."""
    path = Path(path)
    if (path.name == "model" or path.is_file()) and (path.parent / RECORD).is_file():
        return path.parent
    if path.parent.name == "checkpoints" and (path.parent.parent / RECORD).is_file():
        return path.parent.parent
    return path


def ancestry(path: Path | str) -> list[Ancestor]:
    """Walk from an artifact up to everything it was made from.

    Args:
        path: A run folder, or an artifact inside one (`runs/demo/base/model`).

    Returns:
        The artifact first, each ancestor once, nearest first.
    """
    found: dict[Path, Ancestor] = {}
    queue: list[tuple[Path, int, str | None]] = [(run_folder_of(path), 0, None)]
    while queue:
        folder, depth, expected = queue.pop(0)
        key = Path(os.path.normpath(folder))
        if key in found:
            continue
        ancestor = _ancestor(key, depth, expected)
        found[key] = ancestor
        if ancestor.record:
            for name, parent in ancestor.parents.items():
                home = run_folder_of(parent)
                a_part_of_it = home != parent and parent.is_file()  # its bytes say nothing of the whole folder's
                expected = None if a_part_of_it else ancestor.record.inputs[name].fingerprint
                queue.append((home, depth + 1, expected))
    return list(found.values())


def _ancestor(folder: Path, depth: int, expected: str | None) -> Ancestor:
    record = read_record(folder) if folder.is_dir() else None
    present = files.fingerprint(folder) if folder.exists() else None
    parents = {}
    if record:
        parents = {name: Path(os.path.normpath(folder / entry.path)) for name, entry in record.inputs.items()}
    own = record.output if record else None
    changed = any(known is not None and known != present for known in (expected, own))
    return Ancestor(folder, record, present, parents, changed, depth)
