"""Direct preference optimization as Llama 3 uses it: learn from pairs, and stay near a reference.

    loss = mean over pairs of [ -log sigma(z) + 0.2 * NLL(chosen) ],   z = beta * (chosen ratio - rejected ratio)
    ratio = log pi(answer) - log ref(answer), summed over the answer's counted tokens

Two additions to the paper's DPO, both from Llama 3: header and termination tokens do not count in the contrast, and a
likelihood term for the chosen answer, here over all its tokens with `<|eot_id|>`, so that stopping is still trained.
The reference never runs beside the policy: its sums are computed once (`post/reference.py`) and travel with the batch.

One number is worth watching: DPO raises the margin, not the chosen answer. That the chosen log probability falls a
little is usual; that it falls by half a nat per token means that probability goes to texts nobody has seen, and a
warning says so once.

Source: Rafailov et al. 2023, arXiv:2305.18290; The Llama 3 Herd of Models (2407.21783), section 4.1.4; the likelihood
term: Pang et al. 2024, arXiv:2404.19733.
Shapes: B rows, S tokens of a row, W targets, P pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from puna.core import console
from puna.core.batch import IGNORE
from puna.core.config import Config
from puna.model.layout import DocumentLayout
from puna.model.linear_cross_entropy import token_log_probs
from puna.model.transformer import Transformer
from puna.post.packing import RowStream
from puna.post.pairs import EncodedPairs, FormatMask, PairBatch, pack_pairs
from puna.post.preference_losses import dpo_losses, ipo_losses, simpo_losses
from puna.train.loss import LossOutput, packed_flops

WATCH_EVERY = 16  # batches between two looks at the chosen answers' likelihood


class DpoConfig(Config):
    """How pairs become batches and a loss."""

    rows: int = Field(default=4, ge=1)
    """Rows of a batch over all processes."""
    sequence_length: int = Field(default=4096, ge=4)
    """Tokens of a row; a prompt with both its answers must fit."""
    window: int = Field(default=4096, ge=1)
    """Pairs that are shuffled and packed together."""
    seed: int = 0
    """Seed of the order."""
    loss: Literal["sigmoid", "ipo", "simpo"] = "sigmoid"
    """The contrast: DPO's, IPO's, or SimPO's, which needs no reference."""
    normalization: Literal["sum", "mean"] = "sum"
    """Log probabilities of an answer are summed, as in the papers, or divided by its length, so that long answers do
    not weigh more (beta is then 2 to 10; for ipo this is what its authors use). SimPO always takes means."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the tie to the reference (sigmoid: beta; ipo: tau), or the scale of the means (simpo: 2 to 10)."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Probability that a label is wrong (conservative DPO); with the sigmoid loss only."""
    simpo_margin: float = Field(default=1.0, ge=0.0)
    """SimPO's gamma: the margin by which the chosen answer should win."""
    nll_coefficient: float = Field(default=0.2, ge=0.0)
    """Weight of the chosen answer's negative log likelihood; Llama 3 uses 0.2."""
    nll_normalization: Literal["sequence", "token"] = "sequence"
    """Each chosen answer counts alike (`sequence`: divided by its own length), or each of its tokens does (`token`:
    divided by the data set's mean length)."""
    format_mask: FormatMask = "llama3"
    """Leave header and termination tokens out of the contrast (`llama3`), or count all tokens (`none`)."""
    collapse_nats_per_token: float = Field(default=0.5, gt=0.0)
    """Warn when chosen answers have lost more log probability than this per token, against the reference."""
    shared_prefix: bool = True
    """Compute a prompt once for both its answers, or once for each."""

    @model_validator(mode="after")
    def _smoothing_needs_sigmoid(self) -> "DpoConfig":
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing is {self.label_smoothing} and loss is {self.loss!r}; it needs 'sigmoid'")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference."""
        return self.loss != "simpo"


