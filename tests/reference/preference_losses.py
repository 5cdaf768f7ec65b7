"""Naive twins of post-training: one answer at a time, whole logits, plain arithmetic, nothing packed or chunked.

`sft_sum` and `dpo_sum` take token lists and a function that gives the logits of one unpadded sequence, so that they share
nothing with the batches, the packing and the chunked losses that they check.
"""

import math

import torch


def answer_logprobs(logits_of, tokens, is_target):
    """Log probability of each token for which `is_target` holds, in order."""
    log_probabilities = torch.log_softmax(logits_of(tokens[:-1]), dim=-1)
    places = [t for t in range(1, len(tokens)) if is_target[t]]
    return torch.stack([log_probabilities[t - 1, tokens[t]] for t in places])


def sft_sum(logits_of, dialogs):
    """Summed negative log likelihood and number of targets of `[(tokens, supervised)]`."""
    parts = [answer_logprobs(logits_of, tokens, supervised) for tokens, supervised in dialogs]
    return -sum(part.sum() for part in parts), sum(len(part) for part in parts)


def dpo(chosen, rejected, reference_chosen, reference_rejected, *, beta, label_smoothing=0.0):
    """Loss and margin z of one pair, from summed log probabilities."""
    z = beta * ((chosen - rejected) - (reference_chosen - reference_rejected))
    right, wrong = math.log1p(math.exp(-z)), math.log1p(math.exp(z))
    return (1 - label_smoothing) * right + label_smoothing * wrong, z


def dpo_sum(logits_of, reference_logits_of, pairs, *, beta, nll_coefficient, label_smoothing=0.0):
    """Summed loss of pairs `{"chosen": (tokens, is_target, is_counted), "rejected": ...}`."""
    total = 0.0
    for pair in pairs:
        sums, references = {}, {}
        for side, (tokens, is_target, is_counted) in pair.items():
            sums[side] = answer_logprobs(logits_of, tokens, is_counted).sum()
            with torch.no_grad():
                references[side] = answer_logprobs(reference_logits_of, tokens, is_counted).sum()
                references[side] = references[side].float().double()  # the reference's sums are kept in float32
            if side == "chosen":
                nll = -answer_logprobs(logits_of, tokens, is_target).mean()
        z = beta * ((sums["chosen"] - sums["rejected"]) - (references["chosen"] - references["rejected"]))
        right, wrong = torch.log1p(torch.exp(-z)), torch.log1p(torch.exp(z))
        total = total + (1 - label_smoothing) * right + label_smoothing * wrong + nll_coefficient * nll
    return total
