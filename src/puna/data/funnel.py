"""The funnel: from the records of all tasks to one account of a corpus, and its rows for a table.

Counted for each source and step: documents and bytes that came in, went out, and were dropped by each reason; what
edits did; what could not be read, and records that are no document. Tokens are counted by the recipe's tokenizer;
without one they are estimated from bytes, and every table says so.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from puna.core import console
from puna.data.corpus import FORMAT, Corpus
from puna.data.passes import name_steps
from puna.data.sources.task import SourceConfig, Task
from puna.data.steps.registry import STEPS
from puna.data.steps.step import StepConfig
from puna.data.token_counts import head, tokens_in


def make_manifest(
    sources: Sequence[SourceConfig],
    steps: Sequence[StepConfig],
    tasks: Mapping[str, Sequence[Task]],
    records: Mapping[int, Mapping[str, Mapping[str, Any]]],
    token_count: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a corpus.

    Args:
        sources: In the recipe's order.
        steps: In the recipe's order.
        tasks: By source.
        records: By pass and task name, what the tasks wrote down.
        token_count: How tokens were counted, None where they were not.
    """
    named = name_steps(steps)
    first, last = records[min(records)], records[max(records)]
    found: dict[str, Any] = {}
    for source in sources:
        mine = [task.name for task in tasks[source.name]]
        by_step: dict[str, Any] = {}
        for step in named:
            parts = [record[name]["steps"].get(step.name) for record in records.values() for name in mine]
            by_step[step.name] = _add([part for part in parts if part])
        found[source.name] = {
            "kind": getattr(source, "kind", ""),
            "domain": source.domain,
            "licence": source.licence,
            "read": _sizes(first[name]["read"] for name in mine),
            "problems": _sum(first[name]["problems"] for name in mine),
            "skipped": _sum(first[name]["skipped"] for name in mine),
            "steps": by_step,
            "kept": _sizes(last[name]["kept"] for name in mine),
            "languages": _nested(last[name]["languages"] for name in mine),
            "licences": _nested(last[name]["licences"] for name in mine),
            "tasks": [name for name in mine if last[name]["kept"].get("documents")],
        }
    return {
        "format": FORMAT,
        **({"token_count": dict(token_count)} if token_count else {}),
        "order": [source.name for source in sources],
        "steps": [{"name": s.name, "kind": s.kind, "form": type(STEPS[s.kind]).__name__.lower()} for s in named],
        "sources": found,
    }


def _sum(counts: Any) -> dict[str, int]:
    total = Counter[str]()
    for count in counts:
        total.update(count)
    return dict(total)


def _sizes(counts: Any) -> dict[str, int]:
    return {"documents": 0, "bytes": 0} | _sum(counts)


def _nested(tables: Any) -> dict[str, dict[str, int]]:
    total: dict[str, Counter[str]] = {}
    for table in tables:
        for key, counts in table.items():
            total.setdefault(key, Counter()).update(counts)
    return {key: dict(total[key]) for key in sorted(total)}


def _add(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "in": _sizes(part["in"] for part in parts),
        "out": _sizes(part["out"] for part in parts),
        "dropped": _nested(part["dropped"] for part in parts),
        "edits": _sum(part["edits"] for part in parts),
    }


def totals(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The same account over all sources: `read`, `problems`, `steps`, `kept`, `languages`, `licences`."""
    sources = list(manifest["sources"].values())
    return {
        "read": _sizes(s["read"] for s in sources),
        "problems": _sum(s["problems"] for s in sources),
        "skipped": _sum(s["skipped"] for s in sources),
        "steps": {step["name"]: _add([s["steps"][step["name"]] for s in sources]) for step in manifest["steps"]},
        "kept": _sizes(s["kept"] for s in sources),
        "languages": _nested(s["languages"] for s in sources),
        "licences": _nested(s["licences"] for s in sources),
    }


def columns(corpus: Corpus) -> list[str]:
    """Heads of the funnel's columns; that of the tokens says how they were counted."""
    return ["step", "documents", "bytes", head(corpus.token_count), "top reasons"]


def funnel(corpus: Corpus) -> list[tuple[str, str, str, str, str]]:
    """Rows of the funnel over all sources: step, documents, bytes, tokens, top reasons."""
    total, how = totals(corpus.manifest), corpus.token_count
    unread = "; ".join(f"{n} could not be read: {r}" for r, n in total["problems"].items())
    rows = [_row("read", total["read"], how, unread)]
    if total["skipped"]:
        n = sum(total["skipped"].values())
        rows.append(("(no document)", str(n), "-", "-", "; ".join(_largest(total["skipped"]))))
    for name, step in total["steps"].items():
        dropped = {r.partition(": ")[2] or r: counts["documents"] for r, counts in step["dropped"].items()}
        said = [f"-{text}" for text in _largest(dropped)] + _largest(step["edits"])
        rows.append(_row(name, step["out"], how, "; ".join(said)))
    return rows


def as_json(corpus: Corpus) -> dict[str, Any]:
    """`totals`, with `tokens` and `tokens_error` in every counter, and in `token_count` how they were counted.

    The error is a standard error: 0 where every document was counted, null where tokens are estimated from bytes.
    """

    def counted(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if "documents" not in value or "bytes" not in value:
            return {key: counted(inner) for key, inner in value.items()}
        tokens = tokens_in(value, corpus.token_count)
        sizes = {"documents": value["documents"], "bytes": value["bytes"]}
        return {**sizes, "tokens": tokens.n, "tokens_error": tokens.error}

    return {**counted(totals(corpus.manifest)), "token_count": corpus.token_count}


def _largest(counts: Mapping[str, int], most: int = 3) -> list[str]:
    """The largest counts, and how many all others have."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    others = [n for _, n in ordered[most:]]
    return [f"{n} {what}" for what, n in ordered[:most]] + ([f"{sum(others)} others"] if others else [])


def _row(name: str, counts: Mapping[str, int], how: Mapping[str, Any], note: str) -> tuple[str, str, str, str, str]:
    tokens = str(tokens_in(counts, how))
    return name, str(counts["documents"]), console.short_bytes(counts["bytes"]), tokens, note


def nothing_left(corpus: Corpus) -> str:
    """Why a corpus came out empty, and how to look at what was dropped."""
    total = totals(corpus.manifest)
    reasons = Counter[str]()
    for step in total["steps"].values():
        reasons.update({reason: counts["documents"] for reason, counts in step["dropped"].items()})
    look = next((f"puna data show {corpus.path} --dropped-by '{r}'" for r, _ in reasons.most_common(1)), "")
    look = f" Look at it: {look or f'puna data stats {corpus.path}'}."
    reasons.update({f"could not be read: {reason}": n for reason, n in total["problems"].items()})
    reasons.update({f"no document: {reason}": n for reason, n in total["skipped"].items()})
    why = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(5)) or "the files hold no text"
    read = total["read"]["documents"]
    return (
        f"the corpus is empty: {read} documents were read and none is left. Why: {why}.{look} "
        "Then change steps or sources, and give the command with --fresh."
    )
