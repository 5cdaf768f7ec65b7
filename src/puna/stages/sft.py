"""`puna sft`: a model and dialogs in, a model that answers out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from puna.core import console
from puna.core.errors import UsageError
from puna.core.files import fingerprint
from puna.core.run_folder import RunFolder
from puna.model.adapter_config import AdapterConfig
from puna.model.config import ModelConfig
from puna.model.fake_quantization import QuantizationConfig
from puna.post.distill import DistillConfig
from puna.post.sft import SftConfig
from puna.stages.exercise_data import ExerciseConfig, dialog_rows
from puna.stages.stage import PlanRow, Stage, StageRecipe
from puna.stages.training import (
    NEUTRAL,
    adapted_model,
    check_context,
    check_layout,
    cost_rows,
    first_model,
    load_start,
    meet,
    prepare_alone,
    replicate,
    share_of,
    whole_copies,
)
from puna.tokenizer.bpe import Tokenizer
from puna.train.config import TrainConfig
from puna.train.loss import Loss
from puna.train.parallel_config import ParallelConfig


class SftRecipe(StageRecipe):
    """A model, the dialogs it learns from, and how."""

    start_from: Path
    """The checkpoint to begin with."""
    dialogs: tuple[Path, ...] = ()
    """JSONL files or folders of them: OpenAI messages, ShareGPT or Alpaca."""
    form: Literal["auto", "openai", "sharegpt", "alpaca"] = "auto"
    """What the files hold; auto looks at each row."""
    exercises: ExerciseConfig | None = None
    """Exercises of the project's own generator, alone or beside the files."""
    data: SftConfig = SftConfig()
    """How dialogs become batches."""
    distill: DistillConfig | None = None
    """Learn from a teacher's probabilities too, a [distill] table; none learns from the dialogs alone."""
    quantization: QuantizationConfig | None = None
    """Train for quantized weights, a [quantization] table; the run then also has a `quantized/` model."""
    adapter: AdapterConfig | None = None
    """Train an adapter instead of the weights, an [adapter] table; none trains all weights."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    parallel: ParallelConfig = ParallelConfig()
    """How processes share the work; torchrun starts them."""

    @model_validator(mode="after")
    def _has_dialogs(self) -> "SftRecipe":
        if not self.dialogs and self.exercises is None:
            raise ValueError("give dialogs = [files] or an [exercises] table: there is nothing to learn from")
        if self.quantization is not None and self.adapter is not None:
            raise ValueError("quantization trains all weights: leave [adapter] out")
        if self.distill is not None and self.data.neftune_alpha:
            raise ValueError("distill is without neftune_alpha")
        if what := self.trained_whole:
            whole_copies(self.parallel, what)
        return self

    @property
    def trained_whole(self) -> str:
        """What asks that every process holds the whole model; empty when nothing does."""
        tables = {"an adapter": self.adapter, "for quantized weights a model": self.quantization}
        tables["a student of a teacher"] = self.distill
        return next((what for what, table in tables.items() if table is not None), "")


def inputs(recipe: SftRecipe) -> Mapping[str, Path]:
    """The checkpoint, the teacher and the files of dialogs."""
    teacher = {} if recipe.distill is None else {"distill.teacher": recipe.distill.teacher}
    files = {f"dialogs.{i}": path for i, path in enumerate(recipe.dialogs)}
    return {"start_from": recipe.start_from, **teacher, **files}


def plan(recipe: SftRecipe) -> Sequence[PlanRow]:
    """What the run costs."""
    from puna.checkpoint.format import load_config
    from puna.post.dialogs import read_dialogs

    if recipe.dialogs and all(path.exists() for path in recipe.dialogs):
        read_dialogs(recipe.dialogs, form=recipe.form)  # what is wrong with them is told before the run
    shape = load_config(recipe.start_from)
    check_context(shape, recipe.data.sequence_length)
    data = recipe.data
    return cost_rows(shape, recipe.train, rows=data.rows, sequence_length=data.sequence_length, adapter=recipe.adapter)


def run(recipe: SftRecipe, folder: RunFolder) -> None:
    """Fine-tune to the end of the recipe."""
    from puna.checkpoint.card import Card
    from puna.checkpoint.format import load_config, load_tokenizer
    from puna.checkpoint.quantized import save_quantized
    from puna.model.projection import train_for
    from puna.post.dialogs import read_dialogs
    from puna.post.sft import SftBatches, make_loss
    from puna.train.loop import train

    rows = read_dialogs(recipe.dialogs, form=recipe.form) if recipe.dialogs else []
    if recipe.exercises is not None:
        rows += dialog_rows(recipe.exercises)
    shape, tokenizer, data = load_config(recipe.start_from), load_tokenizer(recipe.start_from), recipe.data
    check_context(shape, data.sequence_length)
    if recipe.trained_whole:
        layout = check_layout(
            recipe.parallel, recipe.train, shape, rows=data.rows, sequence_length=data.sequence_length
        )
        if recipe.adapter is None:
            model = first_model(shape, recipe.start_from, seed=0)
        else:
            model = adapted_model(recipe.start_from, recipe.adapter, recipe.train)
        if recipe.quantization is not None:
            train_for(model, recipe.quantization)
        ranks = replicate(model, layout, recipe.train)
    else:
        ranks = meet(recipe.parallel, recipe.train, shape, rows=data.rows, sequence_length=data.sequence_length)
        model = first_model(shape, recipe.start_from, seed=0, ranks=ranks)
        if ranks is None:
            prepare_alone(model, recipe.parallel)
    share = share_of(ranks)
    own = data.model_copy(update={"rows": data.rows // share["world"]})
    batches = SftBatches(rows, tokenizer, own, **share)
    report = batches.report
    console.say(
        f"{report.n_kept} of {report.n_dialogs} dialogs, {report.n_tokens} tokens of which {report.n_targets} are "
        f"targets; {report.n_truncated} cut, left out: {console.counts(report.dropped)}"
    )
    card = Card(
        name=recipe.name or "sft",
        made_by="supervised fine-tuning",
        made_from={key: fingerprint(path) for key, path in inputs(recipe).items()},
    )
    train(
        model,
        loss=make_loss(recipe.data) if recipe.distill is None else _distill_loss(recipe.distill, tokenizer, shape),
        batches=batches,
        config=recipe.train,
        run=folder,
        tokenizer=tokenizer,
        ranks=ranks,
        card=card,
    )
    if recipe.quantization is not None and (ranks is None or ranks.speaks):
        save_quantized(folder.path / "quantized", model, recipe.quantization, tokenizer=tokenizer, card=card)
        console.say(
            f"{folder.path / 'quantized'} is written: {recipe.quantization.weights} weights as they were trained"
        )


def _distill_loss(config: DistillConfig, tokenizer: Tokenizer, shape: ModelConfig) -> Loss:
    """The teacher's loss.

    Raises:
        UsageError: The teacher reads another tokenizer's tokens.
    """
    from puna.post.distill import DistillLoss

    teacher, _, its_tokenizer = load_start(config.teacher)
    if its_tokenizer.fingerprint != tokenizer.fingerprint:
        raise UsageError(f"{config.teacher} has another tokenizer than the student; both must read the same tokens.")
    return DistillLoss(teacher, config, student_vocab=shape.vocab_size)


STAGE = Stage(
    verb="sft", recipe=SftRecipe, inputs=inputs, plan=plan, run=run, neutral=(*NEUTRAL, "parallel"), on_many=True
)
