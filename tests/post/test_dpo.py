import math

import numpy as np
import pytest
import torch

from puna.core import console
from puna.core.batch import IGNORE
from puna.core.config import load
from puna.core.dialog import Dialog, Message
from puna.core.errors import ConfigError, UsageError
from puna.post.dpo import WATCH_EVERY, DpoBatches, DpoConfig, answer_sums, dpo_loss
from puna.post.packing import best_fit_decreasing
from puna.post.pairs import encode_answer, encode_pairs, pack_pairs
from puna.post.preference_rows import Preference
from puna.post.reference import cached_reference, reference_sums
from puna.post.trees import PADDING
from puna.tokenizer.chat_format import prompt, render
from tests.post.tiny import SPECIALS, TOKENIZER, preferences, tiny_model
from tests.reference import preference_losses as naive

PAD = SPECIALS.pad


def config(**changes):
    return DpoConfig.model_validate({"rows": 1, "sequence_length": 256, "window": 32} | changes)


def encoded(given, settings):
    return encode_pairs(
        given,
        TOKENIZER,
        sequence_length=settings.sequence_length,
        format_mask=settings.format_mask,
        shared_prefix=settings.shared_prefix,
    )


def one_batch(pairs, rows, settings, reference=None):
    return pack_pairs(pairs, rows, sequence_length=settings.sequence_length, pad=PAD, reference=reference)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_close(ours, theirs, tolerance=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=1e-9)


def twin(preference, *, format_mask="llama3"):
    """A pair as the naive twin takes it, made from the chat format alone."""
    sides = {}
    for name, answer in (("chosen", preference.best), ("rejected", preference.rejected)):
        head = len(prompt(TOKENIZER, preference.prompt))
        tokens = render(TOKENIZER, Dialog((*preference.prompt.messages, *answer))).tokens
        target = [t >= head for t in range(len(tokens))]
        counted = [is_target and (format_mask == "none" or t < len(tokens) - 1) for t, is_target in enumerate(target)]
        sides[name] = (tokens, target, counted)
    return sides


# --- pairs as tokens


def test_both_answers_stand_behind_the_same_prompt_tokens_with_one_begin_of_text():
    (preference,) = preferences(1)
    head = prompt(TOKENIZER, preference.prompt)
    for answer in (preference.chosen, preference.rejected):
        tokens = encode_answer(preference.prompt, answer, TOKENIZER, format_mask="llama3").tokens.tolist()
        assert tokens[: len(head)] == head and tokens.count(SPECIALS.bos) == 1


def test_all_of_the_answer_is_a_target_but_its_end_of_turn_does_not_count_in_the_contrast():
    asked = Dialog.of(("user", "Hi"), ("assistant", "earlier"), ("user", "Again"))
    answer = (Message("assistant", "ab"),)
    piece = encode_answer(asked, answer, TOKENIZER, format_mask="llama3")
    assert piece.targets[piece.targets != IGNORE].tolist() == [*b"ab", SPECIALS.eot]
    assert piece.targets[piece.counted].tolist() == [*b"ab"]
    everything = encode_answer(asked, answer, TOKENIZER, format_mask="none")
    assert everything.targets[everything.counted].tolist() == [*b"ab", SPECIALS.eot]


def test_headers_inside_an_answer_of_several_turns_never_count():
    answer = (Message("assistant", "call"), Message("tool", "9"), Message("assistant", "nine"))
    piece = encode_answer(Dialog.of(("user", "time?")), answer, TOKENIZER, format_mask="llama3")
    assert bytes(piece.targets[piece.counted].tolist()) == b"callnine"


def test_the_edited_answer_is_the_chosen_one():
    (plain,) = preferences(1)
    edited = Preference(plain.prompt, plain.chosen, plain.rejected, edited=(Message("assistant", "better"),))
    chosen, _ = encoded([edited], config()).answers[0]
    assert bytes(chosen.targets[chosen.counted].tolist()) == b"better"


def test_pairs_that_do_not_fit_are_counted_and_none_left_is_an_error():
    given = preferences(6)
    longest = max(encoded(given, config()).lengths)
    left = encoded(given, config(sequence_length=longest - 1))
    assert len(left.answers) < 6 and sum(left.dropped.values()) == 6 - len(left.answers)
    with pytest.raises(UsageError, match="none of 6 preferences can be used"):
        encoded(given, config(sequence_length=4))


