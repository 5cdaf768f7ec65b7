"""Preference pairs as tokens: a prompt with two answers behind it, whole pairs packed into rows.

Prompt and answer are encoded apart and their ids are joined, so that a prompt has the same tokens before either answer
and `<|begin_of_text|>` comes once. The targets of a piece are its answer's tokens, `<|eot_id|>` included. Which of them
count in the contrast is a second mask: Llama 3 leaves out header and termination tokens, since both answers share them,
and a loss that pushes the same token up in one and down in the other makes models that repeat their tail or end
abruptly. The likelihood term keeps them.

A row holds whole pairs, chosen then rejected. So any part of a batch's rows is a batch itself, and a micro-batch or a
rank's share needs nothing from elsewhere. With a shared prefix the prompt is computed once for both (`post/trees.py`):
the answers' pieces begin with its last token, which predicts the first token of each. Without, each answer has a copy.

Source: The Llama 3 Herd of Models (2407.21783), section 4.1.4.
Shapes: B rows, S tokens of a row, P pairs.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.core import console
from puna.core.batch import IGNORE
from puna.core.dialog import Dialog, Message
from puna.core.errors import UsageError
from puna.post.preference_rows import Preference
from puna.post.trees import Tree, plant
from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.chat_format import prompt as render_prompt
from puna.tokenizer.chat_format import render

FormatMask = Literal["llama3", "none"]


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """A prompt with one answer.

    Attributes:
        tokens: inputs: all tokens but the last.
        targets: the next token where it belongs to the answer, `IGNORE` elsewhere.
        counted: whether the target counts in the contrast.
        n_prompt: tokens of the prompt; the last of them predicts the answer's first.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    counted: NDArray[np.bool_]
    n_prompt: int


