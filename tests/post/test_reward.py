import json
import math

import numpy as np
import pytest
import torch

from puna.checkpoint.format import load_model, save_model
from puna.core.dialog import Dialog, Message
from puna.core.errors import ConfigError, UsageError
from puna.core.run_folder import RunFolder
from puna.post.preference_rows import Preference
from puna.post.rankings import RankedPair, Ranking, at_least, encode_rankings, of_preference, read_rankings
from puna.post.reward import RewardBatches, RewardConfig, RewardLoss, Scorer, pack_rankings, with_score_head
from puna.post.reward_losses import bradley_terry_losses
from puna.post.trees import Tree
from puna.tokenizer.chat_format import render
from puna.train.config import TrainConfig
from puna.train.loop import train
from tests.post.tiny import SPECIALS, TOKENIZER, preferences, tiny_model, words

PAD = SPECIALS.pad


def config(**changes):
    return RewardConfig.model_validate({"rows": 2, "sequence_length": 300, "window": 64} | changes)


def scorer_model(seed=0, **kwargs):
    return with_score_head(tiny_model(seed, **kwargs), seed=seed)


def rankings(n, k=3, seed=0):
    import random

    rng = random.Random(seed)
    return [
        Ranking(
            Dialog.of(("user", words(rng, 1, 40))),
            tuple((Message("assistant", f"{i}{words(rng, 1, 20)}"),) for i in range(k)),
            tuple(RankedPair(i, j) for i in range(k) for j in range(i + 1, k)),
        )
        for _ in range(n)
    ]


