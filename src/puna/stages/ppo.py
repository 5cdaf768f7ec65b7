"""`puna ppo`: a model, questions and a judge in, a model that was rewarded for better answers out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from puna.core import console
from puna.core.config import Shares
from puna.core.errors import UsageError
from puna.core.files import fingerprint
from puna.core.run_folder import RunFolder
from puna.model.adapter_config import AdapterConfig
from puna.model.transformer import Transformer
from puna.post.policy import PolicyConfig
from puna.post.rejection import Task
from puna.stages.checkable import CodeConfig, check_files, code_tasks, code_verifier
from puna.stages.exercise_data import ExerciseConfig, tasks, verify_exercise
from puna.stages.stage import PlanRow, Stage, StageRecipe
from puna.stages.training import NEUTRAL, adapted_model, load_start
from puna.train.config import TrainConfig

CRITIC = "critic"


class PpoRecipe(StageRecipe):
    """A model, what it is asked, what answers are worth, and how it learns."""

    start_from: Path
    """The checkpoint to begin with; it is the reference too."""
    exercises: ExerciseConfig | None = None
    """Questions whose answers can be checked: a right answer is worth `policy.verifier_weight`."""
    code: CodeConfig | None = None
    """Programming problems: a program that passes its tests is worth `policy.verifier_weight`."""
    samples: Path | None = None
    """A `puna sample` run over the same exercises: those that its model got right too rarely or too often are left
    out, since answers that are all right or all wrong teach nothing."""
    right_between: Shares = (0.05, 0.95)
    """Bounds of the share of right answers in `samples`, both included."""
    prompts: tuple[Path, ...] = ()
    """JSONL files of dialogs; their last answer, if there is one, is left out. They need a reward model."""
    reward_model: Path | None = None
    """A model made by `puna rm`: its score times `policy.reward_weight` is a part of the reward."""
    critic: Path | None = None
    """ppo's value model to begin with: a reward model, or the `critic` folder of an earlier run. None takes the reward
    model, or without one the start's trunk with a new head."""
    policy: PolicyConfig = PolicyConfig()
    """How answers are sampled and learned from."""
    adapter: AdapterConfig | None = None
    """Train an adapter instead of the weights, an [adapter] table; none trains all weights."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    cache_tokens: int = Field(default=65_536, ge=1)
    """Room of the kv cache, in tokens over all answers that are written together."""
    max_batch: int = Field(default=128, ge=1)
    """Most answers written together."""

    @model_validator(mode="after")
    def _can_be_judged(self) -> "PpoRecipe":
        given = [self.exercises is not None, self.code is not None, bool(self.prompts)]
        if not any(given):
            raise ValueError("give an [exercises] or [code] table, or prompts = [files]: there is nothing to answer")
        if self.prompts and self.reward_model is None:
            raise ValueError("prompts need a reward_model: no verifier can check answers to them")
        if sum(given) > 1:
            raise ValueError("give one of [exercises], [code] and prompts: their answers are judged differently")
        if self.adapter is not None and self.adapter.dropout:
            raise ValueError("adapter.dropout must be 0: with dropout the answers are not the policy's own")
        if self.critic is not None and self.policy.method != "ppo":
            raise ValueError(f"critic is for policy.method = 'ppo'; {self.policy.method} has none")
        if self.samples is not None and self.exercises is None:
            raise ValueError("samples says how hard exercises are; give the [exercises] table of that run")
        return self


def inputs(recipe: PpoRecipe) -> Mapping[str, Path]:
    """The checkpoints and the files of prompts."""
    named = {"start_from": recipe.start_from, "reward_model": recipe.reward_model, "critic": recipe.critic}
    named |= {"samples": recipe.samples}
    files = {f"prompts.{i}": path for i, path in enumerate(recipe.prompts)}
    files |= {f"code.files.{i}": path for i, path in enumerate(recipe.code.files if recipe.code else ())}
    return {**{key: path for key, path in named.items() if path is not None}, **files}


def plan(recipe: PpoRecipe) -> Sequence[PlanRow]:
    """How much is drawn and learned."""
    check_files(recipe.prompts, recipe.code)
    policy, steps = recipe.policy, recipe.train.steps
    iterations = -(-steps * recipe.train.accumulation // policy.batches_per_iteration)
    answers = iterations * policy.prompts * policy.samples
    models = ["the policy"]
    models += ["a critic"] if policy.method == "ppo" else []
    models += ["the reference"] if policy.kl_coefficient and recipe.adapter is None else []
    models += ["a reward model"] if recipe.reward_model else []
    return [
        ("answers", f"{answers:,} in {iterations:,} iterations of {policy.prompts} prompts x {policy.samples}"),
        ("steps", f"{steps:,}, {policy.batches_per_iteration // recipe.train.accumulation} in an iteration"),
        ("models in memory", ", ".join(models)),
    ]


def run(recipe: PpoRecipe, folder: RunFolder) -> None:
    """Sample, judge and learn to the end of the recipe."""
    from puna.checkpoint.card import Card
    from puna.checkpoint.format import load_tokenizer, save_model
    from puna.infer.engine import Engine
    from puna.post.dialogs import read_prompts
    from puna.post.policy import PolicyLoss, attach_critic, critic_of
    from puna.post.policy_batches import PolicyBatches
    from puna.post.rejection import Verifier, right_shares
    from puna.post.reward import Scorer
    from puna.post.rollout import Judge
    from puna.tokenizer.chat_format import prompt
    from puna.train.loop import train

    settings = recipe.policy
    if recipe.adapter is None:
        model, shape, tokenizer = load_start(recipe.start_from)
        reference = load_start(recipe.start_from)[0].requires_grad_(False) if settings.kl_coefficient else None
    else:
        model, tokenizer = (
            adapted_model(recipe.start_from, recipe.adapter, recipe.train),
            load_tokenizer(recipe.start_from),
        )
        shape = model.config
        reference = model if settings.kl_coefficient else None  # with its adapters off
    verifier: Verifier | None = None
    if recipe.exercises is not None:
        asked, verifier = tasks(recipe.exercises), verify_exercise
        if recipe.samples is not None:
            asked = of_middling_difficulty(asked, right_shares(recipe.samples), recipe.right_between)
            console.say(f"{len(asked)} of {recipe.exercises.n} exercises are neither too easy nor too hard")
    elif recipe.code is not None:
        asked, verifier = code_tasks(recipe.code), code_verifier(recipe.code)
    else:
        asked = [Task(str(number), dialog) for number, dialog in enumerate(read_prompts(recipe.prompts))]
    room = shape.max_seq_len - settings.max_tokens
    asked = [task for task in asked if len(prompt(tokenizer, task.prompt)) <= room]
    scorer = None
    if recipe.reward_model is not None:
        scorer = Scorer(score_model(recipe.reward_model), tokenizer)
    judge = Judge(
        verifier=verifier,
        scorer=scorer,
        verifier_weight=settings.verifier_weight,
        reward_weight=settings.reward_weight,
        unfinished_penalty=settings.unfinished_penalty,
    )
    if settings.method == "ppo":
        attach_critic(model, _critic(recipe))
    train(
        model,
        loss=PolicyLoss(settings),
        batches=PolicyBatches(
            asked,
            settings,
            model=model,
            judge=judge,
            make_generator=lambda: Engine(
                model, tokenizer, max_batch=recipe.max_batch, cache_tokens=recipe.cache_tokens
            ),
            encode=lambda task: prompt(tokenizer, task.prompt),
            pad=tokenizer.specials.pad,
            run=folder,
            reference=reference,
            accumulation=recipe.train.accumulation,
        ),
        config=recipe.train,
        run=folder,
        tokenizer=tokenizer,
        card=Card(
            name=recipe.name or settings.method,
            made_by=f"{settings.method} on sampled answers",
            made_from={key: fingerprint(path) for key, path in inputs(recipe).items()},
        ),
    )
    if settings.method == "ppo":
        critic = critic_of(model)
        save_model(folder.path / CRITIC, critic, critic.config, tokenizer=tokenizer, card=Card(name="critic"))


def of_middling_difficulty(
    asked: Sequence[Task], shares: Mapping[str, float], bounds: tuple[float, float]
) -> list[Task]:
    """The tasks whose share of right answers lies within bounds.

    Raises:
        UsageError: The shares are of other tasks.
    """
    unknown = [task.id for task in asked if task.id not in shares]
    if unknown:
        raise UsageError(
            f"samples does not know {len(unknown)} of {len(asked)} exercises ({unknown[0]!r} is the first); give the "
            "same [exercises] table as that run has"
        )
    return [task for task in asked if bounds[0] <= shares[task.id] <= bounds[1]]


def score_model(path: Path) -> Transformer:
    """The reward model at a path, in fp32.

    Raises:
        UsageError: It is a language model.
    """
    import torch

    from puna.checkpoint.format import load_model

    model, shape = load_model(path, dtype=torch.float32)
    if shape.head != "score":
        raise UsageError(f"{path} is a language model; a reward model is made by `puna rm RECIPE`.")
    return model


def _critic(recipe: PpoRecipe) -> Transformer:
    """The value model that PPO begins with."""
    from puna.post.reward import with_score_head

    path = recipe.critic or recipe.reward_model
    if path is not None:
        return score_model(path)
    return with_score_head(load_start(recipe.start_from)[0], seed=recipe.policy.seed)


STAGE = Stage(
    verb="ppo",
    recipe=PpoRecipe,
    inputs=inputs,
    plan=plan,
    run=run,
    neutral=(*NEUTRAL, "cache_tokens", "max_batch", "code.sandbox.workers"),
)
