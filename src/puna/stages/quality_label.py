"""`puna quality label`: a corpus and an earlier model in, labels and their agreement out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from puna.core import console
from puna.core.config import Config
from puna.core.run_folder import RunFolder
from puna.data.quality.label import LabelConfig
from puna.stages.stage import PlanRow, Stage, StageRecipe


class EndpointConfig(Config):
    """An OpenAI-compatible server that labels."""

    url: str
    """Base address, `http://127.0.0.1:8000/v1`."""
    model: str
    """Name that the server knows."""
    key_file: Path | None = None
    """File with the key and nothing else; none sends no key. The key itself is written nowhere."""
    proxy: str = ""
    """Address of a proxy, `http://proxy:3128`; empty connects directly."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at a time."""
    timeout_seconds: float = Field(default=120, gt=0)
    """For one answer."""


class QualityLabelRecipe(StageRecipe):
    """Documents and who labels them."""

    corpus: Path
    """The corpus to sample, from `puna curate`."""
    model: Path | None = None
    """A checkpoint that labels; or give `endpoint`."""
    endpoint: EndpointConfig | None = None
    """A server that labels."""
    label: LabelConfig = LabelConfig()
    """What is asked, and how."""

    @model_validator(mode="after")
    def _has_one_annotator(self) -> "QualityLabelRecipe":
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("give model, a checkpoint, or an [endpoint] table: one of the two")
        return self


def inputs(recipe: QualityLabelRecipe) -> Mapping[str, Path]:
    """The corpus and the checkpoint."""
    return {"corpus": recipe.corpus} | ({"model": recipe.model} if recipe.model else {})


def plan(recipe: QualityLabelRecipe) -> Sequence[PlanRow]:
    """How much would be asked."""
    from puna.data.corpus import Corpus

    groups = len(Corpus.open(recipe.corpus).sources)
    most = recipe.label.per_group * groups
    return [("rubric", recipe.label.head), ("documents", f"{most} for each language, over {groups} sources")]


def annotator(recipe: QualityLabelRecipe) -> Any:
    """The generator that labels."""
    if recipe.endpoint is not None:
        from puna.serve.endpoint import Endpoint
        from puna.serve.keys import read_key

        there = recipe.endpoint
        return Endpoint(
            there.url,
            there.model,
            key=read_key(there.key_file) if there.key_file else "",
            proxy=there.proxy,
            concurrency=there.concurrency,
            timeout_seconds=there.timeout_seconds,
        )
    from puna.infer.engine import Engine

    assert recipe.model is not None, "checked by the recipe"
    return Engine.load(recipe.model)


def run(recipe: QualityLabelRecipe, folder: RunFolder) -> None:
    """Sample, ask, and show the agreement."""
    from puna.data.corpus import Corpus
    from puna.data.quality.label import label, sample

    chosen = sample(Corpus.open(recipe.corpus).documents(), recipe.label.per_group, seed=recipe.label.seed)
    summary = label(annotator(recipe), chosen, recipe.label, folder.path)
    rows: list[tuple[str, Any]] = [(f"score {score}", n) for score, n in summary["scores"].items()]
    rows += [(name.replace("_", " "), _short(summary[name])) for name in summary if name != "scores"]
    console.table(f"labels {folder.path}", ["what", "value"], rows)


def _short(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value


STAGE = Stage(
    verb="quality label",
    recipe=QualityLabelRecipe,
    inputs=inputs,
    plan=plan,
    run=run,
    neutral=(
        "label.batch",
        *(f"endpoint.{name}" for name in ("key_file", "proxy", "concurrency", "timeout_seconds")),
    ),
)
