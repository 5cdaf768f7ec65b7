"""Every curation step by name. `[[steps]] kind = "length"` in a recipe picks one; they act in the recipe's order.

To add one, write a module with a config class and a `Filter`, `Edit` or `Barrier` (see `step.py`), and name both here.
"""

from typing import Annotated

from pydantic import Field

from puna.data import decontaminate
from puna.data.dedup import minhash, semantic, substring, url
from puna.data.quality import step as quality
from puna.data.steps import (
    bad_words,
    c4,
    code,
    divergence,
    exact,
    fineweb,
    gopher,
    language,
    line_dedup,
    line_repetition,
    pii,
    refinedweb,
    rights,
    text,
    url_list,
)
from puna.data.steps.step import Step, StepConfig

StepEntry = Annotated[
    text.LengthConfig
    | text.NonTextConfig
    | gopher.GopherQualityConfig
    | gopher.GopherRepetitionConfig
    | code.CodeShapeConfig
    | url_list.UrlListConfig
    | language.LanguageConfig
    | language.LanguageConfidenceConfig
    | c4.C4Config
    | fineweb.FineWebConfig
    | refinedweb.RefinedWebConfig
    | line_repetition.LineRepetitionConfig
    | bad_words.BadWordsConfig
    | pii.PiiConfig
    | rights.LicenceConfig
    | rights.OptOutConfig
    | line_dedup.LineDedupConfig
    | divergence.DivergenceConfig
    | exact.ExactConfig
    | url.UrlConfig
    | minhash.MinhashConfig
    | substring.SubstringConfig
    | semantic.SemanticConfig
    | decontaminate.DecontaminateConfig
    | quality.QualityConfig,
    Field(discriminator="kind"),
]

STEPS: dict[str, Step] = {
    "length": text.LENGTH,
    "non_text": text.NON_TEXT,
    "gopher_quality": gopher.GOPHER_QUALITY,
    "gopher_repetition": gopher.GOPHER_REPETITION,
    "code_shape": code.CODE_SHAPE,
    "url_list": url_list.URL_LIST,
    "language": language.LANGUAGE,
    "language_confidence": language.LANGUAGE_CONFIDENCE,
    "c4": c4.C4,
    "fineweb": fineweb.FINEWEB,
    "refinedweb": refinedweb.REFINEDWEB,
    "line_repetition": line_repetition.LINE_REPETITION,
    "bad_words": bad_words.BAD_WORDS,
    "pii": pii.PII,
    "licence": rights.LICENCE,
    "opt_out": rights.OPT_OUT,
    "line_dedup": line_dedup.LINE_DEDUP,
    "divergence": divergence.DIVERGENCE,
    "exact": exact.EXACT,
    "url": url.URL,
    "minhash": minhash.MINHASH,
    "substring": substring.SUBSTRING,
    "semantic": semantic.SEMANTIC,
    "decontaminate": decontaminate.DECONTAMINATE,
    "quality": quality.QUALITY,
}


def kind_of(config: StepConfig) -> str:
    """The kind of a config: key in `STEPS`."""
    kind = getattr(config, "kind", None)
    assert kind in STEPS, f"{type(config).__name__} has no kind that is registered"
    return kind
