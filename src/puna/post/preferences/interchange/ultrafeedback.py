r"""UltraFeedback: scored completions, or a chosen and a rejected conversation with a score each.

    {"instruction": ..., "completions": [{"model", "response", "overall_score"}, ...]}         as it was published
    {"prompt", "prompt_id", "chosen": [...], "rejected": [...], "score_chosen", "score_rejected"}    binarized

Both are read, the second one is written, a row for each preference: `chosen` and `rejected` hold the whole
conversation, the scores differ by the strength (1 to 4), and `annotator`, `chosen-model` and `rejected-model` stand
beside them. Skips, flags, edits, notes, sides and times have no place in it.

Source: Cui et al. 2023 (arXiv 2310.01377); the columns of the data sets openbmb/UltraFeedback,
HuggingFaceH4/ultrafeedback_binarized and argilla/ultrafeedback-binarized-preferences.
"""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.post.dialogs import RowError
from puna.post.preferences.interchange.exchange import (
    PLAIN_STRENGTH,
    Collected,
    Found,
    Written,
    file_in,
    item_of,
    read_found,
)
from puna.post.preferences.records import Item, Label, Side, item_id
from puna.post.rows import Row, kind_of

ROWS = "preferences.jsonl"
TOP_SCORE = 5.0
ANNOTATOR = "ultrafeedback"


def write(items: Sequence[Item], labels: Sequence[Label]) -> Written:
    """Binarized rows, one for each preference in the order of the labels."""
    by_id = {item.id: item for item in items}
    left_out: Counter[str] = Counter()
    rows = []
    for label in labels:
        if label.winner is None:
            left_out[f"labels that {label.action}: a row is a preference"] += 1
            continue
        if label.occasion:
            left_out["repeats: a row says nothing of a second time"] += 1
            continue
        left_out["edits"] += bool(label.edit)
        left_out["reasons and notes"] += bool(label.reasons or label.note)
        rows.append(_row(by_id[label.item], label, label.winner))
    left_out["items without a preference"] = len(by_id.keys() - {x.item for x in labels if x.winner})
    left_out["that an item is a test question"] = sum(item.gold is not None for item in items)
    return Written({ROWS: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)}, +left_out)


def _row(item: Item, label: Label, winner: Side) -> dict[str, Any]:
    other: Side = "b" if winner == "a" else "a"
    models = {"a": item.model_a, "b": item.model_b}
    chosen = item.prompt.plus("assistant", item.answer(winner)).as_messages()
    return {
        "prompt": next((m.content for m in item.prompt.messages if m.role == "user"), ""),
        "prompt_id": item.id,
        "chosen": chosen,
        "rejected": item.prompt.plus("assistant", item.answer(other)).as_messages(),
        "messages": chosen,
        "score_chosen": TOP_SCORE,
        "score_rejected": TOP_SCORE - abs(label.value or 0),
        "chosen-model": models[winner],
        "rejected-model": models[other],
        "annotator": label.annotator,
        "round": item.round,
        "chosen_is": winner,
    }


def read(path: Path, names: Mapping[str, str]) -> Collected:
    """Items and labels of scored rows of either form.

    A pair of equal scores is left out. Of more than two completions each pair is an item.

    Args:
        path: A file, or a folder with `preferences.jsonl`.
        names: Not used; the columns have fixed names.

    Raises:
        ConfigError: Rows that cannot be used, each with file and line.
    """
    left_out: Counter[str] = Counter()

    def parse(row: Row) -> list[Found]:
        return _completions(row, left_out) if "completions" in row.value else _binarized(row, left_out)

    return read_found(file_in(path, ROWS), parse, what="rows", tool="UltraFeedback", left_out=left_out)


def _binarized(row: Row, left_out: Counter[str]) -> list[Found]:
    value = row.value
    conversations = [_conversation(value, key) for key in ("chosen", "rejected")]
    prompts = [conversation[:-1] for conversation in conversations]
    if prompts[0] != prompts[1]:
        raise RowError("'chosen' and 'rejected' answer different prompts")
    answers = [str(conversation[-1].get("content", "")) for conversation in conversations]
    scores = [_score(value, key) for key in ("chosen", "rejected")]
    strength = _strength(scores[0], scores[1])
    if answers[0].strip() == answers[1].strip():
        left_out["rows whose two answers are the same"] += 1
        return []
    if strength is None or strength < 0:
        left_out["rows whose chosen answer has no better score"] += 1
        return []
    chosen_is_a = value.get("chosen_is", "a") != "b"
    models = [value.get("chosen-model", ""), value.get("rejected-model", "")]
    (a, b), (model_a, model_b) = (answers, models) if chosen_is_a else (answers[::-1], models[::-1])
    item = item_of(
        {
            "id": value.get("prompt_id") if "chosen_is" in value else None,
            "prompt": prompts[0],
            "a": a,
            "b": b,
            "model_a": model_a,
            "model_b": model_b,
            "round": value.get("round"),
        }
    )
    annotator = str(value.get("annotator") or ANNOTATOR)
    return [(item, [Label(item.id, annotator, value=strength if chosen_is_a else -strength, round=item.round)])]


def _completions(row: Row, left_out: Counter[str]) -> list[Found]:
    instruction, given = row.value.get("instruction"), row.value["completions"]
    if not isinstance(given, list) or not all(isinstance(c, dict) and "response" in c for c in given):
        raise RowError("'completions' must be a list of objects with 'model', 'response' and 'overall_score'")
    found: list[Found] = []
    for first, second in itertools.combinations(given, 2):
        scores = [_number(c.get("overall_score"), "'overall_score'") for c in (first, second)]
        strength = _strength(*scores)
        if strength is None or str(first["response"]).strip() == str(second["response"]).strip():
            left_out["pairs of completions with equal scores or equal texts"] += 1
            continue
        values = {"prompt": instruction, "a": first["response"], "b": second["response"]}
        values |= {"model_a": first.get("model"), "model_b": second.get("model")}
        item = item_of(values)
        assert item.id == item_id(item.prompt, item.a, item.b), item.id
        found.append((item, [Label(item.id, ANNOTATOR, value=strength)]))
    return found


def _conversation(value: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    given = value.get(key)
    if isinstance(given, list) and len(given) > 1 and all(isinstance(message, dict) for message in given):
        if given[-1].get("role") != "assistant":
            raise RowError(f"{key!r} ends with {given[-1].get('role')!r}; it must end with the assistant's answer")
        return given
    if isinstance(given, str) and isinstance(value.get("prompt"), str):
        return [{"role": "user", "content": value["prompt"]}, {"role": "assistant", "content": given}]
    raise RowError(f"{key!r} is {kind_of(given)}; it must be a list of messages: the prompt's and the answer")


def _score(value: Mapping[str, Any], side: str) -> float | None:
    for key in (f"score_{side}", f"{side}-rating"):
        if value.get(key) is not None:
            return _number(value[key], repr(key))
    return None


def _number(value: Any, what: str) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RowError(f"{what} is {value!r}; it must be a number") from None


def _strength(first: float | None, second: float | None) -> int | None:
    """The signed strength of a difference of scores, 1 to 4; without scores the first one is better."""
    if first is None or second is None:
        return PLAIN_STRENGTH
    difference = first - second
    if not difference:
        return None
    level = min(4, max(1, round(abs(difference))))
    return level if difference > 0 else -level
