"""Run tasks: ask the generator in batches, save every answer as it comes, resume where it stopped.

    FOLDER/samples.jsonl   one record an item: prompt, answer, scores, reason; at the end in the order of the tasks
    FOLDER/results.json    every figure with n and its interval (report.py)

An item's record carries a fingerprint of what was asked (model, prompt, sampling, target). A later run asks only for
what has no record with that fingerprint; failed items are asked again. Batches are fixed by the task alone, longest
prompts first, so that an interrupted run draws the same answers as an undisturbed one. A failing batch is asked item by
item; an item that still fails is recorded with its error, left out of the figures and counted in the report.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from puna.core import console
from puna.core.errors import Stopped
from puna.core.files import atomic_open, write_json
from puna.core.generator import Completion, Generator, Prompt, Score
from puna.core.interrupt import StopRequest
from puna.evaluate.report import Results, summarise
from puna.evaluate.task import AnswerItem, ChoiceItem, Item, PassageItem, Task, shown

Record = dict[str, Any]
SAMPLES = "samples.jsonl"
RESULTS = "results.json"


def evaluate(
    generator: Generator,
    tasks: Sequence[Task],
    folder: Path | str,
    *,
    batch_size: int = 32,
    model: str = "",
    skipped: dict[str, str] | None = None,
) -> Results:
    """Run every task and write samples and results.

    Args:
        generator: The model under test.
        tasks: With unique names.
        folder: Where the files go; made when absent.
        batch_size: Items asked at once.
        model: Identity of the weights (a fingerprint), so that another model's answers are never taken up; the
            generator's name when empty.
        skipped: Tasks that could not be built, with the reason; they are listed in the results.

    Returns:
        The figures, also written to `results.json`.

    Raises:
        Stopped: A signal asked to stop; answers so far are saved.
    """
    assert batch_size > 0, f"batch_size is {batch_size}"
    assert len({task.name for task in tasks}) == len(tasks), "two tasks have the same name"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity = model or generator.name
    samples = folder / SAMPLES
    known = _read_samples(samples)
    total = sum(len(task.items) for task in tasks)
    records: dict[tuple[str, str], Record] = {}
    with (
        StopRequest() as stop,
        samples.open("a", encoding="utf-8") as file,
        console.progress("evaluate", total=total, unit="items") as bar,
    ):
        for task in tasks:
            bar.note(task.name)
            for batch in _batches(task, batch_size):
                wanted = {item.id: _fingerprint(identity, task, item) for item in batch}
                missing = [item for item in batch if _is_new(known.get((task.name, item.id)), wanted[item.id])]
                if missing and stop.requested:
                    raise Stopped(f"stopped; the answers so far are in {samples}. Run the same command to go on.")
                # Sampled answers depend on their place in the batch, so those batches are asked as a whole.
                asked = list(batch) if missing and task.sampling.temperature > 0 else missing
                fresh = {r["id"]: r for r in _ask(generator, task, asked)}
                for item in missing:
                    known[task.name, item.id] = {**fresh[item.id], "fingerprint": wanted[item.id]}
                # one write for a batch: a kill leaves it whole or absent, so that the rest is asked in the same company
                file.write("".join(_line(known[task.name, item.id]) for item in missing))
                file.flush()
                bar.advance(len(batch))
            records.update({(task.name, item.id): known[task.name, item.id] for item in task.items})
    with atomic_open(samples) as file:
        file.writelines(map(_line, records.values()))
    per_task = [[records[task.name, item.id] for item in task.items] for task in tasks]
    results = Results(
        model=generator.name,
        tasks=tuple(summarise(task, rows) for task, rows in zip(tasks, per_task, strict=True)),
        skipped=dict(skipped or {}),
    )
    write_json(folder / RESULTS, results.as_json())
    return results


def read_samples(folder: Path | str) -> list[Record]:
    """Every whole record of a run, in the order of the file."""
    return list(_read_samples(Path(folder) / SAMPLES, mend=False).values())


def _read_samples(path: Path, *, mend: bool = True) -> dict[tuple[str, str], Record]:
    """Records by task and id, later ones win; a line cut short by a kill is dropped, and cut off when `mend`."""
    records: dict[tuple[str, str], Record] = {}
    if not path.exists():
        return records
    whole = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        whole += len(line)
        try:
            record = json.loads(line)
            records[record["task"], record["id"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    if mend and whole < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(whole)
    return records


def _line(record: Record) -> str:
    """A record as a line of JSON; half a surrogate pair, which UTF-8 cannot hold, stays escaped."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n"


def _is_new(record: Record | None, fingerprint: str) -> bool:
    return record is None or record.get("fingerprint") != fingerprint or "error" in record


