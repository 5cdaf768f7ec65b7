"""Pipeline parallelism: stages of layers, micro-batches on their way through them, by PyTorch's schedules.

A stage is a `Transformer` that holds some layers. What goes from stage to stage is the residual stream of a
micro-batch; documents and targets do not travel: every process of a pipeline reads the same batches. The loss is
computed inside the last stage, by the same `loss(model, batch)` that the loop gives to one process: a stand-in for the
model continues from what was received when the loss asks for hidden states. So every loss that calls `model.hidden`
once works here.

Schedules: GPipe (1811.06965), 1F1B (2104.04473, section 2.2), interleaved (section 2.3 there), zero bubble
(2401.10241), and its V (ZB-V). PyTorch runs them; FSDP's reduction waits for the last micro-batch of a stage.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from puna.core.batch import PackedBatch
from puna.model.layout import DocumentLayout, to_device
from puna.model.transformer import Transformer
from puna.train.loss import Loss, LossOutput
from puna.train.parallel_config import ParallelConfig

_SCHEDULES = {
    "1f1b": Schedule1F1B,
    "gpipe": ScheduleGPipe,
    "interleaved": ScheduleInterleaved1F1B,
    "zero-bubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
}


class Pipeline:
    """The stages that this process holds, and their schedule.

    Args:
        models: One a stage, in the order of their numbers; each already sharded.
        numbers: Their stage numbers.
        config: The layout.
        group: The processes of this pipeline.
        dtype: Of the residual stream.
    """

    def __init__(
        self,
        models: Sequence[Transformer],
        numbers: Sequence[int],
        config: ParallelConfig,
        *,
        group: dist.ProcessGroup,
        dtype: torch.dtype,
    ) -> None:
        self._models, self._numbers, self._config, self._group, self._dtype = models, numbers, config, group, dtype
        self._batches: list[PackedBatch] = []
        self._outputs: dict[int, LossOutput] = {}
        self._loss: Loss | None = None
        self._schedule: tuple[tuple[int, int], Any] | None = None
        for model in models:
            # what FSDP's hooks enclose, and what the schedule calls
            model.forward = self._stage_forward(model)  # pyright: ignore[reportAttributeAccessIssue]

    def backward(self, loss: Loss, batches: Sequence[PackedBatch]) -> list[LossOutput]:
        """Forward and backward of all micro-batches of a step.

        Returns:
            The outputs of the loss on the process that has the last stage, elsewhere none.
        """
        self._begin(loss, batches)
        n = len(batches)
        numbers = torch.arange(n)
        schedule = self._build(n, batches[0].tokens.size)
        schedule.step(
            *([numbers] if 0 in self._numbers else []),
            number=numbers,
            target=numbers if self._config.n_stages - 1 in self._numbers else None,
            return_outputs=False,
        )
        return self._finish()

    @torch.no_grad()
    def forward(self, loss: Loss, batches: Sequence[PackedBatch]) -> list[LossOutput]:
        """The loss of batches without gradients, one batch behind the other."""
        self._begin(loss, batches)
        last = self._config.n_stages - 1
        for index, batch in enumerate(batches):
            sent: dict[int, Tensor] = {}
            for number, model in zip(self._numbers, self._models, strict=True):
                x = sent.get(number)
                if number and x is None:
                    x = torch.empty(self.stream_shape(batch.tokens.size), dtype=self._dtype, device=model.device)
                    dist.recv(x, group=self._group, group_src=self._owner(number - 1))
                out = model(x, torch.tensor([index]))
                if number < last and self._owner(number + 1) == self._owner(number):
                    sent[number + 1] = out
                elif number < last:
                    dist.send(out.contiguous(), group=self._group, group_dst=self._owner(number + 1))
        return self._finish()

    def _begin(self, loss: Loss, batches: Sequence[PackedBatch]) -> None:
        self._loss, self._batches, self._outputs = loss, list(batches), {}

    def _finish(self) -> list[LossOutput]:
        outputs = [self._outputs[i] for i in sorted(self._outputs)]
        self._batches, self._outputs = [], {}
        return outputs

    def _stage_forward(self, model: Transformer):
        def forward(x: Tensor, number: Tensor) -> Tensor:
            index = int(number)
            batch = self._batches[index]
            received = None if model.split.has_embedding else x
            if model.split.has_head:
                assert self._loss is not None
                output = self._loss(_Continuing(model, received), batch)  # pyright: ignore[reportArgumentType]
                self._outputs[index] = output.detached()
                return output.sum
            device = model.device
            tokens = to_device(batch.tokens.reshape(-1), device)
            return model.hidden(tokens, DocumentLayout(batch.lengths, device=device), received=received)

        return forward

    def _owner(self, number: int) -> int:
        """The process of the pipeline that holds a stage."""
        return next(r for r in range(self._config.pp) if number in self._config.stages_of(r))

    def rehearse(self, loss: Loss, batch: PackedBatch, model: Transformer, x: Tensor) -> Tensor:
        """What one stage makes of one micro-batch, outside the schedule."""
        self._begin(loss, [batch])
        return self._stage_forward(model)(x, torch.tensor([0]))

    def orders(self, n: int, n_tokens: int) -> Any:
        """What each process of the pipeline does, action by action."""
        return self._build(n, n_tokens).pipeline_order

    def stream_shape(self, n_tokens: int) -> tuple[int, int]:
        """Tokens and width of the residual stream that goes from stage to stage."""
        return n_tokens // (self._config.cp * self._config.tp), self._models[0].config.dim

    def _build(self, n: int, n_tokens: int) -> Any:
        """The schedule for n micro-batches; shapes are given, so no process asks another for them."""
        if self._schedule is not None and self._schedule[0] == (n, n_tokens):
            return self._schedule[1]
        last = self._config.n_stages - 1
        stream = torch.empty(self.stream_shape(n_tokens), dtype=self._dtype, device="meta", requires_grad=True)
        number = torch.empty(1, dtype=torch.int64, device="meta")
        total = torch.empty((), device="meta", requires_grad=True)
        stages: list[Any] = [
            PipelineStage(
                model,
                index,
                last + 1,
                model.device,
                input_args=stream if index else number,
                output_args=stream if index < last else total,
                group=self._group,
            )
            for index, model in zip(self._numbers, self._models, strict=True)
        ]
        kind: Any = _SCHEDULES[self._config.schedule]
        single = self._config.schedule in ("1f1b", "gpipe")
        schedule = kind(stages[0] if single else stages, n, loss_fn=_is_the_loss, scale_grads=False)
        self._schedule = (n, n_tokens), schedule
        return schedule


def _is_the_loss(output: Tensor, target: Tensor) -> Tensor:
    """The last stage gives the loss itself."""
    return output


class _Continuing:
    """Stands for the model in the last stage: hidden states continue from what the stage before sent."""

    def __init__(self, model: Transformer, received: Tensor | None) -> None:
        self._model, self._received = model, received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def hidden(self, tokens: Tensor, layout: DocumentLayout | None = None) -> Tensor:
        """The normalized hidden states of the whole model, as far as this process has them."""
        return self._model.hidden(tokens, layout, received=self._received)
