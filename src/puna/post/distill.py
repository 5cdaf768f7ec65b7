"""Distillation: a student learns from dialogs and from what a teacher thinks of each of their tokens.

The teacher is frozen and reads the same packed batch; its logits are never kept, neither are the student's
(`model/divergence.py`). With `share` 0 this is SFT.

Source: 1503.02531; on which divergence to take: 2306.13649, section 3.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from puna.core.batch import IGNORE, PackedBatch
from puna.core.config import Config
from puna.core.errors import UsageError
from puna.model.divergence import Head, Mixture, distillation_sums
from puna.model.layout import DocumentLayout, to_device
from puna.model.transformer import Transformer
from puna.train.loss import LossOutput, packed_flops


class DistillConfig(Config):
    """A teacher, and how much of it."""

    teacher: Path
    """The checkpoint that is imitated, with the student's tokenizer."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """forward_kl covers all that the teacher may say, reverse_kl keeps to what it likes most, jsd lies between."""
    share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Of the divergence in the loss; the rest is cross-entropy with the dialogs' own tokens."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Both models' logits are divided by it, and the divergence multiplied by its square."""
    jsd_beta: float = Field(default=0.5, gt=0.0, lt=1.0)
    """jsd: the teacher's share of the mixture that both are compared with."""


class DistillLoss:
    """The loss that the training loop calls.

    Args:
        teacher: Frozen by this.
        config: How much of it.
        student: Shape of the model that learns.

    Raises:
        UsageError: The vocabularies differ.
    """

    def __init__(self, teacher: Transformer, config: DistillConfig, *, student_vocab: int) -> None:
        if teacher.config.vocab_size != student_vocab:
            raise UsageError(
                f"the teacher has {teacher.config.vocab_size} tokens, the student {student_vocab}. Both need one "
                "vocabulary: choose a teacher with the student's tokenizer."
            )
        self._teacher = teacher.requires_grad_(False).eval()
        self._mixture = Mixture(config.divergence, config.share, config.temperature, config.jsd_beta)

    def __call__(self, model: Transformer, batch: PackedBatch) -> LossOutput:
        """Mixture of cross-entropy and divergence over a packed batch's targets."""
        assert model.split.is_whole, "a model in one piece"
        device, teacher = model.device, self._teacher
        if teacher.device != device:
            teacher.to(device, model.dtype)
        layout = DocumentLayout(batch.lengths, device=device)
        tokens_T = to_device(batch.tokens.reshape(-1), device)
        with torch.no_grad():
            from_teacher = Head(teacher.hidden(tokens_T, layout), teacher.head_weight)
        own = Head(model.hidden(tokens_T, layout), model.head_weight)
        targets_T = to_device(batch.targets.reshape(-1), device)
        weights_T, count = None, float(batch.n_targets)
        if batch.weights is not None:
            weights_T = to_device(batch.weights.reshape(-1), device)
            count = float(batch.weights[batch.targets != IGNORE].sum(dtype=np.float64))
        sums = distillation_sums(own, from_teacher, targets_T, self._mixture, weights_T=weights_T)
        flops = packed_flops(model.config, batch.lengths, n_targets=batch.n_targets)
        flops += packed_flops(teacher.config, batch.lengths, n_targets=batch.n_targets) / 3  # its forward
        parts = sums.detach()
        return LossOutput(
            sum=sums[0],
            count=count,
            tokens=batch.tokens.size,
            flops=flops,
            metrics={"cross_entropy": parts[1], "divergence": parts[2]},
        )
