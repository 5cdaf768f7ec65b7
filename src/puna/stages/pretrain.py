"""`puna train`: shards in, a base model out; from scratch, or on from any Llama checkpoint."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from puna.core import console
from puna.core.config import Config
from puna.core.errors import ConfigError
from puna.core.files import fingerprint
from puna.core.run_folder import RunFolder
from puna.data.mix import MixConfig, Mixed, resolve_mix
from puna.data.shards import ShardSet
from puna.model.adapter_config import AdapterConfig
from puna.model.config import SIZES, ModelConfig
from puna.stages.model_choice import ContextChoice, ModelChoice
from puna.stages.stage import PlanRow, Stage, StageRecipe
from puna.stages.training import (
    NEUTRAL,
    adapted_model,
    check_context,
    check_layout,
    cost_rows,
    first_model,
    meet,
    prepare_alone,
    replicate,
    share_of,
    whole_copies,
)
from puna.train.config import TrainConfig
from puna.train.parallel_config import AXES, IMPOSSIBLE, ParallelConfig, degree_problems
from puna.train.ramp import BatchPhase, Ramp, resolve_ramp


class TokensConfig(Config):
    """What the model reads."""

    shards: tuple[Path, ...] = Field(min_length=1)
    """Shard sets, from `puna tokenize pack`."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Share of the tokens by source name; empty takes every source by its size."""
    mix: MixConfig | None = None
    """Instead of weights: shares of groups, floors, caps on repetition, and how they change over the run."""
    rows: int = Field(default=8, ge=1)
    """Rows of a batch."""
    sequence_length: int = Field(default=512, ge=2)
    """Tokens of a row; a document that is longer is cut, and no piece sees another document."""
    window_rows: int = Field(default=64, ge=1)
    """Rows packed together: more shuffles wider and cuts fewer documents."""
    seed: int = 0
    """Seed of the order."""
    held_out_batches: int = Field(default=4, ge=0)
    """Batches of held-out documents for the loss on unseen text."""
    verify: bool = True
    """Check every shard against its checksum at the start."""

    @model_validator(mode="after")
    def _has_one_mix(self) -> "TokensConfig":
        if self.weights and self.mix is not None:
            raise ValueError("give weights or mix, not both")
        return self


class PretrainRecipe(StageRecipe):
    """A model, what it reads, and how it is trained."""

    tokenizer: Path | None = None
    """The tokenizer that made the shards. Needed for a new model; a continued one brings its own."""
    start_from: Path | None = None
    """Continue from this checkpoint (any Llama folder) instead of new weights; `model` is then not looked at."""
    model: ModelChoice = ModelChoice()
    """Shape of a new model."""
    context: ContextChoice = ContextChoice()
    """For a continued model: a longer context."""
    data: TokensConfig
    """The tokens."""
    adapter: AdapterConfig | None = None
    """Train an adapter instead of the weights, an [adapter] table; none trains all weights."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    ramp: tuple[BatchPhase, ...] = ()
    """Batches that grow with the tokens seen, `[[ramp]]`; after the last phase train.accumulation counts."""
    parallel: ParallelConfig = ParallelConfig()
    """How processes share the work; torchrun starts them."""

    @model_validator(mode="after")
    def _has_a_beginning(self) -> "PretrainRecipe":
        if (self.tokenizer is None) == (self.start_from is None):
            raise ValueError("give tokenizer for a new model, or start_from to continue one: one of the two")
        if self.start_from is None and self.context != ContextChoice():
            raise ValueError("context is for a continued model; a new one has model.max_seq_len and model.rope_scaling")
        if self.adapter is not None and (self.start_from is None or self.context != ContextChoice()):
            raise ValueError("an adapter needs start_from, and keeps its base's context: leave [context] out")
        if self.adapter is not None:
            whole_copies(self.parallel, "an adapter")
        return self


def inputs(recipe: PretrainRecipe) -> Mapping[str, Path]:
    """Tokenizer or checkpoint, and the shards."""
    named = {"tokenizer": recipe.tokenizer, "start_from": recipe.start_from}
    shards = {f"data.shards.{i}": path for i, path in enumerate(recipe.data.shards)}
    return {key: path for key, path in (named | shards).items() if path is not None}


def shape_of(recipe: PretrainRecipe) -> ModelConfig:
    """The shape of the model; before the tokenizer is made, the size's own vocabulary stands in for it."""
    from puna.checkpoint.format import load_config

    if recipe.start_from is not None:
        return recipe.context.apply(load_config(recipe.start_from))
    vocab_size = _vocab_size(recipe.tokenizer) or SIZES[recipe.model.size].vocab_size
    return recipe.model.resolve(vocab_size=vocab_size)


