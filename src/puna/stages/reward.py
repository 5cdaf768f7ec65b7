"""`puna rm`: a model and preferences in, a reward model out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from puna.core import console
from puna.core.files import fingerprint, write_json
from puna.core.run_folder import RunFolder
from puna.model.config import ModelConfig
from puna.post.reward import RewardConfig
from puna.post.reward_check import CheckConfig
from puna.stages.page import reward_page
from puna.stages.stage import PlanRow, Stage, StageRecipe
from puna.stages.training import NEUTRAL, check_context, cost_rows, meet, prepare_alone, rows_alone, share_of
from puna.train.config import TrainConfig
from puna.train.parallel_config import ParallelConfig

FIGURES = "check.json"


class RewardRecipe(StageRecipe):
    """A model, the preferences it learns from, and how."""

    start_from: Path
    """The language model whose trunk the reward model takes, or a reward model to go on with."""
    preferences: tuple[Path, ...] = Field(min_length=1)
    """JSONL files of preferences (`prompt`, `chosen`, `rejected`, maybe `edited`) or rankings (`prompt`, `ranking`)."""
    held_out_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Prompts that are not learned from and tell how good the model is; all answers to a prompt are on one side."""
    data: RewardConfig = RewardConfig()
    """How preferences become batches and a loss."""
    check: CheckConfig = CheckConfig()
    """What is asked of the finished model; here it is told only, `puna rm check` is the gate."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    parallel: ParallelConfig = ParallelConfig()
    """How processes share the work, by rows and shards; torchrun starts them."""

    @model_validator(mode="after")
    def _has_a_layout_that_can_be(self) -> "RewardRecipe":
        rows_alone(self.parallel, "a reward model")
        return self


def inputs(recipe: RewardRecipe) -> Mapping[str, Path]:
    """The checkpoint and the files of preferences."""
    files = {f"preferences.{i}": path for i, path in enumerate(recipe.preferences)}
    return {"start_from": recipe.start_from, **files}


def plan(recipe: RewardRecipe) -> Sequence[PlanRow]:
    """What the run costs."""
    from puna.checkpoint.format import load_config
    from puna.post.rankings import read_rankings
    from puna.post.reward import scorer_shape

    if all(path.exists() for path in recipe.preferences):
        read_rankings(recipe.preferences)  # what is wrong with them is told before the run
    shape = load_config(recipe.start_from)
    check_context(shape, recipe.data.sequence_length)
    return cost_rows(
        scorer_shape(shape), recipe.train, rows=recipe.data.rows, sequence_length=recipe.data.sequence_length
    )


def run(recipe: RewardRecipe, folder: RunFolder) -> None:
    """Train, then look at what was held out."""
    import torch

    from puna.checkpoint.card import Card
    from puna.checkpoint.format import load_config, load_tokenizer
    from puna.post.rankings import at_least, encode_rankings, read_rankings, split_rankings
    from puna.post.reward import RewardBatches, RewardLoss, Scorer, scorer_shape
    from puna.post.reward_check import examine, score_pairs
    from puna.train.loop import train

    settings = recipe.data
    rankings = read_rankings(recipe.preferences)
    learned, held_out = split_rankings(rankings, recipe.held_out_fraction)
    learned = at_least(learned, settings.least_strength)
    start = load_config(recipe.start_from)
    tokenizer = load_tokenizer(recipe.start_from)
    check_context(start, settings.sequence_length)
    ranks = meet(
        recipe.parallel,
        recipe.train,
        scorer_shape(start),
        rows=settings.rows,
        sequence_length=settings.sequence_length,
    )
    model = first_scorer(recipe.start_from, start, seed=settings.seed, ranks=ranks)
    if ranks is None:
        prepare_alone(model, recipe.parallel)
    share = share_of(ranks)
    settings = settings.model_copy(update={"rows": settings.rows // share["world"]})
    encoded = encode_rankings(
        learned, tokenizer, sequence_length=settings.sequence_length, shared_prefix=settings.shared_prefix
    )
    console.say(
        f"{len(encoded.trees)} prompts with their answers to learn from, {len(held_out)} held out, of {len(rankings)}; "
        f"left out: {console.counts(encoded.dropped)}"
    )
    kept = encode_rankings(held_out, tokenizer, sequence_length=settings.sequence_length) if held_out else None

    def evaluate(scored: torch.nn.Module) -> dict[str, float]:
        assert kept is not None and scored is model, "the loop evaluates the model that it trains"
        return {"accuracy": float(score_pairs(Scorer(model, tokenizer, ranks=ranks), kept).right.mean())}

    train(
        model,
        loss=RewardLoss(settings),
        batches=RewardBatches(encoded, settings, pad=tokenizer.specials.pad, **share),
        config=recipe.train,
        run=folder,
        tokenizer=tokenizer,
        evaluate=evaluate if kept else None,
        ranks=ranks,
        card=Card(
            name=recipe.name or "reward model",
            made_by="reward modelling",
            made_from={key: fingerprint(path) for key, path in inputs(recipe).items()},
        ),
    )
    if kept:
        report = examine(
            score_pairs(Scorer(model, tokenizer, ranks=ranks), kept), recipe.check
        )  # shards: all processes run it
        if ranks is not None and not ranks.speaks:
            return
        write_json(folder.path / FIGURES, report.to_json())
        reward_page.write(folder.path / reward_page.PAGE, report, title=f"Reward model {recipe.name or folder.path}")
        reward_page.tell(report)


def first_scorer(path: Path, start: ModelConfig, *, seed: int, ranks: Any) -> Any:
    """The model that a run begins with: the trunk of a language model with a new score head, or a reward model.

    Args:
        path: The checkpoint.
        start: Its shape.
        seed: Of the score head.
        ranks: The other processes, each of which reads its boxes; None reads it whole.
    """
    import torch

    from puna.checkpoint.format import load_model
    from puna.post.reward import first_score, scorer_shape, with_score_head

    if ranks is None:
        return with_score_head(load_model(path, dtype=torch.float32)[0], seed=seed)
    model = ranks.build(scorer_shape(start))
    is_new = start.head != "score"
    ranks.load_weights(path, start, without=("score.weight",) if is_new else ())
    if is_new:
        ranks.fill("score.weight", first_score(start.dim, seed=seed))
    return model


STAGE = Stage(
    verb="rm", recipe=RewardRecipe, inputs=inputs, plan=plan, run=run, neutral=(*NEUTRAL, "parallel"), on_many=True
)
