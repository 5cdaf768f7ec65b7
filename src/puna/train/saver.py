"""Saving and resuming a run: between the loop's objects and the checkpoint store.

What a checkpoint of step n holds makes step n + 1 come out bit by bit as if nothing had happened: weights, optimizer
moments, where the batches stand, PyTorch's random states, and the open log window. Tensors are saved and loaded under
their logical names (`checkpoint/logical.py`), in place, so another layout or another precision can go on with them. A
part of the model that no other tool knows (a critic) is kept with the training state.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from puna.checkpoint import train_state
from puna.checkpoint.card import Card
from puna.checkpoint.durable import DurableTier
from puna.checkpoint.format import check_fits, load_config, save_model, write_side
from puna.checkpoint.layout import STATE
from puna.checkpoint.logical import logical, logical_names, segments_of
from puna.checkpoint.peft import save_adapter, write_adapter_side
from puna.checkpoint.retention import Retention
from puna.checkpoint.store import CheckpointStore, Snapshot
from puna.checkpoint.train_state import TrainState
from puna.core import console
from puna.core.config import fingerprint
from puna.core.errors import UsageError
from puna.core.files import need_free_space
from puna.core.run_folder import RunFolder
from puna.model.adapter import trained_parameters
from puna.tokenizer.bpe import Tokenizer
from puna.train.clock import Clock
from puna.train.config import TrainConfig
from puna.train.optim import begin_optimizer_state, optimizer_tensors
from puna.train.solo import Batches, Worker


class Saver:
    """Saves and resumes one run; a context manager that finishes what runs behind training.

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
        optimizer: Optimizer,
        batches: Batches,
        tokenizer: Tokenizer | None,
        card: Card,
    ) -> None:
        self._run, self._config, self._worker, self._weights = run, config, worker, worker.weights
        self._optimizer, self._batches, self._tokenizer, self._card = optimizer, batches, tokenizer, card
        self._segments = segments_of(worker.weights.model.config)
        self._settings = fingerprint(config)
        self._store = _store(run, config)
        self._saved_step, self._saved_at, self._prepared = -1, time.monotonic(), False

    def resume(self) -> TrainState:
        """Go to the newest whole checkpoint, or stay at the beginning.

        Raises:
            PunaError: The checkpoint is of another model; all are damaged; or the disk cannot hold one more.
        """
        folder = self._store.latest(settings=self._settings)
        if folder is None:
            need_free_space(self._run.path, self._bytes())
            if self._worker.speaks:
                self._run.keep_metrics(lambda record: False)
            return TrainState()
        if self._weights.model.adapter is None:
            check_fits(load_config(folder), self._weights.model.config, where=folder)
        state = self._load(folder)
        if state.step > self._config.steps:
            raise UsageError(
                f"{folder} has {state.step} steps, the recipe asks for {self._config.steps}. Set "
                f"train.steps={state.step} or more, or begin again with --fresh."
            )
        self._batches.restore(state.batches)
        ended = state.step == self._config.steps  # then the last evaluation is made again
        if self._worker.speaks:
            self._run.keep_metrics(
                lambda r: r["step"] < state.step + (0 if ended and r.get("kind") == "evaluation" else 1)
            )
        self._saved_step = state.step
        console.say(
            f"resuming from {folder}: step {state.step} of {self._config.steps}, "
            f"{console.short_number(state.tokens)} tokens seen"
        )
        return state

    @torch.no_grad()
    def _load(self, folder: Path) -> TrainState:
        """Fill weights, masters, optimizer and random generators from a checkpoint."""
        names = self._store.names(folder)
        stepped, frozen = self._weights.named, self._parameters()
        first_part = {name: logical_names(name, self._segments)[0] for name in stepped}
        begin_optimizer_state(self._optimizer, lambda name: f"{STATE}optimizer/{first_part[name]}/step" in names)
        own, state = {}, self._optimizer_pieces()
        if any(name.startswith(f"{STATE}master/") for name in names):
            state |= self._logical(stepped, "master/{}")
            own = {name: p for name, p in frozen.items() if name not in stepped}
        else:
            own = {**frozen, **stepped}
        weights, more = self._by_room(own)
        random = {name: t for name, t in train_state.random_states().items() if f"{STATE}{name}" in names}
        snapshot = Snapshot(weights, {**state, **more, **logical(random, {})})
        values = self._store.load(folder, snapshot)
        self._weights.publish()
        train_state.restore_random_states(random)
        return TrainState.of(values)

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint shall be saved after this step. Well before one is, its buffers are made ready."""
        config, waited = self._config, time.monotonic() - self._saved_at
        by_steps = config.save_every_steps and step % config.save_every_steps == 0
        by_time = config.save_every_seconds and waited >= config.save_every_seconds
        half_way = (config.save_every_steps and 2 * (step % config.save_every_steps) >= config.save_every_steps) or (
            config.save_every_seconds and 2 * waited >= config.save_every_seconds
        )
        if half_way and not self._prepared:
            self._prepared = True
            self._store.prepare(self._snapshot(TrainState(), train_state.random_states()))
        return bool(by_steps or by_time)

    def place(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Where batches and random generators stand now; small."""
        return self._batches.state(), train_state.random_states()

    def path(self, state: TrainState) -> Path:
        """Where the checkpoint of this state lies or will lie."""
        return self._store.path(state.step)

    def save(
        self, state: TrainState, clock: Clock, *, at: tuple[dict[str, Any], dict[str, Tensor]], wait: bool = False
    ) -> Path:
        """Save a checkpoint of the weights as they are, unless this step has one.

        Args:
            state: Of the run.
            clock: Is written with it.
            at: From `place`, when the step ended.
            wait: Until it is on disk; else only until the state is copied.

        Raises:
            PunaError: With `wait`: it cannot be saved. Without: the third save in a row failed.
        """
        folder = self._store.path(state.step)
        if state.step == self._saved_step:
            if wait:
                self._store.wait()
            if not wait or folder.exists():
                return folder
        batches, random = at
        model = self._weights.model

        def side(target: Path) -> None:
            if model.adapter is not None:
                write_adapter_side(target, model, tokenizer=self._tokenizer, card=self._card)
                return
            dtype = model.dtype
            write_side(target, model.config, tokenizer=self._tokenizer, card=self._card, dtype=dtype)

        self._store.save(state.step, self._snapshot(replace(state, batches=batches), random), side=side, wait=wait)
        self._saved_step, self._saved_at = state.step, time.monotonic()
        clock.write(saved_step=state.step)
        return folder

    def failed(self, reason: str) -> None:
        """Note that the run failed in a way that its checkpoint may be the reason of."""
        self._store.failed(reason, self._settings)

    def finish(self, facts: Mapping[str, str]) -> str:
        """Write the finished model into the run's `model/` and return its fingerprint.

        Several processes with shards stream it from the last checkpoint, which they have saved together; none ever
        holds it whole.
        """
        card = replace(self._card, facts={**self._card.facts, **facts})
        model = self._weights.model
        if model.adapter is not None:  # every process has all of it
            return self._store.by_the_first(
                lambda: save_adapter(self._run.model, model, tokenizer=self._tokenizer, card=card)
            )
        if self._worker.processes > 1:
            return self._store.export(self._saved_step, self._run.model, card=card)
        return save_model(self._run.model, model, model.config, tokenizer=self._tokenizer, card=card)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, KeyboardInterrupt):  # the second Ctrl-C waits for nothing
            self._store.close()

    def _snapshot(self, state: TrainState, random: Mapping[str, Tensor]) -> Snapshot:
        weights, more = self._by_room(self._parameters())
        masters = self._logical(self._weights.masters, "master/{}")
        return Snapshot(weights, {**self._optimizer_pieces(), **masters, **more, **logical(random, {})}, state.values())

    def _parameters(self) -> dict[str, Tensor]:
        return dict(self._weights.held)

    def _by_room(self, parameters: Mapping[str, Tensor]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Weights of a Llama model, and those that no other tool knows, which go with the training state."""
        known = {name: p for name, p in parameters.items() if name in self._segments}
        more = {name: p for name, p in parameters.items() if name not in self._segments}
        return self._logical(known, "{}"), logical(more, {}, pattern="own/{}")

    def _logical(self, tensors: Mapping[str, Tensor], pattern: str) -> dict[str, Any]:
        return logical(tensors, self._segments, pattern=pattern, of=self._weights.pieces)

    def _optimizer_pieces(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind, tensors in optimizer_tensors(self._optimizer).items():
            shaped = {name: t for name, t in tensors.items() if t.dim() and not kind.endswith(".scale")}
            found |= self._logical(shaped, f"optimizer/{{}}/{kind}")
            if kind.endswith(".scale"):  # of eight-bit moments: by blocks of the flat matrix, which rows cut across
                found |= logical(tensors, {}, pattern=f"optimizer/{{}}/{kind}")
                continue
            for name, value in tensors.items():
                if not value.dim():  # one number for all rows
                    parts = logical_names(name, self._segments)
                    found |= {f"optimizer/{part}/{kind}": logical({part: value}, {})[part] for part in parts}
        return found

    def _bytes(self) -> int:
        """About what one checkpoint takes: weights, masters, two moments, and a little."""
        model = self._weights.model
        parameters, size = model.config.parameters(), model.dtype.itemsize
        if model.adapter is not None:
            parameters = trained_parameters(model)
        return parameters * (size + 8 + (4 if self._weights.masters else 0)) + (8 << 20)


def _store(run: RunFolder, config: TrainConfig) -> CheckpointStore:
    tiers, durable = config.tiers, None
    if tiers.durable:
        kept = Retention(tiers.durable_keep_last, tiers.durable_keep_every_steps)
        durable = DurableTier(tiers.durable, every_seconds=tiers.durable_every_seconds, retention=kept)
    return CheckpointStore(
        tiers.local or run.checkpoints,
        retention=Retention(config.keep_last, config.keep_every_steps),
        node_local=tiers.local is not None,
        replicas=tiers.replicas,
        durable=durable,
        asynchronous=tiers.saving,
    )
