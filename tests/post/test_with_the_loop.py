"""SFT and DPO through the one training loop: they learn, and they resume."""

import pytest
import torch

from puna.core.dialog import Dialog, Message
from puna.core.run_folder import RunFolder
from puna.post.dialogs import DialogRow
from puna.post.dpo import DpoBatches, DpoConfig, dpo_loss
from puna.post.pairs import encode_pairs
from puna.post.preference_rows import Preference
from puna.post.reference import cached_reference
from puna.post.sft import SftBatches, SftConfig, sft_loss
from puna.train.config import TrainConfig
from puna.train.loop import train
from tests.post.tiny import SPECIALS, TOKENIZER, tiny_model


def settings(steps, **changes):
    values = {
        "steps": steps,
        "device": "cpu",
        "accumulation": 2,
        "log_every_steps": 2,
        "optim": {"lr": 3e-3},
        "schedule": {"kind": "constant", "warmup_steps": 0},
    }
    return TrainConfig.model_validate(values | changes)


def trained(records):
    return [record for record in records if record["kind"] == "train"]


def test_sft_learns_to_answer_and_to_stop(tmp_path):
    rows = [DialogRow(Dialog.of(("user", f"{n}"), ("assistant", "ok")), "x") for n in range(20)]
    model = tiny_model(dtype=torch.float32)
    run = RunFolder(tmp_path / "sft")
    batches = SftBatches(rows, TOKENIZER, SftConfig(rows=2, sequence_length=128))
    train(model, loss=sft_loss, batches=batches, config=settings(40, optim={"lr": 2e-2}), run=run, tokenizer=TOKENIZER)
    losses = [record["loss"] for record in trained(run.read_metrics())]
    assert losses[0] > 3.0 and losses[-1] < 0.5


def test_dpo_raises_the_margin_and_a_run_cut_in_two_gives_the_same_weights(tmp_path):
    preferences = [
        Preference(Dialog.of(("user", f"{n}")), (Message("assistant", "good"),), (Message("assistant", "bad"),))
        for n in range(12)
    ]
    config = DpoConfig(rows=1, sequence_length=256)
    pairs = encode_pairs(preferences, TOKENIZER, sequence_length=config.sequence_length, format_mask=config.format_mask)

    def session(folder, batches_until_killed=10**9):
        model, run = tiny_model(dtype=torch.float32), RunFolder(folder)
        reference = cached_reference(
            model,
            pairs,
            config,
            pad=SPECIALS.pad,
            model_fingerprint="start",
            tokenizer_fingerprint=TOKENIZER.fingerprint,
            folder=run.work,
        )
        batches = DpoBatches(pairs, config, pad=SPECIALS.pad, reference=reference)
        loss, seen = dpo_loss(config, pairs=pairs), []

        def mortal(model, batch):
            seen.append(batch)
            if len(seen) > batches_until_killed:
                raise KeyboardInterrupt
            return loss(model, batch)

        train(
            model, loss=mortal, batches=batches, config=settings(12, save_every_steps=4), run=run, tokenizer=TOKENIZER
        )
        return model, trained(run.read_metrics())

    whole, records = session(tmp_path / "whole")
    assert records[-1]["rewards/margins"] > records[0]["rewards/margins"]
    assert records[-1]["rewards/accuracies"] == 1.0
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path / "cut", batches_until_killed=13)
    resumed, _ = session(tmp_path / "cut")
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
