"""Supervised fine-tuning: dialogs to packed batches in which only the assistant's words are targets.

A dialog becomes one piece: its tokens but the last as input, and as targets the next token wherever the assistant
speaks, `<|eot_id|>` included (a model that is not taught to stop never does), `IGNORE` elsewhere. Pieces are packed
into rows by `post/packing.py`; no piece attends to another, none predicts another's first token, and the little room
that is left at a row's end is a piece of its own without targets. So a row always has targets.

Who is learned is a choice: the assistant (all of its turns, or the last one), other roles too, and never a message that
says `"weight": 0`. A row may carry a weight; then the loss is the weighted mean over all targets of a step. Quality and
difficulty, where rows have them, choose rows. NEFTune's noise on the embeddings is off by default.

A dialog that is longer than a row is cut at a message boundary after the last answer that fits, or left out; both are
counted with their reason. The loss is that of pretraining: sum over targets, divided once by the global count.

Source: The Llama 3 Herd of Models (2407.21783), section 4.1.3 (SFT: cross-entropy, prompt tokens masked) and 4.2.3
(quality and difficulty); NEFTune: Jain et al. 2023, arXiv:2310.05914.
Shapes: B rows, S tokens of a row.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from puna.core import console
from puna.core.batch import IGNORE, PackedBatch
from puna.core.config import Bounds, Config
from puna.core.dialog import Dialog, Role
from puna.core.errors import UsageError
from puna.model.transformer import Transformer
from puna.post.dialogs import DialogRow
from puna.post.packing import RowStream
from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.chat_format import Rendered, render
from puna.train.loss import Loss, LossOutput, next_token_loss


class SftConfig(Config):
    """How dialogs become batches."""

    rows: int = Field(default=8, ge=1)
    """Rows of a batch."""
    sequence_length: int = Field(default=2048, ge=2)
    """Tokens of a row."""
    overlong: Literal["truncate", "drop"] = "truncate"
    """What happens to a dialog longer than a row: cut after the last answer that fits, or left out."""
    window: int = Field(default=4096, ge=1)
    """Dialogs that are shuffled and packed together."""
    seed: int = 0
    """Seed of the order."""
    roles: tuple[Role, ...] = Field(default=("assistant",), min_length=1)
    """Whose words are learned, each with its end of turn."""
    turns: Literal["all", "last"] = "all"
    """All turns of these roles, or the last one of each dialog alone."""
    min_quality: float | None = None
    """Leave out dialogs whose `quality` is lower; those without stay."""
    difficulty: Bounds | None = None
    """Leave out dialogs whose `difficulty` is outside; those without stay."""
    neftune_alpha: float = Field(default=0.0, ge=0.0)
    """Strength of uniform noise on the embeddings, alpha / sqrt(L D) for a dialog of L tokens; the paper has 5 to 15.
    0 adds none."""


@dataclass
class SftReport:
    """What became of the dialogs.

    Attributes:
        n_dialogs: dialogs given.
        n_kept: dialogs in the data set, truncated ones included.
        n_truncated: dialogs cut after an answer.
        dropped: number of dialogs left out, by reason.
        n_tokens: tokens of an epoch, without padding.
        n_targets: targets of an epoch.
    """

    n_dialogs: int = 0
    n_kept: int = 0
    n_truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    n_tokens: int = 0
    n_targets: int = 0


class SftBatches:
    """Endless packed batches of dialogs, for the training loop.

    Args:
        dialogs: what to learn from.
        tokenizer: the model's tokenizer.
        config: sizes, order and what to do with long dialogs.
        rank: number of this process.
        world: number of processes.

    Raises:
        UsageError: No dialog is left.
    """

    def __init__(
        self, dialogs: Sequence[DialogRow], tokenizer: Tokenizer, config: SftConfig, *, rank: int = 0, world: int = 1
    ) -> None:
        self._config, self._pad = config, tokenizer.specials.pad
        self.report = SftReport(n_dialogs=len(dialogs))
        pieces, sources, weights = [], [], []
        with console.progress("tokenizing dialogs", total=len(dialogs), unit="dialogs") as progress:
            for row in dialogs:
                rendered = self._fit(tokenizer, row) if self._wanted(row) else None
                if rendered is not None:
                    pieces.append(_piece(rendered))
                    sources.append(row.source)
                    weights.append(row.weight)
                progress.advance()
        if not pieces:
            raise UsageError(f"none of {len(dialogs)} dialogs can be used: {console.counts(self.report.dropped)}")
        self._tokens = np.concatenate([tokens for tokens, _ in pieces])
        self._targets = np.concatenate([targets for _, targets in pieces])
        lengths = np.array([len(tokens) for tokens, _ in pieces], dtype=np.int64)
        self._starts = np.cumsum(lengths) - lengths
        self._lengths, self._sources = lengths, sources
        self._weights = np.array(weights, dtype=np.float32) if set(weights) != {1.0} else None
        self.report.n_kept, self.report.n_tokens = len(pieces), len(self._tokens)
        self.report.n_targets = int(np.count_nonzero(self._targets != IGNORE))
        self._stream = RowStream(
            lengths,
            capacity=config.sequence_length,
            rows=config.rows,
            window=config.window,
            seed=config.seed,
            rank=rank,
            world=world,
        )

    def next_batch(self) -> PackedBatch:
        """This process's part of the next batch."""
        shape = (self._config.rows, self._config.sequence_length)
        tokens = np.full(shape, self._pad, dtype=np.int64)
        targets = np.full(shape, IGNORE, dtype=np.int64)
        positions = np.empty(shape, dtype=np.int32)
        weights = None if self._weights is None else np.zeros(shape, dtype=np.float32)
        lengths: list[int] = []
        sources: Counter[str] = Counter()
        for row, pieces in enumerate(self._stream.next_rows()):
            filled = 0
            for piece in pieces:
                start, length = int(self._starts[piece]), int(self._lengths[piece])
                place = slice(filled, filled + length)
                tokens[row, place] = self._tokens[start : start + length]
                targets[row, place] = self._targets[start : start + length]
                positions[row, place] = np.arange(length)
                if weights is not None and self._weights is not None:
                    weights[row, place] = self._weights[piece]
                sources[self._sources[piece]] += length
                lengths.append(length)
                filled += length
            if filled < shape[1]:
                positions[row, filled:] = np.arange(shape[1] - filled)
                lengths.append(shape[1] - filled)
        return PackedBatch(
            tokens=tokens,
            targets=targets,
            positions=positions,
            lengths=np.array(lengths, dtype=np.int64),
            n_targets=int(np.count_nonzero(targets != IGNORE)),
            sources=dict(sources),
            weights=weights,
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
            UsageError: The place belongs to other dialogs or settings.
        """
        self._stream.restore(state)

    def _wanted(self, row: DialogRow) -> bool:
        lowest, span = self._config.min_quality, self._config.difficulty
        if lowest is not None and row.quality is not None and row.quality < lowest:
            self.report.dropped[f"quality below {lowest:g}"] += 1
            return False
        if span is not None and row.difficulty is not None and not span[0] <= row.difficulty <= span[1]:
            self.report.dropped[f"difficulty outside {span[0]:g} to {span[1]:g}"] += 1
            return False
        return True

    def _render(self, tokenizer: Tokenizer, row: DialogRow, end: int) -> Rendered:
        """The first `end` messages, with what of them is learned."""
        messages = row.dialog.messages[:end]
        rendered = render(tokenizer, Dialog(messages))
        roles = self._config.roles
        learned = [n for n, message in enumerate(messages) if message.role in roles and n not in row.silent]
        chosen = set(learned if self._config.turns == "all" else learned[-1:])
        return replace(rendered, supervised=[turn in chosen for turn in rendered.turns])

    def _fit(self, tokenizer: Tokenizer, row: DialogRow) -> Rendered | None:
        dialog = row.dialog
        rendered = self._render(tokenizer, row, len(dialog.messages))
        if not any(rendered.supervised):
            self.report.dropped[f"no {' or '.join(self._config.roles)} speaks"] += 1
            return None
        room = self._config.sequence_length
        if len(rendered.tokens) - 1 <= room:
            return rendered
        if self._config.overlong == "drop":
            self.report.dropped[f"longer than {room} tokens"] += 1
            return None
        for end in range(len(dialog.messages) - 1, 0, -1):
            if dialog.messages[end - 1].role == "assistant":
                rendered = self._render(tokenizer, row, end)
                if len(rendered.tokens) - 1 <= room and any(rendered.supervised):
                    self.report.n_truncated += 1
                    return rendered
        self.report.dropped[f"first answer ends after {room} tokens"] += 1
        return None


def sft_loss(model: Transformer, batch: PackedBatch) -> LossOutput:
    """Cross-entropy of the assistant's tokens: pretraining's loss, since the targets already say who speaks.

    Args:
        model: what is fine-tuned.
        batch: B rows of dialogs.

    Returns:
        The sum over targets in nats, and their number.
    """
    return next_token_loss(model, batch)


@dataclass(frozen=True)
class NoisySftLoss:
    """`sft_loss` with NEFTune's noise on the embeddings, drawn from PyTorch's own generator, whose state is saved."""

    alpha: float

    def __call__(self, model: Transformer, batch: PackedBatch) -> LossOutput:
        """Loss of a batch; arguments as in `sft_loss`."""
        if not model.training:
            return next_token_loss(model, batch)
        scale_T1 = torch.from_numpy(np.repeat(self.alpha / np.sqrt(batch.lengths * model.config.dim), batch.lengths))

        def add_noise(module: torch.nn.Module, given: tuple[Tensor, ...], x_TD: Tensor) -> Tensor:
            return x_TD + torch.empty_like(x_TD).uniform_(-1.0, 1.0) * scale_T1.to(x_TD)[:, None]

        assert model.embedding is not None, "this process holds no embedding"
        handle = model.embedding.register_forward_hook(add_noise)
        try:
            return next_token_loss(model, batch)
        finally:
            handle.remove()


def make_loss(config: SftConfig) -> Loss:
    """The loss of a recipe."""
    return NoisySftLoss(config.neftune_alpha) if config.neftune_alpha else sft_loss


def _piece(rendered: Rendered) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Inputs and targets of one dialog; the last token is only ever a target."""
    tokens = np.array(rendered.tokens, dtype=np.int64)
    targets = np.where(np.array(rendered.supervised[1:]), tokens[1:], IGNORE)
    return tokens[:-1].astype(np.uint32), targets.astype(np.int32)