def naive_loss(model, given, *, margin=0.0, centring=0.0):
    """One dialog at a time, one pair at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for ranking in given:
        scores = []
        for answer in ranking.answers:
            tokens = torch.tensor(render(TOKENIZER, Dialog((*ranking.prompt.messages, *answer))).tokens)
            scores.append(model.hidden(tokens)[-1] @ model.score.weight[0])
        for pair in ranking.pairs:
            d = scores[pair.better] - scores[pair.worse] - margin
            p = pair.probability
            loss = -p * torch.log(torch.sigmoid(d)) - (1 - p) * torch.log(torch.sigmoid(-d))
            loss = loss + centring * (scores[pair.better] + scores[pair.worse]) ** 2
            total = total + ranking.weight * loss / len(ranking.pairs)
    return total


def test_the_loss_gives_the_golden_values():
    better, worse = torch.tensor([1.2], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    assert bradley_terry_losses(better, worse).item() == pytest.approx(0.474077, abs=1e-6)
    assert bradley_terry_losses(better, worse, margin=1 / 3).item() == pytest.approx(0.613282, abs=1e-6)
    assert bradley_terry_losses(better, worse, margin=1.0).item() == pytest.approx(0.974077, abs=1e-6)
    centred = bradley_terry_losses(better, worse, centring=0.01).item()
    assert centred == pytest.approx(0.474077 + 0.01 * 1.9**2, abs=1e-6)


def test_swapping_the_scores_negates_the_margin_and_doubt_is_an_even_mix():
    a, b = torch.tensor([0.3], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    forward, backward = bradley_terry_losses(a, b), bradley_terry_losses(b, a)
    assert (backward - forward).item() == pytest.approx(1.3)
    assert bradley_terry_losses(a, b, probability=0.5).item() == pytest.approx(((forward + backward) / 2).item())


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("centring", [0.0, 0.01])
def test_packed_rows_equal_one_dialog_at_a_time_with_gradients(shared_prefix, centring):
    given = [*rankings(4), *map(of_preference, preferences(4)), *rankings(2, k=5, seed=3)]
    settings = config(rows=1, shared_prefix=shared_prefix, centring=centring)
    model = scorer_model()
    stream = RewardBatches(
        encode_rankings(given, TOKENIZER, sequence_length=300, shared_prefix=shared_prefix), settings, pad=PAD
    )
    loss = RewardLoss(settings)
    outputs = [loss(model, stream.next_batch()) for _ in range(stream.rows_in_epoch())]
    total = torch.stack([output.sum for output in outputs]).sum()
    total.backward()
    assert sum(output.count for output in outputs) == pytest.approx(10)
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected = naive_loss(model, given, centring=centring)
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-9)
    for ours, theirs in zip(packed, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-7, atol=1e-10)


def test_a_zero_head_loses_ln_2_and_is_right_never():
    model = scorer_model()
    torch.nn.init.zeros_(model.score.weight)
    encoded = encode_rankings(rankings(3), TOKENIZER, sequence_length=300)
    output = RewardLoss(config())(model, pack_rankings(encoded, [[0], [1, 2]], config(), pad=PAD))
    assert output.sum.item() / output.count == pytest.approx(math.log(2)) and output.metrics["accuracy"] == 0


def test_neither_padding_nor_batch_mates_nor_answers_that_are_padding_tokens_change_a_score():
    model = scorer_model()
    tree = Tree(np.array([256, 5, 6]), (np.array([7, 8, PAD]), np.array([PAD])))
    other = Tree(np.array([256, 9]), (np.array([1]),))
    alone = Scorer(model, TOKENIZER).trees([tree])[0]
    for length in (20, 77):
        scorer = Scorer(model, TOKENIZER, sequence_length=length)
        together = scorer.trees([other, tree, other])
        np.testing.assert_allclose(together[1], alone, rtol=1e-10)
    naive = [
        (model.hidden(torch.tensor([256, 5, 6, *ids]))[-1] @ model.score.weight[0]).item()
        for ids in ([7, 8, PAD], [PAD])
    ]
    np.testing.assert_allclose(alone, naive, rtol=1e-9)


def test_an_edit_makes_a_triple_and_each_ranking_counts_once():
    plain = preferences(1)[0]
    edited = Preference(
        plain.prompt, plain.chosen, plain.rejected, edited=(Message("assistant", "edited"),), strength="better"
    )
    ranking = of_preference(edited)
    assert [m[0].content for m in ranking.answers] == ["edited", plain.chosen[0].content, plain.rejected[0].content]
    assert [(p.better, p.worse) for p in ranking.pairs] == [(0, 1), (0, 2), (1, 2)]
    encoded = encode_rankings([ranking], TOKENIZER, sequence_length=300)
    batch = pack_rankings(encoded, [[0]], config(margins="small"), pad=PAD)
    assert batch.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert batch.margins.tolist() == pytest.approx([0, 2 / 3, 2 / 3])


def test_pairs_below_a_strength_are_left_out_and_unknown_ones_stay():
    pairs = (RankedPair(0, 1, "better"), RankedPair(0, 2), RankedPair(1, 2, "slightly_better"))
    base = rankings(1)[0]
    ranking = Ranking(base.prompt, base.answers, pairs)
    (kept,) = at_least([ranking], "better")
    assert kept.pairs == pairs[:2]
    assert at_least([Ranking(base.prompt, base.answers, pairs[2:])], "better") == []


def test_rankings_and_preferences_are_read_together_and_what_is_wrong_is_told_by_line(tmp_path):
    good = [
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "weight": 2, "probability": 0.8},
        {"prompt": "Hi", "ranking": ["a", [{"role": "assistant", "content": "b"}], "c"]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in good))
    first, second = read_rankings([path])
    assert (first.weight, first.pairs[0].probability) == (2.0, 0.8) and len(second.pairs) == 3
    bad = [
        {"prompt": "Hi", "ranking": ["a"]},
        {"prompt": "Hi", "ranking": ["a", "a "]},
        {"ranking": ["a", "b"]},
        {"prompt": "Hi", "ranking": ["a", {"role": "assistant"}]},
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "weight": 0},
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "probability": 0.4},
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "ranking": ["a", "b"]},
        {"prompt": "Hi", "ranking": ["a", "b"], "sorce": "people"},
        {"prompt": "", "ranking": ["a", "b"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in bad))
    with pytest.raises(ConfigError) as refused:
        read_rankings([path])
    told = str(refused.value)
    for number, part in enumerate(
        [
            "is of 1; it must be",
            "are the same",
            "must have a 'prompt'",
            "answer 2 of 'ranking'",
            "above 0",
            "0.5 to 1",
            "either a ranking or a pair",
            "Did you mean 'source'",
            "'prompt' is empty",
        ],
        start=1,
    ):
        assert f"{path}:{number}: " in told and part in told


def test_rankings_that_do_not_fit_are_counted_and_none_left_is_an_error():
    encoded = encode_rankings(rankings(8), TOKENIZER, sequence_length=80)
    assert 0 < len(encoded.trees) < 8 and sum(encoded.dropped.values()) == 8 - len(encoded.trees)
    with pytest.raises(UsageError, match=r"Raise data\.sequence_length"):
        encode_rankings(rankings(2), TOKENIZER, sequence_length=10)


def test_a_reward_model_is_saved_and_opens_here_and_in_transformers(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = scorer_model(dtype=torch.float32)
    save_model(tmp_path / "rm", model, model.config, tokenizer=TOKENIZER)
    again, shape = load_model(tmp_path / "rm")
    assert shape.head == "score" and torch.equal(again.score.weight, model.score.weight)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32)
    tokens = torch.tensor([[256, 5, 6, 7, 8]])
    ours = again.scores(again.hidden(tokens))[0, -1]
    assert theirs(tokens).logits.item() == pytest.approx(ours.item(), abs=1e-5)


def test_a_trained_reward_model_knows_better_answers_and_a_cut_run_gives_the_same_weights(tmp_path):
    given = [
        of_preference(
            Preference(Dialog.of(("user", f"{n}")), (Message("assistant", "good"),), (Message("assistant", "bad"),))
        )
        for n in range(12)
    ]
    settings = config(rows=1, sequence_length=128)
    encoded = encode_rankings(given, TOKENIZER, sequence_length=128)
    training = TrainConfig.model_validate(
        {
            "steps": 12,
            "device": "cpu",
            "save_every_steps": 4,
            "optim": {"lr": 3e-3},
            "schedule": {"kind": "constant", "warmup_steps": 0},
        }
    )

    def session(folder, dies_at=10**9):
        model, seen = with_score_head(tiny_model(dtype=torch.float32)), []
        loss = RewardLoss(settings)

        def mortal(model, batch):
            seen.append(batch)
            if len(seen) > dies_at:
                raise KeyboardInterrupt
            return loss(model, batch)

        run = RunFolder(folder)
        train(
            model,
            loss=mortal,
            batches=RewardBatches(encoded, settings, pad=PAD),
            config=training,
            run=run,
            tokenizer=TOKENIZER,
        )
        return model, run.read_metrics()

    whole, records = session(tmp_path / "whole")
    assert records[-1]["accuracy"] == 1.0 and records[-1]["loss"] < 0.6
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path / "cut", dies_at=6)
    resumed, _ = session(tmp_path / "cut")
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
