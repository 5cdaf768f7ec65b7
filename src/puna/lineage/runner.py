"""Runs a step once: begun, stopped, resumed, finished, and never silently made from something else than it says.

The state of an output folder decides:

    no record              run
    finished, same         skip, after checking that the output is what it was
    finished, drifted      DriftError; `accept_drift` keeps the output, `fresh` moves it aside and runs
    begun, nothing made    run, whatever the settings were
    unfinished, same       resume: the step's `run` is called again on the same folder
    unfinished, drifted    DriftError; `accept_drift` resumes with the new settings, `fresh` begins anew

The record is on disk as `running` before the work begins, so a killed process leaves an unfinished step, never one that
looks finished. The folder is locked while the runner looks and works. Nothing here knows any stage.
"""

import json
import logging
import os
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import puna
from puna.core import console, files
from puna.core.errors import CorruptError, MissingError, PunaError, Stopped, UsageError
from puna.core.run_folder import RunFolder
from puna.lineage.artifact import RECORD, Input, Record, check, product_of, read_record, run_folder_of, write_record
from puna.lineage.step import Difference, DriftError, Step, accept, compare

_BEGUN = files.RUN_FILES - {"metrics.jsonl", files.SEAL} | {"recipe.json"}
Action = Literal["run", "resume", "skip"]


