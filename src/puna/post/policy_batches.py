"""Iterations of sampling and learning as the endless batches that the training loop takes.

    next_batch:  [draw answers with the policy of this moment, judge them, compute what stays fixed]  ->  a mini-batch

An iteration takes the next prompts, samples answers with the weights as they are, and is then learned from in
`epochs * minibatches` batches. What depends on the policy that sampled (its log probabilities, the critic's values) and
on the reference is computed once and written into the run folder, since the weights that made it are gone one step
later: so a run that is killed in the middle of an iteration goes on bit by bit. Between iterations nothing is needed,
because the same weights and seeds sample the same answers.

The sampler's log probabilities are compared with the trainer's in every iteration. They come from other kernels over
the same weights and tokens; a difference beyond rounding would mean that the answers are not the policy's own, and
every ratio in the loss would be wrong. Then the run stops.

Shapes: A answers, T answer tokens of an iteration.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from puna.core import console
from puna.core.errors import UsageError
from puna.core.files import atomic_open
from puna.core.generator import Generator, Sampling
from puna.core.run_folder import RunFolder
from puna.model.projection import adapters_off
from puna.model.transformer import Transformer
from puna.post.policy import (
    PolicyBatch,
    PolicyConfig,
    answer_logprobs,
    answer_values,
    check_sampler,
    critic_of,
    pack_groups,
    token_weights,
)
from puna.post.policy_losses import adapted_coefficient, gae, group_advantages, token_rewards, whiten
from puna.post.rejection import Task
from puna.post.rollout import Group, Judge, Judged, call_seed, roll_out

KEPT_ITERATIONS = 16  # files of rollouts that stay; a checkpoint older than that begins its iteration anew
_NO_SPREAD = 1e-9  # of the rewards of a group: its answers are worth the same


@dataclass
class Experience:
    """What an iteration learns from. All `[T]` over the tokens of all answers, group after group.

    Attributes:
        groups: Prompts with their answers.
        judged: Rewards.
        old: `[T]` log probabilities of the policy that sampled, by the trainer; None when nobody asks.
        reference: `[T]` the reference's; None without a tie.
        values: `[T]` the critic's; None without a critic.
        sampler_difference: Mean over tokens of |sampler - trainer|, in nats; None when not measured.
    """

    groups: list[Group]
    judged: Judged
    old: NDArray[np.float32] | None = None
    reference: NDArray[np.float32] | None = None
    values: NDArray[np.float32] | None = None
    sampler_difference: float | None = None

    @property
    def sizes(self) -> list[int]:
        """Tokens of each answer."""
        return [len(answer) for group in self.groups for answer in group.answers]

    def kl(self) -> NDArray[np.float64]:
        """`[T]` k1 of each token; zeros without a reference."""
        if self.old is None or self.reference is None:
            return np.zeros(sum(self.sizes))
        return self.old.astype(np.float64) - self.reference


class PolicyBatches:
    """Endless mini-batches of sampled answers, for the training loop.

    Args:
        tasks: Prompts to draw answers to; ids are unique.
        config: How.
        model: The policy that the loop trains, with its critic attached for ppo.
        judge: What answers are worth.
        make_generator: A fresh generator over the policy's weights as they are.
        encode: The ids that it reads for a task.
        reference: The model that the policy is tied to, needed when the KL coefficient is above 0; the policy itself
            where it has adapters, which are then off.
        pad: Token id of the padding.
        run: Receives rollouts in `work/`, and a record of each iteration in the metrics.
        accumulation: Batches that make one step of the loop.

    Raises:
        UsageError: An iteration is not a whole number of steps, or there are too few prompts.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        config: PolicyConfig,
        *,
        model: Transformer,
        judge: Judge,
        make_generator: Callable[[], Generator],
        encode: Callable[[Task], list[int]],
        pad: int,
        run: RunFolder,
        reference: Transformer | None = None,
        accumulation: int = 1,
    ) -> None:
        if config.batches_per_iteration % accumulation:
            raise UsageError(
                f"epochs * minibatches is {config.batches_per_iteration}; it must be a multiple of train.accumulation, "
                f"which is {accumulation}"
            )
        if len(tasks) < config.prompts:
            raise UsageError(f"there are {len(tasks)} prompts, an iteration takes {config.prompts}; lower prompts")
        assert reference is not None or config.kl_coefficient == 0, "the tie to a reference needs the reference"
        self._tasks, self._config, self._model, self._judge = list(tasks), config, model, judge
        self._make_generator, self._encode, self._reference = make_generator, encode, reference
        self._pad, self._run = pad, run
        self._steps_per_iteration = config.batches_per_iteration // accumulation
        self._iteration = self._batch = 0
        self._coefficient = self._next_coefficient = config.kl_coefficient
        self._experience: Experience | None = None
        self._tokens: list[NDArray[np.float32] | None] = []

    def next_batch(self) -> PolicyBatch:
        """The next mini-batch; at the beginning of an iteration answers are drawn first."""
        if self._batch == self._config.batches_per_iteration:
            self._iteration, self._batch, self._experience = self._iteration + 1, 0, None
            self._coefficient = self._next_coefficient
        if self._experience is None:
            self._begin()
        batch = self._make_batch(self._batch)
        self._batch += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Where the stream stands, in JSON types."""
        return {
            "iteration": self._iteration,
            "batch": self._batch,
            "coefficient": self._coefficient,
            "next_coefficient": self._next_coefficient,
            "data": self._identity(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a place that `state` named.

        Raises:
            UsageError: The place belongs to other prompts or settings.
        """
        if state["data"] != self._identity():
            raise UsageError(
                "the checkpoint's place belongs to other prompts or another size of iteration. Go on with the same "
                "settings, or start a new run folder."
            )
        self._iteration, self._batch = state["iteration"], state["batch"]
        self._coefficient, self._next_coefficient = state["coefficient"], state["next_coefficient"]
        self._experience = None

    def _identity(self) -> dict[str, Any]:
        c = self._config
        shape = [c.prompts, c.samples, c.epochs, c.minibatches, c.seed, c.method]
        return {"tasks": call_seed([task.id for task in self._tasks]), "shape": shape}

    # --- an iteration

    def _begin(self) -> None:
        tasks = self._prompts()
        experience = _read(self._path, tasks) if self._batch else None
        if experience is None:
            if self._batch:
                console.warn(f"{self._path} is gone: iteration {self._iteration} begins anew with the present weights")
                self._batch = 0
            experience = self._gather(tasks)
            _write(self._path, experience)
            old = self._run.work / f"rollouts-{self._iteration - KEPT_ITERATIONS:06d}.npz"
            old.unlink(missing_ok=True)
        self._experience = experience
        self._steer(experience)

    @property
    def _path(self) -> Path:
        return self._run.work / f"rollouts-{self._iteration:06d}.npz"

    def _prompts(self) -> list[Task]:
        """The next prompts of an endless, reshuffled order."""
        first, n = self._iteration * self._config.prompts, len(self._tasks)
        chosen = []
        for place in range(first, first + self._config.prompts):
            order = np.random.default_rng([self._config.seed, place // n]).permutation(n)
            chosen.append(self._tasks[int(order[place % n])])
        return chosen

    def _gather(self, tasks: Sequence[Task]) -> Experience:
        config = self._config
        sampling = Sampling(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=call_seed(config.seed, self._iteration),
        )
        groups = roll_out(tasks, self._make_generator(), self._encode, samples=config.samples, sampling=sampling)
        self._model.train()
        experience = Experience(groups, self._judge(groups))
        self._measure(experience)
        if experience.sampler_difference is not None:
            check_sampler(experience.sampler_difference, config.max_sampler_difference)
        return experience

    @torch.no_grad()
    def _measure(self, experience: Experience) -> None:
        """One forward of policy, critic and reference over all answers, in the parts of the first epoch.

        The parts are those that are trained first, so that their ratios are exactly 1. When the iteration is a single
        step without a tie and at temperature 1, no forward is needed at all: the loss's own serves.
        """
        config = self._config
        if config.batches_per_iteration == 1 and not (
            config.method == "ppo" or config.kl_coefficient or config.temperature != 1.0
        ):
            return
        n_tokens = sum(experience.sizes)
        old, reference, values = (np.zeros(n_tokens, dtype=np.float32) for _ in range(3))
        offsets = _offsets(experience.groups)
        differences: list[NDArray[np.float64]] = []
        if self._reference is not None:
            self._reference.to(self._model.device, next(self._model.parameters()).dtype)
        for part in self._parts(epoch=0):
            groups = [experience.groups[i] for i in part]
            packed = pack_groups(groups, pad=self._pad)
            place = np.concatenate([np.arange(*offsets[i]) for i in part])
            lp_T = answer_logprobs(self._model, *packed, temperature=config.temperature)
            old[place] = lp_T.float().cpu().numpy()
            if self._reference is not None and config.kl_coefficient:
                with adapters_off(self._reference):
                    lp_T = answer_logprobs(self._reference, *packed, temperature=config.temperature)
                reference[place] = lp_T.float().cpu().numpy()
            if config.method == "ppo":
                values[place] = answer_values(critic_of(self._model), *packed[:2]).float().cpu().numpy()
            if config.temperature == 1.0 or not differences:
                own = old[place]
                if config.temperature != 1.0:
                    own = answer_logprobs(self._model, *packed, temperature=1.0).float().cpu().numpy()
                sampler = np.concatenate([row for group in groups for row in group.logprobs])
                differences.append(np.abs(own - sampler))
        experience.old = old
        experience.reference = reference if config.kl_coefficient else None
        experience.values = values if config.method == "ppo" else None
        experience.sampler_difference = float(np.concatenate(differences).mean())

    def _steer(self, experience: Experience) -> None:
        """Advantages, the next KL coefficient, and a record of the iteration."""
        config, sizes = self._config, experience.sizes
        rewards, kl_T = experience.judged.rewards, experience.kl()
        group_sizes = [len(group.answers) for group in experience.groups]
        in_reward = self._coefficient if config.kl_place == "reward" else 0.0
        returns_T = None
        if config.method == "ppo":
            assert experience.values is not None, "ppo has a critic"
            rewards_T = token_rewards(rewards, kl_T, sizes, kl_coefficient=in_reward)
            advantages_T, returns_T = gae(
                rewards_T, experience.values.astype(np.float64), sizes, gamma=config.gamma, lam=config.lam
            )
            if config.whiten:
                advantages_T = whiten(advantages_T)
        else:
            answer_kl = np.add.reduceat(kl_T, np.cumsum([0, *sizes[:-1]]))
            own = group_advantages(rewards - in_reward * answer_kl, group_sizes, kind=config.method)
            advantages_T = np.repeat(own, sizes)
        if config.kl_target:
            self._next_coefficient = adapted_coefficient(
                self._coefficient,
                kl=float(kl_T.sum() / len(sizes)),
                target=config.kl_target,
                n_answers=len(sizes),
                horizon=config.kl_horizon,
            )
        columns = (advantages_T, experience.old, experience.reference, experience.values, returns_T)
        self._tokens = [None if c is None else np.asarray(c, dtype=np.float32) for c in columns]
        if self._batch == 0:
            self._record(experience, kl_T)

    def _record(self, experience: Experience, kl_T: NDArray[np.float64]) -> None:
        sizes, rewards = experience.sizes, experience.judged.rewards
        spread = rewards.reshape(len(experience.groups), -1).std(axis=1)
        record = {
            "kind": "rollout",
            "step": self._iteration * self._steps_per_iteration + 1,
            "iteration": self._iteration,
            "reward": float(rewards.mean()),
            **{name: float(values.mean()) for name, values in experience.judged.parts.items()},
            "answer_tokens": float(np.mean(sizes)),
            "kl_per_answer": float(kl_T.sum() / len(sizes)),
            "kl_coefficient": self._coefficient,
            "without_signal": float((spread <= _NO_SPREAD).mean()),
            "sampler_difference": experience.sampler_difference,
        }
        self._run.metrics(record)
        shown = ("reward", "correct", "score", "finished", "kl_per_answer", "answer_tokens", "without_signal")
        figures = " | ".join(f"{name} {record[name]:.3f}" for name in shown if name in record)
        console.say(f"rollout {self._iteration:04d} | {figures}")

    # --- a batch

    def _parts(self, *, epoch: int) -> list[list[int]]:
        """The groups of each mini-batch of an epoch."""
        order = np.random.default_rng([self._config.seed, self._iteration, epoch]).permutation(self._config.prompts)
        return [sorted(part.tolist()) for part in np.array_split(order, self._config.minibatches)]

    def _with_signal(self, part: list[int]) -> list[int]:
        """The groups of a part whose loss has a gradient; the count that the loss is divided by is that of all.

        Answers that are all worth the same have no advantage over each other, and without a critic and a tie nothing
        else is learned from them: leaving them out saves their forward and backward and changes no gradient.
        """
        config, experience = self._config, self._experience
        assert experience is not None, "an iteration has begun"
        if config.method == "ppo" or config.kl_coefficient:
            return part
        rewards = experience.judged.rewards.reshape(len(experience.groups), -1)
        return [i for i in part if rewards[i].std() > _NO_SPREAD] or part[:1]

    def _make_batch(self, number: int) -> PolicyBatch:
        config, experience = self._config, self._experience
        assert experience is not None, "an iteration has begun"
        epoch, index = divmod(number, config.minibatches)
        part = self._parts(epoch=epoch)[index]
        offsets = _offsets(experience.groups)
        sizes = [len(answer) for i in part for answer in experience.groups[i].answers]
        _, count = token_weights(sizes, aggregation=config.aggregation, max_tokens=config.max_tokens)
        part = self._with_signal(part)
        groups = [experience.groups[i] for i in part]
        place = np.concatenate([np.arange(*offsets[i]) for i in part])
        forest, places, targets = pack_groups(groups, pad=self._pad)
        sizes = [len(answer) for group in groups for answer in group.answers]
        weights, _ = token_weights(sizes, aggregation=config.aggregation, max_tokens=config.max_tokens)
        advantages, old, reference, values, returns = (None if c is None else c[place] for c in self._tokens)
        assert advantages is not None, "every method has advantages"
        sampler = None
        if experience.sampler_difference is None:
            sampler = np.concatenate([row for group in groups for row in group.logprobs]).astype(np.float32)
        return PolicyBatch(
            forest=forest,
            places=places,
            targets=targets,
            weights=weights,
            count=count,
            advantages=advantages,
            old=old,
            reference=reference,
            old_values=values,
            returns=returns,
            sampler=sampler,
            kl_coefficient=self._coefficient,
        )


def _offsets(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """First and one past the last answer token of each group in the iteration's flat order."""
    ends = np.cumsum([sum(map(len, group.answers)) for group in groups]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


_ARRAYS = ("old", "reference", "values")


def _write(path: Path, experience: Experience) -> None:
    record = {
        "groups": [group.to_json() for group in experience.groups],
        "parts": {name: values.tolist() for name, values in experience.judged.parts.items()},
        "sampler_difference": experience.sampler_difference,
    }
    arrays = {name: getattr(experience, name) for name in _ARRAYS if getattr(experience, name) is not None}
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)
    np.savez(buffer, allow_pickle=False, record=text, rewards=experience.judged.rewards, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path, "wb") as file:
        file.write(buffer.getvalue())


def _read(path: Path, tasks: Sequence[Task]) -> Experience | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        record = json.loads(file["record"].tobytes())
        groups = [Group.from_json(row, task) for row, task in zip(record["groups"], tasks, strict=True)]
        parts = {name: np.array(values) for name, values in record["parts"].items()}
        arrays = {name: file[name] for name in _ARRAYS if name in file}
        judged = Judged(file["rewards"], parts)
        return Experience(groups, judged, **arrays, sampler_difference=record["sampler_difference"])
