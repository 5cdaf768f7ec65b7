"""The training loop: the only one. Pretraining, SFT and DPO hand it a loss and batches; nobody copies or subclasses it.

One step: take `accumulation` batches; add up the gradients of their summed losses; divide once by the global count of
terms; clip by the global norm; let AdamW make the step at the schedule's rate. Around it: a line a log window,
evaluation, checkpoints, a polite stop (exit code 75), and a stop when a loss or a gradient is not finite, before it
does harm.

A run that is killed at any moment and started again with the same command ends with the same weights, bit by bit.
It does not choose what to train on, and it knows no data, dialogs or preferences.

Source: The Llama 3 Herd of Models (2407.21783), section 3.4.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from puna.checkpoint.card import Card
from puna.checkpoint.train_state import TrainState
from puna.core import console
from puna.core.errors import PunaError, Stopped
from puna.core.interrupt import StopRequest
from puna.core.run_folder import RunFolder
from puna.model.cpu_memory import keep_freed_memory
from puna.model.transformer import Transformer
from puna.tokenizer.bpe import Tokenizer
from puna.train.activations import keep_less
from puna.train.clock import Clock
from puna.train.config import TrainConfig
from puna.train.in_backward import InBackward, backward_and_step, check_in_backward
from puna.train.loss import Loss
from puna.train.machine import choose_machine, memory_bytes
from puna.train.matmul_rate import matmul_rate
from puna.train.metrics import Eta, Window, step_line
from puna.train.optim import build_optimizer, scale_and_clip, set_rate
from puna.train.ramp import Ramp
from puna.train.saver import Saver
from puna.train.schedule import rate_factor
from puna.train.solo import Batches, Solo, Worker
from puna.train.tracking import tracked

Evaluate = Callable[[Transformer], Mapping[str, float]]
"""`evaluate(model) -> figures`, called without gradients; a figure named `loss` is watched for its best."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run says.

    Attributes:
        steps: Optimizer steps made.
        tokens: Tokens seen, over all sessions.
        evaluation: Figures of the last evaluation.
        best: `loss` and `step` of the lowest evaluation loss.
        fingerprint: Of the sealed `model/`.
    """

    steps: int
    tokens: int
    evaluation: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str = ""


def train(
    model: Transformer,
    *,
    loss: Loss,
    batches: Batches,
    config: TrainConfig,
    run: RunFolder,
    tokenizer: Tokenizer | None = None,
    evaluate: Evaluate | None = None,
    card: Card | None = None,
    ranks: Worker | None = None,
    ramp: Ramp | None = None,
) -> TrainResult:
    """Train a model to the end of its recipe, from the newest checkpoint of the run if there is one.

    Args:
        model: With its first weights; changed in place, and moved to the chosen device.
        loss: `loss(model, batch) -> LossOutput`.
        batches: What to train on.
        config: The settings.
        run: Gets `metrics.jsonl`, `checkpoints/` and, at the end, `model/`.
        tokenizer: Goes into every checkpoint.
        evaluate: Figures of the model, at intervals and at the end.
        card: What the model card says.
        ranks: The other processes of the run, with their parts of the model; None trains alone.
        ramp: How many batches make a step, by the tokens seen; None: always `config.accumulation`.

    Returns:
        The end of the run.

    Raises:
        Stopped: Ctrl-C or SIGTERM; the state is saved and the same command goes on.
        PunaError: A loss or gradient is not finite; a checkpoint does not fit or cannot be written.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    machine = ranks.machine if ranks else choose_machine(config.device, config.precision)
    console.say(machine.description)
    if machine.device.type == "cpu" and (memory := keep_freed_memory()):
        console.say(memory)
    worker = ranks or Solo(model, machine)
    weights = worker.weights
    check_in_backward(config, worker, accumulates=max(ramp.batches if ramp else [config.accumulation]) > 1)
    spill_to = run.work if machine.device.type == "cpu" else None
    release = keep_less(model, config.activations, folder=spill_to)
    optimizer = build_optimizer(weights.named.items(), config.optim)
    in_backward = InBackward(weights, optimizer) if config.optim.step == "in_backward" else None
    saver = Saver(
        run,
        config,
        optimizer=optimizer,
        batches=batches,
        tokenizer=tokenizer,
        card=card or Card(),
        worker=worker,
    )
    state = saver.resume()
    clock = Clock(run.checkpoints, step=state.step, writes=worker.speaks)
    log = _Log(run, config, worker, clock, state)
    model.train()
    with StopRequest() as stop, saver, tracked(run, config.tracking, speaks=worker.speaks):
        while state.step < config.steps:
            start, before = time.perf_counter(), saver.place()
            rate = config.optim.lr * rate_factor(
                state.step, steps=config.steps, config=config.schedule, tokens_at=ramp.tokens_at if ramp else None
            )
            set_rate(optimizer, rate)
            norm = 0.0
            if in_backward is not None:
                outputs, norm = backward_and_step(in_backward, loss, model, batches, step=state.step + 1)
            else:
                outputs = worker.backward(loss, batches, ramp.at(state.tokens) if ramp else config.accumulation)
            figures = worker.reduce(outputs, (stop.requested, saver.is_due(state.step + 1)))
            count, loss_sum = figures.count, figures.loss_sum
            if not count:
                raise PunaError(f"step {state.step + 1}: none of its batches has a target. Look at the data.")
            if in_backward is None:
                norm = scale_and_clip(
                    weights.gradients(), count=count, clip_norm=config.optim.clip_norm, norm_of_sum=figures.norm
                )
            if not (math.isfinite(loss_sum) and math.isfinite(norm)):
                error = _not_finite(saver.path(state), state.step + 1, loss_sum / count, norm)
                saver.save(state, clock, at=before, wait=True)
                saver.failed(str(error))
                raise error
            if in_backward is None:
                optimizer.step()
                weights.publish()
                weights.drop_gradients()

            tokens = sum(o.tokens for o in figures.outputs)
            state = replace(state, step=state.step + 1, tokens=state.tokens + tokens)
            seconds = time.perf_counter() - start
            clock.add(seconds)
            log.window.add(figures.outputs, loss_sum=loss_sum, count=count, seconds=seconds)
            last = state.step == config.steps
            if last or state.step % config.log_every_steps == 0:
                log.write(state, rate=rate, norm=norm)
            state = replace(state, window=dict(log.window.sums))
            due = config.evaluate_every_steps and state.step % config.evaluate_every_steps == 0
            if evaluate and due and not last:
                state = replace(state, best=log.evaluation(state, _figures(evaluate, model)))
            asked_to_stop, is_due = figures.wishes
            if ranks is None:
                asked_to_stop = stop.requested  # alone, it may still be heard
            if last or asked_to_stop or is_due:
                folder = saver.save(state, clock, at=saver.place(), wait=last or asked_to_stop)
                if asked_to_stop and not last:
                    raise Stopped(f"stopped at step {state.step}, {folder} is saved; the same command goes on there")
        release()
        held_out = _figures(evaluate, model) if evaluate else {}
        best = log.evaluation(state, held_out) if evaluate else state.best
    facts = {"steps": f"{state.step:,}", "tokens": f"{state.tokens:,}"}
    facts |= {f"held-out {name}": f"{value:.4f}" for name, value in held_out.items()}
    fingerprint = saver.finish(facts)
    clock.write()
    console.say(f"{run.model} is written: {state.step} steps, {console.short_number(state.tokens)} tokens")
    return TrainResult(state.step, state.tokens, held_out, best, fingerprint)


