"""The reward model: a transformer whose head gives one number, trained so that better answers get higher ones.

A row holds whole trees (`post/trees.py`): the prompt is computed once for all its answers, which is exact and pays the
more the longer the prompt is. The score of an answer is read at its own last token, `<|eot_id|>`, whose place is known
from packing; no padding token is ever searched for, so neither padding nor batch mates can change a score.

The loss is summed over rankings, each of which counts its weight; the pairs of one ranking share it. The losses are in
`post/reward_losses.py`; whether the finished model may be used is `post/reward_check.py`'s question.

Source: The Llama 3 Herd of Models (2407.21783), section 4.1.2.
Shapes: B rows, S tokens of a row, A answers, M pairs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from puna.core import console
from puna.core.config import Config
from puna.core.dialog import Dialog, Message
from puna.model.config import ModelConfig
from puna.model.layout import DocumentLayout
from puna.model.transformer import Transformer
from puna.post.packing import RowStream, best_fit_decreasing
from puna.post.preference_rows import Strength
from puna.post.rankings import EncodedRankings, Ranking, ranking_tree
from puna.post.reward_losses import MARGINS, Margins, bradley_terry_losses
from puna.post.share import DataRanks
from puna.post.trees import Forest, Tree, plant
from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.chat_format import render
from puna.train.loss import LossOutput, packed_flops


class RewardConfig(Config):
    """How rankings become batches and a loss."""

    rows: int = Field(default=4, ge=1)
    """Rows of a batch over all processes."""
    sequence_length: int = Field(default=4096, ge=4)
    """Tokens of a row; a prompt with all its answers must fit."""
    window: int = Field(default=4096, ge=1)
    """Rankings that are shuffled and packed together."""
    seed: int = 0
    """Seed of the order, and of the first score head."""
    margins: Margins = "none"
    """By how much the better answer should win, by strength: `none` (Llama 3), or Llama 2's `small` or `large`."""
    centring: float = Field(default=0.0, ge=0.0)
    """Weight of the squared sum of both scores of a pair; 0.01 keeps scores around zero."""
    least_strength: Strength | None = None
    """Leave out pairs that are less clear; Llama 3 keeps `better` and `significantly_better`."""
    shared_prefix: bool = True
    """Compute a prompt once for all its answers, or once for each of them."""


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """Rows of trees and the comparisons between their branches.

    Attributes:
        forest: B rows of whole trees.
        rankings: `[R]` number of each ranking in its data set.
        better: `[M]` branch of the better answer.
        worse: `[M]` branch of the worse one.
        weights: `[M]` how much each pair counts; those of a ranking sum to its weight.
        margins: `[M]`.
        probabilities: `[M]` that the order is right.
        sources: Tokens by source name, for the metrics.
    """

    forest: Forest
    rankings: NDArray[np.int64]
    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    weights: NDArray[np.float64]
    margins: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    sources: dict[str, int]


def pack_rankings(
    encoded: EncodedRankings, rows: Sequence[Sequence[int]], config: RewardConfig, *, pad: int
) -> RewardBatch:
    """Lays rankings out in rows.

    Args:
        encoded: The data set.
        rows: For each row the numbers of its rankings; they must fit.
        config: Length of a row, and margins.
        pad: Token id of the padding.
    """
    forest = plant([[encoded.trees[i] for i in row] for row in rows], sequence_length=config.sequence_length, pad=pad)
    numbers = [i for row in rows for i in row]
    columns: list[tuple[int, int, float, float, float]] = []
    first = 0
    sources: Counter[str] = Counter()
    for number in numbers:
        ranking = encoded.rankings[number]
        for pair in ranking.pairs:
            margin = MARGINS[config.margins].get(pair.strength, 0.0) if pair.strength else 0.0
            weight = ranking.weight / len(ranking.pairs)
            columns.append((first + pair.better, first + pair.worse, weight, margin, pair.probability))
        first += len(ranking.answers)
        sources[ranking.source] += encoded.trees[number].n_tokens
    better, worse, weights, margins, probabilities = (np.array(column) for column in zip(*columns, strict=True))
    return RewardBatch(
        forest, np.array(numbers, dtype=np.int64), better, worse, weights, margins, probabilities, dict(sources)
    )


