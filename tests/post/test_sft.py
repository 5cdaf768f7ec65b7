import numpy as np
import pytest
import torch
from pydantic import ValidationError

from puna.core.batch import IGNORE, PackedBatch
from puna.core.dialog import Dialog
from puna.core.errors import UsageError
from puna.post.dialogs import DialogRow
from puna.post.sft import NoisySftLoss, SftBatches, SftConfig, make_loss, sft_loss
from puna.tokenizer.chat_format import render
from tests.post.tiny import SPECIALS, TOKENIZER, dialog_rows, tiny_model
from tests.reference import preference_losses as naive


def batches(dialogs, **changes):
    config = SftConfig.model_validate({"rows": 2, "sequence_length": 160, "window": 32} | changes)
    return SftBatches(dialogs, TOKENIZER, config)


def pieces_of(batch: PackedBatch):
    """(tokens, targets, positions) of each piece."""
    ends = np.cumsum(batch.lengths)
    flat = (batch.tokens.ravel(), batch.targets.ravel(), batch.positions.ravel())
    return [tuple(a[end - n : end] for a in flat) for n, end in zip(batch.lengths, ends, strict=True)]


def epoch(stream):
    return [stream.next_batch() for _ in range(stream.rows_in_epoch())]


def test_only_what_the_assistant_says_is_a_target_and_its_end_of_turn_is_one():
    row = DialogRow(
        Dialog.of(("system", "S"), ("user", "Hi"), ("assistant", "Yes"), ("user", "?"), ("assistant", "No")), "x"
    )
    tokens, targets, _ = pieces_of(batches([row], rows=1).next_batch())[0]
    said = [token for token in targets if token != IGNORE]
    assert said == [*b"Yes", SPECIALS.eot, *b"No", SPECIALS.eot]
    assert targets[-1] == SPECIALS.eot and SPECIALS.eot not in tokens[-1:]


def test_every_dialog_is_a_piece_with_its_own_positions_and_no_target_from_a_neighbour():
    rows = dialog_rows(40)
    stream = batches(rows, rows=1, sequence_length=320)
    expected = sorted(tuple(render(TOKENIZER, row.dialog).tokens) for row in rows)
    found = []
    for batch in epoch(stream):
        assert batch.lengths.sum() == batch.tokens.size
        for tokens, targets, positions in pieces_of(batch):
            assert positions.tolist() == list(range(len(tokens)))
            if tokens[0] == SPECIALS.pad:
                assert (tokens == SPECIALS.pad).all() and (targets == IGNORE).all()
                continue
            assert tokens[0] == SPECIALS.bos and SPECIALS.bos not in targets
            found.append((*tokens.tolist(), int(targets[-1])))
            asked = targets[:-1] != IGNORE
            assert (targets[:-1][asked] == tokens[1:][asked]).all()
    assert sorted(found) == expected


def test_every_row_has_targets_and_the_count_is_theirs():
    for batch in epoch(batches(dialog_rows(40))):
        assert ((batch.targets != IGNORE).sum(axis=1) > 0).all()
        assert batch.n_targets == (batch.targets != IGNORE).sum()
        assert sum(batch.sources.values()) == (batch.tokens != SPECIALS.pad).sum()


def test_next_to_nothing_of_an_epoch_is_padding():
    stream = batches(dialog_rows(2000), sequence_length=1024, rows=1, window=4096)
    assert stream.report.n_tokens / (1024 * stream.rows_in_epoch()) > 0.99


def test_a_dialog_that_is_too_long_is_cut_after_the_last_answer_that_fits():
    dialog = Dialog.of(("user", "a"), ("assistant", "b"), ("user", "c" * 50), ("assistant", "d" * 50))
    stream = batches([DialogRow(dialog, "x")], rows=1, sequence_length=64)
    tokens, targets, _ = pieces_of(stream.next_batch())[0]
    assert [*tokens.tolist(), targets[-1]] == render(TOKENIZER, Dialog(dialog.messages[:2])).tokens
    assert stream.report.n_truncated == 1 and not stream.report.dropped


def test_what_cannot_be_used_is_counted_with_its_reason():
    fits, long = Dialog.of(("user", "a"), ("assistant", "b")), Dialog.of(("user", "a" * 99), ("assistant", "b"))
    mute = Dialog.of(("user", "a"))
    report = batches([DialogRow(d, "x") for d in (fits, long, mute)], sequence_length=64).report
    assert report.n_kept == 1
    assert report.dropped == {"first answer ends after 64 tokens": 1, "no assistant speaks": 1}
    dropping = batches([DialogRow(d, "x") for d in (fits, long)], sequence_length=64, overlong="drop").report
    assert dropping.dropped == {"longer than 64 tokens": 1}
    with pytest.raises(UsageError, match=r"none of 1 dialogs can be used: 1 \(no assistant speaks\)$"):
        batches([DialogRow(mute, "x")])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"difficulty": (0.9, 0.1)}, "the lower one first"),
        ({"difficulty": (float("nan"), 1.0)}, "the lower one first"),
        ({"roles": ()}, "at least 1"),
    ],
)
def test_ranges_that_hold_nothing_are_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        SftConfig(**settings)