@dataclass(frozen=True, slots=True)
class PairBatch:
    """B rows of S tokens that hold P whole pairs.

    Attributes:
        tokens: `[B, S]` int64.
        targets: `[B, S]` int64, the answers' tokens, or `IGNORE`.
        positions: `[B, S]` int32, counted from 0 in each piece.
        counted: `[B, S]` bool, targets that count in the contrast.
        lengths: `[pieces]` int64 in row-major order; they sum to B * S, and no piece crosses a row.
        stems: `[pieces]` int64, the piece that each one continues, or -1.
        answers: `[pieces]` int64, `2 * pair + side` (chosen 0, rejected 1), or `PADDING`, or `STEM`.
        pairs: `[P]` int64, number of each pair in its data set.
        reference: `[P, 2]` float32, the reference's summed log probability of chosen and rejected over the counted
            targets, in nats; absent when nobody asked for it.
        weights: `[P]` float64, how much each pair counts.
        probabilities: `[P]` float64, that the chosen answer is the better one.
        n_targets: how many targets there are.
        sources: tokens by source name, for the metrics.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int32]
    counted: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    stems: NDArray[np.int64]
    answers: NDArray[np.int64]
    pairs: NDArray[np.int64]
    reference: NDArray[np.float32] | None
    weights: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    n_targets: int
    sources: dict[str, int] = field(default_factory=dict)

    @property
    def n_pairs(self) -> int:
        """P."""
        return len(self.pairs)

    def rows(self, start: int, stop: int) -> "PairBatch":
        """The batch of rows `start:stop` alone (a micro-batch, or one rank's part)."""
        width = self.tokens.shape[1]
        ends = np.cumsum(self.lengths)
        inside = (ends > start * width) & (ends <= stop * width)
        answers, stems = self.answers[inside], self.stems[inside]
        taken = answers[answers >= 0]
        earlier = int(np.argmax(inside))  # pieces before the first one
        first, n_pairs = (int(taken[0]) // 2, len(taken) // 2) if len(taken) else (0, 0)
        targets = self.targets[start:stop]
        return PairBatch(
            tokens=self.tokens[start:stop],
            targets=targets,
            positions=self.positions[start:stop],
            counted=self.counted[start:stop],
            lengths=self.lengths[inside],
            stems=np.where(stems < 0, -1, stems - earlier),
            answers=np.where(answers < 0, answers, answers - 2 * first),
            pairs=self.pairs[first : first + n_pairs],
            reference=None if self.reference is None else self.reference[first : first + n_pairs],
            weights=self.weights[first : first + n_pairs],
            probabilities=self.probabilities[first : first + n_pairs],
            n_targets=int(np.count_nonzero(targets != IGNORE)),
            sources=self.sources,
        )


@dataclass(frozen=True)
class EncodedPairs:
    """A data set of pairs.

    Attributes:
        answers: the two answers of each pair.
        sources: source name of each pair.
        weights: how much each pair counts.
        probabilities: that each pair's chosen answer is the better one.
        dropped: number of preferences left out, by reason.
        shared_prefix: whether the prompt stands once before both answers.
    """

    answers: list[tuple[AnswerTokens, AnswerTokens]]
    sources: list[str]
    weights: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    dropped: Counter[str]
    shared_prefix: bool = False

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`[pairs]`: tokens that a pair takes in a row."""
        return np.array([self.tree(pair).n_tokens for pair in range(len(self.answers))], dtype=np.int64)

    def tree(self, pair: int) -> Tree:
        """A pair as it lies in a row."""
        chosen, rejected = self.answers[pair]
        stem = chosen.n_prompt - 1 if self.shared_prefix else 0
        return Tree(chosen.tokens[:stem], (chosen.tokens[stem:], rejected.tokens[stem:]))

    @property
    def mean_chosen_targets(self) -> float:
        """Mean length of a chosen answer in tokens."""
        return float(np.mean([np.count_nonzero(chosen.targets != IGNORE) for chosen, _ in self.answers]))

    def fingerprint(self) -> str:
        """SHA-256 over all tokens, targets and masks."""
        digest = hashlib.sha256(b"shared prefix;" if self.shared_prefix else b"")
        for pair in self.answers:
            for answer in pair:
                for array in (answer.tokens, answer.targets, answer.counted):
                    digest.update(f"{len(array)};".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def encode_pairs(
    preferences: Sequence[Preference],
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    format_mask: FormatMask,
    shared_prefix: bool = False,
) -> EncodedPairs:
    """Encodes preferences; the edited answer, where there is one, is the chosen one.

    Args:
        preferences: what people, or a verifier, preferred.
        tokenizer: the model's tokenizer.
        sequence_length: tokens of a row; a whole pair must fit.
        format_mask: `llama3` leaves header and termination tokens out of the contrast, `none` counts all.
        shared_prefix: the prompt once before both answers, or a copy before each.

    Returns:
        The pairs that fit.

    Raises:
        UsageError: None fits.
    """
    answers, kept, dropped = list[tuple[AnswerTokens, AnswerTokens]](), list[Preference](), Counter[str]()
    with console.progress("tokenizing pairs", total=len(preferences), unit="pairs") as progress:
        for preference in preferences:
            chosen = encode_answer(preference.prompt, preference.best, tokenizer, format_mask=format_mask)
            rejected = encode_answer(preference.prompt, preference.rejected, tokenizer, format_mask=format_mask)
            progress.advance()
            saved = chosen.n_prompt - 1 if shared_prefix else 0
            if len(chosen.tokens) + len(rejected.tokens) - saved > sequence_length:
                dropped[f"prompt and answers longer than {sequence_length} tokens"] += 1
            else:
                answers.append((chosen, rejected))
                kept.append(preference)
    if not answers:
        told = console.counts(dropped)
        raise UsageError(f"none of {len(preferences)} preferences can be used: {told}. Raise data.sequence_length.")
    return EncodedPairs(
        answers,
        sources=[preference.source or "pairs" for preference in kept],
        weights=np.array([preference.weight or 1.0 for preference in kept]),
        probabilities=np.array([preference.probability or 1.0 for preference in kept]),
        dropped=dropped,
        shared_prefix=shared_prefix,
    )


def encode_answer(
    prompt: Dialog, answer: tuple[Message, ...], tokenizer: Tokenizer, *, format_mask: FormatMask
) -> AnswerTokens:
    """Encodes one answer behind its prompt; arguments as in `encode_pairs`."""
    head = len(render_prompt(tokenizer, prompt))
    rendered = render(tokenizer, Dialog((*prompt.messages, *answer)))
    tokens = np.array(rendered.tokens, dtype=np.int64)
    in_answer = np.array(rendered.supervised)
    in_answer[:head] = False
    counted = in_answer.copy()
    if format_mask == "llama3":
        counted &= ~np.isin(tokens, _format_tokens(tokenizer))
    targets = np.where(in_answer, tokens, IGNORE)
    return AnswerTokens(tokens[:-1], targets[1:], counted[1:], head)


def _format_tokens(tokenizer: Tokenizer) -> list[int]:
    names = tokenizer.specials
    return [names.start_header, names.end_header, names.eot, names.eom, names.end_of_text]


def pack_pairs(
    pairs: EncodedPairs,
    rows: Sequence[Sequence[int]],
    *,
    sequence_length: int,
    pad: int,
    reference: NDArray[np.float32] | None,
) -> PairBatch:
    """Lays pairs out in rows.

    Args:
        pairs: the data set.
        rows: for each row the numbers of its pairs; they must fit.
        sequence_length: tokens of a row.
        pad: token id of the padding, which is its own piece.
        reference: `[all pairs, 2]` summed log probabilities of the reference, or None.

    Returns:
        The batch.
    """
    forest = plant([[pairs.tree(pair) for pair in row] for row in rows], sequence_length=sequence_length, pad=pad)
    targets = np.full(forest.tokens.shape, IGNORE, dtype=np.int64)
    counted = np.zeros(forest.tokens.shape, dtype=np.bool_)
    numbers = [pair for row in rows for pair in row]
    sources: Counter[str] = Counter()
    places = zip(forest.starts.tolist(), forest.sizes.tolist(), strict=True)
    for pair in numbers:
        sources[pairs.sources[pair]] += pairs.tree(pair).n_tokens
        for answer in pairs.answers[pair]:
            start, length = next(places)
            own = slice(len(answer.tokens) - length, None)
            targets.reshape(-1)[start : start + length] = answer.targets[own]
            counted.reshape(-1)[start : start + length] = answer.counted[own]
    order = np.array(numbers, dtype=np.int64)
    return PairBatch(
        tokens=forest.tokens,
        targets=targets,
        positions=forest.positions,
        counted=counted,
        lengths=forest.lengths,
        stems=forest.stems,
        answers=forest.owners,
        pairs=order,
        reference=None if reference is None else reference[order],
        weights=pairs.weights[order],
        probabilities=pairs.probabilities[order],
        n_targets=int(np.count_nonzero(targets != IGNORE)),
        sources=dict(sources),
    )
