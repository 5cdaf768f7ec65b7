"""Which language a text is in, with no network: an edit that finds it, a filter that judges how sure it is.

`py3langid` (97 languages, model in the package) is the default; any fastText model file (lid.176, GlotLID) can be
given by its path. The confidence stays with the document, so thresholds for each language can be set and changed later.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from puna.core.errors import MissingError, need
from puna.data.document import Document
from puna.data.steps.step import Edit, Edited, Filter, Scores, StepConfig, Verdict, below, each


class LanguageConfig(StepConfig):
    """Finds the language of documents whose source does not say it."""

    kind: Literal["language"] = "language"
    """Which kind of step this is."""
    engine: Literal["py3langid", "fasttext"] = "py3langid"
    """What finds it."""
    model: Path | None = None
    """fastText model file (`lid.176.ftz`, GlotLID's `model.bin`); only for the engine `fasttext`."""
    characters: int = Field(default=2000, ge=20)
    """How much of the text is looked at, from its middle: heads of pages are menus."""
    trust_source: bool = True
    """Whether a language that the source declared stays as it is."""


class LanguageConfidenceConfig(StepConfig):
    """Drops documents of the wrong language, or whose language is not sure."""

    kind: Literal["language_confidence"] = "language_confidence"
    """Which kind of step this is."""
    min_confidence: float = Field(default=0.65, ge=0, le=1)
    """Least confidence; FineWeb took 0.65 (fastText), C4 0.99."""
    keep_languages: tuple[str, ...] = ()
    """Languages to keep; none keeps all."""
    drop_unknown: bool = True
    """Whether a document without a language goes."""


@lru_cache(maxsize=2)
def _py3langid() -> Any:
    module = need("py3langid.langid", extra="data")
    model = module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)
    # "no linguistic content" is asked before; as a label it takes texts of languages that the model hardly knows
    model.set_languages([label for label in model.labels if label != "zxx"])
    return model


@lru_cache(maxsize=2)
def _fasttext(path: str) -> Any:
    if not Path(path).is_file():
        raise MissingError(f"the language model {path} is not there. Set model= to a fastText file.")
    return need("fasttext", extra="fasttext").load_model(path)


def _open_fasttext(config: LanguageConfig) -> Any:
    if config.model is None:
        raise MissingError("the engine fasttext needs model=, the path of a fastText file")
    return _fasttext(str(config.model))


def identify(text: str, config: LanguageConfig) -> tuple[str, float]:
    """Language (BCP 47) and confidence, 0 to 1; `("", 0)` for a text without letters."""
    sample = middle(" ".join(text.split()), config.characters)
    if not any(map(str.isalpha, sample)):
        return "", 0.0
    if config.engine == "py3langid":
        language, confidence = _py3langid().classify(sample)
        return str(language), float(confidence)
    labels, values = _open_fasttext(config).predict(sample, k=1)
    return _tag(labels[0]), min(1.0, float(values[0]))


def known_languages(config: LanguageConfig) -> list[str]:
    """Every language that the engine can name, in the form in which `identify` names it."""
    if config.engine == "py3langid":
        return list(_py3langid().labels)
    return [_tag(label) for label in _open_fasttext(config).get_labels()]


def _tag(label: str) -> str:
    """lid.176 says __label__en, GlotLID __label__eng_Latn."""
    return label.removeprefix("__label__").replace("_", "-")


def middle(text: str, n: int) -> str:
    """`n` characters from the middle of a text."""
    start = max(0, (len(text) - n) // 2)
    return text[start : start + n]


def _edit(documents: Sequence[Document], config: LanguageConfig) -> list[Edited]:
    results = []
    for document in documents:
        if document.language and config.trust_source:
            results.append(Edited(document))
            continue
        language, confidence = identify(document.text, config)
        results.append(Edited(replace(document, language=language, confidence=round(confidence, 4))))
    return results


def _measure(document: Document, config: LanguageConfidenceConfig) -> Scores:
    wanted = not config.keep_languages or document.language in config.keep_languages
    return {"confidence": document.confidence, "unknown": float(not document.language), "unwanted": float(not wanted)}


def _judge(scores: Scores, config: LanguageConfidenceConfig) -> Verdict:
    if scores["unknown"]:
        return Verdict(not config.drop_unknown, "language_confidence: unknown language", 0)
    if scores["unwanted"]:
        return Verdict(False, "language_confidence: another language", scores["confidence"])
    return below("language_confidence: not sure", scores["confidence"], config.min_confidence)


LANGUAGE = Edit(LanguageConfig, _edit)
LANGUAGE_CONFIDENCE = Filter(
    LanguageConfidenceConfig, each(_measure), _judge, thresholds=("min_confidence", "drop_unknown")
)
