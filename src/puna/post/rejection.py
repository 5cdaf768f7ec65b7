"""Rejection sampling: draw K answers to each task, let a verifier or a reward model judge, keep what teaches something.

The generator is a Protocol and the verifier a function, so this file knows neither model nor task. Tasks go to the
generator in calls of a few prompts, each prompt K times. A call's seed is a hash of the recipe's seed and the ids of
its tasks, and inside a call every answer has its own stream: the same tasks and settings draw the same answers.

`samples.jsonl` grows by one call at a time, and begins with a line that names the settings. A killed run keeps the
whole calls and draws the rest, which gives the set that an undisturbed run gives. When all tasks are done the rows are
chosen (`post/selection.py`) and written: `sft.jsonl`, `preferences.jsonl`, `statistics.json`.

Rows are text, as all offline data is. They are not for on-policy gradients, which need the sampled tokens themselves.

Source: The Llama 3 Herd of Models (2407.21783), sections 4.1.4 and 4.2.2 (K between 10 and 30).
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import Field

from puna.core import config as configs
from puna.core import console
from puna.core.config import Config, Shares
from puna.core.dialog import Dialog
from puna.core.errors import ConfigError, MissingError, Stopped, UsageError
from puna.core.files import atomic_open, write_json
from puna.core.generator import Completion, Generator, Sampling
from puna.core.interrupt import StopRequest
from puna.post.preference_rows import Preference
from puna.post.selection import (
    Answer,
    Samples,
    Selection,
    Statistics,
    best_rows,
    imitation_rows,
    preference_pairs,
    scored_pairs,
    summarize,
)


class RejectionConfig(Config):
    """How answers are drawn, and what becomes of them."""

    samples_per_task: int = Field(default=16, ge=1)
    """Answers to each task; Llama 3 draws 10 to 30."""
    temperature: float = Field(default=0.8, ge=0.0)
    """Temperature of the draws."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus of the draws."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens."""
    seed: int = 0
    """Seed of the draws."""
    tasks_per_call: int = Field(default=16, ge=1)
    """Tasks handed to the generator at a time; a killed run draws at most these again."""
    answers_per_task: int = Field(default=1, ge=0)
    """Distinct right answers of a task that become fine-tuning rows."""
    pairs_per_task: int = Field(default=1, ge=0)
    """Pairs of a right and a wrong answer of a task."""
    right_between: Shares = (0.0, 1.0)
    """Bounds, both included, of a task's share of right answers; the others, too hard or too easy, give no rows."""
    use_reference: bool = True
    """When no answer to a task is right, its reference answer takes the chosen side of a pair."""
    selection: Selection = "frequent"
    """Which right answers are imitated: the most `frequent`, the `best` by the reward model, or any (`random`: as many
    from the same answers, to see what the reward model's choice is worth)."""
    best_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the fine-tuning rows over all tasks that is kept, the highest scored ones."""


class Verdict(Protocol):
    """A judgement with its reason."""

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        ...

    @property
    def reason(self) -> str:
        """Why not, in few words that can be counted."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """Something to answer.

    Attributes:
        id: unique name.
        prompt: ends with a user or a tool.
        reference: a right answer, when one is known.
        payload: whatever the verifier needs.
    """

    id: str
    prompt: Dialog
    reference: str | None = None
    payload: Any = None


Verifier = Callable[[Task, str], Verdict]


@runtime_checkable
class BatchVerifier(Protocol):
    """A verifier that judges many answers faster than one after another."""

    def judge_all(self, pairs: Sequence[tuple[Task, str]]) -> Sequence[Verdict]:
        """The verdict on each answer to its task."""
        ...


def verdicts(verifier: Verifier, pairs: Sequence[tuple[Task, str]]) -> Sequence[Verdict]:
    """The verdict on each answer to its task, all at once where the verifier can."""
    if isinstance(verifier, BatchVerifier):
        return verifier.judge_all(pairs)
    return [verifier(task, answer) for task, answer in pairs]


Scores = Callable[[Sequence[tuple[Dialog, Sequence[str]]]], Sequence[Sequence[float]]]
"""A reward model: for each prompt with its answers, the score of each."""


@dataclass(frozen=True, slots=True)
class RejectionResult:
    """What was written.

    Attributes:
        statistics: pass@k and the rest.
        n_imitations: rows of `sft.jsonl`.
        n_pairs: rows of `preferences.jsonl`.
        n_reference_pairs: those whose chosen side is a reference answer.
    """

    statistics: Statistics
    n_imitations: int
    n_pairs: int
    n_reference_pairs: int


def reject(
    tasks: Sequence[Task],
    generator: Generator,
    verifier: Verifier | None,
    config: RejectionConfig,
    folder: Path | str,
    *,
    scores: Scores | None = None,
    model_fingerprint: str = "",
    scores_fingerprint: str = "",
) -> RejectionResult:
    """Samples, verifies and selects; goes on where a killed call stopped.

    Args:
        tasks: what to answer; ids are unique.
        generator: draws the answers.
        verifier: judges a finished answer; without one every finished answer may be imitated, and scores decide.
        config: how many, how, and what to keep.
        folder: receives `samples.jsonl`, and at the end `sft.jsonl`, `preferences.jsonl` and `statistics.json`.
        scores: a reward model.
        model_fingerprint: content hash of the generator's model, so that samples of two models are never mixed.
        scores_fingerprint: content hash of the reward model.

    Returns:
        Counts and statistics.

    Raises:
        ConfigError: Tasks or settings cannot be used.
        UsageError: The folder holds samples of other tasks, settings or another model.
        Stopped: Asked to stop; the same call goes on.
    """
    folder = Path(folder)
    _check(tasks, config, has_verifier=verifier is not None, has_scores=scores is not None)
    path = folder / "samples.jsonl"
    origin = {"generator": generator.name, "model": model_fingerprint, "reward_model": scores_fingerprint}
    done = _resume(path, tasks, config, origin)
    if done:
        console.say(f"going on after {len(done)} of {len(tasks)} tasks in {path}")
    calls = [tasks[start : start + config.tasks_per_call] for start in range(0, len(tasks), config.tasks_per_call)]
    with StopRequest() as stop, console.progress("sampling", total=len(tasks), unit="tasks") as progress:
        progress.advance(len(done))
        for call in calls[-(-len(done) // config.tasks_per_call) :]:
            if stop.requested:
                raise Stopped(f"stopped after {len(done)} of {len(tasks)} tasks; the same command goes on")
            drawn = _draw(call, generator, verifier, config)
            if scores is not None:
                drawn = _scored(drawn, scores)
            _append(path, drawn)
            done += drawn
            progress.advance(len(call))
    return _write(done, config, folder, by_score=verifier is None)


def _check(tasks: Sequence[Task], config: RejectionConfig, *, has_verifier: bool, has_scores: bool) -> None:
    problems = []
    if not has_verifier and config.right_between != (0.0, 1.0):
        problems.append("right_between needs a verifier: here nothing says which answers are right; leave it out")
    if not (has_verifier or has_scores):
        problems.append("nothing judges the answers; give a verifier or a reward model")
    if not has_scores and (config.selection == "best" or config.best_share < 1.0):
        problems.append(
            f"selection is {config.selection!r} and best_share {config.best_share:g}, which need the scores of a "
            "reward model; set reward_model, or selection=frequent and best_share=1"
        )
    if not tasks:
        problems.append("there are no tasks to sample")
    if len({task.id for task in tasks}) < len(tasks):
        twice = next(task.id for n, task in enumerate(tasks) if task.id in {other.id for other in tasks[:n]})
        problems.append(f"task {twice!r} occurs twice; ids must be unique")
    if config.temperature == 0.0 and config.samples_per_task > 1:
        problems.append(
            f"samples_per_task is {config.samples_per_task} and temperature is 0, which draws the same answer each "
            "time; raise temperature, or set samples_per_task=1"
        )
    if problems:
        raise ConfigError(problems, title="sampling cannot begin")


def _draw(
    call: Sequence[Task], generator: Generator, verifier: Verifier | None, config: RejectionConfig
) -> list[Samples]:
    ids = json.dumps([config.seed, *(task.id for task in call)])
    sampling = Sampling(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=int.from_bytes(hashlib.sha256(ids.encode()).digest()[:4], "big"),
    )
    k = config.samples_per_task
    completions = generator.complete([task.prompt for task in call for _ in range(k)], sampling)
    answers = _judge([task for task in call for _ in range(k)], completions, verifier)
    return [
        Samples(task.id, task.prompt, task.reference, tuple(answers[n * k : (n + 1) * k]))
        for n, task in enumerate(call)
    ]


def _scored(drawn: Sequence[Samples], scores: Scores) -> list[Samples]:
    """The same samples with the reward model's word on each answer."""
    given = scores([(samples.prompt, [answer.text for answer in samples.answers]) for samples in drawn])
    return [
        replace(s, answers=tuple(replace(a, score=float(x)) for a, x in zip(s.answers, row, strict=True)))
        for s, row in zip(drawn, given, strict=True)
    ]