def test_a_dialog_as_long_as_a_row_is_kept_whole():
    dialog = Dialog.of(("user", "a"), ("assistant", "b"))
    n = len(render(TOKENIZER, dialog).tokens) - 1
    batch = batches([DialogRow(dialog, "x")], rows=1, sequence_length=n).next_batch()
    assert batch.lengths.tolist() == [n] and batch.targets[0, -1] == SPECIALS.eot


def test_restoring_gives_the_batches_that_would_have_come():
    first, second = batches(dialog_rows(40)), batches(dialog_rows(40))
    for _ in range(9):
        first.next_batch()
    second.restore(first.state())
    for _ in range(20):
        assert (first.next_batch().tokens == second.next_batch().tokens).all()


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_packed_loss_and_gradients_equal_the_naive_twin_on_single_dialogs():
    rows = dialog_rows(12)
    stream, model = batches(rows, rows=1, sequence_length=320), tiny_model()
    outputs = [sft_loss(model, batch) for batch in epoch(stream)]
    total = torch.stack([output.sum for output in outputs]).sum()
    total.backward()
    packed = gradients(model)
    model.zero_grad()
    rendered = [render(TOKENIZER, row.dialog) for row in rows]
    expected, count = naive.sft_sum(
        lambda tokens: model(torch.tensor(tokens)), [(r.tokens, r.supervised) for r in rendered]
    )
    expected.backward()
    assert sum(output.count for output in outputs) == count
    assert total.item() == pytest.approx(expected.item(), rel=1e-9)
    for ours, theirs in zip(packed, gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_changing_the_label_of_a_masked_token_leaves_the_loss_unchanged():
    model, batch = tiny_model(), batches(dialog_rows(6), rows=1).next_batch()
    before = sft_loss(model, batch).sum.item()
    last = int(np.flatnonzero(batch.targets[0] != IGNORE)[-1])
    tokens = batch.tokens.copy()
    tokens[0, last + 1 :] = 7  # behind the last target nothing counts, padding included
    changed = PackedBatch(tokens, batch.targets, batch.positions, batch.lengths, batch.n_targets)
    assert sft_loss(model, changed).sum.item() == before


def test_one_batch_of_eight_rows_equals_eight_batches_of_one():
    rows, model = dialog_rows(60), tiny_model()
    sft_loss(model, batches(rows, rows=8).next_batch()).sum.backward()
    together = gradients(model)
    model.zero_grad()
    stream = batches(rows, rows=1)
    outputs = [sft_loss(model, stream.next_batch()) for _ in range(8)]
    for output in outputs:
        output.sum.backward()
    assert sum(output.count for output in outputs) == batches(rows, rows=8).next_batch().n_targets
    for ours, theirs in zip(together, gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def supervised_text(stream):
    _, targets, _ = pieces_of(stream.next_batch())[0]
    return bytes(t for t in targets.tolist() if 0 <= t < 256).decode()


TOOLS = Dialog.of(("user", "U"), ("assistant", "A"), ("tool", "T"), ("assistant", "B"))


@pytest.mark.parametrize(
    ("changes", "silent", "learned"),
    [
        ({}, (), "AB"),
        ({"turns": "last"}, (), "B"),
        ({}, (3,), "A"),
        ({"turns": "last"}, (3,), "A"),
        ({"roles": ["assistant", "tool"]}, (), "ATB"),
        ({"roles": ["user"]}, (), "U"),
    ],
)
def test_roles_turns_and_silent_messages_decide_what_is_learned(changes, silent, learned):
    row = DialogRow(TOOLS, "x", silent=frozenset(silent))
    assert supervised_text(batches([row], rows=1, **changes)) == learned


def test_a_weight_counts_as_repeating_the_row_does():
    one, two = dialog_rows(2)
    model = tiny_model()
    weighted = sft_loss(
        model, batches([DialogRow(one.dialog, "x", weight=3.0), two], rows=1, sequence_length=400).next_batch()
    )
    weighted.sum.backward()
    ours = gradients(model)
    model.zero_grad()
    repeated = sft_loss(model, batches([one, one, one, two], rows=1, sequence_length=800).next_batch())
    repeated.sum.backward()
    assert weighted.count == repeated.count and weighted.sum.item() == pytest.approx(repeated.sum.item(), rel=1e-9)
    for a, b in zip(ours, gradients(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_quality_and_difficulty_choose_rows_and_rows_without_stay():
    dialog = Dialog.of(("user", "a"), ("assistant", "b"))
    rows = [
        DialogRow(dialog, "x", quality=0.2),
        DialogRow(dialog, "x", quality=0.9, difficulty=5),
        DialogRow(dialog, "x", quality=0.9, difficulty=2),
        DialogRow(dialog, "x"),
    ]
    report = batches(rows, min_quality=0.5, difficulty=[1, 3]).report
    assert report.n_kept == 2
    assert report.dropped == {"quality below 0.5": 1, "difficulty outside 1 to 3": 1}


def test_neftune_noise_is_drawn_in_training_alone_and_follows_the_saved_generator():
    model, batch = tiny_model(), batches(dialog_rows(6)).next_batch()
    loss, plain = NoisySftLoss(5.0), sft_loss(model, batch).sum.item()
    torch.manual_seed(1)
    first, second = loss(model, batch).sum.item(), loss(model, batch).sum.item()
    torch.manual_seed(1)
    assert loss(model, batch).sum.item() == first != second != plain
    model.eval()
    assert loss(model, batch).sum.item() == plain and make_loss(SftConfig()) is sft_loss