def _figures(evaluate: Evaluate, model: Transformer) -> dict[str, float]:
    model.eval()
    with torch.no_grad():  # not inference_mode: what it makes could not be reused by the next training step
        figures = dict(evaluate(model))
    model.train()
    return figures


def _not_finite(folder: object, step: int, mean_loss: float, norm: float) -> PunaError:
    return PunaError(
        f"step {step}: the loss is {mean_loss:.4g} and the gradient norm {norm:.4g}; both must be finite. The step was "
        f"not made; {folder} holds the state before it. Lower train.optim.lr or look at the data, then go on with "
        "--accept-drift."
    )


class _Log:
    """Writes lines and records of one session."""

    def __init__(self, run: RunFolder, config: TrainConfig, worker: Worker, clock: Clock, state: TrainState) -> None:
        self._run, self._config, self._clock = run, config, clock
        self._machine, self._processes, self._speaks = worker.machine, worker.processes, worker.speaks
        self.window = Window(state.window)
        self._eta = Eta(step=state.step, steps=config.steps)
        self._ceiling: float | None = None

    def write(self, state: TrainState, *, rate: float, norm: float) -> None:
        """Close the window: one line, one record, by the process that speaks."""
        if not self._speaks:
            self.window.reset()
            return
        rates = self.window.rates()
        if rates["flops_per_second"] and self._ceiling is None:
            self._ceiling = matmul_rate(self._machine.device, self._machine.dtype)
            console.say(f"mfu: model FLOPs (causal) against {self._ceiling / 1e9:.4g} GFLOP/s of matrix products here")
        used, total = memory_bytes(self._machine.device)
        record = {
            "kind": "train",
            "step": state.step,
            "steps": self._config.steps,
            "tokens": state.tokens,
            **self.window.means(),
            "lr": rate,
            "grad_norm": norm,
            **rates,
            "mfu": rates["flops_per_second"] / (self._ceiling * self._processes) if self._ceiling else None,
            "matmul_flops_per_second": self._ceiling,
            "memory_bytes": used,
            "memory_total_bytes": total,
            "goodput": self._clock.goodput,
            "seconds": self._clock.seconds,
            "eta_seconds": self._eta.seconds(state.step),
        }
        console.say(step_line(record))
        self._run.metrics(record)
        self._clock.write()
        self.window.reset()

    def evaluation(self, state: TrainState, figures: Mapping[str, float]) -> dict[str, float]:
        """Write an evaluation down and return the best loss so far."""
        text = " | ".join(f"{name} {value:.4f}" for name, value in figures.items())
        console.say(f"step {state.step:05d}/{self._config.steps:05d} | held out: {text}")
        if self._speaks:
            self._run.metrics({"kind": "evaluation", "step": state.step, "tokens": state.tokens, **figures})
        value = figures.get("loss")
        if value is None or value >= state.best.get("loss", math.inf):
            return state.best
        return {"loss": value, "step": state.step}
