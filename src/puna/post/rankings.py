"""Answers to one prompt in the order of their worth: what a reward model learns from.

Rows come in two forms, and may be mixed:

    {"prompt": ..., "chosen": ..., "rejected": ..., "edited": ...}    an edit, where there is one, is better than chosen
    {"prompt": ..., "ranking": [best, ..., worst]}                    K answers, best first

Each row becomes one tree: the prompt's tokens as its stem, every answer with its end of turn as a branch, the score
read at a branch's last token. The order of the branches in a row is that of the ranking, which no branch can see.

Source: The Llama 3 Herd of Models (2407.21783), sections 4.1.2 and 4.2.1.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from puna.core import console
from puna.core.dialog import Dialog, Message
from puna.core.errors import UsageError
from puna.post.dialogs import RowError, read_each
from puna.post.preference_rows import STRENGTHS, Preference, Strength, parse_preference, parse_prompted, refuse_keys
from puna.post.rows import Row, kind_of
from puna.post.trees import Tree
from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.chat_format import prompt as render_prompt
from puna.tokenizer.chat_format import render

SHORTEST_RANKING, LONGEST_RANKING = 2, 32


@dataclass(frozen=True, slots=True)
class RankedPair:
    """One answer is better than another of its ranking.

    Attributes:
        better: Number of the better answer.
        worse: Number of the worse one.
        strength: By how much, where a person said it.
        probability: That the order is right.
    """

    better: int
    worse: int
    strength: Strength | None = None
    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """A prompt with answers, best first.

    Attributes:
        prompt: What was asked.
        answers: Two or more.
        pairs: The comparisons that it stands for; each counts `weight / len(pairs)`.
        weight: How much the ranking counts.
        source: Where it came from.
    """

    prompt: Dialog
    answers: tuple[tuple[Message, ...], ...]
    pairs: tuple[RankedPair, ...]
    weight: float = 1.0
    source: str = "rankings"


def read_rankings(paths: Sequence[Path | str], *, max_problems: int = 20) -> list[Ranking]:
    """Reads every preference and ranking of some files.

    Args:
        paths: JSON lines, JSON lists, or folders of these.
        max_problems: Stop after this many unusable rows.

    Raises:
        MissingError: A file is not there.
        CorruptError: A compressed file is cut short or damaged.
        ConfigError: Rows that cannot be used, each with file, line, what was got and what is allowed.
    """
    return list(read_each(paths, _parse, what="preferences", max_problems=max_problems))


def _parse(row: Row) -> Ranking:
    if row.value.get("ranking") is None:
        return of_preference(parse_preference(row))
    refuse_keys(row.value)
    given = row.value["ranking"]
    if not isinstance(given, list) or not SHORTEST_RANKING <= len(given) <= LONGEST_RANKING:
        got = f"of {len(given)}" if isinstance(given, list) else kind_of(given)
        raise RowError(f"'ranking' is {got}; it must be a list of {SHORTEST_RANKING} to {LONGEST_RANKING} answers")
    prompt, answers = parse_prompted(row, given, "answer {} of 'ranking'")
    texts = ["\n".join(m.content.strip() for m in answer) for answer in answers]
    if len(set(texts)) < len(texts):
        raise RowError("two answers of 'ranking' are the same; leave one out")
    pairs = tuple(RankedPair(i, j) for i, j in combinations(range(len(answers)), 2))
    source = row.value.get("source")
    return Ranking(prompt, answers, pairs, source=source if isinstance(source, str) and source else "rankings")


def of_preference(preference: Preference) -> Ranking:
    """A preference as a ranking of two, or of three when its chosen answer was edited."""
    strength, probability = preference.strength, preference.probability or 1.0
    answers = (preference.chosen, preference.rejected)
    pairs = (RankedPair(0, 1, strength, probability),)
    if preference.edited and preference.edited != preference.chosen:
        answers = (preference.edited, *answers)
        # the edit's own strength is not known: against the rejected answer it is at least that of the chosen one
        pairs = (RankedPair(0, 1), RankedPair(0, 2, strength), RankedPair(1, 2, strength, probability))
    return Ranking(
        preference.prompt, answers, pairs, weight=preference.weight or 1.0, source=preference.source or "preferences"
    )


def at_least(rankings: Sequence[Ranking], strength: Strength | None) -> list[Ranking]:
    """Rankings with their pairs below a strength left out; pairs whose strength nobody knows stay.

    Source: The Llama 3 Herd of Models (2407.21783), section 4.2.1: only clear preferences train the reward model.
    """
    if strength is None:
        return list(rankings)
    lowest = STRENGTHS.index(strength)
    kept = [
        replace(r, pairs=tuple(p for p in r.pairs if p.strength is None or STRENGTHS.index(p.strength) >= lowest))
        for r in rankings
    ]
    return [ranking for ranking in kept if ranking.pairs]


@dataclass(frozen=True)
class EncodedRankings:
    """A data set of rankings as tokens.

    Attributes:
        rankings: Those that fit.
        trees: One for each.
        dropped: Rankings left out, by reason.
    """

    rankings: list[Ranking]
    trees: list[Tree]
    dropped: Counter[str]


def encode_rankings(
    rankings: Sequence[Ranking], tokenizer: Tokenizer, *, sequence_length: int, shared_prefix: bool = True
) -> EncodedRankings:
    """Encodes rankings.

    Args:
        rankings: What to learn from.
        tokenizer: The model's tokenizer.
        sequence_length: Tokens of a row; a whole tree must fit.
        shared_prefix: The prompt once, or a copy before each answer.

    Raises:
        UsageError: There is none, or none fits.
    """
    if not rankings:
        raise UsageError("no prompt is left to learn from. Lower held_out_fraction or data.least_strength.")
    kept, trees, dropped = [], [], Counter[str]()
    with console.progress("tokenizing preferences", total=len(rankings), unit="prompts") as progress:
        for ranking in rankings:
            tree = ranking_tree(ranking, tokenizer, shared_prefix=shared_prefix)
            progress.advance()
            if tree.n_tokens > sequence_length:
                dropped[f"prompt and answers longer than {sequence_length} tokens"] += 1
            else:
                kept.append(ranking)
                trees.append(tree)
    if not trees:
        raise UsageError(
            f"none of {len(rankings)} prompts can be used: {console.counts(dropped)}. Raise data.sequence_length."
        )
    return EncodedRankings(kept, trees, dropped)


def ranking_tree(ranking: Ranking, tokenizer: Tokenizer, *, shared_prefix: bool = True) -> Tree:
    """The prompt as a stem, each answer with its end of turn as a branch."""
    head = len(render_prompt(tokenizer, ranking.prompt)) if shared_prefix else 0
    whole = [
        np.array(render(tokenizer, Dialog((*ranking.prompt.messages, *answer))).tokens, dtype=np.int64)
        for answer in ranking.answers
    ]
    return Tree(whole[0][:head], tuple(tokens[head:] for tokens in whole))


def falls_out(prompt: Dialog, fraction: float) -> bool:
    """Whether a prompt is held out: its hash decides, the same for every set that it is in."""
    text = json.dumps(prompt.as_messages(), sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 < fraction


def split_rankings(rankings: Sequence[Ranking], fraction: float) -> tuple[list[Ranking], list[Ranking]]:
    """Rankings to learn from, and others to judge by. A prompt's hash decides, so no prompt is on both sides.

    Args:
        rankings: All of them.
        fraction: Share of prompts to hold out.

    Returns:
        Those to learn from, and those held out.
    """
    sides: tuple[list[Ranking], list[Ranking]] = ([], [])
    for ranking in rankings:
        sides[falls_out(ranking.prompt, fraction)].append(ranking)
    return sides