def ramp_of(recipe: PretrainRecipe) -> Ramp:
    """How many batches make a step over the run.

    Raises:
        ConfigError: The phases do not fit the data's rows.
    """
    data = recipe.data
    return resolve_ramp(
        recipe.ramp, rows=data.rows, sequence_length=data.sequence_length, accumulation=recipe.train.accumulation
    )


def plan(recipe: PretrainRecipe) -> Sequence[PlanRow]:
    """What the run costs."""
    shape, ramp = shape_of(recipe), ramp_of(recipe)
    check_context(shape, recipe.data.sequence_length)
    _check_mix(recipe)
    rows = cost_rows(
        shape,
        recipe.train,
        rows=recipe.data.rows,
        sequence_length=recipe.data.sequence_length,
        tokens=ramp.tokens_at(recipe.train.steps),
        adapter=recipe.adapter,
    )
    if not recipe.parallel.is_single:
        rows = [*(row for row in rows if row[0] not in _OF_ONE_PROCESS), _many_row(recipe.parallel, shape)]
    if not recipe.ramp:
        return rows
    phases = zip(ramp.starts, ramp.batches, ramp.lengths, strict=True)
    return [
        *rows,
        *(
            ("batch", f"from {start:,} tokens on {n * ramp.tokens:,}, {n} x {recipe.data.rows} rows, cut at {length}")
            for start, n, length in phases
        ),
    ]


_OF_ONE_PROCESS = ("memory, about", "memory to save behind", "time, about")


def _many_row(parallel: ParallelConfig, shape: ModelConfig) -> PlanRow:
    """Where the memory and time of many processes are told: this machine's would say nothing.

    Raises:
        ConfigError: The model forbids a degree.
    """
    if found := degree_problems(parallel, shape):
        raise ConfigError(found, title=IMPOSSIBLE)
    known = math.prod(max(1, getattr(parallel, axis)) for axis in AXES)
    size = f"N, a multiple of {known}" if any(getattr(parallel, axis) == -1 for axis in AXES) else f"{known}"
    return "memory and time", f"of many processes, not of this machine: add --world-size {size}"


def mix_of(recipe: PretrainRecipe, sets: Sequence[ShardSet]) -> Mixed | None:
    """The recipe's mix over the shards that are there; None where it has none.

    Raises:
        ConfigError: It does not fit them.
    """
    if recipe.data.mix is None:
        return None
    sizes = {name: source.n_tokens for shards in sets for name, source in shards.sources("train").items()}
    rows = ramp_of(recipe).tokens_at(recipe.train.steps) // recipe.data.sequence_length
    return resolve_mix(recipe.data.mix, sizes, rows=rows, row_tokens=recipe.data.sequence_length)


def _check_mix(recipe: PretrainRecipe) -> None:
    """Find a mix that does not fit the shards before the run, as far as they are there."""
    data = recipe.data
    from puna.data.loader import PackedLoader

    if all(path.exists() for path in data.shards):
        sets = [ShardSet.open(path, verify="sizes") for path in data.shards]
        mixed = mix_of(recipe, sets)
        weights = mixed.weights if mixed else data.weights or None
        PackedLoader(sets, weights=weights, rows=1, sequence_length=data.sequence_length, seed=data.seed)


