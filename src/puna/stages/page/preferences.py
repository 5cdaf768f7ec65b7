"""The report page of a round of preferences: agreement, annotators, verdicts, the queue, and how it was made."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from puna.evaluate.statistics import Estimate
from puna.post.preferences.export import shown
from puna.post.preferences.quality import Quality, Verdict
from puna.post.preferences.records import Item, Label
from puna.stages.page import html
from puna.stages.page.charts import Dot, bar_chart, interval_chart
from puna.stages.page.html import Section

LEVELS = ("marginally better", "slightly better", "better", "significantly better")
_SHOWN_DISPUTES = 12


def document_of(
    title: str,
    items: Sequence[Item],
    labels: Sequence[Label],
    quality: Quality,
    found: Mapping[str, Any],
    settings: str,
) -> str:
    """The whole page.

    Args:
        title: Heading.
        items: The items.
        labels: The labels.
        quality: The findings.
        found: What goes into `quality.json`.
        settings: The recipe as TOML.
    """
    rounds = ", ".join(map(str, sorted({item.round for item in items})))
    lead = f"Round {rounds}: {len(labels)} labels of {len(quality.cards)} annotators on {len(quality.verdicts)} items."
    alpha = quality.trusted["Krippendorff alpha, side"]
    top = html.tiles(
        [
            (str(found["rows"]), "training rows"),
            (f"{alpha.value:.2f}" if alpha.value is not None else "–", "alpha, trusted annotators"),
            (str(len(quality.excluded)), "annotators not used"),
            (str(len(quality.queue)), "items to adjudicate"),
        ]
    )
    parts = [_agreement(quality), _annotators(quality), _verdicts(quality), _strengths(quality)]
    if "against_truth" in found:
        parts.insert(0, _truth(found["against_truth"]))
    parts += [_disputes(items, labels, quality), _made(settings)]
    return html.document(title, lead, top, parts)


def _truth(found: Mapping[str, Any]) -> Section:
    names = {
        "raw_labels": "single labels",
        "majority": "majority vote",
        "dawid_skene": "Dawid-Skene",
        "checked": "checked",
        "kept": "rows that are kept",
    }
    bars = [(name, found[key] or 0.0, _percent(found[key])) for key, name in names.items()]
    told = (
        f"The annotators are simulated, so the truth is known. Of those whose labels are not used, "
        f"{_percent(found['precision'])} are bad; {_percent(found['recall'])} of the bad were found."
    )
    chart = bar_chart("Items with the right side", bars, unit="share of items with the right side")
    return Section("truth", "Against the truth", html.paragraph(told) + chart)


def _agreement(quality: Quality) -> Section:
    rows = [(name, shown(value), shown(quality.trusted[name])) for name, value in quality.coefficients.items()]
    table = html.table(["coefficient", "all annotators", "trusted ones"], rows)
    text = "With 95 % intervals from resampling items. Raw agreement counts chance; the others take it away."
    return Section("agreement", "Agreement", html.paragraph(text) + table)


def _annotators(quality: Quality) -> Section:
    def cell(share: Estimate | None) -> str:
        return "–" if share is None else f"{share.value:.0%} of {share.n}"

    rows = [
        (
            card.name,
            card.status,
            card.n_labels,
            cell(card.gold),
            cell(card.agreement),
            "–" if card.left is None else f"{card.left.value:.0%}",
            "–" if card.longer_excess is None else f"{card.longer_excess:+.0%}",
            "–" if card.seconds is None else f"{card.seconds:.1f}",
            cell(card.repeats),
            "; ".join(card.reasons),
        )
        for card in quality.cards
    ]
    columns = ["name", "status", "labels", "test questions", "with the others", "left", "longer", "seconds"]
    table = html.table([*columns, "same again", "reasons"], rows, numeric=(2, 5, 6, 7))
    dots = [
        (card.name, [_dot(card.gold), _dot(card.agreement), _dot(card.left)])
        for card in quality.cards
        if card.gold or card.agreement
    ]
    series = ["test questions right", "agrees with the others", "takes the left"]
    chart = interval_chart("Annotators", dots, series=series) if dots else ""
    return Section("annotators", "Annotators", chart + table)


def _dot(share: Estimate | None) -> Dot | None:
    return None if share is None else Dot(share.value, share.low, share.high)


def _verdicts(quality: Quality) -> Section:
    counts = quality.counts()
    bars = [(decision, float(n), str(n)) for decision, n in counts.items()]
    reasons = Counter((v.decision, _short(v)) for v in quality.verdicts)
    rows = [(decision, reason, n) for (decision, reason), n in sorted(reasons.items(), key=lambda x: -x[1])]
    table = html.table(["verdict", "reason", "items"], rows, numeric=(2,))
    return Section("verdicts", "Verdicts", bar_chart("Items by verdict", bars, unit="items") + table)


def _short(verdict: Verdict) -> str:
    """The reason without its figure, so that it can be counted."""
    return verdict.reason.split(" at ")[0] if " at " in verdict.reason else verdict.reason


def _strengths(quality: Quality) -> Section:
    bars = [(name, share, f"{share:.0%}") for name, share in zip(LEVELS, quality.strengths, strict=True)]
    text = "When models become better, marginal preferences grow: harder prompts are due."
    body = html.paragraph(text) + bar_chart("Strength of preferences", bars, unit="share of preferences")
    if quality.models:
        rows = [(name, f"{score:+.2f}") for name, score in quality.models.items()]
        body += html.table(["model", "score in log-odds (noisy Bradley-Terry)"], rows, numeric=(1,))
    return Section("strength", "Strength and models", body)


def _disputes(items: Sequence[Item], labels: Sequence[Label], quality: Quality) -> Section:
    by_id = {item.id: item for item in items}
    parts = [html.paragraph("The most disputed items: disagreement times uncertainty. Adjudicate from the top.")]
    for name, priority in list(quality.queue.items())[:_SHOWN_DISPUTES]:
        item = by_id[name]
        said = [(x.annotator, x.value, ", ".join(x.reasons), x.note) for x in labels if x.item == name]
        body = html.preformatted(
            f"{item.prompt.messages[-1].content}\n\n"
            f"--- a ({item.model_a})\n{item.a}\n\n--- b ({item.model_b})\n{item.b}"
        )
        body += html.table(["annotator", "value (+ is a)", "reasons", "note"], said, numeric=(1,))
        parts.append(html.details(f"{name}, priority {priority:.2f}", body))
    return Section("queue", "Adjudication queue", "".join(parts))


def _made(settings: str) -> Section:
    text = "This page and the rows beside it come from these settings: puna annotate qa config.toml"
    return Section("made", "How it was made", html.paragraph(text) + html.preformatted(settings))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