def _judge(tasks: Sequence[Task], completions: Sequence[Completion], verifier: Verifier | None) -> list[Answer]:
    """Each completion as an answer to its task; an unfinished one is wrong and is not shown to the verifier."""
    texts = [completion.text.strip() for completion in completions]
    done = [completion.finish_reason == "stop" for completion in completions]
    pairs = [(task, text) for task, text, finished in zip(tasks, texts, done, strict=True) if finished]
    judged = iter(verdicts(verifier, pairs)) if verifier else None
    answers = []
    for text, finished, completion in zip(texts, done, completions, strict=True):
        correct, reason = None if verifier is None else False, "did not end"
        if finished and judged is None:
            reason = "finished" if text else "empty"
        elif finished and judged is not None:
            verdict = next(judged)
            correct, reason = bool(verdict.correct), verdict.reason
        answers.append(Answer(text, len(completion.tokens), finished, correct, reason))
    return answers


def _settings(tasks: Sequence[Task], config: RejectionConfig, origin: dict[str, str]) -> dict[str, Any]:
    """What the samples depend on. Which rows are chosen from them may change without sampling again."""
    drawing = ("samples_per_task", "temperature", "top_p", "max_tokens", "seed", "tasks_per_call")
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(json.dumps([task.id, task.prompt.as_messages(), task.reference]).encode())
    values = configs.as_dict(config)
    return origin | {name: values[name] for name in drawing} | {"tasks": digest.hexdigest()}


