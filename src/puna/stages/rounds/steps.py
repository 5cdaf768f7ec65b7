"""The steps of one round as recipes of stages: where each reads, where it writes, what differs from round to round.

round-1/items          the newest model and others answer the same prompts; their answers are paired
round-1/labels         people, a judge model or simulated people compare them
round-1/preferences    the labels are checked: who is trusted, what each item's label is worth
round-1/check-pairs    exercises: right and wrong answers that no annotator saw, to judge the reward model by
round-1/reward         a reward model of all rounds' preferences, and round-1/reward-check, whether it may be used
round-1/samples        rejection sampling: the best of many answers by the reward model
round-1/sft dpo ppo average    the new model
round-1/scores         what it can do, on the same items as the one before
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.post.rejection import RejectionConfig
from puna.stages.annotate_items import ItemsRecipe
from puna.stages.annotate_label import LabelRecipe
from puna.stages.annotate_qa import QualityRecipe
from puna.stages.average import AverageRecipe
from puna.stages.dpo import DpoRecipe
from puna.stages.evaluate import EvaluateRecipe
from puna.stages.exercise_data import ExerciseConfig
from puna.stages.ppo import PpoRecipe
from puna.stages.reward import RewardRecipe
from puna.stages.reward_check import RewardCheckRecipe
from puna.stages.rounds.recipe import RoundRecipe
from puna.stages.sample import SampleRecipe
from puna.stages.sft import SftRecipe
from puna.stages.stage import StageRecipe

_CHECK_SAMPLES = 8


@dataclass(frozen=True)
class RoundStep:
    """A stage with its recipe.

    Attributes:
        verb: Of the stage.
        recipe: Complete, with inputs and output.
    """

    verb: str
    recipe: StageRecipe

    @property
    def out(self) -> Path:
        """Its output folder."""
        return self.recipe.out


Make = Callable[[], RoundStep]
"""Makes a step when its turn has come: what the steps before it wrote decides what it reads."""


@dataclass(frozen=True)
class Round:
    """One round with what it begins with.

    Attributes:
        recipe: Of all rounds.
        number: Counted from 1.
        models: The start and the products of the rounds before it; the last is the round's model. Each once.
        promised: Whether files of earlier steps are taken for granted (a dry run).
    """

    recipe: RoundRecipe
    number: int
    models: tuple[Path, ...]
    promised: bool = False

    @property
    def model(self) -> Path:
        """The newest model."""
        return self.models[-1]

    def place(self, name: str, *, number: int | None = None) -> Path:
        """The folder of a step of this round, or of another one."""
        return self.recipe.out / f"round-{number or self.number}" / name

    def labelling(self) -> list[Make]:
        """From answers to checked preferences."""
        return [self.items, self.labels, self.preferences]

    def rewarding(self) -> list[Make]:
        """The reward model and whether it may be used, and, to compare, one of the labels as they came."""
        makes: list[Make] = [] if self.recipe.exercises is None else [self.check_pairs]
        names = ("reward", "reward-raw") if self.recipe.reward.against_raw else ("reward",)
        for name in names:
            makes += [partial(self.reward, name), partial(self.reward_check, name)]
        return makes

    def learning(self) -> list[Make]:
        """From the reward model to a new model and its scores."""
        of_name: dict[str, Make] = {"sft": self.sft, "dpo": self.dpo, "ppo": self.ppo, "average": self.average}
        return [self.samples, *(of_name[name] for name in self.made), partial(self.scores, "scores", self.product)]

    @property
    def made(self) -> list[str]:
        """The models that the round makes, in order."""
        recipe = self.recipe
        parts = {"sft": recipe.sft, "dpo": recipe.dpo, "ppo": recipe.ppo, "average": recipe.average}
        return [name for name, part in parts.items() if part is not None]

    @property
    def product(self) -> Path:
        """The new model."""
        return self.place(self.made[-1])

    def items(self) -> RoundStep:
        """Answers to compare."""
        part = self.recipe.items
        earlier = self.models[:-1][::-1][: part.earlier_models]
        recipe = ItemsRecipe(
            out=self.place("items"),
            models=tuple(dict.fromkeys((self.model, *earlier, *self.recipe.models))),
            **self._asked(part.n, 1),
            gold=part.gold,
            round=self.number,
            max_tokens=part.max_tokens,
            temperature=part.temperature,
            seed=self._seed(1),
            max_batch=self.recipe.max_batch,
        )
        return RoundStep("annotate items", recipe)

    def labels(self) -> RoundStep:
        """Who finds which better."""
        part = self.recipe.annotate
        recipe = LabelRecipe(
            out=self.place("labels"),
            items=self.place("items"),
            by=part.by,
            judge=part.judge if part.by == "judge" else None,
            database=self.recipe.database if part.by == "people" else "",
            collection=part.collection,
            adjudicate=part.adjudicate,
            seed=self._seed(2),
        )
        return RoundStep("annotate label", recipe)

    def preferences(self) -> RoundStep:
        """What the labels are worth."""
        part = self.recipe.check_labels
        recipe = QualityRecipe(
            out=self.place("preferences"),
            items=(self.place("items"),),
            labels=(self.place("labels"),),
            quality=part.quality,
            min_strength=part.min_strength,
            held_out_fraction=0.0 if self.recipe.exercises else part.held_out_fraction,
        )
        return RoundStep("annotate qa", recipe)

    def check_pairs(self) -> RoundStep:
        """Right and wrong answers to other exercises."""
        recipe = SampleRecipe(
            out=self.place("check-pairs"),
            model=self.model,
            **self._asked(self.recipe.reward.check_prompts, 3),
            sampling=RejectionConfig(
                samples_per_task=_CHECK_SAMPLES,
                temperature=self.recipe.items.temperature,
                max_tokens=self.recipe.items.max_tokens,
                use_reference=False,
                tasks_per_call=self.recipe.sampling.draw.tasks_per_call,
                seed=self._seed(3),
            ),
            cache_tokens=self.recipe.cache_tokens,
            max_batch=self.recipe.max_batch,
        )
        return RoundStep("sample", recipe)

    def reward(self, name: str) -> RoundStep:
        """A reward model: `reward` of checked preferences, `reward-raw` of labels as they came."""
        part = self.recipe.reward
        rows = "raw.jsonl" if name == "reward-raw" else "preferences.jsonl"
        recipe = RewardRecipe(
            out=self.place(name),
            start_from=part.start_from or self.model,
            preferences=self._full(self._labelled(rows), "preferences to learn from"),
            held_out_fraction=0.0,
            data=part.data,
            check=part.check,
            train=part.train,
        )
        return RoundStep("rm", recipe)

    def reward_check(self, name: str) -> RoundStep:
        """Whether a reward model may be used."""
        judged, known = self._labelled("held_out.jsonl"), tuple[Path, ...]()
        if self.recipe.exercises is not None:
            judged = [self.place("check-pairs") / "preferences.jsonl"]
            known = self._full([*self._labelled("preferences.jsonl"), *self._labelled("raw.jsonl")], "preferences")
        recipe = RewardCheckRecipe(
            out=self.place(f"{name}-check"),
            model=self.place(name),
            preferences=self._full(judged, "pairs to judge a reward model by"),
            without=known,
            check=self.recipe.reward.check,
            fail=False,
        )
        return RoundStep("rm check", recipe)

    def samples(self) -> RoundStep:
        """The best of many answers."""
        part = self.recipe.sampling
        recipe = SampleRecipe(
            out=self.place("samples"),
            model=self.model,
            **self._asked(part.n, 4),
            reward_model=self.place("reward"),
            verify=part.verify,
            sampling=part.draw.model_copy(update={"seed": self._seed(4)}),
            cache_tokens=self.recipe.cache_tokens,
            max_batch=self.recipe.max_batch,
        )
        return RoundStep("sample", recipe)

    def sft(self) -> RoundStep:
        """Fine-tuning on them, on edits, and on what the recipe names."""
        part = self.recipe.sft
        rounds = self._so_far()[-1 - part.earlier_rounds :]
        sampled = [self.place("samples", number=n) / "sft.jsonl" for n in rounds]
        edited = [] if self.promised else [self.place("preferences", number=n) / "edited.jsonl" for n in rounds]
        recipe = SftRecipe(
            out=self.place("sft"),
            start_from=part.start_from or self.model,
            dialogs=self._full([*sampled, *edited, *part.dialogs], "answers to learn from"),
            data=part.data,
            train=part.train,
        )
        return RoundStep("sft", recipe)

    def dpo(self) -> RoundStep:
        """Direct preference optimization."""
        part = self.recipe.dpo
        assert part is not None
        pairs: list[Path] = []
        if "annotated" in part.pairs:
            rounds = self._so_far()[-1 - part.earlier_rounds :]
            pairs += [self.place("preferences", number=n) / "preferences.jsonl" for n in rounds]
        if "sampled" in part.pairs:
            pairs.append(self.place("samples") / "preferences.jsonl")
        recipe = DpoRecipe(
            out=self.place("dpo"),
            start_from=self._before("dpo"),
            pairs=self._full(pairs, "pairs for DPO"),
            data=part.data,
            train=part.train,
        )
        return RoundStep("dpo", recipe)

    def ppo(self) -> RoundStep:
        """Learning from samples."""
        part = self.recipe.ppo
        assert part is not None
        recipe = PpoRecipe(
            out=self.place("ppo"),
            start_from=self._before("ppo"),
            exercises=self._exercises(part.n, 5),
            prompts=self.recipe.prompts,
            reward_model=self.place("reward"),
            policy=part.policy,
            train=part.train,
            cache_tokens=self.recipe.cache_tokens,
            max_batch=self.recipe.max_batch,
        )
        return RoundStep("ppo", recipe)

    def average(self) -> RoundStep:
        """The mean of the round's models."""
        part = self.recipe.average
        assert part is not None
        models = tuple(self.place(name) for name in self.made[:-1])
        return RoundStep("average", AverageRecipe(out=self.place("average"), models=models, weights=part.weights))

    def scores(self, name: str, model: Path) -> RoundStep:
        """What a model can do."""
        recipe = EvaluateRecipe(
            out=self.place(name),
            model=model,
            tasks=self.recipe.tasks,
            batch_size=self.recipe.max_batch,
            cache_tokens=self.recipe.cache_tokens,
        )
        return RoundStep("eval", recipe)

    def _before(self, name: str) -> Path:
        return self.place(self.made[self.made.index(name) - 1])

    def _labelled(self, rows: str) -> list[Path]:
        return [self.place("preferences", number=n) / rows for n in self._so_far()]

    def _so_far(self) -> list[int]:
        return list(range(1, self.number + 1))

    def _seed(self, step: int) -> int:
        return 1000 * self.recipe.seed + 10 * self.number + step

    def _exercises(self, n: int, step: int) -> ExerciseConfig | None:
        chosen = self.recipe.exercises
        return None if chosen is None else chosen.model_copy(update={"n": n, "seed": self._seed(step)})

    def _asked(self, n: int, step: int) -> dict[str, Any]:
        """The prompts of a step: exercises of its own seed, or a window of the files that moves on with the rounds."""
        exercises = self._exercises(n, step)
        if exercises is not None:
            return {"exercises": exercises}
        return {"prompts": self.recipe.prompts, "skip": (self.number - 1) * n, "limit": n}

    def _full(self, paths: Sequence[Path], what: str) -> tuple[Path, ...]:
        """Those files that hold anything.

        Raises:
            UsageError: None of them does.
        """
        full = tuple(p for p in paths if self.promised or (p.is_file() and p.stat().st_size))
        if not full:
            raise UsageError(f"round {self.number} has no {what}; looked for in {', '.join(map(str, paths))}")
        return full
