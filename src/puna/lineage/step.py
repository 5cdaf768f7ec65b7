"""A step: a piece of work with a name, settings, inputs and one output folder; and how two states of it differ.

The identity of a step is its author's `name` and `version`. Beside it stand the config (settings that decide the
output) and the inputs, each with a fingerprint of its content. Where files lie and which machine works enters neither:
the same work elsewhere is the same step.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.core.run_folder import RunFolder
from puna.lineage.artifact import Record

ABSENT = "(absent)"


@dataclass(frozen=True)
class Step:
    """A piece of work.

    Attributes:
        stage: The verb, for messages: `train`.
        name: The author's name.
        version: The author's version; raise it when the same settings shall give another output.
        config: Settings that decide the output, in JSON types.
        inputs: Path of every input by config key.
        output: The run folder.
        run: The work itself; called again on an unfinished folder, it resumes.
        command: What a user types to run this step.
        makers: For inputs known to come from another step, the command that makes them.
        usual: For other inputs, the command that makes their kind: `puna tokenize train RECIPE`.
    """

    stage: str
    name: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    output: Path
    run: Callable[[RunFolder], None]
    command: str = ""
    makers: Mapping[str, str] = field(default_factory=dict)
    usual: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """One thing that is not as recorded."""

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


class DriftError(UsageError):
    """The output folder was made with other settings or other inputs.

    Args:
        folder: The output folder.
        differences: What changed.
        finished: Whether the recorded run had finished.
    """

    def __init__(self, folder: Path, differences: Sequence[Difference], *, finished: bool) -> None:
        self.folder, self.differences, self.finished = folder, tuple(differences), finished
        state = "is finished, but was made" if finished else "is unfinished and was begun"
        keep = "keep and use what is there" if finished else "go on with the new settings from what is there"
        super().__init__(
            "\n".join(
                [
                    f"{folder} {state} with other settings or inputs:",
                    *(f"  - {difference}" for difference in differences),
                    f"Use --accept-drift to {keep}, --fresh to move it aside and begin again, or another out=...",
                ]
            )
        )


def compare(record: Record, step: Step, fingerprints: Mapping[str, str]) -> list[Difference]:
    """What differs between a recorded run and the step at hand.

    Args:
        record: What was recorded.
        step: What shall run.
        fingerprints: Content fingerprint of each input of `step`.

    Returns:
        Differences in a stable order: name, version, settings by key, inputs by key. Empty when nothing drifted.
    """
    if _accepted(record, step, fingerprints):
        return []
    old_inputs = {name: entry.fingerprint for name, entry in record.inputs.items()}
    return [
        *_differ({"name": record.name, "version": record.version}, {"name": step.name, "version": step.version}),
        *_differ(record.config, step.config),
        *_differ({f"input {k}": v[:12] for k, v in old_inputs.items()}, _labelled(fingerprints)),
    ]


def accept(record: Record, step: Step, fingerprints: Mapping[str, str], drift: Sequence[Difference]) -> dict[str, Any]:
    """The entry for `Record.accepted`: from now on this state counts as equal to the recorded one."""
    return {"differences": [str(d) for d in drift], **_state(step, fingerprints)}


def _state(step: Step, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    state = {"name": step.name, "version": step.version, "config": dict(step.config), "inputs": dict(fingerprints)}
    return {key: state[key] for key in sorted(state)}


def _accepted(record: Record, step: Step, fingerprints: Mapping[str, str]) -> bool:
    state = _state(step, fingerprints)
    return any({k: v for k, v in entry.items() if k != "differences"} == state for entry in record.accepted)


def _labelled(fingerprints: Mapping[str, str]) -> dict[str, str]:
    return {f"input {name}": value[:12] for name, value in fingerprints.items()}


def _differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [*before, *(key for key in after if key not in before)]
    return [
        Difference(key, _shown(before.get(key, ABSENT)), _shown(after.get(key, ABSENT)))
        for key in keys
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    children: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, list) and any(isinstance(entry, Mapping | list) for entry in value):
        children = [(str(index), child) for index, child in enumerate(value)]
    if not children and prefix:
        yield prefix, value
    for key, child in children:
        yield from _leaves(child, f"{prefix}.{key}" if prefix else key)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."
