"""From logits to tokens: temperature, then top-k, then top-p, then one draw that nothing but its own request decides.

Every draw turns one uniform number into a token by inverting the cumulative distribution. The number is a hash of
`(seed, index, position)`: a generator in counter mode. So a request draws the same tokens alone and in any batch, at
once or resumed, on every platform; no generator state exists.

Reported log-probabilities are those of the model itself, in float32, before temperature and truncation.

Source: top-p, 1904.09751, section 3.1. The order (temperature, top-k, top-p over what top-k left) is that of
transformers and vLLM.

B rows, R rows of one group, V vocabulary, W likeliest tokens looked at.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from puna.core.errors import UsageError
from puna.core.generator import Sampling

# A nucleus is looked for in this many likeliest tokens first: sorting 128K tokens takes ten times as long.
_NUCLEUS_WIDTH = 1024


def check_sampling(sampling: Sampling) -> None:
    """Refuse values that mean nothing.

    Raises:
        UsageError: Naming the value and what is allowed.
    """
    rules = [
        ("max_tokens", sampling.max_tokens, sampling.max_tokens >= 1, "at least 1"),
        ("temperature", sampling.temperature, 0 <= sampling.temperature < float("inf"), "0 or more"),
        ("top_p", sampling.top_p, 0 <= sampling.top_p <= 1, "from 0 to 1"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "0 (all) or more"),
        ("top_logprobs", sampling.top_logprobs, sampling.top_logprobs >= 0, "0 or more"),
        ("stop", sampling.stop, all(sampling.stop), "without empty texts"),
    ]
    for name, value, fine, allowed in rules:
        if not fine:
            raise UsageError(f"{name} is {value}, allowed is {allowed}.")


def uniform(seed: int, index: int, position: int) -> float:
    """The random number of one draw: uniform in [0, 1), in steps of 2^-53.

    Args:
        seed: Of the request.
        index: Which prompt of the call.
        position: Which new token.
    """
    digest = hashlib.blake2b(f"{seed}/{index}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tokens of one step.

    Attributes:
        tokens: One a row.
        logprobs: Untempered log-probability of each; NaN where the model's logits were not numbers.
        top: For each row the likeliest `(token, logprob)` pairs, as many as its `top_logprobs`.
    """

    tokens: list[int]
    logprobs: list[float]
    top: list[tuple[tuple[int, float], ...]]


def draw(logits_BV: Float[Tensor, "B V"], samplings: Sequence[Sampling], uniforms: Sequence[float]) -> Drawn:
    """Draw one token for each row.

    Args:
        logits_BV: The model's logits, any float type.
        samplings: How each row draws.
        uniforms: One number in [0, 1) for each row; unused where the temperature is 0.
    """
    logits_BV = logits_BV.float()
    tokens_B = logits_BV.argmax(-1)
    groups: dict[int, list[int]] = defaultdict(list)  # rows by how many of the likeliest tokens they look at; 0: all
    for row, sampling in enumerate(samplings):
        if sampling.temperature > 0:
            groups[_width(sampling, logits_BV.shape[-1])].append(row)
    for width, rows in groups.items():
        everything = len(rows) == len(samplings)
        logits_RV = logits_BV if everything else logits_BV[rows]
        own, numbers = [samplings[r] for r in rows], [uniforms[r] for r in rows]
        tokens_B[rows] = _invert_all(logits_RV, own, numbers) if width == 0 else _invert(logits_RV, own, numbers, width)
    norms_B = logits_BV.logsumexp(-1)
    logprobs_B = logits_BV.gather(1, tokens_B[:, None])[:, 0] - norms_B
    top = [_likeliest(logits_BV[row] - norms_B[row], s.top_logprobs) for row, s in enumerate(samplings)]
    return Drawn(tokens_B.tolist(), logprobs_B.tolist(), top)


def _width(sampling: Sampling, n_vocab: int) -> int:
    if sampling.top_k:
        return min(n_vocab, sampling.top_k)
    return 0 if sampling.top_p == 1 else min(n_vocab, _NUCLEUS_WIDTH)


def _likeliest(logprobs_V: Tensor, n: int) -> tuple[tuple[int, float], ...]:
    if n == 0:
        return ()
    values, tokens = logprobs_V.topk(min(n, len(logprobs_V)))
    return tuple(zip(tokens.tolist(), values.tolist(), strict=True))


def _column(values: Sequence[float], like: Tensor) -> Float[Tensor, "R 1"]:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


def _weights(logits_RV: Tensor, samplings: Sequence[Sampling]) -> Float[Tensor, "R V"]:
    """exp(logits / temperature), scaled so that the largest is 1, in float64: no temperature overflows."""
    temperatures = _column([s.temperature for s in samplings], logits_RV)
    return ((logits_RV - logits_RV.amax(-1, keepdim=True)).double() / temperatures).exp()


def _invert_all(logits_RV: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> Int[Tensor, " R"]:
    """Draw from whole distributions."""
    sums_RV = _weights(logits_RV, samplings).cumsum(-1)
    found = torch.searchsorted(sums_RV, _column(uniforms, logits_RV) * sums_RV[:, -1:], right=True)[:, 0]
    return found.clamp_(max=logits_RV.shape[-1] - 1)  # beyond only when the logits are no numbers


def _invert(
    logits_RV: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float], width: int
) -> Int[Tensor, " R"]:
    """Draw from the `width` likeliest tokens, cut to the nucleus."""
    weights_RV = _weights(logits_RV, samplings)
    if width == logits_RV.shape[-1]:
        weights_RW, tokens_RW = weights_RV.sort(dim=-1, descending=True, stable=True)
    else:
        weights_RW, tokens_RW = weights_RV.topk(width)
    sums_RW = weights_RW.cumsum(-1)
    whole = torch.tensor([s.top_k == 0 for s in samplings], device=logits_RV.device)[:, None]
    totals_R1 = torch.where(whole, weights_RV.sum(-1, keepdim=True), sums_RW[:, -1:])
    nucleus_R1 = _column([s.top_p for s in samplings], logits_RV) * totals_R1
    kept_R1 = (sums_RW - weights_RW < nucleus_R1).sum(-1, keepdim=True).clamp_(min=1)
    masses_R1 = sums_RW.gather(1, kept_R1 - 1)
    found_R1 = torch.searchsorted(sums_RW, _column(uniforms, logits_RV) * masses_R1, right=True)
    tokens_R = tokens_RW.gather(1, torch.minimum(found_R1, kept_R1 - 1))[:, 0]
    if width < logits_RV.shape[-1]:  # rows whose nucleus is wider than what was looked at
        short = (whole & (sums_RW[:, -1:] < nucleus_R1))[:, 0].nonzero()[:, 0].tolist()
        if short:
            own, numbers = [samplings[r] for r in short], [uniforms[r] for r in short]
            tokens_R[short] = _invert(logits_RV[short], own, numbers, logits_RV.shape[-1])
    return tokens_R
