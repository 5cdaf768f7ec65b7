"""Saving and resuming a run: between the loop's objects and the checkpoint store.

What a checkpoint of step n holds makes step n + 1 come out bit by bit as if nothing had happened: weights, optimizer
moments, where the batches stand, PyTorch's random states, and the open log window. A part of the model that the
checkpoint's layout has no place for (a critic) is kept with the training state.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import AdamW

from puna.checkpoint import train_state
from puna.checkpoint.card import Card
from puna.checkpoint.format import read_weights, save_model, write_content
from puna.checkpoint.store import CheckpointStore
from puna.checkpoint.train_state import TrainState
from puna.core import console
from puna.core.errors import UsageError
from puna.core.files import need_free_space
from puna.core.run_folder import RunFolder
from puna.model.transformer import Transformer
from puna.tokenizer.bpe import Tokenizer
from puna.train.clock import Clock
from puna.train.config import TrainConfig
from puna.train.optim import optimizer_tensors, restore_optimizer
from puna.train.solo import Batches, Worker

T = TypeVar("T")


class Saver:
    """Saves and resumes one run.

    Args:
        run: Its folder.
        config: When to save and what to keep.
        optimizer: Their optimizer.
        batches: The batches.
        tokenizer: Goes into every checkpoint.
        card: Goes into every checkpoint.
        worker: This process among those of the run.
    """

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        *,
        worker: Worker,
        optimizer: AdamW,
        batches: Batches,
        tokenizer: Tokenizer | None,
        card: Card,
    ) -> None:
        self._run, self._config, self._worker, self._weights = run, config, worker, worker.weights
        self._optimizer, self._batches, self._tokenizer, self._card = optimizer, batches, tokenizer, card
        self._store = CheckpointStore(run.checkpoints, keep_last=config.keep_last, keep_every=config.keep_every_steps)
        self._saved_step, self._saved_at = -1, time.monotonic()

    def resume(self) -> TrainState:
        """Go to the newest whole checkpoint, or stay at the beginning.

        Raises:
            PunaError: The checkpoint is of another model; all are damaged; or the disk cannot hold one more.
        """
        speaks = self._worker.speaks
        folder = self._worker.same(self._alone(self._store.latest) if speaks else None)
        if folder is None:
            if speaks:
                self._alone(lambda: need_free_space(self._run.path, self._bytes()))
                self._run.keep_metrics(lambda record: False)
            return TrainState()
        self._weights.fill(read_weights(folder, self._weights.model.config))
        state = train_state.read(folder)
        train_state.restore_extras(self._weights.model, state.group("extra"))
        self._weights.restore(state.group("master"))
        restore_optimizer(self._optimizer, self._weights.own_state(state.group("optimizer")))
        if state.step > self._config.steps:
            raise UsageError(
                f"{folder} has {state.step} steps, the recipe asks for {self._config.steps}. Set "
                f"train.steps={state.step} or more, or begin again with --fresh."
            )
        self._batches.restore(state.batches)
        train_state.restore_random_states(state.group("rng"))
        state.tensors = {}
        ended = state.step == self._config.steps  # then the last evaluation is made again
        if speaks:
            self._run.keep_metrics(
                lambda r: r["step"] < state.step + (0 if ended and r.get("kind") == "evaluation" else 1)
            )
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
        tensors = dict(self._optimizer_tensors())
        tensors |= {f"master/{name}": t for name, t in self._weights.masters.items()}
        full = replace(state, batches=batches, tensors=tensors | random)
        model = self._whole_model()
        full.tensors |= {f"extra/{name}": t for name, t in train_state.extras(self._weights.model).items()}

        def write(target: Path) -> None:
            write_content(target, model, model.config, tokenizer=self._tokenizer, card=self._card)
            train_state.write(target, full)

        if self._worker.speaks:
            n_bytes = self._bytes()
            self._alone(lambda: self._store.save(state.step, write, n_bytes=n_bytes))
        self._worker.same(None)  # nobody goes on before it is written
        self._saved_step, self._saved_at = state.step, time.monotonic()
        clock.write(saved_step=state.step)
        return folder

    def finish(self, facts: Mapping[str, str]) -> str:
        """Write the finished model into the run's `model/` and return its fingerprint."""
        model = self._whole_model()
        card = replace(self._card, facts={**self._card.facts, **facts})
        fingerprint = ""
        if self._worker.speaks:
            fingerprint = self._alone(
                lambda: save_model(self._run.model, model, model.config, tokenizer=self._tokenizer, card=card)
            )
        return self._worker.same(fingerprint)

    def _alone(self, work: Callable[[], T]) -> T:
        """Do what the first process does for all; its failure ends all of them."""
        try:
            return work()
        except Exception:
            self._worker.abandon()
            raise

    def _whole_model(self) -> Transformer:
        """The model with all its weights, on the process that speaks."""
        if self._worker.processes == 1:
            return self._weights.model
        with torch.device("meta"):
            model = Transformer(self._weights.model.config)
        found = {n: t for n, t in self._worker.whole_tensors(self._weights.named) if t is not None}
        if found:
            model.load_state_dict(found, assign=True)
        return model

    def _optimizer_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's state, whole, on the process that speaks."""
        own = optimizer_tensors(self._optimizer)
        if self._worker.processes == 1:
            yield from ((f"optimizer/{name}", tensor) for name, tensor in own.items())
            return
        steps = [tensor for name, tensor in own.items() if name.endswith("/step")]
        for suffix in ("/exp_avg", "/exp_avg_sq") if steps else ():
            for name, tensor in self._worker.whole_tensors(own, suffix):
                if tensor is not None:
                    yield f"optimizer/{name}", tensor
                    yield f"optimizer/{name.removesuffix(suffix)}/step", steps[0].cpu().clone()

    def _bytes(self) -> int:
        """About what one checkpoint takes: weights, masters, two moments, and a little."""
        parameters, size = self._weights.model.config.parameters(), self._weights.model.dtype.itemsize
        return parameters * (size + 8 + (4 if self._weights.masters else 0)) + (8 << 20)
