"""What publishers allow: licences to keep, and opt-outs to honour.

Documents carry what was found: `licence`, and in their metadata `robots` (the words of `<meta name="robots">` and of
the `X-Robots-Tag` header) and `tdm_reservation` (W3C TDM Reservation Protocol). Whether a right exists is not
decided here.
"""

from fnmatch import fnmatchcase
from typing import Literal

from puna.data.document import Document
from puna.data.steps.step import Filter, Scores, StepConfig, Verdict, above, each


class LicenceConfig(StepConfig):
    """Keeps documents by licence."""

    kind: Literal["licence"] = "licence"
    """Which kind of step this is."""
    allow: tuple[str, ...] = ()
    """Patterns of licences to keep (`CC-BY*`, `MIT`); none keeps all but `deny`. Case does not count."""
    deny: tuple[str, ...] = ()
    """Patterns of licences to drop."""
    unknown: Literal["keep", "drop"] = "keep"
    """What happens to documents without a licence."""


class OptOutConfig(StepConfig):
    """Drops documents whose publisher said no."""

    kind: Literal["opt_out"] = "opt_out"
    """Which kind of step this is."""
    robots: tuple[str, ...] = ("noai", "noimageai", "none")
    """Words of robots declarations that count as a no; `noindex` and `noarchive` can be added."""
    tdm_reservation: bool = True
    """Whether a reservation of text and data mining counts as a no."""


def _licence(document: Document, config: LicenceConfig) -> Scores:
    licence = document.licence.lower()
    allowed = not config.allow or any(fnmatchcase(licence, pattern.lower()) for pattern in config.allow)
    denied = any(fnmatchcase(licence, pattern.lower()) for pattern in config.deny)
    return {"unknown": float(not licence), "refused": float(bool(licence) and (denied or not allowed))}


def _judge_licence(scores: Scores, config: LicenceConfig) -> Verdict:
    if scores["unknown"]:
        return Verdict(config.unknown == "keep", "licence: unknown", 1)
    return above("licence: not allowed", scores["refused"], 0)


def _opt_out(document: Document, config: OptOutConfig) -> Scores:
    said = {word.strip() for word in str(document.metadata.get("robots", "")).split(",")}
    reserved = str(document.metadata.get("tdm_reservation", "")) == "1"
    return {"robots": len(said & set(config.robots)), "tdm": float(reserved)}


def _judge_opt_out(scores: Scores, config: OptOutConfig) -> Verdict:
    if scores["robots"]:
        return Verdict(False, "opt_out: robots", scores["robots"])
    return above("opt_out: text and data mining reserved", scores["tdm"], 0 if config.tdm_reservation else 1)


LICENCE = Filter(LicenceConfig, each(_licence), _judge_licence, thresholds=("unknown",))
OPT_OUT = Filter(OptOutConfig, each(_opt_out), _judge_opt_out, thresholds=("tdm_reservation",))
