"""The page of a corpus: its funnel, what every rule dropped with texts to read, languages, what barriers found.

It is part of the sealed corpus, so it holds no time and no path.
"""

from collections.abc import Mapping
from typing import Any

from puna.core import console
from puna.core.files import read_json
from puna.data.corpus import Corpus
from puna.data.funnel import totals
from puna.data.look import Dropped, dropped_by
from puna.data.token_counts import head, tokens_in, told
from puna.stages.page import charts, clusters, html
from puna.stages.page.html import Section

_SHOWN = 3  # texts for each reason
_CHARACTERS = 700
_MOST_REASONS = 60


def page(corpus: Corpus, *, title: str = "Corpus") -> str:
    """The page as one HTML document."""
    total = totals(corpus.manifest)
    read, kept, how = total["read"], total["kept"], corpus.token_count
    top = html.tiles(
        [
            (f"{read['documents']:,}", "documents read"),
            (f"{kept['documents']:,}", "documents kept"),
            (console.short_bytes(kept["bytes"]), "text kept"),
            (str(tokens_in(kept, how)), head(how)),
            (str(len([name for name in total["languages"] if name])), "languages"),
        ]
    )
    sections = [_funnel(total, how), _dropped(corpus, total), _sources(corpus), _languages(total, how)]
    sections += _reports(corpus)
    sections += clusters.sections(corpus)
    lead = "What was read, what each step removed and why, and what is left. Every figure is from the manifest. "
    lead += told(how)
    return html.document(title, lead, top, sections)


def _funnel(total: Mapping[str, Any], how: Mapping[str, Any]) -> Section:
    rows, bars = [], [("read", float(total["read"]["documents"]), f"{total['read']['documents']:,}")]
    for name, step in total["steps"].items():
        out = step["out"]
        gone = step["in"]["documents"] - out["documents"]
        edits = ", ".join(f"{n:,} {what}" for what, n in sorted(step["edits"].items(), key=lambda e: -e[1]))
        rows.append(
            [
                name,
                f"{step['in']['documents']:,}",
                f"{out['documents']:,}",
                f"{gone:,}",
                console.short_bytes(out["bytes"]),
                str(tokens_in(out, how)),
                edits,
            ]
        )
        bars.append((name, float(out["documents"]), f"{out['documents']:,}"))
    columns = ["step", "in", "out", "dropped", "text", head(how), "edits"]
    body = charts.bar_chart("Documents left after each step", bars, unit="documents")
    return Section("funnel", "Funnel", body + html.table(columns, rows, numeric=[1, 2, 3, 4, 5]))


def _dropped(corpus: Corpus, total: Mapping[str, Any]) -> Section:
    counts = {reason: n for step in total["steps"].values() for reason, n in step["dropped"].items()}
    texts: dict[str, list[Dropped]] = {}
    if counts:
        for entry in dropped_by(corpus):
            mine = texts.setdefault(entry.reason, [])
            if len(mine) < _SHOWN:
                mine.append(entry)
    ordered = sorted(counts.items(), key=lambda item: (-item[1]["documents"], item[0]))[:_MOST_REASONS]
    parts = []
    for reason, n in ordered:
        shown = "".join(_text(entry) for entry in texts.get(reason, []))
        summary = f"{reason}: {n['documents']:,} documents, {console.short_bytes(n['bytes'])}"
        parts.append(html.details(summary, shown or html.paragraph("No text was kept.")))
    unread = [[reason, f"{n:,}"] for reason, n in sorted(total["problems"].items())]
    body = "".join(parts) or html.paragraph("Nothing was dropped.")
    if unread:
        body += html.table(["could not be read (see quarantine.jsonl)", "records"], unread, numeric=[1])
    if total["skipped"]:
        counted = [[reason, f"{n:,}"] for reason, n in sorted(total["skipped"].items())]
        body += html.table(["no document", "records"], counted, numeric=[1])
    return Section("dropped", "What was dropped", body)


def _text(entry: Dropped) -> str:
    document = entry.document
    about = f"{document.url} · measured {entry.value:.4g}" + (f" · repeats {entry.twin}" if entry.twin else "")
    text = document.text if len(document.text) <= _CHARACTERS else document.text[:_CHARACTERS] + " …"
    return html.paragraph(about) + html.excerpt(text)


def _sources(corpus: Corpus) -> Section:
    rows = [
        [name, s["kind"], s["domain"], f"{s['read']['documents']:,}", f"{s['kept']['documents']:,}",
         console.short_bytes(s["kept"]["bytes"]), str(tokens_in(s["kept"], corpus.token_count)),
         f"{sum(s['problems'].values()):,}"]
        for name, s in corpus.manifest["sources"].items()
    ]  # fmt: skip
    columns = ["source", "kind", "domain", "read", "kept", "text", head(corpus.token_count), "could not be read"]
    return Section("sources", "Sources", html.table(columns, rows, numeric=[3, 4, 5, 6, 7]))


def _languages(total: Mapping[str, Any], how: Mapping[str, Any]) -> Section:
    body = ""
    for name in ("languages", "licences"):
        ordered = sorted(total[name].items(), key=lambda item: (-item[1]["bytes"], item[0]))
        rows = [
            [key or "(unknown)", f"{n['documents']:,}", console.short_bytes(n["bytes"]), str(tokens_in(n, how))]
            for key, n in ordered[:100]
        ]
        body += html.table([name[:-1], "documents", "text", head(how)], rows, numeric=[1, 2, 3])
    return Section("languages", "Languages and licences", body)


def _reports(corpus: Corpus) -> list[Section]:
    sections = []
    for folder in sorted((corpus.path / "reports").glob("*")):
        summary = folder / "summary.json"
        rows = read_json(summary).get("rows", []) if summary.is_file() else []
        files = ", ".join(sorted(p.name for p in folder.iterdir()))
        body = html.table(["what", "value"], rows) if rows else ""
        title = f"What {folder.name} found"
        sections.append(Section(folder.name, title, body + html.paragraph(f"reports/{folder.name}/: {files}")))
    return sections