class DpoBatches:
    """Endless packed batches of pairs, for the training loop.

    Args:
        pairs: the data set, from `encode_pairs`.
        config: sizes and order.
        pad: token id of the padding.
        reference: `[pairs, 2]` summed log probabilities of the reference, from `cached_reference`.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(
        self,
        pairs: EncodedPairs,
        config: DpoConfig,
        *,
        pad: int,
        reference: NDArray[np.float32] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if config.needs_reference:
            assert reference is not None, f"the loss {config.loss!r} needs the reference's log probabilities"
        if reference is not None:
            assert reference.shape == (len(pairs.answers), 2), f"reference has the shape {reference.shape}"
        self._pairs, self._config, self._pad, self._reference = pairs, config, pad, reference
        self._stream = RowStream(
            pairs.lengths,
            capacity=config.sequence_length,
            rows=config.rows,
            window=config.window,
            seed=config.seed,
            rank=rank,
            world=world,
        )

    def next_batch(self) -> PairBatch:
        """This process's part of the next batch."""
        return pack_pairs(
            self._pairs,
            self._stream.next_rows(),
            sequence_length=self._config.sequence_length,
            pad=self._pad,
            reference=self._reference,
        )

    def rows_in_epoch(self) -> int:
        """Rows of the first epoch over all processes; a batch takes `rows * world` of them."""
        return self._stream.rows_in_epoch()

    def state(self) -> dict[str, Any]:
        """Where the stream stands, in JSON types, the same on every rank."""
        return self._stream.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a place that `state` named.

        Raises:
            UsageError: The place belongs to other pairs or settings.
        """
        self._stream.restore(state)


@dataclass(frozen=True, slots=True)
class AnswerSums:
    """What a model thinks of each answer of a batch; column 0 chosen, column 1 rejected.

    Attributes:
        contrast: log probability summed over the counted targets, in nats.
        n_contrast: number of counted targets.
        whole: log probability summed over all targets, in nats.
        n_whole: number of targets.
    """

    contrast: Float[Tensor, "P 2"]
    n_contrast: Float[Tensor, "P 2"]
    whole: Float[Tensor, "P 2"]
    n_whole: Float[Tensor, "P 2"]


def answer_sums(model: Transformer, batch: PairBatch) -> AnswerSums:
    """Runs a model over a batch of pairs; logits are made for the answers' tokens only.

    Args:
        model: policy or reference.
        batch: B rows of whole pairs.

    Returns:
        Sums for each answer, differentiable in the model's weights.
    """
    device = model.device
    layout = DocumentLayout(batch.lengths, stems=batch.stems, device=device)
    places = np.flatnonzero(batch.targets != IGNORE)  # W of them; nothing else is asked of the last layer
    only_W, targets_W = (torch.from_numpy(x).to(device) for x in (places, batch.targets.reshape(-1)[places]))
    hidden_WD = model.hidden(torch.from_numpy(batch.tokens).to(device).flatten(), layout, only=only_W)
    logprobs_W = token_log_probs(hidden_WD, model.head_weight, targets_W)
    counted_W = torch.from_numpy(batch.counted.reshape(-1)[places]).to(device).to(logprobs_W.dtype)
    answer_W = torch.from_numpy(np.repeat(batch.answers, batch.lengths)[places]).to(device)

    def per_answer(values_W: Tensor) -> Tensor:
        return values_W.new_zeros(2 * batch.n_pairs).index_add(0, answer_W, values_W).view(-1, 2)

    return AnswerSums(
        contrast=per_answer(logprobs_W * counted_W),
        n_contrast=per_answer(counted_W),
        whole=per_answer(logprobs_W),
        n_whole=per_answer(torch.ones_like(counted_W)),
    )


@dataclass
class DpoLoss:
    """The loss that the training loop calls, with the watch over the chosen answers' likelihood.

    Args:
        config: which contrast, and how much likelihood.
        mean_chosen_targets: mean length of the data set's chosen answers in tokens, for `nll_normalization="token"`.
    """

    config: DpoConfig
    mean_chosen_targets: float = 1.0

    def __post_init__(self) -> None:
        self._drift: Tensor | None = None
        self._calls = 0
        self._warned = False

    def __call__(self, model: Transformer, batch: PairBatch) -> LossOutput:
        """Loss of a batch, summed over its pairs.

        Args:
            model: the policy.
            batch: B rows of whole pairs, with the reference's sums when the contrast needs them.

        Returns:
            The sum over pairs, the sum of their weights, and metrics that are sums over pairs too.
        """
        sums = answer_sums(model, batch)
        policy_P2, reference_P2 = sums.contrast, torch.zeros_like(sums.contrast)
        if batch.reference is not None:
            reference_P2 = torch.from_numpy(batch.reference).to(policy_P2)
        ratios_P2 = policy_P2 - reference_P2
        if self.config.normalization == "mean" or self.config.loss == "simpo":
            ratios_P2 = ratios_P2 / sums.n_contrast.clamp(min=1)
        weights_P = torch.from_numpy(batch.weights).to(ratios_P2)
        loss_P = self._contrast(ratios_P2, torch.from_numpy(batch.probabilities).to(ratios_P2))
        nll_P = self._likelihood(sums)
        total = (weights_P * (loss_P + self.config.nll_coefficient * nll_P)).sum()
        with torch.no_grad():
            rewards_P2 = self.config.beta * weights_P[:, None] * ratios_P2
            margins_P = rewards_P2[:, 0] - rewards_P2[:, 1]
            metrics = {
                "rewards/chosen": rewards_P2[:, 0].sum(),
                "rewards/rejected": rewards_P2[:, 1].sum(),
                "rewards/margins": margins_P.sum(),
                "rewards/accuracies": (weights_P * (margins_P > 0)).sum(),
                "logps/chosen": (weights_P * policy_P2[:, 0]).sum(),
                "logps/rejected": (weights_P * policy_P2[:, 1]).sum(),
                "nll": (weights_P * nll_P).sum(),
            }
            if batch.reference is not None:
                drift_P = policy_P2[:, 0] - reference_P2[:, 0]
                self._watch((drift_P / sums.n_contrast[:, 0].clamp(min=1)).mean())
        return LossOutput(
            sum=total,
            count=float(batch.weights.sum()),
            tokens=batch.tokens.size,
            flops=packed_flops(
                model.config,
                batch.lengths,
                n_targets=batch.n_targets,
                stem_lengths=np.where(batch.stems < 0, 0, batch.lengths[batch.stems]),
            ),
            metrics=metrics,
        )

    def _contrast(self, ratios_P2: Tensor, probabilities_P: Tensor) -> Tensor:
        config = self.config
        chosen_P, rejected_P = ratios_P2.unbind(1)
        if config.loss == "ipo":
            return ipo_losses(chosen_P, rejected_P, tau=config.beta)
        if config.loss == "simpo":
            return simpo_losses(chosen_P, rejected_P, beta=config.beta, gamma=config.simpo_margin)
        # a label is wrong with the row's own probability, or the recipe's where the row does not know better
        wrong_P = torch.where(probabilities_P < 1.0, 1.0 - probabilities_P, config.label_smoothing)
        return dpo_losses(chosen_P, rejected_P, beta=config.beta, label_smoothing=wrong_P)

    def _likelihood(self, sums: AnswerSums) -> Tensor:
        by_sequence = self.config.nll_normalization == "sequence"
        return -sums.whole[:, 0] / (sums.n_whole[:, 0] if by_sequence else self.mean_chosen_targets)

    def _watch(self, drift: Tensor) -> None:
        """Follows the running mean of nats per token; looks at its value now and then only, to spare the device."""
        self._drift = drift if self._drift is None else torch.lerp(self._drift, drift, 0.1)
        self._calls += 1
        if self._warned or self._calls % WATCH_EVERY:
            return
        lost = -float(self._drift)
        if lost > self.config.collapse_nats_per_token:
            self._warned = True
            console.warn(
                f"chosen answers have lost {lost:.2f} nats per token against the reference: probability goes to texts "
                "that are in no pair. Raise nll_coefficient or beta, lower the learning rate, or train fewer steps."
            )


def dpo_loss(config: DpoConfig, *, pairs: EncodedPairs) -> DpoLoss:
    """The loss for the training loop, normalised by the global number of pairs.

    Args:
        config: which contrast, and how much likelihood.
        pairs: the data set.

    Returns:
        A callable `(model, batch) -> LossOutput`.
    """
    return DpoLoss(config, pairs.mean_chosen_targets)