@dataclass(frozen=True)
class Situation:
    """What would happen if the step were executed now.

    Attributes:
        action: `run`, `resume` or `skip`.
        record: What the folder says.
        differences: Drift against the record.
        fingerprints: Content fingerprint of each input.
    """

    action: Action
    record: Record | None
    differences: tuple[Difference, ...]
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Attributes:
        action: `run`, `resume` or `skip`.
        folder: The output folder.
        fingerprint: Fingerprint of the product.
        seconds: Working time of the step over all its sessions.
    """

    action: Action
    folder: Path
    fingerprint: str
    seconds: float


def inspect(step: Step) -> Situation:
    """Look at a step's inputs and output folder without touching anything.

    Raises:
        MissingError: An input is not there or not finished; the message names the command that makes it.
        UsageError: The output folder belongs to something else.
        CorruptError: An input or the record is damaged.
    """
    return _situation(_canonical(step), _fingerprints(step))


def _situation(step: Step, fingerprints: dict[str, str]) -> Situation:
    record = read_record(step.output)
    if record is None:
        _refuse_foreign_folder(step)
        return Situation("run", None, (), fingerprints)
    if record.status != "finished" and _is_empty(step.output):
        return Situation("run", None, (), fingerprints)
    if record.stage != step.stage:
        raise UsageError(
            f"{step.output} was made by `puna {record.stage}`, not by `puna {step.stage}`. Choose another out=..."
        )
    action: Action = "skip" if record.status == "finished" else "resume"
    return Situation(action, record, tuple(compare(record, step, fingerprints)), fingerprints)


def execute(step: Step, *, accept_drift: bool = False, fresh: bool = False) -> Outcome:
    """Bring a step to its end, doing only what is left to do.

    Args:
        step: The work.
        accept_drift: Go on although settings or inputs changed.
        fresh: Move what is there aside and run from the beginning.

    Returns:
        What was done, with the fingerprint of the product.

    Raises:
        DriftError: Settings or inputs changed and neither flag was given.
        MissingError: An input is missing.
        CorruptError: An input, or the finished output, is damaged.
        UsageError: Both flags were given, or another process works in the folder.
        Stopped: The work was asked to stop and saved its state.
    """
    if accept_drift and fresh:
        raise UsageError("--accept-drift keeps what is there, --fresh does not: give one of them")
    step = _canonical(step)
    _refuse_output_among_inputs(step)
    fingerprints = _fingerprints(step)
    if fresh:
        _move_aside(step)
    _situation(step, fingerprints)  # before the folder is made, so that a wrong command leaves no trace
    with RunFolder(step.output).lock():
        situation = _situation(step, fingerprints)  # again, now that nobody else can change it
        if situation.differences and not accept_drift:
            raise DriftError(step.output, situation.differences, finished=situation.action == "skip")
        if situation.action == "skip" and situation.record:
            return _skip(step, situation, situation.record)
        return _work(step, situation)


def _canonical(step: Step) -> Step:
    """The step with its config as JSON gives it back, so that a recorded and a fresh config compare equal."""
    return replace(step, config=json.loads(json.dumps(dict(step.config))))


def _fingerprints(step: Step) -> dict[str, str]:
    return {name: _input_fingerprint(step, name, Path(path)) for name, path in step.inputs.items()}


def _input_fingerprint(step: Step, name: str, path: Path) -> str:
    makes = f" Make it first: {step.makers[name]}" if name in step.makers else ""
    shown = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    if shown != str(path):  # files below an input may have any names, but its own path is written into records
        raise UsageError(f"{name} {shown} is not UTF-8. Rename it, or give a link to it another name.")
    folder = run_folder_of(path)
    record = read_record(folder)
    if record and record.status != "finished":
        again = f" Finish it first: {record.command}" if record.command else makes
        raise MissingError(f"{name} {path} is not finished (its state is {record.status!r}).{again}")
    if not path.exists():
        setting, _, place = name.rpartition(".")
        where = f"{setting}=[PATH, ...]" if place.isdigit() else f"{name}=PATH"
        made = f". `{step.usual[name]}` makes one" if name in step.usual and not makes else ""
        raise MissingError(f"{name} {path} is not there.{makes or f' Put it there, or say where it is: {where}'}{made}")
    if files.is_sealed(product_of(path)):
        return check(path)
    if path.is_dir() and not any(path.iterdir()):
        raise MissingError(f"{name} {path} is an empty folder.{makes}")
    return files.fingerprint(path)


def _refuse_foreign_folder(step: Step) -> None:
    if step.output.is_file():
        raise UsageError(f"{step.output} is a file; the output must be a folder. Choose another out=...")
    if not step.output.is_dir():
        return
    of_a_killed_start = f"{files.TEMPORARY_PREFIX}*-{RECORD}"
    foreign = sorted(
        p.name for p in step.output.iterdir() if p.name not in {".lock", "log.txt"} and not p.match(of_a_killed_start)
    )
    if foreign:
        raise UsageError(
            f"{step.output} holds files that no run of puna made ({foreign[0]}, ...). Choose another out=..."
        )


def _refuse_output_among_inputs(step: Step) -> None:
    output = step.output.resolve()
    for name, path in step.inputs.items():
        inside = Path(path).resolve()
        if inside == output or output in inside.parents:
            raise UsageError(f"{name} {path} lies in the output folder {step.output}. Choose another out=...")


def _move_aside(step: Step) -> None:
    if not step.output.exists() or (step.output.is_dir() and not any(step.output.iterdir())):
        return
    if not (step.output / RECORD).is_file():
        _refuse_foreign_folder(step)
    with RunFolder(step.output).lock():
        number = 1
        while (aside := step.output.with_name(f"{step.output.name}.old-{number}")).exists():
            number += 1
        step.output.rename(aside)
    console.say(f"moved {step.output} aside to {aside}")


def _skip(step: Step, situation: Situation, record: Record) -> Outcome:
    try:
        fingerprint = files.fingerprint(step.output)
        if files.is_sealed(product_of(step.output)):
            fingerprint = check(step.output)
    except CorruptError as error:
        raise CorruptError(f"{error} `{step.command or step.stage} --fresh` makes it again.") from error
    if fingerprint != record.output:
        raise CorruptError(
            f"{step.output} was changed after it was finished: its fingerprint is {fingerprint[:12]}, recorded is "
            f"{(record.output or 'none')[:12]}. Restore it, or make it again with --fresh."
        )
    if situation.differences:
        entry = accept(record, step, situation.fingerprints, situation.differences)
        write_record(step.output, replace(record, accepted=[*record.accepted, entry]))
        console.say(f"{step.output} is kept although it drifted:")
        for difference in situation.differences:
            console.say(f"  - {difference}")
    else:
        console.say(f"{step.output} is finished ({console.short_time(record.seconds)}), nothing to do")
    return Outcome("skip", step.output, fingerprint, record.seconds)


def _work(step: Step, situation: Situation) -> Outcome:
    folder = RunFolder(step.output)
    files.remove_temporaries(step.output)
    (step.output / files.SEAL).unlink(missing_ok=True)  # a kill between the seal and the record left it behind
    record = _begin(step, situation)
    write_record(step.output, record)
    start = time.monotonic()

    def spent() -> float:
        return round(record.seconds + time.monotonic() - start, 3)

    with folder.logging():
        if situation.record:
            _tell_resume(step, situation, situation.record)
        try:
            step.run(folder)
            fingerprint = _seal(step)
        except (Stopped, KeyboardInterrupt):
            _note_end(step, replace(record, status="stopped", seconds=spent()))
            console.say(f"{step.output} is unfinished; the same command goes on from there")
            raise
        except (UsageError, MissingError):
            if situation.record is None and _is_empty(step.output):
                _forget(step.output)
            else:
                _note_end(step, replace(record, status="failed", seconds=spent()))
            raise
        except Exception as error:
            _note_end(step, replace(record, status="failed", seconds=spent(), error=_told(error, step)))
            raise
    record = replace(record, status="finished", output=fingerprint, seconds=spent(), finished=_now())
    write_record(step.output, record)
    return Outcome(situation.action, step.output, fingerprint, record.seconds)


def _note_end(step: Step, record: Record) -> None:
    """Write how the work ended; where that cannot be written (a full disk), the end itself is what is told."""
    try:
        write_record(step.output, record)
    except PunaError as error:
        console.warn(f"its end is not recorded: {error}")


def _is_empty(folder: Path) -> bool:
    """Whether a run made nothing: there are only the files that say that it began."""
    return all(path.name in _BEGUN or path.is_dir() for path in folder.rglob("*"))


def _forget(folder: Path) -> None:
    """A run that was refused before it made anything does not keep its folder from the corrected command."""
    for name in (RECORD, "config.toml", "log.txt"):
        (folder / name).unlink(missing_ok=True)


def _begin(step: Step, situation: Situation) -> Record:
    old = situation.record
    inputs = {
        name: Input(Path(os.path.relpath(path, step.output)).as_posix(), situation.fingerprints[name])
        for name, path in step.inputs.items()
    }
    accepted = list(old.accepted) if old else []
    if old and situation.differences:
        accepted.append(accept(old, step, situation.fingerprints, situation.differences))
    return Record(
        stage=step.stage,
        name=step.name,
        version=step.version,
        status="running",
        config=dict(step.config),
        inputs=inputs,
        command=step.command,
        puna=puna.__version__,
        started=old.started if old else _now(),
        session_started=time.time(),
        seconds=_seconds_so_far(step.output, old) if old else 0.0,
        accepted=accepted,
    )


def _seconds_so_far(folder: Path, record: Record) -> float:
    """Working time of earlier sessions. A killed one said nothing; its last written file tells how long it lived."""
    if record.status != "running":
        return record.seconds
    last = max((p.stat().st_mtime for p in folder.rglob("*") if p.is_file()), default=record.session_started)
    return round(record.seconds + max(0.0, last - record.session_started), 3)


def _tell_resume(step: Step, situation: Situation, old: Record) -> None:
    if old.refused:
        console.say(f"{step.output} ended with a no, and is asked again. It said: {old.refused}")
    else:
        how = "was killed or is lost" if old.status == "running" else old.status
        console.say(f"{step.output} is unfinished (its last run {how}): resuming")
    for difference in situation.differences:
        console.say(f"  - {difference}")


def _seal(step: Step) -> str:
    if not files.is_sealed(product_of(step.output)):
        return files.seal(step.output, kind=step.stage)
    return files.fingerprint(step.output)


def _told(error: Exception, step: Step) -> str:
    """One line for the record; an error that nobody foresaw leaves its traceback in the log and says where."""
    if not isinstance(error, PunaError):
        logging.getLogger("puna").error("unexpected error", exc_info=error)
        error.add_note(f"log: {step.output / 'log.txt'}")
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
