"""The filter contract: a small function from a document to a verdict, which always says why.

A filter is a config class (its typed parameters, one `[[filters]]` table in the recipe) and a function
`check(document, config) -> Verdict`. The first filter that says no decides; its reason is counted, and a sample of
what it dropped is written down with the measured value, so that a threshold can be judged by reading.
"""

from dataclasses import dataclass

from puna.core.config import Config
from puna.data.document import Document


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter says.

    Attributes:
        keep: Whether the document stays.
        reason: Name of the rule that decided, `"kept"` otherwise; stable, since it is counted.
        value: What was measured against the rule's threshold.
    """

    keep: bool
    reason: str = "kept"
    value: float = 0.0


KEPT = Verdict(True)


class FilterConfig(Config):
    """Fields of every filter."""

    domains: tuple[str, ...] = ()
    """Domains of the sources that it looks at; none means all."""
    languages: tuple[str, ...] = ()
    """Languages of the documents that it looks at; none means all."""

    def applies(self, document: Document, domain: str) -> bool:
        """Whether the document is this filter's business."""
        return (not self.domains or domain in self.domains) and (
            not self.languages or document.language in self.languages
        )


def above(reason: str, value: float, limit: float) -> Verdict:
    """A no when `value` exceeds `limit`."""
    return Verdict(False, reason, value) if value > limit else KEPT


def below(reason: str, value: float, limit: float) -> Verdict:
    """A no when `value` is less than `limit`."""
    return Verdict(False, reason, value) if value < limit else KEPT


def first_no(*verdicts: Verdict) -> Verdict:
    """The first verdict that drops, or `KEPT`."""
    return next((verdict for verdict in verdicts if not verdict.keep), KEPT)
