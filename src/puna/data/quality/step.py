"""The `quality` step: a classifier scores documents; a threshold decides. The score is stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.quality.store import open_classifier
from puna.data.steps.step import Filter, Scores, StepConfig, Verdict, above, below, first_no


class QualityConfig(StepConfig):
    """A classifier's score, from `puna quality train`."""

    kind: Literal["quality"] = "quality"
    """Which kind of step this is."""
    path: Path
    """The classifier's folder."""
    head: str = "quality"
    """Name of the score, for the ledger: quality, education, code, reasoning, nsfw."""
    min_score: float = Field(default=0.0, ge=0, le=1)
    """Documents below go; 0 keeps all and only stores the score."""
    max_score: float = Field(default=1.0, ge=0, le=1)
    """Documents above go (for nsfw)."""
    opener: str = ""
    """`module:function` that opens a transformer classifier; `puna curate` sets it."""


def measure(documents: Sequence[Document], config: QualityConfig) -> list[Scores]:
    """The calibrated probability of each document."""
    scores = open_classifier(config.path, config.opener).score([document.text for document in documents])
    return [{config.head: float(score)} for score in scores]


def judge(scores: Scores, config: QualityConfig) -> Verdict:
    """Too low or too high."""
    value = scores[config.head]
    return first_no(
        below(f"quality: low {config.head}", value, config.min_score),
        above(f"quality: high {config.head}", value, config.max_score),
    )


QUALITY = Filter(config=QualityConfig, measure=measure, judge=judge, thresholds=("min_score", "max_score"))
