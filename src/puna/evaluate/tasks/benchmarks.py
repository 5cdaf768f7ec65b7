"""Published benchmarks from the files that the user has: MMLU and GSM8K, in the protocol of the Llama 3 model card.

MMLU, base: five examples, likelihood of the letter, average over subjects (macro). MMLU, instruct: the examples as
turns, the letter is generated. GSM8K: examples with their working, greedy, up to 512 tokens; the number
after `####` or `answer is`.

Source: meta-llama/llama3, `eval_details.md`.
"""

import re
from pathlib import Path
from typing import Literal

from puna.core.errors import CorruptError, MissingError
from puna.core.generator import Sampling
from puna.evaluate import judges
from puna.evaluate.few_shot import TEXT_STOP, Shot, dialog_prompt, text_prompt
from puna.evaluate.task import AnswerItem, ChoiceItem, Task
from puna.evaluate.tasks.rows import Row, field, read_csv, read_jsonl

Style = Literal["text", "dialog"]
LETTERS = ("A", "B", "C", "D")


def mmlu_task(
    path: Path, *, name: str = "mmlu", n_shot: int = 5, style: Style = "text", limit: int | None = None
) -> Task:
    """MMLU from its folder.

    Args:
        path: Folder with `test/SUBJECT_test.csv` and `dev/SUBJECT_dev.csv`.
        name: The task's name.
        n_shot: Examples from `dev`, in their order.
        style: `text` scores the letters, `dialog` lets the model write one.
        limit: Only the first so many items of each subject.

    Returns:
        A task with a group a subject, averaged over subjects.

    Raises:
        MissingError: The folder or its files are not there.
        CorruptError: A row has not six columns, or its answer is no letter.
    """
    files = sorted((path / "test").glob("*_test.csv"))
    if not files:
        raise MissingError(f"{path}/test has no *_test.csv; give the folder with MMLU's test/ and dev/")
    items: list[ChoiceItem | AnswerItem] = []
    for file in files:
        subject = file.name.removesuffix("_test.csv")
        dev = path / "dev" / f"{subject}_dev.csv"
        if n_shot and not dev.is_file():
            raise MissingError(f"{dev} is not there, and n_shot is {n_shot}; add it, or set n_shot=0")
        shots = [_mmlu_shot(row, dev, n) for n, row in enumerate(read_csv(dev, 6)[:n_shot], start=1)] if n_shot else []
        title = subject.replace("_", " ")
        instruction = f"The following are multiple choice questions (with answers) about {title}."
        for number, row in enumerate(read_csv(file, 6)[:limit], start=1):
            asked = _mmlu_shot(row, file, number)
            key = f"{subject}/{number}"
            if style == "text":
                blocks = [
                    instruction,
                    *(f"{s.question}\nAnswer: {s.answer}" for s in shots),
                    f"{asked.question}\nAnswer:",
                ]
                prompt = "\n\n".join(blocks)
                continuations = tuple(f" {one}" for one in LETTERS)
                items.append(ChoiceItem(key, (prompt,) * 4, continuations, LETTERS.index(asked.answer), group=subject))
            else:
                dialog = dialog_prompt(shots, asked.question, system=f"{instruction} Answer with a letter.")
                items.append(AnswerItem(key, dialog, asked.answer, judges.letter(asked.answer, LETTERS), group=subject))
    return Task(
        name,
        tuple(items),
        "acc" if style == "text" else "exact_match",
        average="macro",
        sampling=Sampling(max_tokens=16, temperature=0.0),
        n_shot=n_shot,
        about="57 subjects, four choices, average over subjects",
    )


def _mmlu_shot(row: list[str], path: Path, number: int) -> Shot:
    question, *choices, answer = row
    if answer.strip() not in LETTERS:
        raise CorruptError(f"{path}, row {number}: the answer is {answer!r}, a letter A to D is needed")
    lines = [question.strip(), *(f"{one}. {text}" for one, text in zip(LETTERS, choices, strict=True))]
    return Shot("\n".join(lines), answer.strip())


def gsm8k_task(
    path: Path,
    *,
    name: str = "gsm8k",
    shots: Path | None = None,
    n_shot: int = 8,
    style: Style = "dialog",
    limit: int | None = None,
) -> Task:
    """GSM8K from its JSON lines.

    Args:
        path: `test.jsonl`.
        name: The task's name.
        shots: `train.jsonl`; the first `n_shot` are the examples.
        n_shot: Examples, with their working; 0 when `shots` is None.
        style: `text` or `dialog`.
        limit: Only the first so many items.

    Returns:
        A task with `exact_match` on the final number.
    """
    solved = []
    if n_shot and shots:
        for number, row in enumerate(read_jsonl(shots, limit=n_shot), start=1):
            question, working, target = _gsm8k_row(row, shots, number)
            solved.append(Shot(question, f"{working} The answer is {target}."))
    items = []
    for number, row in enumerate(read_jsonl(path, limit=limit), start=1):
        question, _, target = _gsm8k_row(row, path, number)
        prompt = text_prompt(solved, question) if style == "text" else dialog_prompt(solved, question)
        items.append(AnswerItem(str(number), prompt, target, judges.final_number(target)))
    stop = TEXT_STOP if style == "text" else ()
    sampling = Sampling(max_tokens=512, temperature=0.0, stop=stop)
    about = "grade-school sums, the final number"
    return Task(name, tuple(items), "exact_match", sampling=sampling, n_shot=len(solved), about=about)


def _gsm8k_row(row: Row, path: Path, number: int) -> tuple[str, str, str]:
    answer = field(row, "answer", path, number)
    working, mark, target = answer.rpartition("####")
    target = target.strip().replace(",", "")
    if not mark or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", target):
        raise CorruptError(f"{path}, row {number}: the answer does not end in '#### NUMBER'")
    working = re.sub(r"<<.*?>>", "", working)
    return field(row, "question", path, number), " ".join(working.split()), target