def _resume(path: Path, tasks: Sequence[Task], config: RejectionConfig, origin: dict[str, str]) -> list[Samples]:
    """The samples of the whole calls in the file, which is cut back to them; a new file when there is none."""
    settings = _settings(tasks, config, origin)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break  # cut short by a kill
    done: list[Samples] = []
    if records:
        found = records[0].get("settings", {}) if isinstance(records[0], dict) else {}
        differing = [key for key in settings if found.get(key) != settings[key]]
        if differing:
            raise UsageError(
                f"{path} holds samples made with other settings ({', '.join(differing)}). Choose another folder, or "
                "delete the file to sample anew."
            )
        whole = len(records) - 1
        if whole < len(tasks):
            whole -= whole % config.tasks_per_call
        done = [_from_record(task, record) for task, record in zip(tasks, records[1 : 1 + whole], strict=False)]
    with atomic_open(path) as file:
        file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in [{"settings": settings}, *map(_record, done)])
    return done


def _record(samples: Samples) -> dict[str, Any]:
    answers = [asdict(answer) for answer in samples.answers]
    return {
        "task": samples.task,
        "answers": [{k: v for k, v in answer.items() if k != "correct" or v is not None} for answer in answers],
    }


def _from_record(task: Task, record: dict[str, Any]) -> Samples:
    assert record["task"] == task.id, f"samples.jsonl has {record['task']!r} where {task.id!r} is expected"
    return Samples(
        task.id,
        task.prompt,
        task.reference,
        tuple(Answer(**{"correct": None} | answer) for answer in record["answers"]),
    )


def right_shares(folder: Path | str) -> dict[str, float]:
    """The share of right answers to each task of a finished run of `reject`: how hard the model finds it.

    Args:
        folder: Where `samples.jsonl` lies.

    Raises:
        MissingError: It is not there.
        UsageError: Nothing verified its answers.
    """
    path = Path(folder) / "samples.jsonl"
    if not path.exists():
        raise MissingError(f"{path} is not there; make it with `puna sample RECIPE`.")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    if any("correct" not in answer for record in records for answer in record["answers"]):
        raise UsageError(
            f"nothing verified the answers in {path}: a reward model alone says which is better, not right"
        )
    return {r["task"]: sum(a["correct"] for a in r["answers"]) / len(r["answers"]) for r in records}


def _append(path: Path, drawn: Sequence[Samples]) -> None:
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write("".join(json.dumps(_record(samples), ensure_ascii=False) + "\n" for samples in drawn))
        file.flush()
        os.fsync(file.fileno())


def _write(done: Sequence[Samples], config: RejectionConfig, folder: Path, *, by_score: bool) -> RejectionResult:
    low, high = config.right_between
    taught = [samples for samples in done if low <= samples.n_correct / len(samples.answers) <= high]
    rows = [
        row
        for samples in taught
        for row in imitation_rows(samples, limit=config.answers_per_task, selection=config.selection, seed=config.seed)
    ]
    if config.best_share < 1.0:
        rows = best_rows(rows, config.best_share)
    pairs = list[Preference]()
    for samples in taught:
        if by_score:
            pairs += scored_pairs(samples, limit=config.pairs_per_task)
        else:
            pairs += preference_pairs(samples, limit=config.pairs_per_task, use_reference=config.use_reference)
    statistics = summarize(done)
    with atomic_open(folder / "sft.jsonl") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_open(folder / "preferences.jsonl") as file:
        file.writelines(json.dumps(pair.as_row(), ensure_ascii=False) + "\n" for pair in pairs)
    n_reference = sum(pair.source == "reference" for pair in pairs)
    result = RejectionResult(statistics, len(rows), len(pairs), n_reference)
    write_json(folder / "statistics.json", asdict(result))
    return result