def _vocab_size(tokenizer: Path | None) -> int | None:
    from puna.tokenizer.bpe import Tokenizer

    return Tokenizer.load(tokenizer).vocab_size if tokenizer and tokenizer.exists() else None


def run(recipe: PretrainRecipe, folder: RunFolder) -> None:
    """Train to the end of the recipe."""
    from puna.checkpoint.card import PRETRAINED, Card
    from puna.checkpoint.format import load_config, load_tokenizer
    from puna.data.loader import PackedLoader
    from puna.tokenizer.bpe import Tokenizer
    from puna.train.loop import train
    from puna.train.loss import next_token_loss
    from puna.train.pretrain import first_batches, held_out

    if recipe.start_from is not None:
        shape, tokenizer = recipe.context.apply(load_config(recipe.start_from)), load_tokenizer(recipe.start_from)
    else:
        assert recipe.tokenizer is not None, "checked by the recipe"
        tokenizer = Tokenizer.load(recipe.tokenizer)
        shape = recipe.model.resolve(vocab_size=tokenizer.vocab_size)
    data, ramp = recipe.data, ramp_of(recipe)
    if recipe.adapter is not None and recipe.start_from is not None:
        layout = check_layout(
            recipe.parallel, recipe.train, shape, rows=data.rows, sequence_length=data.sequence_length
        )
        model = adapted_model(recipe.start_from, recipe.adapter, recipe.train)
        ranks = replicate(model, layout, recipe.train)
    else:
        ranks = meet(
            recipe.parallel,
            recipe.train,
            shape,
            rows=data.rows,
            sequence_length=data.sequence_length,
            accumulations=ramp.batches,
        )
        model = first_model(shape, recipe.start_from, seed=recipe.model.init_seed, ranks=ranks)
        if ranks is None:
            prepare_alone(model, recipe.parallel)
    check_context(shape, recipe.data.sequence_length)
    sets = [ShardSet.open(path, verify="full" if data.verify else "sizes") for path in data.shards]
    strange = [str(path) for path, s in zip(data.shards, sets, strict=True) if s.tokenizer != tokenizer.fingerprint]
    if strange:
        raise ConfigError([f"{path} was made with another tokenizer; pack it again with this one" for path in strange])

    mixed = mix_of(recipe, sets)

    def loader(split: str) -> PackedLoader:
        return PackedLoader(
            sets,
            weights=mixed.weights if mixed else data.weights or None,
            later=mixed.later if mixed and split == "train" else (),
            cuts=ramp.cuts(data.sequence_length) if split == "train" else (),
            rows=data.rows,
            sequence_length=data.sequence_length,
            seed=data.seed,
            **share_of(ranks),
            split="held_out" if split == "held_out" else "train",
            window_rows=data.window_rows,
        )

    evaluate = None
    if data.held_out_batches and any(s.sources("held_out") for s in sets):
        evaluate = held_out(first_batches(loader("held_out"), data.held_out_batches), ranks)
    elif data.held_out_batches:
        console.warn(
            "no document is held out, so there is no loss on unseen text: pack with a larger held_out_fraction"
        )
    train(
        model,
        loss=next_token_loss,
        batches=loader("train"),
        config=recipe.train,
        run=folder,
        tokenizer=tokenizer,
        evaluate=evaluate,
        ranks=ranks,
        ramp=ramp,
        card=Card(
            name=recipe.name or "base",
            made_by=PRETRAINED[recipe.start_from is not None],
            made_from={key: fingerprint(path) for key, path in inputs(recipe).items()},
        ),
    )


STAGE = Stage(
    verb="train",
    recipe=PretrainRecipe,
    inputs=inputs,
    plan=plan,
    run=run,
    neutral=(*NEUTRAL, "parallel", "data.verify"),
    on_many=True,
)
