"""Saving and resuming a run: between the loop's objects and the checkpoint store.

What a checkpoint of step n holds makes step n + 1 come out bit by bit as if nothing had happened: weights, optimizer
moments, where the batches stand, PyTorch's random states, and the open log window. A part of the model that the
checkpoint's layout has no place for (a critic) is kept with the training state.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.optim import AdamW

from puna.checkpoint import train_state
from puna.checkpoint.card import Card
from puna.checkpoint.format import load_weights, save_model, write_content
from puna.checkpoint.store import CheckpointStore
from puna.checkpoint.train_state import TrainState
from puna.core import console
from puna.core.errors import UsageError
from puna.core.files import need_free_space
from puna.core.run_folder import RunFolder
from puna.tokenizer.bpe import Tokenizer
from puna.train.clock import Clock
from puna.train.config import TrainConfig
from puna.train.optim import optimizer_tensors, restore_optimizer
from puna.train.weights import Weights


class Batches(Protocol):
    """An endless source of batches that can name its place."""

    def next_batch(self) -> Any:
        """The next batch, in whatever form the loss takes."""
        ...

    def state(self) -> dict[str, Any]:
        """The place of the next batch, in JSON types."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state` named."""
        ...


class Saver:
    """Saves and resumes one run.

    Args:
        run: Its folder.
        config: When to save and what to keep.
        weights: The trained weights.
        optimizer: Their optimizer.
        batches: The batches.
        tokenizer: Goes into every checkpoint.
        card: Goes into every checkpoint.
    """

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        *,
        weights: Weights,
        optimizer: AdamW,
        batches: Batches,
        tokenizer: Tokenizer | None,
        card: Card,
    ) -> None:
        self._run, self._config, self._weights = run, config, weights
        self._optimizer, self._batches, self._tokenizer, self._card = optimizer, batches, tokenizer, card
        self._store = CheckpointStore(run.checkpoints, keep_last=config.keep_last, keep_every=config.keep_every_steps)
        self._saved_step, self._saved_at = -1, time.monotonic()

    def resume(self) -> TrainState:
        """Go to the newest whole checkpoint, or stay at the beginning.

        Raises:
            PunaError: The checkpoint is of another model; all are damaged; or the disk cannot hold one more.
        """
        folder = self._store.latest()
        if folder is None:
            need_free_space(self._run.path, self._bytes())
            self._run.keep_metrics(lambda record: False)
            return TrainState()
        model = self._weights.model
        load_weights(model, folder)
        state = train_state.read(folder)
        train_state.restore_extras(model, state.group("extra"))
        self._weights.restore(state.group("master"))
        restore_optimizer(self._optimizer, state.group("optimizer"))
        if state.step > self._config.steps:
            raise UsageError(
                f"{folder} has {state.step} steps, the recipe asks for {self._config.steps}. Set "
                f"train.steps={state.step} or more, or begin again with --fresh."
            )
        self._batches.restore(state.batches)
        train_state.restore_random_states(state.group("rng"))
        state.tensors = {}
        ended = state.step == self._config.steps  # then the last evaluation is made again
        self._run.keep_metrics(lambda r: r["step"] < state.step + (0 if ended and r.get("kind") == "evaluation" else 1))
        self._saved_step = state.step
        console.say(
            f"resuming from {folder}: step {state.step} of {self._config.steps}, "
            f"{console.short_number(state.tokens)} tokens seen"
        )
        return state

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint shall be saved after this step."""
        config = self._config
        by_steps = config.save_every_steps and step % config.save_every_steps == 0
        by_time = config.save_every_seconds and time.monotonic() - self._saved_at >= config.save_every_seconds
        return bool(by_steps or by_time)

    def place(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Where batches and random generators stand now; small."""
        return self._batches.state(), train_state.random_states()

    def save(self, state: TrainState, clock: Clock, *, at: tuple[dict[str, Any], dict[str, Tensor]]) -> Path:
        """Save a checkpoint of the weights as they are, unless this step has one.

        Args:
            state: Of the run.
            clock: Is written with it.
            at: From `place`, when the step ended.
        """
        folder = self._store.path(state.step)
        if state.step == self._saved_step:
            return folder
        batches, random = at
        tensors = {f"optimizer/{name}": t for name, t in optimizer_tensors(self._optimizer).items()}
        tensors |= {f"master/{name}": t for name, t in self._weights.masters.items()}
        full = replace(state, batches=batches, tensors=tensors | random)
        model = self._weights.model
        full.tensors |= {f"extra/{name}": t for name, t in train_state.extras(model).items()}

        def write(target: Path) -> None:
            write_content(target, model, model.config, tokenizer=self._tokenizer, card=self._card)
            train_state.write(target, full)

        self._store.save(state.step, write, n_bytes=self._bytes())
        self._saved_step, self._saved_at = state.step, time.monotonic()
        clock.write(saved_step=state.step)
        return folder

    def finish(self, facts: Mapping[str, str]) -> str:
        """Write the finished model into the run's `model/` and return its fingerprint."""
        model = self._weights.model
        card = replace(self._card, facts={**self._card.facts, **facts})
        return save_model(self._run.model, model, model.config, tokenizer=self._tokenizer, card=card)

    def _bytes(self) -> int:
        """About what one checkpoint takes: weights, masters, two moments, and a little."""
        model = sum(p.nbytes for p in self._weights.model.parameters())
        fp32 = sum(4 * w.numel() for w in self._weights.named.values())
        return model + 2 * fp32 + (fp32 if self._weights.masters else 0) + (8 << 20)
