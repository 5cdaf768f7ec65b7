"""The recipe of `puna round`: what every round does, and how much of it.

A table of the recipe is what a stage's own recipe holds without its inputs and output, which the round knows. Without
`[dpo]`, `[ppo]` or `[average]` the round has no such step; the other tables have defaults, and their steps always run.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.evaluate.tasks.config import TaskConfig
from puna.post.dpo import DpoConfig
from puna.post.policy import PolicyConfig
from puna.post.preferences.quality import QualityConfig
from puna.post.preferences.settings import CollectionSettings
from puna.post.rejection import RejectionConfig
from puna.post.reward import RewardConfig
from puna.post.reward_check import CheckConfig
from puna.post.round_gate import GateConfig
from puna.post.sft import SftConfig
from puna.stages.exercise_data import ExerciseConfig
from puna.train.config import TrainConfig


class ItemsPart(Config):
    """Answers to compare."""

    n: int = Field(default=400, ge=1)
    """Prompts of a round; each round takes others."""
    gold: int = Field(default=24, ge=0)
    """Test questions among them (exercises only)."""
    earlier_models: int = Field(default=1, ge=0)
    """Models of so many earlier rounds answer beside the newest one."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the draws."""


class AnnotatePart(Config):
    """Who compares them."""

    by: Literal["simulator", "people", "judge"] = "people"
    """People on the annotation page, a judge model, or simulated people of known skill (exercises only)."""
    judge: Path | None = None
    """For `judge`: a checkpoint."""
    database: str = ""
    """For `people`: the collection of all rounds; empty takes `people.db` in `out`."""
    collection: CollectionSettings = CollectionSettings()
    """Quotas and rates of the collection."""
    adjudicate: int = Field(default=0, ge=0)
    """The most disputed items that adjudicators decide."""

    @model_validator(mode="after")
    def _has_its_judge(self) -> "AnnotatePart":
        if self.by == "judge" and self.judge is None:
            raise ValueError('by = "judge" needs judge = "...", a checkpoint')
        return self


class QualityPart(Config):
    """How labels are checked."""

    quality: QualityConfig = QualityConfig()
    """Thresholds."""
    min_strength: int = Field(default=1, ge=1, le=4)
    """Weaker preferences are no training rows; 3 keeps what Llama 3 keeps."""
    held_out_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Prompts whose accepted rows judge the reward model instead of training it (exercises judge by their verifier)."""


class RewardPart(Config):
    """The reward model of a round, trained on the preferences of all rounds so far."""

    start_from: Path | None = None
    """What it begins with; none takes the round's model."""
    data: RewardConfig = RewardConfig()
    """How preferences become batches and a loss."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    check: CheckConfig = CheckConfig()
    """What is asked of it before it is used; a model that fails ends its round."""
    check_prompts: int = Field(default=400, ge=1)
    """Exercises whose right and wrong answers judge it."""
    against_raw: bool = False
    """Also train one on the labels as they came, the same way, to see what the checks are worth."""


class SamplingPart(Config):
    """Rejection sampling with the reward model."""

    n: int = Field(default=1000, ge=1)
    """Prompts of a round; each round takes others."""
    verify: bool = False
    """Let exercises' verifier judge beside the reward model."""
    draw: RejectionConfig = RejectionConfig(selection="best")
    """How answers are drawn, and what becomes of them."""


class SftPart(Config):
    """Fine-tuning on the best answers."""

    start_from: Path | None = None
    """What it begins with; none takes the round's model."""
    dialogs: tuple[Path, ...] = ()
    """Files of dialogs that are in every round's mix."""
    earlier_rounds: int = Field(default=0, ge=0)
    """Best answers of so many earlier rounds are in the mix too."""
    data: SftConfig = SftConfig()
    """How dialogs become batches."""
    train: TrainConfig = TrainConfig()
    """The training loop."""