class RewardBatches:
    """Endless packed batches of rankings, for the training loop.

    Args:
        encoded: The data set.
        config: Sizes and order.
        pad: Token id of the padding.
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(
        self, encoded: EncodedRankings, config: RewardConfig, *, pad: int, rank: int = 0, world: int = 1
    ) -> None:
        self._encoded, self._config, self._pad = encoded, config, pad
        self._stream = RowStream(
            [tree.n_tokens for tree in encoded.trees],
            capacity=config.sequence_length,
            rows=config.rows,
            window=config.window,
            seed=config.seed,
            rank=rank,
            world=world,
        )

    def next_batch(self) -> RewardBatch:
        """This process's part of the next batch."""
        return pack_rankings(self._encoded, self._stream.next_rows(), self._config, pad=self._pad)

    def rows_in_epoch(self) -> int:
        """Rows of the first epoch over all processes; a batch takes `rows * world` of them."""
        return self._stream.rows_in_epoch()

    def state(self) -> dict[str, Any]:
        """Where the stream stands, in JSON types, the same on every rank."""
        return self._stream.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a place that `state` named.

        Raises:
            UsageError: The place belongs to other rankings or settings.
        """
        self._stream.restore(state)


def branch_scores(model: Transformer, forest: Forest) -> Float[Tensor, " A"]:
    """The score of every branch of a batch, read at its last token.

    Args:
        model: A model with a score head.
        forest: B rows of trees.
    """
    layout = DocumentLayout(forest.lengths, stems=forest.stems, device=model.device)
    lasts_A = torch.from_numpy(forest.lasts).to(model.device)
    return model.scores(model.hidden(torch.from_numpy(forest.tokens).to(model.device).flatten(), layout, only=lasts_A))


@dataclass(frozen=True)
class RewardLoss:
    """The loss that the training loop calls: `(model, batch) -> LossOutput`, summed over rankings."""

    config: RewardConfig

    def __call__(self, model: Transformer, batch: RewardBatch) -> LossOutput:
        """Loss of a batch.

        Args:
            model: A model with a score head.
            batch: B rows of whole rankings.

        Returns:
            The sum over rankings, the sum of their weights, and metrics that are sums of the same kind.
        """
        scores_A = branch_scores(model, batch.forest)
        device = scores_A.device
        better, worse = (torch.from_numpy(x).to(device) for x in (batch.better, batch.worse))
        weights, margins, probabilities = (
            torch.from_numpy(x).to(scores_A) for x in (batch.weights, batch.margins, batch.probabilities)
        )
        better_M, worse_M = scores_A[better], scores_A[worse]
        loss_M = bradley_terry_losses(
            better_M, worse_M, margin=margins, probability=probabilities, centring=self.config.centring
        )
        with torch.no_grad():
            differences_M = better_M - worse_M
            metrics = {
                "accuracy": (weights * (differences_M > 0)).sum(),
                "margin": (weights * differences_M).sum(),
                "score/better": (weights * better_M).sum(),
                "score/worse": (weights * worse_M).sum(),
            }
        return LossOutput(
            sum=(weights * loss_M).sum(),
            count=float(batch.weights.sum()),
            tokens=batch.forest.tokens.size,
            flops=forest_flops(model, batch.forest, n_targets=len(scores_A)),
            metrics=metrics,
        )


def forest_flops(model: Transformer, forest: Forest, *, n_targets: int) -> float:
    """Model FLOPs of forward and backward over rows of trees, causal convention."""
    stem_lengths = np.where(forest.stems < 0, 0, forest.lengths[forest.stems])
    return packed_flops(model.config, forest.lengths, n_targets=n_targets, stem_lengths=stem_lengths)


def scorer_shape(shape: ModelConfig) -> ModelConfig:
    """The shape of a reward model with the trunk of a language model."""
    return shape.model_copy(update={"head": "score", "tie_embeddings": False})


def first_score(dim: int, *, seed: int) -> Float[Tensor, "1 D"]:
    """The first weights of a score head, with standard deviation (D + 1)^(-1/2): first scores spread by about one.

    Source: Stiennon et al. 2020, arXiv:2009.01325, appendix B.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, dim, generator=generator) * (dim + 1) ** -0.5


