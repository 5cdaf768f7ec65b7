"""Every filter by name. `[[filters]] kind = "length"` in a recipe picks one; they are asked in the recipe's order."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field

from puna.data.document import Document
from puna.data.filters import code, gopher, text
from puna.data.filters.verdict import KEPT, FilterConfig, Verdict

FilterEntry = Annotated[
    text.LengthConfig
    | text.NonTextConfig
    | gopher.GopherQualityConfig
    | gopher.GopherRepetitionConfig
    | code.CodeShapeConfig,
    Field(discriminator="kind"),
]

FILTERS: dict[str, Callable[[Document, Any], Verdict]] = {
    "length": text.length,
    "non_text": text.non_text,
    "gopher_quality": gopher.gopher_quality,
    "gopher_repetition": gopher.gopher_repetition,
    "code_shape": code.code_shape,
}


def judge(document: Document, filters: Sequence[FilterConfig], *, domain: str) -> Verdict:
    """Ask the filters in order; the first no decides.

    Args:
        document: The document.
        filters: Configs of the kinds above.
        domain: Domain of the document's source.
    """
    for config in filters:
        if config.applies(document, domain):
            verdict = FILTERS[getattr(config, "kind", "")](document, config)
            if not verdict.keep:
                return verdict
    return KEPT
