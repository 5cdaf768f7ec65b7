"""`puna quality apply`: a corpus and a classifier in; a score for every document, keep-rates and examples out.

To drop documents by their score, name the classifier in a `quality` step of `puna curate`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from puna.core.run_folder import RunFolder
from puna.stages.stage import PlanRow, Stage, StageRecipe

OPENER = "puna.stages.quality_network:open_network"
"""Who opens transformer classifiers for `data`, which knows no torch."""


class QualityApplyRecipe(StageRecipe):
    """A classifier and what it scores."""

    corpus: Path
    """The corpus, from `puna curate`."""
    classifier: Path
    """From `puna quality train`."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Documents from this score on would be kept."""
    examples: int = Field(default=5, ge=0)
    """Texts on each side of the threshold to show."""


def inputs(recipe: QualityApplyRecipe) -> Mapping[str, Path]:
    """Corpus and classifier."""
    return {"corpus": recipe.corpus, "classifier": recipe.classifier}


def plan(recipe: QualityApplyRecipe) -> Sequence[PlanRow]:
    """What would be scored by what."""
    from puna.data.corpus import Corpus
    from puna.data.quality.store import read_card

    card = read_card(recipe.classifier)
    return [
        ("sources", ", ".join(Corpus.open(recipe.corpus).sources)),
        ("classifier", f"{card['kind']}, {card['head']}"),
    ]


def run(recipe: QualityApplyRecipe, folder: RunFolder) -> None:
    """Score, write `scores.parquet`, and show what a threshold would keep."""
    import pyarrow as pa

    from puna.core.files import write_json
    from puna.data.corpus import Corpus
    from puna.data.documents import TableWriter
    from puna.data.quality.report import REPORT, apply_to, show
    from puna.data.quality.store import open_classifier

    classifier = open_classifier(recipe.classifier, OPENER)
    documents = Corpus.open(recipe.corpus).documents()
    scores, report = apply_to(documents, classifier, threshold=recipe.threshold, n_examples=recipe.examples)
    schema = pa.schema([("id", pa.string()), ("score", pa.float32())])
    with TableWriter(folder.path / "scores.parquet", schema) as out:
        ids, values = zip(*scores, strict=True) if scores else ((), ())
        out.add(pa.table([pa.array(ids, pa.string()), pa.array(values, pa.float32())], schema=schema))
    write_json(folder.path / REPORT, report)
    show(folder.path, report)


STAGE = Stage(verb="quality apply", recipe=QualityApplyRecipe, inputs=inputs, plan=plan, run=run, neutral=("examples",))