def test_a_part_of_the_rows_is_the_batch_that_those_rows_alone_would_give():
    settings = config()
    pairs = encoded(preferences(12), settings)
    reference = np.arange(24, dtype=np.float32).reshape(12, 2)
    rows = [[3, 1], [0], [7, 5], [2]]
    part, alone = (
        one_batch(pairs, rows, settings, reference).rows(1, 3),
        one_batch(pairs, rows[1:3], settings, reference),
    )
    for name in ("tokens", "targets", "positions", "counted", "lengths", "stems", "answers", "pairs", "reference"):
        assert (getattr(part, name) == getattr(alone, name)).all(), name
    assert part.n_targets == alone.n_targets and part.n_pairs == 3


def test_an_epoch_of_batches_holds_every_pair_once_and_can_be_entered_anywhere():
    settings = config(rows=2)
    pairs = encoded(preferences(30), settings)
    stream, again = (DpoBatches(pairs, settings, pad=PAD, reference=np.zeros((30, 2), np.float32)) for _ in range(2))
    first = stream.next_batch()
    again.restore(stream.state())
    drawn = [first, *(stream.next_batch() for _ in range(stream.rows_in_epoch() // 2))]
    numbers = [number for batch in drawn for number in batch.pairs.tolist()]
    assert sorted(set(numbers)) == list(range(30)) and len(numbers[:30]) == len(set(numbers[:30]))
    assert (again.next_batch().tokens == drawn[1].tokens).all()
    assert all(PADDING in batch.answers for batch in drawn)


# --- the loss


@pytest.mark.parametrize(
    "changes",
    [{}, {"label_smoothing": 0.1}, {"format_mask": "none"}, {"nll_coefficient": 0.0}, {"shared_prefix": False}],
)
def test_packed_loss_and_gradients_equal_the_naive_twin(changes):
    settings = config(**changes)
    given = preferences(7)
    policy, reference_model = tiny_model(0), tiny_model(1)
    pairs = encoded(given, settings)
    stream = DpoBatches(pairs, settings, pad=PAD, reference=reference_sums(reference_model, pairs, settings, pad=PAD))
    loss = dpo_loss(settings, pairs=pairs)
    outputs = [loss(policy, stream.next_batch()) for _ in range(stream.rows_in_epoch())]
    total = torch.stack([output.sum for output in outputs]).sum()
    total.backward()
    packed = gradients(policy)
    policy.zero_grad()
    expected = naive.dpo_sum(
        lambda tokens: policy(torch.tensor(tokens)),
        lambda tokens: reference_model(torch.tensor(tokens)),
        [twin(p, format_mask=settings.format_mask) for p in given],
        beta=settings.beta,
        nll_coefficient=settings.nll_coefficient,
        label_smoothing=settings.label_smoothing,
    )
    expected.backward()
    assert sum(output.count for output in outputs) == 7
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_close(packed, gradients(policy))


def test_a_policy_that_equals_its_reference_loses_ln_2_with_no_reward_and_a_gradient():
    settings = config(nll_coefficient=0.0)
    pairs, model = encoded(preferences(5), settings), tiny_model(dtype=torch.float32)
    reference = reference_sums(model, pairs, settings, pad=PAD)
    batch = DpoBatches(pairs, settings, pad=PAD, reference=reference).next_batch()
    output = dpo_loss(settings, pairs=pairs)(model, batch)
    output.sum.backward()
    assert output.sum.item() / output.count == pytest.approx(math.log(2), rel=1e-5)
    assert abs(float(output.metrics["rewards/chosen"])) < 1e-4 > abs(float(output.metrics["rewards/margins"]))
    assert max(gradient.abs().max() for gradient in gradients(model)) > 1e-4


def test_a_reference_that_ran_on_the_same_rows_gives_rewards_of_exactly_zero():
    settings = config(rows=64, sequence_length=200)
    pairs, model = encoded(preferences(9), settings), tiny_model(dtype=torch.float32)
    cached = reference_sums(model, pairs, settings, pad=PAD)
    rows = best_fit_decreasing(pairs.lengths.tolist(), 200)
    output = dpo_loss(settings, pairs=pairs)(model, one_batch(pairs, rows, settings, cached))
    assert output.metrics["rewards/chosen"] == output.metrics["rewards/rejected"] == 0.0


def test_neither_place_nor_batch_mates_nor_padding_change_a_pair_s_loss():
    settings = config(sequence_length=400)
    pairs, model = encoded(preferences(6), settings), tiny_model()
    loss = dpo_loss(settings, pairs=pairs)
    reference = np.zeros((6, 2), np.float32)

    def of(rows):
        return loss(model, one_batch(pairs, rows, settings, reference)).sum.item()

    alone = [of([[pair]]) for pair in range(6)]
    assert of([[2, 0], [5]]) == pytest.approx(alone[2] + alone[0] + alone[5], rel=1e-9)
    assert of([[5], [0, 2]]) == pytest.approx(of([[2, 0], [5]]), rel=1e-9)
    wide = config(sequence_length=900)
    assert loss(model, one_batch(pairs, [[0]], wide, reference)).sum.item() == pytest.approx(alone[0], rel=1e-9)


def test_swapping_chosen_and_rejected_negates_the_margin():
    settings = config(nll_coefficient=0.0)
    given, model = preferences(4), tiny_model()
    swapped = [Preference(p.prompt, p.rejected, p.chosen) for p in given]
    margins = []
    for rows in (given, swapped):
        pairs = encoded(rows, settings)
        batch = DpoBatches(pairs, settings, pad=PAD, reference=np.zeros((4, 2), np.float32)).next_batch()
        margins.append(float(dpo_loss(settings, pairs=pairs)(model, batch).metrics["rewards/margins"]))
    assert margins[0] == pytest.approx(-margins[1], rel=1e-9) and abs(margins[0]) > 1e-3


def test_eight_rows_at_once_equal_eight_batches_of_one_row():
    settings = config(rows=8, sequence_length=160)
    pairs, model = encoded(preferences(40), settings), tiny_model()
    reference = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    loss = dpo_loss(settings, pairs=pairs)
    batch = DpoBatches(pairs, settings, pad=PAD, reference=reference).next_batch()
    whole = loss(model, batch)
    whole.sum.backward()
    together = gradients(model)
    model.zero_grad()
    stream = DpoBatches(pairs, settings.model_copy(update={"rows": 1}), pad=PAD, reference=reference)
    singles = [loss(model, stream.next_batch()) for _ in range(8)]
    for single in singles:
        single.sum.backward()
    assert sum(single.count for single in singles) == whole.count
    assert_close(together, gradients(model))
    model.zero_grad()
    for row in range(8):
        loss(model, batch.rows(row, row + 1)).sum.backward()
    assert_close(together, gradients(model))


def test_the_end_of_turn_is_trained_by_the_likelihood_and_not_by_the_contrast():
    contrast_only = config(nll_coefficient=0.0, sequence_length=400)
    with_nll = config(nll_coefficient=0.2, sequence_length=400)
    pairs, model = encoded(preferences(3), contrast_only), tiny_model()
    reference = np.zeros((3, 2), np.float32)
    batch = one_batch(pairs, [[0, 1, 2]], contrast_only, reference)
    targets = batch.targets.copy()
    targets[(targets == SPECIALS.eot)] = 7
    changed = type(batch)(
        **{name: getattr(batch, name) for name in batch.__slots__ if name != "targets"}, targets=targets
    )
    losses = [
        [dpo_loss(c, pairs=pairs)(model, b).sum.item() for b in (batch, changed)] for c in (contrast_only, with_nll)
    ]
    assert losses[0][0] == losses[0][1]
    assert losses[1][0] != losses[1][1]


def test_the_likelihood_term_counts_sequences_or_tokens_alike():
    by_sequence, by_token = config(), config(nll_normalization="token")
    pairs, model = encoded(preferences(5), by_sequence), tiny_model()
    batch = one_batch(pairs, [[0], [1], [2], [3], [4]], by_sequence, np.zeros((5, 2), np.float32))
    sums = answer_sums(model, batch)
    chosen, n = -sums.whole[:, 0], sums.n_whole[:, 0]
    assert float(dpo_loss(by_sequence, pairs=pairs)(model, batch).metrics["nll"]) == pytest.approx(
        (chosen / n).sum().item()
    )
    token_mean = 5 * (chosen.sum() / n.sum()).item()
    assert float(dpo_loss(by_token, pairs=pairs)(model, batch).metrics["nll"]) == pytest.approx(token_mean)


def test_ipo_and_simpo_use_sums_and_means():
    settings = config(nll_coefficient=0.0)
    pairs, model = encoded(preferences(2), settings), tiny_model()
    reference = np.array([[-3, -4], [-5, -2]], dtype=np.float32)
    batch = one_batch(pairs, [[0], [1]], settings, reference)
    sums = answer_sums(model, batch)
    ratios = sums.contrast.detach().numpy() - reference
    ipo = dpo_loss(config(nll_coefficient=0.0, loss="ipo", beta=0.5), pairs=pairs)(model, batch).sum.item()
    assert ipo == pytest.approx(((ratios[:, 0] - ratios[:, 1] - 1.0) ** 2).sum(), rel=1e-6)
    simpo = config(nll_coefficient=0.0, loss="simpo", beta=2.0, simpo_margin=0.5)
    assert not simpo.needs_reference
    means = (sums.contrast / sums.n_contrast).detach().numpy()
    expected = np.log1p(np.exp(-(2.0 * (means[:, 0] - means[:, 1]) - 0.5))).sum()
    without = one_batch(pairs, [[0], [1]], settings)
    assert dpo_loss(simpo, pairs=pairs)(model, without).sum.item() == pytest.approx(expected, rel=1e-6)


def test_training_raises_the_margin():
    settings = config(sequence_length=600)
    pairs, model = encoded(preferences(6), settings), tiny_model(dtype=torch.float32)
    stream = DpoBatches(pairs, settings, pad=PAD, reference=reference_sums(model, pairs, settings, pad=PAD))
    loss, optimizer = dpo_loss(settings, pairs=pairs), torch.optim.AdamW(model.parameters(), lr=1e-3)
    accuracies = []
    for _ in range(30):
        output = loss(model, stream.next_batch())
        optimizer.zero_grad()
        (output.sum / output.count).backward()
        optimizer.step()
        accuracies.append(float(output.metrics["rewards/accuracies"]) / output.count)
    assert accuracies[0] < 1.0 and accuracies[-1] == 1.0


def test_chosen_answers_that_lose_their_likelihood_give_one_warning(monkeypatch):
    said = []
    monkeypatch.setattr(console, "warn", said.append)
    settings = config()
    pairs, model = encoded(preferences(2), settings), tiny_model()
    held, lost = dpo_loss(settings, pairs=pairs), dpo_loss(settings, pairs=pairs)
    own = reference_sums(model, pairs, settings, pad=PAD)
    for _ in range(2 * WATCH_EVERY):
        held(model, one_batch(pairs, [[0], [1]], settings, own))
    assert not said
    for _ in range(2 * WATCH_EVERY):
        lost(model, one_batch(pairs, [[0], [1]], settings, own + 100))
    assert len(said) == 1 and "nats per token" in said[0]


def test_label_smoothing_with_another_loss_is_refused():
    with pytest.raises(ConfigError, match=r"label_smoothing is 0\.1 and loss is 'ipo'"):
        load(DpoConfig, overrides=["loss=ipo", "label_smoothing=0.1"])


# --- the reference


def cached(folder, pairs, settings, model, **changes):
    keys = {"model_fingerprint": "m", "tokenizer_fingerprint": "t"} | changes
    return cached_reference(model, pairs, settings, pad=PAD, folder=folder, **keys)


class Unused:
    """A model that must not be run."""


def test_kept_sums_are_found_again_bitwise_and_only_for_the_same_inputs(tmp_path):
    settings = config()
    pairs, model = encoded(preferences(5), settings), tiny_model(dtype=torch.float32)
    first = cached(tmp_path, pairs, settings, model)
    assert (first == reference_sums(model, pairs, settings, pad=PAD)).all()
    assert (cached(tmp_path, pairs, settings, Unused()) == first).all()
    for changes in ({"model_fingerprint": "m2"}, {"tokenizer_fingerprint": "t2"}):
        with pytest.raises(AttributeError):
            cached(tmp_path, pairs, settings, Unused(), **changes)
    unmasked = config(format_mask="none")
    with pytest.raises(AttributeError):
        cached(tmp_path, encoded(preferences(5), unmasked), unmasked, Unused())


def test_a_damaged_file_of_sums_is_made_again(tmp_path):
    settings = config()
    pairs, model = encoded(preferences(5), settings), tiny_model(dtype=torch.float32)
    first = cached(tmp_path, pairs, settings, model)
    (kept,) = tmp_path.iterdir()
    for content in (kept.read_bytes()[:-3], kept.read_bytes()[:-1] + b"x", b""):
        kept.write_bytes(content)
        assert (cached(tmp_path, pairs, settings, model) == first).all()
        assert (cached(tmp_path, pairs, settings, Unused()) == first).all()


def test_sums_agree_however_the_pairs_are_packed():
    pairs, model = encoded(preferences(9), config()), tiny_model(dtype=torch.float32)
    narrow = reference_sums(model, pairs, config(), pad=PAD)
    wide = reference_sums(model, pairs, config(sequence_length=1500, rows=3), pad=PAD)
    np.testing.assert_allclose(narrow, wide, rtol=1e-5)


# --- shared prefixes, means, soft labels


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo"])
@pytest.mark.parametrize("normalization", ["sum", "mean"])
def test_shared_prefix_rows_equal_separate_rows_with_gradients(loss, normalization):
    given, model = preferences(6), tiny_model()
    found = []
    for shared in (True, False):
        settings = config(shared_prefix=shared, loss=loss, normalization=normalization, sequence_length=2000)
        pairs = encoded(given, settings)
        reference = reference_sums(tiny_model(1), pairs, settings, pad=PAD)
        model.zero_grad()
        output = dpo_loss(settings, pairs=pairs)(model, one_batch(pairs, [list(range(6))], settings, reference))
        output.sum.backward()
        found.append((output.sum.item(), gradients(model), pairs.lengths.sum()))
    (ours, grads, short), (theirs, others, long) = found
    assert ours == pytest.approx(theirs, rel=1e-5) and short < long
    assert_close(grads, others, tolerance=1e-4)


def test_means_divide_each_ratio_by_its_own_length():
    settings = config(nll_coefficient=0.0, normalization="mean", loss="ipo", beta=0.5)
    pairs, model = encoded(preferences(2), settings), tiny_model()
    reference = np.array([[-3, -4], [-5, -2]], dtype=np.float32)
    batch = one_batch(pairs, [[0], [1]], settings, reference)
    sums = answer_sums(model, batch)
    ratios = (sums.contrast.detach().numpy() - reference) / sums.n_contrast.numpy()
    expected = ((ratios[:, 0] - ratios[:, 1] - 1.0) ** 2).sum()
    assert dpo_loss(settings, pairs=pairs)(model, batch).sum.item() == pytest.approx(expected, rel=1e-6)


def test_a_row_s_probability_is_its_own_label_smoothing_and_its_weight_counts():
    from dataclasses import replace

    given = preferences(2)
    doubted = [replace(given[0], probability=0.8, weight=2.0), given[1]]
    settings, model = config(nll_coefficient=0.0, label_smoothing=0.1), tiny_model()
    pairs, plain = encoded(doubted, settings), encoded(given, settings)
    reference = np.array([[-3, -4], [-5, -2]], dtype=np.float32)

    def losses(pairs, number, **changes):
        chosen = config(nll_coefficient=0.0, **changes)
        return dpo_loss(chosen, pairs=pairs)(model, one_batch(pairs, [[number]], chosen, reference)).sum.item()

    both = dpo_loss(settings, pairs=pairs)(model, one_batch(pairs, [[0], [1]], settings, reference))
    expected = 2.0 * losses(plain, 0, label_smoothing=0.2) + losses(plain, 1, label_smoothing=0.1)
    assert both.sum.item() == pytest.approx(expected, rel=1e-9) and both.count == 3.0


def test_a_batch_of_pairs_in_parts_gives_the_gradient_of_the_whole():
    settings = config()
    pairs, model = encoded(preferences(6), settings), tiny_model()
    reference, loss = np.zeros((6, 2), np.float32), dpo_loss(settings, pairs=pairs)
    rows = [[0, 1], [2], [3, 4], [5]]
    whole = one_batch(pairs, rows, settings, reference)
    loss(model, whole).sum.backward()
    together = gradients(model)
    model.zero_grad()
    outputs = [loss(model, whole.rows(i, i + 1)) for i in range(4)]
    for output in outputs:
        output.sum.backward()
    assert sum(output.count for output in outputs) == 6
    assert_close(together, gradients(model), tolerance=1e-8)
