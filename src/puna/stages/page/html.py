"""The HTML of the report page: small functions that return escaped text, and one that puts a document around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as escape
from importlib import resources

_NARROW_COLUMNS = 3  # that fit on a telephone side by side


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: Its id, for links.
        title: Its heading.
        body: HTML, already escaped.
    """

    anchor: str
    title: str
    body: str


@dataclass(frozen=True)
class Sample:
    """A question with each model's answer.

    Attributes:
        question: What was asked.
        reference: The right answer.
        answers: `(model, answer, right or not)`.
    """

    question: str
    reference: str
    answers: Sequence[tuple[str, str, bool]]


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    """Commands or code."""
    return f"<pre>{escape(text)}</pre>"


def excerpt(text: str) -> str:
    """A piece of a document: its own line ends, and long lines broken."""
    return f'<pre class="text">{escape(text)}</pre>'


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, numeric: Sequence[int] = ()) -> str:
    """A table. On a narrow screen, one of more than three columns shows each row as a heading and named cells.

    Args:
        columns: Headings.
        rows: Cells; anything with a `str`.
        numeric: Indexes of the columns to align right.
    """
    right, wide = set(numeric), len(columns) > _NARROW_COLUMNS
    # cells that are laid out as blocks would lose what a screen reader knows of a table
    role = (lambda name: f' role="{name}"') if wide else (lambda name: "")

    def cell(tag: str, index: int, value: object) -> str:
        said = f' scope="col"{role("columnheader")}' if tag == "th" else role("cell")
        if wide and tag == "td":
            said += f' data-column="{escape(str(columns[index]))}"'
        style = ' class="n"' if index in right else ""
        return f"<{tag}{said}{style}>{escape(str(value))}</{tag}>"

    def row_of(tag: str, values: Sequence[object]) -> str:
        return f"<tr{role('row')}>" + "".join(cell(tag, i, v) for i, v in enumerate(values)) + "</tr>"

    kind = f' class="wide"{role("table")}' if wide else ""
    head, body = row_of("th", columns), "".join(row_of("td", row) for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table{kind}><thead{role("rowgroup")}>{head}</thead>'
        f"<tbody{role('rowgroup')}>{body}</tbody></table></div>"
    )


def details(summary: str, body: str) -> str:
    """Something that a reader may open."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """Headline figures: `(figure, what it is)`."""
    inner = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in entries
    )
    return f'<div class="tiles">{inner}</div>'


def samples(entries: Sequence[Sample]) -> str:
    """Questions with the answers of the models side by side; right and wrong also in words, for screen readers."""
    parts = []
    for entry in entries:
        answers = "".join(_answer(model, text, right) for model, text, right in entry.answers)
        expected = f'<p class="answer"><small>expected</small>{escape(entry.reference)}</p>'
        question = f'<p class="q">{escape(entry.question)}</p>'
        parts.append(f'<div class="sample">{question}<div class="answers">{expected}{answers}</div></div>')
    return "".join(parts)


def _answer(model: str, text: str, right: bool) -> str:
    style, word = ("yes", "right") if right else ("no", "wrong")
    shown = escape(text) or "(nothing)"
    return f'<p class="answer {style}" title="{word}"><small>{escape(model)}, {word}</small>{shown}</p>'


def document(title: str, lead: str, top: str, sections: Sequence[Section]) -> str:
    """The whole page, self-contained.

    Args:
        title: Heading of the page.
        lead: One or two sentences under it.
        top: HTML between the lead and the first section.
        sections: The rest.
    """
    css = resources.files("puna.stages.page").joinpath("style.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>{s.body}</section>' for s in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{top}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>{body}</main></body></html>\n'
    )
