"""The data card of a corpus: what it is made of, under which licences, how it was chosen. Written with every corpus."""

from collections.abc import Mapping, Sequence
from typing import Any

from puna.core import console
from puna.data.funnel import totals
from puna.data.token_counts import head, how_counted, tokens_in, told


def card(manifest: Mapping[str, Any], *, title: str = "Corpus") -> str:
    """The card as Markdown, readable as the README of a data set.

    Args:
        manifest: The corpus's manifest.
        title: Its heading.
    """
    total = totals(manifest)
    languages = sorted(filter(None, total["languages"]))
    lines = ["---", "language:", *(f"- {language}" for language in languages or ["und"]), "---", "", f"# {title}", ""]
    read, kept, how = total["read"], total["kept"], how_counted(manifest)
    estimated = ", estimated" if how["how"] == "estimated" else ""
    lines += [
        f"{kept['documents']:,} documents, {console.short_bytes(kept['bytes'])} of text ({tokens_in(kept, how)} "
        f"tokens{estimated}), kept of {read['documents']:,} that were read. {told(how)}",
        "",
        "`documents/` holds them as Parquet; `ledger/` says of all that was read what became of it and why.",
        "",
        "## Sources",
        "",
        *_table(
            ["source", "kind", "domain", "licence", "read", "kept", head(how), "could not be read"],
            [
                [
                    n,
                    s["kind"],
                    s["domain"],
                    s["licence"] or "as the records say",
                    s["read"]["documents"],
                    s["kept"]["documents"],
                    tokens_in(s["kept"], how),
                    sum(s["problems"].values()),
                ]
                for n, s in manifest["sources"].items()
            ],
        ),
        "## Steps",
        "",
        *_table(
            ["step", "form", "documents in", "documents out", f"{head(how)}, out", "main reasons"],
            [
                [
                    step["name"],
                    step["form"],
                    n["in"]["documents"],
                    n["out"]["documents"],
                    tokens_in(n["out"], how),
                    _reasons(n),
                ]
                for step in manifest["steps"]
                for n in [total["steps"][step["name"]]]
            ],
        ),
    ]
    for name in ("languages", "licences"):
        ordered = sorted(total[name].items(), key=lambda item: (-item[1]["bytes"], item[0]))
        rows = [
            [key or "(unknown)", n["documents"], console.short_bytes(n["bytes"]), tokens_in(n, how)]
            for key, n in ordered[:50]
        ]
        lines += [f"## {name.capitalize()}", "", *_table([name[:-1], "documents", "text", head(how)], rows)]
    lines += [
        "## Known limits",
        "",
        "Licences and opt-outs are what publishers declared, as far as it was machine-readable; they were not checked. "
        "Languages are found by a classifier unless the source declared them.",
        "",
    ]
    return "\n".join(lines)


def _reasons(step: Mapping[str, Any]) -> str:
    ordered = sorted(step["dropped"].items(), key=lambda item: (-item[1]["documents"], item[0]))[:3]
    return ", ".join(f"{reason} ({n['documents']})" for reason, n in ordered)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    body = [[f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in body),
        "",
    ]
