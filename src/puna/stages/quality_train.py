"""`puna quality train`: labels in; a linear classifier or a small transformer, calibrated, with its figures out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from puna.core import console
from puna.core.config import Config
from puna.core.run_folder import RunFolder
from puna.data.quality.labelled import LabelledConfig, Split, read_examples, split, texts_and_labels
from puna.data.quality.linear import LinearConfig
from puna.stages.model_choice import ModelChoice
from puna.stages.stage import PlanRow, Stage, StageRecipe
from puna.stages.training import NEUTRAL
from puna.train.config import TrainConfig
from puna.train.optim import OptimConfig
from puna.train.schedule import ScheduleConfig


class NetworkTrainConfig(TrainConfig):
    """The training loop, with defaults for a short run on a small model."""

    steps: int = Field(default=300, ge=1)
    """Optimizer steps of the whole run."""
    optim: OptimConfig = OptimConfig(lr=2e-3)
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig(warmup_steps=20, final_ratio=0.05)
    """The learning rate over the run."""
    log_every_steps: int = Field(default=50, ge=1)
    """Steps between two lines of the log."""


class NetworkConfig(Config):
    """A small transformer as classifier."""

    start_from: Path | None = None
    """A checkpoint to begin with, the better way when there is one; none begins with new weights."""
    vocab_size: int = Field(default=4096, ge=512)
    """Of the tokenizer that is trained on the labelled texts, for new weights."""
    model: ModelChoice = ModelChoice(size="demo-2m", dim=128, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=384)
    """Shape of new weights."""
    rows: int = Field(default=8, ge=1)
    """Rows of a batch."""
    sequence_length: int = Field(default=512, ge=16)
    """Tokens of a row, and of a text that are looked at."""
    train: NetworkTrainConfig = NetworkTrainConfig()
    """The training loop."""


class QualityTrainRecipe(StageRecipe):
    """Labels and what learns from them."""

    kind: Literal["linear", "transformer"] = "linear"
    """`linear`: hashed n-grams, a thousand documents and more a second; `transformer`: slower, and reads further."""
    head: str = "quality"
    """What the score means; the name that it gets in ledgers."""
    data: LabelledConfig
    """The labels."""
    linear: LinearConfig = LinearConfig()
    """Settings of the linear classifier."""
    network: NetworkConfig = NetworkConfig()
    """Settings of the transformer."""
    examples: int = Field(default=5, ge=0)
    """Texts on each side of the threshold to show."""


def inputs(recipe: QualityTrainRecipe) -> Mapping[str, Path]:
    """Labels, corpora and the checkpoint."""
    groups = {name: getattr(recipe.data, name) for name in ("labels", "positive", "negative")}
    found = {f"data.{name}.{i}": path for name, paths in groups.items() for i, path in enumerate(paths)}
    start = recipe.network.start_from if recipe.kind == "transformer" else None
    return found | ({"network.start_from": start} if start else {})


def plan(recipe: QualityTrainRecipe) -> Sequence[PlanRow]:
    """How many labels there are."""
    parts = split(read_examples(recipe.data))
    return [
        (name, f"{len(part)} texts, {sum(e.positive for e in part)} positive") for name, part in vars(parts).items()
    ]


def run(recipe: QualityTrainRecipe, folder: RunFolder) -> None:
    """Train, calibrate, judge on labels that were not seen, and show it."""
    from puna.data.quality.report import show, write_report

    parts = split(read_examples(recipe.data))
    classifier, extra = (_train_linear if recipe.kind == "linear" else _train_network)(recipe, parts, folder)
    report = write_report(
        folder.path, classifier, parts, kind=recipe.kind, head=recipe.head, n_examples=recipe.examples, extra=extra
    )
    show(folder.path, report)


def _train_linear(recipe: QualityTrainRecipe, parts: Split, folder: RunFolder) -> tuple[Any, dict[str, Any]]:
    from puna.data.quality.calibrate import fit_calibration
    from puna.data.quality.linear import train_linear
    from puna.data.quality.store import save_linear

    classifier = train_linear(*texts_and_labels(parts.train), recipe.linear)
    texts, labels = texts_and_labels(parts.validation)
    classifier = classifier.calibrated(fit_calibration(classifier.log_odds(texts), labels))
    save_linear(folder.path, classifier, head=recipe.head, figures={})
    return classifier, {}


def _train_network(recipe: QualityTrainRecipe, parts: Split, folder: RunFolder) -> tuple[Any, dict[str, Any]]:
    from puna.data.quality.calibrate import fit_calibration
    from puna.data.quality.store import save_card
    from puna.stages.quality_network import train_network

    texts, labels = texts_and_labels(parts.train)
    network = train_network(texts, labels, recipe.network, folder)
    held_out, their_labels = texts_and_labels(parts.validation)
    calibration = fit_calibration(network.log_odds(held_out), their_labels)
    extra = {"max_tokens": recipe.network.sequence_length}
    save_card(folder.path, kind="transformer", head=recipe.head, calibration=calibration, figures={}, **extra)
    console.say(f"calibrated on {len(held_out)} texts: slope {calibration.slope:.2f}, offset {calibration.offset:.2f}")
    return network.calibrated(calibration), extra


STAGE = Stage(
    verb="quality train",
    recipe=QualityTrainRecipe,
    inputs=inputs,
    plan=plan,
    run=run,
    neutral=("examples", *(f"network.{name}" for name in NEUTRAL)),
)
