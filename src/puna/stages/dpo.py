"""`puna dpo`: a model and preference pairs in, a model that prefers the better answers out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from puna.core import console
from puna.core.files import fingerprint
from puna.core.run_folder import RunFolder
from puna.model.adapter_config import AdapterConfig
from puna.post.dpo import DpoConfig
from puna.stages.stage import PlanRow, Stage, StageRecipe
from puna.stages.training import (
    NEUTRAL,
    adapted_model,
    check_context,
    check_layout,
    cost_rows,
    first_model,
    language_model,
    meet,
    prepare_alone,
    replicate,
    rows_alone,
    share_of,
    whole_copies,
)
from puna.train.config import TrainConfig
from puna.train.parallel_config import ParallelConfig


class DpoRecipe(StageRecipe):
    """A model, the pairs it learns from, and how."""

    start_from: Path
    """The checkpoint to begin with; it is the reference too."""
    pairs: tuple[Path, ...] = Field(min_length=1)
    """JSONL files of preference rows: `prompt`, `chosen`, `rejected`."""
    data: DpoConfig = DpoConfig()
    """How pairs become batches and a loss."""
    adapter: AdapterConfig | None = None
    """Train an adapter instead of the weights, an [adapter] table; none trains all weights."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    parallel: ParallelConfig = ParallelConfig()
    """How processes share the work, by rows and shards; torchrun starts them."""

    @model_validator(mode="after")
    def _has_a_layout_that_can_be(self) -> "DpoRecipe":
        if self.adapter is not None:
            whole_copies(self.parallel, "an adapter")
        rows_alone(self.parallel, "dpo")
        return self


def inputs(recipe: DpoRecipe) -> Mapping[str, Path]:
    """The checkpoint and the files of pairs."""
    return {"start_from": recipe.start_from, **{f"pairs.{i}": path for i, path in enumerate(recipe.pairs)}}


def plan(recipe: DpoRecipe) -> Sequence[PlanRow]:
    """What the run costs, without the one forward pass of the reference."""
    from puna.checkpoint.format import load_config
    from puna.post.preference_rows import read_preferences

    if all(path.exists() for path in recipe.pairs):
        read_preferences(recipe.pairs)  # what is wrong with them is told before the run
    shape = load_config(recipe.start_from)
    check_context(shape, recipe.data.sequence_length)
    data = recipe.data
    return cost_rows(shape, recipe.train, rows=data.rows, sequence_length=data.sequence_length, adapter=recipe.adapter)


def run(recipe: DpoRecipe, folder: RunFolder) -> None:
    """Optimize to the end of the recipe."""
    from puna.checkpoint.card import Card
    from puna.checkpoint.format import load_tokenizer
    from puna.model.projection import adapters_off
    from puna.post.dpo import DpoBatches, dpo_loss
    from puna.post.pairs import encode_pairs
    from puna.post.preference_rows import read_preferences
    from puna.post.reference import cached_reference
    from puna.train.loop import train
    from puna.train.machine import choose_machine

    settings = recipe.data
    preferences = read_preferences(recipe.pairs)
    shape, tokenizer = language_model(recipe.start_from), load_tokenizer(recipe.start_from)
    length = settings.sequence_length
    check_context(shape, length)
    if recipe.adapter is None:
        ranks = meet(recipe.parallel, recipe.train, shape, rows=settings.rows, sequence_length=length)
        model = first_model(shape, recipe.start_from, seed=0, ranks=ranks)
        if ranks is None:
            prepare_alone(model, recipe.parallel)
    else:
        layout = check_layout(recipe.parallel, recipe.train, shape, rows=settings.rows, sequence_length=length)
        model = adapted_model(recipe.start_from, recipe.adapter, recipe.train)
        ranks = replicate(model, layout, recipe.train)
    if ranks is None:
        model.to(choose_machine(recipe.train.device, recipe.train.precision).device)  # the reference runs before
    share = share_of(ranks)
    settings = settings.model_copy(update={"rows": settings.rows // share["world"]})
    pairs = encode_pairs(
        preferences,
        tokenizer,
        sequence_length=settings.sequence_length,
        format_mask=settings.format_mask,
        shared_prefix=settings.shared_prefix,
    )
    console.say(f"{len(pairs.answers)} of {len(preferences)} pairs; left out: {console.counts(pairs.dropped)}")
    pad = tokenizer.specials.pad
    reference = None
    if settings.needs_reference:
        packing = "" if recipe.adapter is None else f" {recipe.adapter.packing}"
        with adapters_off(model):  # the base is the reference, and needs no copy
            reference = cached_reference(
                model,
                pairs,
                settings,
                pad=pad,
                model_fingerprint=fingerprint(recipe.start_from) + packing,
                tokenizer_fingerprint=tokenizer.fingerprint,
                folder=folder.work,
                ranks=ranks,
            )
    train(
        model,
        loss=dpo_loss(settings, pairs=pairs),
        batches=DpoBatches(pairs, settings, pad=pad, reference=reference, **share),
        config=recipe.train,
        run=folder,
        tokenizer=tokenizer,
        ranks=ranks,
        card=Card(
            name=recipe.name or "dpo",
            made_by="direct preference optimization",
            made_from={key: fingerprint(path) for key, path in inputs(recipe).items()},
        ),
    )


STAGE = Stage(
    verb="dpo", recipe=DpoRecipe, inputs=inputs, plan=plan, run=run, neutral=(*NEUTRAL, "parallel"), on_many=True
)
