"""How likely a continuation is after a prompt: one packed forward for many pairs, no padding, exact.

Prompt and continuation are encoded separately and joined as ids, so that a continuation has the same tokens after every
prompt. Log-probabilities are float32; the head runs only where a continuation token is predicted, a few places at a
time, since the logits of a long text at 128K vocabulary would not fit.

T packed tokens, P places that predict a continuation token, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from puna.core.generator import Score
from puna.model.layout import DocumentLayout
from puna.model.transformer import Transformer

_LOGITS_AT_ONCE = 2**24  # P x V: 64 MiB in float32


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of a prompt (at least one) and of what follows it."""

    prompt: list[int]
    continuation: list[int]

    @property
    def n_inputs(self) -> int:
        """Tokens that the model reads: the last one is only predicted."""
        return len(self.prompt) + len(self.continuation) - 1


@torch.inference_mode()
def score_pairs(model: Transformer, pairs: Sequence[Pair], *, tokens_at_once: int) -> list[Score]:
    """Score each pair.

    Args:
        model: The transformer.
        pairs: What to score, each within the context.
        tokens_at_once: Most tokens of one forward; a longer pair goes alone.

    Returns:
        Scores in the order of the pairs.
    """
    scores = [Score(0.0, 0, True)] * len(pairs)
    for group in _groups(pairs, tokens_at_once):
        for index, score in zip(group, _score_group(model, [pairs[i] for i in group]), strict=True):
            scores[index] = score
    return scores


def _groups(pairs: Sequence[Pair], tokens_at_once: int) -> Iterator[list[int]]:
    """Indices of pairs that go together; pairs of like length together, empty continuations nowhere."""
    group, total = list[int](), 0
    for index in sorted(range(len(pairs)), key=lambda i: -pairs[i].n_inputs):
        if not pairs[index].continuation:
            continue
        if group and total + pairs[index].n_inputs > tokens_at_once:
            yield group
            group, total = [], 0
        group.append(index)
        total += pairs[index].n_inputs
    if group:
        yield group


def _score_group(model: Transformer, pairs: Sequence[Pair]) -> list[Score]:
    lengths = np.array([p.n_inputs for p in pairs])
    ends = np.cumsum(lengths)
    inputs = np.concatenate([np.array((p.prompt + p.continuation)[:-1], dtype=np.int64) for p in pairs])
    targets = np.concatenate([np.array(p.continuation, dtype=np.int64) for p in pairs])
    places = np.concatenate([np.arange(end - len(p.continuation), end) for p, end in zip(pairs, ends, strict=True)])
    device = model.device
    layout = DocumentLayout.from_lengths(lengths, device)
    hidden_PD = model.hidden(torch.from_numpy(inputs).to(device), layout)[torch.from_numpy(places).to(device)]
    targets_P = torch.from_numpy(targets).to(device)
    logprobs, greedy = [], []
    at_once = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    for part_PD, wanted_P in zip(hidden_PD.split(at_once), targets_P.split(at_once), strict=True):
        logits_PV = model.logits(part_PD).float()
        logprobs.append(logits_PV.gather(1, wanted_P[:, None])[:, 0] - logits_PV.logsumexp(-1))
        greedy.append(logits_PV.argmax(-1) == wanted_P)
    # summed in float64: the score of a long text should not depend on the order of the sum
    logprob_P, greedy_P = torch.cat(logprobs).double().cpu().numpy(), torch.cat(greedy).cpu().numpy()
    cuts = np.cumsum([len(p.continuation) for p in pairs])[:-1]
    return [
        Score(float(part.sum()), len(part), bool(right.all()))
        for part, right in zip(np.split(logprob_P, cuts), np.split(greedy_P, cuts), strict=True)
    ]