def with_score_head(model: Transformer, *, seed: int = 0) -> Transformer:
    """A reward or value model with the trunk of a language model: its weights move, its head is left behind.

    Args:
        model: A language model, or a reward model, which comes back as it is. It must not be used any more.
        seed: Of the score head.
    """
    if model.config.head == "score":
        return model
    config = scorer_shape(model.config)
    with torch.device("meta"):
        scorer = Transformer(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
    weight_1D = first_score(config.dim, seed=seed)
    scorer.load_state_dict(state | {"score.weight": weight_1D.to(next(model.parameters()))}, assign=True)
    return scorer.requires_grad_()


class Scorer:
    """A reward model as a function: dialogs, or prompts with answers as token ids, to scores.

    Args:
        model: With a score head.
        tokenizer: The one it was trained with.
        rows: Rows of a forward.
        sequence_length: Tokens of a row; 0 takes the model's context.
        ranks: The other processes, over which batches are dealt out; all call it with the same dialogs.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        rows: int = 8,
        sequence_length: int = 0,
        ranks: DataRanks | None = None,
    ) -> None:
        assert model.config.head == "score", "a scorer needs a model with a score head"
        self._model, self._tokenizer, self._rows = model.eval(), tokenizer, rows
        self._length, self._ranks = sequence_length or model.config.max_seq_len, ranks

    @property
    def max_tokens(self) -> int:
        """The longest dialog in tokens."""
        return self._length

    def dialogs(self, dialogs: Sequence[Dialog]) -> NDArray[np.float64]:
        """The score of each dialog's last answer."""
        none = np.empty(0, dtype=np.int64)
        rendered = [np.array(render(self._tokenizer, d).tokens, dtype=np.int64) for d in dialogs]
        return np.array([scores[0] for scores in self.trees([Tree(none, (tokens,)) for tokens in rendered])])

    def texts(self, asked: Sequence[tuple[Dialog, Sequence[str]]]) -> list[list[float]]:
        """The scores of answers as text, each prompt computed once for all its answers."""
        rankings = [Ranking(dialog, tuple((Message("assistant", t),) for t in texts), ()) for dialog, texts in asked]
        return [row.tolist() for row in self.trees([ranking_tree(r, self._tokenizer) for r in rankings])]

    def trees(self, trees: Sequence[Tree], *, label: str = "") -> list[NDArray[np.float64]]:
        """The scores of the branches of each tree.

        Args:
            trees: Stems with their branches, each within `max_tokens`.
            label: Shows progress under this name; empty shows none.
        """
        longest = max((tree.n_tokens for tree in trees), default=1)
        capacity = max(longest, min(self._length, 1024))
        rows = best_fit_decreasing([tree.n_tokens for tree in trees], capacity)
        ends = np.cumsum([len(tree.branches) for tree in trees])
        scores = np.zeros(ends[-1] if len(trees) else 0)  # of all branches, tree by tree
        world, rank = (self._ranks.config.data_ranks, self._ranks.data_rank) if self._ranks else (1, 0)
        starts = range(0, len(rows), self._rows)
        with torch.no_grad(), console.progress(label or "scoring", total=len(trees), unit="prompts") as progress:
            for turn in range(0, len(starts), world):  # all processes run a batch at each turn
                mine = min(turn + rank, len(starts) - 1)
                chosen = rows[starts[mine] : starts[mine] + self._rows]
                forest = plant(
                    [[trees[i] for i in row] for row in chosen],
                    sequence_length=capacity,
                    pad=self._tokenizer.specials.pad,
                )
                flat = branch_scores(self._model, forest).double().cpu().numpy()
                numbers = [i for row in chosen for i in row]
                cuts = np.cumsum([len(trees[i].branches) for i in numbers])[:-1]
                for number, own in zip(numbers, np.split(flat, cuts), strict=True):
                    if mine == turn + rank:
                        scores[ends[number] - len(own) : ends[number]] = own
                progress.advance(len(numbers) * min(world, len(starts) - turn))
        if self._ranks is not None:
            scores = self._ranks.add_up(torch.from_numpy(scores)).numpy()
        return np.split(scores, ends[:-1]) if len(trees) else []