class DpoPart(Config):
    """Direct preference optimization."""

    pairs: tuple[Literal["annotated", "sampled"], ...] = ("annotated",)
    """The round's checked preferences, and the best against the worst of its samples."""
    earlier_rounds: int = Field(default=0, ge=0)
    """Checked preferences of so many earlier rounds are in the mix too."""
    data: DpoConfig = DpoConfig()
    """How pairs become batches and a loss."""
    train: TrainConfig = TrainConfig()
    """The training loop."""


class PpoPart(Config):
    """Learning from samples that the reward model judges."""

    n: int = Field(default=2000, ge=1)
    """Exercises of a round (prompts of files are all taken)."""
    policy: PolicyConfig = PolicyConfig()
    """How answers are sampled and learned from; `verifier_weight` counts for exercises alone."""
    train: TrainConfig = TrainConfig()
    """The training loop."""


class AveragePart(Config):
    """The mean of the round's models: after SFT, DPO and PPO, as far as they are made."""

    weights: tuple[float, ...] = ()
    """Weight of each, in that order; none means equal."""


class RoundRecipe(Config):
    """Rounds of post-training."""

    out: Path
    """Folder of all rounds, the report page and `summary.json`."""
    before: str = ""
    """Pipeline to run first, which makes `start_from`: a file beside this one, a path, or a name."""
    start_from: Path
    """The model before the first round."""
    models: tuple[Path, ...] = ()
    """Other models whose answers are compared too, in every round."""
    rounds: int = Field(default=1, ge=1)
    """How many rounds."""
    prompts: tuple[Path, ...] = ()
    """JSONL files of dialogs to answer."""
    exercises: ExerciseConfig | None = None
    """Exercises to answer instead of `prompts`; `n` is not used, every step has its own."""
    seed: int = 0
    """Seed of prompts and draws."""
    items: ItemsPart = ItemsPart()
    """Answers to compare."""
    annotate: AnnotatePart = AnnotatePart()
    """Who compares them."""
    check_labels: QualityPart = QualityPart()
    """How labels are checked."""
    reward: RewardPart = RewardPart()
    """The reward model."""
    sampling: SamplingPart = SamplingPart()
    """Rejection sampling."""
    sft: SftPart = SftPart()
    """Fine-tuning."""
    dpo: DpoPart | None = None
    """Direct preference optimization."""
    ppo: PpoPart | None = None
    """Learning from samples."""
    average: AveragePart | None = None
    """Averaging."""
    tasks: tuple[TaskConfig, ...] = Field(min_length=1)
    """What the model is asked before and after, `[[tasks]]` tables."""
    gate: GateConfig = GateConfig()
    """When the new model takes the old one's place."""
    cache_tokens: int = Field(default=65_536, ge=1)
    """Room of the kv cache, in tokens over all answers that are written together."""
    max_batch: int = Field(default=128, ge=1)
    """Most answers written together."""

    @model_validator(mode="after")
    def _fits_together(self) -> "RoundRecipe":
        if bool(self.prompts) == (self.exercises is not None):
            raise ValueError("give prompts = [files] or an [exercises] table, one of them")
        if self.annotate.by == "simulator" and self.exercises is None:
            raise ValueError(
                'annotate.by = "simulator" needs an [exercises] table: elsewhere nothing is known for sure'
            )
        if self.prompts and not self.check_labels.held_out_fraction:
            raise ValueError("check_labels.held_out_fraction is 0: nothing is left to judge the reward model by")
        if self.sampling.verify and self.exercises is None:
            raise ValueError("sampling.verify needs an [exercises] table: no verifier can check other prompts")
        if self.average and not (self.dpo or self.ppo):
            raise ValueError("[average] needs a [dpo] or [ppo] table: SFT alone gives one model")
        made = 1 + (self.dpo is not None) + (self.ppo is not None)
        if self.average and len(self.average.weights) not in (0, made):
            raise ValueError(f"average.weights are {len(self.average.weights)} for {made} models; give one for each")
        return self

    @property
    def database(self) -> str:
        """Where people's collection lies."""
        return self.annotate.database or str(self.out / "people.db")