def _batches(task: Task, size: int) -> Iterator[Sequence[Item]]:
    ordered = sorted(task.items, key=_length, reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _length(item: Item) -> int:
    match item:
        case ChoiceItem():
            return max(map(_prompt_length, item.prompts)) + max(map(len, item.continuations))
        case AnswerItem():
            return _prompt_length(item.prompt)
        case PassageItem():
            return len(item.text)


def _prompt_length(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(m.content) for m in prompt.messages)


def _fingerprint(identity: str, task: Task, item: Item) -> str:
    match item:
        case ChoiceItem():
            asked: Any = [[shown(p) for p in dict.fromkeys(item.prompts)], item.prompts.count(item.prompts[0])]
            asked += [item.continuations, item.gold]
        case AnswerItem():
            asked = [shown(item.prompt), item.target, asdict(task.sampling)]
        case PassageItem():
            asked = item.text
    text = json.dumps([identity, item.group, item.cluster, asked], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _ask(generator: Generator, task: Task, items: Sequence[Item]) -> Iterator[Record]:
    """Records of the items; when the batch fails, of each item alone."""
    if not items:
        return
    answer = _ANSWER[type(items[0])]
    try:
        for item, found in zip(items, answer(generator, task, items), strict=True):
            yield _record(task, item, found)
    except Exception as error:
        if len(items) == 1:
            console.warn(f"task {task.name}, item {items[0].id}: {type(error).__name__}: {error}")
            yield _record(task, items[0], {"error": f"{type(error).__name__}: {error}"})
            return
        for item in items:
            yield from _ask(generator, task, [item])


def _record(task: Task, item: Item, found: Record) -> Record:
    record: Record = {"task": task.name, "id": item.id}
    for name in ("group", "cluster"):
        if getattr(item, name):
            record[name] = getattr(item, name)
    return {**record, **found}


def _answer_choices(generator: Generator, task: Task, items: Sequence[Item]) -> list[Record]:
    choices = [item for item in items if isinstance(item, ChoiceItem)]
    prompts = [prompt for item in choices for prompt in item.prompts]
    scores = iter(generator.logprobs(prompts, [text for item in choices for text in item.continuations]))
    return [_choice_record(item, [next(scores) for _ in item.continuations]) for item in choices]


def _choice_record(item: ChoiceItem, scores: Sequence[Score]) -> Record:
    logprobs = [score.logprob for score in scores]
    assert not any(map(math.isnan, logprobs)), "a log-probability is not a number"
    n_bytes = [max(1, len(text.strip().encode())) for text in item.continuations]
    per_byte = [logprob / n for logprob, n in zip(logprobs, n_bytes, strict=True)]
    chosen = logprobs.index(max(logprobs))
    if len(scores) == 1:
        hits = {"acc": float(scores[0].is_greedy)}
    else:
        hits = {"acc": float(chosen == item.gold), "acc_norm": float(per_byte.index(max(per_byte)) == item.gold)}
    return {
        "prompt": shown(item.prompts[0]),
        "choices": list(item.continuations),
        "gold": item.gold,
        "logprobs": logprobs,
        "answer": item.continuations[chosen],
        "scores": {**hits, "gold_bits_per_byte": -per_byte[item.gold] / math.log(2)},
    }


def _answer_questions(generator: Generator, task: Task, items: Sequence[Item]) -> list[Record]:
    questions = [item for item in items if isinstance(item, AnswerItem)]
    # Every batch of a sampled task has its own seed; it depends on the items alone.
    sampling = task.sampling
    if sampling.temperature > 0:
        offset = int.from_bytes(hashlib.sha256(questions[0].id.encode()).digest()[:4], "big")
        sampling = replace(sampling, seed=sampling.seed + offset)
    completions = generator.complete([item.prompt for item in questions], sampling)
    assert len(completions) == len(questions), f"{len(completions)} answers to {len(questions)} questions"
    if task.judged_at_once == 1:
        return list(map(_answer_record, questions, completions))
    with ThreadPoolExecutor(task.judged_at_once) as threads:
        return list(threads.map(_answer_record, questions, completions))


def _answer_record(item: AnswerItem, completion: Completion) -> Record:
    judgement = item.judge(completion.text)
    record = {
        "prompt": shown(item.prompt),
        "target": item.target,
        "answer": completion.text,
        "reason": judgement.reason,
        "finish_reason": completion.finish_reason,
        "tokens": len(completion.tokens),
        "scores": {"exact_match": float(judgement.correct)},
    }
    return {**record, "extracted": judgement.extracted} if judgement.extracted else record


def _answer_passages(generator: Generator, task: Task, items: Sequence[Item]) -> list[Record]:
    texts = [item.text for item in items if isinstance(item, PassageItem)]
    scores = generator.logprobs([""] * len(texts), texts)
    return [_passage_record(text, score) for text, score in zip(texts, scores, strict=True)]


def _passage_record(text: str, score: Score) -> Record:
    assert math.isfinite(score.logprob), f"the log-probability is {score.logprob}"
    n_bytes = len(text.encode())
    bits = -score.logprob / math.log(2)
    return {"bits": bits, "bytes": n_bytes, "tokens": score.n_tokens, "scores": {"bits_per_byte": bits / n_bytes}}


_ANSWER: dict[type, Callable[[Generator, Task, Sequence[Item]], list[Record]]] = {
    ChoiceItem: _answer_choices,
    AnswerItem: _answer_questions,
    PassageItem: _answer_passages,
}
