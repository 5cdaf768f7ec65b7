"""What a classifier is worth and what it would do: figures on unseen labels, keep-rates, texts on both sides."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import console
from puna.core.errors import MissingError
from puna.core.files import read_json, write_json
from puna.data.document import Document
from puna.data.quality.calibrate import auc, figures
from puna.data.quality.labelled import Split, texts_and_labels
from puna.data.quality.store import CARD, Classifier, read_card
from puna.lineage.artifact import read_record

REPORT = "report.json"
THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)
_SHOWN_CHARACTERS = 160
_DOCUMENTS_AT_ONCE = 256


def write_report(
    folder: Path,
    classifier: Classifier,
    parts: Split,
    *,
    kind: str,
    head: str,
    n_examples: int,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Judge a classifier on its test part; `report.json`, and the figures in its card.

    Args:
        folder: The classifier's.
        classifier: Calibrated.
        parts: Labelled texts.
        kind: Linear or transformer.
        head: What the score means.
        n_examples: Texts on each side of .5 to keep.
        extra: Further lines of the report.
    """
    texts, labels = texts_and_labels(parts.test)
    odds = classifier.log_odds(texts)
    card = read_card(folder)
    calibration = getattr(classifier, "calibration")  # noqa: B009 - both kinds have one, the Protocol asks for less
    result = figures(odds, labels, calibration)
    groups: dict[str, dict[str, float]] = {}
    for key in ("source", "language"):
        for value in sorted({getattr(e, key) for e in parts.test}):
            here = np.array([getattr(e, key) == value for e in parts.test])
            groups[f"{key} {value or '(none)'}"] = {"n": int(here.sum()), "auc": auc(odds[here], labels[here])}
    probability = calibration(odds)
    report = {
        "kind": kind,
        "head": head,
        "test": result,
        "groups": {name: {k: _finite(v) for k, v in row.items()} for name, row in groups.items()},
        "thresholds": [_threshold_row(t, probability, labels) for t in THRESHOLDS],
        "examples": _both_sides(texts, probability, n_examples),
        **extra,
    }
    write_json(folder / REPORT, report)
    write_json(folder / CARD, card | {"figures": result})
    return report


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _threshold_row(threshold: float, probability: NDArray[np.float64], labels: NDArray[np.bool_]) -> dict[str, Any]:
    kept = probability >= threshold
    return {
        "threshold": threshold,
        "kept": float(kept.mean()),
        "precision": _finite(float(labels[kept].mean())) if kept.any() else None,
        "recall": float(kept[labels].mean()),
    }


def _both_sides(texts: list[str], probability: NDArray[np.float64], n: int) -> dict[str, list[dict[str, Any]]]:
    """The texts nearest to .5 on each side: where a threshold would be argued about."""
    order = np.argsort(np.abs(probability - 0.5), kind="stable").tolist()
    sides: dict[str, list[dict[str, Any]]] = {"below": [], "above": []}
    for at in order:
        side = sides["above" if probability[at] >= 0.5 else "below"]
        if len(side) < n:
            side.append({"score": float(probability[at]), "text": " ".join(texts[at].split())[:_SHOWN_CHARACTERS]})
    return sides


def apply_to(
    documents: Iterable[Document], classifier: Classifier, *, threshold: float, n_examples: int
) -> tuple[list[tuple[str, float]], dict[str, Any]]:
    """Score documents.

    Args:
        documents: In order.
        classifier: Calibrated.
        threshold: From which score a document would be kept.
        n_examples: Texts on each side to keep.

    Returns:
        `(id, score)` of each document, and a report with the keep-rate per source and language.
    """
    scores: list[tuple[str, float]] = []
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    near: dict[str, list[tuple[float, str]]] = {"below": [], "above": []}
    batch: list[Document] = []

    def flush() -> None:
        values = classifier.score([d.text for d in batch])
        for document, value in zip(batch, values.tolist(), strict=True):
            scores.append((document.id, value))
            for key in ("all", f"source {document.source}", f"language {document.language or '(none)'}"):
                counts[key][0] += 1
                counts[key][1] += value >= threshold
            side = near["above" if value >= threshold else "below"]
            side.append((value, " ".join(document.text[:1000].split())[:_SHOWN_CHARACTERS]))
            side.sort(key=lambda pair: abs(pair[0] - threshold))
            del side[n_examples:]
        batch.clear()

    for document in documents:
        batch.append(document)
        if len(batch) == _DOCUMENTS_AT_ONCE:
            flush()
    if batch:
        flush()
    report = {
        "threshold": threshold,
        "keep": {key: {"n": n, "kept": kept, "rate": kept / n} for key, (n, kept) in counts.items()},
        "examples": {side: [{"score": v, "text": t} for v, t in rows] for side, rows in near.items()},
    }
    return scores, report


def show(folder: Path, report: dict[str, Any]) -> None:
    """Print a report of either kind."""
    if "test" in report:
        rows = [(name.replace("_", " "), f"{value:.4g}") for name, value in report["test"].items()]
        console.table(f"{report['kind']} classifier {folder}, on unseen labels", ["figure", "value"], rows)
        groups = [
            (name, row["n"], "-" if row["auc"] is None else f"{row['auc']:.3f}")
            for name, row in report["groups"].items()
        ]
        console.table("by source and language", ["group", "texts", "auc"], groups)
        columns = ["threshold", "kept", "precision", "recall"]
        cells = [[f"{r[c]:.2f}" if r[c] is not None else "-" for c in columns] for r in report["thresholds"]]
        console.table("what a threshold would do", columns, cells)
    if "keep" in report:
        keep = [(key, row["n"], row["kept"], f"{row['rate']:.1%}") for key, row in report["keep"].items()]
        console.table(f"kept from {report['threshold']}", ["group", "documents", "kept", "rate"], keep)
    for side, examples in report["examples"].items():
        cells = [(f"{e['score']:.2f}", e["text"]) for e in examples]
        if cells:
            console.table(f"just {side} the threshold", ["score", "text"], cells)


def read_report(folder: Path) -> dict[str, Any]:
    """The report in a folder.

    Raises:
        MissingError: There is none.
    """
    if not (folder / REPORT).is_file():
        record = read_record(folder) if folder.is_dir() else None
        command = record.command if record and record.command else "puna quality train RECIPE"
        raise MissingError(f"{folder} holds no report of a classifier ({REPORT}). Make it with: {command}")
    return read_json(folder / REPORT)
