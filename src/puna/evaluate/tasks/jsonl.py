"""Any JSON-lines file as a task, described by its fields; and the row formats of common benchmarks in that form.

multiple_choice   question + choices + answer (index, letter or text)
generate          question + answer (a text, or a list of texts of which each is right)
perplexity        text
mosaic            what llm-foundry's files hold: query + choices + gold, context_options + continuation + gold,
                  context + continuation (say it greedily), context + answer + aliases
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from puna.core.errors import CorruptError
from puna.core.generator import Prompt, Sampling
from puna.evaluate import judges
from puna.evaluate.few_shot import TEXT_STOP, Shot, dialog_prompt, text_prompt
from puna.evaluate.task import AnswerItem, ChoiceItem, PassageItem, Task
from puna.evaluate.tasks.rows import Row, field, gold_index, read_jsonl

Style = Literal["text", "dialog"]


def _prompt(style: Style, shots: Sequence[Shot], question: str) -> Prompt:
    return text_prompt(shots, question) if style == "text" else dialog_prompt(shots, question)


def multiple_choice_task(
    name: str,
    path: Path,
    *,
    question: str = "question",
    choices: str = "choices",
    answer: str = "answer",
    shots: Path | None = None,
    n_shot: int = 0,
    style: Style = "text",
    limit: int | None = None,
) -> Task:
    """Likelihood of each choice's text after the question.

    Args:
        name: The task's name.
        path: JSON lines.
        question: Field with the question.
        choices: Field with the list of choices.
        answer: Field with the right one: index, letter or text.
        shots: JSON lines with solved examples of the same form; the first `n_shot` are taken.
        n_shot: Solved examples.
        style: `text` or `dialog`.
        limit: Only the first so many items.

    Returns:
        A task with `acc` and `acc_norm`.
    """

    def parse(row: Row, source: Path, number: int) -> tuple[str, list[str], int]:
        texts = field(row, choices, source, number, list)
        if not texts or not all(isinstance(t, str) and t for t in texts):
            raise CorruptError(f"{source}, row {number}: {choices!r} must be a list of texts, none of them empty")
        gold = gold_index(field(row, answer, source, number, (str, int)), texts, source, number)
        return field(row, question, source, number), texts, gold

    solved = []
    if n_shot and shots:
        for number, row in enumerate(read_jsonl(shots, limit=n_shot), start=1):
            asked, texts, gold = parse(row, shots, number)
            solved.append(Shot(asked, texts[gold]))
    lead = " " if style == "text" else ""
    items = []
    for number, row in enumerate(read_jsonl(path, limit=limit), start=1):
        asked, texts, gold = parse(row, path, number)
        prompt = _prompt(style, solved, asked)
        items.append(ChoiceItem(str(number), (prompt,) * len(texts), tuple(lead + t for t in texts), gold))
    return Task(name, tuple(items), "acc", n_shot=len(solved), about="likelihood of the choices")


def generate_task(
    name: str,
    path: Path,
    *,
    question: str = "question",
    answer: str = "answer",
    shots: Path | None = None,
    n_shot: int = 0,
    style: Style = "dialog",
    extract: str = "",
    max_tokens: int = 64,
    limit: int | None = None,
) -> Task:
    """A generated answer compared with a text.

    Args:
        name: The task's name.
        path: JSON lines.
        question: Field with the question.
        answer: Field with the right text or a list of right texts.
        shots: JSON lines with solved examples; the first `n_shot` are taken.
        n_shot: Solved examples.
        style: `text` or `dialog`.
        extract: Regular expression whose last match is compared; empty compares the first line, normalised.
        max_tokens: Bound of an answer.
        limit: Only the first so many items.

    Returns:
        A task with `exact_match`.
    """

    def parse(row: Row, source: Path, number: int) -> tuple[str, list[str]]:
        given = field(row, answer, source, number, (str, int, float, list))
        targets = [str(t) for t in (given if isinstance(given, list) else [given])]
        if not targets:
            raise CorruptError(f"{source}, row {number}: {answer!r} is an empty list")
        return field(row, question, source, number), targets

    solved = []
    if n_shot and shots:
        for number, row in enumerate(read_jsonl(shots, limit=n_shot), start=1):
            asked, targets = parse(row, shots, number)
            solved.append(Shot(asked, targets[0]))
    items = []
    for number, row in enumerate(read_jsonl(path, limit=limit), start=1):
        asked, targets = parse(row, path, number)
        judge = judges.pattern(extract, targets[0]) if extract else judges.exact(*targets)
        items.append(AnswerItem(str(number), _prompt(style, solved, asked), targets[0], judge))
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, stop=TEXT_STOP if style == "text" else ())
    return Task(name, tuple(items), "exact_match", sampling=sampling, n_shot=len(solved), about="generated, matched")


def perplexity_task(name: str, path: Path, *, text: str = "text", limit: int | None = None) -> Task:
    """Bits per byte of the texts in a JSON-lines file.

    Args:
        name: The task's name.
        path: JSON lines.
        text: Field with the text; empty texts are left out.
        limit: Only the first so many rows.

    Returns:
        A task with `bits_per_byte`.

    Raises:
        CorruptError: No row has any text.
    """
    rows = enumerate(read_jsonl(path, limit=limit), start=1)
    items = tuple(PassageItem(str(n), found) for n, row in rows if (found := field(row, text, path, n)))
    if not items:
        raise CorruptError(f"{path}: every {text!r} is empty")
    return Task(name, items, "bits_per_byte", about="likelihood of whole texts")


def mosaic_task(name: str, path: Path, *, limit: int | None = None, max_tokens: int = 32) -> Task:
    """A file in one of llm-foundry's row formats, without examples before it.

    Args:
        name: The task's name.
        path: JSON lines; the first row decides the format.
        limit: Only the first so many items.
        max_tokens: Bound of a generated answer.

    Returns:
        A task with `acc` (likelihood formats) or `exact_match` (answers with aliases).
    """
    rows = list(enumerate(read_jsonl(path, limit=limit), start=1))
    if "aliases" in rows[0][1]:
        answers = [
            AnswerItem(
                str(n),
                field(row, "context", path, n),
                field(row, "answer", path, n),
                judges.exact(field(row, "answer", path, n), *map(str, field(row, "aliases", path, n, list))),
            )
            for n, row in rows
        ]
        sampling = Sampling(max_tokens=max_tokens, temperature=0.0, stop=("\n",))
        return Task(name, tuple(answers), "exact_match", sampling=sampling, about="generated, matched with aliases")
    items = tuple(_mosaic_choice(row, path, n) for n, row in rows)
    return Task(name, items, "acc", about="likelihood of the choices")


def _mosaic_choice(row: Row, path: Path, number: int) -> ChoiceItem:
    if "context_options" in row:
        prompts = tuple(map(str, field(row, "context_options", path, number, list)))
        texts = (" " + field(row, "continuation", path, number).strip(),) * len(prompts)
    elif "choices" in row:
        texts = tuple(f" {choice}" for choice in field(row, "choices", path, number, list))
        prompts = (field(row, "query", path, number).rstrip(),) * len(texts)
    else:
        prompts = (field(row, "context", path, number).rstrip(),)
        texts = (" " + field(row, "continuation", path, number).strip(),)
    gold = gold_index(row.get("gold", 0), texts, path, number)
    return ChoiceItem(str(number), prompts, texts, gold)
